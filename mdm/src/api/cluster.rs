//! The cluster as a whole: root, status, health, events.

use super::input::{number, page, Params};
use super::spec::{body, Route};
use super::{render, Answer, Api, Body, ADMIN};
use crate::health::Health;
use crate::state::{Op, EVENTS};
use axum::extract::{Query, State as Ext};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::Json;
use serde_json::{json, Value};
use std::time::Duration;
use tokio::time::Instant;

/// Longest wait of `GET /events?wait_seconds=`.
const MAX_WAIT: u64 = 60;
const POLL: Duration = Duration::from_millis(100);

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/", "Name, version, links", root).gives(200, "Root").open(),
        Route::get("/status", "Health, what is at risk, why, how long it takes", status)
            .gives(200, "Status"),
        Route::get("/health", "Health alone, for probes", health)
            .gives(200, "HealthOnly")
            .gives(503, "HealthOnly")
            .open(),
        Route::get("/events", "What happened: who, what, when, outcome, reason", events)
            .list("Event", "[Event]")
            .query("since", "integer", "only events with a higher id")
            .query("last", "integer", "only the newest so many")
            .query("wait_seconds", "integer", "wait so long for a new one (60 at most)"),
        Route::get("/events/retention", "How many events are kept", retention)
            .gives(200, "Retention"),
        Route::post("/events/retention", "Change how many events are kept", keep)
            .body::<KeepBody>()
            .gives(200, "Retention"),
    ]
}

async fn root(Ext(api): Ext<Api>) -> Answer {
    let cluster = api.state.read().cluster.clone();
    Ok(Json(json!({
        "name": "quarry", "version": env!("CARGO_PKG_VERSION"), "api": 1, "cluster_id": cluster, "node": *api.node,
        "links": ["/status", "/health", "/cluster/nodes", "/pd/list", "/fault_set/list", "/pool/list", "/policy/list",
            "/sds/list", "/sdc/list", "/device/list", "/pg/list", "/vol/list", "/events", "/tasks/list", "/metrics",
            "/prometheus/targets", "/openapi.json"],
    }))
    .into_response())
}

async fn status(Ext(api): Ext<Api>) -> Answer {
    let mut v = serde_json::to_value(api.status()).unwrap_or(Value::Null);
    v["time"] = json!(render::rfc3339(crate::engine::unix_ms()));
    Ok(Json(v).into_response())
}

async fn health(Ext(api): Ext<Api>) -> Answer {
    let h = api.status().health;
    let status =
        if h == Health::Unavailable { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    Ok((status, Json(json!({ "health": h }))).into_response())
}

async fn events(Ext(api): Ext<Api>, Query(mut q): Query<Params>) -> Answer {
    let since = number(&q, "since")?.unwrap_or(0);
    let last = number(&q, "last")?;
    let wait = number(&q, "wait_seconds")?.unwrap_or(0).min(MAX_WAIT);
    for own in ["since", "last", "wait_seconds"] {
        q.remove(own);
    }
    let end = Instant::now() + Duration::from_secs(wait);
    loop {
        let rows: Vec<Value> = {
            let s = api.state.read();
            let begin = s.events.partition_point(|e| e.id <= since);
            s.events.range(begin..).map(render::event).collect()
        };
        let rows = page(rows, &q, "Event")?;
        let empty = rows.as_array().is_none_or(Vec::is_empty);
        if !empty || Instant::now() >= end {
            return Ok(Json(newest(rows, last)).into_response());
        }
        tokio::time::sleep(POLL).await;
    }
}

fn newest(rows: Value, last: Option<u64>) -> Value {
    let (Value::Array(mut list), Some(n)) = (rows.clone(), last) else { return rows };
    let extra = list.len().saturating_sub(usize::try_from(n).unwrap_or(usize::MAX));
    list.drain(..extra);
    Value::Array(list)
}

body! {
    struct KeepBody {
        /// How many of the newest events are kept.
        keep: u32,
    }
}

fn retention_json(api: &Api) -> Answer {
    let s = api.state.read();
    Ok(Json(json!({
        "keep": s.events_kept.unwrap_or(EVENTS), "kept": s.events.len(),
        "oldest_id": s.events.front().map(|e| e.id), "newest_id": s.events.back().map(|e| e.id),
    }))
    .into_response())
}

async fn retention(Ext(api): Ext<Api>) -> Answer {
    retention_json(&api)
}

async fn keep(Ext(api): Ext<Api>, Body(b): Body<KeepBody>) -> Answer {
    api.engine.submit(ADMIN, None, Op::KeepEvents { keep: b.keep as usize }).await?;
    retention_json(&api)
}
