//! The MDM's state machine: a pure function of the log.
//!
//! [`State::apply`] takes one command after the other in order of its log index and changes the state, or
//! refuses and changes nothing. It reads no clock, no random source and nothing outside the state and the
//! command, so that every member that applies the same log is the same. Ids count from 1 per kind and are
//! never used again; start numbers and instances come from one counter, so that any two differ.

mod apply;
mod capabilities;
mod capacity;
mod command;
mod devices;
mod faultsets;
mod fence;
mod moves;
mod nodes;
mod notes;
mod objects;
mod pg;
mod policy;
mod pools;
mod primaries;
mod reach;
mod rebuild;
mod stale;
mod suspend;
mod tasks;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod tests_cached;
#[cfg(test)]
mod tests_disks;
#[cfg(test)]
mod tests_ops;
#[cfg(test)]
mod tests_prop;
#[cfg(test)]
mod tests_stale;
#[cfg(test)]
mod tests_suspend;
mod volumes;

pub use capacity::Capacity;
pub use command::{
    AddPool, Answer, Answered, Command, ElectPg, Op, Policy, Position, RegDevice, Register, Reject,
};
pub use objects::*;
pub use policy::rate_of;
pub use stale::{Fence, StaleChoice};

use quarry_base::{
    ConfigIndex, DeviceId, DomainId, NodeId, PgId, PoolId, SdcId, SdsId, VolumeId, VtreeId,
};
use quarry_wire::{Change, ClusterView, Deleted};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Events kept unless the operator says otherwise, and the most.
pub const EVENTS: usize = 4096;
pub const MAX_EVENTS: usize = 65_536;
/// Answers of requests with an idempotency key kept.
pub const REMEMBERED: usize = 1024;
/// Finished tasks kept.
pub const TASKS: usize = 256;
/// Largest volume, bytes: the extent number has 32 bits; half of that leaves room.
pub const MAX_VOLUME: u64 = 1 << 51;
/// Most objects of a kind (nodes, devices, pools, volumes).
pub const MAX_OBJECTS: usize = 65_536;

/// Last number given per kind.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    pub node: u32,
    pub domain: u32,
    pub pool: u32,
    pub sds: u32,
    pub device: u32,
    pub sdc: u32,
    pub volume: u32,
    pub vtree: u64,
    /// Starts of SDSs and instances of SDCs.
    pub start: u64,
    pub event: u64,
    pub task: u64,
    #[serde(default)]
    pub fault_set: u32,
}

/// An answer kept for a repeated request.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Remembered {
    pub key: String,
    /// CRC of the operation: the same key with another request is a mistake.
    pub op_crc: u32,
    pub answer: Answer,
    /// The body that was answered, once it is known.
    #[serde(default)]
    pub body: Option<String>,
}

/// The whole state of the MDM.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Identity of the cluster; empty before [`Op::Init`].
    pub cluster: String,
    /// Index of the last command applied.
    pub index: ConfigIndex,
    pub next: Counters,
    pub nodes: BTreeMap<NodeId, Node>,
    pub domains: BTreeMap<DomainId, Domain>,
    pub pools: BTreeMap<PoolId, Pool>,
    pub sds: BTreeMap<SdsId, Sds>,
    pub devices: BTreeMap<DeviceId, Device>,
    pub sdcs: BTreeMap<SdcId, Sdc>,
    pub volumes: BTreeMap<VolumeId, Volume>,
    pub pgs: BTreeMap<PgId, Pg>,
    /// Deleted vTrees as an earlier release kept them: one by one. Empty once the state is loaded, see
    /// [`State::gather_deleted`]; still stored, since that release does not start without it.
    pub deleted: BTreeMap<VtreeId, PoolId>,
    /// Deleted vTrees of which a server that is away may still have blocks.
    #[serde(default)]
    pub deleted_runs: Deleted,
    pub events: VecDeque<Event>,
    pub tasks: BTreeMap<u64, Task>,
    pub remembered: VecDeque<Remembered>,
    #[serde(default)]
    pub fault_sets: BTreeMap<u32, FaultSet>,
    /// Names of servers and clients that were removed: they may not register until they are added again.
    #[serde(default)]
    pub removed_sds: BTreeSet<String>,
    #[serde(default)]
    pub removed_sdc: BTreeSet<String>,
    /// Events kept; `None`: [`EVENTS`].
    #[serde(default)]
    pub events_kept: Option<usize>,
}

/// What one command did.
#[derive(Clone, PartialEq, Debug)]
pub struct Applied {
    pub answer: Answer,
    /// To be pushed to every session, in this order.
    pub changes: Vec<Change>,
    pub events: Vec<Event>,
    /// Body kept for a repeated request.
    pub body: Option<String>,
}

/// Collects what a command changes while it is applied.
pub(crate) struct Ctx {
    pub index: ConfigIndex,
    pub at_ms: u64,
    pub who: String,
    pub changes: Vec<Change>,
    pub events: Vec<Event>,
}

impl Ctx {
    pub fn change(&mut self, c: Change) {
        self.changes.push(c);
    }
    pub fn event(&mut self, what: &str, object: String, reason: impl Into<String>) {
        self.outcome(what, object, "ok", reason);
    }
    /// An event that did not end well: `failed`, `refused`, `cancelled`.
    pub fn outcome(
        &mut self,
        what: &str,
        object: String,
        outcome: &str,
        reason: impl Into<String>,
    ) {
        self.events.push(Event {
            id: 0,
            at_ms: self.at_ms,
            who: self.who.clone(),
            what: what.into(),
            object,
            outcome: outcome.into(),
            reason: reason.into(),
        });
    }
}

impl State {
    /// What a new session gets (R3).
    pub fn view(&self) -> ClusterView {
        ClusterView {
            index: self.index,
            pgs: self.pgs.iter().map(|(k, p)| (*k, p.config.clone())).collect(),
            sds: self.sds.iter().map(|(k, s)| (*k, s.info())).collect(),
            devices: self.devices.iter().filter_map(|(k, d)| Some((*k, d.info()?))).collect(),
            sdcs: self.sdcs.iter().map(|(k, s)| (*k, s.info())).collect(),
            pools: self.pools.iter().map(|(k, p)| (*k, p.info())).collect(),
            volumes: self.volumes.iter().map(|(k, v)| (*k, v.info())).collect(),
            deleted: self.deleted.clone(),
            deleted_runs: self.deleted_runs.clone(),
        }
    }

    /// Groups of a pool, in order.
    pub fn pool_pgs(&self, pool: PoolId) -> impl Iterator<Item = &Pg> {
        let range = PgId::new(pool, 0)..=PgId::new(pool, u32::MAX);
        self.pgs.range(range).map(|(_, p)| p)
    }

    pub fn pool_devices(&self, pool: PoolId) -> impl Iterator<Item = &Device> {
        self.devices.values().filter(move |d| d.pool == Some(pool))
    }

    /// The device's server is up and the device takes writes.
    pub fn healthy(&self, d: &Device) -> bool {
        d.failed.is_none() && self.sds.get(&d.sds).is_some_and(|s| s.up && !s.fenced)
    }
}

/// True for names that objects may have: `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
pub fn valid_name(name: &str) -> bool {
    let mut c = name.chars();
    c.next().is_some_and(|f| f.is_ascii_alphanumeric())
        && name.len() <= 63
        && c.all(|x| x.is_ascii_alphanumeric() || "._-".contains(x))
}
