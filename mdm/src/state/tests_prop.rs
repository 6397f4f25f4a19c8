//! Random commands against what must hold whatever happens.

use super::tests::{answered, pool, Lab};
use super::*;
use proptest::prelude::*;
use quarry_base::{Epoch, Seq, StartNo, Version};
use quarry_control::Proposal;
use quarry_wire::{Member, PgConfig};
use std::collections::BTreeMap;

const SERVERS: u32 = 4;

#[derive(Clone, Debug)]
enum Step {
    Fail(u32, u8),
    Register(u32, u8, bool),
    Sweep(u8),
    Elect(u8),
    Add(u8),
    Drop(u8),
    Silent(u8),
    HandOver(u32, u8),
    DeviceFails(u32, u8),
    Rebuild,
    Cancel,
    Fence(u32, bool, u8),
    Recover(u32),
    Later(u64),
    Drain(u32),
    DrainDevice(u32),
    Move,
    Rebalance,
    CancelTask(u8),
    DeleteSds(u32),
    AddSds(u32),
    FaultSet(u32, u8),
    DeleteDevice(u32),
    AddDevice(u32),
    Suspend(u32, bool, u8),
    Resume(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let s = 1..=SERVERS;
    prop_oneof![
        4 => (s.clone(), any::<u8>()).prop_map(|(i, a)| Step::Fail(i, a)),
        6 => (s.clone(), any::<u8>(), any::<bool>()).prop_map(|(i, a, r)| Step::Register(i, a, r)),
        2 => any::<u8>().prop_map(Step::Sweep),
        4 => any::<u8>().prop_map(Step::Elect),
        8 => any::<u8>().prop_map(Step::Add),
        1 => any::<u8>().prop_map(Step::Drop),
        2 => any::<u8>().prop_map(Step::Silent),
        1 => (s.clone(), any::<u8>()).prop_map(|(i, a)| Step::HandOver(i, a)),
        1 => (s.clone(), any::<u8>()).prop_map(|(i, a)| Step::DeviceFails(i, a)),
        2 => Just(Step::Rebuild),
        1 => Just(Step::Cancel),
        1 => (s.clone(), any::<bool>(), any::<u8>()).prop_map(|(i, f, a)| Step::Fence(i, f, a)),
        1 => s.clone().prop_map(Step::Recover),
        2 => (0u64..90_000).prop_map(Step::Later),
        2 => s.clone().prop_map(Step::Drain),
        1 => s.clone().prop_map(Step::DrainDevice),
        6 => Just(Step::Move),
        2 => Just(Step::Rebalance),
        1 => any::<u8>().prop_map(Step::CancelTask),
        1 => s.clone().prop_map(Step::DeleteSds),
        1 => s.clone().prop_map(Step::AddSds),
        1 => (s.clone(), any::<u8>()).prop_map(|(i, f)| Step::FaultSet(i, f)),
        1 => s.clone().prop_map(Step::DeleteDevice),
        1 => s.clone().prop_map(Step::AddDevice),
        2 => (s.clone(), any::<bool>(), any::<u8>()).prop_map(|(i, w, a)| Step::Suspend(i, w, a)),
        2 => s.clone().prop_map(Step::Resume),
    ]
}

fn set(bits: u8) -> Answered {
    let on: Vec<u32> = (1..=SERVERS).filter(|i| bits & (1 << i) != 0).collect();
    answered(&on)
}

fn pick<T: Clone>(list: &[T], n: u8) -> Option<T> {
    (!list.is_empty()).then(|| list[n as usize % list.len()].clone())
}

fn op(l: &mut Lab, s: &Step) -> Option<Op> {
    let propose = |p: Member, proposal, a: u8| Op::Propose {
        sds: p.sds,
        start: p.start,
        proposal,
        answered: set(a),
    };
    let all = l.all();
    Some(match *s {
        Step::Fail(i, a) => {
            Op::SdsFailed { sds: l.id(i), start: l.start(i), reason: "t".into(), answered: set(a) }
        }
        Step::Register(i, a, resume) => {
            let old = resume.then(|| l.start(i).get());
            let on: Vec<u32> = set(a).iter().map(|s| s.get()).collect();
            // Refused for a removed server.
            l.try_register_again(i, old, &on).ok();
            return None;
        }
        Step::Sweep(a) => Op::Sweep { answered: set(a) },
        Step::Elect(n) => {
            let pgs = all.iter().filter(|c| l.s.electable(c.pg)).map(|c| ElectPg {
                pg: c.pg,
                epoch: c.epoch,
                present: positions(l, c, n),
            });
            Op::Elect { pgs: pgs.collect() }
        }
        Step::Add(n) => {
            let c =
                pick(&all.into_iter().filter(|c| !c.syncing.is_empty()).collect::<Vec<_>>(), n)?;
            let device = c.syncing[0].device;
            propose(*c.primary_member()?, Proposal::Add { pg: c.pg, epoch: c.epoch, device }, n)
        }
        Step::Drop(n) => {
            let c =
                pick(&all.into_iter().filter(|c| !c.syncing.is_empty()).collect::<Vec<_>>(), n)?;
            let device = c.syncing[0].device;
            propose(
                *c.primary_member()?,
                Proposal::DropSyncing {
                    pg: c.pg,
                    epoch: c.epoch,
                    device,
                    reason: "t".into(),
                    damaged: None,
                    no_room: n % 3 == 0,
                },
                n,
            )
        }
        Step::Silent(n) => {
            let c = pick(&all, n)?;
            let device = c.in_sync.last()?.device;
            propose(
                *c.primary_member()?,
                Proposal::MemberSilent { pg: c.pg, epoch: c.epoch, device, reason: "t".into() },
                n,
            )
        }
        Step::HandOver(i, a) => Op::Propose {
            sds: l.id(i),
            start: l.start(i),
            proposal: Proposal::HandOver,
            answered: set(a),
        },
        Step::DeviceFails(i, a) => Op::DeviceFailed {
            device: DeviceId(i),
            start: l.start(i),
            reason: "t".into(),
            answered: set(a),
        },
        Step::Rebuild => Op::Rebuild,
        Step::Cancel => Op::RebuildCancel { pool: PoolId(1) },
        Step::Fence(i, force, a) => Op::FenceSds { id: l.id(i), force, answered: set(a) },
        Step::Recover(i) => Op::RecoverSds { id: l.id(i) },
        Step::Drain(i) => Op::DrainSds { id: l.id(i) },
        Step::DrainDevice(i) => Op::DrainDevice { id: DeviceId(i) },
        Step::Move => Op::Move,
        Step::Rebalance => Op::Rebalance { pool: PoolId(1) },
        Step::CancelTask(n) => {
            let ids: Vec<u64> = l.s.tasks.keys().copied().collect();
            Op::CancelTask { id: pick(&ids, n)? }
        }
        Step::DeleteSds(i) => Op::DeleteSds { id: l.id(i) },
        Step::AddSds(i) => Op::AddSds { name: format!("s{i}"), domain: None, fault_set: None },
        Step::FaultSet(i, f) => {
            let set = u32::from(f % 4);
            Op::AssignFaultSet { sds: l.id(i), fault_set: (set > 0).then_some(set) }
        }
        Step::DeleteDevice(i) => Op::DeleteDevice { id: DeviceId(i) },
        Step::AddDevice(i) => Op::AddDevice { id: DeviceId(i), pool: PoolId(1) },
        Step::Suspend(i, stalled, a) => Op::SuspendDevice {
            device: DeviceId(i),
            start: l.start(i),
            why: match stalled {
                true => Sluggish::Stalled { idle_ms: 1000 },
                false => Sluggish::Slow { median_us: 200_000, others_us: 100, ops: 9 },
            },
            answered: set(a),
        },
        Step::Resume(i) => Op::ResumeDevice { device: DeviceId(i) },
        Step::Later(ms) => {
            l.at_ms += ms;
            return None;
        }
    })
}

/// Present members at positions that depend on `n`; all of them have what was committed, as in-sync members do.
fn positions(l: &Lab, c: &PgConfig, n: u8) -> Vec<Position> {
    let up = c.in_sync.iter().filter(|m| l.s.sds[&m.sds].up && !l.s.sds[&m.sds].fenced);
    up.enumerate()
        .filter(|(i, _)| n & (1 << i) == 0)
        .map(|(i, m)| Position {
            device: m.device,
            start: l.s.sds[&m.sds].start,
            last: Version::new(c.epoch, Seq(10 + (n as u64 + i as u64) % 3)),
            commit: Seq(10),
            known: true,
        })
        .collect()
}

/// What one step may do to one group.
fn check(l: &Lab, old: &PgConfig, new: &PgConfig, step: &Step) -> Result<(), TestCaseError> {
    prop_assert!(new.epoch >= old.epoch, "an epoch went back: {:?} {:?}", old, new);
    if new.epoch == old.epoch {
        prop_assert_eq!(old, new, "changed within an epoch by {:?}", step);
        return Ok(());
    }
    prop_assert_eq!(new.epoch.0, old.epoch.0 + 1, "one step, one epoch");
    prop_assert_eq!(new.index, l.s.index);
    prop_assert!(!new.in_sync.is_empty() && new.primary.is_some_and(|d| new.is_in_sync(d)));
    // Every in-sync set shares a member with the one before, or has the one just added: nothing is lost.
    let has_all = |m: &Member| {
        old.is_in_sync(m.device) || (matches!(step, Step::Add(_)) && old.syncing.contains(m))
    };
    prop_assert!(new.in_sync.iter().any(has_all), "{:?} {:?}", old, new);
    // Whoever joins was syncing, and joins by Add alone.
    for m in new.in_sync.iter().filter(|m| !old.is_in_sync(m.device)) {
        prop_assert!(
            matches!(step, Step::Add(_)) && old.syncing.contains(m),
            "{:?} by {:?}",
            m,
            step
        );
    }
    // A member keeps its start unless an election gave it its present one.
    for m in &new.in_sync {
        let was = old.in_sync.iter().find(|o| o.device == m.device);
        prop_assert!(was.is_none_or(|o| o.start == m.start || matches!(step, Step::Elect(_))));
    }
    let mut servers: Vec<SdsId> = new.members().map(|m| m.sds).collect();
    servers.sort();
    servers.dedup();
    prop_assert_eq!(servers.len(), new.members().count(), "two copies on one server");
    prop_assert!(new.syncing.iter().all(|m| new.listed.contains(&m.device)));
    // A move takes a copy away only together with the new one's arrival.
    if matches!(
        step,
        Step::Move | Step::Rebalance | Step::Drain(_) | Step::DrainDevice(_) | Step::CancelTask(_)
    ) {
        prop_assert_eq!(&old.in_sync, &new.in_sync, "{:?}", step);
        prop_assert_eq!(old.primary, new.primary);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_copy_that_counts_is_lost(steps in proptest::collection::vec(step(), 1..60), copies in 1u8..4) {
        let mut l = Lab::new();
        for i in 1..=SERVERS {
            l.register(i, None, &[]);
        }
        for set in ["f1", "f2", "f3"] {
            l.ok(Op::AddFaultSet { name: set.into(), domain: DomainId(1) });
        }
        l.ok(pool("p", copies));
        l.ok(Op::CreateVolume { name: "v".into(), pool: PoolId(1), size_bytes: 1 << 20, provisioning: Provisioning::Thin, used_bytes: 0});
        // Who led a group at an epoch: one device with one start, for ever.
        let mut leaders: BTreeMap<(PgId, Epoch), Option<(DeviceId, StartNo)>> = BTreeMap::new();
        for s in &steps {
            let before = l.all();
            if let Some(op) = op(&mut l, s) {
                l.run(op).ok();
            }
            for (old, new) in before.iter().zip(l.all()) {
                check(&l, old, &new, s)?;
                let leader = new.primary_member().map(|m| (m.device, m.start));
                let was = leaders.entry((new.pg, new.epoch)).or_insert(leader);
                prop_assert_eq!(*was, leader, "two primaries at one epoch");
            }
            prop_assert_eq!(&l.view.pgs, &l.s.view().pgs, "what was published is the state");
            prop_assert_eq!(&l.view.sds, &l.s.view().sds);
        }
        replays(&l)?;
        heals(&mut l)?;
    }
}

/// The log alone gives the same state, also from a snapshot in the middle.
fn replays(l: &Lab) -> Result<(), TestCaseError> {
    let mut again = State::default();
    for (i, c) in l.log.iter().enumerate() {
        again.apply(ConfigIndex(i as u64 + 1), c).ok();
        if i == l.log.len() / 2 {
            let json = serde_json::to_vec(&again).unwrap();
            again = serde_json::from_slice(&json).unwrap();
        }
    }
    prop_assert_eq!(&again, &l.s);
    Ok(())
}

/// With everything repaired all groups get all their copies back.
fn heals(l: &mut Lab) -> Result<(), TestCaseError> {
    for i in 1..=SERVERS {
        // Known already, unless it was removed.
        l.run(Op::AddSds { name: format!("s{i}"), domain: None, fault_set: None }).ok();
        l.ok(Op::RecoverSds { id: l.id(i) });
        l.register(i, None, &[]);
    }
    for d in l.s.devices.keys().copied().collect::<Vec<_>>() {
        // Only those that are suspended.
        l.run(Op::ResumeDevice { device: d }).ok();
        // Only those that were taken out of the pool.
        l.run(Op::AddDevice { id: d, pool: PoolId(1) }).ok();
    }
    l.at_ms += 100_000;
    let all: Vec<u32> = (1..=SERVERS).map(|i| l.id(i).get()).collect();
    l.elect(&all.iter().map(|i| (*i, (1_000, 10), 10)).collect::<Vec<_>>());
    l.ok(Op::RebuildNow { pool: PoolId(1) });
    for t in l.s.tasks.keys().copied().collect::<Vec<_>>() {
        // Those that run still.
        l.run(Op::CancelTask { id: t }).ok();
    }
    l.ok(Op::RebuildNow { pool: PoolId(1) });
    l.ok(Op::Sweep { answered: answered(&all) });
    l.heal();
    for c in l.all() {
        prop_assert!(c.is_complete(), "{:?}", c);
    }
    Ok(())
}
