//! Handing operations to the kernel.
//!
//! Entries keep their order: once one had to wait in `backlog`, all later ones queue behind it, so a
//! cancel never overtakes what it cancels. A linked pair enters the queue together or not at all
//! (a link does not reach over two submissions).
#![allow(unsafe_code)]

use crate::op::{user_data, Op, OpKind, GEN_MASK, PART_NONE};
use crate::Reactor;
use io_uring::{opcode, squeue::Entry};

/// An entry, or a linked pair.
pub(crate) struct Queued {
    first: Entry,
    second: Option<Entry>,
}

impl Reactor {
    /// Stores an operation; gives its slot and generation.
    pub(crate) fn store_op(&mut self, kind: OpKind) -> (u32, u32) {
        self.next_gen = (self.next_gen + 1) & GEN_MASK;
        let gen = self.next_gen;
        let slot = self.ops.insert(Op { gen, kind });
        (slot as u32, gen)
    }

    /// Queues an entry whose pointers live in a stored operation.
    pub(crate) fn push(&mut self, first: Entry, second: Option<Entry>) {
        self.stats.sqes += 1 + u64::from(second.is_some());
        let q = Queued { first, second };
        if !self.backlog.is_empty() || !self.try_push(&q) {
            self.backlog.push_back(q);
        }
    }

    /// Puts what had to wait into the submission queue, as far as it fits.
    pub(crate) fn flush_backlog(&mut self) {
        while let Some(q) = self.backlog.pop_front() {
            if !self.try_push(&q) {
                self.backlog.push_front(q);
                return;
            }
        }
    }

    fn try_push(&mut self, q: &Queued) -> bool {
        if self.fits_and_push(q) {
            return true;
        }
        self.stats.sq_full += 1;
        self.stats.enters += 1;
        // A refusal (completion queue overflowing, no memory) is not final: the entry waits in the
        // backlog and the next turn takes completions first.
        match self.ring.submit() {
            Ok(_) => self.fits_and_push(q),
            Err(_) => false,
        }
    }

    fn fits_and_push(&mut self, q: &Queued) -> bool {
        let mut sq = self.ring.submission();
        let free = sq.capacity() - sq.len();
        if free < 1 + usize::from(q.second.is_some()) {
            return false;
        }
        // SAFETY: every pointer in the entries leads to heap memory (a buffer, an address, a
        // message header, an iovec array) owned by an operation in `ops` or by the connection it
        // names; both are kept, unmoved on the heap, until the operation's last completion, and are
        // leaked if the reactor must end before that. File descriptors live as long.
        let pushed = unsafe {
            sq.push(&q.first).is_ok() && q.second.as_ref().is_none_or(|s| sq.push(s).is_ok())
        };
        assert!(pushed, "room was checked");
        true
    }

    /// Asks the kernel to give an operation up. Its own completion tells what became of it.
    pub(crate) fn cancel(&mut self, target: u64) {
        let entry = opcode::AsyncCancel::new(target).build().user_data(user_data(0, 0, PART_NONE));
        self.push(entry, None);
    }
}
