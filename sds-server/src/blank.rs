//! Is a device without a superblock blank? It is formatted without a question then, so zeroes where the superblocks would lie
//! are not enough: members of a mirror (md 1.0) and some LUNs begin so, and so does a device over whose start somebody wrote
//! zeroes by mistake. What `sds-server format` wipes is looked at, its first and its last MiB; a device is blank when both are
//! all zero. Where a file has no data yet that costs two reads.

use crate::device::{read_around, unreadable};
use crate::error::SdsError;
use quarry_base::PAGE;
use quarry_ring::{OpenedFile, Reactor};
use std::path::Path;

/// Bytes at the start and the end of a device: superblocks, file systems' and partition tables.
const ENDS: u64 = 1 << 20;

/// How pages of Quarry begin, and what they are.
const OURS: [(&[u8], &str); 2] =
    [(b"QRYSTORE", "a superblock"), (b"QRYLOG01", "a piece of the log")];

/// Where the last and the first bytes of a device begin that are wiped and looked at, and how many they are: whole pages.
/// The end is first: what a wipe leaves when it is cut short is not blank.
pub(crate) fn ends(device_bytes: u64) -> ([u64; 2], usize) {
    let whole = device_bytes - device_bytes % PAGE as u64;
    let n = ENDS.min(whole);
    ([whole - n, 0], n as usize)
}

/// Is there nothing at either end?
///
/// Errors: `Lost` and `NotBlank` for what is there; `Unreadable` where that cannot be told.
pub(crate) fn check(reactor: &mut Reactor, f: &OpenedFile, path: &Path) -> Result<(), SdsError> {
    let (starts, n) = ends(f.size);
    let mut other = None;
    for start in starts.into_iter().filter(|_| n > 0) {
        let (bytes, refused) = read_around(reactor, f.id, start, n, path)?;
        if let Some(errno) = refused {
            return Err(unreadable(path, errno));
        }
        for (at, page) in (start..).step_by(PAGE).zip(bytes.chunks(PAGE)) {
            if let Some((_, what)) = OURS.iter().find(|(magic, _)| page.starts_with(magic)) {
                return Err(SdsError::Lost { path: path.into(), at, what });
            }
            let byte = page.iter().zip(at..).find(|(b, _)| **b != 0);
            other = other.or(byte.map(|(_, at)| at));
        }
    }
    match other {
        Some(at) => Err(SdsError::NotBlank { path: path.into(), at }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_whole_pages_inside_the_device() {
        assert_eq!(ends(128 << 20), ([127 << 20, 0], 1 << 20));
        assert_eq!(ends((128 << 20) + 512), ([127 << 20, 0], 1 << 20));
        assert_eq!(ends(9000), ([0, 0], 8192));
        assert_eq!(ends(100), ([0, 0], 0));
    }
}
