//! The MDM's own gauges, computed when they are scraped.

use crate::api::Api;
use crate::control::now;
use crate::health::{self, Health};
use crate::state::{Capacity, Pool, TaskState};
use quarry_metrics::{Counter, Metrics, Sample};
use std::collections::BTreeMap;

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
    per_pool(m, api, "quarry_pgs_syncing", "Groups with a copy being brought up to date", |p| {
        Some(f64::from(p.pgs_syncing))
    });
    copies(m, api);
    capacity(m, api);
    nodes(m, api);
    daemons(m, api);
    own(m, api);
}

/// `quarry_limit_reached_total` of the MDM. The counter is for rows that the timeline has no room for.
pub fn limits(m: &Metrics, api: &Api) -> Counter {
    let full = Counter::new();
    let (a, f) = (api.clone(), full.clone());
    m.counter_fn(
        "quarry_limit_reached_total",
        "Times a limit was reached and somebody had to wait or was cut off",
        &["limit"],
        move || {
            let slow = a.hub.lock().slow_sessions;
            vec![
                (vec!["timeline_objects".to_string()], f.get() as f64),
                (vec!["mdm_session_queue".to_string()], slow as f64),
            ]
        },
    );
    full
}

fn copies(m: &Metrics, api: &Api) {
    let a = api.clone();
    m.gauge_fn(
        "quarry_copies_missing",
        "Copies of placement groups that are not in sync",
        &["pool"],
        move || {
            let s = a.state.read();
            let lacks = |p: &Pool| -> usize {
                s.pool_pgs(p.id)
                    .map(|g| (g.config.copies as usize).saturating_sub(g.config.in_sync.len()))
                    .sum()
            };
            s.pools.values().map(|p| (vec![p.name.clone()], lacks(p) as f64)).collect()
        },
    );
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
    type Part = fn(&Capacity) -> u64;
    let parts: [(&'static str, &'static str, Part); 6] = [
        ("quarry_pool_capacity_bytes", "Raw capacity of a pool", |c| c.raw),
        ("quarry_pool_usable_bytes", "Capacity of a pool for one copy of everything", |c| c.usable),
        ("quarry_pool_reserve_bytes", "Kept from thick volumes so that a rebuild has room", |c| {
            c.reserve
        }),
        ("quarry_pool_provisioned_bytes", "Size of all volumes of a pool", |c| c.provisioned),
        ("quarry_pool_thick_bytes", "Size of all thick volumes of a pool", |c| c.thick),
        ("quarry_pool_limit_bytes", "Most that volumes of a pool may promise together", |c| {
            c.limit
        }),
    ];
    for (name, help, part) in parts {
        let a = api.clone();
        m.gauge_fn(name, help, &["pool"], move || {
            let s = a.state.read();
            let row = |p: &Pool| (vec![p.name.clone()], part(&s.capacity(p)) as f64);
            s.pools.values().map(row).collect()
        });
    }
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

/// One row a daemon: an alert can name it.
fn daemons(m: &Metrics, api: &Api) {
    let a = api.clone();
    m.gauge_fn(
        "quarry_daemon_up",
        "1 while the MDM counts on this SDS or SDC",
        // Not role and name: those are labels that service discovery gives the MDM itself.
        &["kind", "daemon"],
        move || {
            let hub = a.hub.lock();
            let s = a.state.read();
            let row = |role: &str, name: &str, up: bool| {
                (vec![role.to_string(), name.to_string()], f64::from(u8::from(up)))
            };
            let mut out: Vec<Sample> =
                s.sds.values().map(|x| row("sds", &x.name, x.up && !x.fenced)).collect();
            out.extend(s.sdcs.values().filter(|x| x.instance.get() > 0).map(|x| {
                let up = hub.sdcs.get(&x.id).is_some_and(|l| l.session.is_some());
                row("sdc", &x.name, up)
            }));
            out
        },
    );
    let a = api.clone();
    m.gauge_fn(
        "quarry_heartbeat_age_seconds",
        "Time since a daemon was heard last",
        &["kind", "daemon"],
        move || {
            let at = now();
            let hub = a.hub.lock();
            let s = a.state.read();
            let row = |role: &str, name: &str, heard: quarry_base::Nanos| {
                (vec![role.to_string(), name.to_string()], at.since(heard).as_secs_f64())
            };
            let sds =
                s.sds.values().filter_map(|x| Some(row("sds", &x.name, hub.sds.get(&x.id)?.heard)));
            let sdc = s
                .sdcs
                .values()
                .filter_map(|x| Some(row("sdc", &x.name, hub.sdcs.get(&x.id)?.heard)));
            sds.chain(sdc).collect()
        },
    );
}

/// The MDM itself.
fn own(m: &Metrics, api: &Api) {
    let a = api.clone();
    m.gauge_fn("quarry_mdm_log_index", "Newest command of the log applied", &[], move || {
        vec![(Vec::new(), a.state.read().index.0 as f64)]
    });
    let a = api.clone();
    m.gauge_fn("quarry_mdm_stale", "1 when the cluster knows a newer state", &[], move || {
        vec![(Vec::new(), f64::from(u8::from(a.engine.stale().is_some())))]
    });
    let a = api.clone();
    m.gauge_fn("quarry_mdm_sessions", "Control sessions open", &["kind"], move || {
        let hub = a.hub.lock();
        let sds = hub.sds.values().filter(|l| l.session.is_some()).count();
        let sdc = hub.sdcs.values().filter(|l| l.session.is_some()).count();
        vec![(vec!["sds".into()], sds as f64), (vec!["sdc".into()], sdc as f64)]
    });
    let a = api.clone();
    m.counter_fn("quarry_events_total", "Events entered", &[], move || {
        vec![(Vec::new(), a.state.read().next.event as f64)]
    });
    let a = api.clone();
    m.gauge_fn("quarry_tasks", "Tasks kept, by state", &["state"], move || {
        let s = a.state.read();
        let mut n: BTreeMap<&str, usize> =
            [("running", 0), ("done", 0), ("failed", 0), ("cancelled", 0)].into_iter().collect();
        for t in s.tasks.values() {
            let state = match t.state {
                TaskState::Running => "running",
                TaskState::Done => "done",
                TaskState::Failed => "failed",
                TaskState::Cancelled => "cancelled",
            };
            *n.entry(state).or_default() += 1;
        }
        n.into_iter().map(|(k, v)| (vec![k.to_string()], v as f64)).collect()
    });
    let a = api.clone();
    m.gauge_fn("quarry_timeline_objects", "Objects with recorded history", &[], move || {
        vec![(Vec::new(), a.timeline.lock().size().0 as f64)]
    });
    let a = api.clone();
    m.gauge_fn("quarry_timeline_rows", "Rows of recorded history in memory", &[], move || {
        vec![(Vec::new(), a.timeline.lock().size().1 as f64)]
    });
}
