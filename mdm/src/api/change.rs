//! Carrying out changes: creates with a key, dry runs, deletions, refusals.

use super::input::{flag, idempotency_key, Params};
use super::{Answer, Api, ApiError, ADMIN};
use crate::engine::unix_ms;
use crate::state::{self, Applied, Command, Op, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::Json;
use quarry_base::{ConfigIndex, PgId};
use serde_json::{json, Value};
use std::collections::BTreeSet;

/// Groups whose members are named in the answer of a dry run are only counted; events at most.
const EFFECTS: usize = 200;

/// Makes an object: 201 and the object; with a key that came before, the first answer.
pub async fn create(
    api: &Api,
    h: &HeaderMap,
    op: Op,
    show: impl Fn(&Api, &state::Answer) -> Result<Value, ApiError>,
) -> Answer {
    let key = idempotency_key(h)?;
    let done = api.engine.submit(ADMIN, key.clone(), op).await?;
    if let Some(body) = done.body {
        let json = [(CONTENT_TYPE, "application/json")];
        return Ok((StatusCode::CREATED, json, body).into_response());
    }
    let v = show(api, &done.answer)?;
    if let Some(key) = key {
        let op = Op::Remember { key, body: v.to_string() };
        api.engine.submit(ADMIN, None, op).await?;
    }
    Ok((StatusCode::CREATED, Json(v)).into_response())
}

/// With `dry_run=true` what the command would do, else what it did. `None`: it was done.
pub async fn run(api: &Api, q: &Params, op: Op) -> Result<(Applied, Option<Value>), ApiError> {
    if !flag(q, "dry_run")? {
        return Ok((api.engine.submit(ADMIN, None, op).await?, None));
    }
    // The same code on a copy: the answer of a dry run cannot differ from what the command does.
    let mut after = api.state.read().clone();
    let before: BTreeSet<PgId> = serving(&after);
    let index = ConfigIndex(after.index.0 + 1);
    let command = Command { at_ms: unix_ms(), who: ADMIN.into(), key: None, op };
    let done = after.apply(index, &command)?;
    let lost: BTreeSet<PgId> = before.difference(&serving(&after)).copied().collect();
    let names: Vec<String> = after
        .volumes_on(&lost)
        .into_iter()
        .filter_map(|v| after.volumes.get(&v).map(|v| v.name.clone()))
        .collect();
    let effects: Vec<Value> = done.events.iter().take(EFFECTS).map(effect).collect();
    let moved = done.changes.iter().filter(|c| matches!(c, quarry_wire::Change::Pg(_))).count();
    let v = json!({ "dry_run": true, "would": effects, "placement_groups_changed": moved,
        "volumes_unavailable": names });
    Ok((done, Some(v)))
}

fn effect(e: &state::Event) -> Value {
    json!({ "what": e.what, "object": e.object, "reason": e.reason })
}

/// Groups with a primary that is there.
fn serving(s: &State) -> BTreeSet<PgId> {
    let leads = |p: &&state::Pg| p.config.primary_member().is_some_and(|m| s.alive(m));
    s.pgs.values().filter(leads).map(|p| p.config.pg).collect()
}

/// Deletes an object: 200 and its id.
pub async fn delete(api: &Api, q: &Params, op: Op, id: u32) -> Answer {
    let (_, dry) = run(api, q, op).await?;
    Ok(Json(dry.unwrap_or_else(|| json!({ "deleted": id }))).into_response())
}

/// An answer of the engine that cannot be.
pub fn unexpected() -> ApiError {
    ApiError::new(500, "internal", "an answer of the wrong kind", "this is a defect: see the log")
}
