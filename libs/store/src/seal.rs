//! The checksum of a page at rest: of its content *and* of where it belongs.
//!
//! A plain CRC-32C is not enough on a disk. Any number of different pages have the same one (all pages
//! that end in their own CRC-32C do), and such a page passes for another: a write that went astray, one
//! that never happened, a block or a log page from before a power loss. So what is kept is
//!
//! ```text
//! check = crc32c(content)  xor  low half of XXH3-64(content, seed = device, block, page);  1 if that is 0
//! ```
//!
//! - Not linear, and keyed by the address: that two pages have equal CRCs says nothing about their checks,
//!   and two pages that collide in one place do not in another. The device's part of the key is of its random uuid.
//! - The CRC is in it, so the checksum that the client made holds all the way: a read computes the CRC of what
//!   it found, and only if the check made with *that* is the one kept is it handed on. Content that changed in
//!   memory between the client's CRC and the XXH3 shows just so.
//! - The version of the block is laid over it in the CRC page on disk ([`stamp`]): entry and checksum of
//!   different versions do not fit. It is not part of the seed, for a block's version moves on while most
//!   of its pages stay.
//!
//! The log uses the same check for a page of data as its block does: it is made once, when the record is
//! appended, while the page is in the processor's cache.

use crate::planted::{planted, Bug};
use crate::types::BlockKey;
use quarry_base::{crc32c, PgId, Version, PAGE};
use smallvec::SmallVec;
use twox_hash::XxHash3_64;

/// The checks of some pages, in order.
pub(crate) type Checks = SmallVec<[u32; 1]>;

/// The check of a page whose own was lost with a damaged CRC page: no page has it.
pub(crate) const LOST: u32 = 0;

/// The device's part of every seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeviceKey(u64);

/// The seed of a block's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockSeal(u64);

/// One round of splitmix64 over what was mixed before and what comes.
fn mix(a: u64, b: u64) -> u64 {
    let mut x = (a ^ b).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl DeviceKey {
    /// From what identifies this format of this device.
    pub fn of(format_id: u64) -> DeviceKey {
        DeviceKey(mix(0, format_id))
    }

    pub fn block(self, pg: PgId, k: BlockKey) -> BlockSeal {
        let place = u64::from(k.layer.0) << 32 | u64::from(k.extent.0);
        let key = [pg.0, k.vtree.0, place, u64::from(k.block)];
        BlockSeal(key.into_iter().fold(self.0, mix))
    }

    /// Of a blob in the log: the group's, and of which kind.
    pub fn blob(self, pg: PgId, kind: u8) -> BlockSeal {
        BlockSeal(mix(mix(self.0, pg.0), !u64::from(kind)))
    }
}

impl BlockSeal {
    /// The check of page `page`, whose content has this CRC-32C.
    pub fn check(self, page: u32, data: &[u8], crc: u32) -> u32 {
        if planted(Bug::CheckWithoutAddress) {
            return crc;
        }
        match crc ^ XxHash3_64::oneshot_with_seed(mix(self.0, u64::from(page)), data) as u32 {
            LOST => 1,
            check => check,
        }
    }

    /// CRC-32C and check of page `page`.
    pub fn both(self, page: u32, data: &[u8]) -> (u32, u32) {
        let crc = crc32c(data);
        (crc, self.check(page, data, crc))
    }

    /// The checks of these pages of a block, whose content is packed in `data`. `None`: a CRC is wrong, or there
    /// are not as many as pages.
    pub fn checks(self, pages: u16, data: &[u8], crcs: &[u32]) -> Option<Checks> {
        let n = pages.count_ones() as usize;
        if crcs.len() != n || data.len() != n * PAGE {
            return None;
        }
        let list = (0..16u32).filter(|p| pages >> p & 1 == 1);
        list.zip(data.chunks_exact(PAGE).zip(crcs))
            .map(|(p, (d, c))| {
                let (crc, check) = self.both(p, d);
                (crc == *c).then_some(check)
            })
            .collect()
    }
}

/// What lies over the checks of a slot on disk: which block version they are of.
pub(crate) fn stamp(slot: u32, v: Version) -> u32 {
    mix(mix(u64::from(slot), v.epoch.0), v.seq.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_base::{Extent, Layer, PoolId, VtreeId};

    fn key(extent: u32, block: u8) -> BlockKey {
        BlockKey { vtree: VtreeId(1), layer: Layer(0), extent: Extent(extent), block }
    }

    #[test]
    fn pages_of_one_crc_have_checks_of_their_own_and_another_one_in_every_place() {
        let pages: Vec<Vec<u8>> = (1..200).map(crate::harness::model::page_of).collect();
        let crc = crc32c(&pages[0]);
        assert!(pages.iter().all(|p| crc32c(p) == crc));
        let d = DeviceKey::of(7);
        let pg = PgId::new(PoolId(1), 0);
        let mut seen = std::collections::BTreeSet::new();
        for p in &pages {
            assert!(seen.insert(d.block(pg, key(0, 0)).check(3, p, crc)));
        }
        let mut places = vec![DeviceKey::of(8).block(pg, key(0, 0)), d.block(PgId(9), key(0, 0))];
        places.extend([d.block(pg, key(0, 0)), d.block(pg, key(0, 1)), d.block(pg, key(1, 0))]);
        let layer = BlockKey { layer: Layer(1), ..key(0, 0) };
        let tree = BlockKey { vtree: VtreeId(2), ..key(0, 0) };
        places.extend([d.block(pg, layer), d.block(pg, tree), d.blob(pg, 7)]);
        let checks =
            places.iter().flat_map(|s| [s.check(0, &pages[0], crc), s.check(1, &pages[0], crc)]);
        let all: std::collections::BTreeSet<u32> = checks.collect();
        assert_eq!(all.len(), 2 * places.len());
    }

    #[test]
    fn the_hash_is_the_published_one() {
        // XXH3-64 of the empty input and of 4 KiB of zeroes: a change here is a change of the format.
        assert_eq!(XxHash3_64::oneshot_with_seed(0, b""), 0x2D06_8005_38D3_94C2);
        let zeroes = [0u8; PAGE];
        let seal = DeviceKey::of(1).block(PgId(2), key(3, 4));
        assert_eq!(seal.check(5, &zeroes, crc32c(&zeroes)), 2_838_462_576);
    }
}
