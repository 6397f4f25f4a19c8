//! Limits and sizes of a store, each named, with its default.

use quarry_base::{BLOCK, PAGE};
use std::time::Duration;

/// What "stable" means on this device (pool option `ack`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AckMode {
    /// Synced.
    #[default]
    Durable,
    /// Written to the device, not necessarily synced.
    Cached,
}

/// Sizes and limits. `Default` fits a device of 16 GiB; set `device_bytes`.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Size of the device, bytes; rounded down to whole pages.
    pub device_bytes: u64,
    /// Size of the log area at format; 0: an eighth of the device, 32 MiB to 256 MiB.
    /// After format the superblock decides.
    pub log_bytes: u64,
    pub ack: AckMode,
    /// Log batches written at the same time.
    pub max_batches_in_flight: usize,
    /// Payload bytes in one batch, 1 MiB (one record of the largest size) at least.
    pub max_batch_bytes: usize,
    /// Destaging starts above this part of the log in use (1/256ths).
    pub destage_start: u32,
    /// ... or when nothing was appended for this long.
    pub destage_idle: Duration,
    /// Blocks being destaged at the same time while there is room in the log ...
    pub destage_depth: usize,
    /// ... and when it is more than half full.
    pub destage_depth_full: usize,
    /// Disk reads in flight; more wait.
    pub max_reads_in_flight: usize,
    /// Table pages (8 KiB with their checksum page) changed since the last checkpoint; at this many
    /// destaging waits for one.
    pub max_dirty_table_pages: usize,
    /// Memory for checksums of pages on the device, which are read from there when they are not in it. 4.2 KiB
    /// hold those of 4 MiB of content. Those of blocks that changed since the last checkpoint are kept besides.
    pub check_cache_bytes: u64,
    /// Freed blocks that are worth a checkpoint of their own, at most; a sixteenth of the device's
    /// blocks where that is less, but 256 at least.
    pub max_freed_blocks: u32,
    /// Tombstones and ends of vTrees kept a placement group; beyond it the oldest ones go and `delta_floor` rises.
    pub max_tombstones_per_pg: usize,
    /// Runs of request ids remembered an instance and placement group (R19); beyond it the lowest
    /// count as below the floor.
    pub max_id_runs: usize,
    /// Blocks not given to application writes (1/1000ths of all).
    pub reserve_permille: u32,
    /// Bytes a second that the scrub reads; 0: it does not.
    pub scrub_bytes_per_second: u64,
    /// A device on which nothing ends for so long, while something is in flight, or one write or sync does not for five times
    /// as long, is reported ...
    pub stall_warn: Duration,
    /// ... and has failed after this long.
    pub hang_limit: Duration,
    /// Nothing is ever written: recovery ends in memory, appends are refused.
    pub read_only: bool,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            device_bytes: 16 << 30,
            log_bytes: 0,
            ack: AckMode::Durable,
            max_batches_in_flight: 8,
            max_batch_bytes: 1 << 20,
            destage_start: 64,
            destage_idle: Duration::from_secs(1),
            destage_depth: 16,
            destage_depth_full: 128,
            max_reads_in_flight: 256,
            max_dirty_table_pages: 1024,
            check_cache_bytes: 64 << 20,
            max_freed_blocks: 16_384,
            max_tombstones_per_pg: 16_384,
            max_id_runs: 4096,
            reserve_permille: 20,
            scrub_bytes_per_second: 0,
            stall_warn: Duration::from_secs(1),
            hang_limit: Duration::from_secs(10),
            read_only: false,
        }
    }
}

impl StoreConfig {
    /// The log size to format with: `log_bytes`, or the default for the device's size.
    pub fn log_bytes_or_default(&self) -> u64 {
        let b = match self.log_bytes {
            0 => (self.device_bytes / 8).clamp(32 << 20, 256 << 20),
            n => n,
        };
        b - b % u64::from(BLOCK).max(PAGE as u64)
    }
}
