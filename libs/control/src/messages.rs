//! What is said on a control session.

use crate::node::Capability;
use quarry_base::{
    ConfigIndex, DeviceId, Generation, Instance, NodeId, PgId, SdcId, SdsId, StartNo, VolumeId,
};
use quarry_wire::{Change, ClusterView, Endpoint, PgHave, PgReport, Proposal};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which daemon registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Sds,
    Sdc,
}

/// A device as its SDS found it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Identity written on the device, 32 hexadecimal digits.
    pub uuid: String,
    pub path: PathBuf,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// Index in the SDS's endpoints.
    pub shard: u16,
    /// A write or a sync failed: takes no writes any more, and why (R10).
    pub failed: Option<String>,
    pub pgs: Vec<PgHave>,
}

/// First message of a daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub role: Role,
    /// Name in node.toml.
    pub name: String,
    pub addresses: Vec<String>,
    pub capabilities: Vec<Capability>,
    /// Shared secret of the cluster.
    pub secret: String,
    /// Cluster the daemon belonged to so far, if any. Another one is refused.
    pub cluster: Option<String>,
    /// Identifies the host (machine and boot), for Unix sockets and host crashes (R1, R29).
    pub host: String,
    pub boot_id: String,
    pub pid: u32,
    pub release: String,
    pub metrics: Option<String>,
    /// The start number or instance this same process was given before, when its session broke.
    pub resume: Option<u64>,
    pub endpoints: Vec<Endpoint>,
    pub devices: Vec<DeviceReport>,
    /// Newest change of the cluster that this daemon was told of, before its restarts too; the session fills it in.
    #[serde(default)]
    pub seen: ConfigIndex,
}

/// A volume at an SDC.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    pub volume: VolumeId,
    pub generation: Generation,
    /// NBD socket, when it listens.
    pub socket: Option<PathBuf>,
    /// Kernel device, when attached.
    pub device: Option<String>,
    pub error: Option<String>,
}

/// Daemon to MDM.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromNode {
    Hello(Box<Hello>),
    Heartbeat {
        /// Newest change applied.
        applied: ConfigIndex,
        /// Every write sequenced before this index was applied is committed (R21).
        confirmed: ConfigIndex,
        pgs: Vec<PgReport>,
        /// (device, capacity, used, failed)
        devices: Vec<(DeviceId, u64, u64, Option<String>)>,
        /// Counters since the daemon started, by name, for the API's metrics and the timeline.
        counters: Vec<(String, u64)>,
    },
    Propose {
        request: u64,
        proposal: Proposal,
    },
    Attachments(Vec<Attachment>),
    /// The SDC cannot reach the primary of `pg` but reaches another member (R27).
    Unreachable {
        pg: PgId,
        device: DeviceId,
    },
    /// The SDC wants a volume mapped to itself (its `sdctab` says so).
    MapHere {
        /// The volume's name.
        volume: String,
        device: bool,
        read_only: bool,
    },
    /// Answer to `WhoUses`: each user in a few words; empty: nobody.
    Users {
        request: u64,
        users: Vec<String>,
    },
}

/// A device as the MDM knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RegisteredDevice {
    pub uuid: String,
    pub id: DeviceId,
}

/// MDM to daemon.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToNode {
    Registered {
        cluster: String,
        node: NodeId,
        sds: Option<SdsId>,
        sdc: Option<SdcId>,
        /// SDS: its start number (R1). SDC: its instance (R19). As `u64` for both.
        start: u64,
        devices: Vec<RegisteredDevice>,
        /// How often to send a heartbeat, milliseconds.
        heartbeat_ms: u64,
    },
    /// Final: wrong secret, other cluster, missing capability, fenced start. The daemon says it and ends.
    Refused {
        code: String,
        message: String,
        hint: String,
    },
    Snapshot(ClusterView),
    Changes {
        index: ConfigIndex,
        changes: Vec<Change>,
    },
    ProposalResult {
        request: u64,
        accepted: bool,
        reason: String,
    },
    HeartbeatAck {
        index: ConfigIndex,
    },
    /// Answer to `MapHere`: the volume's number, or why it is not mapped.
    MappedHere {
        volume: String,
        result: Result<VolumeId, String>,
    },
    /// Who uses the volume at this client now? Asked before an unmap that is not to cut anybody off.
    WhoUses {
        request: u64,
        volume: VolumeId,
    },
}

impl ToNode {
    /// The change of the cluster that it tells of, if it does.
    pub fn index(&self) -> Option<ConfigIndex> {
        match self {
            ToNode::Snapshot(view) => Some(view.index),
            ToNode::Changes { index, .. } | ToNode::HeartbeatAck { index } => Some(*index),
            _ => None,
        }
    }
}

impl Hello {
    /// Start number as the type of its role.
    pub fn resume_start(&self) -> Option<StartNo> {
        self.resume.map(StartNo)
    }
    /// Instance as the type of its role.
    pub fn resume_instance(&self) -> Option<Instance> {
        self.resume.map(Instance)
    }
}
