//! `scli volume`.

use super::{called, Context};
use crate::args::{Volume, Which};
use crate::client::Answer;
use crate::error::CliError;
use crate::select::{self, SDC, VOLUME};
use crate::table::{Column, Show};
use crate::wait;
use quarry_base::units::show_size;
use serde_json::{json, Map, Value};
use std::time::Duration;

const COLUMNS: &[Column] = &[
    ("id", "ID", Show::Plain),
    ("name", "NAME", Show::Plain),
    ("size_bytes", "SIZE", Show::Size),
    ("used_bytes", "USED", Show::Size),
    ("provisioning", "PROVISIONING", Show::Plain),
    ("pool", "POOL", Show::Plain),
    ("mappings", "MAPPED-TO", Show::Plain),
];

pub fn run(cx: &Context<'_>, command: &Volume) -> Result<(), CliError> {
    match command {
        Volume::List => cx.out.list(&cx.client.get("/vol/list")?, COLUMNS, "volumes"),
        Volume::Get(which) => {
            let id = select::id(&cx.client, VOLUME, which)?;
            cx.out.object(&cx.client.get(&format!("/vol/{id}"))?)
        }
        Volume::Create { name, size, pool, provisioning } => {
            let bytes = select::check_size(size)?;
            let body = json!({
                "name": select::check_name(name)?,
                "size_bytes": bytes,
                "pool": select::check_name(pool)?,
                "provisioning": provisioning.as_str(),
            });
            let answer = cx.client.post("/vol/create", &body)?;
            cx.finish(answer, &format!("volume '{name}' made, {}", show_size(bytes)))
        }
        Volume::Map { which, sdc, device, read_only, io_timeout } => {
            let mut body = mapping(which, sdc)?;
            let flags = [("device", *device), ("read_only", *read_only)];
            for (key, _) in flags.into_iter().filter(|f| f.1) {
                body.insert(key.to_string(), true.into());
            }
            if let Some(seconds) = io_timeout {
                body.insert("io_timeout_seconds".to_string(), (*seconds).into());
            }
            map(cx, body.into())
        }
        Volume::Unmap { which, sdc, force } => {
            let mut body = mapping(which, sdc)?;
            if *force {
                body.insert("force".to_string(), true.into());
            }
            let answer = cx.client.post("/vol/unmap", &body.into())?;
            cx.finish(answer, &format!("unmapped from '{sdc}'"))
        }
        Volume::Extend { which, size } => {
            let bytes = select::check_size(size)?;
            let mut body = volume(which)?;
            body.insert("size_bytes".to_string(), bytes.into());
            let answer = cx.client.post("/vol/extend", &body.into())?;
            cx.finish(answer, &format!("extended to {}", show_size(bytes)))
        }
        Volume::Delete(which) => {
            let object = select::find(&cx.client, VOLUME, which)?;
            let id = select::id_of(&object)?;
            let name = called(&object);
            cx.delete(
                &format!("/vol/{id}"),
                &format!("Volume {name} and all its data will be destroyed."),
                &format!("volume {name} deleted"),
            )
        }
    }
}

/// Names the volume in a request: by name or by id, as it was given.
fn volume(which: &Which) -> Result<Map<String, Value>, CliError> {
    let mut body = Map::new();
    match which.id {
        Some(id) => body.insert("volume_id".to_string(), id.into()),
        None => {
            let name = select::check_name(which.name.as_deref().unwrap_or(""))?;
            body.insert("volume".to_string(), name.into())
        }
    };
    Ok(body)
}

fn mapping(which: &Which, sdc: &str) -> Result<Map<String, Value>, CliError> {
    let mut body = volume(which)?;
    body.insert(SDC.path.to_string(), select::check_name(sdc)?.into());
    Ok(body)
}

/// Maps and prints the address. The address is what this command is for, so it waits for it even
/// without `--wait`, as long as one request may take.
fn map(cx: &Context<'_>, body: Value) -> Result<(), CliError> {
    let mut answer = cx.client.post("/vol/map", &body)?;
    if let Some(id) = wait::task_id(&answer) {
        let limit = Duration::from_secs(cx.global.wait.unwrap_or(cx.global.timeout));
        let task = wait::for_task(&cx.client, &id, limit)?;
        answer = match task.get("result").filter(|r| r.get("uri").is_some()) {
            Some(result) => Answer { status: 200, body: result.clone() },
            // Mapping again gives the same answer, now complete.
            None => cx.client.post("/vol/map", &body)?,
        };
    }
    let m = answer.body;
    if cx.out.json {
        return cx.out.object(&m);
    }
    let text = |key: &str| m.get(key).and_then(Value::as_str);
    let mut lines = vec![text("uri").unwrap_or("(no address yet)").to_string()];
    lines.extend(text("uri_tcp").map(str::to_string));
    lines.extend(text("device").map(str::to_string));
    cx.out.text(&lines.join("\n"))
}
