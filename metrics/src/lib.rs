//! What every daemon shares around its core: metrics, version, command line, logging, the lock on
//! the data directory.
//!
//! Metrics: one [`Metrics`] a process. Handles ([`Counter`], [`Gauge`], [`Histo`]) are atomics that a
//! shard thread updates with a few instructions and never a lock; the exporter reads them when
//! somebody scrapes. Names are written in full at registration, so that they can be searched for, and
//! are checked there: prefix `quarry_`, base units, `_total` on counters.
//!
//! Invariants: a name is registered once; the number of series in a family is bounded; a scrape never
//! blocks a shard.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod cli;
pub mod histo;
pub mod http;
pub mod lockfile;
pub mod logging;
pub mod naming;
pub mod panics;
pub mod process;
pub mod registry;
pub mod rotate;
pub mod series;
pub mod systemd;
pub mod version;

pub use histo::{Histo, HistoSnapshot};
pub use http::{serve, CONTENT_TYPE};
pub use registry::{Metrics, Sample};
pub use series::{Counter, Family, Gauge};
