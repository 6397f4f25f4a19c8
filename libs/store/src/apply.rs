//! What a committed record, a copy or a dropping does to the index.
//!
//! Runs in log order, live and in recovery alike. Everything is guarded by version: replay over
//! newer state changes nothing.

use crate::index::{Block, ExtKey, OvPage, Overlay, Pg, Sealed, TailRec};
use crate::layout::NO_SLOT;
use crate::place;
use crate::planted::{planted, Bug};
use crate::space::Space;
use crate::types::{BlockCopy, BlockKey, RecordKind};
use bytes::Bytes;
use quarry_base::{Seq, Version, VtreeId, BLOCK, PAGE};
use smallvec::SmallVec;

const PAGE32: u32 = PAGE as u32;

/// Pages `from..to` of a block as a mask.
pub(crate) fn mask_of(from: u32, to: u32) -> u16 {
    (((1u32 << to) - 1) & !((1u32 << from) - 1)) as u16
}

/// Cuts a byte range of an extent at block boundaries: (block, first page, page after the last).
pub(crate) fn blocks_of(offset: u32, len: u32) -> impl Iterator<Item = (u8, u32, u32)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let b = at / BLOCK;
        let to = end.min((b + 1) * BLOCK);
        let piece = ((b as u8), (at - b * BLOCK) / PAGE32, (to - b * BLOCK) / PAGE32);
        at = to;
        Some(piece)
    })
}

/// The slot a record gave block `b` of its range, if that block went straight to disk.
pub(crate) fn slot_of(slots: &[u32], offset: u32, b: u8) -> u32 {
    let first_whole = offset.div_ceil(BLOCK);
    let i = u32::from(b).checked_sub(first_whole);
    i.and_then(|i| slots.get(i as usize)).copied().unwrap_or(NO_SLOT)
}

/// Applies a record.
pub(crate) fn record(pg: &mut Pg, idx: u32, sp: &mut Space, t: &TailRec) {
    let (rec, batch) = (&t.rec, t.batch);
    match &rec.kind {
        RecordKind::Write { vtree, layer, extent, offset, crcs, data } => {
            let ext = ExtKey(*vtree, *layer, *extent);
            let mut page = 0usize;
            for (b, from, to) in blocks_of(*offset, crcs.len() as u32 * PAGE32) {
                let n = (to - from) as usize;
                let range = page..page + n;
                let checks = &t.checks[range.clone()];
                let key = ext.block(b);
                let slot = slot_of(&t.slots, *offset, b);
                if pg.newest(&sp.slots, key) >= rec.version {
                    // Older than what is here: a slot named for it belongs to nobody.
                    sp.free_slot(slot);
                } else if slot != NO_SLOT {
                    direct(pg, sp, key, rec.version, slot, 0xFFFF, 0xFFFF, checks);
                } else {
                    let data = data.slice(page * PAGE..(page + n) * PAGE);
                    let sums = crcs[range].iter().copied().zip(checks.iter().copied());
                    overlay(pg, idx, sp, key, rec.version, from, sums, data, batch);
                }
                page += n;
            }
        }
        RecordKind::Zero { vtree, layer, extent, offset, len } => {
            let ext = ExtKey(*vtree, *layer, *extent);
            for (b, from, to) in blocks_of(*offset, *len) {
                zero(pg, idx, sp, ext.block(b), rec.version, mask_of(from, to), batch);
            }
        }
        RecordKind::EpochStart { .. } => {}
        RecordKind::DropVtree { vtree } => drop_vtree(pg, sp, *vtree, rec.version),
    }
    pg.ids.commit(rec.origin, sp.max_id_runs);
    pg.limit_tombs(sp.max_tombs);
}

fn mark_dirty(b: &mut Block, pg_all_through: Version, mask: u16) {
    if planted(Bug::DirtyForgotten) || b.newest() != Version::ZERO && b.newest() <= pg_all_through {
        b.dirty = 0;
    }
    b.dirty |= mask;
}

/// A block whose content is all in `slot` now.
#[allow(clippy::too_many_arguments)]
fn direct(
    pg: &mut Pg,
    sp: &mut Space,
    key: BlockKey,
    version: Version,
    slot: u32,
    valid: u16,
    dirty: u16,
    checks: &[u32],
) {
    remove(pg, sp, key);
    let mut at = 0;
    for p in 0..16 {
        if valid >> p & 1 == 1 {
            sp.slots.set_check(slot, p, checks[at]);
            at += 1;
        }
    }
    let b = block_at(pg, sp, key);
    *b = Block { version, slot, valid, dirty, over: None };
    keep(pg, sp, key);
    pg.slots += 1;
    sp.stats.direct_writes += 1;
}

/// The block, made if it is not there.
fn block_at<'a>(pg: &'a mut Pg, sp: &mut Space, key: BlockKey) -> &'a mut Block {
    let id = pg.id;
    let (b, new) = pg.block_or_new(&mut sp.slots, key);
    if new {
        sp.promises.made(id, key.vtree);
    }
    b
}

/// The block has been changed. While the log is replayed the table does not follow, see `settle_slots`.
fn keep(pg: &mut Pg, sp: &mut Space, key: BlockKey) {
    if !sp.recovering {
        pg.cool(&mut sp.slots, key);
    }
}

/// The block's overlay, made if there is none, at `version`, holding `batch`.
fn over_at<'a>(b: &'a mut Block, sp: &mut Space, version: Version, batch: u64) -> &'a mut Overlay {
    if b.over.is_none() {
        if b.slot == NO_SLOT {
            sp.unslotted += 1;
        }
        b.over = Some(Box::new(Overlay {
            version,
            pages: SmallVec::new(),
            pins: SmallVec::new(),
            need: Seq(0),
            job: 0,
            queued: false,
        }));
    }
    match b.over.as_mut() {
        Some(o) => {
            o.version = version;
            if o.pins.last() != Some(&batch) {
                o.pins.push(batch);
                sp.batches.pin(batch);
            }
            o
        }
        None => unreachable!("just made"),
    }
}

fn put_page(o: &mut Overlay, sp: &mut Space, page: OvPage) {
    match o.pages.binary_search_by_key(&page.idx, |p| p.idx) {
        Ok(i) => o.pages[i] = page,
        Err(i) => {
            o.pages.insert(i, page);
            sp.stats.dirty_pages += 1;
        }
    }
}

/// Consecutive pages from `first` on get new content, so far in the log only.
#[allow(clippy::too_many_arguments)]
fn overlay(
    pg: &mut Pg,
    idx: u32,
    sp: &mut Space,
    key: BlockKey,
    version: Version,
    first: u32,
    sums: impl ExactSizeIterator<Item = (u32, u32)>,
    data: Bytes,
    batch: u64,
) {
    let all_through = pg.all_through;
    let b = block_at(pg, sp, key);
    mark_dirty(b, all_through, mask_of(first, first + sums.len() as u32));
    let o = over_at(b, sp, version, batch);
    o.need = o.need.max(version.seq);
    for (i, (crc, check)) in sums.enumerate() {
        let data = data.slice(i * PAGE..(i + 1) * PAGE);
        let (idx, unlogged) = (first as u8 + i as u8, false);
        put_page(o, sp, OvPage { idx, crc, check, version, data, unlogged });
    }
    settle(pg, idx, sp, key);
}

fn zero(pg: &mut Pg, idx: u32, sp: &mut Space, key: BlockKey, v: Version, mask: u16, batch: u64) {
    let all_through = pg.all_through;
    let Some(newest) = pg.block(&sp.slots, key).map(|b| b.newest()) else {
        // A member that gets both may still have the block: there this record makes it newer than a
        // tombstone of before, and the copy of that would be left out.
        if let Some(t) = pg.tombs.get_mut(&key) {
            *t = v.max(*t);
        }
        return;
    };
    if newest >= v {
        return;
    }
    let Some(b) = pg.block_mut(&mut sp.slots, key) else { return };
    mark_dirty(b, all_through, mask);
    b.valid &= !mask;
    if b.over.is_some() {
        let o = over_at(b, sp, v, batch);
        o.need = o.need.max(v.seq);
        let n = o.pages.len();
        o.pages.retain(|p| mask >> p.idx & 1 == 0);
        sp.stats.dirty_pages -= (n - o.pages.len()) as u64;
    } else {
        b.version = v;
    }
    settle(pg, idx, sp, key);
}

/// Brings a block to its simplest form after a change: an overlay without pages goes, a block
/// without content becomes a tombstone, one with pages to destage is queued.
pub(crate) fn settle(pg: &mut Pg, idx: u32, sp: &mut Space, key: BlockKey) {
    let Some(b) = pg.block_mut(&mut sp.slots, key) else { return };
    let has_slot = b.slot != NO_SLOT;
    if let Some(o) = b.over.as_mut().filter(|o| o.job == 0) {
        if !o.pages.is_empty() {
            // What comes from intents alone `place` brings to its slot.
            let others = !has_slot || o.pages.iter().any(|p| !p.unlogged);
            if !o.queued && others {
                o.queued = true;
                sp.dirty_q.push_back((idx, key));
            }
        } else {
            b.version = o.version;
            sp.unpin_all(&mut o.pins);
            if b.slot == NO_SLOT {
                sp.unslotted -= 1;
            }
            b.over = None;
        }
    }
    if b.over.is_none() && b.valid == 0 {
        let version = b.version;
        remove(pg, sp, key);
        if version > pg.all_through {
            pg.tombs.insert(key, version);
            // At the end of a destage nothing else says that the group's record lacks it.
            pg.cp_dirty = true;
        }
        return;
    }
    keep(pg, sp, key);
}

/// The block is gone, without a tombstone; its slot is freed.
pub(crate) fn remove(pg: &mut Pg, sp: &mut Space, key: BlockKey) {
    pg.tombs.remove(&key);
    let Some(mut b) = pg.take_block(&mut sp.slots, key, sp.recovering) else { return };
    sp.promises.gone(pg.id, key.vtree);
    if let Some(o) = b.over.as_mut() {
        sp.unpin_all(&mut o.pins);
        sp.stats.dirty_pages -= o.pages.len() as u64;
        if b.slot == NO_SLOT {
            sp.unslotted -= 1;
        }
    }
    if b.slot != NO_SLOT {
        pg.slots -= 1;
        sp.free_slot(b.slot);
    }
}

fn drop_vtree(pg: &mut Pg, sp: &mut Space, vtree: VtreeId, v: Version) {
    let keys: Vec<BlockKey> = pg
        .blocks_from(&sp.slots, ExtKey::of(vtree_range(vtree).0))
        .take_while(|(k, _)| k.vtree == vtree)
        .filter(|(_, b)| b.newest() < v)
        .map(|(k, _)| k)
        .collect();
    keys.into_iter().for_each(|k| remove(pg, sp, k));
    pg.tombs.retain(|k, t| k.vtree != vtree || *t >= v);
    let d = pg.dropped.entry(vtree).or_default();
    *d = v.max(*d);
}

/// All keys of a vTree lie between these two.
pub(crate) fn vtree_range(vtree: VtreeId) -> (BlockKey, BlockKey) {
    (BlockKey { vtree, ..BlockKey::MIN }, BlockKey { vtree, ..BlockKey::MAX })
}

/// A copy of a whole block; `slot` holds its data already if it is one. A block of the copy's very
/// version is replaced: a record of that version may have been applied to a stale block.
pub(crate) fn copy(pg: &mut Pg, idx: u32, sp: &mut Space, s: &Sealed, slot: u32, batch: u64) {
    let c = &s.copy;
    if pg.newest(&sp.slots, c.key) > c.version {
        return sp.free_slot(slot);
    }
    if slot != NO_SLOT {
        return direct(pg, sp, c.key, c.version, slot, c.valid, c.dirty, &s.checks);
    }
    if c.part != BlockCopy::WHOLE {
        return copy_part(pg, idx, sp, s, batch);
    }
    if c.valid == 0 {
        remove(pg, sp, c.key);
        if c.version > pg.all_through {
            pg.tombs.insert(c.key, c.version);
        }
        return pg.limit_tombs(sp.max_tombs);
    }
    let applied = pg.applied.seq;
    let b = block_at(pg, sp, c.key);
    (b.valid, b.dirty) = (0, c.dirty);
    let o = over_at(b, sp, c.version, batch);
    sp.stats.dirty_pages -= o.pages.len() as u64;
    o.pages.clear();
    // What is being destaged of the old content does not count when it ends.
    // Its slot may be that of a direct write, which recovery checks while it is uncommitted.
    (o.need, o.job) = (applied, 0);
    put_packed(o, sp, s, c.valid);
    settle(pg, idx, sp, c.key);
}

/// A copy of some parts: the others are what they were at the version the member has everything up to.
fn copy_part(pg: &mut Pg, idx: u32, sp: &mut Space, s: &Sealed, batch: u64) {
    let c = &s.copy;
    let applied = pg.applied.seq;
    let gone = c.part & !c.valid;
    let b = block_at(pg, sp, c.key);
    b.valid &= !gone;
    b.dirty |= c.dirty;
    let o = over_at(b, sp, c.version, batch);
    o.need = o.need.max(applied);
    let n = o.pages.len();
    o.pages.retain(|p| gone >> p.idx & 1 == 0);
    sp.stats.dirty_pages -= (n - o.pages.len()) as u64;
    if c.data.is_empty() {
        place::put_elsewhere(o, (idx, c.key), sp, s);
    } else {
        put_packed(o, sp, s, c.valid);
    }
    settle(pg, idx, sp, c.key);
}

fn put_packed(o: &mut Overlay, sp: &mut Space, s: &Sealed, mask: u16) {
    let (c, unlogged) = (&s.copy, s.unlogged);
    let mut at = 0;
    for idx in 0..16u8 {
        if c.valid >> idx & 1 == 0 {
            continue;
        }
        if mask >> idx & 1 == 1 {
            let (crc, check, version) = (c.crcs[at], s.checks[at], c.version);
            let data = c.data.slice(at * PAGE..(at + 1) * PAGE);
            put_page(o, sp, OvPage { idx, crc, check, version, data, unlogged });
        }
        at += 1;
    }
}

/// Content of exactly the block's version: its pages on disk are written anew, in place.
pub(crate) fn repair(pg: &mut Pg, idx: u32, sp: &mut Space, s: &Sealed, batch: u64) {
    let c = &s.copy;
    let Some(b) = pg.block(&sp.slots, c.key) else { return };
    let newer = b.over.into_iter().flat_map(|o| o.pages.iter()).filter(|p| !p.is_elsewhere());
    let mask = c.valid & b.valid & !newer.fold(0, |m, p| m | 1 << p.idx);
    if b.newest() != c.version || mask == 0 {
        return;
    }
    let Some(b) = pg.block_mut(&mut sp.slots, c.key) else { return };
    let o = over_at(b, sp, c.version, batch);
    put_packed(o, sp, s, mask);
    sp.stats.repairs += 1;
    settle(pg, idx, sp, c.key);
}

/// Forgets blocks and tombstones that are not newer than named.
pub(crate) fn drop_list(pg: &mut Pg, sp: &mut Space, list: &[(BlockKey, Version)]) {
    for (k, v) in list {
        if pg.newest(&sp.slots, *k) <= *v {
            remove(pg, sp, *k);
        }
    }
}
