//! Objects as the API shows them.

use crate::control::{DeviceLive, HubInner, SdsLive};
use crate::health;
use crate::state::{Device, Domain, Event, FaultSet, Pool, Sdc, Sds, State, Volume};
use quarry_base::{Nanos, NodeId, PoolId};
use serde_json::{json, Value};

const GIB: f64 = (1u64 << 30) as f64;

pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB
}

/// RFC 3339, UTC, from Unix milliseconds.
pub fn rfc3339(ms: u64) -> String {
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    // Days to civil date (proleptic Gregorian), counted from 0000-03-01.
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (d, m) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let y = yoe + era * 400 + i64::from(m <= 2);
    let s = rest / 1000;
    format!(
        "{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}.{:03}Z",
        s / 3600,
        s / 60 % 60,
        s % 60,
        rest % 1000
    )
}

pub fn domain(s: &State, d: &Domain) -> Value {
    let sds: Vec<_> = s.sds.values().filter(|x| x.domain == d.id).map(|x| x.id).collect();
    let pools: Vec<_> = s.pools.values().filter(|p| p.domain == d.id).map(|p| p.id).collect();
    let raw: u64 =
        s.devices.values().filter(|x| sds.contains(&x.sds)).map(|x| x.capacity_bytes).sum();
    let sets: Vec<u32> = s.fault_sets.values().filter(|f| f.domain == d.id).map(|f| f.id).collect();
    json!({ "id": d.id, "name": d.name, "sds_ids": sds, "pool_ids": pools, "fault_set_ids": sets,
        "total_capacity_gb": gib(raw), "capacity_bytes": raw })
}

pub fn fault_set(s: &State, f: &FaultSet) -> Value {
    let sds: Vec<_> = s.sds.values().filter(|x| x.fault_set == Some(f.id)).map(|x| x.id).collect();
    json!({ "id": f.id, "name": f.name, "protection_domain_id": f.domain, "sds_ids": sds })
}

pub fn policy(p: &Pool) -> Value {
    json!({
        "pool_id": p.id, "pool": p.name, "rebuild_policy": p.pacing,
        "rebuild_bytes_per_second": p.rebuild_bytes_per_second, "rate_now_bytes_per_second": p.rate_now,
        "rebuild_grace_seconds": p.rebuild_grace_seconds, "over_commit": p.over_commit,
        "reserve_percent": p.reserve_percent, "alert_high_percent": p.alert_high_percent,
        "alert_critical_percent": p.alert_critical_percent, "auto_rebalance": p.auto_rebalance,
        "moves_at_once": p.moves_at_once, "scrub_bytes_per_second": p.scrub_bytes_per_second,
        "scrub_by_server": p.scrub_bytes_per_second.is_none(),
    })
}

/// Bytes used on all devices of a pool, as they report.
pub fn pool_used(s: &State, hub: &HubInner, pool: PoolId) -> u64 {
    s.pool_devices(pool).map(|d| device_used(hub, d)).sum()
}

/// Bytes used on the pool's devices, for a promise of space. `None`: no device has reported since this MDM started.
pub fn pool_used_for_promise(s: &State, hub: &HubInner, pool: PoolId) -> Option<u64> {
    let used = |d: &Device| Some(hub.sds.get(&d.sds)?.devices.get(&d.id)?.used);
    used_for_promise(s.pool_devices(pool).map(|d| (d.capacity_bytes, used(d), d.failed.is_some())))
}

/// Bytes used on devices of which there are capacity, what it reported to be used, and whether it has failed: of one that has not
/// reported as much counts as of the others. `None`: none has.
fn used_for_promise(devices: impl Iterator<Item = (u64, Option<u64>, bool)>) -> Option<u64> {
    let (mut used, mut heard, mut all) = (0u128, 0u128, 0u128);
    for (capacity, reported, failed) in devices {
        if let Some(bytes) = reported {
            used += u128::from(bytes);
            heard += u128::from(capacity);
        }
        // One that has failed holds nothing that counts.
        if reported.is_some() || !failed {
            all += u128::from(capacity);
        }
    }
    match heard {
        0 if all == 0 => Some(0),
        0 => None,
        _ => Some(
            used.checked_mul(all).map_or(u64::MAX, |x| (x / heard).min(u64::MAX.into()) as u64),
        ),
    }
}

/// Bytes that servers keep for thick volumes on a pool's devices and that are not written yet, all copies.
pub fn pool_promised(s: &State, hub: &HubInner, pool: PoolId) -> u64 {
    let kept = |d: &Device| {
        let counters = hub.sds.get(&d.sds).map(|l| &l.counters)?;
        counters.get(&quarry_control::promised(d.id)).copied()
    };
    s.pool_devices(pool).filter_map(kept).sum()
}

pub fn pool(s: &State, hub: &HubInner, p: &Pool, now: Nanos) -> Value {
    let c = s.capacity(p);
    let devices: Vec<_> = s.pool_devices(p.id).map(|d| d.id).collect();
    let used = pool_used(s, hub, p.id);
    json!({
        "id": p.id, "name": p.name, "protection_domain_id": p.domain,
        "protection_domain": s.domains.get(&p.domain).map(|d| &d.name), "copies": p.copies,
        "min_copies": p.min_copies, "ack": p.ack, "reads": p.reads, "pg_count": p.pg_count,
        "health": health::pool_health(s, hub, p, now).health,
        "device_ids": devices, "total_capacity_gb": gib(c.raw), "capacity_bytes": c.raw,
        "usable_bytes": c.usable, "used_bytes": used, "free_bytes": c.raw.saturating_sub(used),
        "reserve_bytes": c.reserve, "provisioned_bytes": c.provisioned, "thick_bytes": c.thick,
        "free_thick_bytes": c.free_thick(used / u64::from(p.copies.max(1))), "capacity_level": p.level,
        "over_commit": p.over_commit, "limit_bytes": c.limit, "reserve_percent": p.reserve_percent,
        "rebuild_grace_seconds": p.rebuild_grace_seconds,
        "rebuild_bytes_per_second": p.rebuild_bytes_per_second, "rebuild_policy": p.pacing,
        "rebalancing": p.rebalancing,
    })
}

fn device_used(hub: &HubInner, d: &Device) -> u64 {
    hub.sds.get(&d.sds).and_then(|l| l.devices.get(&d.id)).map_or(0, |l| l.used)
}

pub fn sds_state(x: &Sds) -> &'static str {
    match (x.fenced, x.up, x.start.get()) {
        (true, ..) => "failed",
        (_, _, 0) => "added",
        (_, true, _) if x.leaving => "leaving",
        (_, true, _) if x.draining => "draining",
        (_, true, _) => "up",
        _ => "down",
    }
}

fn heard(at: Option<Nanos>, now: Nanos) -> Value {
    at.map_or(Value::Null, |h| json!(now.since(h).as_secs_f64()))
}

pub fn sds(s: &State, hub: &HubInner, x: &Sds, now: Nanos) -> Value {
    let devices: Vec<Value> =
        s.devices.values().filter(|d| d.sds == x.id).map(|d| device(s, hub, d)).collect();
    let raw: u64 = s.devices.values().filter(|d| d.sds == x.id).map(|d| d.capacity_bytes).sum();
    let used: u64 = s.devices.values().filter(|d| d.sds == x.id).map(|d| device_used(hub, d)).sum();
    let live = hub.sds.get(&x.id);
    json!({
        "id": x.id, "name": x.name, "protection_domain_id": x.domain, "fault_set": x.fault_set,
        "fault_set_id": x.fault_set,
        "fault_set_name": x.fault_set.and_then(|f| s.fault_sets.get(&f)).map(|f| &f.name),
        "node_id": x.node, "state": sds_state(x), "start": x.start, "metrics": x.metrics,
        "connected": live.is_some_and(|l| l.session.is_some()),
        "last_heartbeat_seconds": heard(live.map(|l| l.heard), now),
        "applied": live.map_or(0, |l: &SdsLive| l.applied.0), "confirmed": live.map_or(0, |l| l.confirmed.0),
        "devices": devices, "copies": s.copies_on_sds(x.id), "total_capacity_gb": gib(raw), "capacity_bytes": raw, "used_bytes": used,
    })
}

pub fn device(s: &State, hub: &HubInner, d: &Device) -> Value {
    let state = match (&d.failed, s.sds.get(&d.sds)) {
        _ if d.removed => "removed",
        (Some(_), _) => "failed",
        (None, Some(x)) if x.up && !x.fenced => {
            match hub.sds.get(&x.id).map(|l| l.devices.get(&d.id)) {
                Some(None | Some(DeviceLive { open: false, .. })) => "opening",
                _ if d.suspended.is_some() => "suspended",
                _ if s.draining(d.id) => "draining",
                _ => "ok",
            }
        }
        _ => "down",
    };
    json!({
        "id": d.id, "uuid": d.uuid, "sds_id": d.sds, "sds": s.sds.get(&d.sds).map(|x| &x.name),
        "pool_id": d.pool, "pool": d.pool.and_then(|p| s.pools.get(&p)).map(|p| &p.name), "copies": s.copies_on(d.id), "path": d.path, "capacity_bytes": d.capacity_bytes,
        "used_bytes": device_used(hub, d), "state": state, "error": d.failed,
        "suspended": d.suspended.as_ref().map(|x| x.why.text()),
        "tried_again_ms": d.suspended.as_ref().map(|x| x.until_ms),
    })
}

pub fn sdc(s: &State, hub: &HubInner, x: &Sdc, now: Nanos) -> Value {
    let live = hub.sdcs.get(&x.id);
    let up = live.is_some_and(|l| l.session.is_some());
    let volumes: Vec<_> = s
        .volumes
        .values()
        .filter(|v| v.mappings.iter().any(|m| m.sdc == x.id))
        .map(|v| v.id)
        .collect();
    let state = match (up, x.instance.get()) {
        (true, _) => "up",
        (false, 0) => "added",
        _ => "down",
    };
    json!({
        "id": x.id, "name": x.name, "node_id": x.node, "state": state, "instance": x.instance,
        "metrics": x.metrics, "volume_ids": volumes,
        "last_heartbeat_seconds": heard(live.map(|l| l.heard), now),
        "attachments": live.and_then(|l| l.attachments.as_ref()),
    })
}

pub fn volume(s: &State, hub: &HubInner, v: &Volume) -> Value {
    let mappings: Vec<Value> = v
        .mappings
        .iter()
        .map(|m| {
            let name = s.sdcs.get(&m.sdc).map_or("", |x| x.name.as_str());
            let a = hub.sdcs.get(&m.sdc).and_then(|l| l.attachments.as_ref());
            let a = a.and_then(|a| a.iter().find(|a| a.volume == v.id));
            let uri = a.and_then(|a| a.socket.as_ref()).map(|p| uri(&v.name, p));
            json!({ "sdc_id": m.sdc, "sdc": name, "read_only": m.read_only, "io_timeout_seconds": m.io_timeout_ms as f64 / 1000.0, "device_wanted": m.device,
                "uri": uri, "device": a.and_then(|a| a.device.as_ref()) })
        })
        .collect();
    json!({
        "id": v.id, "name": v.name, "pool_id": v.pool, "pool": s.pools.get(&v.pool).map(|p| &p.name),
        "size_bytes": v.size_bytes, "size_gb": gib(v.size_bytes), "provisioning": v.provisioning,
        "generation": v.generation, "vtree": v.vtree, "created": rfc3339(v.created_ms), "mappings": mappings,
    })
}

/// Address of a volume's NBD socket.
pub fn uri(volume: &str, socket: &std::path::Path) -> String {
    format!("nbd+unix:///{volume}?socket={}", socket.display())
}

pub fn node(s: &State, hub: &HubInner, id: NodeId, mdm_name: &str, now: Nanos) -> Option<Value> {
    let n = s.nodes.get(&id)?;
    let sds = s.sds.values().filter(|x| x.node == Some(id)).filter_map(|x| hub.sds.get(&x.id));
    let sdc = s.sdcs.values().filter(|x| x.node == Some(id)).filter_map(|x| hub.sdcs.get(&x.id));
    let mut seen: Vec<(bool, Nanos)> = sds.map(|l| (l.session.is_some(), l.heard)).collect();
    seen.extend(sdc.map(|l| (l.session.is_some(), l.heard)));
    if n.name == mdm_name {
        seen.push((true, now));
    }
    let up = !seen.is_empty() && seen.iter().all(|x| x.0);
    let some = seen.iter().any(|x| x.0);
    let can: Vec<_> = n.capabilities.iter().filter(|c| n.can(**c)).collect();
    let sdc_ids: Vec<_> = s.sdcs.values().filter(|x| x.node == Some(id)).map(|x| x.id).collect();
    Some(json!({
        "id": n.id, "name": n.name, "addresses": n.addresses, "capabilities": can,
        "removed_capabilities": n.disabled, "sds_ids": s.sds_of(id), "sdc_ids": sdc_ids,
        "state": if up { "up" } else if some { "partial" } else { "down" },
        "last_heartbeat_seconds": heard(seen.iter().map(|x| x.1).max(), now), "version": n.release,
    }))
}

pub fn event(e: &Event) -> Value {
    json!({ "id": e.id, "time": rfc3339(e.at_ms), "who": e.who, "what": e.what, "object": e.object,
        "outcome": e.outcome, "reason": e.reason })
}

#[cfg(test)]
mod tests {
    use super::{rfc3339, used_for_promise};

    #[test]
    fn a_device_that_has_not_reported_counts_like_the_others_for_a_promise() {
        let used = |d: &[_]| used_for_promise(d.iter().copied());
        assert_eq!(used(&[]), Some(0));
        assert_eq!(used(&[(100, None, false)]), None, "nobody knows yet");
        assert_eq!(used(&[(100, Some(30), false), (100, Some(50), false)]), Some(80));
        assert_eq!(used(&[(100, Some(30), false), (200, None, false)]), Some(90));
        assert_eq!(used(&[(100, Some(30), false), (200, None, true)]), Some(30), "it has failed");
        assert_eq!(used(&[(u64::MAX, Some(u64::MAX), false); 3]), Some(u64::MAX));
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(rfc3339(1_764_000_000_000), "2025-11-24T16:00:00.000Z");
    }
}
