//! Tasks: long work with its progress.

use super::input::{page, Body, Params};
use super::spec::{Empty, Route};
use super::{render, Answer, Api, ApiError, ADMIN};
use crate::control::{left_of, unconfirmed, HubInner, TaskLeft};
use crate::state::{Op, State, Task, TaskKind, TaskState};
use axum::extract::{Path, Query, State as Ext};
use axum::response::IntoResponse;
use axum::Json;
use serde_json::{json, Value};

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/tasks/list", "All tasks that run or ended lately", list)
            .list("Task", "[Task]"),
        Route::get("/tasks/{id}", "One task", one).gives(200, "Task"),
        Route::post("/tasks/{id}/cancel", "Cancel a task that can be cancelled", cancel)
            .body::<Empty>()
            .gives(200, "Task"),
    ]
}

/// Who or what a running task waits for.
fn waits_for(s: &State, hub: &HubInner, t: &Task, left: &TaskLeft) -> Vec<String> {
    match &t.kind {
        TaskKind::Unmap { volume, sdc, index } => unconfirmed(hub, s, *volume, *sdc, *index),
        TaskKind::Map { sdc, .. } => {
            let name = s.sdcs.get(sdc).map_or("", |x| x.name.as_str());
            vec![match hub.sdcs.get(sdc).and_then(|l| l.session) {
                Some(_) => format!("sdc {name} has not attached the volume"),
                None => format!("sdc {name} is not up; it attaches the volume when it is back"),
            }]
        }
        _ => left.blocked.clone(),
    }
}

fn show(s: &State, hub: &HubInner, t: &Task) -> Value {
    let running = t.state == TaskState::Running;
    let left = if running { left_of(s, hub, &t.kind) } else { TaskLeft::default() };
    let total = t.total.max(left.copies);
    let progress = match (running, total) {
        (false, _) if t.state == TaskState::Done => 100,
        (false, _) | (_, 0) => 0,
        (true, n) => (n - left.copies) * 100 / n,
    };
    let waits = if running { waits_for(s, hub, t, &left) } else { Vec::new() };
    json!({
        "id": t.id, "task_id": t.id, "what": t.kind, "state": t.state, "progress": progress, "total": total,
        "left": left.copies, "bytes_left": left.bytes, "eta_seconds": left.eta_seconds,
        "created": render::rfc3339(t.created_ms), "finished": t.finished_ms.map(render::rfc3339),
        "detail": t.detail, "waiting_for": waits,
    })
}

pub fn task_json(api: &Api, id: u64) -> Result<Value, ApiError> {
    let hub = api.hub.lock();
    let s = api.state.read();
    let t = s.tasks.get(&id).ok_or_else(|| ApiError::not_found("tasks", id))?;
    Ok(show(&s, &hub, t))
}

fn number(id: &str) -> Result<u64, ApiError> {
    id.parse().map_err(|_| ApiError::not_found("tasks", id.chars().take(40).collect::<String>()))
}

async fn one(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    Ok(Json(task_json(&api, number(&id)?)?).into_response())
}

async fn list(Ext(api): Ext<Api>, Query(q): Query<Params>) -> Answer {
    let rows = {
        let hub = api.hub.lock();
        let s = api.state.read();
        s.tasks.values().map(|t| show(&s, &hub, t)).collect()
    };
    Ok(Json(page(rows, &q, "Task")?).into_response())
}

async fn cancel(Ext(api): Ext<Api>, Path(id): Path<String>, Body(_): Body<Empty>) -> Answer {
    let id = number(&id)?;
    api.engine.submit(ADMIN, None, Op::CancelTask { id }).await?;
    Ok(Json(task_json(&api, id)?).into_response())
}
