//! A model of the SDC: several requests at a time, sent again by epoch and session with the same id (R19, R20),
//! never two that overlap, everything recorded in the history.

use crate::history::{History, NEVER};
use crate::rng::Rng;
use bytes::Bytes;
use quarry_base::*;
use quarry_replica::LinkId;
use quarry_wire::*;
use std::collections::BTreeMap;

pub const SECTOR: u32 = 512;
const MS: u64 = 1_000_000;

/// What a client wants of the world.
pub enum Want {
    Dial(SdsId),
    Send(LinkId, Frame),
    WakeAt(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    Write,
    Zero { flags: u16 },
}

struct Request {
    pg: PgId,
    id: u64,
    kind: Kind,
    extent: u32,
    offset: u32,
    len: u32,
    value: u64,
    begin: u64,
    sent: Option<(LinkId, Epoch)>,
    retry_at: u64,
}

#[derive(Default)]
struct Session {
    link: Option<LinkId>,
    ready: bool,
    dialling: bool,
    retry_at: u64,
}

/// What the workload looks like.
#[derive(Clone, Debug)]
pub struct Load {
    pub extents: u32,
    pub depth: usize,
    /// Time between two operations of a client, milliseconds at most.
    pub think_ms: u64,
    pub operations: u64,
}

pub struct Client {
    pub id: SdcId,
    pub instance: Instance,
    pub gen: u64,
    configs: BTreeMap<PgId, PgConfig>,
    pg_count: u32,
    sessions: BTreeMap<SdsId, Session>,
    open: Vec<Request>,
    next_id: BTreeMap<PgId, u64>,
    next_op_at: u64,
    /// The next wake-up that is scheduled.
    pub wake_at: u64,
    pub started: u64,
    pub finished: u64,
    pub errors: Vec<String>,
}

fn overlap(a: &Request, e: u32, o: u32, l: u32) -> bool {
    let page = |x: u32| x / PAGE as u32;
    a.extent == e && page(a.offset) <= page(o + l - 1) && page(o) <= page(a.offset + a.len - 1)
}

impl Client {
    pub fn new(id: SdcId, instance: Instance, view: &ClusterView, now: u64) -> Client {
        let pool = view.pools.values().next();
        Client {
            id,
            instance,
            gen: 0,
            configs: view.pgs.clone(),
            pg_count: pool.map_or(1, |p| p.pg_count),
            sessions: BTreeMap::new(),
            open: Vec::new(),
            next_id: BTreeMap::new(),
            next_op_at: now,
            wake_at: u64::MAX,
            started: 0,
            finished: 0,
            errors: Vec::new(),
        }
    }

    /// The process dies: what is open has an unknown outcome.
    pub fn crash(&mut self, instance: Instance, view: &ClusterView, h: &mut History) {
        for r in std::mem::take(&mut self.open) {
            self.record(&r, NEVER, h);
            self.finished += 1;
        }
        self.instance = instance;
        self.gen += 1;
        self.sessions.clear();
        self.next_id.clear();
        self.configs = view.pgs.clone();
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

    fn record(&self, r: &Request, end: u64, h: &mut History) {
        if r.kind == Kind::Read {
            return;
        }
        let (from, to) = match r.kind {
            // A trim may leave partial pages alone: only whole pages count.
            Kind::Zero { flags } if flags & flags::TRIM != 0 => (
                r.offset.next_multiple_of(PAGE as u32),
                (r.offset + r.len) / PAGE as u32 * PAGE as u32,
            ),
            _ => (r.offset, r.offset + r.len),
        };
        for s in (from / SECTOR)..(to.max(from) / SECTOR) {
            h.write(sector(r.extent, s * SECTOR), r.value, r.begin, end);
        }
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
        match head.status {
            Status::Ok => {
                let r = self.open.remove(i);
                self.finished += 1;
                if r.kind == Kind::Read {
                    self.seen(&r, f, now, h);
                } else {
                    self.record(&r, now, h);
                }
            }
            Status::StaleEpoch => {
                if let Some(c) = PgConfig::from_meta(&f.meta) {
                    self.on_config(&c);
                }
                self.again(i, now, rng);
            }
            Status::TryAgain | Status::StaleMapping => self.again(i, now, rng),
            s => {
                let r = self.open.remove(i);
                self.finished += 1;
                self.errors
                    .push(format!("{:?} {} {}+{} answered {s:?}", r.kind, r.pg, r.offset, r.len));
                self.record(&r, NEVER, h);
            }
        }
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
            let at = sector(r.extent, r.offset + i as u32 * SECTOR);
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
    pub fn read_all(&mut self, extent: u32, offset: u32, len: u32, now: u64) {
        self.push(Kind::Read, extent, offset, len, 0, now);
    }

    fn begin(&mut self, now: u64, load: &Load, rng: &mut Rng) {
        self.started += 1;
        let extent = rng.below(u64::from(load.extents)) as u32;
        // Three hot blocks an extent, the last one at its end.
        let block = [0, 1, 15][rng.below(3) as usize] * BLOCK;
        let page = PAGE as u32;
        let first = block + rng.below(16) as u32 * page;
        let pages = rng.within(1, 4) as u32;
        let whole = (first, (pages * page).min(EXTENT - first));
        let (kind, (offset, len)) = match rng.below(100) {
            0..=37 => (Kind::Read, whole),
            38..=73 => (Kind::Write, whole),
            74..=80 => {
                (Kind::Write, (block.min(EXTENT - 2 * BLOCK), BLOCK * rng.within(1, 2) as u32))
            }
            81..=90 => (Kind::Write, partial(block, rng)),
            91..=93 => (Kind::Zero { flags: 0 }, whole),
            94..=96 => (Kind::Zero { flags: flags::TRIM }, whole),
            97..=98 => (Kind::Zero { flags: 0 }, partial(block, rng)),
            _ => (Kind::Zero { flags: flags::TRIM }, (block, 3 * page / 2)),
        };
        let crosses = self.open.iter().any(|r| overlap(r, extent, offset, len));
        if crosses && kind != Kind::Read {
            return;
        }
        let value = match kind {
            Kind::Write => self.instance.0 << 32 | self.started,
            _ => 0,
        };
        self.push(kind, extent, offset, len, value, now);
    }

    fn push(&mut self, kind: Kind, extent: u32, offset: u32, len: u32, value: u64, begin: u64) {
        let pg = pg_of(PoolId(1), self.pg_count, VtreeId(1), Extent(extent));
        let next = self.next_id.entry(pg).or_insert(1);
        let id = *next;
        *next += 1;
        self.open.push(Request {
            pg,
            id,
            kind,
            extent,
            offset,
            len,
            value,
            begin,
            sent: None,
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
        out.push(Want::Send(link, frame));
    }

    fn frame_of(&self, r: &Request, epoch: Epoch, low: u64) -> Frame {
        let mut h = Header::new(match r.kind {
            Kind::Read => Op::Read,
            Kind::Write => Op::Write,
            Kind::Zero { .. } => Op::Zero,
        });
        h.pg = r.pg;
        h.epoch = epoch;
        h.request_id = RequestId(r.id);
        h.lowest_unanswered = RequestId(low);
        h.instance = self.instance;
        h.generation = Generation(1);
        h.vtree = VtreeId(1);
        h.extent = Extent(r.extent);
        h.offset = r.offset;
        h.length = r.len;
        match r.kind {
            Kind::Read => Frame::bare(h),
            Kind::Zero { flags } => {
                h.flags = flags;
                Frame::bare(h)
            }
            Kind::Write => {
                let data = content(r.extent, r.offset, r.len, r.value);
                let crcs = crc_pieces(r.offset, &data);
                Frame::with_data(h, data, &crcs)
            }
        }
    }
}

/// Pages that are only written as a whole: any mixture in them is a torn page.
fn whole_only(page: u32) -> bool {
    page % 16 >= 8
}

fn partial(block: u32, rng: &mut Rng) -> (u32, u32) {
    // Inside the first eight pages of a block.
    let first = rng.below(60) as u32;
    let n = rng.within(1, 3) as u32;
    (block + first * SECTOR, n * SECTOR)
}

fn sector(extent: u32, offset: u32) -> u64 {
    u64::from(extent) * u64::from(EXTENT / SECTOR) + u64::from(offset / SECTOR)
}

fn num(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn content(extent: u32, offset: u32, len: u32, value: u64) -> Bytes {
    let mut b = PageBuf::zeroed(len as usize);
    for (i, s) in b.chunks_mut(SECTOR as usize).enumerate() {
        s.fill(value as u8);
        s[..8].copy_from_slice(&value.to_le_bytes());
        s[8..16].copy_from_slice(&sector(extent, offset + i as u32 * SECTOR).to_le_bytes());
    }
    b.freeze()
}
