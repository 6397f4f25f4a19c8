//! The objects of the state machine, as stored in snapshots. Every field that is added gets a serde default.

use quarry_base::{
    DeviceId, DomainId, Generation, Instance, NodeId, PoolId, SdcId, SdsId, StartNo, VolumeId,
    VtreeId,
};
use quarry_control::Capability;
use quarry_wire::{
    DeviceInfo, Endpoint, MapEntry, PgConfig, PoolInfo, SdcInfo, SdsInfo, VolumeInfo,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A host; found by name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub name: String,
    pub addresses: Vec<String>,
    pub capabilities: Vec<Capability>,
    pub release: String,
    pub host: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Domain {
    pub id: DomainId,
    pub name: String,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// Durable on every in-sync replica.
    #[default]
    Durable,
    /// Written to every in-sync replica's device; durable after FLUSH or FUA.
    Cached,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pool {
    pub id: PoolId,
    pub name: String,
    pub domain: DomainId,
    pub copies: u8,
    pub min_copies: u8,
    pub ack: Ack,
    pub pg_count: u32,
    /// Thin volumes may promise this many times the usable capacity.
    pub over_commit: u32,
    /// Part of the usable capacity that thick volumes never get, so that a rebuild has room.
    pub reserve_percent: u32,
    /// How long a lost copy may come back before it is rebuilt elsewhere (R16).
    pub rebuild_grace_seconds: u64,
    /// The operator stopped forward rebuilds.
    pub rebuild_cancelled: bool,
    /// The operator asked to skip the grace time for what is lost now.
    pub rebuild_now: bool,
    pub rebuild_bytes_per_second: u64,
}

impl Pool {
    pub fn info(&self) -> PoolInfo {
        PoolInfo {
            id: self.id,
            name: self.name.clone(),
            pg_count: self.pg_count,
            cached: self.ack == Ack::Cached,
            rebuild_bytes_per_second: self.rebuild_bytes_per_second,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sds {
    pub id: SdsId,
    pub name: String,
    pub node: Option<NodeId>,
    pub domain: DomainId,
    pub fault_set: Option<u32>,
    /// Newest start; zero if it never registered.
    pub start: StartNo,
    pub up: bool,
    /// The operator fenced it with `fail`; it takes no role until `recover`.
    pub fenced: bool,
    /// It asked for its roles to be taken over and gets none until its next start.
    pub leaving: bool,
    /// When it went down.
    pub down_since_ms: Option<u64>,
    pub host: String,
    pub boot_id: String,
    pub endpoints: Vec<Endpoint>,
    pub metrics: Option<String>,
}

impl Sds {
    pub fn info(&self) -> SdsInfo {
        SdsInfo {
            id: self.id,
            name: self.name.clone(),
            start: self.start,
            up: self.up && !self.fenced,
            host: self.host.clone(),
            endpoints: self.endpoints.clone(),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Device {
    pub id: DeviceId,
    /// Identity written on the device.
    pub uuid: String,
    pub sds: SdsId,
    /// `None`: not used yet.
    pub pool: Option<PoolId>,
    pub path: PathBuf,
    pub capacity_bytes: u64,
    pub shard: u16,
    /// A write or a sync failed, and why.
    pub failed: Option<String>,
    pub failed_since_ms: Option<u64>,
}

impl Device {
    /// What data paths see; only devices of a pool are published.
    pub fn info(&self) -> Option<DeviceInfo> {
        let pool = self.pool?;
        Some(DeviceInfo { id: self.id, sds: self.sds, pool, shard: self.shard })
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sdc {
    pub id: SdcId,
    pub name: String,
    pub node: Option<NodeId>,
    /// Newest instance; zero if it never registered.
    pub instance: Instance,
    pub host: String,
    pub metrics: Option<String>,
}

impl Sdc {
    pub fn info(&self) -> SdcInfo {
        SdcInfo {
            id: self.id,
            name: self.name.clone(),
            instance: self.instance,
            host: self.host.clone(),
        }
    }
}

/// Whether a volume's space is promised in full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provisioning {
    #[default]
    Thin,
    Thick,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Volume {
    pub id: VolumeId,
    pub name: String,
    pub vtree: VtreeId,
    pub pool: PoolId,
    pub size_bytes: u64,
    pub provisioning: Provisioning,
    pub generation: Generation,
    pub mappings: Vec<MapEntry>,
    pub created_ms: u64,
}

impl Volume {
    pub fn info(&self) -> VolumeInfo {
        VolumeInfo {
            id: self.id,
            name: self.name.clone(),
            vtree: self.vtree,
            pool: self.pool,
            size_bytes: self.size_bytes,
            generation: self.generation,
            mappings: self.mappings.clone(),
        }
    }
}

/// A placement group: its published configuration, and what only the MDM needs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pg {
    pub config: PgConfig,
    /// Devices dropped at a primary's request, and the time before which they do not come back (R27).
    pub held: Vec<(DeviceId, u64)>,
    /// When its primary moved because clients could not reach it, last minute (R27).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved_ms: Vec<u64>,
}

/// One line of history.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    pub id: u64,
    pub at_ms: u64,
    /// User or part of the system that asked.
    pub who: String,
    pub what: String,
    pub object: String,
    pub outcome: String,
    pub reason: String,
}

/// What a task waits for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum TaskKind {
    Map { volume: VolumeId, sdc: SdcId, generation: Generation },
    Unmap { volume: VolumeId, sdc: SdcId, index: quarry_base::ConfigIndex },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    Running,
    Done,
    Failed,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Task {
    pub id: u64,
    #[serde(flatten)]
    pub kind: TaskKind,
    pub state: TaskState,
    pub created_ms: u64,
    pub finished_ms: Option<u64>,
    pub detail: String,
}
