//! What clients write, and where: contents that name themselves, ranges that collide.

use crate::client::Kind;
use crate::rng::Rng;
use bytes::Bytes;
use quarry_base::*;
use quarry_wire::flags;

pub const SECTOR: u32 = 512;

/// What the workload looks like.
#[derive(Clone, Debug)]
pub struct Load {
    /// Of the first volume.
    pub extents: u32,
    /// Blocks of an extent that are used, 3 at most, and pages of each where small operations begin: few of them
    /// collide more often.
    pub blocks: u32,
    pub pages: u32,
    pub depth: usize,
    /// Writes may be asked for while others of the same client to the same place are open.
    pub overlaps: bool,
    /// Of a hundred operations, those that begin in one extent and end in the next.
    pub crossing: u64,
    /// Trims of whole blocks, of a hundred operations.
    pub trims: u64,
    /// Flushes of a hundred operations, where they mean something.
    pub flushes: u64,
    /// Time between two operations of a client, milliseconds at most.
    pub think_ms: u64,
    pub operations: u64,
    /// From now on nothing is written.
    pub reads_only: bool,
}

/// An operation on a volume of so many extents: kind, offset, length.
pub(crate) fn choose(load: &Load, extents: u32, rng: &mut Rng) -> (Kind, (u64, u32)) {
    let start = |extent: u64| extent * u64::from(EXTENT);
    if extents > 1 && rng.chance(load.crossing) {
        let (kind, before, after) = across(load, rng);
        let next = rng.within(1, u64::from(extents) - 1);
        return (kind, (start(next) - u64::from(before), before + after));
    }
    let extent = rng.below(u64::from(extents));
    let (kind, (offset, len)) = inside(load, rng);
    (kind, (start(extent) + u64::from(offset), len))
}

/// Kind, and so many bytes before and after the boundary of two extents.
fn across(load: &Load, rng: &mut Rng) -> (Kind, u32, u32) {
    let page = PAGE as u32;
    let (before, after) = (rng.within(1, 4) as u32 * page, rng.within(1, 4) as u32 * page);
    let sectors = rng.within(1, 20) as u32 * SECTOR;
    if load.reads_only {
        return (Kind::Read, before, after);
    }
    match rng.below(10) {
        0..=2 => (Kind::Read, before, after),
        3 => (Kind::Map, before, after),
        4..=6 => (Kind::Write, before, after),
        7 => (Kind::Write, before, sectors),
        8 => (Kind::Zero { flags: 0 }, before, sectors),
        _ => (Kind::Zero { flags: flags::TRIM }, BLOCK, BLOCK),
    }
}

/// Inside an extent.
fn inside(load: &Load, rng: &mut Rng) -> (Kind, (u32, u32)) {
    // Three hot blocks an extent, the last one at its end.
    let block = [0, 1, 15][rng.below(u64::from(load.blocks.clamp(1, 3))) as usize] * BLOCK;
    let page = PAGE as u32;
    let first = block + rng.below(u64::from(load.pages.clamp(1, 16))) as u32 * page;
    let pages = rng.within(1, 4) as u32;
    let whole = (first, (pages * page).min(EXTENT - first));
    if load.reads_only {
        return (Kind::Read, whole);
    }
    if rng.chance(load.trims) {
        return (Kind::Zero { flags: flags::TRIM }, (block, BLOCK));
    }
    match rng.below(99) {
        0..=33 => (Kind::Read, whole),
        34..=35 => (Kind::Read, partial(block, rng)),
        36..=37 => (Kind::Map, whole),
        38..=73 => (Kind::Write, whole),
        74..=78 => (Kind::Write, (block.min(EXTENT - 2 * BLOCK), BLOCK * rng.within(1, 2) as u32)),
        79..=80 => {
            let at = rng.below(8) as u32 * page;
            (Kind::Write, (at, BLOCK * rng.within(1, 3) as u32 + at))
        }
        81..=90 => (Kind::Write, partial(block, rng)),
        91..=92 => (Kind::Zero { flags: 0 }, whole),
        93 => (Kind::Zero { flags: flags::NO_HOLE }, whole),
        94..=95 => (Kind::Zero { flags: flags::TRIM }, whole),
        96..=97 => (Kind::Zero { flags: 0 }, partial(block, rng)),
        _ => (Kind::Zero { flags: flags::TRIM }, (block, 3 * page / 2)),
    }
}

/// Pages that are only written as a whole: any mixture in them is a torn page.
pub(crate) fn whole_only(page: u32) -> bool {
    page % 16 >= 8
}

fn partial(block: u32, rng: &mut Rng) -> (u32, u32) {
    // Inside the first eight pages of a block.
    let first = rng.below(60) as u32;
    let n = rng.within(1, 3) as u32;
    (block + first * SECTOR, n * SECTOR)
}

/// The number of the sector at this byte of a volume.
pub(crate) fn sector(vtree: VtreeId, at: u64) -> u64 {
    (vtree.0 << 40) + at / u64::from(SECTOR)
}

pub(crate) fn num(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

pub(crate) fn content(vtree: VtreeId, at: u64, len: u32, value: u64) -> Bytes {
    let mut b = PageBuf::zeroed(len as usize);
    for (i, s) in (0..).zip(b.chunks_mut(SECTOR as usize)) {
        s.fill(value as u8);
        s[..8].copy_from_slice(&value.to_le_bytes());
        s[8..16].copy_from_slice(&(sector(vtree, at) + i).to_le_bytes());
    }
    b.freeze()
}
