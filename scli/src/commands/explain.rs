//! `scli explain`: why something is degraded, slow or stuck, and the safe next step.

use super::Context;
use crate::args::Explained;
use crate::error::CliError;
use crate::select;
use crate::table::duration;
use quarry_base::units::show_size;
use serde_json::Value;

pub fn run(cx: &Context<'_>, kind: Explained, object: &str, groups: bool) -> Result<u8, CliError> {
    let name = select::check_name(object)?;
    let v = cx.client.get(&format!("/explain/{}/{name}?groups={groups}", kind.as_str()))?;
    match cx.out.json {
        true => cx.out.object(&v)?,
        false => cx.out.text(&text(&v))?,
    }
    Ok(0)
}

fn text(v: &Value) -> String {
    let words = |key: &str| v.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let number = |key: &str| v.get(key).and_then(Value::as_u64).filter(|n| *n > 0);
    let mut out = vec![v.get("summary").and_then(Value::as_str).unwrap_or("?").to_string()];
    let mut lines = |label: &str, list: Vec<Value>| {
        for (i, x) in list.iter().enumerate() {
            let label = if i == 0 { label } else { "" };
            out.push(format!("{label:<9}{}", x.as_str().unwrap_or("?")));
        }
    };
    lines("why", words("why"));
    lines("do", words("what_to_do"));
    lines("time", timing(v.get("timing")));
    if let Some(n) = number("bytes_one_copy") {
        out.push(format!("at risk  {} have one copy", show_size(n)));
    }
    let waits = v.get("waits_for_devices") == Some(&Value::Bool(true));
    if v.get("health").and_then(Value::as_str) != Some("ok") && !waits {
        let eta = v.get("eta_seconds").and_then(Value::as_f64);
        out.push(match eta {
            Some(s) => format!("healed   in {}", duration(s)),
            None => "healed   not known when".to_string(),
        });
    }
    for g in words("groups") {
        let field = |key: &str| g.get(key).map(Value::to_string).unwrap_or_default();
        out.push(format!(
            "group    {} {} epoch {} in sync {} syncing {}",
            field("id").trim_matches('"'),
            field("health").trim_matches('"'),
            field("epoch"),
            devices(&g, "in_sync"),
            devices(&g, "syncing"),
        ));
    }
    out.join("\n")
}

/// Where the time of requests went, a line for the client and each server.
fn timing(t: Option<&Value>) -> Vec<Value> {
    let Some(t) = t.filter(|t| t.is_object()) else { return Vec::new() };
    let number = |v: &Value, key: &str| v.get(key).and_then(Value::as_f64);
    let ms = |s: f64| format!("{:.1} ms", s * 1e3);
    let mut out = Vec::new();
    if let Some(c) = t.get("client").filter(|c| c.is_object()) {
        let part = |what: &str| {
            let each = number(c, &format!("{what}_seconds"))?;
            let n = number(c, &format!("{what}s_per_second")).unwrap_or(0.0);
            Some(format!("{n:.0} {what}s/s of {}", ms(each)))
        };
        let parts: Vec<String> = ["write", "read"].into_iter().filter_map(part).collect();
        out.push(format!("at the client: {} (last 10 s)", parts.join(", ")).into());
    }
    for s in t.get("servers").and_then(Value::as_array).into_iter().flatten() {
        let sds = |v: &Value| v.get("sds").and_then(Value::as_str).unwrap_or("?").to_string();
        let device = |v: &Value| v.get("device").map(Value::to_string).unwrap_or_default();
        let of = |key: &str| number(s, key).map_or("?".to_string(), ms);
        let mut line = format!(
            "device {} of sds {}: {} a write; {} until it is begun, then {} until it is there",
            device(s),
            sds(s),
            of("write_seconds"),
            of("admit_seconds"),
            of("own_seconds"),
        );
        for c in s.get("copies").and_then(Value::as_array).into_iter().flatten() {
            let t = number(c, "seconds").map_or("?".to_string(), ms);
            line += &format!(", {t} on device {} ({})", device(c), sds(c));
        }
        match s.get("more_copies").and_then(Value::as_u64).unwrap_or(0) {
            0 => {}
            n => line += &format!(", less on {n} more"),
        }
        out.push(line.into());
    }
    out
}

fn devices(group: &Value, key: &str) -> String {
    let list = group.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let ids: Vec<String> =
        list.iter().filter_map(|m| m.get("device").map(Value::to_string)).collect();
    if ids.is_empty() {
        "-".to_string()
    } else {
        ids.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_explanation_says_why_what_to_do_and_how_long() {
        let t = text(
            &json!({"summary": "volume v works", "why": ["sds1 is down"], "what_to_do": ["start it"],
            "health": "degraded", "bytes_one_copy": 1073741824, "eta_seconds": 90, "groups": []}),
        );
        for part in
            ["why      sds1 is down", "do       start it", "1 GiB have one copy", "1 min 30 s"]
        {
            assert!(t.contains(part), "{part} not in\n{t}");
        }
    }

    #[test]
    fn an_explanation_says_where_the_time_of_requests_goes() {
        let t = text(
            &json!({"summary": "volume v is well", "why": [], "what_to_do": [], "health": "ok",
            "timing": {"client": {"writes_per_second": 120.4, "write_seconds": 0.0125, "reads_per_second": 0.0},
            "servers": [{"sds": "s1", "device": 3, "writes": 1200, "write_seconds": 0.0121, "admit_seconds": 0.0001,
                "own_seconds": 0.0004, "copies": [{"sds": "s2", "device": 7, "seconds": 0.0119}], "more_copies": 2}]}}),
        );
        for part in [
            "time     at the client: 120 writes/s of 12.5 ms (last 10 s)",
            "device 3 of sds s1: 12.1 ms a write; 0.1 ms until it is begun, then 0.4 ms until it is there, 11.9 ms on device 7 (s2), less on 2 more",
        ] {
            assert!(t.contains(part), "{part} not in\n{t}");
        }
        let idle = json!({"summary": "volume v is well", "health": "ok", "timing": null});
        assert_eq!(text(&idle), "volume v is well");
    }

    #[test]
    fn what_waits_for_devices_is_not_healed_by_time() {
        let t =
            text(&json!({"summary": "pool p cannot take data yet", "why": ["it has no devices"],
            "what_to_do": ["scli device add"], "health": "degraded", "waits_for_devices": true}));
        assert!(t.contains("scli device add") && !t.contains("healed"), "{t}");
    }
}
