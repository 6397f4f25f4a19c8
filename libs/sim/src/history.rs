//! What clients did and saw, and whether one order explains it: per 512-byte sector, each a register.
//!
//! Every write writes a number of its own, so the check is exact for those (zones after Gibbons and Korach):
//! each value's operations span a zone; two zones that must follow each other may not overlap. Zeroes
//! are not unique; reads of zero, and reads that a zero should have hidden, are checked pair by pair.

use crate::falls::Falls;
use std::collections::{BTreeMap, HashMap};

/// Forever: the answer never came.
pub const NEVER: u64 = u64::MAX;

/// A finished or unfinished operation on one sector.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub begin: u64,
    pub end: u64,
    /// It took effect before this time, or never does.
    pub by: u64,
    /// It was answered as durable by itself (FUA).
    pub solid: bool,
}

impl Op {
    /// Latest time at which it took effect, if it did.
    pub fn latest(&self) -> u64 {
        self.end.min(self.by)
    }
}

#[derive(Default)]
pub(crate) struct Register {
    /// value -> its write
    pub(crate) writes: HashMap<u64, Op>,
    pub(crate) zeroes: Vec<Op>,
    pub(crate) reads: Vec<(u64, Op)>,
    /// It began with one of its writes, not with zeroes.
    pub(crate) restored: bool,
}

/// Everything that happened.
#[derive(Default)]
pub struct History {
    sectors: BTreeMap<u64, Register>,
    /// `ack = cached`: what may fall back, when, and what was flushed.
    pub falls: Falls,
}

impl History {
    /// A write of `value` (0: zeroes) to a sector; `end` is [`NEVER`] if its outcome is not known.
    pub fn write(&mut self, sector: u64, value: u64, begin: u64, end: u64) {
        let r = self.sectors.entry(sector).or_default();
        let op = Op { begin, end, by: NEVER, solid: false };
        if value == 0 {
            r.zeroes.push(op);
        } else {
            r.writes.insert(value, op);
        }
    }

    /// The write of `value` was answered as durable.
    pub fn make_solid(&mut self, sector: u64, value: u64) {
        let w = self.sectors.get_mut(&sector).and_then(|r| r.writes.get_mut(&value));
        if let Some(w) = w {
            w.solid = true;
        }
    }

    /// The write of `value` (0: zeroes) that began and was answered at these times is there for good: a flush of its
    /// client covers it.
    pub fn settle(&mut self, sector: u64, value: u64, (begin, end): (u64, u64)) {
        let Some(r) = self.sectors.get_mut(&sector) else { return };
        let w = match value {
            0 => r.zeroes.iter_mut().find(|z| z.begin == begin && (z.end == end || z.end == NEVER)),
            _ => r.writes.get_mut(&value),
        };
        if let Some(w) = w {
            (w.end, w.solid) = (w.end.min(end), true);
        }
    }

    /// A write without an answer was shut out at `by`: from then on it may not take effect any more.
    pub fn shut_out(&mut self, sector: u64, value: u64, by: u64) {
        let w = self.sectors.get_mut(&sector).and_then(|r| r.writes.get_mut(&value));
        if let Some(w) = w.filter(|w| w.end == NEVER) {
            w.by = w.by.min(by);
        }
    }

    /// A read that returned `value`.
    pub fn read(&mut self, sector: u64, value: u64, begin: u64, end: u64) {
        self.sectors
            .entry(sector)
            .or_default()
            .reads
            .push((value, Op { begin, end, by: NEVER, solid: false }));
    }

    /// Reads recorded.
    pub fn reads(&self) -> usize {
        self.sectors.values().map(|r| r.reads.len()).sum()
    }

    /// Is there one order that explains it all? The error names the sector and what contradicts.
    pub fn check(&self) -> Result<(), String> {
        for (s, r) in &self.sectors {
            let name = |e| format!("sector {s} (page {}): {e}", s / 8);
            match self.falls.of(*s) {
                None => r.check().map_err(name)?,
                Some(f) => f.check(r).map_err(name)?,
            }
        }
        Ok(())
    }
}

/// Earliest end and latest begin of a value's operations.
struct Zone {
    value: u64,
    first_end: u64,
    last_begin: u64,
}

impl Register {
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut zones: BTreeMap<u64, Zone> = BTreeMap::new();
        for (value, r) in &self.reads {
            if *value == 0 {
                self.check_zero(r)?;
                continue;
            }
            let Some(w) = self.writes.get(value) else {
                return Err(format!("read {value:#x} which nobody wrote here"));
            };
            if r.end < w.begin {
                return Err(format!("read {value:#x} before it was written"));
            }
            if let Some(z) = self.zeroes.iter().find(|z| w.latest() < z.begin && z.end < r.begin) {
                return Err(format!(
                    "read {value:#x} at {}..{} after zeroes at {}..{}",
                    r.begin, r.end, z.begin, z.end
                ));
            }
            let z = zones.entry(*value).or_insert(Zone {
                value: *value,
                first_end: w.latest(),
                last_begin: w.begin,
            });
            z.first_end = z.first_end.min(r.end);
            z.last_begin = z.last_begin.max(r.begin);
        }
        for (value, w) in &self.writes {
            // Never answered and never seen: perhaps it never happened.
            if w.end != NEVER {
                zones.entry(*value).or_insert(Zone {
                    value: *value,
                    first_end: w.end,
                    last_begin: w.begin,
                });
            }
        }
        check_zones(zones.into_values().collect())
    }

    fn check_zero(&self, r: &Op) -> Result<(), String> {
        let initial = Op { begin: 0, end: 0, by: 0, solid: true };
        let before: Vec<(&u64, &Op)> =
            self.writes.iter().filter(|(_, w)| w.end < r.begin).collect();
        let hidden = |z: &Op| before.iter().find(|(_, w)| z.end < w.begin);
        let first = std::iter::once(&initial).filter(|_| !self.restored);
        let mut zeroes = first.chain(&self.zeroes).filter(|z| z.begin <= r.end);
        if zeroes.any(|z| hidden(z).is_none()) {
            return Ok(());
        }
        let w = hidden(&initial).map_or(0, |(v, _)| **v);
        Err(format!("read zeroes at {}..{} although {w:#x} was written before", r.begin, r.end))
    }
}

fn check_zones(zones: Vec<Zone>) -> Result<(), String> {
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) =
        zones.into_iter().partition(|z| z.first_end < z.last_begin);
    forward.sort_by_key(|z| (z.first_end, z.value));
    for w in forward.windows(2) {
        if let [a, b] = w {
            if b.first_end < a.last_begin {
                return Err(format!(
                    "{:#x} (seen until {}) and {:#x} (from {}) replace each other",
                    a.value, a.last_begin, b.value, b.first_end
                ));
            }
        }
    }
    for b in &backward {
        let at = forward.partition_point(|f| f.first_end < b.last_begin);
        if let Some(f) = at.checked_sub(1).and_then(|i| forward.get(i)) {
            if b.first_end < f.last_begin {
                return Err(format!(
                    "{:#x} ({}..{}) lies inside the life of {:#x} ({}..{})",
                    b.value, b.last_begin, b.first_end, f.value, f.first_end, f.last_begin
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(f: impl Fn(&mut History)) -> Result<(), String> {
        let mut h = History::default();
        f(&mut h);
        h.check()
    }

    #[test]
    fn histories_that_one_order_explains_are_accepted() {
        assert_eq!(run(|_| {}), Ok(()));
        // Concurrent writes may be seen in either order.
        assert_eq!(
            run(|h| {
                h.write(0, 1, 10, 20);
                h.write(0, 2, 12, 18);
                h.read(0, 1, 30, 31);
            }),
            Ok(())
        );
        // A write without an answer may show up late, or never.
        assert_eq!(
            run(|h| {
                h.write(0, 1, 10, 20);
                h.write(0, 2, 15, NEVER);
                h.read(0, 1, 30, 31);
                h.read(0, 2, 40, 41);
            }),
            Ok(())
        );
        assert_eq!(
            run(|h| {
                h.write(0, 1, 10, 20);
                h.write(0, 0, 30, 40);
                h.read(0, 1, 35, 36);
                h.read(0, 0, 37, 50);
            }),
            Ok(())
        );
    }

    #[test]
    fn a_lost_write_is_noticed() {
        assert!(run(|h| {
            h.write(0, 1, 10, 20);
            h.read(0, 0, 30, 31);
        })
        .is_err());
        assert!(run(|h| {
            h.write(0, 1, 10, 20);
            h.write(0, 2, 30, 40);
            h.read(0, 1, 50, 51);
        })
        .is_err());
    }

    #[test]
    fn a_value_that_comes_back_is_noticed() {
        assert!(run(|h| {
            h.write(0, 1, 10, 20);
            h.write(0, 2, 10, 60);
            h.read(0, 2, 30, 31);
            h.read(0, 1, 40, 41);
            h.read(0, 2, 50, 51);
        })
        .is_err());
        assert!(run(|h| {
            h.write(0, 1, 10, 20);
            h.write(0, 2, 12, NEVER);
            h.read(0, 2, 30, 31);
            h.read(0, 1, 40, 41);
        })
        .is_err());
        assert!(run(|h| {
            h.write(0, 1, 10, 20);
            h.write(0, 0, 30, 40);
            h.read(0, 1, 50, 51);
        })
        .is_err());
    }

    #[test]
    fn a_write_that_was_shut_out_may_have_happened_before_only() {
        let late = |by| {
            run(|h| {
                h.write(0, 1, 10, NEVER);
                h.write(0, 2, 30, 40);
                h.read(0, 1, 50, 51);
                h.shut_out(0, 1, by);
            })
        };
        assert_eq!(late(NEVER), Ok(()));
        assert_eq!(late(35), Ok(()), "the second write was still under way");
        assert!(late(25).is_err());
    }

    #[test]
    fn content_from_nowhere_is_noticed() {
        assert!(run(|h| h.read(0, 7, 1, 2)).is_err());
        assert!(run(|h| {
            h.write(0, 7, 10, 20);
            h.read(0, 7, 1, 2);
        })
        .is_err());
    }
}
