//! Devices that are not what they should be: gone, slow, hanging, of another cluster or a newer format; writes
//! that landed nowhere or elsewhere; a scrub that finds them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::rig::*;
use quarry_base::*;
use quarry_store::*;
use std::time::Duration;

const LOG_END: u64 = (128 << 10) + (1 << 20);

#[test]
fn a_read_that_fails_is_an_error_of_that_read_alone() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.flush();
    r.fails = |o| matches!(o, DiskOp::Read { .. });
    assert_eq!(r.read(PG, 0, 0, 4096), Err(ReadError::Corrupt { pages: vec![0] }));
    assert!(matches!(r.block(PG, key(0, 0)), Err(ReadError::Corrupt { .. })));
    r.fails = |_| false;
    r.pages(PG, 0, 0, &whole(1));
    // The device takes writes all the same.
    r.put(PG, write(0, 0, &[9]));
    r.pages(PG, 0, 0, &[9, 2]);
    assert_eq!((r.failures(), r.store.stats().crc_errors), (0, 0));
}

#[test]
fn a_device_whose_reads_go_on_failing_is_unfit_and_serves_what_it_can() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.put(PG, write(1, 0, &whole(2)));
    r.flush();
    r.fails = |o| matches!(o, DiskOp::Read { .. });
    let _ = r.read(PG, 0, 0, 4096);
    assert_eq!(r.store.unfit(), None, "one bad place is no bad device");
    for _ in 0..UNFIT_READS {
        let _ = r.read(PG, 0, 0, 4096);
    }
    assert_eq!(r.store.unfit(), Some(StoreError::Unreadable));
    assert_eq!((r.store.failed(), r.failures()), (None, 0), "it may hold the last good copy");
    r.fails = |_| false;
    r.put(PG, write(0, 0, &[9]));
    r.pages(PG, 0, 0, &[9, 2]);
    r.flush();
    // The next opening is another try.
    assert_eq!(r.reopen(), Ok(()));
    assert_eq!(r.store.unfit(), None);
    r.pages(PG, 0, 0, &[9, 2]);
}

#[test]
fn a_device_that_is_gone_fails_once_and_does_not_open_again() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.flush();
    r.errno = 19; // ENODEV
    r.fails = |_| true;
    r.append(PG, write(0, 0, &[2])).unwrap();
    assert_eq!(r.read(PG, 0, 0, 4096), Err(ReadError::Io(19)));
    r.run_all();
    assert_eq!(r.failures(), 1);
    assert!(matches!(r.store.failed(), Some(StoreError::Io { errno: 19, .. })));
    assert_eq!(r.append(PG, write(0, 0, &[3])), Err(AppendError::Failed));
    assert!(matches!(r.reopen(), Err(StoreError::Io { errno: 19, .. })));
}

#[test]
fn a_device_of_another_cluster_is_refused_and_not_written_to() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &[1]));
    let before = r.disk.now.clone();
    assert_eq!(r.reopen_as(Some([8; 16])), Err(StoreError::OtherCluster));
    assert!(r.disk.now == before);
    assert_eq!(r.reopen(), Ok(()));
}

#[test]
fn a_device_of_the_first_format_is_refused_and_not_written_to() {
    let mut r = Rig::new(small_config());
    [0, 65536].iter().for_each(|at| common::reversion(&mut r.disk, *at, 1));
    let before = r.disk.now.clone();
    let want = StoreError::OlderFormat { found: 1, known: FORMAT_VERSION };
    assert_eq!(read_ident(&r.disk.durable[..IDENT_BYTES]), Err(want.clone()));
    assert_eq!(r.reopen(), Err(want));
    assert!(r.disk.now == before);
}

#[test]
fn a_newer_format_is_refused_and_not_written_to_also_if_one_superblock_alone_says_so() {
    for places in [&[0, 65536][..], &[0], &[65536]] {
        let mut r = Rig::new(small_config());
        r.put(PG, write(0, 0, &[1]));
        r.flush();
        places.iter().for_each(|at| common::reversion(&mut r.disk, *at, FORMAT_VERSION + 1));
        let before = r.disk.now.clone();
        let want = StoreError::NewerFormat { found: FORMAT_VERSION + 1, known: FORMAT_VERSION };
        assert_eq!(read_ident(&r.disk.durable[..IDENT_BYTES]), Err(want.clone()));
        assert_eq!(r.reopen(), Err(want));
        assert!(r.disk.now == before);
    }
}

/// It was taken for that of the operation which has its place now.
#[test]
fn a_completion_that_comes_twice_is_ignored_the_second_time() {
    let mut r = Rig::new(small_config());
    let first = r.append(PG, write(0, 0, &[1])).unwrap();
    r.poll();
    let gone = r.pending[0].id();
    r.run_all();
    assert!(r.stable() >= first);
    let second = r.append(PG, write(0, 4096, &[2])).unwrap();
    r.poll();
    assert_eq!(r.pending[0].id().0 as u32, gone.0 as u32, "it has its place");
    for again in [DiskResult::Done(Err(5)), DiskResult::Done(Ok(()))] {
        r.store.complete(r.now, gone, again);
        r.poll();
        assert_eq!((r.failures(), r.stable() >= second), (0, false));
    }
    r.run_all();
    assert!(r.stable() >= second);
    r.commit_all(PG);
    r.pages(PG, 0, 0, &[1, 2]);
}

fn stalls(r: &Rig) -> usize {
    r.events.iter().filter(|e| matches!(e, StoreEvent::Stalled { .. })).count()
}

#[test]
fn a_device_without_progress_is_reported_and_after_a_while_has_failed() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &[1]));
    r.append(PG, write(0, 4096, &[2])).unwrap();
    r.poll();
    for _ in 0..90 {
        r.wait(Duration::from_millis(100));
        r.poll();
    }
    assert_eq!((stalls(&r), r.failures()), (1, 0));
    // It moves: that was slowness.
    r.run_all();
    assert_eq!(r.store.stalled_for(), Duration::ZERO);
    assert_eq!(r.events.iter().filter(|e| matches!(e, StoreEvent::Moves)).count(), 1);
    r.append(PG, write(0, 8192, &[3])).unwrap();
    r.poll();
    for _ in 0..120 {
        r.wait(Duration::from_millis(100));
        r.poll();
    }
    assert_eq!((stalls(&r), r.failures()), (2, 1));
    assert!(matches!(r.store.failed(), Some(StoreError::Hung { .. })));
    // What it did after all counts for nothing more.
    let told = r.stable();
    r.run_all();
    assert_eq!((r.stable(), r.failures()), (told, 1));
}

/// It was seen as moving as long as anything ended.
#[test]
fn a_log_write_or_a_sync_that_never_ends_is_noticed_while_reads_go_on() {
    let mut told = Vec::new();
    let held: [fn(&DiskOp) -> bool; 2] = [
        |o| matches!(o, DiskOp::Write { offset, .. } if LOG.contains(offset)),
        |o| matches!(o, DiskOp::Sync { .. }),
    ];
    for (held, ends) in held.iter().flat_map(|h| [(*h, false), (*h, true)]) {
        let mut r = Rig::new(StoreConfig { ack: AckMode::Cached, ..small_config() });
        r.put(PG, write(0, 0, &whole(1)));
        r.flush();
        r.append(PG, write(1, 0, &[9])).unwrap();
        r.store.sync();
        let (mut most, tenth) = (0, Duration::from_millis(100));
        for turn in 0..130 {
            if turn == 70 && ends {
                r.run_all();
            }
            // Each turn a read ends, and after the first second the store is never without one.
            let t = r.begin_read(PG, 0, 0, 4096);
            r.run(&|o| !held(o));
            assert!(r.answer(t).is_ok());
            most = most.max(r.pending.len());
            // A process that sleeps sees nothing of its device: one look is a tenth of a second at most.
            r.wait(if turn == 5 { Duration::from_secs(3600) } else { tenth });
            r.poll();
            let silent = r.store.stalled_for();
            let late = turn > 60 && !ends;
            assert!(!late || silent + Duration::from_millis(300) > tenth * turn, "{silent:?}");
            // Others end: it may have waited its turn for so long.
            assert!(turn > 45 || silent <= tenth * 2, "{silent:?}");
        }
        let moves = r.events.iter().filter(|e| matches!(e, StoreEvent::Moves)).count();
        assert!(most > 0, "nothing was held");
        told.push((stalls(&r), moves, r.failures()));
        assert_eq!(matches!(r.store.failed(), Some(StoreError::Hung { .. })), !ends);
    }
    assert_eq!(told, [(1, 0, 1), (1, 1, 0), (1, 0, 1), (1, 1, 0)]);
}

#[test]
fn many_writes_that_follow_each_other_are_no_stall() {
    let mut r = Rig::new(small_config());
    for n in 0..300 {
        // Always one in flight, none for long.
        r.append(PG, write(0, 0, &[n + 1])).unwrap();
        r.poll();
        r.wait(Duration::from_millis(40));
        r.one(&|_| true);
        if n % 8 == 0 {
            r.commit_all(PG);
            r.run_all();
        }
    }
    assert_eq!((stalls(&r), r.failures()), (0, 0));
}

/// The first write after a quiet spell was taken for one that had waited as long.
#[test]
fn what_begins_after_a_quiet_spell_has_not_waited_for_it() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &[1]));
    r.wait(Duration::from_secs(60));
    r.append(PG, write(0, 4096, &[2])).unwrap();
    r.store.poll_appends(r.now, &mut r.pending);
    r.poll();
    assert_eq!((stalls(&r), r.store.stalled_for()), (0, Duration::ZERO));
}

#[test]
fn a_process_that_was_paused_says_nothing_about_its_device() {
    let mut r = Rig::new(small_config());
    r.append(PG, write(0, 0, &[1])).unwrap();
    r.poll();
    r.wait(Duration::from_secs(3600));
    r.poll();
    assert_eq!(r.failures(), 0);
    r.run_all();
    assert!(r.stable() > 0);
}

#[test]
fn a_destage_that_was_lost_or_went_elsewhere_is_noticed_and_never_served() {
    for elsewhere in [false, true] {
        let mut r = Rig::new(small_config());
        r.put(PG, write(0, 0, &whole(1)));
        r.put(PG, write(0, 65536, &whole(20)));
        r.flush();
        r.put(PG, write(0, 4096, &[50]));
        r.store.flush_all();
        // The write of the page is done by the disk only as far as the disk says.
        let to_data = |o: &DiskOp| matches!(o, DiskOp::Write { offset, .. } if *offset >= LOG_END + (64 << 10));
        r.run(&|o| !to_data(o));
        let at = r.pending.iter().position(to_data).expect("a destage");
        let op = r.pending.remove(at);
        if elsewhere {
            let DiskOp::Write { data, offset, .. } = &op else { panic!("a write") };
            let to = *offset as usize + 65536;
            r.disk.now[to..to + 4096].copy_from_slice(&data[0]);
            r.disk.durable[to..to + 4096].copy_from_slice(&data[0]);
        }
        r.store.complete(r.now, op.id(), DiskResult::Done(Ok(())));
        r.flush();
        assert!(matches!(r.read(PG, 0, 4096, 4096), Err(ReadError::Corrupt { .. })));
        r.pages(PG, 0, 0, &[1]);
        if elsewhere {
            assert!(matches!(r.read(PG, 0, 65536, 65536), Err(ReadError::Corrupt { .. })));
        }
        r.power_loss();
        assert_eq!(r.reopen(), Ok(()));
        assert!(matches!(r.read(PG, 0, 4096, 4096), Err(ReadError::Corrupt { .. })));
    }
}

#[test]
fn the_newest_superblock_lost_is_noticed() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &[1]));
    // Opened again: the log goes on in an incarnation that only the newest superblock knows.
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    r.append(PG, write(0, 4096, &[2])).unwrap();
    r.run_all();
    let good = r.disk.durable.clone();
    let mut noticed = 0;
    for at in [100, 65536 + 100] {
        r.disk.durable.clone_from(&good);
        r.disk.rot(at);
        r.disk.lose_unsynced();
        match r.reopen() {
            Ok(()) => assert_eq!(r.store.pg_state(PG).last, v(1, 2), "a write is lost"),
            Err(_) => noticed += 1,
        }
    }
    assert_eq!(noticed, 1);
}

/// Lets the scrub run until it has made a pass.
fn scrub(r: &mut Rig) {
    let passes = r.store.scrub_stats().passes;
    for _ in 0..10_000 {
        r.run_all();
        if r.store.scrub_stats().passes > passes {
            return;
        }
        r.wait(Duration::from_millis(200));
    }
    panic!("the scrub never ends a pass: {:?}", r.store.scrub_stats());
}

fn scrubbed_config() -> StoreConfig {
    StoreConfig { scrub_bytes_per_second: 1 << 20, ..small_config() }
}

#[test]
fn the_scrub_finds_a_rotten_page_and_a_rotten_table_group() {
    let mut r = Rig::new(scrubbed_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.put(PG, write(0, 65536, &[20]));
    r.flush();
    scrub(&mut r);
    let s = r.store.scrub_stats();
    assert_eq!((s.bad_pages, s.bad_groups), (0, 0));
    assert!(s.bytes >= 17 * 4096, "{s:?}");
    assert_eq!((s.ended.bytes, s.ended.bad_pages), (s.bytes, 0));
    let good = r.block(PG, key(0, 0)).unwrap().unwrap();
    let want = common::model::page_of(4);
    let at = r.disk.durable.chunks(PAGE).rposition(|p| p == want).unwrap() * PAGE;
    r.disk.rot(at as u64 + 9);
    r.events.clear();
    scrub(&mut r);
    let found = |e: &StoreEvent| matches!(e, StoreEvent::Corruption { pages: 8, .. });
    assert_eq!(r.events.iter().filter(|e| found(e)).count(), 1);
    let ended = r.store.scrub_stats().ended;
    assert_eq!((r.store.scrub_stats().bad_pages, ended.bad_pages), (1, 1));
    assert!(ended.passes > s.ended.passes && ended.bytes > s.ended.bytes, "{ended:?} after {s:?}");
    r.store.repair(PG, good).unwrap();
    r.run_all();
    r.flush();
    r.events.clear();
    scrub(&mut r);
    assert!(!r.events.iter().any(found));
    // The side of the table group that counts.
    let sides = [LOG_END, LOG_END + 8192].map(|o| o as usize);
    let gen = |at: usize| u64::from_le_bytes(r.disk.durable[at + 16..at + 24].try_into().unwrap());
    let newest = if gen(sides[0]) > gen(sides[1]) { sides[0] } else { sides[1] };
    r.disk.rot(newest as u64 + 200);
    scrub(&mut r);
    assert_eq!(r.store.scrub_stats().bad_groups, 1);
    r.flush();
    scrub(&mut r);
    assert_eq!(r.store.scrub_stats().bad_groups, 1, "it was written anew");
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    r.pages(PG, 0, 0, &whole(1));
}

#[test]
fn the_scrub_goes_on_where_it_was_and_keeps_its_rate() {
    let mut r = Rig::new(scrubbed_config());
    for i in 0..12 {
        r.put(PG, write(0, i * 65536, &whole(i * 16 + 1)));
    }
    r.flush();
    r.store.restart_scrub();
    let (begin, before) = (r.now, r.store.scrub_stats().bytes);
    while r.store.scrub_stats().position < 6 {
        r.run_all();
        r.wait(Duration::from_millis(5));
    }
    let bytes = r.store.scrub_stats().bytes - before;
    let most = r.now.since(begin).as_secs_f64() * f64::from(1 << 20) + 65536.0;
    assert!(bytes as f64 <= most, "{bytes} bytes, at most {most}");
    let at = r.store.scrub_stats().position;
    r.flush();
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    let s = r.store.scrub_stats();
    assert!(s.position >= at && s.position <= at + 1, "{s:?} was at {at}");
}

/// Slots that the scrub has gone through since the device was formatted.
fn gone_through(r: &Rig) -> u64 {
    let s = r.store.scrub_stats();
    s.passes * s.blocks + s.position
}

/// Only a checkpoint saved where it was, and a device that takes no writes made none: a kill threw the whole pass away.
#[test]
fn the_scrub_of_a_device_without_writes_goes_on_where_it_was_after_a_power_loss() {
    let mut r = Rig::new(small_config());
    for i in 0..96 {
        r.put(PG, write(i / 16, i % 16 * 65536, &whole(i * 16 + 1)));
    }
    r.flush();
    r.store.set_scrub_rate(1 << 30);
    let checkpoints = r.store.stats().checkpoints;
    scrub(&mut r);
    scrub(&mut r);
    let (begun, first) = (r.store.scrub_stats().bytes, r.store.stats().checkpoints);
    assert_eq!(first, checkpoints, "not with every pass");
    while r.store.scrub_stats().bytes < begun + (1 << 30) + (1 << 20) {
        r.run_all();
        r.wait(Duration::from_millis(20));
    }
    assert_eq!(r.store.stats().checkpoints, first + 1, "one a GiB");
    let before = gone_through(&r);
    r.power_loss();
    r.store.set_scrub_rate(0);
    assert_eq!(r.reopen(), Ok(()));
    let after = gone_through(&r);
    let blocks = r.store.scrub_stats().blocks;
    assert!(after + 40 * blocks > before && after > blocks * 100, "{after} of {before}");
}

#[test]
fn the_end_of_a_pass_is_kept_over_a_power_loss_if_the_last_is_an_hour_ago() {
    let mut r = Rig::new(scrubbed_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.flush();
    r.wait(Duration::from_secs(3600));
    let passes = r.store.scrub_stats().passes;
    scrub(&mut r);
    let first = r.store.stats().checkpoints;
    for _ in 0..20 {
        scrub(&mut r);
    }
    assert_eq!(r.store.stats().checkpoints, first, "not with every pass");
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    assert_eq!(r.store.scrub_stats().passes, passes + 1);
}

#[test]
fn a_policy_goes_before_the_servers_own_rate_and_takes_hold_at_once() {
    // One block takes hours at this rate.
    let mut r = Rig::new(StoreConfig { scrub_bytes_per_second: 1, ..small_config() });
    for i in 0..12 {
        r.put(PG, write(0, i * 65536, &whole(i * 16 + 1)));
    }
    r.flush();
    r.store.restart_scrub();
    let read_in = |r: &mut Rig, seconds: u64| {
        let before = r.store.scrub_stats().bytes;
        for _ in 0..seconds * 10 {
            r.run_all();
            r.wait(Duration::from_millis(100));
        }
        r.store.scrub_stats().bytes - before
    };
    assert!(read_in(&mut r, 2) <= 65536);
    assert_eq!(read_in(&mut r, 2), 0);
    r.store.set_scrub_policy(Some(1 << 20));
    assert_eq!(r.store.scrub_stats().rate, 1 << 20);
    assert!(read_in(&mut r, 1) > 512 << 10, "the long wait has ended");
    r.store.set_scrub_policy(Some(0));
    assert_eq!((r.store.scrub_stats().rate, read_in(&mut r, 10)), (0, 0));
    r.store.set_scrub_rate(2 << 20);
    assert_eq!(read_in(&mut r, 10), 0, "the policy still stands");
    r.store.set_scrub_policy(None);
    assert_eq!(r.store.scrub_stats().rate, 2 << 20);
    assert!(read_in(&mut r, 1) > 0);
}

#[test]
fn a_store_opened_read_only_writes_nothing_and_reads_everything() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.put(PG, write(0, 4096, &[50]));
    r.power_loss();
    r.cfg.read_only = true;
    let before = r.disk.now.clone();
    assert_eq!(r.reopen(), Ok(()));
    let last = r.store.pg_state(PG).last.seq;
    r.store.set_commit(PG, last);
    r.pages(PG, 0, 0, &[1, 50, 3]);
    assert_eq!(r.append(PG, write(0, 0, &[2])), Err(AppendError::Failed));
    r.wait(Duration::from_secs(60));
    r.run_all();
    assert!(r.disk.now == before);
}

#[test]
fn cached_means_written_and_a_flush_makes_it_durable() {
    let mut r = Rig::new(StoreConfig { ack: AckMode::Cached, ..small_config() });
    let first = r.append(PG, write(0, 0, &[1])).unwrap();
    r.run(&|o| !is_sync(o));
    assert_eq!(r.stable(), first, "written is stable");
    let flush = r.store.sync();
    let synced = |r: &Rig, id| {
        r.events.iter().any(|e| matches!(e, StoreEvent::Synced { upto } if *upto >= id))
    };
    r.run(&|o| !is_sync(o));
    assert!(!synced(&r, flush), "nothing is synced yet");
    r.run_all();
    assert!(synced(&r, flush));
    // Not flushed: a power loss may take it, and never what lies before the flush.
    r.append(PG, write(0, 4096, &[2])).unwrap();
    r.run(&|o| !is_sync(o));
    assert_eq!(r.store.pg_state(PG).stable, v(1, 2));
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
    assert_eq!(r.store.pg_state(PG).last, v(1, 1));
    r.commit_all(PG);
    r.pages(PG, 0, 0, &[1, 0]);
    // A flush with nothing to flush is answered at once.
    let flush = r.store.sync();
    r.poll();
    assert!(synced(&r, flush));
}

#[test]
fn whole_blocks_of_one_batch_that_follow_each_other_on_the_device_are_one_write() {
    let mut r = Rig::new(small_config());
    for block in 0..4 {
        r.append(PG, write(0, block * 65536, &whole(block * 16 + 1))).unwrap();
    }
    r.poll();
    let direct: Vec<usize> = r
        .pending
        .iter()
        .filter_map(|o| match o {
            DiskOp::Write { offset, data, .. } if *offset >= LOG_END => {
                Some(data.iter().map(|d| d.len()).sum())
            }
            _ => None,
        })
        .collect();
    assert_eq!(direct, [4 * 65536]);
    r.run_all();
    r.commit_all(PG);
    for _ in 0..2 {
        for block in 0..4 {
            r.pages(PG, 0, block * 65536, &whole(block * 16 + 1));
        }
        r.flush();
        r.power_loss();
        assert_eq!(r.reopen(), Ok(()));
    }
}
