//! First layout of a pool, and rebuild elsewhere of copies that do not come back (R16).

use super::{Answer, Ctx, Device, Pg, Reject, State, TaskKind};
use quarry_base::{DeviceId, Epoch, PgId, PoolId};
use quarry_placement::Candidate;
use quarry_wire::{Change, Member, PgConfig};
use std::collections::BTreeSet;

impl State {
    pub(crate) fn candidate(&self, d: &Device) -> Option<Candidate> {
        let s = self.sds.get(&d.sds)?;
        Some(Candidate {
            device: d.id,
            sds: s.id,
            fault_set: s.fault_set,
            weight: d.capacity_bytes,
        })
    }

    /// Devices of a pool that may get new copies.
    pub(crate) fn candidates(&self, pool: PoolId) -> Vec<Candidate> {
        let ok = |d: &&Device| {
            self.healthy(d)
                && d.suspended.is_none()
                && !self.draining(d.id)
                && self.sds.get(&d.sds).is_some_and(|s| !s.leaving)
        };
        self.pool_devices(pool).filter(ok).filter_map(|d| self.candidate(d)).collect()
    }

    /// Lays a pool out once there are servers for all copies; later, gives groups that are short of copies new
    /// devices at once.
    pub(crate) fn lay_out(&mut self, ctx: &mut Ctx, pool: PoolId) {
        let Some(p) = self.pools.get(&pool).cloned() else { return };
        if self.pool_pgs(pool).next().is_some() {
            self.replace_lost(ctx, pool, &BTreeSet::new());
            return;
        }
        let c = self.candidates(pool);
        let servers: BTreeSet<_> = c.iter().map(|c| c.sds).collect();
        if servers.len() < p.copies as usize {
            return;
        }
        let plan = quarry_placement::plan_pool(p.pg_count, p.copies as usize, &c);
        for (i, listed) in plan.into_iter().enumerate() {
            let pg = PgId::new(pool, i as u32);
            let config = PgConfig {
                pg,
                epoch: Epoch(1),
                index: ctx.index,
                primary: listed.first().copied(),
                in_sync: listed.iter().filter_map(|d| self.member_now(*d)).collect(),
                syncing: Vec::new(),
                listed,
                copies: p.copies,
                min_copies: p.min_copies,
                line: Epoch::ZERO,
                fell: Epoch::ZERO,
            };
            ctx.change(Change::Pg(config.clone()));
            let (held, moved_ms, retiring) = (Vec::new(), Vec::new(), Vec::new());
            let (led_ms, fence, left) = (None, None, Vec::new());
            let (damaged, short) = (None, None);
            self.pgs.insert(
                pg,
                Pg { config, held, moved_ms, retiring, led_ms, fence, left, damaged, short },
            );
        }
        ctx.event(
            "pool_layout",
            format!("pool {}", p.name),
            format!("{} placement groups on {} servers", p.pg_count, servers.len()),
        );
    }

    /// Lays out the pools that waited for servers; for when one is taken back.
    pub(crate) fn lay_out_waiting(&mut self, ctx: &mut Ctx) {
        for pool in self.pools.keys().copied().collect::<Vec<_>>() {
            if self.pool_pgs(pool).next().is_none() {
                self.lay_out(ctx, pool);
            }
        }
    }

    fn member_now(&self, device: DeviceId) -> Option<Member> {
        let d = self.devices.get(&device)?;
        let s = self.sds.get(&d.sds)?;
        Some(Member { device, sds: s.id, start: s.start })
    }

    /// Since when the device cannot hold its copies, if it cannot; a fenced server's at once, as one that is to be
    /// emptied anyway.
    fn lost_since(&self, device: DeviceId) -> Option<u64> {
        let d = self.devices.get(&device)?;
        let s = self.sds.get(&d.sds)?;
        if s.fenced || (self.draining(device) && (!s.up || d.failed.is_some())) {
            return Some(0);
        }
        let down = if s.up { None } else { Some(s.down_since_ms.unwrap_or(0)) };
        let failed = d.failed.as_ref().map(|_| d.failed_since_ms.unwrap_or(0));
        let suspended = d.suspended.as_ref().map(|s| s.since_ms);
        [down, failed, suspended].into_iter().flatten().min()
    }

    /// Devices of a pool that are to be replaced now.
    fn due(&self, pool: PoolId, now_ms: u64) -> BTreeSet<DeviceId> {
        let Some(p) = self.pools.get(&pool) else { return BTreeSet::new() };
        if p.rebuild_cancelled {
            return BTreeSet::new();
        }
        let grace = if p.rebuild_now { 0 } else { p.rebuild_grace_seconds.saturating_mul(1000) };
        // A time more than that ahead was told by a clock that has gone back since: nobody waits until it comes.
        let ahead = now_ms.saturating_add(grace);
        let over = |t: u64| t == 0 || t.saturating_add(grace) <= now_ms || t > ahead;
        let due = |d: &&Device| self.lost_since(d.id).is_some_and(over);
        self.pool_devices(pool).filter(due).map(|d| d.id).collect()
    }

    /// True if [`super::Op::Rebuild`] would change something now.
    pub fn rebuild_due(&self, now_ms: u64) -> bool {
        self.pools.keys().any(|pool| {
            let due = self.due(*pool, now_ms);
            let c = self.candidates(*pool);
            self.pool_pgs(*pool).any(|p| self.replacement(p, &due, &c).is_some())
        })
    }

    pub(crate) fn rebuild(&mut self, ctx: &mut Ctx) -> Result<Answer, Reject> {
        for pool in self.pools.keys().copied().collect::<Vec<_>>() {
            let due = self.due(pool, ctx.at_ms);
            let moved = self.replace_lost(ctx, pool, &due);
            if let Some(p) = self.pools.get_mut(&pool) {
                p.rebuild_now = false;
                if moved > 0 {
                    ctx.event(
                        "rebuild_begin",
                        format!("pool {}", p.name),
                        format!("{moved} placement groups get another device"),
                    );
                }
            }
        }
        Ok(Answer::Done)
    }

    /// New device list of a group that has lost copies in `due` or never had enough; `None` if it stays.
    fn replacement(
        &self,
        p: &Pg,
        due: &BTreeSet<DeviceId>,
        free: &[Candidate],
    ) -> Option<Vec<DeviceId>> {
        let c = &p.config;
        if !c.primary_member().is_some_and(|m| self.alive(m)) {
            return None;
        }
        let keep: Vec<DeviceId> = c.listed.iter().filter(|d| !due.contains(d)).copied().collect();
        if keep.len() >= c.copies as usize {
            return None;
        }
        let mut all = free.to_vec();
        for d in &keep {
            if !all.iter().any(|c| c.device == *d) {
                all.extend(self.devices.get(d).and_then(|d| self.candidate(d)));
            }
        }
        // Where the data is still readable it does not go to the same device again.
        all.retain(|x| keep.contains(&x.device) || !c.listed.contains(&x.device));
        let target = quarry_placement::replace(c.pg.index(), c.copies as usize, &keep, &all);
        let new: Vec<DeviceId> = target.into_iter().filter(|d| !c.listed.contains(d)).collect();
        if new.is_empty() {
            return None;
        }
        Some(c.listed.iter().copied().chain(new).collect())
    }

    /// Lists new devices where copies are missing; returns in how many groups.
    fn replace_lost(&mut self, ctx: &mut Ctx, pool: PoolId, due: &BTreeSet<DeviceId>) -> usize {
        let free = self.candidates(pool);
        let todo: Vec<(PgId, Vec<DeviceId>)> = self
            .pool_pgs(pool)
            .filter_map(|p| Some((p.config.pg, self.replacement(p, due, &free)?)))
            .collect();
        let n = todo.len();
        self.relist(ctx, todo);
        n
    }

    /// Gives groups new device lists; listed devices that are there begin to sync.
    pub(crate) fn relist(&mut self, ctx: &mut Ctx, todo: Vec<(PgId, Vec<DeviceId>)>) {
        let pgs: Vec<PgId> = todo.iter().map(|t| t.0).collect();
        for (pg, listed) in todo {
            let Some(p) = self.pgs.get_mut(&pg) else { continue };
            // One command makes one epoch, however many steps it takes.
            p.config.epoch = Epoch(p.config.epoch.0 + u64::from(p.config.index != ctx.index));
            p.config.index = ctx.index;
            p.config.listed = listed;
            ctx.change(Change::Pg(p.config.clone()));
        }
        self.settle(ctx, &pgs, &super::Answered::new());
    }

    pub(crate) fn rebuild_switch(
        &mut self,
        ctx: &mut Ctx,
        pool: PoolId,
        on: bool,
    ) -> Result<Answer, Reject> {
        let p = self.pools.get_mut(&pool).ok_or_else(|| Reject::not_found("pool", pool))?;
        p.rebuild_now = on;
        p.rebuild_cancelled = !on;
        let name = p.name.clone();
        ctx.event(
            if on { "rebuild_start" } else { "rebuild_cancel" },
            format!("pool {name}"),
            "asked by the operator",
        );
        let task = TaskKind::Rebuild { pool };
        if !on {
            self.unlist_new(ctx, pool);
            self.drop_task(ctx, &task, "the rebuild was cancelled");
            return Ok(Answer::Pool(pool));
        }
        self.rebuild(ctx)?;
        match self.copies_missing(pool) {
            0 => Ok(Answer::Pool(pool)),
            n => Ok(self.add_task(ctx, task, n)),
        }
    }

    /// Takes back the devices a rebuild has added and that are not in sync yet.
    fn unlist_new(&mut self, ctx: &mut Ctx, pool: PoolId) {
        let extra: Vec<(PgId, Vec<DeviceId>)> = self
            .pool_pgs(pool)
            .filter(|p| p.config.listed.len() > p.config.copies as usize)
            .map(|p| {
                let c = &p.config;
                let mut listed: Vec<DeviceId> =
                    c.listed.iter().filter(|d| c.is_in_sync(**d)).copied().collect();
                for d in &c.listed {
                    if listed.len() < c.copies as usize && !listed.contains(d) {
                        listed.push(*d);
                    }
                }
                (c.pg, listed)
            })
            .collect();
        for (pg, _) in &extra {
            if let Some(p) = self.pgs.get_mut(pg) {
                p.retiring.clear();
            }
        }
        self.relist(ctx, extra);
    }
}
