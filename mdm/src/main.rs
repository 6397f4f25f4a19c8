//! `mdm`: the metadata manager daemon. Runs in the foreground, logs to stderr, ends cleanly on SIGTERM.

use anyhow::{bail, Context};
use mdm::daemon::{start, Identity, Listeners};
use mdm::log::SledStore;
use mdm::token;
use quarry_control::{Capability, NodeFile};
use quarry_metrics::systemd::{notify, State};
use quarry_metrics::{cli, lockfile::LockFile, logging, panics, version::Info, Metrics};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{signal, SignalKind};

const VERSION: Info = Info::of("mdm");

/// Settings: a flag beats `QUARRY_*` beats the file beats the default.
#[derive(clap::Args, serde::Serialize, serde::Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Directory of the metadata; made when missing
    #[arg(long, value_name = "DIR", env = "QUARRY_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Address of the REST API [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR", env = "QUARRY_LISTEN")]
    listen: Option<String>,
    /// Address for the sessions of SDS and SDC [default: 127.0.0.1:7401]
    #[arg(long, value_name = "ADDR", env = "QUARRY_CONTROL")]
    control: Option<String>,
    /// Address of the metrics exporter [default: 127.0.0.1:7402]
    #[arg(long, value_name = "ADDR", env = "QUARRY_METRICS")]
    metrics: Option<String>,
    /// This node's identity (node.toml)
    #[arg(long, value_name = "FILE", env = "QUARRY_NODE_CONFIG")]
    node_config: Option<PathBuf>,
    /// Shared secret of the cluster; beats the one in the node file
    #[arg(long, value_name = "FILE", env = "QUARRY_SECRET_FILE")]
    secret_file: Option<PathBuf>,
    /// Token of the API; made when missing [default: DATA_DIR/token]
    #[arg(long, value_name = "FILE", env = "QUARRY_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

#[derive(clap::Parser)]
#[command(about = "Quarry metadata manager")]
struct Cli {
    #[command(flatten)]
    common: cli::CommonArgs,
    #[command(flatten)]
    settings: Settings,
}

fn main() {
    let cli: Cli = cli::parse(VERSION);
    if let Err(e) = run(cli) {
        eprintln!("mdm: {e:#}");
        std::process::exit(1);
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let (common, s) = cli::layered(cli.common, cli.settings)?;
    let data_dir =
        s.data_dir.clone().context("--data-dir is missing: name the directory of the metadata")?;
    let node_file = s
        .node_config
        .clone()
        .context("--node-config is missing: name this node's identity file")?;
    let mut node = NodeFile::load(&node_file, Capability::Mdm)?;
    if s.secret_file.is_some() {
        node.secret_file = s.secret_file.clone();
    }
    let secret = node.secret()?;
    if common.check_config {
        println!("configuration ok");
        return Ok(());
    }
    logging::init(&common)?;
    panics::abort_on_panic();
    let result = work(&s, &data_dir, node, secret);
    match &result {
        // `main` says it on stderr; the log file should say it too.
        Err(error) if common.log_file.is_some() => tracing::error!("{error:#}"),
        _ => {}
    }
    result
}

/// Serves until a signal comes or the store fails.
fn work(s: &Settings, data_dir: &Path, node: NodeFile, secret: String) -> anyhow::Result<()> {
    let _lock = LockFile::acquire(data_dir, "mdm")?;
    // Each session and each request has a descriptor, and so has the store.
    if let Err(error) = quarry_ring::raise_nofile() {
        tracing::warn!(%error, "the limit of open files stays");
    }
    let token = token::get(&s.token_file.clone().unwrap_or_else(|| data_dir.join("token")))?;
    let id = Identity {
        name: node.name,
        addresses: node.addresses,
        capabilities: node.capabilities,
        secret,
        token,
        history: Some(data_dir.join("timeline")),
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (writer, failure) = runtime.block_on(serve(s, data_dir, id))?;
    runtime.shutdown_timeout(Duration::from_secs(3));
    writer.join();
    tracing::info!("ended");
    match failure {
        None => Ok(()),
        Some(e) => bail!("{e}"),
    }
}

/// How long an MDM whose store has failed still answers before it ends.
const LINGER: Duration = Duration::from_secs(2);

/// Runs until a signal comes or the store fails.
async fn serve(
    s: &Settings,
    data_dir: &Path,
    id: Identity,
) -> anyhow::Result<(mdm::engine::Writer, Option<String>)> {
    let or = |v: &Option<String>, default: &str| v.clone().unwrap_or_else(|| default.into());
    let listeners = Listeners::bind(
        &or(&s.listen, "127.0.0.1:7400"),
        &or(&s.control, "127.0.0.1:7401"),
        &or(&s.metrics, "127.0.0.1:7402"),
    )
    .await?;
    let store = SledStore::open(&data_dir.join("meta"))?;
    let metrics = Metrics::new(VERSION, "mdm", &id.name);
    let (running, writer) = start(Box::new(store), listeners, id, metrics).await?;
    tracing::info!(
        api = %running.api_addr, control = %running.control_addr, metrics = %running.metrics_addr,
        cluster = running.state.read().cluster, "ready"
    );
    notify(State::Ready);
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let failure = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        e = running.engine.failed() => {
            // Whoever asks for a change in this moment is told why it is refused.
            tokio::time::sleep(LINGER).await;
            Some(e)
        }
    };
    if failure.is_none() {
        tracing::info!("ending on a signal");
        notify(State::Stopping);
    }
    running.recorder.save();
    running.engine.stop().await;
    Ok((writer, failure))
}
