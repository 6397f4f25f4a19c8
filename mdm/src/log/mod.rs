//! Where the log of commands and the snapshots of the state are kept.
//!
//! [`MetaStore`] is the seam: sled in the daemon, memory in tests and the simulator. What `append` or `snapshot`
//! has returned is durable. A store is read once, at the start: the newest snapshot, then the entries after it.

mod chunk;
mod mem;
mod sled_store;
#[cfg(test)]
mod tests;

pub use mem::MemStore;
pub use sled_store::SledStore;

use std::path::PathBuf;

/// What can go wrong with the store. None of these is retried: the daemon ends and says it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("metadata store {path}: {source}")]
    Sled { path: PathBuf, source: sled::Error },
    #[error("metadata store {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "metadata store {path} is damaged: {what}. Nothing was changed. Move this directory away and put \
         the newest backup of it in its place"
    )]
    Damaged { path: PathBuf, what: String },
    #[error(
        "metadata store {path} was written by a newer release (format {format}); use that release"
    )]
    Newer { path: PathBuf, format: u8 },
    #[error("metadata store: {0}")]
    State(String),
}

/// What a store holds when it is opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Loaded {
    /// Index of the newest snapshot, and its bytes.
    pub snapshot: Option<(u64, Vec<u8>)>,
    /// Entries after the snapshot, in order, without a gap.
    pub entries: Vec<(u64, Vec<u8>)>,
}

/// A durable log with snapshots.
pub trait MetaStore: Send {
    /// Everything needed to restore the state.
    fn load(&mut self) -> Result<Loaded, StoreError>;
    /// Appends entries; they are durable on return.
    fn append(&mut self, entries: &[(u64, Vec<u8>)]) -> Result<(), StoreError>;
    /// Keeps a snapshot of the state at `index`, durable on return; drops what two snapshots make needless.
    fn snapshot(&mut self, index: u64, bytes: &[u8]) -> Result<(), StoreError>;
}
