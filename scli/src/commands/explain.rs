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
    fn what_waits_for_devices_is_not_healed_by_time() {
        let t =
            text(&json!({"summary": "pool p cannot take data yet", "why": ["it has no devices"],
            "what_to_do": ["scli device add"], "health": "degraded", "waits_for_devices": true}));
        assert!(t.contains("scli device add") && !t.contains("healed"), "{t}");
    }
}
