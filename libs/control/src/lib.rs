//! The control session between the MDM and the daemons: messages, framing, node identity.
//!
//! A daemon dials the MDM over TCP, registers, receives a snapshot of the cluster view, then every change in
//! order of the MDM's log index (R3); it sends heartbeats and proposals. Messages are JSON behind a 4-byte
//! little-endian length, so that either side can grow fields without breaking the other.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod client;
mod counters;
mod file;
mod frame;
mod messages;
mod node;
mod standing;
mod told;

pub use client::{Session, SessionConfig, SessionEvent};
pub use counters::{
    copy_times, disk_times, led_times, promised, scrub_ended, stalled, COPIES_LEFT_OUT, COPY_TIMES,
    LED_PREFIX, LED_TIMES, SCRUB_ENDED,
};
pub use file::replace_file;
pub use frame::{read_message, write_message, ControlError, MAX_MESSAGE};
pub use messages::{Attachment, DeviceReport, FromNode, Hello, RegisteredDevice, Role, ToNode};
pub use node::{host_identity, Capability, NodeFile, NodeFileError};
pub use quarry_wire::{Change, ClusterView, PgHave, PgReport, Proposal};
pub use standing::Standing;
