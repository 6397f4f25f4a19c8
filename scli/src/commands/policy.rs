//! `scli policy`: settings of pools that may change while they live.

use super::Context;
use crate::args::Policy;
use crate::error::{CliError, Exit};
use crate::select::{self, POOL};
use crate::table::{Column, Show};
use serde_json::{json, Value};

const POLICIES: &[Column] = &[
    ("pool", "POOL", Show::Plain),
    ("rebuild_policy", "REBUILD", Show::Plain),
    ("rebuild_bytes_per_second", "RATE", Show::Size),
    ("rebuild_grace_seconds", "GRACE", Show::Duration),
    ("over_commit", "OVER-COMMIT", Show::Plain),
    ("reserve_percent", "RESERVE-%", Show::Plain),
    ("alert_high_percent", "HIGH-%", Show::Plain),
    ("alert_critical_percent", "CRITICAL-%", Show::Plain),
    ("auto_rebalance", "AUTO-REBALANCE", Show::Plain),
    ("moves_at_once", "MOVES", Show::Plain),
];

pub fn run(cx: &Context<'_>, command: &Policy) -> Result<(), CliError> {
    let of = |pool: &str| select::id_by_name(&cx.client, POOL, pool);
    match command {
        Policy::List => cx.out.list(&cx.client.get("/policy/list")?, POLICIES, "pools"),
        Policy::Get(p) => cx.out.object(&cx.client.get(&format!("/policy/{}", of(&p.pool)?))?),
        Policy::Set {
            of: p,
            rebuild,
            rate,
            grace_seconds,
            over_commit,
            reserve_percent,
            alert_high_percent,
            alert_critical_percent,
            auto_rebalance,
            moves_at_once,
        } => {
            let rate = rate.as_deref().map(bytes).transpose()?;
            let all = json!({
                "rebuild_policy": rebuild.map(|r| r.as_str()), "rebuild_bytes_per_second": rate,
                "rebuild_grace_seconds": grace_seconds, "over_commit": over_commit,
                "reserve_percent": reserve_percent, "alert_high_percent": alert_high_percent,
                "alert_critical_percent": alert_critical_percent, "auto_rebalance": auto_rebalance,
                "moves_at_once": moves_at_once,
            });
            let given = all.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null());
            let body: serde_json::Map<String, Value> =
                given.map(|(k, v)| (k.clone(), v.clone())).collect();
            if body.is_empty() {
                return Err(CliError::new(Exit::Usage, "usage", "there is nothing to change")
                    .hint("scli policy set --help lists the settings"));
            }
            let answer = cx.client.post(&format!("/policy/{}", of(&p.pool)?), &body.into())?;
            cx.finish(answer, &format!("settings of pool '{}' changed", p.pool))
        }
    }
}

fn bytes(text: &str) -> Result<u64, CliError> {
    quarry_base::units::parse_size(text)
        .map_err(|m| CliError::new(Exit::Usage, "invalid_size", m).hint("for example 100MiB"))
}
