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
    /// Capabilities the operator has taken away; the node file still lists them.
    #[serde(default)]
    pub disabled: Vec<Capability>,
}

impl Node {
    /// What the node may do now.
    pub fn can(&self, c: Capability) -> bool {
        self.capabilities.contains(&c) && !self.disabled.contains(&c)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Domain {
    pub id: DomainId,
    pub name: String,
}

/// Servers of a protection domain that are expected to fail together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FaultSet {
    pub id: u32,
    pub name: String,
    pub domain: DomainId,
}

/// How fast missing copies are restored and copies are moved (R28).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pacing {
    /// As fast as it goes.
    #[default]
    Unlimited,
    /// Never faster than `rebuild_bytes_per_second`.
    Limit,
    /// While applications read or write, held to `rebuild_bytes_per_second`; else as fast as it goes.
    FavourApplication,
    /// Follows the load: never below `rebuild_bytes_per_second`, slower the busier applications are.
    Dynamic,
}

/// How full a pool is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    #[default]
    Normal,
    High,
    Critical,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::Normal => "normal",
            Level::High => "high",
            Level::Critical => "critical",
        }
    }
}

fn default_high() -> u32 {
    super::pools::DEFAULT_HIGH_PERCENT
}
fn default_critical() -> u32 {
    super::pools::DEFAULT_CRITICAL_PERCENT
}
fn default_moves() -> u32 {
    super::pools::DEFAULT_MOVES
}
fn yes() -> bool {
    true
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

/// What a primary trusts before it serves a read (R17, R18).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reads {
    /// The grants of the members, which run by the clocks of the hosts.
    #[default]
    Lease,
    /// An answer of every member for each batch of reads: no clock.
    Confirm,
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
    /// The rate that `pacing` speaks of; 0: none given.
    pub rebuild_bytes_per_second: u64,
    #[serde(default)]
    pub reads: Reads,
    #[serde(default)]
    pub pacing: Pacing,
    /// The rate in force now, bytes a second for each placement group; 0: no limit.
    #[serde(default)]
    pub rate_now: u64,
    /// Used part of the raw capacity at which the pool counts as high and as critical.
    #[serde(default = "default_high")]
    pub alert_high_percent: u32,
    #[serde(default = "default_critical")]
    pub alert_critical_percent: u32,
    #[serde(default)]
    pub level: Level,
    /// Copies are moved by themselves when devices were added.
    #[serde(default = "yes")]
    pub auto_rebalance: bool,
    /// Copies are being moved now.
    #[serde(default)]
    pub rebalancing: bool,
    /// Placement groups that may be on the move at a time.
    #[serde(default = "default_moves")]
    pub moves_at_once: u32,
    /// Bytes a second that the scrub of each device reads, 0: none; `None`: as each server is set itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub_bytes_per_second: Option<u64>,
    /// Health as it was noted last, for events.
    #[serde(default)]
    pub health: String,
    /// Its primaries are being spread evenly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primaries_round: Option<PrimariesRound>,
}

/// Changes of primary since a pool began to spread them evenly.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PrimariesRound {
    pub changes: u32,
    /// When the last one was.
    pub last_ms: u64,
}

impl Pool {
    pub fn info(&self) -> PoolInfo {
        PoolInfo {
            id: self.id,
            name: self.name.clone(),
            pg_count: self.pg_count,
            cached: self.ack == Ack::Cached,
            confirm: self.reads == Reads::Confirm,
            rebuild_bytes_per_second: self.rate_now,
            scrub_bytes_per_second: self.scrub_bytes_per_second,
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
    /// The operator wants it empty: it gets no copies and gives away those it has.
    #[serde(default)]
    pub draining: bool,
    /// When it went down.
    pub down_since_ms: Option<u64>,
    pub host: String,
    pub boot_id: String,
    /// First start since its host booted: what an earlier one had in a device's cache may be gone (R29).
    #[serde(default)]
    pub booted: StartNo,
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
    /// Its server has registered without it: a disk was taken out or could not be read.
    #[serde(default)]
    pub missing: bool,
    /// The operator wants it empty.
    #[serde(default)]
    pub draining: bool,
    /// Taken out of its pool by the operator: joins none until it is added again.
    #[serde(default)]
    pub removed: bool,
    /// Too slow to take part for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<Suspension>,
    /// That it was suspended before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lapses: Option<Lapses>,
}

/// What is wrong with a device that has not failed (R27).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sluggish {
    /// Operations are under way and none has ended for so long.
    Stalled { idle_ms: u64 },
    /// Median time of its last `ops` writes and syncs, and median of that of the pool's other devices, microseconds.
    Slow { median_us: u64, others_us: u64, ops: u64 },
}

/// A device that is not in sync for a while because it was slow or stalled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Suspension {
    pub why: Sluggish,
    /// Unix milliseconds.
    pub since_ms: u64,
    /// It is tried again from then on, Unix milliseconds; one that stalled not before it moves.
    pub until_ms: u64,
}

/// How often a device was suspended in a row, and when it came back last, Unix milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lapses {
    pub times: u32,
    pub returned_ms: u64,
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
    /// It has a session, or its loss has not been noted yet.
    #[serde(default)]
    pub up: bool,
    /// From when on, Unix milliseconds, and how many primaries moved as it could not reach them (R27).
    #[serde(default)]
    pub moved: (u64, u32),
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
            thick: self.provisioning == Provisioning::Thick,
        }
    }
}

/// A placement group: its published configuration, and what only the MDM needs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pg {
    pub config: PgConfig,
    /// Devices dropped at a primary's request, and the time before which they do not come back (R27).
    pub held: Vec<(DeviceId, u64)>,
    /// When its primary moved because clients could not reach it, in the last minutes (R27).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved_ms: Vec<u64>,
    /// Listed devices that give their copy away: they leave as soon as the others have all copies.
    #[serde(default)]
    pub retiring: Vec<DeviceId>,
    /// When its primary was changed last, for whatever reason (R27).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub led_ms: Option<u64>,
    /// The operator gives its good copies up (R26).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<super::Fence>,
    /// Listed devices that were in sync once, and until when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<Left>,
    /// A block that no copy has whole, by its vTree and byte offset: it held up the last sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<(quarry_base::VtreeId, u64)>,
    /// The device of its last sync, which had no room for all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short: Option<DeviceId>,
}

/// A device left the in-sync set of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Left {
    pub device: DeviceId,
    pub at_ms: u64,
    /// The last epoch in which it was in sync.
    pub epoch: quarry_base::Epoch,
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
    Map {
        volume: VolumeId,
        sdc: SdcId,
        generation: Generation,
    },
    Unmap {
        volume: VolumeId,
        sdc: SdcId,
        index: quarry_base::ConfigIndex,
    },
    DrainSds {
        sds: SdsId,
    },
    DrainDevice {
        device: DeviceId,
    },
    Rebalance {
        pool: PoolId,
    },
    Rebuild {
        pool: PoolId,
    },
    /// Stale copies are to count as good (R26).
    AcceptStale {
        pool: PoolId,
        pgs: Vec<quarry_base::PgId>,
    },
}

impl TaskKind {
    /// For events.
    pub fn name(&self) -> &'static str {
        match self {
            TaskKind::Map { .. } => "map",
            TaskKind::Unmap { .. } => "unmap",
            TaskKind::DrainSds { .. } => "drain_sds",
            TaskKind::DrainDevice { .. } => "drain_device",
            TaskKind::Rebalance { .. } => "rebalance",
            TaskKind::Rebuild { .. } => "rebuild",
            TaskKind::AcceptStale { .. } => "accept_stale",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    Running,
    Done,
    Failed,
    Cancelled,
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
    /// Copies to move or to restore when it began; 0: not counted.
    #[serde(default)]
    pub total: u64,
}
