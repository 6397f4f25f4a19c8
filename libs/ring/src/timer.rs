//! Timers, sans-IO: who wants to be called when.
//!
//! There is no disarm: whoever is called checks whether it still matters. That keeps the heap small
//! and without a lookup table; a key armed twice fires twice.

use quarry_base::Nanos;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

struct Entry<K> {
    at: Nanos,
    /// Equal times fire in the order they were armed.
    order: u64,
    key: K,
}
impl<K> PartialEq for Entry<K> {
    fn eq(&self, o: &Self) -> bool {
        self.cmp(o) == Ordering::Equal
    }
}
impl<K> Eq for Entry<K> {}
impl<K> PartialOrd for Entry<K> {
    fn partial_cmp(&self, o: &Self) -> Option<Ordering> {
        Some(self.cmp(o))
    }
}
impl<K> Ord for Entry<K> {
    fn cmp(&self, o: &Self) -> Ordering {
        (self.at, self.order).cmp(&(o.at, o.order))
    }
}

/// Pending timers with a key each.
pub struct TimerHeap<K> {
    heap: BinaryHeap<Reverse<Entry<K>>>,
    armed: u64,
}

impl<K> TimerHeap<K> {
    /// No timers.
    pub fn new() -> TimerHeap<K> {
        TimerHeap { heap: BinaryHeap::new(), armed: 0 }
    }

    /// Fires `key` at `at` or as soon after as `pop_due` is called.
    pub fn arm(&mut self, at: Nanos, key: K) {
        self.armed += 1;
        self.heap.push(Reverse(Entry { at, order: self.armed, key }));
    }

    /// The next key whose time has come, earliest first.
    pub fn pop_due(&mut self, now: Nanos) -> Option<K> {
        if self.next_deadline()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(e)| e.key)
    }

    /// When the next timer fires; what to give `Reactor::turn`.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.heap.peek().map(|Reverse(e)| e.at)
    }

    /// Timers pending.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none is pending.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl<K> Default for TimerHeap<K> {
    fn default() -> Self {
        TimerHeap::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_of_time_then_of_arming_and_never_early() {
        let mut t = TimerHeap::new();
        for (at, key) in [(30, 'c'), (10, 'a'), (20, 'x'), (20, 'y'), (10, 'b')] {
            t.arm(Nanos(at), key);
        }
        assert_eq!(t.next_deadline(), Some(Nanos(10)));
        assert_eq!(t.pop_due(Nanos(9)), None);
        let due: Vec<char> = std::iter::from_fn(|| t.pop_due(Nanos(20))).collect();
        assert_eq!(due, ['a', 'b', 'x', 'y']);
        assert_eq!((t.next_deadline(), t.len()), (Some(Nanos(30)), 1));
        assert_eq!(t.pop_due(Nanos(31)), Some('c'));
        assert!(t.is_empty() && t.next_deadline().is_none());
    }
}
