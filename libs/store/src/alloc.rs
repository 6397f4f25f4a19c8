//! Which data blocks are free.
//!
//! A freed slot is not at once free to allocate: a recovery may still need it, or find a log record
//! that names it. It waits until a checkpoint that began after the freeing has committed, the newest
//! log entry that names it has left the log, and no I/O is on it.
//!
//! Slots are given in ascending order, from the lowest one that became free at the latest release on:
//! neighbours in time lie together, and a thin device's file is no larger than its content needs.

use crate::planted::{planted, Bug};
use std::collections::HashMap;

struct Pending {
    slot: u32,
    /// Checkpoints begun when it was freed.
    ckpt: u64,
    /// Newest log entry that names it; 0: none does.
    lsn: u64,
}

/// I/O on a slot.
#[derive(Default)]
pub(crate) struct Busy {
    pub reads: u32,
    pub writing: bool,
}

pub(crate) struct Alloc {
    bits: Vec<u64>,
    blocks: u32,
    free: u32,
    cursor: u32,
    pending: Vec<Pending>,
    /// Lowest `lsn` of those pending that wait for the log; `u64::MAX`: none does.
    waits_for: u64,
    /// The newest checkpoint and the last entry that has left the log.
    released: (u64, u64),
    /// Pending after the latest release.
    kept: usize,
    /// Pending only because of I/O on them, as the latest release found: a handful at most.
    held_up: Vec<u32>,
    /// I/O ended on one of those.
    calmed: bool,
    pub busy: HashMap<u32, Busy>,
}

impl Alloc {
    pub fn new(blocks: u32) -> Alloc {
        Alloc {
            bits: vec![0; (blocks as usize).div_ceil(64)],
            blocks,
            free: blocks,
            cursor: 0,
            pending: Vec::new(),
            waits_for: u64::MAX,
            released: (0, 0),
            kept: 0,
            held_up: Vec::new(),
            calmed: false,
            busy: HashMap::new(),
        }
    }

    pub fn blocks(&self) -> u32 {
        self.blocks
    }
    /// Slots that can be allocated now.
    pub fn free(&self) -> u32 {
        self.free
    }
    /// Slots freed but not yet allocatable.
    pub fn pending(&self) -> u32 {
        self.pending.len() as u32
    }
    /// Slots freed since the latest release.
    pub fn freed_since_release(&self) -> u32 {
        self.pending.len().saturating_sub(self.kept) as u32
    }
    pub fn is_used(&self, slot: u32) -> bool {
        self.bits.get(slot as usize / 64).is_none_or(|w| w >> (slot % 64) & 1 == 1)
    }

    /// Marks a slot used; false if it already was or does not exist.
    pub fn take(&mut self, slot: u32) -> bool {
        if slot >= self.blocks || self.is_used(slot) {
            return false;
        }
        self.bits[slot as usize / 64] |= 1 << (slot % 64);
        self.free -= 1;
        true
    }

    /// A free slot, the next one after the last given, see the file header.
    pub fn alloc(&mut self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let words = self.bits.len();
        let first = self.cursor as usize / 64;
        for i in 0..=words {
            let w = (first + i) % words;
            let mut open = !self.bits[w];
            if i == 0 {
                open &= u64::MAX << (self.cursor % 64);
            }
            while open != 0 {
                let slot = (w * 64) as u32 + open.trailing_zeros();
                if slot < self.blocks {
                    self.cursor = (slot + 1) % self.blocks;
                    let taken = self.take(slot);
                    assert!(taken, "the free bit was just read");
                    return Some(slot);
                }
                open &= open - 1;
            }
        }
        None
    }

    /// Gives back a slot that no table page and no log record has ever named.
    pub fn give_back(&mut self, slot: u32) {
        assert!(self.is_used(slot), "slot {slot} given back twice");
        if planted(Bug::ReusedEarly) || planted(Bug::ChangedOwner) {
            self.cursor = slot;
        }
        self.bits[slot as usize / 64] &= !(1 << (slot % 64));
        self.free += 1;
    }

    /// Frees a slot some time later, see the file header.
    pub fn free_later(&mut self, slot: u32, ckpt: u64, lsn: u64) {
        assert!(self.is_used(slot), "slot {slot} freed while free");
        self.pending.push(Pending { slot, ckpt, lsn });
        self.waits_for = self.waits_for.min(lsn);
    }

    /// Would a checkpoint that begins now and cuts the log behind entry `gone` free a slot?
    pub fn checkpoint_frees(&self, gone: u64) -> bool {
        self.waits_for <= gone
    }

    /// Checkpoint number `ckpt` has committed; log entries up to `gone` have left the log. Returns
    /// the slots freed now.
    pub fn release(&mut self, ckpt: u64, gone: u64) -> Vec<u32> {
        let mut out = Vec::new();
        let (busy, mut waits_for) = (&self.busy, u64::MAX);
        let held_up = &mut self.held_up;
        held_up.clear();
        self.pending.retain(|p| {
            let due = ckpt > p.ckpt && gone >= p.lsn;
            let now = due && (!busy.contains_key(&p.slot) || planted(Bug::ChangedOwner));
            if now {
                out.push(p.slot);
            } else if due {
                held_up.push(p.slot);
            } else {
                waits_for = waits_for.min(p.lsn);
            }
            !now
        });
        (self.waits_for, self.released, self.calmed) = (waits_for, (ckpt, gone), false);
        out.iter().for_each(|s| self.give_back(*s));
        self.kept = self.pending.len();
        self.cursor = out.iter().copied().fold(self.cursor, u32::min);
        out
    }

    /// Frees what was held up by I/O alone.
    pub fn release_calmed(&mut self) {
        if self.calmed {
            let (ckpt, gone) = self.released;
            self.release(ckpt, gone);
        }
    }

    pub fn pending_slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.pending.iter().map(|p| p.slot)
    }

    pub fn read_begins(&mut self, slot: u32) {
        self.busy.entry(slot).or_default().reads += 1;
    }
    pub fn read_ends(&mut self, slot: u32) {
        if let Some(b) = self.busy.get_mut(&slot) {
            b.reads = b.reads.saturating_sub(1);
        }
        self.calm(slot);
    }
    /// False if someone writes it now.
    pub fn write_begins(&mut self, slot: u32) -> bool {
        !std::mem::replace(&mut self.busy.entry(slot).or_default().writing, true)
    }
    pub fn write_ends(&mut self, slot: u32) {
        if let Some(b) = self.busy.get_mut(&slot) {
            b.writing = false;
        }
        self.calm(slot);
    }
    fn calm(&mut self, slot: u32) {
        if self.busy.get(&slot).is_some_and(|b| b.reads == 0 && !b.writing) {
            self.busy.remove(&slot);
            self.calmed |= self.held_up.contains(&slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_slot_waits_for_a_later_checkpoint_the_tail_and_its_io() {
        let mut a = Alloc::new(70);
        let all: Vec<u32> = (0..70).map(|_| a.alloc().unwrap()).collect();
        assert_eq!(all, (0..70).collect::<Vec<_>>());
        assert_eq!(a.alloc(), None);
        a.free_later(69, 3, 10);
        a.read_begins(69);
        assert!(a.release(3, 99).is_empty(), "the checkpoint began before the freeing");
        assert!(a.release(4, 9).is_empty(), "entry 10 may name it");
        assert!(!a.checkpoint_frees(9) && a.checkpoint_frees(10));
        assert!(a.release(4, 10).is_empty(), "a read is on it");
        assert!(!a.checkpoint_frees(10), "another checkpoint would not help");
        a.release_calmed();
        assert_eq!(a.pending(), 1);
        a.read_ends(69);
        a.release_calmed();
        assert_eq!(a.pending(), 0);
        assert_eq!((a.alloc(), a.alloc()), (Some(69), None));
    }

    #[test]
    fn slots_that_became_free_are_given_again_before_ones_never_used() {
        let mut a = Alloc::new(1000);
        let given: Vec<u32> = (0..100).map(|_| a.alloc().unwrap()).collect();
        given.iter().for_each(|s| a.free_later(*s, 0, 0));
        assert_eq!((a.alloc(), a.freed_since_release()), (Some(100), 100), "not released yet");
        assert_eq!(a.release(1, 0).len(), 100);
        assert_eq!(a.freed_since_release(), 0);
        let again: Vec<u32> = (0..101).map(|_| a.alloc().unwrap()).collect();
        assert_eq!(again, (0..100).chain([101]).collect::<Vec<_>>());
    }
}
