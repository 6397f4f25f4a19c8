//! Volumes, mappings, tasks.

use super::error::ApiError;
use super::input::{idempotency_key, one_of, page, size, Body, Params, Ref};
use super::nodes::find_sdc;
use super::pools::{find_pool, unexpected};
use super::{render, Answer, Api, ADMIN};
use crate::control::{attachment, unconfirmed};
use crate::state::{self, Op, Provisioning, TaskKind, TaskState};
use axum::extract::{Path, Query, State as Ext};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use quarry_base::{ConfigIndex, Generation, SdcId, VolumeId};
use quarry_control::Attachment;
use serde::Deserialize;
use serde_json::{json, Value};
use std::time::Duration;
use tokio::time::Instant;

/// How long a request waits for the nodes before it becomes a task.
const WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

pub fn routes() -> Router<Api> {
    Router::new()
        .route("/vol/create", post(create))
        .route("/vol/list", get(list))
        .route("/vol/map", post(map))
        .route("/vol/unmap", post(unmap))
        .route("/vol/extend", post(extend))
        .route("/vol/{id}", get(one).delete(delete))
        .route("/tasks/list", get(task_list))
        .route("/tasks/{id}", get(task))
}

fn find(api: &Api, r: &Ref) -> Result<VolumeId, ApiError> {
    let s = api.state.read();
    // A name wins over an id, as volumes may be named by digits.
    let by_name = s.volumes.values().find(|v| matches!(r, Ref::Name(n) if *n == v.name));
    let hit = by_name.or_else(|| s.volumes.values().find(|v| r.fits(v.id.get(), &v.name)));
    hit.map(|v| v.id).ok_or_else(|| ApiError::not_found("vol", r))
}

fn volume_json(api: &Api, id: VolumeId) -> Result<Value, ApiError> {
    let hub = api.hub.lock();
    let s = api.state.read();
    let v = s.volumes.get(&id).ok_or_else(|| ApiError::not_found("vol", id))?;
    Ok(render::volume(&s, &hub, v))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    name: String,
    pool: Option<Ref>,
    pool_id: Option<Ref>,
    size_gb: Option<f64>,
    size_bytes: Option<u64>,
    #[serde(default)]
    provisioning: Provisioning,
}

async fn create(Ext(api): Ext<Api>, h: HeaderMap, Body(b): Body<CreateBody>) -> Answer {
    let pool = match (&b.pool, &b.pool_id) {
        (None, None) => Ref::Name("default".into()),
        _ => one_of("pool", [&b.pool, &b.pool_id, &None])?,
    };
    let pool = find_pool(&api, &pool)?;
    let size_bytes = size(b.size_gb, b.size_bytes)?;
    let op = Op::CreateVolume { name: b.name, pool, size_bytes, provisioning: b.provisioning };
    let done = api.engine.submit(ADMIN, idempotency_key(&h)?, op).await?;
    let state::Answer::Volume(id) = done.answer else { return Err(unexpected()) };
    Ok((StatusCode::CREATED, Json(volume_json(&api, id)?)).into_response())
}

async fn list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        s.volumes.values().map(|v| render::volume(&s, &hub, v)).collect()
    };
    Ok(Json(page(rows, &q)?).into_response())
}

async fn one(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find(&api, &Ref::path(&id))?;
    Ok(Json(volume_json(&api, id)?).into_response())
}

async fn delete(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find(&api, &Ref::path(&id))?;
    api.engine.submit(ADMIN, None, Op::DeleteVolume { id }).await?;
    Ok(Json(json!({ "deleted": id })).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExtendBody {
    volume: Option<Ref>,
    volume_id: Option<Ref>,
    name: Option<Ref>,
    size_gb: Option<f64>,
    size_bytes: Option<u64>,
}

async fn extend(Ext(api): Ext<Api>, Body(b): Body<ExtendBody>) -> Answer {
    let id = find(&api, &one_of("volume", [&b.volume, &b.volume_id, &b.name])?)?;
    let size_bytes = size(b.size_gb, b.size_bytes)?;
    api.engine.submit(ADMIN, None, Op::ExtendVolume { id, size_bytes }).await?;
    Ok(Json(volume_json(&api, id)?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MapBody {
    volume: Option<Ref>,
    volume_id: Option<Ref>,
    name: Option<Ref>,
    sdc: Option<Ref>,
    sdc_id: Option<Ref>,
    #[serde(default)]
    device: bool,
    #[serde(default)]
    read_only: bool,
}

impl MapBody {
    fn resolve(&self, api: &Api) -> Result<(VolumeId, SdcId), ApiError> {
        let volume = find(api, &one_of("volume", [&self.volume, &self.volume_id, &self.name])?)?;
        Ok((volume, find_sdc(api, &one_of("sdc", [&self.sdc, &self.sdc_id, &None])?)?))
    }
}

async fn map(Ext(api): Ext<Api>, Body(b): Body<MapBody>) -> Answer {
    let (volume, sdc) = b.resolve(&api)?;
    let op = Op::Map { volume, sdc, read_only: b.read_only, device: b.device };
    let done = api.engine.submit(ADMIN, None, op).await?;
    let state::Answer::Mapped { generation, new, .. } = done.answer else {
        return Err(unexpected());
    };
    let Some(a) = attached(&api, volume, sdc, generation, b.device).await else {
        return pending(&api, TaskKind::Map { volume, sdc, generation }).await;
    };
    if let Some(e) = a.error {
        return Err(ApiError::new(
            422,
            "attach_failed",
            format!("the SDC has the mapping, but: {e}"),
            "mend the cause on the SDC's node and map again, or unmap",
        ));
    }
    let s = api.state.read();
    let name = s.volumes.get(&volume).map(|v| v.name.clone()).unwrap_or_default();
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    let body = json!({
        "volume": name, "volume_id": volume,
        "sdc": s.sdcs.get(&sdc).map(|x| x.name.clone()), "sdc_id": sdc,
        "uri": a.socket.as_ref().map(|p| render::uri(&name, p)), "uri_tcp": null, "device": a.device,
    });
    Ok((status, Json(body)).into_response())
}

/// Waits for the SDC's report of the mapping; the kernel device too where it was asked for.
async fn attached(
    api: &Api,
    volume: VolumeId,
    sdc: SdcId,
    generation: Generation,
    device: bool,
) -> Option<Attachment> {
    let end = Instant::now() + WAIT;
    loop {
        let a = attachment(&api.hub.lock(), volume, sdc, generation);
        if let Some(a) = a {
            if a.error.is_some() || (a.socket.is_some() && (!device || a.device.is_some())) {
                return Some(a);
            }
        }
        if Instant::now() >= end {
            return None;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn unmap(Ext(api): Ext<Api>, Body(b): Body<MapBody>) -> Answer {
    let (volume, sdc) = b.resolve(&api)?;
    let done = api.engine.submit(ADMIN, None, Op::Unmap { volume, sdc }).await?;
    let state::Answer::Unmapped { index, .. } = done.answer else { return Err(unexpected()) };
    let end = Instant::now() + WAIT;
    while !waiting(&api, volume, sdc, index).is_empty() {
        if Instant::now() >= end {
            return pending(&api, TaskKind::Unmap { volume, sdc, index }).await;
        }
        tokio::time::sleep(POLL).await;
    }
    let s = api.state.read();
    Ok(Json(json!({
        "volume": s.volumes.get(&volume).map(|v| v.name.clone()), "volume_id": volume,
        "sdc": s.sdcs.get(&sdc).map(|x| x.name.clone()), "sdc_id": sdc, "unmapped": true,
    }))
    .into_response())
}

fn waiting(api: &Api, volume: VolumeId, sdc: SdcId, index: ConfigIndex) -> Vec<String> {
    let hub = api.hub.lock();
    let s = api.state.read();
    unconfirmed(&hub, &s, volume, sdc, index)
}

/// 202 with a task that goes on.
async fn pending(api: &Api, kind: TaskKind) -> Answer {
    let done = api.engine.submit(ADMIN, None, Op::AddTask { kind }).await?;
    let state::Answer::Task(id) = done.answer else { return Err(unexpected()) };
    Ok((StatusCode::ACCEPTED, Json(task_json(api, id)?)).into_response())
}

fn task_json(api: &Api, id: u64) -> Result<Value, ApiError> {
    let hub = api.hub.lock();
    let s = api.state.read();
    let t = s.tasks.get(&id).ok_or_else(|| ApiError::not_found("tasks", id))?;
    let who = match (&t.kind, t.state) {
        (TaskKind::Unmap { volume, sdc, index }, TaskState::Running) => {
            unconfirmed(&hub, &s, *volume, *sdc, *index)
        }
        (TaskKind::Map { sdc, .. }, TaskState::Running) => {
            let name = s.sdcs.get(sdc).map_or("", |x| x.name.as_str());
            vec![format!("sdc {name} has not attached the volume")]
        }
        _ => Vec::new(),
    };
    Ok(render::task(t, who))
}

async fn task(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let n: u64 = id.parse().map_err(|_| ApiError::not_found("tasks", &id))?;
    Ok(Json(task_json(&api, n)?).into_response())
}

async fn task_list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let ids: Vec<u64> = api.state.read().tasks.keys().copied().collect();
    let rows = ids.into_iter().filter_map(|id| task_json(&api, id).ok()).collect();
    Ok(Json(page(rows, &q)?).into_response())
}
