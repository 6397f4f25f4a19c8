//! `scli events`: what happened, and what happens.

use super::Context;
use crate::args::EventsArgs;
use crate::error::CliError;
use crate::select;
use crate::table::{self, Column, Show};
use serde_json::{json, Value};
use std::time::Duration;

const EVENTS: &[Column] = &[
    ("id", "ID", Show::Plain),
    ("time", "TIME", Show::Plain),
    ("who", "WHO", Show::Plain),
    ("what", "WHAT", Show::Plain),
    ("object", "OBJECT", Show::Plain),
    ("outcome", "OUTCOME", Show::Plain),
    ("reason", "REASON", Show::Plain),
];

/// How long one question waits for news.
const FOLLOW_SECONDS: u64 = 10;
/// Pause between two questions; they wait at the MDM.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);

pub fn run(cx: &Context<'_>, args: &EventsArgs) -> Result<(), CliError> {
    if let Some(keep) = args.keep {
        let answer = cx.client.post("/events/retention", &json!({ "keep": keep }))?;
        return cx.finish(answer, &format!("the newest {keep} events are kept"));
    }
    let filters = filters(args);
    let since = args.since.unwrap_or(0);
    let first = format!("/events?since={since}&last={}{filters}", args.limit);
    let mut news = newest(cx.client.get(&first)?, args.limit);
    if !args.follow {
        return cx.out.list(&Value::from(news), EVENTS, "events");
    }
    let wait = FOLLOW_SECONDS.min(cx.global.timeout.saturating_sub(1));
    let mut seen = since;
    loop {
        for event in &news {
            let text = if cx.out.json { event.to_string() } else { line(event) };
            if !cx.out.text_to_reader(&text)? {
                return Ok(());
            }
        }
        seen = news.iter().map(event_id).fold(seen, u64::max);
        std::thread::sleep(FOLLOW_PAUSE);
        let next = format!("/events?since={seen}&wait_seconds={wait}{filters}");
        news = newest(cx.client.get(&next)?, u32::MAX);
    }
}

fn filters(args: &EventsArgs) -> String {
    let given = [
        ("what", &args.what),
        ("who", &args.who),
        ("object", &args.object),
        ("outcome", &args.outcome),
    ];
    let mut out = String::new();
    for (key, value) in given {
        if let Some(v) = value {
            out.push_str(&format!("&{key}={}", select::in_query(v)));
        }
    }
    out
}

fn event_id(event: &Value) -> u64 {
    event.get("id").and_then(Value::as_u64).unwrap_or(0)
}

/// The last `limit` of a list that has the newest at its end.
fn newest(list: Value, limit: u32) -> Vec<Value> {
    let Value::Array(mut events) = list else { return Vec::new() };
    let extra = events.len().saturating_sub(limit as usize);
    events.drain(..extra);
    events
}

/// An event on one line, the columns that it has.
fn line(event: &Value) -> String {
    let shown = |(key, _, how): &Column| event.get(*key).map(|v| table::show(v, *how));
    EVENTS.iter().filter_map(shown).collect::<Vec<_>>().join("  ")
}
