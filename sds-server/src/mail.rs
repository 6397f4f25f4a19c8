//! What the control thread and the shard say to each other. Both ways bounded; the shard never waits.

use crate::error::SdsError;
use crate::state::FailedDevice;
use quarry_base::{ConfigIndex, SdsId, StartNo};
use quarry_control::{Change, ClusterView, DeviceReport, FromNode, Proposal, RegisteredDevice};
use quarry_ring::Waker;
use quarry_wire::Endpoint;
use std::path::PathBuf;
use tokio::sync::mpsc;

/// Messages waiting for the shard; when full, the control thread waits.
pub const TO_SHARD: usize = 1024;
/// Messages waiting for the control thread; when full, heartbeats are left out and proposals wait.
pub const FROM_SHARD: usize = 1024;

/// Control thread to shard.
pub enum ToShard {
    Registered {
        cluster: [u8; 16],
        /// As the MDM writes it; every party says it like that.
        cluster_text: String,
        sds: SdsId,
        start: StartNo,
        devices: Vec<RegisteredDevice>,
    },
    View(Box<ClusterView>),
    Changes {
        index: ConfigIndex,
        changes: Vec<Change>,
    },
    ProposalResult {
        request: u64,
        accepted: bool,
        reason: String,
    },
    /// Answer with [`FromShard::Send`].
    Heartbeat,
    /// Where all devices stand, for a (re-)registration.
    Report(std::sync::mpsc::SyncSender<Vec<DeviceReport>>),
    /// SIGTERM.
    HandOver,
}

/// Shard to control thread.
pub enum FromShard {
    /// For the MDM.
    Send(Box<FromNode>),
    Propose {
        request: u64,
        proposal: Proposal,
    },
    /// A blank device is formatted: its identity is on it now.
    Formatted(PathBuf),
    /// A write or sync has failed where O_DIRECT is refused: the device must not be opened again.
    Failed {
        /// As [`to_hex`](crate::state::to_hex) writes it.
        uuid: String,
        device: FailedDevice,
    },
}

/// A started shard.
pub struct Started {
    pub waker: Waker,
    pub endpoint: Endpoint,
    /// For the log.
    pub ring: String,
    /// The devices as recovery left them.
    pub devices: Vec<DeviceReport>,
}

/// The shard as the control thread sees it.
pub struct ShardHandle {
    pub tx: mpsc::Sender<ToShard>,
    pub rx: mpsc::Receiver<FromShard>,
    pub waker: Waker,
    pub endpoint: Endpoint,
    /// The devices as recovery left them.
    pub devices: Vec<DeviceReport>,
    pub thread: std::thread::JoinHandle<Result<(), SdsError>>,
}
