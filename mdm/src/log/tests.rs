//! The sled store: crashes, damage, formats.

use super::{MemStore, MetaStore, SledStore, StoreError};
use std::path::{Path, PathBuf};

struct Dir(PathBuf);
impl Dir {
    fn new(name: &str) -> Dir {
        let p = std::env::temp_dir().join(format!("qmdm-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&p).ok();
        std::fs::create_dir_all(&p).unwrap();
        Dir(p)
    }
}
impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// What is on disk now, as a crash would leave it.
fn crash_copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for e in std::fs::read_dir(from).unwrap() {
        let e = e.unwrap();
        let t = to.join(e.file_name());
        if e.file_type().unwrap().is_dir() {
            crash_copy(&e.path(), &t);
        } else {
            std::fs::copy(e.path(), t).unwrap();
        }
    }
}

fn entry(i: u64) -> (u64, Vec<u8>) {
    (i, vec![i as u8; (i as usize * 1237) % 20_000])
}

fn behaves(mut s: impl MetaStore) {
    for i in 1..=10 {
        s.append(&[entry(i)]).unwrap();
    }
    let l = s.load().unwrap();
    assert_eq!((l.snapshot, l.entries.len()), (None, 10));
    let big = vec![7; 1 << 20];
    s.snapshot(5, &big).unwrap();
    s.append(&[entry(11), entry(12)]).unwrap();
    let l = s.load().unwrap();
    assert_eq!(l.snapshot, Some((5, big)));
    assert_eq!(l.entries, (6..=12).map(entry).collect::<Vec<_>>());
    for i in [8, 12] {
        s.snapshot(i, b"state").unwrap();
    }
    let l = s.load().unwrap();
    assert_eq!((l.snapshot, l.entries), (Some((12, b"state".to_vec())), vec![]));
}

#[test]
fn both_stores_keep_log_and_snapshots_alike() {
    behaves(MemStore::default());
    let d = Dir::new("alike");
    behaves(SledStore::open(&d.0.join("s")).unwrap());
}

#[test]
fn what_was_appended_survives_a_crash() {
    let d = Dir::new("crash");
    let mut s = SledStore::open(&d.0.join("a")).unwrap();
    s.append(&(1..=200).map(entry).collect::<Vec<_>>()).unwrap();
    s.snapshot(150, b"at 150").unwrap();
    s.append(&[entry(201)]).unwrap();
    crash_copy(&d.0.join("a"), &d.0.join("b"));
    let l = SledStore::open(&d.0.join("b")).unwrap().load().unwrap();
    assert_eq!(l.snapshot, Some((150, b"at 150".to_vec())));
    assert_eq!(l.entries, (151..=201).map(entry).collect::<Vec<_>>());
    drop(s);
}

#[test]
fn an_old_entry_that_was_half_removed_is_no_damage() {
    let d = Dir::new("half-removed");
    let path = d.0.join("s");
    let mut s = SledStore::open(&path).unwrap();
    let big = vec![3; 100_000];
    s.append(&[(1, big.clone()), (2, big.clone()), (3, big.clone())]).unwrap();
    s.snapshot(2, b"at 2").unwrap();
    // A crash in the middle of the removal of the first two.
    s.remove_first_chunks(1, 7);
    drop(s);
    let l = SledStore::open(&path).unwrap().load().unwrap();
    assert_eq!((l.snapshot, l.entries), (Some((2, b"at 2".to_vec())), vec![(3, big)]));
}

#[test]
fn a_snapshot_cut_off_in_the_middle_does_not_count() {
    let d = Dir::new("cut");
    let mut s = SledStore::open(&d.0).unwrap();
    s.append(&[entry(1), entry(2), entry(3)]).unwrap();
    s.snapshot(1, b"whole").unwrap();
    let parts = super::chunk::encode(2, &[1; 10_000]);
    s.snap.insert(parts[0].0, parts[0].1.as_slice()).unwrap();
    let l = s.load().unwrap();
    assert_eq!((l.snapshot, l.entries.len()), (Some((1, b"whole".to_vec())), 2));
    s.snapshot(3, b"next").unwrap();
    assert_eq!(s.load().unwrap().snapshot, Some((3, b"next".to_vec())));
}

#[test]
fn a_changed_byte_stops_the_start_with_advice() {
    let d = Dir::new("flip");
    let mut s = SledStore::open(&d.0).unwrap();
    s.append(&[entry(1), entry(2)]).unwrap();
    let k = super::chunk::key(2, 0);
    let mut v = s.log.get(k).unwrap().unwrap().to_vec();
    v[20] ^= 1;
    s.log.insert(k, v).unwrap();
    let e = s.load().unwrap_err();
    assert!(matches!(e, StoreError::Damaged { .. }), "{e}");
    assert!(e.to_string().contains("backup"), "{e}");
}

#[test]
fn a_missing_entry_and_a_newer_format_are_refused() {
    let d = Dir::new("gap");
    let mut s = SledStore::open(&d.0).unwrap();
    s.append(&[entry(1), entry(2), entry(3)]).unwrap();
    let k = super::chunk::key(2, 0);
    let v = s.log.remove(k).unwrap().unwrap();
    assert!(s.load().unwrap_err().to_string().contains("log entry 2 is missing"));
    let mut newer = v.to_vec();
    newer[0] = 9;
    s.log.insert(k, newer).unwrap();
    assert!(matches!(s.load().unwrap_err(), StoreError::Newer { format: 9, .. }));
}
