//! Which data blocks are free.
//!
//! A freed slot is not at once free to allocate: a recovery may still need it, or find a log record
//! that names it. It waits until a checkpoint that began after the freeing has committed, the log's
//! tail has passed every batch that may name it, and no I/O is on it.

use std::collections::HashMap;

struct Pending {
    slot: u32,
    /// Checkpoints begun when it was freed.
    ckpt: u64,
    /// Last batch that may hold a record naming it.
    batch: u64,
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

    /// A free slot, the next one after the last given (so that what comes together lies together).
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
        self.bits[slot as usize / 64] &= !(1 << (slot % 64));
        self.free += 1;
    }

    /// Frees a slot some time later, see the file header.
    pub fn free_later(&mut self, slot: u32, ckpt: u64, batch: u64) {
        assert!(self.is_used(slot), "slot {slot} freed while free");
        self.pending.push(Pending { slot, ckpt, batch });
    }

    /// Checkpoint number `ckpt` has committed and the log begins at batch `tail`. Returns the slots
    /// freed now.
    pub fn release(&mut self, ckpt: u64, tail: u64) -> Vec<u32> {
        let mut out = Vec::new();
        let busy = &self.busy;
        self.pending.retain(|p| {
            let now = ckpt > p.ckpt && tail > p.batch && !busy.contains_key(&p.slot);
            if now {
                out.push(p.slot);
            }
            !now
        });
        out.iter().for_each(|s| self.give_back(*s));
        out
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
    /// False if someone reads or writes it now.
    pub fn write_begins(&mut self, slot: u32) -> bool {
        if self.busy.contains_key(&slot) {
            return false;
        }
        self.busy.insert(slot, Busy { reads: 0, writing: true });
        true
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
        assert!(a.release(4, 10).is_empty(), "batch 10 may name it");
        assert!(a.release(4, 11).is_empty(), "a read is on it");
        a.read_ends(69);
        assert_eq!(a.release(4, 11), [69]);
        assert_eq!((a.alloc(), a.alloc()), (Some(69), None));
    }
}
