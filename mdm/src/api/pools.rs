//! Protection domains, pools, rebuild.

use super::change::{create, delete, unexpected};
use super::input::{find, new_name, one_of, page, Body, Params, Ref};
use super::servers::begun;
use super::spec::{body, Empty, Route};
use super::{render, Answer, Api, ApiError, ADMIN};
use crate::control::now;
use crate::health;
use crate::state::{self, Ack, AddPool, Op, Pacing, Policy, Reads};
use axum::extract::{Path, Query, State as Ext};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::Json;
use quarry_base::{DeviceId, DomainId, PoolId};
use serde_json::{json, Value};

pub fn routes() -> Vec<Route> {
    vec![
        Route::post("/pd/create", "Make a protection domain", pd_create)
            .body::<PdBody>()
            .gives(201, "ProtectionDomain")
            .keyed(),
        Route::get("/pd/list", "All protection domains", pd_list)
            .list("ProtectionDomain", "[ProtectionDomain]"),
        Route::get("/pd/{id}", "One protection domain", pd_get).gives(200, "ProtectionDomain"),
        Route::delete("/pd/{id}", "Remove an empty protection domain", pd_delete)
            .gives(200, "Deleted")
            .dry(),
        Route::post("/pool/create", "Make a pool of devices", pool_create)
            .body::<PoolBody>()
            .gives(201, "Pool")
            .keyed(),
        Route::get("/pool/list", "All pools", pool_list).list("Pool", "[Pool]"),
        Route::get("/pool/{id}", "One pool", pool_get).gives(200, "Pool"),
        Route::get("/pool/{id}/health", "State of a pool's placement groups", pool_health)
            .gives(200, "PoolHealth"),
        Route::delete("/pool/{id}", "Destroy a pool without volumes", pool_delete)
            .gives(200, "Deleted")
            .dry(),
        Route::post(
            "/pool/{id}/rebalance",
            "Spread the copies evenly over the devices",
            pool_rebalance,
        )
        .body::<Empty>()
        .gives(202, "Task")
        .dry(),
        Route::get("/policy/list", "Settings of all pools", policy_list).list("Policy", "[Policy]"),
        Route::get("/policy/{pool_id}", "Settings of a pool", policy_get).gives(200, "Policy"),
        Route::post("/policy/{pool_id}", "Change settings of a pool, live", policy_set)
            .body::<PolicyBody>()
            .gives(200, "Policy"),
        Route::post(
            "/rebuild/start/{pool_id}",
            "Restore missing copies now, without the grace time",
            rebuild_start,
        )
        .body::<Empty>()
        .gives(200, "Rebuild")
        .gives(202, "Rebuild"),
        Route::post(
            "/rebuild/cancel/{pool_id}",
            "Stop restoring copies elsewhere for now",
            rebuild_cancel,
        )
        .body::<Empty>()
        .gives(200, "Rebuild"),
        Route::get("/rebuild/status/{pool_id}", "How far it is", rebuild_status)
            .gives(200, "Rebuild"),
    ]
}

pub fn find_domain(api: &Api, r: &Ref) -> Result<DomainId, ApiError> {
    let s = api.state.read();
    find("pd", r, s.domains.values().map(|d| (d.id.get(), d.name.as_str()))).map(DomainId)
}

pub fn find_pool(api: &Api, r: &Ref) -> Result<PoolId, ApiError> {
    let s = api.state.read();
    find("pool", r, s.pools.values().map(|p| (p.id.get(), p.name.as_str()))).map(PoolId)
}

fn domain_json(api: &Api, id: DomainId) -> Result<Value, ApiError> {
    let s = api.state.read();
    s.domains.get(&id).map(|d| render::domain(&s, d)).ok_or_else(|| ApiError::not_found("pd", id))
}

fn pool_json(api: &Api, id: PoolId) -> Result<Value, ApiError> {
    let hub = api.hub.lock();
    let s = api.state.read();
    let p = s.pools.get(&id).ok_or_else(|| ApiError::not_found("pool", id))?;
    Ok(render::pool(&s, &hub, p, now()))
}

body! {
    struct PdBody {
        name: String,
    }
}

async fn pd_create(Ext(api): Ext<Api>, h: HeaderMap, Body(b): Body<PdBody>) -> Answer {
    new_name(&b.name)?;
    create(&api, &h, Op::AddDomain { name: b.name }, |api, a| match a {
        state::Answer::Domain(id) => domain_json(api, *id),
        _ => Err(unexpected()),
    })
    .await
}

async fn pd_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let s = api.state.read();
        s.domains.values().map(|d| render::domain(&s, d)).collect()
    };
    Ok(Json(page(rows, &q, "ProtectionDomain")?).into_response())
}

async fn pd_get(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_domain(&api, &Ref::path(&id))?;
    Ok(Json(domain_json(&api, id)?).into_response())
}

async fn pd_delete(Ext(api): Ext<Api>, Path(id): Path<String>, Query(q): Query<Params>) -> Answer {
    let id = find_domain(&api, &Ref::path(&id))?;
    delete(&api, &q, Op::DeleteDomain { id }, id.get()).await
}

body! {
    struct PoolBody {
        name: String,
        protection_domain_id: Option<Ref>,
        protection_domain: Option<Ref>,
        /// Copies of every block, 1 to 3; 2 if left out.
        copies: Option<u8>,
        /// Fewest copies that take new writes.
        min_copies: Option<u8>,
        ack: Option<Ack>,
        /// What a primary trusts before it serves a read: grants that run by clocks, or an answer of every copy.
        reads: Option<Reads>,
        /// A power of two; left out: by the number of devices.
        pg_count: Option<u32>,
        /// Left out: every unassigned device of the domain.
        device_ids: Option<Vec<u32>>,
        devices: Option<Vec<u32>>,
        /// All volumes together may promise this many times the usable capacity.
        over_commit: Option<u32>,
        /// Kept from thick volumes so that a rebuild has room.
        reserve_percent: Option<u32>,
        /// How long a lost copy may come back before it is rebuilt elsewhere.
        rebuild_grace_seconds: Option<u64>,
        rebuild_bytes_per_second: Option<u64>,
    }
}

async fn pool_create(Ext(api): Ext<Api>, h: HeaderMap, Body(b): Body<PoolBody>) -> Answer {
    new_name(&b.name)?;
    let domain = if b.protection_domain.is_none() && b.protection_domain_id.is_none() {
        DomainId(1)
    } else {
        find_domain(
            &api,
            &one_of("protection_domain", [&b.protection_domain_id, &b.protection_domain, &None])?,
        )?
    };
    let devices = b.device_ids.or(b.devices).map(|d| d.into_iter().map(DeviceId).collect());
    let op = Op::AddPool(Box::new(AddPool {
        name: b.name,
        domain,
        copies: b.copies.unwrap_or(2),
        min_copies: b.min_copies,
        ack: b.ack.unwrap_or_default(),
        reads: b.reads.unwrap_or_default(),
        pg_count: b.pg_count,
        devices,
        over_commit: b.over_commit,
        reserve_percent: b.reserve_percent,
        rebuild_grace_seconds: b.rebuild_grace_seconds,
        rebuild_bytes_per_second: b.rebuild_bytes_per_second,
    }));
    create(&api, &h, op, |api, a| match a {
        state::Answer::Pool(id) => pool_json(api, *id),
        _ => Err(unexpected()),
    })
    .await
}

async fn pool_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        s.pools.values().map(|p| render::pool(&s, &hub, p, now())).collect()
    };
    Ok(Json(page(rows, &q, "Pool")?).into_response())
}

async fn pool_get(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_pool(&api, &Ref::path(&id))?;
    Ok(Json(pool_json(&api, id)?).into_response())
}

fn health_of(api: &Api, id: PoolId) -> Result<health::PoolHealth, ApiError> {
    let hub = api.hub.lock();
    let s = api.state.read();
    let p = s.pools.get(&id).ok_or_else(|| ApiError::not_found("pool", id))?;
    Ok(health::pool_health(&s, &hub, p, now()))
}

async fn pool_health(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_pool(&api, &Ref::path(&id))?;
    Ok(Json(health_of(&api, id)?).into_response())
}

async fn pool_delete(
    Ext(api): Ext<Api>,
    Path(id): Path<String>,
    Query(q): Query<Params>,
) -> Answer {
    let id = find_pool(&api, &Ref::path(&id))?;
    delete(&api, &q, Op::DeletePool { id }, id.get()).await
}

async fn pool_rebalance(
    Ext(api): Ext<Api>,
    Path(id): Path<String>,
    Query(q): Query<Params>,
    Body(_): Body<Empty>,
) -> Answer {
    let pool = find_pool(&api, &Ref::path(&id))?;
    begun(&api, &q, Op::Rebalance { pool }).await
}

body! {
    struct PolicyBody {
        /// How fast missing copies are restored and copies are moved.
        rebuild_policy: Option<Pacing>,
        /// Bytes a second for all groups of the pool together that are restored; 0: no limit.
        rebuild_bytes_per_second: Option<u64>,
        rebuild_grace_seconds: Option<u64>,
        over_commit: Option<u32>,
        reserve_percent: Option<u32>,
        alert_high_percent: Option<u32>,
        alert_critical_percent: Option<u32>,
        /// Move copies by itself when devices were added.
        auto_rebalance: Option<bool>,
        /// Placement groups on the move at a time.
        moves_at_once: Option<u32>,
        /// Bytes a second that the scrub of each device reads; 0: no scrub.
        scrub_bytes_per_second: Option<u64>,
        /// True: each server scrubs at its own scrub_rate again.
        scrub_by_server: Option<bool>,
    }
}

fn policy_json(api: &Api, id: PoolId) -> Answer {
    let s = api.state.read();
    let p = s.pools.get(&id).ok_or_else(|| ApiError::not_found("pool", id))?;
    Ok(Json(render::policy(p)).into_response())
}

async fn policy_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = api.state.read().pools.values().map(render::policy).collect();
    Ok(Json(page(rows, &q, "Policy")?).into_response())
}

async fn policy_get(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    policy_json(&api, find_pool(&api, &Ref::path(&id))?)
}

async fn policy_set(
    Ext(api): Ext<Api>,
    Path(id): Path<String>,
    Body(b): Body<PolicyBody>,
) -> Answer {
    let pool = find_pool(&api, &Ref::path(&id))?;
    let policy = Box::new(Policy {
        pacing: b.rebuild_policy,
        rebuild_bytes_per_second: b.rebuild_bytes_per_second,
        rebuild_grace_seconds: b.rebuild_grace_seconds,
        over_commit: b.over_commit,
        reserve_percent: b.reserve_percent,
        alert_high_percent: b.alert_high_percent,
        alert_critical_percent: b.alert_critical_percent,
        auto_rebalance: b.auto_rebalance,
        moves_at_once: b.moves_at_once,
        scrub_bytes_per_second: b.scrub_bytes_per_second,
        scrub_by_server: b.scrub_by_server,
    });
    api.engine.submit(ADMIN, None, Op::SetPolicy { pool, policy }).await?;
    policy_json(&api, pool)
}

async fn rebuild_start(Ext(api): Ext<Api>, Path(id): Path<String>, Body(_): Body<Empty>) -> Answer {
    let pool = find_pool(&api, &Ref::path(&id))?;
    let done = api.engine.submit(ADMIN, None, Op::RebuildNow { pool }).await?;
    let mut v = rebuild_json(&api, pool)?;
    if let state::Answer::Task(task) = done.answer {
        v["task_id"] = json!(task);
        return Ok((StatusCode::ACCEPTED, Json(v)).into_response());
    }
    Ok(Json(v).into_response())
}

async fn rebuild_cancel(
    Ext(api): Ext<Api>,
    Path(id): Path<String>,
    Body(_): Body<Empty>,
) -> Answer {
    let pool = find_pool(&api, &Ref::path(&id))?;
    api.engine.submit(ADMIN, None, Op::RebuildCancel { pool }).await?;
    Ok(Json(rebuild_json(&api, pool)?).into_response())
}

async fn rebuild_status(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let pool = find_pool(&api, &Ref::path(&id))?;
    Ok(Json(rebuild_json(&api, pool)?).into_response())
}

fn rebuild_json(api: &Api, pool: PoolId) -> Result<Value, ApiError> {
    let h = health_of(api, pool)?;
    let cancelled = api.state.read().pools.get(&pool).is_some_and(|p| p.rebuild_cancelled);
    let state = match (h.pgs_syncing > 0, h.pgs_degraded + h.pgs_unavailable > 0) {
        (true, _) => "running",
        (false, true) if cancelled => "cancelled",
        (false, true) => "waiting",
        _ => "idle",
    };
    Ok(json!({
        "pool_id": pool, "pool": h.pool, "state": state, "bytes_left": h.bytes_degraded,
        "bytes_one_copy": h.bytes_one_copy, "rate_bytes_per_second": h.rate_bytes_per_second,
        "eta_seconds": h.eta_seconds, "pgs_syncing": h.pgs_syncing, "pgs_degraded": h.pgs_degraded,
        "pgs_unavailable": h.pgs_unavailable, "pgs_moving": h.pgs_moving, "health": h.health,
        "reasons": h.reasons,
    }))
}
