//! CRC-32C (Castagnoli), the one checksum of Quarry: on the wire, in the log, on the blocks.

use crate::PAGE;
use crc_fast::{checksum, CrcAlgorithm};

/// CRC-32C of `data` (initial value and final xor as in iSCSI, RFC 3720 appendix B.4).
pub fn crc32c(data: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, data) as u32
}

/// Lengths of the pieces of a range cut at 4 KiB boundaries of the volume's address space.
/// `offset` and `len` in bytes. An aligned 4 KiB range is one piece of 4096.
pub fn pieces(offset: u32, len: usize) -> impl Iterator<Item = usize> {
    let mut at = offset as usize % PAGE;
    let mut left = len;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let n = (PAGE - at).min(left);
        at = 0;
        left -= n;
        Some(n)
    })
}

/// Number of pieces of a range (see [`pieces`]).
pub fn piece_count(offset: u32, len: usize) -> usize {
    if len == 0 {
        return 0;
    }
    let first = offset as usize % PAGE;
    (first + len).div_ceil(PAGE)
}

/// The CRC-32C of every piece of `data`, which lies at byte `offset` (see [`pieces`]).
pub fn crc_pieces(offset: u32, data: &[u8]) -> Vec<u32> {
    let mut out = Vec::with_capacity(piece_count(offset, data.len()));
    let mut at = 0;
    for n in pieces(offset, data.len()) {
        out.push(crc32c(&data[at..at + n]));
        at += n;
    }
    out
}

/// The CRC-32C of 4 KiB of zeroes.
pub const ZERO_PAGE_CRC: u32 = 0x98F9_4189;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_rfc_3720_vectors() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0u8; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFFu8; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(&[0u8; 4096]), ZERO_PAGE_CRC);
    }

    #[test]
    fn pieces_are_cut_at_page_boundaries() {
        let p = |o, l| pieces(o, l).collect::<Vec<_>>();
        assert_eq!(p(0, 4096), [4096]);
        assert_eq!(p(512, 4096), [3584, 512]);
        assert_eq!(p(4095, 2), [1, 1]);
        assert_eq!(p(100, 50), [50]);
        assert_eq!(p(0, 0), [0usize; 0]);
        for (o, l) in [(0, 4096), (512, 4096), (4095, 2), (100, 50), (0, 0), (5, 9000)] {
            assert_eq!(p(o, l).len(), piece_count(o, l));
        }
    }
}
