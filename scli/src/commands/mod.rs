//! One file a group of commands; here: who runs which.

mod cluster;
mod rebuild;
mod servers;
mod status;
mod volume;

use crate::args::{Cli, Command, Global};
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
    let cx = Context { client: Client::new(&cli.global)?, out, global: &cli.global };
    match &cli.command {
        Command::Status(a) => return status::run(&cx, a),
        Command::Volume(c) => volume::run(&cx, c),
        Command::Pool(c) => cluster::pool(&cx, c),
        Command::Pd(c) => cluster::pd(&cx, c),
        Command::Node(c) => cluster::node(&cx, c),
        Command::Device(c) => cluster::device(&cx, c),
        Command::Pg(c) => cluster::pg(&cx, c),
        Command::Events(a) => cluster::events(&cx, a),
        Command::Task(c) => cluster::task(&cx, c),
        Command::Sds(c) => servers::sds(&cx, c),
        Command::Sdc(c) => servers::sdc(&cx, c),
        Command::Rebuild(c) => rebuild::run(&cx, c),
        // Answered above.
        Command::Doctor(_) | Command::Probe { .. } | Command::Completions { .. } => Ok(()),
    }
    .map(|()| 0)
}

impl Context<'_> {
    /// Finishes a change: with `--wait` until begun work is done, then the object; else what the API
    /// said.
    pub fn finish(&self, answer: Answer, sentence: &str) -> Result<(), CliError> {
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
        if self.global.yes || !human {
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

/// The object's name for sentences, or its id.
pub fn called(object: &Value) -> String {
    match object.get("name").and_then(Value::as_str) {
        Some(name) => format!("'{name}'"),
        None => object.get("id").map_or_else(|| "?".to_string(), Value::to_string),
    }
}
