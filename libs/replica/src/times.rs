//! Where the time of writes goes, as their primary sees it.
//!
//! Sums that only grow: whoever keeps two of them knows the time between. Nothing is decided by them. By device, as devices of
//! different kinds lie in one server, and of one pool alone can be compared.

use quarry_base::{DeviceId, Nanos};
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

/// Writes and zeroes of clients at one device as the primary's. What is sent again while it waits is in it once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedTimes {
    /// From the arrival to the answer (with `ack = cached` and FUA: to the question for the flush).
    pub answered: Spell,
    /// From the arrival to its place in the order: what waits for room, locks, pages to be read or members waits here.
    pub admitted: Spell,
    /// From there until it was durable on the device (`ack = cached`: written).
    pub own: Spell,
}

/// Writes that this process led.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteTimes {
    /// By the primary's device, one of ours.
    pub led: BTreeMap<DeviceId, LedTimes>,
    /// By a member's device: from the place in the order until it had reported a write durable: network, its host and its disk.
    pub copies: BTreeMap<DeviceId, Spell>,
}
