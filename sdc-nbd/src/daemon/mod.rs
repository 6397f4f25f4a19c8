//! The daemon around the engine: one data thread (reactor), one control thread (tokio).

mod cluster_id;
mod control;
mod device;
mod devices;
mod error;
mod exports;
mod extents;
mod links;
mod mail;
mod meters;
mod owner;
pub mod sdctab;
mod sessions;
pub mod settings;
mod shard;
mod start;
#[cfg(test)]
mod tests_sessions;
mod usage;

pub use error::SdcError;

use crate::kernel::guards::Guard;
use control::Control;
use meters::Meters;
use quarry_control::{host_identity, Standing};
use quarry_metrics::version::Info;
use quarry_metrics::Metrics;
use settings::Config;

/// What `--version` says.
pub const VERSION: Info = Info::of("sdc-nbd");
const _: () = assert!(quarry_metrics::version::WIRE == quarry_wire::WIRE_VERSION as u32);

/// Serves until SIGTERM or something final. The data directory is locked by the caller.
pub fn serve(config: Config, guards: &[Guard]) -> Result<(), SdcError> {
    std::fs::create_dir_all(&config.socket_dir).map_err(|source| SdcError::System {
        what: format!("cannot make the socket directory {}", config.socket_dir.display()),
        source,
    })?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|source| {
            SdcError::System { what: "cannot start the control thread".into(), source }
        })?;
    runtime.block_on(run(config, guards))
}

async fn run(config: Config, guards: &[Guard]) -> Result<(), SdcError> {
    let listener = tokio::net::TcpListener::bind(config.metrics).await.map_err(|source| {
        let at = config.metrics;
        let what = if source.kind() == std::io::ErrorKind::AddrInUse {
            format!("--metrics {at} is in use by another process: choose another port, or port 0 for a free one")
        } else {
            format!("--metrics {at}: cannot listen")
        };
        SdcError::System { what, source }
    })?;
    let at = listener
        .local_addr()
        .map_err(|source| SdcError::System { what: "metrics address".into(), source })?;
    let metrics = Metrics::new(VERSION, "sdc", &config.node.name);
    let meters = Meters::new(&metrics);
    report_guards(&metrics, guards);
    let standing = Standing::default();
    let seen = standing.clone();
    metrics.set_health(move || seen.health());
    let (host, _) = host_identity();
    let shard = shard::start(&config, host, meters.clone())?;
    let server = tokio::spawn(quarry_metrics::serve(listener, metrics));
    tracing::info!(metrics = %at, sockets = %config.socket_dir.display(), "serving");
    let result = Control::new(config, shard, meters, at, standing)?.run().await;
    server.abort();
    result
}

/// One series a guard: 1 when it is set.
fn report_guards(metrics: &Metrics, guards: &[Guard]) {
    let family = metrics.gauge_family(
        "quarry_sdc_reclaim_guard",
        "Guards against waiting for the own device when memory is short: 1 is set, 0 could not be set",
        &["guard"],
    );
    for g in guards {
        family.with(&[g.name]).set_u64(u64::from(g.result.is_ok()));
    }
}
