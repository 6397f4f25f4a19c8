//! Which writes of a volume must wait for which (R20): writes that share a 4 KiB page run one after
//! another in order of arrival, whatever connection they came from.
//!
//! Invariant: an entry's `ahead` is the number of earlier entries still present that overlap it.

use quarry_base::PAGE;
use smallvec::SmallVec;
use std::collections::HashMap;

struct Entry {
    key: usize,
    first: u32,
    last: u32,
    ahead: u32,
}

impl Entry {
    fn overlaps(&self, o: &Entry) -> bool {
        self.first <= o.last && o.first <= self.last
    }
}

/// The writes of one volume that are present, by extent, in order of arrival.
#[derive(Default)]
pub(super) struct Overlaps {
    extents: HashMap<u32, SmallVec<[Entry; 4]>>,
}

impl Overlaps {
    /// Adds a write of `len >= 1` bytes at `offset` of `extent`. True: it may start at once.
    pub(super) fn add(&mut self, extent: u32, offset: u32, len: u32, key: usize) -> bool {
        assert!(len > 0, "an empty write overlaps nothing");
        let page = PAGE as u32;
        let mut e = Entry { key, first: offset / page, last: (offset + len - 1) / page, ahead: 0 };
        let list = self.extents.entry(extent).or_default();
        e.ahead = list.iter().filter(|o| o.overlaps(&e)).count() as u32;
        let free = e.ahead == 0;
        list.push(e);
        free
    }

    /// Removes a write; those that may start now are added to `freed`.
    pub(super) fn remove(&mut self, extent: u32, key: usize, freed: &mut Vec<usize>) {
        let Some(list) = self.extents.get_mut(&extent) else { return };
        let Some(at) = list.iter().position(|e| e.key == key) else { return };
        let gone = list.remove(at);
        for e in list.iter_mut().skip(at).filter(|e| e.overlaps(&gone)) {
            e.ahead -= 1;
            if e.ahead == 0 {
                freed.push(e.key);
            }
        }
        if list.is_empty() {
            self.extents.remove(&extent);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_writes_start_one_after_another_in_order_of_arrival() {
        let mut o = Overlaps::default();
        assert!(o.add(0, 0, 4096, 1));
        assert!(o.add(0, 4096, 4096, 2), "the next page is free");
        assert!(!o.add(0, 4000, 200, 3), "shares both pages");
        assert!(!o.add(0, 0, 1, 4));
        assert!(o.add(1, 0, 4096, 5), "another extent");
        let mut freed = Vec::new();
        o.remove(0, 1, &mut freed);
        assert!(freed.is_empty(), "3 still waits for 2, 4 for 3");
        o.remove(0, 2, &mut freed);
        assert_eq!(freed, [3]);
        freed.clear();
        o.remove(0, 3, &mut freed);
        assert_eq!(freed, [4]);
        o.remove(0, 4, &mut freed);
        o.remove(1, 5, &mut freed);
        assert!(o.is_empty());
    }

    #[test]
    fn a_waiting_write_that_leaves_frees_those_behind_it() {
        let mut o = Overlaps::default();
        let mut freed = Vec::new();
        assert!(o.add(0, 0, 4096, 1));
        assert!(!o.add(0, 0, 8192, 2));
        assert!(!o.add(0, 4096, 4096, 3));
        o.remove(0, 2, &mut freed);
        assert_eq!(freed, [3]);
    }
}
