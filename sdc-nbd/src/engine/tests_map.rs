//! Questions about content: split at extents, widened to pages, checked and asked again like reads.

use super::fake::*;
use super::*;
use quarry_wire::Status;

#[test]
fn a_map_gives_the_bits_of_each_extent_from_the_page_it_begins_in() {
    let mut w = World::ready();
    w.truth[(1 << 20) - 1] = 1;
    w.truth[(1 << 20) + 4096] = 1;
    w.ask(1, IoOp::Map { offset: (1 << 20) - 5000, len: 5000 + 9000 });
    let ranges: Vec<_> = w
        .requests()
        .into_iter()
        .map(|(l, f)| {
            assert_eq!(f.header.op, quarry_wire::Op::Map);
            let (s, d) = w.execute(&f);
            w.reply(l, &f.header, s, d);
            (f.header.extent.0, f.header.offset, f.header.length)
        })
        .collect();
    let mut sorted = ranges.clone();
    sorted.sort();
    assert_eq!(sorted, [(0, (1 << 20) - 8192, 8192), (1, 0, 12288)]);
    assert_eq!(w.done, [(1, Ok(vec![0b10, 0b010]))]);
}

#[test]
fn a_map_of_the_wrong_size_or_damaged_is_asked_for_again() {
    let mut w = World::ready();
    w.ask(1, IoOp::Map { offset: 0, len: 1 << 20 });
    for bits in [31, 32] {
        let (l, f) = w.requests().pop().unwrap();
        let mut bad = w.answer_frame(&f.header, Status::Ok, vec![0; bits].into());
        bad.header.data_crc ^= u32::from(bits == 32);
        w.deliver(l, &f.header, bad);
        assert!(w.done.is_empty());
        w.tick(50);
    }
    assert_eq!(w.e.stats().bad_data, 2);
    w.settle();
    assert_eq!(w.done, [(1, Ok(vec![0; 32]))]);
}
