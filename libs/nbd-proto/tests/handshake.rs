//! The handshake, byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod common;
use common::*;
use quarry_nbd_proto::{Limits, SessionEvent};

const FLAGS_RW: u16 = 0b1101_0110_1101; // has flush fua trim zeroes multi cache fast
const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;

fn greeted() -> Driver {
    let mut d = Driver::new();
    d.ask(&[0, 0, 0, 3]);
    d
}

#[test]
fn the_greeting_is_fixed_newstyle() {
    let mut d = Driver::new();
    assert_eq!(d.take(), b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn unknown_client_flags_end_the_connection() {
    let mut d = Driver::new();
    d.feed(&[0, 0, 0, 7]);
    assert!(d.ended_badly());
    assert!(!d.s.may_receive());
}

#[test]
fn export_name_answers_size_flags_and_124_zeroes() {
    let mut d = Driver::new();
    d.ask(&[0, 0, 0, 1]);
    let got = d.ask(&option(1, b"vol"));
    let want = cat(&[&SIZE.to_be_bytes(), &FLAGS_RW.to_be_bytes(), &[0; 124]]);
    assert_eq!(got, want);
    assert_eq!(d.event(), SessionEvent::Opened { export: export("vol") });
}

#[test]
fn export_name_leaves_the_zeroes_out_if_agreed() {
    let mut d = greeted();
    let got = d.ask(&option(1, b""));
    assert_eq!(got, cat(&[&SIZE.to_be_bytes(), &FLAGS_RW.to_be_bytes()]));
    assert_eq!(d.s.export().unwrap().name, "vol", "the empty name is the default export");
}

#[test]
fn export_name_of_nothing_known_ends_the_connection() {
    for name in [b"nope".to_vec(), b"a\0b".to_vec(), vec![0xff], vec![b'a'; 4097]] {
        let mut d = greeted();
        d.feed(&option(1, &name));
        assert!(d.ended_badly(), "{name:?}");
        assert!(d.take().is_empty());
    }
}

#[test]
fn a_client_without_fixed_newstyle_has_export_name_alone() {
    let mut d = Driver::new();
    d.ask(&[0, 0, 0, 0]);
    d.feed(&option(3, b""));
    assert!(d.ended_badly());
}

#[test]
fn go_sends_the_export_and_what_was_asked_for() {
    let mut d = greeted();
    let got = d.ask(&option(7, &info("ro", &[1, 2, 3, 3, 99])));
    let flags: u16 = 0b0101_0000_1111; // has read-only flush fua multi cache
    let want = cat(&[
        &rep(7, 3, &cat(&[&[0, 0], &SIZE.to_be_bytes(), &flags.to_be_bytes()])),
        &rep(7, 3, b"\0\x01ro"),
        &rep(7, 3, b"\0\x02a disk"),
        &rep(7, 3, &[0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]),
        &rep(7, 1, b""),
    ]);
    assert_eq!(got, want);
    assert!(matches!(d.event(), SessionEvent::Opened { export } if export.read_only));
}

#[test]
fn info_says_the_same_as_go_and_stays_in_the_handshake() {
    let mut d = greeted();
    let told = d.ask(&option(6, &info("vol", &[3])));
    assert!(d.s.export().is_none() && d.events.is_empty());
    let went = d.ask(&option(7, &info("vol", &[3])));
    assert_eq!(kinds(&told, 6), [3, 3, 1]);
    assert_eq!(kinds(&went, 7), [3, 3, 1]);
    assert_eq!(told[20..32], went[20..32], "same export information");
}

#[test]
fn own_block_sizes_are_told_unasked() {
    let got = greeted().ask(&option(7, &info("strict", &[])));
    assert_eq!(kinds(&got, 7), [3, 3, 1]);
    assert_eq!(got[52..66], [0, 3, 0, 0, 16, 0, 0, 1, 0, 0, 0, 16, 0, 0]);
}

#[test]
fn the_handshake_goes_on_after_an_unknown_export() {
    let mut d = greeted();
    assert_eq!(kinds(&d.ask(&option(6, &info("nope", &[]))), 6), [UNKNOWN]);
    assert_eq!(kinds(&d.ask(&option(7, &info("nope", &[]))), 7), [UNKNOWN]);
    assert_eq!(kinds(&d.ask(&option(7, &info("vol", &[]))), 7), [3, 1]);
}

#[test]
fn malformed_option_data_is_invalid_and_the_next_option_is_read() {
    let mut d = greeted();
    let cases: &[(u32, &[u8])] = &[
        (7, b""),
        (7, b"\0\0\0\x09vol\0\0"),
        (6, b"\xff\xff\xff\xffvol\0\0"),
        (7, b"\0\0\0\x03vol\0\x01"),
        (7, b"\0\0\0\x03vol\0\0more"),
        (7, b"\0\0\0\x03v\0l\0\0"),
        (3, b"x"),
        (8, b"x"),
    ];
    for (o, data) in cases {
        assert_eq!(kinds(&d.ask(&option(*o, data)), *o), [INVALID], "{o} {data:?}");
    }
    assert_eq!(kinds(&d.ask(&option(7, &info(&"n".repeat(4097), &[]))), 7), [TOO_BIG]);
    assert_eq!(kinds(&d.ask(&option(7, &info("vol", &[]))), 7), [3, 1]);
}

#[test]
fn list_names_every_export() {
    let got = greeted().ask(&option(3, b""));
    let want =
        cat(&[&rep(3, 2, b"\0\0\0\x03vol"), &rep(3, 2, b"\0\0\0\x02roa disk"), &rep(3, 1, b"")]);
    assert_eq!(got, want);
}

#[test]
fn abort_is_acknowledged_whatever_comes_with_it() {
    let mut d = greeted();
    d.feed(&option(2, b"some last words"));
    assert_eq!(d.take(), rep(2, 1, b""));
    assert_eq!(d.event(), SessionEvent::Disconnect);
    assert!(d.s.closing());
}

#[test]
fn unknown_options_are_unsupported_and_skipped() {
    let mut d = greeted();
    for o in [4, 5, 11, 12, 0, 0xffff_ffff] {
        assert_eq!(kinds(&d.ask(&option(o, b"")), o), [UNSUP]);
        assert_eq!(kinds(&d.ask(&option(o, &[7; 3000])), o), [UNSUP]);
        assert_eq!(kinds(&d.ask(&option(o, &vec![7; 100_000])), o), [UNSUP]);
    }
    assert_eq!(kinds(&d.ask(&option(3, b"")), 3), [2, 2, 1]);
}

#[test]
fn an_option_beyond_the_limit_is_too_big_and_skipped() {
    let mut d = greeted();
    assert_eq!(kinds(&d.ask(&option(7, &vec![0; 65537])), 7), [TOO_BIG]);
    assert_eq!(kinds(&d.ask(&option(3, b"")), 3), [2, 2, 1]);
    let huge = cat(&[IHAVEOPT, &3u32.to_be_bytes(), &u32::MAX.to_be_bytes()]);
    d.feed(&huge);
    assert!(d.ended_badly());
}

#[test]
fn structured_replies_are_agreed_and_offer_df() {
    let mut d = greeted();
    assert_eq!(d.ask(&option(8, b"")), rep(8, 1, b""));
    let got = d.ask(&option(7, &info("vol", &[])));
    assert_eq!(got[30..32], (FLAGS_RW | 1 << 7).to_be_bytes());
}

#[test]
fn meta_contexts_need_structured_replies() {
    for o in [9, 10] {
        let got = greeted().ask(&option(o, &meta("vol", &["base:allocation"])));
        assert_eq!(kinds(&got, o), [INVALID]);
    }
}

#[test]
fn meta_contexts_are_listed_and_set_byte_for_byte() {
    let mut d = greeted();
    d.ask(&option(8, b""));
    let listed = rep(9, 4, b"\0\0\0\0base:allocation");
    let set = rep(10, 4, b"\0\0\0\x01base:allocation");
    let (ack9, ack10) = (rep(9, 1, b""), rep(10, 1, b""));
    for q in [&[][..], &["base:"], &["base:allocation", "base:"], &["x-y:z", "base:allocation"]] {
        assert_eq!(d.ask(&option(9, &meta("vol", q))), cat(&[&listed, &ack9]), "{q:?}");
    }
    assert_eq!(d.ask(&option(9, &meta("vol", &["qemu:"]))), ack9);
    for q in [&[][..], &["base:"], &["base:other"], &["qemu:x"]] {
        assert_eq!(d.ask(&option(10, &meta("vol", q))), ack10, "{q:?}");
    }
    let twice = ["base:allocation", "base:allocation"];
    assert_eq!(d.ask(&option(10, &meta("vol", &twice))), cat(&[&set, &ack10]));
    assert_eq!(kinds(&d.ask(&option(10, &meta("nope", &[]))), 10), [UNKNOWN]);
    assert_eq!(kinds(&d.ask(&option(10, &meta("vol", &["colonless"]))), 10), [INVALID]);
    let mut cut = meta("vol", &["base:allocation"]);
    cut.pop();
    assert_eq!(kinds(&d.ask(&option(10, &cut)), 10), [INVALID]);
    let many = cat(&[&string("vol"), &u32::MAX.to_be_bytes()]);
    assert_eq!(kinds(&d.ask(&option(9, &many)), 9), [INVALID]);
}

#[test]
fn block_status_needs_a_context_of_the_same_export_set_last() {
    let status = |prepare: &[Vec<u8>]| {
        let mut d = greeted();
        d.ask(&option(8, b""));
        prepare.iter().for_each(|p| drop(d.ask(p)));
        d.ask(&option(7, &info("vol", &[])));
        d.events.clear();
        let got = d.ask(&request(0, 7, 1, 0, 4096));
        got.is_empty() && matches!(d.event(), SessionEvent::BlockStatus { .. })
    };
    let set = |name, q: &[&str]| option(10, &meta(name, q));
    assert!(status(&[set("vol", &["base:allocation"])]));
    assert!(!status(&[]));
    assert!(!status(&[set("ro", &["base:allocation"])]));
    assert!(!status(&[set("vol", &["base:allocation"]), set("vol", &[])]));
    assert!(!status(&[set("vol", &["base:allocation"]), set("nope", &["base:allocation"])]));
    assert!(!status(&[option(9, &meta("vol", &["base:allocation"]))]));
}

#[test]
fn a_wrong_option_magic_ends_the_connection() {
    let mut d = greeted();
    d.feed(b"IHAVEOPS");
    assert!(d.ended_badly());
}

#[test]
fn too_many_options_end_the_connection() {
    let mut d = Driver::with(Limits { max_options: 3, ..Limits::default() });
    d.ask(&[0, 0, 0, 3]);
    for _ in 0..3 {
        d.ask(&option(99, b""));
    }
    d.feed(&option(99, b""));
    assert!(d.ended_badly());
}

#[test]
fn a_client_that_never_reads_its_list_is_not_read_from() {
    let mut d = Driver::with(Limits { max_output: 1000, ..Limits::default() });
    d.feed(&[0, 0, 0, 3]);
    let lists = option(3, b"").repeat(100);
    let taken = d.feed(&lists);
    assert!(d.s.output_pending() < 1200 && !d.s.may_receive());
    let mut answers = 0;
    for _ in 0..100 {
        answers += d.take().len();
        d.resume();
    }
    assert_eq!(taken, lists.len(), "one receive held them all");
    assert_eq!(answers, 18 + 100 * (27 + 32 + 20));
}

#[test]
fn shutting_down_refuses_options_but_abort() {
    let mut d = greeted();
    d.s.begin_shutdown();
    assert_eq!(kinds(&d.ask(&option(7, &info("vol", &[]))), 7), [0x8000_0007]);
    assert_eq!(d.ask(&option(2, b"")), rep(2, 1, b""));
}

#[test]
fn the_end_of_the_stream_is_told_apart_from_a_torn_message() {
    let mut d = greeted();
    d.eof();
    assert_eq!(d.event(), SessionEvent::Disconnect);
    let mut d = greeted();
    d.feed(&option(7, b"abcdef")[..20]);
    d.eof();
    assert!(d.ended_badly());
}
