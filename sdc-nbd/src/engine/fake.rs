//! A scripted cluster for the engine's tests: servers that share one truth, links that are queues.

use super::*;
use bytes::Bytes;
use quarry_base::*;
use quarry_wire::{
    flags, Change, DeviceInfo, Endpoint, Frame, Header, Hello, MapEntry, Member, Op, Peer,
    PgConfig, PoolInfo, SdsInfo, Status, VolumeInfo,
};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

pub const VOLUME: VolumeId = VolumeId(5);
pub const PGS: u32 = 4;
pub const SIZE: u64 = (3 << 20) + 8192;
pub const INSTANCE: Instance = Instance(77);

pub fn config(pg: u32, epoch: u64, primary: u32) -> PgConfig {
    let m = |d: u32| Member { device: DeviceId(d), sds: SdsId(d), start: StartNo(d.into()) };
    PgConfig {
        pg: PgId::new(PoolId(1), pg),
        epoch: Epoch(epoch),
        index: ConfigIndex(epoch),
        primary: (primary > 0).then_some(DeviceId(primary)),
        in_sync: vec![m(1), m(2)],
        syncing: vec![],
        listed: vec![DeviceId(1), DeviceId(2)],
        copies: 2,
        min_copies: 1,
        line: Epoch::ZERO,
        fell: Epoch::ZERO,
    }
}

pub fn volume(generation: u64, mapped: bool) -> VolumeInfo {
    let map = MapEntry {
        sdc: SdcId(9),
        read_only: false,
        io_timeout_ms: 0,
        device: false,
        since: quarry_base::Generation(1),
    };
    VolumeInfo {
        id: VOLUME,
        name: "vol1".into(),
        vtree: VtreeId(3),
        pool: PoolId(1),
        size_bytes: SIZE,
        generation: Generation(generation),
        mappings: if mapped { vec![map] } else { vec![] },
        thick: false,
    }
}

pub fn view(cached: bool) -> quarry_wire::ClusterView {
    let mut v = quarry_wire::ClusterView::default();
    for d in [1, 2] {
        v.apply(Change::Sds(SdsInfo {
            id: SdsId(d),
            name: format!("sds{d}"),
            start: StartNo(d.into()),
            up: true,
            host: "h".into(),
            endpoints: vec![Endpoint::default()],
        }));
        v.apply(Change::Device(DeviceInfo {
            id: DeviceId(d),
            sds: SdsId(d),
            pool: PoolId(1),
            shard: 0,
        }));
    }
    v.apply(Change::Pool(PoolInfo {
        id: PoolId(1),
        name: "default".into(),
        pg_count: PGS,
        cached,
        confirm: false,
        rebuild_bytes_per_second: 0,
        scrub_bytes_per_second: None,
    }));
    (0..PGS).for_each(|pg| v.apply(Change::Pg(config(pg, 1, 1 + pg % 2))));
    v.apply(Change::Volume(volume(1, true)));
    v
}

pub struct FakeLink {
    pub target: Target,
    pub inbox: VecDeque<Frame>,
    pub hello: bool,
}

/// What a completed request was.
pub type Answer = Result<Vec<u8>, IoError>;

pub struct World {
    pub e: Engine,
    pub now: Nanos,
    pub links: BTreeMap<LinkId, FakeLink>,
    next_link: LinkId,
    pub dialled: Vec<Target>,
    /// Answer dials at once.
    pub accept: bool,
    pub done: Vec<(u64, Answer)>,
    pub other: Vec<Action>,
    /// The content that all servers share, and the ids applied (R19).
    pub truth: Vec<u8>,
    pub applied: HashSet<(PgId, u64)>,
    pub configs: HashMap<PgId, PgConfig>,
    /// Sent and not answered: (link, epoch, pg, id) may be there once (R20).
    pub out: HashSet<(LinkId, u64, PgId, u64)>,
    pub lows: HashMap<(LinkId, PgId), u64>,
    /// Page ranges of writes out now, with their ids, for the overlap rule.
    pub writes_out: HashMap<(PgId, u64), (u64, u64)>,
}

impl World {
    pub fn empty(limits: Limits) -> World {
        let cfg = EngineConfig { cluster: "c1".into(), host: "h".into(), limits };
        World {
            e: Engine::new(cfg),
            now: Nanos(1_000_000),
            links: BTreeMap::new(),
            next_link: 1,
            dialled: vec![],
            accept: true,
            done: vec![],
            other: vec![],
            truth: vec![0; (SIZE as usize).next_multiple_of(1 << 20)],
            applied: HashSet::new(),
            configs: (0..PGS).map(|p| (PgId::new(PoolId(1), p), config(p, 1, 1 + p % 2))).collect(),
            out: HashSet::new(),
            lows: HashMap::new(),
            writes_out: HashMap::new(),
        }
    }

    /// Registered, mapped, links up.
    pub fn ready() -> World {
        World::with(Limits::default(), false)
    }

    pub fn with(limits: Limits, cached: bool) -> World {
        let mut w = World::empty(limits);
        w.step(Event::Registered { sdc: SdcId(9), instance: INSTANCE });
        w.step(Event::View(view(cached)));
        w.settle();
        w.other.clear();
        w
    }

    pub fn step(&mut self, ev: Event) {
        let mut out = vec![];
        self.e.step(self.now, ev, &mut out);
        self.e.flush(self.now, &mut out);
        self.perform(out);
    }

    pub fn tick(&mut self, ms: u64) {
        self.now = self.now + std::time::Duration::from_millis(ms);
        let mut out = vec![];
        self.e.flush(self.now, &mut out);
        self.perform(out);
    }

    fn perform(&mut self, out: Vec<Action>) {
        for a in out {
            match a {
                Action::Dial { target, .. } => {
                    self.dialled.push(target);
                    if self.accept {
                        self.link(target);
                    }
                }
                Action::Send { link, frame } => self.sent(link, frame),
                Action::Close { link } => self.cut(link),
                Action::Done { handle, result, .. } => {
                    let bytes = result.map(|d| d.iter().flat_map(|b| b.iter().copied()).collect());
                    self.done.push((handle, bytes));
                }
                a => self.other.push(a),
            }
        }
    }

    pub fn link(&mut self, target: Target) -> LinkId {
        let link = self.next_link;
        self.next_link += 1;
        self.links.insert(link, FakeLink { target, inbox: VecDeque::new(), hello: false });
        self.step(Event::LinkUp { link, target });
        link
    }

    /// Forgets a link and everything on it.
    fn cut(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.out.retain(|(l, ..)| *l != link);
    }

    pub fn break_link(&mut self, link: LinkId) {
        self.cut(link);
        self.step(Event::LinkDown { link });
    }

    /// Checks the rules every frame must keep, then queues it at the server.
    fn sent(&mut self, link: LinkId, frame: Frame) {
        let h = frame.header;
        if matches!(h.op, Op::Read | Op::Map | Op::Write | Op::Zero | Op::Flush) {
            assert_eq!(h.instance, INSTANCE);
            let (id, low) = (h.request_id.0, h.lowest_unanswered.0);
            assert!(low <= id && id < low + 1000, "id {id} outside the window from {low}");
            let seen = self.lows.entry((link, h.pg)).or_default();
            assert!(*seen <= low, "the lowest unanswered id went back");
            *seen = low;
            assert!(
                self.out.insert((link, h.epoch.0, h.pg, id)),
                "sent twice on one link in one epoch: {h:?}"
            );
            if h.op != Op::Flush {
                let end = u64::from(h.offset) + u64::from(h.length);
                assert!(h.length > 0 && end <= u64::from(EXTENT));
            }
            if matches!(h.op, Op::Write | Op::Zero) {
                self.check_overlap(&h);
            }
            frame.verify_data().unwrap();
        }
        if let Some(l) = self.links.get_mut(&link) {
            l.inbox.push_back(frame);
        }
    }

    /// R20: no two writes that share a page are out at once.
    fn check_overlap(&mut self, h: &Header) {
        let at = u64::from(h.extent.0) * u64::from(EXTENT) + u64::from(h.offset);
        let pages = (at / 4096, (at + u64::from(h.length) - 1) / 4096);
        let me = (h.pg, h.request_id.0);
        for (k, p) in &self.writes_out {
            assert!(*k == me || p.1 < pages.0 || pages.1 < p.0, "{me:?} overlaps {k:?}");
        }
        self.writes_out.insert(me, pages);
    }

    /// Takes the next frame of a link at its server.
    pub fn take(&mut self, link: LinkId) -> Option<Frame> {
        self.links.get_mut(&link)?.inbox.pop_front()
    }

    /// The server's answer, given to the engine.
    pub fn reply(&mut self, link: LinkId, req: &Header, status: Status, data: Bytes) {
        let frame = self.answer_frame(req, status, data);
        self.deliver(link, req, frame);
    }

    pub fn answer_frame(&mut self, req: &Header, status: Status, data: Bytes) -> Frame {
        let read = matches!(req.op, Op::Read | Op::Map) && status == Status::Ok;
        let mut h = Header::new(if read { Op::ReadReply } else { Op::Reply });
        (h.pg, h.request_id, h.status, h.offset) = (req.pg, req.request_id, status, req.offset);
        let config = &self.configs[&req.pg];
        h.epoch = config.epoch;
        h.version.epoch = req.epoch;
        if status == Status::StaleEpoch {
            return Frame::with_meta(h, config.to_meta());
        }
        let crcs = crc_pieces(h.offset, &data);
        Frame::with_data(h, data, &crcs)
    }

    pub fn deliver(&mut self, link: LinkId, req: &Header, frame: Frame) {
        self.out.remove(&(link, req.epoch.0, req.pg, req.request_id.0));
        if frame.header.status == Status::Ok {
            self.writes_out.remove(&(req.pg, req.request_id.0));
        }
        self.step(Event::Frame { link, frame });
    }

    /// Applies a request to the truth, once an id (R19), and makes the answer.
    pub fn execute(&mut self, f: &Frame) -> (Status, Bytes) {
        let h = f.header;
        let at = (u64::from(h.extent.0) * u64::from(EXTENT) + u64::from(h.offset)) as usize;
        let len = h.length as usize;
        match h.op {
            Op::Read => return (Status::Ok, Bytes::copy_from_slice(&self.truth[at..at + len])),
            Op::Map => {
                let mut bits = vec![0u8; (len / PAGE).div_ceil(8)];
                let pages = self.truth[at..at + len].chunks(PAGE).enumerate();
                for (n, _) in pages.filter(|(_, p)| p.iter().any(|b| *b != 0)) {
                    bits[n / 8] |= 1 << (n % 8);
                }
                return (Status::Ok, bits.into());
            }
            Op::Write if self.applied.insert((h.pg, h.request_id.0)) => {
                assert_eq!(f.data.len(), len);
                self.truth[at..at + len].copy_from_slice(&f.data);
            }
            Op::Zero if self.applied.insert((h.pg, h.request_id.0)) => {
                self.truth[at..at + len].fill(0)
            }
            _ => {}
        }
        (Status::Ok, Bytes::new())
    }

    /// Serves one frame of a link as an honest primary would.
    pub fn serve(&mut self, link: LinkId) -> bool {
        let Some(f) = self.take(link) else { return false };
        match f.header.op {
            Op::Hello => self.greet(link),
            Op::Ping => self.step(Event::Frame { link, frame: Frame::bare(Header::new(Op::Pong)) }),
            Op::Read | Op::Map | Op::Write | Op::Zero | Op::Flush => {
                let status = self.judge(link, &f.header);
                let (status, data) = match status {
                    Status::Ok => self.execute(&f),
                    s => (s, Bytes::new()),
                };
                self.reply(link, &f.header, status, data);
            }
            _ => {}
        }
        true
    }

    /// Whether the server at the other end of the link leads the group at that epoch.
    pub fn judge(&self, link: LinkId, h: &Header) -> Status {
        let config = &self.configs[&h.pg];
        let sds = self.links[&link].target.sds.0;
        match h.epoch.cmp(&config.epoch) {
            std::cmp::Ordering::Less => Status::StaleEpoch,
            std::cmp::Ordering::Greater => Status::TryAgain,
            std::cmp::Ordering::Equal if config.primary == Some(DeviceId(sds)) => Status::Ok,
            std::cmp::Ordering::Equal => Status::StaleEpoch,
        }
    }

    pub fn greet(&mut self, link: LinkId) {
        let sds = self.links[&link].target.sds;
        let hello = Hello {
            versions: (1, 1),
            cluster: "c1".into(),
            peer: Peer::Sds { id: sds, start: StartNo(sds.0.into()) },
            device: DeviceId(0),
            auth: None,
        };
        let frame = Frame::with_meta(Header::new(Op::Hello), hello.to_meta());
        if let Some(l) = self.links.get_mut(&link) {
            l.hello = true;
        }
        self.step(Event::Frame { link, frame });
    }

    /// Serves everything until nothing moves.
    pub fn settle(&mut self) {
        while let Some(link) = self.links.iter().find(|(_, l)| !l.inbox.is_empty()).map(|(k, _)| *k)
        {
            self.serve(link);
        }
    }

    /// Takes (link, frame) of the requests that are out, in order, pings answered.
    pub fn requests(&mut self) -> Vec<(LinkId, Frame)> {
        let mut all = vec![];
        for (k, l) in &mut self.links {
            let q = std::mem::take(&mut l.inbox);
            all.extend(q.into_iter().filter(|f| f.header.op != Op::Ping).map(|f| (*k, f)));
        }
        all
    }

    pub fn ask(&mut self, handle: u64, op: IoOp) {
        self.ask_as(1, handle, op);
    }
    pub fn ask_as(&mut self, client: u64, handle: u64, op: IoOp) {
        self.step(Event::Request { client: ClientId(client), handle, volume: VOLUME, op });
    }
    pub fn write(&mut self, handle: u64, offset: u64, len: usize, fill: u8) {
        self.ask(handle, IoOp::Write { offset, data: Bytes::from(vec![fill; len]), fua: false });
    }
    pub fn read(&mut self, handle: u64, offset: u64, len: u32) {
        self.ask(handle, IoOp::Read { offset, len });
    }

    pub fn set_config(&mut self, c: PgConfig) {
        self.configs.insert(c.pg, c);
    }
    pub fn tell_config(&mut self, pg: PgId) {
        let c = self.configs[&pg].clone();
        self.step(Event::Changes { index: c.index, changes: vec![Change::Pg(c)] });
    }
    pub fn link_to(&self, sds: u32) -> LinkId {
        *self.links.iter().find(|(_, l)| l.target.sds.0 == sds).unwrap().0
    }
    /// Handles answered since the last call, in order, all Ok.
    pub fn oks(&mut self) -> Vec<u64> {
        self.done.drain(..).map(|(h, r)| r.map(|_| h).unwrap()).collect()
    }
}

/// The group an extent of the volume is in.
pub fn pg(extent: u32) -> PgId {
    pg_of(PoolId(1), PGS, VtreeId(3), Extent(extent))
}

pub const ZERO_FLAG: u16 = flags::ZERO;
