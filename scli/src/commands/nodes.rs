//! `scli node`.

use super::{called, Context};
use crate::args::{Capability, Node, Which};
use crate::error::CliError;
use crate::select::{self, NODE};
use crate::table::{Column, Show};
use quarry_base::units::show_size;
use serde_json::{json, Value};

const NODES: &[Column] = &[
    ("id", "ID", Show::Plain),
    ("name", "NAME", Show::Plain),
    ("state", "STATE", Show::Plain),
    ("capabilities", "CAPABILITIES", Show::Plain),
    ("removed_capabilities", "TAKEN-AWAY", Show::Plain),
    ("addresses", "ADDRESSES", Show::Plain),
    ("last_heartbeat_seconds", "LAST-SEEN", Show::Duration),
    ("version", "VERSION", Show::Plain),
];

/// Exit statuses of `can-stop`.
const WITH_CARE: u8 = 10;
const NO: u8 = 20;

pub fn run(cx: &Context<'_>, command: &Node) -> Result<u8, CliError> {
    match command {
        Node::List => cx.out.list(&cx.client.get("/cluster/nodes")?, NODES, "nodes")?,
        Node::Get(which) => cx.out.object(&select::find(&cx.client, NODE, which)?)?,
        Node::CanStop(which) => return can_stop(cx, which),
        Node::Capability(Capability::Add(one)) => {
            change(cx, &one.which, one.capability.as_str(), true, false)?;
        }
        Node::Capability(Capability::Remove { one, drain }) => {
            change(cx, &one.which, one.capability.as_str(), false, *drain)?;
        }
    }
    Ok(0)
}

fn change(
    cx: &Context<'_>,
    which: &Which,
    capability: &str,
    add: bool,
    drain: bool,
) -> Result<(), CliError> {
    let node = select::find(&cx.client, NODE, which)?;
    let has = node.get("capabilities").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut wanted: Vec<Value> =
        has.into_iter().filter(|c| c.as_str() != Some(capability)).collect();
    if add {
        wanted.push(json!(capability));
    } else {
        cx.confirm(&format!("Node {} will lose the capability {capability}.", called(&node)))?;
    }
    let mut body = json!({ "capabilities": wanted });
    if drain {
        body["drain"] = json!(true);
    }
    let path = format!("/cluster/nodes/{}/capabilities", select::id_of(&node)?);
    let verb = if add { "has" } else { "has no longer" };
    cx.finish(
        cx.client.post(&path, &body)?,
        &format!("node {} {verb} the capability {capability}", called(&node)),
    )
}

fn can_stop(cx: &Context<'_>, which: &Which) -> Result<u8, CliError> {
    let node = select::find(&cx.client, NODE, which)?;
    let path = format!("/cluster/nodes/{}/can_stop", select::id_of(&node)?);
    let v = cx.client.get(&path)?;
    let code = match v.get("verdict").and_then(Value::as_str) {
        Some("yes") => 0,
        Some("with_care") => WITH_CARE,
        _ => NO,
    };
    match cx.out.json {
        true => cx.out.object(&v)?,
        false => cx.out.text(&verdict(&v, code))?,
    }
    Ok(code)
}

fn verdict(v: &Value, code: u8) -> String {
    let name = v.get("node").and_then(Value::as_str).unwrap_or("?");
    let list = |key: &str| -> Vec<String> {
        let all = v.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        all.iter().filter_map(|x| x.as_str().map(str::to_string)).collect()
    };
    let mut out = vec![match code {
        0 => format!("YES   {name} can be stopped: everything stays available"),
        WITH_CARE => format!("CARE  {name} can be stopped: all data stays available, but see below"),
        _ => format!("NO    do not stop {name}: data would be unavailable, and what it holds may be the last copy"),
    }];
    out.extend(list("reasons").into_iter().map(|r| format!("      {r}")));
    let volumes = list("unavailable_volumes");
    if !volumes.is_empty() {
        out.push(format!("      volumes: {}", volumes.join(", ")));
        let bytes = v.get("unavailable_bytes").and_then(Value::as_u64).unwrap_or(0);
        out.push(format!(
            "      {} would serve nothing; wait until `scli status` says OK",
            show_size(bytes)
        ));
    }
    let mapped = list("mapped_volumes");
    if !mapped.is_empty() {
        out.push(format!("      mapped here: {}", mapped.join(", ")));
    }
    out.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_names_the_volumes_and_what_to_wait_for() {
        let v = json!({"node": "n1", "reasons": ["1 group would serve nothing"], "unavailable_volumes": ["db"],
                       "unavailable_bytes": 1048576, "mapped_volumes": []});
        let t = verdict(&v, NO);
        assert!(t.starts_with("NO") && t.contains("db") && t.contains("1 MiB"), "{t}");
        assert!(verdict(&json!({"node": "n1", "reasons": []}), 0).starts_with("YES"));
    }
}
