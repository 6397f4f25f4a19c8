//! `scli pd`, `pool`, `node`, `device`, `pg`, `events`, `task`.

use super::{called, Context};
use crate::args::{Device, EventsArgs, Node, Pd, Pg, Pool, Task};
use crate::error::CliError;
use crate::select::{self, PD, POOL};
use crate::table::{self, Column, Show};
use serde_json::{json, Value};
use std::time::Duration;

const POOLS: &[Column] = &[
    ("id", "ID", Show::Plain),
    ("name", "NAME", Show::Plain),
    ("protection_domain", "DOMAIN", Show::Plain),
    ("protection_domain_id", "DOMAIN-ID", Show::Plain),
    ("health", "HEALTH", Show::Plain),
    ("copies", "COPIES", Show::Plain),
    ("ack", "ACK", Show::Plain),
    ("capacity_bytes", "CAPACITY", Show::Size),
    ("used_bytes", "USED", Show::Size),
    ("usable_bytes", "USABLE", Show::Size),
    ("provisioned_bytes", "PROVISIONED", Show::Size),
    ("limit_bytes", "LIMIT", Show::Size),
];
const PDS: &[Column] = &[
    ("id", "ID", Show::Plain),
    ("name", "NAME", Show::Plain),
    ("state", "STATE", Show::Plain),
    ("pool_ids", "POOL-IDS", Show::Plain),
    ("sds_ids", "SDS-IDS", Show::Plain),
    ("capacity_bytes", "CAPACITY", Show::Size),
];
const NODES: &[Column] = &[
    ("id", "ID", Show::Plain),
    ("name", "NAME", Show::Plain),
    ("state", "STATE", Show::Plain),
    ("capabilities", "CAPABILITIES", Show::Plain),
    ("addresses", "ADDRESSES", Show::Plain),
    ("last_heartbeat_seconds", "LAST-SEEN", Show::Duration),
    ("version", "VERSION", Show::Plain),
];
const DEVICES: &[Column] = &[
    ("id", "ID", Show::Plain),
    ("sds", "SDS", Show::Plain),
    ("sds_id", "SDS-ID", Show::Plain),
    ("path", "PATH", Show::Plain),
    ("pool", "POOL", Show::Plain),
    ("pool_id", "POOL-ID", Show::Plain),
    ("state", "STATE", Show::Plain),
    ("capacity_bytes", "CAPACITY", Show::Size),
    ("used_bytes", "USED", Show::Size),
];
const PGS: &[Column] = &[
    ("id", "PG", Show::Plain),
    ("health", "HEALTH", Show::Plain),
    ("active", "SERVES", Show::Plain),
    ("epoch", "EPOCH", Show::Plain),
    ("primary", "PRIMARY", Show::Plain),
    ("in_sync", "IN-SYNC", Show::Plain),
    ("syncing", "SYNCING", Show::Plain),
    ("bytes", "DATA", Show::Size),
    ("bytes_degraded", "LACKS-COPY", Show::Size),
];
const EVENTS: &[Column] = &[
    ("time", "TIME", Show::Plain),
    ("who", "WHO", Show::Plain),
    ("what", "WHAT", Show::Plain),
    ("object", "OBJECT", Show::Plain),
    ("outcome", "OUTCOME", Show::Plain),
    ("reason", "REASON", Show::Plain),
];

/// Pause between two looks of `events --follow`.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);

pub fn pd(cx: &Context<'_>, command: &Pd) -> Result<(), CliError> {
    match command {
        Pd::List => cx.out.list(&cx.client.get("/pd/list")?, PDS, "protection domains"),
        Pd::Get(which) => {
            let id = select::id(&cx.client, PD, which)?;
            cx.out.object(&cx.client.get(&format!("/pd/{id}"))?)
        }
        Pd::Create { name } => {
            let body = json!({"name": select::check_name(name)?});
            let answer = cx.client.post("/pd/create", &body)?;
            cx.finish(answer, &format!("protection domain '{name}' made"))
        }
        Pd::Delete(which) => {
            let object = select::find(&cx.client, PD, which)?;
            cx.confirm(&format!("Protection domain {} will be removed.", called(&object)))?;
            let answer = cx.client.delete(&format!("/pd/{}", select::id_of(&object)?))?;
            cx.finish(answer, &format!("protection domain {} removed", called(&object)))
        }
    }
}

pub fn pool(cx: &Context<'_>, command: &Pool) -> Result<(), CliError> {
    match command {
        Pool::List => cx.out.list(&cx.client.get("/pool/list")?, POOLS, "pools"),
        Pool::Get(which) => {
            let id = select::id(&cx.client, POOL, which)?;
            cx.out.object(&cx.client.get(&format!("/pool/{id}"))?)
        }
        Pool::Health(which) => {
            let id = select::id(&cx.client, POOL, which)?;
            cx.out.object(&cx.client.get(&format!("/pool/{id}/health"))?)
        }
        Pool::Create { name, pd, copies, ack } => {
            let body = json!({
                "name": select::check_name(name)?,
                "protection_domain_id": select::id_by_name(&cx.client, PD, pd)?,
                "copies": copies,
                "ack": ack.as_str(),
            });
            let answer = cx.client.post("/pool/create", &body)?;
            cx.finish(answer, &format!("pool '{name}' made"))
        }
        Pool::Delete(which) => {
            let object = select::find(&cx.client, POOL, which)?;
            cx.confirm(&format!("Pool {} will be destroyed.", called(&object)))?;
            let answer = cx.client.delete(&format!("/pool/{}", select::id_of(&object)?))?;
            cx.finish(answer, &format!("pool {} deleted", called(&object)))
        }
    }
}

pub fn node(cx: &Context<'_>, command: &Node) -> Result<(), CliError> {
    match command {
        Node::List => cx.out.list(&cx.client.get("/cluster/nodes")?, NODES, "nodes"),
    }
}

pub fn device(cx: &Context<'_>, command: &Device) -> Result<(), CliError> {
    match command {
        Device::List => cx.out.list(&cx.client.get("/device/list")?, DEVICES, "devices"),
    }
}

pub fn pg(cx: &Context<'_>, command: &Pg) -> Result<(), CliError> {
    match command {
        Pg::List { pool } => {
            let id = select::id_by_name(&cx.client, POOL, pool)?;
            let list = cx.client.get(&format!("/pg/list?pool_id={id}"))?;
            cx.out.list(&list, PGS, "placement groups")
        }
    }
}

pub fn task(cx: &Context<'_>, command: &Task) -> Result<(), CliError> {
    let Task::Get { id } = command;
    let task = cx.client.get(&format!("/tasks/{}", select::check_name(id)?))?;
    match cx.global.wait {
        Some(seconds) => {
            let limit = Duration::from_secs(seconds);
            cx.out.object(&crate::wait::for_task(&cx.client, id, limit)?)
        }
        None => cx.out.object(&task),
    }
}

fn event_id(event: &Value) -> u64 {
    event.get("id").and_then(Value::as_u64).unwrap_or(0)
}

pub fn events(cx: &Context<'_>, args: &EventsArgs) -> Result<(), CliError> {
    let mut news = newest(cx.client.get("/events")?, args.limit);
    if !args.follow {
        return cx.out.list(&Value::from(news), EVENTS, "events");
    }
    let mut seen = 0;
    loop {
        for event in &news {
            cx.out.text(&if cx.out.json { event.to_string() } else { line(event) })?;
        }
        seen = news.iter().map(event_id).fold(seen, u64::max);
        std::thread::sleep(FOLLOW_PAUSE);
        news = newest(cx.client.get(&format!("/events?since={seen}"))?, u32::MAX);
    }
}

/// The last `limit` of a list that has the newest at its end.
fn newest(list: Value, limit: u32) -> Vec<Value> {
    let Value::Array(mut events) = list else { return Vec::new() };
    let extra = events.len().saturating_sub(limit as usize);
    events.drain(..extra);
    events
}

/// An event on one line, the columns that it has.
fn line(event: &Value) -> String {
    let shown = |(key, _, how): &Column| event.get(*key).map(|v| table::show(v, *how));
    EVENTS.iter().filter_map(shown).collect::<Vec<_>>().join("  ")
}
