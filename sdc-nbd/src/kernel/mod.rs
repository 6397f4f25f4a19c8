//! Volumes as kernel block devices, `/dev/nbdN`: attach, take over after a restart, resize, detach.
//!
//! The daemon keeps one end of a few socket pairs and serves it like any NBD connection in the
//! transmission phase; the kernel gets the other ends by generic netlink ([`KernelNbd`]). No external
//! tool takes part. Beside it: the device node and a stable name under `/dev/disk/by-id`
//! ([`device`], [`links`]), and what a daemon under a block device must do to stay alive when memory
//! is short ([`guards`]).
//!
//! Everything here blocks: call it from a control thread, never from the thread that serves the
//! sockets. The kernel waits for answers inside some of these calls, so the own ends must be served
//! *before* the kernel gets the others.
//!
//! The safe system-call wrappers of `rustix` are enough: there is no `unsafe` here.

mod attach;
pub mod device;
pub mod genl;
pub mod guards;
pub mod holders;
pub mod links;
mod probe;
mod socket;

pub use attach::{socket_pair, Connect, KernelNbd};
pub use device::{Attached, Roots};
pub use probe::{probe, probe_or_load};

use std::path::PathBuf;
use thiserror::Error;

/// Why something with a kernel device did not work, and what would help.
#[derive(Debug, Error)]
pub enum KernelError {
    #[error("the kernel's NBD driver is not there: {cure}. The volume's socket works without it.")]
    NoDriver { cure: String },
    #[error(
        "{what} needs CAP_SYS_ADMIN: run as root, or add AmbientCapabilities=CAP_SYS_ADMIN to the \
         unit. The volume's socket works without it."
    )]
    NotPermitted { what: &'static str },
    #[error("{what} failed: {}", std::io::Error::from_raw_os_error(*.errno))]
    Refused { what: &'static str, errno: i32 },
    #[error("the kernel did not answer {what} within {seconds} s")]
    NoAnswer { what: &'static str, seconds: u64 },
    #[error(transparent)]
    Parse(#[from] genl::ParseError),
    #[error("{what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("/dev/nbd{index} is in use: {holders}")]
    InUse { index: u32, holders: String },
    #[error("{0}")]
    Invalid(String),
}

impl KernelError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        KernelError::Io { what, path: path.into(), source }
    }
}
