//! Waiting, waking, and the flags of older kernels.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::*;
use quarry_ring::{now_boottime, Event, OpenOpts, Reactor, RecvBuf, RingConfig};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn a_deadline_ends_the_wait_and_never_early() {
    for step in [0, 3] {
        let mut r = Reactor::with_step(RingConfig::default(), step).unwrap();
        let mut out = Vec::new();
        let started = now_boottime();
        let at = started + Duration::from_millis(30);
        while r.now() < at {
            r.turn(Some(at), &mut out).unwrap();
        }
        let took = now_boottime().since(started);
        assert!(took >= Duration::from_millis(30) && took < Duration::from_secs(10), "{took:?}");
        assert!(out.is_empty());
        assert!(r.stats().turns < 10, "it slept: {:?}", r.stats());
        let before = *r.stats();
        r.turn(Some(started), &mut out).unwrap();
        assert_eq!(r.stats().turns, before.turns + 1, "a deadline in the past does not block");
    }
}

#[test]
fn no_wake_up_from_other_threads_is_lost() {
    const THREADS: u64 = 3;
    const EACH: u64 = 3000;
    let mut r = Reactor::new(RingConfig::default()).unwrap();
    let posted = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (waker, posted) = (r.waker(), Arc::clone(&posted));
            std::thread::spawn(move || {
                for _ in 0..EACH {
                    posted.fetch_add(1, Ordering::Relaxed);
                    waker.wake();
                }
            })
        })
        .collect();
    // If a wake-up were lost, the last turn would wait for its deadline in vain.
    let limit = now_boottime() + Duration::from_secs(20);
    let (mut seen, mut woken, mut out) = (0, 0u64, Vec::new());
    while seen < THREADS * EACH {
        r.turn(Some(limit), &mut out).unwrap();
        assert!(r.now() < limit, "a wake-up was lost: {seen} seen");
        for e in out.drain(..) {
            assert!(matches!(e, Event::Woken));
            woken += 1;
            seen = posted.load(Ordering::Relaxed);
        }
    }
    for t in threads {
        t.join().unwrap();
    }
    assert!(woken <= THREADS * EACH);
    r.shutdown();
}

#[test]
fn a_waker_that_outlives_its_reactor_does_no_harm() {
    let r = Reactor::new(RingConfig::default()).unwrap();
    let waker = r.waker();
    drop(r);
    waker.wake();
    waker.clone().wake();
}

#[test]
fn a_sleeping_reactor_is_woken_and_repeated_wakes_count_once() {
    let mut l = Loop::new();
    let waker = l.r.waker();
    for _ in 0..5 {
        waker.wake();
    }
    l.turn_for(Duration::ZERO);
    assert_eq!(l.seen.len(), 1);
    l.seen.clear();
    let t = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        waker.wake();
    });
    l.until(|e| matches!(e, Event::Woken));
    t.join().unwrap();
}

#[test]
fn every_older_kernels_flags_carry_network_and_disk() {
    for step in 0..5 {
        let cfg = RingConfig { entries: 8, ..Default::default() };
        let mut l = Loop { r: Reactor::with_step(cfg, step).unwrap(), seen: Vec::new() };
        println!("{}", l.r.probe());
        let (a, b) = UnixStream::pair().unwrap();
        let (a, b) = (l.r.adopt(a.into(), 1), l.r.adopt(b.into(), 2));
        l.r.arm_recv(b, RecvBuf::new(100));
        l.r.send(a, Bytes::from_static(b"abc"), Bytes::from_static(b"def"));
        let e = l.until(|e| matches!(e, Event::Received { .. }));
        assert!(matches!(e, Event::Received { n: 6, token: 2, .. }), "{e:?}");
        let dir = TempDir::new();
        let opts = OpenOpts { direct: false, read_only: false, create_size: Some(4096) };
        let f = l.r.open_device(&dir.path("d"), opts).unwrap().id;
        l.r.write_then_sync(f, 0, vec![Bytes::from_static(b"xyz")], 3);
        l.until(|e| matches!(e, Event::WriteDone { token: 3, result: Ok(()) }));
        l.r.waker().wake();
        l.until(|e| matches!(e, Event::Woken));
        l.r.close(a);
        l.r.arm_recv(b, RecvBuf::new(100));
        l.until(|e| matches!(e, Event::Closed { .. }));
    }
}
