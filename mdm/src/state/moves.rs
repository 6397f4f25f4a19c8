//! Copies change their place while all of them are there: drains and rebalancing.
//!
//! A move lists the new device beside the old one and marks the old one *retiring*. The new one syncs; when the
//! others have all copies without the retiring one, the same command that adds the new member takes the old one out
//! ([`super::pg`]). So at no time has a group fewer copies than before. A few groups a pool move at a time, and only
//! while nothing is being rebuilt there (R28: rebuild before rebalance).

use super::{Answer, Ctx, Pg, Reject, State, TaskKind};
use quarry_base::{DeviceId, PgId, PoolId, SdsId};
use quarry_placement::{Candidate, Move};
use std::collections::{BTreeMap, BTreeSet};

/// Moves looked ahead at most, for the progress of a rebalance.
const LOOK_AHEAD: usize = 4096;
/// By itself a pool is evened out when a device has less than this part of its share, percent.
const THIN: f64 = 75.0;

impl State {
    /// Groups that list the device or have it as a member.
    pub fn copies_on(&self, device: DeviceId) -> u64 {
        let on = |p: &&Pg| p.config.listed.contains(&device) || p.config.member(device).is_some();
        self.pgs.values().filter(on).count() as u64
    }

    pub fn copies_on_sds(&self, sds: SdsId) -> u64 {
        self.groups_of(sds).len() as u64
    }

    /// The operator wants the device or its server empty.
    pub fn draining(&self, device: DeviceId) -> bool {
        let Some(d) = self.devices.get(&device) else { return false };
        let wanted = |s: &super::Sds| s.draining || self.lacks_sds(s.id).is_some();
        d.draining || self.sds.get(&d.sds).is_some_and(wanted)
    }

    /// The node of a server, if the capability to be one was taken from it.
    pub(crate) fn lacks_sds(&self, sds: SdsId) -> Option<&super::Node> {
        let node = self.nodes.get(&self.sds.get(&sds)?.node?)?;
        node.disabled.contains(&quarry_control::Capability::Sds).then_some(node)
    }

    /// Where the group's copies will be when moves under way have ended.
    fn target_of(p: &Pg) -> Vec<DeviceId> {
        p.config.listed.iter().filter(|d| !p.retiring.contains(d)).copied().collect()
    }

    fn plan(&self, pool: PoolId, limit: usize) -> Vec<Move> {
        self.plan_where(pool, limit, |_| true)
    }

    fn plan_where(&self, pool: PoolId, limit: usize, may_move: impl Fn(&Pg) -> bool) -> Vec<Move> {
        let Some(p) = self.pools.get(&pool) else { return Vec::new() };
        let lists: Vec<Vec<DeviceId>> = self.pool_pgs(pool).map(Self::target_of).collect();
        let may = |g: u32| self.pgs.get(&PgId::new(pool, g)).is_some_and(&may_move);
        let (copies, free) = (p.copies as usize, self.candidates(pool));
        quarry_placement::rebalance_where(&lists, copies, &free, limit, may)
    }

    /// Copies that a rebalance has still to move, those on their way included.
    pub fn moves_left(&self, pool: PoolId) -> u64 {
        let going = self.pool_pgs(pool).filter(|p| !p.retiring.is_empty()).count();
        (self.plan(pool, LOOK_AHEAD).len() + going) as u64
    }

    /// True if the pool is uneven enough to be evened out by itself, or two copies of a group would fail together.
    fn uneven(&self, pool: PoolId) -> bool {
        let c = self.candidates(pool);
        let total: u64 = c.iter().map(|c| c.weight).sum();
        let lists: Vec<Vec<DeviceId>> = self.pool_pgs(pool).map(Self::target_of).collect();
        let mut load: BTreeMap<DeviceId, u32> = BTreeMap::new();
        for d in lists.iter().flatten() {
            *load.entry(*d).or_default() += 1;
        }
        // Only what lies on devices that may hold copies: what is being drained is nobody's share yet.
        let copies: u32 = c.iter().filter_map(|x| load.get(&x.device)).sum();
        let thin = |x: &Candidate| {
            let share = f64::from(copies) * x.weight as f64 / total.max(1) as f64;
            let has = f64::from(load.get(&x.device).copied().unwrap_or(0));
            has * 100.0 < share * THIN && has + 1.0 < share
        };
        let split = self
            .pools
            .get(&pool)
            .is_some_and(|p| quarry_placement::together(&lists, p.copies as usize, &c));
        (split || c.iter().any(thin)) && !self.plan(pool, 1).is_empty()
    }

    /// The group has all its copies now.
    fn whole(&self, p: &Pg) -> bool {
        p.config.in_sync.iter().filter(|m| self.good(m)).count() >= p.config.copies as usize
            && p.config.primary_member().is_some_and(|m| self.alive(m))
    }

    /// A copy that was lost is being restored in the pool.
    fn rebuilding(&self, pool: PoolId) -> bool {
        self.pool_pgs(pool).any(|p| !p.config.syncing.is_empty() && !self.whole(p))
    }

    /// A copy of the group may begin to move now.
    fn may_move(&self, p: &Pg) -> bool {
        p.retiring.is_empty() && self.whole(p)
    }

    /// A move whose new device cannot go on.
    fn stuck(&self, p: &Pg) -> bool {
        let lost = |d: &DeviceId| !p.config.is_in_sync(*d) && !self.usable(*d);
        !p.retiring.is_empty() && self.whole(p) && p.config.listed.iter().any(lost)
    }

    fn usable(&self, device: DeviceId) -> bool {
        self.devices.get(&device).is_some_and(|d| self.healthy(d)) && !self.draining(device)
    }

    /// Devices to move off, in groups that can move: (group, device).
    fn drains(&self, pool: PoolId) -> Vec<(PgId, DeviceId)> {
        let gone: BTreeSet<DeviceId> =
            self.pool_devices(pool).map(|d| d.id).filter(|d| self.draining(*d)).collect();
        if gone.is_empty() {
            return Vec::new();
        }
        let free = self.pool_pgs(pool).filter(|p| self.may_move(p));
        free.filter_map(|p| {
            let d = p.config.listed.iter().find(|d| gone.contains(d))?;
            Some((p.config.pg, *d))
        })
        .collect()
    }

    /// What may begin in a pool now: (group, old device, new device).
    fn next_moves(&self, pool: PoolId) -> Vec<(PgId, DeviceId, DeviceId)> {
        let Some(p) = self.pools.get(&pool) else { return Vec::new() };
        let going = self.pool_pgs(pool).filter(|p| !p.retiring.is_empty()).count();
        let room = (p.moves_at_once as usize).saturating_sub(going);
        if room == 0 || self.rebuilding(pool) {
            return Vec::new();
        }
        let free = self.candidates(pool);
        let mut out = Vec::new();
        for (pg, from) in self.drains(pool) {
            if out.len() >= room {
                return out;
            }
            let Some(g) = self.pgs.get(&pg) else { continue };
            if let Some(to) = self.other_place(g, from, &free) {
                out.push((pg, from, to));
            }
        }
        if p.rebalancing && out.is_empty() {
            // Planned without those that cannot move now: they may stay so for long, and would take all the room.
            let moves = self.plan_where(pool, room, |g| self.may_move(g));
            out.extend(moves.into_iter().map(|m| (PgId::new(pool, m.group), m.from, m.to)));
        }
        out
    }

    /// Where the copy on `from` may go.
    fn other_place(&self, p: &Pg, from: DeviceId, free: &[Candidate]) -> Option<DeviceId> {
        let c = &p.config;
        let keep: Vec<DeviceId> = c.listed.iter().filter(|d| **d != from).copied().collect();
        let mut all = free.to_vec();
        for d in &keep {
            if !all.iter().any(|c| c.device == *d) {
                all.extend(self.devices.get(d).and_then(|d| self.candidate(d)));
            }
        }
        all.retain(|x| keep.contains(&x.device) || !c.listed.contains(&x.device));
        let target = quarry_placement::replace(c.pg.index(), c.copies as usize, &keep, &all);
        target.into_iter().find(|d| !c.listed.contains(d))
    }

    /// True if [`super::Op::Move`] would change something now.
    pub fn moves_due(&self) -> bool {
        self.pools.values().any(|p| {
            let begins = p.auto_rebalance && !p.rebalancing && self.calm(p.id);
            self.pool_pgs(p.id).any(|g| self.stuck(g))
                || !self.next_moves(p.id).is_empty()
                || (begins && self.uneven(p.id))
        })
    }

    /// Every group has all its copies.
    fn calm(&self, pool: PoolId) -> bool {
        self.pool_pgs(pool).all(|p| self.whole(p))
    }

    pub(crate) fn move_copies(&mut self, ctx: &mut Ctx) -> Result<Answer, Reject> {
        for pool in self.pools.keys().copied().collect::<Vec<_>>() {
            let stuck: Vec<PgId> =
                self.pool_pgs(pool).filter(|p| self.stuck(p)).map(|p| p.config.pg).collect();
            self.revert(ctx, &stuck);
            let begins = self.pools.get(&pool).is_some_and(|p| p.auto_rebalance && !p.rebalancing);
            if begins && self.calm(pool) && self.uneven(pool) {
                self.rebalance(ctx, pool)?;
            }
            let moves = self.next_moves(pool);
            let mut lists = Vec::with_capacity(moves.len());
            for (pg, from, to) in moves {
                let Some(p) = self.pgs.get_mut(&pg) else { continue };
                p.retiring = vec![from];
                lists.push((pg, p.config.listed.iter().copied().chain([to]).collect()));
            }
            self.relist(ctx, lists);
        }
        Ok(Answer::Done)
    }

    pub(crate) fn rebalance(&mut self, ctx: &mut Ctx, pool: PoolId) -> Result<Answer, Reject> {
        let left = self.moves_left(pool);
        let p = self.pools.get_mut(&pool).ok_or_else(|| Reject::not_found("pool", pool))?;
        p.rebalancing = true;
        let name = p.name.clone();
        ctx.event("rebalance", format!("pool {name}"), format!("{left} copies are to be moved"));
        Ok(self.add_task(ctx, TaskKind::Rebalance { pool }, left))
    }

    /// Takes back moves that nothing asks for any more: of a pool, or drains that were cancelled.
    pub(crate) fn stop_moves(&mut self, ctx: &mut Ctx, pool: Option<PoolId>) {
        let needless = |p: &&Pg| {
            let drained = p.retiring.iter().any(|d| self.draining(*d));
            let even = self.pools.get(&p.config.pg.pool()).is_some_and(|p| p.rebalancing);
            !p.retiring.is_empty() && !drained && !even
        };
        let hit = self.pgs.values().filter(|p| pool.is_none_or(|x| p.config.pg.pool() == x));
        let pgs: Vec<PgId> = hit.filter(needless).map(|p| p.config.pg).collect();
        self.revert(ctx, &pgs);
    }

    /// The retiring device stays, new ones that are not in sync go.
    fn revert(&mut self, ctx: &mut Ctx, pgs: &[PgId]) {
        let mut lists = Vec::new();
        for pg in pgs {
            let Some(p) = self.pgs.get_mut(pg) else { continue };
            let c = &p.config;
            if c.in_sync.len() < c.copies as usize {
                // A member was lost meanwhile: the new device is needed.
                continue;
            }
            p.retiring.clear();
            lists.push((*pg, c.listed.iter().filter(|d| c.is_in_sync(**d)).copied().collect()));
        }
        self.relist(ctx, lists);
    }
}
