//! What operators do, on the state machine: drains, rebalancing, fault sets, removals, capabilities, settings.

use super::tests::{answered, map_first, pool, Lab};
use super::*;
use quarry_base::VtreeId;
use quarry_control::{Capability, Proposal};
use quarry_wire::PgConfig;
use std::collections::BTreeMap;

/// Runs every move that is due, syncs included; at no time may a group have fewer copies than asked.
pub fn move_all(l: &mut Lab) -> usize {
    let mut rounds = 0;
    while l.s.moves_due() {
        l.ok(Op::Move);
        assert!(
            l.all().iter().all(|c| c.in_sync.len() >= c.copies as usize),
            "copies at every time"
        );
        let moving = l.s.pgs.values().filter(|p| !p.retiring.is_empty()).count();
        assert!(moving <= l.s.pools[&PoolId(1)].moves_at_once as usize, "gradually");
        l.heal();
        rounds += 1;
        assert!(rounds < 500, "it does not come to rest");
    }
    rounds
}

fn task(a: Answer) -> u64 {
    let Answer::Task(id) = a else { panic!("{a:?}") };
    id
}

fn loads(l: &Lab) -> BTreeMap<u32, usize> {
    let mut n = BTreeMap::new();
    for m in l.all().iter().flat_map(|c| c.in_sync.clone()) {
        *n.entry(m.sds.get()).or_default() += 1;
    }
    n
}

#[test]
fn a_drained_server_is_empty_and_can_be_removed() {
    let mut l = Lab::cluster(4, 2);
    let before = l.s.copies_on_sds(SdsId(2));
    assert!(before > 10);
    let e = l.run(Op::DeleteSds { id: SdsId(2) }).unwrap_err();
    assert_eq!((e.status, e.code.as_str()), (409, "holds_copies"));
    let id = task(l.ok(Op::DrainSds { id: SdsId(2) }));
    assert_eq!(l.s.tasks[&id].total, before);
    assert!(move_all(&mut l) > 1);
    assert_eq!(l.s.copies_on_sds(SdsId(2)), 0);
    assert!(l.all().iter().all(|c| c.is_complete()));
    assert_eq!(l.s.task_left(&l.s.tasks[&id].kind), 0);
    l.ok(Op::DeleteSds { id: SdsId(2) });
    assert!(!l.s.sds.contains_key(&SdsId(2)) && !l.s.devices.contains_key(&DeviceId(2)));
    assert!(l.s.nodes.values().all(|n| n.name != "s2"), "its node has nothing else");
    assert_eq!(l.view.pgs, l.s.view().pgs);
    assert_eq!((&l.view.sds, &l.view.devices), (&l.s.view().sds, &l.s.view().devices));
}

#[test]
fn a_removed_server_comes_back_only_when_it_is_added_again() {
    let mut l = Lab::cluster(3, 2);
    l.ok(Op::DrainSds { id: SdsId(3) });
    move_all(&mut l);
    l.ok(Op::DeleteSds { id: SdsId(3) });
    assert_eq!(l.try_register(3).unwrap_err().code, "removed");
    l.ok(Op::AddSds { name: "s3".into(), domain: None, fault_set: None });
    l.try_register(3).unwrap();
    assert!(l.s.sds.contains_key(&SdsId(4)), "ids are never used again");
}

#[test]
fn a_cancelled_drain_puts_nothing_at_risk_and_ends_the_moves() {
    let mut l = Lab::cluster(4, 2);
    let id = task(l.ok(Op::DrainSds { id: SdsId(1) }));
    l.ok(Op::Move);
    assert!(l.s.pgs.values().any(|p| !p.retiring.is_empty()));
    l.ok(Op::CancelTask { id });
    assert_eq!(l.s.tasks[&id].state, TaskState::Cancelled);
    assert!(l.s.pgs.values().all(|p| p.retiring.is_empty() && p.config.is_complete()));
    assert!(!l.s.moves_due());
    assert_eq!(l.run(Op::CancelTask { id }).unwrap_err().code, "ended");
}

#[test]
fn a_drain_that_would_leave_too_few_servers_is_refused() {
    let mut l = Lab::cluster(2, 2);
    let e = l.run(Op::DrainSds { id: SdsId(1) }).unwrap_err();
    assert_eq!((e.status, e.code.as_str()), (422, "no_sds_capable_node"));
}

#[test]
fn a_server_that_dies_while_it_is_drained_is_replaced_without_grace() {
    let mut l = Lab::cluster(4, 2);
    l.ok(Op::DrainSds { id: SdsId(1) });
    l.ok(Op::Move);
    l.fail(1, &[2, 3, 4]);
    assert!(l.s.rebuild_due(l.at_ms));
    l.ok(Op::Rebuild);
    l.heal();
    move_all(&mut l);
    assert!(l.all().iter().all(|c| c.is_complete() && c.in_sync.iter().all(|m| m.sds != SdsId(1))));
}

#[test]
fn a_move_whose_target_dies_is_given_up_and_another_is_chosen() {
    let mut l = Lab::cluster(4, 2);
    l.ok(Op::DrainSds { id: SdsId(1) });
    l.ok(Op::Move);
    let to = l.all().iter().find_map(|c| c.syncing.first().map(|m| m.sds.get())).unwrap();
    let others: Vec<u32> = (1..=4).filter(|i| *i != to).collect();
    l.fail(to, &others);
    l.at_ms += 100_000;
    l.ok(Op::Rebuild);
    l.heal();
    move_all(&mut l);
    assert_eq!(l.s.copies_on_sds(SdsId(1)), 0);
}

#[test]
fn an_added_server_gets_its_share_by_itself() {
    let mut l = Lab::cluster(3, 2);
    l.volume("v", 1 << 30).unwrap();
    l.register(4, None, &[1, 2, 3]);
    assert!(move_all(&mut l) > 1);
    let n = loads(&l);
    assert!(n.values().all(|n| (15..=17).contains(n)), "{n:?}");
    let t = l.s.tasks.values().find(|t| matches!(t.kind, TaskKind::Rebalance { .. })).unwrap();
    assert!((14..=18).contains(&t.total), "little more than its share moves: {}", t.total);
    let id = t.id;
    l.ok(Op::EndTask { id, ok: true, detail: String::new() });
    assert!(!l.s.pools[&PoolId(1)].rebalancing && !l.s.moves_due());
}

#[test]
fn without_auto_rebalance_nothing_moves_until_it_is_asked_for() {
    let mut l = Lab::cluster(3, 2);
    let policy = Box::new(Policy { auto_rebalance: Some(false), ..Policy::default() });
    l.ok(Op::SetPolicy { pool: PoolId(1), policy });
    l.register(4, None, &[1, 2, 3]);
    assert!(!l.s.moves_due());
    l.ok(Op::Rebalance { pool: PoolId(1) });
    move_all(&mut l);
    assert!(loads(&l)[&4] >= 15);
}

#[test]
fn groups_that_stay_degraded_do_not_keep_others_from_being_evened_out() {
    let mut l = Lab::cluster(4, 2);
    let policy =
        Policy { auto_rebalance: Some(false), moves_at_once: Some(1), ..Policy::default() };
    l.ok(Op::SetPolicy { pool: PoolId(1), policy: Box::new(policy) });
    l.fail(1, &[2, 3, 4]);
    l.register(5, None, &[2, 3, 4]);
    let whole = |c: &PgConfig| c.is_complete();
    let degraded: Vec<PgConfig> = l.all().into_iter().filter(|c| !whole(c)).collect();
    assert!(degraded.len() > 10 && l.all().len() - degraded.len() > 10);
    l.ok(Op::Rebalance { pool: PoolId(1) });
    let mut rounds = 0;
    while l.s.moves_due() {
        l.ok(Op::Move);
        assert!(l.s.pgs.values().filter(|p| !p.retiring.is_empty()).count() <= 1, "gradually");
        l.heal();
        rounds += 1;
        assert!(rounds < 100, "it does not come to rest");
    }
    // All but the lost server's copies are shared by four.
    let n = loads(&l);
    assert!((2..=5).all(|i| (11..=13).contains(&n[&i])), "{n:?}");
    assert!(degraded.iter().all(|c| l.s.pgs[&c.pg].config == *c), "they stay as they are");
}

#[test]
fn nothing_is_moved_while_something_is_rebuilt() {
    let mut l = Lab::cluster(4, 2);
    l.fail(4, &[1, 2, 3]);
    l.register(4, None, &[1, 2, 3]);
    assert!(l.all().iter().any(|c| !c.syncing.is_empty()));
    l.ok(Op::Rebalance { pool: PoolId(1) });
    l.ok(Op::Move);
    assert!(l.s.pgs.values().all(|p| p.retiring.is_empty()));
}

#[test]
fn copies_are_parted_when_servers_join_fault_sets() {
    let mut l = Lab::cluster(4, 2);
    let set = |l: &mut Lab, n: &str| match l
        .ok(Op::AddFaultSet { name: n.into(), domain: DomainId(1) })
    {
        Answer::FaultSet(id) => id,
        a => panic!("{a:?}"),
    };
    let (a, b) = (set(&mut l, "rack-a"), set(&mut l, "rack-b"));
    for (sds, fault_set) in [(1, a), (2, a), (3, b), (4, b)] {
        l.ok(Op::AssignFaultSet { sds: SdsId(sds), fault_set: Some(fault_set) });
    }
    move_all(&mut l);
    let rack = |s: SdsId| s.get() <= 2;
    assert!(l.all().iter().all(|c| rack(c.in_sync[0].sds) != rack(c.in_sync[1].sds)));
    assert_eq!(l.run(Op::DeleteFaultSet { id: a }).unwrap_err().code, "not_empty");
    assert_eq!(
        l.run(Op::AddFaultSet { name: "rack-a".into(), domain: DomainId(1) }).unwrap_err().status,
        409
    );
    assert_eq!(
        l.run(Op::AssignFaultSet { sds: SdsId(1), fault_set: Some(99) }).unwrap_err().status,
        404
    );
}

#[test]
fn a_device_leaves_its_pool_when_it_is_empty_and_joins_when_it_is_added() {
    let mut l = Lab::cluster(3, 2);
    let id = DeviceId(3);
    assert_eq!(l.run(Op::DeleteDevice { id }).unwrap_err().code, "holds_copies");
    l.ok(Op::DrainDevice { id });
    move_all(&mut l);
    l.ok(Op::DeleteDevice { id });
    assert!(l.s.devices[&id].removed && l.s.devices[&id].pool.is_none());
    l.register(3, None, &[1, 2]);
    assert!(l.s.devices[&id].pool.is_none(), "it does not join again by itself");
    assert_eq!(
        l.run(Op::AddDevice { id: DeviceId(1), pool: PoolId(1) }).unwrap_err().code,
        "device_in_use"
    );
    l.ok(Op::AddDevice { id, pool: PoolId(1) });
    move_all(&mut l);
    assert!(l.s.copies_on(id) > 10);
}

#[test]
fn capabilities_in_use_are_not_taken_away() {
    let mut l = Lab::cluster(4, 2);
    let node = l.s.sds[&SdsId(1)].node.unwrap();
    let set =
        |capabilities: Vec<Capability>, drain| Op::SetCapabilities { node, capabilities, drain };
    let e = l.run(set(vec![], false)).unwrap_err();
    assert_eq!((e.status, e.code.as_str()), (409, "capability_in_use"));
    let e = l.run(set(vec![Capability::Sds, Capability::Sdc], false)).unwrap_err();
    assert_eq!((e.status, e.code.as_str()), (422, "capability_not_declared"));
    task(l.ok(set(vec![], true)));
    move_all(&mut l);
    assert_eq!(l.s.copies_on_sds(SdsId(1)), 0);
    assert_eq!(l.try_register(1).unwrap_err().code, "capability_removed");
    l.ok(set(vec![Capability::Sds], false));
    l.try_register(1).unwrap();
}

#[test]
fn the_last_mdm_keeps_its_capability() {
    let mut l = Lab::new();
    l.ok(Op::RegisterMdm {
        name: "m".into(),
        addresses: vec![],
        release: "1".into(),
        host: "h".into(),
        capabilities: vec![Capability::Mdm],
    });
    let op = Op::SetCapabilities { node: NodeId(1), capabilities: vec![], drain: true };
    assert_eq!(l.run(op).unwrap_err().code, "last_mdm");
}

#[test]
fn a_client_with_volumes_is_not_removed() {
    let mut l = Lab::cluster(2, 2);
    l.ok(Op::AddSdc { name: "c".into() });
    l.volume("v", 1 << 20).unwrap();
    l.ok(map_first(false, false));
    let e = l.run(Op::DeleteSdc { id: SdcId(1) }).unwrap_err();
    assert!(e.code == "mapped" && e.message.contains('v'), "{e:?}");
    l.ok(Op::Unmap { volume: VolumeId(1), sdc: SdcId(1) });
    l.ok(Op::DeleteSdc { id: SdcId(1) });
    assert_eq!(l.view.sdcs, l.s.view().sdcs);
}

#[test]
fn a_kernel_device_is_wanted_until_one_that_failed_is_given_up() {
    let mut l = Lab::cluster(2, 2);
    l.ok(Op::AddSdc { name: "c".into() });
    l.volume("v", 1 << 20).unwrap();
    let volume = VolumeId(1);
    let wanted =
        |l: &Lab| (l.s.volumes[&volume].mappings[0].device, l.s.volumes[&volume].generation);
    l.ok(map_first(true, false));
    let first = wanted(&l);
    l.ok(map_first(false, false));
    assert_eq!(wanted(&l), first, "mapping again without a word of the device changed it");
    l.ok(map_first(false, true));
    assert!(!wanted(&l).0 && wanted(&l).1 > first.1);
    l.ok(map_first(true, false));
    assert!(wanted(&l).0);
}

#[test]
fn fail_names_only_volumes_that_have_their_last_copy_there() {
    let mut l = Lab::cluster(3, 2);
    l.volume("big", 1 << 40).unwrap();
    l.fail(1, &[2, 3]);
    let fence = |force| Op::FenceSds { id: SdsId(2), force, answered: answered(&[2, 3]) };
    let e = l.run(fence(false)).unwrap_err();
    assert!(e.code == "last_copy" && e.message.contains("big"), "{e:?}");
    let sets = |l: &Lab| l.all().iter().map(|c| c.in_sync.clone()).collect::<Vec<_>>();
    let before = sets(&l);
    l.ok(fence(true));
    for (old, new) in before.iter().zip(sets(&l)) {
        let only_there = old.iter().all(|m| m.sds == SdsId(2));
        assert!(!only_there || *old == new, "the last in-sync member stays: {old:?} {new:?}");
    }
}

#[test]
fn a_thick_promise_counts_what_thin_volumes_have_written() {
    let mut l = Lab::cluster(2, 2);
    let (tib, thick) = (1u64 << 40, Provisioning::Thick);
    l.volume("thin", tib).unwrap();
    let make = |name: &str, size_bytes, used_bytes| Op::CreateVolume {
        name: name.into(),
        pool: PoolId(1),
        size_bytes,
        provisioning: thick,
        used_bytes,
    };
    // One TiB usable, a tenth in reserve; half of it written twice, all of that maybe by the thin volume.
    let e = l.run(make("a", tib / 2, tib)).unwrap_err();
    assert_eq!((e.status, e.code.as_str()), (422, "no_space"));
    l.ok(make("a", tib / 4, tib));
    l.ok(make("b", tib / 8, 0));
    let key = |used_bytes| Command {
        at_ms: 5,
        who: "t".into(),
        key: Some("k".into()),
        op: make("c", 1 << 20, used_bytes),
    };
    let next = |l: &Lab| ConfigIndex(l.s.index.0 + 1);
    let i = next(&l);
    let a = l.s.apply(i, &key(0)).unwrap().answer;
    let i = next(&l);
    assert_eq!(
        l.s.apply(i, &key(77)).unwrap().answer,
        a,
        "the use of the pool is no part of the request"
    );
}

#[test]
fn the_first_answer_is_kept_with_its_key() {
    let mut l = Lab::cluster(2, 2);
    let c = Command {
        at_ms: 5,
        who: "t".into(),
        key: Some("k".into()),
        op: Op::AddDomain { name: "d".into() },
    };
    let next = |l: &Lab| ConfigIndex(l.s.index.0 + 1);
    let i = next(&l);
    assert_eq!(l.s.apply(i, &c).unwrap().body, None);
    l.ok(Op::Remember { key: "k".into(), body: "first".into() });
    l.ok(Op::Remember { key: "k".into(), body: "second".into() });
    l.ok(Op::DeleteDomain { id: DomainId(2) });
    let i = next(&l);
    assert_eq!(l.s.apply(i, &c).unwrap().body.as_deref(), Some("first"));
}

#[test]
fn only_so_many_events_are_kept() {
    let mut l = Lab::cluster(2, 2);
    assert_eq!(l.run(Op::KeepEvents { keep: 5 }).unwrap_err().status, 422);
    l.ok(Op::KeepEvents { keep: 100 });
    for i in 0..200 {
        l.ok(Op::AddDomain { name: format!("d{i}") });
    }
    assert_eq!(l.s.events.len(), 100);
    let ids: Vec<u64> = l.s.events.iter().map(|e| e.id).collect();
    assert!(ids.windows(2).all(|w| w[1] == w[0] + 1));
    assert_eq!(l.s.events.back().map(|e| e.object.as_str()), Some("pd d199"));
}

#[test]
fn a_pool_that_waited_for_a_server_is_laid_out_when_it_is_taken_back() {
    let ops = [
        (Op::DrainSds { id: SdsId(2) }, Op::RecoverSds { id: SdsId(2) }),
        (Op::DrainDevice { id: DeviceId(2) }, Op::AddDevice { id: DeviceId(2), pool: PoolId(1) }),
    ];
    for (away, back) in ops {
        let mut l = Lab::new();
        l.register(1, None, &[]);
        l.ok(pool("p", 2));
        // The second server's device joins while the first one is out.
        l.ok(Op::FenceSds { id: SdsId(1), force: true, answered: answered(&[]) });
        l.register(2, None, &[]);
        l.ok(away);
        l.ok(Op::RecoverSds { id: SdsId(1) });
        l.register(1, None, &[2]);
        assert!(l.s.pgs.is_empty() && l.s.pool_devices(PoolId(1)).count() == 2, "{back:?}");
        l.ok(back.clone());
        assert_eq!(l.s.pgs.len(), 32, "{back:?}");
    }
}

#[test]
fn settings_are_checked_together() {
    let mut l = Lab::cluster(2, 2);
    let mut set = |p: Policy| l.run(Op::SetPolicy { pool: PoolId(1), policy: Box::new(p) });
    let bad = |e: Result<Applied, Reject>| assert_eq!(e.unwrap_err().code, "bad_limit");
    bad(set(Policy { alert_high_percent: Some(95), ..Policy::default() }));
    bad(set(Policy { pacing: Some(Pacing::Limit), ..Policy::default() }));
    bad(set(Policy { over_commit: Some(0), ..Policy::default() }));
    bad(set(Policy { moves_at_once: Some(0), ..Policy::default() }));
    let rate = Some(64 << 20);
    set(Policy {
        pacing: Some(Pacing::Limit),
        rebuild_bytes_per_second: rate,
        ..Policy::default()
    })
    .unwrap();
    assert_eq!(
        l.view.pools[&PoolId(1)].rebuild_bytes_per_second,
        (64 << 20) / 32,
        "live in the view"
    );
}

#[test]
fn every_deletion_is_remembered_in_no_more_than_one_line_a_volume_that_is_left() {
    let mut l = Lab::cluster(2, 2);
    let kept = |n: u32| n.is_multiple_of(50);
    for n in 1..=200 {
        l.volume(&format!("v{n}"), 1 << 20).unwrap();
        if !kept(n) {
            l.ok(Op::DeleteVolume { id: VolumeId(n) });
        }
    }
    let check = |l: &Lab| {
        for view in [&l.view, &l.s.view()] {
            for n in 1..=201 {
                let there = l.s.volumes.contains_key(&VolumeId(n)) || n == 201;
                let vtree = VtreeId(n.into());
                assert_eq!(view.is_deleted(PoolId(1), vtree), !there, "{n}");
            }
        }
        l.s.deleted_runs.runs(PoolId(1)).count()
    };
    assert_eq!(check(&l), 4);
    for n in [50, 100, 150, 200] {
        l.ok(Op::DeleteVolume { id: VolumeId(n) });
        check(&l);
    }
    assert_eq!(check(&l), 1);
}

#[test]
fn deletions_that_an_earlier_release_kept_one_by_one_are_gathered() {
    let mut l = Lab::cluster(2, 2);
    for n in 1..=9 {
        l.volume(&format!("v{n}"), 1 << 20).unwrap();
    }
    let kept = |v: &Volume| v.vtree == VtreeId(5);
    let gone: Vec<VtreeId> = l.s.volumes.values().filter(|v| !kept(v)).map(|v| v.vtree).collect();
    l.s.volumes.retain(|_, v| kept(v));
    l.s.deleted = gone.iter().map(|v| (*v, PoolId(1))).collect();
    let mut stored = serde_json::to_value(&l.s).unwrap();
    assert!(stored.as_object_mut().unwrap().remove("deleted_runs").is_some());
    let mut store = crate::log::MemStore::default();
    let bytes = serde_json::to_vec(&stored).unwrap();
    crate::log::MetaStore::snapshot(&mut store, l.s.index.0, &bytes).unwrap();
    let s = crate::engine::restore(&mut store).unwrap();
    assert!(s.deleted.is_empty() && gone.iter().all(|v| s.view().is_deleted(PoolId(1), *v)));
    assert_eq!(s.deleted_runs.runs(PoolId(1)).count(), 2);
}

#[test]
fn a_second_pool_leaves_the_first_alone() {
    let mut l = Lab::cluster(3, 2);
    let before = l.all();
    l.ok(Op::DrainSds { id: SdsId(3) });
    move_all(&mut l);
    l.ok(Op::DeleteDevice { id: DeviceId(3) });
    l.ok(pool("q", 1));
    assert!(
        l.s.pool_devices(PoolId(2)).next().is_none(),
        "a removed device joins no new pool either"
    );
    assert_eq!(l.s.pool_pgs(PoolId(1)).count(), before.len());
}

fn reason() -> String {
    "t".to_string()
}

/// Asked by the primary of the first group.
fn propose(l: &mut Lab, proposal: Proposal) {
    let p = *l.pg(0).primary_member().unwrap();
    let (sds, start) = (p.sds, p.start);
    l.ok(Op::Propose { sds, start, proposal, answered: answered(&[]) });
}

/// Time passes; the members of the first group that are brought up to date then.
fn sweep(l: &mut Lab, ms: u64) -> usize {
    l.at_ms += ms;
    l.ok(Op::Sweep { answered: answered(&[1, 2]) });
    l.pg(0).syncing.len()
}

/// Two servers; the second member of the first group is brought up to date.
fn with_a_sync() -> (Lab, quarry_base::PgId, DeviceId) {
    let mut l = Lab::cluster(2, 2);
    let c = l.pg(0).clone();
    let device = c.in_sync.iter().find(|m| Some(m.device) != c.primary).unwrap().device;
    let (pg, epoch) = (c.pg, c.epoch);
    propose(&mut l, Proposal::MemberSilent { pg, epoch, device, reason: reason() });
    assert_eq!(sweep(&mut l, 5_001), 1);
    (l, pg, device)
}

#[test]
fn a_sync_that_a_damaged_block_held_up_is_tried_again_a_minute_later_and_remembered_until_it_ends()
{
    let (mut l, pg, device) = with_a_sync();
    let (epoch, damaged) = (l.pg(0).epoch, Some((VtreeId(7), 65_536)));
    let no_room = false;
    propose(
        &mut l,
        Proposal::DropSyncing { pg, epoch, device, reason: reason(), damaged, no_room },
    );
    assert_eq!((sweep(&mut l, 5_001), l.s.pgs[&pg].damaged), (0, damaged));
    assert_eq!((sweep(&mut l, 55_000), l.s.pgs[&pg].damaged), (1, damaged));
    let epoch = l.pg(0).epoch;
    propose(&mut l, Proposal::Add { pg, epoch, device });
    assert_eq!((l.pg(0).in_sync.len(), l.s.pgs[&pg].damaged), (2, None));
}

#[test]
fn a_device_without_room_is_tried_again_half_a_minute_later_with_one_event_in_all() {
    let (mut l, pg, device) = with_a_sync();
    let told = |l: &Lab| l.s.events.iter().filter(|e| e.what == "pg_drop_syncing").count();
    let before = told(&l);
    for _ in 0..3 {
        let (epoch, damaged, no_room) = (l.pg(0).epoch, None, true);
        let reason = reason();
        propose(&mut l, Proposal::DropSyncing { pg, epoch, device, reason, damaged, no_room });
        assert_eq!((sweep(&mut l, 25_000), l.s.pgs[&pg].short), (0, Some(device)));
        assert_eq!(sweep(&mut l, 5_001), 1);
    }
    assert_eq!(told(&l), before + 1);
    let epoch = l.pg(0).epoch;
    propose(&mut l, Proposal::Add { pg, epoch, device });
    assert_eq!((l.pg(0).in_sync.len(), l.s.pgs[&pg].short), (2, None));
}
