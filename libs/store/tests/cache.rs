//! Checksums that are not in memory: read when they are needed, kept within the limit, and what a damaged page of them
//! costs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::rig::*;
use quarry_base::*;
use quarry_store::*;
use std::time::Duration;

const TABLE: u64 = (128 << 10) + (1 << 20);
/// Blocks that are written: three groups of 63 less what is kept back.
const BLOCKS: u32 = 120;

/// A device whose memory takes the checksums of one group of 63 blocks, with content in two.
fn filled(cfg: StoreConfig) -> Rig {
    let mut r = Rig::new(StoreConfig { check_cache_bytes: 0, ..cfg });
    for b in 0..BLOCKS {
        r.put(PG, write(b / 16, b % 16 * BLOCK, &whole(b * 16 + 1)));
    }
    r.flush();
    assert_eq!(r.reopen(), Ok(()));
    r
}

fn block_is_right(r: &mut Rig, b: u32) {
    r.pages(PG, b / 16, b % 16 * BLOCK, &whole(b * 16 + 1));
}

fn table_read(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Read { offset, .. } if (TABLE..TABLE + 3 * 16384).contains(offset))
}

#[test]
fn checksums_are_read_when_they_are_needed_and_memory_keeps_its_limit() {
    let mut r = filled(small_config());
    let one = 5 << 10;
    for round in 0..3 {
        for b in (0..BLOCKS).step_by(7).chain((0..BLOCKS).rev().step_by(50)) {
            block_is_right(&mut r, b);
            let s = r.store.stats();
            assert!(s.check_cache_bytes <= 2 * one, "round {round}: {s:?}");
        }
    }
    let s = r.store.stats();
    assert!(s.check_misses >= 6 && s.check_hits > 30 && s.check_evictions >= 5, "{s:?}");
    assert_eq!(r.store.check_invariants(), Ok(()));
}

#[test]
fn one_read_that_needs_more_groups_than_fit_is_answered() {
    let mut r = filled(small_config());
    // Whole blocks of the first extent in the other group.
    for b in [3, 7, 11] {
        r.put(PG, write(0, b * BLOCK, &whole(5000 + b * 16)));
    }
    r.flush();
    assert_eq!(r.reopen(), Ok(()));
    block_is_right(&mut r, 100);
    let mut want = Vec::new();
    (0..16).for_each(|b| {
        want.extend(whole(if [3, 7, 11].contains(&b) { 5000 + b * 16 } else { b * 16 + 1 }))
    });
    r.pages(PG, 0, 0, &want);
    block_is_right(&mut r, 1);
    assert_eq!(r.store.check_invariants(), Ok(()));
}

#[test]
fn a_checkpoint_waits_for_checksums_of_a_group_it_writes() {
    let mut r = filled(small_config());
    block_is_right(&mut r, BLOCKS - 1);
    // One page of a block of the first group, whose other checksums are on the device alone.
    r.append(PG, write(0, 3 * 4096, &[9000])).unwrap();
    r.run(&|o| !table_read(o));
    r.commit_all(PG);
    r.run(&|o| !table_read(o));
    let before = r.store.stats().checkpoints;
    r.store.flush_all();
    r.run(&|o| !table_read(o));
    assert!(!r.store.is_idle() && r.store.stats().checkpoints == before, "it waits");
    // Meanwhile another page of the group changes: not part of this checkpoint.
    r.append(PG, write(0, BLOCK, &[9001])).unwrap();
    r.run(&|o| !table_read(o));
    r.commit_all(PG);
    r.flush();
    assert_eq!(r.reopen(), Ok(()));
    r.pages(PG, 0, 0, &[1, 2, 3, 9000, 5, 6]);
    r.pages(PG, 0, BLOCK, &[9001, 18, 19]);
    (2..BLOCKS).for_each(|b| block_is_right(&mut r, b));
}

/// Rots the CRC page of the first group, on the side that counts.
fn rot_checks(r: &mut Rig) {
    let gen = |r: &Rig, side: u64| {
        let at = (TABLE + side * 8192 + 16) as usize;
        u64::from_le_bytes(r.disk.durable[at..at + 8].try_into().unwrap())
    };
    let side = u64::from(gen(r, 1) > gen(r, 0));
    r.disk.rot(TABLE + side * 8192 + 4096 + 200);
}

#[test]
fn checksums_that_rot_on_the_device_cost_a_repair_of_their_blocks_and_nothing_is_served_unchecked()
{
    let mut r = filled(small_config());
    let good = [0u8, 1].map(|b| r.block(PG, key(0, b)).unwrap().unwrap());
    block_is_right(&mut r, BLOCKS - 1);
    rot_checks(&mut r);
    r.events.clear();
    assert!(matches!(r.read(PG, 0, 0, 4096), Err(ReadError::Corrupt { .. })));
    assert!(r.events.iter().any(|e| matches!(e, StoreEvent::TableDamaged { group: 0 })));
    block_is_right(&mut r, BLOCKS - 1);
    // Another version is not taken, also where there is no checksum to compare.
    let other = BlockCopy { version: v(9, 9), ..good[0].clone() };
    assert_eq!(r.store.repair(PG, other), Err(RepairError::OtherVersion));
    assert!(r.store.repair(PG, good[0].clone()).is_ok());
    r.run_all();
    block_is_right(&mut r, 0);
    r.flush();
    // The table is whole again, and opens; what was not repaired is still not served.
    assert_eq!(r.reopen(), Ok(()));
    block_is_right(&mut r, 0);
    assert!(matches!(r.read(PG, 0, BLOCK, 4096), Err(ReadError::Corrupt { .. })));
    assert!(r.store.repair(PG, good[1].clone()).is_ok());
    r.run_all();
    r.flush();
    block_is_right(&mut r, 1);
}

#[test]
fn the_scrub_finds_what_has_lost_its_checksum() {
    let mut r = filled(StoreConfig { scrub_bytes_per_second: 1 << 30, ..small_config() });
    block_is_right(&mut r, BLOCKS - 1);
    rot_checks(&mut r);
    r.events.clear();
    r.store.restart_scrub();
    let passes = r.store.scrub_stats().passes;
    for _ in 0..2000 {
        r.wait(Duration::from_millis(20));
        r.run_all();
        if r.store.scrub_stats().passes > passes + 1 {
            break;
        }
    }
    let bad = r.events.iter().filter(|e| matches!(e, StoreEvent::Corruption { .. })).count();
    assert!(bad >= 62, "{bad} blocks are told of");
    assert!(r.store.scrub_stats().bad_groups >= 1);
}

#[test]
fn a_device_that_fails_to_read_its_checksums_answers_reads_all_the_same() {
    let mut r = filled(small_config());
    block_is_right(&mut r, BLOCKS - 1);
    r.fails = table_read;
    assert!(matches!(r.read(PG, 0, 0, 4096), Err(ReadError::Corrupt { .. })));
    r.fails = |_| false;
    block_is_right(&mut r, BLOCKS - 1);
}
