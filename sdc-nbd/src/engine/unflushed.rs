//! `ack = cached` (R29): what the next FLUSH of a volume has to cover, and whether it may answer well.
//!
//! A write that was answered in epoch W is gone, perhaps, if the group fell back in an epoch F above W, and a flush that was
//! answered in F or later did not save it. Such a flush fails, once, as on a disk whose cache was lost: whoever believes a
//! flush never believes in a write that is not there.

use super::types::{Action, IoError, Note};
use super::volume::{Part, PartKind, Request, Volume};
use super::Engine;
use quarry_base::{Epoch, PgId};
use quarry_wire::{flags, PgConfig};

/// Epochs kept apart; of more the two oldest are taken for one.
const EPOCHS: usize = 16;

/// What a group of a volume holds that no flush has covered.
#[derive(Default)]
pub(super) struct Unflushed {
    /// Number of the newest write; 0: an earlier start of this client, or another client, may have written.
    pub newest: u64,
    /// Answers to this process, by rising epochs.
    answered: Vec<Answers>,
}

/// Writes that were answered in one epoch: number of the oldest and of the newest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Answers {
    epoch: Epoch,
    first: u64,
    last: u64,
}

impl Unflushed {
    /// A write was answered. `durable`: for good (FUA).
    fn wrote(&mut self, number: u64, epoch: Epoch, durable: bool) {
        self.newest = number;
        if durable {
            return;
        }
        match self.answered.binary_search_by_key(&epoch, |a| a.epoch) {
            Ok(i) => self.answered[i].last = number,
            Err(i) => self.answered.insert(i, Answers { epoch, first: number, last: number }),
        }
        if self.answered.len() > EPOCHS {
            let next = self.answered.remove(1);
            let oldest = &mut self.answered[0];
            oldest.first = oldest.first.min(next.first);
            oldest.last = oldest.last.max(next.last);
        }
    }

    /// A flush that covers writes up to `mark` is over. True: nothing is left.
    fn flushed(&mut self, mark: u64) -> bool {
        self.answered.retain(|a| a.last > mark);
        self.answered.iter_mut().for_each(|a| a.first = a.first.max(mark + 1));
        self.newest == mark
    }

    /// The epoch in which writes up to `mark` were lost, perhaps, as far as this configuration tells.
    pub fn lost(&self, mark: u64, c: &PgConfig) -> Option<Epoch> {
        let f = c.lost_before();
        self.answered.iter().any(|a| a.epoch < f && a.first <= mark).then_some(f)
    }

    /// Whoever wrote is gone.
    pub fn forget_answers(&mut self) {
        self.answered.clear();
    }
}

/// A part of a write that was answered; it counts when the whole of it is: a flush before that is not about it.
#[derive(Clone, Copy)]
pub(super) struct Written {
    group: PgId,
    epoch: Epoch,
    durable: bool,
}

impl Volume {
    /// A write is over, be it well or not; these parts of it were answered well.
    fn note_written(&mut self, parts: &[Written]) {
        for w in parts {
            self.writes_done += 1;
            let u = self.unflushed.entry(w.group).or_default();
            // Of a volume that is not mapped any more nobody is told.
            u.wrote(self.writes_done, w.epoch, w.durable || !self.mapped);
        }
    }

    /// Part of a flush of this group is over, and whoever asked knows or will know what came of it.
    fn note_flushed(&mut self, group: PgId, mark: u64) {
        if self.unflushed.get_mut(&group).is_some_and(|u| u.flushed(mark)) {
            self.unflushed.remove(&group);
        }
    }
}

impl Engine {
    /// Bookkeeping of a part that was answered well, before it is completed.
    pub(super) fn note_answer(&mut self, key: usize, epoch: Epoch) -> Result<(), IoError> {
        let Some(p) = self.parts.get(key) else { return Ok(()) };
        let group = self.pgs.list.get(p.pg).map(|g| g.id);
        let (Some(v), Some(group)) = (self.volumes.get_mut(&p.volume), group) else {
            return Ok(());
        };
        if !v.cached {
            return Ok(());
        }
        let durable = match p.kind {
            PartKind::Read | PartKind::Map => return Ok(()),
            PartKind::Write { fua, .. } => fua,
            PartKind::Zero { flags } => flags & flags::FUA != 0,
            PartKind::Flush { mark, lost } => {
                if v.mapped && lost.is_some_and(|f| f <= epoch) {
                    if let Some(r) = self.requests.get_mut(p.request) {
                        r.lost.push((group, mark));
                    }
                    return Err(IoError::FellBack);
                }
                v.note_flushed(group, mark);
                return Ok(());
            }
        };
        if let Some(r) = self.requests.get_mut(p.request) {
            r.written.push(Written { group, epoch, durable });
        }
        Ok(())
    }

    /// A request is over. A loss counts as told only if somebody hears of it; else the next flush tells.
    pub(super) fn note_end(&mut self, r: &Request) {
        if r.written.is_empty() && r.lost.is_empty() {
            return;
        }
        let Some(v) = self.volumes.get_mut(&r.volume) else { return };
        v.note_written(&r.written);
        if r.orphan {
            return;
        }
        for (group, mark) in &r.lost {
            v.note_flushed(*group, *mark);
            self.stats.fell_back += 1;
            self.out.push(Action::Note(Note::FellBack { volume: r.volume, pg: *group }));
        }
    }

    /// A flush is about to be sent: has its group fallen back behind what it covers?
    pub(super) fn look_for_loss(&mut self, key: usize) {
        let Some(Part { kind: PartKind::Flush { mark, lost }, pg, volume, .. }) =
            self.parts.get_mut(key)
        else {
            return;
        };
        let config = self.pgs.list.get(*pg).and_then(|g| self.view.pgs.get(&g.id));
        let (Some(c), Some(v)) = (config, self.volumes.get(volume)) else { return };
        // The oldest counts: an answer of an epoch before may still come.
        if let Some(f) = v.unflushed.get(&c.pg).and_then(|u| u.lost(*mark, c)) {
            *lost = Some(lost.map_or(f, |l| l.min(f)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after_a_fall_in(epoch: u64) -> PgConfig {
        PgConfig { fell: Epoch(epoch), ..super::super::fake::config(0, epoch, 1) }
    }

    #[test]
    fn a_flush_is_about_the_writes_before_it_and_no_others() {
        let mut u = Unflushed::default();
        u.wrote(1, Epoch(3), false);
        u.wrote(2, Epoch(3), false);
        let fell = after_a_fall_in(4);
        assert_eq!(u.lost(0, &fell), None);
        // A later write of the same epoch hides none before it.
        assert_eq!(u.lost(1, &fell), Some(Epoch(4)));
        assert_eq!(u.lost(2, &after_a_fall_in(3)), None);
        assert!(!u.flushed(1));
        assert_eq!(u.lost(1, &fell), None, "covered");
        assert_eq!(u.lost(2, &fell), Some(Epoch(4)));
        assert!(u.flushed(2) && u.answered.is_empty());
    }

    #[test]
    fn what_a_flush_does_not_cover_is_kept_and_old_epochs_are_merged() {
        let mut u = Unflushed::default();
        u.wrote(1, Epoch(3), false);
        u.wrote(2, Epoch(5), false);
        // A late answer of the older epoch; one that is durable by itself.
        u.wrote(3, Epoch(3), false);
        u.wrote(4, Epoch(6), true);
        let a = |epoch, first, last| Answers { epoch: Epoch(epoch), first, last };
        assert_eq!((u.newest, &u.answered[..]), (4, &[a(3, 1, 3), a(5, 2, 2)][..]));
        assert!(!u.flushed(2));
        assert_eq!(u.answered, [a(3, 3, 3)]);
        (5..50).for_each(|n| u.wrote(n, Epoch(n), false));
        assert_eq!(u.answered.len(), EPOCHS);
        assert_eq!((u.answered[0], u.answered[EPOCHS - 1]), (a(3, 3, 34), a(49, 49, 49)));
        assert!(u.flushed(49) && u.answered.is_empty());
    }
}
