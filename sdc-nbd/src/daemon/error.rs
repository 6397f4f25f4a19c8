//! Why the daemon cannot start or go on; each says what to do.

use quarry_control::{ControlError, NodeFileError};
use quarry_metrics::cli::ConfigError;
use quarry_metrics::lockfile::LockError;
use quarry_metrics::logging::LogError;
use quarry_ring::RingError;
use std::path::PathBuf;

/// Errors that end the daemon.
#[derive(Debug, thiserror::Error)]
pub enum SdcError {
    #[error("{0}")]
    Setting(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Node(#[from] NodeFileError),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("{what}: {source}")]
    System { what: String, source: std::io::Error },
    #[error(
        "this client's data directory {dir} belongs to cluster {own}, the MDM is of cluster {other}: \
         give another --data-dir, or the address of the right MDM in the node file"
    )]
    OtherCluster { dir: PathBuf, own: String, other: String },
    #[error("fenced: {0}; another sdc-nbd serves this node now, or this one was declared dead. Start it again if it should take over")]
    Fenced(&'static str),
    #[error("the MDM registered this client without an SDC id")]
    NoId,
    #[error("the data thread ended: {0}")]
    Shard(String),
}
