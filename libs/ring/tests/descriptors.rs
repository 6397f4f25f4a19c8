//! Running out of file descriptors. Alone in its process: the limit is the process's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::*;
use quarry_ring::{Event, RecvBuf};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

#[test]
fn without_descriptors_accepting_pauses_others_go_on_and_it_resumes() {
    let mut l = Loop::new();
    let dir = TempDir::new();
    let path = dir.path("s");
    l.r.listen_unix(&path, 0o600, 1).unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    let (a, b) = (l.r.adopt(a.into(), 2), l.r.adopt(b.into(), 3));
    let _clients = [UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap()];
    // The next descriptor there would be is above the limit.
    let spare = UnixStream::pair().unwrap().0;
    let limit = getrlimit(Resource::Nofile);
    let low = Rlimit { current: Some(spare.as_raw_fd() as u64), maximum: limit.maximum };
    drop(spare);
    setrlimit(Resource::Nofile, low).unwrap();
    l.turn_for(Duration::from_millis(120));
    assert!(l.seen.is_empty(), "{:?}", l.seen);
    assert!(l.r.stats().accept_pauses > 0);
    l.r.arm_recv(b, RecvBuf::new(10));
    l.r.send(a, Bytes::from_static(b"still here"), Bytes::new());
    l.until(|e| matches!(e, Event::Received { n: 10, .. }));
    assert!(l.r.stats().turns < 50, "it does not spin: {:?}", l.r.stats());
    setrlimit(Resource::Nofile, limit).unwrap();
    l.until(|e| matches!(e, Event::Accepted { .. }));
    l.until(|e| matches!(e, Event::Accepted { .. }));
}
