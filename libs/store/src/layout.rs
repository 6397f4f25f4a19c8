//! Where things lie on the device.
//!
//! ```text
//! 0          superblock A (4 KiB)          64 KiB     superblock B
//! 128 KiB    log ring                      then       table groups, 16 KiB each
//! then       data blocks of 64 KiB, at a multiple of 64 KiB
//! ```

use crate::config::StoreConfig;
use crate::error::StoreError;
use quarry_base::BLOCK;

pub(crate) const BLOCK64: u64 = BLOCK as u64;
pub(crate) const PAGE64: u64 = quarry_base::PAGE as u64;
pub(crate) const SUPER_A: u64 = 0;
pub(crate) const SUPER_B: u64 = 64 << 10;
pub(crate) const LOG_START: u64 = 128 << 10;
/// Data blocks that one table group describes.
pub(crate) const GROUP_SLOTS: u64 = 63;
/// Two sides of a table page and its CRC page.
pub(crate) const GROUP_BYTES: u64 = 4 * PAGE64;
/// "No slot".
pub(crate) const NO_SLOT: u32 = u32::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub device_bytes: u64,
    pub log_bytes: u64,
    pub table_start: u64,
    pub groups: u64,
    pub data_start: u64,
    /// Number of data blocks ("slots").
    pub blocks: u64,
}

/// Bytes of data blocks that a device formatted with `cfg` has: what [`StoreStats`](crate::StoreStats) will say.
///
/// Errors: `Config` where the device is too small or too large.
pub fn capacity_bytes(cfg: &StoreConfig) -> Result<u64, StoreError> {
    Ok(Layout::from_config(cfg)?.blocks * BLOCK64)
}

impl Layout {
    /// The layout of a device of `device_bytes` with a log of `log_bytes`.
    pub fn new(device_bytes: u64, log_bytes: u64) -> Result<Layout, StoreError> {
        let device_bytes = device_bytes - device_bytes % PAGE64;
        if log_bytes == 0 || !log_bytes.is_multiple_of(BLOCK64) {
            return Err(StoreError::Config("the log size is not a multiple of 64 KiB"));
        }
        let table_start = LOG_START.saturating_add(log_bytes);
        let rest = device_bytes.saturating_sub(table_start);
        let groups = rest.div_ceil(GROUP_SLOTS * BLOCK64 + GROUP_BYTES);
        let data_start = (table_start + groups * GROUP_BYTES).next_multiple_of(BLOCK64);
        let blocks = (device_bytes.saturating_sub(data_start) / BLOCK64).min(groups * GROUP_SLOTS);
        if blocks < 16 {
            return Err(StoreError::Config("the device is too small for its log and 16 blocks"));
        }
        if blocks >= u64::from(NO_SLOT) {
            return Err(StoreError::Config("the device is larger than 2^32 blocks"));
        }
        Ok(Layout { device_bytes, log_bytes, table_start, groups, data_start, blocks })
    }

    pub fn from_config(cfg: &StoreConfig) -> Result<Layout, StoreError> {
        let l = Layout::new(cfg.device_bytes, cfg.log_bytes_or_default())?;
        l.check(cfg)?;
        Ok(l)
    }

    /// Does the log take the largest batches of `cfg`?
    pub fn check(&self, cfg: &StoreConfig) -> Result<(), StoreError> {
        if self.log_bytes < 8 * cfg.max_batch_bytes as u64 {
            return Err(StoreError::Config("the log is smaller than 8 batches"));
        }
        Ok(())
    }

    /// Byte offset of a data block.
    pub fn slot_offset(&self, slot: u32) -> u64 {
        debug_assert!(u64::from(slot) < self.blocks);
        self.data_start + u64::from(slot) * BLOCK64
    }

    /// Byte offset of one side (0 or 1) of a table group: table page, then CRC page.
    pub fn group_offset(&self, group: u64, side: u8) -> u64 {
        self.table_start + group * GROUP_BYTES + u64::from(side) * 2 * PAGE64
    }

    /// Byte offset of a log position.
    pub fn log_offset(&self, pos: u64) -> u64 {
        LOG_START + pos % self.log_bytes
    }

    /// Where a batch of `len` bytes goes that wants to start at `pos`: batches never wrap.
    pub fn log_place(&self, pos: u64, len: u64) -> u64 {
        if pos % self.log_bytes + len > self.log_bytes {
            pos.next_multiple_of(self.log_bytes)
        } else {
            pos
        }
    }
}
