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
    /// Trims of whole blocks, of a hundred operations.
    pub trims: u64,
    /// Time between two operations of a client, milliseconds at most.
    pub think_ms: u64,
    pub operations: u64,
    /// From now on nothing is written.
    pub reads_only: bool,
}

/// An operation inside an extent: kind, offset, length.
pub(crate) fn choose(load: &Load, rng: &mut Rng) -> (Kind, (u32, u32)) {
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
        0..=37 => (Kind::Read, whole),
        38..=73 => (Kind::Write, whole),
        74..=78 => (Kind::Write, (block.min(EXTENT - 2 * BLOCK), BLOCK * rng.within(1, 2) as u32)),
        79..=80 => {
            let at = rng.below(8) as u32 * page;
            (Kind::Write, (at, BLOCK * rng.within(1, 3) as u32 + at))
        }
        81..=90 => (Kind::Write, partial(block, rng)),
        91..=93 => (Kind::Zero { flags: 0 }, whole),
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

pub(crate) fn sector(vtree: VtreeId, extent: u32, offset: u32) -> u64 {
    (vtree.0 << 40) + u64::from(extent) * u64::from(EXTENT / SECTOR) + u64::from(offset / SECTOR)
}

pub(crate) fn num(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

pub(crate) fn content(vtree: VtreeId, extent: u32, offset: u32, len: u32, value: u64) -> Bytes {
    let mut b = PageBuf::zeroed(len as usize);
    for (i, s) in b.chunks_mut(SECTOR as usize).enumerate() {
        s.fill(value as u8);
        s[..8].copy_from_slice(&value.to_le_bytes());
        s[8..16].copy_from_slice(&sector(vtree, extent, offset + i as u32 * SECTOR).to_le_bytes());
    }
    b.freeze()
}
