//! Where the time of writes goes, as their primary sees it.
//!
//! Sums that only grow: whoever keeps two of them knows the time between. Nothing is decided by them.

use quarry_base::{Nanos, SdsId};
use std::collections::BTreeMap;

/// How often something took place, and the sum of the times it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spell {
    pub count: u64,
    pub nanos: u64,
}

impl Spell {
    /// From `from` to `to`, once.
    pub(crate) fn add(&mut self, from: Nanos, to: Nanos) {
        let nanos = u64::try_from(to.since(from).as_nanos()).unwrap_or(u64::MAX);
        self.join(Spell { count: 1, nanos });
    }

    /// Both together.
    pub(crate) fn join(&mut self, o: Spell) {
        self.count = self.count.wrapping_add(o.count);
        self.nanos = self.nanos.wrapping_add(o.nanos);
    }

    /// What came since `earlier`.
    pub fn since(&self, earlier: &Spell) -> Spell {
        Spell {
            count: self.count.saturating_sub(earlier.count),
            nanos: self.nanos.saturating_sub(earlier.nanos),
        }
    }

    /// Mean time in microseconds; `None`: it did not take place.
    pub fn mean_us(&self) -> Option<u64> {
        (self.nanos / 1000).checked_div(self.count)
    }
}

/// Writes and zeroes of clients at their primaries in this process. What is sent again while it waits is in it once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteTimes {
    /// From the arrival to the answer (with `ack = cached` and FUA: to the question for the flush).
    pub answered: Spell,
    /// From the arrival to its place in the order: what waits for room, locks or members waits here.
    pub admitted: Spell,
    /// From there until it was durable on the primary (`ack = cached`: written).
    pub own: Spell,
    /// The same until a member that counts had reported it durable: network, its host and its disk.
    pub copies: BTreeMap<SdsId, Spell>,
}
