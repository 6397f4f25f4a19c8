//! Space promised to thick volumes: what is not written yet is kept from other data, and the sum follows every change.
//! Space in the log: whoever waits for it is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::rig::*;
use quarry_base::*;
use quarry_store::StoreEvent;

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
    let thin = |r: &Rig| r.store.headroom().blocks.saturating_sub(r.store.headroom().promised);
    while thin(&r) > 0 {
        r.put(PG, write(n, 0, &whole(n * 16 + 1)));
        n += 1;
        assert!(n < 4, "{:?}", r.store.headroom());
    }
    assert_eq!(n, 3);
    assert!(!r.store.headroom().full, "the promised space is there");
    r.store.promise(&[]);
    assert!(thin(&r) > 0);
}

#[test]
fn whoever_waits_for_log_space_is_told_when_so_much_of_it_is_there_and_only_then() {
    let mut r = Rig::new(small_config());
    let empty = r.store.headroom().log_bytes;
    let told = |r: &mut Rig| {
        let n = r.events.iter().filter(|e| matches!(e, StoreEvent::LogSpace)).count();
        r.events.retain(|e| !matches!(e, StoreEvent::LogSpace));
        n
    };
    let mut n = 0;
    while r.store.headroom().log_bytes > empty / 3 {
        r.append(PG, write(n % 8, 0, &[n + 1])).unwrap();
        r.poll();
        n += 1;
    }
    // Nothing was refused here: the asker has a reserve of its own.
    r.store.want_log_room(empty / 2 - 1);
    r.poll();
    assert_eq!(told(&mut r), 0, "not so much yet");
    // Nothing else happens on the device: the space is freed for this alone.
    r.commit_all(PG);
    r.run_all();
    r.wait(std::time::Duration::from_secs(3));
    r.run_all();
    assert_eq!(told(&mut r), 1, "{} of {empty}", r.store.headroom().log_bytes);
    assert!(r.store.headroom().log_bytes >= empty / 2 - 1);
    r.store.want_log_room(1);
    r.poll();
    assert_eq!(told(&mut r), 1, "there already");
    r.poll();
    assert_eq!(told(&mut r), 0, "told once");
}

#[test]
fn a_block_that_is_being_destaged_takes_its_room_once() {
    let mut r = Rig::new(small_config());
    let empty = r.store.headroom().blocks;
    for extent in 0..6 {
        r.put(PG, write(extent, 0, &[1, 2]));
    }
    let in_log = r.store.headroom().blocks;
    assert_eq!(in_log, empty - 6, "room is kept for blocks in the log");
    r.store.flush_all();
    let mut steps = 0;
    while r.one(&|_| true) {
        assert_eq!(r.store.headroom().blocks, in_log, "step {steps}");
        r.store.check_invariants().unwrap();
        steps += 1;
    }
    assert!(steps > 6 && r.store.is_idle());
}
