//! What thick volumes may still take of each device, told to its store whenever the view changes.
//!
//! A thick volume is promised, in each group, 16 blocks for each of its extents there. Extents are spread by a hash, so
//! how many a group has is counted: exactly for the first [`COUNTED`] extents of a volume; of the rest a share with a margin
//! that is not exceeded in practice (six standard deviations), as counting would hold up the reactor.

use super::Engine;
use quarry_base::{pg_of, DeviceId, Extent, PgId, PoolId, VtreeId, BLOCKS_PER_EXTENT, EXTENT};
use quarry_wire::{Change, PgConfig, VolumeInfo};
use std::collections::BTreeMap;

/// Extents of a volume that are counted one by one: 4 TiB, some milliseconds.
const COUNTED: u32 = 4 << 20;

/// The extents of a thick volume in each group of its pool.
struct Spread {
    pool: PoolId,
    /// Extents counted so far.
    upto: u32,
    /// By the group's number in the pool.
    extents: Vec<u32>,
}

impl Spread {
    fn new(pool: PoolId, pg_count: u32) -> Spread {
        Spread { pool, upto: 0, extents: vec![0; pg_count as usize] }
    }

    fn count(&mut self, vtree: VtreeId, upto: u32) {
        let n = u32::try_from(self.extents.len()).unwrap_or(u32::MAX);
        for e in self.upto..upto {
            let i = pg_of(self.pool, n, vtree, Extent(e)).index() as usize;
            if let Some(x) = self.extents.get_mut(i) {
                *x += 1;
            }
        }
        self.upto = self.upto.max(upto);
    }

    /// Blocks of a group that a volume of `extents` can have at most.
    fn blocks(&self, pg: PgId, extents: u64) -> u64 {
        let counted = self.extents.get(pg.index() as usize).copied().map_or(0, u64::from);
        let groups = (self.extents.len() as u64).max(1);
        let rest = extents.saturating_sub(u64::from(self.upto)).div_ceil(groups);
        let margin = if rest == 0 { 0 } else { 6 * (rest.isqrt() + 1) };
        (counted + rest + margin) * u64::from(BLOCKS_PER_EXTENT)
    }
}

/// The spread of every thick volume.
#[derive(Default)]
pub(crate) struct Spreads(BTreeMap<VtreeId, Spread>);

fn extents_of(v: &VolumeInfo) -> u64 {
    v.size_bytes.div_ceil(u64::from(EXTENT))
}

/// Can this change what is promised?
pub(super) fn concerns(c: &Change) -> bool {
    !matches!(c, Change::Sds(_) | Change::SdsGone(_) | Change::Sdc(_) | Change::SdcGone(_))
}

fn held_by(c: &PgConfig, device: DeviceId) -> bool {
    c.listed.contains(&device) || c.member(device).is_some()
}

impl Engine {
    /// Tells every store what is promised of it now.
    pub(super) fn promise(&mut self) {
        let view = &self.view.cluster;
        let thick: Vec<&VolumeInfo> = view.volumes.values().filter(|v| v.thick).collect();
        if thick.is_empty() && self.spreads.0.is_empty() {
            return;
        }
        self.spreads.0.retain(|t, _| thick.iter().any(|v| v.vtree == *t));
        for v in &thick {
            let Some(pool) = view.pools.get(&v.pool) else { continue };
            let s = self
                .spreads
                .0
                .entry(v.vtree)
                .or_insert_with(|| Spread::new(pool.id, pool.pg_count));
            let upto = u32::try_from(extents_of(v)).unwrap_or(u32::MAX).min(COUNTED);
            s.count(v.vtree, upto);
        }
        for d in &mut self.devices {
            let mut all = Vec::new();
            for c in view.pgs.values().filter(|c| held_by(c, d.id)) {
                for v in thick.iter().filter(|v| v.pool == c.pg.pool()) {
                    if let Some(s) = self.spreads.0.get(&v.vtree) {
                        all.push((c.pg, v.vtree, s.blocks(c.pg, extents_of(v))));
                    }
                }
            }
            d.store.promise(&all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_extent_of_a_volume_is_counted_in_its_group_also_after_it_grew() {
        let (pool, vtree) = (PoolId(1), VtreeId(9));
        let mut s = Spread::new(pool, 32);
        for extents in [100, 1000] {
            s.count(vtree, extents);
            let mut want = [0u64; 32];
            for e in 0..extents {
                want[pg_of(pool, 32, vtree, Extent(e)).index() as usize] += 16;
            }
            for (i, w) in want.iter().enumerate() {
                assert_eq!(s.blocks(PgId::new(pool, i as u32), extents.into()), *w, "group {i}");
            }
        }
    }

    #[test]
    fn a_volume_too_large_to_be_counted_is_promised_no_less_than_it_can_take() {
        let (pool, vtree, extents) = (PoolId(1), VtreeId(4), 300_000u32);
        let mut counted = Spread::new(pool, 64);
        counted.count(vtree, extents);
        let mut short = Spread::new(pool, 64);
        short.count(vtree, 1000);
        for i in 0..64 {
            let pg = PgId::new(pool, i);
            let (most, exact) =
                (short.blocks(pg, extents.into()), counted.blocks(pg, extents.into()));
            assert!(most >= exact && most < exact + exact / 8, "group {i}: {most} for {exact}");
        }
    }
}
