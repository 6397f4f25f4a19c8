//! The framed protocol between SDC and SDS and between SDSs, and the cluster view they share.
//!
//! Sans-IO: bytes in, frames out. `docs/WIRE.md` has the byte diagrams and the rules; ARCHITECTURE R2, R5, R19
//! say why each field is in the header of every frame.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod deleted;
mod error;
mod frame;
mod header;
mod hello;
mod reader;
mod report;
mod view;

pub use deleted::Deleted;
pub use error::WireError;
pub use frame::{Crcs, Frame};
pub use header::{flags, Header, Op, Status, HEADER_LEN, MAGIC, WIRE_VERSION};
pub use hello::{Hello, Peer};
pub use reader::{FrameReader, RecvPlan};
pub use report::{PgHave, PgReport, Proposal};
pub use view::{
    Change, ClusterView, DeviceInfo, Endpoint, MapEntry, Member, PgConfig, PoolInfo, SdcInfo,
    SdsInfo, VolumeInfo,
};

/// Largest data section of a frame, bytes: one extent.
pub const MAX_DATA: usize = 1 << 20;
/// Largest meta section of a frame, bytes.
pub const MAX_META: usize = 1 << 20;
