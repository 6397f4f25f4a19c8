//! A small model of the MDM: one log, membership (R4, R10, R11), elections, additions. Never fails itself;
//! servers can be cut off from it.

use quarry_base::*;
use quarry_wire::*;
use std::collections::{BTreeMap, BTreeSet};

/// How the model breaks a rule, to prove that the checkers notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wrong {
    #[default]
    None,
    /// Adds members that have not got everything (against R15).
    AddsTooEarly,
}

const MS: u64 = 1_000_000;
/// A server not heard of for this long has failed.
const DETECT: u64 = 1000 * MS;
/// An elected or remaining member must have been heard of within this time (R10).
const FRESH: u64 = 300 * MS;
/// A dropped member is not taken back before this time.
const HOLD: u64 = 1500 * MS;

/// A data server as the MDM sees it.
#[derive(Default, Clone)]
struct Server {
    start: StartNo,
    up: bool,
    leaving: bool,
    heard: u64,
    haves: BTreeMap<PgId, PgHave>,
}

pub struct Mdm {
    pub view: ClusterView,
    servers: BTreeMap<SdsId, Server>,
    held: BTreeMap<(PgId, DeviceId), u64>,
    /// Since when a group has nobody who leads it.
    headless: BTreeMap<PgId, u64>,
    numbers: u64,
    began: u64,
    pub wrong: Wrong,
    /// What subscribers have not been told yet.
    pub news: Vec<(ConfigIndex, Vec<Change>)>,
}

impl Mdm {
    /// `servers` with one device each, every group on `copies` of them.
    pub fn new(servers: u32, pgs: u32, copies: u8, extents: u32, now: u64) -> Mdm {
        let mut view = ClusterView { index: ConfigIndex(1), ..ClusterView::default() };
        let pool = PoolId(1);
        view.pools.insert(
            pool,
            PoolInfo {
                id: pool,
                name: "pool".into(),
                pg_count: pgs,
                cached: false,
                rebuild_bytes_per_second: 0,
            },
        );
        for s in 1..=servers {
            let id = DeviceId(s);
            view.devices.insert(id, DeviceInfo { id, sds: SdsId(s), pool, shard: 0 });
        }
        for i in 0..pgs {
            let pg = PgId::new(pool, i);
            let listed: Vec<DeviceId> =
                (0..u32::from(copies)).map(|k| DeviceId(1 + (i + k) % servers)).collect();
            let none = |d: &DeviceId| Member { device: *d, sds: SdsId(d.0), start: StartNo::ZERO };
            let in_sync = listed.iter().map(none).collect();
            let config = PgConfig {
                pg,
                epoch: Epoch(1),
                index: ConfigIndex(1),
                primary: None,
                in_sync,
                syncing: vec![],
                listed,
                copies,
                min_copies: 1,
            };
            view.pgs.insert(pg, config);
        }
        let id = VolumeId(1);
        let volume = VolumeInfo {
            id,
            name: "vol".into(),
            vtree: VtreeId(1),
            pool,
            size_bytes: u64::from(extents) * u64::from(EXTENT),
            generation: Generation(1),
            mappings: vec![],
        };
        view.volumes.insert(id, volume);
        Mdm {
            view,
            servers: BTreeMap::new(),
            held: BTreeMap::new(),
            headless: BTreeMap::new(),
            numbers: 100,
            began: now,
            wrong: Wrong::None,
            news: vec![],
        }
    }

    fn log(&mut self, changes: Vec<Change>) {
        let index = ConfigIndex(self.view.index.0 + 1);
        self.view.index = index;
        for c in &changes {
            self.view.apply(c.clone());
        }
        self.news.push((index, changes));
    }

    /// A client starts: its instance.
    pub fn register_sdc(&mut self, id: SdcId) -> Instance {
        self.numbers += 1;
        let instance = Instance(self.numbers);
        let info = SdcInfo { id, name: format!("c{id}"), instance, host: String::new() };
        let mut changes = vec![Change::Sdc(info)];
        if let Some(v) = self.view.volumes.get(&VolumeId(1)) {
            if !v.mappings.iter().any(|m| m.sdc == id) {
                let mut v = v.clone();
                v.mappings.push(MapEntry { sdc: id, read_only: false, device: false });
                changes.push(Change::Volume(v));
            }
        }
        self.log(changes);
        instance
    }

    /// A server starts: its start number.
    pub fn register_sds(&mut self, id: SdsId, haves: Vec<PgHave>, now: u64) -> StartNo {
        self.numbers += 1;
        let start = StartNo(self.numbers);
        let s = self.servers.entry(id).or_default();
        *s = Server {
            start,
            up: true,
            leaving: false,
            heard: now,
            haves: haves.into_iter().map(|h| (h.pg, h)).collect(),
        };
        let info = SdsInfo {
            id,
            name: format!("s{id}"),
            start,
            up: true,
            host: String::new(),
            endpoints: vec![],
        };
        self.log(vec![Change::Sds(info)]);
        self.settle(now);
        start
    }

    /// False: the process was declared dead, it has to register anew.
    pub fn heartbeat(&mut self, id: SdsId, start: StartNo, now: u64) -> bool {
        match self.servers.get_mut(&id) {
            Some(s) if s.start == start && s.up => {
                s.heard = now;
                true
            }
            _ => false,
        }
    }

    fn alive(&self, m: &Member) -> bool {
        self.servers.get(&m.sds).is_some_and(|s| s.up && s.start == m.start)
    }
    fn good(&self, m: &Member) -> bool {
        self.alive(m) && !self.servers.get(&m.sds).is_some_and(|s| s.leaving)
    }
    fn fresh(&self, m: &Member, now: u64) -> bool {
        self.servers.get(&m.sds).is_some_and(|s| s.heard + FRESH > now)
    }

    /// Failures, then every group.
    pub fn tick(&mut self, now: u64) {
        let dead: Vec<SdsId> = self
            .servers
            .iter()
            .filter(|(_, s)| s.up && s.heard + DETECT < now)
            .map(|(i, _)| *i)
            .collect();
        for id in dead {
            // R10: only if somebody has answered since.
            let other = self.servers.iter().any(|(i, s)| *i != id && s.up && s.heard + FRESH > now);
            if !other {
                continue;
            }
            if let Some(s) = self.servers.get_mut(&id) {
                s.up = false;
                let start = s.start;
                let info = SdsInfo {
                    id,
                    name: format!("s{id}"),
                    start,
                    up: false,
                    host: String::new(),
                    endpoints: vec![],
                };
                self.log(vec![Change::Sds(info)]);
            }
        }
        self.settle(now);
    }

    fn settle(&mut self, now: u64) {
        let mut changes = Vec::new();
        for c in self.view.pgs.values().cloned().collect::<Vec<_>>() {
            let n = self.settled(&c, now);
            if n != c {
                changes.push(n);
            }
        }
        self.put(changes);
    }

    fn put(&mut self, configs: Vec<PgConfig>) {
        if configs.is_empty() {
            return;
        }
        let index = ConfigIndex(self.view.index.0 + 1);
        let changes = configs
            .into_iter()
            .map(|mut c| {
                c.epoch = Epoch(c.epoch.0 + 1);
                c.index = index;
                assert!(
                    !c.in_sync.is_empty() && c.primary.is_none_or(|d| c.is_in_sync(d)),
                    "model MDM: {c:?}"
                );
                Change::Pg(c)
            })
            .collect();
        self.log(changes);
    }

    fn settled(&mut self, old: &PgConfig, now: u64) -> PgConfig {
        let mut c = old.clone();
        // R10: who is not good goes, if a good one remains that has answered since.
        if c.in_sync.iter().any(|m| self.good(m) && self.fresh(m, now)) {
            let keep: Vec<Member> = c.in_sync.iter().filter(|m| self.good(m)).copied().collect();
            c.in_sync = keep;
        }
        c.syncing.retain(|m| self.good(m));
        let led = c.primary_member().is_some_and(|m| self.alive(m));
        if !led && c.in_sync.iter().any(|m| self.good(m)) {
            let best = c
                .in_sync
                .iter()
                .filter(|m| self.good(m))
                .max_by_key(|m| (m.device.0 + c.pg.index()) % 7);
            c.primary = best.map(|m| m.device);
        } else if !led {
            self.elect(&mut c, now);
        }
        if c.primary_member().is_some_and(|m| self.alive(m)) {
            self.headless.remove(&c.pg);
            self.let_join(&mut c, now);
        }
        c
    }

    /// R11: nobody of the in-sync set runs with the start it is named with. Waits for all of them, at most one
    /// detection time, and takes the longest.
    fn elect(&mut self, c: &mut PgConfig, now: u64) {
        let since = *self.headless.entry(c.pg).or_insert(now);
        let now_running: Vec<Member> = c
            .in_sync
            .iter()
            .filter_map(|m| {
                let s = self.servers.get(&m.sds).filter(|s| s.up && s.heard + FRESH > now)?;
                Some(Member { start: s.start, ..*m })
            })
            .collect();
        let all = now_running.len() == c.in_sync.len();
        let first = c.epoch == Epoch(1) && c.primary.is_none();
        if now_running.is_empty()
            || !(all || (since + DETECT < now && !first))
            || self.began + 10 * MS > now
        {
            return;
        }
        let last = |m: &Member| {
            let s = self.servers.get(&m.sds);
            s.and_then(|s| s.haves.get(&c.pg)).map_or(Version::ZERO, |h| h.last)
        };
        let best = now_running.iter().max_by_key(|m| (last(m), (m.device.0 + c.pg.index()) % 5));
        c.primary = best.map(|m| m.device);
        c.in_sync = now_running;
    }

    fn let_join(&self, c: &mut PgConfig, now: u64) {
        for d in c.listed.clone() {
            if c.member(d).is_some() || self.held.get(&(c.pg, d)).is_some_and(|t| *t > now) {
                continue;
            }
            let sds = SdsId(d.0);
            if let Some(s) =
                self.servers.get(&sds).filter(|s| s.up && !s.leaving && s.heard + FRESH > now)
            {
                let m = Member { device: d, sds, start: s.start };
                if self.wrong == Wrong::AddsTooEarly {
                    c.in_sync.push(m);
                } else {
                    c.syncing.push(m);
                }
            }
        }
    }

    /// A server's proposal. The answer is for HandOver only of interest.
    pub fn propose(&mut self, from: SdsId, start: StartNo, p: Proposal, now: u64) -> bool {
        if !self.servers.get(&from).is_some_and(|s| s.up && s.start == start) {
            return false;
        }
        if p == Proposal::HandOver {
            if let Some(s) = self.servers.get_mut(&from) {
                s.leaving = true;
            }
            self.settle(now);
            return true;
        }
        let (pg, epoch, device) = match &p {
            Proposal::Add { pg, epoch, device }
            | Proposal::DropSyncing { pg, epoch, device, .. }
            | Proposal::MemberSilent { pg, epoch, device, .. } => (*pg, *epoch, *device),
            Proposal::HandOver => return false,
        };
        let Some(mut c) = self.view.pgs.get(&pg).cloned() else { return false };
        let leads = c.primary_member().is_some_and(|m| m.sds == from && m.start == start);
        if c.epoch != epoch || !leads {
            return false;
        }
        match p {
            Proposal::Add { .. } => {
                let Some(i) = c.syncing.iter().position(|m| m.device == device) else {
                    return false;
                };
                if !self.good(&c.syncing[i]) {
                    return false;
                }
                let m = c.syncing.remove(i);
                c.in_sync.push(m);
            }
            Proposal::DropSyncing { .. } => {
                c.syncing.retain(|m| m.device != device);
                self.held.insert((pg, device), now + HOLD);
            }
            _ => {
                if !c.is_in_sync(device) && c.member(device).is_some() {
                    // A candidate is dropped like any syncing member.
                    c.syncing.retain(|m| m.device != device);
                    self.held.insert((pg, device), now + HOLD);
                } else {
                    let stays = c
                        .in_sync
                        .iter()
                        .any(|m| m.device != device && self.good(m) && self.fresh(m, now));
                    if !stays {
                        return false;
                    }
                    c.in_sync.retain(|m| m.device != device);
                    if c.primary == Some(device) {
                        c.primary = c.in_sync.iter().find(|m| self.good(m)).map(|m| m.device);
                    }
                    self.held.insert((pg, device), now + HOLD);
                }
            }
        }
        self.put(vec![c]);
        true
    }

    /// Devices that are in sync somewhere.
    pub fn needed(&self) -> BTreeSet<DeviceId> {
        self.view.pgs.values().flat_map(|c| c.in_sync.iter().map(|m| m.device)).collect()
    }

    /// Every group has all its copies.
    pub fn is_whole(&self) -> bool {
        self.view.pgs.values().all(|c| {
            c.is_complete()
                && c.syncing.is_empty()
                && c.in_sync.iter().all(|m| self.good(m))
                && c.primary.is_some()
        })
    }
}
