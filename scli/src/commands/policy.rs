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
    ("scrub", "SCRUB", Show::Plain),
];

pub fn run(cx: &Context<'_>, command: &Policy) -> Result<(), CliError> {
    let of = |pool: &str| select::id_by_name(&cx.client, POOL, pool);
    match command {
        Policy::List => {
            let mut rows = cx.client.get("/policy/list")?;
            if !cx.out.json {
                rows.as_array_mut().into_iter().flatten().for_each(scrub_in_words);
            }
            cx.out.list(&rows, POLICIES, "pools")
        }
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
            scrub,
        } => {
            let rate = rate.as_deref().map(bytes).transpose()?;
            let (scrub, by_server) = scrub.as_deref().map_or(Ok((None, None)), scrub_of)?;
            let all = json!({
                "rebuild_policy": rebuild.map(|r| r.as_str()), "rebuild_bytes_per_second": rate,
                "rebuild_grace_seconds": grace_seconds, "over_commit": over_commit,
                "reserve_percent": reserve_percent, "alert_high_percent": alert_high_percent,
                "alert_critical_percent": alert_critical_percent, "auto_rebalance": auto_rebalance,
                "moves_at_once": moves_at_once, "scrub_bytes_per_second": scrub,
                "scrub_by_server": by_server,
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

/// What `--scrub` asks for: a rate for all devices of the pool, or that each server keeps to its own.
fn scrub_of(text: &str) -> Result<(Option<u64>, Option<bool>), CliError> {
    match text {
        "server" => Ok((None, Some(true))),
        "off" => Ok((Some(0), None)),
        size => match bytes(size) {
            Ok(rate) => Ok((Some(rate), None)),
            Err(e) => {
                Err(e.hint("a rate, for example 8MiB; off; or server: as each server is set"))
            }
        },
    }
}

/// A field `scrub` as people say it.
fn scrub_in_words(row: &mut Value) {
    // An older MDM does not tell.
    let Some(rate) = row.get("scrub_bytes_per_second") else { return };
    let words = match rate.as_u64() {
        None => "server".to_string(),
        Some(0) => "off".to_string(),
        Some(rate) => quarry_base::units::show_size(rate),
    };
    row["scrub"] = words.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scrub_is_set_in_words_or_as_a_size_and_shown_so() {
        assert_eq!(scrub_of("server").unwrap(), (None, Some(true)));
        assert_eq!(scrub_of("off").unwrap(), (Some(0), None));
        assert_eq!(scrub_of("8MiB").unwrap(), (Some(8 << 20), None));
        let e = scrub_of("fast").unwrap_err();
        assert!(e.to_string().contains("fast"), "{e}");
        for (rate, want) in [(json!(null), "server"), (json!(0), "off"), (json!(8 << 20), "8 MiB")]
        {
            let mut row = json!({"pool": "p", "scrub_bytes_per_second": rate});
            scrub_in_words(&mut row);
            assert_eq!(row["scrub"], want);
        }
        let mut old = json!({"pool": "p"});
        scrub_in_words(&mut old);
        assert!(old.get("scrub").is_none());
    }
}
