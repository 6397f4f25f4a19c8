//! Commands of the log, and what applying one answers.

use super::objects::{Ack, Level, Pacing, Provisioning, Reads, Sluggish, TaskKind};
use super::stale::StaleChoice;
use quarry_base::{
    ConfigIndex, DeviceId, DomainId, Epoch, Generation, Instance, NodeId, PgId, PoolId, SdcId,
    SdsId, Seq, StartNo, Version, VolumeId,
};
use quarry_control::{Capability, Proposal, Role};
use quarry_wire::Endpoint;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Servers known to have answered since what the command is about (R10).
pub type Answered = BTreeSet<SdsId>;

/// An entry of the log. All that is not a function of the state is in it: time, who asked, who answered.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Command {
    /// Unix time, milliseconds.
    pub at_ms: u64,
    pub who: String,
    /// `Idempotency-Key` of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    pub op: Op,
}

/// A device in a registration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RegDevice {
    pub uuid: String,
    pub path: PathBuf,
    pub capacity_bytes: u64,
    pub shard: u16,
    pub failed: Option<String>,
    /// It could not be opened: nothing is known of what it holds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unread: bool,
}

/// A daemon registers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Register {
    pub role: Role,
    pub name: String,
    pub addresses: Vec<String>,
    pub capabilities: Vec<Capability>,
    pub host: String,
    pub boot_id: String,
    pub release: String,
    pub metrics: Option<String>,
    pub resume: Option<u64>,
    pub endpoints: Vec<Endpoint>,
    pub devices: Vec<RegDevice>,
    pub answered: Answered,
}

/// Where a present in-sync member of a group stands (R11).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Position {
    pub device: DeviceId,
    pub start: StartNo,
    pub last: Version,
    /// Commit point it knows.
    pub commit: Seq,
    /// False: it has no record of the group at all.
    pub known: bool,
}

/// A group to choose a primary for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ElectPg {
    pub pg: PgId,
    pub epoch: Epoch,
    pub present: Vec<Position>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// First command of a cluster.
    Init {
        cluster: String,
    },
    /// The MDM's own node.
    RegisterMdm {
        name: String,
        addresses: Vec<String>,
        release: String,
        host: String,
        #[serde(default)]
        capabilities: Vec<Capability>,
    },
    Register(Box<Register>),
    SdsFailed {
        sds: SdsId,
        start: StartNo,
        reason: String,
        answered: Answered,
    },
    /// Removes members that are down from groups where a live one has answered meanwhile.
    Sweep {
        answered: Answered,
    },
    Elect {
        pgs: Vec<ElectPg>,
    },
    Propose {
        sds: SdsId,
        start: StartNo,
        proposal: Proposal,
        answered: Answered,
    },
    DeviceFailed {
        device: DeviceId,
        start: StartNo,
        reason: String,
        answered: Answered,
    },
    /// A device does nothing, or is much slower than the others of its pool (R27).
    SuspendDevice {
        device: DeviceId,
        start: StartNo,
        why: Sluggish,
        answered: Answered,
    },
    /// A suspended device is tried again.
    ResumeDevice {
        device: DeviceId,
    },
    /// A client cannot reach the primary of a group, but another member (R27).
    Unreachable {
        sdc: SdcId,
        pg: PgId,
        device: DeviceId,
    },
    /// Primaries are spread evenly again.
    BalancePrimaries,
    /// The operator decides that stale copies count where the good ones are gone (R26).
    AcceptStale {
        pool: PoolId,
        choices: Vec<StaleChoice>,
        /// The servers with the good copies are switched off: nobody has to confirm anything.
        server_off: bool,
    },
    /// No client can reach an old primary of the task's groups any more.
    CompleteStale {
        task: u64,
    },
    /// Forward rebuild of what has been lost longer than the grace time (R16).
    Rebuild,
    AddDomain {
        name: String,
    },
    DeleteDomain {
        id: DomainId,
    },
    AddPool(Box<AddPool>),
    DeletePool {
        id: PoolId,
    },
    AddSds {
        name: String,
        domain: Option<DomainId>,
        fault_set: Option<u32>,
    },
    FenceSds {
        id: SdsId,
        force: bool,
        answered: Answered,
    },
    RecoverSds {
        id: SdsId,
    },
    AddSdc {
        name: String,
    },
    CreateVolume {
        name: String,
        pool: PoolId,
        size_bytes: u64,
        provisioning: Provisioning,
        /// Bytes used on the pool's devices, as they report.
        #[serde(default)]
        used_bytes: u64,
    },
    ExtendVolume {
        id: VolumeId,
        size_bytes: u64,
        #[serde(default)]
        used_bytes: u64,
    },
    DeleteVolume {
        id: VolumeId,
    },
    Map {
        volume: VolumeId,
        sdc: SdcId,
        read_only: bool,
        device: bool,
        /// A request of this mapping that waited for so long fails (R25); 0: none does. `None`: as it is.
        #[serde(default)]
        io_timeout_ms: Option<u64>,
        /// The kernel device that was asked for before could not be attached and is no longer wanted.
        #[serde(default)]
        no_device: bool,
    },
    Unmap {
        volume: VolumeId,
        sdc: SdcId,
    },
    RebuildNow {
        pool: PoolId,
    },
    RebuildCancel {
        pool: PoolId,
    },
    AddTask {
        kind: TaskKind,
    },
    EndTask {
        id: u64,
        ok: bool,
        detail: String,
    },
    CancelTask {
        id: u64,
    },
    DeleteSds {
        id: SdsId,
    },
    DeleteSdc {
        id: SdcId,
    },
    DrainSds {
        id: SdsId,
    },
    /// An unassigned device joins a pool.
    AddDevice {
        id: DeviceId,
        pool: PoolId,
    },
    DrainDevice {
        id: DeviceId,
    },
    DeleteDevice {
        id: DeviceId,
    },
    AddFaultSet {
        name: String,
        domain: DomainId,
    },
    DeleteFaultSet {
        id: u32,
    },
    AssignFaultSet {
        sds: SdsId,
        fault_set: Option<u32>,
    },
    SetPolicy {
        pool: PoolId,
        policy: Box<Policy>,
    },
    /// The rate that follows from a pool's policy and its load now.
    SetRate {
        pool: PoolId,
        bytes_per_second: u64,
    },
    /// Moves of copies that are due (drains, rebalancing).
    Move,
    Rebalance {
        pool: PoolId,
    },
    /// A pool has become fuller or emptier.
    NoteLevel {
        pool: PoolId,
        level: Level,
        reason: String,
    },
    /// A server found damaged blocks: so many since this was last noted.
    NoteDamage {
        sds: SdsId,
        found: u64,
        repaired: u64,
        lost: u64,
    },
    /// Passes of the scrub over a device have ended: what they read and found since this was last noted.
    NoteScrub {
        sds: SdsId,
        device: DeviceId,
        passes: u64,
        bytes: u64,
        bad_pages: u64,
        /// Damaged groups of the block table.
        bad_groups: u64,
        read_errors: u64,
    },
    /// The health of a pool has changed.
    NoteHealth {
        pool: PoolId,
        health: String,
        reason: String,
    },
    SdcLost {
        id: SdcId,
        instance: Instance,
    },
    SetCapabilities {
        node: NodeId,
        capabilities: Vec<Capability>,
        /// Moves copies away first where a capability is in use.
        drain: bool,
    },
    KeepEvents {
        keep: usize,
    },
    /// Keeps what a request with an idempotency key was answered.
    Remember {
        key: String,
        body: String,
    },
}

impl Op {
    /// Name for metrics and events.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Init { .. } => "init",
            Op::RegisterMdm { .. } => "register_mdm",
            Op::Register(_) => "register",
            Op::SdsFailed { .. } => "sds_failed",
            Op::Sweep { .. } => "sweep",
            Op::Elect { .. } => "elect",
            Op::Propose { .. } => "propose",
            Op::DeviceFailed { .. } => "device_failed",
            Op::SuspendDevice { .. } => "device_suspend",
            Op::ResumeDevice { .. } => "device_resume",
            Op::Unreachable { .. } => "pg_move",
            Op::BalancePrimaries => "balance_primaries",
            Op::AcceptStale { .. } => "accept_stale",
            Op::CompleteStale { .. } => "complete_stale",
            Op::Rebuild => "rebuild",
            Op::AddDomain { .. } => "pd_create",
            Op::DeleteDomain { .. } => "pd_delete",
            Op::AddPool(_) => "pool_create",
            Op::DeletePool { .. } => "pool_delete",
            Op::AddSds { .. } => "sds_add",
            Op::FenceSds { .. } => "sds_fail",
            Op::RecoverSds { .. } => "sds_recover",
            Op::AddSdc { .. } => "sdc_add",
            Op::CreateVolume { .. } => "vol_create",
            Op::ExtendVolume { .. } => "vol_extend",
            Op::DeleteVolume { .. } => "vol_delete",
            Op::Map { .. } => "vol_map",
            Op::Unmap { .. } => "vol_unmap",
            Op::RebuildNow { .. } => "rebuild_start",
            Op::RebuildCancel { .. } => "rebuild_cancel",
            Op::AddTask { .. } => "task",
            Op::EndTask { .. } => "task_end",
            Op::CancelTask { .. } => "task_cancel",
            Op::DeleteSds { .. } => "sds_delete",
            Op::DeleteSdc { .. } => "sdc_delete",
            Op::DrainSds { .. } => "sds_drain",
            Op::AddDevice { .. } => "device_add",
            Op::DrainDevice { .. } => "device_drain",
            Op::DeleteDevice { .. } => "device_delete",
            Op::AddFaultSet { .. } => "fault_set_create",
            Op::DeleteFaultSet { .. } => "fault_set_delete",
            Op::AssignFaultSet { .. } => "fault_set_assign",
            Op::SetPolicy { .. } => "policy_set",
            Op::SetRate { .. } => "rate_set",
            Op::Move => "move",
            Op::Rebalance { .. } => "rebalance",
            Op::NoteLevel { .. } => "note_level",
            Op::NoteDamage { .. } => "note_damage",
            Op::NoteScrub { .. } => "note_scrub",
            Op::NoteHealth { .. } => "note_health",
            Op::SdcLost { .. } => "sdc_lost",
            Op::SetCapabilities { .. } => "capabilities_set",
            Op::KeepEvents { .. } => "events_keep",
            Op::Remember { .. } => "remember",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddPool {
    pub name: String,
    pub domain: DomainId,
    pub copies: u8,
    pub min_copies: Option<u8>,
    pub ack: Ack,
    #[serde(default)]
    pub reads: Reads,
    pub pg_count: Option<u32>,
    /// `None`: every unassigned device of the domain.
    pub devices: Option<Vec<DeviceId>>,
    pub over_commit: Option<u32>,
    pub reserve_percent: Option<u32>,
    pub rebuild_grace_seconds: Option<u64>,
    pub rebuild_bytes_per_second: Option<u64>,
}

/// Changes of a pool's settings; what is `None` stays.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    pub pacing: Option<Pacing>,
    pub rebuild_bytes_per_second: Option<u64>,
    pub rebuild_grace_seconds: Option<u64>,
    pub over_commit: Option<u32>,
    pub reserve_percent: Option<u32>,
    pub alert_high_percent: Option<u32>,
    pub alert_critical_percent: Option<u32>,
    pub auto_rebalance: Option<bool>,
    pub moves_at_once: Option<u32>,
    /// Bytes a second and device; 0: no scrub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrub_bytes_per_second: Option<u64>,
    /// True: each server scrubs as it is set itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrub_by_server: Option<bool>,
}

/// What a command that was done answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done,
    Domain(DomainId),
    Pool(PoolId),
    Sds(SdsId),
    Sdc(SdcId),
    Volume(VolumeId),
    FaultSet(u32),
    Task(u64),
    Registered {
        node: NodeId,
        sds: Option<SdsId>,
        sdc: Option<SdcId>,
        start: u64,
        devices: Vec<(String, DeviceId)>,
        /// The process keeps the start it had.
        kept: bool,
    },
    Mapped {
        volume: VolumeId,
        generation: Generation,
        index: ConfigIndex,
        new: bool,
    },
    Unmapped {
        volume: VolumeId,
        index: ConfigIndex,
    },
}

/// Why a command was not done. Nothing has changed then.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Reject {
    /// HTTP status that fits.
    pub status: u16,
    pub code: String,
    pub message: String,
    pub hint: String,
}

impl Reject {
    pub fn new(
        status: u16,
        code: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Reject {
        Reject { status, code: code.into(), message: message.into(), hint: hint.into() }
    }
    pub fn not_found(kind: &str, id: impl std::fmt::Display) -> Reject {
        Reject::new(
            404,
            "not_found",
            format!("there is no {} {id}", in_words(kind)),
            match kind {
                "pg" => "GET /pg/list?pool_id=N lists those of a pool".to_string(),
                "node" => "list what there is: GET /cluster/nodes".to_string(),
                _ => format!("list what there is: GET /{kind}/list"),
            },
        )
    }
    pub fn conflict(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Reject {
        Reject::new(409, code, message, hint)
    }
    pub fn invalid(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Reject {
        Reject::new(422, code, message, hint)
    }
    /// A proposal or election that no longer fits the configuration (R1).
    pub fn stale(message: impl Into<String>) -> Reject {
        Reject::new(409, "stale", message, "")
    }
}

/// A kind of object, named as its routes are, in words.
fn in_words(kind: &str) -> &str {
    match kind {
        "vol" => "volume",
        "pd" => "protection domain",
        "fault_set" => "fault set",
        "tasks" => "task",
        "pg" => "placement group",
        other => other,
    }
}
