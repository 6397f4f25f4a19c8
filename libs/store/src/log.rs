//! The log writer: group commit, syncs, and what happens when a batch is written.
//!
//! Everything appended waits in one queue; a turn of `poll` puts it into batches. Several batches
//! are written at once; "written" and "synced" each advance as a prefix of the log. A lone batch is
//! one write linked to its sync; otherwise batches share a sync. A failed write or sync is final.

use crate::apply;
use crate::config::AckMode;
use crate::index::Done;
use crate::layout::NO_SLOT;
use crate::log_format::{BatchHeader, Kind, RawRecord, HEADER_BYTES};
use crate::space::LiveBatch;
use crate::store::{OpKind, Store};
use crate::types::{AppendId, BlockCopy, BlockKey, DiskOp, Record, RecordKind, StoreEvent};
use bytes::Bytes;
use quarry_base::{crc32c, PageBuf, PgId, Seq, Version, BLOCK, PAGE};
use smallvec::SmallVec;
use std::collections::VecDeque;

/// Records in one batch at most.
const MAX_BATCH_RECORDS: usize = 1024;
/// Bytes written straight to blocks with one batch at most, one record excepted.
const MAX_BATCH_DIRECT: usize = 4 << 20;

pub(crate) enum Body {
    Record { rec: Record, slots: SmallVec<[u32; 16]>, jump: bool },
    Copy { copy: Box<BlockCopy>, slot: u32, repair: bool },
    Drop { list: Vec<(BlockKey, Version)>, blob: Bytes },
    Blob { kind: Kind, data: Bytes },
    Bare(Kind),
}

pub(crate) struct Entry {
    pub id: AppendId,
    pub lsn: u64,
    pub pg: u32,
    pub pgid: PgId,
    pub commit: Seq,
    pub body: Body,
}

/// Direct writes of a batch: where, what.
type DirectWrites = SmallVec<[(u64, Bytes); 4]>;

impl Entry {
    /// Payload bytes in the log, CRCs and slots in the descriptor.
    fn sizes(&self) -> (usize, usize, usize) {
        let up = |n: usize| n.next_multiple_of(PAGE);
        match &self.body {
            Body::Record {
                rec: Record { kind: RecordKind::Write { crcs, data, .. }, .. },
                slots,
                ..
            } => {
                let direct = slots.iter().filter(|s| **s != NO_SLOT).count() * BLOCK as usize;
                (data.len() - direct, crcs.len(), slots.len())
            }
            Body::Record { .. } | Body::Bare(_) => (0, 0, 0),
            Body::Copy { copy, slot: NO_SLOT, .. } => (copy.data.len(), copy.crcs.len(), 0),
            Body::Copy { copy, .. } => (0, copy.crcs.len(), 1),
            Body::Drop { blob: b, .. } | Body::Blob { data: b, .. } => {
                (up(b.len()), up(b.len()) / PAGE, 0)
            }
        }
    }

    fn direct_bytes(&self) -> usize {
        match &self.body {
            Body::Record { slots, .. } => slots.len() * BLOCK as usize,
            Body::Copy { copy, slot, .. } if *slot != NO_SLOT => copy.data.len(),
            _ => 0,
        }
    }

    /// Log bytes it takes at most, in a batch of its own.
    pub fn cost(&self) -> u64 {
        let (payload, crcs, slots) = self.sizes();
        let desc = HEADER_BYTES + RawRecord::size(crcs, slots);
        (payload + desc.next_multiple_of(PAGE)) as u64
    }
}

/// A batch handed to the device and not yet synced.
pub(crate) struct Flight {
    pub no: u64,
    end: u64,
    last_id: AppendId,
    last_lsn: u64,
    done: Vec<Done>,
    recs: Vec<(u32, Version)>,
    /// Commit points that its records carry.
    commits: SmallVec<[(u32, Seq); 4]>,
    /// Writes outstanding.
    left: u32,
    /// One operation writes and syncs it.
    linked: bool,
    /// Batch up to which its header says that all is synced.
    carried: u64,
}

impl Flight {
    /// Slots of copies that are not in the index yet.
    pub fn copy_slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.done.iter().filter_map(|d| match d {
            Done::Copy { slot, .. } if *slot != NO_SLOT => Some(*slot),
            _ => None,
        })
    }
}

#[derive(Default)]
pub(crate) struct Log {
    pub queue: VecDeque<Entry>,
    pub queued_cost: u64,
    pub head: u64,
    /// Where the durable superblock says that the log begins.
    pub tail_pos: u64,
    pub last_crc: u32,
    pub incarnation: u64,
    pub format_id: u64,
    pub flights: VecDeque<Flight>,
    pub unwritten: usize,
    pub last_id: AppendId,
    pub last_lsn: u64,
    pub written_no: u64,
    pub written_id: AppendId,
    pub written_lsn: u64,
    pub synced_no: u64,
    pub synced_id: AppendId,
    pub synced_pos: u64,
    /// Highest batch of which a synced batch says that it is synced: recovery never cuts below.
    pub mark_no: u64,
    /// The sync under way covers batches up to here.
    pub sync: Option<u64>,
    /// Someone waits for a sync of what is written.
    pub want_sync: bool,
    pub sync_asked: AppendId,
    pub refused: bool,
    pub stable_told: AppendId,
    scratch: Vec<u8>,
}

impl Store {
    pub(crate) fn push(&mut self, pg: u32, pgid: PgId, body: Body, counted: bool) -> AppendId {
        let log = &mut self.log;
        log.last_lsn += 1;
        log.last_id += u64::from(counted);
        let commit =
            self.pgs.get(pg as usize).and_then(|p| p.as_ref()).map_or(Seq(0), |p| p.commit);
        let e = Entry { id: log.last_id, lsn: log.last_lsn, pg, pgid, commit, body };
        log.queued_cost += e.cost();
        log.queue.push_back(e);
        self.sp.queued += 1;
        if let Some(p) = self.pgs.get_mut(pg as usize).and_then(|p| p.as_mut()) {
            p.logged_commit = p.logged_commit.max(commit);
        }
        self.log.last_id
    }

    /// Bytes between the log's tail and its head, and those queued.
    pub(crate) fn log_used(&self) -> u64 {
        self.log.head - self.log.tail_pos + self.log.queued_cost
    }

    /// One turn of the log: build batches, sync what is written, report.
    pub(crate) fn poll_log(&mut self, ops: &mut Vec<DiskOp>) {
        if self.failed.is_some() {
            return;
        }
        while !self.log.queue.is_empty()
            && self.log.unwritten < self.cfg.max_batches_in_flight
            && self.build_batch(ops)
        {}
        let due = match self.cfg.ack {
            AckMode::Durable => self.log.written_no > self.log.synced_no,
            AckMode::Cached => self.log.want_sync && self.log.written_no > self.log.synced_no,
        };
        if due && self.log.sync.is_none() && !self.linked_in_flight() {
            self.issue_sync(ops);
        }
        if self.log.written_no == self.log.synced_no && self.log.queue.is_empty() {
            self.log.want_sync = false;
        }
    }

    fn linked_in_flight(&self) -> bool {
        self.log.flights.iter().any(|f| f.linked && f.left > 0)
    }

    pub(crate) fn issue_sync(&mut self, ops: &mut Vec<DiskOp>) {
        assert!(self.log.sync.is_none());
        self.log.sync = Some(self.log.written_no);
        let id = self.ops.start(OpKind::Sync);
        self.sp.stats.syncs += 1;
        ops.push(DiskOp::Sync { id });
    }

    /// Takes entries from the queue for one batch: how many, payload and descriptor bytes.
    fn choose(&self) -> (usize, usize, usize) {
        let (mut n, mut payload, mut desc, mut direct) = (0, 0, HEADER_BYTES, 0);
        for e in self.log.queue.iter().take(MAX_BATCH_RECORDS) {
            let (p, crcs, slots) = e.sizes();
            let d = e.direct_bytes();
            if n > 0 && (payload + p > self.cfg.max_batch_bytes || direct + d > MAX_BATCH_DIRECT) {
                break;
            }
            n += 1;
            payload += p;
            direct += d;
            desc += RawRecord::size(crcs, slots);
        }
        (n, payload, desc)
    }

    fn build_batch(&mut self, ops: &mut Vec<DiskOp>) -> bool {
        let (n, payload, desc_bytes) = self.choose();
        let desc_len = desc_bytes.next_multiple_of(PAGE);
        let len = (desc_len + payload) as u64;
        let pos = self.sp.layout.log_place(self.log.head, len);
        if pos + len - self.log.tail_pos > self.sp.layout.log_bytes {
            return false;
        }
        let no = self.sp.batches.next();
        let entries: Vec<Entry> = self.log.queue.drain(..n).collect();
        self.sp.queued -= n as u64;
        let mut buf = PageBuf::new(len as usize);
        let mut desc = std::mem::take(&mut self.log.scratch);
        desc.clear();
        desc.resize(HEADER_BYTES, 0);
        let mut page = desc_len / PAGE;
        let mut starts = Vec::with_capacity(n);
        for e in &entries {
            self.log.queued_cost -= e.cost();
            let mut raw = self.raw_record(e, pos);
            let from = page;
            page = put_payload(e, &mut raw, &mut buf, page);
            (raw.payload_page, raw.payload_pages) = (from as u32, (page - from) as u32);
            raw.encode(&mut desc);
            starts.push(from);
        }
        assert!(desc.len() == desc_bytes && page * PAGE == len as usize, "batch sizes add up");
        buf[..desc.len()].copy_from_slice(&desc);
        buf[desc.len()..desc_len].fill(0);
        self.log.scratch = desc;
        let header = BatchHeader {
            format_id: self.log.format_id,
            incarnation: self.log.incarnation,
            batch: no,
            pos,
            len,
            synced_upto: self.log.synced_pos,
            prev_crc: self.log.last_crc,
            records: n as u32,
            desc_bytes: desc_bytes as u32,
        };
        let crc = header.seal(&mut buf[..desc_len]);
        let live = LiveBatch { pos, prev_crc: self.log.last_crc, pins: 0 };
        self.sp.batches.push(live);
        self.log.last_crc = crc;
        self.log.head = pos + len;
        let lone = self.log.unwritten == 0
            && self.log.sync.is_none()
            && self.cfg.ack == AckMode::Durable
            && self.log.written_no == self.log.synced_no;
        let data = buf.freeze();
        let mut direct = DirectWrites::new();
        let mut flight = Flight {
            no,
            end: pos + len,
            last_id: entries.last().map_or(0, |e| e.id),
            last_lsn: entries.last().map_or(0, |e| e.lsn),
            done: Vec::with_capacity(n),
            recs: Vec::new(),
            commits: SmallVec::new(),
            left: 1,
            linked: false,
            carried: self.log.synced_no,
        };
        for (e, from) in entries.into_iter().zip(starts) {
            self.queue_direct(&e, &mut direct);
            match flight.commits.last_mut().filter(|c| c.0 == e.pg) {
                Some(c) => c.1 = e.commit,
                None => flight.commits.push((e.pg, e.commit)),
            }
            let done = self.entry_built(e, no, data.slice(from * PAGE..));
            flight.done.push(done);
        }
        flight.linked = lone && direct.is_empty();
        flight.left += direct.len() as u32;
        for (offset, data) in direct {
            let id = self.ops.start(OpKind::Log(no));
            ops.push(DiskOp::Write { id, offset, data: vec![data], sync: false });
        }
        let id = self.ops.start(OpKind::Log(no));
        let offset = self.sp.layout.log_offset(pos);
        ops.push(DiskOp::Write { id, offset, data: vec![data], sync: flight.linked });
        self.sp.stats.syncs += u64::from(flight.linked);
        self.sp.stats.batches += 1;
        self.sp.stats.batch_records += n as u64;
        self.log.unwritten += 1;
        self.log.flights.push_back(flight);
        true
    }

    fn raw_record(&mut self, e: &Entry, pos: u64) -> RawRecord {
        let kind = match &e.body {
            Body::Record { rec, .. } => match rec.kind {
                RecordKind::Write { .. } => Kind::Write,
                RecordKind::Zero { .. } => Kind::Zero,
                RecordKind::EpochStart { .. } => Kind::EpochStart,
                RecordKind::DropVtree { .. } => Kind::DropVtree,
            },
            Body::Copy { repair: true, .. } => Kind::Repair,
            Body::Copy { .. } => Kind::Copy,
            Body::Drop { .. } => Kind::DropBlocks,
            Body::Blob { kind, .. } | Body::Bare(kind) => *kind,
        };
        let mut raw = RawRecord::new(kind, e.pgid);
        raw.commit = e.commit;
        if let Some(p) = self.pgs.get_mut(e.pg as usize).and_then(|p| p.as_mut()) {
            raw.prev_pos = std::mem::replace(&mut p.prev_pos, pos);
        }
        match &e.body {
            Body::Record { rec, slots, jump } => {
                (raw.version, raw.origin, raw.slots) = (rec.version, rec.origin, slots.clone());
                raw.jump = *jump;
                match &rec.kind {
                    RecordKind::Write { vtree, layer, extent, offset, crcs, data } => {
                        (raw.vtree, raw.layer, raw.extent) = (*vtree, *layer, *extent);
                        (raw.offset, raw.len) = (*offset, data.len() as u32);
                        raw.crcs = SmallVec::from_slice(crcs);
                    }
                    RecordKind::Zero { vtree, layer, extent, offset, len } => {
                        (raw.vtree, raw.layer, raw.extent) = (*vtree, *layer, *extent);
                        (raw.offset, raw.len) = (*offset, *len);
                    }
                    RecordKind::EpochStart { base } => raw.aux = base.0,
                    RecordKind::DropVtree { vtree } => raw.vtree = *vtree,
                }
            }
            Body::Copy { copy, slot, .. } => {
                let k = copy.key;
                raw.version = copy.version;
                (raw.vtree, raw.layer, raw.extent) = (k.vtree, k.layer, k.extent);
                (raw.offset, raw.len) = (k.offset(), copy.data.len() as u32);
                raw.aux = u64::from(copy.valid) | u64::from(copy.dirty) << 16;
                raw.crcs = SmallVec::from_slice(&copy.crcs);
                if *slot != NO_SLOT {
                    raw.slots.push(*slot);
                }
            }
            Body::Drop { blob: b, .. } | Body::Blob { data: b, .. } => raw.aux = b.len() as u64,
            Body::Bare(_) => {}
        }
        raw
    }

    /// Writes that go straight to blocks; neighbours in one.
    fn queue_direct(&self, e: &Entry, out: &mut DirectWrites) {
        match &e.body {
            Body::Record {
                rec: Record { kind: RecordKind::Write { offset, data, .. }, .. },
                slots,
                ..
            } => {
                let first = (offset.next_multiple_of(BLOCK) - offset) as usize;
                let mut i = 0;
                while i < slots.len() {
                    let mut n = 1;
                    while slots[i] != NO_SLOT
                        && i + n < slots.len()
                        && slots[i + n] == slots[i].wrapping_add(n as u32)
                    {
                        n += 1;
                    }
                    if slots[i] != NO_SLOT {
                        let at = first + i * BLOCK as usize;
                        let data = data.slice(at..at + n * BLOCK as usize);
                        out.push((self.sp.layout.slot_offset(slots[i]), data));
                    }
                    i += n;
                }
            }
            Body::Copy { copy, slot, .. } if *slot != NO_SLOT => {
                let base = self.sp.layout.slot_offset(*slot);
                let (mut page, mut at) = (0u32, 0usize);
                while page < 16 {
                    let run = (!(u32::from(copy.valid) >> page)).trailing_zeros().min(16 - page);
                    if run > 0 {
                        let len = run as usize * PAGE;
                        let offset = base + u64::from(page) * PAGE as u64;
                        out.push((offset, copy.data.slice(at..at + len)));
                        at += len;
                    }
                    page += run.max(1);
                }
            }
            _ => {}
        }
    }

    /// The entry is in batch `no`: the tail and the overlay-to-be share the batch's buffer.
    fn entry_built(&mut self, e: Entry, no: u64, payload: Bytes) -> Done {
        let Some(pg) = self.pgs.get_mut(e.pg as usize).and_then(|p| p.as_mut()) else {
            // The group was dropped since; the slot of a copy never got into a block.
            if let Body::Copy { slot, .. } = e.body {
                self.sp.free_slot(slot);
            }
            return Done::Nothing;
        };
        match e.body {
            Body::Record { rec, slots, .. } => {
                let version = rec.version;
                if let Some(t) = pg.tail_at(version.seq) {
                    if t.rec.version == version && t.slots == slots {
                        if let RecordKind::Write { data, .. } = &mut t.rec.kind {
                            if slots.is_empty() {
                                *data = payload.slice(..data.len());
                            }
                        }
                        let old = std::mem::replace(&mut t.batch, no);
                        self.sp.batches.pin(no);
                        if old != 0 {
                            self.sp.batches.unpin(old);
                        }
                    }
                }
                Done::Rec { pg: e.pg, version }
            }
            Body::Copy { mut copy, slot, repair } => {
                if slot == NO_SLOT {
                    copy.data = payload.slice(..copy.data.len());
                }
                Done::Copy { pg: e.pg, copy, slot, repair }
            }
            Body::Drop { list, .. } => Done::Drop { pg: e.pg, list },
            Body::Blob { kind: Kind::PgCheckpoint, .. } => {
                pg.cp_batch = no;
                Done::Nothing
            }
            Body::Blob { .. } | Body::Bare(_) => Done::Nothing,
        }
    }

    /// A write of batch `no` has ended well.
    pub(crate) fn log_write_done(&mut self, no: u64) {
        let Some(first) = self.log.flights.front().map(|f| f.no) else { return };
        let Some(f) = self.log.flights.get_mut((no - first) as usize) else { return };
        f.left -= 1;
        if f.left > 0 {
            return;
        }
        self.log.unwritten -= 1;
        let linked = f.linked;
        self.advance_written();
        if linked {
            assert!(self.log.written_no >= no, "a linked batch is alone in flight");
            self.synced(no);
        }
    }

    fn advance_written(&mut self) {
        let Some(first) = self.log.flights.front().map(|f| f.no) else { return };
        loop {
            let i = (self.log.written_no + 1 - first) as usize;
            let Some(f) = self.log.flights.get_mut(i).filter(|f| f.left == 0) else { return };
            let (no, done) = (f.no, std::mem::take(&mut f.done));
            let (id, lsn) = (f.last_id, f.last_lsn);
            (self.log.written_no, self.log.written_id, self.log.written_lsn) = (no, id, lsn);
            let mut recs = Vec::with_capacity(done.len());
            for d in done {
                if let Done::Rec { pg, version } = d {
                    recs.push((pg, version));
                }
                self.entry_written(d, no);
            }
            match self.cfg.ack {
                AckMode::Cached => self.note_stable(&recs),
                AckMode::Durable => {
                    if let Some(f) = self.log.flights.get_mut(i) {
                        f.recs = recs;
                    }
                }
            }
        }
    }

    fn entry_written(&mut self, d: Done, no: u64) {
        let (Done::Rec { pg: idx, .. } | Done::Copy { pg: idx, .. } | Done::Drop { pg: idx, .. }) =
            &d
        else {
            return;
        };
        let idx = *idx;
        let Some(pg) = self.pgs.get_mut(idx as usize).and_then(|p| p.as_mut()) else {
            // The group was dropped while this was on its way; its slot was never in a block.
            if let Done::Copy { slot, .. } = d {
                self.sp.free_slot(slot);
            }
            return;
        };
        if !matches!(d, Done::Rec { .. }) {
            pg.cp_dirty = true;
        }
        match d {
            Done::Copy { copy, slot, repair: false, .. } => {
                apply::copy(pg, idx, &mut self.sp, &copy, slot, no)
            }
            Done::Copy { copy, .. } => apply::repair(pg, idx, &mut self.sp, &copy, no),
            Done::Drop { list, .. } => apply::drop_list(pg, &mut self.sp, &list),
            Done::Rec { .. } | Done::Nothing => {}
        }
        self.try_apply(idx);
    }

    /// Applies what is committed and written.
    pub(crate) fn try_apply(&mut self, idx: u32) {
        let Some(pg) = self.pgs.get_mut(idx as usize).and_then(|p| p.as_mut()) else { return };
        let written = self.log.written_no;
        let mut any = false;
        while let Some(t) = pg.tail.front() {
            if t.rec.version.seq > pg.commit || t.batch == 0 || t.batch > written {
                break;
            }
            let Some(t) = pg.tail.pop_front() else { break };
            let o = t.rec.origin;
            if pg.tail_ids.get(&(o.instance, o.id)) == Some(&t.rec.version.seq) {
                pg.tail_ids.remove(&(o.instance, o.id));
            }
            apply::record(pg, idx, &mut self.sp, &t.rec, &t.slots, t.batch);
            self.sp.batches.unpin(t.batch);
            pg.applied = t.rec.version;
            pg.cp_dirty = true;
            any = true;
        }
        if any {
            self.unpark();
        }
    }

    fn note_stable(&mut self, recs: &[(u32, Version)]) {
        for (idx, v) in recs {
            let Some(pg) = self.pgs.get_mut(*idx as usize).and_then(|p| p.as_mut()) else {
                continue;
            };
            if pg.holds(*v) && *v > pg.stable {
                pg.stable = *v;
            }
        }
    }

    /// Everything up to batch `no` is synced.
    pub(crate) fn synced(&mut self, no: u64) {
        while let Some(f) = self.log.flights.front().filter(|f| f.no <= no && f.left == 0) {
            self.log.synced_no = f.no;
            self.log.synced_id = f.last_id;
            self.log.synced_pos = f.end;
            self.log.mark_no = self.log.mark_no.max(f.carried);
            let Some(f) = self.log.flights.pop_front() else { break };
            self.note_stable(&f.recs);
            for (idx, commit) in &f.commits {
                if let Some(p) = self.pgs.get_mut(*idx as usize).and_then(|p| p.as_mut()) {
                    p.durable_commit = p.durable_commit.max(*commit);
                }
            }
        }
    }

    /// Tells what became stable since the last time.
    pub(crate) fn report_stable(&mut self, events: &mut Vec<StoreEvent>) {
        let upto = match self.cfg.ack {
            AckMode::Durable => self.log.synced_id,
            AckMode::Cached => self.log.written_id,
        };
        if upto > self.log.stable_told {
            self.log.stable_told = upto;
            events.push(StoreEvent::Stable { upto });
        }
        if self.log.sync_asked > 0 && self.log.synced_id >= self.log.sync_asked {
            self.log.sync_asked = 0;
            events.push(StoreEvent::Synced { upto: self.log.synced_id });
        }
    }
}

/// Copies an entry's payload into the batch and notes CRCs; returns the page after it.
fn put_payload(e: &Entry, raw: &mut RawRecord, buf: &mut PageBuf, mut page: usize) -> usize {
    let mut put = |data: &[u8]| {
        let at = page * PAGE;
        buf[at..at + data.len()].copy_from_slice(data);
        let end = data.len().next_multiple_of(PAGE);
        buf[at + data.len()..at + end].fill(0);
        page += end / PAGE;
        at..at + end
    };
    match &e.body {
        Body::Record {
            rec: Record { kind: RecordKind::Write { offset, data, .. }, .. },
            slots,
            ..
        } => {
            if slots.is_empty() {
                put(data);
                return page;
            }
            let mut at = 0;
            for (b, from, to) in apply::blocks_of(*offset, data.len() as u32) {
                let n = (to - from) as usize * PAGE;
                if apply::slot_of(slots, *offset, b) == NO_SLOT {
                    put(&data[at..at + n]);
                }
                at += n;
            }
        }
        Body::Copy { copy, slot: NO_SLOT, .. } => {
            put(&copy.data);
        }
        Body::Drop { blob: b, .. } | Body::Blob { data: b, .. } => {
            let range = put(b);
            raw.crcs = buf[range].chunks(PAGE).map(crc32c).collect();
        }
        _ => {}
    }
    page
}
