//! What is said of servers that say this and that.

use super::*;
use crate::control::{DeviceLive, Hub, SdsLive};
use crate::state::tests::Lab;
use quarry_control::disk_times;

/// What a server said a moment ago.
struct Said {
    led: Option<[u64; 4]>,
    copies: Vec<(u32, u64)>,
    disk_us: u64,
}

fn said(led: [u64; 4], copies: &[(u32, u64)], disk_us: u64) -> Said {
    Said { led: Some(led), copies: copies.to_vec(), disk_us }
}

/// Three servers, each with one disk; what they say of themselves.
fn found(all: [Said; 3], seen: Option<Seen>) -> Found {
    let l = Lab::cluster(3, 2);
    let hub = Hub::new(&l.s);
    let mut hub = hub.lock();
    let at = Nanos::ZERO + Duration::from_secs(100);
    for (n, said) in (1u32..).zip(all) {
        let mut x = SdsLive { session: Some(1), heard: at, ..SdsLive::default() };
        if let Some(led) = said.led {
            x.counters.extend(WRITE_TIMES.iter().map(|n| n.to_string()).zip(led));
        }
        for (m, us) in said.copies {
            x.counters.extend(copy_times(SdsId(m)).into_iter().zip([us, 100]));
        }
        let d = l.s.devices.values().find(|d| d.sds == SdsId(n)).unwrap().id;
        x.counters.extend(disk_times(d).into_iter().zip([said.disk_us, 50]));
        x.devices.insert(d, DeviceLive { capacity: 1, used: 0, failed: None, open: true });
        hub.sds.insert(SdsId(n), x);
    }
    let servers = (1..=3).map(SdsId).collect();
    look(&l.s, &hub, &servers, seen, at)
}

#[test]
fn where_all_are_alike_nothing_is_slow_and_the_figures_are_there() {
    let s = || said([1000, 700, 10, 400], &[(1, 500), (2, 550), (3, 480)], 300);
    let f = found([s(), s(), s()], None);
    assert!(f.why.is_empty(), "{f:?}");
    assert_eq!(f.timing["servers"].as_array().unwrap().len(), 3);
    assert_eq!(f.timing["servers"][0]["write_seconds"], 0.0007);
    assert!(f.timing["client"].is_null());
}

#[test]
fn a_server_with_a_slow_disk_is_named_with_it() {
    let f = found(
        [
            said([1000, 12_500, 10, 400], &[(2, 12_300), (3, 450)], 300),
            said([1000, 12_600, 10, 12_400], &[(1, 500)], 11_000),
            said([1000, 800, 10, 400], &[(1, 600)], 300),
        ],
        None,
    );
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(
        why.contains("sds s2 after 12.") && why.contains("its device 2 takes 11.0 ms"),
        "{why}"
    );
    assert!(why.contains("on others after 4"), "{why}");
    assert!(todo.contains("scli device drain --id 2"), "{todo}");
    assert_eq!(f.timing["servers"][0]["sds"], "s2", "the slowest first");
}

#[test]
fn a_server_behind_a_slow_network_is_told_from_one_with_a_slow_disk() {
    let f = found(
        [
            said([1000, 22_000, 10, 400], &[(3, 21_500)], 300),
            said([1000, 900, 10, 400], &[(1, 500)], 300),
            // It leads nothing, so it says nothing of its own writes.
            Said { led: None, copies: vec![], disk_us: 280 },
        ],
        None,
    );
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(
        why.contains("sds s3 after 21.5 ms") && why.contains("disks take 280 us only"),
        "{why}"
    );
    assert!(todo.contains("the network to it") && todo.contains("the host of sds s3"), "{todo}");
}

#[test]
fn a_disk_that_moves_in_jerks_is_no_network() {
    // Most of its operations are quick, but all writes wait for the others; those that it leads itself know no network.
    let f = found(
        [
            said([1000, 92_000, 10, 88_000], &[(2, 36_000)], 1_000),
            said([1000, 87_000, 10, 120], &[(1, 153_000), (3, 440)], 300),
            said([1000, 59_000, 10, 106], &[(1, 156_000), (2, 518)], 300),
        ],
        None,
    );
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(why.contains("sds s1 after 9") && why.contains("one of its disks"), "{why}");
    assert!(todo.contains("SMART") && !todo.contains("network"), "{todo}");
}

#[test]
fn writes_that_wait_to_be_begun_are_told_from_slow_ones() {
    let calm = || said([1000, 800, 10, 400], &[], 300);
    let f = found([said([1000, 30_000, 29_000, 500], &[], 300), calm(), calm()], None);
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(why.contains("at sds s1, of the 30.0 ms") && why.contains("waits 29.0 ms"), "{why}");
    assert!(todo.contains("log_waits"), "{todo}");
}

#[test]
fn time_that_the_servers_do_not_know_of_is_on_the_way() {
    let calm = || said([1000, 900, 10, 400], &[], 300);
    let seen = |s: f64| Some(Seen { writes: 100.0, write_seconds: Some(s), ..Seen::default() });
    let f = found([calm(), calm(), calm()], seen(0.025));
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(why.contains("25.0 ms at the client and 900 us at the servers"), "{why}");
    assert!(todo.contains("ping"), "{todo}");
    assert!(found([calm(), calm(), calm()], seen(0.002)).why.is_empty());
}

#[test]
fn where_all_disks_are_slow_nobody_is_singled_out() {
    let s = || said([1000, 90_000, 10, 80_000], &[], 70_000);
    let f = found([s(), s(), s()], None);
    let [(why, todo)] = f.why.as_slice() else { panic!("{f:?}") };
    assert!(why.contains("slow everywhere") && todo.contains("faster devices"), "{f:?}");
}

#[test]
fn of_few_writes_or_of_long_ago_nothing_is_concluded() {
    let few = || said([3, 90_000, 80_000, 80_000], &[], 300);
    assert!(found([few(), few(), few()], None).why.is_empty());
    let none = || Said { led: None, copies: vec![], disk_us: 300 };
    let f = found([none(), none(), none()], Some(Seen::default()));
    assert!(f.why.is_empty() && f.timing.is_null(), "{f:?}");
}
