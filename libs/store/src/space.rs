//! Slots, the block table, and which log batches must stay: what every change of the index touches.

use crate::alloc::Alloc;
use crate::index::OvPage;
use crate::layout::{Layout, NO_SLOT};
use crate::planted::{planted, Bug};
use crate::seal::DeviceKey;
use crate::slots::SlotTable;
use crate::stats::StoreStats;
use crate::types::BlockKey;
use std::collections::{HashMap, VecDeque};

/// A batch between the log's tail and its head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveBatch {
    pub pos: u64,
    /// Descriptor checksum of the batch before it.
    pub prev_crc: u32,
    /// Newest entry in it.
    pub last_lsn: u64,
    /// Uncommitted records and overlays that need it.
    pub pins: u32,
}

/// The batches in the log, oldest first.
pub(crate) struct Batches {
    first: u64,
    list: VecDeque<LiveBatch>,
    /// How many at the front are not pinned.
    loose: usize,
    /// Newest entry that was in a batch before `first`.
    gone_lsn: u64,
}

impl Batches {
    pub fn new(first: u64) -> Batches {
        Batches { first, list: VecDeque::new(), loose: 0, gone_lsn: 0 }
    }
    /// Number of the next batch to be added.
    pub fn next(&self) -> u64 {
        self.first + self.list.len() as u64
    }
    pub fn first(&self) -> u64 {
        self.first
    }
    pub fn push(&mut self, b: LiveBatch) {
        self.list.push_back(b);
        self.count_loose();
    }
    fn count_loose(&mut self) {
        while self.list.get(self.loose).is_some_and(|b| b.pins == 0) {
            self.loose += 1;
        }
    }
    fn at(&mut self, no: u64) -> &mut LiveBatch {
        let i = no.checked_sub(self.first);
        match i.and_then(|i| self.list.get_mut(i as usize)) {
            Some(b) => b,
            None => unreachable!("batch {no} is not in the log"),
        }
    }
    pub fn get(&self, no: u64) -> Option<&LiveBatch> {
        self.list.get(usize::try_from(no.checked_sub(self.first)?).ok()?)
    }
    pub fn pin(&mut self, no: u64) {
        self.at(no).pins += 1;
        self.loose = self.loose.min((no - self.first) as usize);
    }
    pub fn unpin(&mut self, no: u64) {
        let b = self.at(no);
        assert!(b.pins > 0, "batch {no} unpinned too often");
        b.pins -= 1;
        self.count_loose();
    }
    /// The oldest batch that must stay; the next one if none.
    pub fn oldest_pinned(&self) -> u64 {
        self.first + self.loose as u64
    }
    /// Newest log entry in a batch before `no`.
    pub fn lsn_before(&self, no: u64) -> u64 {
        no.checked_sub(1).and_then(|n| self.get(n)).map_or(self.gone_lsn, |b| b.last_lsn)
    }
    pub fn drop_before(&mut self, no: u64) {
        while self.first < no {
            let b = self.list.pop_front();
            assert!(b.is_some_and(|b| b.pins == 0), "a pinned batch leaves the log");
            self.gone_lsn = b.map_or(self.gone_lsn, |b| b.last_lsn);
            self.first += 1;
            self.loose -= 1;
        }
    }
    pub fn total_pins(&self) -> u64 {
        self.list.iter().map(|b| u64::from(b.pins)).sum()
    }
}

pub(crate) struct Space {
    pub layout: Layout,
    pub key: DeviceKey,
    pub alloc: Alloc,
    pub slots: SlotTable,
    pub batches: Batches,
    /// Blocks with an overlay, in the order they got one.
    pub dirty_q: VecDeque<(u32, BlockKey)>,
    /// Blocks with an overlay and no slot: each will need one.
    pub unslotted: u64,
    pub promises: crate::promise::Promises,
    /// Pages that an intent found in the log may not have replaced, see `place`: those beneath each, the newest last.
    pub beneath: HashMap<(u32, BlockKey, u8), Vec<OvPage>>,
    /// While the log is replayed nothing is allocated or freed; owners are settled at the end.
    pub recovering: bool,
    /// Checkpoints begun.
    pub ckpt_begun: u64,
    /// Slots that entries in the log name, and the newest one that does. Such a slot must not get
    /// other content before that entry has left the log, or a replay would take it for the entry's.
    pub named: HashMap<u32, u64>,
    /// Newest log entry appended.
    pub last_lsn: u64,
    /// Records applied.
    pub applied: u64,
    pub max_tombs: usize,
    pub max_id_runs: usize,
    pub stats: StoreStats,
    pub scrub: crate::scrub::ScrubStats,
}

impl Space {
    pub fn free_slot(&mut self, slot: u32) {
        if self.recovering || slot == NO_SLOT {
            return;
        }
        if planted(Bug::LeakedSlot) {
            return;
        }
        if planted(Bug::ReusedEarly) {
            self.slots.set(slot, None);
            return self.alloc.give_back(slot);
        }
        let lsn = self.named.get(&slot).copied().unwrap_or(0);
        self.alloc.free_later(slot, self.ckpt_begun, lsn);
        self.slots.set(slot, None);
        self.stats.frees += 1;
    }

    pub fn unpin_all(&mut self, pins: &mut smallvec::SmallVec<[u64; 2]>) {
        pins.drain(..).for_each(|p| self.batches.unpin(p));
    }
}
