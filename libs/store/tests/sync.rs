//! What a sync between replicas rests on: copies, scans, tombstones, ids, gaps in the sequence.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::rig::*;
use quarry_base::*;
use quarry_store::*;

fn crash(r: &mut Rig) {
    r.power_loss();
    assert_eq!(r.reopen(), Ok(()));
}

#[test]
fn a_block_read_here_and_copied_there_is_the_same_block() {
    let mut a = Rig::new(small_config());
    a.put(PG, write(0, 0, &whole(1)));
    a.put(PG, zero(0, 4096, 8192));
    a.put(PG, write(0, 4096 * 20, &[77, 78]));
    a.put(PG, write(0, 2 * 65536, &[80]));
    a.put(PG, zero(0, 2 * 65536, 65536));
    for flushed in [false, true] {
        if flushed {
            a.flush();
        }
        let mut b = Rig::new(small_config());
        let rows = a.store.scan(PG, BlockKey::MIN, 100, None);
        assert_eq!(rows.len(), 3);
        for row in &rows {
            let c = a.block(PG, row.key).unwrap().unwrap();
            assert_eq!((c.version, c.valid), (row.version, row.valid));
            b.store.append_copy(PG, c).unwrap();
        }
        b.run_all();
        for _ in 0..2 {
            assert_eq!(b.store.scan(PG, BlockKey::MIN, 100, None), rows);
            for row in &rows {
                assert_eq!(b.block(PG, row.key), a.block(PG, row.key));
            }
            b.flush();
            crash(&mut b);
        }
        b.pages(PG, 0, 0, &[1, 0, 0, 4]);
    }
    assert_eq!(a.block(PG, key(5, 5)), Ok(None));
}

#[test]
fn a_copy_of_the_blocks_own_version_replaces_it() {
    for n in [3u32, 16] {
        let mut r = Rig::new(small_config());
        r.put(PG, write(0, 0, &whole(1)));
        // Applied to a stale block: page 5 is right, the rest is not.
        r.put(PG, write(0, 5 * 4096, &[50]));
        let at = r.store.pg_state(PG).commit_version;
        let tags: Vec<u32> = (100..100 + n).collect();
        let valid = ((1u32 << n) - 1) as u16;
        let c = copy_of(key(0, 0), at, valid, &tags);
        r.store.append_copy(PG, c.clone()).unwrap();
        r.run_all();
        let mut want = tags.clone();
        want.resize(16, 0);
        r.pages(PG, 0, 0, &want);
        // An older one does not.
        let old = copy_of(key(0, 0), v(1, 1), 1, &[9]);
        r.store.append_copy(PG, old).unwrap();
        r.run_all();
        r.pages(PG, 0, 0, &want);
        crash(&mut r);
        r.commit_all(PG);
        r.pages(PG, 0, 0, &want);
        r.flush();
        crash(&mut r);
        r.pages(PG, 0, 0, &want);
        // Nor does one from before the vTree was deleted bring anything back.
        r.put(PG, RecordKind::DropVtree { vtree: VtreeId(1) });
        r.store.append_copy(PG, c).unwrap();
        r.run_all();
        assert_eq!(r.store.scan(PG, BlockKey::MIN, 10, None), []);
    }
}

#[test]
fn what_lay_between_a_truncation_and_a_gap_stays_truncated() {
    for next in [6, 7, 8, 9, 12] {
        let mut r = Rig::new(small_config());
        for i in 1..=7 {
            r.append(PG, write(0, i * 65536, &[i])).unwrap();
        }
        r.run_all();
        r.store.set_commit(PG, Seq(5));
        r.store.truncate(PG, Seq(6));
        assert_eq!(r.store.pg_state(PG).stable, v(1, 5));
        r.append_as(PG, v(2, next), write(0, 65536 * 10, &[30])).unwrap();
        r.run_all();
        r.store.set_commit(PG, Seq(next));
        r.run_all();
        r.append_as(PG, v(2, next + 1), write(0, 65536 * 11, &[31])).unwrap();
        r.run_all();
        for _ in 0..2 {
            let s = r.store.pg_state(PG);
            assert_eq!((s.last, s.commit), (v(2, next + 1), Seq(next)), "gap to {next}");
            r.pages(PG, 0, 5 * 65536, &[5]);
            r.pages(PG, 0, 6 * 65536, &[0]);
            r.pages(PG, 0, 7 * 65536, &[0]);
            r.pages(PG, 0, 10 * 65536, &[30]);
            crash(&mut r);
        }
        assert!(r.append_as(PG, v(2, next), zero(0, 0, 4096)).is_err());
        let gap = r.append_as(PG, v(2, next + 9), zero(0, 0, 4096));
        assert!(matches!(gap, Err(AppendError::Invalid(_))), "a gap above an uncommitted tail");
    }
}

#[test]
fn ids_travel_and_survive() {
    let mut a = Rig::new(small_config());
    for i in 0..5 {
        a.put(PG, write(0, i * 4096, &[i + 1]));
    }
    a.append(PG, write(0, 0, &[9])).unwrap();
    let seen = |r: &Rig, id| r.store.seen(PG, Instance(1), RequestId(id));
    assert_eq!(
        (seen(&a, 5), seen(&a, 6), seen(&a, 7)),
        (Seen::Committed, Seen::InTail(Seq(6)), Seen::New)
    );
    let ids = a.store.ids_export(PG);
    let mut b = Rig::new(small_config());
    b.store.ids_import(PG, ids).unwrap();
    b.run_all();
    for _ in 0..3 {
        assert_eq!((seen(&b, 5), seen(&b, 6)), (Seen::Committed, Seen::New));
        crash(&mut b);
        b.flush();
    }
    assert!(b.store.ids_import(PG, vec![1, 2, 3].into()).is_err());
    b.store.forget_instances(&|_| false);
    assert_eq!(seen(&b, 5), Seen::New);
    // A record without an instance is not entered.
    let rec = Record { version: v(1, 1), origin: Origin::default(), kind: zero(0, 0, 4096) };
    b.store.append(PG, rec).unwrap();
    assert_eq!(b.store.seen(PG, Instance(0), RequestId(0)), Seen::New);
}

#[test]
fn a_delta_has_what_changed_tombstones_and_deleted_vtrees() {
    let mut r = Rig::new(small_config());
    for i in 0..6 {
        r.put(PG, write(0, i * 65536, &[i + 1]));
    }
    let since = r.store.pg_state(PG).commit_version;
    r.store.set_all_through(PG, since);
    assert_eq!(r.store.delta_floor(PG), since);
    r.put(PG, write(0, 65536 + 4096, &[50]));
    r.put(PG, zero(0, 3 * 65536, 65536));
    r.put(PG, RecordKind::DropVtree { vtree: VtreeId(8) });
    for _ in 0..3 {
        let rows = r.store.scan(PG, BlockKey::MIN, 100, Some(since));
        let rows: Vec<_> =
            rows.iter().map(|b| (b.key.block, b.version, b.valid, b.dirty)).collect();
        assert_eq!(rows, [(1, v(1, 7), 3, 2), (3, v(1, 8), 0, 0xFFFF)]);
        assert_eq!(r.store.dropped_vtrees(PG, since), [(VtreeId(8), v(1, 9))]);
        assert_eq!(r.store.bytes_changed_since(PG, Some(since)), 4096);
        let page = r.store.scan(PG, key(0, 2), 2, None);
        assert_eq!(page.iter().map(|b| b.key.block).collect::<Vec<_>>(), [2, 3]);
        r.flush();
        crash(&mut r);
    }
    r.store.set_all_through(PG, v(1, 9));
    assert_eq!(r.store.scan(PG, BlockKey::MIN, 100, Some(since)).len(), 1);
    assert_eq!(r.store.dropped_vtrees(PG, since), []);
}

/// Deletes vTrees `of` in a group, each with a block that the group had.
fn delete_vtrees(r: &mut Rig, pg: PgId, of: std::ops::Range<u64>) {
    for first in of.clone().step_by(50) {
        for vtree in (first..of.end.min(first + 50)).map(VtreeId) {
            let written = match write(0, 0, &[vtree.0 as u32]) {
                RecordKind::Write { layer, extent, offset, crcs, data, .. } => {
                    RecordKind::Write { vtree, layer, extent, offset, crcs, data }
                }
                other => other,
            };
            for kind in [written, RecordKind::DropVtree { vtree }] {
                if r.append(pg, kind.clone()).is_err() {
                    r.run_all();
                    r.commit_all(pg);
                    r.flush();
                    r.append(pg, kind)
                        .expect("log space after everything was written to its place");
                }
            }
        }
        r.run_all();
        r.commit_all(pg);
        r.run_all();
    }
}

/// The ends stayed for as long as one copy was away, and each took its place in the log twice: it was full of them.
#[test]
fn deleted_vtrees_leave_log_space_however_many_they_are_while_a_copy_is_away() {
    let mut r = Rig::new(small_config());
    let pgs = [0, 1, 2, 3].map(|n| PgId::new(PoolId(1), n));
    pgs.iter().for_each(|pg| r.put(*pg, write(0, 0, &[1])));
    r.flush();
    let (empty, first) = (r.store.headroom().log_bytes, r.store.pg_state(pgs[0]).last);
    pgs.iter().for_each(|pg| delete_vtrees(&mut r, *pg, 10..3010));
    r.flush();
    for _ in 0..2 {
        let left = r.store.headroom().log_bytes;
        assert!(left > empty / 2, "{left} of {empty}");
        for pg in pgs {
            // What is left is all since the floor, and whoever is below that gets no delta.
            let (floor, last) = (r.store.delta_floor(pg), r.store.pg_state(pg).last);
            assert!(floor > first && floor < last, "{floor} between {first} and {last}");
            let ends = r.store.dropped_vtrees(pg, Version::ZERO);
            assert!(ends.len() < 1000, "{} ends", ends.len());
            let since = (last.seq.0 - floor.seq.0) / 2;
            assert_eq!(ends.len() as u64, since, "all of them");
            assert!(ends.iter().all(|(_, at)| *at > floor));
            // None of the blocks is back.
            assert_eq!(r.store.vtrees_of(pg), [VtreeId(1)]);
            assert_eq!(r.store.scan(pg, BlockKey::MIN, 9, None).len(), 1);
        }
        crash(&mut r);
        r.flush();
    }
}

#[test]
fn a_group_forgets_ends_of_vtrees_when_others_come_that_need_their_share() {
    let mut r = Rig::new(small_config());
    delete_vtrees(&mut r, PG, 10..3010);
    r.flush();
    assert_eq!(r.store.dropped_vtrees(PG, Version::ZERO).len(), 3000);
    (1..12).for_each(|n| r.put(PgId::new(PoolId(1), n), write(0, 0, &[1])));
    r.flush();
    for _ in 0..2 {
        let ends = r.store.dropped_vtrees(PG, Version::ZERO);
        assert!(ends.len() < 400, "{} ends", ends.len());
        assert_eq!(ends.first().map(|e| e.1.seq.0), Some(r.store.delta_floor(PG).seq.0 + 2));
        crash(&mut r);
    }
}

/// A member that still has the block applies the second trim to it and is then newer than the tombstone of the
/// first: the copy of that was left out, and the other pages kept their old content.
#[test]
fn a_trim_of_a_trimmed_block_makes_its_tombstone_as_new_as_itself() {
    let (mut a, mut b) = (Rig::new(small_config()), Rig::new(small_config()));
    for r in [&mut a, &mut b] {
        r.put(PG, write(0, 0, &[1, 2]));
    }
    a.put(PG, zero(0, 0, 65536));
    a.put(PG, zero(0, 0, 4096));
    let again = a.store.pg_state(PG).last;
    b.append_as(PG, again, zero(0, 0, 4096)).unwrap();
    b.run_all();
    b.commit_all(PG);
    b.run_all();
    let copy = a.block(PG, key(0, 0)).unwrap().unwrap();
    assert_eq!((copy.version, copy.valid), (again, 0));
    b.store.append_copy(PG, copy).unwrap();
    b.run_all();
    assert_eq!(b.read(PG, 0, 0, 65536).unwrap()[..], [0; 65536]);
}

#[test]
fn dropping_more_keys_than_fit_one_record_drops_them_all() {
    let cfg = StoreConfig {
        device_bytes: 200 << 20,
        log_bytes: 2 << 20,
        max_batch_bytes: 16 << 10,
        ..StoreConfig::default()
    };
    let mut r = Rig::new(cfg);
    let n = 1000u32;
    for i in 0..n {
        while r.append(PG, write(i / 16, i % 16 * 65536, &[i + 1])).is_err() {
            r.run_all();
            r.commit_all(PG);
            r.run_all();
        }
    }
    r.run_all();
    r.commit_all(PG);
    r.flush();
    let keep = [key(0, 3), key(30, 1)];
    let before = r.stable();
    let to = key(n / 16 - 1, 0);
    let last = r.store.drop_keys(PG, BlockKey::MIN, to, &keep).unwrap();
    assert!(last > before + 2, "several records");
    r.run_all();
    assert_eq!(r.stable(), last);
    for _ in 0..2 {
        let rows = r.store.scan(PG, BlockKey::MIN, usize::MAX, None);
        let left = rows.iter().filter(|b| b.key < to).map(|b| b.key);
        assert_eq!(left.collect::<Vec<_>>(), keep);
        assert_eq!(rows.len(), 2 + (n as usize - (n as usize / 16 - 1) * 16));
        r.pages(PG, 0, 3 * 65536, &[4]);
        r.pages(PG, 0, 4 * 65536, &[0]);
        crash(&mut r);
        r.flush();
    }
}

#[test]
fn a_group_dropped_and_begun_again_keeps_only_the_new() {
    let mut r = Rig::new(small_config());
    r.put(PG, write(0, 0, &whole(1)));
    r.store.put_meta(PG, b"old".to_vec().into()).unwrap();
    r.flush();
    let t = r.begin_read(PG, 0, 0, 4096);
    r.store.drop_pg(PG).unwrap();
    assert_eq!(r.store.pgs(), []);
    r.store.put_meta(PG, b"new".to_vec().into()).unwrap();
    r.append_as(PG, v(3, 40), write(0, 65536, &[7])).unwrap();
    r.run_all();
    assert!(r.answer(t).is_ok());
    r.commit_all(PG);
    r.run_all();
    for _ in 0..3 {
        assert_eq!(r.store.meta(PG).as_deref(), Some(&b"new"[..]));
        r.pages(PG, 0, 0, &[0]);
        r.pages(PG, 0, 65536, &[7]);
        crash(&mut r);
        r.commit_all(PG);
        r.flush();
    }
    assert_eq!(r.store.stats().used_bytes, 65536);
}
