//! What every part of Quarry shares: identifiers, page-aligned buffers, checksums, time, sizes.
//!
//! Nothing here does I/O. Newtypes keep byte offsets, epochs, sequence numbers and ids apart.

pub mod buf;
pub mod crc;
pub mod ids;
pub mod time;
pub mod units;

pub use buf::{Page, PageBuf, PAGE};
pub use crc::{crc32c, crc_pieces};
pub use ids::*;
pub use time::Nanos;

/// Bytes in an extent, the unit of placement: 1 MiB of a vTree's address space.
pub const EXTENT: u32 = 1 << 20;
/// Bytes in a store block, the unit of allocation: 64 KiB.
pub const BLOCK: u32 = 64 << 10;
/// Pages (4 KiB parts) in a store block.
pub const PAGES_PER_BLOCK: u32 = BLOCK / PAGE as u32;
/// Store blocks in an extent.
pub const BLOCKS_PER_EXTENT: u32 = EXTENT / BLOCK;
