//! Data servers and clients: add, fail, recover, drain, remove.

use super::change::{create, delete, run, unexpected};
use super::input::{find, flag, page, Body, Params, Ref};
use super::pools::find_domain;
use super::spec::{body, Empty, Route};
use super::{devices, render, tasks, Answer, Api, ApiError, ADMIN};
use crate::control::now;
use crate::state::{self, Op};
use axum::extract::{Path, Query, State as Ext};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::Json;
use quarry_base::{DomainId, SdcId, SdsId};
use quarry_control::Capability;
use serde_json::Value;

pub fn routes() -> Vec<Route> {
    vec![
        Route::post(
            "/sds/add",
            "Name a data server before it comes, or move an empty one to another domain",
            sds_add,
        )
        .body::<SdsBody>()
        .gives(201, "Sds")
        .keyed(),
        Route::get("/sds/list", "All data servers", sds_list).list("Sds", "[Sds]"),
        Route::get("/sds/{id}", "One data server", sds_get).gives(200, "Sds"),
        Route::post(
            "/sds/{id}/fail",
            "Fence a server at once: its copies no longer count, its data is kept",
            sds_fail,
        )
        .body::<FailBody>()
        .gives(200, "Sds")
        .dry(),
        Route::post("/sds/{id}/recover", "Take a fenced server back", sds_recover)
            .body::<Empty>()
            .gives(200, "Sds"),
        Route::post("/sds/{id}/drain", "Move all copies off a server", sds_drain)
            .body::<Empty>()
            .gives(202, "Task")
            .dry(),
        Route::post(
            "/sds/{id}/fault_set",
            "Put a server into a fault set, or into none",
            sds_fault_set,
        )
        .body::<FaultSetBody>()
        .gives(200, "Sds"),
        Route::delete("/sds/{id}", "Remove a server that holds no copies", sds_delete)
            .gives(200, "Deleted")
            .dry(),
        Route::post("/sdc/add", "Name a data client before it comes", sdc_add)
            .body::<SdcBody>()
            .gives(201, "Sdc")
            .keyed(),
        Route::get("/sdc/list", "All data clients", sdc_list).list("Sdc", "[Sdc]"),
        Route::get("/sdc/{id}", "One data client", sdc_get).gives(200, "Sdc"),
        Route::delete("/sdc/{id}", "Remove a client that has no volume mapped", sdc_delete)
            .gives(200, "Deleted")
            .dry(),
    ]
}

pub fn find_sds(api: &Api, r: &Ref) -> Result<SdsId, ApiError> {
    let s = api.state.read();
    find("sds", r, s.sds.values().map(|x| (x.id.get(), x.name.as_str()))).map(SdsId)
}

fn known_sdc(api: &Api, r: &Ref) -> Result<SdcId, ApiError> {
    let s = api.state.read();
    find("sdc", r, s.sdcs.values().map(|x| (x.id.get(), x.name.as_str()))).map(SdcId)
}

/// The client to map to: it must be there, on a node that may do it.
pub fn find_sdc(api: &Api, r: &Ref) -> Result<SdcId, ApiError> {
    let lacks = |n: &state::Node| {
        let has: Vec<String> =
            n.capabilities.iter().filter(|c| n.can(**c)).map(|c| c.to_string()).collect();
        let has = if has.is_empty() { "none".into() } else { format!("only {}", has.join(", ")) };
        ApiError::new(
            422,
            "node_lacks_sdc",
            format!("node {} has no SDC capability, {has}", n.name),
            "map to a node with an SDC: GET /sdc/list",
        )
    };
    match known_sdc(api, r) {
        Ok(id) => {
            let s = api.state.read();
            let node = s.sdcs.get(&id).and_then(|x| x.node).and_then(|n| s.nodes.get(&n));
            match node.filter(|n| !n.can(Capability::Sdc)) {
                Some(n) => Err(lacks(n)),
                None => Ok(id),
            }
        }
        Err(e) => {
            let s = api.state.read();
            let node = match r {
                Ref::Name(n) => s.nodes.values().find(|x| x.name == *n),
                Ref::Id(_) => None,
            };
            Err(node.map_or(e, lacks))
        }
    }
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

body! {
    struct SdsBody {
        /// Name in the node's file.
        name: String,
        protection_domain_id: Option<Ref>,
        protection_domain: Option<Ref>,
        fault_set: Option<Ref>,
        fault_set_id: Option<Ref>,
    }
}

async fn sds_add(Ext(api): Ext<Api>, h: HeaderMap, Body(b): Body<SdsBody>) -> Answer {
    let domain = match b.protection_domain_id.or(b.protection_domain) {
        Some(r) => find_domain(&api, &r)?,
        None => DomainId(1),
    };
    let set = b.fault_set.or(b.fault_set_id);
    let fault_set = set.map(|r| devices::find_fault_set(&api, &r)).transpose()?;
    let op = Op::AddSds { name: b.name, domain: Some(domain), fault_set };
    create(&api, &h, op, |api, a| match a {
        state::Answer::Sds(id) => sds_json(api, *id),
        _ => Err(unexpected()),
    })
    .await
}

async fn sds_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        s.sds.values().map(|x| render::sds(&s, &hub, x, now())).collect()
    };
    Ok(Json(page(rows, &q, "Sds")?).into_response())
}

async fn sds_get(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_sds(&api, &Ref::path(&id))?;
    Ok(Json(sds_json(&api, id)?).into_response())
}

body! {
    struct FailBody {
        /// Even if it holds the last good copy of something: that is unavailable then.
        force: Option<bool>,
        /// Say what would happen, do nothing.
        dry_run: Option<bool>,
    }
}

async fn sds_fail(
    Ext(api): Ext<Api>,
    Path(id): Path<String>,
    Query(mut q): Query<Params>,
    Body(b): Body<FailBody>,
) -> Answer {
    let id = find_sds(&api, &Ref::path(&id))?;
    flag(&q, "dry_run")?;
    if b.dry_run == Some(true) {
        q.insert("dry_run".into(), "true".into());
    }
    let answered = api.hub.lock().detector.recent(now());
    let op = Op::FenceSds { id, force: b.force.unwrap_or(false), answered };
    match run(&api, &q, op).await?.1 {
        Some(dry) => Ok(Json(dry).into_response()),
        None => Ok(Json(sds_json(&api, id)?).into_response()),
    }
}

async fn sds_recover(Ext(api): Ext<Api>, Path(id): Path<String>, Body(_): Body<Empty>) -> Answer {
    let id = find_sds(&api, &Ref::path(&id))?;
    api.engine.submit(ADMIN, None, Op::RecoverSds { id }).await?;
    Ok(Json(sds_json(&api, id)?).into_response())
}

async fn sds_drain(
    Ext(api): Ext<Api>,
    Path(id): Path<String>,
    Query(q): Query<Params>,
    Body(_): Body<Empty>,
) -> Answer {
    let id = find_sds(&api, &Ref::path(&id))?;
    begun(&api, &q, Op::DrainSds { id }).await
}

/// Begins long work: 202 with the task.
pub async fn begun(api: &Api, q: &Params, op: Op) -> Answer {
    match run(api, q, op).await? {
        (_, Some(dry)) => Ok(Json(dry).into_response()),
        (done, None) => {
            let state::Answer::Task(task) = done.answer else { return Err(unexpected()) };
            Ok((StatusCode::ACCEPTED, Json(tasks::task_json(api, task)?)).into_response())
        }
    }
}

body! {
    struct FaultSetBody {
        /// The fault set; null or left out: none.
        fault_set: Option<Ref>,
        fault_set_id: Option<Ref>,
    }
}

async fn sds_fault_set(
    Ext(api): Ext<Api>,
    Path(id): Path<String>,
    Body(b): Body<FaultSetBody>,
) -> Answer {
    let sds = find_sds(&api, &Ref::path(&id))?;
    let set = b.fault_set.or(b.fault_set_id);
    let fault_set = set.map(|r| devices::find_fault_set(&api, &r)).transpose()?;
    api.engine.submit(ADMIN, None, Op::AssignFaultSet { sds, fault_set }).await?;
    Ok(Json(sds_json(&api, sds)?).into_response())
}

async fn sds_delete(Ext(api): Ext<Api>, Path(id): Path<String>, Query(q): Query<Params>) -> Answer {
    let id = find_sds(&api, &Ref::path(&id))?;
    delete(&api, &q, Op::DeleteSds { id }, id.get()).await
}

body! {
    struct SdcBody {
        /// Name in the node's file.
        name: String,
    }
}

async fn sdc_add(Ext(api): Ext<Api>, h: HeaderMap, Body(b): Body<SdcBody>) -> Answer {
    create(&api, &h, Op::AddSdc { name: b.name }, |api, a| match a {
        state::Answer::Sdc(id) => sdc_json(api, *id),
        _ => Err(unexpected()),
    })
    .await
}

async fn sdc_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        s.sdcs.values().map(|x| render::sdc(&s, &hub, x, now())).collect()
    };
    Ok(Json(page(rows, &q, "Sdc")?).into_response())
}

async fn sdc_get(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = known_sdc(&api, &Ref::path(&id))?;
    Ok(Json(sdc_json(&api, id)?).into_response())
}

async fn sdc_delete(Ext(api): Ext<Api>, Path(id): Path<String>, Query(q): Query<Params>) -> Answer {
    let id = known_sdc(&api, &Ref::path(&id))?;
    delete(&api, &q, Op::DeleteSdc { id }, id.get()).await
}
