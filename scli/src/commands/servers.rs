//! `scli sds` and `scli sdc`.

use super::{called, Context};
use crate::args::{Sdc, Sds, Which};
use crate::error::CliError;
use crate::select::{self, PD, SDC, SDS};
use crate::table::{Column, Show};
use serde_json::{json, Value};
use std::time::Duration;

const COLUMNS: &[Column] = &[
    ("id", "ID", Show::Plain),
    ("name", "NAME", Show::Plain),
    ("state", "STATE", Show::Plain),
    ("node_id", "NODE-ID", Show::Plain),
    ("protection_domain_id", "DOMAIN-ID", Show::Plain),
    ("fault_set_name", "FAULT-SET", Show::Plain),
    ("devices", "DEVICES", Show::Plain),
    ("copies", "COPIES", Show::Plain),
    ("capacity_bytes", "CAPACITY", Show::Size),
    ("used_bytes", "USED", Show::Size),
    ("last_heartbeat_seconds", "LAST-SEEN", Show::Duration),
    ("volume_ids", "VOLUME-IDS", Show::Plain),
];

pub fn sds(cx: &Context<'_>, command: &Sds) -> Result<(), CliError> {
    match command {
        Sds::List => cx.out.list(&cx.client.get("/sds/list")?, COLUMNS, "SDS"),
        Sds::Get(which) => {
            let id = select::id(&cx.client, SDS, which)?;
            cx.out.object(&cx.client.get(&format!("/sds/{id}"))?)
        }
        Sds::Add { name, pd, fault_set } => {
            let mut body = json!({
                "name": select::check_name(name)?,
                "protection_domain_id": select::id_by_name(&cx.client, PD, pd)?,
            });
            if let Some(f) = fault_set {
                body["fault_set"] = json!(select::check_name(f)?);
            }
            let answer = cx.client.post("/sds/add", &body)?;
            cx.finish(answer, &format!("SDS '{name}' added to '{pd}'"))
        }
        Sds::Fail { which, force } => {
            let ask = "will be fenced: its copies no longer count and are rebuilt elsewhere.";
            // Only sent when asked for, so that the plain request stays the plain one.
            let body = if *force { json!({"force": true}) } else { json!({}) };
            act(cx, which, "fail", &body, Some(ask), "fenced")
        }
        Sds::Recover(which) => recover(cx, which),
        Sds::Drain(which) => act(cx, which, "drain", &json!({}), None, "is empty"),
        Sds::Delete(which) => {
            let object = select::find(&cx.client, SDS, which)?;
            let (id, name) = (select::id_of(&object)?, called(&object));
            cx.delete(
                &format!("/sds/{id}"),
                &format!("SDS {name} will be removed from the cluster."),
                &format!("SDS {name} removed"),
            )
        }
    }
}

/// Takes a server back. It counts again once it has been brought up to date: with `--wait` the answer is the server as it
/// is then.
fn recover(cx: &Context<'_>, which: &Which) -> Result<(), CliError> {
    let object = select::find(&cx.client, SDS, which)?;
    let path = format!("/sds/{}", select::id_of(&object)?);
    let mut answer = cx.post(&format!("{path}/recover"), &json!({}))?;
    if let Some(seconds) = cx.global.wait {
        super::status::until_ok(cx, Duration::from_secs(seconds))?;
        answer.body = cx.client.get(&path)?;
    }
    cx.finish(answer, &format!("SDS {} is taken back", called(&object)))
}

fn act(
    cx: &Context<'_>,
    which: &Which,
    verb: &str,
    body: &Value,
    ask: Option<&str>,
    done: &str,
) -> Result<(), CliError> {
    let object = select::find(&cx.client, SDS, which)?;
    let name = called(&object);
    if let Some(ask) = ask {
        cx.confirm(&format!("SDS {name} {ask}"))?;
    }
    let path = format!("/sds/{}/{verb}", select::id_of(&object)?);
    cx.finish(cx.post(&path, body)?, &format!("SDS {name} {done}"))
}

pub fn sdc(cx: &Context<'_>, command: &Sdc) -> Result<(), CliError> {
    match command {
        Sdc::List => cx.out.list(&cx.client.get("/sdc/list")?, COLUMNS, "SDC"),
        Sdc::Get(which) => {
            let id = select::id(&cx.client, SDC, which)?;
            cx.out.object(&cx.client.get(&format!("/sdc/{id}"))?)
        }
        Sdc::Add { name } => {
            let answer = cx.client.post("/sdc/add", &json!({"name": select::check_name(name)?}))?;
            cx.finish(answer, &format!("SDC '{name}' added"))
        }
        Sdc::Delete(which) => {
            let object = select::find(&cx.client, SDC, which)?;
            let (id, name) = (select::id_of(&object)?, called(&object));
            cx.delete(
                &format!("/sdc/{id}"),
                &format!("SDC {name} will be removed from the cluster."),
                &format!("SDC {name} removed"),
            )
        }
    }
}
