//! The transmission phase, byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod common;
use bytes::Bytes;
use common::*;
use quarry_nbd_proto::{Export, Handle, Limits, NbdErrno, ReadPart, Session, SessionEvent};

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST: u16 = 16;

fn handle(e: &SessionEvent) -> Handle {
    match e {
        SessionEvent::Read { handle, .. }
        | SessionEvent::Write { handle, .. }
        | SessionEvent::Flush { handle }
        | SessionEvent::Trim { handle, .. }
        | SessionEvent::WriteZeroes { handle, .. }
        | SessionEvent::Cache { handle, .. }
        | SessionEvent::BlockStatus { handle, .. } => *handle,
        e => panic!("no request: {e:?}"),
    }
}

fn write(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    cat(&[&request(flags, 1, cookie, offset, data.len() as u32), data])
}

#[test]
fn a_read_is_answered_simply_unless_structured_replies_are_agreed() {
    for structured in [false, true] {
        let mut d = Driver::open("vol", structured);
        assert!(d.ask(&request(0, 0, 7, 8192, 6)).is_empty());
        let e = d.event();
        let h = handle(&e);
        assert_eq!(e, SessionEvent::Read { handle: h, offset: 8192, len: 6, df: false });
        let data = [Bytes::from_static(b"abc"), Bytes::from_static(b"def")];
        d.s.reply_read(h, 8192, &data);
        let want = match structured {
            false => cat(&[&simple(0, 7), b"abcdef"]),
            true => chunk(1, 1, 7, b"\0\0\0\0\0\0\x20\0abcdef"),
        };
        assert_eq!(d.take(), want);
        assert_eq!(d.s.in_flight(), (0, 0));
    }
}

#[test]
fn read_payloads_are_queued_without_copying() {
    let mut d = Driver::open("vol", false);
    d.feed(&request(0, 0, 1, 0, 4096));
    let data = Bytes::from(vec![5u8; 4096]);
    let h = handle(&d.event());
    d.s.reply_read(h, 0, std::slice::from_ref(&data));
    let mut out = Vec::new();
    d.s.take_output(&mut out);
    assert_eq!(out.len(), 2);
    assert_eq!(out[1].as_ptr(), data.as_ptr());
}

#[test]
fn holes_are_chunks_where_agreed_and_zeroes_elsewhere() {
    let parts = [ReadPart::Data(Bytes::from_static(b"ab")), ReadPart::Hole(4), ReadPart::Hole(2)];
    let read = |structured, flags| {
        let mut d = Driver::open("vol", structured);
        d.feed(&request(flags, 0, 3, 16, 8));
        let h = handle(&d.event());
        d.s.reply_read_parts(h, &parts);
        d.take()
    };
    assert_eq!(read(false, 0), cat(&[&simple(0, 3), b"ab\0\0\0\0\0\0"]));
    let data = chunk(0, 1, 3, b"\0\0\0\0\0\0\0\x10ab");
    let hole = chunk(1, 2, 3, b"\0\0\0\0\0\0\0\x12\0\0\0\x06");
    assert_eq!(read(true, 0), cat(&[&data, &hole]));
    assert_eq!(read(true, DF), chunk(1, 1, 3, b"\0\0\0\0\0\0\0\x10ab\0\0\0\0\0\0"));
}

#[test]
fn every_other_command_arrives_with_its_flags_and_is_answered() {
    let mut d = Driver::open("vol", true);
    type Case = (Vec<u8>, fn(Handle) -> SessionEvent);
    let cases: Vec<Case> = vec![
        (
            write(FUA, 1, 10, b"xyz"),
            (|handle| SessionEvent::Write {
                handle,
                offset: 10,
                data: Bytes::from_static(b"xyz"),
                fua: true,
            }),
        ),
        (request(0, 3, 1, 0, 0), (|handle| SessionEvent::Flush { handle })),
        (request(FUA, 3, 1, 0, 0), (|handle| SessionEvent::Flush { handle })),
        (
            request(FUA, 4, 1, 0, SIZE as u32),
            (|handle| SessionEvent::Trim { handle, offset: 0, len: SIZE as u32, fua: true }),
        ),
        (request(0, 5, 1, 4, 8), (|handle| SessionEvent::Cache { handle, offset: 4, len: 8 })),
        (
            request(NO_HOLE | FAST, 6, 1, 4, 8),
            (|handle| SessionEvent::WriteZeroes {
                handle,
                offset: 4,
                len: 8,
                fua: false,
                no_hole: true,
                fast: true,
            }),
        ),
    ];
    for (bytes, want) in cases {
        assert!(d.ask(&bytes).is_empty());
        let e = d.event();
        let h = handle(&e);
        assert_eq!(e, want(h));
        assert_eq!(d.s.in_flight().0, 1);
        d.s.reply_ok(h);
        assert_eq!(d.take(), simple(0, 1));
    }
}

#[test]
fn block_status_is_a_chunk_with_the_context_first() {
    let ask = |flags, extents: &[(u32, u32)]| {
        let mut d = Driver::open("vol", true);
        d.feed(&request(flags, 7, 9, SIZE - 8192, 8192));
        let e = d.event();
        assert!(
            matches!(e, SessionEvent::BlockStatus { req_one, .. } if req_one == (flags == REQ_ONE))
        );
        d.s.reply_block_status(handle(&e), extents);
        d.take()
    };
    let one = |e: &[(u32, u32)]| {
        let mut p = vec![0, 0, 0, 1];
        e.iter().for_each(|(n, f)| p.extend([n.to_be_bytes(), f.to_be_bytes()].concat()));
        chunk(1, 5, 9, &p)
    };
    assert_eq!(ask(0, &[(4096, 0), (4096, 3)]), one(&[(4096, 0), (4096, 3)]));
    assert_eq!(ask(0, &[(1024, 0), (0, 1), (1024, 0), (4096, 3)]), one(&[(2048, 0), (4096, 3)]));
    assert_eq!(ask(0, &[(u32::MAX, 3)]), one(&[(8192, 3)]), "not beyond the end");
    assert_eq!(ask(0, &[(8192, 3), (4096, 0)]), one(&[(8192, 3)]));
    assert_eq!(ask(REQ_ONE, &[(4096, 0), (4096, 3)]), one(&[(4096, 0)]));
    assert_eq!(ask(REQ_ONE, &[(4096, 0), (9000, 0)]), one(&[(8192, 0)]));
    assert_eq!(ask(0, &[]), one(&[(8192, 0)]), "unknown counts as allocated");
}

#[test]
fn an_extent_may_reach_beyond_the_request() {
    let mut d = Driver::open("vol", true);
    d.feed(&request(0, 7, 9, 0, 512).repeat(2));
    let h: Vec<Handle> = d.events.drain(..).map(|e| handle(&e)).collect();
    d.s.reply_block_status(h[0], &[(1 << 20, 2)]);
    assert_eq!(d.take(), chunk(1, 5, 9, &[0, 0, 0, 1, 0, 16, 0, 0, 0, 0, 0, 2]));
    // But only the last one, and none begins there.
    d.s.reply_block_status(h[1], &[(512, 0), (512, 2)]);
    assert_eq!(d.take(), chunk(1, 5, 9, &[0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0]));
}

#[test]
fn errors_carry_a_message_where_agreed() {
    let mut d = Driver::open("vol", true);
    d.feed(&[request(0, 0, 1, 4096, 8), request(0, 3, 2, 0, 0)].concat());
    let h: Vec<Handle> = d.events.drain(..).map(|e| handle(&e)).collect();
    d.s.reply_error(h[1], NbdErrno::Eio, "no copy");
    d.s.reply_error_at(h[0], NbdErrno::Eio, "bad", 4100);
    let want = cat(&[
        &chunk(1, 0x8001, 2, b"\0\0\0\x05\0\x07no copy"),
        &chunk(1, 0x8002, 1, b"\0\0\0\x05\0\x03bad\0\0\0\0\0\0\x10\x04"),
    ]);
    assert_eq!(d.take(), want);
    let mut d = Driver::open("vol", false);
    d.feed(&request(0, 0, 1, 4096, 8));
    let h = handle(&d.event());
    d.s.reply_error_at(h, NbdErrno::Enospc, "bad", 4100);
    assert_eq!(d.take(), simple(28, 1));
}

#[test]
fn long_messages_are_cut_at_a_character() {
    let mut d = Driver::open("vol", true);
    d.feed(&request(0, 3, 2, 0, 0));
    let h = handle(&d.event());
    d.s.reply_error(h, NbdErrno::Eio, &"xä".repeat(3000));
    let got = d.take();
    assert_eq!(errno(&got), (5, 2));
    assert!(std::str::from_utf8(&got[26..]).is_ok() && got.len() <= 26 + 4096);
}

#[test]
fn what_may_not_be_done_is_refused_with_the_errno_of_the_specification() {
    let (eperm, einval, enospc, eoverflow) = (1, 22, 28, 75);
    let past = SIZE - 10;
    let cases: &[(&str, bool, Vec<u8>, u32)] = &[
        ("vol", false, request(0, 0, 1, past, 11), einval),
        ("vol", false, request(0, 0, 1, u64::MAX, 2), einval),
        ("vol", false, write(0, 1, past, &[0; 11]), enospc),
        ("vol", false, write(0, 1, u64::MAX - 1, &[0; 11]), enospc),
        ("vol", false, request(0, 6, 1, past, 11), enospc),
        ("vol", false, request(0, 4, 1, past, 11), einval),
        ("vol", false, request(0, 5, 1, past, 11), einval),
        ("vol", true, request(0, 7, 1, past, 11), einval),
        ("vol", true, request(0, 7, 1, 0, 0), einval),
        ("vol", false, request(0, 7, 1, 0, 512), einval),
        ("ro", false, write(0, 1, 0, &[0; 11]), eperm),
        ("ro", false, request(0, 4, 1, 0, 11), eperm),
        ("ro", false, request(0, 6, 1, 0, 11), eperm),
        ("vol", false, request(0, 3, 1, 1, 0), einval),
        ("vol", false, request(0, 3, 1, 0, 1), einval),
        ("vol", false, request(0, 8, 1, 0, 0), einval),
        ("vol", false, request(0, 0xffff, 1, 0, 512), einval),
        ("vol", false, request(DF, 0, 1, 0, 512), einval),
        ("vol", true, request(NO_HOLE, 0, 1, 0, 512), einval),
        ("vol", true, cat(&[&request(DF, 1, 1, 0, 4), b"data"]), einval),
        ("vol", true, request(REQ_ONE, 4, 1, 0, 512), einval),
        ("vol", true, request(NO_HOLE, 5, 1, 0, 512), einval),
        ("vol", true, request(DF, 6, 1, 0, 512), einval),
        ("vol", true, request(DF, 7, 1, 0, 512), einval),
        ("vol", true, request(1 << 5, 3, 1, 0, 0), einval),
        ("vol", false, request(0, 0, 1, 0, (32 << 20) + 1), einval),
        ("vol", true, request(0, 0, 1, 0, (32 << 20) + 1), eoverflow),
        ("strict", false, write(0, 1, 0, &vec![0; (1 << 20) + 4096]), einval),
        ("strict", false, request(0, 0, 1, 512, 4096), einval),
        ("strict", false, request(0, 0, 1, 0, 512), einval),
        ("strict", false, write(0, 1, 512, &[0; 512]), einval),
        ("strict", false, request(0, 4, 1, 4096, 100), einval),
    ];
    for (name, structured, bytes, want) in cases {
        let mut d = Driver::open(name, *structured);
        let got = d.ask(bytes);
        assert_eq!(errno(&got), (*want, 1), "{name} {structured} {:?}", &bytes[..28]);
        assert!(d.events.is_empty());
        // The stream is still in step.
        d.ask(&request(0, 3, 2, 0, 0));
        assert!(matches!(d.event(), SessionEvent::Flush { .. }));
    }
}

#[test]
fn the_short_last_block_of_an_export_can_be_reached() {
    let mut d = Driver::open("strict", false);
    d.ask(&request(0, 0, 1, SIZE, 512));
    assert!(matches!(d.event(), SessionEvent::Read { len: 512, .. }));
}

#[test]
fn fast_zero_alone_is_answered_with_enotsup() {
    let mut d = Driver::open("vol", false);
    d.feed(&[request(FAST, 6, 1, 0, 8), request(0, 6, 2, 0, 8)].concat());
    let h: Vec<Handle> = d.events.drain(..).map(|e| handle(&e)).collect();
    h.iter().for_each(|&h| d.s.reply_error(h, NbdErrno::Enotsup, "slow"));
    assert_eq!(d.take(), cat(&[&simple(95, 1), &simple(22, 2)]));
}

#[test]
fn requests_of_length_zero_succeed_and_do_nothing() {
    for c in [0, 1, 4, 5, 6] {
        let mut d = Driver::open("vol", false);
        assert_eq!(d.ask(&request(0, c, 4, 0, 0)), simple(0, 4));
        assert!(d.events.is_empty());
    }
    let mut d = Driver::open("vol", true);
    assert_eq!(d.ask(&request(0, 0, 4, 0, 0)), chunk(1, 0, 4, b""));
}

#[test]
fn a_refused_write_too_large_to_skip_ends_the_connection() {
    let mut d = Driver::open("vol", false);
    d.feed(&request(0, 1, 1, 0, (64 << 20) + 1));
    assert!(d.ended_badly());
}

#[test]
fn a_wrong_request_magic_ends_the_connection_but_not_what_is_in_flight() {
    let mut d = Driver::open("vol", false);
    d.feed(&[request(0, 3, 5, 0, 0), vec![0x25, 0x60, 0x95, 0x14]].concat());
    assert!(d.ended_badly());
    let h = handle(&d.events[0]);
    assert_eq!(d.s.in_flight().0, 1);
    d.s.reply_ok(h);
    assert_eq!(d.take(), simple(0, 5));
}

#[test]
fn disconnect_answers_what_came_before_and_reads_nothing_after() {
    let mut d = Driver::open("vol", false);
    let bytes = [write(0, 5, 0, b"abc"), request(0, 2, 0, 0, 0), request(0, 3, 6, 0, 0)].concat();
    d.feed(&bytes);
    assert_eq!(d.events.len(), 2);
    assert_eq!(d.events[1], SessionEvent::Disconnect);
    assert!(d.s.closing() && !d.s.may_receive());
    let h = handle(&d.events[0]);
    d.s.reply_ok(h);
    assert_eq!(d.take(), simple(0, 5));
    assert_eq!(d.s.in_flight(), (0, 0));
}

#[test]
fn a_connection_that_ends_inside_a_payload_leaves_nothing_in_flight() {
    for len in [1000usize, 1 << 20] {
        let mut d = Driver::open("vol", false);
        d.feed(&write(0, 1, 0, &vec![1; len])[..500]);
        assert_eq!(d.s.in_flight(), (0, 0));
        d.eof();
        assert!(d.ended_badly());
    }
}

#[test]
fn one_cookie_used_twice_gets_two_answers() {
    let mut d = Driver::open("vol", false);
    d.feed(&[request(0, 0, 1, 0, 1), request(0, 0, 1, 1, 2)].concat());
    let h: Vec<Handle> = d.events.drain(..).map(|e| handle(&e)).collect();
    assert_ne!(h[0], h[1]);
    d.s.reply_read(h[1], 1, &[Bytes::from_static(b"bc")]);
    d.s.reply_read(h[0], 0, &[Bytes::from_static(b"a")]);
    assert_eq!(d.take(), cat(&[&simple(0, 1), b"bc", &simple(0, 1), b"a"]));
}

#[test]
#[should_panic(expected = "answered exactly once")]
fn answering_twice_is_a_mistake_that_is_noticed() {
    let mut d = Driver::open("vol", false);
    d.feed(&request(0, 3, 1, 0, 0));
    let h = handle(&d.event());
    d.s.reply_ok(h);
    d.s.reply_ok(h);
}

#[test]
fn reading_stops_at_the_limit_of_requests_and_goes_on_after_answers() {
    let mut d = Driver::open_with("vol", false, Limits { max_in_flight: 4, ..Limits::default() });
    let many: Vec<u8> = (0..100).flat_map(|i| request(0, 3, i, 0, 0)).collect();
    d.feed(&many);
    let mut seen = 0;
    while seen < 100 {
        assert_eq!(d.s.in_flight().0, d.events.len());
        assert!(d.events.len() <= 4 && !d.events.is_empty());
        assert!(!d.s.may_receive() || d.events.len() < 4);
        seen += d.events.len();
        for e in std::mem::take(&mut d.events) {
            d.s.reply_ok(handle(&e));
        }
        d.resume();
    }
    assert_eq!(d.take().len(), 1600);
    assert!(d.s.may_receive());
}

#[test]
fn reading_stops_at_the_limit_of_bytes_but_one_request_always_gets_in() {
    let limits = Limits { max_in_flight_bytes: 1 << 20, ..Limits::default() };
    let mut d = Driver::open_with("vol", false, limits);
    d.feed(&[request(0, 0, 1, 0, 8 << 20), request(0, 0, 2, 0, 1)].concat());
    let h = handle(&d.event());
    assert_eq!(d.s.in_flight(), (1, 8 << 20));
    assert!(!d.s.may_receive());
    d.s.reply_error(h, NbdErrno::Eio, "");
    d.resume();
    assert!(matches!(d.event(), SessionEvent::Read { len: 1, .. }));
}

#[test]
fn a_slow_reader_is_not_read_from() {
    let limits = Limits { max_output: 1 << 20, ..Limits::default() };
    let mut d = Driver::open_with("vol", false, limits);
    let mut asked = 0;
    while d.s.may_receive() {
        asked += 1;
        d.feed(&request(0, 0, asked, 0, 64 << 10));
        let h = handle(&d.event());
        d.s.reply_read_parts(h, &[ReadPart::Hole(64 << 10)]);
    }
    assert_eq!(asked, 16);
    assert!(d.s.output_pending() < (1 << 20) + (64 << 10) + 64);
    d.take();
    assert!(d.s.may_receive());
}

#[test]
fn answers_that_are_not_taken_count_like_requests_in_flight() {
    const MIB: usize = 1 << 20;
    let limits = Limits { max_in_flight_bytes: 4 * MIB, ..Limits::default() };
    let mut d = Driver::open_with("vol", false, limits);
    d.feed(&(0..8).flat_map(|i| request(0, 0, i, 0, MIB as u32)).collect::<Vec<u8>>());
    let mut asked = 0;
    while let Some(e) = d.events.pop() {
        asked += 1;
        d.s.reply_read_parts(handle(&e), &[ReadPart::Data(vec![1; MIB].into())]);
        assert!(d.s.in_flight().1 + d.s.output_pending() <= 4 * MIB + 4 * 16);
        d.resume();
    }
    assert_eq!(asked, 4, "nothing was taken");
    // About as much as is asked for leaves, in order.
    let mut out = Vec::new();
    d.s.take_some(1, &mut out);
    assert_eq!((out.len(), out[0].len()), (1, 16));
    d.s.take_some(MIB / 2, &mut out);
    assert_eq!((out.len(), out[1].len()), (2, MIB));
    d.s.take_some(MIB + 1, &mut out);
    assert_eq!((out.len(), d.s.output_pending()), (4, 2 * MIB + 32));
    d.resume();
    assert_eq!(d.events.len(), 1, "what was taken makes room");
    // A smaller share counts from then on; one request gets in whatever its length, but only alone.
    d.s.limit_bytes(MIB / 2);
    for e in std::mem::take(&mut d.events) {
        d.s.reply_read_parts(handle(&e), &[ReadPart::Data(vec![1; MIB].into())]);
    }
    d.resume();
    assert!(d.events.is_empty());
    d.take();
    d.resume();
    assert_eq!(d.events.len(), 1);
}

#[test]
fn large_write_payloads_are_received_in_place_and_aligned() {
    let mut d = Driver::open("vol", false);
    let data: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8).collect();
    let whole = write(0, 1, 0, &data);
    d.feed(&whole[..1000]);
    let mut plan = d.s.next_recv();
    assert_eq!((plan.start, plan.end), (1000 - 28, data.len()));
    let at = plan.buf.as_ptr();
    plan.buf[972..].copy_from_slice(&data[972..]);
    let n = plan.end - plan.start;
    d.s.received(plan, n, &Three, &mut d.events);
    let SessionEvent::Write { data: got, .. } = d.event() else { panic!() };
    assert_eq!(got.as_ptr(), at);
    assert_eq!(at as usize % 4096, 0);
    assert!(got == data);
}

#[test]
fn many_small_writes_in_one_receive_share_its_buffer() {
    let limits = Limits { max_in_flight: 4000, ..Limits::default() };
    let mut d = Driver::open_with("vol", false, limits);
    d.feed(&vec![request(0, 3, 0, 0, 0); 2000].concat());
    for e in std::mem::take(&mut d.events) {
        d.s.reply_ok(handle(&e));
    }
    d.feed(&(0..16).flat_map(|i| write(0, i, 4096 * i, &[i as u8; 4096])).collect::<Vec<u8>>());
    let data: Vec<Bytes> = d
        .events
        .drain(..)
        .map(|e| match e {
            SessionEvent::Write { data, .. } => data,
            e => panic!("{e:?}"),
        })
        .collect();
    assert!((0..16).all(|i| data[i] == vec![i as u8; 4096]));
    // Neighbours in memory, one header apart: nothing was copied.
    let gap = data[1].as_ptr() as usize - data[0].as_ptr() as usize;
    assert_eq!(gap, 4096 + 28);
}

#[test]
fn a_lone_small_write_does_not_keep_the_receive_buffer() {
    let mut d = Driver::open("vol", false);
    let before = d.s.next_recv();
    let at = before.buf.as_ptr();
    let mut plan = before;
    let w = write(0, 1, 0, &[9; 512]);
    plan.buf[..w.len()].copy_from_slice(&w);
    d.s.received(plan, w.len(), &Three, &mut d.events);
    assert_eq!(d.s.next_recv().buf.as_ptr(), at, "the same buffer receives again");
}

#[test]
fn an_attached_kernel_has_no_handshake() {
    let mut s = Session::attached(Limits::default(), export("vol"));
    let mut out = Vec::new();
    s.take_output(&mut out);
    assert!(out.is_empty());
    assert_eq!(s.export(), Some(&export("vol")));
    let mut d = Driver { s, events: Vec::new() };
    d.feed(&request(0, 3, 8, 0, 0));
    let h = handle(&d.event());
    d.s.reply_ok(h);
    assert_eq!(d.take(), simple(0, 8));
}

#[test]
fn a_resize_and_a_shutdown_take_effect_at_once() {
    let mut d = Driver::open("vol", false);
    d.s.set_size(2 * SIZE);
    d.ask(&request(0, 0, 1, SIZE, 512));
    assert!(matches!(d.event(), SessionEvent::Read { .. }));
    d.s.begin_shutdown();
    assert_eq!(d.ask(&write(0, 2, 0, b"x")), simple(108, 2));
    d.feed(&request(0, 2, 0, 0, 0));
    assert_eq!(d.event(), SessionEvent::Disconnect);
}

#[test]
fn transmission_flags_follow_the_export() {
    let flags = |read_only, multi_conn, s| {
        Export { read_only, multi_conn, ..export("x") }.transmission_flags(s)
    };
    assert_eq!(flags(false, false, false), 0xc6d);
    assert_eq!(flags(false, true, true), 0xded);
    assert_eq!(flags(true, false, false), 0x40f);
}
