//! The comparison itself, on devices made here: what differs must be seen.

use super::*;
use crate::Scratch;
use bytes::Bytes;
use quarry_base::*;
use quarry_store::{format, DeviceIdent, FormatStep, Record, RecordKind};
use quarry_wire::Member;
use std::os::unix::fs::FileExt;

const SIZE: u64 = 128 << 20;
const PG: u32 = 3;

fn member(id: u32) -> Member {
    Member { device: DeviceId(id), sds: SdsId(id), start: StartNo(1) }
}

/// A formatted device with a group of two members and these pages written, one record each; its writes are in the file.
fn device(dir: &Scratch, id: u32, pages: &[(u32, u8)]) -> Device {
    let path = dir.path().join(format!("d{id}"));
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    let ident = DeviceIdent { cluster: [7; 16], device_uuid: [id as u8; 16], device: DeviceId(id) };
    let config = StoreConfig { device_bytes: SIZE, ..StoreConfig::default() };
    for step in format(&config, ident).unwrap() {
        if let FormatStep::Write { offset, data } = step {
            file.write_all_at(&data, offset).unwrap();
        }
    }
    let mut d = Device::open(&format!("d{id}"), &path).unwrap();
    let pg = PgId::new(PoolId(1), PG);
    let config = PgConfig {
        pg,
        epoch: Epoch(1),
        index: ConfigIndex(5),
        primary: Some(DeviceId(1)),
        in_sync: vec![member(1), member(2)],
        syncing: vec![],
        listed: vec![DeviceId(1), DeviceId(2)],
        copies: 2,
        min_copies: 1,
        line: Epoch::ZERO,
        fell: Epoch::ZERO,
    };
    let meta = PgMeta { config: Some(config), ..PgMeta::default() };
    d.store.put_meta(pg, meta.encode()).unwrap();
    for (seq, (page, fill)) in (1..).zip(pages) {
        let data = PageBuf::copy_of(&[*fill; PAGE]).freeze();
        let kind = RecordKind::Write {
            vtree: VtreeId(1),
            layer: Layer(0),
            extent: Extent(0),
            offset: page * PAGE as u32,
            crcs: std::iter::once(crc32c(&data)).collect(),
            data: Bytes::copy_from_slice(&data),
        };
        let version = Version::new(Epoch(1), Seq(seq));
        d.store.append(pg, Record { version, origin: Default::default(), kind }).unwrap();
    }
    let all = pages.len() as u64 + 1;
    d.turn_until("appends", |e| match e {
        StoreEvent::Stable { upto } if upto >= all => Some(Ok(())),
        _ => None,
    })
    .unwrap();
    d.disk.pour_into(&file);
    Device::open(&format!("d{id}"), &path).unwrap()
}

#[test]
fn equal_copies_are_identical_and_the_files_stay_as_they_are() {
    let dir = Scratch::new().unwrap();
    let pages = [(0, 1), (17, 2), (0, 3)];
    let mut both = [device(&dir, 1, &pages), device(&dir, 2, &pages)];
    let before = std::fs::read(dir.path().join("d1")).unwrap();
    let c = compare(&mut both, 2).unwrap();
    assert_eq!((c.groups, c.copies, c.blocks, c.bytes), (1, 2, 4, 4 * 4096));
    assert!(std::fs::read(dir.path().join("d1")).unwrap() == before);
}

#[test]
fn another_content_a_missing_record_and_a_missing_copy_are_seen() {
    let dir = Scratch::new().unwrap();
    let one = [(0, 1), (17, 2)];
    for (other, text) in [(vec![(0, 1), (17, 9)], "sum"), (vec![(0, 1)], "newest record")] {
        let mut both = [device(&dir, 1, &one), device(&dir, 2, &other)];
        let e = compare(&mut both, 2).unwrap_err();
        assert!(e.text().contains(text), "{e}");
    }
    let mut both = [device(&dir, 1, &one), device(&dir, 2, &one)];
    assert!(compare(&mut both, 3).unwrap_err().text().contains("2 of 3 copies"));
    assert!(compare(&mut both[..1], 2).unwrap_err().text().contains("not among those"));
}
