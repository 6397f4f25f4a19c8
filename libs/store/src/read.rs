//! Reads: overlay pages from memory, the rest from disk, holes as zeroes; every page checked (see `seal`).
//!
//! What to read is decided when the read starts; from then on its slots count as busy, so no new
//! owner writes to them. A destage may (a block that is always read would else hold up the log): a
//! page that does not match its CRC and is no longer what it was planned to be has the whole read
//! planned anew. One that still is, is read once more before it counts as corrupt. Pages that the medium refuses together are
//! read again one by one; those that it still refuses count as corrupt.

use crate::apply::{blocks_of, mask_of};
use crate::error::ReadError;
use crate::index::ExtKey;
use crate::layout::NO_SLOT;
use crate::planted::{planted, Bug};
use crate::read_part::{Part, Verdict};
use crate::seal::LOST;
use crate::store::{OpKind, Store};
use crate::types::{BlockCopy, BlockKey, DiskOp, ReadData, RecordKind, StoreEvent};
use bytes::Bytes;
use quarry_base::crc::ZERO_PAGE_CRC;
use quarry_base::{crc32c, Extent, Layer, PageBuf, PgId, VtreeId, PAGE};
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};

/// What a read says that cannot be answered and has no errno of its own.
pub(crate) const EIO: i32 = 5;

#[derive(Clone, Copy)]
pub(crate) enum Want {
    Range {
        ext: ExtKey,
        offset: u32,
        len: u32,
    },
    /// Which pages of the range have content.
    Map {
        ext: ExtKey,
        offset: u32,
        len: u32,
    },
    /// A block; only its dirty pages if they are fewer than this; without these pages.
    Block(BlockKey, u32, u16),
}

pub(crate) struct ReadReq {
    token: u64,
    pg: PgId,
    want: Want,
    /// Nobody waits for its content.
    scrub: bool,
    /// Table groups whose checks are kept for it while it waits.
    pinned: SmallVec<[u32; 2]>,
    /// How often it was planned anew.
    again: u8,
}

/// So often a read is planned anew for a page that the medium refuses and that may have been replaced meanwhile: that is
/// not known once its check has left the memory.
const REPLANS: u8 = 3;

struct Job {
    req: ReadReq,
    parts: SmallVec<[Part; 2]>,
    left: usize,
    data: ReadData,
    /// What the pages from the disk must match, one for each of `data.crcs`; those are filled in when
    /// the pages are here.
    checks: SmallVec<[u32; 16]>,
    /// Everything of a block but its content.
    head: Option<BlockCopy>,
    bad: Vec<u32>,
    io: Option<i32>,
    /// A page was replaced while it was read.
    stale: bool,
}

#[derive(Default)]
pub(crate) struct Reads {
    waiting: VecDeque<ReadReq>,
    /// Touch something committed whose log batch is not written yet.
    parked: Vec<ReadReq>,
    /// Wait for checks that are not in memory.
    unchecked: Vec<ReadReq>,
    jobs: HashMap<u64, Job>,
    next: u64,
    in_flight: usize,
    again: Vec<(u64, usize)>,
}

impl Reads {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
            && self.parked.is_empty()
            && self.unchecked.is_empty()
            && self.jobs.is_empty()
    }

    /// Is this part read page by page?
    pub fn is_page_by_page(&self, job: u64, part: usize) -> bool {
        let part = self.jobs.get(&job).and_then(|j| j.parts.get(part));
        part.is_some_and(Part::is_page_by_page)
    }
}

impl Store {
    /// Reads a page-aligned range inside one extent: the newest committed content. Answered by
    /// `StoreEvent::ReadDone` with `token`.
    #[allow(clippy::too_many_arguments)]
    pub fn read(
        &mut self,
        token: u64,
        pg: PgId,
        vtree: VtreeId,
        layer: Layer,
        extent: Extent,
        offset: u32,
        len: u32,
    ) {
        assert_range(offset, len);
        let want = Want::Range { ext: ExtKey(vtree, layer, extent), offset, len };
        self.enqueue(token, pg, want);
    }

    /// Says which pages of a page-aligned range inside one extent have content, as of the newest
    /// committed state: a bit a page, the first in the lowest bit. What has none reads as zeroes. Never
    /// goes to the disk. Answered by `StoreEvent::ReadDone` with `token`, the bits as its only segment.
    #[allow(clippy::too_many_arguments)]
    pub fn map(
        &mut self,
        token: u64,
        pg: PgId,
        vtree: VtreeId,
        layer: Layer,
        extent: Extent,
        offset: u32,
        len: u32,
    ) {
        assert_range(offset, len);
        let want = Want::Map { ext: ExtKey(vtree, layer, extent), offset, len };
        self.enqueue(token, pg, want);
    }

    /// Reads a whole block with its version and masks. Answered by `StoreEvent::BlockDone`.
    pub fn read_block(&mut self, token: u64, pg: PgId, key: BlockKey) {
        self.enqueue(token, pg, Want::Block(key, 0, 0));
    }

    /// Reads a block but for some of its pages, which are damaged; the copy is silent about these.
    pub fn read_block_without(&mut self, token: u64, pg: PgId, key: BlockKey, pages: u16) {
        self.enqueue(token, pg, Want::Block(key, 0, pages));
    }

    /// Reads what of a block is dirty, if that is fewer than `whole_from` pages, else the whole block; `part` of the
    /// copy says which. What else is damaged in it does not matter then.
    pub fn read_block_dirty(&mut self, token: u64, pg: PgId, key: BlockKey, whole_from: u32) {
        self.enqueue(token, pg, Want::Block(key, whole_from, 0));
    }

    fn enqueue(&mut self, token: u64, pg: PgId, want: Want) {
        let pinned = SmallVec::new();
        self.reads.waiting.push_back(ReadReq { token, pg, want, scrub: false, pinned, again: 0 });
    }

    /// Reads a block to check it.
    pub(crate) fn read_for_scrub(&mut self, pg: PgId, key: BlockKey, ops: &mut Vec<DiskOp>) {
        self.start_read(
            ReadReq {
                token: 0,
                pg,
                want: Want::Block(key, 0, 0),
                scrub: true,
                pinned: SmallVec::new(),
                again: 0,
            },
            ops,
        );
    }

    pub(crate) fn unpark(&mut self) {
        self.reads.waiting.extend(self.reads.parked.drain(..));
    }

    pub(crate) fn poll_reads(&mut self, ops: &mut Vec<DiskOp>) {
        while let Some((job, part)) = self.reads.again.pop() {
            self.issue_read(job, part, ops);
        }
        while self.reads.in_flight + self.reads.unchecked.len() < self.cfg.max_reads_in_flight {
            let Some(req) = self.reads.waiting.pop_front() else { break };
            self.start_read(req, ops);
        }
    }

    /// Committed, but its log batch is not written, so the index does not have it yet.
    fn not_applied(&self, req: &ReadReq) -> bool {
        let Some(pg) = self.pg(req.pg) else { return false };
        if pg.applied.seq >= pg.commit {
            return false;
        }
        let (ext, offset, len) = match req.want {
            Want::Range { ext, offset, len } | Want::Map { ext, offset, len } => (ext, offset, len),
            Want::Block(k, ..) => (ExtKey::of(k), k.offset(), quarry_base::BLOCK),
        };
        let mut tail = pg.tail.iter().take_while(|t| t.rec.version.seq <= pg.commit);
        tail.any(|t| touches(&t.rec.kind, ext, offset, len))
    }

    fn start_read(&mut self, mut req: ReadReq, ops: &mut Vec<DiskOp>) {
        if self.not_applied(&req) {
            if self.failed.is_some() {
                return self.refuse(req);
            }
            return self.reads.parked.push(req);
        }
        if !self.checks_at_hand(&mut req) {
            return self.reads.unchecked.push(req);
        }
        self.sp.stats.reads += 1;
        let (token, pg, scrub) = (req.token, req.pg, req.scrub);
        let mut job = Job {
            req,
            parts: SmallVec::new(),
            left: 0,
            data: ReadData::default(),
            checks: SmallVec::new(),
            head: None,
            bad: Vec::new(),
            io: None,
            stale: false,
        };
        match job.req.want {
            Want::Range { ext, offset, len } => {
                for (b, from, to) in blocks_of(offset, len) {
                    self.plan(&mut job, ext.block(b), from, to, false);
                }
            }
            Want::Map { ext, offset, len } => job.data = self.content_bits(pg, ext, offset, len),
            Want::Block(key, whole_from, without) => {
                let Some(mut head) = self.block_head(pg, key) else {
                    if scrub {
                        return self.scrubbed(0, false);
                    }
                    let done = StoreEvent::BlockDone { token, result: Ok(None) };
                    return self.events.push(done);
                };
                if head.valid != 0 && head.dirty.count_ones() < whole_from {
                    (head.part, head.valid) = (head.dirty, head.valid & head.dirty);
                }
                (head.part, head.valid) = (head.part & !without, head.valid & !without);
                for (from, to) in runs_of(head.valid) {
                    self.plan(&mut job, key, from, to, true);
                }
                job.head = Some(head);
            }
        }
        job.left = job.parts.len();
        self.reads.next += 1;
        let n = self.reads.next;
        for p in &job.parts {
            self.sp.alloc.read_begins(p.slot);
        }
        let parts = job.parts.len();
        self.reads.in_flight += parts;
        if parts == 0 {
            return self.finish_read(job);
        }
        self.reads.jobs.insert(n, job);
        (0..parts).for_each(|i| self.issue_read(n, i, ops));
    }

    /// Is there a check in memory for every page that this read wants from the disk? If not, it will be read.
    fn checks_at_hand(&mut self, req: &mut ReadReq) -> bool {
        let (ext, offset, len) = match req.want {
            Want::Map { .. } => return true,
            Want::Range { ext, offset, len } => (ext, offset, len),
            Want::Block(k, ..) => (ExtKey::of(k), k.offset(), quarry_base::BLOCK),
        };
        let idx = self.by_id.get(&req.pg);
        let pg = idx.and_then(|i| self.pgs.get(*i as usize)).and_then(|p| p.as_ref());
        let slots = &mut self.sp.slots;
        let Some(pg) = pg else {
            req.pinned.drain(..).for_each(|g| slots.cache.unpin(g));
            return true;
        };
        let mut wants = SmallVec::<[u32; 16]>::new();
        let mut all = true;
        for (b, from, to) in blocks_of(offset, len) {
            let Some(block) = pg.block(slots, ext.block(b)).filter(|b| b.slot != NO_SLOT) else {
                continue;
            };
            let pages = block.valid & !block.over_mask() & mask_of(from, to);
            if pages != 0 {
                all &= slots.need(block.slot, pages);
                wants.push(block.slot);
            }
        }
        let before = std::mem::take(&mut req.pinned);
        if !all {
            req.pinned = wants.into_iter().map(|s| slots.pin(s)).collect();
        }
        before.into_iter().for_each(|g| slots.cache.unpin(g));
        all
    }

    /// Checks have come: what waits for some is tried again.
    pub(crate) fn checks_are_here(&mut self) {
        for req in std::mem::take(&mut self.reads.unchecked) {
            self.reads.waiting.push_front(req);
        }
    }

    /// Committed content that will never be written here.
    fn refuse(&mut self, req: ReadReq) {
        req.pinned.iter().for_each(|g| self.sp.slots.cache.unpin(*g));
        if req.scrub {
            return self.scrubbed(0, false);
        }
        let (token, e) = (req.token, ReadError::Io(EIO));
        self.events.push(match req.want {
            Want::Range { .. } | Want::Map { .. } => StoreEvent::ReadDone { token, result: Err(e) },
            Want::Block(..) => StoreEvent::BlockDone { token, result: Err(e) },
        });
    }

    /// Pages of a part that are no longer what they were when the read was planned.
    fn changed(&self, pg: PgId, p: &Part, checks: &[u32]) -> u16 {
        let block =
            self.pg(pg).and_then(|g| g.block(&self.sp.slots, p.key)).filter(|b| b.slot == p.slot);
        let Some(b) = block else { return u16::MAX };
        let here = b.valid & !b.over_mask();
        // One that has left the memory may have been replaced before that.
        let same =
            (p.page..).zip(checks).filter(|(i, c)| self.sp.slots.check(p.slot, *i) == Some(**c));
        !(here & same.fold(0, |m, (i, _)| m | 1 << i))
    }

    fn block_head(&self, pg: PgId, key: BlockKey) -> Option<BlockCopy> {
        let pg = self.pg(pg)?;
        let (version, valid, dirty) = match pg.block(&self.sp.slots, key) {
            Some(b) => (b.newest(), b.content(), crate::pgs::dirty_of(pg, &b)),
            None => (*pg.tombs.get(&key)?, 0, 0xFFFF),
        };
        Some(BlockCopy {
            key,
            version,
            part: BlockCopy::WHOLE,
            valid,
            dirty,
            crcs: SmallVec::new(),
            data: Bytes::new(),
        })
    }

    fn content_bits(&self, pg: PgId, ext: ExtKey, offset: u32, len: u32) -> ReadData {
        let mut bits = vec![0u8; (len as usize / PAGE).div_ceil(8)];
        let mut at = 0usize;
        for (b, from, to) in blocks_of(offset, len) {
            let block = self.pg(pg).and_then(|p| p.block(&self.sp.slots, ext.block(b)));
            let content = block.map_or(0, |b| b.content());
            for page in from..to {
                if content >> page & 1 == 1 {
                    bits[at / 8] |= 1 << (at % 8);
                }
                at += 1;
            }
        }
        let mut data = ReadData::default();
        data.crcs.push(crc32c(&bits));
        data.segments.push(bits.into());
        data
    }

    /// Where pages `from..to` of a block come from.
    fn plan(&self, job: &mut Job, key: BlockKey, from: u32, to: u32, skip_holes: bool) {
        let block = self.pg(job.req.pg).and_then(|p| p.block(&self.sp.slots, key));
        let (d, checks) = (&mut job.data, &mut job.checks);
        let mut page = from;
        while page < to {
            if let Some(o) = block.and_then(|b| b.over_page(page)) {
                d.segments.push(o.data.clone());
                d.crcs.push(o.crc);
                page += 1;
                continue;
            }
            let over = block.map_or(0, |b| b.over_mask());
            let valid = block.filter(|b| b.slot != NO_SLOT).map_or(0, |b| b.valid & !over);
            let on_disk = valid >> page & 1 == 1;
            let first = page;
            while page < to && (valid >> page & 1 == 1) == on_disk && over >> page & 1 == 0 {
                page += 1;
            }
            let pages = page - first;
            match block.filter(|_| on_disk) {
                Some(b) => {
                    let (seg, crc_at) = (d.segments.len(), d.crcs.len());
                    let slot = b.slot;
                    job.parts.push(Part::new(key, slot, (first, pages), seg, crc_at));
                    d.segments.push(Bytes::new());
                    checks.resize(crc_at, 0);
                    checks.extend(
                        (first..page).map(|p| self.sp.slots.check(slot, p).unwrap_or(LOST)),
                    );
                    d.crcs.resize(checks.len(), 0);
                }
                None if !skip_holes => {
                    d.segments.push(self.zeroes.slice(..pages as usize * PAGE));
                    d.crcs.extend((0..pages).map(|_| ZERO_PAGE_CRC));
                }
                None => {}
            }
        }
    }

    fn issue_read(&mut self, job: u64, part: usize, ops: &mut Vec<DiskOp>) {
        let Some(p) = self.reads.jobs.get(&job).and_then(|j| j.parts.get(part)) else { return };
        let (page, pages) = p.next_read();
        let offset = self.sp.layout.slot_offset(p.slot) + u64::from(page) * PAGE as u64;
        let len = pages as usize * PAGE;
        self.sp.stats.read_pages += u64::from(pages);
        let id = self.ops.start(OpKind::Read(job, part));
        ops.push(DiskOp::Read { id, offset, len });
    }

    /// What came of the pages of a part. `None`: no such job.
    fn judge(&self, n: u64, part: usize, r: &Result<PageBuf, i32>) -> Option<Verdict> {
        let job = self.reads.jobs.get(&n)?;
        let p = job.parts.get(part)?;
        let want = &job.checks[p.crcs()];
        let buf: &[u8] = r.as_ref().map_or(&[], |b| b);
        let seal = self.sp.key.block(job.req.pg, p.key);
        let unreadable = p.unreadable;
        let mut v = Verdict { bad: unreadable, unreadable, stale: false, crcs: SmallVec::new() };
        for (i, (d, c)) in (p.page..).zip(buf.chunks_exact(PAGE).zip(want)) {
            let (crc, check) = seal.both(i, d);
            v.crcs.push(crc);
            if check != *c && !planted(Bug::CrcUnchecked) {
                v.bad |= 1 << i;
            }
        }
        let doubted = if job.req.again < REPLANS { v.bad } else { v.bad & !unreadable };
        v.stale = doubted != 0
            && !planted(Bug::DestageUnderReader)
            && doubted & self.changed(job.req.pg, p, want) != 0;
        Some(v)
    }

    pub(crate) fn read_done(&mut self, n: u64, part: usize, r: Result<PageBuf, i32>) {
        // Of a device that has failed nothing can be said page by page.
        let r = if self.failed.is_some() || !self.medium.has_refused() {
            r
        } else {
            let p = self.reads.jobs.get_mut(&n).and_then(|j| j.parts.get_mut(part));
            let Some(p) = p else { return };
            match p.take(r) {
                Some(r) => r,
                None => return self.reads.again.push((n, part)),
            }
        };
        let Some(Verdict { bad, unreadable, stale, crcs }) = self.judge(n, part, &r) else {
            return;
        };
        let Some(job) = self.reads.jobs.get_mut(&n) else { return };
        let Some(p) = job.parts.get_mut(part) else { return };
        job.stale |= stale;
        match r {
            Ok(buf) if buf.len() == p.pages as usize * PAGE => {
                let unlike = bad & !unreadable;
                if unlike != 0 && !job.stale && !p.retried {
                    p.retry();
                    self.reads.again.push((n, part));
                    return;
                }
                if bad != 0 && !job.stale {
                    self.sp.stats.crc_errors += u64::from(unlike.count_ones());
                    let base = p.key.offset();
                    let pages = (0..16u32).filter(|i| bad >> i & 1 == 1);
                    job.bad.extend(pages.map(|i| base + i * PAGE as u32));
                    // A bad place on a good device is mended from another copy, like content that does not match.
                    job.io = job.io.or((unreadable != 0).then_some(EIO));
                    let (pg, key) = (job.req.pg, p.key);
                    self.events.push(StoreEvent::Corruption { pg, key, pages: bad });
                }
                job.data.crcs[p.crcs()].copy_from_slice(&crcs);
                job.data.segments[p.seg] = buf.freeze();
            }
            Ok(_) => job.io = Some(EIO),
            Err(e) => job.io = Some(e),
        }
        let slot = p.slot;
        job.left -= 1;
        let all = job.left == 0;
        self.sp.alloc.read_ends(slot);
        self.reads.in_flight -= 1;
        if all {
            match self.reads.jobs.remove(&n) {
                Some(mut job) if job.stale => {
                    job.req.again = job.req.again.saturating_add(1);
                    self.reads.waiting.push_front(job.req);
                }
                Some(job) => self.finish_read(job),
                None => {}
            }
        }
    }

    fn finish_read(&mut self, job: Job) {
        if job.req.scrub {
            return self.scrubbed(job.bad.len(), job.io.is_some());
        }
        let token = job.req.token;
        let result = match (job.io, job.bad.is_empty()) {
            (_, false) => Err(ReadError::Corrupt { pages: job.bad }),
            (Some(e), true) => Err(ReadError::Io(e)),
            (None, true) => Ok(job.data),
        };
        let Some(mut head) = job.head else {
            return self.events.push(StoreEvent::ReadDone { token, result });
        };
        let result = result.map(|d| {
            let mut buf = PageBuf::new(d.crcs.len() * PAGE);
            let mut at = 0;
            for s in &d.segments {
                buf[at..at + s.len()].copy_from_slice(s);
                at += s.len();
            }
            (head.crcs, head.data) = (d.crcs, buf.freeze());
            Some(head)
        });
        self.events.push(StoreEvent::BlockDone { token, result });
    }
}

/// Runs of bits that are set: first, and one past the last.
fn runs_of(mask: u16) -> impl Iterator<Item = (u32, u32)> {
    let mut rest = u32::from(mask);
    std::iter::from_fn(move || {
        let from = rest.trailing_zeros();
        (rest != 0).then(|| {
            let to = from + (rest >> from).trailing_ones();
            rest &= !((1u32 << to) - 1);
            (from, to)
        })
    })
}

fn assert_range(offset: u32, len: u32) {
    assert!(
        (offset as usize).is_multiple_of(PAGE)
            && (len as usize).is_multiple_of(PAGE)
            && u64::from(offset) + u64::from(len) <= u64::from(quarry_base::EXTENT),
        "a read is page-aligned and inside one extent"
    );
}

/// Does a record touch a range of an extent?
pub(crate) fn touches(kind: &RecordKind, ext: ExtKey, offset: u32, len: u32) -> bool {
    let hit = |e: ExtKey, o: u32, l: u32| e == ext && o < offset + len && offset < o + l;
    match kind {
        RecordKind::Write { vtree, layer, extent, offset, data, .. } => {
            hit(ExtKey(*vtree, *layer, *extent), *offset, data.len() as u32)
        }
        RecordKind::Zero { vtree, layer, extent, offset, len } => {
            hit(ExtKey(*vtree, *layer, *extent), *offset, *len)
        }
        RecordKind::DropVtree { vtree } => *vtree == ext.0,
        RecordKind::EpochStart { .. } => false,
    }
}
