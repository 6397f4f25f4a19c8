//! No bytes make a session panic, loop or grow, and how they are cut does not matter.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod common;
use common::*;
use proptest::prelude::*;
use quarry_nbd_proto::{Handle, Limits, NbdErrno, ReadPart, SessionEvent};

/// An event without what depends on the cutting.
fn plain(e: &SessionEvent) -> String {
    match e {
        SessionEvent::Write { handle, offset, data, fua } => {
            let (n, crc) = (data.len(), quarry_base::crc32c(data));
            format!("write {} {offset} {fua} {n} {crc:08x}", handle.cookie())
        }
        SessionEvent::Read { handle, offset, len, df } => {
            format!("read {} {offset} {len} {df}", handle.cookie())
        }
        e => format!("{e:?}"),
    }
}

fn handle_of(e: &SessionEvent) -> Option<Handle> {
    Some(match e {
        SessionEvent::Read { handle, .. }
        | SessionEvent::Write { handle, .. }
        | SessionEvent::Flush { handle }
        | SessionEvent::Trim { handle, .. }
        | SessionEvent::WriteZeroes { handle, .. }
        | SessionEvent::Cache { handle, .. }
        | SessionEvent::BlockStatus { handle, .. } => *handle,
        _ => return None,
    })
}

/// What a client sends, valid or nearly so.
fn option_bytes() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec!["", "vol", "ro", "strict", "nope", "ö"]);
    let query = prop::sample::select(vec!["base:", "base:allocation", "qemu:x", "bad"]);
    prop_oneof![
        Just(option(3, b"")),
        Just(option(8, b"")),
        Just(option(5, b"")),
        (name.clone(), prop::collection::vec(0u16..5, 0..4))
            .prop_map(|(n, r)| option(6, &info(n, &r))),
        (name, prop::collection::vec(query, 0..3), 9u32..11)
            .prop_map(|(n, q, o)| option(o, &meta(n, &q))),
        (0u32..14, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(o, d)| option(o, &d)),
    ]
}

fn request_bytes() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![0u32..5000, 30_000u32..140_000, Just(1u32 << 20), Just(u32::MAX)];
    let offset = prop_oneof![0u64..100_000, SIZE - 5000..SIZE + 10, Just(u64::MAX)];
    let flags = prop_oneof![8 => Just(0u16), 2 => Just(1u16), 1 => any::<u16>()];
    let command = prop_oneof![3 => Just(1u16), 10 => 0u16..9];
    (flags, command, any::<u8>(), offset, len).prop_map(|(f, c, cookie, o, n)| {
        let c = if c == 2 { 0 } else { c };
        let mut r = request(f, c, cookie as u64, o, n);
        if c == 1 && n < 200_000 {
            r.extend(std::iter::repeat_n(cookie, n as usize));
        } else if c == 1 {
            // A payload claimed and not sent would swallow the rest: make it a trim.
            r[7] = 4;
        }
        r
    })
}

fn conversation() -> impl Strategy<Value = Vec<u8>> {
    let options = prop::collection::vec(option_bytes(), 0..6);
    let requests = prop::collection::vec(request_bytes(), 0..12);
    (options, requests, any::<bool>()).prop_map(|(o, r, disc)| {
        let go = option(7, &info("vol", &[3]));
        let end = if disc { request(0, 2, 0, 0, 0) } else { Vec::new() };
        [vec![0, 0, 0, 3], o.concat(), go, r.concat(), end].concat()
    })
}

/// Everything one way of cutting leads to, without an answer in between.
fn outcome(bytes: &[u8], by: usize) -> (Vec<String>, Vec<u8>, bool) {
    let limits = Limits { max_in_flight_bytes: 1 << 40, ..Limits::default() };
    let mut d = Driver::with(limits);
    d.feed_by(bytes, by);
    let out = d.take();
    (d.events.iter().map(plain).collect(), out, d.s.closing())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn how_the_bytes_are_cut_does_not_matter(bytes in conversation(), by in 1usize..5000) {
        let whole = outcome(&bytes, usize::MAX);
        let cut = outcome(&bytes, by);
        prop_assert_eq!(whole.0, cut.0);
        prop_assert!(whole.1 == cut.1 && whole.2 == cut.2);
    }

    #[test]
    fn damaged_conversations_are_survived_however_cut(
        bytes in conversation(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        by in 1usize..3000,
    ) {
        let mut bytes = bytes;
        for (at, x) in damage {
            let n = bytes.len();
            bytes[at.index(n)] ^= x;
        }
        let whole = outcome(&bytes, usize::MAX);
        let cut = outcome(&bytes, by);
        prop_assert_eq!(whole.0, cut.0);
        prop_assert!(whole.1 == cut.1 && whole.2 == cut.2);
    }

    #[test]
    fn random_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
        start in 0usize..4,
    ) {
        let prefix = match start {
            0 => Vec::new(),
            1 => vec![0, 0, 0, 3],
            2 => [vec![0, 0, 0, 3], IHAVEOPT.to_vec()].concat(),
            _ => [vec![0, 0, 0, 3], option(7, &info("vol", &[])), request(0, 0, 1, 0, 1)].concat(),
        };
        let mut d = Driver::new();
        d.feed(&[prefix, bytes].concat());
        prop_assert!(d.s.in_flight().0 <= 512);
    }

    #[test]
    fn limits_hold_and_every_request_is_answered(
        bytes in conversation(),
        order in any::<u64>(),
    ) {
        let limits = Limits {
            max_in_flight: 3,
            max_in_flight_bytes: 1 << 20,
            max_output: 1 << 20,
            ..Limits::default()
        };
        let mut d = Driver::with(limits);
        let (mut at, mut seen, mut answered, mut rounds) = (0, 0usize, 0usize, 0u32);
        let mut waiting: Vec<SessionEvent> = Vec::new();
        loop {
            at += d.feed(&bytes[at..]);
            d.resume();
            waiting.append(&mut d.events);
            seen = seen.max(waiting.len());
            let in_flight = d.s.in_flight();
            prop_assert!(in_flight.0 <= 3 && (in_flight.0 == 1 || in_flight.1 <= 1 << 20));
            waiting.retain(|e| handle_of(e).is_some());
            prop_assert_eq!(waiting.len(), in_flight.0);
            if waiting.is_empty() && (at == bytes.len() || d.s.closing()) {
                break;
            }
            if !waiting.is_empty() {
                let e = waiting.swap_remove(order as usize % waiting.len());
                answer(&mut d, &e);
                answered += 1;
            }
            let queued = d.s.output_pending();
            prop_assert!(queued <= (2 << 20) + (32 << 20), "{queued}");
            d.take();
            rounds += 1;
            prop_assert!(rounds < 10_000, "no progress");
        }
        prop_assert!(answered == 0 || seen > 0);
    }
}

fn answer(d: &mut Driver, e: &SessionEvent) {
    let h = handle_of(e).unwrap();
    match e {
        SessionEvent::Read { len, .. } if len % 3 == 0 => {
            d.s.reply_read_parts(h, &[ReadPart::Hole(*len)])
        }
        SessionEvent::Read { .. } => d.s.reply_error(h, NbdErrno::Eio, "no"),
        SessionEvent::BlockStatus { len, .. } => d.s.reply_block_status(h, &[(*len, 0), (7, 3)]),
        _ => d.s.reply_ok(h),
    }
}

#[test]
fn one_byte_at_a_time_is_the_same_as_all_at_once() {
    let w = [request(1, 1, 4, 100, 40_000), vec![7; 40_000]].concat();
    let bytes = [
        vec![0, 0, 0, 3],
        option(3, b""),
        option(8, b""),
        option(77, &[1; 70_000]),
        option(10, &meta("vol", &["base:allocation"])),
        option(7, &info("vol", &[1, 3])),
        request(0, 0, 1, 0, 4096),
        w,
        [request(0, 1, 5, SIZE, 3000), vec![1; 3000]].concat(),
        request(0, 7, 6, 0, 4096),
        request(0, 2, 0, 0, 0),
    ]
    .concat();
    let whole = outcome(&bytes, usize::MAX);
    let single = outcome(&bytes, 1);
    assert_eq!(whole.0.len(), 5);
    assert!(whole == single);
    // And cut in two at every boundary near a message's edge.
    for cut in (0..bytes.len()).filter(|c| c % 97 == 0 || *c < 300 || *c + 3200 > bytes.len()) {
        let mut d = Driver::with(Limits { max_in_flight_bytes: 1 << 40, ..Limits::default() });
        d.feed(&bytes[..cut]);
        d.feed(&bytes[cut..]);
        let out = d.take();
        let events: Vec<String> = d.events.iter().map(plain).collect();
        assert!(events == whole.0 && out == whole.1, "cut at {cut}");
    }
}
