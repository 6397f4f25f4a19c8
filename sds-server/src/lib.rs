//! The storage data server: devices, replicas, connections. `main` calls [`start`] and [`serve`].
//!
//! Two threads: the *control* thread (tokio: MDM session, heartbeats, metrics page, signals) and the
//! *shard* (one io_uring, the replication engine with the stores of all devices, all data connections).
//! They talk through bounded mailboxes; the shard never waits for the control thread.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod blank;
pub mod control;
pub mod device;
pub mod disk;
pub mod error;
pub mod format;
pub mod fsck;
pub mod links;
pub mod mail;
pub mod metrics;
pub mod patience;
pub mod settings;
pub mod shard;
pub mod state;
pub mod times;
pub mod tool;

use control::{Control, Parts};
use error::SdsError;
use mail::{ShardHandle, Started};
use metrics::SdsMetrics;
use quarry_metrics::systemd::{notify, State};
use quarry_metrics::version::Info;
use quarry_metrics::Metrics;
use settings::Config;
use state::StateFile;
use tokio::sync::mpsc;

/// Release and format versions.
pub const VERSION: Info = Info::new(
    "sds-server",
    quarry_wire::WIRE_VERSION as u32,
    quarry_store::FORMAT_VERSION,
    quarry_metrics::version::API,
);

// What the other programs say of the disk format is what this one writes.
const _: () = assert!(quarry_metrics::version::DISK == quarry_store::FORMAT_VERSION);

/// Starts the shard; comes back when its devices are open and it listens.
pub fn start(config: &Config, metrics: &SdsMetrics) -> Result<ShardHandle, SdsError> {
    let (tx, rx) = mpsc::channel(mail::TO_SHARD);
    let (back, from) = mpsc::channel(mail::FROM_SHARD);
    let (started, wait) = std::sync::mpsc::sync_channel(1);
    let setup = shard::Setup {
        config: config.clone(),
        host: quarry_control::host_identity().0,
        metrics: metrics.clone(),
        rx,
        tx: back,
    };
    let thread = std::thread::Builder::new()
        .name("shard-0".to_string())
        .spawn(move || shard::run(setup, started))
        .map_err(|source| SdsError::System { what: "cannot start the shard's thread", source })?;
    let up =
        wait.recv().map_err(|_| SdsError::Shard("it stopped while it started".to_string()))??;
    tracing::info!(ring = %up.ring, tcp = ?up.endpoint.tcp, unix = ?up.endpoint.unix, "listening");
    let Started { waker, endpoint, devices, .. } = up;
    Ok(ShardHandle { tx, rx: from, waker, endpoint, devices, thread })
}

/// Runs the daemon until SIGTERM or something final.
pub fn serve(config: Config) -> Result<(), SdsError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| SdsError::System { what: "cannot start the control thread", source })?;
    let metrics = SdsMetrics::new(Metrics::new(VERSION, "sds", &config.node.name));
    let standing = quarry_control::Standing::default();
    metrics.health(standing.clone());
    runtime.block_on(async {
        let page = tokio::net::TcpListener::bind(config.metrics).await;
        let page = page.map_err(|source| SdsError::Listen {
            address: config.metrics.to_string(),
            flag: "--metrics",
            source,
        })?;
        let at = page.local_addr();
        let metrics_at =
            at.map_err(|source| SdsError::System { what: "metrics listener", source })?;
        tracing::info!(address = %metrics_at, "metrics");
        let shard = start(&config, &metrics)?;
        let serving = tokio::spawn(quarry_metrics::serve(page, metrics.registry.clone()));
        // The shard may have learnt the cluster from a device.
        let state = StateFile::load(&config.data_dir)?;
        notify(State::Ready);
        let result = Control::new(Parts { config, state, shard, metrics_at, standing }).run().await;
        serving.abort();
        result
    })
}
