//! Waiting for long work.

use crate::client::{Answer, Client};
use crate::error::{CliError, Exit};
use quarry_base::units::show_size;
use serde_json::Value;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// First pause between two looks; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The task an answer speaks of, if the work has only begun.
pub fn task_id(answer: &Answer) -> Option<String> {
    if answer.status != 202 {
        return None;
    }
    match answer.body.get("task_id")? {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    }
}

/// What ends sooner needs no progress.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq, Eq)]
enum State {
    Running,
    Done,
    Failed,
}

fn state(task: &Value) -> State {
    match task.get("state").or_else(|| task.get("status")).and_then(Value::as_str) {
        Some("done" | "succeeded" | "completed" | "ok") => State::Done,
        Some("failed" | "error" | "cancelled" | "canceled") => State::Failed,
        _ => State::Running,
    }
}

/// Polls a task until it is done and gives what the API said last. At a terminal, how far it is and what it waits for
/// is shown meanwhile. Exit status 7 when `limit` passes.
pub fn for_task(client: &Client, id: &str, limit: Duration) -> Result<Value, CliError> {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    let (mut shown, progress) = (String::new(), std::io::stderr().is_terminal());
    loop {
        let looked = client.get(&format!("/tasks/{id}"));
        let left = limit.saturating_sub(began.elapsed());
        let task = match looked {
            // An MDM that starts again comes back with the task.
            Err(e) if e.exit == Exit::NoMdm && !left.is_zero() => {
                std::thread::sleep(LONGEST_PAUSE.min(left));
                continue;
            }
            looked => looked?,
        };
        match state(&task) {
            State::Done => return Ok(task),
            State::Failed => return Err(failure(id, &task)),
            State::Running => {}
        }
        if left.is_zero() {
            return Err(late(id, limit, &task));
        }
        let now = how_far(&task);
        if progress && began.elapsed() >= SHOWN_AFTER && now != shown {
            eprintln!("{now}");
            shown = now;
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn failure(id: &str, task: &Value) -> CliError {
    match task.get("error") {
        Some(e) if e.is_object() => {
            let mut e = CliError::from_api(422, e);
            e.exit = Exit::Failed;
            e
        }
        Some(Value::String(why)) => CliError::new(Exit::Failed, "task_failed", why.clone()),
        _ if task.get("detail").is_some_and(Value::is_string) => {
            let why = task.get("detail").and_then(Value::as_str).unwrap_or_default();
            CliError::new(Exit::Failed, "task_failed", format!("task {id} failed: {why}"))
        }
        _ => CliError::new(Exit::Failed, "task_failed", format!("task {id} failed"))
            .hint(format!("scli task get --id {id} and scli events tell more")),
    }
}

/// Whom or what a task waits for, three at most.
fn waits(task: &Value) -> String {
    let names = task.get("waiting_for").and_then(Value::as_array);
    let names = names.into_iter().flatten().filter_map(Value::as_str);
    names.take(3).collect::<Vec<_>>().join("; ")
}

/// A running task in one line.
fn how_far(task: &Value) -> String {
    let number = |key: &str| task.get(key).and_then(Value::as_u64).unwrap_or(0);
    let mut line = format!("task {}: {} %", number("task_id"), number("progress"));
    if number("bytes_left") > 0 {
        line += &format!(", {} to copy", show_size(number("bytes_left")));
    }
    if let Some(s) = task.get("eta_seconds").and_then(Value::as_f64) {
        line += &format!(", {s:.0} s left");
    }
    let waits = waits(task);
    if !waits.is_empty() {
        line += &format!("; it waits: {waits}");
    }
    line
}

/// A task that is still running when `limit` is over, and whom it waits for.
fn late(id: &str, limit: Duration, task: &Value) -> CliError {
    let names = waits(task);
    let what = if names.is_empty() { names } else { format!(": it waits: {names}") };
    let message = format!("task {id} is not done after {} s{what}", limit.as_secs());
    CliError::new(Exit::TimedOut, "timed_out", message)
        .hint(format!("it goes on: scli task get --id {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_an_accepted_answer_names_a_task() {
        let a = |status, body| Answer { status, body };
        assert_eq!(task_id(&a(202, json!({"task_id": 7}))), Some("7".to_string()));
        assert_eq!(task_id(&a(202, json!({"task_id": "t-7"}))), Some("t-7".to_string()));
        assert_eq!(task_id(&a(200, json!({"task_id": 7}))), None);
    }

    #[test]
    fn a_running_task_says_how_far_it_is_and_what_it_waits_for() {
        let task = json!({"task_id": 4, "progress": 25, "bytes_left": 3 << 20, "eta_seconds": 7.2, "waiting_for": []});
        assert_eq!(how_far(&task), "task 4: 25 %, 3 MiB to copy, 7 s left");
        let task = json!({"task_id": 5, "progress": 0, "waiting_for": ["sdc c1 has not attached the volume"]});
        assert_eq!(how_far(&task), "task 5: 0 %; it waits: sdc c1 has not attached the volume");
    }

    #[test]
    fn a_task_that_takes_too_long_names_whom_it_waits_for() {
        let limit = Duration::from_secs(30);
        let e = late("4", limit, &json!({"waiting_for": ["sdc c1 has not attached the volume"]}));
        assert_eq!(e.exit, Exit::TimedOut);
        assert!(e.message.ends_with("30 s: it waits: sdc c1 has not attached the volume"));
        for task in [json!({"waiting_for": []}), json!({})] {
            assert!(late("4", limit, &task).message.ends_with("not done after 30 s"));
        }
    }

    #[test]
    fn a_failed_task_gives_the_apis_words() {
        let e = failure("1", &json!({"error": {"code": "x", "message": "m", "hint": "h"}}));
        assert_eq!((e.exit, e.code.as_str(), e.hint.as_str()), (Exit::Failed, "x", "h"));
        assert_eq!(state(&json!({"state": "running"})), State::Running);
    }
}
