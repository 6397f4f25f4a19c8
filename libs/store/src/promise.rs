//! Space promised to thick volumes: how many of their blocks are not here yet.
//!
//! The engine says how many blocks each thick vTree can have in each group on this device. What of that is not
//! allocated is kept free of other volumes' new data: [`Headroom::promised`](crate::Headroom) is how much of `blocks` is not for them.
//!
//! Invariant: `missing` is the sum over all promises of what is promised and not held. A block that is replaced
//! (removed and made anew) is missing for a moment within one call only.

use crate::store::Store;
use quarry_base::{PgId, VtreeId};
use std::collections::HashMap;

#[derive(Clone, Copy)]
struct Promise {
    blocks: u64,
    held: u64,
}

impl Promise {
    fn missing(self) -> u64 {
        self.blocks.saturating_sub(self.held)
    }
}

/// The promises of one device. Looked up only, never walked: the store is deterministic.
#[derive(Default)]
pub(crate) struct Promises {
    by: HashMap<(PgId, VtreeId), Promise>,
    missing: u64,
}

impl Promises {
    /// Blocks promised and not held.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    fn change(&mut self, pg: PgId, vtree: VtreeId, f: impl FnOnce(&mut Promise)) {
        if self.by.is_empty() {
            return;
        }
        if let Some(p) = self.by.get_mut(&(pg, vtree)) {
            self.missing -= p.missing();
            f(p);
            self.missing += p.missing();
        }
    }

    /// A block of the vTree was made.
    pub fn made(&mut self, pg: PgId, vtree: VtreeId) {
        self.change(pg, vtree, |p| p.held += 1);
    }

    /// A block of the vTree is gone.
    pub fn gone(&mut self, pg: PgId, vtree: VtreeId) {
        self.change(pg, vtree, |p| p.held = p.held.saturating_sub(1));
    }
}

impl Store {
    /// Everything that is promised on this device: up to so many blocks of the vTree in the group. Replaces what was
    /// promised before. Not durable: to be said again after `open`.
    pub fn promise(&mut self, all: &[(PgId, VtreeId, u64)]) {
        let old = std::mem::take(&mut self.sp.promises);
        let mut new = Promises::default();
        for (pg, vtree, blocks) in all {
            let known = old.by.get(&(*pg, *vtree)).map(|p| p.held);
            let count = || self.pg(*pg).map_or(0, |p| p.count(&self.sp.slots, *vtree));
            let p = Promise { blocks: *blocks, held: known.unwrap_or_else(count) };
            new.missing += p.missing();
            new.by.insert((*pg, *vtree), p);
        }
        self.sp.promises = new;
    }

    /// For the audit: the promises are what the index says.
    pub(crate) fn check_promises(&self) -> Result<(), String> {
        let mut missing = 0;
        for ((pg, vtree), p) in &self.sp.promises.by {
            let here = self.pg(*pg).map_or(0, |g| g.count(&self.sp.slots, *vtree));
            if here != p.held {
                return Err(format!("{pg}: {} blocks of {vtree} held, {here} counted", p.held));
            }
            missing += p.missing();
        }
        if missing != self.sp.promises.missing {
            return Err(format!("{missing} blocks missing, {} kept", self.sp.promises.missing));
        }
        Ok(())
    }
}
