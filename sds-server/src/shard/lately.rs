//! What writes took in the last seconds, from the engine's growing sums.

use quarry_base::{Nanos, SdsId};
use quarry_control::{copy_times, WRITE_TIMES};
use quarry_replica::{Spell, WriteTimes};
use std::collections::VecDeque;
use std::time::Duration;

/// Between two marks.
const EVERY: Duration = Duration::from_secs(1);
/// Marks kept: what is told is of so many seconds.
const MARKS: usize = 10;
/// Servers whose copies are told of, the slowest.
const SLOWEST: usize = 8;

/// The sums as they stood in each of the last seconds.
#[derive(Default)]
pub(super) struct Lately {
    marks: VecDeque<(Nanos, WriteTimes)>,
}

impl Lately {
    /// To be called often.
    pub(super) fn mark(&mut self, now: Nanos, times: &WriteTimes) {
        if self.marks.back().is_some_and(|(at, _)| now.since(*at) < EVERY) {
            return;
        }
        if self.marks.len() == MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back((now, times.clone()));
    }

    /// What is told to the MDM; nothing where nothing was written.
    pub(super) fn counters(&self, times: &WriteTimes) -> Vec<(String, u64)> {
        let none = WriteTimes::default();
        let then = self.marks.front().map_or(&none, |(_, t)| t);
        let answered = times.answered.since(&then.answered);
        let Some(mean) = answered.mean_us() else { return Vec::new() };
        let part = |now: &Spell, then: &Spell| now.since(then).mean_us().unwrap_or(0);
        let (admit, own) = (part(&times.admitted, &then.admitted), part(&times.own, &then.own));
        let all = [answered.count, mean, admit, own];
        let mut out: Vec<(String, u64)> =
            WRITE_TIMES.iter().map(|n| (*n).to_string()).zip(all).collect();
        let mut copies: Vec<(u64, u64, SdsId)> = times
            .copies
            .iter()
            .filter_map(|(sds, now)| {
                let s = now.since(&then.copies.get(sds).copied().unwrap_or_default());
                Some((s.mean_us()?, s.count, *sds))
            })
            .collect();
        copies.sort_unstable_by(|a, b| b.cmp(a));
        for (mean, count, sds) in copies.into_iter().take(SLOWEST) {
            out.extend(copy_times(sds).into_iter().zip([mean, count]));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(writes: u64, ms: u64) -> WriteTimes {
        let spell = |ms: u64| Spell { count: writes, nanos: writes * ms * 1_000_000 };
        let copies = (1..=20).map(|n| (SdsId(n), spell(u64::from(n)))).collect();
        WriteTimes { answered: spell(ms), admitted: spell(1), own: spell(2), copies }
    }

    fn said(all: &[(String, u64)], name: &str) -> Option<u64> {
        all.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }

    #[test]
    fn what_is_told_is_of_the_last_ten_seconds() {
        let mut l = Lately::default();
        assert!(l.counters(&WriteTimes::default()).is_empty(), "nothing was written");
        let at = |s: u64| Nanos::ZERO + Duration::from_secs(s);
        (0..30).for_each(|s| l.mark(at(s), &times(100 * s, 30)));
        // The mark of second 20 is the oldest: a thousand writes since.
        let all = l.counters(&times(3000, 30));
        assert_eq!(said(&all, WRITE_TIMES[0]), Some(1000));
        assert_eq!(said(&all, WRITE_TIMES[1]), Some(30_000));
        assert_eq!(
            (said(&all, WRITE_TIMES[2]), said(&all, WRITE_TIMES[3])),
            (Some(1000), Some(2000))
        );
        let [mean, count] = copy_times(SdsId(20));
        assert_eq!((said(&all, &mean), said(&all, &count)), (Some(20_000), Some(1000)));
        assert_eq!(all.len(), WRITE_TIMES.len() + 2 * SLOWEST, "the slowest ones only");
        (30..45).for_each(|s| l.mark(at(s), &times(3000, 30)));
        assert!(l.counters(&times(3000, 30)).is_empty(), "that is over");
    }
}
