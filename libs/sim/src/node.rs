//! A data server: engine, store and disk, its clock, its session with the MDM.

use crate::disk::Disk;
use quarry_base::*;
use quarry_replica::{Engine, EngineConfig, Event, Limits};
use quarry_store::{read_ident, DiskOp, Store, StoreConfig, StoreEvent, IDENT_BYTES};
use std::collections::VecDeque;
use std::time::Duration;

/// The id of the simulated cluster.
pub const CLUSTER: &str = "00112233445566778899aabbccddeeff";

pub struct Node {
    pub sds: SdsId,
    pub device: DeviceId,
    pub gen: u64,
    pub engine: Option<Engine>,
    pub disk: Disk,
    pub start: StartNo,
    pub paused_until: u64,
    /// A turn is scheduled at.
    pub turn_at: u64,
    /// From the MDM, in order.
    pub inbox: VecDeque<Event>,
    /// Told about changes.
    pub subscribed: bool,
    pub leaving: bool,
    /// Starts of the host.
    pub boot: u64,
    /// Number of the session with the MDM.
    pub session: u64,
    /// A hand-over that the MDM has not answered.
    pub hand_over: Option<u64>,
    /// Its disk is slow until then, by so much.
    pub slow: (u64, u64),
    /// Nothing its disk was asked for ends before.
    pub hung_until: u64,
    /// Its clock stands still between these (a machine that is paused), and stood still before for so long.
    pub frozen: (u64, u64),
    frozen_before: u64,
    offset: u64,
    /// Clock speed, parts per million off.
    drift: i64,
}

pub fn store_config() -> StoreConfig {
    StoreConfig {
        device_bytes: 24 << 20,
        log_bytes: 4 << 20,
        max_batch_bytes: 256 << 10,
        max_batches_in_flight: 4,
        destage_idle: Duration::from_millis(200),
        max_tombstones_per_pg: 24,
        ..StoreConfig::default()
    }
}

impl Node {
    pub fn new(i: usize, disk: Disk, offset: u64, drift: i64) -> Node {
        Node {
            sds: SdsId(i as u32 + 1),
            device: DeviceId(i as u32 + 1),
            gen: 0,
            engine: None,
            disk,
            start: StartNo::ZERO,
            paused_until: 0,
            turn_at: u64::MAX,
            inbox: VecDeque::new(),
            subscribed: false,
            leaving: false,
            boot: 1,
            session: 0,
            hand_over: None,
            slow: (0, 0),
            hung_until: 0,
            frozen: (0, 0),
            frozen_before: 0,
            offset,
            drift,
        }
    }

    /// This host's clock.
    pub fn local(&self, now: u64) -> Nanos {
        let (from, until) = self.frozen;
        let now = now - self.frozen_before - now.min(until).saturating_sub(from);
        Nanos(self.offset + (now as i64 + now as i64 / 1_000_000 * self.drift) as u64)
    }

    /// The host stops from now until then, and its clock with it.
    pub fn freeze(&mut self, now: u64, until: u64) {
        let (from, to) = self.frozen;
        self.frozen_before += to - from;
        self.frozen = (now, until);
    }

    /// When this host's clock shows `at`, not before.
    pub fn global(&self, at: Nanos) -> u64 {
        let x = at.0.saturating_sub(self.offset);
        let mut t = (x as i64 - x as i64 / 1_000_000 * self.drift) as u64;
        while self.local(t) < at {
            t += 1 + (at.0 - self.local(t).0);
        }
        t
    }

    /// Its device as it registers it.
    pub fn report(&self) -> mdm::state::RegDevice {
        let mut d = crate::mdm::reg_device(self.device.0, store_config().device_bytes);
        let store = self.engine.as_ref().and_then(|e| e.store(self.device));
        d.failed = store.and_then(|s| s.unfit()).map(|e| e.to_string());
        d
    }

    /// How long its device has had operations under way without one ending, milliseconds.
    pub fn stalled(&self) -> (DeviceId, u64) {
        let store = self.engine.as_ref().and_then(|e| e.store(self.device));
        let idle = store.map_or(0, |s| s.stalled_for().as_millis() as u64);
        (self.device, idle)
    }

    /// For the trace of a failure.
    pub fn describe(&self) -> String {
        let store = self.engine.as_ref().and_then(|e| e.store(self.device));
        let reports = self.engine.as_ref().map(|e| e.reports());
        let s = store.map(|s| (s.headroom(), s.failed().cloned(), s.is_idle(), s.stats()));
        let ops = self.disk.open_ops();
        format!(
            "sds{} start {} turn {} ops {ops:?} {s:?} {reports:?}",
            self.sds, self.start, self.turn_at
        )
    }

    /// A process start: recovers the store. Errors are fatal for the run.
    pub fn boot(&mut self, now: u64, limits: &Limits) -> Result<(), String> {
        let store = recover(&mut self.disk)?;
        let mut engine =
            Engine::new(EngineConfig { cluster: CLUSTER.into(), limits: limits.clone() });
        let mut out = Vec::new();
        let local = self.local(now);
        engine.step(local, Event::DeviceOpened { device: self.device, store }, &mut out);
        self.engine = Some(engine);
        self.start = StartNo::ZERO;
        self.leaving = false;
        self.hand_over = None;
        Ok(())
    }
}

/// Where a device's data blocks lie, bytes.
pub fn data_area(disk: &Disk) -> (u64, u64) {
    let start = disk.read(0, IDENT_BYTES);
    match read_ident(&start) {
        Ok(Some(i)) => (i.device_bytes.saturating_sub(i.blocks * u64::from(BLOCK)), i.device_bytes),
        _ => (0, 0),
    }
}

/// Opens the store on a disk, all at once.
pub fn recover(disk: &mut Disk) -> Result<Store, String> {
    let mut cfg = store_config();
    if let Ok(Some(i)) = read_ident(&disk.read(0, IDENT_BYTES)) {
        cfg.device_bytes = cfg.device_bytes.max(i.device_bytes);
    }
    let mut store = Store::open(cfg, None);
    let (mut ops, mut events) = (Vec::<DiskOp>::new(), Vec::<StoreEvent>::new());
    let mut opened = false;
    for _ in 0..1_000_000 {
        store.poll(Nanos(1), &mut ops, &mut events);
        for e in events.drain(..) {
            match e {
                StoreEvent::Opened => opened = true,
                StoreEvent::OpenFailed(e) => return Err(format!("recovery: {e}")),
                _ => {}
            }
        }
        // What was handed out together with `Opened` is carried out first.
        if opened && ops.is_empty() {
            return Ok(store);
        }
        for op in std::mem::take(&mut ops) {
            let id = disk.begin(op);
            if let Some(r) = disk.finish(id) {
                store.complete(Nanos(1), id, r);
            }
        }
    }
    Err("recovery does not end".into())
}
