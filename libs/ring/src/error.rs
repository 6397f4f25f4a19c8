//! What can go wrong, in words that say what to do.

use std::io;
use std::path::PathBuf;

/// Errors of the reactor's synchronous calls. Asynchronous outcomes come as events.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The kernel is older than Linux 5.15.
    #[error("Linux {found} is too old: io_uring as Quarry uses it needs 5.15 or newer; upgrade the kernel")]
    KernelTooOld { found: String },
    /// The kernel has io_uring but does not let this process use it.
    #[error(
        "io_uring is blocked for this process ({source}): set `sysctl kernel.io_uring_disabled=0`, or if this is a \
         container allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile"
    )]
    Blocked { source: io::Error },
    /// The kernel was built without io_uring (or a sandbox hides it).
    #[error(
        "this kernel offers no io_uring ({source}): use a kernel with CONFIG_IO_URING=y, and no sandbox that hides it"
    )]
    Missing { source: io::Error },
    /// Not enough lockable memory for the ring.
    #[error("no memory for the ring ({source}): raise the memory-lock limit (`ulimit -l`, LimitMEMLOCK=) or lower `entries`")]
    NoMemory { source: io::Error },
    /// An operation Quarry needs is not known to this kernel.
    #[error("this kernel's io_uring does not know {op}; upgrade the kernel")]
    OpMissing { op: &'static str },
    /// Setting the ring up failed otherwise.
    #[error("cannot set up io_uring: {source}")]
    Setup { source: io::Error },
    /// `io_uring_enter` failed; the reactor cannot go on.
    #[error("io_uring_enter failed: {source}")]
    Enter { source: io::Error },
    /// A Unix socket path does not fit.
    #[error("socket path '{}' has {len} bytes, at most 107 are possible: use a shorter directory", path.display())]
    PathTooLong { path: PathBuf, len: usize },
    /// Somebody listens there.
    #[error("'{address}' is in use: another process listens on it; choose another, or stop that process")]
    AddressInUse { address: String },
    /// Something that is not a socket lies where a socket should be.
    #[error("'{}' exists and is not a socket: remove it or choose another path", path.display())]
    NotASocket { path: PathBuf },
    /// Creating, binding or connecting a socket failed.
    #[error("{what} '{address}': {source}")]
    Socket { what: &'static str, address: String, source: io::Error },
    /// `max_conns` and an eighth more are reached.
    #[error("{limit} connections are open, the limit (max_conns and an eighth)")]
    TooManyConnections { limit: usize },
    /// A file or device cannot be opened.
    #[error("{what} '{}': {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    /// Neither a regular file nor a block device.
    #[error("'{}' is neither a regular file nor a block device", path.display())]
    NotADevice { path: PathBuf },
    /// Another process holds the lock.
    #[error("'{}' is in use by {holder}: stop it first", path.display())]
    Locked { path: PathBuf, holder: String },
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed it.
    Eof,
    /// An I/O error, errno.
    Error(i32),
    /// It never came about, errno.
    ConnectFailed(i32),
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CloseReason::Eof => f.write_str("closed by the peer"),
            CloseReason::Error(e) => write!(f, "{}", io::Error::from_raw_os_error(*e)),
            CloseReason::ConnectFailed(e) => {
                write!(f, "connecting failed: {}", io::Error::from_raw_os_error(*e))
            }
        }
    }
}
