//! Space promised to thick volumes: what is not written yet is kept from other data, and the sum follows every change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::rig::*;
use quarry_base::*;

fn promised(r: &Rig) -> u64 {
    r.store.check_invariants().unwrap();
    r.store.headroom().promised
}

#[test]
fn what_is_promised_and_not_written_yet_is_counted_through_every_change() {
    let mut r = Rig::new(small_config());
    let vtree = key(0, 0).vtree;
    let other = PgId::new(PoolId(1), 9);
    // Whole blocks, parts of blocks, over what is there already.
    r.put(PG, write(0, 0, &whole(1)));
    r.store.promise(&[(PG, vtree, 40), (other, vtree, 8)]);
    assert_eq!(promised(&r), 47, "one of 40 is here; of the other group nothing");
    r.put(PG, write(0, 0, &whole(2)));
    r.put(PG, write(0, 65536, &[3]));
    assert_eq!(promised(&r), 46);
    r.put(other, write(5, 0, &[4]));
    assert_eq!(promised(&r), 45, "a group that was not here is counted from its first block");
    r.flush();
    assert_eq!(promised(&r), 45);
    r.put(PG, zero(0, 0, 65536));
    assert_eq!(promised(&r), 46, "trimmed space stays the volume's");
    r.store.promise(&[(PG, vtree, 64), (other, vtree, 8)]);
    assert_eq!(promised(&r), 70, "it grew");
    r.store.drop_pg(other).unwrap();
    r.run_all();
    assert_eq!(promised(&r), 71, "dropped with its data, and still promised");
    r.store.promise(&[(PG, vtree, 64)]);
    assert_eq!(promised(&r), 63);
    r.store.promise(&[(PG, VtreeId(99), 5)]);
    assert_eq!(promised(&r), 5, "another volume's; the first is promised nothing any more");
    r.store.promise(&[]);
    assert_eq!(promised(&r), 0);
}

#[test]
fn thin_data_is_full_where_the_promised_space_begins() {
    let mut r = Rig::new(small_config());
    let free = r.store.headroom().blocks;
    r.store.promise(&[(PG, VtreeId(99), free - 3)]);
    let mut n = 0;
    while !r.store.headroom().full_thin {
        r.put(PG, write(n, 0, &whole(n * 16 + 1)));
        n += 1;
        assert!(n < 4, "{:?}", r.store.headroom());
    }
    assert_eq!(n, 3);
    assert!(!r.store.headroom().full, "the promised space is there");
    r.store.promise(&[]);
    assert!(!r.store.headroom().full_thin);
}
