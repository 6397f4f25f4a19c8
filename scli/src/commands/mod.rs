//! One file a group of commands; here: who runs which.

mod cluster;
mod devices;
mod events;
mod explain;
mod nodes;
mod policy;
mod rebuild;
mod servers;
mod stale;
mod status;
mod volume;

use crate::args::{self, Cli, Command, Global};
use crate::client::{Answer, Client};
use crate::doctor;
use crate::error::{CliError, Exit};
use crate::output::Output;
use crate::{probe, wait};
use clap::CommandFactory;
use serde_json::Value;
use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

/// What every command needs.
pub struct Context<'a> {
    pub client: Client,
    pub out: Output,
    pub global: &'a Global,
}

/// Runs the command; the value is the exit status of success (not 0 only for `status --exit-code` and
/// `doctor`).
pub fn run(cli: &Cli) -> Result<u8, CliError> {
    let out = Output { json: cli.global.json };
    match &cli.command {
        Command::Doctor(a) => return doctor::run(a, out),
        Command::Probe { uri } => {
            let limit = Duration::from_secs(cli.global.timeout.max(1));
            return out.object(&probe::run(uri, limit)?).map(|()| 0);
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "scli", &mut script);
            return out.text(&String::from_utf8_lossy(&script)).map(|()| 0);
        }
        _ => {}
    }
    if cli.global.dry_run && !can_be_dry(&cli.command) {
        let message = "this command has no dry run: it destroys and moves nothing";
        return Err(CliError::new(Exit::Usage, "usage", message).hint("leave --dry-run out"));
    }
    let cx = Context { client: Client::new(&cli.global)?, out, global: &cli.global };
    match &cli.command {
        Command::Status(a) => return status::run(&cx, a),
        Command::Volume(c) => volume::run(&cx, c),
        Command::Pool(c) => cluster::pool(&cx, c),
        Command::Pd(c) => cluster::pd(&cx, c),
        Command::Node(c) => return nodes::run(&cx, c),
        Command::Explain { kind, object, groups } => {
            return explain::run(&cx, *kind, object, *groups)
        }
        Command::Device(c) => devices::device(&cx, c),
        Command::FaultSet(c) => devices::fault_set(&cx, c),
        Command::Policy(c) => policy::run(&cx, c),
        Command::Pg(c) => cluster::pg(&cx, c),
        Command::Events(a) => events::run(&cx, a),
        Command::Task(c) => cluster::task(&cx, c),
        Command::Sds(c) => servers::sds(&cx, c),
        Command::Sdc(c) => servers::sdc(&cx, c),
        Command::Rebuild(c) => rebuild::run(&cx, c),
        // Answered above.
        Command::Doctor(_) | Command::Probe { .. } | Command::Completions { .. } => Ok(()),
    }
    .map(|()| 0)
}

/// Commands of which the API can say what they would do.
fn can_be_dry(c: &Command) -> bool {
    use args::{Device, FaultSet, Pd, Pool, Sdc, Sds, Volume};
    matches!(
        c,
        Command::Volume(Volume::Delete(_))
            | Command::Pool(Pool::Delete(_) | Pool::Rebalance(_))
            | Command::Pd(Pd::Delete(_))
            | Command::Pg(args::Pg::AcceptStale(_))
            | Command::Sds(Sds::Fail { .. } | Sds::Drain(_) | Sds::Delete(_))
            | Command::Sdc(Sdc::Delete(_))
            | Command::Device(Device::Drain(_) | Device::Delete(_))
            | Command::FaultSet(FaultSet::Delete(_))
    )
}

impl Context<'_> {
    /// POST of a change that may be asked for dry.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer, CliError> {
        self.client.post(&self.dry(path), body)
    }

    /// Asks, then deletes; dry, only says what would happen.
    pub fn delete(&self, path: &str, ask: &str, done: &str) -> Result<(), CliError> {
        self.confirm(ask)?;
        let answer = self.client.delete(&self.dry(path))?;
        self.finish(answer, done)
    }

    fn dry(&self, path: &str) -> String {
        match self.global.dry_run {
            true => format!("{path}?dry_run=true"),
            false => path.to_string(),
        }
    }

    /// Finishes a change: with `--wait` until begun work is done, then the object; else what the API
    /// said.
    pub fn finish(&self, answer: Answer, sentence: &str) -> Result<(), CliError> {
        if answer.body.get("dry_run").is_some() {
            return match self.out.json {
                true => self.out.object(&answer.body),
                false => self.out.text(&would(&answer.body)),
            };
        }
        let Some(id) = wait::task_id(&answer) else {
            return self.out.done(&answer.body, sentence);
        };
        match self.global.wait {
            Some(seconds) => {
                let task = wait::for_task(&self.client, &id, Duration::from_secs(seconds))?;
                let result = task.get("result").filter(|r| r.is_object()).unwrap_or(&task);
                self.out.done(result, sentence)
            }
            None => {
                let begun = format!("begun: scli task get --id {id} shows how far it is");
                self.out.done(&answer.body, &begun)
            }
        }
    }

    /// Asks before something is destroyed: at a terminal only, for a script that calls a command
    /// means it. `--yes` does not ask either.
    pub fn confirm(&self, what: &str) -> Result<(), CliError> {
        let human = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        if self.global.yes || self.global.dry_run || !human {
            return Ok(());
        }
        let mut err = std::io::stderr().lock();
        write!(err, "{what}\nType yes to go on: ")?;
        err.flush()?;
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        if line.trim() == "yes" {
            return Ok(());
        }
        Err(CliError::new(Exit::Failed, "not_confirmed", "nothing was done"))
    }
}

/// A dry run's answer in words.
fn would(body: &Value) -> String {
    let text =
        |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let list = |key: &str| body.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut out = vec!["nothing was done; it would:".to_string()];
    for e in list("would") {
        out.push(format!("  {} {}  {}", text(&e, "what"), text(&e, "object"), text(&e, "reason")));
    }
    let n = body.get("placement_groups_changed").and_then(Value::as_u64).unwrap_or(0);
    out.push(format!("  change {n} placement groups"));
    let lost = list("volumes_unavailable");
    if !lost.is_empty() {
        let names: Vec<&str> = lost.iter().filter_map(Value::as_str).collect();
        out.push(format!("  MAKE UNAVAILABLE: {}", names.join(", ")));
    }
    out.join("\n")
}

/// The object's name for sentences, or its id.
pub fn called(object: &Value) -> String {
    match object.get("name").and_then(Value::as_str) {
        Some(name) => format!("'{name}'"),
        None => object.get("id").map_or_else(|| "?".to_string(), Value::to_string),
    }
}
