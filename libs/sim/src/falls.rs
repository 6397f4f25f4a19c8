//! What may fall back, and how far; otherwise the rules are those of every register. `ack = cached`: after the power
//! loss of all copies of a group at once its blocks, never behind their last flush. R26: a group whose good copies the
//! operator gave up, never behind what the copy that counts was known to have.
//!
//! A *cut* is a moment at which nobody served the group, after the last of its hosts had lost power or when the operator's
//! decision was complete. It divides the history of each sector into lives, and each life is checked for itself. A life begins with one content out of those
//! that the sector had before and that no write that is kept has replaced; an operation under way at the cut may have taken
//! effect on either side of it.

use crate::history::{Op, Register, NEVER};
use quarry_base::{PgId, VtreeId};
use std::collections::{BTreeMap, HashMap};

/// Cuts and flushes of every group, and where sectors are.
#[derive(Default)]
pub struct Falls {
    groups: BTreeMap<PgId, Group>,
    /// Extent (sectors of it) -> its group.
    places: HashMap<u64, PgId>,
    /// Flushes of a whole volume.
    volumes: BTreeMap<VtreeId, Vec<(u64, u64)>>,
}

/// Sectors of an extent.
const SECTORS: u64 = quarry_base::EXTENT as u64 / crate::load::SECTOR as u64;

#[derive(Clone, Copy)]
struct Cut {
    at: u64,
    /// The operator gave the good copies up: what was answered until then is kept. `None`: power, what was flushed is.
    since: Option<u64>,
}

#[derive(Default)]
struct Group {
    cuts: Vec<Cut>,
    /// Begin and end of each flush that was answered.
    flushes: Vec<(u64, u64)>,
}

impl Falls {
    pub fn place(&mut self, sector: u64, pg: PgId) {
        self.places.insert(sector / SECTORS, pg);
    }
    pub fn flush(&mut self, pg: PgId, begin: u64, end: u64) {
        self.groups.entry(pg).or_default().flushes.push((begin, end));
    }
    /// Everything that was answered to this volume before `begin` is there for good.
    pub fn flush_volume(&mut self, vtree: VtreeId, begin: u64, end: u64) {
        self.volumes.entry(vtree).or_default().push((begin, end));
    }
    /// All copies have lost what was in their caches; nobody serves now.
    pub fn cut(&mut self, pg: PgId, at: u64) {
        self.groups.entry(pg).or_default().cuts.push(Cut { at, since: None });
    }
    /// The operator's decision is complete: the copy that counts had everything that was answered until `since`.
    pub fn give_up(&mut self, pg: PgId, at: u64, since: u64) {
        self.groups.entry(pg).or_default().cuts.push(Cut { at, since: Some(since) });
    }
    /// Did the group fall back within this time?
    pub fn fell(&self, pg: PgId, from: u64, to: u64) -> bool {
        self.groups.get(&pg).is_some_and(|g| g.cuts.iter().any(|c| from < c.at && c.at < to))
    }
    /// What is known of a sector whose group fell back.
    pub(crate) fn of(&self, sector: u64) -> Option<Past<'_>> {
        let g = self.groups.get(self.places.get(&(sector / SECTORS))?)?;
        let volume = self.volumes.get(&VtreeId(sector >> 40)).map_or(&[][..], |v| v);
        let past = Past { cuts: &g.cuts, flushes: [&g.flushes, volume] };
        (!g.cuts.is_empty()).then_some(past)
    }
}

/// The cuts of a sector's group, and the flushes that concern the sector.
pub(crate) struct Past<'a> {
    cuts: &'a [Cut],
    flushes: [&'a [(u64, u64)]; 2],
}

impl Past<'_> {
    pub(crate) fn check(&self, r: &Register) -> Result<(), String> {
        let mut from = 0;
        for to in self.cuts.iter().map(|c| c.at).chain([NEVER]) {
            self.life(r, from, to)
                .check()
                .map_err(|e| format!("{e} (life {from}..{to} of {} cuts)", self.cuts.len()))?;
            from = to;
        }
        Ok(())
    }

    /// What of the register's history belongs to the life between two cuts.
    fn life(&self, r: &Register, from: u64, to: u64) -> Register {
        let mut life = Register { restored: from > 0, ..Register::default() };
        for (value, w) in &r.writes {
            if let Some(op) = self.in_life(r, w, from, to) {
                // Of an earlier life: it need not have come back.
                let end = if w.latest() < from { NEVER } else { op.end };
                life.writes.insert(*value, Op { end, ..op });
            }
        }
        life.zeroes.extend(r.zeroes.iter().filter_map(|z| self.in_life(r, z, from, to)));
        let never_written = Op { begin: 0, end: 0, by: 0, solid: true };
        if from > 0 {
            life.zeroes.extend(self.in_life(r, &never_written, from, to));
        }
        // A read under way at a cut may have been served on either side.
        life.reads.extend(r.reads.iter().filter(|(_, o)| o.begin >= from && o.end < to));
        life
    }

    /// A write as this life sees it; `None` if it cannot have its content.
    fn in_life(&self, r: &Register, w: &Op, from: u64, to: u64) -> Option<Op> {
        if w.begin >= to {
            return None;
        }
        let end = if w.end >= to { NEVER } else { w.end };
        if w.latest() < from {
            // From an earlier life: what this one began with, perhaps.
            let restored = Op { begin: from, end: from, by: from, solid: false };
            return self.may_return(r, w, from).then_some(restored);
        }
        Some(Op { begin: w.begin.max(from), end, ..*w })
    }

    /// May the sector have the content of `w` when a life begins at `from`? Not if a later write was flushed.
    fn may_return(&self, r: &Register, w: &Op, from: u64) -> bool {
        let replaces = |x: &&Op| x.begin > w.latest() && x.end < from && self.is_kept(x, from);
        !r.writes.values().chain(&r.zeroes).any(|x| replaces(&x))
    }

    /// It was answered, and every cut since then, the one at `until` included, left it where it was.
    fn is_kept(&self, x: &Op, until: u64) -> bool {
        let mut met = self.cuts.iter().filter(|c| c.at > x.end && c.at <= until);
        x.end != NEVER
            && met.all(|c| match c.since {
                Some(since) => x.end <= since,
                None => {
                    x.solid
                        || self.flushes.iter().copied().flatten().any(|f| f.0 > x.end && f.1 < c.at)
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;
    use quarry_base::PoolId;

    fn run(f: impl Fn(&mut History)) -> Result<(), String> {
        let mut h = History::default();
        let pg = PgId::new(PoolId(1), 0);
        h.falls.place(0, pg);
        h.falls.cut(pg, 100);
        f(&mut h);
        h.check()
    }
    fn flush(h: &mut History, begin: u64, end: u64) {
        h.falls.flush(PgId::new(PoolId(1), 0), begin, end);
    }
    fn two_writes(h: &mut History) {
        h.write(0, 1, 10, 20);
        h.write(0, 2, 30, 40);
    }

    #[test]
    fn an_unflushed_write_may_fall_back_to_any_earlier_one_or_to_nothing() {
        for seen in [0, 1, 2] {
            assert_eq!(
                run(|h| {
                    two_writes(h);
                    h.read(0, 2, 50, 60);
                    h.read(0, seen, 110, 120);
                }),
                Ok(())
            );
        }
    }

    #[test]
    fn a_flushed_write_never_falls_back() {
        for (seen, good) in [(0, false), (1, true), (2, true)] {
            let got = run(|h| {
                two_writes(h);
                flush(h, 21, 29);
                h.read(0, seen, 110, 120);
            });
            assert_eq!(got.is_ok(), good, "read {seen}: {got:?}");
        }
        let fua = run(|h| {
            two_writes(h);
            h.make_solid(0, 2);
            h.read(0, 1, 110, 120);
        });
        assert!(fua.is_err());
    }

    #[test]
    fn a_flush_that_is_answered_after_the_loss_promises_nothing() {
        assert_eq!(
            run(|h| {
                two_writes(h);
                flush(h, 50, 105);
                h.read(0, 1, 110, 120);
            }),
            Ok(())
        );
    }

    #[test]
    fn what_a_flush_of_its_client_covers_never_falls_back_whenever_the_flush_was() {
        for (value, seen, good) in [(2, 2, true), (2, 1, false), (0, 0, true), (0, 1, false)] {
            let got = run(|h| {
                h.write(0, 1, 10, 20);
                h.write(0, value, 30, NEVER);
                h.settle(0, value, (30, 40));
                h.read(0, seen, 110, 120);
            });
            assert_eq!(got.is_ok(), good, "{value}, read {seen}: {got:?}");
        }
    }

    #[test]
    fn one_content_comes_back_and_stays() {
        assert!(run(|h| {
            two_writes(h);
            h.read(0, 1, 110, 120);
            h.read(0, 2, 130, 140);
        })
        .is_err());
        assert!(run(|h| {
            two_writes(h);
            h.write(0, 3, 110, 120);
            h.read(0, 2, 130, 140);
        })
        .is_err());
    }

    #[test]
    fn within_a_life_nothing_is_forgiven() {
        assert!(run(|h| {
            two_writes(h);
            h.read(0, 1, 50, 60);
        })
        .is_err());
        assert!(run(|h| {
            h.write(0, 1, 110, 120);
            h.write(0, 2, 130, 140);
            h.read(0, 1, 150, 160);
        })
        .is_err());
    }

    #[test]
    fn a_write_under_way_at_the_loss_may_be_on_either_side() {
        for seen in [1, 2] {
            assert_eq!(
                run(|h| {
                    h.write(0, 1, 10, 20);
                    h.write(0, 2, 90, 110);
                    h.read(0, seen, 105, 108);
                }),
                Ok(()),
                "read {seen}"
            );
        }
    }

    #[test]
    fn what_the_operator_gave_up_may_go_back_once_and_not_too_far() {
        // 1 was there for good at 25, 2 only on the copy that was given up at 50.
        let after = |reads: &[(u64, u64)], ours: bool| {
            let mut h = History::default();
            let pg = PgId::new(PoolId(1), 0);
            h.falls.place(0, pg);
            h.write(0, 1, 10, 20);
            h.write(0, 2, 30, 40);
            h.read(0, 2, 41, 42);
            h.falls.give_up(PgId::new(PoolId(1), u32::from(!ours)), 50, 25);
            reads.iter().for_each(|(v, at)| h.read(0, *v, *at, at + 1));
            h.check()
        };
        assert_eq!(after(&[(1, 60), (1, 70)], true), Ok(()));
        assert_eq!(after(&[(2, 60)], true), Ok(()), "nothing has to be lost");
        assert!(after(&[(1, 60)], false).is_err(), "another group may not go back");
        assert!(after(&[(1, 60), (2, 70)], true).is_err(), "one content, not two");
        assert!(after(&[(2, 60), (1, 70)], true).is_err());
        assert!(after(&[(0, 60)], true).is_err(), "further back than the copy that counts");
    }

    #[test]
    fn what_is_written_after_the_operators_decision_is_kept_as_ever() {
        let later = |v, again| {
            let mut h = History::default();
            let pg = PgId::new(PoolId(1), 0);
            h.falls.place(0, pg);
            h.write(0, 1, 10, 20);
            h.falls.give_up(pg, 50, 5);
            h.write(0, 3, 60, 70);
            if again {
                h.falls.give_up(pg, 75, 72);
            }
            h.read(0, v, 80, 81);
            h.check()
        };
        for again in [false, true] {
            assert_eq!(later(3, again), Ok(()));
            assert!(later(1, again).is_err() && later(0, again).is_err());
        }
    }
}
