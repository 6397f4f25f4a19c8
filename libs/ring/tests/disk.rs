//! Files of a reactor.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::*;
use quarry_base::PageBuf;
use quarry_ring::{now_boottime, Event, OpenOpts, RingConfig, RingError};
use std::os::unix::fs::FileExt;
use std::time::Duration;

#[test]
fn what_is_written_and_synced_past_the_cache_is_read_back() {
    let mut l = Loop::new();
    let dir = TempDir::new();
    let f = l.r.open_device(&dir.path("d"), CREATE).unwrap();
    assert!(f.direct && !f.is_block_device);
    assert_eq!(f.size, 1 << 20);
    l.r.write_at(f.id, 4096, page(1), 1);
    l.r.write_vectored_at(f.id, 8192, vec![page(2), page(3), page(4)], 2);
    l.r.write_then_sync(f.id, 65_536, vec![page(5), page(6)], 3);
    l.r.write_durable_at(f.id, 131_072, vec![page(7), page(8)], 6);
    l.r.write_behind_at(f.id, 196_608, vec![page(9), page(10)], 7);
    for t in [1, 2, 3, 6, 7] {
        assert_eq!(done(&mut l, t), Ok(0));
    }
    l.r.fdatasync(f.id, 4);
    assert_eq!(done(&mut l, 4), Ok(0));
    let b = read(&mut l, f.id, 0, 24_576).unwrap();
    let firsts: Vec<u8> = b.chunks(4096).map(|c| c[0]).collect();
    assert_eq!(firsts, [0, 1, 2, 3, 4, 0]);
    assert_eq!(read(&mut l, f.id, 65_536 + 4096, 4096).unwrap()[..], [6; 4096]);
    l.r.discard(f.id, 8192, 4096, 5);
    assert_eq!(done(&mut l, 5), Ok(0));
    let b = read(&mut l, f.id, 4096, 12_288).unwrap();
    assert_eq!([b[0], b[4096], b[8192]], [1, 0, 3]);
    let b = read(&mut l, f.id, 131_072, 8192).unwrap();
    assert_eq!([b[0], b[8191]], [7, 8]);
    let b = read(&mut l, f.id, 196_608, 8192).unwrap();
    assert_eq!([b[0], b[8191]], [9, 10]);
    let s = l.r.stats();
    assert_eq!(
        s.fsyncs + s.dsync_writes,
        3,
        "where one write cannot be durable by itself, a sync follows"
    );
}

#[test]
fn reading_past_the_end_is_an_error_and_never_zeroes() {
    let mut l = Loop::new();
    let dir = TempDir::new();
    let f = l.r.open_device(&dir.path("d"), CREATE).unwrap().id;
    assert_eq!(read(&mut l, f, 1 << 20, 4096).err(), Some(libc::EIO));
    assert_eq!(
        read(&mut l, f, (1 << 20) - 4096, 8192).err(),
        Some(libc::EIO),
        "half past the end too"
    );
    assert!(l.r.stats().short_disk > 0);
    assert!(read(&mut l, f, (1 << 20) - 4096, 4096).is_ok());
}

#[test]
fn a_write_of_more_pieces_than_one_operation_takes_is_complete_and_then_synced() {
    let mut l = Loop::new();
    let dir = TempDir::new();
    let path = dir.path("d");
    let opts = OpenOpts { direct: false, ..CREATE };
    let f = l.r.open_device(&path, opts).unwrap().id;
    let data: Vec<u8> = (0..300_000).map(|i| (i % 253) as u8).collect();
    let all = Bytes::from(data.clone());
    let mut pieces: Vec<Bytes> =
        (0..all.len()).step_by(100).map(|i| all.slice(i..i + 100)).collect();
    pieces.insert(7, Bytes::new());
    l.r.write_then_sync(f, 11, pieces, 1);
    assert_eq!(done(&mut l, 1), Ok(0));
    let mut got = vec![0; data.len()];
    std::fs::File::open(&path).unwrap().read_exact_at(&mut got, 11).unwrap();
    assert!(got == data);
    let s = l.r.stats();
    assert_eq!((s.writes, s.fsyncs), (3, 1), "two continuations, one sync at the end");
}

#[test]
fn a_failed_write_fails_its_linked_sync_once_and_later_operations_go_on() {
    let mut l = Loop::new();
    let dir = TempDir::new();
    let path = dir.path("d");
    std::fs::write(&path, vec![9; 8192]).unwrap();
    let opts = OpenOpts { direct: false, read_only: true, create_size: None };
    let f = l.r.open_device(&path, opts).unwrap().id;
    l.r.write_then_sync(f, 0, vec![page(1)], 1);
    assert_eq!(done(&mut l, 1), Err(libc::EBADF));
    l.settle();
    assert!(l.seen.is_empty(), "one completion only: {:?}", l.seen);
    assert_eq!(read(&mut l, f, 4096, 4096).unwrap()[0], 9);
}

#[test]
fn a_full_submission_queue_and_a_small_inflight_limit_lose_nothing() {
    let mut l = Loop::with(RingConfig { entries: 8, max_inflight: 16, ..Default::default() });
    let dir = TempDir::new();
    let opts = OpenOpts { direct: false, create_size: Some(4 << 20), ..CREATE };
    let f = l.r.open_device(&dir.path("d"), opts).unwrap().id;
    for i in 0..600u64 {
        let b = page(i as u8);
        match i % 3 {
            0 => l.r.write_at(f, i * 4096, b, i),
            1 => l.r.write_vectored_at(f, i * 4096, vec![b.slice(..99), b.slice(99..)], i),
            _ => l.r.write_then_sync(f, i * 4096, vec![b], i),
        }
    }
    for i in 0..600 {
        assert_eq!(done(&mut l, i), Ok(0), "write {i}");
    }
    for i in 0..600u64 {
        l.r.read_at(f, i * 4096, PageBuf::new(4096), 4096, i);
    }
    for i in 0..600u64 {
        let e = l.until(|e| matches!(e, Event::ReadDone { token, .. } if *token == i));
        let Event::ReadDone { result, buf, .. } = e else { unreachable!() };
        assert_eq!(result, Ok(4096));
        assert!(buf.iter().all(|&b| b == i as u8), "read {i}");
    }
    let s = l.r.stats();
    assert!(s.sq_full > 0 && s.disk_waits > 0, "{s:?}");
    assert_eq!((s.stray_cqes, s.stale_calls), (0, 0));
}

#[test]
fn a_turn_hands_out_few_file_operations_so_that_new_ones_begin_while_others_are_worked_on() {
    let mut l = Loop::with(RingConfig { disk_batch: 2, ..Default::default() });
    let dir = TempDir::new();
    let opts = OpenOpts { direct: true, read_only: false, create_size: Some(1 << 20) };
    let f = l.r.open_device(&dir.path("d"), opts).unwrap();
    for token in 0..32 {
        l.r.read_at(f.id, token * 4096, PageBuf::new(4096), 4096, token);
    }
    let (mut done, mut out) = (0, Vec::new());
    while done < 32 {
        l.r.turn(Some(now_boottime() + Duration::from_secs(20)), &mut out).unwrap();
        assert!(out.len() <= 2 || f.in_memory, "{} at once", out.len());
        assert!(!out.is_empty(), "nothing came for long");
        done +=
            out.drain(..).filter(|e| matches!(e, Event::ReadDone { result: Ok(4096), .. })).count();
    }
}

#[test]
fn a_closed_file_still_reports_what_is_in_flight_and_then_releases_its_lock() {
    let mut l = Loop::new();
    let dir = TempDir::new();
    let path = dir.path("d");
    let f = l.r.open_device(&path, CREATE).unwrap().id;
    let e = l.r.open_device(&path, CREATE).unwrap_err();
    let text = e.to_string();
    assert!(matches!(e, RingError::Locked { .. }));
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    l.r.write_then_sync(f, 0, vec![page(1)], 1);
    l.r.close_file(f);
    l.r.close_file(f);
    l.r.write_at(f, 0, page(2), 2);
    assert_eq!(done(&mut l, 2), Err(libc::EBADF), "the id is dead, but no token is lost");
    assert_eq!(l.r.stats().stale_calls, 2);
    assert_eq!(done(&mut l, 1), Ok(0));
    // The kernel's worker may let go of the file, and of the lock with it, a moment after it has reported.
    let until = now_boottime() + Duration::from_secs(20);
    let g = loop {
        match l.r.open_device(&path, OpenOpts { create_size: Some(1), ..CREATE }) {
            Err(RingError::Locked { .. }) if now_boottime() < until => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
    assert_eq!(g.size, 1 << 20, "an existing file keeps its size");
    assert_ne!(f, g.id);
    assert_eq!(read(&mut l, g.id, 0, 4096).unwrap()[..], [1; 4096]);
}

#[test]
fn what_is_no_file_or_does_not_exist_is_refused_by_name() {
    let mut l = Loop::new();
    let dir = TempDir::new();
    let e = l.r.open_device("/dev/null".as_ref(), OpenOpts::default()).unwrap_err();
    assert!(matches!(e, RingError::NotADevice { .. }), "{e}");
    let e = l.r.open_device(&dir.path("none"), OpenOpts::default()).unwrap_err();
    assert!(e.to_string().contains("none"), "{e}");
    assert!(!dir.path("none").exists());
}

#[test]
fn operations_without_bytes_complete_at_once() {
    let mut l = Loop::new();
    let dir = TempDir::new();
    let f = l.r.open_device(&dir.path("d"), CREATE).unwrap().id;
    l.r.write_at(f, 0, Bytes::new(), 1);
    l.r.discard(f, 0, 0, 2);
    l.r.read_at(f, 0, PageBuf::new(0), 0, 3);
    l.r.write_then_sync(f, 0, Vec::new(), 4);
    for t in 1..=4 {
        assert_eq!(done(&mut l, t), Ok(0));
    }
    assert_eq!(l.r.stats().fsyncs, 1, "an empty write_then_sync is a sync");
}
