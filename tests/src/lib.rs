//! What the whole-process tests are made of: a cluster to break, a load to run meanwhile, and a
//! checker that knows afterwards whether anything was lost.
//!
//! Everything here is written from the specification, not from the daemons: the NBD client, the page
//! stamps and the checker share no code with them but the CRC. Only [`replicas`] reads devices by the store's own code.
//!
//! A test in `tests/tests/` looks like this:
//!
//! ```no_run
//! use quarry_tests::*;
//! use std::time::Duration;
//!
//! # fn a_behaviour() -> Res<()> {
//! with_cluster(ClusterOptions::default(), |cluster| {
//!     let uri = cluster.new_volume("v", "256MiB", "sdc1")?;   // create + map, the parsed NBD URI
//!     let history = History::new(1);
//!     let load = Load::start(LoadSpec::new(&uri).area(Area::spread(64, 16)), &history)?;
//!     load.run_for(Duration::from_secs(2))?;                  // fails when nothing completes
//!     cluster.kill("sds1")?;                                  // kill -9
//!     load.run_for(Duration::from_secs(4))?;
//!     cluster.start("sds1")?;
//!     let report = load.stop();
//!     report.expect_no_error()?;                              // no NBD error, no lost connection
//!     report.expect_stall_below(Duration::from_secs(3))?;
//!     cluster.wait_health("ok", Duration::from_secs(60))?;
//!     history.final_read(&uri)?;                              // every page, once more
//!     check::verify(&history).expect_clean()                  // linearizable page by page
//! })
//! # }
//! ```
//!
//! - [`nbd`]: a client with many requests in flight, and [`nbd::raw`] for bytes no client should send.
//! - [`load`], [`history`], [`page`]: load generator, what it recorded, how a page says who wrote it.
//! - [`check`]: linearizability of every 4 KiB page as a register, over crashes and several clients.
//! - [`replicas`]: whether all copies on the devices of a stopped cluster are the same.
//! - [`cluster`]: `scripts/cluster` and `scli` with cleanup, also after a panic.
//! - [`fault`]: a row of the fault table. [`roles`]: whether primaries change too often. [`net`], [`proxy`], [`disk`], [`rot`]: networks and disks to break.
//! - [`command`]: external programs with a time limit. [`http`]: a GET or POST without a client library.
//! - [`skip`] says that a test cannot run here; [`short_or_full`] picks a duration.
//!
//! Environment: `QUARRY_BIN_DIR` (binaries, default `target/release`), `QUARRY_TEST_FULL=1` (long runs),
//! `QUARRY_SKIPS` (file to note skips in), `QUARRY_TEST_KEEP=1` (leave the cluster and its logs).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod cases;
pub mod check;
pub mod cluster;
pub mod command;
pub mod disk;
pub mod failure;
pub mod fault;
pub mod history;
pub mod http;
pub mod load;
pub mod nbd;
pub mod net;
pub mod page;
pub mod proxy;
pub mod replicas;
pub mod rng;
pub mod roles;
pub mod rot;
pub mod scratch;
pub mod volatile;

pub use cases::Cases;
pub use cluster::{with_cluster, with_members, Cluster, ClusterOptions};
pub use command::{need_programs, Command, Output};
pub use disk::Disk;
pub use failure::{wait_until, Failure, Res};
pub use fault::Fault;
pub use history::History;
pub use load::{Area, Load, LoadReport, LoadSpec, Mix};
pub use nbd::Uri;
pub use scratch::Scratch;

use std::io::Write;
use std::time::Duration;

/// Whether the long runs are wanted (`QUARRY_TEST_FULL=1`).
pub fn full() -> bool {
    std::env::var("QUARRY_TEST_FULL").is_ok_and(|v| v == "1")
}

/// `short` seconds, or `long` ones with `QUARRY_TEST_FULL=1`.
pub fn short_or_full(short: u64, long: u64) -> Duration {
    Duration::from_secs(if full() { long } else { short })
}

/// Says that test `name` cannot run on this machine and why, on stderr and in the file `QUARRY_SKIPS` names.
/// The caller returns `Ok(())` afterwards.
pub fn skip(name: &str, reason: &str) {
    eprintln!("SKIP {name}: {reason}");
    let Some(file) = std::env::var_os("QUARRY_SKIPS") else { return };
    let line = format!("{name}: {}\n", reason.replace('\n', " "));
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(&file);
    if let Err(e) = opened.and_then(|mut f| f.write_all(line.as_bytes())) {
        eprintln!("the skip of {name} could not be noted in {}: {e}", file.to_string_lossy());
    }
}
