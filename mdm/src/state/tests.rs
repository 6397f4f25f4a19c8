//! The state machine by rule number of the design, on a small cluster driven command by command.

use super::*;
use quarry_base::{Epoch, Seq, StartNo, Version};
use quarry_control::{Capability, Proposal, Role};
use quarry_wire::PgConfig;

/// A state, the log behind it, and what was published.
pub struct Lab {
    pub s: State,
    pub at_ms: u64,
    pub log: Vec<Command>,
    pub view: ClusterView,
}

pub fn answered(ids: &[u32]) -> Answered {
    ids.iter().map(|i| SdsId(*i)).collect()
}

impl Lab {
    pub fn new() -> Lab {
        let mut l = Lab {
            s: State::default(),
            at_ms: 1_000,
            log: Vec::new(),
            view: ClusterView::default(),
        };
        l.ok(Op::Init { cluster: "c".into() });
        l
    }

    /// Servers 1..=n with a device each, and a pool of 32 groups.
    pub fn cluster(n: u32, copies: u8) -> Lab {
        let mut l = Lab::new();
        for i in 1..=n {
            l.register(i, None, &[]);
        }
        l.ok(pool("p", copies));
        l
    }

    pub fn run(&mut self, op: Op) -> Result<Applied, Reject> {
        let c = Command { at_ms: self.at_ms, who: "t".into(), key: None, op };
        self.log.push(c.clone());
        let index = ConfigIndex(self.s.index.0 + 1);
        let r = self.s.apply(index, &c);
        for ch in r.iter().flat_map(|a| a.changes.clone()) {
            self.view.apply(ch);
        }
        self.view.index = index;
        r
    }

    pub fn ok(&mut self, op: Op) -> Answer {
        self.run(op).unwrap().answer
    }

    /// Server `i` registers; the start it gets.
    pub fn register(&mut self, i: u32, resume: Option<u64>, heard: &[u32]) -> StartNo {
        let a = self.run(registration(i, resume, heard)).unwrap().answer;
        let Answer::Registered { start, .. } = a else { panic!("{a:?}") };
        StartNo(start)
    }

    /// A client registers.
    pub fn register_sdc(&mut self, i: u32) -> SdcId {
        let Op::Register(mut r) = registration(i, None, &[]) else { panic!("a registration") };
        (r.role, r.name, r.devices) = (Role::Sdc, format!("c{i}"), vec![]);
        r.capabilities = vec![Capability::Sdc];
        let a = self.ok(Op::Register(r));
        let Answer::Registered { sdc: Some(id), .. } = a else { panic!("{a:?}") };
        id
    }

    pub fn try_register(&mut self, i: u32) -> Result<Applied, Reject> {
        self.run(registration(i, None, &[]))
    }

    pub fn try_register_again(
        &mut self,
        i: u32,
        resume: Option<u64>,
        heard: &[u32],
    ) -> Result<Applied, Reject> {
        self.run(registration(i, resume, heard))
    }

    /// Makes a thin volume in the first pool.
    pub fn volume(&mut self, name: &str, size_bytes: u64) -> Result<Applied, Reject> {
        self.run(Op::CreateVolume {
            name: name.into(),
            pool: PoolId(1),
            size_bytes,
            provisioning: Provisioning::Thin,
            used_bytes: 0,
        })
    }

    /// Id of server `i`; one that is not there has none, and 0 is nobody's.
    pub fn id(&self, i: u32) -> SdsId {
        let name = format!("s{i}");
        self.s.sds.values().find(|s| s.name == name).map_or(SdsId(0), |s| s.id)
    }

    pub fn start(&self, i: u32) -> StartNo {
        self.s.sds.get(&self.id(i)).map_or(StartNo::ZERO, |s| s.start)
    }

    pub fn fail(&mut self, i: u32, heard: &[u32]) {
        let start = self.start(i);
        self.ok(Op::SdsFailed {
            sds: SdsId(i),
            start,
            reason: "test".into(),
            answered: answered(heard),
        });
    }

    pub fn pg(&self, i: u32) -> &PgConfig {
        &self.s.pgs[&PgId::new(PoolId(1), i)].config
    }

    pub fn all(&self) -> Vec<PgConfig> {
        self.s.pgs.values().map(|p| p.config.clone()).collect()
    }

    pub fn add(&mut self, c: &PgConfig, device: DeviceId) -> Result<Applied, Reject> {
        let p = *c.primary_member().unwrap();
        self.run(Op::Propose {
            sds: p.sds,
            start: p.start,
            proposal: Proposal::Add { pg: c.pg, epoch: c.epoch, device },
            answered: answered(&[]),
        })
    }

    /// Adds every syncing member.
    pub fn heal(&mut self) {
        while let Some((c, d)) = self.all().into_iter().find_map(|c| {
            let d = c.syncing.first()?.device;
            Some((c, d))
        }) {
            self.add(&c, d).unwrap();
        }
    }

    pub fn elect(&mut self, last: &[(u32, (u64, u64), u64)]) {
        let pgs = self.election(last);
        self.ok(Op::Elect { pgs });
    }

    /// What the driver would ask for: server, its newest record, its commit point.
    pub fn election(&self, last: &[(u32, (u64, u64), u64)]) -> Vec<ElectPg> {
        let pgs = self.all().into_iter().filter(|c| self.s.electable(c.pg)).map(|c| ElectPg {
            pg: c.pg,
            epoch: c.epoch,
            present: c
                .in_sync
                .iter()
                .filter_map(|m| {
                    let (_, l, commit) = last.iter().find(|x| x.0 == m.sds.get())?;
                    Some(Position {
                        device: m.device,
                        start: self.s.sds[&m.sds].start,
                        last: Version::new(Epoch(l.0), Seq(l.1)),
                        commit: Seq(*commit),
                        known: l.0 > 0,
                    })
                })
                .collect(),
        });
        pgs.collect()
    }
}

pub fn registration(i: u32, resume: Option<u64>, heard: &[u32]) -> Op {
    let dev = RegDevice {
        uuid: format!("u{i}"),
        path: "/d".into(),
        capacity_bytes: 1 << 40,
        shard: 0,
        failed: None,
        unread: false,
    };
    Op::Register(Box::new(Register {
        role: Role::Sds,
        name: format!("s{i}"),
        addresses: vec![],
        capabilities: vec![Capability::Sds],
        host: "h".into(),
        boot_id: "b".into(),
        release: "1".into(),
        metrics: None,
        resume,
        endpoints: vec![],
        devices: vec![dev],
        answered: answered(heard),
    }))
}

/// Maps the first volume to the first client.
pub fn map_first(device: bool, no_device: bool) -> Op {
    Op::Map {
        volume: VolumeId(1),
        sdc: SdcId(1),
        read_only: false,
        device,
        io_timeout_ms: None,
        no_device,
    }
}

pub fn pool(name: &str, copies: u8) -> Op {
    Op::AddPool(Box::new(AddPool {
        name: name.into(),
        domain: DomainId(1),
        copies,
        min_copies: None,
        ack: Ack::Durable,
        reads: Reads::Lease,
        pg_count: Some(32),
        devices: None,
        over_commit: None,
        reserve_percent: None,
        rebuild_grace_seconds: None,
        rebuild_bytes_per_second: None,
    }))
}

#[test]
fn a_pool_spreads_groups_and_primaries() {
    let l = Lab::cluster(3, 2);
    assert!(l.all().iter().all(|c| c.is_complete() && c.in_sync.len() == 2 && c.epoch == Epoch(1)));
    let n = l.s.primaries();
    assert!(n.values().all(|n| (9..=12).contains(n)), "{n:?}");
    assert_eq!(l.view.pgs.len(), 32);
    assert_eq!(l.view.pgs, l.s.view().pgs);
}

#[test]
fn r1_only_the_first_proposal_at_an_epoch_is_accepted() {
    let mut l = Lab::cluster(2, 2);
    l.fail(2, &[1]);
    l.register(2, None, &[1]);
    let c = l.pg(0).clone();
    let d = c.syncing[0].device;
    l.add(&c, d).unwrap();
    assert_eq!(l.add(&c, d).unwrap_err().code, "stale");
    assert_eq!(l.pg(0).epoch.0, c.epoch.0 + 1);
}

#[test]
fn r1_a_process_start_ends_every_role() {
    let mut l = Lab::cluster(2, 2);
    let old = l.start(1);
    let new = l.register(1, None, &[2]);
    assert!(new > old);
    assert!(l.all().iter().all(|c| c.in_sync.len() == 1 && c.syncing[0].start == new));
    let c = l.pg(0).clone();
    let e = l.run(Op::Propose {
        sds: SdsId(1),
        start: old,
        proposal: Proposal::HandOver,
        answered: answered(&[2]),
    });
    assert_eq!(e.unwrap_err().code, "stale");
    assert_eq!(*l.pg(0), c);
}

#[test]
fn r1_the_same_process_resumes_without_a_change() {
    let mut l = Lab::cluster(2, 2);
    let (start, before) = (l.start(1), l.all());
    assert_eq!(l.register(1, Some(start.get()), &[2]), start);
    assert_eq!(l.all(), before);
    l.fail(1, &[2]);
    assert!(
        l.register(1, Some(start.get()), &[2]) > start,
        "declared failed: its roles have ended"
    );
}

#[test]
fn r4_one_command_removes_a_failed_server_everywhere() {
    let mut l = Lab::cluster(3, 2);
    let before = l.all();
    l.fail(1, &[2, 3]);
    for (old, new) in before.iter().zip(l.all()) {
        let hit = old.in_sync.iter().any(|m| m.sds == SdsId(1));
        assert_eq!(new.epoch.0, old.epoch.0 + u64::from(hit));
        assert!(new.in_sync.iter().all(|m| m.sds != SdsId(1)) && !new.in_sync.is_empty());
        assert_eq!(new.index == l.s.index, hit);
    }
    let n = l.s.primaries();
    assert!(n[&DeviceId(2)].abs_diff(n[&DeviceId(3)]) <= 2, "{n:?}");
}

#[test]
fn r10_a_member_is_not_removed_before_another_has_answered_since() {
    let mut l = Lab::cluster(2, 2);
    let before = l.all();
    l.fail(1, &[]);
    assert_eq!(l.all(), before);
    assert!(l.s.unsettled(l.pg(0).pg, &answered(&[2]), l.at_ms));
    l.ok(Op::Sweep { answered: answered(&[2]) });
    assert!(l.all().iter().all(|c| c.in_sync.len() == 1 && c.primary == Some(DeviceId(2))));
}

#[test]
fn r10_the_last_in_sync_member_is_never_removed() {
    let mut l = Lab::cluster(2, 2);
    l.fail(1, &[2]);
    let before = l.all();
    l.fail(2, &[1]);
    assert_eq!(l.all(), before);
    // A stale one alone is not elected and not taken in.
    l.register(1, None, &[]);
    assert!(l.all().iter().all(|c| !l.s.electable(c.pg)));
    l.elect(&[(1, (9, 99), 99)]);
    assert_eq!(l.all(), before);
}

#[test]
fn r10_a_failed_device_leaves_only_when_another_is_in_sync() {
    let mut l = Lab::cluster(2, 2);
    l.fail(2, &[1]);
    let start = l.start(1);
    l.ok(Op::DeviceFailed {
        device: DeviceId(1),
        start,
        reason: "EIO".into(),
        answered: answered(&[1]),
    });
    assert!(l.all().iter().all(|c| c.primary == Some(DeviceId(1))), "it still feeds syncs");
    l.register(2, None, &[1]);
    assert!(l.all().iter().all(|c| c.syncing.len() == 1));
    l.heal();
    l.ok(Op::Sweep { answered: answered(&[1, 2]) });
    assert!(l.all().iter().all(|c| c.primary == Some(DeviceId(2)) && c.in_sync.len() == 1));
}

#[test]
fn r10_a_silent_member_goes_only_at_its_primarys_request() {
    let mut l = Lab::cluster(2, 2);
    let c = l.pg(0).clone();
    let (p, other) = (
        *c.primary_member().unwrap(),
        *c.in_sync.iter().find(|m| Some(m.device) != c.primary).unwrap(),
    );
    let silent = |from: quarry_wire::Member, device| Op::Propose {
        sds: from.sds,
        start: from.start,
        proposal: Proposal::MemberSilent { pg: c.pg, epoch: c.epoch, device, reason: "t".into() },
        answered: answered(&[]),
    };
    assert!(l.run(silent(other, p.device)).is_err());
    assert!(l.run(silent(p, p.device)).is_err());
    l.ok(silent(p, other.device));
    assert_eq!((l.pg(0).in_sync.len(), l.pg(0).syncing.len()), (1, 0));
    // R27: it comes back, but not at once.
    l.ok(Op::Sweep { answered: answered(&[1, 2]) });
    assert!(l.pg(0).syncing.is_empty());
    l.at_ms += 5_001;
    assert!(l.s.unsettled(l.pg(0).pg, &answered(&[1, 2]), l.at_ms));
    l.ok(Op::Sweep { answered: answered(&[1, 2]) });
    assert_eq!(l.pg(0).syncing.len(), 1);
}

#[test]
fn r11_the_highest_epoch_and_seq_leads_after_all_restarted() {
    let mut l = Lab::cluster(2, 2);
    l.register(1, None, &[]);
    l.register(2, None, &[]);
    assert!(l.all().iter().all(|c| l.s.electable(c.pg) && c.in_sync.len() == 2));
    l.elect(&[(1, (2, 5), 4), (2, (1, 9), 4)]);
    for c in l.all() {
        assert_eq!((c.primary, c.in_sync.len(), c.epoch), (Some(DeviceId(1)), 2, Epoch(2)));
        assert!(c.in_sync.iter().all(|m| m.start == l.start(m.sds.get())));
    }
}

#[test]
fn r11_a_member_below_a_known_commit_point_is_synced() {
    let mut l = Lab::cluster(2, 2);
    l.register(1, None, &[]);
    l.register(2, None, &[]);
    l.elect(&[(1, (1, 3), 3), (2, (1, 9), 7)]);
    for c in l.all() {
        assert_eq!(
            (c.primary, c.in_sync.len(), c.syncing[0].sds),
            (Some(DeviceId(2)), 1, SdsId(1))
        );
    }
}

#[test]
fn r11_absent_members_are_removed_and_come_back_syncing() {
    let mut l = Lab::cluster(2, 2);
    l.fail(1, &[]);
    l.fail(2, &[]);
    l.register(2, None, &[]);
    l.elect(&[(2, (1, 5), 5)]);
    assert!(l.all().iter().all(|c| c.in_sync.len() == 1 && c.primary == Some(DeviceId(2))));
    l.register(1, None, &[2]);
    assert!(l.all().iter().all(|c| c.syncing.len() == 1));
}

#[test]
fn r11_one_without_any_record_leads_only_if_nobody_has_one() {
    let mut l = Lab::cluster(2, 2);
    l.register(1, None, &[]);
    let before = l.all();
    l.elect(&[(1, (0, 0), 0)]);
    assert_eq!(l.all(), before, "the other may have data");
    l.register(2, None, &[]);
    l.elect(&[(1, (0, 0), 0), (2, (0, 0), 0)]);
    assert!(l.all().iter().all(|c| c.in_sync.len() == 2 && c.epoch == Epoch(2)));
}

#[test]
fn r15_only_a_syncing_member_with_its_present_start_is_added() {
    let mut l = Lab::cluster(3, 2);
    l.fail(1, &[2, 3]);
    let c = l.all().into_iter().find(|c| c.listed.contains(&DeviceId(1))).unwrap();
    assert_eq!(l.add(&c, DeviceId(1)).unwrap_err().code, "stale");
    l.register(1, None, &[2, 3]);
    let c = l.s.pgs[&c.pg].config.clone();
    l.register(1, None, &[2, 3]);
    assert_eq!(l.add(&c, DeviceId(1)).unwrap_err().code, "stale", "it started again meanwhile");
    l.heal();
    assert!(l.all().iter().all(|c| c.is_complete()));
}

#[test]
fn r16_what_does_not_come_back_in_time_is_rebuilt_elsewhere() {
    let mut l = Lab::cluster(4, 2);
    l.fail(1, &[2, 3, 4]);
    assert!(!l.s.rebuild_due(l.at_ms + 59_000));
    l.at_ms += 60_000;
    assert!(l.s.rebuild_due(l.at_ms));
    l.ok(Op::Rebuild);
    assert!(!l.s.rebuild_due(l.at_ms), "nothing more to begin");
    let lost = l.all().into_iter().filter(|c| c.listed.contains(&DeviceId(1)));
    for c in lost {
        assert_eq!((c.listed.len(), c.syncing.len()), (3, 1));
        assert_ne!(c.syncing[0].sds, c.in_sync[0].sds);
    }
    l.heal();
    assert!(l.all().iter().all(|c| c.is_complete() && !c.listed.contains(&DeviceId(1))));
    // Back too late: it is not listed any more and gets no role.
    l.register(1, None, &[2, 3, 4]);
    assert!(l.all().iter().all(|c| c.member(DeviceId(1)).is_none()));
}

#[test]
fn r16_one_that_returns_during_the_rebuild_may_win() {
    let mut l = Lab::cluster(3, 2);
    l.fail(1, &[2, 3]);
    l.at_ms += 60_000;
    l.ok(Op::Rebuild);
    l.register(1, None, &[2, 3]);
    let c = l.all().into_iter().find(|c| c.syncing.len() == 2).unwrap();
    l.add(&c, DeviceId(1)).unwrap();
    let c = l.s.pgs[&c.pg].config.clone();
    assert!(c.is_complete() && c.listed.contains(&DeviceId(1)) && c.syncing.is_empty(), "{c:?}");
}

#[test]
fn r16_a_cancelled_rebuild_takes_the_new_devices_back() {
    let mut l = Lab::cluster(3, 2);
    l.fail(1, &[2, 3]);
    l.at_ms += 60_000;
    l.ok(Op::Rebuild);
    l.ok(Op::RebuildCancel { pool: PoolId(1) });
    assert!(l.all().iter().all(|c| c.listed.len() == 2 && c.syncing.is_empty()));
    assert!(!l.s.rebuild_due(l.at_ms + 1_000_000));
    l.ok(Op::RebuildNow { pool: PoolId(1) });
    l.heal();
    assert!(l.all().iter().all(|c| c.is_complete()));
}

#[test]
fn a_new_device_is_used_at_once_where_copies_are_missing() {
    let mut l = Lab::cluster(2, 2);
    l.ok(Op::FenceSds { id: SdsId(1), force: false, answered: answered(&[2]) });
    l.register(3, None, &[2]);
    l.ok(Op::Rebuild);
    l.heal();
    assert!(l.all().iter().all(|c| c.is_complete() && c.listed.contains(&DeviceId(3))));
}

#[test]
fn r18_a_clean_hand_over_moves_what_has_another_copy() {
    let mut l = Lab::cluster(2, 2);
    let start = l.start(1);
    l.ok(Op::Propose {
        sds: SdsId(1),
        start,
        proposal: Proposal::HandOver,
        answered: answered(&[2]),
    });
    assert!(l.all().iter().all(|c| c.primary == Some(DeviceId(2)) && c.members().count() == 1));
    l.fail(1, &[2]);
    l.register(1, None, &[2]);
    assert!(l.all().iter().all(|c| c.syncing.len() == 1), "the next start gets roles again");
}

#[test]
fn r19_starts_and_instances_are_never_the_same() {
    let mut l = Lab::cluster(2, 2);
    let mut seen = vec![l.start(1), l.start(2)];
    for _ in 0..3 {
        seen.push(l.register(1, None, &[2]));
    }
    let n = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), n);
}

#[test]
fn r21_each_change_of_the_mapping_set_raises_the_generation() {
    let mut l = Lab::cluster(2, 2);
    l.ok(Op::AddSdc { name: "c1".into() });
    l.volume("v", 1 << 20).unwrap();
    let map = map_first(false, false);
    l.ok(map.clone());
    let g = l.view.volumes[&VolumeId(1)].generation;
    l.ok(map);
    assert_eq!(l.s.volumes[&VolumeId(1)].generation, g);
    l.ok(Op::Unmap { volume: VolumeId(1), sdc: SdcId(1) });
    assert!(l.s.volumes[&VolumeId(1)].generation > g);
    l.ok(Op::DeleteVolume { id: VolumeId(1) });
    assert!(l.view.is_deleted(PoolId(1), VtreeId(1)));
    l.volume("v", 1 << 20).unwrap();
    let v = &l.s.volumes[&VolumeId(2)];
    assert_eq!(v.vtree, VtreeId(2), "ids and vtrees are never used again");
}

#[test]
fn a_forced_fence_of_the_last_copy_leaves_it_unavailable_until_recovered() {
    let mut l = Lab::cluster(2, 2);
    l.volume("v", 1 << 20).unwrap();
    l.fail(1, &[2]);
    let fence = |force| Op::FenceSds { id: SdsId(2), force, answered: answered(&[2]) };
    assert_eq!(l.run(fence(false)).unwrap_err().code, "last_copy");
    let before = l.all();
    l.ok(fence(true));
    assert_eq!(l.all(), before, "the in-sync set stays");
    assert!(!l.s.alive(&l.pg(0).in_sync[0]), "but its start has ended");
    l.register(2, None, &[]);
    assert!(!l.s.electable(l.pg(0).pg));
    l.ok(Op::RecoverSds { id: SdsId(2) });
    l.elect(&[(2, (2, 5), 5)]);
    assert!(l.s.alive(&l.pg(0).in_sync[0]));
}

#[test]
fn a_refused_command_changes_nothing_but_the_index() {
    let mut l = Lab::cluster(2, 2);
    let mut before = l.s.clone();
    assert!(l.run(pool("p", 2)).is_err());
    assert!(l.run(Op::DeleteVolume { id: VolumeId(9) }).is_err());
    before.index = l.s.index;
    assert_eq!(l.s, before);
}

#[test]
fn r10_a_primary_whose_device_has_failed_does_not_have_the_last_good_member_removed() {
    let mut l = Lab::cluster(2, 2);
    let c = l.pg(0).clone();
    let p = *c.primary_member().unwrap();
    let other = c.in_sync.iter().find(|m| m.device != p.device).unwrap().device;
    let (device, start) = (p.device, p.start);
    // Nobody has answered since, so both stay for now.
    let none = answered(&[]);
    l.ok(Op::DeviceFailed { device, start, reason: "t".into(), answered: none.clone() });
    let c = l.pg(0).clone();
    assert_eq!(c.in_sync.len(), 2);
    let (pg, epoch, reason) = (c.pg, c.epoch, "t".to_string());
    let proposal = Proposal::MemberSilent { pg, epoch, device: other, reason };
    let op = Op::Propose { sds: p.sds, start, proposal, answered: none };
    assert!(l.run(op).is_err());
    l.ok(Op::Sweep { answered: answered(&[1, 2]) });
    assert_eq!(l.pg(0).primary, Some(other), "the good one leads");
}
