//! What a 4 KiB page says about itself.
//!
//! ```text
//! 0       8        16       24       32            4092     4096
//! | magic | page   | value  | run    | fill        | seal |
//! ```
//! All little-endian. `page` is the page's number on the volume, `value` is unique to one page of one write of a
//! run, `fill` follows from `value` and `page`, the seal is the CRC-32C of everything before it. So a page cannot be mixed from two
//! writes, lie in the wrong place or come from an earlier run without being seen. And all pages have one and the same CRC-32C, for
//! they end in their own: servers that knew no more of a page would take any of them for any other (row 19 of the fault table).

use quarry_base::{crc32c, PAGE};

/// What a page held, as the checker compares it. 0 is a page of zeroes; ids of this run's writes are below
/// [`FOREIGN`]; everything else carries one of the marks below and a hash of the content.
pub type Value = u64;

/// A page of zeroes: never written, trimmed or zeroed.
pub const ZERO: Value = 0;
/// Mark of content that no write of this run can have made.
pub const FOREIGN: Value = 1 << 63;
/// Mark of a page that begins as one of ours and fails its CRC.
pub const TORN: Value = FOREIGN | 1 << 62;
/// Mark of a whole page of ours that belongs to another place; the low bits are that page's number.
pub const MISPLACED: Value = FOREIGN | 1 << 61;

const MAGIC: u64 = u64::from_le_bytes(*b"QuarryPg");
const CRC_AT: usize = PAGE - 4;
const LOW: u64 = (1 << 61) - 1;

/// Pages one request may carry; a value is the request's id times this plus the page's index in it.
pub const MAX_REQUEST_PAGES: u64 = 4096;

/// The value of page `index` of the write `op`.
pub fn value_of(op: u64, index: u64) -> Value {
    assert!(index < MAX_REQUEST_PAGES && op > 0 && op < 1 << 48);
    op * MAX_REQUEST_PAGES + index
}

/// The write that made `value`; None for zeroes and foreign content.
pub fn op_of(value: Value) -> Option<u64> {
    (value != ZERO && value & FOREIGN == 0).then_some(value / MAX_REQUEST_PAGES)
}

fn put(page: &mut [u8], at: usize, word: u64) {
    page[at..at + 8].copy_from_slice(&word.to_le_bytes());
}
fn word(page: &[u8], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&page[at..at + 8]);
    u64::from_le_bytes(b)
}

/// Writes the stamp of (`number`, `value`, `run`) over the whole of `page`, which is 4096 bytes.
pub fn stamp(page: &mut [u8], number: u64, value: Value, run: u64) {
    assert_eq!(page.len(), PAGE);
    put(page, 0, MAGIC);
    put(page, 8, number);
    put(page, 16, value);
    put(page, 24, run);
    let mut x = value.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number;
    for chunk in page[32..CRC_AT].chunks_mut(8) {
        x = x.wrapping_mul(0xD129_42F0_8A4B_1C35).wrapping_add(0x2545_F491_4F6C_DD1D);
        chunk.copy_from_slice(&x.to_le_bytes()[..chunk.len()]);
    }
    let seal = crc32c(&page[..CRC_AT]);
    page[CRC_AT..].copy_from_slice(&seal.to_le_bytes());
}

/// Whether a page begins as one of ours.
pub fn is_stamped(page: &[u8]) -> bool {
    page.len() == PAGE && word(page, 0) == MAGIC
}

/// The number that a stamped page names.
pub fn number(page: &[u8]) -> u64 {
    word(page, 8)
}

/// Says what page `number` of a volume holds.
pub fn read(page: &[u8], number: u64, run: u64) -> Value {
    assert_eq!(page.len(), PAGE);
    if page.iter().all(|&b| b == 0) {
        return ZERO;
    }
    if word(page, 0) != MAGIC {
        return FOREIGN | hash(page);
    }
    if crc32c(&page[..CRC_AT]).to_le_bytes() != page[CRC_AT..] {
        return TORN | hash(page);
    }
    if word(page, 24) != run {
        return FOREIGN | hash(page);
    }
    if word(page, 8) != number {
        return MISPLACED | (word(page, 8) & LOW);
    }
    word(page, 16)
}

/// A hash of any content, unrelated to CRC-32C.
pub fn hash(page: &[u8]) -> u64 {
    let h = page.chunks(8).fold(0u64, |h, c| {
        let mut b = [0; 8];
        b[..c.len()].copy_from_slice(c);
        (h ^ u64::from_le_bytes(b)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
    });
    h & LOW
}

/// A value for people.
pub fn show(value: Value) -> String {
    match value {
        ZERO => "zeroes".to_string(),
        v if v & TORN == TORN => format!("a torn page (hash {:x})", v & LOW),
        v if v & MISPLACED == MISPLACED => format!("the content of page {}", v & LOW),
        v if v & FOREIGN != 0 => format!("unknown content (hash {:x})", v & LOW),
        v => format!("write {}[{}]", v / MAX_REQUEST_PAGES, v % MAX_REQUEST_PAGES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamped_page_tells_its_value() {
        let mut p = vec![0xAA; PAGE];
        stamp(&mut p, 77, value_of(5, 3), 1);
        assert_eq!(read(&p, 77, 1), value_of(5, 3));
        assert_eq!(op_of(read(&p, 77, 1)), Some(5));
        assert_eq!(read(&[0; PAGE], 77, 1), ZERO);
    }

    #[test]
    fn a_page_mixed_from_two_writes_is_torn_wherever_it_is_cut() {
        let (mut a, mut b) = (vec![0; PAGE], vec![0; PAGE]);
        stamp(&mut a, 7, value_of(1, 0), 1);
        stamp(&mut b, 7, value_of(2, 0), 1);
        for cut in [1, 16, 17, 24, 32, 512, 2048, 4091, 4092, 4095] {
            let mixed: Vec<u8> = a[..cut].iter().chain(&b[cut..]).copied().collect();
            let same = mixed == a || mixed == b;
            assert!(same || read(&mixed, 7, 1) & TORN == TORN, "cut at {cut}");
            let with_zeroes: Vec<u8> = [&vec![0; cut], &b[cut..]].concat();
            assert!(read(&with_zeroes, 7, 1) & FOREIGN != 0, "zeroes up to {cut}");
        }
    }

    #[test]
    fn all_pages_have_one_checksum() {
        let crc_of = |number, value| {
            let mut p = vec![0; PAGE];
            stamp(&mut p, number, value, 1);
            crc32c(&p)
        };
        let all: std::collections::BTreeSet<u32> =
            (0..1000).map(|n| crc_of(n % 10, value_of(n + 1, 0))).collect();
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn a_flipped_bit_another_place_and_another_run_are_seen() {
        let mut p = vec![0; PAGE];
        stamp(&mut p, 7, value_of(1, 0), 1);
        assert_eq!(read(&p, 8, 1), MISPLACED | 7);
        assert_eq!(read(&p, 7, 2) & TORN, FOREIGN);
        for at in [0, 9, 20, 30, 100, 4095] {
            let mut q = p.clone();
            q[at] ^= 4;
            assert!(read(&q, 7, 1) & FOREIGN != 0, "byte {at}");
        }
    }
}
