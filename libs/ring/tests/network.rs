//! Connections of a reactor against plain blocking sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::*;
use quarry_ring::{CloseReason, Event, RecvBuf, RingConfig, RingError};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn a_short_send_is_continued_until_a_slow_reader_has_every_byte() {
    let mut l = Loop::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let knob = ours.try_clone().unwrap();
    let conn = l.r.adopt(ours.into(), 1);
    // After the reactor has made it large.
    socket2::SockRef::from(&knob).set_send_buffer_size(4096).unwrap();
    let data = pattern(3 << 20);
    let expected = data.clone();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; expected.len()];
        let mut at = 0;
        while at < got.len() {
            let end = (at + 70_001).min(got.len());
            let n = theirs.read(&mut got[at..end]).unwrap();
            assert!(n > 0);
            at += n;
        }
        assert!(got == expected, "bytes arrive in order, none twice, none missing");
    });
    // More pieces than one message takes, of odd sizes, some empty, one larger than a message.
    let all = Bytes::from(data);
    let big = 2 << 20;
    l.r.send(conn, all.slice(..big), Bytes::new());
    let small: Vec<Bytes> =
        (big..all.len()).step_by(5003).map(|i| all.slice(i..(i + 5003).min(all.len()))).collect();
    assert!(small.len() > 2 * quarry_ring::MAX_SEND_PIECES);
    l.r.send_many(conn, small);
    assert_eq!(l.r.queued_bytes(conn), all.len());
    let e = l.until(|e| matches!(e, Event::Drained { .. }));
    assert_eq!(e.conn(), Some(conn));
    assert_eq!(l.r.queued_bytes(conn), 0);
    assert!(l.r.stats().short_sends > 0, "{:?}", l.r.stats());
    reader.join().unwrap();
}

#[test]
fn data_is_received_where_the_buffer_says_and_only_when_armed() {
    let mut l = Loop::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let conn = l.r.adopt(ours.into(), 7);
    theirs.write_all(b"hello, world").unwrap();
    l.turn_for(Duration::ZERO);
    assert!(l.seen.is_empty(), "not armed: nothing is read");
    let mut buf = RecvBuf::new(4096);
    buf.buf.fill(b'.');
    (buf.start, buf.end) = (10, 15);
    l.r.arm_recv(conn, buf);
    let Event::Received { token: 7, buf, n, .. } = l.until(|e| matches!(e, Event::Received { .. }))
    else {
        panic!("wrong token")
    };
    assert_eq!((n, buf.start), (5, 10));
    assert_eq!(&buf.buf[9..16], b".hello.");
    l.r.set_token(conn, 8);
    l.r.arm_recv(conn, RecvBuf::new(100));
    let Event::Received { token: 8, buf, n, .. } = l.until(|e| matches!(e, Event::Received { .. }))
    else {
        panic!("wrong token")
    };
    assert_eq!(&buf.buf[..n], b", world");
    drop(theirs);
    l.r.arm_recv(conn, RecvBuf::new(100));
    let e = l.until(|e| matches!(e, Event::Closed { .. }));
    assert!(matches!(e, Event::Closed { reason: CloseReason::Eof, token: 8, .. }));
    assert!(!l.r.is_open(conn));
}

#[test]
fn a_peer_that_vanishes_in_mid_send_is_told_once_and_its_last_words_are_delivered() {
    for armed in [true, false] {
        let mut l = Loop::new();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        socket2::SockRef::from(&ours).set_send_buffer_size(4096).unwrap();
        let conn = l.r.adopt(ours.into(), 1);
        l.r.send(conn, Bytes::from(vec![1; 4 << 20]), Bytes::new());
        l.turn_for(Duration::ZERO);
        assert!(l.r.queued_bytes(conn) > 0, "the send is stuck half-way");
        if armed {
            l.r.arm_recv(conn, RecvBuf::new(100));
            l.turn_for(Duration::ZERO);
        }
        theirs.write_all(b"no room").unwrap();
        drop(theirs);
        let e = l.until(|e| matches!(e, Event::Closed { .. }));
        assert_eq!(e.conn(), Some(conn));
        let words: usize =
            l.seen.iter().map(|e| if let Event::Received { n, .. } = e { *n } else { 0 }).sum();
        assert_eq!(words, if armed { 7 } else { 0 });
        l.settle();
        assert!(!l.seen.iter().any(|e| matches!(e, Event::Closed { .. })), "told once");
        assert_eq!(l.r.stats().conns, 0, "nothing is left of it");
    }
}

#[test]
fn closing_with_operations_in_flight_gives_their_buffers_back_and_no_event() {
    let mut l = Loop::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    socket2::SockRef::from(&ours).set_send_buffer_size(4096).unwrap();
    let conn = l.r.adopt(ours.into(), 1);
    let (body, alive) = tracked(vec![3; 4 << 20]);
    l.r.send(conn, body, Bytes::new());
    l.r.arm_recv(conn, RecvBuf::new(1 << 16));
    l.turn_for(Duration::ZERO);
    l.r.close(conn);
    assert!(alive.upgrade().is_some(), "the kernel may still read it");
    assert_eq!(l.r.queued_bytes(conn), 0, "the id is dead at once");
    l.settle();
    assert!(alive.upgrade().is_none(), "after the last completion it is free");
    assert!(l.seen.is_empty(), "{:?}", l.seen);
    assert_eq!(l.r.stats().conns, 0);
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < 4 << 20);
}

#[test]
fn a_reactor_that_ends_with_everything_in_flight_frees_all_buffers() {
    let mut l = Loop::new();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let conn = l.r.adopt(ours.into(), 1);
    let (body, alive) = tracked(vec![3; 4 << 20]);
    l.r.send(conn, body, Bytes::new());
    l.r.arm_recv(conn, RecvBuf::new(1 << 16));
    let dir = TempDir::new();
    l.r.listen_unix(&dir.path("s"), 0o600, 2).unwrap();
    l.turn_for(Duration::ZERO);
    l.r.shutdown();
    assert!(alive.upgrade().is_none());
    assert!(!dir.path("s").exists(), "the socket file goes with its listener");
}

#[test]
fn stale_ids_reach_nothing_and_are_counted() {
    let mut l = Loop::new();
    let (a, _a) = UnixStream::pair().unwrap();
    let old = l.r.adopt(a.into(), 1);
    l.r.close(old);
    let (b, mut peer) = UnixStream::pair().unwrap();
    let new = l.r.adopt(b.into(), 2);
    assert_eq!(old.index(), new.index(), "the slot is used again");
    l.r.send(old, Bytes::from_static(b"lost"), Bytes::new());
    l.r.arm_recv(old, RecvBuf::new(10));
    l.r.set_token(old, 9);
    l.r.close(old);
    l.r.close_after_flush(old);
    assert_eq!(l.r.stats().stale_calls, 5);
    l.r.send(new, Bytes::from_static(b"found"), Bytes::new());
    l.turn_for(Duration::ZERO);
    let mut got = [0; 5];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"found");
}

#[test]
fn close_after_flush_sends_everything_first() {
    let mut l = Loop::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let conn = l.r.adopt(ours.into(), 1);
    let data = pattern(2 << 20);
    l.r.arm_recv(conn, RecvBuf::new(10));
    l.r.send(conn, Bytes::from(data.clone()), Bytes::new());
    l.r.close_after_flush(conn);
    assert!(!l.r.is_open(conn));
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).unwrap();
        assert!(got == data);
    });
    l.settle();
    reader.join().unwrap();
    assert!(l.seen.is_empty(), "{:?}", l.seen);
    assert_eq!(l.r.stats().conns, 0);
}

#[test]
fn tcp_connects_both_ways_and_a_refused_connection_says_so() {
    let mut l = Loop::new();
    let (listener, addr) = l.r.listen_tcp("127.0.0.1:0".parse().unwrap(), 5).unwrap();
    let client = l.r.connect_tcp(addr, 6).unwrap();
    // Both may be queued before the connection is there.
    l.r.send(client, Bytes::from_static(b"pi"), Bytes::from_static(b"ng"));
    l.r.arm_recv(client, RecvBuf::new(10));
    let e = l.until(|e| matches!(e, Event::Accepted { .. }));
    let Event::Accepted { listener: from, token: 5, conn: server } = e else { panic!("{e:?}") };
    assert_eq!(from, listener);
    l.r.arm_recv(server, RecvBuf::new(10));
    let e = l.until(|e| matches!(e, Event::Received { token: 5, .. }));
    assert!(matches!(e, Event::Received { n: 4, .. }), "{e:?}");
    l.r.send(server, Bytes::from_static(b"pong"), Bytes::new());
    let e = l.until(|e| matches!(e, Event::Received { token: 6, .. }));
    assert!(matches!(e, Event::Received { n: 4, .. }), "{e:?}");
    assert!(l.seen.iter().any(|e| matches!(e, Event::Connected { token: 6, .. })));
    assert!(matches!(l.r.listen_tcp(addr, 0).map(|_| ()), Err(RingError::AddressInUse { .. })));
    l.r.close_listener(listener);
    l.settle();
    assert!(TcpStream::connect(addr).is_err(), "nobody listens any more");
    let refused = l.r.connect_tcp(addr, 9).unwrap();
    let e = l.until(|e| matches!(e, Event::Closed { token: 9, .. }));
    assert_eq!(e.conn(), Some(refused));
    let Event::Closed { reason, .. } = e else { panic!() };
    assert_eq!(reason, CloseReason::ConnectFailed(libc::ECONNREFUSED));
}

#[test]
fn a_connection_closed_while_connecting_leaves_nothing() {
    let mut l = Loop::new();
    // An address that swallows packets: the attempt hangs until it is given up.
    let conn = l.r.connect_tcp("192.0.2.1:9".parse().unwrap(), 1).unwrap();
    l.turn_for(Duration::ZERO);
    l.r.close(conn);
    l.settle();
    assert_eq!(l.r.stats().conns, 0);
    assert!(!l.seen.iter().any(|e| matches!(e, Event::Connected { .. })));
}

#[test]
fn a_stale_socket_file_is_replaced_but_a_live_one_or_a_plain_file_is_refused() {
    let mut l = Loop::new();
    let dir = TempDir::new();
    let path = dir.path("sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left behind by a process that died");
    let id = l.r.listen_unix(&path, 0o660, 1).unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o660, "whatever the umask");
    let e = l.r.listen_unix(&path, 0o660, 2).unwrap_err();
    assert!(matches!(e, RingError::AddressInUse { .. }), "{e}");
    let _client = UnixStream::connect(&path).unwrap();
    let e = l.until(|e| matches!(e, Event::Accepted { .. }));
    let cred = l.r.peer_cred(e.conn().unwrap()).unwrap();
    assert_eq!(cred.pid, std::process::id());
    l.r.close_listener(id);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    let e = l.r.listen_unix(&path, 0o660, 3).unwrap_err();
    assert!(matches!(e, RingError::NotASocket { .. }), "{e}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_socket_path_that_does_not_fit_is_refused_with_its_length() {
    let mut l = Loop::new();
    let long = std::path::PathBuf::from(format!("/tmp/{}", "x".repeat(103)));
    for e in [l.r.listen_unix(&long, 0o600, 1).map(|_| ()), l.r.connect_unix(&long, 1).map(|_| ())]
    {
        let text = e.unwrap_err().to_string();
        assert!(text.contains("108 bytes") && text.contains("107"), "{text}");
    }
}

#[test]
fn at_the_connection_limit_peers_wait_until_one_leaves() {
    let mut l = Loop::with(RingConfig { max_conns: 2, ..Default::default() });
    let dir = TempDir::new();
    let path = dir.path("s");
    l.r.listen_unix(&path, 0o600, 1).unwrap();
    let _clients: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let first = l.until(|e| matches!(e, Event::Accepted { .. })).conn().unwrap();
    l.until(|e| matches!(e, Event::Accepted { .. }));
    l.turn_for(Duration::from_millis(150));
    assert!(l.seen.is_empty(), "the third waits: {:?}", l.seen);
    assert!(matches!(l.r.connect_unix(&path, 2), Err(RingError::TooManyConnections { limit: 2 })));
    l.r.close(first);
    l.until(|e| matches!(e, Event::Accepted { .. }));
}

#[test]
fn who_connects_to_us_does_not_keep_us_from_connecting_to_others() {
    let mut l = Loop::with(RingConfig { max_conns: 8, ..Default::default() });
    let dir = TempDir::new();
    let path = dir.path("s");
    l.r.listen_unix(&path, 0o600, 1).unwrap();
    let _clients: Vec<_> = (0..9).map(|_| UnixStream::connect(&path).unwrap()).collect();
    (0..8).for_each(|_| drop(l.until(|e| matches!(e, Event::Accepted { .. }))));
    l.r.connect_unix(&path, 2).unwrap();
    l.until(|e| matches!(e, Event::Connected { token: 2, .. }));
    assert!(matches!(l.r.connect_unix(&path, 3), Err(RingError::TooManyConnections { limit: 9 })));
}

#[test]
fn ten_thousand_messages_go_back_and_forth() {
    let mut l = Loop::new();
    let (a, b) = UnixStream::pair().unwrap();
    let (a, b) = (l.r.adopt(a.into(), 1), l.r.adopt(b.into(), 2));
    l.r.arm_recv(a, RecvBuf::new(4096));
    l.r.arm_recv(b, RecvBuf::new(4096));
    let message = Bytes::from(vec![5; 64]);
    l.r.send(a, message.clone(), Bytes::new());
    let started = std::time::Instant::now();
    let mut events = Vec::new();
    let mut rounds = 0;
    while rounds < 10_000 {
        l.r.turn(None, &mut events).unwrap();
        for e in events.drain(..) {
            let Event::Received { conn, buf, n, .. } = e else { panic!("{e:?}") };
            assert_eq!(n, 64);
            rounds += 1;
            l.r.send(conn, message.clone(), Bytes::new());
            l.r.arm_recv(conn, buf);
        }
    }
    let s = *l.r.stats();
    assert!(s.enters <= s.turns + s.sends, "one enter a turn, one more a send at most: {s:?}");
    println!("{:.0} messages/s, {} enters", 10_000.0 / started.elapsed().as_secs_f64(), s.enters);
}
