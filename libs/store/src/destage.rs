//! Destage: committed pages go from the log (and memory) to their blocks, sorted and merged.
//!
//! A page may be destaged only when recovery can no longer cut the log record it came from, nor a
//! direct write below it: when a synced batch header says that its batch is synced. An overwritten
//! page is torn after a crash, and then the log must have it. For the same reason the commit point
//! that allows it must be durable: otherwise recovery would take the record for uncommitted and the
//! old content, now overwritten, for the block's.

use crate::apply;
use crate::batch::Body;
use crate::index::{OvPage, Overlay, Pg};
use crate::layout::NO_SLOT;
use crate::log_format::Kind;
use crate::planted::{planted, Bug};
use crate::space::Space;
use crate::store::{OpKind, Store};
use crate::types::{BlockKey, DiskOp, WriteSync};
use bytes::Bytes;
use quarry_base::{Nanos, PgId, Version, PAGE};
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};

/// Blocks begun in one turn while nothing presses, and twice the records that came: a turn is what somebody waits for.
const STEP: u64 = 2;
/// Bytes in one merged write at most.
const MAX_WRITE: usize = 1 << 20;

struct Job {
    pg: u32,
    key: BlockKey,
    slot: u32,
    new_slot: bool,
    version: Version,
    /// Page, version, check.
    pages: SmallVec<[(u8, Version, u32); 4]>,
    pins: SmallVec<[u64; 2]>,
    writes: u32,
}

#[derive(Default)]
pub(crate) struct Destage {
    jobs: HashMap<u64, Job>,
    next: u64,
    /// Newest log entry at the last look.
    seen: u64,
    /// Blocks that need a slot and found none free, the oldest first: those that have theirs do not wait behind them.
    starved: VecDeque<(u32, BlockKey)>,
    /// Jobs that have ended.
    pub ended: u64,
    /// Jobs that bring their block its first slot: the block has it when they end, or it comes back.
    pub new_slots: u64,
}

impl Destage {
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }
    pub fn under_way(&self) -> usize {
        self.jobs.len()
    }
    pub fn is_starved(&self) -> bool {
        !self.starved.is_empty()
    }
}

/// What came of looking at a dirty block.
pub(crate) enum Pick {
    Taken,
    Skip,
    Later,
    NotMarked,
    NotCommitted,
    NoSlot,
}

pub(crate) type Pages = Vec<(u64, Bytes, u64)>;

impl Store {
    pub(crate) fn is_idle_time(&self, now: Nanos) -> bool {
        now >= self.last_append + self.cfg.destage_idle
    }

    fn destage_due(&self, now: Nanos) -> bool {
        let l = self.sp.layout.log_bytes;
        self.ckpt.flush_wanted()
            || self.log_used() > l / 256 * u64::from(self.cfg.destage_start)
            || self.log.refused
            || self.space_is_short()
            || self.many_slots_wait()
            || self.is_idle_time(now)
    }

    /// Slots wait to become free and are needed.
    pub(crate) fn space_is_short(&self) -> bool {
        let a = &self.sp.alloc;
        let want = self.reserve_blocks() + self.slots_owed() + u64::from(a.blocks() / 64).max(16);
        a.pending() > 0 && (u64::from(a.free()) < want || self.destage.is_starved())
    }

    /// As many of the blocks that wait for a slot as there are free ones are next.
    fn feed_starved(&mut self) {
        let free = self.sp.alloc.free() as usize;
        let n = self.destage.starved.len().min(free);
        for b in self.destage.starved.drain(..n).rev() {
            self.sp.dirty_q.push_front(b);
        }
    }

    pub(crate) fn poll_destage(&mut self, now: Nanos, ops: &mut Vec<DiskOp>) {
        self.feed_starved();
        if self.sp.dirty_q.is_empty() || self.failed.is_some() || !self.destage_due(now) {
            return;
        }
        if self.sp.slots.dirty_groups() >= self.cfg.max_dirty_table_pages {
            return;
        }
        let depth = match self.is_log_filling() {
            true => self.cfg.destage_depth_full,
            false => self.cfg.destage_depth,
        };
        let mut pages = Pages::new();
        let (mut looks, mut left) = (self.sp.dirty_q.len(), self.destage_step(now));
        while self.destage.jobs.len() < depth && looks > 0 && left > 0 {
            looks -= 1;
            let Some((idx, key)) = self.sp.dirty_q.pop_front() else { break };
            match self.pick(idx, key, &mut pages) {
                Pick::Taken => left -= 1,
                Pick::Skip => {}
                Pick::Later => self.sp.dirty_q.push_back((idx, key)),
                Pick::NotMarked => {
                    self.sp.dirty_q.push_front((idx, key));
                    self.advance_mark();
                    break;
                }
                Pick::NotCommitted => {
                    self.sp.dirty_q.push_front((idx, key));
                    self.log_commit(idx);
                    break;
                }
                Pick::NoSlot => self.destage.starved.push_back((idx, key)),
            }
        }
        self.write_merged(pages, self.behind(), ops);
    }

    /// Blocks that this turn begins at most.
    fn destage_step(&mut self, now: Nanos) -> u64 {
        let came = self.sp.last_lsn - std::mem::replace(&mut self.destage.seen, self.sp.last_lsn);
        match self.destage_presses(now) {
            true => u64::MAX,
            false => STEP + 2 * came,
        }
    }

    /// Nobody waits for destages and table pages, unless writes wait for room in the log or for slots.
    pub(crate) fn behind(&self) -> WriteSync {
        match self.log.refused || self.space_is_short() {
            true => WriteSync::None,
            false => WriteSync::Behind,
        }
    }

    /// It has to be quick, or nobody minds.
    fn destage_presses(&self, now: Nanos) -> bool {
        self.ckpt.flush_wanted()
            || self.log.refused
            || self.is_log_filling()
            || self.space_is_short()
            || self.is_idle_time(now)
    }

    /// Gets the sync mark into the log: a sync, then a batch that says so, itself synced.
    pub(crate) fn advance_mark(&mut self) {
        self.log.want_sync = true;
        let quiet = self.log.queue.is_empty() && self.log.flights.is_empty();
        if quiet && self.log.mark_no < self.log.synced_no {
            self.push(u32::MAX, PgId(0), Body::Bare(Kind::Mark), false);
        }
    }

    /// Gets a group's commit point into the log.
    pub(crate) fn log_commit(&mut self, idx: u32) {
        self.log.want_sync = true;
        let Some(p) = self.pgs.get(idx as usize).and_then(|p| p.as_ref()) else { return };
        if p.logged_commit < p.commit {
            self.push(idx, p.id, Body::Bare(Kind::Commit), false);
        }
    }

    pub(crate) fn pick(&mut self, idx: u32, key: BlockKey, pages: &mut Pages) -> Pick {
        let Some(pg) = self.pgs.get_mut(idx as usize).and_then(|p| p.as_mut()) else {
            return Pick::Skip;
        };
        let durable_commit = pg.durable_commit;
        if pg.block(&self.sp.slots, key).is_none_or(|b| b.over.is_none()) {
            return Pick::Skip;
        }
        let Some(b) = pg.block_mut(&mut self.sp.slots, key) else { return Pick::Skip };
        let Some(o) = b.over.as_mut().filter(|o| o.queued) else { return Pick::Skip };
        if o.job != 0 || o.pages.is_empty() {
            o.queued = false;
            return Pick::Skip;
        }
        if planted(Bug::CheckpointBeforeData) {
            self.sp.unpin_all(&mut o.pins);
        }
        if o.pins.iter().any(|p| *p > self.log.mark_no) {
            return Pick::NotMarked;
        }
        if o.need > durable_commit && !planted(Bug::CommitNotDurable) {
            return Pick::NotCommitted;
        }
        let new_slot = b.slot == NO_SLOT;
        let slot = if new_slot {
            let Some(s) = self.sp.alloc.alloc() else { return Pick::NoSlot };
            self.sp.stats.allocs += 1;
            s
        } else {
            b.slot
        };
        if !self.sp.alloc.write_begins(slot) {
            assert!(!new_slot, "a new slot has no I/O");
            return Pick::Later;
        }
        self.destage.next += 1;
        let id = self.destage.next;
        (o.queued, o.job) = (false, id);
        let base = self.sp.layout.slot_offset(slot);
        pages.extend(
            o.pages.iter().map(|p| (base + u64::from(p.idx) * PAGE as u64, p.data.clone(), id)),
        );
        let job = Job {
            pg: idx,
            key,
            slot,
            new_slot,
            version: o.version,
            pages: o.pages.iter().map(|p| (p.idx, p.version, p.check)).collect(),
            pins: std::mem::take(&mut o.pins),
            writes: 0,
        };
        self.sp.stats.destaged_pages += job.pages.len() as u64;
        self.destage.new_slots += u64::from(new_slot);
        self.destage.jobs.insert(id, job);
        Pick::Taken
    }

    /// Begins to write the pages of one version and mask of a block that has its slot, whatever else is to be destaged of it:
    /// nobody may have to wait until a block that is always written has a quiet moment. The pins stay with the rest.
    pub(crate) fn pick_parts(
        &mut self,
        idx: u32,
        key: BlockKey,
        (version, mask): (Version, u16),
        pages: &mut Pages,
    ) -> Pick {
        let Some(pg) = self.pgs.get_mut(idx as usize).and_then(|p| p.as_mut()) else {
            return Pick::Skip;
        };
        let Some(b) = pg.block_mut(&mut self.sp.slots, key) else { return Pick::Skip };
        let slot = b.slot;
        let of = |p: &OvPage| p.version == version && mask >> p.idx & 1 == 1;
        let ready = |o: &&mut Box<Overlay>| o.job == 0 && o.pages.iter().any(of);
        let Some(o) = b.over.as_mut().filter(ready).filter(|_| slot != NO_SLOT) else {
            return Pick::Skip;
        };
        if !self.sp.alloc.write_begins(slot) {
            return Pick::Later;
        }
        self.destage.next += 1;
        let id = self.destage.next;
        o.job = id;
        let base = self.sp.layout.slot_offset(slot);
        let parts = o.pages.iter().filter(|p| of(p));
        pages.extend(
            parts.clone().map(|p| (base + u64::from(p.idx) * PAGE as u64, p.data.clone(), id)),
        );
        let pages: SmallVec<_> = parts.map(|p| (p.idx, p.version, p.check)).collect();
        self.sp.stats.destaged_pages += pages.len() as u64;
        let pins = SmallVec::new();
        // What stays in the overlay is only in the log: with the block at this version a recovery would pass it over.
        let version = if planted(Bug::PartsRaiseVersion) { version } else { Version::ZERO };
        let job = Job { pg: idx, key, slot, new_slot: false, version, pages, pins, writes: 0 };
        self.destage.jobs.insert(id, job);
        Pick::Taken
    }

    pub(crate) fn write_merged(
        &mut self,
        mut pages: Pages,
        sync: WriteSync,
        ops: &mut Vec<DiskOp>,
    ) {
        pages.sort_unstable_by_key(|p| p.0);
        let mut it = pages.into_iter().peekable();
        while let Some((offset, data, job)) = it.next() {
            let mut len = data.len();
            let (mut data, mut jobs) = (vec![data], vec![job]);
            while len < MAX_WRITE {
                let Some((_, d, j)) = it.next_if(|p| p.0 == offset + len as u64) else { break };
                len += d.len();
                data.push(d);
                if jobs.last() != Some(&j) {
                    jobs.push(j);
                }
            }
            for j in &jobs {
                if let Some(j) = self.destage.jobs.get_mut(j) {
                    j.writes += 1;
                }
            }
            self.sp.stats.destage_writes += 1;
            let id = self.ops.start(OpKind::Destage(jobs));
            ops.push(DiskOp::Write { id, offset, data, sync });
        }
    }

    pub(crate) fn destage_done(&mut self, jobs: &[u64]) {
        for id in jobs {
            let Some(j) = self.destage.jobs.get_mut(id) else { continue };
            j.writes -= 1;
            if j.writes > 0 {
                continue;
            }
            let Some(mut j) = self.destage.jobs.remove(id) else { continue };
            self.destage.ended += 1;
            self.destage.new_slots -= u64::from(j.new_slot);
            self.sp.alloc.write_ends(j.slot);
            let pg = self.pgs.get_mut(j.pg as usize).and_then(|p| p.as_mut());
            let taken = pg.is_some_and(|pg| finish(pg, &mut self.sp, *id, &j));
            if !taken && j.new_slot {
                // Replaced or dropped meanwhile: nobody ever named this slot.
                self.sp.alloc.give_back(j.slot);
            }
            self.sp.unpin_all(&mut j.pins);
        }
    }

    /// The device has failed; the overlay keeps the content for reads.
    pub(crate) fn destage_failed(&mut self, jobs: &[u64]) {
        for id in jobs {
            if let Some(j) = self.destage.jobs.remove(id) {
                self.destage.new_slots -= u64::from(j.new_slot);
                self.sp.alloc.write_ends(j.slot);
            }
        }
    }

    /// Checks used by tests and simulators, see [`Store::check_invariants`].
    pub(crate) fn job_slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.destage.jobs.values().filter(|j| j.new_slot).map(|j| j.slot)
    }
    pub(crate) fn job_pins(&self) -> u64 {
        self.destage.jobs.values().map(|j| j.pins.len() as u64).sum()
    }
}

/// The job's pages are on disk. False if the block is no longer the one it was for.
fn finish(pg: &mut Pg, sp: &mut Space, id: u64, j: &Job) -> bool {
    if pg.block(&sp.slots, j.key).is_none_or(|b| b.over.is_none_or(|o| o.job != id)) {
        return false;
    }
    let Some(b) = pg.block_mut(&mut sp.slots, j.key) else { return false };
    let Some(o) = b.over.as_mut().filter(|o| o.job == id) else { return false };
    o.job = 0;
    let mut valid = 0;
    for (idx, version, check) in &j.pages {
        // Cleared since: it does not count. Overwritten since: it counts below the newer page.
        let Some(i) = o.pages.iter().position(|p| p.idx == *idx) else { continue };
        if o.pages[i].version == *version {
            o.pages.remove(i);
            sp.stats.dirty_pages -= 1;
        }
        valid |= 1 << idx;
        sp.slots.set_check(j.slot, u32::from(*idx), *check);
    }
    b.valid |= valid;
    b.version = b.version.max(j.version);
    if j.new_slot && planted(Bug::NoValidMask) {
        b.valid = 0xFFFF;
    }
    if j.new_slot {
        assert!(b.slot == NO_SLOT, "a block has one slot");
        b.slot = j.slot;
        sp.unslotted -= 1;
        pg.slots += 1;
    }
    apply::settle(pg, j.pg, sp, j.key);
    true
}
