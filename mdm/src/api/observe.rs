//! Metrics by way of the API: the exporter, figures of one object, service discovery.

use super::error::ApiError;
use super::input::Ref;
use super::pools::find_pool;
use super::{render, Answer, Api};
use crate::control::now;
use axum::extract::{Path, State as Ext};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{json, Value};
use std::collections::BTreeMap;

pub fn routes() -> Router<Api> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/metrics/pool/{id}", get(pool))
        .route("/metrics/sds/{id}", get(sds))
        .route("/metrics/sdc/{id}", get(sdc))
        .route("/metrics/volume/{id}", get(volume))
        .route("/prometheus/targets", get(targets))
}

async fn metrics(Ext(api): Ext<Api>) -> Answer {
    let text =
        api.metrics.encode().map_err(|e| ApiError::new(500, "internal", e.to_string(), ""))?;
    Ok(([(CONTENT_TYPE, quarry_metrics::CONTENT_TYPE)], text).into_response())
}

async fn pool(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_pool(&api, &Ref::path(&id))?;
    let hub = api.hub.lock();
    let s = api.state.read();
    let p = s.pools.get(&id).ok_or_else(|| ApiError::not_found("pool", id))?;
    let mut v = render::pool(&s, &hub, p, now());
    v["status"] = json!(crate::health::pool_health(&s, &hub, p, now()));
    Ok(Json(v).into_response())
}

async fn sds(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let r = Ref::path(&id);
    let hub = api.hub.lock();
    let s = api.state.read();
    let x = s
        .sds
        .values()
        .find(|x| r.fits(x.id.get(), &x.name))
        .ok_or_else(|| ApiError::not_found("sds", &r))?;
    let counters = hub.sds.get(&x.id).map(|l| l.counters.clone()).unwrap_or_default();
    Ok(Json(
        json!({ "id": x.id, "name": x.name, "state": render::sds_state(x), "counters": counters }),
    )
    .into_response())
}

async fn sdc(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let r = Ref::path(&id);
    let hub = api.hub.lock();
    let s = api.state.read();
    let x = s
        .sdcs
        .values()
        .find(|x| r.fits(x.id.get(), &x.name))
        .ok_or_else(|| ApiError::not_found("sdc", &r))?;
    let counters = hub.sdcs.get(&x.id).map(|l| l.counters.clone()).unwrap_or_default();
    Ok(Json(json!({ "id": x.id, "name": x.name, "counters": counters })).into_response())
}

/// Counters that SDCs report as `volume.<id>.<name>`, summed over the SDCs that are there.
async fn volume(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let r = Ref::path(&id);
    let hub = api.hub.lock();
    let s = api.state.read();
    let v = s
        .volumes
        .values()
        .find(|v| r.fits(v.id.get(), &v.name))
        .ok_or_else(|| ApiError::not_found("vol", &r))?;
    let prefix = format!("volume.{}.", v.id);
    let mut sum: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, n) in hub.sdcs.values().flat_map(|l| &l.counters) {
        if let Some(short) = name.strip_prefix(&prefix) {
            *sum.entry(short).or_default() += n;
        }
    }
    Ok(Json(json!({ "id": v.id, "name": v.name, "size_bytes": v.size_bytes, "counters": sum }))
        .into_response())
}

/// `host:port` of an exporter's address, which may be a URL.
fn host_port(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |x| x.1);
    rest.split('/').next().unwrap_or(rest)
}

async fn targets(Ext(api): Ext<Api>) -> Answer {
    let s = api.state.read();
    let mut out: Vec<Value> = vec![json!({
        "targets": [host_port(&api.metrics_addr)], "labels": { "role": "mdm", "node": *api.node },
    })];
    let row = |url: &String, role: &str, name: &str| json!({ "targets": [host_port(url)], "labels": { "role": role, "node": name } });
    out.extend(s.sds.values().filter_map(|x| Some(row(x.metrics.as_ref()?, "sds", &x.name))));
    out.extend(s.sdcs.values().filter_map(|x| Some(row(x.metrics.as_ref()?, "sdc", &x.name))));
    Ok(Json(Value::Array(out)).into_response())
}
