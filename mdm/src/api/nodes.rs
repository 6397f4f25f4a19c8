//! Data servers, clients, devices, placement groups.

use super::error::{self, ApiError};
use super::input::{idempotency_key, number, page, Body, Params, Ref};
use super::pools::{find_domain, find_pool, unexpected};
use super::{render, Answer, Api, ADMIN};
use crate::control::now;
use crate::health;
use crate::state::{self, Op};
use axum::extract::{Path, Query, State as Ext};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use quarry_base::{DomainId, SdcId, SdsId};
use serde::Deserialize;
use serde_json::Value;

pub fn routes() -> Router<Api> {
    Router::new()
        .route("/sds/add", post(sds_add))
        .route("/sds/list", get(sds_list))
        .route("/sds/{id}", get(sds_get).delete(error::not_built))
        .route("/sds/{id}/fail", post(sds_fail))
        .route("/sds/{id}/recover", post(sds_recover))
        .route("/sdc/add", post(sdc_add))
        .route("/sdc/list", get(sdc_list))
        .route("/sdc/{id}", get(sdc_get).delete(error::not_built))
        .route("/device/list", get(device_list))
        .route("/device/{id}", get(device_get))
        .route("/pg/list", get(pg_list))
}

fn find_sds(api: &Api, r: &Ref) -> Result<SdsId, ApiError> {
    let s = api.state.read();
    let hit = s.sds.values().find(|x| r.fits(x.id.get(), &x.name)).map(|x| x.id);
    hit.ok_or_else(|| ApiError::not_found("sds", r))
}

pub fn find_sdc(api: &Api, r: &Ref) -> Result<SdcId, ApiError> {
    let s = api.state.read();
    if let Some(x) = s.sdcs.values().find(|x| r.fits(x.id.get(), &x.name)) {
        return Ok(x.id);
    }
    if let (Ref::Name(n), Some(node)) = (r, s.nodes.values().find(|n| r.fits(0, &n.name))) {
        let has: Vec<String> = node.capabilities.iter().map(|c| c.to_string()).collect();
        return Err(ApiError::new(
            422,
            "node_lacks_sdc",
            format!("node {n} has no SDC capability, only {}", has.join(", ")),
            "map to a node with an SDC: GET /sdc/list",
        ));
    }
    Err(ApiError::not_found("sdc", r))
}

fn sds_json(api: &Api, id: SdsId) -> Result<Value, ApiError> {
    let hub = api.hub.lock();
    let s = api.state.read();
    let x = s.sds.get(&id).ok_or_else(|| ApiError::not_found("sds", id))?;
    Ok(render::sds(&s, &hub, x, now()))
}

fn sdc_json(api: &Api, id: SdcId) -> Result<Value, ApiError> {
    let hub = api.hub.lock();
    let s = api.state.read();
    let x = s.sdcs.get(&id).ok_or_else(|| ApiError::not_found("sdc", id))?;
    Ok(render::sdc(&s, &hub, x, now()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SdsBody {
    name: String,
    protection_domain_id: Option<Ref>,
    protection_domain: Option<Ref>,
    fault_set: Option<u32>,
}

async fn sds_add(Ext(api): Ext<Api>, h: HeaderMap, Body(b): Body<SdsBody>) -> Answer {
    let domain = match b.protection_domain_id.or(b.protection_domain) {
        Some(r) => find_domain(&api, &r)?,
        None => DomainId(1),
    };
    let op = Op::AddSds { name: b.name, domain: Some(domain), fault_set: b.fault_set };
    let done = api.engine.submit(ADMIN, idempotency_key(&h)?, op).await?;
    let state::Answer::Sds(id) = done.answer else { return Err(unexpected()) };
    Ok((StatusCode::CREATED, Json(sds_json(&api, id)?)).into_response())
}

async fn sds_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        s.sds.values().map(|x| render::sds(&s, &hub, x, now())).collect()
    };
    Ok(Json(page(rows, &q)?).into_response())
}

async fn sds_get(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_sds(&api, &Ref::path(&id))?;
    Ok(Json(sds_json(&api, id)?).into_response())
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct FailBody {
    #[serde(default)]
    force: bool,
}

async fn sds_fail(Ext(api): Ext<Api>, Path(id): Path<String>, Body(b): Body<FailBody>) -> Answer {
    let id = find_sds(&api, &Ref::path(&id))?;
    let answered = api.hub.lock().detector.recent(now());
    api.engine.submit(ADMIN, None, Op::FenceSds { id, force: b.force, answered }).await?;
    Ok(Json(sds_json(&api, id)?).into_response())
}

async fn sds_recover(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_sds(&api, &Ref::path(&id))?;
    api.engine.submit(ADMIN, None, Op::RecoverSds { id }).await?;
    Ok(Json(sds_json(&api, id)?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SdcBody {
    name: String,
}

async fn sdc_add(Ext(api): Ext<Api>, h: HeaderMap, Body(b): Body<SdcBody>) -> Answer {
    let done = api.engine.submit(ADMIN, idempotency_key(&h)?, Op::AddSdc { name: b.name }).await?;
    let state::Answer::Sdc(id) = done.answer else { return Err(unexpected()) };
    Ok((StatusCode::CREATED, Json(sdc_json(&api, id)?)).into_response())
}

async fn sdc_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        s.sdcs.values().map(|x| render::sdc(&s, &hub, x, now())).collect()
    };
    Ok(Json(page(rows, &q)?).into_response())
}

async fn sdc_get(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let s = Ref::path(&id);
    let id = {
        let st = api.state.read();
        st.sdcs.values().find(|x| s.fits(x.id.get(), &x.name)).map(|x| x.id)
    };
    let id = id.ok_or_else(|| ApiError::not_found("sdc", s))?;
    Ok(Json(sdc_json(&api, id)?).into_response())
}

async fn device_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        s.devices.values().map(|d| render::device(&s, &hub, d)).collect()
    };
    Ok(Json(page(rows, &q)?).into_response())
}

async fn device_get(Ext(api): Ext<Api>, Path(id): Path<u32>) -> Answer {
    let hub = api.hub.lock();
    let s = api.state.read();
    let d = s.devices.get(&id.into()).ok_or_else(|| ApiError::not_found("device", id))?;
    Ok(Json(render::device(&s, &hub, d)).into_response())
}

async fn pg_list(Ext(api): Ext<Api>, Query(mut q): Query<Params>) -> Answer {
    let pool = match number(&q, "pool_id")? {
        None => None,
        Some(n) => Some(find_pool(&api, &Ref::path(&n.to_string()))?),
    };
    q.remove("pool_id");
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        let at = now();
        let ids = s.pgs.keys().filter(|pg| pool.is_none_or(|p| pg.pool() == p));
        ids.filter_map(|pg| health::pg_row(&s, &hub, *pg, at)).collect()
    };
    Ok(Json(page(rows, &q)?).into_response())
}
