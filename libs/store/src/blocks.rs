//! How a group's blocks are found, changed and walked; see `index` for what they are.

use crate::index::{Block, ExtKey, Extents, Pg, View};
use crate::layout::NO_SLOT;
use crate::owners::{map_bytes, ExtRec, LayerKey, Packed, Unpacked};
use crate::slots::SlotTable;
use crate::types::BlockKey;
use quarry_base::{Extent, Layer, Version, VtreeId};
use std::collections::BTreeMap;

impl Pg {
    fn find(&self, k: BlockKey) -> Option<u32> {
        self.layers.get(&(k.vtree, k.layer))?.by.get(&k.extent.0).copied()
    }

    fn view<'a>(&'a self, t: &SlotTable, x: &ExtRec, b: u8) -> Option<View<'a>> {
        if !x.has(b) {
            return None;
        }
        let at = x.at[b as usize];
        if x.is_hot(b) {
            return self.hot.get(at).map(Block::view);
        }
        let p = t.packed(at);
        let version = t.owners.version(at, p);
        Some(View { version, slot: at, valid: p.valid, dirty: p.dirty, over: None })
    }

    pub fn block<'a>(&'a self, t: &SlotTable, k: BlockKey) -> Option<View<'a>> {
        self.view(t, t.owners.ext(self.find(k)?), k.block)
    }

    /// The block, to be changed: hot from now on, until `cool`.
    pub fn block_mut(&mut self, t: &mut SlotTable, k: BlockKey) -> Option<&mut Block> {
        let r = self.find(k)?;
        self.heat(t, r, k.block)
    }

    fn heat(&mut self, t: &mut SlotTable, r: u32, b: u8) -> Option<&mut Block> {
        let x = *t.owners.ext(r);
        if !x.has(b) {
            return None;
        }
        let mut at = x.at[b as usize];
        if !x.is_hot(b) {
            let View { version, slot, valid, dirty, .. } = self.view(t, &x, b)?;
            at = self.hot.put(Block { version, slot, valid, dirty, over: None });
            let x = t.owners.ext_mut(r);
            (x.hot, x.at[b as usize]) = (x.hot | 1 << b, at);
        }
        self.hot.get_mut(at)
    }

    /// The block has been changed: the table gets to know, and without an overlay it is held there alone.
    pub fn cool(&mut self, t: &mut SlotTable, k: BlockKey) {
        let Some(r) = self.find(k) else { return };
        let x = t.owners.ext(r);
        if !x.has(k.block) || !x.is_hot(k.block) {
            return;
        }
        let at = x.at[k.block as usize];
        let Some(b) = self.hot.get(at).filter(|b| b.slot != NO_SLOT) else { return };
        t.set(b.slot, Some(unpacked(r, k.block, b.view())));
        self.hand_over(t, k);
    }

    /// Without an overlay the table alone has it from now on.
    fn hand_over(&mut self, t: &mut SlotTable, k: BlockKey) {
        let Some(r) = self.find(k) else { return };
        let x = t.owners.ext_mut(r);
        if !x.is_hot(k.block) {
            return;
        }
        let at = x.at[k.block as usize];
        let here = self.hot.get(at).filter(|b| b.over.is_none());
        if let Some(slot) = here.map(|b| b.slot) {
            self.hot.take(at);
            (x.hot, x.at[k.block as usize]) = (x.hot & !(1 << k.block), slot);
        }
    }

    /// At the end of recovery: `cool`, but what the table says already is not changed, and so not written again.
    pub fn cool_if_changed(&mut self, t: &mut SlotTable, k: BlockKey, slot: u32, u: Unpacked) {
        let p = t.packed(slot);
        let (block, version) = (p.block(), t.owners.version(slot, p));
        let now = Unpacked { ext: p.ext, block, version, valid: p.valid, dirty: p.dirty };
        if p.is_free() || now != u {
            return self.cool(t, k);
        }
        self.hand_over(t, k);
    }

    /// Newest version known of a key: its block's, its tombstone's, or that of its vTree's end.
    pub fn newest(&self, t: &SlotTable, k: BlockKey) -> Version {
        match self.block(t, k) {
            Some(b) => b.newest(),
            None => self.tombs.get(&k).max(self.dropped.get(&k.vtree)).copied().unwrap_or_default(),
        }
    }

    fn ext_or_new(&mut self, t: &mut SlotTable, k: BlockKey) -> u32 {
        let (pg, vtree, layer) = (self.id, k.vtree, k.layer);
        let e = self.layers.entry((vtree, layer)).or_insert_with(|| {
            let layer = t.owners.new_layer(LayerKey { pg, vtree, layer });
            Extents { layer, by: BTreeMap::new() }
        });
        let layer = e.layer;
        *e.by.entry(k.extent.0).or_insert_with(|| t.owners.new_ext(layer, k.extent.0))
    }

    /// The block, made if it is not there (then `true`); a tombstone goes. Hot, see `block_mut`.
    pub fn block_or_new(&mut self, t: &mut SlotTable, k: BlockKey) -> (&mut Block, bool) {
        let r = self.ext_or_new(t, k);
        let new = !t.owners.ext(r).has(k.block);
        if new {
            let at = self.hot.put(Block::empty());
            let x = t.owners.ext_mut(r);
            (x.mask, x.hot) = (x.mask | 1 << k.block, x.hot | 1 << k.block);
            x.at[k.block as usize] = at;
            self.blocks += 1;
            self.tombs.remove(&k);
        }
        match self.heat(t, r, k.block) {
            Some(b) => (b, new),
            None => unreachable!("just inserted"),
        }
    }

    /// Recovery: a block as the table on disk has it. False: there is one of this key already.
    pub fn adopt(&mut self, t: &mut SlotTable, k: BlockKey, v: View<'_>) -> bool {
        let r = self.ext_or_new(t, k);
        let x = t.owners.ext_mut(r);
        if x.has(k.block) {
            return false;
        }
        (x.mask, x.at[k.block as usize]) = (x.mask | 1 << k.block, v.slot);
        t.put(v.slot, Some(unpacked(r, k.block, v)));
        self.blocks += 1;
        self.slots += 1;
        true
    }

    /// The block goes. `keep`: its extent's record stays even if this was the last one in it, as the entries of the
    /// table, which do not follow the index now, still name it; see `sweep`.
    pub fn take_block(&mut self, t: &mut SlotTable, k: BlockKey, keep: bool) -> Option<Block> {
        let r = self.find(k)?;
        let x = *t.owners.ext(r);
        let View { version, slot, valid, dirty, .. } = self.view(t, &x, k.block)?;
        let b = if x.is_hot(k.block) {
            self.hot.take(x.at[k.block as usize])?
        } else {
            Block { version, slot, valid, dirty, over: None }
        };
        let x = t.owners.ext_mut(r);
        (x.mask, x.hot) = (x.mask & !(1 << k.block), x.hot & !(1 << k.block));
        self.blocks -= 1;
        if x.mask == 0 && !keep {
            self.drop_extent(t, ExtKey::of(k), r);
        }
        Some(b)
    }

    fn drop_extent(&mut self, t: &mut SlotTable, e: ExtKey, r: u32) {
        t.owners.drop_ext(r);
        let Some(l) = self.layers.get_mut(&(e.0, e.1)) else { return };
        l.by.remove(&e.2 .0);
        if l.by.is_empty() {
            t.owners.drop_layer(l.layer);
            self.layers.remove(&(e.0, e.1));
        }
    }

    /// Records without a block, which `take_block` kept, go.
    pub fn sweep(&mut self, t: &mut SlotTable) {
        let empty: Vec<(ExtKey, u32)> =
            self.extents(ExtKey::MIN).filter(|(_, r)| t.owners.ext(*r).mask == 0).collect();
        empty.into_iter().for_each(|(e, r)| self.drop_extent(t, e, r));
    }

    /// Extents from `from` on that have blocks, in order, with the numbers of their records.
    fn extents(&self, from: ExtKey) -> impl Iterator<Item = (ExtKey, u32)> + '_ {
        let ExtKey(vtree, layer, extent) = from;
        self.layers.range((vtree, layer)..).flat_map(move |((v, l), x)| {
            let first = if (*v, *l) == (vtree, layer) { extent.0 } else { 0 };
            x.by.range(first..).map(move |(e, r)| (ExtKey(*v, *l, Extent(*e)), *r))
        })
    }

    /// Blocks from the beginning of an extent on, in order.
    pub fn blocks_from<'a>(
        &'a self,
        t: &'a SlotTable,
        from: ExtKey,
    ) -> impl Iterator<Item = (BlockKey, View<'a>)> + 'a {
        self.extents(from).flat_map(move |(e, r)| {
            let x = t.owners.ext(r);
            (0..16u8).filter_map(move |b| Some((e.block(b), self.view(t, x, b)?)))
        })
    }

    /// How many blocks of a vTree there are.
    pub fn count(&self, t: &SlotTable, vtree: VtreeId) -> u64 {
        let from = ExtKey(vtree, ExtKey::MIN.1, ExtKey::MIN.2);
        let all = self.extents(from).take_while(|(e, _)| e.0 == vtree);
        all.map(|(_, r)| u64::from(t.owners.ext(r).mask.count_ones())).sum()
    }

    /// For the end of recovery: blocks held here with a slot, and what the table should say of it.
    pub fn hot_slots(&self, t: &SlotTable) -> Vec<(BlockKey, u32, Unpacked)> {
        let mut out = Vec::new();
        for (e, r) in self.extents(ExtKey::MIN) {
            let x = t.owners.ext(r);
            for b in (0..16u8).filter(|b| x.has(*b) && x.is_hot(*b)) {
                let v = self.view(t, x, b).filter(|v| v.slot != NO_SLOT);
                out.extend(v.map(|v| (e.block(b), v.slot, unpacked(r, b, v))));
            }
        }
        out
    }

    /// Bytes of memory of the index and of the hot blocks, their overlays' content not counted.
    pub fn index_memory(&self) -> usize {
        let by = self.layers.values().map(|x| map_bytes::<u32, u32>(x.by.len())).sum::<usize>();
        by + map_bytes::<(VtreeId, Layer), Extents>(self.layers.len()) + self.hot.memory()
    }

    /// For the audit: layers, and records of extents.
    pub fn counts(&self) -> (usize, usize) {
        (self.layers.len(), self.layers.values().map(|x| x.by.len()).sum())
    }

    /// For the audit: blocks held here, and blocks with an overlay. The same outside of a change.
    pub fn held_hot(&self, t: &SlotTable) -> (usize, usize) {
        let over = self.blocks_from(t, ExtKey::MIN).filter(|(_, b)| b.over.is_some()).count();
        (self.hot.len(), over)
    }

    /// Is the entry of this slot that of one of this group's blocks?
    pub fn owns(&self, t: &SlotTable, slot: u32, p: Packed) -> bool {
        self.view(t, t.owners.ext(p.ext), p.block()).is_some_and(|v| v.slot == slot)
    }
}

fn unpacked(ext: u32, block: u8, v: View<'_>) -> Unpacked {
    Unpacked { ext, block, version: v.version, valid: v.valid, dirty: v.dirty }
}
