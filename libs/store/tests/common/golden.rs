//! The history behind the golden bytes in `tests/golden`, and those.

use super::common::rig::*;
use quarry_base::*;
use quarry_store::*;
use std::path::PathBuf;

pub const LOG: usize = 128 << 10;
pub const TABLE: usize = LOG + (1 << 20);

pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

pub fn history(r: &mut Rig) {
    r.store.put_meta(PG, b"meta".to_vec().into()).unwrap();
    r.append(PG, write(0, 4096, &[1])).unwrap();
    r.append(PG, write(0, 65536, &whole(2))).unwrap();
    r.append(PG, zero(0, 4096, 8192)).unwrap();
    r.append(PG, RecordKind::EpochStart { base: Seq(3) }).unwrap();
    r.append(PG, RecordKind::DropVtree { vtree: VtreeId(9) }).unwrap();
    r.store.append_copy(PG, copy_of(key(1, 2), v(1, 2), 0b101, &[30, 31])).unwrap();
    r.run_all();
}

pub fn rest(r: &mut Rig) {
    r.commit_all(PG);
    r.flush();
}

/// The pages of the log that an intent and what says that it is in its place take.
pub fn intent_pages(r: &mut Rig) -> Vec<u8> {
    let before = r.disk.durable[LOG..TABLE].to_vec();
    let mut copy = copy_of(key(0, 1), v(1, 2), 0b1010, &[40, 41]);
    (copy.part, copy.dirty) = (0b1110, 0b1110);
    assert!(matches!(r.store.place_copy(PG, copy), Ok(Appended::Intent(_))));
    r.run_all();
    let pages = r.disk.durable[LOG..TABLE].chunks(4096).zip(before.chunks(4096));
    pages.filter(|(now, then)| now != then).flat_map(|(now, _)| now.to_vec()).collect()
}
