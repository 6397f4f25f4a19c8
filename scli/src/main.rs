//! `scli`: Quarry's command line, a thin client of the REST interface.
//!
//! stdout carries only the answer; errors go to stderr as text or, with `--json`, as
//! `{"code","message","hint"}`. Exit status: see [`error::Exit`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod args;
mod client;
mod commands;
mod doctor;
mod error;
mod output;
mod probe;
mod select;
mod table;
mod uri;
mod wait;

use args::Cli;
use clap::{CommandFactory, FromArgMatches};
use error::{CliError, Exit};
use std::io::Write;
use std::process::ExitCode;

/// Version of this program and of the interface it uses.
const VERSION: quarry_metrics::version::Info = quarry_metrics::version::Info::of("scli");

fn main() -> ExitCode {
    let argv = args::with_wait_joined(std::env::args_os().collect());
    let json = argv.iter().any(|a| a == "--json");
    let cli = match parse(&argv) {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => {
            // --help and --version. A closed pipe is no failure worth words.
            return if e.print().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Err(e) if json => return report(&usage(&e), true),
        Err(e) => {
            let shown = e.print();
            return ExitCode::from(if shown.is_ok() { Exit::Usage.code() } else { 1 });
        }
    };
    match commands::run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(e) => report(&e, cli.global.json),
    }
}

fn parse(argv: &[std::ffi::OsString]) -> Result<Cli, clap::Error> {
    let version: &'static str = Box::leak(VERSION.details().into_boxed_str());
    let matches = Cli::command().version(version).try_get_matches_from(argv)?;
    Cli::from_arg_matches(&matches)
}

fn usage(e: &clap::Error) -> CliError {
    let text = e.to_string();
    // The first paragraph: what is missing is on lines of its own.
    let lines = text.lines().take_while(|l| !l.trim().is_empty());
    let line = lines.map(str::trim).collect::<Vec<_>>().join(" ");
    let message = line.trim_start_matches("error: ").to_string();
    CliError::new(Exit::Usage, "usage", message).hint("scli --help lists commands and flags")
}

/// Writes an error to stderr and gives the exit status for it.
fn report(e: &CliError, json: bool) -> ExitCode {
    let text = if json { format!("{}\n", e.to_json()) } else { e.to_text() };
    match std::io::stderr().write_all(text.as_bytes()) {
        // Nobody reads stderr: the status still tells.
        Ok(()) | Err(_) => ExitCode::from(e.exit.code()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_are_missing_are_named_in_the_message_too() {
        let argv = ["scli", "volume", "create", "--json"].map(std::ffi::OsString::from);
        let Err(e) = parse(&argv) else { panic!("nothing is missing") };
        let message = usage(&e).message;
        assert!(message.contains("--name") && message.contains("--size"), "{message}");
        assert!(!message.contains('\n') && !message.contains("Usage"), "{message}");
    }
}
