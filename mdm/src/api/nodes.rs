//! Nodes: one row each, what they may do, whether one can be stopped; why something is degraded.

use super::input::{find, flag, page, Body, Params, Ref};
use super::spec::{body, Route};
use super::{render, tasks, Answer, Api, ApiError, ADMIN};
use crate::control::now;
use crate::state::{self, Op};
use crate::{can_stop, explain};
use axum::extract::{Path, Query, State as Ext};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::Json;
use quarry_base::{NodeId, PgId};
use quarry_control::Capability;
use serde_json::Value;

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/cluster/nodes", "One row a node: what it can do and how it is", nodes)
            .list("Node", "[Node]"),
        Route::get("/cluster/nodes/{id}", "One node", node).gives(200, "Node"),
        Route::post(
            "/cluster/nodes/{id}/capabilities",
            "What a node may do, of what it declares",
            set,
        )
        .body::<CapabilitiesBody>()
        .gives(200, "Node")
        .gives(202, "Task"),
        Route::get(
            "/cluster/nodes/{id}/can_stop",
            "What would be lost if the node stopped now",
            can_stop,
        )
        .gives(200, "CanStop"),
        Route::get(
            "/explain/{kind}/{id}",
            "Why something is degraded, slow or stuck; kinds: volume, pg, node, pool, sds",
            explain,
        )
        .query("groups", "boolean", "list its placement groups that are not well")
        .gives(200, "Explanation"),
    ]
}

pub fn find_node(api: &Api, r: &Ref) -> Result<NodeId, ApiError> {
    let s = api.state.read();
    find("node", r, s.nodes.values().map(|n| (n.id.get(), n.name.as_str()))).map(NodeId)
}

fn node_json(api: &Api, id: NodeId) -> Result<Value, ApiError> {
    let hub = api.hub.lock();
    let s = api.state.read();
    render::node(&s, &hub, id, &api.node, now()).ok_or_else(|| ApiError::not_found("node", id))
}

async fn nodes(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        let at = now();
        s.nodes.keys().filter_map(|id| render::node(&s, &hub, *id, &api.node, at)).collect()
    };
    Ok(Json(page(rows, &q, "Node")?).into_response())
}

async fn node(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_node(&api, &Ref::path(&id))?;
    Ok(Json(node_json(&api, id)?).into_response())
}

body! {
    struct CapabilitiesBody {
        /// What the node may do from now on, of what its node file lists.
        capabilities: Vec<Capability>,
        /// Move copies away first where SDS is in use.
        drain: Option<bool>,
    }
}

async fn set(
    Ext(api): Ext<Api>,
    Path(id): Path<String>,
    Body(b): Body<CapabilitiesBody>,
) -> Answer {
    let node = find_node(&api, &Ref::path(&id))?;
    let drain = b.drain.unwrap_or(false);
    let op = Op::SetCapabilities { node, capabilities: b.capabilities, drain };
    let done = api.engine.submit(ADMIN, None, op).await?;
    match done.answer {
        state::Answer::Task(id) => {
            Ok((StatusCode::ACCEPTED, Json(tasks::task_json(&api, id)?)).into_response())
        }
        _ => Ok(Json(node_json(&api, node)?).into_response()),
    }
}

async fn can_stop(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_node(&api, &Ref::path(&id))?;
    let hub = api.hub.lock();
    let s = api.state.read();
    let v = can_stop::can_stop(&s, &hub, id, &api.node);
    Ok(Json(v.ok_or_else(|| ApiError::not_found("node", id))?).into_response())
}

async fn explain(
    Ext(api): Ext<Api>,
    Path((kind, id)): Path<(String, String)>,
    Query(q): Query<Params>,
) -> Answer {
    // Groups are left out unless they are asked for: a pool may have many.
    let groups = flag(&q, "groups")?;
    let what = subject(&api, &kind, &id)?;
    let seen = match what {
        explain::Subject::Volume(id) => Some(super::measure::seen(&api, id)),
        _ => None,
    };
    let hub = api.hub.lock();
    let s = api.state.read();
    let v = explain::explain(&s, &hub, what, groups, seen, now());
    Ok(Json(v.ok_or_else(|| ApiError::not_found(&kind, &id))?).into_response())
}

fn subject(api: &Api, kind: &str, id: &str) -> Result<explain::Subject, ApiError> {
    use explain::Subject;
    let r = Ref::path(id);
    Ok(match kind {
        "volume" | "vol" => Subject::Volume(super::volumes::find_volume(api, &r)?),
        "pool" => Subject::Pool(super::pools::find_pool(api, &r)?),
        "node" => Subject::Node(find_node(api, &r)?),
        "sds" => Subject::Sds(super::servers::find_sds(api, &r)?),
        "pg" => Subject::Pg(find_pg(api, id)?),
        _ => {
            return Err(ApiError::new(
                404,
                "not_found",
                format!(
                    "nothing is known of a kind '{}'",
                    kind.chars().take(40).collect::<String>()
                ),
                "explain volume, pg, node, pool or sds",
            ))
        }
    })
}

/// A group by the id that lists show.
pub fn find_pg(api: &Api, id: &str) -> Result<PgId, ApiError> {
    let s = api.state.read();
    let hit = s.pgs.keys().find(|p| p.to_string() == id).copied();
    hit.ok_or_else(|| {
        ApiError::new(
            404,
            "not_found",
            format!("there is no placement group {}", id.chars().take(40).collect::<String>()),
            "GET /pg/list shows them",
        )
    })
}
