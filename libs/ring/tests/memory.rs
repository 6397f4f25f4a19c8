//! Files of memory file systems, which the reactor reads and writes itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::*;
use quarry_ring::{OpenOpts, RingConfig};

#[test]
fn what_is_written_to_a_file_in_memory_is_read_back_and_no_worker_thread_is_asked() {
    let mut l = Loop::new();
    let dir = TempDir::in_memory();
    let f = l.r.open_device(&dir.path("d"), CREATE).unwrap();
    assert!(f.in_memory && !f.is_block_device, "/dev/shm is a memory file system");
    l.r.write_at(f.id, 4096, page(1), 1);
    l.r.write_vectored_at(f.id, 8192, vec![page(2), Bytes::new(), page(3), page(4)], 2);
    l.r.write_then_sync(f.id, 65_536, vec![page(5), page(6)], 3);
    l.r.fdatasync(f.id, 4);
    for t in 1..=4 {
        assert_eq!(done(&mut l, t), Ok(0));
    }
    let firsts: Vec<u8> =
        read(&mut l, f.id, 0, 24_576).unwrap().chunks(4096).map(|c| c[0]).collect();
    assert_eq!(firsts, [0, 1, 2, 3, 4, 0]);
    assert_eq!(read(&mut l, f.id, 65_536 + 4096, 4096).unwrap()[..], [6; 4096]);
    l.r.discard(f.id, 8192, 4096, 5);
    assert_eq!(done(&mut l, 5), Ok(0));
    let b = read(&mut l, f.id, 4096, 12_288).unwrap();
    assert_eq!([b[0], b[4096], b[8192]], [1, 0, 3]);
    let s = l.r.stats();
    assert_eq!((s.writes, s.fsyncs, s.reads, s.discards), (3, 2, 3, 1));
    assert_eq!(s.inline_ops, 9, "all of them");
}

#[test]
fn errors_of_a_file_in_memory_are_told_once_and_past_its_end_there_are_no_zeroes() {
    let mut l = Loop::new();
    let dir = TempDir::in_memory();
    let path = dir.path("d");
    std::fs::write(&path, vec![9; 8192]).unwrap();
    let f = l.r.open_device(&path, OpenOpts { read_only: true, ..Default::default() }).unwrap().id;
    l.r.write_then_sync(f, 0, vec![page(1)], 1);
    assert_eq!(done(&mut l, 1), Err(libc::EBADF));
    assert_eq!(read(&mut l, f, 4096, 8192).err(), Some(libc::EIO), "half past the end");
    assert_eq!(read(&mut l, f, 4096, 4096).unwrap()[0], 9);
    l.settle();
    assert!(l.seen.is_empty(), "one completion each: {:?}", l.seen);
}

#[test]
fn many_operations_on_a_file_in_memory_keep_to_the_limit_and_lose_nothing() {
    let mut l = Loop::with(RingConfig { max_inflight: 16, ..Default::default() });
    let dir = TempDir::in_memory();
    let f = l.r.open_device(&dir.path("d"), CREATE).unwrap().id;
    for i in 0..250u64 {
        l.r.write_then_sync(f, i * 4096, vec![page(i as u8)], i);
    }
    for i in 0..250 {
        assert_eq!(done(&mut l, i), Ok(0), "write {i}");
    }
    for i in 0..250u64 {
        assert_eq!(read(&mut l, f, i * 4096, 4096).unwrap()[..], [i as u8; 4096]);
    }
    assert!(l.r.stats().disk_waits > 0);
    l.r.close_file(f);
    l.r.write_at(f, 0, page(2), 1000);
    assert_eq!(done(&mut l, 1000), Err(libc::EBADF), "the id is dead");
}
