//! Credits (R24): blocks of a device, promised to the streams that come to it before anything uses them.
//!
//! A member promises the primary of each of its groups blocks; the primary gives a number only to a record whose new blocks
//! fit what every member that counts has promised, and what its own device has beside its promises to others. What thick
//! volumes have not written is no part of what is promised: their writes need no credit, their space is kept on every
//! device ([`quarry_store::Headroom::promised`]). Numbers are cumulative since the stream began: told again they change
//! nothing. While a device has plenty, every stream has a few blocks before it asks and gets more than it asked for; on a
//! device that runs low a stream gets what it asks for, whole or not at all, and gives back what it does not need.
//!
//! Invariant: a promise is on the account until the record that used it is committed and its blocks are in the store's own
//! count; of a stream that broke, until what is sent again for it is committed.

use quarry_base::{Nanos, Seq, BLOCK};
use quarry_store::{Headroom, RecordKind};
use std::collections::VecDeque;
use std::time::Duration;

/// A stream has at most so many blocks unasked: twice a full window of large writes.
const MOST: u64 = 64;
/// Blocks that one record can take: those of an extent.
const LARGEST: u64 = quarry_base::BLOCKS_PER_EXTENT as u64;
/// Up to this part of a device's blocks is promised beyond what is asked for; with twice as many left for thin data it
/// runs low, and that is called in.
const IDLE_PART: u64 = 16;
/// What others have been promised and neither used nor given back in this time does not come back soon: full.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// `length` of a report: the device runs low; it is full for thick volumes too.
pub(crate) const SAYS_LOW: u32 = 1;
pub(crate) const SAYS_FULL: u32 = 2;

/// Blocks that the record touches.
pub(crate) fn blocks_of(rec: &RecordKind) -> u64 {
    match rec {
        RecordKind::Write { offset, data, .. } => {
            let end = offset + data.len() as u32;
            u64::from(end.div_ceil(BLOCK) - offset / BLOCK)
        }
        _ => 0,
    }
}

/// Blocks for data of volumes to which nothing is promised.
pub(crate) fn for_thin(h: &Headroom) -> u64 {
    h.blocks.saturating_sub(h.promised)
}

fn idle(h: &Headroom) -> u64 {
    h.of / IDLE_PART
}

/// Blocks of records that are not committed.
#[derive(Default)]
pub(crate) struct Charges {
    list: VecDeque<(Seq, u64)>,
    sum: u64,
}

impl Charges {
    /// What the tail that is there already may still take.
    pub fn of_tail(tail: impl Iterator<Item = (Seq, u64)>) -> Charges {
        let mut c = Charges::default();
        tail.for_each(|(seq, blocks)| c.add(seq, blocks));
        c
    }
    pub fn add(&mut self, seq: Seq, blocks: u64) {
        if blocks > 0 {
            self.list.push_back((seq, blocks));
            self.sum += blocks;
        }
    }
    pub fn committed(&mut self, upto: Seq) {
        while self.list.front().is_some_and(|c| c.0 <= upto) {
            self.sum -= self.list.pop_front().map_or(0, |c| c.1);
        }
    }
    fn truncated(&mut self, from: Seq) {
        while self.list.back().is_some_and(|c| c.0 >= from) {
            self.sum -= self.list.pop_back().map_or(0, |c| c.1);
        }
    }
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// A device's account.
#[derive(Default)]
pub(crate) struct Ledger {
    /// By group.
    by: Vec<u64>,
    sum: u64,
    /// Groups that the device has been given: each may come to have a stream.
    pub groups: u64,
    low: bool,
    /// It has begun to run low: every stream is to be told.
    pub news: bool,
}

impl Ledger {
    /// Blocks that a group here, as member or primary, can still take of what the store counts as free.
    pub fn set(&mut self, group: usize, blocks: u64) {
        if self.by.len() <= group {
            self.by.resize(group + 1, 0);
        }
        if let Some(kept) = self.by.get_mut(group) {
            self.sum = self.sum + blocks - std::mem::replace(kept, blocks);
        }
    }

    /// Blocks for thin data that nobody has been promised.
    pub fn free(&mut self, h: &Headroom) -> u64 {
        let thin = for_thin(h);
        let mark = 2 * idle(h);
        // Not to and fro at the mark.
        let low = thin <= if self.low { mark + mark / 4 } else { mark };
        self.news |= low && !self.low;
        self.low = low;
        thin.saturating_sub(self.sum)
    }

    pub fn is_low(&self) -> bool {
        self.low
    }

    /// What a stream has that has not asked: all together half of what may lie idle.
    fn unasked(&self, h: &Headroom) -> u64 {
        if self.low {
            return 0;
        }
        (idle(h) / 2 / self.groups.max(1)).min(MOST)
    }
}

/// A member's promise to the primary of a group.
#[derive(Default)]
pub(crate) struct Promise {
    /// Of the present stream: promised in all, and used by the records that have come.
    limit: u64,
    used: u64,
    charges: Charges,
    /// Promised to streams before: for records that are sent again, without saying what they take.
    hold: u64,
    /// The primary's newest question: its number, how much it wants in all, since when.
    asks: u64,
    want: u64,
    since: Nanos,
    full: bool,
}

/// What a report says of a promise: limit, number of the question, full for what is asked, flags.
pub(crate) type Told = (u64, u64, bool, u32);

impl Promise {
    fn open(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    /// A new stream: what the last one left may be used by what is sent again.
    pub fn renew(&mut self) {
        let (hold, charges) = (self.hold + self.open(), std::mem::take(&mut self.charges));
        *self = Promise { hold, charges, ..Promise::default() };
    }

    pub fn clear(&mut self) {
        *self = Promise::default();
    }

    pub fn truncated(&mut self, from: Seq) {
        self.charges.truncated(from);
    }

    /// Everything has been sent again, up to `last`; it takes what it takes when it is committed.
    fn hold_until(&mut self, last: Seq) {
        let hold = std::mem::take(&mut self.hold);
        self.charges.add(last, hold);
    }

    /// A record has come that takes at most `blocks`, as its primary says. False: more than was promised.
    pub fn take(&mut self, seq: Seq, blocks: u64) -> bool {
        if blocks == 0 {
            return true;
        }
        self.hold_until(Seq(seq.0.saturating_sub(1)));
        let blocks = blocks.min(LARGEST);
        self.used += blocks;
        self.charges.add(seq, blocks);
        self.used <= self.limit
    }

    /// The primary gives back what it has not used up to here and wants `want` in all.
    pub fn asked(&mut self, number: u64, want: u64, last: Seq, now: Nanos) {
        self.hold_until(last);
        self.limit = self.used;
        // Never more than what one record can take and a full window beside it.
        (self.asks, self.want) = (number, want.min(self.used + MOST + LARGEST));
        (self.since, self.full) = (now, false);
    }

    /// Promises more if there is room and the stream asks or is short of it.
    pub fn top_up(
        &mut self,
        group: usize,
        ledger: &mut Ledger,
        h: &Headroom,
        commit: Seq,
        now: Nanos,
    ) {
        // More was sent than was promised (to a member that did not count): nothing of it is open.
        self.limit = self.limit.max(self.used);
        self.charges.committed(commit);
        self.account(group, ledger);
        let free = ledger.free(h);
        let short = self.want.saturating_sub(self.limit);
        let mut give = 0;
        self.full = short > 0 && (short > for_thin(h) || now >= self.since + PATIENCE);
        if short > 0 && short <= free {
            let spare = if ledger.low { 0 } else { idle(h).saturating_sub(ledger.sum) / 4 };
            (give, self.full) = ((short + spare.min(MOST)).min(free), false);
        } else if self.open() < ledger.unasked(h).div_ceil(2) {
            give = (ledger.unasked(h) - self.open()).min(free);
        }
        self.limit += give;
        self.account(group, ledger);
    }

    /// What the device must keep for it.
    pub fn account(&self, group: usize, ledger: &mut Ledger) {
        ledger.set(group, self.open() + self.charges.sum() + self.hold);
    }

    /// The primary waits for more than there is now.
    pub fn waits(&self) -> bool {
        self.want > self.limit
    }
    pub fn is_full(&self) -> bool {
        self.full
    }

    pub fn told(&self, ledger: &Ledger, h: &Headroom) -> Told {
        let flags = if ledger.is_low() { SAYS_LOW } else { 0 } | if h.full { SAYS_FULL } else { 0 };
        (self.limit, self.asks, self.full, flags)
    }
}

/// What a primary may use of a member, since their stream began.
#[derive(Default, Clone, Copy)]
pub(crate) struct Credit {
    limit: u64,
    pub used: u64,
    /// Questions so far, how much the last one wanted in all, and since when in vain.
    pub asks: u64,
    pub want: u64,
    pub since: Nanos,
    /// The member has no block for what was asked; runs low; is full for thick volumes too.
    pub full: bool,
    pub low: bool,
    pub full_thick: bool,
}

impl Credit {
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    /// The member says what it promises now. What it said before our last question came to it does not count.
    pub fn told(&mut self, (limit, asks, full, flags): Told) {
        (self.low, self.full_thick) = (flags & SAYS_LOW != 0, flags & SAYS_FULL != 0);
        if asks == self.asks {
            (self.limit, self.full) = (limit, full);
        }
    }

    /// Gives back what is left and asks for `need`.
    pub fn ask(&mut self, need: u64, now: Nanos) {
        self.limit = self.used;
        self.asks += 1;
        (self.want, self.since, self.full) = (self.used + need, now, false);
    }

    /// What was asked for has not been promised, nor has it been said that there is nothing.
    pub fn starves(&self) -> bool {
        !self.full && self.want > self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(blocks: u64, promised: u64) -> Headroom {
        Headroom { blocks, promised, of: 1000, full: blocks == 0, ..Headroom::default() }
    }
    const T: Nanos = Nanos(1_000_000_000);

    fn ask(p: &mut Promise, need: u64) {
        p.asked(p.asks + 1, p.used + need, Seq(9), T);
    }

    #[test]
    fn never_more_is_promised_than_there_is_beside_what_thick_volumes_have_not_written() {
        let mut l = Ledger { groups: 10, ..Ledger::default() };
        let mut all: Vec<Promise> = (0..10).map(|_| Promise::default()).collect();
        for blocks in [900, 500, 210, 203, 130] {
            let h = head(blocks, 100);
            for round in 0..20 {
                for (g, p) in all.iter_mut().enumerate() {
                    if (round + g) % 3 == 0 {
                        ask(p, 16);
                    }
                    let before = l.free(&h);
                    p.top_up(g, &mut l, &h, Seq::ZERO, T);
                    assert!(before == 0 || l.sum <= for_thin(&h), "{} of {blocks}", l.sum);
                }
            }
        }
        let h = head(130, 100);
        all.iter_mut().enumerate().for_each(|(g, p)| {
            ask(p, 0);
            p.top_up(g, &mut l, &h, Seq::ZERO, T);
        });
        assert_eq!((l.sum, l.free(&h), l.is_low()), (0, 30, true), "all was given back");
        // The last blocks are for who asks first, whole; not for two.
        for (g, gets) in [(3, true), (7, false)] {
            ask(&mut all[g], 16);
            all[g].top_up(g, &mut l, &h, Seq::ZERO, T);
            assert_eq!((!all[g].waits(), all[g].is_full()), (gets, false));
        }
        all[7].top_up(7, &mut l, &h, Seq::ZERO, T + PATIENCE);
        assert!(all[7].is_full(), "the other does not use it");
        ask(&mut all[7], 31);
        all[7].top_up(7, &mut l, &h, Seq::ZERO, T);
        assert!(all[7].is_full(), "more than there is, whoever has it");
    }

    #[test]
    fn what_is_used_comes_back_with_the_commit_also_over_a_new_stream() {
        let (mut l, mut p, h) = (Ledger::default(), Promise::default(), head(50, 0));
        ask(&mut p, 10);
        p.top_up(1, &mut l, &h, Seq::ZERO, T);
        assert!(p.take(Seq(10), 4) && l.sum == 10);
        p.renew();
        p.top_up(1, &mut l, &h, Seq(9), T);
        assert_eq!(l.sum, 10, "four are not committed, six may be sent again");
        assert!(p.take(Seq(11), 0));
        ask(&mut p, 1);
        p.top_up(1, &mut l, &h, Seq(9), T);
        assert!(p.take(Seq(12), 1) && !p.take(Seq(13), 1), "one was promised");
        p.top_up(1, &mut l, &h, Seq(9), T);
        assert_eq!(l.sum, 12);
        p.top_up(1, &mut l, &h, Seq(13), T);
        assert_eq!(l.sum, 0);
    }

    #[test]
    fn what_was_said_before_a_question_came_does_not_count() {
        let mut c = Credit::default();
        c.told((64, 0, false, 0));
        c.used = 60;
        c.ask(16, T);
        c.told((64, 0, false, 0));
        assert_eq!((c.left(), c.starves()), (0, true));
        c.told((76, 1, false, SAYS_LOW));
        assert_eq!((c.left(), c.starves(), c.low), (16, false, true));
    }
}
