//! The memory of the block table: sixteen bytes a slot, and one record an extent that its slots share.
//!
//! What is on disk of a block is here once only. A slot's entry says version, masks and which block of which extent
//! it is; the extent's record says where each of its blocks is, so that the index of a group needs no more than the
//! record's number (see `index`). A record stays as long as a block is in it; its place is used again, the memory is not given back.
//!
//! Versions are packed into 60 bits: the number of the epoch in a list of those that are in the table, and the
//! seq. One that does not fit (more than 65,535 epochs at a time, or a seq from 2^44 on) is kept beside, by slot.
//!
//! Nothing walks a hash map here: the one there is finds an epoch's number.

use quarry_base::{Epoch, Extent, Layer, PgId, Seq, Version, VtreeId};
use std::collections::{BTreeMap, HashMap};

/// "No record", and of an entry: free.
pub(crate) const NONE: u32 = u32::MAX;
/// Records allocated at once: growth never copies nor doubles.
const CHUNK: usize = 1024;
const SEQ_BITS: u32 = 44;
/// Number of an epoch that says: the version is kept beside.
const WIDE: u64 = 0xFFFF;

/// A slot's entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Packed {
    /// Epoch's number (16 bits), seq (44), block of the extent (4).
    word: u64,
    /// The extent's record.
    pub ext: u32,
    pub valid: u16,
    pub dirty: u16,
}

impl Packed {
    pub const FREE: Packed = Packed { word: 0, ext: NONE, valid: 0, dirty: 0 };

    pub fn is_free(&self) -> bool {
        self.ext == NONE
    }
    pub fn block(&self) -> u8 {
        (self.word & 15) as u8
    }
    fn is_wide(&self) -> bool {
        self.word >> 48 == WIDE
    }
}

/// A layer of a vTree in a group: what its extents have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LayerKey {
    pub pg: PgId,
    pub vtree: VtreeId,
    pub layer: Layer,
}

/// An extent that has blocks.
#[derive(Clone, Copy)]
pub(crate) struct ExtRec {
    /// Number of its layer.
    pub layer: u32,
    /// Of a record that is not used: the next one that is not.
    pub extent: u32,
    /// Bit i: block i exists.
    pub mask: u16,
    /// Bit i: block i is held by its group, at place `at[i]`; else it is what the table says of slot `at[i]`.
    pub hot: u16,
    pub at: [u32; 16],
}

impl ExtRec {
    pub fn has(&self, b: u8) -> bool {
        self.mask >> b & 1 == 1
    }
    pub fn is_hot(&self, b: u8) -> bool {
        self.hot >> b & 1 == 1
    }
}

/// What a block costs: 16 bytes, and with all 16 of an extent in use a sixteenth of its record.
const _: () = assert!(size_of::<Packed>() == 16 && size_of::<ExtRec>() <= 76);

#[derive(Default)]
pub(crate) struct Owners {
    layers: Vec<Option<LayerKey>>,
    free_layers: Vec<u32>,
    chunks: Vec<Vec<ExtRec>>,
    free_ext: Option<u32>,
    /// By number, with how many entries have it; none: the number is free.
    epochs: Vec<(Epoch, u32)>,
    free_epochs: Vec<u16>,
    by_epoch: HashMap<Epoch, u16>,
    /// The one looked for last.
    last: Option<(Epoch, u16)>,
    wide: BTreeMap<u32, Version>,
}

/// What is in use, for the audit.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Census {
    pub layers: usize,
    pub extents: usize,
    /// Entries that are not free.
    pub entries: usize,
}

impl Owners {
    pub fn new_layer(&mut self, k: LayerKey) -> u32 {
        if let Some(i) = self.free_layers.pop() {
            self.layers[i as usize] = Some(k);
            return i;
        }
        self.layers.push(Some(k));
        self.layers.len() as u32 - 1
    }
    pub fn drop_layer(&mut self, i: u32) {
        self.layers[i as usize] = None;
        self.free_layers.push(i);
    }
    /// The layer's owner and the extent of a record; `None`: it is not used.
    pub fn extent(&self, r: u32) -> Option<(LayerKey, Extent)> {
        let x = self.chunks.get(r as usize / CHUNK)?.get(r as usize % CHUNK)?;
        Some(((*self.layers.get(x.layer as usize)?)?, Extent(x.extent)))
    }

    pub fn new_ext(&mut self, layer: u32, extent: u32) -> u32 {
        let x = ExtRec { layer, extent, mask: 0, hot: 0, at: [0; 16] };
        if let Some(r) = self.free_ext {
            let next = self.ext(r).extent;
            self.free_ext = (next != NONE).then_some(next);
            *self.ext_mut(r) = x;
            return r;
        }
        if self.chunks.last().is_none_or(|c| c.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let full = (self.chunks.len() - 1) * CHUNK;
        match self.chunks.last_mut() {
            Some(c) => {
                c.push(x);
                (full + c.len() - 1) as u32
            }
            None => unreachable!("just pushed"),
        }
    }
    pub fn drop_ext(&mut self, r: u32) {
        let extent = self.free_ext.unwrap_or(NONE);
        *self.ext_mut(r) = ExtRec { layer: NONE, extent, mask: 0, hot: 0, at: [0; 16] };
        self.free_ext = Some(r);
    }
    /// The records of groups that were dropped while records stayed, see `Pg::take_block`. Those of groups that are here
    /// have all blocks.
    pub fn drop_orphans(&mut self) {
        let count = self.chunks.iter().map(Vec::len).sum::<usize>() as u32;
        for r in 0..count {
            let ExtRec { mask, layer, .. } = *self.ext(r);
            if mask != 0 || layer == NONE {
                continue;
            }
            self.drop_ext(r);
            if self.layers[layer as usize].is_some() {
                self.drop_layer(layer);
            }
        }
    }

    pub fn ext(&self, r: u32) -> &ExtRec {
        &self.chunks[r as usize / CHUNK][r as usize % CHUNK]
    }
    pub fn ext_mut(&mut self, r: u32) -> &mut ExtRec {
        &mut self.chunks[r as usize / CHUNK][r as usize % CHUNK]
    }

    /// The number of an epoch, for one more entry.
    fn epoch_no(&mut self, e: Epoch) -> u64 {
        let known = self.last.filter(|(last, _)| *last == e).map(|(_, n)| n);
        let n = match known.or_else(|| self.by_epoch.get(&e).copied()) {
            Some(n) => n,
            None => {
                let n = match self.free_epochs.pop() {
                    Some(n) => n,
                    None if self.epochs.len() as u64 == WIDE => return WIDE,
                    None => {
                        self.epochs.push((e, 0));
                        (self.epochs.len() - 1) as u16
                    }
                };
                self.epochs[usize::from(n)] = (e, 0);
                self.by_epoch.insert(e, n);
                n
            }
        };
        self.epochs[usize::from(n)].1 += 1;
        self.last = Some((e, n));
        u64::from(n)
    }

    /// The entry of a slot. `old`: the one that it replaces.
    pub fn pack(&mut self, slot: u32, old: Packed, new: Unpacked) -> Packed {
        let Unpacked { ext, block, version, valid, dirty } = new;
        let seq = version.seq.0;
        let mut no = WIDE;
        if seq >> SEQ_BITS == 0 {
            no = self.epoch_no(version.epoch);
        }
        self.forget(slot, old);
        let low = if no == WIDE { 0 } else { seq };
        if no == WIDE {
            self.wide.insert(slot, version);
        }
        Packed { word: no << 48 | low << 4 | u64::from(block), ext, valid, dirty }
    }
    /// The slot's entry counts no more.
    pub fn forget(&mut self, slot: u32, old: Packed) {
        if old.is_free() {
            return;
        }
        if old.is_wide() {
            self.wide.remove(&slot);
            return;
        }
        let n = (old.word >> 48) as u16;
        let Some((epoch, used)) = self.epochs.get_mut(usize::from(n)) else { return };
        *used -= 1;
        if *used == 0 {
            self.by_epoch.remove(epoch);
            self.free_epochs.push(n);
            self.last = self.last.filter(|(_, last)| *last != n);
        }
    }

    pub fn version(&self, slot: u32, p: Packed) -> Version {
        if p.is_wide() {
            return self.wide.get(&slot).copied().unwrap_or_default();
        }
        let epoch = self.epochs.get((p.word >> 48) as usize).copied().unwrap_or_default().0;
        Version::new(epoch, Seq(p.word >> 4 & ((1 << SEQ_BITS) - 1)))
    }

    pub fn census(&self) -> Census {
        let records = self.chunks.iter().flatten();
        let numbered: usize = self.epochs.iter().map(|(_, used)| *used as usize).sum();
        Census {
            layers: self.layers.iter().flatten().count(),
            extents: records.filter(|x| x.layer != NONE).count(),
            entries: numbered + self.wide.len(),
        }
    }

    /// Bytes of memory, what is reserved included.
    pub fn memory(&self) -> usize {
        let records = self.chunks.iter().map(|c| c.capacity() * size_of::<ExtRec>()).sum::<usize>();
        records
            + self.chunks.capacity() * size_of::<Vec<ExtRec>>()
            + self.layers.capacity() * size_of::<Option<LayerKey>>()
            + (self.free_layers.capacity() + self.free_epochs.capacity()) * 4
            + self.epochs.capacity() * size_of::<(Epoch, u32)>()
            + self.by_epoch.capacity() * size_of::<(Epoch, u16, u8)>()
            + map_bytes::<u32, Version>(self.wide.len())
    }
}

/// What so many entries of an ordered map take: nodes of eleven places, about half of them in use, as after entries in order.
pub(crate) fn map_bytes<K, V>(n: usize) -> usize {
    (n * (size_of::<K>() + size_of::<V>() + 4)).div_ceil(4) * 7
}

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Unpacked {
    pub ext: u32,
    pub block: u8,
    pub version: Version,
    pub valid: u16,
    pub dirty: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_comes_back_as_it_went_in() {
        let mut o = Owners::default();
        let mut all = vec![(0, 0), (1, 1), (u64::MAX, (1 << 44) - 1), (3, 1 << 44)];
        all.extend([(u64::MAX, u64::MAX), (0, u64::MAX)]);
        all.extend((0..70_000).map(|e| (e + 10, e)));
        let mut kept = Vec::new();
        for (slot, (e, s)) in all.iter().enumerate() {
            let version = Version::new(Epoch(*e), Seq(*s));
            let block = (slot % 16) as u8;
            let u = Unpacked { ext: 7, block, version, valid: 0x8001, dirty: 2 };
            kept.push((slot as u32, u, o.pack(slot as u32, Packed::FREE, u)));
        }
        for (slot, u, p) in &kept {
            let back = (p.ext, p.block(), o.version(*slot, *p), p.valid, p.dirty);
            assert_eq!(back, (u.ext, u.block, u.version, u.valid, u.dirty));
        }
        assert!(o.wide.len() > 4000, "more epochs than have numbers");
        assert_eq!(o.census().entries, kept.len());
        for (slot, _, p) in &kept {
            o.forget(*slot, *p);
        }
        assert!(o.wide.is_empty());
        assert_eq!((o.census(), o.by_epoch.len(), o.last), (Census::default(), 0, None));
    }

    /// A group's epoch rises with each change of its members: there is no end to them while a store is open.
    #[test]
    fn numbers_of_epochs_are_used_again() {
        let mut o = Owners::default();
        let mut at = [Packed::FREE; 8];
        for e in 0..200_000u64 {
            let slot = (e % 8) as u32;
            let version = Version::new(Epoch(e), Seq(e));
            let new = Unpacked { ext: 1, block: 0, version, valid: 1, dirty: 1 };
            at[slot as usize] = o.pack(slot, at[slot as usize], new);
            assert_eq!(o.version(slot, at[slot as usize]), version);
        }
        assert!(o.wide.is_empty() && o.epochs.len() < 16, "{} epochs", o.epochs.len());
        assert_eq!(o.census().entries, 8);
    }

    #[test]
    fn places_of_records_are_used_again() {
        let mut o = Owners::default();
        let a: Vec<u32> = (0..3000).map(|e| o.new_ext(0, e)).collect();
        a.iter().for_each(|r| o.drop_ext(*r));
        let mut b: Vec<u32> = (0..3000).map(|e| o.new_ext(0, e)).collect();
        b.sort_unstable();
        assert_eq!(a, b);
        assert_eq!(o.new_ext(0, 0), 3000);
        o.ext_mut(7).mask = 1;
        o.layers.push(None);
        o.drop_orphans();
        let mut c: Vec<u32> = (0..3000).map(|e| o.new_ext(0, e)).collect();
        c.sort_unstable();
        assert_eq!(c, (0..=3000).filter(|r| *r != 7).collect::<Vec<_>>());
    }
}
