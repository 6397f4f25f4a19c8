//! The operator takes a server out at once (`fail`), takes it back (`recover`), and what would be lost by it.
//!
//! Fencing never removes the last in-sync member: without `force` it is refused, with it the server stops serving,
//! its groups wait, and their in-sync sets stay as they are.

use super::{Answer, Answered, Ctx, Pg, Reject, State};
use quarry_base::{Extent, PgId, PoolId, SdsId, VolumeId, EXTENT};
use quarry_wire::Change;
use std::collections::{BTreeMap, BTreeSet};

/// Volumes named in a refusal at most.
const NAMED: usize = 20;

impl State {
    pub(crate) fn fence_sds(
        &mut self,
        ctx: &mut Ctx,
        id: SdsId,
        force: bool,
        answered: &Answered,
    ) -> Result<Answer, Reject> {
        let s = self.sds.get(&id).ok_or_else(|| Reject::not_found("sds", id))?;
        if s.fenced {
            return Ok(Answer::Sds(id));
        }
        let name = s.name.clone();
        let pgs = self.groups_of(id);
        if !force {
            self.refuse_last_copies(id, &name, &pgs, answered)?;
        }
        // A new start number ends every role it has, also where it stays the only in-sync member (R1).
        let start = self.new_start();
        if let Some(s) = self.sds.get_mut(&id) {
            s.fenced = true;
            s.up = false;
            s.start = start;
            s.down_since_ms = Some(ctx.at_ms);
            ctx.change(Change::Sds(s.info()));
        }
        ctx.event(
            "sds_fail",
            format!("sds {name}"),
            if force { "forced by the operator" } else { "asked by the operator" },
        );
        self.settle(ctx, &pgs, answered);
        self.rebuild(ctx)?;
        Ok(Answer::Sds(id))
    }

    /// True if no good member of the group outside `gone` has answered since: what `gone` holds is the last copy.
    pub fn needs(&self, p: &Pg, gone: &BTreeSet<SdsId>, answered: &Answered) -> bool {
        let c = &p.config;
        let stays = |m: &quarry_wire::Member| {
            !gone.contains(&m.sds) && self.good(m) && answered.contains(&m.sds)
        };
        c.in_sync.iter().any(|m| gone.contains(&m.sds)) && !c.in_sync.iter().any(stays)
    }

    fn refuse_last_copies(
        &self,
        id: SdsId,
        name: &str,
        pgs: &[PgId],
        answered: &Answered,
    ) -> Result<(), Reject> {
        let gone = BTreeSet::from([id]);
        let last = |pg: &&PgId| self.pgs.get(*pg).is_some_and(|p| self.needs(p, &gone, answered));
        let hit: BTreeSet<PgId> = pgs.iter().filter(last).copied().collect();
        let names = self.volume_names(&self.volumes_on(&hit));
        if names.is_empty() {
            return Ok(());
        }
        Err(Reject::conflict(
            "last_copy",
            format!("SDS {name} has the last good copy of data of: {names}"),
            "wait until the pool is healthy again, or use force (scli sds fail --force): these volumes are unavailable then",
        ))
    }

    /// Names for a sentence; the rest is counted.
    pub fn volume_names(&self, ids: &[VolumeId]) -> String {
        let names = ids.iter().filter_map(|v| self.volumes.get(v)).map(|v| v.name.as_str());
        let mut text = names.take(NAMED).collect::<Vec<_>>().join(", ");
        if ids.len() > NAMED {
            text.push_str(&format!(" and {} more", ids.len() - NAMED));
        }
        text
    }

    /// Volumes with an extent in one of the groups.
    pub fn volumes_on(&self, pgs: &BTreeSet<PgId>) -> Vec<VolumeId> {
        let pools: BTreeSet<PoolId> = pgs.iter().map(|p| p.pool()).collect();
        let in_pool = self.volumes.values().filter(|v| pools.contains(&v.pool));
        in_pool
            .filter(|v| self.volume_pgs(v).iter().any(|p| pgs.contains(p)))
            .map(|v| v.id)
            .collect()
    }

    /// The volumes with an extent in each of the groups, where there are any. Each volume's groups are worked out once.
    pub fn volumes_by_group(&self, pgs: &BTreeSet<PgId>) -> BTreeMap<PgId, Vec<VolumeId>> {
        let pools: BTreeSet<PoolId> = pgs.iter().map(|p| p.pool()).collect();
        let mut out: BTreeMap<PgId, Vec<VolumeId>> = BTreeMap::new();
        for v in self.volumes.values().filter(|v| pools.contains(&v.pool)) {
            for pg in self.volume_pgs(v).into_iter().filter(|pg| pgs.contains(pg)) {
                out.entry(pg).or_default().push(v.id);
            }
        }
        out
    }

    /// Groups that hold extents of a volume. A large volume is in all of its pool.
    pub fn volume_pgs(&self, v: &super::Volume) -> BTreeSet<PgId> {
        let Some(p) = self.pools.get(&v.pool) else { return BTreeSet::new() };
        let extents = v.size_bytes.div_ceil(u64::from(EXTENT));
        if extents >= u64::from(p.pg_count) * 8 {
            return self.pool_pgs(p.id).map(|p| p.config.pg).collect();
        }
        let at = |e: u64| {
            let e = Extent(u32::try_from(e).unwrap_or(u32::MAX));
            quarry_base::pg_of(p.id, p.pg_count, v.vtree, e)
        };
        (0..extents).map(at).collect()
    }

    pub(crate) fn recover_sds(&mut self, ctx: &mut Ctx, id: SdsId) -> Result<Answer, Reject> {
        let s = self.sds.get_mut(&id).ok_or_else(|| Reject::not_found("sds", id))?;
        if s.fenced {
            s.fenced = false;
            s.down_since_ms = if s.up { None } else { Some(ctx.at_ms) };
            ctx.change(Change::Sds(s.info()));
            ctx.event("sds_recover", format!("sds {}", s.name), "asked by the operator");
            let pgs = self.groups_of(id);
            self.settle(ctx, &pgs, &Answered::new());
            self.rebuild(ctx)?;
        }
        self.undrain_sds(ctx, id);
        self.forgive(id);
        Ok(Answer::Sds(id))
    }
}
