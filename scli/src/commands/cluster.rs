//! `scli pd`, `pool`, `pg`, `task`.

use super::{called, Context};
use crate::args::{Pd, Pg, Pool, Task};
use crate::error::CliError;
use crate::select::{self, PD, POOL};
use crate::table::{Column, Show};
use serde_json::json;
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
            let (id, name) = (select::id_of(&object)?, called(&object));
            cx.delete(
                &format!("/pd/{id}"),
                &format!("Protection domain {name} will be removed."),
                &format!("protection domain {name} removed"),
            )
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
        Pool::Create { name, pd, copies, ack, reads, more } => {
            let mut body = json!({
                "name": select::check_name(name)?,
                "protection_domain_id": select::id_by_name(&cx.client, PD, pd)?,
                "copies": copies,
                "ack": ack.as_str(),
                "reads": reads.as_str(),
            });
            let rare = [
                ("min_copies", json!(more.min_copies)),
                ("pg_count", json!(more.pg_count)),
                ("device_ids", json!(more.devices)),
                ("over_commit", json!(more.over_commit)),
                ("reserve_percent", json!(more.reserve_percent)),
                ("rebuild_grace_seconds", json!(more.grace_seconds)),
            ];
            for (key, value) in rare.into_iter().filter(|r| !r.1.is_null()) {
                body[key] = value;
            }
            let answer = cx.client.post("/pool/create", &body)?;
            cx.finish(answer, &format!("pool '{name}' made"))
        }
        Pool::Rebalance(which) => {
            let object = select::find(&cx.client, POOL, which)?;
            let path = format!("/pool/{}/rebalance", select::id_of(&object)?);
            let answer = cx.post(&path, &json!({}))?;
            cx.finish(answer, &format!("pool {} is spread evenly", called(&object)))
        }
        Pool::Delete(which) => {
            let object = select::find(&cx.client, POOL, which)?;
            let (id, name) = (select::id_of(&object)?, called(&object));
            cx.delete(
                &format!("/pool/{id}"),
                &format!("Pool {name} will be destroyed."),
                &format!("pool {name} deleted"),
            )
        }
    }
}

const TASKS: &[Column] = &[
    ("id", "ID", Show::Plain),
    ("what", "WHAT", Show::Plain),
    ("state", "STATE", Show::Plain),
    ("progress", "PERCENT", Show::Plain),
    ("left", "LEFT", Show::Plain),
    ("bytes_left", "BYTES-LEFT", Show::Size),
    ("eta_seconds", "TIME-LEFT", Show::Duration),
    ("created", "BEGAN", Show::Plain),
    ("waiting_for", "WAITS-FOR", Show::Plain),
    ("detail", "DETAIL", Show::Plain),
];

pub fn pg(cx: &Context<'_>, command: &Pg) -> Result<(), CliError> {
    match command {
        Pg::List { pool } => {
            let id = select::id_by_name(&cx.client, POOL, pool)?;
            let list = cx.client.get(&format!("/pg/list?pool_id={id}"))?;
            cx.out.list(&list, PGS, "placement groups")
        }
        Pg::AcceptStale(a) => super::stale::run(cx, a),
        Pg::Get { id } => {
            cx.out.object(&cx.client.get(&format!("/pg/{}", select::check_name(id)?))?)
        }
    }
}

pub fn task(cx: &Context<'_>, command: &Task) -> Result<(), CliError> {
    match command {
        Task::List => cx.out.list(&cx.client.get("/tasks/list")?, TASKS, "tasks"),
        Task::Cancel { id } => {
            let path = format!("/tasks/{}/cancel", select::check_name(id)?);
            let answer = cx.client.post(&path, &json!({}))?;
            cx.finish(answer, &format!("task {id} cancelled"))
        }
        Task::Get { id } => {
            let task = cx.client.get(&format!("/tasks/{}", select::check_name(id)?))?;
            match cx.global.wait {
                Some(seconds) => {
                    let limit = Duration::from_secs(seconds);
                    cx.out.object(&crate::wait::for_task(&cx.client, id, limit)?)
                }
                None => cx.out.object(&task),
            }
        }
    }
}
