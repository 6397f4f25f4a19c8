//! Checkpoints: the block table and the groups' state become durable, and the log is cut behind.
//!
//! At one instant the changed table groups are copied, a checkpoint record of every group whose last
//! one would leave the log is appended, and the new log tail is fixed: the oldest batch that an
//! uncommitted record or an undestaged page needs. The table pages go to the sides that do not
//! count; when they and those records are written, one sync covers them and the data, and then the
//! superblock makes all of it count at once.

use crate::codec::{Get, Put};
use crate::ids::IdTable;
use crate::index::Pg;
use crate::log::Body;
use crate::log_format::Kind;
use crate::pgs::{get_key, get_version, put_key, put_version};
use crate::slots::GroupWrite;
use crate::store::{OpKind, Store};
use crate::superblock::Superblock;
use crate::types::{BlockKey, DiskOp, Record, RecordKind};
use bytes::Bytes;
use quarry_base::{Nanos, Version, VtreeId, PAGE};

/// Table writes in flight.
const TABLE_DEPTH: usize = 16;
const BLOB_VERSION: u8 = 1;

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
}

impl Ckpt {
    pub fn is_idle(&self) -> bool {
        self.state == State::Idle
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
    /// Something was appended or changed since the last checkpoint.
    fn checkpoint_useful(&self) -> bool {
        self.log.last_lsn > self.ckpt.lsn
            || self.sp.slots.dirty_groups() > 0
            || self.sp.batches.oldest_pinned() > self.sp.batches.first() && self.log.refused
    }

    /// Waiting makes sense: when the device has been idle for a while there will be work.
    pub(crate) fn wants_idle_work(&self) -> bool {
        self.ckpt.is_idle()
            && self.destage.is_idle()
            && self.ckpt.last_now < self.last_append + self.cfg.destage_idle
            && (!self.sp.dirty_q.is_empty() || self.checkpoint_useful())
    }

    fn wants_checkpoint(&self, now: Nanos) -> bool {
        if !self.checkpoint_useful() {
            return false;
        }
        let drained = self.sp.dirty_q.is_empty() && self.destage.is_idle();
        if drained && (self.ckpt.flush || self.is_idle_time(now)) {
            return true;
        }
        if self.sp.slots.dirty_groups() >= self.cfg.max_dirty_table_pages {
            return true;
        }
        let (l, used) = (self.sp.layout.log_bytes, self.log_used());
        if used > l / 256 * u64::from(self.cfg.destage_start) {
            let no = self.sp.batches.oldest_pinned();
            let to = self.sp.batches.get(no).map_or(self.log.head, |b| b.pos);
            let gain = to - self.log.tail_pos;
            if gain >= l / 8 || (self.log.refused || used > l / 2) && gain >= l / 64 {
                return true;
            }
            if used > l / 2 && drained {
                return true;
            }
        }
        self.space_is_short() && drained
    }

    pub(crate) fn poll_checkpoint(&mut self, now: Nanos, ops: &mut Vec<DiskOp>) {
        self.ckpt.last_now = now;
        if self.failed.is_some() {
            return;
        }
        if self.ckpt.state == State::Idle {
            if self.wants_checkpoint(now) {
                self.begin_checkpoint();
            } else if self.ckpt.flush
                && !self.checkpoint_useful()
                && self.sp.dirty_q.is_empty()
                && self.destage.is_idle()
            {
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
        self.copy_tails_forward();
        let no = self.sp.batches.oldest_pinned();
        let (pos, prev) = match self.sp.batches.get(no) {
            Some(b) => (b.pos, b.prev_crc),
            None => (self.log.head, self.log.last_crc),
        };
        let mut total = 0;
        for idx in 0..self.pgs.len() {
            let Some(p) = self.pgs[idx].as_mut() else { continue };
            let id = p.id;
            if p.cp_batch < no || p.cp_dirty {
                p.cp_dirty = false;
                let data = encode_pg(p);
                total += (data.len().next_multiple_of(PAGE) + PAGE) as u64;
                self.push(idx as u32, id, Body::Blob { kind: Kind::PgCheckpoint, data }, false);
            } else {
                total += 2 * PAGE as u64 + p.meta.as_ref().map_or(0, |m| m.len() as u64);
                if p.commit > p.logged_commit {
                    self.push(idx as u32, id, Body::Bare(Kind::Commit), false);
                }
            }
        }
        self.ckpt.records_bytes = total;
        self.ckpt.gen += 1;
        self.sp.ckpt_begun += 1;
        let (queue, digest) = self.sp.slots.snapshot(self.ckpt.gen);
        let Some(old) = self.sb else { return };
        let sb = Superblock {
            generation: old.generation + 1,
            tail_pos: pos,
            tail_batch: no,
            tail_prev_crc: prev,
            ckpt_gen: self.ckpt.gen,
            table_digest: digest,
            ..old
        };
        self.sp.stats.table_pages_written += queue.len() as u64;
        self.ckpt.lsn = self.log.last_lsn;
        self.ckpt.run = Some(Run {
            sb,
            begun: self.sp.ckpt_begun,
            marker_lsn: self.log.last_lsn,
            queue,
            in_flight: 0,
            written: Vec::new(),
        });
        self.ckpt.state = State::Writing;
    }

    /// Uncommitted records that hold up the log's tail are appended again, whole tails at a time:
    /// recovery takes a record of a version that it has for the same record.
    fn copy_tails_forward(&mut self) {
        let l = self.sp.layout.log_bytes;
        if self.log_used() <= l / 2 {
            return;
        }
        let old = self.log.head.saturating_sub(l / 4);
        for idx in 0..self.pgs.len() {
            let Some(p) = self.pgs[idx].as_ref() else { continue };
            let front = p.tail.front().and_then(|t| self.sp.batches.get(t.batch));
            if front.is_none_or(|b| b.pos >= old) {
                continue;
            }
            let id = p.id;
            // All of it, also what is still queued: recovery wants a tail's records in order.
            let list: Vec<_> = p
                .tail
                .iter()
                .map(|t| Body::Record { rec: t.rec.clone(), slots: t.slots.clone(), jump: t.jump })
                .collect();
            let bytes: u64 = p.tail.iter().map(|t| record_cost(&t.rec)).sum();
            if self.meta_log_room() < bytes + 2 * self.cfg.max_batch_bytes as u64 {
                continue;
            }
            for body in list {
                self.sp.stats.relogged += 1;
                self.push(idx as u32, id, body, false);
            }
        }
    }

    fn write_tables(&mut self, ops: &mut Vec<DiskOp>) {
        let Some(run) = self.ckpt.run.as_mut() else { return };
        while run.in_flight < TABLE_DEPTH {
            let Some(w) = run.queue.pop() else { break };
            run.in_flight += 1;
            run.written.push((w.group, w.side, w.crc));
            let offset = self.sp.layout.group_offset(w.group, w.side);
            let id = self.ops.start(OpKind::Table);
            ops.push(DiskOp::Write { id, offset, data: vec![w.data], sync: false });
        }
        let ready = run.in_flight == 0 && self.log.written_lsn >= run.marker_lsn;
        if ready && self.log.sync.is_none() {
            self.ckpt.state = State::Syncing;
            self.issue_sync(ops);
        }
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
        ops.push(DiskOp::Write { id, offset, data, sync: true });
    }

    pub(crate) fn ckpt_committed(&mut self) {
        let Some(run) = self.ckpt.run.take() else { return };
        self.ckpt.state = State::Idle;
        self.sp.slots.committed(run.sb.ckpt_gen, run.sb.table_digest, &run.written);
        self.log.tail_pos = run.sb.tail_pos;
        self.sp.batches.drop_before(run.sb.tail_batch);
        self.sp.alloc.release(run.begun, run.sb.tail_batch);
        self.sb = Some(run.sb);
        self.sp.stats.checkpoints += 1;
    }
}

/// Log bytes of a record at most.
fn record_cost(r: &Record) -> u64 {
    let payload = match &r.kind {
        RecordKind::Write { data, .. } => data.len(),
        _ => 0,
    };
    (payload + 2 * PAGE) as u64
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
    p.ids.encode(&mut v);
    v.u32(p.tombs.len() as u32);
    for (k, t) in &p.tombs {
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
    Some(PgBlob { applied, all_through, delta_floor, meta, ids, tombs, dropped })
}
