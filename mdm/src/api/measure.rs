//! Figures of one object: as they stand now, and as they were recorded ([`crate::timeline`]).

use super::error::ApiError;
use super::input::{number, Params, Ref};
use super::spec::Route;
use super::{render, Answer, Api};
use crate::control::now;
use crate::engine::unix_ms;
use crate::slow::Seen;
use crate::timeline::book::{Book, MAX_SECONDS};
use crate::timeline::{Kind, Metric, Query};
use axum::extract::{Path, Query as Q, State as Ext};
use axum::response::IntoResponse;
use axum::Json;
use quarry_base::VolumeId;
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;

/// Seconds over which present rates are taken.
const RECENT: u64 = 5;
/// The same for what clients saw, as servers tell of their writes.
const LATELY: u64 = 10;
/// How far back a timeline goes when `seconds` is not given.
const SECONDS: u64 = 300;

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/metrics/timeline", "Recorded history of one figure of one object", timeline)
            .needs("kind", "volume|sds|sdc|pool", "kind of object")
            .needs("id", "string", "its id or name")
            .needs("metric", "string", "name of the figure")
            .query("seconds", "integer", "how far back")
            .query("step", "integer", "seconds between two points")
            .gives(200, "object")
            .gives(422, "Error"),
        Route::get("/metrics/pool/{id}", "Figures of a pool", pool).gives(200, "object"),
        Route::get("/metrics/sds/{id}", "Figures of a data server", sds).gives(200, "object"),
        Route::get("/metrics/sdc/{id}", "Figures of a data client", sdc).gives(200, "object"),
        Route::get("/metrics/volume/{id}", "Figures of a volume", volume).gives(200, "object"),
    ]
}

/// Id and name of an object, by either.
fn find(api: &Api, kind: Kind, r: &Ref) -> Result<(u32, String), ApiError> {
    let s = api.state.read();
    let mut all: Box<dyn Iterator<Item = (u32, &String)>> = match kind {
        Kind::Volume => Box::new(s.volumes.values().map(|v| (v.id.get(), &v.name))),
        Kind::Sds => Box::new(s.sds.values().map(|x| (x.id.get(), &x.name))),
        Kind::Sdc => Box::new(s.sdcs.values().map(|x| (x.id.get(), &x.name))),
        Kind::Pool => Box::new(s.pools.values().map(|p| (p.id.get(), &p.name))),
    };
    let hit = all.find(|(id, name)| r.fits(*id, name)).map(|(id, name)| (id, name.clone()));
    let what = if kind == Kind::Volume { "vol" } else { kind.name() };
    hit.ok_or_else(|| ApiError::not_found(what, r))
}

/// Every recorded metric of an object over the last seconds; `null` where there is nothing to say.
fn rates(api: &Api, kind: Kind, id: u32) -> Value {
    let at = unix_ms() / 1000;
    let book = api.timeline.lock();
    let value = |name: &String| {
        let m = Metric::find(kind, name)?;
        book.recent(kind, id, m, at, RECENT).filter(|v| v.is_finite())
    };
    let names = Metric::names(kind);
    let all: Map<String, Value> = names.iter().map(|n| (n.clone(), json!(value(n)))).collect();
    Value::Object(all)
}

/// What the clients of a volume saw in the last seconds.
pub fn seen(api: &Api, id: VolumeId) -> Seen {
    let at = unix_ms() / 1000;
    let book = api.timeline.lock();
    let value = |name: &str| {
        let m = Metric::find(Kind::Volume, name)?;
        book.recent(Kind::Volume, id.get(), m, at, LATELY).filter(|v| v.is_finite())
    };
    Seen {
        writes: value("write_ops").unwrap_or(0.0),
        write_seconds: value("write_latency_seconds"),
        write_bytes: value("write_bytes").unwrap_or(0.0),
        reads: value("read_ops").unwrap_or(0.0),
        read_seconds: value("read_latency_seconds"),
    }
}

async fn pool(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let (id, _) = find(&api, Kind::Pool, &Ref::path(&id))?;
    let mut v = {
        let hub = api.hub.lock();
        let s = api.state.read();
        let p = s.pools.get(&id.into()).ok_or_else(|| ApiError::not_found("pool", id))?;
        let mut v = render::pool(&s, &hub, p, now());
        v["status"] = json!(crate::health::pool_health(&s, &hub, p, now()));
        v
    };
    v["recent"] = rates(&api, Kind::Pool, id);
    v["recent_seconds"] = json!(RECENT);
    Ok(Json(v).into_response())
}

async fn sds(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let (id, name) = find(&api, Kind::Sds, &Ref::path(&id))?;
    let (state, counters) = {
        let hub = api.hub.lock();
        let s = api.state.read();
        let x = s.sds.get(&id.into()).ok_or_else(|| ApiError::not_found("sds", id))?;
        let counters = hub.sds.get(&x.id).map(|l| l.counters.clone()).unwrap_or_default();
        (render::sds_state(x), counters)
    };
    Ok(Json(json!({ "id": id, "name": name, "state": state, "counters": counters,
        "recent": rates(&api, Kind::Sds, id), "recent_seconds": RECENT }))
    .into_response())
}

async fn sdc(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let (id, name) = find(&api, Kind::Sdc, &Ref::path(&id))?;
    let counters = {
        let hub = api.hub.lock();
        hub.sdcs.get(&id.into()).map(|l| l.counters.clone()).unwrap_or_default()
    };
    Ok(Json(json!({ "id": id, "name": name, "counters": counters,
        "recent": rates(&api, Kind::Sdc, id), "recent_seconds": RECENT }))
    .into_response())
}

/// Counters that SDCs report as `volume.<id>.<name>`, summed over the SDCs that are there.
async fn volume(Ext(api): Ext<Api>, Path(id): Path<String>) -> Answer {
    let (id, name) = find(&api, Kind::Volume, &Ref::path(&id))?;
    let prefix = format!("volume.{id}.");
    let (size, sum) = {
        let hub = api.hub.lock();
        let s = api.state.read();
        let v = s.volumes.get(&id.into()).ok_or_else(|| ApiError::not_found("vol", id))?;
        let mut sum: BTreeMap<String, u64> = BTreeMap::new();
        for (name, n) in hub.sdcs.values().flat_map(|l| &l.counters) {
            if let Some(short) = name.strip_prefix(&prefix) {
                *sum.entry(short.to_string()).or_default() += n;
            }
        }
        (v.size_bytes, sum)
    };
    Ok(Json(json!({ "id": id, "name": name, "size_bytes": size, "counters": sum,
        "recent": rates(&api, Kind::Volume, id), "recent_seconds": RECENT }))
    .into_response())
}

fn needed<'a>(q: &'a Params, name: &str, hint: &str) -> Result<&'a str, ApiError> {
    q.get(name)
        .map(String::as_str)
        .ok_or_else(|| ApiError::new(400, "malformed", format!("{name} is missing"), hint))
}

/// Recorded history of one metric of one object.
async fn timeline(Ext(api): Ext<Api>, Q(q): Q<Params>) -> Answer {
    let kinds = Kind::ALL.map(Kind::name).join(", ");
    let text = needed(&q, "kind", &format!("kind is one of {kinds}"))?;
    let kind = Kind::parse(text).ok_or_else(|| {
        let hint = format!("kind is one of {kinds}");
        ApiError::new(422, "unknown_kind", format!("kind '{text}' has no timeline"), hint)
    })?;
    let (id, name) = find(&api, kind, &Ref::path(needed(&q, "id", "an id or a name")?))?;
    let names = || format!("{}: {}", kind.name(), Metric::names(kind).join(", "));
    let wanted = needed(&q, "metric", &names())?;
    let metric = Metric::find(kind, wanted).ok_or_else(|| {
        let message = format!("there is no metric '{wanted}' of a {}", kind.name());
        ApiError::new(422, "unknown_metric", message, names())
    })?;
    let range = |n: &str| {
        let v = number(&q, n)?;
        if v.is_some_and(|v| v == 0 || v > MAX_SECONDS) {
            let hint = format!("1 to {MAX_SECONDS}");
            return Err(ApiError::new(422, "bad_range", format!("{n} is out of range"), hint));
        }
        Ok(v)
    };
    let seconds = range("seconds")?.unwrap_or(SECONDS);
    let query = Query { kind, id, metric, seconds, step: range("step")? };
    let points = api.timeline.lock().points(&query, unix_ms() / 1000);
    Ok(Json(json!({ "kind": kind, "id": id, "name": name, "metric": wanted, "unit": metric.unit,
        "step": Book::step(&query), "points": points }))
    .into_response())
}
