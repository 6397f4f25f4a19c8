//! Deterministic simulation of whole clusters: the real engines of data servers and clients, real stores on disks in memory,
//! the real MDM state machine and failure detector, simulated connections, faults by seed, and checkers for the promises of
//! `docs/ARCHITECTURE.md`:
//!
//! - linearizable per sector, no lost and no resurrected write, no torn page ([`history`]);
//! - everything acknowledged is still there at the end, and replicas are identical ([`finish`]);
//! - once faults stop, every group becomes whole and every request is answered.
//!
//! `sim --seeds A..B` runs seeds and prints one line that replays a failing one.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod client;
mod clients;
pub mod config;
mod control;
pub mod coverage;
pub mod disk;
pub mod falls;
pub mod faults;
pub mod finish;
pub mod forsake;
pub mod history;
pub mod load;
pub mod mdm;
mod net;
mod node;
mod outcomes;
#[cfg(feature = "planted")]
pub mod planted;
pub mod rng;
mod servers;
pub mod world;

pub use config::Config;
pub use finish::Report;
pub use world::World;

/// Runs one seed.
pub fn run_seed(seed: u64) -> Result<Report, String> {
    run(seed, Config::of_seed(seed))
}

/// Runs a seed with a shape of one's own.
pub fn run(seed: u64, cfg: Config) -> Result<Report, String> {
    World::new(seed, cfg)?.run()
}
