//! The data thread's connections, without an MDM or data servers: what is asked for waits.

use super::mail::{DeviceState, FromShard, ToShard};
use super::meters::Meters;
use super::sdctab::Table;
use super::settings::Config;
use super::shard::Shard;
use quarry_base::*;
use quarry_control::NodeFile;
use quarry_metrics::{version::Info, Metrics};
use quarry_ring::{Reactor, RingConfig, Waker};
use quarry_wire::{Change, ClusterView, MapEntry, PoolInfo, VolumeInfo};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

const VOLUME: VolumeId = VolumeId(7);
const SIZE: u64 = 1 << 30;

struct World {
    shard: Shard,
    to: mpsc::Sender<ToShard>,
    from: mpsc::Receiver<FromShard>,
    waker: Waker,
    dir: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

fn view() -> ClusterView {
    let mut v = ClusterView::default();
    v.apply(Change::Pool(PoolInfo {
        id: PoolId(1),
        name: "default".into(),
        pg_count: 4,
        cached: false,
        confirm: false,
        rebuild_bytes_per_second: 0,
        scrub_bytes_per_second: None,
    }));
    let map = MapEntry {
        sdc: SdcId(9),
        read_only: false,
        io_timeout_ms: 0,
        device: true,
        since: Generation(2),
    };
    v.apply(Change::Volume(VolumeInfo {
        id: VOLUME,
        name: "vol7".into(),
        vtree: VtreeId(3),
        pool: PoolId(1),
        size_bytes: SIZE,
        generation: Generation(2),
        mappings: vec![map],
        thick: false,
    }));
    v
}

/// Registered, the volume mapped with a kernel device.
fn world(name: &str) -> World {
    let dir = std::env::temp_dir().join(format!("quarry-sessions-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let node = NodeFile {
        name: "c1".into(),
        addresses: vec![],
        capabilities: vec![],
        mdm: vec![],
        secret_file: None,
    };
    let config = Config {
        node,
        secret: String::new(),
        data_dir: dir.clone(),
        socket_dir: dir.clone(),
        metrics: "127.0.0.1:0".parse().unwrap(),
        shard_core: None,
        no_unix: false,
        sdctab: Table::default(),
    };
    let meters = Meters::new(&Metrics::new(Info::new("sdc-nbd", 1, 1, 1), "sdc", "c1"));
    let reactor = Reactor::new(RingConfig::default()).unwrap();
    let waker = reactor.waker();
    let (to, rx) = mpsc::channel(64);
    let (tx, from) = mpsc::channel(64);
    let applied = Default::default();
    let shard = Shard::new(reactor, &config, "h".into(), meters, rx, tx, applied);
    let mut w = World { shard, to, from, waker, dir };
    let (cluster, sdc) = ("c".to_string(), SdcId(9));
    w.say(ToShard::Registered { cluster, sdc, instance: Instance(1) });
    w.say(ToShard::View(Box::new(view())));
    w
}

impl World {
    fn say(&mut self, m: ToShard) {
        self.to.try_send(m).ok().unwrap();
        self.waker.wake();
        self.turns(2);
    }

    fn turns(&mut self, n: u32) {
        for _ in 0..n {
            let until = self.shard.reactor.now() + Duration::from_millis(10);
            self.shard.turn(Some(until), &mut Vec::new()).unwrap();
        }
    }

    /// The kernel's end of its device's connection.
    fn kernel(&mut self) -> UnixStream {
        let (ours, kernels) = UnixStream::pair().unwrap();
        self.say(ToShard::Adopt { volume: VOLUME, fd: ours.into() });
        let state = DeviceState::Attached("/dev/nbd0".into());
        self.say(ToShard::Device { volume: VOLUME, state });
        kernels
    }

    /// What was told since, by kind.
    fn told(&mut self) -> Vec<&'static str> {
        let mut all = Vec::new();
        while let Ok(m) = self.from.try_recv() {
            all.push(match m {
                FromShard::Attachments(_) => "attachments",
                FromShard::Device(wish) => {
                    assert_eq!(wish.wanted.map(|w| w.since), Some(Generation(2)));
                    "device"
                }
                FromShard::DevicesKnown => "known",
                FromShard::DeviceLost(_) => "lost",
                FromShard::Unreachable { .. } => "unreachable",
                FromShard::Fenced => "fenced",
            });
        }
        all
    }
}

fn request(kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut b = 0x2560_9513u32.to_be_bytes().to_vec();
    b.extend(0u16.to_be_bytes());
    b.extend(kind.to_be_bytes());
    b.extend(cookie.to_be_bytes());
    b.extend(offset.to_be_bytes());
    b.extend(len.to_be_bytes());
    b
}

#[test]
fn what_devices_are_wanted_is_known_once_and_after_the_wishes() {
    let mut w = world("known");
    let told = w.told();
    let at = |what| told.iter().position(|t| *t == what);
    assert!(at("device") < at("known") && at("device").is_some(), "{told:?}");
    w.say(ToShard::View(Box::new(view())));
    assert!(!w.told().contains(&"known"));
}

#[test]
fn a_kernel_connection_that_ends_with_requests_in_flight_is_replaced_at_once() {
    for with_disc in [false, true] {
        let mut w = world("ends");
        let mut kernel = w.kernel();
        kernel.write_all(&request(0, 1, 0, 4096)).unwrap();
        w.turns(3);
        assert_eq!((w.shard.in_flight.len(), w.shard.sessions.len()), (1, 1));
        w.told();
        if with_disc {
            kernel.write_all(&request(2, 2, 0, 0)).unwrap();
        } else {
            kernel.shutdown(std::net::Shutdown::Write).unwrap();
        }
        w.turns(3);
        assert_eq!((w.shard.in_flight.len(), w.shard.sessions.len()), (0, 0));
        assert!(w.told().contains(&"lost"));
    }
}
