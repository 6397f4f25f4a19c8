//! What a placement group holds: blocks by key, tombstones, the uncommitted tail, ids.
//!
//! A block is what is on disk (slot, version, valid pages) plus an overlay: committed pages that are
//! so far only in the log and here in memory. Only committed content gets into a block, and only if
//! its version is above the block's, which makes replay of the log idempotent.

use crate::ids::IdTable;
use crate::layout::NO_SLOT;
use crate::seal::Checks;
use crate::types::{BlockCopy, BlockKey, Record};
use bytes::Bytes;
use quarry_base::{Extent, Instance, Layer, PgId, RequestId, Seq, Version, VtreeId};
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// A copy of a block and the checks of its pages.
pub(crate) struct Sealed {
    pub copy: BlockCopy,
    pub checks: Checks,
}

/// A committed page not yet on disk.
pub(crate) struct OvPage {
    pub idx: u8,
    pub crc: u32,
    /// What its block will keep of it, see `seal`.
    pub check: u32,
    pub version: Version,
    pub data: Bytes,
}

pub(crate) struct Overlay {
    /// Newest version of the block.
    pub version: Version,
    /// By index.
    pub pages: SmallVec<[OvPage; 2]>,
    /// Log batches that must stay because of this.
    pub pins: SmallVec<[u64; 2]>,
    /// Seq that must be durably committed before this may be destaged.
    pub need: Seq,
    /// The destage job under way; 0: none.
    pub job: u64,
    /// In the dirty queue.
    pub queued: bool,
}

pub(crate) struct Block {
    /// Version of what is on disk; of the block if there is no overlay.
    pub version: Version,
    pub slot: u32,
    /// Pages on disk that count and are not cleared.
    pub valid: u16,
    pub dirty: u16,
    pub over: Option<Box<Overlay>>,
}

impl Block {
    pub fn empty() -> Block {
        Block { version: Version::ZERO, slot: NO_SLOT, valid: 0, dirty: 0xFFFF, over: None }
    }
    pub fn newest(&self) -> Version {
        self.over.as_ref().map_or(self.version, |o| o.version)
    }
    pub fn over_mask(&self) -> u16 {
        self.over.as_ref().map_or(0, |o| o.pages.iter().fold(0, |m, p| m | 1 << p.idx))
    }
    /// Pages with content, in memory or on disk.
    pub fn content(&self) -> u16 {
        self.valid | self.over_mask()
    }
    pub fn over_page(&self, idx: u32) -> Option<&OvPage> {
        self.over.as_ref()?.pages.iter().find(|p| u32::from(p.idx) == idx)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ExtKey(pub VtreeId, pub Layer, pub Extent);

impl ExtKey {
    pub fn of(k: BlockKey) -> ExtKey {
        ExtKey(k.vtree, k.layer, k.extent)
    }
    pub fn block(self, block: u8) -> BlockKey {
        BlockKey { vtree: self.0, layer: self.1, extent: self.2, block }
    }
}

/// The blocks of one extent that exist, packed.
#[derive(Default)]
pub(crate) struct Ext {
    mask: u16,
    blocks: Vec<Block>,
}

impl Ext {
    fn rank(&self, b: u8) -> usize {
        (self.mask & ((1u32 << b) - 1) as u16).count_ones() as usize
    }
    pub fn has(&self, b: u8) -> bool {
        self.mask >> b & 1 == 1
    }
    pub fn get(&self, b: u8) -> Option<&Block> {
        self.has(b).then(|| &self.blocks[self.rank(b)])
    }
    pub fn get_mut(&mut self, b: u8) -> Option<&mut Block> {
        let r = self.rank(b);
        if self.has(b) {
            Some(&mut self.blocks[r])
        } else {
            None
        }
    }
    pub fn insert(&mut self, b: u8, block: Block) {
        assert!(!self.has(b));
        let r = self.rank(b);
        self.blocks.insert(r, block);
        self.mask |= 1 << b;
    }
    pub fn remove(&mut self, b: u8) -> Option<Block> {
        if !self.has(b) {
            return None;
        }
        let r = self.rank(b);
        self.mask &= !(1 << b);
        Some(self.blocks.remove(r))
    }
    pub fn is_empty(&self) -> bool {
        self.mask == 0
    }
    pub fn iter(&self) -> impl Iterator<Item = (u8, &Block)> {
        (0..16u8).filter(|b| self.has(*b)).zip(self.blocks.iter())
    }
}

/// A record above what is applied.
pub(crate) struct TailRec {
    pub rec: Record,
    /// One for each page of a write.
    pub checks: Checks,
    /// Slots of its whole blocks, see `RawRecord::slots`; empty: all in the log.
    pub slots: SmallVec<[u32; 16]>,
    /// It does not follow the record before it: a syncing replica's stream began here.
    pub jump: bool,
    /// Log batch; 0: not built yet.
    pub batch: u64,
}

/// One placement group on this device.
pub(crate) struct Pg {
    pub id: PgId,
    pub ext: BTreeMap<ExtKey, Ext>,
    pub tombs: BTreeMap<BlockKey, Version>,
    pub dropped: BTreeMap<VtreeId, Version>,
    /// Records with seq above `applied.seq`, in order, without gaps but for the first.
    pub tail: VecDeque<TailRec>,
    pub last: Version,
    pub stable: Version,
    pub commit: Seq,
    /// Newest record in the index: committed and written.
    pub applied: Version,
    /// Commit point that the log holds.
    pub logged_commit: Seq,
    /// Commit point that recovery will find at least.
    pub durable_commit: Seq,
    pub all_through: Version,
    pub delta_floor: Version,
    pub meta: Option<Bytes>,
    pub ids: IdTable,
    pub tail_ids: HashMap<(Instance, RequestId), Seq>,
    /// Batch and position of its last checkpoint record and of its last record.
    pub cp_batch: u64,
    pub prev_pos: u64,
    /// Something was applied since the last checkpoint record. What that was may leave the log before
    /// the checkpoint record does: it was in the log before it, but not yet committed or written.
    pub cp_dirty: bool,
    pub blocks: u64,
    pub slots: u64,
}

impl Pg {
    pub fn new(id: PgId) -> Pg {
        Pg {
            id,
            ext: BTreeMap::new(),
            tombs: BTreeMap::new(),
            dropped: BTreeMap::new(),
            tail: VecDeque::new(),
            last: Version::ZERO,
            stable: Version::ZERO,
            commit: Seq(0),
            applied: Version::ZERO,
            logged_commit: Seq(0),
            durable_commit: Seq(0),
            all_through: Version::ZERO,
            delta_floor: Version::ZERO,
            meta: None,
            ids: IdTable::default(),
            tail_ids: HashMap::new(),
            cp_batch: 0,
            prev_pos: u64::MAX,
            cp_dirty: true,
            blocks: 0,
            slots: 0,
        }
    }

    pub fn block(&self, k: BlockKey) -> Option<&Block> {
        self.ext.get(&ExtKey::of(k))?.get(k.block)
    }
    pub fn block_mut(&mut self, k: BlockKey) -> Option<&mut Block> {
        self.ext.get_mut(&ExtKey::of(k))?.get_mut(k.block)
    }

    /// Newest version known of a key: its block's, its tombstone's, or that of its vTree's end.
    pub fn newest(&self, k: BlockKey) -> Version {
        match self.block(k) {
            Some(b) => b.newest(),
            None => self.tombs.get(&k).max(self.dropped.get(&k.vtree)).copied().unwrap_or_default(),
        }
    }

    /// The block, made if it is not there (then `true`); a tombstone goes.
    pub fn block_or_new(&mut self, k: BlockKey) -> (&mut Block, bool) {
        let ext = self.ext.entry(ExtKey::of(k)).or_default();
        let new = !ext.has(k.block);
        if new {
            ext.insert(k.block, Block::empty());
            self.blocks += 1;
            self.tombs.remove(&k);
        }
        match ext.get_mut(k.block) {
            Some(b) => (b, new),
            None => unreachable!("just inserted"),
        }
    }

    pub fn take_block(&mut self, k: BlockKey) -> Option<Block> {
        let e = self.ext.get_mut(&ExtKey::of(k))?;
        let b = e.remove(k.block)?;
        if e.is_empty() {
            self.ext.remove(&ExtKey::of(k));
        }
        self.blocks -= 1;
        Some(b)
    }

    /// The tail record with this seq.
    pub fn tail_at(&mut self, seq: Seq) -> Option<&mut TailRec> {
        let i = self.tail.partition_point(|t| t.rec.version.seq < seq);
        self.tail.get_mut(i).filter(|t| t.rec.version.seq == seq)
    }

    /// Is this version of a record still part of the group's history as known here?
    pub fn holds(&mut self, v: Version) -> bool {
        v.seq <= self.applied.seq || self.tail_at(v.seq).is_some_and(|t| t.rec.version == v)
    }

    /// Keeps tombstones within the limit: the older half goes, the delta floor rises.
    pub fn limit_tombs(&mut self, max: usize) {
        if self.tombs.len() <= max {
            return;
        }
        let mut all: Vec<Version> = self.tombs.values().copied().collect();
        all.sort_unstable();
        let cut = all[all.len() - max / 2 - 1];
        self.tombs.retain(|_, v| *v > cut);
        self.delta_floor = self.delta_floor.max(cut);
        self.cp_dirty = true;
    }
}

/// What waits for the log batch to be written before it gets into the index.
pub(crate) enum Done {
    Nothing,
    Rec { pg: u32, version: Version },
    Copy { pg: u32, copy: Box<Sealed>, slot: u32, repair: bool },
    Drop { pg: u32, list: Vec<(BlockKey, Version)> },
}
