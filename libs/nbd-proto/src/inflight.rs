//! The requests that wait for an answer.
//!
//! Slots are reused; a generation in each tells an old handle from a new one, so a client that uses
//! one cookie twice at a time gets two answers and none is mixed up.

use crate::event::Handle;

/// What has to be remembered to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pending {
    pub cookie: u64,
    pub kind: Kind,
    pub offset: u64,
    pub len: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read { df: bool },
    Write { fua: bool },
    Flush,
    Trim { fua: bool },
    WriteZeroes { fua: bool, no_hole: bool, fast: bool },
    Cache,
    BlockStatus { req_one: bool },
}

impl Pending {
    /// Bytes of payload it moves, in either direction.
    pub fn cost(&self) -> usize {
        match self.kind {
            Kind::Read { .. } | Kind::Write { .. } => self.len as usize,
            _ => 0,
        }
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    pending: Option<Pending>,
}

#[derive(Default)]
pub(crate) struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
    count: usize,
    bytes: usize,
}

impl InFlight {
    pub fn count(&self) -> usize {
        self.count
    }
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn insert(&mut self, pending: Pending) -> Handle {
        let slot = match self.free.pop() {
            Some(s) => s,
            None => {
                self.slots.push(Slot::default());
                (self.slots.len() - 1) as u32
            }
        };
        let s = &mut self.slots[slot as usize];
        s.generation = s.generation.wrapping_add(1);
        s.pending = Some(pending);
        self.count += 1;
        self.bytes += pending.cost();
        Handle { cookie: pending.cookie, slot, generation: s.generation }
    }

    /// Looks at a request. A handle answered before is a mistake of the caller, never of a client.
    pub fn get(&self, h: Handle) -> Pending {
        let found = self.slots.get(h.slot as usize).filter(|s| s.generation == h.generation);
        let pending = found.and_then(|s| s.pending);
        assert!(pending.is_some(), "an NBD request is answered exactly once");
        pending.unwrap_or(Pending { cookie: h.cookie, kind: Kind::Flush, offset: 0, len: 0 })
    }

    pub fn remove(&mut self, h: Handle) -> Pending {
        let p = self.get(h);
        if let Some(s) = self.slots.get_mut(h.slot as usize) {
            s.pending = None;
        }
        self.free.push(h.slot);
        self.count -= 1;
        self.bytes -= p.cost();
        p
    }
}
