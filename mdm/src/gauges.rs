//! The MDM's own gauges, computed when they are scraped.

use crate::api::Api;
use crate::health::{self, Health};
use quarry_metrics::{Metrics, Sample};

/// Registers them.
pub fn register(m: &Metrics, api: &Api) {
    let a = api.clone();
    m.gauge_fn("quarry_health", "1 for the present health of the cluster", &["state"], move || {
        let h = a.status().health;
        let row = |x: Health| (vec![x.name().to_string()], f64::from(u8::from(x == h)));
        vec![row(Health::Ok), row(Health::Degraded), row(Health::Unavailable)]
    });
    let a = api.clone();
    m.gauge_fn("quarry_pgs", "Placement groups by state", &["pool", "state"], move || {
        let row = |p: &health::PoolHealth, s: &str, n: u32| {
            (vec![p.pool.clone(), s.to_string()], f64::from(n))
        };
        let pools = a.status().pools;
        let rows = pools.iter().flat_map(|p| {
            [
                row(p, "ok", p.pgs_ok),
                row(p, "degraded", p.pgs_degraded),
                row(p, "unavailable", p.pgs_unavailable),
            ]
        });
        rows.collect()
    });
    per_pool(m, api, "quarry_degraded_bytes", "Bytes with fewer copies than asked", |p| {
        Some(p.bytes_degraded as f64)
    });
    per_pool(m, api, "quarry_rebuild_eta_seconds", "Time until a pool is whole again", |p| {
        p.eta_seconds.map(|e| e as f64)
    });
    capacity(m, api);
    nodes(m, api);
}

fn per_pool(
    m: &Metrics,
    api: &Api,
    name: &'static str,
    help: &'static str,
    f: impl Fn(&health::PoolHealth) -> Option<f64> + Send + Sync + 'static,
) {
    let a = api.clone();
    m.gauge_fn(name, help, &["pool"], move || {
        a.status().pools.iter().filter_map(|p| Some((vec![p.pool.clone()], f(p)?))).collect()
    });
}

fn capacity(m: &Metrics, api: &Api) {
    let a = api.clone();
    m.gauge_fn("quarry_pool_capacity_bytes", "Raw capacity of a pool", &["pool"], move || {
        let s = a.state.read();
        s.pools.values().map(|p| (vec![p.name.clone()], s.capacity(p).raw as f64)).collect()
    });
    let a = api.clone();
    m.gauge_fn(
        "quarry_pool_provisioned_bytes",
        "Size of all volumes of a pool",
        &["pool"],
        move || {
            let s = a.state.read();
            s.pools
                .values()
                .map(|p| (vec![p.name.clone()], s.capacity(p).provisioned as f64))
                .collect()
        },
    );
    let a = api.clone();
    m.gauge_fn(
        "quarry_pool_used_bytes",
        "Used bytes on the devices of a pool",
        &["pool"],
        move || {
            let hub = a.hub.lock();
            let s = a.state.read();
            let used = |p: &crate::state::Pool| -> u64 {
                s.pool_devices(p.id)
                    .filter_map(|d| Some(hub.sds.get(&d.sds)?.devices.get(&d.id)?.used))
                    .sum()
            };
            s.pools.values().map(|p| (vec![p.name.clone()], used(p) as f64)).collect()
        },
    );
    let a = api.clone();
    m.gauge_fn("quarry_volumes", "Volumes", &[], move || {
        vec![(Vec::new(), a.state.read().volumes.len() as f64)]
    });
}

fn nodes(m: &Metrics, api: &Api) {
    let a = api.clone();
    m.gauge_fn(
        "quarry_nodes",
        "Nodes by capability and state",
        &["capability", "state"],
        move || {
            let hub = a.hub.lock();
            let s = a.state.read();
            let sds_up = s.sds.values().filter(|x| x.up && !x.fenced).count();
            let sdc_up = hub.sdcs.values().filter(|l| l.session.is_some()).count();
            let row = |c: &str, st: &str, n: usize| -> Sample {
                (vec![c.to_string(), st.to_string()], n as f64)
            };
            vec![
                row("MDM", "up", 1),
                row("SDS", "up", sds_up),
                row("SDS", "down", s.sds.len() - sds_up),
                row("SDC", "up", sdc_up),
                row("SDC", "down", s.sdcs.len().saturating_sub(sdc_up)),
            ]
        },
    );
}
