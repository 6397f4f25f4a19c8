//! What goes wrong: failing writes and syncs, bit rot, a full log, a full device; and orders of
//! completion in which something was lost once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::rig::*;
use quarry_base::*;
use quarry_store::*;
use std::time::Duration;

fn offset_of(op: &DiskOp) -> Option<u64> {
    match op {
        DiskOp::Write { offset, .. } | DiskOp::Read { offset, .. } => Some(*offset),
        _ => None,
    }
}
fn in_log(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Write { .. }) && offset_of(op).is_some_and(|o| LOG.contains(&o))
}
fn to_blocks(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Write { .. }) && offset_of(op).is_some_and(|o| o >= LOG.end + (64 << 10))
}

#[test]
fn after_a_failed_write_or_sync_nothing_more_is_stable_and_reads_go_on() {
    for fails in [in_log as fn(&DiskOp) -> bool, is_sync] {
        for ack in [AckMode::Durable, AckMode::Cached] {
            let mut r = Rig::new(StoreConfig { ack, ..small_config() });
            r.put(PG, write(0, 0, &[1]));
            r.flush();
            let stable = r.stable();
            r.append(PG, write(0, 0, &[2])).unwrap();
            // Committed and never written: its content cannot be served, the old one must not be.
            r.commit_all(PG);
            let parked = r.begin_read(PG, 0, 0, 4096);
            r.poll();
            r.fails = fails;
            r.store.sync();
            r.run_all();
            assert_eq!(r.failures(), 1, "{ack:?}");
            assert!(r.store.failed().is_some());
            if ack == AckMode::Durable {
                assert_eq!(r.stable(), stable);
                assert!(r.answer(parked).map_or(true, |d| d.crcs[0] != 0));
            }
            let told = r.stable();
            r.fails = |_| false;
            assert_eq!(r.append(PG, write(0, 0, &[3])), Err(AppendError::Failed));
            assert_eq!(r.store.put_meta(PG, vec![1].into()), Err(AppendError::Failed));
            r.store.flush_all();
            r.wait(Duration::from_secs(5));
            r.run_all();
            assert_eq!((r.failures(), r.stable()), (1, told));
            assert!(r.store.is_idle(), "nothing is left to wait for");
            r.pages(PG, 0, 4096, &[0]);
        }
    }
}

#[test]
fn a_read_of_what_will_never_be_written_fails() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &[1]));
    r.append(PG, write(0, 0, &[2])).unwrap();
    r.commit_all(PG);
    let t = r.begin_read(PG, 0, 0, 4096);
    r.poll();
    r.fails = in_log;
    r.run_all();
    assert_eq!(r.answer(t), Err(ReadError::Io(5)));
}

#[test]
fn failing_destage_table_and_superblock_writes_are_final_and_lose_nothing() {
    let table = |o: &DiskOp| matches!(o, DiskOp::Write { offset, .. } if (LOG.end..LOG.end + (64 << 10)).contains(offset));
    let sb = |o: &DiskOp| matches!(o, DiskOp::Write { offset, .. } if *offset < LOG.start);
    for fails in [to_blocks as fn(&DiskOp) -> bool, table, sb] {
        let mut r = Rig::new(small_config());
        r.put(PG, write(0, 0, &[1, 2, 3]));
        r.fails = fails;
        r.store.flush_all();
        r.run_all();
        assert_eq!(r.failures(), 1);
        r.pages(PG, 0, 0, &[1, 2, 3]);
        r.fails = |_| false;
        r.power_loss();
        assert_eq!(r.reopen(), Ok(()));
        r.commit_all(PG);
        r.pages(PG, 0, 0, &[1, 2, 3]);
    }
}

#[test]
fn a_rotten_block_page_is_never_served_and_can_be_repaired() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.put(PG, write(0, 65536, &[20]));
    r.flush();
    let good = r.block(PG, key(0, 0)).unwrap().unwrap();
    let at = r.find_page(4);
    r.disk.rot(at + 77);
    let bad = Err(ReadError::Corrupt { pages: vec![3 * 4096] });
    assert_eq!(r.read(PG, 0, 0, 65536), bad);
    assert_eq!(r.read(PG, 0, 3 * 4096, 4096), bad);
    assert!(matches!(r.block(PG, key(0, 0)), Err(ReadError::Corrupt { .. })));
    let told = |e: &StoreEvent| matches!(e, StoreEvent::Corruption { pages: 8, .. });
    assert!(r.events.iter().any(told));
    r.pages(PG, 0, 0, &[1, 2, 3]);
    r.pages(PG, 0, 65536, &[20]);
    // Only the same version and content repairs.
    let other = BlockCopy { version: v(9, 9), ..good.clone() };
    assert_eq!(r.store.repair(PG, other), Err(RepairError::OtherVersion));
    let other = copy_of(key(0, 0), good.version, 0xFFFF, &whole(2));
    assert_eq!(r.store.repair(PG, other), Err(RepairError::OtherContent));
    r.store.repair(PG, good.clone()).unwrap();
    r.run_all();
    r.pages(PG, 0, 0, &whole(1));
    r.flush();
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    r.pages(PG, 0, 0, &whole(1));
    assert_eq!(r.block(PG, key(0, 0)), Ok(Some(good)));
}

/// Promise 1: a sync that lists what is here in that moment would take the record for done and not copy it.
#[test]
fn what_has_been_written_once_is_applied_when_it_is_committed_though_the_log_has_it_written_again()
{
    let mut r = Rig::new(small_config());
    let other = PgId::new(PoolId(1), 1);
    r.append(PG, write(0, 0, &[1])).unwrap();
    r.run_all();
    let mut n = 0;
    while r.store.stats().relogged == 0 {
        if r.append(other, write(1, (n % 8) * 65536, &[100 + n])).is_ok() {
            n += 1;
        }
        r.commit_all(other);
        for _ in 0..20 {
            if r.store.stats().relogged > 0 || !r.one(&|_| true) {
                break;
            }
        }
        assert!(n < 4000, "the tail is never written again");
    }
    r.poll();
    assert!(r.pending.iter().any(in_log), "it is on its way once more");
    assert_eq!(r.store.tail(PG, Seq::ZERO).count(), 1);
    r.commit_all(PG);
    assert_eq!(r.store.tail(PG, Seq::ZERO).count(), 0, "applied at once");
    assert!(r.store.has_blocks_of(PG, VtreeId(1)));
    assert_eq!(r.store.scan(PG, BlockKey::MIN, 9, None).len(), 1);
    assert_eq!(r.store.check_invariants(), Ok(()));
    r.run_all();
    r.flush();
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    r.pages(PG, 0, 0, &[1]);
}

/// A trim that comes while its block is being written to its place leaves the tombstone when that write ends: a checkpoint in
/// between has not got it.
#[test]
fn a_tombstone_that_the_end_of_a_destage_leaves_is_kept_over_a_restart() {
    let mut r = Rig::new(StoreConfig { max_dirty_table_pages: 1, ..small_config() });
    r.put(PG, write(0, 0, &[1]));
    r.put(PG, write(0, 65536, &[2]));
    r.flush();
    let place = r.find_page(1);
    let to_place = |o: &DiskOp| matches!(o, DiskOp::Write { offset, .. } if *offset == place);
    r.put_without(PG, write(0, 0, &[3]), &to_place);
    r.store.flush_all();
    r.run(&|o| !to_place(o));
    assert!(r.pending.iter().any(to_place), "the block is on its way to its place");
    r.put_without(PG, zero(0, 0, 4096), &to_place);
    let zeroed = r.store.pg_state(PG).last;
    let tombs = |r: &Rig| {
        let all = r.store.scan(PG, BlockKey::MIN, 9, None);
        all.into_iter().filter(|b| b.valid == 0).map(|b| b.version).collect::<Vec<_>>()
    };
    // Somebody else's record, not committed, keeps the log from here on: the group's record of the next checkpoint stays in it,
    // and the trim does not.
    r.append(PgId::new(PoolId(1), 1), write(2, 0, &[9])).unwrap();
    r.run(&|o| !to_place(o));
    let before = r.store.stats().checkpoints;
    for i in 0..200 {
        r.put_without(PG, write(1, 65536 * (i % 16), &whole(1000 + 16 * i)), &to_place);
        if r.store.stats().checkpoints > before {
            break;
        }
    }
    assert!(r.store.stats().checkpoints > before, "no checkpoint");
    assert_eq!(r.store.stats().tombstones, 0, "the block is still there, empty");
    r.run_all();
    assert_eq!((tombs(&r), r.store.stats().tombstones), (vec![zeroed], 1));
    r.flush();
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    assert_eq!(tombs(&r), [zeroed]);
}

#[test]
fn rot_in_the_log_below_the_sync_mark_is_corruption_and_above_it_a_torn_tail() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &[1]));
    r.put(PG, write(0, 4096, &[2]));
    r.put(PG, write(0, 8192, &[3]));
    let before = r.disk.durable.clone();
    for (tag, opens) in [(1, false), (2, false), (3, true)] {
        r.disk.durable.clone_from(&before);
        r.disk.lose_unsynced();
        let at = r.find_page(tag);
        assert!(LOG.contains(&at));
        r.disk.rot(at);
        let out = r.reopen();
        if opens {
            // No later batch says that the last one was synced.
            assert_eq!(out, Ok(()));
            assert_eq!(r.store.pg_state(PG).last, v(1, 2));
            r.pages(PG, 0, 0, &[1, 0, 0]);
        } else {
            assert!(matches!(out, Err(StoreError::LogCorrupt { .. })), "{tag}: {out:?}");
        }
    }
}

#[test]
fn a_rotten_table_page_is_found_at_open() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.flush();
    let side = (0..2).map(|s| LOG.end + s * 8192).find(|o| r.disk.durable[*o as usize] != 0);
    r.disk.rot(side.unwrap() + 100);
    assert!(r.reopen().is_err());
}

#[test]
fn sustained_writes_on_a_small_log_never_wedge() {
    let mut r = Rig::new(small_config());
    let other = PgId::new(PoolId(1), 1);
    // This group's tail stays uncommitted: it must not hold up the log.
    for i in 0..3 {
        r.append(other, write(1, i * 65536, &whole(i * 16 + 1))).unwrap();
        r.append(other, write(1, i * 65536 + 8192, &[900 + i])).unwrap();
    }
    let mut refused = 0;
    for i in 0..4000u32 {
        let kind = match i % 16 {
            0 => write(0, 65536 * (i / 16 % 8), &whole(i * 16)),
            _ => write(0, 4096 * (i * 7 % 200), &[i + 1, i + 2]),
        };
        let mut tries = 0;
        while let Err(e) = r.append(PG, kind.clone()) {
            assert_eq!(e, AppendError::LogFull);
            (refused, tries) = (refused + 1, tries + 1);
            assert!(tries < 10_000, "the log never has room again, after {i}");
            if !r.one(&|_| true) {
                r.wait(Duration::from_millis(50));
            }
            let s = r.store.pg_state(PG).stable.seq;
            r.store.set_commit(PG, s);
        }
        let s = r.store.pg_state(PG).stable.seq;
        r.store.set_commit(PG, s);
        if i % 3 == 0 {
            r.one(&|_| true);
        }
    }
    assert!(refused > 0 && r.store.stats().relogged > 0, "{:?}", r.store.stats());
    r.run_all();
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    assert_eq!(r.store.pg_state(other).last.seq, Seq(6));
    r.commit_all(other);
    for i in 0..3 {
        let mut want = whole(i * 16 + 1);
        want[2] = 900 + i;
        r.pages(other, 1, i * 65536, &want);
    }
    r.flush();
}

#[test]
fn a_full_device_keeps_what_it_has_and_takes_trims() {
    for pages in [1, 16] {
        let mut r = Rig::new(small_config());
        let mut n = 0u32;
        // Beyond `full`, until nothing more goes: a caller that does not heed it harms nobody.
        let mut was_full = false;
        let mut idle = 0;
        while idle < 50 {
            let tags: Vec<u32> = (n * 16 + 1..n * 16 + 1 + pages).collect();
            match r.append(PG, write(n / 16, n % 16 * 65536, &tags)) {
                Ok(_) => (n, idle) = (n + 1, 0),
                Err(e) => {
                    assert_eq!(e, AppendError::LogFull);
                    idle += 1;
                    r.wait(Duration::from_millis(500));
                }
            }
            r.run_all();
            r.commit_all(PG);
            r.run_all();
            was_full |= r.store.headroom().full;
            assert!(n < 2000, "it takes more than it has");
        }
        assert!(was_full && r.store.headroom().full && r.store.headroom().blocks == 0);
        assert_eq!(r.store.check_invariants(), Ok(()));
        // A clean shutdown ends also then.
        r.flush();
        r.power_loss();
        assert_eq!(r.reopen(), Ok(()));
        r.commit_all(PG);
        for i in 0..n {
            let tags: Vec<u32> = (i * 16 + 1..i * 16 + 1 + pages).collect();
            r.pages(PG, i / 16, i % 16 * 65536, &tags);
        }
        let last = (n - 1) / 16;
        for e in 0..last {
            r.append(PG, zero(e, 0, EXTENT)).unwrap();
            r.run_all();
            r.commit_all(PG);
            r.run_all();
        }
        r.wait(Duration::from_secs(3));
        r.run_all();
        assert!(!r.store.headroom().full, "{:?}", r.store.headroom());
        r.put(PG, write(0, 0, &whole(7)));
        r.flush();
        r.pages(PG, 0, 0, &whole(7));
        r.pages(PG, last, 0, &[last * 256 + 1]);
    }
}

/// They waited behind it until the log was full.
#[test]
fn blocks_that_have_their_slot_are_destaged_past_one_that_finds_none() {
    let mut r = Rig::new(small_config());
    let free = |r: &Rig| {
        let s = r.store.stats();
        (s.capacity_bytes - s.used_bytes) / u64::from(BLOCK)
    };
    let mut n = 0u32;
    while free(&r) > 0 {
        r.put(PG, write(n / 16, n % 16 * BLOCK, &[n + 1]));
        r.flush();
        n += 1;
    }
    r.put(PG, write(n / 16, n % 16 * BLOCK, &[n + 1]));
    for i in 0..3 {
        r.put(PG, write(0, i * BLOCK, &[1000 + i]));
    }
    r.flush();
    assert_eq!(r.store.stats().dirty_pages, 1, "what has no slot");
    for i in 0..3 {
        assert!(!LOG.contains(&r.find_page(1000 + i)), "in its place");
    }
    // A slot becomes free: the block that waits is the one to get it, in whatever else goes on.
    r.put(PG, zero(0, 7 * BLOCK, BLOCK));
    for i in 0..40 {
        r.put(PG, write(0, i % 3 * BLOCK, &[1003 + i]));
        r.wait(Duration::from_millis(100));
    }
    r.flush();
    assert_eq!((r.store.stats().dirty_pages, free(&r)), (0, 0));
    assert!(!LOG.contains(&r.find_page(n + 1)));
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    r.pages(PG, n / 16, n % 16 * BLOCK, &[n + 1, 0]);
    r.pages(PG, 0, 2 * BLOCK, &[1003 + 38]);
}

#[test]
fn a_copy_on_its_way_to_the_log_outlives_a_checkpoint_that_begins_meanwhile() {
    for tags in [vec![7], whole(7)] {
        let mut r = Rig::new(small_config());
        r.put(PG, write(0, 0, &[1]));
        r.flush();
        let valid = if tags.len() == 1 { 1 } else { 0xFFFF };
        r.store.append_copy(PG, copy_of(key(0, 5), v(1, 1), valid, &tags)).unwrap();
        r.poll();
        // Everything but the copy's batch goes on.
        let held: Vec<OpId> = r.pending.iter().filter(|o| in_log(o)).map(|o| o.id()).collect();
        assert!(!held.is_empty());
        r.store.flush_all();
        r.run(&|o| !held.contains(&o.id()));
        r.flush();
        r.power_loss();
        assert_eq!(r.reopen(), Ok(()));
        r.pages(PG, 0, 5 * 65536, &tags);
    }
}

#[test]
fn a_tail_appended_again_does_not_overwrite_what_was_destaged_onto_its_blocks() {
    let mut r = Rig::new(small_config());
    let busy = PgId::new(PoolId(1), 1);
    r.append(PG, write(0, 0, &whole(1))).unwrap();
    r.append(PG, write(0, 8192, &[99])).unwrap();
    r.run_all();
    let before = r.store.stats().relogged;
    let mut n = 0;
    while r.store.stats().relogged == before {
        n += 1;
        assert!(n < 2000, "the tail is never appended again");
        // Other traffic fills the log; of the tail's second writing only the first is held.
        if r.append(busy, write(3, n % 256 * 4096, &[n])).is_err() {
            r.run_all();
        }
        r.one(&|_| true);
        r.commit_all(busy);
    }
    // Hold every write to blocks that the second writing may have begun; commit; destage; let go.
    r.commit_all(PG);
    r.poll();
    let early: Vec<OpId> = r.pending.iter().filter(|o| to_blocks(o)).map(|o| o.id()).collect();
    r.store.flush_all();
    r.run(&|o| !early.contains(&o.id()));
    r.run_all();
    let mut want = whole(1);
    want[2] = 99;
    r.pages(PG, 0, 0, &want);
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    r.pages(PG, 0, 0, &want);
}

#[test]
fn a_block_that_is_always_read_is_destaged_and_read_right() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.flush();
    let t = r.begin_read(PG, 0, 0, 65536);
    r.poll();
    // The read waits in the device while its page is replaced and destaged.
    let no_reads = |o: &DiskOp| !matches!(o, DiskOp::Read { .. });
    r.append(PG, write(0, 4096, &[50])).unwrap();
    r.run(&no_reads);
    r.commit_all(PG);
    r.store.flush_all();
    r.run(&no_reads);
    assert_eq!(r.store.stats().dirty_pages, 0, "the read held up the destage");
    r.run_all();
    let got = r.answer(t).map(|d| d.segments.concat());
    let mut want = whole(1);
    want[1] = 50;
    let want: Vec<u8> = want.iter().flat_map(|t| common::model::page_of(*t)).collect();
    assert!(got == Ok(want), "neither content");
    assert_eq!(r.store.stats().crc_errors, 0);
}

#[test]
fn slots_freed_before_a_crash_come_back_without_new_writes() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.put(PG, write(0, 0, &whole(20)));
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    r.commit_all(PG);
    r.flush();
    assert_eq!(r.store.stats().used_bytes, r.store.pg_state(PG).bytes_used);
    // A slot on which only a read is left is free when that ends.
    let t = r.begin_read(PG, 0, 0, 65536);
    r.poll();
    let no_reads = |o: &DiskOp| !matches!(o, DiskOp::Read { .. });
    r.append(PG, write(0, 0, &whole(40))).unwrap();
    r.run(&no_reads);
    r.commit_all(PG);
    r.store.flush_all();
    r.run(&no_reads);
    assert_eq!(r.store.stats().used_bytes, 2 * 65536);
    r.run_all();
    assert!(r.answer(t).is_ok());
    assert_eq!(r.store.stats().used_bytes, 65536);
}

#[test]
fn destages_are_behind_until_a_write_waits_for_room_in_the_log() {
    let begun = |o: &DiskOp, wanted: WriteSync| {
        to_blocks(o) && matches!(o, DiskOp::Write { sync, .. } if *sync == wanted)
    };
    let mut r = Rig::new(small_config());
    let mut refused = false;
    for i in 0..4000u32 {
        let kind = write(0, 4096 * (i * 7 % 200), &[i + 1, i + 2]);
        if let Err(e) = r.append(PG, kind) {
            assert_eq!(e, AppendError::LogFull);
            refused = true;
            break;
        }
        r.run(&|o| in_log(o) || is_sync(o));
        let s = r.store.pg_state(PG).stable.seq;
        r.store.set_commit(PG, s);
    }
    assert!(refused, "the log never filled");
    assert!(r.pending.iter().any(|o| begun(o, WriteSync::Behind)), "{:?}", r.pending.len());
    assert!(!r.pending.iter().any(|o| begun(o, WriteSync::None)), "nobody waited when these began");
    // Now somebody does.
    while r.one(&|o| begun(o, WriteSync::Behind)) {}
    assert!(r.pending.iter().any(|o| begun(o, WriteSync::None)), "{:?}", r.pending.len());
    r.run_all();
}
