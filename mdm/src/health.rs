//! Health of groups, pools and the cluster, from configurations and what primaries report.

use crate::control::{degraded_bytes, HubInner};
use crate::state::{Device, Level, Pg, Pool, State};
use quarry_base::{Nanos, PgId, PoolId, SdsId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// After a change a group that does not serve yet counts as degraded this long, then as unavailable.
pub const TRANSITION: Duration = Duration::from_secs(3);

/// A group with all its copies may take this long to serve at a new configuration before it counts as degraded.
pub const TAKING_UP: Duration = Duration::from_millis(1500);

/// From good to bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Ok,
    Degraded,
    Unavailable,
}

impl Health {
    pub fn name(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Degraded => "degraded",
            Health::Unavailable => "unavailable",
        }
    }
}

/// Health of one pool.
#[derive(Clone, Debug, Serialize)]
pub struct PoolHealth {
    pub pool_id: PoolId,
    pub pool: String,
    pub health: Health,
    pub bytes_degraded: u64,
    /// Bytes of groups that have one in-sync copy and should have more.
    pub bytes_one_copy: u64,
    pub eta_seconds: Option<u64>,
    pub rate_bytes_per_second: Option<u64>,
    pub pgs: u32,
    pub pgs_ok: u32,
    pub pgs_degraded: u32,
    pub pgs_unavailable: u32,
    pub pgs_syncing: u32,
    pub pgs_moving: u32,
    pub bytes: u64,
    pub capacity_level: Level,
    /// It has no groups yet: it lacks devices on enough servers and takes no data, so that none of its data lacks anything.
    pub waits_for_devices: bool,
    pub reasons: Vec<String>,
}

/// The primary has reported that it serves at this very configuration.
pub fn serves(s: &State, hub: &HubInner, p: &Pg) -> bool {
    let Some(m) = p.config.primary_member().filter(|m| s.alive(m)) else { return false };
    let Some(live) = hub.pgs.get(&p.config.pg) else { return false };
    live.start == m.start
        && live.report.as_ref().is_some_and(|r| r.active && r.epoch == p.config.epoch)
}

/// Health of a group.
pub fn pg_health(s: &State, hub: &HubInner, p: &Pg, now: Nanos) -> Health {
    if serves(s, hub, p) {
        // A move lists one device more than there are copies: nothing is missing then.
        let whole = p.config.in_sync.len() >= p.config.copies as usize;
        return if whole { Health::Ok } else { Health::Degraded };
    }
    let live = hub.pgs.get(&p.config.pg);
    // A group with all its copies that served a moment ago is only taking up a new configuration (a move of a copy).
    let whole = p.config.in_sync.len() >= p.config.copies as usize
        && p.config.in_sync.iter().all(|m| s.good(m));
    if whole && live.is_some_and(|l| now.since(l.active) <= TAKING_UP) {
        return Health::Ok;
    }
    let last = live.map_or(hub.started, |l| l.changed.max(l.active).max(hub.started));
    if now.since(last) <= TRANSITION {
        Health::Degraded
    } else {
        Health::Unavailable
    }
}

/// Health of a pool with reasons.
pub fn pool_health(s: &State, hub: &HubInner, pool: &Pool, now: Nanos) -> PoolHealth {
    let mut h = PoolHealth {
        pool_id: pool.id,
        pool: pool.name.clone(),
        health: Health::Ok,
        bytes_degraded: 0,
        bytes_one_copy: 0,
        eta_seconds: None,
        rate_bytes_per_second: None,
        pgs: 0,
        pgs_ok: 0,
        pgs_degraded: 0,
        pgs_unavailable: 0,
        pgs_syncing: 0,
        pgs_moving: 0,
        bytes: 0,
        capacity_level: pool.level,
        waits_for_devices: false,
        reasons: Vec::new(),
    };
    let mut missing: BTreeMap<SdsId, u32> = BTreeMap::new();
    for p in s.pool_pgs(pool.id) {
        h.pgs += 1;
        let live = hub.pgs.get(&p.config.pg);
        let bytes = live.and_then(|l| l.report.as_ref()).map_or(0, |r| r.bytes);
        h.bytes += bytes;
        h.bytes_degraded += degraded_bytes(live, &p.config);
        if p.config.in_sync.len() == 1 && p.config.copies > 1 {
            h.bytes_one_copy += bytes;
        }
        let whole = p.config.in_sync.len() >= p.config.copies as usize;
        h.pgs_syncing += u32::from(!p.config.syncing.is_empty() && !whole);
        h.pgs_moving += u32::from(!p.retiring.is_empty());
        let health = pg_health(s, hub, p, now);
        h.health = h.health.max(health);
        match health {
            Health::Ok => h.pgs_ok += 1,
            Health::Degraded => h.pgs_degraded += 1,
            Health::Unavailable => h.pgs_unavailable += 1,
        }
        if health != Health::Ok {
            blame(s, p, &mut missing);
        }
    }
    if h.pgs == 0 {
        h.health = Health::Degraded;
        h.waits_for_devices = true;
        let (why, todo) = waits(s, pool);
        h.reasons.push(format!("{why}: {todo}"));
    }
    if h.bytes_degraded > 0 {
        if let Some(rate) = hub.rates.get(&pool.id).and_then(|r| r.bytes_per_second()) {
            h.rate_bytes_per_second = Some(rate as u64);
            h.eta_seconds = Some((h.bytes_degraded as f64 / rate).ceil() as u64);
        }
    } else if h.health == Health::Ok {
        h.eta_seconds = Some(0);
    }
    explain(s, pool, &mut h, &missing);
    h
}

/// Why a pool without groups takes no data yet, and what to do about it.
pub fn waits(s: &State, pool: &Pool) -> (String, String) {
    let name = &pool.name;
    let servers = |n: usize| if n == 1 { "1 server".to_string() } else { format!("{n} servers") };
    let wanted = servers(usize::from(pool.copies));
    let has: BTreeSet<SdsId> = s.candidates(pool.id).iter().map(|c| c.sds).collect();
    let why = match (s.pool_devices(pool.id).next().is_some(), has.len()) {
        (false, _) => format!("pool {name} has no devices yet and takes no data; it waits for devices on {wanted}"),
        (true, n) => format!(
            "pool {name} takes no data yet: it has devices that can be used on {}, and waits for devices on {wanted}",
            servers(n)
        ),
    };
    // Servers that have none of its copies yet: only these bring it further.
    let free = s.devices.values().filter(|d| {
        d.pool.is_none()
            && s.healthy(d)
            && !d.missing
            && !has.contains(&d.sds)
            && s.sds.get(&d.sds).is_some_and(|x| x.domain == pool.domain && !x.draining)
    });
    let free: Vec<String> = free.take(4).map(|d| d.id.to_string()).collect();
    let todo = match free.first() {
        Some(first) => format!(
            "scli device add --id {first} --pool {name} (unassigned now: {})",
            free.join(", ")
        ),
        None => format!(
            "start SDS nodes with devices in its protection domain, then scli device list and scli device add --id N --pool {name}"
        ),
    };
    (why, todo)
}

/// Servers that a group misses.
fn blame(s: &State, p: &Pg, missing: &mut BTreeMap<SdsId, u32>) {
    for d in &p.config.listed {
        let Some(sds) = s.devices.get(d).map(|d| d.sds) else { continue };
        let there = p.config.in_sync.iter().any(|m| m.device == *d && s.alive(m));
        // Said of the device itself.
        let suspended = s.devices.get(d).is_some_and(|d| d.suspended.is_some() && s.healthy(d));
        if !there && !suspended {
            *missing.entry(sds).or_default() += 1;
        }
    }
}

fn explain(s: &State, pool: &Pool, h: &mut PoolHealth, missing: &BTreeMap<SdsId, u32>) {
    for (sds, n) in missing {
        let Some(x) = s.sds.get(sds) else { continue };
        let what = match (x.fenced, x.up) {
            (true, _) => "is taken out by the operator",
            (false, false) => "is down",
            (false, true) => "is being brought up to date",
        };
        h.reasons.push(format!(
            "sds {} {what}: {n} placement groups of pool {} miss its copy",
            x.name, pool.name
        ));
    }
    for d in s.pool_devices(pool.id).filter(|d| d.failed.is_some()) {
        let why = d.failed.as_deref().unwrap_or_default();
        h.reasons.push(format!("device {} ({}) has failed: {why}", d.id, d.path.display()));
    }
    h.reasons.extend(s.pool_devices(pool.id).filter_map(suspended));
    if h.pgs_unavailable > 0 {
        h.reasons.push(format!(
            "{} placement groups of pool {} serve no reads and writes",
            h.pgs_unavailable, pool.name
        ));
    }
    let stale: Vec<&Pg> = s.pool_pgs(pool.id).filter(|p| s.only_stale(p.config.pg)).collect();
    if !stale.is_empty() {
        let holders: BTreeSet<SdsId> =
            stale.iter().flat_map(|p| p.config.in_sync.iter().map(|m| m.sds)).collect();
        let names: Vec<&str> =
            holders.iter().filter_map(|x| s.sds.get(x)).map(|x| x.name.as_str()).collect();
        h.reasons.push(format!(
            "of {} placement groups of pool {} no good copy is left here: the good ones are on sds {}",
            stale.len(),
            pool.name,
            names.join(", ")
        ));
    }
    let short =
        s.pool_pgs(pool.id).filter(|p| p.config.listed.len() < p.config.copies as usize).count();
    if short > 0 {
        h.reasons.push(format!(
            "pool {} has too few servers for {} copies of {short} placement groups",
            pool.name, pool.copies
        ));
    }
    if h.health != Health::Ok && h.reasons.is_empty() {
        h.reasons.push(format!("placement groups of pool {} are starting", pool.name));
    }
}

/// What is said of a device that is suspended (R27).
pub fn suspended(d: &Device) -> Option<String> {
    let x = d.suspended.as_ref()?;
    let again = match x.why.is_stalled() {
        true => "it comes back when it moves again".to_string(),
        false => {
            let after = x.until_ms.saturating_sub(x.since_ms) / 1000;
            format!("it is tried again {after} s after it was suspended")
        }
    };
    let (id, path) = (d.id, d.path.display());
    Some(format!("device {id} ({path}) is suspended: {}; {again}", x.why.text()))
}

/// The whole cluster: `scli status --json`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub health: Health,
    pub bytes_degraded: u64,
    pub bytes_one_copy: u64,
    pub eta_seconds: Option<u64>,
    pub reasons: Vec<String>,
    /// What wants attention although the health is not touched: pools that fill up or rebuild nothing, clients that are gone.
    pub warnings: Vec<String>,
    pub cluster_id: String,
    pub index: u64,
    pub nodes: usize,
    pub sds: usize,
    pub sds_up: usize,
    pub sdcs: usize,
    pub sdcs_up: usize,
    pub volumes: usize,
    pub pools: Vec<PoolHealth>,
}

pub fn status(s: &State, hub: &HubInner, stale: Option<String>, now: Nanos) -> Status {
    let pools: Vec<PoolHealth> = s.pools.values().map(|p| pool_health(s, hub, p, now)).collect();
    let mut reasons: Vec<String> = stale.into_iter().collect();
    reasons.extend(pools.iter().flat_map(|p| p.reasons.iter().cloned()));
    // No time heals a pool that waits for devices, and it does not hold the others up.
    let mut hurt =
        pools.iter().filter(|p| p.health != Health::Ok && !p.waits_for_devices).peekable();
    let only_waits = hurt.peek().is_none() && pools.iter().any(|p| p.waits_for_devices);
    let unknown = only_waits || hurt.any(|p| p.eta_seconds.is_none());
    let health = pools.iter().map(|p| p.health).max().unwrap_or(Health::Ok);
    Status {
        health,
        bytes_degraded: pools.iter().map(|p| p.bytes_degraded).sum(),
        bytes_one_copy: pools.iter().map(|p| p.bytes_one_copy).sum(),
        eta_seconds: if unknown {
            None
        } else {
            Some(pools.iter().filter_map(|p| p.eta_seconds).max().unwrap_or(0))
        },
        reasons,
        warnings: warnings(s, hub),
        cluster_id: s.cluster.clone(),
        index: s.index.0,
        nodes: s.nodes.len(),
        sds: s.sds.len(),
        sds_up: s.sds.values().filter(|x| x.up && !x.fenced).count(),
        sdcs: s.sdcs.len(),
        sdcs_up: hub.sdcs.values().filter(|l| l.session.is_some()).count(),
        volumes: s.volumes.len(),
        pools,
    }
}

fn warnings(s: &State, hub: &HubInner) -> Vec<String> {
    let full = s.pools.values().filter(|p| p.level != Level::Normal).map(|p| {
        let raw = s.capacity(p).raw.max(1);
        let used = u128::from(crate::api::pool_used(s, hub, p.id));
        let kept = u128::from(crate::api::pool_promised(s, hub, p.id));
        let percent = (used + kept) * 100 / u128::from(raw);
        let thick = match kept * 100 / u128::from(raw) {
            0 => String::new(),
            n => format!(", {n} % of it kept for what thick volumes have not written yet"),
        };
        format!(
            "pool {} is {percent} % full ({}{thick}): add devices or delete volumes",
            p.name,
            p.level.name()
        )
    });
    let stopped = s.pools.values().filter(|p| p.rebuild_cancelled).map(|p| {
        let name = &p.name;
        format!("rebuilding elsewhere is stopped in pool {name}: scli rebuild start --pool {name}")
    });
    let gone = s.sds.values().filter(|x| !x.up && !x.fenced && x.start.get() > 0);
    // With copies on it, it is among the reasons.
    let gone = gone.filter(|x| s.copies_on_sds(x.id) == 0).map(|x| {
        let name = &x.name;
        format!(
            "sds {name} is down and holds no copies: start it, or scli sds delete --name {name}"
        )
    });
    let drained = s.sds.values().filter(|x| x.draining).map(|x| {
        let n = s.copies_on_sds(x.id);
        let rest =
            if n == 0 { "it may be deleted".into() } else { format!("{n} copies are left on it") };
        format!("sds {} is being drained: {rest}", x.name)
    });
    let down = s.sdcs.values().filter(|x| !x.up && x.instance.get() > 0);
    let down = down.filter_map(|x| {
        let has = |v: &&crate::state::Volume| v.mappings.iter().any(|m| m.sdc == x.id);
        let n = s.volumes.values().filter(has).count();
        (n > 0).then(|| format!("sdc {} is down: {n} volumes are mapped to it", x.name))
    });
    full.chain(stopped).chain(gone).chain(drained).chain(down).collect()
}

/// State of a group for lists.
pub fn pg_row(s: &State, hub: &HubInner, pg: PgId, now: Nanos) -> Option<serde_json::Value> {
    let p = s.pgs.get(&pg)?;
    let c = &p.config;
    let r = hub.pgs.get(&pg).and_then(|l| l.report.as_ref());
    Some(serde_json::json!({
        "id": pg.to_string(), "pool_id": pg.pool(), "pg": pg.index(), "epoch": c.epoch, "index": c.index,
        "health": pg_health(s, hub, p, now), "primary": c.primary, "in_sync": c.in_sync, "syncing": c.syncing,
        "listed": c.listed, "retiring": p.retiring, "copies": c.copies, "active": serves(s, hub, p),
        "only_stale": s.only_stale(pg),
        "bytes": r.map_or(0, |r| r.bytes), "bytes_degraded": degraded_bytes(hub.pgs.get(&pg), c),
    }))
}
