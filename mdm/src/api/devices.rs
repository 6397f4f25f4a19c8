//! Devices, fault sets, placement groups.

use super::change::{create, delete, unexpected};
use super::input::{find, number, one_of, page, Body, Params, Ref};
use super::nodes::find_pg;
use super::pools::{find_domain, find_pool};
use super::servers::begun;
use super::spec::{body, Empty, Route};
use super::{render, Answer, Api, ApiError, ADMIN};
use crate::control::now;
use crate::health;
use crate::state::{self, Op};
use axum::extract::{Path, Query, State as Ext};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::Json;
use quarry_base::{DeviceId, DomainId};
use serde_json::Value;

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/device/list", "All devices", device_list).list("Device", "[Device]"),
        Route::post("/device/add", "Give an unassigned device to a pool", device_add)
            .body::<DeviceBody>()
            .gives(201, "Device"),
        Route::get("/device/{id}", "One device", device_get).gives(200, "Device"),
        Route::post("/device/{id}/drain", "Move all copies off a device", device_drain)
            .body::<Empty>()
            .gives(202, "Task")
            .dry(),
        Route::delete("/device/{id}", "Take an empty device out of its pool", device_delete)
            .gives(200, "Deleted")
            .dry(),
        Route::post(
            "/fault_set/create",
            "Make a fault set: servers that fail together",
            set_create,
        )
        .body::<SetBody>()
        .gives(201, "FaultSet")
        .keyed(),
        Route::get("/fault_set/list", "All fault sets", set_list).list("FaultSet", "[FaultSet]"),
        Route::get("/fault_set/{id}", "One fault set", set_get).gives(200, "FaultSet"),
        Route::delete("/fault_set/{id}", "Remove a fault set without servers", set_delete)
            .gives(200, "Deleted")
            .dry(),
        Route::get("/pg/list", "Placement groups", pg_list)
            .list("PlacementGroup", "[PlacementGroup]")
            .query("pool_id", "integer", "only groups of this pool"),
        Route::get("/pg/{id}", "One placement group", pg_get).gives(200, "PlacementGroup"),
    ]
}

fn find_device(api: &Api, id: &str) -> Result<DeviceId, ApiError> {
    let s = api.state.read();
    let hit = s.devices.values().find(|d| id.parse() == Ok(d.id.get()) || d.uuid == id);
    hit.map(|d| d.id)
        .ok_or_else(|| ApiError::not_found("device", id.chars().take(80).collect::<String>()))
}

pub fn find_fault_set(api: &Api, r: &Ref) -> Result<u32, ApiError> {
    let s = api.state.read();
    find("fault_set", r, s.fault_sets.values().map(|f| (f.id, f.name.as_str())))
}

fn device_json(api: &Api, id: DeviceId) -> Result<Value, ApiError> {
    let hub = api.hub.lock();
    let s = api.state.read();
    let d = s.devices.get(&id).ok_or_else(|| ApiError::not_found("device", id))?;
    Ok(render::device(&s, &hub, d))
}

async fn device_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        s.devices.values().map(|d| render::device(&s, &hub, d)).collect()
    };
    Ok(Json(page(rows, &q, "Device")?).into_response())
}

async fn device_get(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_device(&api, &id)?;
    Ok(Json(device_json(&api, id)?).into_response())
}

body! {
    struct DeviceBody {
        /// The device: GET /device/list shows those without a pool.
        device_id: u32,
        pool: Option<Ref>,
        pool_id: Option<Ref>,
    }
}

async fn device_add(Ext(api): Ext<Api>, Body(b): Body<DeviceBody>) -> Answer {
    let pool = find_pool(&api, &one_of("pool", [&b.pool, &b.pool_id, &None])?)?;
    let id = DeviceId(b.device_id);
    api.engine.submit(ADMIN, None, Op::AddDevice { id, pool }).await?;
    Ok((StatusCode::CREATED, Json(device_json(&api, id)?)).into_response())
}

async fn device_drain(
    Ext(api): Ext<Api>,
    Path(id): Path<String>,
    Query(q): Query<Params>,
    Body(_): Body<Empty>,
) -> Answer {
    let id = find_device(&api, &id)?;
    begun(&api, &q, Op::DrainDevice { id }).await
}

async fn device_delete(
    Ext(api): Ext<Api>,
    Path(id): Path<String>,
    Query(q): Query<Params>,
) -> Answer {
    let id = find_device(&api, &id)?;
    delete(&api, &q, Op::DeleteDevice { id }, id.get()).await
}

body! {
    struct SetBody {
        name: String,
        protection_domain_id: Option<Ref>,
        protection_domain: Option<Ref>,
    }
}

fn set_json(api: &Api, id: u32) -> Result<Value, ApiError> {
    let s = api.state.read();
    let f = s.fault_sets.get(&id).ok_or_else(|| ApiError::not_found("fault_set", id))?;
    Ok(render::fault_set(&s, f))
}

async fn set_create(Ext(api): Ext<Api>, h: HeaderMap, Body(b): Body<SetBody>) -> Answer {
    let domain = match b.protection_domain_id.or(b.protection_domain) {
        Some(r) => find_domain(&api, &r)?,
        None => DomainId(1),
    };
    create(&api, &h, Op::AddFaultSet { name: b.name, domain }, |api, a| match a {
        state::Answer::FaultSet(id) => set_json(api, *id),
        _ => Err(unexpected()),
    })
    .await
}

async fn set_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let s = api.state.read();
        s.fault_sets.values().map(|f| render::fault_set(&s, f)).collect()
    };
    Ok(Json(page(rows, &q, "FaultSet")?).into_response())
}

async fn set_get(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_fault_set(&api, &Ref::path(&id))?;
    Ok(Json(set_json(&api, id)?).into_response())
}

async fn set_delete(Ext(api): Ext<Api>, Path(id): Path<String>, Query(q): Query<Params>) -> Answer {
    let id = find_fault_set(&api, &Ref::path(&id))?;
    delete(&api, &q, Op::DeleteFaultSet { id }, id).await
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
    Ok(Json(page(rows, &q, "PlacementGroup")?).into_response())
}

async fn pg_get(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_pg(&api, &id)?;
    let hub = api.hub.lock();
    let s = api.state.read();
    let row = health::pg_row(&s, &hub, id, now());
    Ok(Json(row.ok_or_else(|| ApiError::not_found("pg", id))?).into_response())
}
