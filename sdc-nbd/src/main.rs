//! `sdc-nbd`: see `--help`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

use quarry_metrics::lockfile::LockFile;
use quarry_metrics::{cli, logging, panics};
use sdc_nbd::daemon::settings::Cli;
use sdc_nbd::daemon::{serve, SdcError, VERSION};
use sdc_nbd::kernel::guards;
use std::process::ExitCode;

/// Buffers, frames and records are allocated and freed at the rate of the requests.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(cli::parse(VERSION)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sdc-nbd: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Cli) -> Result<(), SdcError> {
    let (common, settings) = cli::layered(args.common, args.settings)?;
    let config = settings.check()?;
    if common.check_config {
        if !config.sdctab.errors.is_empty() {
            return Err(SdcError::Setting(config.sdctab.errors.join("\n")));
        }
        println!("configuration ok");
        return Ok(());
    }
    logging::init(&common)?;
    panics::abort_on_panic();
    let _lock = LockFile::acquire(&config.data_dir, "sdc-nbd")?;
    let guards = guards::protect();
    guards::log(&guards);
    if let Err(error) = quarry_ring::raise_nofile() {
        tracing::warn!(%error, "the limit of open files stays");
    }
    tracing::info!(version = VERSION.details(), node = config.node.name, "starting");
    let result = serve(config, &guards);
    match &result {
        Ok(()) => tracing::info!("stopped"),
        // `main` says it on stderr; the log file should say it too.
        Err(error) if common.log_file.is_some() => tracing::error!("{error}"),
        Err(_) => {}
    }
    result
}
