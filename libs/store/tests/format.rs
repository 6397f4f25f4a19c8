//! The bytes on disk, as docs/DISK-FORMAT.md has them: a change of the format is noticed here.
//!
//! The files in `tests/golden` were written by this program (`STORE_GOLDEN=write`) at format
//! version 3: change them only together with the version. But for the number they are those of version 2.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/golden.rs"]
mod golden;

use common::rig::*;
use golden::{history, intent_pages, rest, LOG, TABLE};
use quarry_base::BLOCK;
use quarry_store::*;

fn as_before(name: &str, now: &[u8]) {
    let path = golden::path(name);
    // Trailing zeroes of the area are not kept.
    let now = &now[..now.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1)];
    if std::env::var("STORE_GOLDEN").is_ok_and(|v| v == "write") {
        std::fs::write(&path, now).unwrap();
    }
    let want = std::fs::read(&path).unwrap();
    let at = now.iter().zip(&want).position(|(a, b)| a != b);
    assert!(now == want, "{name} differs at byte {at:?}, lengths {} {}", now.len(), want.len());
}

#[test]
fn superblock_log_batch_and_table_group_are_byte_for_byte_as_before() {
    let mut r = Rig::new(small_config());
    as_before("superblock-opened", &r.disk.durable[..4096]);
    history(&mut r);
    as_before("log-batch", &r.disk.durable[LOG..LOG + 4 * 4096]);
    rest(&mut r);
    as_before("superblock-checkpointed", &r.disk.durable[65536..65536 + 4096]);
    let group = &r.disk.durable[TABLE..TABLE + 4 * 4096];
    as_before("table-group", group);
    as_before("log-intent", &intent_pages(&mut r));
    let magic = |at: usize| r.disk.durable[at..at + 8].to_vec();
    assert_eq!((magic(0), magic(LOG)), (b"QRYSTORE".to_vec(), b"QRYLOG01".to_vec()));
}

/// The digest of table groups, each its number, generation and the checksum of its table page, as the document has it.
fn digest(groups: &[(u64, u64, u32)]) -> u64 {
    let one = |(group, generation, crc): &(u64, u64, u32)| {
        let mut x = group.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x ^= generation.rotate_left(32) ^ u64::from(*crc);
        x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ x >> 31
    };
    groups.iter().map(one).fold(0, u64::wrapping_add)
}

#[test]
fn the_digest_of_the_table_is_the_one_described() {
    // A change here is a change of the format.
    assert_eq!(digest(&[(5, 7, 0x1234_5678)]), 15_133_920_665_239_005_677);
    let mut r = Rig::new(small_config());
    // Enough blocks for two groups, and several generations.
    for n in 0..70 {
        r.put(PG, write(n / 16, n % 16 * BLOCK, &whole(n * 16 + 1)));
    }
    for n in [0, 66] {
        r.flush();
        r.put(PG, write(n / 16, n % 16 * BLOCK, &[2000]));
    }
    r.flush();
    let disk = &r.disk.durable;
    let u64_at = |at: usize| u64::from_le_bytes(disk[at..at + 8].try_into().unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(disk[at..at + 4].try_into().unwrap());
    let groups: Vec<(u64, u64, u32)> = (0..3)
        .filter_map(|n| {
            let sides = [0, 8192].map(|side| TABLE + n * 16384 + side);
            let at = sides
                .into_iter()
                .filter(|at| u64_at(at + 16) > 0)
                .max_by_key(|at| u64_at(at + 16))?;
            Some((n as u64, u64_at(at + 16), u32_at(at + 4)))
        })
        .collect();
    assert!(groups.len() >= 2 && groups[0].1 != groups[1].1, "{groups:?}");
    assert_eq!(digest(&groups), u64_at(Rig::newest_super(disk) as usize + 136));
}

#[test]
fn a_device_identifies_itself() {
    let mut r = Rig::new(small_config());
    let info = read_ident(&r.disk.durable[..IDENT_BYTES]).unwrap().unwrap();
    assert_eq!((info.ident, info.format_version), (IDENT, FORMAT_VERSION));
    assert_eq!((info.device_bytes, info.log_bytes), (10 << 20, 1 << 20));
    assert_eq!(read_ident(&vec![0; IDENT_BYTES]), Ok(None));
    assert_eq!(read_ident(&vec![7; IDENT_BYTES]), Err(StoreError::ForeignData));
    assert!(matches!(read_ident(&[0; 10]), Err(StoreError::Config(_))));
    // One copy damaged: the other counts. Both: said so.
    r.disk.rot(1000);
    assert!(read_ident(&r.disk.durable[..IDENT_BYTES]).is_ok_and(|i| i.is_some()));
    assert_eq!(r.reopen(), Ok(()));
    r.disk.rot(1001);
    r.disk.rot(65536 + 1000);
    assert_eq!(r.reopen(), Err(StoreError::SuperblockCorrupt));
}

#[test]
fn damaged_bytes_anywhere_never_panic() {
    let mut r = Rig::new(small_config());
    history(&mut r);
    rest(&mut r);
    history(&mut r);
    let good = r.disk.durable.clone();
    let used = (0..TABLE + 16384).filter(|i| good[*i] != 0).collect::<Vec<_>>();
    let (mut refused, mut opened) = (0, 0);
    for i in used.iter().step_by(used.len() / 400) {
        r.disk.durable.clone_from(&good);
        r.disk.lose_unsynced();
        r.disk.rot(*i as u64);
        match r.reopen() {
            Ok(()) => opened += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0 && opened > 0, "{refused} refused, {opened} opened");
}
