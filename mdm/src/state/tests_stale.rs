//! Who is waited for while older copies are to count (R26), with volumes and clients.

use super::tests::{pool, Lab};
use super::*;
use crate::control::{Hub, SdcLive};
use crate::stale::{plan, unfenced};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// Two servers, of which the one with the good copies is gone.
fn stale(l: &mut Lab) {
    l.fail(2, &[1]);
    l.fail(1, &[]);
    l.register(2, None, &[]);
}

fn map(l: &mut Lab, volume: u32, sdc: SdcId) {
    let (read_only, device, no_device, io_timeout_ms) = (false, false, false, None);
    let volume = VolumeId(volume);
    l.ok(Op::Map { volume, sdc, read_only, device, io_timeout_ms, no_device });
}

/// Lets the copies on server 2 count.
fn accept(l: &mut Lab, pgs: &[PgId]) {
    let device = l.s.devices.values().find(|d| d.sds == l.id(2)).unwrap().id;
    let start = l.start(2);
    let choice = |pg: &PgId| StaleChoice {
        pg: *pg,
        epoch: l.s.pgs[pg].config.epoch,
        device,
        start,
        lost: String::new(),
    };
    let choices = pgs.iter().map(choice).collect();
    l.ok(Op::AcceptStale { pool: PoolId(1), choices, server_off: false });
}

fn live(applied: ConfigIndex) -> SdcLive {
    SdcLive { applied, ..SdcLive::default() }
}

#[test]
fn r26_only_clients_with_a_volume_in_a_group_that_have_not_applied_its_fence_are_waited_for() {
    let mut l = Lab::cluster(2, 2);
    let (c1, c2) = (l.register_sdc(1), l.register_sdc(2));
    l.volume("small", MIB).unwrap();
    l.volume("large", 1024 * MIB).unwrap();
    map(&mut l, 1, c1);
    map(&mut l, 2, c2);
    stale(&mut l);
    let all: Vec<PgId> = l.s.pgs.keys().copied().collect();
    let of_small = l.s.volume_pgs(&l.s.volumes[&VolumeId(1)]);
    let others: Vec<PgId> = all.iter().filter(|pg| !of_small.contains(pg)).copied().collect();
    accept(&mut l, &others);
    let first = l.s.index;
    let hub = Hub::new(&l.s);
    let waits = |l: &Lab| unfenced(&hub.lock(), &l.s, &all);
    let told = |c: &str| format!("sdc {c} has not confirmed that it leaves the old server alone");
    assert_eq!(waits(&l), [told("c2")], "nothing of the other one's is in these groups");
    accept(&mut l, &of_small.into_iter().collect::<Vec<_>>());
    let second = l.s.index;
    assert_eq!(waits(&l), [told("c1"), told("c2")]);
    // Each group has its own fence: the large volume is in all of them.
    hub.lock().sdcs.extend([(c1, live(second)), (c2, live(first))]);
    assert_eq!(waits(&l), [told("c2")]);
    hub.lock().sdcs.insert(c2, live(second));
    assert!(waits(&l).is_empty());
}

#[test]
fn r26_a_look_at_who_is_waited_for_works_out_the_groups_of_each_volume_once() {
    let mut l = Lab::new();
    l.register(1, None, &[]);
    l.register(2, None, &[]);
    let Op::AddPool(mut p) = pool("p", 2) else { panic!("a pool") };
    p.pg_count = Some(512);
    l.ok(Op::AddPool(p));
    let c1 = l.register_sdc(1);
    for i in 1..=60 {
        l.volume(&format!("v{i}"), 4095 * MIB).unwrap();
        map(&mut l, i, c1);
    }
    stale(&mut l);
    let hub = Hub::new(&l.s);
    let all: Vec<PgId> = l.s.pgs.keys().copied().collect();
    let begin = Instant::now();
    let in_all: usize = l.s.volumes.values().map(|v| l.s.volume_pgs(v).len()).sum();
    // Once a group would be 512 times this.
    let bound = begin.elapsed() * 20 + Duration::from_millis(100);
    let begin = Instant::now();
    let shown = plan(&l.s, &hub.lock(), &all, None);
    assert!(begin.elapsed() < bound, "{:?}", begin.elapsed());
    assert_eq!((shown.rows.len(), shown.volumes.len()), (512, 60));
    let named = shown.rows.iter().map(|r| r["volumes"].as_array().unwrap().len());
    assert_eq!(named.sum::<usize>(), in_all);
    accept(&mut l, &all);
    let begin = Instant::now();
    assert_eq!(unfenced(&hub.lock(), &l.s, &all).len(), 1);
    assert!(begin.elapsed() < bound, "{:?}", begin.elapsed());
}
