//! Why the daemon cannot start or go on. Each is one line that says what to do.

use quarry_base::units::show_size;
use quarry_control::{ControlError, NodeFileError};
use quarry_metrics::cli::ConfigError;
use quarry_metrics::lockfile::LockError;
use quarry_metrics::logging::LogError;
use quarry_ring::RingError;
use quarry_store::StoreError;
use std::path::PathBuf;

/// Errors that end the process with status 1.
#[derive(Debug, thiserror::Error)]
pub enum SdsError {
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
    #[error("{path} is a directory: name a file or block device, for example {path}/quarry.img with --device-size 10GiB")]
    Directory { path: PathBuf },
    #[error("{path} does not exist: give --device-size SIZE to create it as a file, or the path of an existing device")]
    Missing { path: PathBuf },
    #[error("cannot open {path}: permission denied; run as a user that may read and write it")]
    Permission { path: PathBuf },
    #[error("cannot open {path}: it is on a read-only file system; mount that for writing, or name another device")]
    ReadOnly { path: PathBuf },
    #[error("there is no space to create {path}: give a smaller --device-size, or a path on a larger disk")]
    NoRoom { path: PathBuf },
    #[error("{path} has {}, a device needs at least {}", show_size(*bytes), show_size(crate::device::MIN_BYTES))]
    TooSmall { path: PathBuf, bytes: u64 },
    #[error("the same device is named twice: {path}")]
    Twice { path: PathBuf },
    #[error("{path} holds something that is not a Quarry device (a file system or a partition table, perhaps): check it, then wipe it with `sds-server format --force {path}`")]
    Foreign { path: PathBuf },
    #[error("{path} begins with zeroes but is not blank: there is something {at} bytes from its start, and nothing of it is overwritten unasked; check it, then wipe it with `sds-server format --force {path}`")]
    NotBlank { path: PathBuf, at: u64 },
    #[error("{path} was a Quarry device and its superblocks are gone: {what} lies {at} bytes from its start; if other copies of its data are good (`scli status`), wipe it with `sds-server format --force {path}` and let it be rebuilt")]
    Lost { path: PathBuf, at: u64, what: &'static str },
    #[error("{path} belongs to cluster {found}, this node to {ours}: attach it to its own cluster, or give it up with `sds-server format --force {path}`")]
    OtherCluster { path: PathBuf, found: String, ours: String },
    #[error("{path} has device format {found}, this release knows up to {known}: install a newer sds-server")]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("{path} has device format {found}, which this release (format {known}) does not read any more: if every group on it has another good copy (`scli status`), wipe it with `sds-server format --force {path}` and let it be rebuilt; else start the release that wrote it and drain it first")]
    Older { path: PathBuf, found: u32, known: u32 },
    #[error("both superblocks of {path} are damaged: if other copies of its data are good, wipe it with `sds-server format --force {path}` and let it be rebuilt")]
    Superblock { path: PathBuf },
    #[error("{path} was formatted with {} and has {} now: restore its size", show_size(*formatted), show_size(*bytes))]
    Shrunk { path: PathBuf, formatted: u64, bytes: u64 },
    #[error("cannot read {path}: {source}; check the disk")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("no device is usable: {0}")]
    NoDevice(String),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("cannot listen on {address}: {source}; choose another with {flag}")]
    Listen { address: String, flag: &'static str, source: std::io::Error },
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("{what}: {source}")]
    System { what: &'static str, source: std::io::Error },
    #[error("the MDM answered for another cluster ({found}) than the one this node belongs to ({ours}): check `mdm` in the node file")]
    Cluster { found: String, ours: String },
    #[error("the shard ended: {0}")]
    Shard(String),
}

impl SdsError {
    /// A store's objection to a device, in the operator's words. `None`: not about its identity.
    pub fn of_ident(path: PathBuf, e: StoreError) -> SdsError {
        match e {
            StoreError::NewerFormat { found, known } => SdsError::Newer { path, found, known },
            StoreError::OlderFormat { found, known } => SdsError::Older { path, found, known },
            StoreError::SuperblockCorrupt => SdsError::Superblock { path },
            _ => SdsError::Foreign { path },
        }
    }
}
