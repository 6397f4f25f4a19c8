//! What the driver notes of the cluster's life once a second: health and fill of pools, clients that went, the rate of
//! rebuilds. It only decides which commands to submit; the state machine carries them out.

use super::hub::{Hub, HubInner};
use super::left_of;
use super::now;
use super::tasks::rate_key;
use crate::health::{pool_health, Health};
use crate::state::{rate_of, Level, Op, Pool, State, TaskState};
use quarry_base::{Nanos, PoolId, SdcId};
use std::collections::BTreeMap;
use std::time::Duration;

/// After the MDM's start nothing is known of the nodes for a moment.
const SETTLE: Duration = Duration::from_secs(5);
/// A client without a session for this long is lost.
const SDC_LOST: Duration = Duration::from_secs(2);
/// A pool's level falls when it is this much below the threshold, percent of its capacity.
const HYSTERESIS: u64 = 2;

/// May a client be there of which this MDM, which has just started, has not heard yet?
pub fn may_still_come(hub: &Hub, sdc: SdcId) -> bool {
    let h = hub.lock();
    now().since(h.started) < SETTLE && !h.sdcs.contains_key(&sdc)
}

/// Commands that are due.
pub fn due(s: &State, hub: &HubInner, at: Nanos) -> Vec<Op> {
    if at.since(hub.started) < SETTLE {
        return Vec::new();
    }
    let mut out = Vec::new();
    for p in s.pools.values() {
        out.extend(health(s, hub, p, at));
        out.extend(level(s, hub, p));
        out.extend(pace(s, hub, p));
    }
    for x in s.sdcs.values().filter(|x| x.up) {
        let live = hub.sdcs.get(&x.id);
        let gone = live.is_none_or(|l| l.session.is_none() && at.since(l.heard) > SDC_LOST);
        if gone {
            out.push(Op::SdcLost { id: x.id, instance: x.instance });
        }
    }
    out
}

fn health(s: &State, hub: &HubInner, p: &Pool, at: Nanos) -> Option<Op> {
    let h = pool_health(s, hub, p, at);
    if h.health.name() == p.health || (p.health.is_empty() && h.health != Health::Ok) {
        return None;
    }
    let reason = match h.health {
        Health::Ok => "every block has all its copies".to_string(),
        _ => h.reasons.join("; "),
    };
    Some(Op::NoteHealth { pool: p.id, health: h.health.name().into(), reason })
}

fn level(s: &State, hub: &HubInner, p: &Pool) -> Option<Op> {
    let raw = s.capacity(p).raw;
    let used = crate::api::pool_used(s, hub, p.id);
    // What is kept for thick volumes is not there for others.
    let kept = crate::api::pool_promised(s, hub, p.id);
    let taken = u128::from(used) + u128::from(kept);
    let percent = u64::try_from(taken * 100 / u128::from(raw.max(1))).unwrap_or(100);
    let at = |threshold: u32, held: bool| {
        percent + if held { HYSTERESIS } else { 0 } >= u64::from(threshold)
    };
    let new = if at(p.alert_critical_percent, p.level == Level::Critical) {
        Level::Critical
    } else if at(p.alert_high_percent, p.level >= Level::High) {
        Level::High
    } else {
        Level::Normal
    };
    (new != p.level).then(|| Op::NoteLevel {
        pool: p.id,
        level: new,
        reason: match kept {
            0 => format!("{percent} % of {raw} bytes used"),
            _ => format!("{percent} % of {raw} bytes used or kept for thick volumes"),
        },
    })
}

/// The rate that policy, load and the number of groups being restored give.
fn pace(s: &State, hub: &HubInner, p: &Pool) -> Option<Op> {
    let load = hub.loads.get(&p.id).map_or(0, |l| l.1);
    let syncing = s.pool_pgs(p.id).filter(|g| !g.config.syncing.is_empty()).count();
    let rate = rate_of(p, load, syncing);
    (rate != p.rate_now).then_some(Op::SetRate { pool: p.id, bytes_per_second: rate })
}

/// Application traffic of each pool, from what clients report of volumes: bytes so far, and since the last time.
pub fn loads(s: &State, hub: &HubInner) -> BTreeMap<PoolId, (u64, u64)> {
    let mut sum: BTreeMap<PoolId, u64> = s.pools.keys().map(|p| (*p, 0)).collect();
    let pools: BTreeMap<u32, PoolId> = s.volumes.values().map(|v| (v.id.get(), v.pool)).collect();
    for (name, n) in hub.sdcs.values().filter(|l| l.session.is_some()).flat_map(|l| &l.counters) {
        let mut parts = name.splitn(3, '.');
        if parts.next() != Some("volume") {
            continue;
        }
        let pool = parts.next().and_then(|id| id.parse().ok()).and_then(|id: u32| pools.get(&id));
        let data = matches!(parts.next(), Some("read_bytes" | "write_bytes"));
        if let Some(total) = pool.filter(|_| data).and_then(|p| sum.get_mut(p)) {
            *total = total.saturating_add(*n);
        }
    }
    sum.into_iter()
        .map(|(p, total)| {
            let before = hub.loads.get(&p).map_or(total, |l| l.0);
            (p, (total, total.saturating_sub(before)))
        })
        .collect()
}

/// Bytes left of every running task, by its rate's key.
pub fn task_bytes(s: &State, hub: &HubInner) -> BTreeMap<String, u64> {
    let running = s.tasks.values().filter(|t| t.state == TaskState::Running);
    running.filter_map(|t| Some((rate_key(&t.kind), left_of(s, hub, &t.kind).bytes?))).collect()
}
