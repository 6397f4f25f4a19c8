//! The id table of a placement group (R19): which requests of which SDC instance were applied.
//!
//! Holds committed requests only; what is in the tail is found in the tail. Ids are dense, so they
//! are kept as runs above a floor.

use crate::codec::{Get, Put};
use crate::types::Origin;
use quarry_base::{Instance, RequestId};
use std::collections::BTreeMap;

#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Ids {
    /// Below this everything is answered.
    floor: u64,
    /// First id of a run -> one past its last; disjoint, not touching, all at or above the floor.
    runs: BTreeMap<u64, u64>,
}

impl Ids {
    fn add(&mut self, from: u64, to: u64) {
        let (mut from, mut to) = (from.max(self.floor), to);
        if from >= to {
            return;
        }
        if let Some((&a, &b)) = self.runs.range(..=from).next_back() {
            if b >= from {
                from = a;
                to = to.max(b);
                self.runs.remove(&a);
            }
        }
        while let Some((&a, &b)) = self.runs.range(from..=to).next() {
            to = to.max(b);
            self.runs.remove(&a);
        }
        self.runs.insert(from, to);
    }

    fn raise(&mut self, floor: u64) {
        if floor <= self.floor {
            return;
        }
        self.floor = floor;
        while let Some((&a, &b)) = self.runs.iter().next() {
            if a >= floor {
                break;
            }
            self.runs.remove(&a);
            if b > floor {
                self.runs.insert(floor, b);
            }
        }
    }
}

/// What the committed part of the table says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    No,
    Yes,
    BelowFloor,
}

#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct IdTable {
    by: BTreeMap<Instance, Ids>,
}

impl IdTable {
    pub fn commit(&mut self, o: Origin, max_runs: usize) {
        if o.instance.0 == 0 {
            return;
        }
        let t = self.by.entry(o.instance).or_default();
        t.raise(o.lowest_unanswered.0);
        t.add(o.id.0, o.id.0.saturating_add(1));
        while t.runs.len() > max_runs.max(1) {
            let Some((_, end)) = t.runs.pop_first() else { break };
            t.floor = end;
        }
    }

    pub fn known(&self, instance: Instance, id: RequestId) -> Known {
        let Some(t) = self.by.get(&instance) else { return Known::No };
        if t.runs.range(..=id.0).next_back().is_some_and(|(_, &end)| id.0 < end) {
            return Known::Yes;
        }
        if id.0 < t.floor {
            Known::BelowFloor
        } else {
            Known::No
        }
    }

    pub fn forget(&mut self, keep: &dyn Fn(Instance) -> bool) -> bool {
        let n = self.by.len();
        self.by.retain(|i, _| keep(*i));
        self.by.len() != n
    }

    /// Union of two tables, the higher floor of each instance.
    pub fn merge(&mut self, o: &IdTable) {
        for (i, theirs) in &o.by {
            let t = self.by.entry(*i).or_default();
            theirs.runs.iter().for_each(|(a, b)| t.add(*a, *b));
            t.raise(theirs.floor);
        }
    }

    /// Bytes that `encode` takes.
    pub fn encoded_len(&self) -> usize {
        4 + self.by.values().map(|t| 20 + 16 * t.runs.len()).sum::<usize>()
    }

    pub fn encode(&self, v: &mut Vec<u8>) {
        v.u32(self.by.len() as u32);
        for (i, t) in &self.by {
            v.u64(i.0);
            v.u64(t.floor);
            v.u32(t.runs.len() as u32);
            t.runs.iter().for_each(|(a, b)| {
                v.u64(*a);
                v.u64(*b);
            });
        }
    }

    pub fn decode(g: &mut Get) -> Option<IdTable> {
        let mut out = IdTable::default();
        for _ in 0..g.u32()? {
            let t = out.by.entry(Instance(g.u64()?)).or_default();
            t.floor = g.u64()?;
            for _ in 0..g.u32()? {
                let (a, b) = (g.u64()?, g.u64()?);
                t.add(a, b);
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn o(id: u64, low: u64) -> Origin {
        let lowest_unanswered = RequestId(low);
        Origin { instance: Instance(1), id: RequestId(id), lowest_unanswered }
    }

    #[test]
    fn runs_merge_and_the_floor_refuses_what_lies_below() {
        let mut t = IdTable::default();
        for id in [5, 7, 6, 1, 9] {
            t.commit(o(id, 0), 99);
        }
        assert_eq!(t.by[&Instance(1)].runs.len(), 3);
        let k = |t: &IdTable, id| t.known(Instance(1), RequestId(id));
        assert_eq!((k(&t, 6), k(&t, 8), k(&t, 10)), (Known::Yes, Known::No, Known::No));
        t.commit(o(10, 7), 99);
        assert_eq!((k(&t, 6), k(&t, 7), k(&t, 8)), (Known::BelowFloor, Known::Yes, Known::No));
        let mut v = Vec::new();
        t.encode(&mut v);
        assert_eq!(IdTable::decode(&mut Get(&v)), Some(t));
    }
}
