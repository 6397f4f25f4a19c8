//! The [`Store`]: its state, its life, and the crank. What it does is in the other files.

use crate::checkpoint::{ChecksRead, Ckpt};
use crate::config::StoreConfig;
use crate::destage::Destage;
use crate::error::StoreError;
use crate::index::Pg;
use crate::layout::{Layout, BLOCK64};
use crate::log::Log;
use crate::pieces::Fetch;
use crate::read::{Reads, EIO};
use crate::recovery::Recovery;
use crate::space::{Batches, Space};
use crate::stall::Ages;
use crate::stats::{Headroom, StoreStats};
use crate::superblock::Superblock;
use crate::types::{DiskOp, DiskResult, OpId, StoreEvent};
use bytes::Bytes;
use quarry_base::{Nanos, PageBuf, PgId};
use std::collections::HashMap;

/// What an operation is for.
pub(crate) enum OpKind {
    /// A write of this log batch, its descriptor and payload or its direct blocks.
    Log(u64),
    Sync,
    /// A merged destage write of these jobs.
    Destage(Vec<u64>),
    Table,
    Super,
    /// Part `.1` of read job `.0`.
    Read(u64, usize),
    /// A read of the pages of a table group's side, for its checks.
    Checks(ChecksRead),
    /// The scrub's read of a table group, and the generation of its side that counts.
    ScrubGroup(u64, u64),
    Recovery(Fetch),
}

impl OpKind {
    /// A write or a sync: one that does not end holds up what was promised, whatever else goes on. (Those of a recovery
    /// are alone in flight.)
    fn is_write(&self) -> bool {
        matches!(
            self,
            OpKind::Log(_) | OpKind::Sync | OpKind::Destage(_) | OpKind::Table | OpKind::Super
        )
    }
}

/// An operation in flight.
struct InFlight {
    id: OpId,
    kind: OpKind,
    /// Of a write: which others it began with, see [`Ages`].
    wave: Option<u64>,
}

/// Operations handed out and not completed.
#[derive(Default)]
pub(crate) struct Ops {
    list: Vec<Option<InFlight>>,
    free: Vec<u32>,
    next: u64,
    /// Since when the writes among them are in flight.
    pub writes: Ages,
}

impl Ops {
    pub fn start(&mut self, k: OpKind) -> OpId {
        self.next += 1;
        let i = match self.free.pop() {
            Some(i) => i,
            None => {
                self.list.push(None);
                self.list.len() as u32 - 1
            }
        };
        let wave = k.is_write().then(|| self.writes.begin());
        // The low half finds it, the high half makes ids unique for a long time.
        let id = OpId(self.next << 32 | u64::from(i));
        self.list[i as usize] = Some(InFlight { id, kind: k, wave });
        id
    }
    fn end(&mut self, id: OpId) -> Option<OpKind> {
        let i = id.0 as u32;
        // Another operation may have the place of one that has ended.
        let place = self.list.get_mut(i as usize)?;
        let InFlight { kind, wave, .. } = place.take_if(|o| o.id == id)?;
        self.free.push(i);
        wave.into_iter().for_each(|w| self.writes.end(w));
        Some(kind)
    }
    pub fn is_empty(&self) -> bool {
        self.list.len() == self.free.len()
    }
}

/// The store on one device. See the crate's description.
pub struct Store {
    pub(crate) cfg: StoreConfig,
    pub(crate) sb: Option<Superblock>,
    pub(crate) recovery: Option<Box<Recovery>>,
    pub(crate) ops: Ops,
    pub(crate) events: Vec<StoreEvent>,
    pub(crate) pgs: Vec<Option<Box<Pg>>>,
    pub(crate) by_id: HashMap<PgId, u32>,
    pub(crate) sp: Space,
    pub(crate) log: Log,
    pub(crate) destage: Destage,
    pub(crate) place: crate::place::Place,
    pub(crate) ckpt: Ckpt,
    pub(crate) reads: Reads,
    pub(crate) scrub: crate::scrub::Scrub,
    pub(crate) stall: crate::stall::Stall,
    pub(crate) medium: crate::medium::Medium,
    pub(crate) zeroes: Bytes,
    pub(crate) failed: Option<StoreError>,
    /// Time of the last turn that found something appended.
    pub(crate) last_append: Nanos,
    pub(crate) seen_lsn: u64,
}

impl Store {
    /// Begins to open a formatted device; [`poll`](Store::poll) says when it is done. Nothing but
    /// `poll` and `complete` may be called before `StoreEvent::Opened`.
    ///
    /// `cluster`: refuse a device of any other.
    pub fn open(cfg: StoreConfig, cluster: Option<[u8; 16]>) -> Store {
        // Placeholder sizes until the superblock is read; nothing is allocated from them.
        let layout = Layout {
            device_bytes: 0,
            log_bytes: BLOCK64,
            table_start: 0,
            groups: 0,
            data_start: 0,
            blocks: 0,
        };
        Store {
            sp: Space {
                layout,
                key: Default::default(),
                alloc: crate::alloc::Alloc::new(0),
                slots: crate::slots::SlotTable::new(&layout, 0),
                batches: Batches::new(1),
                dirty_q: Default::default(),
                unslotted: 0,
                promises: Default::default(),
                beneath: Default::default(),
                recovering: true,
                ckpt_begun: 0,
                named: Default::default(),
                last_lsn: 0,
                applied: 0,
                max_tombs: cfg.max_tombstones_per_pg,
                max_id_runs: cfg.max_id_runs,
                stats: StoreStats::default(),
                scrub: Default::default(),
            },
            sb: None,
            recovery: Some(Box::new(Recovery::new(cluster))),
            ops: Ops::default(),
            events: Vec::new(),
            pgs: Vec::new(),
            by_id: HashMap::new(),
            log: Log::default(),
            destage: Destage::default(),
            place: Default::default(),
            ckpt: Ckpt::default(),
            reads: Reads::default(),
            scrub: Default::default(),
            stall: Default::default(),
            medium: Default::default(),
            zeroes: PageBuf::zeroed(BLOCK64 as usize).freeze(),
            failed: None,
            last_append: Nanos::ZERO,
            seen_lsn: 0,
            cfg,
        }
    }

    /// Hands out disk operations and events, both appended. With nothing to do, a few branches.
    pub fn poll(&mut self, now: Nanos, ops: &mut Vec<DiskOp>, events: &mut Vec<StoreEvent>) {
        self.poll_stall(now);
        if self.recovery.is_some() {
            self.poll_recovery(ops);
        } else if self.cfg.read_only {
            self.poll_read_only(now, ops);
        } else if self.sb.is_some() {
            self.note_appends(now);
            self.poll_reads(ops);
            self.poll_scrub(now, ops);
            self.poll_place(ops);
            self.poll_log(ops);
            self.poll_destage(now, ops);
            self.poll_checkpoint(now, ops);
            // What a checkpoint or a sync mark appended goes out in the same turn, and so does a
            // sync that destaging asked for: nothing may be in flight that would bring the next.
            self.seen_lsn = self.sp.last_lsn;
            self.poll_log(ops);
            self.report_stable(events);
            self.report_space(events);
            self.poll_checks(ops);
        }
        events.append(&mut self.events);
    }

    /// The part of [`poll`](Store::poll) that what was appended waits for: its way to the log, and syncs. For
    /// whoever wants these under way before everything else is looked after.
    pub fn poll_appends(&mut self, now: Nanos, ops: &mut Vec<DiskOp>) {
        if self.recovery.is_none() && !self.cfg.read_only && self.sb.is_some() {
            // What begins here did not begin at the last look.
            self.poll_stall(now);
            self.note_appends(now);
            self.poll_log(ops);
        }
    }

    fn note_appends(&mut self, now: Nanos) {
        if self.sp.last_lsn != self.seen_lsn {
            self.seen_lsn = self.sp.last_lsn;
            self.last_append = now;
        }
    }

    /// Takes the completion of an operation, in any order. Unknown ids are ignored.
    pub fn complete(&mut self, now: Nanos, id: OpId, r: DiskResult) {
        let Some(kind) = self.ops.end(id) else { return };
        self.stall.moved = true;
        if matches!(r, DiskResult::Read(Err(_))) && self.is_first_try(&kind) {
            self.medium.refused(now);
        }
        if self.recovery.is_some() {
            return self.recovery_done(kind, r);
        }
        match (kind, r) {
            (OpKind::Read(job, part), DiskResult::Read(r)) => self.read_done(job, part, r),
            (OpKind::Checks(c), DiskResult::Read(r)) => self.checks_read(c, r),
            (OpKind::Checks(c), DiskResult::Done(_)) => self.checks_read(c, Err(EIO)),
            (OpKind::ScrubGroup(g, stamp), DiskResult::Read(r)) => self.scrubbed_group(g, stamp, r),
            (OpKind::Read(job, part), DiskResult::Done(_)) => self.read_done(job, part, Err(EIO)),
            (kind, DiskResult::Done(Ok(()))) => self.write_done(kind),
            (kind, DiskResult::Done(Err(errno))) => self.write_failed(kind, errno),
            (kind, DiskResult::Read(_)) => self.write_failed(kind, EIO),
        }
    }

    /// A place that is read once more, page by page, was refused once.
    fn is_first_try(&self, kind: &OpKind) -> bool {
        match kind {
            OpKind::Read(job, part) => !self.reads.is_page_by_page(*job, *part),
            OpKind::Recovery(f) => f.is_whole(),
            OpKind::Checks(c) => !c.again,
            _ => true,
        }
    }

    fn write_done(&mut self, kind: OpKind) {
        if self.failed.is_some() {
            // After a failure nothing counts as durable, whatever still completes.
            if let OpKind::Destage(jobs) = kind {
                self.destage_failed(&jobs);
            }
            return;
        }
        match kind {
            OpKind::Log(no) => self.log_write_done(no),
            OpKind::Sync => {
                if let Some(no) = self.log.sync.take() {
                    self.synced(no);
                }
                self.ckpt_synced();
            }
            OpKind::Destage(jobs) => self.destage_done(&jobs),
            OpKind::Table => self.ckpt_page_written(),
            OpKind::Super => self.ckpt_committed(),
            OpKind::Read(..)
            | OpKind::Checks(..)
            | OpKind::ScrubGroup(..)
            | OpKind::Recovery(_) => {}
        }
    }

    fn write_failed(&mut self, kind: OpKind, errno: i32) {
        let what = match &kind {
            OpKind::Log(_) => "a write to the log or of new blocks",
            OpKind::Sync => "a sync",
            OpKind::Destage(_) => "a write of blocks",
            OpKind::Table => "a write to the block table",
            _ => "a write of the superblock",
        };
        if let OpKind::Destage(jobs) = kind {
            self.destage_failed(&jobs);
        }
        if self.failed.is_none() {
            self.fail(StoreError::Io { what, errno });
        }
    }

    /// When `poll` should be called though nothing else happens.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let stall = self.stall_deadline();
        if self.failed.is_some() || self.recovery.is_some() {
            return stall;
        }
        let idle = (!self.cfg.read_only && self.wants_idle_work())
            .then(|| self.last_append + self.cfg.destage_idle);
        [idle, self.scrub_deadline(), stall].into_iter().flatten().min()
    }

    /// Nothing is queued, under way or waiting to be written anywhere but in the log.
    pub fn is_idle(&self) -> bool {
        if self.failed.is_some() {
            return self.ops.is_empty() && self.reads.is_empty();
        }
        self.recovery.is_none()
            && self.ops.is_empty()
            && self.log.queue.is_empty()
            && self.reads.is_empty()
            && !self.sp.slots.cache.any_wanted()
            && self.ckpt.is_idle()
            && !self.ckpt.reads_again()
            && self.destage.is_idle()
            && self.place.is_empty()
            && !self.ckpt.flush_wanted()
    }

    /// What checksums of pages may take of the memory from now on, bytes.
    pub fn set_check_cache(&mut self, bytes: u64) {
        self.cfg.check_cache_bytes = bytes;
        self.sp.slots.cache.set_limit(bytes);
    }

    /// Starts destaging everything committed, then a checkpoint: for a clean shutdown.
    pub fn flush_all(&mut self) {
        self.ckpt.ask_flush();
    }

    /// Levels and counters.
    pub fn stats(&self) -> StoreStats {
        let a = &self.sp.alloc;
        StoreStats {
            capacity_bytes: u64::from(a.blocks()) * BLOCK64,
            used_bytes: u64::from(a.blocks() - a.free()) * BLOCK64,
            log_bytes: self.sp.layout.log_bytes,
            log_used_bytes: self.log.head - self.log.tail_pos,
            promised_bytes: self.sp.promises.missing() * BLOCK64,
            tombstones: self.live_pgs().map(|p| p.tombs.len() as u64).sum(),
            check_cache_bytes: self.sp.slots.cache.bytes(),
            check_cache_limit: self.cfg.check_cache_bytes,
            check_hits: self.sp.slots.cache.stats.hits,
            check_misses: self.sp.slots.cache.stats.misses,
            check_evictions: self.sp.slots.cache.stats.evicted,
            ..self.sp.stats
        }
    }

    /// Size of the log, bytes.
    pub fn log_bytes(&self) -> u64 {
        self.sp.layout.log_bytes
    }

    /// Room left for application writes (R24).
    pub fn headroom(&self) -> Headroom {
        let a = &self.sp.alloc;
        let have = u64::from(a.free()) + u64::from(a.pending());
        let kept = self.reserve_blocks() + self.slots_owed();
        Headroom {
            log_bytes: self.data_log_room(),
            of: self.sp.layout.blocks,
            blocks: have.saturating_sub(kept),
            full: have <= kept,
            promised: self.sp.promises.missing(),
        }
    }

    /// Somebody waits until [`Headroom::log_bytes`] is `bytes` again, without having been refused here: work that frees log
    /// space begins, and `StoreEvent::LogSpace` tells. More than half of what an empty log has is never waited for: it might
    /// never be there.
    pub fn want_log_room(&mut self, bytes: u64) {
        let most = self.sp.layout.log_bytes.saturating_sub(self.data_log_reserve());
        self.log.refused = true;
        self.log.wanted = self.log.wanted.max(bytes.min(most / 2));
    }

    /// Why the device takes no more writes, if so. Final.
    pub fn failed(&self) -> Option<&StoreError> {
        self.failed.as_ref()
    }

    /// Free slots that blocks in the log will take. One that a destage is writing has its slot already.
    pub(crate) fn slots_owed(&self) -> u64 {
        self.sp.unslotted.saturating_sub(self.destage.new_slots)
    }

    pub(crate) fn reserve_blocks(&self) -> u64 {
        let permille = u64::from(self.cfg.reserve_permille);
        (self.sp.layout.blocks * permille).div_ceil(1000)
    }

    /// Log space that application data must leave free: the checkpoint records of all groups
    /// twice, what a wrap wastes, what [`Store::ways_out`] keeps, and room for metadata and trims.
    fn data_log_reserve(&self) -> u64 {
        let l = self.sp.layout.log_bytes;
        (self.meta_log_reserve() + self.ways_out() + l / 16).max(l / 4)
    }
    /// Log space that records which are copied forward leave free as well: what holds the log up goes when its groups
    /// commit or fall back, and each of them may have to store a configuration and begin an epoch for that first.
    fn ways_out(&self) -> u64 {
        self.by_id.len() as u64 * 2 * quarry_base::PAGE as u64
    }
    /// Two thirds of what application writes may have are in use: of a large log that is half of it.
    pub(crate) fn is_log_filling(&self) -> bool {
        let most = self.sp.layout.log_bytes.saturating_sub(self.data_log_reserve());
        self.log_used() > most / 3 * 2
    }
    pub(crate) fn copy_log_room(&self) -> u64 {
        self.meta_log_room().saturating_sub(self.ways_out())
    }
    pub(crate) fn meta_log_reserve(&self) -> u64 {
        let told = self.place.len() as u64 * quarry_base::PAGE as u64;
        2 * self.ckpt.records_bytes + 2 * self.cfg.max_batch_bytes as u64 + told
    }
    pub(crate) fn data_log_room(&self) -> u64 {
        let used = self.log_used() + self.data_log_reserve();
        self.sp.layout.log_bytes.saturating_sub(used)
    }
    pub(crate) fn meta_log_room(&self) -> u64 {
        let used = self.log_used() + self.meta_log_reserve();
        self.sp.layout.log_bytes.saturating_sub(used)
    }

    fn report_space(&mut self, events: &mut Vec<StoreEvent>) {
        let enough = self.log.wanted.max(2 * self.cfg.max_batch_bytes as u64);
        if self.log.refused && self.data_log_room() >= enough {
            self.log.refused = false;
            self.log.wanted = 0;
            events.push(StoreEvent::LogSpace);
        }
    }

    pub(crate) fn live_pgs(&self) -> impl Iterator<Item = &Pg> {
        self.pgs.iter().flatten().map(|p| &**p)
    }
    pub(crate) fn pg(&self, id: PgId) -> Option<&Pg> {
        self.pgs.get(*self.by_id.get(&id)? as usize)?.as_deref()
    }
    /// Index of a group, made if it is not there.
    pub(crate) fn pg_or_new(&mut self, id: PgId) -> u32 {
        let (pgs, ckpt) = (&mut self.pgs, &mut self.ckpt);
        *self.by_id.entry(id).or_insert_with(|| {
            ckpt.records_bytes += 2 * quarry_base::PAGE as u64;
            pgs.push(Some(Box::new(Pg::new(id))));
            pgs.len() as u32 - 1
        })
    }
}
