//! Streams of frames: cut anywhere they mean the same; damaged anywhere they are refused, never worse.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use proptest::prelude::*;
use quarry_base::*;
use quarry_wire::*;

/// Feeds `all` in receives of the lengths given (cycled; 0 is skipped), as far as the plans have room.
fn feed(all: &[u8], lens: &[usize]) -> (Vec<Frame>, Result<(), WireError>) {
    let (mut r, mut out, mut at) = (FrameReader::new(), Vec::new(), 0);
    let mut lens = lens.iter().copied().filter(|n| *n > 0).cycle();
    while at < all.len() {
        let mut plan = r.next_recv();
        assert!(plan.start < plan.end && plan.end <= plan.buf.capacity());
        assert!(plan.buf.capacity() <= 4 << 20, "no buffer is larger than the largest frame needs");
        let n = lens.next().unwrap_or(usize::MAX).min(plan.end - plan.start).min(all.len() - at);
        plan.buf[plan.start..plan.start + n].copy_from_slice(&all[at..at + n]);
        at += n;
        if let Err(e) = r.received(plan, n, &mut out) {
            let again = r.next_recv();
            assert_eq!(r.received(again, 1, &mut out), Err(e.clone()), "an error stays");
            return (out, Err(e));
        }
    }
    (out, Ok(()))
}

fn bytes_of(frames: &[Frame]) -> Vec<u8> {
    let mut all = Vec::new();
    for f in frames {
        let (head, data) = f.clone().encode();
        all.extend_from_slice(&head);
        all.extend_from_slice(&data);
    }
    all
}

/// The frame as a receiver sees it: lengths and meta checksum filled in.
fn sent(f: &Frame) -> Frame {
    let mut f = f.clone();
    f.header.meta_len = f.meta.len() as u32;
    f.header.data_len = f.data.len() as u32;
    f.header.meta_crc = if f.meta.is_empty() { 0 } else { crc32c(&f.meta) };
    f
}

fn pattern(seed: u8, len: usize) -> Bytes {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect::<Vec<_>>().into()
}

prop_compose! {
    fn header()(
        op in prop::sample::select(Op::ALL), status in prop::sample::select(Status::ALL), flags: u16,
        a: [u64; 12], b: [u32; 4],
    ) -> Header {
        Header {
            flags, status,
            request_id: RequestId(a[0]), lowest_unanswered: RequestId(a[1]), pg: PgId(a[2]), epoch: Epoch(a[3]),
            start: StartNo(a[4]), config_index: ConfigIndex(a[5]), version: Version::new(Epoch(a[6]), Seq(a[7])),
            commit: Seq(a[8]), instance: Instance(a[9]), generation: Generation(a[10]), vtree: VtreeId(a[11]),
            layer: Layer(b[0]), extent: Extent(b[1]), offset: b[2], length: b[3],
            ..Header::new(op)
        }
    }
}

fn frame() -> impl Strategy<Value = Frame> {
    let data_len = prop_oneof![
        4 => Just(0usize), 4 => 1usize..9000, 2 => Just(4096usize), 1 => 15_000usize..70_000, 1 => Just(131_072usize)
    ];
    let meta_len = prop_oneof![3 => Just(0usize), 3 => 1usize..400, 1 => 100_000usize..200_000];
    (header(), any::<u8>(), data_len, meta_len).prop_map(|(h, seed, data, meta)| {
        if data > 0 {
            let data = pattern(seed, data);
            let crcs = crc_pieces(h.offset, &data);
            Frame::with_data(h, data, &crcs)
        } else {
            Frame::with_meta(h, pattern(seed, meta))
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_header_survives_the_wire(h in header()) {
        prop_assert_eq!(Header::decode(&h.encode()), Ok(h));
    }

    #[test]
    fn a_stream_cut_anywhere_gives_the_same_frames(
        frames in prop::collection::vec(frame(), 1..6),
        lens in prop::collection::vec(prop_oneof![1usize..300, 1usize..200_000], 1..8),
    ) {
        let all = bytes_of(&frames);
        let want: Vec<Frame> = frames.iter().map(sent).collect();
        let (whole, ok) = feed(&all, &[]);
        prop_assert_eq!(ok, Ok(()));
        prop_assert!(whole == want);
        let (cut, ok) = feed(&all, &lens);
        prop_assert_eq!(ok, Ok(()));
        prop_assert!(cut == want);
        for f in &cut {
            if !f.data.is_empty() {
                prop_assert!(f.verify_data().is_ok());
            }
        }
    }

    #[test]
    fn a_changed_bit_is_refused_or_lies_in_the_data_where_its_checksum_tells(
        frames in prop::collection::vec(frame(), 1..4), at: prop::sample::Index, bit in 0u8..8,
    ) {
        let mut all = bytes_of(&frames);
        let at = at.index(all.len());
        all[at] ^= 1 << bit;
        let (got, result) = feed(&all, &[]);
        let want: Vec<Frame> = frames.iter().map(sent).collect();
        let same = got.iter().zip(&want).take_while(|(a, b)| a == b).count();
        if result.is_ok() && got.len() == want.len() {
            // Only data is not checked here: exactly one frame differs, and it knows.
            prop_assert!(same < want.len());
            prop_assert_eq!(got[same].verify_data(), Err(WireError::DataCrc));
            prop_assert!(got[same + 1..] == want[same + 1..]);
        } else {
            prop_assert_eq!(got.len(), same, "nothing made up before the error");
        }
    }

    #[test]
    fn random_bytes_never_give_a_frame(all in prop::collection::vec(any::<u8>(), 1..2000), lens in prop::collection::vec(1usize..200, 1..4)) {
        let (got, result) = feed(&all, &lens);
        prop_assert!(got.is_empty());
        prop_assert!(all.len() < HEADER_LEN || result.is_err());
    }

    #[test]
    fn random_bytes_behind_a_valid_checksum_never_panic(mut head: [[u8; 48]; 3], tail in prop::collection::vec(any::<u8>(), 0..600)) {
        head[0][..4].copy_from_slice(&MAGIC.to_le_bytes());
        head[0][4] = WIRE_VERSION;
        let mut all = head.concat();
        let crc = crc32c(&all[..HEADER_LEN - 4]);
        all[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        all.extend_from_slice(&tail);
        let (got, _) = feed(&all, &[]);
        for f in got {
            // Whatever the header claims, checking it is safe.
            prop_assert!(f.claimed_crcs().map_or(true, |c| c.len() <= f.data.len()));
            f.verify_data().ok();
        }
    }
}

#[test]
fn every_split_in_two_gives_the_same_frames() {
    let h = Header::new(Op::Write);
    let data = pattern(1, 5000);
    let frames = [
        Frame::with_meta(Header::new(Op::ConfigPush), pattern(2, 50)),
        Frame::with_data(h, data.clone(), &crc_pieces(0, &data)),
        Frame::bare(Header::new(Op::Ping)),
    ];
    let all = bytes_of(&frames);
    let want: Vec<Frame> = frames.iter().map(sent).collect();
    for cut in 1..all.len() {
        let (got, result) = feed(&all, &[cut, all.len()]);
        assert_eq!(result, Ok(()));
        assert_eq!(got, want, "cut at {cut}");
    }
}

#[test]
fn bytes_one_at_a_time_cost_linear_work() {
    let f = Frame::with_meta(Header::new(Op::SyncIds), pattern(3, MAX_META));
    let all = bytes_of(std::slice::from_ref(&f));
    let start = std::time::Instant::now();
    let (got, _) = feed(&all, &[1]);
    assert_eq!(got, [sent(&f)]);
    // Quadratic work would copy half a terabyte.
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

#[test]
fn large_data_arrives_in_an_aligned_buffer_of_its_own() {
    let data = pattern(4, MAX_DATA);
    let f = Frame::with_data(Header::new(Op::Write), data.clone(), &crc_pieces(0, &data));
    let small = Frame::bare(Header::new(Op::Pong));
    let all = bytes_of(&[small.clone(), f, small]);
    for first in [HEADER_LEN, 3 * HEADER_LEN, 60_000, 131_072] {
        let (got, result) = feed(&all, &[first, 50_000]);
        assert_eq!(result, Ok(()));
        assert_eq!(got.len(), 3);
        assert_eq!(got[1].data, data);
        assert_eq!(got[1].data.as_ptr() as usize % PAGE, 0, "ready for O_DIRECT");
    }
}

#[test]
fn the_largest_meta_and_data_together_are_taken() {
    let h = Header { data_crc: 1, ..Header::new(Op::SyncCopy) };
    let f = Frame { header: h, meta: pattern(5, MAX_META), data: pattern(6, MAX_DATA) };
    let all = bytes_of(std::slice::from_ref(&f));
    for lens in [&[][..], &[1000], &[HEADER_LEN + MAX_META - 1, 1], &[HEADER_LEN + MAX_META + 5]] {
        let (got, result) = feed(&all, lens);
        assert_eq!(result, Ok(()));
        assert_eq!(got, [sent(&f)]);
    }
}

/// A header as a hostile peer makes it: lengths as wished, checksum right.
fn lying(meta_len: u32, data_len: u32) -> Vec<u8> {
    let h = Header { meta_len, data_len, ..Header::new(Op::Write) };
    h.encode().to_vec()
}

#[test]
fn lengths_above_the_limits_are_refused_before_anything_is_allocated() {
    for (meta, data, what) in [
        (MAX_META as u32 + 1, 0, "meta section"),
        (0, MAX_DATA as u32 + 1, "data section"),
        (u32::MAX, u32::MAX, "meta section"),
    ] {
        // `feed` asserts the size of every buffer planned.
        let (got, result) = feed(&lying(meta, data), &[]);
        assert!(got.is_empty());
        assert!(
            matches!(result, Err(WireError::TooLong { what: w, .. }) if w == what),
            "{result:?}"
        );
    }
}

#[test]
fn a_promised_frame_that_never_comes_holds_one_buffer() {
    let mut r = FrameReader::new();
    let mut out = Vec::new();
    let head = lying(MAX_META as u32, MAX_DATA as u32);
    let mut plan = r.next_recv();
    plan.buf[..HEADER_LEN].copy_from_slice(&head);
    r.received(plan, HEADER_LEN, &mut out).unwrap();
    let plan = r.next_recv();
    assert!(plan.buf.capacity() <= 2 * MAX_META, "{}", plan.buf.capacity());
    assert!(out.is_empty());
}

#[test]
fn each_kind_of_damage_has_its_own_name() {
    let f = Frame::with_meta(Header::new(Op::ConfigPush), pattern(7, 40));
    let all = bytes_of(&[f]);
    let with = |at: usize, v: u8, fix: bool| {
        let mut b = all.clone();
        b[at] = v;
        if fix {
            let crc = crc32c(&b[..HEADER_LEN - 4]);
            b[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        }
        feed(&b, &[]).1.unwrap_err()
    };
    assert!(matches!(with(0, b'X', true), WireError::BadMagic(_)));
    assert_eq!(
        with(4, 2, false),
        WireError::BadVersion(2),
        "said even if that version checks otherwise"
    );
    assert_eq!(with(5, 200, true), WireError::BadOpcode(200));
    assert_eq!(with(8, 99, true), WireError::Malformed("status"));
    assert_eq!(with(30, 1, false), WireError::HeaderCrc);
    assert_eq!(with(HEADER_LEN + 3, 0, false), WireError::MetaCrc);
}

#[test]
fn spare_bytes_are_ignored() {
    let mut b = Header::new(Op::Ping).encode();
    b[10..12].copy_from_slice(&[7, 7]);
    let crc = crc32c(&b[..HEADER_LEN - 4]);
    b[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Header::decode(&b), Ok(Header::new(Op::Ping)));
}

#[test]
fn a_checksum_list_of_the_wrong_length_is_refused() {
    let data = pattern(8, 8192);
    let mut f = Frame::with_data(Header::new(Op::Write), data.clone(), &crc_pieces(0, &data));
    assert!(f.verify_data().is_ok());
    f.meta = f.meta.slice(..4);
    assert_eq!(f.verify_data(), Err(WireError::Malformed("list of data checksums")));
    // The offset decides where pieces are cut.
    let mut g = Frame::with_data(Header::new(Op::Write), data.clone(), &crc_pieces(0, &data));
    g.header.offset = 512;
    assert!(g.verify_data().is_err());
}

#[test]
fn a_frame_above_the_limits_is_known_before_it_is_sent() {
    let f = Frame::with_meta(Header::new(Op::SyncIds), vec![0; MAX_META + 1]);
    assert!(matches!(f.check_limits(), Err(WireError::TooLong { what: "meta section", .. })));
}
