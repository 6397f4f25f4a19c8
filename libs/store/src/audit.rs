//! Cross-checks of everything the store has in memory, for tests and simulators.

use crate::batch::Body;
use crate::index::ExtKey;
use crate::layout::NO_SLOT;
use crate::owners::Census;
use crate::store::Store;
use std::collections::HashMap;

impl Store {
    /// Is everything accounted for? Every slot has exactly one owner, counters are sums, pins are
    /// balanced. Costs time in proportion to the store.
    pub fn check_invariants(&self) -> Result<(), String> {
        if self.recovery.is_some() || self.failed.is_some() {
            return Ok(());
        }
        let mut owner: HashMap<u32, String> = HashMap::new();
        let mut own = |slot: u32, who: String| match owner.insert(slot, who) {
            Some(other) => Err(format!("slot {slot} has two owners, one is {other}")),
            None => Ok(()),
        };
        let (mut pins, mut dirty, mut unslotted) = (self.job_pins(), 0u64, 0u64);
        for p in self.live_pgs() {
            let (mut blocks, mut slots) = (0, 0);
            for (key, b) in p.blocks_from(&self.sp.slots, ExtKey::MIN) {
                blocks += 1;
                if b.slot != NO_SLOT {
                    slots += 1;
                    own(b.slot, format!("{} {key:?}", p.id))?;
                    let t = self.sp.slots.entry(b.slot);
                    let want = (p.id, key, b.version, b.valid);
                    if t.is_none_or(|t| (t.pg, t.key, t.version, t.valid) != want) {
                        return Err(format!("slot {}: the table says {t:?}", b.slot));
                    }
                }
                if let Some(o) = b.over {
                    pins += o.pins.len() as u64;
                    dirty += o.pages.len() as u64;
                    unslotted += u64::from(b.slot == NO_SLOT);
                    if o.pages.is_empty() && o.job == 0 {
                        return Err(format!("{key:?} has an empty overlay"));
                    }
                } else if b.valid == 0 {
                    return Err(format!("{key:?} has no content"));
                }
            }
            let (held, over) = p.held_hot(&self.sp.slots);
            if held != over {
                return Err(format!("{}: {held} blocks are hot, {over} have an overlay", p.id));
            }
            if (blocks, slots) != (p.blocks, p.slots) {
                return Err(format!("{}: {blocks} blocks {slots} slots counted", p.id));
            }
            for t in &p.tail {
                pins += t.pins().count() as u64;
                for s in t.slots.iter().filter(|s| **s != NO_SLOT) {
                    own(*s, format!("{} tail {:?}", p.id, t.rec.version))?;
                }
            }
        }
        for s in self.job_slots() {
            own(s, "destage".into())?;
        }
        for s in self.sp.alloc.pending_slots() {
            own(s, "pending".into())?;
        }
        for s in self.log.queue.iter().filter_map(|e| match &e.body {
            Body::Copy { slot, .. } if *slot != NO_SLOT => Some(*slot),
            _ => None,
        }) {
            own(s, "queued copy".into())?;
        }
        for s in self.log.flights.iter().flat_map(|f| f.copy_slots()) {
            own(s, "copy in flight".into())?;
        }
        let quiet =
            self.ops.is_empty() && self.reads.is_empty() && !self.sp.slots.cache.any_wanted();
        if let Some(fault) = self.sp.slots.cache_fault(quiet) {
            return Err(format!("cache of checks: {fault}"));
        }
        let a = &self.sp.alloc;
        if owner.len() as u32 + a.free() != a.blocks() || owner.keys().any(|s| !a.is_used(*s)) {
            return Err(format!("{} used, {} free, {} in all", owner.len(), a.free(), a.blocks()));
        }
        let sums = (pins, dirty, unslotted);
        let kept = (self.sp.batches.total_pins(), self.sp.stats.dirty_pages, self.sp.unslotted);
        if sums != kept {
            return Err(format!("pins, dirty pages, unslotted: {sums:?} counted, {kept:?} kept"));
        }
        let (new, told) = (self.job_slots().count() as u64, self.destage.new_slots);
        if new != told {
            return Err(format!("{new} destages bring a first slot, {told} counted"));
        }
        self.check_table()?;
        self.check_promises()
    }

    /// Does the table hold what the groups have, and nothing else?
    fn check_table(&self) -> Result<(), String> {
        let mut want = Census::default();
        for p in self.live_pgs() {
            let (layers, extents) = p.counts();
            want.layers += layers;
            want.extents += extents;
            want.entries += p.slots as usize;
        }
        let (kept, used) = (self.sp.slots.owners.census(), self.sp.slots.count_used());
        if kept != want || used != want.entries {
            return Err(format!("the table has {kept:?}, {used} slots; the groups {want:?}"));
        }
        Ok(())
    }

    /// Bytes of memory of the block table: who owns which slot, and the index of the groups. Without the cache of checks
    /// and the content of pages that are in the log alone. Costs time in proportion to the table.
    pub fn table_memory(&self) -> u64 {
        let index = self.live_pgs().map(|p| p.index_memory()).sum::<usize>();
        (self.sp.slots.memory() + index) as u64
    }
}
