//! Protection domains and storage pools.

use super::nodes::check_name;
use super::{
    AddPool, Answer, Ctx, Domain, Level, Pacing, Pool, Reject, State, TaskKind, MAX_OBJECTS,
};
use quarry_base::{DeviceId, DomainId, PgId, PoolId};
use quarry_wire::Change;

/// Placement groups wanted a device, and the limits of a pool's number without an explicit one.
const PGS_PER_DEVICE: u32 = 32;
const PGS: std::ops::RangeInclusive<u32> = 32..=1024;
/// Most placement groups a pool may be given.
pub const MAX_PGS: u32 = 65_536;
/// ... and all pools together: a node is told of all of them in one message.
const MAX_GROUPS: u64 = 100_000;
pub const DEFAULT_GRACE_SECONDS: u64 = 60;
pub const DEFAULT_OVER_COMMIT: u32 = 10;
pub const DEFAULT_RESERVE_PERCENT: u32 = 10;
pub const DEFAULT_HIGH_PERCENT: u32 = 80;
pub const DEFAULT_CRITICAL_PERCENT: u32 = 90;
/// Placement groups of a pool that move at a time.
pub const DEFAULT_MOVES: u32 = 8;

impl State {
    pub(crate) fn add_domain(&mut self, ctx: &mut Ctx, name: &str) -> Result<Answer, Reject> {
        check_name(name)?;
        if self.domains.values().any(|d| d.name == name) {
            return Err(Reject::conflict(
                "name_taken",
                format!("protection domain {name} exists"),
                "choose another name",
            ));
        }
        if self.domains.len() >= MAX_OBJECTS {
            return Err(Reject::invalid("limit", "too many protection domains", ""));
        }
        self.next.domain += 1;
        let id = DomainId(self.next.domain);
        self.domains.insert(id, Domain { id, name: name.into() });
        ctx.event("pd_create", format!("pd {name}"), "");
        Ok(Answer::Domain(id))
    }

    pub(crate) fn delete_domain(&mut self, ctx: &mut Ctx, id: DomainId) -> Result<Answer, Reject> {
        let d = self.domains.get(&id).ok_or_else(|| Reject::not_found("pd", id))?;
        let name = d.name.clone();
        if self.pools.values().any(|p| p.domain == id)
            || self.sds.values().any(|s| s.domain == id)
            || self.fault_sets.values().any(|f| f.domain == id)
        {
            return Err(Reject::conflict(
                "not_empty",
                format!("protection domain {name} has pools, servers or fault sets"),
                "delete its pools and fault sets and move its servers first",
            ));
        }
        if id == DomainId(1) {
            return Err(Reject::conflict("built_in", "the default protection domain stays", ""));
        }
        self.domains.remove(&id);
        ctx.event("pd_delete", format!("pd {name}"), "");
        Ok(Answer::Done)
    }

    pub(crate) fn add_pool(&mut self, ctx: &mut Ctx, p: &AddPool) -> Result<Answer, Reject> {
        self.check_pool(p)?;
        let devices = self.pool_candidates(p)?;
        let id = PoolId(self.next.pool + 1);
        let mut pool = Pool {
            id,
            name: p.name.clone(),
            domain: p.domain,
            copies: p.copies,
            min_copies: p.min_copies.unwrap_or(if p.copies >= 3 { 2 } else { 1 }),
            ack: p.ack,
            reads: p.reads,
            pg_count: p.pg_count.unwrap_or_else(|| default_pgs(devices.len())),
            over_commit: p.over_commit.unwrap_or(DEFAULT_OVER_COMMIT),
            reserve_percent: p.reserve_percent.unwrap_or(DEFAULT_RESERVE_PERCENT),
            rebuild_grace_seconds: p.rebuild_grace_seconds.unwrap_or(DEFAULT_GRACE_SECONDS),
            rebuild_cancelled: false,
            rebuild_now: false,
            rebuild_bytes_per_second: p.rebuild_bytes_per_second.unwrap_or(0),
            pacing: if p.rebuild_bytes_per_second.unwrap_or(0) > 0 {
                Pacing::Limit
            } else {
                Pacing::Unlimited
            },
            rate_now: 0,
            alert_high_percent: DEFAULT_HIGH_PERCENT,
            alert_critical_percent: DEFAULT_CRITICAL_PERCENT,
            level: Level::Normal,
            auto_rebalance: true,
            rebalancing: false,
            moves_at_once: DEFAULT_MOVES,
            scrub_bytes_per_second: None,
            health: String::new(),
            primaries_round: None,
        };
        super::policy::check_policy(&pool)?;
        let others = self.pools.values().map(|p| u64::from(p.pg_count));
        let groups = others.sum::<u64>() + u64::from(pool.pg_count);
        if groups > MAX_GROUPS {
            return Err(Reject::invalid(
                "limit",
                format!("{groups} placement groups in all would be too many"),
                format!("at most {MAX_GROUPS} in all pools: give pg_count a smaller power of two"),
            ));
        }
        pool.rate_now = super::rate_of(&pool, 0, 0);
        self.next.pool = id.0;
        ctx.change(Change::Pool(pool.info()));
        ctx.event(
            "pool_create",
            format!("pool {}", pool.name),
            format!("{} copies on {} devices", pool.copies, devices.len()),
        );
        self.pools.insert(id, pool);
        for d in devices {
            self.assign(ctx, d, Some(id));
        }
        self.lay_out(ctx, id);
        Ok(Answer::Pool(id))
    }

    fn check_pool(&self, p: &AddPool) -> Result<(), Reject> {
        check_name(&p.name)?;
        if !self.domains.contains_key(&p.domain) {
            return Err(Reject::not_found("pd", p.domain));
        }
        if self.pools.values().any(|x| x.name == p.name) {
            return Err(Reject::conflict(
                "name_taken",
                format!("pool {} exists", p.name),
                "choose another name",
            ));
        }
        if self.pools.len() >= MAX_OBJECTS {
            return Err(Reject::invalid("limit", "too many pools", ""));
        }
        if !(1..=3).contains(&p.copies) {
            return Err(Reject::invalid(
                "bad_copies",
                format!("{} copies are not possible", p.copies),
                "1, 2 or 3; 2 is the default",
            ));
        }
        if p.min_copies.is_some_and(|m| m < 1 || m > p.copies) {
            return Err(Reject::invalid(
                "bad_min_copies",
                "min_copies must be between 1 and copies",
                "",
            ));
        }
        if p.pg_count.is_some_and(|n| !n.is_power_of_two() || n > MAX_PGS) {
            return Err(Reject::invalid(
                "bad_pg_count",
                "pg_count must be a power of two",
                format!("at most {MAX_PGS}; leave it out for a good default"),
            ));
        }
        check_limits(
            p.over_commit.unwrap_or(DEFAULT_OVER_COMMIT),
            p.reserve_percent.unwrap_or(DEFAULT_RESERVE_PERCENT),
        )
    }

    fn pool_candidates(&self, p: &AddPool) -> Result<Vec<DeviceId>, Reject> {
        let in_domain = |d: DeviceId| {
            let sds = self.devices.get(&d).and_then(|d| self.sds.get(&d.sds));
            sds.is_some_and(|s| s.domain == p.domain)
        };
        let Some(named) = &p.devices else {
            let free = self.devices.values().filter(|d| d.pool.is_none() && !d.removed);
            return Ok(free.map(|d| d.id).filter(|d| in_domain(*d)).collect());
        };
        for id in named {
            let d = self.devices.get(id).ok_or_else(|| Reject::not_found("device", id))?;
            if let Some(pool) = d.pool {
                return Err(Reject::conflict(
                    "device_in_use",
                    format!("device {id} belongs to pool {pool}"),
                    "name unassigned devices: GET /device/list",
                ));
            }
            if !in_domain(*id) {
                return Err(Reject::invalid(
                    "other_domain",
                    format!("device {id} is in another protection domain"),
                    "",
                ));
            }
        }
        Ok(named.clone())
    }

    pub(crate) fn delete_pool(&mut self, ctx: &mut Ctx, id: PoolId) -> Result<Answer, Reject> {
        let p = self.pools.get(&id).ok_or_else(|| Reject::not_found("pool", id))?;
        let name = p.name.clone();
        let volumes: Vec<&str> = self
            .volumes
            .values()
            .filter(|v| v.pool == id)
            .map(|v| v.name.as_str())
            .take(10)
            .collect();
        if !volumes.is_empty() {
            return Err(Reject::conflict(
                "not_empty",
                format!("pool {name} has volumes: {}", volumes.join(", ")),
                "delete them first",
            ));
        }
        let pgs: Vec<PgId> = self.pool_pgs(id).map(|p| p.config.pg).collect();
        for pg in pgs {
            self.pgs.remove(&pg);
            ctx.change(Change::PgGone(pg));
        }
        let devices: Vec<DeviceId> = self.pool_devices(id).map(|d| d.id).collect();
        for d in devices {
            self.assign(ctx, d, None);
        }
        for kind in [TaskKind::Rebalance { pool: id }, TaskKind::Rebuild { pool: id }] {
            self.drop_task(ctx, &kind, "the pool was deleted");
        }
        self.pools.remove(&id);
        self.deleted_runs.forget_pool(id);
        ctx.change(Change::PoolGone(id));
        ctx.event("pool_delete", format!("pool {name}"), "");
        Ok(Answer::Done)
    }
}

pub(crate) fn check_limits(over_commit: u32, reserve_percent: u32) -> Result<(), Reject> {
    if (1..=1000).contains(&over_commit) && reserve_percent <= 50 {
        return Ok(());
    }
    Err(Reject::invalid(
        "bad_limit",
        "over_commit must be 1 to 1000, reserve_percent 0 to 50",
        "10 and 10 are the defaults",
    ))
}

/// A power of two near 32 for each device.
fn default_pgs(devices: usize) -> u32 {
    let want = u32::try_from(devices).unwrap_or(u32::MAX / 64).min(1 << 16) * PGS_PER_DEVICE;
    want.next_power_of_two().clamp(*PGS.start(), *PGS.end())
}
