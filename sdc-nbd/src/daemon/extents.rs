//! Block status: from the servers' bits (a 4 KiB page each) to extents of an export.

use bytes::Bytes;
use quarry_base::{EXTENT, PAGE};
use quarry_nbd_proto::consts::{NBD_STATE_HOLE, NBD_STATE_ZERO};

/// Bytes that one answer looks at, most: as many requests to servers as 64 extents. The client asks on.
pub const MOST: u32 = 64 * EXTENT;

/// Runs of `offset..offset + len` with their state; `maps` is what the engine answers to
/// [`crate::engine::IoOp::Map`] for that range.
pub fn extents(offset: u64, len: u32, maps: &[Bytes]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    let (page, extent, end) = (PAGE as u64, u64::from(EXTENT), offset + u64::from(len));
    let mut at = offset;
    for map in maps {
        // Each map begins at the page the range begins at in its extent, and ends with the extent.
        let first = at / page;
        let stop = end.min((at / extent + 1) * extent);
        while at < stop {
            let n = (at / page - first) as usize;
            let content = map.get(n / 8).is_none_or(|b| b >> (n % 8) & 1 == 1);
            let state = if content { 0 } else { NBD_STATE_HOLE | NBD_STATE_ZERO };
            let next = stop.min((at / page + 1) * page);
            let bytes = (next - at) as u32;
            match runs.last_mut() {
                Some(r) if r.1 == state => r.0 += bytes,
                _ => runs.push((bytes, state)),
            }
            at = next;
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLE: u32 = NBD_STATE_HOLE | NBD_STATE_ZERO;

    fn bits(set: &[usize], pages: usize) -> Bytes {
        let mut b = vec![0u8; pages.div_ceil(8)];
        set.iter().for_each(|n| b[n / 8] |= 1 << (n % 8));
        b.into()
    }

    #[test]
    fn runs_follow_the_bits_over_extents_and_odd_edges() {
        let all: Vec<usize> = (0..256).collect();
        assert_eq!(extents(0, EXTENT, &[bits(&[], 256)]), [(EXTENT, HOLE)]);
        let got = extents(0, 2 * EXTENT, &[bits(&all, 256), bits(&[0, 1, 9], 256)]);
        let page = PAGE as u32;
        let want =
            [(EXTENT + 2 * page, 0), (7 * page, HOLE), (page, 0), (EXTENT - 10 * page, HOLE)];
        assert_eq!(got, want);
        // From the middle of the last page of one extent to the middle of the second of the next.
        let from = u64::from(EXTENT) - 100;
        let got = extents(from, 100 + 5000, &[bits(&[0], 1), bits(&[1], 2)]);
        assert_eq!(got, [(100, 0), (4096, HOLE), (904, 0)]);
    }

    #[test]
    fn what_no_bit_speaks_of_counts_as_content() {
        assert_eq!(extents(0, 8192, &[Bytes::new()]), [(8192, 0)]);
    }
}
