//! A latency histogram a shard thread can afford: log-linear buckets of atomics.
//!
//! Every power of two from 1.024 us to 68.7 s is cut into eight equal parts, so that a quantile read
//! from it is at most 12.5 % too high. Exported with one bound a power of two (27 lines), which keeps
//! a family of hundreds of volumes scrapeable.
//!
//! Invariants: bucket bounds are inclusive above (as `le` is in Prometheus); counts never go back.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Values up to 2^10 ns share the first bucket.
const FIRST: u32 = 10;
/// Values above 2^36 ns (68.7 s) share the last bucket.
const LAST: u32 = 36;
/// Each power of two is cut into 2^3 parts.
const SUB_BITS: u32 = 3;
const SUB: usize = 1 << SUB_BITS;
/// First bucket, 26 powers of two in eight parts, the overflow bucket.
const BUCKETS: usize = 2 + (LAST - FIRST) as usize * SUB;

/// A histogram of durations in nanoseconds. Recording is two relaxed atomic additions.
pub struct Histo {
    buckets: [AtomicU64; BUCKETS],
    sum_nanos: AtomicU64,
}

/// Which bucket holds `nanos`.
fn index(nanos: u64) -> usize {
    // One less, so that a value equal to a bound falls below it.
    let v = nanos.saturating_sub(1);
    if v < 1 << FIRST {
        return 0;
    }
    let power = 63 - v.leading_zeros();
    if power >= LAST {
        return BUCKETS - 1;
    }
    let part = (v >> (power - SUB_BITS)) as usize & (SUB - 1);
    1 + (power - FIRST) as usize * SUB + part
}

/// The largest value bucket `i` holds, in nanoseconds; `u64::MAX` for the overflow bucket.
fn upper(i: usize) -> u64 {
    if i == 0 {
        return 1 << FIRST;
    }
    if i >= BUCKETS - 1 {
        return u64::MAX;
    }
    let power = FIRST as usize + (i - 1) / SUB;
    let part = (i - 1) % SUB + 1;
    (1 << power) + ((part as u64) << (power - SUB_BITS as usize))
}

impl Default for Histo {
    fn default() -> Self {
        Histo::new()
    }
}

impl Histo {
    /// An empty histogram.
    pub fn new() -> Histo {
        Histo { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_nanos: AtomicU64::new(0) }
    }

    /// Counts one duration of `nanos` nanoseconds.
    #[inline]
    pub fn record(&self, nanos: u64) {
        self.buckets[index(nanos)].fetch_add(1, Relaxed);
        self.sum_nanos.fetch_add(nanos, Relaxed);
    }

    /// A copy to compute with. Taken while others record, it is off by what happens meanwhile.
    pub fn snapshot(&self) -> HistoSnapshot {
        HistoSnapshot {
            buckets: self.buckets.iter().map(|b| b.load(Relaxed)).collect(),
            sum_nanos: self.sum_nanos.load(Relaxed),
        }
    }
}

impl std::fmt::Debug for Histo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Histo({} recorded)", self.snapshot().count())
    }
}

/// What a [`Histo`] held at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoSnapshot {
    buckets: Vec<u64>,
    sum_nanos: u64,
}

impl HistoSnapshot {
    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
    /// Sum of all, in nanoseconds.
    pub fn sum_nanos(&self) -> u64 {
        self.sum_nanos
    }
    /// What was recorded after `earlier` was taken of the same histogram.
    pub fn since(&self, earlier: &HistoSnapshot) -> HistoSnapshot {
        let buckets = self.buckets.iter().zip(&earlier.buckets);
        HistoSnapshot {
            buckets: buckets.map(|(now, then)| now.saturating_sub(*then)).collect(),
            sum_nanos: self.sum_nanos.wrapping_sub(earlier.sum_nanos),
        }
    }
    /// An upper bound of the `q` quantile (0 to 1), in nanoseconds; 0 when nothing was recorded. At
    /// most 12.5 % above the true value between 1 us and 68 s.
    pub fn quantile_nanos(&self, q: f64) -> u64 {
        let count = self.count();
        let rank = ((count as f64) * q.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (i, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return upper(i.min(BUCKETS - 2));
            }
        }
        0
    }
    /// The buckets to export: upper bound in seconds and the count in that bucket alone.
    pub fn exported(&self) -> Vec<(f64, u64)> {
        let mut out = Vec::with_capacity((LAST - FIRST) as usize + 2);
        let get = |i: usize| self.buckets.get(i).copied().unwrap_or(0);
        out.push((upper(0) as f64 / 1e9, get(0)));
        for power in 0..(LAST - FIRST) as usize {
            let first = 1 + power * SUB;
            let sum = (first..first + SUB).map(get).sum();
            out.push((upper(first + SUB - 1) as f64 / 1e9, sum));
        }
        out.push((f64::INFINITY, get(BUCKETS - 1)));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_the_bucket_whose_bounds_enclose_it() {
        let mut values = vec![0, 1, 1023, 1024, 1025, 1 << 36, (1 << 36) + 1, u64::MAX];
        for p in 10..36 {
            for part in 0..=8u64 {
                let v = (1u64 << p) + (part << (p - 3));
                values.extend([v - 1, v, v + 1]);
            }
        }
        for v in values {
            let i = index(v);
            assert!(v <= upper(i), "{v} above bucket {i}");
            assert!(i == 0 || v > upper(i - 1), "{v} below bucket {i}");
        }
    }

    #[test]
    fn a_quantile_is_at_most_an_eighth_too_high() {
        let h = Histo::new();
        for n in 1..=100_000u64 {
            h.record(n * 1_000);
        }
        let s = h.snapshot();
        for (q, want) in [(0.5, 50_000_000u64), (0.99, 99_000_000), (1.0, 100_000_000)] {
            let got = s.quantile_nanos(q);
            assert!(got >= want && got as f64 <= want as f64 * 1.125, "{q}: {got} for {want}");
        }
        assert_eq!(s.count(), 100_000);
        assert_eq!(s.sum_nanos(), 1_000 * 100_000 * 100_001 / 2);
    }

    #[test]
    fn an_empty_histogram_has_quantile_zero() {
        assert_eq!(Histo::new().snapshot().quantile_nanos(0.99), 0);
    }

    #[test]
    fn exported_buckets_hold_every_value_once() {
        let h = Histo::new();
        for n in [5, 2_000, 2_048, 2_049, 70_000_000_000, 3_000_000_000] {
            h.record(n);
        }
        let e = h.snapshot().exported();
        assert_eq!(e.len(), 28);
        assert_eq!(e.iter().map(|b| b.1).sum::<u64>(), 6);
        assert!(e.windows(2).all(|w| w[0].0 < w[1].0));
        let two_us = e.iter().find(|b| (b.0 - 2.048e-6).abs() < 1e-12).unwrap();
        assert_eq!(two_us.1, 2, "bounds are inclusive");
    }

    #[test]
    fn the_difference_of_snapshots_is_what_came_between() {
        let h = Histo::new();
        h.record(10_000);
        let a = h.snapshot();
        h.record(1_000_000);
        h.record(1_000_000);
        let d = h.snapshot().since(&a);
        assert_eq!((d.count(), d.sum_nanos()), (2, 2_000_000));
        assert!(d.quantile_nanos(0.5) >= 1_000_000);
    }
}
