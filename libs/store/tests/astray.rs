//! Pages of one and the same CRC-32C (they end in their own) in each other's place: writes that went astray, that
//! never happened, that were swapped; and after a power loss, what lay there before. A checksum of the content
//! alone takes each of them for what should be there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::model::page_of;
use common::rig::*;
use quarry_base::*;
use quarry_store::*;
use std::time::Duration;

const LOG: std::ops::Range<u64> = 128 << 10..(128 << 10) + (1 << 20);
const DATA: u64 = LOG.end + (64 << 10);

/// Where the page lies among the blocks.
fn place(r: &Rig, tag: u32) -> usize {
    let want = page_of(tag);
    let pages = r.disk.durable.chunks(PAGE).enumerate();
    let mut found = pages.filter(|(i, p)| (i * PAGE) as u64 >= DATA && *p == want);
    found.next().expect("the page is on the disk").0 * PAGE
}

fn put(r: &mut Rig, at: usize, tag: u32) {
    r.disk.durable[at..at + PAGE].copy_from_slice(&page_of(tag));
    r.disk.now.clone_from(&r.disk.durable);
}

/// What happens to page 3 of the first block, and the pages of it that are wrong then.
type Damage = (&'static str, fn(&mut Rig), u16);

const DAMAGES: [Damage; 4] = [
    // The write of page 3 never reached the disk: the older one, of an older version, is still there.
    ("lost", |r| put(r, place(r, 50), 4), 1 << 3),
    // The write of the second block's page landed on it.
    ("misdirected", |r| put(r, place(r, 50), 104), 1 << 3),
    // Two pages of one block, each in the other's place.
    (
        "swapped",
        |r| (put(r, place(r, 5), 990), put(r, place(r, 50), 5), put(r, place(r, 990), 50)).0,
        3 << 3,
    ),
    // The page of an earlier format of the device, or anything else that ends in its own CRC.
    ("foreign", |r| put(r, place(r, 50), 7777), 1 << 3),
];

/// Two blocks on the disk; page 3 of the first was written again, in place.
fn two_blocks(cfg: StoreConfig) -> Rig {
    let mut r = Rig::new(cfg);
    r.put(PG, write(0, 0, &whole(1)));
    r.put(PG, write(0, BLOCK, &whole(101)));
    r.flush();
    r.put(PG, write(0, 3 * 4096, &[50]));
    r.flush();
    let all = (1..17).chain(101..117).chain([50]);
    let crcs: std::collections::BTreeSet<u32> = all.map(|t| crc32c(&page_of(t))).collect();
    assert_eq!(crcs.len(), 1, "they all have one CRC");
    r
}

fn offsets(mask: u16) -> Vec<u32> {
    (0..16).filter(|p| mask >> p & 1 == 1).map(|p| p * 4096).collect()
}

fn told(r: &Rig) -> u16 {
    let of = |e: &StoreEvent| match e {
        StoreEvent::Corruption { key: k, pages, .. } if *k == key(0, 0) => Some(*pages),
        _ => None,
    };
    r.events.iter().filter_map(of).fold(0, |m, p| m | p)
}

#[test]
fn a_page_in_the_wrong_place_or_time_is_never_served_and_can_be_repaired() {
    for (what, damage, bad) in DAMAGES {
        let mut r = two_blocks(small_config());
        let good = r.block(PG, key(0, 0)).unwrap().unwrap();
        damage(&mut r);
        for reopened in [false, true] {
            if reopened {
                assert_eq!(r.reopen(), Ok(()), "{what}");
            }
            r.events.clear();
            let corrupt = ReadError::Corrupt { pages: offsets(bad) };
            assert_eq!(r.read(PG, 0, 0, BLOCK), Err(corrupt.clone()), "{what}");
            assert_eq!(told(&r), bad, "{what}");
            // As a rebuild and a comparison of copies read it.
            assert_eq!(r.block(PG, key(0, 0)), Err(corrupt), "{what}");
            r.pages(PG, 0, BLOCK, &whole(101));
        }
        // A copy with another page of the same CRC is not taken for the content that is missing.
        let mut tags = whole(1);
        tags[3] = 4;
        let older = copy_of(key(0, 0), good.version, 0xFFFF, &tags);
        assert_eq!(older.crcs, good.crcs);
        assert_eq!(r.store.repair(PG, older), Err(RepairError::OtherContent), "{what}");
        assert!(r.store.repair(PG, good.clone()).is_ok());
        r.run_all();
        r.flush();
        assert_eq!(r.reopen(), Ok(()));
        assert_eq!(r.block(PG, key(0, 0)), Ok(Some(good)), "{what}");
    }
}

#[test]
fn the_scrub_finds_a_page_in_the_wrong_place_or_time() {
    for (what, damage, bad) in DAMAGES {
        let mut r = two_blocks(StoreConfig { scrub_bytes_per_second: 1 << 30, ..small_config() });
        damage(&mut r);
        r.store.restart_scrub();
        let passes = r.store.scrub_stats().passes;
        for _ in 0..2000 {
            r.wait(Duration::from_millis(20));
            r.run_all();
            if r.store.scrub_stats().passes > passes {
                break;
            }
        }
        assert!(r.store.scrub_stats().passes > passes, "{what}: the scrub has been round");
        assert_eq!(told(&r), bad, "{what}");
        assert!(r.store.scrub_stats().bad_pages >= u64::from(bad.count_ones()));
    }
}

#[test]
fn a_log_page_from_before_is_a_torn_tail_and_below_the_sync_mark_corruption() {
    let mut r = Rig::new(small_config());
    for (i, tag) in [1, 2, 3].into_iter().enumerate() {
        r.put(PG, write(0, i as u32 * 4096, &[tag]));
    }
    let before = r.disk.durable.clone();
    for (tag, opens) in [(2, false), (3, true)] {
        r.disk.durable.clone_from(&before);
        let want = page_of(tag);
        let at = r.disk.durable.chunks(PAGE).rposition(|p| p == want).unwrap() * PAGE;
        assert!(LOG.contains(&(at as u64)));
        put(&mut r, at, 900);
        let out = r.reopen();
        if opens {
            // The last batch: nobody was told of it, if this is what a power loss left.
            assert_eq!(out, Ok(()));
            assert_eq!(r.store.pg_state(PG).last, v(1, 2));
            r.commit_all(PG);
            r.pages(PG, 0, 0, &[1, 2, 0]);
        } else {
            assert!(matches!(out, Err(StoreError::LogCorrupt { .. })), "{out:?}");
        }
    }
}

#[test]
fn a_block_that_held_other_pages_of_the_same_crc_is_not_taken_for_the_write_that_was_lost() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &[1]));
    r.append(PG, write(0, BLOCK, &whole(101))).unwrap();
    r.run_all();
    // The batch got to the disk, of the block only a part: its last page is an old one.
    let at = place(&r, 116);
    put(&mut r, at, 500);
    assert_eq!(r.reopen(), Ok(()));
    assert_eq!(r.store.pg_state(PG).last, v(1, 1));
    r.commit_all(PG);
    r.pages(PG, 0, BLOCK, &[0; 16]);
    r.pages(PG, 0, 0, &[1]);
}
