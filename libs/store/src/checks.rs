//! The checks of pages in memory: a bounded cache of the CRC pages of the block table.
//!
//! A group's checks are *known* one by one: made here since its CRC page was last on the disk, or taken from
//! there. A group of which everything is known is *whole*. A check that is needed and not known has the group's
//! side that counts read; what is taken from there never replaces what is known, for that is newer, and
//! what is not known has not changed since. So any side that has been complete since the group came
//! into memory will do, also if a checkpoint has written another one while it was read.
//!
//! Groups that a checkpoint has yet to write, or is writing, stay, and so do those that a waiting read needs together. Of the others those not used for the longest time
//! go when there are more than the limit (second chance).

use crate::layout::GROUP_SLOTS;
use crate::seal::LOST;
use std::collections::{HashMap, VecDeque};

pub(crate) const PER: usize = GROUP_SLOTS as usize;
/// The checks of one group, by slot and page.
pub(crate) type Table = [[u32; 16]; PER];
/// Memory of a group in the cache, with what the map and the queue take for it.
pub(crate) const GROUP_MEMORY: u64 = (size_of::<GroupChecks>() + 64) as u64;

#[derive(Clone)]
pub(crate) struct GroupChecks {
    pub checks: Table,
    /// Bit i: that of page i is known.
    known: [u16; PER],
    whole: bool,
    /// Not on the disk as it is here; not to be evicted.
    pub held: bool,
    /// Reads that wait until all they need is here.
    pins: u32,
    used: bool,
    loading: bool,
    /// The reads of its CRC page that failed.
    failed: u8,
}

impl GroupChecks {
    fn new(whole: bool) -> GroupChecks {
        let known = [if whole { u16::MAX } else { 0 }; PER];
        let checks = [[0; 16]; PER];
        let (used, held, loading) = (true, false, false);
        GroupChecks { checks, known, whole, held, used, loading, pins: 0, failed: 0 }
    }

    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Takes what is not known from the disk's.
    pub fn merge(&mut self, disk: &Table) {
        for (i, list) in disk.iter().enumerate() {
            for (p, c) in list.iter().enumerate().filter(|(p, _)| self.known[i] >> p & 1 == 0) {
                self.checks[i][p] = *c;
            }
        }
        (self.known, self.whole) = ([u16::MAX; PER], true);
    }

    /// The disk's are damaged: what is not known is lost. Its pages match nothing.
    pub fn give_up(&mut self) {
        if !self.whole {
            self.merge(&[[LOST; 16]; PER]);
        }
    }
}

/// Counters and levels.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct CacheStats {
    pub hits: u64,
    pub misses: u64,
    pub evicted: u64,
}

#[derive(Default)]
pub(crate) struct CheckCache {
    map: HashMap<u32, Box<GroupChecks>>,
    /// In the order they came, those used again later.
    order: VecDeque<u32>,
    limit: usize,
    /// Groups whose CRC page is to be read.
    wanted: Vec<u32>,
    pub stats: CacheStats,
}

impl CheckCache {
    pub fn new(bytes: u64) -> CheckCache {
        let mut c = CheckCache::default();
        c.set_limit(bytes);
        c
    }

    pub fn set_limit(&mut self, bytes: u64) {
        self.limit = usize::try_from(bytes / GROUP_MEMORY).unwrap_or(usize::MAX).max(1);
    }

    pub fn bytes(&self) -> u64 {
        self.map.len() as u64 * GROUP_MEMORY
    }
    #[cfg(test)]
    pub fn get(&self, group: u32) -> Option<&GroupChecks> {
        self.map.get(&group).map(|g| &**g)
    }

    /// The group, made if it is not here; `fresh`: nothing of it is on the disk.
    pub fn group(&mut self, group: u32, fresh: bool) -> &mut GroupChecks {
        if !self.map.contains_key(&group) {
            self.make_room();
            self.order.push_back(group);
            self.map.insert(group, Box::new(GroupChecks::new(fresh)));
        }
        match self.map.get_mut(&group) {
            Some(g) => g,
            None => unreachable!("just inserted"),
        }
    }

    /// At opening: keeps what was read anyway, while there is room.
    pub fn preload(&mut self, group: u32, disk: &Table) {
        if self.map.len() < self.limit {
            self.group(group, false).merge(disk);
        }
    }

    /// Lets some go that are used the least, before another one comes.
    fn make_room(&mut self) {
        let mut looks = 16;
        while self.map.len() >= self.limit && looks > 0 {
            looks -= 1;
            let Some(n) = self.order.pop_front() else { return };
            let Some(g) = self.map.get_mut(&n) else { continue };
            if g.held || g.loading || !g.whole || g.pins > 0 || std::mem::take(&mut g.used) {
                self.order.push_back(n);
            } else {
                self.map.remove(&n);
                self.stats.evicted += 1;
            }
        }
    }

    /// A page's check; `None`: not in memory.
    pub fn check(&self, group: u32, i: usize, page: u32) -> Option<u32> {
        let g = self.map.get(&group)?;
        (g.known[i] >> page & 1 == 1).then(|| g.checks[i][page as usize])
    }

    /// Keeps the group for a read that waits, until `unpin`.
    pub fn pin(&mut self, group: u32, fresh: bool) {
        self.group(group, fresh).pins += 1;
    }
    pub fn unpin(&mut self, group: u32) {
        if let Some(g) = self.map.get_mut(&group) {
            g.pins -= 1;
        }
    }

    /// Are the checks of these pages here? Counts, and wants them if not.
    pub fn need(&mut self, group: u32, i: usize, pages: u16, fresh: bool) -> bool {
        let here = self.map.get_mut(&group).is_some_and(|g| {
            g.used = true;
            pages & !g.known[i] == 0
        });
        if here {
            self.stats.hits += 1;
        } else {
            self.stats.misses += 1;
            self.want(group, fresh);
        }
        here
    }

    pub fn set(&mut self, group: u32, i: usize, page: u32, check: u32, fresh: bool) {
        let g = self.group(group, fresh);
        g.checks[i][page as usize] = check;
        g.known[i] |= 1 << page;
    }

    /// Has the group's CRC page read, if it is not whole.
    pub fn want(&mut self, group: u32, fresh: bool) {
        let g = self.group(group, fresh);
        if !g.whole && !g.loading {
            g.loading = true;
            self.wanted.push(group);
        }
    }

    pub fn next_wanted(&mut self) -> Option<u32> {
        self.wanted.pop()
    }
    pub fn any_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// A read of the group's CRC page has ended; `None`: it failed or is damaged. True: the group is whole now, else it
    /// is read again.
    pub fn loaded(&mut self, group: u32, disk: Option<&Table>) -> bool {
        let Some(g) = self.map.get_mut(&group) else { return true };
        g.loading = false;
        match disk {
            Some(d) => g.merge(d),
            None if g.failed == 0 => {
                g.failed = 1;
                self.want(group, false);
                return false;
            }
            None => g.give_up(),
        }
        true
    }

    /// What is wrong: exactly the groups of `held`, ascending, are kept for a checkpoint. `quiet`: nothing waits.
    pub fn fault(&self, held: &[u32], quiet: bool) -> Option<String> {
        let mut mine: Vec<u32> = self.map.iter().filter(|(_, g)| g.held).map(|(n, _)| *n).collect();
        mine.sort_unstable();
        if mine != held {
            return Some(format!("groups {mine:?} are kept, should be {held:?}"));
        }
        if self.order.len() != self.map.len() {
            return Some(format!(
                "{} groups in order, {} in all",
                self.order.len(),
                self.map.len()
            ));
        }
        let mut all = self.map.values();
        let found = all.find(|g| quiet && (g.pins > 0 || g.loading || g.held && !g.whole));
        found.map(|g| format!("{} pins, loading: {}", g.pins, g.loading))
    }

    /// What was read is of no use because a checkpoint has written the group meanwhile.
    pub fn load_again(&mut self, group: u32) {
        if let Some(g) = self.map.get_mut(&group) {
            g.loading = false;
            self.want(group, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(base: u32) -> Table {
        std::array::from_fn(|i| std::array::from_fn(|p| base + (i * 16 + p) as u32))
    }

    #[test]
    fn what_is_known_is_never_replaced_by_what_the_disk_has() {
        let mut c = CheckCache::new(0);
        c.set(7, 3, 5, 999, false);
        assert_eq!((c.check(7, 3, 5), c.check(7, 3, 6)), (Some(999), None));
        assert!(c.need(7, 3, 1 << 5, false) && !c.need(7, 3, 3 << 5, false));
        assert!(!c.need(7, 3, 3 << 5, false), "wanted once, however often it is asked for");
        assert_eq!((c.next_wanted(), c.next_wanted()), (Some(7), None));
        assert!(c.loaded(7, Some(&table(0))));
        assert_eq!((c.check(7, 3, 5), c.check(7, 3, 6)), (Some(999), Some(54)));
        assert_eq!((c.stats.hits, c.stats.misses), (1, 2));
    }

    #[test]
    fn a_damaged_page_of_the_table_is_read_twice_and_then_its_checks_are_lost() {
        let mut c = CheckCache::new(0);
        c.set(7, 3, 5, 999, false);
        c.want(7, false);
        assert_eq!(c.next_wanted(), Some(7));
        assert!(!c.loaded(7, None));
        assert_eq!(c.next_wanted(), Some(7));
        assert!(c.loaded(7, None));
        assert_eq!((c.check(7, 3, 5), c.check(7, 3, 6)), (Some(999), Some(LOST)));
        c.set(7, 3, 6, 1, false);
        assert_eq!(c.check(7, 3, 6), Some(1));
    }

    #[test]
    fn clean_groups_leave_and_held_ones_stay() {
        let mut c = CheckCache::new(0);
        c.group(0, true).held = true;
        c.pin(1, true);
        for n in 2..10_000 {
            c.group(n, true);
        }
        assert!(c.map.len() <= 3, "{} groups are kept", c.map.len());
        assert_eq!(c.order.len(), c.map.len());
        assert!([0, 1, 9_999].iter().all(|n| c.get(*n).is_some()));
        assert_eq!(c.stats.evicted as usize, 10_000 - c.map.len());
        c.unpin(1);
        c.group(10_000, true);
        c.group(10_001, true);
        assert!(c.get(1).is_none());
    }
}
