//! Elections of groups with `ack = cached` (R29): whose host booted, and who may lead then.

use super::tests::*;
use super::*;
use quarry_base::PgId;

/// Three copies on three servers, in a pool with `ack = cached`.
fn cluster(ack: Ack) -> Lab {
    let mut l = Lab::new();
    for i in 1..=3 {
        l.register(i, None, &[]);
    }
    let Op::AddPool(mut p) = pool("p", 3) else { unreachable!() };
    p.ack = ack;
    l.ok(Op::AddPool(p));
    l
}

/// All processes end at once, so that nobody remains who could be kept.
fn all_fail(l: &mut Lab) {
    (1..=3).for_each(|i| l.fail(i, &[]));
}

fn register(l: &mut Lab, i: u32, boot: &str) {
    let Op::Register(mut r) = registration(i, None, &[]) else { unreachable!() };
    r.boot_id = boot.into();
    l.ok(Op::Register(r));
}

fn in_sync(l: &Lab) -> Vec<u32> {
    let mut all: Vec<u32> = l.pg(0).in_sync.iter().map(|m| m.sds.get()).collect();
    all.sort_unstable();
    all
}

fn can_elect(l: &Lab, last: &[(u32, (u64, u64), u64)]) -> bool {
    let pg = PgId::new(PoolId(1), 0);
    l.election(last).into_iter().filter(|e| e.pg == pg).any(|e| l.s.can_elect(&e))
}

const LAST: [(u32, (u64, u64), u64); 3] = [(1, (1, 80), 70), (2, (1, 90), 85), (3, (1, 88), 60)];

#[test]
fn members_whose_host_did_not_boot_lead_and_the_others_come_back_as_syncing() {
    let mut l = cluster(Ack::Cached);
    all_fail(&mut l);
    register(&mut l, 1, "b");
    register(&mut l, 2, "another");
    register(&mut l, 3, "another");
    l.elect(&LAST);
    assert_eq!(in_sync(&l), [1], "2 has the longer log, and may lack what 1 acknowledged since");
    assert_eq!(l.pg(0).fell, quarry_base::Epoch::ZERO);
    let syncing: Vec<u32> = l.pg(0).syncing.iter().map(|m| m.sds.get()).collect();
    assert_eq!(syncing.len(), 2);
}

#[test]
fn while_a_host_that_did_not_boot_may_come_nobody_leads() {
    let mut l = cluster(Ack::Cached);
    all_fail(&mut l);
    register(&mut l, 1, "another");
    register(&mut l, 2, "another");
    assert!(!can_elect(&l, &LAST[..2]));
    l.elect(&LAST[..2]);
    assert_eq!(in_sync(&l), [1, 2, 3]);
    // It did boot too: the longest leads, alone.
    register(&mut l, 3, "another");
    assert!(can_elect(&l, &LAST));
    l.elect(&LAST);
    assert_eq!(in_sync(&l), [2]);
    assert!(l.s.events.iter().any(|e| e.what == "pg_fell_back"));
    // Clients are told that nothing acknowledged before this epoch is certain; an epoch later still.
    let fell = l.pg(0).epoch;
    assert_eq!(l.pg(0).fell, fell);
    l.fail(1, &[]);
    assert!(l.pg(0).epoch > fell && l.pg(0).fell == fell);
}

#[test]
fn a_boot_between_two_starts_is_not_forgotten() {
    let mut l = cluster(Ack::Cached);
    all_fail(&mut l);
    register(&mut l, 1, "another");
    l.fail(1, &[]);
    // The same boot as the last start's, and still not that of the start the group names.
    register(&mut l, 1, "another");
    register(&mut l, 2, "b");
    register(&mut l, 3, "b");
    l.elect(&LAST);
    assert_eq!(in_sync(&l), [2, 3]);
}

#[test]
fn an_unknown_boot_counts_as_a_boot() {
    let mut l = cluster(Ack::Cached);
    all_fail(&mut l);
    register(&mut l, 1, "");
    register(&mut l, 2, "b");
    register(&mut l, 3, "b");
    l.elect(&LAST);
    assert_eq!(in_sync(&l), [2, 3]);
}

#[test]
fn with_durable_acknowledgement_a_boot_loses_nothing() {
    let mut l = cluster(Ack::Durable);
    all_fail(&mut l);
    (1..=3).for_each(|i| register(&mut l, i, "another"));
    l.elect(&[(1, (1, 80), 70), (2, (1, 90), 75), (3, (1, 90), 60)]);
    assert_eq!(in_sync(&l), [1, 2, 3]);
    assert_eq!(l.pg(0).fell, quarry_base::Epoch::ZERO);
}
