//! Protection domains, pools, rebuild.

use super::error::ApiError;
use super::input::{idempotency_key, one_of, page, Body, Params, Ref};
use super::{render, Answer, Api, ADMIN};
use crate::control::now;
use crate::health;
use crate::state::{self, Ack, AddPool, Op};
use axum::extract::{Path, Query, State as Ext};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use quarry_base::{DeviceId, DomainId, PoolId};
use serde::Deserialize;
use serde_json::{json, Value};

pub fn routes() -> Router<Api> {
    Router::new()
        .route("/pd/create", post(pd_create))
        .route("/pd/list", get(pd_list))
        .route("/pd/{id}", get(pd_get).delete(pd_delete))
        .route("/pool/create", post(pool_create))
        .route("/pool/list", get(pool_list))
        .route("/pool/{id}", get(pool_get).delete(pool_delete))
        .route("/pool/{id}/health", get(pool_health))
        .route("/rebuild/start/{pool_id}", post(rebuild_start))
        .route("/rebuild/cancel/{pool_id}", post(rebuild_cancel))
        .route("/rebuild/status/{pool_id}", get(rebuild_status))
}

pub fn find_domain(api: &Api, r: &Ref) -> Result<DomainId, ApiError> {
    let s = api.state.read();
    let hit = s.domains.values().find(|d| r.fits(d.id.get(), &d.name)).map(|d| d.id);
    hit.ok_or_else(|| ApiError::not_found("pd", r))
}

pub fn find_pool(api: &Api, r: &Ref) -> Result<PoolId, ApiError> {
    let s = api.state.read();
    let hit = s.pools.values().find(|p| r.fits(p.id.get(), &p.name)).map(|p| p.id);
    hit.ok_or_else(|| ApiError::not_found("pool", r))
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
}

async fn pd_create(Ext(api): Ext<Api>, h: HeaderMap, Body(b): Body<Named>) -> Answer {
    let done =
        api.engine.submit(ADMIN, idempotency_key(&h)?, Op::AddDomain { name: b.name }).await?;
    let state::Answer::Domain(id) = done.answer else { return Err(unexpected()) };
    Ok((StatusCode::CREATED, Json(domain_json(&api, id)?)).into_response())
}

pub fn unexpected() -> ApiError {
    ApiError::new(500, "internal", "an answer of the wrong kind", "this is a defect: see the log")
}

async fn pd_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let s = api.state.read();
        s.domains.values().map(|d| render::domain(&s, d)).collect()
    };
    Ok(Json(page(rows, &q)?).into_response())
}

async fn pd_get(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_domain(&api, &Ref::path(&id))?;
    Ok(Json(domain_json(&api, id)?).into_response())
}

async fn pd_delete(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_domain(&api, &Ref::path(&id))?;
    api.engine.submit(ADMIN, None, Op::DeleteDomain { id }).await?;
    Ok(Json(json!({ "deleted": id })).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolBody {
    name: String,
    protection_domain_id: Option<Ref>,
    protection_domain: Option<Ref>,
    copies: Option<u8>,
    min_copies: Option<u8>,
    #[serde(default)]
    ack: Ack,
    pg_count: Option<u32>,
    device_ids: Option<Vec<u32>>,
    devices: Option<Vec<u32>>,
    over_commit: Option<u32>,
    reserve_percent: Option<u32>,
    rebuild_grace_seconds: Option<u64>,
    rebuild_bytes_per_second: Option<u64>,
}

async fn pool_create(Ext(api): Ext<Api>, h: HeaderMap, Body(b): Body<PoolBody>) -> Answer {
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
        ack: b.ack,
        pg_count: b.pg_count,
        devices,
        over_commit: b.over_commit,
        reserve_percent: b.reserve_percent,
        rebuild_grace_seconds: b.rebuild_grace_seconds,
        rebuild_bytes_per_second: b.rebuild_bytes_per_second,
    }));
    let done = api.engine.submit(ADMIN, idempotency_key(&h)?, op).await?;
    let state::Answer::Pool(id) = done.answer else { return Err(unexpected()) };
    Ok((StatusCode::CREATED, Json(pool_json(&api, id)?)).into_response())
}

async fn pool_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        s.pools.values().map(|p| render::pool(&s, &hub, p, now())).collect()
    };
    Ok(Json(page(rows, &q)?).into_response())
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

async fn pool_delete(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_pool(&api, &Ref::path(&id))?;
    api.engine.submit(ADMIN, None, Op::DeletePool { id }).await?;
    Ok(Json(json!({ "deleted": id })).into_response())
}

async fn rebuild_start(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let pool = find_pool(&api, &Ref::path(&id))?;
    api.engine.submit(ADMIN, None, Op::RebuildNow { pool }).await?;
    rebuild_json(&api, pool)
}

async fn rebuild_cancel(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let pool = find_pool(&api, &Ref::path(&id))?;
    api.engine.submit(ADMIN, None, Op::RebuildCancel { pool }).await?;
    rebuild_json(&api, pool)
}

async fn rebuild_status(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let pool = find_pool(&api, &Ref::path(&id))?;
    rebuild_json(&api, pool)
}

fn rebuild_json(api: &Api, pool: PoolId) -> Answer {
    let h = health_of(api, pool)?;
    let cancelled = api.state.read().pools.get(&pool).is_some_and(|p| p.rebuild_cancelled);
    let state = match (h.pgs_syncing > 0, h.pgs_degraded + h.pgs_unavailable > 0) {
        (true, _) => "running",
        (false, true) if cancelled => "cancelled",
        (false, true) => "waiting",
        _ => "idle",
    };
    Ok(Json(json!({
        "pool_id": pool, "pool": h.pool, "state": state, "bytes_left": h.bytes_degraded,
        "rate_bytes_per_second": h.rate_bytes_per_second, "eta_seconds": h.eta_seconds,
        "pgs_syncing": h.pgs_syncing, "pgs_degraded": h.pgs_degraded, "pgs_unavailable": h.pgs_unavailable,
        "health": h.health, "reasons": h.reasons,
    }))
    .into_response())
}
