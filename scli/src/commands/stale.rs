//! `scli pg accept-stale`: what going on with older copies would lose, and the decision (promise 5).

use super::Context;
use crate::args::AcceptStale;
use crate::error::{CliError, Exit};
use crate::select::{self, POOL, SDS};
use serde_json::{json, Value};
use std::io::IsTerminal;

/// Groups shown at most.
const SHOWN: usize = 50;

pub fn run(cx: &Context<'_>, a: &AcceptStale) -> Result<(), CliError> {
    let pool = select::id_by_name(&cx.client, POOL, &a.pool)?;
    let path = format!("/pool/{pool}/accept_stale");
    let mut body = json!({});
    if !a.all_unavailable {
        body["pg_ids"] = json!(a.id);
    }
    if let Some(s) = &a.sds {
        body["sds"] = json!(select::id_by_name(&cx.client, SDS, s)?);
    }
    let loss = cx.client.post(&format!("{path}?dry_run=true"), &body)?.body;
    if cx.global.dry_run {
        return match cx.out.json {
            true => cx.out.object(&loss),
            false => cx.out.text(&text(&loss, "nothing was done; it would lose:")),
        };
    }
    let none = list(&loss, "groups").is_empty();
    confirm(cx, &loss, none)?;
    body["accept_loss"] = json!(true);
    // What was shown, and nothing that has come to it since.
    body["plan"] = loss["plan"].clone();
    if a.old_server_is_off {
        body["old_server_is_off"] = json!(true);
    }
    let n = list(&loss, "groups").len();
    cx.finish(
        cx.client.post(&path, &body)?,
        &format!("{n} placement groups go on with an older copy"),
    )
}

/// Unlike other commands this one asks a script too: nothing brings back what it gives up.
fn confirm(cx: &Context<'_>, loss: &Value, none: bool) -> Result<(), CliError> {
    if cx.global.yes || none {
        return Ok(());
    }
    let human = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if human {
        return cx.confirm(&text(loss, "This will lose:"));
    }
    let n = list(loss, "groups").len();
    let message = format!("{n} placement groups would go back to an older state; nothing was done");
    let hint = "--dry-run says what would be lost, --yes accepts it";
    Err(CliError::new(Exit::Failed, "not_confirmed", message).hint(hint))
}

fn list<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn words(v: &Value, key: &str) -> String {
    let all: Vec<&str> = list(v, key).iter().filter_map(Value::as_str).collect();
    if all.is_empty() {
        "-".to_string()
    } else {
        all.join(", ")
    }
}

fn text(loss: &Value, head: &str) -> String {
    let number = |v: &Value, key: &str| {
        v.get(key).and_then(Value::as_u64).map_or_else(|| "?".to_string(), |n| n.to_string())
    };
    let word = |v: &Value, key: &str| {
        v.get(key).and_then(Value::as_str).unwrap_or("not known").to_string()
    };
    let groups = list(loss, "groups");
    let mut out = vec![head.to_string()];
    if groups.is_empty() {
        out.push("  nothing: there is no group of which only an older copy is left".to_string());
    }
    for g in groups.iter().take(SHOWN) {
        out.push(format!(
            "  group {}: sds {} (in sync until {}, complete to epoch {} seq {}{}) instead of sds {} (last heard at epoch {} seq {}): {} records",
            word(g, "id"),
            word(g, "stale_sds"),
            word(g, "in_sync_until"),
            number(g, "stale_epoch"),
            number(g, "stale_seq"),
            if g.get("mixed") == Some(&Value::Bool(true)) { ", some blocks newer" } else { "" },
            words(g, "good_sds"),
            number(g, "good_epoch"),
            number(g, "good_seq"),
            number(g, "records_lost"),
        ));
    }
    if groups.len() > SHOWN {
        out.push(format!("  and {} groups more", groups.len() - SHOWN));
    }
    out.push(format!("  volumes that go back: {}", words(loss, "volumes")));
    if !list(loss, "without_copy").is_empty() {
        out.push(format!(
            "  groups without any copy, which stay as they are: {}",
            words(loss, "without_copy")
        ));
    }
    out.push("  what comes back later of the newer copy is not used any more".to_string());
    out.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_lost_is_named_and_so_is_what_nobody_knows() {
        let t = text(
            &json!({"groups": [{"id": "1.7", "stale_sds": "sds1", "in_sync_until": null,
                "stale_epoch": 3, "stale_seq": 40, "good_sds": ["sds2"], "good_epoch": null,
                "good_seq": null, "records_lost": null, "mixed": true}],
                "volumes": ["db"], "without_copy": ["1.9"]}),
            "it would lose:",
        );
        for part in [
            "group 1.7: sds sds1 (in sync until not known, complete to epoch 3 seq 40, some blocks newer)",
            "instead of sds sds2 (last heard at epoch ? seq ?): ? records",
            "volumes that go back: db",
            "without any copy, which stay as they are: 1.9",
        ] {
            assert!(t.contains(part), "{part} not in\n{t}");
        }
    }
}
