//! What writes took in the last seconds, from the engine's growing sums.

use quarry_base::{DeviceId, Nanos};
use quarry_control::{copy_times, led_times, COPIES_LEFT_OUT, LED_TIMES};
use quarry_replica::{LedTimes, WriteTimes};
use std::collections::VecDeque;
use std::time::Duration;

/// Between two marks.
const EVERY: Duration = Duration::from_secs(1);
/// Marks kept: what is told is of so many seconds.
const MARKS: usize = 10;
/// Members' devices that are told of at most, the slowest: a heartbeat goes out ten times a second.
const SLOWEST: usize = 32;

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
        let mut out = Vec::new();
        for (device, now) in &times.led {
            let then = then.led.get(device).copied().unwrap_or_default();
            let told = led(now, &then).into_iter().flatten();
            out.extend(told.map(|(what, n)| (led_times(*device, what), n)));
        }
        let mut copies: Vec<(u64, u64, DeviceId)> = times
            .copies
            .iter()
            .filter_map(|(device, now)| {
                let s = now.since(&then.copies.get(device).copied().unwrap_or_default());
                Some((s.mean_us()?, s.count, *device))
            })
            .collect();
        copies.sort_unstable_by(|a, b| b.cmp(a));
        let left = copies.len().saturating_sub(SLOWEST) as u64;
        out.extend((left > 0).then(|| (COPIES_LEFT_OUT.to_string(), left)));
        for (mean, count, device) in copies.into_iter().take(SLOWEST) {
            out.extend(copy_times(device).into_iter().zip([mean, count]));
        }
        out
    }
}

/// `None`: nothing was answered.
fn led(now: &LedTimes, then: &LedTimes) -> Option<[(&'static str, u64); 5]> {
    let answered = now.answered.since(&then.answered);
    let own = now.own.since(&then.own);
    let admit = now.admitted.since(&then.admitted).mean_us().unwrap_or(0);
    let all = [answered.count, answered.mean_us()?, admit, own.count, own.mean_us().unwrap_or(0)];
    let mut told = LED_TIMES.map(|what| (what, 0));
    told.iter_mut().zip(all).for_each(|(t, n)| t.1 = n);
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_replica::Spell;

    fn times(writes: u64, ms: u64) -> WriteTimes {
        let spell = |ms: u64| Spell { count: writes, nanos: writes * ms * 1_000_000 };
        let copies = (1..=50).map(|n| (DeviceId(n), spell(u64::from(n)))).collect();
        let led = LedTimes { answered: spell(ms), admitted: spell(1), own: spell(2) };
        WriteTimes { led: [(DeviceId(7), led)].into(), copies }
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
        let led = LED_TIMES.map(|what| said(&all, &led_times(DeviceId(7), what)).unwrap());
        assert_eq!(led, [1000, 30_000, 1000, 1000, 2000]);
        let [mean, count] = copy_times(DeviceId(50));
        assert_eq!((said(&all, &mean), said(&all, &count)), (Some(50_000), Some(1000)));
        assert_eq!(said(&all, COPIES_LEFT_OUT), Some(18));
        assert_eq!(all.len(), LED_TIMES.len() + 1 + 2 * SLOWEST, "the slowest ones only");
        (30..45).for_each(|s| l.mark(at(s), &times(3000, 30)));
        assert!(l.counters(&times(3000, 30)).is_empty(), "that is over");
    }
}
