//! Replaying the log over the block table.

use crate::apply;
use crate::batch::PlacedIn;
use crate::checkpoint::decode_pg;
use crate::codec::Get;
use crate::error::StoreError;
use crate::ids::IdTable;
use crate::index::{ExtKey, Pg, Sealed, TailRec, View};
use crate::layout::{GROUP_SLOTS, NO_SLOT};
use crate::log_format::{Kind, RawRecord};
use crate::log_scan::{Found, LogImage};
use crate::pgs::{clear_pg, decode_drops, truncate_tail};
use crate::place;
use crate::planted::{planted, Bug};
use crate::slots::Entries;
use crate::space::LiveBatch;
use crate::store::Store;
use crate::types::{BlockCopy, BlockKey, Record, RecordKind};
use bytes::Bytes;
use quarry_base::{PageBuf, Seq, PAGE};
use smallvec::SmallVec;
use std::collections::{BTreeSet, HashMap};

const UNREADABLE: StoreError = StoreError::Inconsistent("a log record does not read");

impl Store {
    pub(crate) fn replay(&mut self, image: &LogImage, found: &[Found]) -> Result<(), StoreError> {
        if self.sp.slots.twice {
            return Err(StoreError::Inconsistent("two slots for one block"));
        }
        let mut named = BTreeSet::new();
        // What batches of one opening say that was synced in it: a recovery calls synced what it finds.
        let marks: HashMap<u64, u64> =
            found.iter().map(|f| (f.header.incarnation, f.header.synced_upto)).collect();
        let mut prev = self.sb.map_or(0, |s| s.tail_prev_crc);
        for f in found {
            let pos = f.header.pos;
            let vouched = marks.get(&f.header.incarnation).copied().unwrap_or(0);
            self.sp.last_lsn += 1;
            let last_lsn = self.sp.last_lsn;
            self.sp.batches.push(LiveBatch { pos, prev_crc: prev, last_lsn, pins: 0 });
            prev = f.crc;
            self.log.written_no = f.header.batch;
            for raw in &f.records {
                named.extend(raw.slots.iter().filter(|s| **s != NO_SLOT));
                let at = pos % self.sp.layout.log_bytes + u64::from(raw.payload_page) * PAGE as u64;
                let payload =
                    image.bytes(at, raw.payload_pages as usize * PAGE).ok_or(UNREADABLE)?;
                self.replay_record(raw, payload, f.header.batch, (pos, vouched))?;
            }
        }
        self.log.last_crc = prev;
        self.log.written_lsn = self.sp.last_lsn;
        for p in self.pgs.iter_mut().flatten() {
            cut_orphans(p, &mut self.sp);
        }
        self.count_records();
        self.settle_slots(&named)
    }

    /// A table group's entries, as the checkpoint left them, become blocks of the index.
    pub(crate) fn adopt(&mut self, group: u64, entries: &Entries) {
        for (i, e) in entries.iter().enumerate() {
            let Some(e) = e else { continue };
            let slot = (group * GROUP_SLOTS) as u32 + i as u32;
            let idx = self.pg_or_new(e.pg);
            let Some(p) = self.pgs[idx as usize].as_mut() else { continue };
            let (version, valid, dirty) = (e.version, e.valid, e.dirty);
            let v = View { version, slot, valid, dirty, over: None };
            self.sp.slots.twice |= !p.adopt(&mut self.sp.slots, e.key, v);
        }
    }

    fn replay_record(
        &mut self,
        raw: &RawRecord,
        payload: Bytes,
        no: u64,
        (pos, vouched): (u64, u64),
    ) -> Result<(), StoreError> {
        match raw.kind {
            Kind::Mark => return Ok(()),
            Kind::DropPg => {
                if let Some(idx) = self.by_id.remove(&raw.pg) {
                    if let Some(mut p) = self.pgs[idx as usize].take() {
                        clear_pg(&mut p, &mut self.sp);
                    }
                }
                return Ok(());
            }
            _ => {}
        }
        let idx = self.pg_or_new(raw.pg);
        self.replay_commit(idx, raw.commit);
        let Some(p) = self.pgs[idx as usize].as_mut() else { return Ok(()) };
        p.prev_pos = pos;
        let blob = |b: &Bytes| b.get(..raw.aux as usize).map(<[u8]>::to_vec).ok_or(UNREADABLE);
        match raw.kind {
            Kind::Write | Kind::Zero | Kind::EpochStart | Kind::DropVtree => {
                let rec = to_record(raw, payload);
                push_tail(p, &mut self.sp, rec, raw, no);
            }
            Kind::Copy | Kind::CopyPart | Kind::Repair => {
                p.cp_dirty = true;
                let slot = raw.slots.first().copied().unwrap_or(NO_SLOT);
                let c = Sealed {
                    copy: to_copy(raw, payload),
                    checks: SmallVec::from_slice(&raw.checks),
                    unlogged: false,
                };
                if raw.kind == Kind::Repair {
                    apply::repair(p, idx, &mut self.sp, &c, no);
                } else {
                    apply::copy(p, idx, &mut self.sp, &c, slot, no);
                }
            }
            Kind::Intent => {
                p.cp_dirty = true;
                let (copy, checks) = (to_copy(raw, payload), SmallVec::from_slice(&raw.checks));
                self.place.replayed.push((idx, copy.key));
                apply::copy(
                    p,
                    idx,
                    &mut self.sp,
                    &Sealed { copy, checks, unlogged: true },
                    NO_SLOT,
                    no,
                );
            }
            Kind::Placed => {
                p.cp_dirty = true;
                // Without a batch that says that this one was synced it may be ahead of what it says.
                let vouched = pos < vouched || planted(Bug::PlacedUnvouched);
                place::replay_placed(p, idx, &mut self.sp, &to_placed(raw), vouched);
            }
            Kind::DropBlocks => {
                let list = decode_drops(&blob(&payload)?).ok_or(UNREADABLE)?;
                p.cp_dirty = true;
                apply::drop_list(p, &mut self.sp, &list);
            }
            Kind::Meta => p.meta = Some(blob(&payload)?.into()),
            Kind::IdsImport => {
                let t = IdTable::decode(&mut Get(&blob(&payload)?)).ok_or(UNREADABLE)?;
                p.ids.merge(&t);
            }
            Kind::PgCheckpoint => return self.replay_pg(idx, &blob(&payload)?, no),
            Kind::Commit | Kind::Mark | Kind::DropPg => {}
        }
        Ok(())
    }

    fn replay_commit(&mut self, idx: u32, commit: Seq) {
        let Some(p) = self.pgs[idx as usize].as_mut() else { return };
        p.commit = p.commit.max(commit.min(p.last.seq));
        self.try_apply(idx);
    }

    /// A checkpoint record is merged: records before it in the log may be newer than it.
    fn replay_pg(&mut self, idx: u32, blob: &[u8], no: u64) -> Result<(), StoreError> {
        let b = decode_pg(blob).ok_or(UNREADABLE)?;
        self.replay_commit(idx, b.applied.seq);
        let Some(p) = self.pgs[idx as usize].as_mut() else { return Ok(()) };
        // Still dirty: what was applied while this record was on its way lies before it in the log.
        p.cp_batch = no;
        if b.applied > p.applied {
            p.applied = b.applied;
            p.commit = p.commit.max(b.applied.seq);
            if p.last.seq < b.applied.seq {
                p.last = b.applied;
            }
        }
        p.all_through = p.all_through.max(b.all_through);
        p.delta_floor = p.delta_floor.max(b.delta_floor);
        p.meta = b.meta;
        p.ids.merge(&b.ids);
        for (k, v) in b.tombs {
            if p.newest(&self.sp.slots, k) < v {
                apply::remove(p, &mut self.sp, k);
                p.tombs.insert(k, v);
            }
        }
        for (t, v) in b.dropped {
            let d = p.dropped.entry(t).or_default();
            *d = v.max(*d);
        }
        let all_through = p.all_through;
        p.tombs.retain(|_, t| *t > all_through);
        p.dropped.retain(|_, t| *t > all_through);
        Ok(())
    }

    /// Entries of the table whose block has moved or gone since.
    fn free_disowned(&mut self) {
        let (by_id, pgs) = (&self.by_id, &self.pgs);
        let t = &self.sp.slots;
        let gone = t.disowned(|slot, p| {
            let pg = t.owners.extent(p.ext).and_then(|(l, _)| by_id.get(&l.pg));
            let pg = pg.and_then(|i| pgs.get(*i as usize)).and_then(|p| p.as_ref());
            pg.is_some_and(|pg| pg.owns(t, slot, p))
        });
        gone.into_iter().for_each(|slot| self.sp.slots.set(slot, None));
    }

    /// Who owns which slot is known now: the allocator and the table follow the index.
    fn settle_slots(&mut self, named: &BTreeSet<u32>) -> Result<(), StoreError> {
        const TWICE: StoreError = StoreError::Inconsistent("two blocks in one slot");
        self.sp.recovering = false;
        let mut changed = Vec::new();
        for (idx, p) in self.pgs.iter_mut().enumerate() {
            let Some(p) = p.as_mut() else { continue };
            p.stable = p.last;
            p.logged_commit = p.commit;
            p.durable_commit = p.commit;
            for (_, b) in p.blocks_from(&self.sp.slots, ExtKey::MIN) {
                if b.slot != NO_SLOT && !self.sp.alloc.take(b.slot) {
                    return Err(TWICE);
                }
            }
            for s in p.tail.iter().flat_map(|t| t.slots.iter()).filter(|s| **s != NO_SLOT) {
                if !self.sp.alloc.take(*s) {
                    return Err(TWICE);
                }
            }
            let hot = p.hot_slots(&self.sp.slots);
            changed.extend(hot.into_iter().map(|(key, slot, u)| (idx, key, slot, u)));
        }
        self.free_disowned();
        for (idx, key, slot, u) in changed {
            let Some(p) = self.pgs[idx].as_mut() else { continue };
            p.cool_if_changed(&mut self.sp.slots, key, slot, u);
        }
        for p in self.pgs.iter_mut().flatten() {
            p.sweep(&mut self.sp.slots);
        }
        self.sp.slots.owners.drop_orphans();
        let lsn = self.sp.last_lsn;
        for s in named {
            self.sp.named.insert(*s, lsn);
            if self.sp.alloc.take(*s) {
                self.sp.alloc.free_later(*s, self.sp.ckpt_begun, lsn);
            }
        }
        Ok(())
    }
}

/// A record joins the tail: the same one again changes nothing, another one of a seq that is there
/// replaces the tail from it on. A gap starts a new tail: a stream began there, or a later checkpoint
/// record covers what lies between, or it is an orphan, see `cut_orphans`.
fn push_tail(p: &mut Pg, sp: &mut crate::space::Space, rec: Record, raw: &RawRecord, no: u64) {
    let v = rec.version;
    if v.seq <= p.commit {
        return;
    }
    if p.tail_at(v.seq).is_some_and(|t| t.rec.version == v) {
        // The earlier one keeps its place and its batch: what follows it here may have been truncated
        // when this was appended again, and must not then lie before it in the log.
        return;
    }
    if raw.jump || v.seq.0 > p.last.seq.0 + 1 {
        // Where a jump began nothing uncommitted was left: what is here was truncated.
        truncate_tail(p, sp, Seq(p.commit.0 + 1));
    } else if v.seq <= p.last.seq {
        truncate_tail(p, sp, v.seq);
    }
    sp.batches.pin(no);
    p.last = v;
    if rec.origin.instance.0 != 0 {
        p.tail_ids.insert((rec.origin.instance, rec.origin.id), v.seq);
    }
    let (checks, slots) = (SmallVec::from_slice(&raw.checks), raw.slots.clone());
    p.tail.push_back(TailRec { rec, checks, slots, jump: raw.jump, batch: no, again: 0 });
}

/// Drops the rest of a tail whose beginning was truncated and has left the log. Only at the end: until
/// the newest checkpoint record is read, what lies before the tail may be covered by it.
fn cut_orphans(p: &mut Pg, sp: &mut crate::space::Space) {
    let first = p.tail.front().map(|t| (t.jump, t.rec.version.seq.0));
    if p.cp_batch != 0 && first.is_some_and(|(jump, seq)| !jump && seq != p.applied.seq.0 + 1) {
        truncate_tail(p, sp, Seq(p.applied.seq.0 + 1));
    }
}

fn to_record(raw: &RawRecord, payload: Bytes) -> Record {
    let (vtree, layer, extent) = (raw.vtree, raw.layer, raw.extent);
    let (offset, len) = (raw.offset, raw.len);
    let kind = match raw.kind {
        Kind::Zero => RecordKind::Zero { vtree, layer, extent, offset, len },
        Kind::EpochStart => RecordKind::EpochStart { base: Seq(raw.aux) },
        Kind::DropVtree => RecordKind::DropVtree { vtree },
        _ => {
            let crcs = SmallVec::from_slice(&raw.crcs);
            let data = if raw.slots.is_empty() { payload } else { spread(raw, &payload) };
            RecordKind::Write { vtree, layer, extent, offset, crcs, data }
        }
    };
    Record { version: raw.version, origin: raw.origin, kind }
}

/// The data of a partly direct write, its direct blocks still empty.
fn spread(raw: &RawRecord, payload: &[u8]) -> Bytes {
    let mut buf = PageBuf::zeroed(raw.len as usize);
    let (mut at, mut from_log) = (0, 0);
    for (b, from, to) in apply::blocks_of(raw.offset, raw.len) {
        let n = (to - from) as usize * PAGE;
        if apply::slot_of(&raw.slots, raw.offset, b) == NO_SLOT {
            buf[at..at + n].copy_from_slice(&payload[from_log..from_log + n]);
            from_log += n;
        }
        at += n;
    }
    buf.freeze()
}

fn to_placed(raw: &RawRecord) -> PlacedIn {
    PlacedIn {
        key: BlockKey::at(raw.vtree, raw.layer, raw.extent, raw.offset),
        version: raw.version,
        pages: raw.aux as u16,
        checks: SmallVec::from_slice(&raw.checks),
        slot: raw.slots.first().copied().unwrap_or(NO_SLOT),
    }
}

fn to_copy(raw: &RawRecord, payload: Bytes) -> BlockCopy {
    BlockCopy {
        key: BlockKey::at(raw.vtree, raw.layer, raw.extent, raw.offset),
        version: raw.version,
        part: raw.part(),
        valid: raw.aux as u16,
        dirty: (raw.aux >> 16) as u16,
        crcs: SmallVec::from_slice(&raw.crcs),
        data: payload,
    }
}
