//! Building a log batch: what is queued becomes descriptor pages, payload pages and direct writes.
//!
//! Payload is copied once, into the batch's buffer; the tail and the overlay-to-be share it. Whole
//! blocks go straight to their slots in the same turn, neighbours in one write; they and the batch count as one.

use crate::apply;
use crate::config::AckMode;
use crate::direct::{merged, DirectWrites};
use crate::index::{Done, Sealed};
use crate::layout::NO_SLOT;
use crate::log::Flight;
use crate::log_format::{BatchHeader, Kind, RawRecord, HEADER_BYTES};
use crate::planted::{planted, Bug};
use crate::seal::{Checks, DeviceKey};
use crate::space::LiveBatch;
use crate::store::{OpKind, Store};
use crate::types::{AppendId, BlockCopy, BlockKey, DiskOp, Record, RecordKind, WriteSync};
use bytes::Bytes;
use quarry_base::{PageBuf, PgId, Seq, Version, BLOCK, PAGE};
use smallvec::SmallVec;

/// Records in one batch at most.
const MAX_BATCH_RECORDS: usize = 1024;
/// Bytes written straight to blocks with one batch at most, one record excepted.
const MAX_BATCH_DIRECT: usize = 4 << 20;
/// The same where nothing waits for a sync: several batches under way end one after another, and the device has the next
/// while one is answered. With a sync for each that costs more than it gives.
const MAX_BATCH_DIRECT_CACHED: usize = 256 << 10;

pub(crate) enum Body {
    Record {
        rec: Record,
        checks: Checks,
        slots: SmallVec<[u32; 16]>,
        jump: bool,
        /// Appended before: direct blocks are on disk, and newer pages may be destaged onto them.
        again: bool,
    },
    Copy {
        copy: Box<Sealed>,
        slot: u32,
        how: CopyKind,
    },
    /// The content of an intent is in its place.
    Placed(Box<PlacedIn>),
    Drop {
        list: Vec<(BlockKey, Version)>,
        blob: Bytes,
    },
    Blob {
        kind: Kind,
        data: Bytes,
    },
    Bare(Kind),
}

/// What a copy is appended for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyKind {
    /// Traffic of a sync; its content goes to the log, or straight to a slot of its own.
    Sync,
    /// The same, but its content goes straight to its pages: see `place`.
    Intent,
    Repair,
}

/// What a `Placed` record says: these pages of the version are in the slot.
pub(crate) struct PlacedIn {
    pub key: BlockKey,
    pub version: Version,
    pub pages: u16,
    pub checks: Checks,
    pub slot: u32,
}

pub(crate) struct Entry {
    pub id: AppendId,
    pub lsn: u64,
    pub pg: u32,
    pub pgid: PgId,
    pub commit: Seq,
    pub body: Body,
}

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
            Body::Copy { copy: s, how: CopyKind::Intent, .. } => (0, s.checks.len(), 0),
            Body::Placed(p) => (0, p.checks.len(), usize::from(p.slot != NO_SLOT)),
            Body::Copy { copy: s, slot: NO_SLOT, .. } => (s.copy.data.len(), s.checks.len(), 0),
            Body::Copy { copy: s, .. } => (0, s.checks.len(), 1),
            Body::Drop { blob: b, .. } | Body::Blob { data: b, .. } => {
                (up(b.len()), up(b.len()) / PAGE, 0)
            }
        }
    }

    /// Slots that its record names.
    pub fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        let slots = match &self.body {
            Body::Record { slots, .. } => &slots[..],
            Body::Copy { slot, .. } => std::slice::from_ref(slot),
            Body::Placed(p) => std::slice::from_ref(&p.slot),
            _ => &[],
        };
        slots.iter().copied().filter(|s| *s != NO_SLOT)
    }

    fn direct_bytes(&self) -> usize {
        match &self.body {
            Body::Record { slots, again: false, .. } => slots.len() * BLOCK as usize,
            Body::Copy { copy: s, slot, .. } if *slot != NO_SLOT => s.copy.data.len(),
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

impl Store {
    /// Takes entries from the queue for one batch: how many, payload and descriptor bytes.
    fn choose(&self) -> (usize, usize, usize) {
        let (mut n, mut payload, mut desc, mut direct) = (0, 0, HEADER_BYTES, 0);
        let most = match self.cfg.ack {
            AckMode::Durable => MAX_BATCH_DIRECT,
            AckMode::Cached => MAX_BATCH_DIRECT_CACHED,
        };
        for e in self.log.queue.iter().take(MAX_BATCH_RECORDS) {
            let (p, crcs, slots) = e.sizes();
            let d = e.direct_bytes();
            if n > 0 && (payload + p > self.cfg.max_batch_bytes || direct + d > most) {
                break;
            }
            n += 1;
            payload += p;
            direct += d;
            desc += RawRecord::size(crcs, slots);
        }
        (n, payload, desc)
    }

    pub(crate) fn build_batch(&mut self, ops: &mut Vec<DiskOp>) -> bool {
        let (n, payload, desc_bytes) = self.choose();
        let desc_len = desc_bytes.next_multiple_of(PAGE);
        let len = (desc_len + payload) as u64;
        let pos = self.sp.layout.log_place(self.log.head, len);
        if pos + len - self.log.tail_pos > self.sp.layout.log_bytes {
            return false;
        }
        let no = self.sp.batches.next();
        let entries: Vec<Entry> = self.log.queue.drain(..n).collect();
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
            page = put_payload(e, self.sp.key, &mut raw, &mut buf, page);
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
        let last_lsn = entries.last().map_or(0, |e| e.lsn);
        let live = LiveBatch { pos, prev_crc: self.log.last_crc, last_lsn, pins: 0 };
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
            last_lsn,
            done: Vec::with_capacity(n),
            recs: Vec::new(),
            commits: SmallVec::new(),
            left: 1,
            linked: false,
            carried: self.log.synced_no,
            carried_id: self.log.synced_id,
        };
        // What it says is in its place was only written: the sync is for that too.
        let placed = lone && entries.iter().any(|e| matches!(e.body, Body::Placed(_)));
        for (e, from) in entries.into_iter().zip(starts) {
            self.queue_direct(&e, &mut direct);
            match flight.commits.last_mut().filter(|c| c.0 == e.pg) {
                Some(c) => c.1 = e.commit,
                None => flight.commits.push((e.pg, e.commit)),
            }
            let done = self.entry_built(e, no, data.slice(from * PAGE..));
            flight.done.push(done);
        }
        flight.linked = lone && direct.is_empty() && (!placed || planted(Bug::PlacedUnsynced));
        for (offset, data) in merged(direct) {
            flight.left += 1;
            let id = self.ops.start(OpKind::Log(no));
            ops.push(DiskOp::Write { id, offset, data, sync: WriteSync::None });
        }
        let id = self.ops.start(OpKind::Log(no));
        let offset = self.sp.layout.log_offset(pos);
        // All batches before it are synced, and what else was written has syncs of its own.
        let sync = if flight.linked && !planted(Bug::SkippedSync) {
            WriteSync::Own
        } else {
            WriteSync::None
        };
        ops.push(DiskOp::Write { id, offset, data: vec![data], sync });
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
            Body::Copy { how: CopyKind::Repair, .. } => Kind::Repair,
            Body::Copy { how: CopyKind::Intent, .. } => Kind::Intent,
            Body::Placed(_) => Kind::Placed,
            Body::Copy { copy: s, .. } if s.copy.part != BlockCopy::WHOLE => Kind::CopyPart,
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
            Body::Record { rec, checks, slots, jump, again } => {
                raw.checks = SmallVec::from_slice(checks);
                (raw.version, raw.origin, raw.slots) = (rec.version, rec.origin, slots.clone());
                (raw.jump, raw.again) = (*jump, *again);
                match &rec.kind {
                    RecordKind::Write { vtree, layer, extent, offset, data, .. } => {
                        (raw.vtree, raw.layer, raw.extent) = (*vtree, *layer, *extent);
                        (raw.offset, raw.len) = (*offset, data.len() as u32);
                    }
                    RecordKind::Zero { vtree, layer, extent, offset, len } => {
                        (raw.vtree, raw.layer, raw.extent) = (*vtree, *layer, *extent);
                        (raw.offset, raw.len) = (*offset, *len);
                    }
                    RecordKind::EpochStart { base } => raw.aux = base.0,
                    RecordKind::DropVtree { vtree } => raw.vtree = *vtree,
                }
            }
            Body::Copy { copy: s, slot, .. } => {
                let (copy, k) = (&s.copy, s.copy.key);
                raw.version = copy.version;
                (raw.vtree, raw.layer, raw.extent) = (k.vtree, k.layer, k.extent);
                (raw.offset, raw.len) = (k.offset(), copy.data.len() as u32);
                raw.aux = u64::from(copy.valid) | u64::from(copy.dirty) << 16;
                if matches!(raw.kind, Kind::CopyPart | Kind::Intent) {
                    raw.aux |= u64::from(copy.part) << 32;
                }
                raw.checks = SmallVec::from_slice(&s.checks);
                if *slot != NO_SLOT {
                    raw.slots.push(*slot);
                }
            }
            Body::Placed(p) => {
                (raw.vtree, raw.layer, raw.extent) = (p.key.vtree, p.key.layer, p.key.extent);
                (raw.version, raw.offset) = (p.version, p.key.offset());
                raw.aux = u64::from(p.pages);
                raw.checks = SmallVec::from_slice(&p.checks);
                raw.slots.extend(Some(p.slot).filter(|s| *s != NO_SLOT));
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
                again: false,
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
            Body::Copy { copy: s, slot, .. } if *slot != NO_SLOT => {
                let copy = &s.copy;
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
                let (version, mut again) = (rec.version, false);
                if let Some(t) = pg.tail_at(version.seq) {
                    if t.rec.version == version && t.slots == slots {
                        if let RecordKind::Write { data, .. } = &mut t.rec.kind {
                            if slots.is_empty() {
                                *data = payload.slice(..data.len());
                            }
                        }
                        again = t.built(no, &mut self.sp.batches);
                    }
                }
                Done::Rec { pg: e.pg, version, again }
            }
            Body::Copy { mut copy, slot, how } => {
                if how == CopyKind::Intent {
                    self.place.built(e.id, no);
                } else if slot == NO_SLOT {
                    copy.copy.data = payload.slice(..copy.copy.data.len());
                }
                Done::Copy { pg: e.pg, copy, slot, repair: how == CopyKind::Repair }
            }
            Body::Drop { list, .. } => Done::Drop { pg: e.pg, list },
            Body::Blob { kind: Kind::PgCheckpoint, .. } => {
                pg.cp_batch = no;
                Done::Nothing
            }
            Body::Blob { .. } | Body::Bare(_) | Body::Placed(_) => Done::Nothing,
        }
    }
}

/// Copies an entry's payload into the batch and notes the checks of blobs; returns the page after it.
fn put_payload(
    e: &Entry,
    key: DeviceKey,
    raw: &mut RawRecord,
    buf: &mut PageBuf,
    mut page: usize,
) -> usize {
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
        Body::Copy { copy, slot: NO_SLOT, how: CopyKind::Sync | CopyKind::Repair } => {
            put(&copy.copy.data);
        }
        Body::Drop { blob: b, .. } | Body::Blob { data: b, .. } => {
            let range = put(b);
            let seal = key.blob(e.pgid, raw.kind as u8);
            let pages = (0..).zip(buf[range].chunks(PAGE));
            raw.checks = pages.map(|(i, p)| seal.both(i, p).1).collect();
        }
        _ => {}
    }
    page
}
