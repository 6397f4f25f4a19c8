//! Which pages of a range have content: always what a read would find, and never a trip to the disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::rig::*;
use quarry_base::*;

fn map(r: &mut Rig, extent: u32, offset: u32, pages: u32) -> Vec<bool> {
    let (token, len) = (1 << 40, pages * PAGE as u32);
    r.poll();
    let reads = r.store.stats().read_pages;
    r.store.map(token, PG, VtreeId(1), Layer(0), Extent(extent), offset, len);
    r.run_all();
    let data = r.answer(token).unwrap();
    assert_eq!(data.segments.len(), 1);
    assert_eq!(data.crcs[..], [crc32c(&data.segments[0])]);
    assert_eq!(r.store.stats().read_pages, reads, "a map reads nothing");
    let bits = &data.segments[0];
    assert_eq!(bits.len(), (pages as usize).div_ceil(8));
    (0..pages as usize).map(|n| bits[n / 8] >> (n % 8) & 1 == 1).collect()
}

/// The map says "content" for all that reads as something, "none" only for what reads as zeroes.
fn agrees(r: &mut Rig) {
    for extent in 0..3 {
        let all = r.read(PG, extent, 0, EXTENT).unwrap();
        let told = map(r, extent, 0, 256);
        for (n, page) in all.chunks(PAGE).enumerate() {
            let content = page.iter().any(|b| *b != 0);
            assert_eq!(told[n], content, "extent {extent}, page {n}");
        }
    }
}

#[test]
fn the_map_is_what_reads_find_in_the_log_on_disk_and_after_a_restart() {
    let mut r = Rig::new(small_config());
    agrees(&mut r);
    r.put(PG, write(0, 0, &[1, 2]));
    r.put(PG, write(0, 60 << 10, &[3, 4, 5]));
    r.put(PG, write(1, 64 << 10, &whole(10)));
    agrees(&mut r);
    r.flush();
    agrees(&mut r);
    r.put(PG, zero(0, 4096, 4096));
    r.put(PG, zero(1, 72 << 10, 16 << 10));
    r.put(PG, write(1, 80 << 10, &[77]));
    agrees(&mut r);
    r.flush();
    agrees(&mut r);
    r.reopen().unwrap();
    agrees(&mut r);
    let part = map(&mut r, 1, 68 << 10, 5);
    assert_eq!(part, [true, false, false, true, false]);
}

#[test]
fn a_map_waits_for_what_is_committed_and_not_yet_in_the_log() {
    let mut r = Rig::new(small_config());
    r.append(PG, write(0, 0, &[1])).unwrap();
    r.commit_all(PG);
    assert_eq!(map(&mut r, 0, 0, 2), [true, false]);
    r.append(PG, write(0, 4096, &[2])).unwrap();
    assert_eq!(map(&mut r, 0, 0, 2), [true, false], "not committed: not there");
}
