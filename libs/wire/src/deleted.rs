//! Which vTrees of each pool were deleted, in runs of numbers.
//!
//! A data server that was away while a volume was deleted learns of it whenever it comes back, so a deletion is never
//! forgotten while its pool is there. But vTree numbers only rise and none is used twice: between two deleted ones of a pool
//! lies either a volume of the pool that is there, or nothing that the pool will ever have. So deletions with no volume of
//! the pool between them are one run (numbers of other pools in it do no harm: this pool's groups have no blocks of them),
//! and there is at most one run more than the pool has volumes, however many were deleted.

use quarry_base::{PoolId, VtreeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Deleted vTrees by pool: first and last number of each run.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Deleted(BTreeMap<PoolId, BTreeMap<VtreeId, VtreeId>>);

impl Deleted {
    /// Notes a deletion; `live` are the vTrees of the pool's volumes that are left.
    pub fn insert(&mut self, pool: PoolId, vtree: VtreeId, live: impl Iterator<Item = VtreeId>) {
        let (mut low, mut high) = (VtreeId(0), VtreeId(u64::MAX));
        for v in live {
            if v < vtree {
                low = low.max(v);
            } else if v > vtree {
                high = high.min(v);
            }
        }
        let runs = self.0.entry(pool).or_default();
        let near: Vec<VtreeId> = runs.range(low..=high).map(|r| *r.0).collect();
        let (mut first, mut last) = (vtree, vtree);
        for at in near {
            if let Some(end) = runs.remove(&at) {
                (first, last) = (first.min(at), last.max(end));
            }
        }
        runs.insert(first, last);
    }

    /// Asked of a vTree of this pool: was it deleted?
    pub fn contains(&self, pool: PoolId, vtree: VtreeId) -> bool {
        let last = self.0.get(&pool).and_then(|r| r.range(..=vtree).next_back());
        last.is_some_and(|(_, last)| vtree <= *last)
    }

    /// First and last number of each run of the pool, in order.
    pub fn runs(&self, pool: PoolId) -> impl Iterator<Item = (VtreeId, VtreeId)> + '_ {
        self.0.get(&pool).into_iter().flatten().map(|(first, last)| (*first, *last))
    }

    /// What is left of the pool's runs without these vTrees, which are in order.
    pub fn runs_without(&self, pool: PoolId, without: &[VtreeId]) -> Vec<(VtreeId, VtreeId)> {
        self.runs(pool).flat_map(|run| pieces(run, without)).collect()
    }

    pub fn forget_pool(&mut self, pool: PoolId) {
        self.0.remove(&pool);
    }
}

fn pieces((first, last): (VtreeId, VtreeId), without: &[VtreeId]) -> Vec<(VtreeId, VtreeId)> {
    let mut out = Vec::new();
    let mut from = Some(first);
    for v in without.iter().filter(|v| (first..=last).contains(*v)) {
        if let (Some(from), Some(to)) = (from, v.0.checked_sub(1)) {
            if from.0 <= to {
                out.push((from, VtreeId(to)));
            }
        }
        from = v.0.checked_add(1).map(VtreeId);
    }
    out.extend(from.filter(|from| *from <= last).map(|from| (from, last)));
    out
}
