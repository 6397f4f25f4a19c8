//! The log writer: group commit, syncs, and what happens when a batch is written.
//!
//! Everything appended waits in one queue; a turn of `poll` puts it into batches. Several batches
//! are written at once; "written" and "synced" each advance as a prefix of the log. A lone batch is
//! one write that is durable when it is done; otherwise batches share a sync. A failed write or sync is final.

use crate::apply;
use crate::batch::{Body, Entry};
use crate::config::AckMode;
use crate::index::Done;
use crate::layout::NO_SLOT;
use crate::planted::{planted, Bug};
use crate::store::{OpKind, Store};
use crate::types::{AppendId, DiskOp, StoreEvent};
use quarry_base::{PgId, Seq, Version};
use smallvec::SmallVec;
use std::collections::VecDeque;

/// A batch handed to the device and not yet synced.
pub(crate) struct Flight {
    pub no: u64,
    pub end: u64,
    pub last_id: AppendId,
    pub last_lsn: u64,
    pub done: Vec<Done>,
    pub recs: Vec<(u32, Version)>,
    /// Commit points that its records carry.
    pub commits: SmallVec<[(u32, Seq); 4]>,
    /// Writes outstanding.
    pub left: u32,
    /// It is alone, and durable when it is written.
    pub linked: bool,
    /// Batch up to which its header says that all is synced, and the newest append in it.
    pub carried: u64,
    pub carried_id: AppendId,
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
    pub written_no: u64,
    pub written_id: AppendId,
    pub written_lsn: u64,
    pub synced_no: u64,
    pub synced_id: AppendId,
    pub synced_pos: u64,
    /// Highest batch of which a synced batch says that it is synced: recovery never cuts below.
    pub mark_no: u64,
    /// Newest append in those.
    pub mark_id: AppendId,
    /// The sync under way covers batches up to here.
    pub sync: Option<u64>,
    /// Someone waits for a sync of what is written.
    pub want_sync: bool,
    /// Newest append that a sync was asked for; 0: none.
    pub sync_asked: AppendId,
    pub synced_told: AppendId,
    /// Somebody waits for space ...
    pub refused: bool,
    /// ... for so much of it, if that is more than is told of anyway.
    pub wanted: u64,
    pub stable_told: AppendId,
    /// Descriptor bytes while a batch is built; kept for its capacity.
    pub scratch: Vec<u8>,
}

impl Store {
    pub(crate) fn push(&mut self, pg: u32, pgid: PgId, body: Body, counted: bool) -> AppendId {
        let log = &mut self.log;
        self.sp.last_lsn += 1;
        log.last_id += u64::from(counted);
        let commit =
            self.pgs.get(pg as usize).and_then(|p| p.as_ref()).map_or(Seq(0), |p| p.commit);
        let e = Entry { id: log.last_id, lsn: self.sp.last_lsn, pg, pgid, commit, body };
        log.queued_cost += e.cost();
        self.sp.named.extend(e.slots().map(|s| (s, e.lsn)));
        log.queue.push_back(e);
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
            AckMode::Cached => {
                let asked = self.log.want_sync || self.log.synced_id < self.log.sync_asked;
                asked && self.log.written_no > self.log.synced_no
            }
        };
        if due && self.log.sync.is_none() && !self.linked_in_flight() {
            // Whoever needs another one asks again: one question does not make syncs follow each other.
            self.log.want_sync = false;
            self.issue_sync(ops);
        }
        if self.log.flights.is_empty() && self.log.queue.is_empty() {
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
            // Copies and drops of the batch first: a record of the same batch must not get ahead of a
            // copy that lies before it. (A copy behind a record of its block is not older than that.)
            for d in done {
                if let Done::Rec { pg, version, .. } = d {
                    recs.push((pg, version));
                }
                self.entry_written(d, no);
            }
            let mut touched: Vec<u32> = recs.iter().map(|(pg, _)| *pg).collect();
            touched.sort_unstable();
            touched.dedup();
            touched.into_iter().for_each(|pg| self.try_apply(pg));
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
            Done::Rec { version, again: true, .. } => {
                if let Some(t) = pg.tail_at(version.seq) {
                    t.written(no, &mut self.sp.batches);
                }
            }
            Done::Rec { .. } | Done::Nothing => {}
        }
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
            apply::record(pg, idx, &mut self.sp, &t);
            t.pins().for_each(|no| self.sp.batches.unpin(no));
            pg.applied = t.rec.version;
            pg.cp_dirty = true;
            self.sp.applied += 1;
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
            self.log.mark_id = self.log.mark_id.max(f.carried_id);
            let Some(f) = self.log.flights.pop_front() else { break };
            self.note_stable(&f.recs);
            for (idx, commit) in &f.commits {
                if let Some(p) = self.pgs.get_mut(*idx as usize).and_then(|p| p.as_mut()) {
                    p.durable_commit = p.durable_commit.max(*commit);
                }
            }
        }
    }

    /// What the next `StoreEvent::Stable` will say at least: known here as soon as the completion is taken.
    pub fn stable_upto(&self) -> AppendId {
        match self.cfg.ack {
            AckMode::Durable if !planted(Bug::StableBeforeSync) => self.log.synced_id,
            _ => self.log.written_id,
        }
    }

    /// Newest append of this opening that a later batch vouches for: if it is damaged or gone, that is noticed. What is newer
    /// is at the log's end and looks like never written if the device lost it. For tests and simulators.
    pub fn vouched_upto(&self) -> AppendId {
        self.log.mark_id
    }

    /// Tells what became stable since the last time.
    pub(crate) fn report_stable(&mut self, events: &mut Vec<StoreEvent>) {
        let upto = self.stable_upto();
        if upto > self.log.stable_told {
            self.log.stable_told = upto;
            events.push(StoreEvent::Stable { upto });
        }
        let asked = self.log.sync_asked > 0 && self.log.synced_id >= self.log.sync_asked;
        let news = self.cfg.ack == AckMode::Cached && self.log.synced_id > self.log.synced_told;
        if asked || news {
            // A later question does not hold the answer to an earlier one back.
            self.log.sync_asked = if asked { 0 } else { self.log.sync_asked };
            self.log.synced_told = self.log.synced_id;
            events.push(StoreEvent::Synced { upto: self.log.synced_id });
        }
    }

    /// Asks for a sync of everything appended so far, also in `Cached` mode (FLUSH):
    /// `StoreEvent::Synced` covers the id returned.
    pub fn sync(&mut self) -> AppendId {
        self.ask_sync(self.log.last_id)
    }

    /// As [`sync`](Store::sync), of what is written to the device already: it waits for no append that
    /// is still on its way (FLUSH never waits for pending writes).
    pub fn sync_written(&mut self) -> AppendId {
        self.ask_sync(self.log.written_id)
    }

    fn ask_sync(&mut self, upto: AppendId) -> AppendId {
        if self.log.synced_id >= upto {
            self.events.push(StoreEvent::Synced { upto });
        } else {
            self.log.want_sync = true;
            self.log.sync_asked = self.log.sync_asked.max(upto);
        }
        upto
    }

    /// What "stable" means from now on: the pool of the device became known, or another's. With
    /// `Cached`, what is written counts at once.
    pub fn set_ack(&mut self, ack: AckMode) {
        if std::mem::replace(&mut self.cfg.ack, ack) == ack || ack == AckMode::Durable {
            return;
        }
        let written = self.log.written_no;
        let flights = self.log.flights.iter_mut().filter(|f| f.no <= written);
        let recs: Vec<_> = flights.flat_map(|f| std::mem::take(&mut f.recs)).collect();
        self.note_stable(&recs);
    }

    /// The present meaning of "stable".
    pub fn ack(&self) -> AckMode {
        self.cfg.ack
    }
}
