//! What is said of servers that say this and that.

use super::*;
use crate::control::{DeviceLive, Hub, PgLive, SdsLive};
use crate::state::tests::{pool, Lab};
use crate::state::Op;
use quarry_control::{copy_times, disk_times, led_times};

/// What a server said a moment ago.
struct Said {
    /// Answered, mean, until begun, until durable on itself.
    led: Option<[u64; 4]>,
    copies: Vec<(u32, u64)>,
    disk_us: u64,
}

fn said(led: [u64; 4], copies: &[(u32, u64)], disk_us: u64) -> Said {
    Said { led: Some(led), copies: copies.to_vec(), disk_us }
}

/// It leads nothing, so it says nothing of its own writes.
fn silent(disk_us: u64) -> Said {
    Said { led: None, copies: Vec::new(), disk_us }
}

const AT: Nanos = Nanos(100_000_000_000);

/// Servers with one disk each, of number `n` where the server's is `n`; what they say of themselves, by number.
fn hear(s: &State, hub: &mut HubInner, all: &[Said]) {
    for (n, said) in (1u32..).zip(all) {
        let mut x = SdsLive { session: Some(1), heard: AT, ..SdsLive::default() };
        let d = s.devices.values().find(|d| d.sds == SdsId(n)).unwrap().id;
        assert_eq!(d, DeviceId(n));
        if let Some([count, mean, admit, own]) = said.led {
            let led = [count, mean, admit, count, own];
            x.counters.extend(LED_TIMES.iter().map(|w| led_times(d, w)).zip(led));
        }
        for (m, us) in &said.copies {
            x.counters.extend(copy_times(DeviceId(*m)).into_iter().zip([*us, 100]));
        }
        x.counters.extend(disk_times(d).into_iter().zip([said.disk_us, 50]));
        x.devices.insert(d, DeviceLive { capacity: 1, used: 0, failed: None, open: true });
        hub.sds.insert(SdsId(n), x);
    }
    for pg in s.pgs.keys() {
        hub.pgs.insert(*pg, PgLive::default());
    }
}

fn look_at(l: &Lab, all: &[Said], pool: PoolId, seen: Option<Seen>) -> Found {
    let hub = Hub::new(&l.s);
    let mut hub = hub.lock();
    hear(&l.s, &mut hub, all);
    let pgs = l.s.pool_pgs(pool).map(|p| p.config.pg).collect();
    look(&l.s, &hub, &pgs, seen, AT)
}

/// Of a pool of three servers.
fn found(all: [Said; 3], seen: Option<Seen>) -> Found {
    let l = Lab::cluster(3, 2);
    let id = *l.s.pools.keys().next().unwrap();
    look_at(&l, &all, id, seen)
}

#[test]
fn where_all_are_alike_nothing_is_slow_and_the_figures_are_there() {
    let s = |others: [(u32, u64); 2]| said([1000, 700, 10, 400], &others, 300);
    let f =
        found([s([(2, 550), (3, 480)]), s([(1, 500), (3, 470)]), s([(1, 510), (2, 520)])], None);
    assert!(f.why.is_empty(), "{f:?}");
    assert_eq!(f.timing["servers"].as_array().unwrap().len(), 3);
    assert_eq!(f.timing["servers"][0]["write_seconds"], 0.0007);
    assert_eq!(f.timing["servers"][0]["copies"][0]["sds"], "s2");
    assert!(f.timing["client"].is_null());
}

#[test]
fn a_slow_disk_is_named() {
    let f = found(
        [
            said([1000, 12_500, 10, 400], &[(2, 12_300), (3, 450)], 300),
            said([1000, 12_600, 10, 12_400], &[(1, 500)], 11_000),
            said([1000, 800, 10, 400], &[(1, 600), (2, 12_200)], 300),
        ],
        None,
    );
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(why.contains("device 2 of sds s2 after 12.4 ms"), "{why}");
    assert!(why.contains("after 400 us: the median service time of the disk is 11.0 ms"), "{why}");
    assert!(todo.contains("scli device drain --id 2"), "{todo}");
    assert_eq!(f.timing["servers"][0]["sds"], "s2", "the slowest first");
}

#[test]
fn a_slow_disk_of_a_server_that_leads_nothing_is_named_by_its_service_time() {
    let fast = |other| said([1000, 12_500, 10, 400], &[(2, 12_300), (other, 450)], 300);
    let f = found([fast(3), silent(11_000), fast(1)], None);
    let [(why, _)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(why.contains("device 2 of sds s2"), "{why}");
    assert!(why.contains("service time of its disk is 11.0 ms"), "{why}");
}

#[test]
fn a_slow_disk_that_alone_leads_is_compared_by_its_service_time() {
    let one = said([1000, 61_000, 10, 60_000], &[(2, 62_000)], 55_000);
    let f = found([one, silent(300), silent(300)], None);
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(why.contains("device 1 of sds s1"), "{why}");
    assert!(why.contains("55.0 ms, of other disks of the pool 300 us"), "{why}");
    assert!(todo.contains("--id 1"), "{todo}");
}

#[test]
fn two_slow_disks_of_three_are_both_named_and_no_network() {
    let f = found(
        [
            said([1000, 20_500, 10, 1_000], &[(2, 20_300), (3, 20_400)], 900),
            said([1000, 20_600, 10, 20_000], &[(1, 1_500), (3, 20_400)], 1_500),
            said([1000, 20_800, 10, 20_000], &[(1, 1_600), (2, 20_400)], 1_500),
        ],
        None,
    );
    assert_eq!(f.why.len(), 2, "{f:?}");
    assert!(
        f.why.iter().all(|(why, _)| why.contains("the disk, or the load of the host")),
        "{f:?}"
    );
}

#[test]
fn a_slow_network_is_told_from_a_slow_disk_by_what_the_servers_lead_themselves() {
    let with = |third: Said| {
        let one = said([1000, 21_900, 10, 400], &[(2, 500), (3, 21_500)], 300);
        let two = said([1000, 21_900, 10, 400], &[(1, 500), (3, 21_700)], 300);
        let f = found([one, two, third], None);
        let [one] = f.why.as_slice() else { panic!("{f:?}") };
        one.clone()
    };
    // Its copies go the same way.
    let (why, todo) = with(said([1000, 21_900, 10, 380], &[(1, 21_400), (2, 21_600)], 280));
    assert!(why.contains("between sds s3 and all others takes 21.7 ms"), "{why}");
    assert!(why.contains("disks at both ends are quick"), "{why}");
    assert!(todo.contains("network of the host of sds s3") && !todo.contains("SMART"), "{todo}");
    // Nothing tells the network from the disk: its usual operations are not those that a write waits for.
    let (why, _) = with(silent(280));
    assert!(why.contains("sds s3") && why.contains("disks take is not known"), "{why}");
}

#[test]
fn between_two_servers_neither_is_named_alone() {
    let f = found(
        [
            said([1000, 61_000, 10, 500], &[(2, 60_000)], 300),
            said([1000, 61_000, 10, 500], &[(1, 60_500)], 300),
            silent(300),
        ],
        None,
    );
    let [(why, _)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(why.contains("s2 to s1 60.5 ms, s1 to s2 60.0 ms"), "{why}");
    assert!(why.contains("the network between these servers"), "{why}");
}

#[test]
fn a_server_that_is_slow_itself_says_nothing_of_others() {
    // Its processor is busy: all that it notes is late, what its secondaries answered in time included.
    let f = found(
        [
            said([1000, 92_000, 10, 88_000], &[(2, 95_000), (3, 91_000)], 1_000),
            said([1000, 87_000, 10, 120], &[(1, 153_000), (3, 440)], 300),
            said([1000, 59_000, 10, 106], &[(1, 156_000), (2, 518)], 300),
        ],
        None,
    );
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(why.contains("device 1 of sds s1 after 88.0 ms"), "{why}");
    assert!(why.contains("the disk, or the load of the host"), "{why}");
    assert!(todo.contains("SMART") && !todo.contains("network"), "{todo}");
}

#[test]
fn pools_of_different_kinds_of_disks_are_not_compared() {
    let mut l = Lab::new();
    for i in 1..=7 {
        l.register(i, None, &[]);
    }
    for (name, devices) in [("ssd", 1..=4), ("hdd", 5..=7)] {
        let Op::AddPool(mut op) = pool(name, 2) else { unreachable!() };
        op.devices = Some(devices.map(DeviceId).collect());
        l.ok(Op::AddPool(op));
    }
    let fast = || said([1000, 700, 10, 400], &[(1, 500), (2, 500), (3, 500), (4, 500)], 300);
    let slow = || said([200, 12_000, 10, 9_000], &[(5, 10_000), (6, 10_000), (7, 10_000)], 9_000);
    let all = [fast(), fast(), fast(), fast(), slow(), slow(), slow()];
    let ids: Vec<PoolId> = l.s.pools.keys().copied().collect();
    assert_eq!(ids.len(), 2);
    for id in ids {
        let f = look_at(&l, &all, id, None);
        assert!(f.why.is_empty(), "{f:?}");
        assert!(!f.timing.is_null());
    }
}

#[test]
fn what_late_copies_have_in_common_is_named() {
    // One leads everything, over a full link; what its secondaries take is not known.
    let f = found(
        [
            said([1000, 18_000, 10, 1_300], &[(2, 17_000), (3, 17_500)], 900),
            silent(900),
            silent(900),
        ],
        None,
    );
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(why.contains("between sds s1 and all others takes 17.5 ms"), "{why}");
    assert!(todo.contains("network of the host of sds s1"), "{todo}");
    // Of one that tells of its slowest secondaries only it is not known whether all are.
    let l = Lab::cluster(3, 2);
    let hub = Hub::new(&l.s);
    let mut hub = hub.lock();
    let one = said([1000, 18_000, 10, 1_300], &[(2, 17_000), (3, 17_500)], 900);
    hear(&l.s, &mut hub, &[one, silent(900), silent(900)]);
    let first = hub.sds.get_mut(&SdsId(1)).unwrap();
    first.counters.insert(COPIES_LEFT_OUT.to_string(), 5);
    let f = look(&l.s, &hub, &l.s.pgs.keys().copied().collect(), None, AT);
    assert!(f.why.is_empty(), "{f:?}");
}

#[test]
fn writes_that_wait_to_be_begun_are_told_from_slow_ones() {
    let calm = || said([1000, 800, 10, 400], &[], 300);
    let f = found([said([1000, 30_000, 29_000, 500], &[], 300), calm(), calm()], None);
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(
        why.contains("device 1 of sds s1") && why.contains("waits 29.0 ms of its 30.0 ms"),
        "{why}"
    );
    assert!(todo.contains("log_waits"), "{todo}");
}

#[test]
fn time_that_the_servers_do_not_know_of_is_before_them() {
    let calm = || said([1000, 900, 10, 400], &[], 300);
    let seen = |s: f64| Seen { writes: 300.0, write_seconds: Some(s), ..Seen::default() };
    let f = found([calm(), calm(), calm()], Some(seen(0.025)));
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(why.contains("25.0 ms at the client and 900 us at most at the servers"), "{why}");
    assert!(todo.contains("ping"), "{todo}");
    assert!(found([calm(), calm(), calm()], Some(seen(0.002))).why.is_empty());
    // Large writes are cut in parts, and the client's time is of all of them.
    let large = Seen { write_bytes: 300.0 * 4e6, ..seen(0.025) };
    assert!(found([calm(), calm(), calm()], Some(large)).why.is_empty());
    // Of a few among many of other volumes the servers' means say nothing; but that they are slow is said.
    let few = Seen { writes: 20.0, ..seen(0.025) };
    assert!(found([calm(), calm(), calm()], Some(few)).why.is_empty());
    let f = found([calm(), calm(), calm()], Some(Seen { writes: 20.0, ..seen(0.080) }));
    let vague = f.vague.unwrap().0;
    assert!(vague.contains("80.0 ms on average at the client, and no cause"), "{vague}");
}

#[test]
fn of_a_group_that_changed_lately_no_time_is_missed() {
    let l = Lab::cluster(3, 2);
    let hub = Hub::new(&l.s);
    let mut hub = hub.lock();
    let calm = || said([1000, 900, 10, 400], &[], 300);
    hear(&l.s, &mut hub, &[calm(), calm(), calm()]);
    let pgs: BTreeSet<PgId> = l.s.pgs.keys().copied().collect();
    let first = hub.pgs.get_mut(pgs.first().unwrap()).unwrap();
    first.changed = Nanos(AT.0 - 5_000_000_000);
    let seen = Seen { writes: 300.0, write_seconds: Some(0.025), ..Seen::default() };
    assert!(look(&l.s, &hub, &pgs, Some(seen), AT).why.is_empty());
}

#[test]
fn where_all_disks_are_slow_nobody_is_singled_out() {
    let s = || said([1000, 90_000, 10, 80_000], &[], 70_000);
    let f = found([s(), s(), s()], None);
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(why.contains("slow on every device") && todo.contains("faster devices"), "{f:?}");
}

#[test]
fn of_few_writes_nothing_is_concluded() {
    let few = || said([3, 90_000, 80_000, 80_000], &[], 300);
    assert!(found([few(), few(), few()], None).why.is_empty());
    let f = found([silent(300), silent(300), silent(300)], Some(Seen::default()));
    assert!(f.why.is_empty() && f.timing.is_null(), "{f:?}");
}
