//! Opening: superblocks, the block table, the log; what was torn is cut, what is damaged is said.
//!
//! Walks the log from the superblock's tail. The first place where no valid batch follows is the
//! end, if nothing says that the log was synced beyond it; otherwise the log is corrupt. Records
//! are then replayed through the same code that runs live. All that was read is synced (a process
//! that was killed leaves a page cache behind), and then, before anything new is appended, the
//! superblock gets a higher incarnation and the end found, below which nothing is cut any more.

use crate::error::StoreError;
use crate::index::ExtKey;
use crate::layout::{Layout, GROUP_BYTES, LOG_START, SUPER_A, SUPER_B};
use crate::log_scan::{self, Found, LogImage};
use crate::medium::is_medium_error;
use crate::pieces::{Fetch, Pieces};
use crate::place::Unsettled;
use crate::planted::{planted, Bug};
use crate::seal::{BlockSeal, DeviceKey};
use crate::slots::{Damaged, SlotTable};
use crate::store::{OpKind, Store};
use crate::superblock::Superblock;
use crate::types::{DiskOp, DiskResult, RecordKind, StoreEvent, WriteSync};
use bytes::Bytes;
use quarry_base::{PageBuf, BLOCK, PAGE};
use std::collections::VecDeque;

/// Bytes read at once, and reads in flight.
const CHUNK: u64 = 1 << 20;
const DEPTH: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Super,
    Table,
    Log,
    /// Data of direct writes above the sync mark.
    Check,
    /// Parts of blocks of which nothing says whether they got to their place.
    Place,
    /// Data of uncommitted direct writes.
    Fill,
    /// What was read may so far be in a page cache only; the superblock must not say otherwise first.
    Sync,
    Write,
}

pub(crate) struct Recovery {
    cluster: Option<[u8; 16]>,
    phase: Phase,
    /// Reads to be issued.
    todo: VecDeque<Fetch>,
    in_flight: usize,
    /// Those that the medium refused.
    pieces: Pieces,
    started: bool,
    supers: [Option<Bytes>; 2],
    image: LogImage,
    found: Vec<Found>,
    /// Direct blocks to check or fill: see `plan_check` and `plan_fill`.
    blocks: Vec<Target>,
    unsettled: Vec<Unsettled>,
    end_pos: u64,
}

/// A direct block that recovery reads.
struct Target {
    /// Index of the batch found, or of the group.
    owner: usize,
    seq: quarry_base::Seq,
    /// First page inside the record's data.
    at: usize,
    seal: BlockSeal,
    block: log_scan::Direct,
}

impl Recovery {
    pub fn new(cluster: Option<[u8; 16]>) -> Recovery {
        Recovery {
            cluster,
            phase: Phase::Super,
            todo: VecDeque::from([Fetch::new(0, SUPER_A, PAGE), Fetch::new(1, SUPER_B, PAGE)]),
            in_flight: 0,
            pieces: Pieces::default(),
            started: false,
            supers: [None, None],
            image: LogImage::new(CHUNK),
            found: Vec::new(),
            blocks: Vec::new(),
            unsettled: Vec::new(),
            end_pos: 0,
        }
    }

    fn read_area(&mut self, from: u64, len: u64) {
        let n = len.div_ceil(CHUNK);
        self.todo.extend((0..n).map(|i| {
            let at = i * CHUNK;
            Fetch::new(i, from + at, (len - at).min(CHUNK) as usize)
        }));
    }
}

impl Store {
    pub(crate) fn poll_recovery(&mut self, ops: &mut Vec<DiskOp>) {
        loop {
            let Some(r) = self.recovery.as_mut() else { return };
            if self.failed.is_some() {
                return;
            }
            r.started = true;
            while r.in_flight < DEPTH {
                let Some(f) = r.todo.pop_front() else { break };
                r.in_flight += 1;
                let id = self.ops.start(OpKind::Recovery(f));
                ops.push(DiskOp::Read { id, offset: f.place(), len: f.len });
            }
            if r.in_flight > 0 {
                return;
            }
            if let Err(e) = self.next_phase(ops) {
                return self.open_failed(e);
            }
        }
    }

    pub(crate) fn open_failed(&mut self, e: StoreError) {
        self.failed = Some(e.clone());
        self.events.push(StoreEvent::OpenFailed(e));
    }

    pub(crate) fn recovery_done(&mut self, kind: OpKind, r: DiskResult) {
        let OpKind::Recovery(f) = kind else { return };
        if self.failed.is_some() {
            return;
        }
        let Some(rec) = self.recovery.as_mut() else { return };
        rec.in_flight -= 1;
        let result = match r {
            DiskResult::Read(Ok(buf)) => match rec.pieces.came(f, buf) {
                Some(buf) => self.recovery_read(f.tag, buf),
                None => Ok(()),
            },
            DiskResult::Read(Err(errno)) if is_medium_error(errno) => {
                let whole = rec.pieces.refused(f, errno, &mut rec.todo);
                self.medium.at_open = rec.pieces.unreadable();
                match whole {
                    Ok(Some(buf)) => self.recovery_read(f.tag, buf),
                    Ok(None) => Ok(()),
                    Err(e) => Err(e),
                }
            }
            DiskResult::Done(Ok(())) if rec.phase == Phase::Write => {
                self.recovery = None;
                self.log_found();
                self.events.push(StoreEvent::Opened);
                Ok(())
            }
            DiskResult::Done(Ok(())) if rec.phase == Phase::Sync => Ok(()),
            DiskResult::Read(Err(errno)) => Err(StoreError::Io { what: "a read at open", errno }),
            DiskResult::Done(Err(errno)) => Err(StoreError::Io { what: "a write at open", errno }),
            DiskResult::Done(Ok(())) => Err(StoreError::Inconsistent("a read without content")),
        };
        if let Err(e) = result {
            self.open_failed(e);
        }
    }

    fn recovery_read(&mut self, tag: u64, buf: PageBuf) -> Result<(), StoreError> {
        let Some(r) = self.recovery.as_mut() else { return Ok(()) };
        match r.phase {
            Phase::Super => {
                if let Some(s) = r.supers.get_mut(tag as usize) {
                    *s = Some(buf.freeze());
                }
            }
            Phase::Table => {
                let ckpt = self.sb.map_or(0, |s| s.ckpt_gen);
                let first = tag * (CHUNK / GROUP_BYTES);
                for (i, b) in buf.chunks(GROUP_BYTES as usize).enumerate() {
                    let page = first + i as u64;
                    match self.sp.slots.load(page, b, ckpt) {
                        Ok(Some(entries)) => self.adopt(page, &entries),
                        Ok(None) => {}
                        Err(Damaged) => return Err(StoreError::TableCorrupt { page }),
                    }
                }
            }
            Phase::Log => r.image.put(tag as usize, buf.freeze()),
            Phase::Check => return self.checked(tag as usize, &buf),
            Phase::Place => {
                if let Some(u) = r.unsettled.get(tag as usize).copied() {
                    let at = self.sp.layout.slot_offset(u.slot) + u64::from(u.page) * PAGE as u64;
                    let refused = r.pieces.within(at, at + PAGE as u64).next().is_some();
                    self.settle_unsettled(u, (!refused).then_some(&buf[..]));
                }
            }
            Phase::Fill => return self.filled(tag as usize, &buf),
            Phase::Sync | Phase::Write => {}
        }
        Ok(())
    }

    fn next_phase(&mut self, ops: &mut Vec<DiskOp>) -> Result<(), StoreError> {
        let Some(r) = self.recovery.as_mut() else { return Ok(()) };
        match r.phase {
            Phase::Super => {
                let empty = Bytes::new();
                let [a, b] = &r.supers;
                let (a, b) = (a.as_ref().unwrap_or(&empty), b.as_ref().unwrap_or(&empty));
                let sb = Superblock::newest(a, b).map_err(|e| match e {
                    StoreError::SuperblockCorrupt => r.pieces.cause().unwrap_or(e),
                    e => e,
                })?;
                if r.cluster.is_some_and(|c| c != sb.ident.cluster) {
                    return Err(StoreError::OtherCluster);
                }
                let l = Layout::new(sb.device_bytes, sb.log_bytes)?;
                l.check(&self.cfg)?;
                if l.blocks != sb.blocks || self.cfg.device_bytes < sb.device_bytes {
                    return Err(StoreError::Config(
                        "the device is smaller than when it was formatted",
                    ));
                }
                r.phase = Phase::Table;
                r.read_area(l.table_start, l.groups * GROUP_BYTES);
                self.set_layout(l, sb);
            }
            Phase::Table => {
                if self.sb.is_some_and(|s| s.table_digest != self.sp.slots.digest) {
                    return Err(StoreError::Inconsistent(
                        "a table page is older than the checkpoint",
                    ));
                }
                r.phase = Phase::Log;
                r.read_area(LOG_START, self.sp.layout.log_bytes);
            }
            Phase::Log => {
                self.walk_log()?;
                self.plan_check();
            }
            Phase::Check => {
                self.replay_all()?;
                self.plan_place();
            }
            Phase::Place => {
                self.forget_unsettled();
                self.plan_fill();
            }
            Phase::Fill if self.cfg.read_only => {
                self.recovery = None;
                self.events.push(StoreEvent::Opened);
            }
            Phase::Fill => {
                r.phase = Phase::Sync;
                r.in_flight = 1;
                ops.push(DiskOp::Sync { id: self.ops.start(OpKind::Recovery(Fetch::default())) });
            }
            Phase::Sync => {
                let id = self.ops.start(OpKind::Recovery(Fetch::default()));
                let Some(r) = self.recovery.as_mut() else { return Ok(()) };
                r.phase = Phase::Write;
                r.in_flight = 1;
                let op = self.raise_incarnation(id);
                ops.extend(op);
            }
            Phase::Write => {}
        }
        Ok(())
    }

    fn set_layout(&mut self, l: Layout, sb: Superblock) {
        self.sp.layout = l;
        self.sp.slots = SlotTable::new(&l, self.cfg.check_cache_bytes);
        self.sp.alloc = crate::alloc::Alloc::new(l.blocks as u32);
        self.sp.batches = crate::space::Batches::new(sb.tail_batch);
        self.ckpt.start_at(sb.ckpt_gen);
        self.log.tail_pos = sb.tail_pos;
        self.log.format_id = sb.format_id();
        self.sp.key = DeviceKey::of(sb.format_id());
        self.scrub.slot = u32::try_from(sb.scrub_slot).unwrap_or(0);
        self.scrub.passes = sb.scrub_passes;
        self.scrub.saved = (self.scrub.slot, self.scrub.passes);
        self.sb = Some(sb);
    }

    fn walk_log(&mut self) -> Result<(), StoreError> {
        let (Some(r), Some(sb)) = (self.recovery.as_mut(), self.sb) else { return Ok(()) };
        let end = LOG_START + self.sp.layout.log_bytes;
        r.image.lacks(r.pieces.within(LOG_START, end).map(|at| at - LOG_START));
        let walk = log_scan::walk(&r.image, &self.sp.layout, &sb);
        if walk.later {
            return Err(StoreError::Inconsistent(
                "the log goes on from a newer superblock than is here",
            ));
        }
        if walk.end < walk.synced && !planted(Bug::CorruptionCalledTail) {
            let what = "no valid batch there";
            return Err(StoreError::LogCorrupt { pos: walk.end, synced: walk.synced, what });
        }
        if walk.hidden {
            let e = StoreError::Inconsistent("the log's end cannot be read");
            return Err(r.pieces.cause().unwrap_or(e));
        }
        self.log.synced_pos = walk.synced;
        r.found = walk.found;
        Ok(())
    }

    /// Direct writes above the sync mark: their data may not have made it.
    fn plan_check(&mut self) {
        let Some(r) = self.recovery.as_mut() else { return };
        r.phase = Phase::Check;
        for (i, f) in r.found.iter().enumerate() {
            if f.header.pos < self.log.synced_pos || planted(Bug::DirectUnchecked) {
                continue;
            }
            for raw in f.records.iter().filter(|r| !r.again) {
                for d in log_scan::direct_blocks(raw) {
                    let tag = r.blocks.len() as u64;
                    let at = self.sp.layout.slot_offset(d.slot);
                    r.todo.push_back(Fetch::new(tag, at, BLOCK as usize));
                    let seal = self.sp.key.block(raw.pg, d.key);
                    r.blocks.push(Target { owner: i, seq: raw.version.seq, at: 0, seal, block: d });
                }
            }
        }
    }

    fn checked(&mut self, tag: usize, buf: &[u8]) -> Result<(), StoreError> {
        let Some(r) = self.recovery.as_mut() else { return Ok(()) };
        let Some(t) = r.blocks.get(tag) else { return Ok(()) };
        let at = self.sp.layout.slot_offset(t.block.slot);
        let mut lacking = r.pieces.within(at, at + u64::from(BLOCK));
        if lacking.any(|p| t.block.pages >> ((p - at) / PAGE as u64) & 1 == 1) {
            // Torn or gone: it may have been acknowledged.
            let e = StoreError::Inconsistent("a block of the log's end cannot be read");
            return Err(r.pieces.cause().unwrap_or(e));
        }
        if block_crcs(t, buf).is_none() {
            // The batch did not get there whole: the log ends before it.
            if let Some(f) = r.found.get_mut(t.owner) {
                f.broken = true;
            }
        }
        Ok(())
    }

    fn replay_all(&mut self) -> Result<(), StoreError> {
        let Some(mut r) = self.recovery.take() else { return Ok(()) };
        if let Some(n) = r.found.iter().position(|f| f.broken) {
            r.found.truncate(n);
        }
        r.end_pos = r.found.last().map_or(self.log.tail_pos, |f| f.header.pos + f.header.len);
        let out = self.replay(&r.image, &r.found);
        r.image = LogImage::new(CHUNK);
        r.found = Vec::new();
        r.blocks = Vec::new();
        self.log.head = r.end_pos;
        self.recovery = Some(r);
        out
    }

    /// Parts that are in their place, or not: each is looked at.
    fn plan_place(&mut self) {
        let list = self.unsettled();
        let Some(r) = self.recovery.as_mut() else { return };
        r.phase = Phase::Place;
        for (tag, u) in (0..).zip(&list) {
            let at = self.sp.layout.slot_offset(u.slot) + u64::from(u.page) * PAGE as u64;
            r.todo.push_back(Fetch::new(tag, at, PAGE));
        }
        r.unsettled = list;
    }

    /// Direct data of records that stay in the tail must be in memory.
    fn plan_fill(&mut self) {
        let Some(r) = self.recovery.as_mut() else { return };
        r.phase = Phase::Fill;
        for (idx, p) in self.pgs.iter().enumerate().filter_map(|(i, p)| Some((i, p.as_ref()?))) {
            for t in p.tail.iter().filter(|t| !t.slots.is_empty()) {
                let RecordKind::Write { vtree, layer, extent, offset, .. } = &t.rec.kind else {
                    continue;
                };
                let ext = ExtKey(*vtree, *layer, *extent);
                let blocks = log_scan::direct_of(&t.slots, ext, *offset, &t.checks);
                for (at, d) in blocks {
                    let tag = r.blocks.len() as u64;
                    let place = self.sp.layout.slot_offset(d.slot);
                    r.todo.push_back(Fetch::new(tag, place, BLOCK as usize));
                    let seal = self.sp.key.block(p.id, d.key);
                    let seq = t.rec.version.seq;
                    r.blocks.push(Target { owner: idx, seq, at, seal, block: d });
                }
            }
        }
    }

    fn filled(&mut self, tag: usize, buf: &[u8]) -> Result<(), StoreError> {
        let Some(r) = self.recovery.as_mut() else { return Ok(()) };
        let Some(t) = r.blocks.get(tag) else { return Ok(()) };
        let Some(found) = block_crcs(t, buf) else {
            let (pos, synced) = (r.end_pos, self.log.synced_pos);
            let what = "an uncommitted block does not match its record";
            return Err(StoreError::LogCorrupt { pos, synced, what });
        };
        let pg = self.pgs.get_mut(t.owner).and_then(|p| p.as_mut());
        let Some(tail) = pg.and_then(|p| p.tail_at(t.seq)) else { return Ok(()) };
        if let RecordKind::Write { data, crcs, .. } = &mut tail.rec.kind {
            // Rare and small: one copy a block.
            let mut whole = PageBuf::copy_of(data);
            let at = t.at * PAGE;
            whole[at..at + buf.len()].copy_from_slice(buf);
            crcs[t.at..t.at + found.len()].copy_from_slice(&found);
            *data = whole.freeze();
        }
        Ok(())
    }

    /// The superblock of the new incarnation; everything read before it is synced with it.
    fn raise_incarnation(&mut self, id: crate::types::OpId) -> Option<DiskOp> {
        let old = self.sb?;
        let next = self.sp.batches.next();
        let sb = Superblock {
            generation: old.generation + 1,
            incarnation: old.incarnation + 1,
            inc_pos: self.log.head,
            inc_batch: next,
            ..old
        };
        self.sb = Some(sb);
        self.log.incarnation = sb.incarnation;
        self.log.written_no = next - 1;
        self.log.synced_no = next - 1;
        self.log.mark_no = next - 1;
        self.log.synced_pos = self.log.head;
        Some(DiskOp::Write {
            id,
            offset: sb.offset(),
            data: vec![sb.encode()],
            sync: WriteSync::All,
        })
    }
}

/// The CRCs of a direct block's pages, if they are what its record says.
fn block_crcs(t: &Target, buf: &[u8]) -> Option<Vec<u32>> {
    if buf.len() != BLOCK as usize {
        return None;
    }
    let mut checks = t.block.checks.iter();
    let pages = (0..16u32).filter(|p| t.block.pages >> p & 1 == 1);
    pages
        .map(|p| {
            let at = p as usize * PAGE;
            let (crc, check) = t.seal.both(p, &buf[at..at + PAGE]);
            (checks.next() == Some(&check)).then_some(crc)
        })
        .collect()
}
