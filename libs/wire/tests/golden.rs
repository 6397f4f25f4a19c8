//! The bytes on the wire never change by accident: one fixture for the header, one for a frame of each kind.
//!
//! A fixture is hexadecimal, 16 bytes a line. `QUARRY_BLESS=1 cargo test` writes what is missing or
//! different; a change of an existing one is a new wire version.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use quarry_base::*;
use quarry_wire::*;
use std::path::PathBuf;

fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(16)
        .map(|l| l.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ") + "\n")
        .collect()
}

fn fixture(name: &str, bytes: &[u8]) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/golden", name].iter().collect();
    if std::env::var_os("QUARRY_BLESS").is_some() {
        std::fs::write(&path, hex(bytes)).unwrap();
    }
    let want = std::fs::read_to_string(&path).expect("fixture missing; QUARRY_BLESS=1 writes it");
    assert_eq!(hex(bytes), want, "{name} differs from the fixture");
}

/// A header in which every field has a value of its own.
fn full(op: Op) -> Header {
    Header {
        flags: flags::FUA | flags::LAST,
        status: Status::TryAgain,
        request_id: RequestId(0x1011_1213_1415_1617),
        lowest_unanswered: RequestId(0x2021_2223_2425_2627),
        pg: PgId::new(PoolId(3), 511),
        epoch: Epoch(0x3031_3233_3435_3637),
        start: StartNo(0x4041_4243_4445_4647),
        config_index: ConfigIndex(0x5051_5253_5455_5657),
        version: Version::new(Epoch(0x6061), Seq(0x7071)),
        commit: Seq(0x8081_8283_8485_8687),
        instance: Instance(0x9091_9293_9495_9697),
        generation: Generation(0xa0a1_a2a3_a4a5_a6a7),
        vtree: VtreeId(0xb0b1_b2b3_b4b5_b6b7),
        layer: Layer(0xc0c1_c2c3),
        extent: Extent(0xd0d1_d2d3),
        offset: 0x000e_1000,
        length: 0x0000_1000,
        ..Header::new(op)
    }
}

#[test]
fn the_header_has_its_golden_bytes() {
    fixture("header.hex", &full(Op::Write).encode());
}

fn config() -> PgConfig {
    let member =
        |d| Member { device: DeviceId(d), sds: SdsId(d), start: StartNo(100 + u64::from(d)) };
    PgConfig {
        pg: PgId::new(PoolId(1), 5),
        epoch: Epoch(7),
        index: ConfigIndex(42),
        primary: Some(DeviceId(1)),
        in_sync: vec![member(1), member(2)],
        syncing: vec![member(3)],
        listed: vec![DeviceId(1), DeviceId(2)],
        copies: 2,
        min_copies: 1,
        line: Epoch::ZERO,
        fell: Epoch::ZERO,
    }
}

/// A frame of the shape this kind has: with data, with a control blob, or bare.
fn sample(op: Op) -> Frame {
    let mut h = Header::new(op);
    h.pg = PgId::new(PoolId(1), 5);
    h.epoch = Epoch(7);
    let page: Bytes = (0..4096u32).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
    match op {
        Op::Hello => {
            let hello = Hello {
                versions: (1, 1),
                cluster: "00112233445566778899aabbccddeeff".into(),
                peer: Peer::Sdc { id: SdcId(4), instance: Instance(9) },
                device: DeviceId(0),
                auth: None,
            };
            Frame::with_meta(Header::new(op), serde_json::to_vec(&hello).unwrap())
        }
        Op::Write | Op::Replicate | Op::ReadReply => {
            h.offset = 8192;
            h.length = 4096;
            let crcs = crc_pieces(h.offset, &page);
            Frame::with_data(h, page, &crcs)
        }
        Op::SyncCopy | Op::BlockData => {
            let two: Bytes = [&page[..], &page[..]].concat().into();
            let crcs = crc_pieces(0, &two);
            Frame::with_data(h, two, &crcs)
        }
        Op::StreamOpen | Op::ConfigPush => {
            Frame::with_meta(h, serde_json::to_vec(&config()).unwrap())
        }
        Op::HelloRefused
        | Op::StreamPos
        | Op::StreamStart
        | Op::SyncDrop
        | Op::SyncIds
        | Op::GrantAnswer => Frame::with_meta(h, &b"opaque to the wire"[..]),
        _ => {
            h.request_id = RequestId(77);
            Frame::bare(h)
        }
    }
}

#[test]
fn a_frame_of_each_kind_has_its_golden_bytes() {
    for &op in Op::ALL {
        let (head, data) = sample(op).encode();
        fixture(&format!("{:02}-{op:?}.hex", op as u8), &[head, data].concat());
    }
}

#[test]
fn every_golden_frame_is_read_back_as_it_was() {
    for &op in Op::ALL {
        let (head, data) = sample(op).encode();
        let all = [head, data].concat();
        let mut r = FrameReader::new();
        let mut out = Vec::new();
        let mut plan = r.next_recv();
        plan.buf[..all.len()].copy_from_slice(&all);
        r.received(plan, all.len(), &mut out).unwrap();
        assert_eq!(out.len(), 1, "{op:?}");
        let mut want = sample(op);
        want.header.meta_len = out[0].header.meta_len;
        want.header.data_len = out[0].header.data_len;
        want.header.meta_crc = out[0].header.meta_crc;
        assert_eq!(out[0], want, "{op:?}");
        out[0].verify_data().unwrap();
    }
}

#[test]
fn codes_are_the_documented_numbers_and_unique() {
    let ops: Vec<u8> = Op::ALL.iter().map(|o| *o as u8).collect();
    let want = [
        1, 2, 3, 4, 16, 17, 18, 19, 20, 24, 25, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44,
        45, 46, 48, 49, 50, 60, 61,
    ];
    assert_eq!(ops, want);
    for code in 0..=u8::MAX {
        assert_eq!(Op::from_code(code).is_some(), want.contains(&code));
    }
    for code in 0..=u16::MAX {
        assert_eq!(Status::from_code(code).is_some(), code <= 10);
    }
}
