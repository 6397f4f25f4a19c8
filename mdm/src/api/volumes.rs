//! Volumes and mappings.

use super::change::{create as make, delete as remove, unexpected};
use super::input::{find, new_name, one_of, page, size, Body, Params, Ref};
use super::pools::find_pool;
use super::servers::find_sdc;
use super::spec::{body, Route};
use super::tasks::task_json;
use super::{render, Answer, Api, ApiError, ADMIN};
use crate::control::{attachment, may_still_come, unconfirmed, users_of};
use crate::state::{self, Op, Provisioning, TaskKind};
use axum::extract::{Path, Query, State as Ext};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::Json;
use quarry_base::{ConfigIndex, Generation, PoolId, SdcId, VolumeId};
use quarry_control::Attachment;
use serde_json::{json, Value};
use std::time::Duration;
use tokio::time::Instant;

/// How long a request waits for the nodes before it becomes a task.
const WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

pub fn routes() -> Vec<Route> {
    vec![
        Route::post("/vol/create", "Make a volume", create)
            .body::<CreateBody>()
            .gives(201, "Volume")
            .keyed(),
        Route::get("/vol/list", "All volumes", list).list("Volume", "[Volume]"),
        Route::post(
            "/vol/map",
            "Give a volume to a data client; the answer says where to connect",
            map,
        )
        .body::<MapBody>()
        .gives(200, "Mapped")
        .gives(201, "Mapped")
        .gives(202, "Task"),
        Route::post(
            "/vol/unmap",
            "Take a volume away from a data client; refused while it is in use there, but with force",
            unmap,
        )
        .body::<UnmapBody>()
        .gives(200, "Unmapped")
        .gives(202, "Task"),
        Route::post("/vol/extend", "Make a volume larger, online", extend)
            .body::<ExtendBody>()
            .gives(200, "Volume"),
        Route::get("/vol/{id}", "One volume", one).gives(200, "Volume"),
        Route::delete("/vol/{id}", "Destroy a volume and its data", delete)
            .gives(200, "Deleted")
            .dry(),
    ]
}

pub fn find_volume(api: &Api, r: &Ref) -> Result<VolumeId, ApiError> {
    let s = api.state.read();
    find("vol", r, s.volumes.values().map(|v| (v.id.get(), v.name.as_str()))).map(VolumeId)
}

/// Bytes used on the pool's devices now. What is promised in full is not promised blindly.
fn used(api: &Api, pool: PoolId, provisioning: Provisioning) -> Result<u64, ApiError> {
    let hub = api.hub.lock();
    let s = api.state.read();
    match render::pool_used_for_promise(&s, &hub, pool) {
        Some(n) => Ok(n),
        None if provisioning == Provisioning::Thin => Ok(0),
        None => Err(ApiError::new(
            503,
            "usage_unknown",
            "no server of the pool has reported since the MDM started: what is free is not known",
            "try again in a few seconds; scli status names servers that are away",
        )),
    }
}

fn volume_json(api: &Api, id: VolumeId) -> Result<Value, ApiError> {
    let hub = api.hub.lock();
    let s = api.state.read();
    let v = s.volumes.get(&id).ok_or_else(|| ApiError::not_found("vol", id))?;
    Ok(render::volume(&s, &hub, v))
}

body! {
    struct CreateBody {
        name: String,
        /// Left out: the pool named default.
        pool: Option<Ref>,
        pool_id: Option<Ref>,
        /// GiB; a multiple of 1 MiB. Or give size_bytes.
        size_gb: Option<f64>,
        size_bytes: Option<u64>,
        provisioning: Option<Provisioning>,
    }
}

async fn create(Ext(api): Ext<Api>, h: HeaderMap, Body(b): Body<CreateBody>) -> Answer {
    new_name(&b.name)?;
    let pool = match (&b.pool, &b.pool_id) {
        (None, None) => Ref::Name("default".into()),
        _ => one_of("pool", [&b.pool, &b.pool_id, &None])?,
    };
    let pool = find_pool(&api, &pool)?;
    let size_bytes = size(b.size_gb, b.size_bytes)?;
    let provisioning = b.provisioning.unwrap_or_default();
    let used_bytes = used(&api, pool, provisioning)?;
    let op = Op::CreateVolume { name: b.name, pool, size_bytes, provisioning, used_bytes };
    make(&api, &h, op, |api, a| match a {
        state::Answer::Volume(id) => volume_json(api, *id),
        _ => Err(unexpected()),
    })
    .await
}

async fn list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        s.volumes.values().map(|v| render::volume(&s, &hub, v)).collect()
    };
    Ok(Json(page(rows, &q, "Volume")?).into_response())
}

async fn one(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let id = find_volume(&api, &Ref::path(&id))?;
    Ok(Json(volume_json(&api, id)?).into_response())
}

async fn delete(Ext(api): Ext<Api>, Path(id): Path<String>, Query(q): Query<Params>) -> Answer {
    let id = find_volume(&api, &Ref::path(&id))?;
    remove(&api, &q, Op::DeleteVolume { id }, id.get()).await
}

body! {
    struct ExtendBody {
        /// The volume; or give volume_id or name.
        volume: Option<Ref>,
        volume_id: Option<Ref>,
        name: Option<Ref>,
        /// The new size in GiB. Or give size_bytes.
        size_gb: Option<f64>,
        size_bytes: Option<u64>,
    }
}

async fn extend(Ext(api): Ext<Api>, Body(b): Body<ExtendBody>) -> Answer {
    let id = find_volume(&api, &one_of("volume", [&b.volume, &b.volume_id, &b.name])?)?;
    let size_bytes = size(b.size_gb, b.size_bytes)?;
    let (pool, provisioning) = {
        let s = api.state.read();
        s.volumes.get(&id).map(|v| (v.pool, v.provisioning)).unwrap_or_default()
    };
    let used_bytes = used(&api, pool, provisioning)?;
    api.engine.submit(ADMIN, None, Op::ExtendVolume { id, size_bytes, used_bytes }).await?;
    Ok(Json(volume_json(&api, id)?).into_response())
}

body! {
    struct MapBody {
        /// The volume; or give volume_id or name.
        volume: Option<Ref>,
        volume_id: Option<Ref>,
        name: Option<Ref>,
        /// The data client; or give sdc_id.
        sdc: Option<Ref>,
        sdc_id: Option<Ref>,
        /// Attach it to the client's kernel too.
        device: Option<bool>,
        read_only: Option<bool>,
        /// A request of this mapping that has waited for so long fails with an I/O error; 0 or left out: it waits
        /// until it can be served.
        io_timeout_seconds: Option<u64>,
    }
}

body! {
    struct UnmapBody {
        /// The volume; or give volume_id or name.
        volume: Option<Ref>,
        volume_id: Option<Ref>,
        name: Option<Ref>,
        /// The data client; or give sdc_id.
        sdc: Option<Ref>,
        sdc_id: Option<Ref>,
        /// Also while it is mounted, open or written to there: its users get I/O errors.
        force: Option<bool>,
        /// Without effect, so that the body of a map can be sent again.
        device: Option<bool>,
        /// Without effect.
        read_only: Option<bool>,
    }
}

/// Volume and client of a request, each named by one of its fields.
fn resolve(
    api: &Api,
    volume: [&Option<Ref>; 3],
    sdc: [&Option<Ref>; 2],
) -> Result<(VolumeId, SdcId), ApiError> {
    let volume = find_volume(api, &one_of("volume", volume)?)?;
    Ok((volume, find_sdc(api, &one_of("sdc", [sdc[0], sdc[1], &None])?)?))
}

async fn map(Ext(api): Ext<Api>, Body(b): Body<MapBody>) -> Answer {
    let (volume, sdc) = resolve(&api, [&b.volume, &b.volume_id, &b.name], [&b.sdc, &b.sdc_id])?;
    let device = b.device.unwrap_or(false);
    let io_timeout_ms = b.io_timeout_seconds.map(|s| s.saturating_mul(1000));
    let read_only = b.read_only.unwrap_or(false);
    let no_device = !device && device_failed(&api, volume, sdc);
    let op = Op::Map { volume, sdc, read_only, device, io_timeout_ms, no_device };
    let done = api.engine.submit(ADMIN, None, op).await?;
    let state::Answer::Mapped { generation, new, .. } = done.answer else {
        return Err(unexpected());
    };
    let Some(a) = attached(&api, volume, sdc, generation, device).await else {
        return pending(&api, TaskKind::Map { volume, sdc, generation }).await;
    };
    // Without a kernel device asked for now, one that failed earlier is no obstacle.
    if let Some(e) = a.error.filter(|_| device || a.socket.is_none()) {
        return Err(ApiError::new(
            422,
            "attach_failed",
            format!("the SDC has the mapping, but: {e}"),
            "mend the cause on the SDC's node and map again, or map without a device, or unmap",
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

/// The SDC has the volume's socket and says why it has no kernel device.
fn device_failed(api: &Api, volume: VolumeId, sdc: SdcId) -> bool {
    let hub = api.hub.lock();
    let all = hub.sdcs.get(&sdc).and_then(|l| l.attachments.as_ref());
    let mine = all.into_iter().flatten().find(|a| a.volume == volume);
    mine.is_some_and(|a| a.socket.is_some() && a.device.is_none() && a.error.is_some())
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
        let (a, is_up) = {
            let hub = api.hub.lock();
            let is_up = hub.sdcs.get(&sdc).is_some_and(|l| l.session.is_some());
            (attachment(&hub, volume, sdc, generation), is_up)
        };
        if !is_up {
            return None;
        }
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

async fn unmap(Ext(api): Ext<Api>, Body(b): Body<UnmapBody>) -> Answer {
    let (volume, sdc) = resolve(&api, [&b.volume, &b.volume_id, &b.name], [&b.sdc, &b.sdc_id])?;
    // Nothing is done with these.
    let (_, _) = (b.device, b.read_only);
    if !b.force.unwrap_or(false) {
        refuse_in_use(&api, volume, sdc).await?;
    }
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

/// Refuses to take a volume from under a file system or a client that writes. A client that cannot be asked stops nothing:
/// what it has in flight is fenced all the same. But an MDM that has just started waits for it.
async fn refuse_in_use(api: &Api, volume: VolumeId, sdc: SdcId) -> Result<(), ApiError> {
    let (volume_name, sdc_name, up) = {
        let s = api.state.read();
        let v = s.volumes.get(&volume).filter(|v| v.mappings.iter().any(|m| m.sdc == sdc));
        // Not mapped: the command says so.
        let (Some(v), Some(x)) = (v, s.sdcs.get(&sdc)) else { return Ok(()) };
        (v.name.clone(), x.name.clone(), x.up)
    };
    let Some(users) = users_of(&api.hub, sdc, volume).await else {
        return if up && may_still_come(&api.hub, sdc) {
            Err(ApiError::new(
                503,
                "client_unknown",
                format!("this MDM has just started and {sdc_name} has not answered yet: whether volume {volume_name} is in use there is not known"),
                "try again in a few seconds; or force it (force in the request, scli volume unmap --force)",
            ))
        } else {
            Ok(())
        };
    };
    if users.is_empty() {
        return Ok(());
    }
    Err(ApiError::new(
        409,
        "in_use",
        format!("volume {volume_name} is in use on {sdc_name}: {}", users.join(", ")),
        "unmount it and end what uses it there; or force it (force in the request, scli volume unmap --force): its users get I/O errors",
    ))
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
