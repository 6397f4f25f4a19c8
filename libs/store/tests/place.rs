//! Parts of a block that are written once: straight to their pages, with an intent in the log (docs/DISK-FORMAT.md).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::model::page_of;
use common::rig::*;
use common::SimDisk;
use quarry_base::*;
use quarry_store::*;

/// Some parts of a block at a version, by page and tag; a tag of 0 is a trimmed part.
fn parts(key: BlockKey, version: Version, list: &[(u32, u32)]) -> BlockCopy {
    let held: Vec<(u32, u32)> = list.iter().copied().filter(|(_, t)| *t != 0).collect();
    let mask = |l: &[(u32, u32)]| l.iter().fold(0, |m, (p, _)| m | 1u16 << p);
    let tags: Vec<u32> = held.iter().map(|(_, t)| *t).collect();
    BlockCopy { part: mask(list), dirty: mask(list), ..copy_of(key, version, mask(&held), &tags) }
}

/// A block of tags 1 to 16 in extent 0, destaged and in a checkpoint or not.
fn with_block(checkpointed: bool) -> Rig {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.put(PG, write(5, 0, &[99]));
    if checkpointed {
        r.flush();
    }
    r
}

fn at(r: &Rig) -> Version {
    r.store.pg_state(PG).commit_version
}

fn placed(r: &Rig, intent: Appended) -> Option<AppendId> {
    r.events.iter().find_map(|e| match e {
        StoreEvent::Placed { intent: i, by, .. } if *i == intent.id() => Some(*by),
        _ => None,
    })
}

fn crash(r: &mut Rig) {
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
}

/// Bytes written from now on until everything has come to rest: to the log, and to blocks.
fn written(r: &mut Rig) -> (u64, u64) {
    let (mut log, mut blocks) = (0, 0);
    for _ in 0..1000 {
        r.poll();
        let Some(op) = r.pending.first() else { break };
        if let DiskOp::Write { offset, data, .. } = op {
            let n: u64 = data.iter().map(|d| d.len() as u64).sum();
            if LOG.contains(offset) {
                log += n;
            } else if *offset >= LOG.end + 65536 {
                blocks += n;
            }
        }
        let id = op.id();
        r.one(&|o| o.id() == id);
    }
    (log, blocks)
}

#[test]
fn parts_of_a_block_are_written_once_and_durable_when_it_is_said() {
    let mut r = with_block(true);
    let v = at(&r);
    let copies: Vec<Appended> = (0..4u32)
        .map(|i| {
            let c = parts(key(0, 0), v, &[(3 * i, 50 + i), (3 * i + 1, 0), (3 * i + 2, 70 + i)]);
            r.store.place_copy(PG, c).unwrap()
        })
        .collect();
    assert!(copies.iter().all(|c| matches!(c, Appended::Intent(_))));
    let (log, blocks) = written(&mut r);
    assert_eq!(blocks, 8 * 4096, "each part once");
    // One batch of the intents, one with a mark, and here one for each block that got there.
    assert!(log <= 6 * 4096, "{log} bytes of log");
    assert_eq!(r.store.stats().placed, 4);
    let by: Vec<AppendId> = copies.iter().filter_map(|c| placed(&r, *c)).collect();
    assert!(by.len() == 4 && by.iter().all(|b| *b <= r.stable()));
    let want = [50, 0, 70, 51, 0, 71, 52, 0, 72, 53, 0, 73, 13, 14, 15, 16];
    for _ in 0..3 {
        r.pages(PG, 0, 0, &want);
        crash(&mut r);
    }
    r.flush();
    crash(&mut r);
    r.pages(PG, 0, 0, &want);
}

/// The slot came from a destage and no table page has it: only the record that says that the parts are there names it.
#[test]
fn parts_in_a_slot_that_no_checkpoint_has_are_found_by_what_says_that_they_are_there() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &[1, 2, 3]));
    r.put(PG, write(1, 0, &[4]));
    // Destaged, and then no checkpoint comes through.
    r.store.flush_all();
    r.run(&|o| !matches!(o, DiskOp::Write { offset, .. } if *offset < LOG.start || (LOG.end..LOG.end + 65536).contains(offset)));
    r.pending.clear();
    let table = |o: &DiskOp| matches!(o, DiskOp::Write { offset, .. } if *offset < LOG.start);
    let v = at(&r);
    let c = r.store.place_copy(PG, parts(key(0, 0), v, &[(1, 80), (9, 81)])).unwrap();
    assert!(matches!(c, Appended::Intent(_)));
    r.run(&|o| !table(o));
    assert!(placed(&r, c).is_some_and(|by| by <= r.stable()), "acknowledged");
    for _ in 0..3 {
        crash(&mut r);
        r.pages(PG, 0, 0, &[1, 80, 3, 0, 0, 0, 0, 0, 0, 81, 0]);
    }
    r.flush();
    crash(&mut r);
    r.pages(PG, 0, 0, &[1, 80, 3, 0, 0, 0, 0, 0, 0, 81, 0]);
}

#[test]
fn parts_that_did_not_get_there_leave_what_was_there_in_the_log_or_in_the_block() {
    let mut r = with_block(true);
    // Page 4 is newer in the log alone.
    r.put(PG, write(0, 4 * 4096, &[44]));
    let v = at(&r);
    let c = r.store.place_copy(PG, parts(key(0, 0), v, &[(2, 90), (4, 91), (5, 92)])).unwrap();
    let to_block =
        |o: &DiskOp| matches!(o, DiskOp::Write { offset, .. } if *offset > LOG.end + 65536);
    r.run(&|o| !to_block(o));
    assert!(r.pending.iter().any(to_block), "the parts are on their way");
    assert_eq!(placed(&r, c), None, "nobody was told");
    for flushed in [false, false, true] {
        crash(&mut r);
        r.pages(PG, 0, 0, &[1, 2, 3, 4, 44, 6, 7]);
        if flushed {
            r.flush();
        }
    }
}

#[test]
fn a_block_that_is_written_all_the_time_does_not_keep_its_parts_from_getting_there() {
    let mut r = with_block(true);
    let v = at(&r);
    let c = r.store.place_copy(PG, parts(key(0, 0), v, &[(7, 60)])).unwrap();
    for i in 0..40u32 {
        r.append(PG, write(0, 0, &[200 + i])).unwrap();
        r.commit_all(PG);
        for _ in 0..3 {
            r.one(&|_| true);
        }
        if placed(&r, c).is_some() {
            r.run_all();
            r.pages(PG, 0, 0, &[200 + i, 2, 3, 4, 5, 6, 7, 60, 9]);
            crash(&mut r);
            r.pages(PG, 0, 4096, &[2, 3, 4, 5, 6, 7, 60, 9]);
            return;
        }
    }
    panic!("not there after 40 writes");
}

#[test]
fn what_waits_for_its_place_is_bounded_and_then_goes_through_the_log() {
    let mut r =
        Rig::new(StoreConfig { device_bytes: 64 << 20, log_bytes: 8 << 20, ..small_config() });
    for b in 0..16 {
        r.put(PG, write(0, b * 65536, &whole(1 + 16 * b)));
    }
    r.flush();
    let v = at(&r);
    let mut kinds = (0, 0);
    for i in 0..400u32 {
        let c = parts(key(0, (i % 16) as u8), v, &[(i / 16 % 16, 1000 + i % 256)]);
        match r.store.place_copy(PG, c).unwrap() {
            Appended::Intent(_) => kinds.0 += 1,
            Appended::Logged(_) => kinds.1 += 1,
        }
    }
    assert_eq!(kinds, (256, 144));
    r.run_all();
    let told = r.events.iter().filter(|e| matches!(e, StoreEvent::Placed { .. })).count();
    assert_eq!(told, 256);
    crash(&mut r);
    for b in 0..16u32 {
        let want: Vec<u32> = (0..16).map(|p| 1000 + p * 16 + b).collect();
        r.pages(PG, 0, b * 65536, &want);
    }
}

#[test]
fn what_is_not_parts_of_a_block_that_is_there_goes_through_the_log() {
    let mut r = with_block(true);
    let v = at(&r);
    let mut place = |c| r.store.place_copy(PG, c).unwrap();
    let whole_block = place(copy_of(key(0, 0), v, 0xFFFF, &whole(100)));
    let no_block = place(parts(key(0, 3), v, &[(1, 5)]));
    let only_trims = place(parts(key(0, 0), v, &[(1, 0), (2, 0)]));
    for c in [whole_block, no_block, only_trims] {
        assert!(matches!(c, Appended::Logged(_)));
    }
    // Nor where a record that is not applied yet writes to the block.
    r.append(PG, write(0, 4096, &[7])).unwrap();
    let c = r.store.place_copy(PG, parts(key(0, 0), v, &[(3, 8)])).unwrap();
    assert!(matches!(c, Appended::Logged(_)));
    let mut bad = parts(key(0, 0), v, &[(3, 8)]);
    bad.crcs[0] ^= 1;
    assert!(matches!(r.store.place_copy(PG, bad), Err(AppendError::Invalid(_))));
}

#[test]
fn a_group_that_is_dropped_takes_its_waiting_parts_with_it() {
    let mut r = with_block(true);
    let v = at(&r);
    r.store.place_copy(PG, parts(key(0, 0), v, &[(3, 8)])).unwrap();
    r.store.drop_pg(PG).unwrap();
    r.flush();
    crash(&mut r);
    assert_eq!(r.store.pgs(), []);
    assert_eq!(r.store.stats().used_bytes, 0);
}

/// A place that the medium refuses, at the opening: it may be one that was told of.
#[test]
fn a_part_that_cannot_be_read_at_the_opening_is_damaged_and_not_what_it_was() {
    let mut r = with_block(true);
    let v = at(&r);
    let c = r.store.place_copy(PG, parts(key(0, 0), v, &[(3, 80)])).unwrap();
    r.run_all();
    assert!(placed(&r, c).is_some());
    let place = r.find_page(80);
    r.power_loss();
    r.unreadable = vec![place];
    assert_eq!(r.reopen(), Ok(()));
    assert_eq!(r.read(PG, 0, 3 * 4096, 4096), Err(ReadError::Corrupt { pages: vec![3 * 4096] }));
    r.pages(PG, 0, 0, &[1, 2, 3]);
    r.pages(PG, 0, 4 * 4096, &[5, 6]);
    // And mended by content of its version.
    let good = parts(key(0, 0), v, &[(3, 80)]);
    r.store.repair(PG, good).unwrap();
    r.flush();
    r.pages(PG, 0, 0, &[1, 2, 3, 80, 5]);
}

/// With `ack = cached` nothing waits for syncs: parts go through the log. What was on its way before gets there.
#[test]
fn with_cached_acknowledgement_parts_go_through_the_log_and_outlive_the_process() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.flush();
    let v = at(&r);
    let before = r.store.place_copy(PG, parts(key(0, 0), v, &[(3, 80)])).unwrap();
    r.store.set_ack(AckMode::Cached);
    let c = r.store.place_copy(PG, parts(key(0, 0), v, &[(8, 81)])).unwrap();
    assert!(matches!(c, Appended::Logged(_)));
    r.run_all();
    assert!(placed(&r, before).is_some_and(|by| by <= r.stable()));
    r.pending.clear();
    r.disk.process_kill();
    assert_eq!(r.reopen(), Ok(()));
    r.pages(PG, 0, 0, &[1, 2, 3, 80, 5, 6, 7, 8, 81, 10]);
}

/// A device of the format before is taken over as it is, and is one of the new from then on.
#[test]
fn a_device_of_the_second_format_is_taken_over() {
    let mut r = with_block(true);
    r.put(PG, write(0, 4096, &[77]));
    let version = |d: &SimDisk, at: usize| d.durable[at + 8];
    for at in [0, 65536] {
        common::reversion(&mut r.disk, at, 2);
    }
    assert_eq!(r.reopen(), Ok(()));
    r.commit_all(PG);
    r.run_all();
    r.pages(PG, 0, 0, &[1, 77, 3]);
    assert!(
        [0, 65536].iter().any(|at| version(&r.disk, *at) == 3),
        "said before anything else is written"
    );
    r.put(PG, write(0, 2 * 4096, &[78]));
    r.flush();
    crash(&mut r);
    r.pages(PG, 0, 0, &[1, 77, 78]);
    assert!([0, 65536].iter().all(|at| version(&r.disk, *at) == 3));
    assert_eq!(page_of(0).len(), 4096);
}
