//! Places that the medium refuses to read: one page says nothing about its neighbours, and at open it is a damaged one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::rig::*;
use quarry_base::*;
use quarry_store::*;
use std::time::Duration;

#[test]
fn a_page_that_cannot_be_read_is_repaired_like_a_rotten_one() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.flush();
    let good = r.block(PG, key(0, 0)).unwrap().unwrap();
    r.fails = |op| matches!(op, DiskOp::Read { .. });
    assert_eq!(r.read(PG, 0, 8192, 4096), Err(ReadError::Corrupt { pages: vec![8192] }));
    let told = |e: &StoreEvent| matches!(e, StoreEvent::Corruption { pages: 4, .. });
    assert!(r.events.iter().any(told));
    assert!(r.store.failed().is_none(), "the device goes on");
    // A good copy is served from then on, though the place still cannot be read.
    r.store.repair(PG, good).unwrap();
    r.run_all();
    r.pages(PG, 0, 0, &whole(1));
    // The device has been taken away: that says nothing about pages.
    r.flush();
    r.errno = 19;
    assert_eq!(r.read(PG, 0, 0, 4096), Err(ReadError::Io(19)));
}

#[test]
fn a_page_that_cannot_be_read_does_not_take_its_neighbours_with_it() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.put(PG, write(0, 65536, &whole(21)));
    r.flush();
    let good = r.block(PG, key(0, 0)).unwrap().unwrap();
    let at = r.find_page(1);
    r.unreadable = [2, 9].map(|p| at + p * PAGE as u64).to_vec();
    let rotten = r.find_page(6);
    r.disk.rot(rotten + 5);
    // Two that the medium refuses, one that is not what it was; the rest is there.
    let bad = vec![2 * 4096, 5 * 4096, 9 * 4096];
    assert_eq!(r.read(PG, 0, 0, 65536), Err(ReadError::Corrupt { pages: bad }));
    let told = |e: &StoreEvent| matches!(e, StoreEvent::Corruption { pages: 0b10_0010_0100, .. });
    assert!(r.events.iter().any(told));
    assert_eq!(r.store.stats().crc_errors, 1, "those that cannot be read are no wrong checksums");
    r.pages(PG, 0, 3 * 4096, &[4, 5]);
    r.pages(PG, 0, 65536, &whole(21));
    assert!(r.store.unfit().is_none());
    // A copy that is silent about these pages is one that others can be mended from.
    r.store.read_block_without(77, PG, key(0, 0), 0b10_0010_0100);
    r.run_all();
    let part = r.events.iter().find_map(|e| match e {
        StoreEvent::BlockDone { token: 77, result: Ok(Some(c)) } => Some(c.valid),
        _ => None,
    });
    assert_eq!(part, Some(!0b10_0010_0100));
    r.store.repair(PG, good.clone()).unwrap();
    r.flush();
    assert!(r.unreadable.is_empty(), "written anew");
    assert_eq!(r.block(PG, key(0, 0)), Ok(Some(good)));
}

#[test]
fn a_page_that_is_replaced_while_it_is_read_is_not_reported_as_unreadable() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.flush();
    let at = r.find_page(1);
    r.unreadable = vec![at + 2 * PAGE as u64];
    let t = r.begin_read(PG, 0, 0, 65536);
    r.poll();
    // While the read is under way its page comes anew; the read still finds the old place refused.
    let reads = |o: &DiskOp| matches!(o, DiskOp::Read { .. });
    r.put_without(PG, write(0, 2 * 4096, &[99]), &reads);
    r.run_all();
    let mut want: Vec<u8> = Vec::new();
    for tag in whole(1) {
        want.extend(common::model::page_of(if tag == 3 { 99 } else { tag }));
    }
    assert_eq!(r.answer(t).map(|d| d.segments.concat()), Ok(want));
    assert!(!r.events.iter().any(|e| matches!(e, StoreEvent::Corruption { .. })));
}

/// Whether a page was replaced meanwhile is not known once its check has left the memory: a read that others push out of it
/// again and again was never answered, and its page never mended.
#[test]
fn a_page_that_cannot_be_read_is_reported_however_fast_the_checks_come_and_go() {
    let mut r = Rig::new(StoreConfig { check_cache_bytes: 0, ..small_config() });
    // Blocks of three groups of the table.
    for block in 0..130u32 {
        r.put(PG, write(block / 16, block % 16 * 65536, &whole(100 * block + 1)));
    }
    r.flush();
    r.unreadable = vec![r.find_page(3)];
    let t = r.begin_read(PG, 0, 0, 65536);
    let mine = |e: &StoreEvent| matches!(e, StoreEvent::ReadDone { token, .. } if *token == t);
    let place = r.find_page(1);
    let of_it = |o: &DiskOp| matches!(o, DiskOp::Read { offset, .. } if (place..place + 65536).contains(offset));
    for _ in 0..200 {
        // Reads of the other groups bring their checks in and push those of the first out.
        for block in [70u32, 128] {
            r.begin_read(PG, block / 16, block % 16 * 65536, 4096);
            r.run(&|o| !of_it(o));
        }
        if r.events.iter().any(mine) {
            break;
        }
        r.one(&of_it);
    }
    assert_eq!(r.answer(t), Err(ReadError::Corrupt { pages: vec![8192] }));
    assert!(r.store.unfit().is_none(), "one place is one place");
}

#[test]
fn a_place_that_cannot_be_read_at_open_counts_as_damaged_and_no_more() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.flush();
    r.put(PG, write(0, 8192, &[50]));
    r.put(PG, write(0, 65536, &[60]));
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    r.commit_all(PG);
    r.run_all();
    let before = r.disk.durable.clone();
    let blank = |at: u64| before[at as usize..at as usize + PAGE].iter().all(|b| *b == 0);
    let free_log = LOG.step_by(PAGE).filter(|p| blank(*p)).last().expect("the log has room");
    let tables = LOG.end..LOG.end + 16384;
    let side_not_in_use = tables.step_by(8192).find(|p| blank(*p)).expect("one side is unused");
    let newest = Rig::newest_super(&before);
    let older = (64 << 10) - newest;
    // What is kept twice, or says nothing.
    for places in [
        vec![older],
        vec![free_log, free_log - 4096],
        vec![side_not_in_use, side_not_in_use + 4096],
        vec![older, free_log, side_not_in_use],
    ] {
        r.disk.durable.clone_from(&before);
        r.disk.lose_unsynced();
        r.unreadable = places.clone();
        assert_eq!(r.reopen(), Ok(()), "{places:?}");
        r.commit_all(PG);
        r.run_all();
        let mut tags = whole(1);
        tags[2] = 50;
        r.pages(PG, 0, 0, &tags);
        r.pages(PG, 0, 65536, &[60]);
        // It goes on, and what it writes anew can be read again.
        r.put(PG, write(0, 4096, &[70]));
        r.flush();
        r.power_loss();
        assert_eq!(r.reopen(), Ok(()), "{places:?}");
        r.commit_all(PG);
        r.pages(PG, 0, 4096, &[70]);
    }
    // What is needed and there once: the device does not open, as with a wrong checksum.
    r.disk.durable.clone_from(&before);
    r.disk.lose_unsynced();
    let log_page = r.find_page(50);
    assert!(LOG.contains(&log_page), "not at its place yet");
    let side_in_use = (LOG.end..LOG.end + 16384).step_by(8192).find(|p| !blank(*p)).unwrap();
    for (places, want) in [
        (vec![0, 64 << 10], "Io"),
        (vec![log_page], "LogCorrupt"),
        (vec![side_in_use], "Inconsistent"),
    ] {
        r.unreadable = places;
        let out = format!("{:?}", r.reopen());
        assert!(out.starts_with(&format!("Err({want}")), "{out}");
    }
    // A device that gives nothing at all is given up soon.
    r.unreadable = (0..r.cfg.device_bytes).step_by(PAGE).skip(1).collect();
    assert!(r.reopen().is_err());
    // Another error than the medium's says nothing about places.
    r.unreadable = vec![free_log];
    r.errno = 19;
    assert!(matches!(r.reopen(), Err(StoreError::Io { errno: 19, .. })));
}

#[test]
fn the_scrub_has_a_place_of_the_table_that_cannot_be_read_written_anew() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.flush();
    let side = (0..2).map(|s| LOG.end + s * 8192).find(|o| r.disk.durable[*o as usize] != 0);
    r.unreadable = vec![side.unwrap()];
    r.store.set_scrub_rate(1 << 40);
    for _ in 0..20 {
        r.run_all();
        r.wait(Duration::from_millis(10));
    }
    assert!(r.events.iter().any(|e| matches!(e, StoreEvent::TableDamaged { group: 0 })));
    r.store.set_scrub_rate(0);
    r.flush();
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    r.pages(PG, 0, 0, &whole(1));
}

/// What lies at the log's end may have been acknowledged: a page of it that cannot be read is not taken for a torn one.
#[test]
fn a_log_whose_end_cannot_be_read_is_not_cut_there() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &[1]));
    r.put(PG, write(0, 4096, &[2]));
    let whole_at = r.find_page(2);
    // The newest batch: nothing vouches for it but itself.
    r.append(PG, write(0, 8192, &[3])).unwrap();
    r.run_all();
    let last = r.find_page(3);
    assert!(
        LOG.contains(&last) && last == whole_at + 8192,
        "descriptor and content, one after the other"
    );
    let before = r.disk.durable.clone();
    let io = |out: Result<(), StoreError>| matches!(out, Err(StoreError::Io { errno: 5, .. }));
    for places in [vec![last], vec![last - 4096], vec![last - 4096, last]] {
        r.disk.durable.clone_from(&before);
        r.disk.lose_unsynced();
        r.unreadable = places.clone();
        assert!(io(r.reopen()), "{places:?}");
    }
    // The content of one and the header of the next, which alone says that the one was synced.
    r.disk.durable.clone_from(&before);
    r.disk.lose_unsynced();
    r.unreadable = vec![whole_at, last - 4096];
    assert!(r.reopen().is_err());
    // The place that the next batch would have: it may have been there.
    r.unreadable = vec![last + 4096];
    assert!(io(r.reopen()));
    r.unreadable = vec![last + 8192];
    assert_eq!(r.reopen(), Ok(()));
    assert_eq!(r.store.pg_state(PG).last, v(1, 3));
}

/// `dump` called such a log whole, and the device did not open.
#[test]
fn a_log_in_words_is_whole_only_if_a_recovery_says_so_too() {
    let mut r = Rig::new(small_config());
    for n in 1..=3 {
        r.put(PG, write(0, n * 4096, &[n]));
    }
    let last = r.find_page(3);
    let end = last + 4096;
    let verdict = |r: &Rig| {
        let mut log = r.disk.durable[LOG.start as usize..LOG.end as usize].to_vec();
        let refused: Vec<u64> = r.unreadable.iter().map(|at| at - LOG.start).collect();
        for at in &refused {
            mark_unreadable(&mut log[*at as usize..*at as usize + PAGE]);
        }
        let start = &r.disk.durable[..IDENT_BYTES];
        inspect::log_lines(start, log.into(), &refused).pop().unwrap()
    };
    let (before, first) = (r.disk.durable.clone(), r.find_page(1));
    let cases = [(None, "whole"), (Some(end + 64 * 4096), "whole"), (Some(end), "UNREADABLE")];
    let damaged = [(Some(last), "UNREADABLE"), (Some(first), "DAMAGED")];
    for (place, says) in cases.into_iter().chain(damaged) {
        r.disk.durable.clone_from(&before);
        r.disk.lose_unsynced();
        r.unreadable = place.into_iter().collect();
        let found = verdict(&r);
        assert!(found.contains(says), "{place:?}: {found}");
        assert_eq!(r.reopen().is_ok(), says == "whole", "{place:?}: {found}");
    }
}

#[test]
fn a_block_written_straight_to_its_place_that_cannot_be_read_does_not_cut_the_log() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &[1]));
    r.append(PG, write(0, 65536, &whole(20))).unwrap();
    r.run_all();
    let block = r.find_page(20);
    assert!(!LOG.contains(&block));
    r.power_loss();
    r.unreadable = vec![block + 3 * 4096];
    assert!(matches!(r.reopen(), Err(StoreError::Io { .. })));
    r.unreadable.clear();
    assert_eq!(r.reopen(), Ok(()));
    assert_eq!(r.store.pg_state(PG).last, v(1, 2));
}

#[test]
fn a_superblock_that_is_refused_once_counts_all_the_same() {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static REFUSALS: AtomicU32 = AtomicU32::new(0);
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.flush();
    r.fails = |op| {
        let first = matches!(op, DiskOp::Read { offset, .. } if *offset <= 64 << 10);
        first && REFUSALS.fetch_add(1, Relaxed) < 2
    };
    assert_eq!(r.reopen(), Ok(()));
    assert_eq!((r.store.unreadable_at_open(), REFUSALS.load(Relaxed) >= 2), (0, true));
    r.fails = |_| false;
    r.pages(PG, 0, 0, &whole(1));
}
