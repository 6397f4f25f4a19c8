//! The cluster as a whole: root, nodes, status, health, events.

use super::input::{number, page, Params};
use super::{render, Answer, Api};
use crate::control::now;
use crate::health::Health;
use axum::extract::{Query, State as Ext};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{json, Value};

pub fn routes() -> Router<Api> {
    Router::new()
        .route("/", get(root))
        .route("/cluster/nodes", get(nodes))
        .route("/status", get(status))
        .route("/health", get(health))
        .route("/events", get(events))
}

async fn root(Ext(api): Ext<Api>) -> Answer {
    let cluster = api.state.read().cluster.clone();
    Ok(Json(json!({
        "name": "quarry", "version": env!("CARGO_PKG_VERSION"), "api": 1, "cluster_id": cluster, "node": *api.node,
        "links": ["/status", "/health", "/cluster/nodes", "/pd/list", "/pool/list", "/sds/list", "/sdc/list",
            "/device/list", "/pg/list", "/vol/list", "/events", "/tasks/list", "/metrics", "/prometheus/targets"],
    }))
    .into_response())
}

async fn nodes(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        let at = now();
        s.nodes.keys().filter_map(|id| render::node(&s, &hub, *id, &api.node, at)).collect()
    };
    Ok(Json(page(rows, &q)?).into_response())
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
    q.remove("since");
    let rows = {
        let s = api.state.read();
        s.events.iter().filter(|e| e.id > since).map(render::event).collect()
    };
    Ok(Json(page(rows, &q)?).into_response())
}
