//! The store on one device: an ordered log of replicated writes, and 64 KiB blocks behind it.
//!
//! Sans-IO: a [`Store`] never touches a file or a clock. Calls queue work, [`Store::poll`] hands out
//! disk operations and events, [`Store::complete`] takes completions in any order. The on-disk format
//! is docs/DISK-FORMAT.md; ARCHITECTURE rules R5-R8, R12-R14, R19 and R24 say what the replica engine
//! relies on. `mechanism` of each part is in the header of its file.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

// The model and the simulated disk of `tests/` also run as unit tests, with planted bugs.
#[cfg(test)]
extern crate self as quarry_store;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod harness;
#[cfg(test)]
mod planted_tests;

mod alloc;
mod apply;
mod audit;
mod batch;
mod blocks;
mod checkpoint;
mod checks;
mod codec;
pub mod config;
mod destage;
mod direct;
pub mod error;
mod ids;
mod index;
pub mod inspect;
mod layout;
mod log;
mod log_format;
mod log_scan;
mod medium;
mod owners;
mod pgs;
mod pieces;
mod place;
mod planted;
mod promise;
mod read;
mod read_part;
mod recovery;
mod repair;
mod replay;
mod scrub;
mod seal;
mod slots;
mod space;
mod stall;
pub mod stats;
mod store;
mod superblock;
pub mod types;

pub use config::{AckMode, StoreConfig};
pub use error::{AppendError, ReadError, RepairError, StoreError};
pub use layout::capacity_bytes;
pub use medium::{is_medium_error, UNFIT_READS};
pub use pgs::MAX_META;
pub use scrub::{ScrubEnded, ScrubStats};
pub use stats::{Headroom, StoreStats};
pub use store::Store;
pub use superblock::{format, mark_unreadable, read_ident, FORMAT_VERSION, IDENT_BYTES};
pub use types::*;
