//! `sds-server`: see `--help`.

use quarry_control::Capability;
use quarry_metrics::lockfile::LockFile;
use quarry_metrics::{cli, logging, panics};
use sds_server::device::{self, Strict};
use sds_server::error::SdsError;
use sds_server::settings::{Cli, Command};
use sds_server::state::StateFile;
use sds_server::{fsck, serve, tool, VERSION};
use std::process::ExitCode;

/// Buffers, frames and records are allocated and freed at the rate of the requests.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(cli::parse(VERSION)) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("sds-server: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Status of a check that found damage.
const DAMAGED: u8 = 3;

fn run(args: Cli) -> Result<ExitCode, SdsError> {
    match args.command {
        Some(Command::Format { force, path }) => {
            println!("{}", tool::format(&path, force)?);
            return Ok(ExitCode::SUCCESS);
        }
        Some(Command::Inspect { path }) => {
            println!("{}", tool::inspect(&path)?);
            return Ok(ExitCode::SUCCESS);
        }
        Some(Command::Check { repair, path }) => {
            let c = fsck::check(&path, repair)?;
            println!("{}", c.text);
            return Ok(if c.findings > 0 { ExitCode::from(DAMAGED) } else { ExitCode::SUCCESS });
        }
        Some(Command::Dump { part, path }) => {
            println!("{}", fsck::dump(&path, part)?);
            return Ok(ExitCode::SUCCESS);
        }
        None => {}
    }
    let (common, settings) = cli::layered(args.common, args.settings)?;
    let config = settings.check()?;
    if common.check_config {
        let strict = Strict::of(&StateFile::load(&config.data_dir)?.state);
        for l in device::check_all(&config.devices, config.device_bytes, strict)? {
            eprintln!("sds-server: warning: {}; the server starts without it", l.why);
        }
        println!("configuration ok");
        return Ok(ExitCode::SUCCESS);
    }
    logging::init(&common)?;
    panics::abort_on_panic();
    let _lock = LockFile::acquire(&config.data_dir, "sds-server")?;
    if let Err(error) = quarry_ring::raise_nofile() {
        tracing::warn!(%error, "the limit of open files stays");
    }
    if config.node.capabilities.contains(&Capability::Sdc) {
        // Clients on this host may need us to get memory back.
        if let Err(error) = quarry_ring::lock_memory() {
            tracing::warn!(%error, "memory is not locked");
        }
        // Threads started later inherit it. Needs CAP_SYS_RESOURCE.
        if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
            tracing::warn!(%error, "memory reclaim may wait for this process: give it CAP_SYS_RESOURCE");
        }
    }
    tracing::info!(version = VERSION.details(), node = config.node.name, "starting");
    let result = serve(config);
    match &result {
        Ok(()) => tracing::info!("stopped"),
        // `main` says it on stderr; the log file should say it too.
        Err(error) if common.log_file.is_some() => tracing::error!("{error}"),
        Err(_) => {}
    }
    result.map(|()| ExitCode::SUCCESS)
}
