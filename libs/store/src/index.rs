//! What a placement group holds: blocks by key, tombstones, the uncommitted tail, ids.
//!
//! A block is what is on disk (slot, version, valid pages) plus an overlay: committed pages that are
//! so far only in the log and here in memory. One without an overlay is held by the table of slots alone (`owners`), and the
//! index has no more of it than where it is; one that has an overlay or no slot yet, or is being changed, is
//! *hot*: held whole here. The hot ones are bounded by the log. Only committed content gets into a block, and only if
//! its version is above the block's, which makes replay of the log idempotent.

use crate::ids::IdTable;
use crate::layout::NO_SLOT;
use crate::seal::Checks;
use crate::space::Batches;
use crate::types::{BlockCopy, BlockKey, Record};
use bytes::Bytes;
use quarry_base::{Extent, Instance, Layer, PgId, RequestId, Seq, Version, VtreeId};
use smallvec::SmallVec;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};

/// A copy of a block and the checks of its pages.
pub(crate) struct Sealed {
    pub copy: BlockCopy,
    pub checks: Checks,
    /// Its content does not go to the log.
    pub unlogged: bool,
}

/// A committed page not yet on disk.
pub(crate) struct OvPage {
    pub idx: u8,
    pub crc: u32,
    /// What its block will keep of it, see `seal`.
    pub check: u32,
    pub version: Version,
    pub data: Bytes,
    /// The log has no content of it: it comes from an intent, see `place`.
    pub unlogged: bool,
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

impl OvPage {
    /// Its content is on the device, if anywhere: an intent that was found in the log.
    pub fn is_elsewhere(&self) -> bool {
        self.data.is_empty()
    }
}

impl Block {
    pub fn empty() -> Block {
        Block { version: Version::ZERO, slot: NO_SLOT, valid: 0, dirty: 0xFFFF, over: None }
    }
    pub fn newest(&self) -> Version {
        self.over.as_ref().map_or(self.version, |o| o.version)
    }
    pub fn view(&self) -> View<'_> {
        let Block { version, slot, valid, dirty, .. } = *self;
        View { version, slot, valid, dirty, over: self.over.as_deref() }
    }
}

/// A block as it is, to look at; the fields as in [`Block`].
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub version: Version,
    pub slot: u32,
    pub valid: u16,
    pub dirty: u16,
    pub over: Option<&'a Overlay>,
}

impl<'a> View<'a> {
    pub fn newest(&self) -> Version {
        self.over.map_or(self.version, |o| o.version)
    }
    pub fn over_mask(&self) -> u16 {
        self.over.map_or(0, |o| o.pages.iter().fold(0, |m, p| m | 1 << p.idx))
    }
    /// Pages with content, in memory or on disk.
    pub fn content(&self) -> u16 {
        self.valid | self.over_mask()
    }
    pub fn over_page(&self, idx: u32) -> Option<&'a OvPage> {
        self.over?.pages.iter().find(|p| u32::from(p.idx) == idx)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ExtKey(pub VtreeId, pub Layer, pub Extent);

impl ExtKey {
    /// Not above any.
    pub const MIN: ExtKey = ExtKey(VtreeId(0), Layer(0), Extent(0));

    pub fn of(k: BlockKey) -> ExtKey {
        ExtKey(k.vtree, k.layer, k.extent)
    }
    pub fn block(self, block: u8) -> BlockKey {
        BlockKey { vtree: self.0, layer: self.1, extent: self.2, block }
    }
}

/// The hot blocks of a group, by place. The lowest place is taken first, so that the end of the list becomes free and its
/// memory is given back: there are many groups, and what one once needed is not what it needs now.
#[derive(Default)]
pub(crate) struct Hot {
    list: Vec<Option<Block>>,
    /// Every place not in use is here; one that is in use or beyond the end may be, and is passed over.
    free: BinaryHeap<Reverse<u32>>,
    used: usize,
}

/// So many places are kept.
const KEEP_PLACES: usize = 64;

impl Hot {
    pub fn put(&mut self, b: Block) -> u32 {
        self.used += 1;
        while let Some(Reverse(i)) = self.free.pop() {
            if let Some(p @ None) = self.list.get_mut(i as usize) {
                *p = Some(b);
                return i;
            }
        }
        self.list.push(Some(b));
        self.list.len() as u32 - 1
    }
    pub fn take(&mut self, i: u32) -> Option<Block> {
        let b = self.list.get_mut(i as usize)?.take()?;
        self.used -= 1;
        self.free.push(Reverse(i));
        while self.list.last().is_some_and(Option::is_none) {
            self.list.pop();
        }
        let n = self.list.len().max(KEEP_PLACES);
        if self.used == 0 && self.list.capacity() > n {
            *self = Hot::default();
        }
        if self.list.capacity() > 4 * n {
            self.list.shrink_to(2 * n);
        }
        if self.free.len() > 2 * n {
            let places = self.list.iter().zip(0..);
            self.free = places.filter(|(p, _)| p.is_none()).map(|(_, i)| Reverse(i)).collect();
        }
        Some(b)
    }
    pub fn len(&self) -> usize {
        self.used
    }
    /// Bytes of memory, what is reserved included.
    pub fn memory(&self) -> usize {
        self.list.capacity() * size_of::<Option<Block>>() + self.free.capacity() * 4
    }
    pub fn get(&self, i: u32) -> Option<&Block> {
        self.list.get(i as usize)?.as_ref()
    }
    pub fn get_mut(&mut self, i: u32) -> Option<&mut Block> {
        self.list.get_mut(i as usize)?.as_mut()
    }
}

/// The extents of a layer that have blocks: the number of each one's record.
pub(crate) struct Extents {
    pub layer: u32,
    pub by: BTreeMap<u32, u32>,
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
    /// Log batch that it is applied from; 0: not built yet.
    pub batch: u64,
    /// Log batch that has it once more and is not written yet; 0: none. Until it is, the one before holds the record: what
    /// has been written stays so, and is applied in the moment it is committed.
    pub again: u64,
}

impl TailRec {
    /// Batches that must stay because of it.
    pub fn pins(&self) -> impl Iterator<Item = u64> {
        [self.batch, self.again].into_iter().filter(|no| *no != 0)
    }

    /// Batch `no` has it. True: one before had it.
    pub fn built(&mut self, no: u64, batches: &mut Batches) -> bool {
        batches.pin(no);
        let place = if self.batch == 0 { &mut self.batch } else { &mut self.again };
        let old = std::mem::replace(place, no);
        if old != 0 {
            batches.unpin(old);
        }
        self.again == no
    }

    /// Everything up to batch `no` is written.
    pub fn written(&mut self, no: u64, batches: &mut Batches) {
        if self.again != 0 && self.again <= no {
            batches.unpin(std::mem::replace(&mut self.batch, self.again));
            self.again = 0;
        }
    }
}

/// One placement group on this device.
pub(crate) struct Pg {
    pub id: PgId,
    pub layers: BTreeMap<(VtreeId, Layer), Extents>,
    pub hot: Hot,
    pub tombs: BTreeMap<BlockKey, Version>,
    /// When vTrees ended that were deleted since `delta_floor`, at least.
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
            layers: BTreeMap::new(),
            hot: Hot::default(),
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

    /// The tail record with this seq.
    pub fn tail_at(&mut self, seq: Seq) -> Option<&mut TailRec> {
        let i = self.tail.partition_point(|t| t.rec.version.seq < seq);
        self.tail.get_mut(i).filter(|t| t.rec.version.seq == seq)
    }

    /// Is this version of a record still part of the group's history as known here?
    pub fn holds(&mut self, v: Version) -> bool {
        v.seq <= self.applied.seq || self.tail_at(v.seq).is_some_and(|t| t.rec.version == v)
    }

    /// Keeps tombstones and ends of vTrees together within the limit: the older half goes, the delta floor rises.
    ///
    /// Nothing that an end forgotten here would hold off can still come. Records apply in order, and a copy of a block is
    /// taken and sent under the block's lock, so whatever is older than the end lies before it in the log: a replay that finds
    /// the one finds the other. A member that needs the end is below the floor from now on and is compared in full.
    pub fn limit_tombs(&mut self, max: usize) {
        if self.tombs.len() + self.dropped.len() <= max {
            return;
        }
        let mut all: Vec<Version> =
            self.tombs.values().chain(self.dropped.values()).copied().collect();
        all.sort_unstable();
        let cut = all[all.len() - max / 2 - 1];
        self.tombs.retain(|_, v| *v > cut);
        self.dropped.retain(|_, v| *v > cut);
        self.delta_floor = self.delta_floor.max(cut);
        self.cp_dirty = true;
    }
}

/// What waits for the log batch to be written before it gets into the index.
pub(crate) enum Done {
    Nothing,
    /// `again`: the log had it before.
    Rec {
        pg: u32,
        version: Version,
        again: bool,
    },
    Copy {
        pg: u32,
        copy: Box<Sealed>,
        slot: u32,
        repair: bool,
    },
    Drop {
        pg: u32,
        list: Vec<(BlockKey, Version)>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks come and go; one is always there. What a burst needed is given back after it.
    #[test]
    fn a_group_gives_back_what_a_burst_of_hot_blocks_took() {
        let mut h = Hot::default();
        let small = |h: &Hot| h.memory() <= 4 * KEEP_PLACES * (size_of::<Option<Block>>() + 4);
        for round in 0..20u32 {
            let mut all: Vec<u32> = (0..20_000).map(|_| h.put(Block::empty())).collect();
            all.sort_unstable();
            all.dedup();
            assert_eq!((all.len(), h.len()), (20_000, 20_000));
            assert!(!small(&h));
            let mut last = h.put(Block::empty());
            for (n, i) in all.into_iter().enumerate() {
                assert!(h.take(i).is_some() && h.take(i).is_none());
                if n as u32 % 3 == round % 3 {
                    let next = h.put(Block::empty());
                    assert!(h.get(next).is_some() && h.take(last).is_some());
                    last = next;
                }
            }
            assert_eq!(h.len(), 1);
            assert!(small(&h), "{} bytes for one block", h.memory());
            assert!(h.take(last).is_some());
        }
        assert_eq!(h.len(), 0);
    }
}
