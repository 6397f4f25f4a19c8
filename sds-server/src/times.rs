//! How long a device's writes and syncs take, for the MDM, which compares the devices of a pool (R27).
//!
//! Time counts only while this thread runs: a process that is stopped, or gets no processor, says nothing about its disks. And
//! an operation behind many others counts as what it took of the device: a deep queue is load, not a slow disk.

use quarry_base::Nanos;
use std::collections::VecDeque;
use std::time::Duration;

/// While operations are under way the thread looks this often; a gap above twice that is not the device's.
pub const LOOK: Duration = Duration::from_millis(20);
const GAP: Duration = Duration::from_millis(40);
/// Operations that a device may well have at the same time without one waiting for another. A rotating disk, 10 ms an operation,
/// is never slow by what waits behind each other in it.
const SIDE_BY_SIDE: u64 = 4;
/// A larger operation counts as so many of this size, bytes: what it takes of the device depends on that.
const UNIT: u64 = 128 << 10;
/// Operations of this time are looked at, and the newest of them at most.
const RECENT: Duration = Duration::from_secs(4);
const MOST: usize = 256;

/// The time in which the thread ran.
#[derive(Default)]
pub struct Awake {
    looked: Nanos,
    sum: Duration,
}

impl Awake {
    /// The thread runs now.
    pub fn look(&mut self, now: Nanos) {
        self.sum += now.since(self.looked).min(GAP);
        self.looked = now;
    }

    /// When the next look is due while something is under way.
    pub fn next(&self) -> Nanos {
        self.looked + LOOK
    }

    /// So far.
    pub fn time(&self) -> Duration {
        self.sum
    }
}

/// How many operations of 128 KiB one of so many bytes counts as.
pub fn units(bytes: u64) -> u64 {
    bytes.div_ceil(UNIT).max(1)
}

/// The last operations of a device.
#[derive(Default)]
pub struct Recent {
    /// When each ended, and its time in microseconds.
    list: VecDeque<(Nanos, u64)>,
}

impl Recent {
    /// An operation ended that took `time` of the device's own, with `depth` [`units`] under way when it began, its own included.
    pub fn note(&mut self, now: Nanos, time: Duration, depth: u64) {
        if self.list.len() >= MOST {
            self.list.pop_front();
        }
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let depth = depth.max(SIDE_BY_SIDE);
        self.list.push_back((now, us.saturating_mul(SIDE_BY_SIDE) / depth));
    }

    /// Median in microseconds, and how many operations that is of; `None`: nothing was done lately.
    pub fn median(&mut self, now: Nanos) -> Option<(u64, u64)> {
        while self.list.front().is_some_and(|(at, _)| now.since(*at) > RECENT) {
            self.list.pop_front();
        }
        let mut all: Vec<u64> = self.list.iter().map(|x| x.1).collect();
        all.sort_unstable();
        Some((*all.get(all.len() / 2)?, all.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Nanos {
        Nanos(n * 1_000_000)
    }

    /// The time of an operation that took `took` ms by the clock, in a thread that looked every `every` ms.
    fn counted(took: u64, every: u64) -> u64 {
        let mut a = Awake::default();
        a.look(ms(1000));
        let before = a.time();
        for t in (0..=took).step_by(every as usize) {
            a.look(ms(1000 + t));
        }
        a.look(ms(1000 + took));
        (a.time() - before).as_millis() as u64
    }

    #[test]
    fn only_the_time_in_which_the_thread_ran_counts() {
        assert_eq!(counted(200, 20), 200);
        assert_eq!(counted(3000, 3000), 40, "it was stopped");
        assert!(counted(300, 150) <= 80, "it got no processor");
    }

    #[test]
    fn the_median_is_of_the_last_seconds() {
        let mut r = Recent::default();
        assert_eq!(r.median(ms(0)), None);
        for n in 0..10 {
            r.note(ms(1000 + n), Duration::from_millis(200), 1);
        }
        assert_eq!(r.median(ms(2000)), Some((200_000, 10)));
        for n in 0..1000 {
            r.note(ms(5000 + n), Duration::from_micros(300), 3);
        }
        assert_eq!(r.median(ms(6000)), Some((300, 256)));
        assert_eq!(r.median(ms(60_000)), None);
    }

    #[test]
    fn a_large_operation_counts_as_the_small_ones_it_could_have_been() {
        assert_eq!((units(0), units(4096), units(128 << 10), units(1 << 20)), (1, 1, 1, 8));
        // A device of 40 MB/s under 32 writes of 128 KiB, one after another; and under 4 of 1 MiB.
        let unit = Duration::from_micros(3277);
        let (mut small, mut large) = (Recent::default(), Recent::default());
        for n in 1..=32u32 {
            small.note(ms(1), unit * n, u64::from(n));
        }
        for n in 1..=4u32 {
            large.note(ms(1), unit * 8 * n, 8 * u64::from(n));
        }
        assert_eq!(small.median(ms(2)).map(|m| m.0), large.median(ms(2)).map(|m| m.0));
    }

    #[test]
    fn an_operation_behind_many_others_counts_as_its_part() {
        let mut r = Recent::default();
        r.note(ms(1), Duration::from_millis(800), 128);
        assert_eq!(r.median(ms(2)), Some((25_000, 1)));
        r.note(ms(3), Duration::from_millis(200), 1);
        assert_eq!(r.median(ms(4)), Some((200_000, 2)));
    }
}
