//! Checkpoints: the block table and the groups' state become durable, and the log is cut behind.
//!
//! At one instant the changed table groups are copied, a checkpoint record of every group whose last
//! one would leave the log is appended, and the new log tail is fixed: the oldest batch that an
//! uncommitted record or an undestaged page needs. The table pages go to the sides that do not
//! count; when they and those records are written, one sync covers them and the data, and then the
//! superblock makes all of it count at once.

use crate::batch::Body;
use crate::checks::Table;
use crate::codec::{Get, Put};
use crate::ids::IdTable;
use crate::index::{Pg, TailRec};
use crate::layout::NO_SLOT;
use crate::log_format::Kind;
use crate::medium::is_medium_error;
use crate::pgs::{get_key, get_version, put_key, put_version};
use crate::planted::{planted, Bug};
use crate::slots::{GroupWrite, Pages};
use crate::store::{OpKind, Store};
use crate::superblock::Superblock;
use crate::types::{BlockKey, DiskOp, RecordKind, StoreEvent, WriteSync};
use bytes::Bytes;
use quarry_base::{Nanos, PageBuf, Version, VtreeId, BLOCK, PAGE};

/// Table writes in flight.
const TABLE_DEPTH: usize = 16;
/// Fewer freed slots than this are never worth a checkpoint: 16 MiB.
const MIN_FREED: u32 = 256;
const BLOB_VERSION: u8 = 1;
/// Bytes of a tombstone in a checkpoint record; the end of a vTree has less.
const TOMB_BYTES: u64 = 33;

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Idle,
    /// Table pages and log records are being written.
    Writing,
    Syncing,
    Synced,
    Super,
}

struct Run {
    sb: Superblock,
    /// Number of this checkpoint, for the slots that it frees.
    begun: u64,
    marker_lsn: u64,
    queue: Vec<GroupWrite>,
    in_flight: usize,
    written: Vec<(u64, u8, u32)>,
}

/// A read of a table group's side.
#[derive(Clone, Copy)]
pub(crate) struct ChecksRead {
    group: u64,
    gen: u64,
    offset: u64,
    /// The medium refused it once.
    pub again: bool,
}

#[derive(Default)]
pub(crate) struct Ckpt {
    state: State,
    run: Option<Run>,
    flush: bool,
    /// Newest log entry when the last one began: without a newer one there is nothing to do.
    lsn: u64,
    gen: u64,
    /// Log bytes of all groups' checkpoint records.
    pub records_bytes: u64,
    last_now: Nanos,
    /// Reads of checks that the medium refused: once more.
    refused: Vec<ChecksRead>,
}

impl Ckpt {
    pub fn is_idle(&self) -> bool {
        self.state == State::Idle
    }
    /// Is a refused read still to be done again?
    pub fn reads_again(&self) -> bool {
        !self.refused.is_empty()
    }
    pub fn ask_flush(&mut self) {
        self.flush = true;
    }
    pub fn flush_wanted(&self) -> bool {
        self.flush
    }
    pub fn start_at(&mut self, gen: u64) {
        self.gen = gen;
    }
}

impl Store {
    /// The first batch that must stay. What a batch that is not written yet does to the index is
    /// still to come, so it stays even if nothing pins it.
    fn next_tail(&self) -> u64 {
        self.sp.batches.oldest_pinned().min(self.log.written_no + 1)
    }

    /// Something was appended or changed since the last checkpoint, or slots wait for one.
    fn checkpoint_useful(&self) -> bool {
        let no = self.next_tail();
        self.sp.last_lsn > self.ckpt.lsn
            || self.sp.slots.dirty_groups() > 0
            || self.sp.alloc.checkpoint_frees(self.sp.batches.lsn_before(no))
            || self.log.refused && no > self.sp.batches.first()
            || self.ckpt.flush && self.scrub.saved != (self.scrub.slot, self.scrub.passes)
            || self.is_scrub_worth_saving(self.ckpt.last_now)
    }

    /// All that can be destaged is: what is left waits for a free slot.
    fn drained(&self) -> bool {
        self.sp.dirty_q.is_empty() && self.destage.is_idle() && self.place.is_empty()
    }

    /// Waiting makes sense: when the device has been idle for a while there will be work.
    pub(crate) fn wants_idle_work(&self) -> bool {
        self.ckpt.is_idle()
            && self.destage.is_idle()
            && self.ckpt.last_now < self.last_append + self.cfg.destage_idle
            && (!self.sp.dirty_q.is_empty()
                || self.destage.is_starved()
                || self.checkpoint_useful())
    }

    fn wants_checkpoint(&self, now: Nanos) -> bool {
        if !self.checkpoint_useful() {
            return false;
        }
        let drained = self.drained();
        if drained && (self.ckpt.flush || self.is_idle_time(now)) {
            return true;
        }
        if self.sp.slots.dirty_groups() >= self.cfg.max_dirty_table_pages {
            return true;
        }
        let (l, used) = (self.sp.layout.log_bytes, self.log_used());
        if used > l / 256 * u64::from(self.cfg.destage_start) {
            let no = self.next_tail();
            let to = self.sp.batches.get(no).map_or(self.log.head, |b| b.pos);
            let gain = to - self.log.tail_pos;
            let filling = self.is_log_filling();
            if gain >= l / 8 || (self.log.refused || filling) && gain >= l / 64 {
                return true;
            }
            if filling && (drained || gain < l / 64 && self.tails_to_copy().next().is_some()) {
                return true;
            }
        }
        self.space_is_short() && drained || self.slots_are_awaited() || self.many_slots_return()
    }

    /// Blocks wait for a slot, and a checkpoint now would free one. Other blocks may be destaged all the time.
    fn slots_are_awaited(&self) -> bool {
        let gone = self.sp.batches.lsn_before(self.next_tail());
        self.destage.is_starved() && self.sp.alloc.checkpoint_frees(gone)
    }

    /// Whole-block overwrites have left many slots behind. They are fetched back before the device's
    /// whole space has been gone through: a thin file stays small, and memory and caches warm.
    pub(crate) fn many_slots_wait(&self) -> bool {
        let many = (self.sp.alloc.blocks() / 16).max(MIN_FREED).min(self.cfg.max_freed_blocks);
        self.sp.alloc.freed_since_release() >= many
    }

    /// A checkpoint now would give many of them back: most of the log could go.
    fn many_slots_return(&self) -> bool {
        if !self.many_slots_wait() {
            return false;
        }
        let to = self.sp.batches.get(self.next_tail()).map_or(self.log.head, |b| b.pos);
        to - self.log.tail_pos >= self.log_used() / 2
    }

    pub(crate) fn poll_checkpoint(&mut self, now: Nanos, ops: &mut Vec<DiskOp>) {
        self.ckpt.last_now = now;
        if self.failed.is_some() {
            return;
        }
        self.sp.alloc.release_calmed();
        if self.ckpt.state == State::Idle {
            if self.wants_checkpoint(now) {
                self.begin_checkpoint();
            } else if self.ckpt.flush && !self.checkpoint_useful() && self.drained() {
                self.ckpt.flush = false;
            }
        }
        match self.ckpt.state {
            State::Writing => self.write_tables(ops),
            State::Synced => self.write_super(ops),
            State::Idle | State::Syncing | State::Super => {}
        }
    }

    fn begin_checkpoint(&mut self) {
        self.count_records();
        self.copy_tails_forward();
        let no = self.next_tail();
        let (pos, prev) = match self.sp.batches.get(no) {
            Some(b) => (b.pos, b.prev_crc),
            None => (self.log.head, self.log.last_crc),
        };
        for idx in 0..self.pgs.len() {
            let Some(p) = self.pgs[idx].as_mut() else { continue };
            let id = p.id;
            if p.cp_batch < no || p.cp_dirty {
                p.cp_dirty = false;
                let data = encode_pg(p);
                self.push(idx as u32, id, Body::Blob { kind: Kind::PgCheckpoint, data }, false);
            } else if p.commit > p.logged_commit {
                self.push(idx as u32, id, Body::Bare(Kind::Commit), false);
            }
        }
        self.ckpt.gen += 1;
        self.sp.ckpt_begun += 1;
        let (mut queue, digest) = self.sp.slots.snapshot(self.ckpt.gen);
        queue.sort_by_key(|w| matches!(w.pages, Pages::Ready(_)));
        let Some(old) = self.sb else { return };
        let sb = Superblock {
            generation: old.generation + 1,
            tail_pos: pos,
            tail_batch: no,
            tail_prev_crc: prev,
            ckpt_gen: self.ckpt.gen,
            table_digest: digest,
            scrub_slot: u64::from(self.scrub.slot),
            scrub_passes: self.scrub.passes,
            ..old
        };
        self.sp.stats.table_pages_written += queue.len() as u64;
        self.ckpt.lsn = self.sp.last_lsn;
        self.ckpt.run = Some(Run {
            sb,
            begun: self.sp.ckpt_begun,
            marker_lsn: self.sp.last_lsn,
            queue,
            in_flight: 0,
            written: Vec::new(),
        });
        self.save_scrub(self.ckpt.last_now);
        self.ckpt.state = State::Writing;
    }

    /// What the groups' checkpoint records take of the log. Tombstones and ends of vTrees, the only
    /// part that grows with use, get an eighth of it. Groups that nothing is written to keep to it too:
    /// their share shrinks with every group that comes.
    pub(crate) fn count_records(&mut self) {
        let each = self.sp.layout.log_bytes / 8 / TOMB_BYTES / self.by_id.len().max(1) as u64;
        let max = self.cfg.max_tombstones_per_pg.min(each.max(16) as usize);
        self.sp.max_tombs = max;
        self.pgs.iter_mut().flatten().for_each(|p| p.limit_tombs(max));
        self.ckpt.records_bytes = self.live_pgs().map(record_bytes).sum();
    }

    /// Uncommitted records that hold up the log's tail are appended again, whole tails at a time:
    /// recovery takes a record of a version that it has for the same record.
    fn copy_tails_forward(&mut self) {
        let list: Vec<usize> = self.tails_to_copy().collect();
        for idx in list {
            let Some(p) = self.pgs[idx].as_ref() else { continue };
            let id = p.id;
            // All of it, also what is still queued: recovery wants a tail's records in order.
            let list: Vec<_> = p
                .tail
                .iter()
                .map(|t| {
                    let (rec, checks, slots) = (t.rec.clone(), t.checks.clone(), t.slots.clone());
                    Body::Record { rec, checks, slots, jump: t.jump, again: true }
                })
                .collect();
            if self.copy_log_room() < tail_cost(p) {
                continue;
            }
            for body in list {
                self.sp.stats.relogged += 1;
                self.push(idx as u32, id, body, false);
            }
        }
    }

    /// Groups whose tail began a quarter of the log ago while the log is filling, and for which there is room.
    fn tails_to_copy(&self) -> impl Iterator<Item = usize> + '_ {
        let l = self.sp.layout.log_bytes;
        let old = self.log.head.saturating_sub(l / 4);
        let (full, room) = (self.is_log_filling(), self.copy_log_room());
        self.pgs.iter().enumerate().filter(move |_| full).filter_map(move |(idx, p)| {
            let p = p.as_ref()?;
            let front = self.sp.batches.get(p.tail.front()?.pins().last()?)?;
            (front.pos < old && tail_cost(p) <= room).then_some(idx)
        })
    }

    fn write_tables(&mut self, ops: &mut Vec<DiskOp>) {
        let sync = self.behind();
        let Some(run) = self.ckpt.run.as_mut() else { return };
        while run.in_flight < TABLE_DEPTH {
            let Some(w) = run.queue.pop_if(|w| matches!(w.pages, Pages::Ready(_))) else { break };
            let Pages::Ready(data) = w.pages else { break };
            run.in_flight += 1;
            run.written.push((w.group, w.side, w.crc));
            let offset = self.sp.layout.group_offset(w.group, w.side);
            let id = self.ops.start(OpKind::Table);
            ops.push(DiskOp::Write { id, offset, data: vec![data], sync });
        }
        let ready =
            run.in_flight == 0 && run.queue.is_empty() && self.log.written_lsn >= run.marker_lsn;
        if ready && planted(Bug::CheckpointUnsynced) {
            self.ckpt.state = State::Synced;
        } else if ready && self.log.sync.is_none() {
            self.ckpt.state = State::Syncing;
            self.issue_sync(ops);
        }
    }

    /// The checks of a group were read, or are lost: the checkpoint that wants to write it need not wait any more.
    fn ckpt_checks(&mut self, group: u64, disk: Option<&Table>) {
        let Some(run) = self.ckpt.run.as_mut() else { return };
        run.queue.iter_mut().filter(|w| w.group == group).for_each(|w| w.complete(disk));
        run.queue.sort_by_key(|w| matches!(w.pages, Pages::Ready(_)));
    }

    /// Has the checks read that are wanted and not in memory.
    pub(crate) fn poll_checks(&mut self, ops: &mut Vec<DiskOp>) {
        let mut reads = std::mem::take(&mut self.ckpt.refused);
        while let Some((group, side, gen)) = self.sp.slots.next_load() {
            let offset = self.sp.layout.group_offset(group, side);
            reads.push(ChecksRead { group, gen, offset, again: false });
        }
        for c in reads {
            let id = self.ops.start(OpKind::Checks(c));
            ops.push(DiskOp::Read { id, offset: c.offset, len: 2 * PAGE });
        }
    }

    pub(crate) fn checks_read(&mut self, c: ChecksRead, r: Result<PageBuf, i32>) {
        if matches!(r, Err(e) if is_medium_error(e)) && !c.again {
            // Too much hangs on it to be lost by one refusal.
            return self.ckpt.refused.push(ChecksRead { again: true, ..c });
        }
        let ChecksRead { group, gen, .. } = c;
        let pair = r.as_ref().ok().map(|b| &b[..]);
        let (table, whole) = self.sp.slots.load_ended(group, gen, pair);
        if !whole {
            return;
        }
        if table.is_none() {
            // What is left of it gets there with the next checkpoint: else the device might not open again.
            self.sp.slots.rewrite(group);
            self.events.push(StoreEvent::TableDamaged { group });
        }
        self.ckpt_checks(group, table.as_ref());
        self.checks_are_here();
    }

    pub(crate) fn ckpt_page_written(&mut self) {
        if let Some(run) = self.ckpt.run.as_mut() {
            run.in_flight -= 1;
        }
    }

    /// A sync has ended; while this waits for one there is no other.
    pub(crate) fn ckpt_synced(&mut self) {
        if self.ckpt.state == State::Syncing {
            self.ckpt.state = State::Synced;
        }
    }

    fn write_super(&mut self, ops: &mut Vec<DiskOp>) {
        let Some(run) = self.ckpt.run.as_ref() else { return };
        self.ckpt.state = State::Super;
        let id = self.ops.start(OpKind::Super);
        let (offset, data) = (run.sb.offset(), vec![run.sb.encode()]);
        self.sp.stats.syncs += 1;
        ops.push(DiskOp::Write { id, offset, data, sync: WriteSync::All });
    }

    pub(crate) fn ckpt_committed(&mut self) {
        let Some(run) = self.ckpt.run.take() else { return };
        self.ckpt.state = State::Idle;
        self.sp.slots.committed(run.sb.ckpt_gen, run.sb.table_digest, &run.written);
        self.log.tail_pos = run.sb.tail_pos;
        self.sp.batches.drop_before(run.sb.tail_batch);
        let gone = self.sp.batches.lsn_before(run.sb.tail_batch);
        self.sp.alloc.release(run.begun, gone);
        self.sp.named.retain(|_, lsn| *lsn > gone);
        self.sb = Some(run.sb);
        self.sp.stats.checkpoints += 1;
    }
}

/// Log bytes of a group's tail at most, when it is appended again.
fn tail_cost(p: &Pg) -> u64 {
    let cost = |t: &TailRec| {
        let direct = t.slots.iter().filter(|s| **s != NO_SLOT).count() * BLOCK as usize;
        let payload = match &t.rec.kind {
            RecordKind::Write { data, .. } => data.len() - direct,
            _ => 0,
        };
        (payload + 2 * PAGE) as u64
    };
    p.tail.iter().map(cost).sum()
}

/// A group's state as its checkpoint record keeps it.
pub(crate) struct PgBlob {
    pub applied: Version,
    pub all_through: Version,
    pub delta_floor: Version,
    pub meta: Option<Bytes>,
    pub ids: IdTable,
    pub tombs: Vec<(BlockKey, Version)>,
    pub dropped: Vec<(VtreeId, Version)>,
}

/// Log bytes of a group's checkpoint record at most, in a batch of its own.
fn record_bytes(p: &Pg) -> u64 {
    let meta = p.meta.as_ref().map_or(0, |m| m.len());
    let fixed = 2 * PAGE + meta + p.ids.encoded_len();
    fixed as u64 + TOMB_BYTES * (p.tombs.len() + p.dropped.len()) as u64
}

fn encode_pg(p: &Pg) -> Bytes {
    let mut v = Vec::with_capacity(256);
    v.u8(BLOB_VERSION);
    put_version(&mut v, p.applied);
    put_version(&mut v, p.all_through);
    put_version(&mut v, p.delta_floor);
    v.u8(u8::from(p.meta.is_some()));
    let meta = p.meta.as_deref().unwrap_or(&[]);
    v.u32(meta.len() as u32);
    v.extend_from_slice(meta);
    if planted(Bug::IdsForgotten) {
        IdTable::default().encode(&mut v);
    } else {
        p.ids.encode(&mut v);
    }
    let tombs = if planted(Bug::TombstonesForgotten) { 0 } else { p.tombs.len() };
    v.u32(tombs as u32);
    for (k, t) in p.tombs.iter().take(tombs) {
        put_key(&mut v, *k);
        put_version(&mut v, *t);
    }
    v.u32(p.dropped.len() as u32);
    for (k, t) in &p.dropped {
        v.u64(k.0);
        put_version(&mut v, *t);
    }
    v.into()
}

pub(crate) fn decode_pg(b: &[u8]) -> Option<PgBlob> {
    let mut g = Get(b);
    if g.u8()? != BLOB_VERSION {
        return None;
    }
    let (applied, all_through) = (get_version(&mut g)?, get_version(&mut g)?);
    let delta_floor = get_version(&mut g)?;
    let has_meta = g.u8()? == 1;
    let n = g.u32()? as usize;
    let meta = Bytes::copy_from_slice(g.bytes(n)?);
    let meta = has_meta.then_some(meta);
    let ids = IdTable::decode(&mut g)?;
    let mut tombs = Vec::new();
    for _ in 0..g.u32()? {
        tombs.push((get_key(&mut g)?, get_version(&mut g)?));
    }
    let mut dropped = Vec::new();
    for _ in 0..g.u32()? {
        dropped.push((VtreeId(g.u64()?), get_version(&mut g)?));
    }
    if applied.seq.0 == u64::MAX {
        return None;
    }
    Some(PgBlob { applied, all_through, delta_floor, meta, ids, tombs, dropped })
}
