//! `scli status`: what a tired person needs first. Is everything all right; if not, what is at risk,
//! why, and how long it takes.

use super::Context;
use crate::args::StatusArgs;
use crate::error::{CliError, Exit};
use crate::table::duration;
use quarry_base::units::show_size;
use serde_json::{json, Value};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Reasons shown to people; programs get all.
const MAX_REASONS: usize = 12;

/// Between two looks of `--wait`.
const PAUSE: Duration = Duration::from_millis(500);

pub fn run(cx: &Context<'_>, args: &StatusArgs) -> Result<u8, CliError> {
    let status = match cx.global.wait {
        Some(seconds) => until_ok(cx, Duration::from_secs(seconds))?,
        None => status(cx)?,
    };
    let health = status.get("health").and_then(Value::as_str).unwrap_or("unavailable");
    if cx.out.json {
        cx.out.text(&status.to_string())?;
    } else {
        let nodes = cx.client.get("/cluster/nodes").unwrap_or(Value::Null);
        cx.out.text(&text(&status, health, &nodes))?;
    }
    let code = match health {
        "ok" => 0,
        "degraded" => 10,
        _ => 20,
    };
    Ok(if args.exit_code { code } else { 0 })
}

/// Looks until all data has all its copies. At a terminal, what is left is shown meanwhile.
pub fn until_ok(cx: &Context<'_>, limit: Duration) -> Result<Value, CliError> {
    let began = Instant::now();
    let (mut shown, progress) = (String::new(), std::io::stderr().is_terminal());
    let mut seen = false;
    loop {
        let left_time = limit.saturating_sub(began.elapsed());
        let status = match status(cx) {
            // An MDM that was there and starts again is waited for, too.
            Err(e) if seen && e.exit == Exit::NoMdm && !left_time.is_zero() => {
                std::thread::sleep(PAUSE.min(left_time));
                continue;
            }
            looked => looked?,
        };
        seen = true;
        if status.get("health").and_then(Value::as_str) == Some("ok") {
            return Ok(status);
        }
        if began.elapsed() >= limit {
            return Err(late(&status, limit));
        }
        let left = left(&status);
        if progress && left != shown {
            eprintln!("{left}");
            shown = left;
        }
        std::thread::sleep(PAUSE.min(limit.saturating_sub(began.elapsed())));
    }
}

/// What is missing until all is well, in one line.
fn left(status: &Value) -> String {
    let bytes = status.get("bytes_degraded").and_then(Value::as_u64).unwrap_or(0);
    let eta = status.get("eta_seconds").and_then(Value::as_f64);
    let eta = eta.map_or_else(String::new, |s| format!(", {} left", duration(s)));
    let health = status.get("health").and_then(Value::as_str).unwrap_or("unavailable");
    format!("{health}: {} to copy{eta}", show_size(bytes))
}

fn late(status: &Value, limit: Duration) -> CliError {
    let reasons = status.get("reasons").and_then(Value::as_array).map(Vec::as_slice);
    let why = reasons.unwrap_or_default().first().and_then(Value::as_str);
    let why = why.map_or_else(String::new, |w| format!(": {w}"));
    let message = format!("not ok after {} s ({}){why}", limit.as_secs(), left(status));
    CliError::new(Exit::TimedOut, "timed_out", message)
        .hint("it goes on: scli status tells how far it is and what to do")
}

/// The API's answer. An MDM that answers without a quorum still is an answer: unavailable.
fn status(cx: &Context<'_>) -> Result<Value, CliError> {
    let answer = cx.client.get_any("/status")?;
    if answer.body.get("health").is_some() {
        return Ok(answer.body);
    }
    if answer.status == 503 {
        let why = answer.body.get("message").and_then(Value::as_str);
        return Ok(json!({
            "health": "unavailable", "bytes_degraded": null, "eta_seconds": null,
            "reasons": [why.unwrap_or("the MDM has no quorum")],
        }));
    }
    if answer.status < 300 {
        let message = "the MDM's answer does not tell the health";
        return Err(CliError::new(Exit::Failed, "bad_answer", message)
            .hint("do scli and mdm have the same release? scli --version tells"));
    }
    Err(CliError::from_api(answer.status, &answer.body))
}

fn meaning(health: &str) -> &'static str {
    match health {
        "ok" => "OK            every block has all its copies",
        "degraded" => "DEGRADED      everything works, but some data has too few copies",
        _ => "UNAVAILABLE   some data cannot be read or written now",
    }
}

/// All that is not well are pools that have no devices on enough servers yet: no data lacks anything.
fn only_waits(status: &Value) -> bool {
    let pools = status.get("pools").and_then(Value::as_array).map(Vec::as_slice);
    let bad = |p: &&Value| p.get("health").and_then(Value::as_str) != Some("ok");
    let mut bad = pools.unwrap_or_default().iter().filter(bad).peekable();
    bad.peek().is_some() && bad.all(|p| p.get("waits_for_devices") == Some(&Value::Bool(true)))
}

fn text(status: &Value, health: &str, nodes: &Value) -> String {
    let waits = health == "degraded" && only_waits(status);
    let meaning = match waits {
        true => {
            "DEGRADED      all data has its copies, but a pool has too few devices to take any yet"
        }
        false => meaning(health),
    };
    let mut out = vec![format!("health   {meaning}")];
    let single = status.get("bytes_one_copy").and_then(Value::as_u64);
    if let Some(bytes) = single.filter(|b| *b > 0) {
        let risk = "depend on ONE server: stop no node before `scli node can-stop` says yes";
        out.push(format!("at risk  {} {risk}", show_size(bytes)));
    }
    let degraded = status.get("bytes_degraded").and_then(Value::as_u64);
    if let Some(bytes) = degraded.filter(|b| *b > 0) {
        out.push(format!("to copy  {} until every block has all its copies", show_size(bytes)));
    }
    if health != "ok" && !waits {
        let eta = status.get("eta_seconds").and_then(Value::as_f64);
        let eta = eta.map_or_else(|| "not known yet".to_string(), duration);
        out.push(format!("healed   in {eta}").replace("in not", "not"));
    }
    let reasons = status.get("reasons").and_then(Value::as_array);
    let reasons = reasons.map(Vec::as_slice).unwrap_or_default();
    for (n, reason) in reasons.iter().take(MAX_REASONS).enumerate() {
        let label = if n == 0 { "why     " } else { "        " };
        out.push(format!("{label} {}", reason.as_str().unwrap_or("?")));
    }
    if reasons.len() > MAX_REASONS {
        out.push(format!("         and {} more: scli status --json", reasons.len() - MAX_REASONS));
    }
    let warnings = status.get("warnings").and_then(Value::as_array).map(Vec::as_slice);
    for (n, w) in warnings.unwrap_or_default().iter().take(MAX_REASONS).enumerate() {
        let label = if n == 0 { "look at " } else { "        " };
        out.push(format!("{label} {}", w.as_str().unwrap_or("?")));
    }
    if health != "ok" {
        let bad = |p: &&Value| p.get("health").and_then(Value::as_str) != Some("ok");
        let pools = status.get("pools").and_then(Value::as_array).map(Vec::as_slice);
        let pool = pools.unwrap_or_default().iter().find(bad).and_then(|p| p.get("pool"));
        if let Some(pool) = pool.and_then(Value::as_str) {
            out.push(format!("what to do: scli explain pool {pool}"));
        }
    }
    out.extend(node_line(nodes));
    out.join("\n")
}

/// How many hosts are up, and the names of those that are not.
fn node_line(nodes: &Value) -> Option<String> {
    let nodes = nodes.as_array()?;
    let is_up = |n: &&Value| {
        let state = n.get("state").and_then(Value::as_str).unwrap_or("");
        matches!(state, "up" | "ok" | "online" | "healthy")
    };
    let up = nodes.iter().filter(is_up).count();
    let name = |n: &Value| n.get("name").and_then(Value::as_str).unwrap_or("?").to_string();
    let down: Vec<String> = nodes.iter().filter(|n| !is_up(n)).map(name).collect();
    if down.is_empty() {
        return Some(format!("nodes    {up} of {} up", nodes.len()));
    }
    Some(format!("nodes    {up} of {} up; NOT UP: {}", nodes.len(), down.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_with_what_why_and_how_long() {
        let s = json!({"health": "degraded", "bytes_degraded": 1073741824, "eta_seconds": 200,
                       "reasons": ["sds2 is down since 02:13"]});
        let nodes = json!([{"name": "sds1", "state": "up"}, {"name": "sds2", "state": "down"}]);
        let t = text(&s, "degraded", &nodes);
        let parts = ["DEGRADED", "1 GiB", "3 min 20 s", "why      sds2 is down", "NOT UP: sds2"];
        for part in parts {
            assert!(t.contains(part), "{part} not in\n{t}");
        }
    }

    #[test]
    fn waiting_too_long_tells_what_is_missing_and_why() {
        let s = json!({"health": "degraded", "bytes_degraded": 1073741824, "eta_seconds": 200,
                       "reasons": ["sds2 is down since 02:13"]});
        let e = late(&s, Duration::from_secs(9));
        assert_eq!(e.exit, Exit::TimedOut);
        let told =
            "not ok after 9 s (degraded: 1 GiB to copy, 3 min 20 s left): sds2 is down since 02:13";
        assert_eq!(e.message, told);
        let e = late(&json!({"health": "unavailable"}), Duration::ZERO);
        assert_eq!(e.message, "not ok after 0 s (unavailable: 0 B to copy)");
    }

    #[test]
    fn a_pool_without_devices_is_no_claim_that_copies_are_missing() {
        let empty = json!({"pool": "p", "health": "degraded", "waits_for_devices": true});
        let mut s = json!({"health": "degraded", "bytes_degraded": 0, "eta_seconds": null,
            "reasons": ["pool p has no devices yet: scli device add --id 3 --pool p"],
            "pools": [{"pool": "q", "health": "ok", "waits_for_devices": false}, empty]});
        let t = text(&s, "degraded", &json!([]));
        assert!(t.contains("DEGRADED      all data has its copies, but a pool has too few"), "{t}");
        assert!(!t.contains("some data") && !t.contains("healed"), "{t}");
        for part in ["scli device add --id 3", "what to do: scli explain pool p"] {
            assert!(t.contains(part), "{part} not in\n{t}");
        }
        // A pool that really lacks copies is told as before, and so is an older MDM's answer.
        s["pools"][0]["health"] = json!("degraded");
        assert!(text(&s, "degraded", &json!([])).contains("some data has too few copies"));
        let old = json!({"health": "degraded", "pools": [{"pool": "p", "health": "degraded"}]});
        assert!(text(&old, "degraded", &json!([])).contains("some data has too few copies"));
    }

    #[test]
    fn when_all_is_well_there_is_little_to_read() {
        let s = json!({"health": "ok", "bytes_degraded": 0, "eta_seconds": null, "reasons": []});
        let t = text(&s, "ok", &json!([{"name": "a", "state": "up"}]));
        assert_eq!(t.lines().count(), 2, "{t}");
    }
}
