//! Rows of one object in three resolutions: every second for six minutes, every ten for an hour, every minute for
//! half a day. What does not change takes no room: a row covers the whole time for which its values held.

use std::collections::VecDeque;

/// (seconds between rows, rows kept) of each tier, finest first.
pub const TIERS: [(u64, usize); 3] = [(1, 360), (10, 360), (60, 720)];
/// A row this much older than wanted still stands for it: the recorder came late.
const LATE: u64 = 3;

#[derive(Clone, Debug)]
struct Row {
    first: u64,
    last: u64,
    values: Box<[f64]>,
}

#[derive(Clone, Debug)]
struct Tier {
    every: u64,
    keep: usize,
    rows: VecDeque<Row>,
}

impl Tier {
    fn push(&mut self, at: u64, values: &[f64]) {
        if let Some(r) = self.rows.back_mut() {
            // The clock went back, or this cell has its row.
            if at / self.every <= r.last / self.every {
                return;
            }
            if *r.values == *values && at - r.last <= self.every + LATE {
                r.last = at;
                return;
            }
        }
        self.rows.push_back(Row { first: at, last: at, values: values.into() });
        let horizon = at.saturating_sub(self.every * self.keep as u64);
        while self.rows.len() > self.keep || self.rows.front().is_some_and(|r| r.last < horizon) {
            self.rows.pop_front();
        }
    }

    /// The first row at or after `at`, not later than `slack`, and the time it speaks of.
    fn from(&self, at: u64, slack: u64) -> Option<(u64, &[f64])> {
        let r = self.rows.get(self.rows.partition_point(|r| r.last < at))?;
        let time = r.first.max(at);
        (time - at <= slack).then_some((time, &*r.values))
    }

    /// The newest row at or before `at`, not older than `slack`, and the time it speaks of.
    fn at(&self, at: u64, slack: u64) -> Option<(u64, &[f64])> {
        let after = self.rows.partition_point(|r| r.first <= at);
        let r = self.rows.get(after.checked_sub(1)?)?;
        let time = r.last.min(at);
        (at - time <= slack).then_some((time, &*r.values))
    }
}

impl Tier {
    /// Each row as `[first, length, values...]`, less the row before it. All values are whole numbers below 2^53.
    fn save(&self) -> Vec<Vec<i64>> {
        let mut before: Vec<i64> = Vec::new();
        let mut out = Vec::with_capacity(self.rows.len());
        for r in &self.rows {
            let values = r.values.iter().map(|v| *v as i64);
            let row: Vec<i64> =
                [r.first as i64, (r.last - r.first) as i64].into_iter().chain(values).collect();
            let less = |(i, v): (usize, &i64)| v.wrapping_sub(before.get(i).copied().unwrap_or(0));
            out.push(row.iter().enumerate().map(less).collect());
            before = row;
        }
        out
    }

    fn restore(&mut self, rows: &[Vec<i64>], columns: usize, now: u64) -> Option<()> {
        let mut before = vec![0i64; columns + 2];
        for r in rows.iter().take(self.keep) {
            if r.len() != before.len() {
                return None;
            }
            before.iter_mut().zip(r).for_each(|(b, d)| *b = b.wrapping_add(*d));
            let (first, length) =
                (u64::try_from(*before.first()?).ok()?, u64::try_from(*before.get(1)?).ok()?);
            let last = first.checked_add(length)?;
            if self.rows.back().is_some_and(|b| b.last >= first) {
                return None;
            }
            if last > now {
                break;
            }
            let values = before.iter().skip(2).map(|v| *v as f64).collect();
            self.rows.push_back(Row { first, last, values });
        }
        Some(())
    }
}

/// All tiers of one object.
#[derive(Clone, Debug)]
pub struct Ring {
    tiers: Vec<Tier>,
}

impl Default for Ring {
    fn default() -> Ring {
        let tier = |(every, keep)| Tier { every, keep, rows: VecDeque::new() };
        Ring { tiers: TIERS.into_iter().map(tier).collect() }
    }
}

impl Ring {
    /// Notes the values at `at` (Unix seconds). A time not after the last one is left out.
    pub fn push(&mut self, at: u64, values: &[f64]) {
        for t in &mut self.tiers {
            t.push(at, values);
        }
    }

    /// Values at `at` in a tier, with the time they were taken at.
    pub fn at(&self, tier: usize, at: u64) -> Option<(u64, &[f64])> {
        let t = self.tiers.get(tier)?;
        t.at(at, t.every - 1 + LATE)
    }

    /// The same, for the end of a step: if a row was taken late, the one after `at` stands for it, so that what happened meanwhile is
    /// spread over the steps that it may belong to and their sum stays right.
    pub fn end(&self, tier: usize, at: u64) -> Option<(u64, &[f64])> {
        self.tiers.get(tier)?.from(at, LATE)
    }

    /// The newest values.
    pub fn newest(&self) -> Option<&[f64]> {
        Some(&*self.tiers.first()?.rows.back()?.values)
    }

    /// Its rows as [`super::saved`] writes them.
    pub fn save(&self) -> Vec<Vec<Vec<i64>>> {
        self.tiers.iter().map(|t| t.save()).collect()
    }

    /// From [`Ring::save`], without rows after `now`. `None`: these are no rows of `columns` values.
    pub fn restore(tiers: &[Vec<Vec<i64>>], columns: usize, now: u64) -> Option<Ring> {
        let mut ring = Ring::default();
        if tiers.len() != ring.tiers.len() {
            return None;
        }
        for (t, rows) in ring.tiers.iter_mut().zip(tiers) {
            t.restore(rows, columns, now)?;
        }
        Some(ring)
    }

    /// Rows held, of all tiers.
    pub fn rows(&self) -> usize {
        self.tiers.iter().map(|t| t.rows.len()).sum()
    }
}

/// The finest tier that reaches `seconds` back, the coarsest if none does.
pub fn tier_for(seconds: u64) -> usize {
    let reaches = |(every, keep): &(u64, usize)| every * (*keep as u64) >= seconds;
    TIERS.iter().position(reaches).unwrap_or(TIERS.len() - 1)
}
