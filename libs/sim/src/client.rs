//! A client: the real engine of the SDC under a load. What is asked for, and what came of it, is recorded by
//! [`crate::outcomes`]; everything else (ids, epochs, links, waiting, sending again) is the engine's.

use crate::load::{choose, content, Load};
use crate::node::CLUSTER;
use crate::rng::Rng;
use bytes::Bytes;
use quarry_base::*;
use quarry_sdc::engine::{
    Action, ClientId, Engine, EngineConfig, Event, IoError, IoOp, Limits, LinkId, Note, ReadData,
    Target,
};
use quarry_wire::*;
use std::collections::{BTreeMap, BTreeSet};

const MS: u64 = 1_000_000;

/// What a client wants of the world.
pub enum Want {
    Dial(Target),
    Send(LinkId, Frame),
    Close(LinkId),
    WakeAt(u64),
    /// The MDM is to hear that the primary of a group cannot be reached (R27).
    Unreachable(PgId, DeviceId),
    Done(Request, Result<ReadData, IoError>),
    Note(Note),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Map,
    Write,
    Zero { flags: u16 },
    Flush,
}

impl Kind {
    pub fn changes_data(self) -> bool {
        matches!(self, Kind::Write | Kind::Zero { .. })
    }
}

/// A request that is open.
#[derive(Clone)]
pub struct Request {
    pub(crate) kind: Kind,
    pub(crate) volume: VolumeId,
    /// The volume as the client knew it when it asked.
    pub(crate) known: Vol,
    pub(crate) at: u64,
    pub(crate) len: u32,
    pub(crate) value: u64,
    pub(crate) fua: bool,
    pub(crate) begin: u64,
    /// Groups that a flush was sent to.
    pub(crate) flushing: BTreeSet<PgId>,
}

impl Request {
    pub(crate) fn end(&self) -> u64 {
        self.at + u64::from(self.len)
    }

    /// The group of each extent that it touches, and the byte range there.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (PgId, u64, u64)> + '_ {
        let size = u64::from(EXTENT);
        let extents = self.at / size..self.end().div_ceil(size);
        extents.map(move |e| {
            let pg = self.known.group(e as u32);
            (pg, self.at.max(e * size), self.end().min((e + 1) * size))
        })
    }

    fn meets(&self, volume: VolumeId, at: u64, len: u32) -> bool {
        let page = |x: u64| x / PAGE as u64;
        self.volume == volume
            && self.kind != Kind::Flush
            && page(self.at) <= page(at + u64::from(len) - 1)
            && page(at) <= page(self.end() - 1)
    }
}

/// A volume as the client may use it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Vol {
    pub vtree: VtreeId,
    pub generation: Generation,
    pub pool: PoolId,
    pub pg_count: u32,
    pub size: u64,
    pub thick: bool,
}

impl Vol {
    pub fn extents(&self) -> u32 {
        (self.size / u64::from(EXTENT)) as u32
    }

    pub fn group(&self, extent: u32) -> PgId {
        pg_of(self.pool, self.pg_count, self.vtree, Extent(extent))
    }
}

/// A sector and the value of a write to it whose outcome is not known.
pub type Unknown = (PgId, u64, u64);

pub struct Client {
    pub id: SdcId,
    pub instance: Instance,
    pub gen: u64,
    pub(crate) engine: Engine,
    /// It has a session with the MDM.
    pub subscribed: bool,
    config: EngineConfig,
    actions: Vec<Action>,
    /// What the MDM told of volumes; which are served, the engine says.
    infos: BTreeMap<VolumeId, VolumeInfo>,
    vols: BTreeMap<VolumeId, Vol>,
    pg_count: u32,
    cached: bool,
    /// Writes of earlier instances that may not take effect once this one has written to their group.
    pub(crate) orphans: Vec<Unknown>,
    /// When a write of this client was answered in a group first.
    pub(crate) wrote: BTreeMap<PgId, u64>,
    /// `ack = cached`: writes of this process that no flush has covered, with the time of their answer.
    pub(crate) unflushed: Vec<(u64, Request)>,
    /// When the oldest write began that the last flush of each volume covered; zero once a write has failed: parts of it
    /// may have been done.
    pub(crate) covered_from: BTreeMap<VolumeId, u64>,
    /// By the handle that the engine has for them.
    open: BTreeMap<u64, Request>,
    next_handle: u64,
    next_op_at: u64,
    /// The next wake-up that is scheduled.
    pub wake_at: u64,
    /// Times the engine wanted no more requests.
    pub no_room: u64,
    pub started: u64,
    pub finished: u64,
    /// Longest time that an answered request took, nanoseconds.
    pub longest: u64,
    /// Disks fail to read for a while: a block of which no other copy is in sync then is `Corrupt`.
    pub disks_fail: bool,
}

impl Client {
    pub fn new(
        id: SdcId,
        instance: Instance,
        limits: &Limits,
        view: &ClusterView,
        now: u64,
    ) -> Client {
        let config =
            EngineConfig { cluster: CLUSTER.into(), host: String::new(), limits: limits.clone() };
        let mut c = Client {
            id,
            instance,
            gen: 0,
            engine: Engine::new(config.clone()),
            subscribed: true,
            config,
            actions: Vec::new(),
            infos: BTreeMap::new(),
            vols: BTreeMap::new(),
            pg_count: 1,
            cached: false,
            orphans: Vec::new(),
            wrote: BTreeMap::new(),
            unflushed: Vec::new(),
            covered_from: BTreeMap::new(),
            open: BTreeMap::new(),
            next_handle: 0,
            next_op_at: now,
            wake_at: u64::MAX,
            no_room: 0,
            started: 0,
            finished: 0,
            longest: 0,
            disks_fail: false,
        };
        c.register(view, now);
        c
    }

    /// As the daemon: it is registered, then gets the view.
    pub fn register(&mut self, view: &ClusterView, now: u64) {
        self.pg_count = view.pools.values().next().map_or(1, |p| p.pg_count);
        self.cached = view.pools.values().any(|p| p.cached);
        self.infos = view.volumes.clone();
        let (sdc, instance) = (self.id, self.instance);
        self.event(Event::Registered { sdc, instance }, now);
        self.event(Event::View(view.clone()), now);
    }

    /// Changes, in order. What is in the view already is not told again.
    pub fn on_news(&mut self, index: ConfigIndex, changes: Vec<Change>, now: u64) {
        if index <= self.applied() {
            return;
        }
        for c in &changes {
            match c {
                Change::Volume(v) => drop(self.infos.insert(v.id, v.clone())),
                Change::VolumeGone { id, .. } => drop(self.infos.remove(id)),
                _ => {}
            }
        }
        self.event(Event::Changes { index, changes }, now);
    }

    /// The process dies; what was open is returned, its outcome is unknown. The next one begins with `view`.
    pub fn crash(
        &mut self,
        instance: Instance,
        view: &ClusterView,
        now: u64,
        back: u64,
    ) -> Vec<Request> {
        self.instance = instance;
        self.gen += 1;
        self.engine = Engine::new(self.config.clone());
        self.actions.clear();
        self.vols.clear();
        self.unflushed.clear();
        self.covered_from.clear();
        self.next_op_at = back;
        let open = std::mem::take(&mut self.open);
        self.finished += open.len() as u64;
        self.register(view, now);
        open.into_values().collect()
    }

    pub fn event(&mut self, e: Event, now: u64) {
        self.engine.step(Nanos(now), e, &mut self.actions);
    }

    /// The volumes that are served here, and their extents.
    pub fn volumes(&self) -> Vec<(VolumeId, u32)> {
        self.vols.iter().map(|(v, x)| (*v, x.extents())).collect()
    }

    /// Newest change of the cluster that it has applied.
    pub fn applied(&self) -> ConfigIndex {
        self.engine.view_index()
    }

    /// The writes that a flush which began then covers.
    pub(crate) fn take_covered(&mut self, volume: VolumeId, begin: u64) -> Vec<(u64, Request)> {
        let (covered, kept) = std::mem::take(&mut self.unflushed)
            .into_iter()
            .partition(|(end, w)| w.volume == volume && *end < begin);
        self.unflushed = kept;
        covered
    }

    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    pub fn describe(&self) -> String {
        self.open
            .values()
            .map(|r| format!("{:?} {} {}+{} since {}; ", r.kind, r.volume, r.at, r.len, r.begin))
            .collect()
    }

    /// Begins what is due; then the engine's turn.
    pub fn pump(&mut self, now: u64, load: &Load, rng: &mut Rng, out: &mut Vec<Want>) {
        // What is not served any more is not asked for.
        self.act(now, out);
        while self.started < load.operations
            && self.open.len() < load.depth
            && now >= self.next_op_at
        {
            self.next_op_at = now + rng.below(load.think_ms.max(1) * MS);
            self.begin(now, load, rng);
        }
        self.engine.flush(Nanos(now), &mut self.actions);
        self.act(now, out);
        let more = self.started < load.operations && self.open.len() < load.depth;
        let next = more.then_some(self.next_op_at.max(now + MS / 10));
        let deadline = self.engine.next_deadline().map(|at| at.0.max(now + 1000));
        if let Some(at) = deadline.into_iter().chain(next).min() {
            out.push(Want::WakeAt(at));
        }
    }

    /// The engine's actions.
    fn act(&mut self, now: u64, out: &mut Vec<Want>) {
        for a in std::mem::take(&mut self.actions) {
            match a {
                Action::Dial { target, .. } => out.push(Want::Dial(target)),
                Action::Send { link, frame } => {
                    self.note_flush(&frame.header);
                    out.push(Want::Send(link, frame));
                }
                Action::Close { link } => out.push(Want::Close(link)),
                Action::Done { handle, result, .. } => {
                    if let Some(r) = self.open.remove(&handle) {
                        self.finished += 1;
                        if result.is_ok() {
                            self.longest = self.longest.max(now - r.begin);
                        }
                        out.push(Want::Done(r, result));
                    }
                }
                Action::VolumeChanged { volume, state } => {
                    let known = self.infos.get(&volume);
                    match (state, known) {
                        (Some(s), Some(i)) => {
                            let vol = Vol {
                                vtree: i.vtree,
                                generation: s.generation,
                                pool: i.pool,
                                pg_count: self.pg_count,
                                size: s.size_bytes,
                                thick: i.thick,
                            };
                            self.vols.insert(volume, vol);
                        }
                        _ => {
                            self.vols.remove(&volume);
                            // Whoever has it next is told nothing of then.
                            self.unflushed.retain(|(_, w)| w.volume != volume);
                        }
                    }
                }
                Action::Unreachable { pg, device } => out.push(Want::Unreachable(pg, device)),
                Action::Note(n) => out.push(Want::Note(n)),
            }
        }
    }

    /// Which groups a flush asks. There is one of a volume at a time.
    fn note_flush(&mut self, h: &Header) {
        if h.op == Op::Flush {
            let of = |r: &&mut Request| r.kind == Kind::Flush && r.known.vtree == h.vtree;
            if let Some(r) = self.open.values_mut().find(of) {
                r.flushing.insert(h.pg);
            }
        }
    }

    /// Asks for every page, for the end of a run.
    pub fn read_all(&mut self, volume: VolumeId, at: u64, len: u32, now: u64) {
        self.ask(Kind::Read, volume, (at, len), (0, false), now);
    }

    fn begin(&mut self, now: u64, load: &Load, rng: &mut Rng) {
        let ids: Vec<VolumeId> = self.vols.keys().copied().collect();
        let Some(&volume) = rng.pick(&ids) else { return };
        if self.engine.is_fenced() {
            return;
        }
        if !self.engine.has_room(volume) {
            self.no_room += 1;
            return;
        }
        if self.cached && rng.chance(load.flushes) {
            let flushes = |r: &Request| r.kind == Kind::Flush && r.volume == volume;
            if !self.open.values().any(flushes) {
                self.started += 1;
                self.ask(Kind::Flush, volume, (0, 0), (0, false), now);
            }
            return;
        }
        let (kind, (at, len)) = choose(load, self.vols[&volume].extents(), rng);
        let crosses = |r: &Request| r.meets(volume, at, len);
        if kind.changes_data() && !load.overlaps && self.open.values().any(crosses) {
            return;
        }
        let fua = self.cached && kind == Kind::Write && rng.chance(8);
        self.started += 1;
        let value = match kind {
            Kind::Write => self.instance.0 << 32 | self.started,
            _ => 0,
        };
        self.ask(kind, volume, (at, len), (value, fua), now);
    }

    fn ask(
        &mut self,
        kind: Kind,
        volume: VolumeId,
        (at, len): (u64, u32),
        (value, fua): (u64, bool),
        begin: u64,
    ) {
        let Some(known) = self.vols.get(&volume).copied() else { return };
        let op = match kind {
            Kind::Read => IoOp::Read { offset: at, len },
            Kind::Map => IoOp::Map { offset: at, len },
            Kind::Write => {
                let data: Bytes = content(known.vtree, at, len, value);
                IoOp::Write { offset: at, data, fua }
            }
            Kind::Zero { flags } => IoOp::Zero {
                offset: at,
                len: u64::from(len),
                no_hole: flags & flags::NO_HOLE != 0,
                trim: flags & flags::TRIM != 0,
                fua,
            },
            Kind::Flush => IoOp::Flush,
        };
        self.next_handle += 1;
        let handle = self.next_handle;
        let flushing = BTreeSet::new();
        let r = Request { kind, volume, known, at, len, value, fua, begin, flushing };
        self.open.insert(handle, r);
        // Two connections: what overlaps is ordered whichever it comes over.
        let client = ClientId(handle % 2);
        self.event(Event::Request { client, handle, volume, op }, begin);
    }
}
