//! The real MDM state machine and failure detector (crate `mdm`), fed by simulated sessions.
//!
//! Here is only what the MDM's daemon does around them: when to submit which command, what the sessions
//! reported, who is told what. Nothing about membership is decided in this file.

use mdm::control::{Detector, Figures, Looks};
use mdm::state::{
    Ack, AddPool, Answer, Command, ElectPg, Op, Position, Provisioning, Reads, RegDevice, Register,
    Reject, State,
};
use quarry_base::*;
use quarry_control::{Capability, Role};
use quarry_wire::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How the MDM breaks a rule, to prove that the checkers notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wrong {
    #[default]
    None,
    /// Adds members that have not got everything (against R15).
    AddsTooEarly,
}

const MS: u64 = 1_000_000;
/// R11: how long an election waits for in-sync members that are not back (as in the daemon).
const DETECTION: u64 = 800 * MS;

/// What the daemon knows of a data server besides the state.
#[derive(Default)]
struct Live {
    start: StartNo,
    session: bool,
    positions: HashMap<(DeviceId, PgId), (Version, Seq)>,
    confirmed: ConfigIndex,
    failed: BTreeSet<DeviceId>,
    /// How long its device has stalled, as heard last, and when.
    stalled: Option<(DeviceId, u64, u64)>,
}

/// The shape of the cluster at its beginning.
#[derive(Clone, Debug)]
pub struct Shape {
    pub servers: u32,
    pub fault_sets: u32,
    pub pgs: u32,
    pub copies: u8,
    pub min_copies: u8,
    pub grace_seconds: u64,
    pub device_bytes: u64,
    /// Extents of a thick volume beside the thin one; 0: none.
    pub thick: u32,
    pub cached: bool,
    /// `reads = confirm`.
    pub confirm: bool,
}

pub struct Mdm {
    pub state: State,
    detector: Detector,
    looks: Looks,
    live: BTreeMap<SdsId, Live>,
    first_present: BTreeMap<PgId, u64>,
    ticks: u64,
    /// The wall clock's offset, milliseconds: it may jump.
    pub clock_ms: u64,
    pub wrong: Wrong,
    /// Not running until then.
    pub down_until: u64,
    /// What subscribers have not been told yet.
    pub news: Vec<(ConfigIndex, Vec<Change>)>,
    /// Sessions that the MDM closes: their processes register anew.
    pub closing: Vec<SdsId>,
    /// Commands done, by name.
    pub done: Vec<&'static str>,
}

fn node_name(kind: &str, n: u32) -> String {
    format!("{kind}{n}")
}

impl Mdm {
    /// An MDM that knows the names of its servers (ids 1..) and their fault sets.
    pub fn new(shape: &Shape, now: u64) -> Result<Mdm, String> {
        let mut m = Mdm {
            state: State::default(),
            detector: Detector::new(Nanos(now), []),
            looks: Looks::default(),
            live: BTreeMap::new(),
            first_present: BTreeMap::new(),
            ticks: 0,
            clock_ms: 1_700_000_000_000,
            wrong: Wrong::None,
            down_until: 0,
            news: Vec::new(),
            closing: Vec::new(),
            done: Vec::new(),
        };
        let s = |e: Reject| e.to_string();
        m.submit(Op::Init { cluster: crate::node::CLUSTER.into() }, now).map_err(s)?;
        for i in 1..=shape.fault_sets {
            let (name, domain) = (format!("f{i}"), DomainId(1));
            m.submit(Op::AddFaultSet { name, domain }, now).map_err(s)?;
        }
        for i in 1..=shape.servers {
            let fault_set = (shape.fault_sets > 0).then(|| 1 + i % shape.fault_sets);
            let name = node_name("s", i);
            m.submit(Op::AddSds { name, domain: None, fault_set }, now).map_err(s)?;
        }
        Ok(m)
    }

    /// Pool and first volume, once every server has registered.
    pub fn lay_out(&mut self, shape: &Shape, extents: u32, now: u64) -> Result<(), String> {
        let pool = AddPool {
            name: "pool".into(),
            domain: DomainId(1),
            copies: shape.copies,
            min_copies: Some(shape.min_copies),
            ack: if shape.cached { Ack::Cached } else { Ack::Durable },
            reads: if shape.confirm { Reads::Confirm } else { Reads::Lease },
            pg_count: Some(shape.pgs),
            devices: None,
            over_commit: None,
            reserve_percent: None,
            rebuild_grace_seconds: Some(shape.grace_seconds),
            rebuild_bytes_per_second: None,
        };
        self.submit(Op::AddPool(Box::new(pool)), now).map_err(|e| e.to_string())?;
        self.create_volume(extents, Provisioning::Thin, now)?;
        if shape.thick > 0 {
            self.create_volume(shape.thick, Provisioning::Thick, now)?;
        }
        Ok(())
    }

    /// A new volume of so many extents.
    pub fn create_volume(
        &mut self,
        extents: u32,
        provisioning: Provisioning,
        now: u64,
    ) -> Result<VolumeId, String> {
        let name = node_name("vol", self.state.next.volume + 1);
        let size_bytes = u64::from(extents) * u64::from(EXTENT);
        let op =
            Op::CreateVolume { name, pool: PoolId(1), size_bytes, provisioning, used_bytes: 0 };
        match self.submit(op, now).map_err(|e| e.to_string())? {
            Answer::Volume(v) => Ok(v),
            a => Err(format!("creating a volume answered {a:?}")),
        }
    }

    fn unix_ms(&self, now: u64) -> u64 {
        self.clock_ms + now / MS
    }

    /// Does a command: durable at once, as the daemon publishes nothing that is not.
    pub fn submit(&mut self, op: Op, now: u64) -> Result<Answer, Reject> {
        let index = ConfigIndex(self.state.index.0 + 1);
        let at_ms = self.unix_ms(now);
        let name = op.name();
        let done = self.state.apply(index, &Command { at_ms, who: "sim".into(), key: None, op })?;
        self.done.push(name);
        for c in &done.changes {
            if let Change::Sds(s) = c {
                self.end_older(s.id);
            }
        }
        if !done.changes.is_empty() {
            self.news.push((index, done.changes));
        }
        Ok(done.answer)
    }

    /// A session of a start that has ended is closed: the process registers anew (R1).
    fn end_older(&mut self, sds: SdsId) {
        let Some(s) = self.state.sds.get(&sds) else { return };
        if !s.up {
            let start = self.live.get(&sds).map_or(s.start, |l| l.start);
            self.detector.forget(sds, start);
            self.detector.forget(sds, s.start);
        }
        let Some(l) = self.live.get_mut(&sds) else { return };
        if (l.start != s.start || !s.up) && std::mem::take(&mut l.session) {
            self.closing.push(sds);
        }
    }

    /// A client starts: its instance.
    pub fn register_sdc(&mut self, id: SdcId, now: u64) -> Instance {
        let op = Op::Register(Box::new(register(Role::Sdc, node_name("c", id.0), None, vec![])));
        match self.submit(op, now) {
            Ok(Answer::Registered { start, .. }) => Instance(start),
            _ => Instance::ZERO,
        }
    }

    /// A server registers: its start number. `boot` counts the starts of its host.
    pub fn register_sds(&mut self, r: Joining, now: u64) -> Option<StartNo> {
        let id = r.sds;
        let mut reg =
            register(Role::Sds, node_name("s", id.0), r.resume.map(|s| s.get()), r.devices);
        reg.boot_id = format!("boot{}", r.boot);
        reg.answered = self.detector.recent(Nanos(now));
        let Ok(Answer::Registered { start, .. }) = self.submit(Op::Register(Box::new(reg)), now)
        else {
            return None;
        };
        let start = StartNo(start);
        let old = self.live.remove(&id).filter(|o| o.start == start);
        let live = Live {
            start,
            session: true,
            positions: r
                .haves
                .into_iter()
                .map(|h| ((r.device, h.pg), (h.last, h.commit)))
                .collect(),
            confirmed: old.map(|o| o.confirmed).unwrap_or_default(),
            failed: BTreeSet::new(),
            stalled: None,
        };
        self.live.insert(id, live);
        self.detector.joined(id, start, Nanos(now));
        Some(start)
    }

    /// The session of this start is there.
    pub fn has_session(&self, id: SdsId, start: StartNo) -> bool {
        self.live.get(&id).is_some_and(|l| l.session && l.start == start)
    }

    /// Something came over a session.
    pub fn heard(&mut self, id: SdsId, now: u64) {
        self.detector.heard(id, Nanos(now));
    }

    /// Its session closed.
    pub fn closed(&mut self, id: SdsId, start: StartNo, now: u64) {
        if let Some(l) = self.live.get_mut(&id).filter(|l| l.start == start && l.session) {
            l.session = false;
            self.detector.closed(id, Nanos(now));
        }
    }

    pub fn heartbeat(
        &mut self,
        id: SdsId,
        confirmed: ConfigIndex,
        failed: Vec<DeviceId>,
        now: u64,
    ) {
        let Some(l) = self.live.get_mut(&id) else { return };
        l.confirmed = l.confirmed.max(confirmed);
        let start = l.start;
        for device in failed {
            if self.live.get_mut(&id).is_some_and(|l| l.failed.insert(device)) {
                let answered = self.detector.recent(Nanos(now));
                let reason = "a write failed".into();
                self.submit(Op::DeviceFailed { device, start, reason, answered }, now).ok();
            }
        }
    }

    /// A server says for how long its device has had operations under way without one ending, milliseconds.
    pub fn stalled(&mut self, id: SdsId, device: DeviceId, ms: u64, now: u64) {
        if let Some(l) = self.live.get_mut(&id) {
            l.stalled = Some((device, ms, now));
        }
    }

    /// As the daemon: devices that stall are suspended, and come back when they move (R27).
    fn look(&mut self, now: u64) {
        let fresh = self.live.values().filter(|l| l.session).filter_map(|l| l.stalled);
        let fresh = fresh.filter(|(_, _, at)| now - at <= 1000 * MS);
        let figures = fresh
            .map(|(d, stalled_ms, _)| (d, Figures { stalled_ms, ops: 1, median_us: 0 }))
            .collect();
        let (answered, ms) = (self.detector.recent(Nanos(now)), self.unix_ms(now));
        for op in self.looks.due(&self.state, &figures, Nanos(now), ms, &answered) {
            self.submit(op, now).ok();
        }
    }

    /// A server's proposal, and why it was refused.
    pub fn propose(
        &mut self,
        sds: SdsId,
        start: StartNo,
        proposal: Proposal,
        now: u64,
    ) -> (bool, String) {
        let answered = self.detector.recent(Nanos(now));
        match self.submit(Op::Propose { sds, start, proposal, answered }, now) {
            Ok(_) => (true, String::new()),
            Err(e) => (false, e.message),
        }
    }

    /// Who was heard a moment ago.
    pub fn recent(&self, now: u64) -> mdm::state::Answered {
        self.detector.recent(Nanos(now))
    }

    /// The MDM's process dies and comes back: what is logged is there, sessions and clocks are not.
    pub fn restart(&mut self, now: u64) {
        let up: Vec<_> =
            self.state.sds.values().filter(|s| s.up).map(|s| (s.id, s.start)).collect();
        self.detector = Detector::new(Nanos(now), up);
        self.looks = Looks::default();
        self.live.clear();
        self.first_present.clear();
        self.closing.clear();
    }

    /// What the daemon's driver does every 50 ms.
    pub fn tick(&mut self, now: u64) {
        if now < self.down_until {
            return;
        }
        self.ticks += 1;
        for f in self.detector.tick(Nanos(now)) {
            let op = Op::SdsFailed {
                sds: f.sds,
                start: f.start,
                reason: f.reason,
                answered: f.answered,
            };
            self.submit(op, now).ok();
            let over = self.state.sds.get(&f.sds).is_none_or(|s| !s.up || s.start != f.start);
            if over {
                self.detector.forget(f.sds, f.start);
            }
        }
        self.look(now);
        let pgs = self.ready(now);
        if !pgs.is_empty() {
            self.submit(Op::Elect { pgs }, now).ok();
        }
        if self.ticks.is_multiple_of(5) {
            self.sweep(now);
        }
        if self.ticks.is_multiple_of(20) && self.state.rebuild_due(self.unix_ms(now)) {
            self.submit(Op::Rebuild, now).ok();
        }
        if self.wrong == Wrong::AddsTooEarly {
            self.add_too_early(now);
        }
    }

    /// Groups whose election need not wait any longer (R11).
    fn ready(&mut self, now: u64) -> Vec<ElectPg> {
        let s = &self.state;
        let waiting: BTreeSet<PgId> = s.pgs.keys().copied().filter(|p| s.electable(*p)).collect();
        self.first_present.retain(|pg, _| waiting.contains(pg));
        let mut out = Vec::new();
        for pg in waiting {
            let first = *self.first_present.entry(pg).or_insert(now);
            let Some(p) = s.pgs.get(&pg) else { continue };
            let present: Vec<Position> =
                p.config.in_sync.iter().filter_map(|m| self.position(m.device, pg)).collect();
            let all = present.len() == p.config.in_sync.len();
            if !present.is_empty() && (all || now - first >= DETECTION) {
                let e = ElectPg { pg, epoch: p.config.epoch, present };
                out.extend(s.can_elect(&e).then_some(e));
            }
        }
        out
    }

    fn position(&self, device: DeviceId, pg: PgId) -> Option<Position> {
        let sds = self.state.devices.get(&device)?.sds;
        let known = self.state.sds.get(&sds).filter(|x| x.up && !x.fenced)?;
        let l = self.live.get(&sds).filter(|l| l.session && l.start == known.start)?;
        let have = l.positions.get(&(device, pg));
        let (last, commit) = have.copied().unwrap_or((Version::ZERO, Seq(0)));
        Some(Position { device, start: l.start, last, commit, known: have.is_some() })
    }

    fn sweep(&mut self, now: u64) {
        let answered = self.detector.recent(Nanos(now));
        let ms = self.unix_ms(now);
        let s = &self.state;
        let due = s.pgs.keys().any(|pg| s.unsettled(*pg, &answered, ms));
        if due && !answered.is_empty() {
            self.submit(Op::Sweep { answered }, now).ok();
        }
    }

    fn add_too_early(&mut self, now: u64) {
        let all: Vec<PgConfig> = self.state.pgs.values().map(|p| p.config.clone()).collect();
        for c in all {
            let (Some(p), Some(m)) = (c.primary_member().copied(), c.syncing.first()) else {
                continue;
            };
            let proposal = Proposal::Add { pg: c.pg, epoch: c.epoch, device: m.device };
            self.propose(p.sds, p.start, proposal, now);
        }
    }

    /// Everybody who leads a group of the volume has confirmed this index, and every group is led (R21).
    pub fn confirmed(&self, volume: VolumeId, index: ConfigIndex) -> bool {
        let Some(v) = self.state.volumes.get(&volume) else { return false };
        self.state.pool_pgs(v.pool).all(|p| match p.config.primary_member() {
            Some(m) if self.state.alive(m) => {
                self.live.get(&m.sds).is_some_and(|l| l.confirmed >= index)
            }
            _ => false,
        })
    }

    /// Every group has all its copies, each on a server that plays its role.
    pub fn is_whole(&self) -> bool {
        self.state.pgs.values().all(|p| {
            let c = &p.config;
            c.is_complete()
                && c.syncing.is_empty()
                && c.in_sync.iter().all(|m| self.state.good(m))
                && c.primary.is_some()
        })
    }

    /// Devices that are in sync somewhere.
    pub fn needed(&self) -> BTreeSet<DeviceId> {
        self.state.pgs.values().flat_map(|p| p.config.in_sync.iter().map(|m| m.device)).collect()
    }

    /// A placement rule that is broken now: two copies on one server or (`sets`; a rebuild may have had no choice)
    /// in one fault set.
    pub fn misplaced(&self, sets: bool) -> Option<String> {
        self.state.pgs.values().find_map(|p| {
            let servers: Vec<SdsId> = p.config.in_sync.iter().map(|m| m.sds).collect();
            let distinct: BTreeSet<SdsId> = servers.iter().copied().collect();
            let theirs: Vec<u32> = servers
                .iter()
                .filter_map(|s| self.state.sds.get(s).and_then(|s| s.fault_set))
                .collect();
            let all: BTreeSet<u32> = self.state.sds.values().filter_map(|s| s.fault_set).collect();
            let distinct_sets: BTreeSet<u32> = theirs.iter().copied().collect();
            let bad = distinct.len() < servers.len()
                || (sets
                    && all.len() >= p.config.copies as usize
                    && distinct_sets.len() < theirs.len());
            bad.then(|| format!("copies of {} share a place: {:?}", p.config.pg, p.config))
        })
    }
}

/// A server's registration.
pub struct Joining {
    pub sds: SdsId,
    pub device: DeviceId,
    pub resume: Option<StartNo>,
    pub boot: u64,
    pub haves: Vec<PgHave>,
    pub devices: Vec<RegDevice>,
}

/// A device as its server reports it.
pub fn reg_device(n: u32, capacity_bytes: u64) -> RegDevice {
    RegDevice {
        uuid: format!("{n:032x}"),
        path: format!("/dev/d{n}").into(),
        capacity_bytes,
        shard: 0,
        failed: None,
        unread: false,
    }
}

fn register(role: Role, name: String, resume: Option<u64>, devices: Vec<RegDevice>) -> Register {
    let capability = if role == Role::Sds { Capability::Sds } else { Capability::Sdc };
    Register {
        role,
        host: name.clone(),
        name,
        addresses: Vec::new(),
        capabilities: vec![capability],
        boot_id: String::new(),
        release: "0".into(),
        metrics: None,
        resume,
        // One shard a server; where it listens is the world's affair.
        endpoints: vec![Endpoint::default(); usize::from(role == Role::Sds)],
        devices,
        answered: Default::default(),
    }
}
