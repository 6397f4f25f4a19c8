//! Counters and levels of one store, for metrics and for pacing.

/// Levels (now) and counters (since open).
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct StoreStats {
    /// Bytes of data blocks on the device.
    pub capacity_bytes: u64,
    /// Bytes of blocks that cannot be allocated: in use or waiting to be freed.
    pub used_bytes: u64,
    /// Bytes kept free for blocks of thick volumes that are not written yet.
    pub promised_bytes: u64,
    pub log_bytes: u64,
    pub log_used_bytes: u64,
    /// Committed 4 KiB pages that are only in the log and in memory.
    pub dirty_pages: u64,
    pub tombstones: u64,
    pub batches: u64,
    pub batch_records: u64,
    pub syncs: u64,
    pub direct_writes: u64,
    pub destaged_pages: u64,
    pub destage_writes: u64,
    /// Copies of some parts of a block whose content went straight to its pages.
    pub placed: u64,
    pub checkpoints: u64,
    pub table_pages_written: u64,
    pub allocs: u64,
    pub frees: u64,
    pub reads: u64,
    pub read_pages: u64,
    pub crc_errors: u64,
    pub repairs: u64,
    /// Memory of the cached checksum pages, and the limit that it keeps to, pages to be written excepted.
    pub check_cache_bytes: u64,
    pub check_cache_limit: u64,
    /// Blocks whose checksums were in memory when a read wanted them, and those whose were read from the device.
    pub check_hits: u64,
    pub check_misses: u64,
    pub check_evictions: u64,
    pub log_full: u64,
    /// Records relogged because the log's tail passed them while uncommitted or not destaged.
    pub relogged: u64,
}

/// Room left, for credits (R24).
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// Payload bytes `append` still takes before it says `LogFull`.
    pub log_bytes: u64,
    /// Blocks that the device has.
    pub of: u64,
    /// Blocks that can be allocated now or after pending frees, the reserve not counted.
    pub blocks: u64,
    /// Below the 2 % reserve: new data must be refused with ENOSPC.
    pub full: bool,
    /// Blocks of `blocks` that are promised to thick volumes and not written yet, see [`Store::promise`](crate::Store::promise).
    pub promised: u64,
}
