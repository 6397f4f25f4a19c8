//! Devices that are suspended for being slow or stalled (R27).

use super::tests::{answered, pool, Lab};
use super::*;
use quarry_control::Proposal;

const STALLED: Sluggish = Sluggish::Stalled { idle_ms: 1_100 };
const SLOW: Sluggish = Sluggish::Slow { median_us: 200_000, others_us: 900, ops: 15 };

/// Servers 1..=n with a device each, whose number is theirs.
fn suspend(l: &mut Lab, n: u32, why: Sluggish) -> Result<Applied, Reject> {
    let all: Vec<u32> = l.s.sds.values().filter(|s| s.up).map(|s| s.id.get()).collect();
    let (device, start) = (DeviceId(n), l.start(n));
    l.run(Op::SuspendDevice { device, start, why, answered: answered(&all) })
}

fn resume(l: &mut Lab, n: u32) -> Result<Applied, Reject> {
    l.run(Op::ResumeDevice { device: DeviceId(n) })
}

fn in_sync_somewhere(l: &Lab, n: u32) -> usize {
    l.all().iter().filter(|c| c.is_in_sync(DeviceId(n))).count()
}

fn leads(l: &Lab, n: u32) -> usize {
    l.all().iter().filter(|c| c.primary == Some(DeviceId(n))).count()
}

fn is_suspended(l: &Lab, n: u32) -> bool {
    l.s.devices[&DeviceId(n)].suspended.is_some()
}

fn whole(l: &Lab) -> bool {
    l.all().iter().all(|c| c.is_complete())
}

#[test]
fn r27_a_stalled_device_leaves_all_its_groups_with_one_command_and_comes_back_by_a_sync() {
    let mut l = Lab::cluster(3, 2);
    assert!(leads(&l, 1) > 0);
    let before = l.all();
    suspend(&mut l, 1, STALLED).unwrap();
    assert_eq!((leads(&l, 1), in_sync_somewhere(&l, 1)), (0, 0));
    for (old, new) in before.iter().zip(l.all()) {
        let ours = old.is_in_sync(DeviceId(1));
        assert_eq!(new.epoch.0, old.epoch.0 + u64::from(ours), "one epoch");
        assert!(new.syncing.is_empty() && new.listed == old.listed);
    }
    let e = l.s.events.back().unwrap();
    assert_eq!((e.what.as_str(), e.object.as_str()), ("device_stalled", "device 1"));
    assert!(e.reason.contains("1100 ms"), "{}", e.reason);
    assert!(suspend(&mut l, 1, STALLED).is_err(), "known");
    assert!(resume(&mut l, 1).is_err(), "not at once");
    l.at_ms += 5_000;
    resume(&mut l, 1).unwrap();
    assert!(l.all().iter().all(|c| c.members().count() == 2), "it syncs");
    l.heal();
    assert!(whole(&l));
}

#[test]
fn r27_it_is_not_made_elsewhere_before_the_grace_time_and_then_it_is() {
    let mut l = Lab::cluster(4, 2);
    // Found slow again: it is away for longer than the grace time.
    for _ in 0..2 {
        suspend(&mut l, 1, SLOW).unwrap();
        l.at_ms += 59_000;
        assert!(!l.s.rebuild_due(l.at_ms));
        l.at_ms += 1_000;
        if resume(&mut l, 1).is_ok() {
            l.heal();
        }
    }
    assert!(is_suspended(&l, 1) && l.s.rebuild_due(l.at_ms));
    l.ok(Op::Rebuild);
    l.heal();
    assert!(whole(&l) && in_sync_somewhere(&l, 1) == 0);
}

#[test]
fn r27_a_slow_device_waits_twice_as_long_each_time_and_is_forgiven_in_the_end() {
    let mut l = Lab::cluster(3, 2);
    let mut waited = Vec::new();
    for _ in 0..9 {
        suspend(&mut l, 1, SLOW).unwrap();
        let s = l.s.devices[&DeviceId(1)].suspended.clone().unwrap();
        waited.push((s.until_ms - s.since_ms) / 1000);
        l.at_ms = s.until_ms - 1;
        assert!(resume(&mut l, 1).is_err());
        l.at_ms = s.until_ms;
        resume(&mut l, 1).unwrap();
        l.heal();
        l.at_ms += 599_000;
    }
    assert_eq!(waited, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
    l.at_ms += 1_000;
    suspend(&mut l, 1, SLOW).unwrap();
    let s = l.s.devices[&DeviceId(1)].suspended.clone().unwrap();
    assert_eq!(s.until_ms - s.since_ms, 60_000, "well for ten minutes");
}

#[test]
fn r27_the_operators_recover_tries_it_again_at_once_and_forgets() {
    let mut l = Lab::cluster(3, 2);
    suspend(&mut l, 1, SLOW).unwrap();
    l.ok(Op::RecoverSds { id: SdsId(1) });
    resume(&mut l, 1).unwrap();
    l.heal();
    assert!(whole(&l));
    suspend(&mut l, 1, SLOW).unwrap();
    assert_eq!(l.s.devices[&DeviceId(1)].lapses.unwrap().times, 1, "what was before is forgotten");
}

#[test]
fn r27_what_is_said_of_it_has_the_figures_and_when_it_is_tried_again() {
    let mut l = Lab::cluster(3, 2);
    suspend(&mut l, 1, SLOW).unwrap();
    let e = l.s.events.back().unwrap();
    assert_eq!((e.what.as_str(), e.object.as_str()), ("device_slow", "device 1"));
    let said = crate::health::suspended(&l.s.devices[&DeviceId(1)]).unwrap();
    for text in [&e.reason, &said] {
        assert!(text.contains("200 ms") && text.contains("0.9 ms"), "{text}");
    }
    assert!(said.contains("60 s after") && e.reason.contains("in 60 s"), "{said}; {}", e.reason);
    assert_eq!(crate::health::suspended(&l.s.devices[&DeviceId(2)]), None);
}

#[test]
fn r27_one_slow_device_at_a_time_and_stalled_ones_each() {
    let mut l = Lab::cluster(4, 2);
    suspend(&mut l, 1, SLOW).unwrap();
    assert!(suspend(&mut l, 2, SLOW).is_err(), "one at a time");
    // One that does nothing at all matters more.
    suspend(&mut l, 2, STALLED).unwrap();
    assert!(!is_suspended(&l, 1) && is_suspended(&l, 2));
    assert!(suspend(&mut l, 1, SLOW).is_err(), "the other is stalled");
    suspend(&mut l, 1, STALLED).unwrap();
    assert!(is_suspended(&l, 1) && is_suspended(&l, 2));
    // A slow one that stalls is stalled.
    let mut l = Lab::cluster(3, 2);
    suspend(&mut l, 1, SLOW).unwrap();
    suspend(&mut l, 1, STALLED).unwrap();
    let d = &l.s.devices[&DeviceId(1)];
    assert_eq!((d.suspended.as_ref().unwrap().why.clone(), d.lapses.unwrap().times), (STALLED, 1));
}

#[test]
fn r27_groups_without_another_good_copy_or_below_min_copies_stay_as_they_are() {
    let mut l = Lab::cluster(3, 2);
    l.fail(2, &[1, 3]);
    let alone =
        l.all().iter().filter(|c| c.in_sync.len() == 1 && c.is_in_sync(DeviceId(1))).count();
    assert!(alone > 0);
    suspend(&mut l, 1, STALLED).unwrap();
    assert_eq!((in_sync_somewhere(&l, 1), leads(&l, 1)), (alone, alone));
    // Where the other copy has come back, it leaves.
    l.register(2, None, &[1, 3]);
    l.heal();
    l.ok(Op::Sweep { answered: answered(&[1, 2, 3]) });
    assert_eq!(in_sync_somewhere(&l, 1), 0);

    let mut l = Lab::new();
    for i in 1..=3 {
        l.register(i, None, &[]);
    }
    let Op::AddPool(mut p) = pool("p", 2) else { panic!("a pool") };
    p.min_copies = Some(2);
    l.ok(Op::AddPool(p));
    let before = l.all();
    suspend(&mut l, 1, STALLED).unwrap();
    assert_eq!(l.all(), before);
}

#[test]
fn r27_a_device_alone_one_that_failed_or_one_of_an_earlier_start_is_left_alone() {
    let mut l = Lab::cluster(1, 1);
    assert!(suspend(&mut l, 1, STALLED).is_err(), "alone in its pool");
    let mut l = Lab::cluster(2, 2);
    l.fail(2, &[1]);
    assert!(suspend(&mut l, 1, STALLED).is_err(), "the other one is away");
    let mut l = Lab::cluster(3, 2);
    let old = l.start(1);
    l.register(1, None, &[2, 3]);
    let op = Op::SuspendDevice {
        device: DeviceId(1),
        start: old,
        why: STALLED,
        answered: answered(&[2, 3]),
    };
    assert!(l.run(op).is_err());
    // A failure ends a suspension.
    suspend(&mut l, 2, STALLED).unwrap();
    let start = l.start(2);
    l.ok(Op::DeviceFailed {
        device: DeviceId(2),
        start,
        reason: "hung".into(),
        answered: answered(&[1, 3]),
    });
    assert!(!is_suspended(&l, 2) && suspend(&mut l, 2, STALLED).is_err());
}

#[test]
fn r27_a_suspended_device_takes_no_copies_and_is_not_added_to_a_group() {
    let mut l = Lab::cluster(3, 2);
    l.fail(1, &[2, 3]);
    l.register(1, None, &[2, 3]);
    let c =
        l.all().into_iter().find(|c| c.syncing.iter().any(|m| m.device == DeviceId(1))).unwrap();
    assert!(suspend(&mut l, 1, SLOW).is_err(), "nobody waits for a copy that is being made");
    suspend(&mut l, 1, STALLED).unwrap();
    let p = *c.primary_member().unwrap();
    let c = l.s.pgs[&c.pg].config.clone();
    assert!(c.syncing.is_empty());
    let proposal = Proposal::Add { pg: c.pg, epoch: c.epoch, device: DeviceId(1) };
    let op = Op::Propose { sds: p.sds, start: p.start, proposal, answered: answered(&[2, 3]) };
    assert!(l.run(op).is_err());
    assert!(l.s.candidates(PoolId(1)).iter().all(|c| c.device != DeviceId(1)));
}

#[test]
fn r27_a_device_that_stalls_again_and_again_moves_primaries_at_most_twice_a_minute() {
    let mut l = Lab::cluster(3, 2);
    let mut moves: std::collections::BTreeMap<PgId, Vec<u64>> = Default::default();
    for _ in 0..600 {
        let before = l.all();
        if is_suspended(&l, 1) {
            // Every other second it moves.
            resume(&mut l, 1).ok();
        } else if whole(&l) {
            suspend(&mut l, 1, STALLED).unwrap();
        }
        l.heal();
        if l.s.primaries_due(l.at_ms) {
            l.ok(Op::BalancePrimaries);
        }
        for (old, new) in before.iter().zip(l.all()).filter(|(a, b)| a.primary != b.primary) {
            assert_eq!(old.pg, new.pg);
            moves.entry(new.pg).or_default().push(l.at_ms);
        }
        l.at_ms += 1000;
    }
    assert!(!moves.is_empty());
    for (pg, at) in moves {
        assert!(at.windows(3).all(|w| w[2] - w[0] >= 60_000), "{pg}: {at:?}");
    }
}

#[test]
fn a_suspension_is_in_the_snapshot_and_a_state_without_one_reads_as_before() {
    let mut l = Lab::cluster(3, 2);
    let stored = serde_json::to_value(&l.s).unwrap();
    let text = stored["devices"].to_string();
    assert!(!text.contains("suspended") && !text.contains("lapses"), "an older MDM could read it");
    assert_eq!(serde_json::from_value::<State>(stored).unwrap(), l.s);
    suspend(&mut l, 1, SLOW).unwrap();
    let stored = serde_json::to_vec(&l.s).unwrap();
    let mut again: State = serde_json::from_slice(&stored).unwrap();
    assert_eq!(again, l.s);
    let at_ms = l.at_ms + 60_000;
    let c =
        Command { at_ms, who: "t".into(), key: None, op: Op::ResumeDevice { device: DeviceId(1) } };
    again.apply(ConfigIndex(again.index.0 + 1), &c).unwrap();
    assert!(again.devices[&DeviceId(1)].suspended.is_none());
}
