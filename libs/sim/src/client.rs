//! A model of the SDC: several requests at a time, sent again by epoch and session with the same id (R19, R20),
//! never two that overlap, everything recorded in the history.

use crate::history::{History, NEVER};
use crate::load::{choose, content, num, sector, whole_only, Load, SECTOR};
use crate::rng::Rng;
use quarry_base::*;
use quarry_replica::LinkId;
use quarry_wire::*;
use std::collections::BTreeMap;

const MS: u64 = 1_000_000;

/// What a client wants of the world.
pub enum Want {
    Dial(SdsId),
    Send(LinkId, Frame),
    WakeAt(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write,
    Zero {
        flags: u16,
    },
    /// Of one group.
    Flush,
}

struct Request {
    pg: PgId,
    id: u64,
    kind: Kind,
    vol: VolumeId,
    vtree: VtreeId,
    extent: u32,
    offset: u32,
    len: u32,
    value: u64,
    fua: bool,
    begin: u64,
    sent: Option<(LinkId, Epoch)>,
    /// Of the mapping it was sent with last.
    generation: Generation,
    retry_at: u64,
}

/// A write that was answered: its volume, the mapping's generation, when it began.
pub type Ack = (VolumeId, Generation, u64);

#[derive(Default)]
struct Session {
    link: Option<LinkId>,
    ready: bool,
    dialling: bool,
    retry_at: u64,
}

/// A volume as the client may use it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Vol {
    vtree: VtreeId,
    generation: Generation,
    pool: PoolId,
    extents: u32,
    thick: bool,
}

/// A sector and the value of a write to it whose outcome is not known.
pub type Unknown = (PgId, u64, u64);

pub struct Client {
    pub id: SdcId,
    pub instance: Instance,
    pub gen: u64,
    configs: BTreeMap<PgId, PgConfig>,
    vols: BTreeMap<VolumeId, Vol>,
    pg_count: u32,
    cached: bool,
    index: ConfigIndex,
    /// Writes of earlier instances that may not take effect once this one has written to their group.
    orphans: Vec<Unknown>,
    sessions: BTreeMap<SdsId, Session>,
    open: Vec<Request>,
    next_id: BTreeMap<PgId, u64>,
    next_op_at: u64,
    /// The next wake-up that is scheduled.
    pub wake_at: u64,
    pub started: u64,
    pub finished: u64,
    /// Longest time that an answered request took, nanoseconds.
    pub longest: u64,
    /// Writes answered since somebody looked.
    pub acks: Vec<Ack>,
    pub errors: Vec<String>,
    /// Disks fail to read for a while: a block of which no other copy is in sync then is `Corrupt`, and read again later.
    pub disks_fail: bool,
}

fn overlap(a: &Request, v: VolumeId, e: u32, o: u32, l: u32) -> bool {
    let page = |x: u32| x / PAGE as u32;
    a.vol == v
        && a.kind != Kind::Flush
        && a.extent == e
        && page(a.offset) <= page(o + l - 1)
        && page(o) <= page(a.offset + a.len - 1)
}

impl Client {
    pub fn new(id: SdcId, instance: Instance, view: &ClusterView, now: u64) -> Client {
        let mut c = Client {
            id,
            instance,
            gen: 0,
            configs: BTreeMap::new(),
            vols: BTreeMap::new(),
            pg_count: 1,
            cached: false,
            index: ConfigIndex::ZERO,
            orphans: Vec::new(),
            sessions: BTreeMap::new(),
            open: Vec::new(),
            next_id: BTreeMap::new(),
            next_op_at: now,
            wake_at: u64::MAX,
            started: 0,
            finished: 0,
            longest: 0,
            acks: Vec::new(),
            errors: Vec::new(),
            disks_fail: false,
        };
        c.on_view(view);
        c
    }

    fn on_view(&mut self, view: &ClusterView) {
        self.pg_count = view.pools.values().next().map_or(1, |p| p.pg_count);
        self.cached = view.pools.values().any(|p| p.cached);
        self.configs = view.pgs.clone();
        self.index = view.index;
        self.vols.clear();
        for v in view.volumes.values() {
            self.on_volume(v);
        }
    }

    fn on_volume(&mut self, v: &VolumeInfo) {
        if !v.mappings.iter().any(|m| m.sdc == self.id) {
            self.vols.remove(&v.id);
            return;
        }
        let extents = (v.size_bytes / u64::from(EXTENT)) as u32;
        let (vtree, generation) = (v.vtree, v.generation);
        let vol = Vol { vtree, generation, pool: v.pool, extents, thick: v.thick };
        self.vols.insert(v.id, vol);
    }

    /// The MDM's news. What waited on a volume that is taken away is given up: its writes are returned.
    pub fn on_news(
        &mut self,
        index: ConfigIndex,
        changes: &[Change],
        h: &mut History,
    ) -> Vec<(VolumeId, Unknown)> {
        if index <= self.index {
            return Vec::new();
        }
        self.index = index;
        for c in changes {
            match c {
                Change::Pg(c) => self.on_config(c),
                Change::Volume(v) => self.on_volume(v),
                Change::VolumeGone { id, .. } => {
                    self.vols.remove(id);
                }
                _ => {}
            }
        }
        let mut given_up = Vec::new();
        for r in std::mem::take(&mut self.open) {
            if self.vols.contains_key(&r.vol) {
                self.open.push(r);
                continue;
            }
            self.finished += 1;
            given_up.extend(self.record(&r, NEVER, h).into_iter().map(|u| (r.vol, u)));
        }
        given_up
    }

    /// The process dies: what is open has an unknown outcome.
    pub fn crash(&mut self, instance: Instance, view: &ClusterView, h: &mut History) {
        for r in std::mem::take(&mut self.open) {
            let unknown = self.record(&r, NEVER, h);
            self.orphans.extend(unknown);
            self.finished += 1;
        }
        self.instance = instance;
        self.gen += 1;
        self.sessions.clear();
        self.next_id.clear();
        self.on_view(view);
    }

    /// The volumes mapped here, as far as this client knows.
    pub fn volumes(&self) -> Vec<(VolumeId, u32)> {
        self.vols.iter().map(|(v, x)| (*v, x.extents)).collect()
    }

    /// Newest change of the cluster that it has applied.
    pub fn applied(&self) -> ConfigIndex {
        self.index
    }

    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    pub fn describe(&self) -> String {
        self.open
            .iter()
            .map(|r| {
                format!("{:?} {} id {} since {} sent {:?}; ", r.kind, r.pg, r.id, r.begin, r.sent)
            })
            .collect()
    }

    /// Enters a write into the history; returns its sectors if its outcome is not known.
    fn record(&self, r: &Request, end: u64, h: &mut History) -> Vec<Unknown> {
        let mut unknown = Vec::new();
        if matches!(r.kind, Kind::Read | Kind::Flush) {
            return unknown;
        }
        h.falls.place(sector(r.vtree, r.extent, 0), r.pg);
        let (from, to) = match r.kind {
            // A trim may leave partial pages alone: only whole pages count.
            Kind::Zero { flags } if flags & flags::TRIM != 0 => (
                r.offset.next_multiple_of(PAGE as u32),
                (r.offset + r.len) / PAGE as u32 * PAGE as u32,
            ),
            _ => (r.offset, r.offset + r.len),
        };
        for s in (from / SECTOR)..(to.max(from) / SECTOR) {
            let at = sector(r.vtree, r.extent, s * SECTOR);
            h.write(at, r.value, r.begin, end);
            if r.fua && end != NEVER {
                h.make_solid(at, r.value);
            }
            if end == NEVER && r.value != 0 {
                unknown.push((r.pg, at, r.value));
            }
        }
        unknown
    }

    pub fn on_config(&mut self, c: &PgConfig) {
        if self.configs.get(&c.pg).is_none_or(|o| o.epoch < c.epoch) {
            self.configs.insert(c.pg, c.clone());
        }
    }

    pub fn dialled(&mut self, sds: SdsId, link: LinkId, cluster: &str, out: &mut Vec<Want>) {
        let s = self.sessions.entry(sds).or_default();
        s.link = Some(link);
        s.ready = false;
        let hello = Hello {
            versions: (WIRE_VERSION, WIRE_VERSION),
            cluster: cluster.into(),
            peer: Peer::Sdc { id: self.id, instance: self.instance },
            device: DeviceId(0),
            auth: None,
        };
        out.push(Want::Send(link, Frame::with_meta(Header::new(Op::Hello), hello.to_meta())));
    }

    pub fn dial_failed(&mut self, sds: SdsId, now: u64, rng: &mut Rng) {
        let s = self.sessions.entry(sds).or_default();
        s.dialling = false;
        s.retry_at = now + rng.within(10, 40) * MS;
    }

    pub fn closed(&mut self, link: LinkId, now: u64, rng: &mut Rng) {
        for s in self.sessions.values_mut() {
            if s.link == Some(link) {
                *s = Session { retry_at: now + rng.within(5, 40) * MS, ..Session::default() };
            }
        }
        for r in self.open.iter_mut().filter(|r| r.sent.is_some_and(|(l, _)| l == link)) {
            r.sent = None;
        }
    }

    pub fn frame(&mut self, link: LinkId, f: &Frame, now: u64, rng: &mut Rng, h: &mut History) {
        match f.header.op {
            Op::Hello => {
                for s in self.sessions.values_mut().filter(|s| s.link == Some(link)) {
                    (s.ready, s.dialling) = (true, false);
                }
            }
            Op::ConfigPush => {
                if let Some(c) = PgConfig::from_meta(&f.meta) {
                    self.on_config(&c);
                }
            }
            Op::Reply | Op::ReadReply => self.reply(link, f, now, rng, h),
            _ => {}
        }
    }

    fn reply(&mut self, link: LinkId, f: &Frame, now: u64, rng: &mut Rng, h: &mut History) {
        let head = &f.header;
        let mine = |r: &Request| {
            r.pg == head.pg && r.id == head.request_id.0 && r.sent.is_some_and(|(l, _)| l == link)
        };
        let Some(i) = self.open.iter().position(mine) else { return };
        // As the SDC: an answer of a line that the operator gave up says nothing (R26).
        if self.configs.get(&head.pg).is_some_and(|c| head.version.epoch < c.line) {
            self.again(i, now, rng);
            return;
        }
        // As the SDC: a refusal of an attempt that has been made again since says nothing.
        let present = self.open[i].sent == Some((link, head.version.epoch));
        if !present && !matches!(head.status, Status::Ok | Status::StaleEpoch) {
            return;
        }
        match head.status {
            Status::Ok => {
                let r = self.open.remove(i);
                self.finished += 1;
                self.longest = self.longest.max(now - r.begin);
                match r.kind {
                    Kind::Read => self.seen(&r, f, now, h),
                    Kind::Flush => h.falls.flush(r.pg, r.begin, now),
                    _ => drop(self.record(&r, now, h)),
                }
                if r.kind == Kind::Write {
                    self.acks.push((r.vol, r.generation, r.begin));
                    // R19, R20: everything older in this group's sequence comes before.
                    let (gone, kept) =
                        std::mem::take(&mut self.orphans).into_iter().partition(|o| o.0 == r.pg);
                    self.orphans = kept;
                    let gone: Vec<Unknown> = gone;
                    gone.into_iter().for_each(|(_, at, value)| h.shut_out(at, value, now));
                }
            }
            Status::StaleEpoch => {
                if let Some(c) = PgConfig::from_meta(&f.meta) {
                    self.on_config(&c);
                }
                // As the SDC: within one epoch and link a request is out once. The answer to an earlier attempt sends it
                // again only into a newer epoch.
                if present {
                    self.again(i, now, rng);
                }
            }
            Status::TryAgain | Status::StaleMapping => self.again(i, now, rng),
            // Refused for good: none of it may ever be seen. A thick volume has its space always.
            Status::Full if self.open[i].kind != Kind::Read && !self.is_thick(i) => {
                self.open.remove(i);
                self.finished += 1;
            }
            Status::Corrupt if self.disks_fail => self.again(i, now, rng),
            s => {
                let r = self.open.remove(i);
                self.finished += 1;
                self.errors
                    .push(format!("{:?} {} {}+{} answered {s:?}", r.kind, r.pg, r.offset, r.len));
                self.record(&r, NEVER, h);
            }
        }
    }

    fn is_thick(&self, i: usize) -> bool {
        self.vols.get(&self.open[i].vol).is_some_and(|v| v.thick)
    }

    fn again(&mut self, i: usize, now: u64, rng: &mut Rng) {
        self.open[i].sent = None;
        self.open[i].retry_at = now + rng.within(1, 20) * MS;
    }

    fn seen(&mut self, r: &Request, f: &Frame, now: u64, h: &mut History) {
        if f.verify_data().is_err() || f.data.len() != r.len as usize {
            self.errors.push("read data does not match its checksums".into());
            return;
        }
        let page = PAGE as u32;
        for (i, s) in f.data.chunks(SECTOR as usize).enumerate() {
            let at = sector(r.vtree, r.extent, r.offset + i as u32 * SECTOR);
            let (value, place) = (num(s, 0), num(s, 8));
            if value != 0 && place != at {
                self.errors.push(format!("sector {at} has the content of {place}"));
            }
            h.read(at, value, r.begin, now);
        }
        for (i, p) in f.data.chunks(PAGE).enumerate() {
            let number = r.offset / page + i as u32;
            let first = num(p, 0);
            if whole_only(number) && p.chunks(SECTOR as usize).any(|s| num(s, 0) != first) {
                self.errors.push(format!("extent {} page {number} is torn", r.extent));
            }
        }
    }

    /// Begins and sends what is due.
    pub fn pump(&mut self, now: u64, load: &Load, rng: &mut Rng, out: &mut Vec<Want>) {
        while self.started < load.operations
            && self.open.len() < load.depth
            && now >= self.next_op_at
        {
            self.next_op_at = now + rng.below(load.think_ms.max(1) * MS);
            self.begin(now, load, rng);
        }
        for i in 0..self.open.len() {
            self.send(i, now, out);
        }
        let retry =
            self.open.iter().filter(|r| r.sent.is_none()).map(|r| r.retry_at.max(now + MS)).min();
        let next = (self.started < load.operations).then_some(self.next_op_at.max(now + MS / 10));
        if let Some(at) = retry.into_iter().chain(next).min() {
            out.push(Want::WakeAt(at));
        }
    }

    /// Reads every page, for the end of a run.
    pub fn read_all(&mut self, vol: VolumeId, extent: u32, offset: u32, len: u32, now: u64) {
        self.push(Kind::Read, vol, (extent, offset, len), (0, false), now);
    }

    fn begin(&mut self, now: u64, load: &Load, rng: &mut Rng) {
        let ids: Vec<VolumeId> = self.vols.keys().copied().collect();
        let Some(&vol) = rng.pick(&ids) else { return };
        let extent = rng.below(u64::from(self.vols[&vol].extents)) as u32;
        if self.cached && rng.chance(5) {
            self.started += 1;
            return self.push(Kind::Flush, vol, (extent, 0, 0), (0, false), now);
        }
        let (kind, (offset, len)) = choose(load, rng);
        let crosses = self.open.iter().any(|r| overlap(r, vol, extent, offset, len));
        if crosses && kind != Kind::Read {
            return;
        }
        let fua = self.cached && kind == Kind::Write && rng.chance(8);
        self.started += 1;
        let value = match kind {
            Kind::Write => self.instance.0 << 32 | self.started,
            _ => 0,
        };
        self.push(kind, vol, (extent, offset, len), (value, fua), now);
    }

    fn push(
        &mut self,
        kind: Kind,
        vol: VolumeId,
        (extent, offset, len): (u32, u32, u32),
        (value, fua): (u64, bool),
        begin: u64,
    ) {
        let Some(v) = self.vols.get(&vol).copied() else { return };
        let pg = pg_of(v.pool, self.pg_count, v.vtree, Extent(extent));
        let next = self.next_id.entry(pg).or_insert(1);
        let id = *next;
        *next += 1;
        self.open.push(Request {
            pg,
            id,
            kind,
            vol,
            vtree: v.vtree,
            extent,
            offset,
            len,
            value,
            fua,
            begin,
            sent: None,
            generation: v.generation,
            retry_at: 0,
        });
    }

    fn send(&mut self, i: usize, now: u64, out: &mut Vec<Want>) {
        let r = &self.open[i];
        let Some(cfg) = self.configs.get(&r.pg) else { return };
        if let Some((_, epoch)) = r.sent {
            // A newer epoch: the old primary will not answer, or says so itself.
            if epoch >= cfg.epoch {
                return;
            }
        } else if now < r.retry_at {
            return;
        }
        let Some(m) = cfg.primary_member() else { return };
        let s = self.sessions.entry(m.sds).or_default();
        let Some(link) = s.link.filter(|_| s.ready) else {
            if !s.dialling && now >= s.retry_at {
                s.dialling = true;
                out.push(Want::Dial(m.sds));
            }
            return;
        };
        let low = self.open.iter().filter(|o| o.pg == r.pg).map(|o| o.id).min();
        let frame = self.frame_of(&self.open[i], cfg.epoch, low.unwrap_or(r.id));
        self.open[i].sent = Some((link, cfg.epoch));
        self.open[i].generation = frame.header.generation;
        out.push(Want::Send(link, frame));
    }

    fn frame_of(&self, r: &Request, epoch: Epoch, low: u64) -> Frame {
        let mut h = Header::new(match r.kind {
            Kind::Read => Op::Read,
            Kind::Write => Op::Write,
            Kind::Zero { .. } => Op::Zero,
            Kind::Flush => Op::Flush,
        });
        h.pg = r.pg;
        h.epoch = epoch;
        h.request_id = RequestId(r.id);
        h.lowest_unanswered = RequestId(low);
        h.instance = self.instance;
        h.generation = self.vols.get(&r.vol).map_or(Generation(0), |v| v.generation);
        h.config_index = self.index;
        h.vtree = r.vtree;
        h.extent = Extent(r.extent);
        h.offset = r.offset;
        h.length = r.len;
        match r.kind {
            Kind::Read | Kind::Flush => Frame::bare(h),
            Kind::Zero { flags } => {
                h.flags = flags;
                Frame::bare(h)
            }
            Kind::Write => {
                h.flags = if r.fua { flags::FUA } else { 0 };
                let data = content(r.vtree, r.extent, r.offset, r.len, r.value);
                let crcs = crc_pieces(r.offset, &data);
                Frame::with_data(h, data, &crcs)
            }
        }
    }
}
