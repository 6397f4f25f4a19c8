//! The cluster as the MDM pushes it: a snapshot, then every change in order of its log index (R3).

use crate::deleted::Deleted;
use quarry_base::{
    ConfigIndex, DeviceId, Epoch, Extent, Generation, Instance, PgId, PoolId, SdcId, SdsId,
    StartNo, VolumeId, VtreeId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where a shard of a daemon listens.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Endpoint {
    /// Unix socket, good on the same host only.
    pub unix: Option<PathBuf>,
    pub tcp: Option<SocketAddr>,
}

/// A replica of a placement group: a device, and the start of the SDS that may play it (R1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub struct Member {
    pub device: DeviceId,
    pub sds: SdsId,
    /// The process start this role belongs to. [`StartNo::ZERO`]: known, but not running now.
    pub start: StartNo,
}

/// Configuration of a placement group (R1). Changed only through the MDM's log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PgConfig {
    pub pg: PgId,
    pub epoch: Epoch,
    /// MDM log index that made it.
    pub index: ConfigIndex,
    /// Device of the primary; one of `in_sync`. `None`: the group is unavailable until one is chosen.
    pub primary: Option<DeviceId>,
    /// Members that have every acknowledged write.
    pub in_sync: Vec<Member>,
    /// Members being brought up to date.
    pub syncing: Vec<Member>,
    /// Devices that are meant to hold the group, in order of placement.
    pub listed: Vec<DeviceId>,
    /// Copies asked for.
    pub copies: u8,
    /// Fewest in-sync members that take new writes (R25).
    pub min_copies: u8,
    /// Where the present line of records begins, after the operator gave an earlier one up (R26); zero: never.
    /// A copy that is not in sync and whose newest record is of an epoch below belongs to a line that was given up:
    /// it begins from empty. Nor does an answer of an epoch below count any more.
    #[serde(default)]
    pub line: Epoch,
    /// `ack = cached`: the newest epoch that began after the hosts of all in-sync copies had booted; zero: none. What was
    /// acknowledged in an epoch below, and not flushed by then, may be gone (R29): no flush from this epoch on may
    /// answer well for it. In text forms only: see `quarry-replica` for what servers keep and tell each other.
    #[serde(default, skip_serializing_if = "is_never", with = "text_only")]
    pub fell: Epoch,
}

fn is_never(e: &Epoch) -> bool {
    *e == Epoch::ZERO
}

/// Binary forms of a configuration are older than this field and have no room for it.
mod text_only {
    use super::{Deserialize, Epoch, Serialize};
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(e: &Epoch, s: S) -> Result<S::Ok, S::Error> {
        match s.is_human_readable() {
            true => e.serialize(s),
            false => s.serialize_unit(),
        }
    }
    pub fn deserialize<'a, D: Deserializer<'a>>(d: D) -> Result<Epoch, D::Error> {
        match d.is_human_readable() {
            true => Epoch::deserialize(d),
            false => Ok(Epoch::ZERO),
        }
    }
}

impl PgConfig {
    /// The primary's member entry.
    pub fn primary_member(&self) -> Option<&Member> {
        let d = self.primary?;
        self.in_sync.iter().find(|m| m.device == d)
    }
    /// In-sync and syncing members.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.in_sync.iter().chain(&self.syncing)
    }
    /// The entry of `device`, whichever role it has.
    pub fn member(&self, device: DeviceId) -> Option<&Member> {
        self.members().find(|m| m.device == device)
    }
    /// True if `device` is in the in-sync set.
    pub fn is_in_sync(&self, device: DeviceId) -> bool {
        self.in_sync.iter().any(|m| m.device == device)
    }
    /// The configuration as the meta section of a frame (StaleEpoch replies, ConfigPush, StreamOpen): JSON.
    pub fn to_meta(&self) -> bytes::Bytes {
        // Plain structs of integers always serialise; an empty section is read as "not known".
        serde_json::to_vec(self).map_or_else(|_| bytes::Bytes::new(), bytes::Bytes::from)
    }
    /// Reads [`PgConfig::to_meta`]; `None` if it is not one.
    pub fn from_meta(meta: &[u8]) -> Option<PgConfig> {
        serde_json::from_slice(meta).ok()
    }
    /// A fall that was heard of is not forgotten, though whoever tells the next configuration is of a release that does
    /// not know of it.
    pub fn learn_fell(&mut self, fell: Epoch) {
        self.fell = self.fell.max(fell);
    }
    /// The newest epoch before which acknowledged writes that were not flushed may be gone; zero: there is none.
    pub fn lost_before(&self) -> Epoch {
        self.fell.max(self.line)
    }
    /// True if every listed device is in sync and there are as many as asked for.
    pub fn is_complete(&self) -> bool {
        self.in_sync.len() >= self.copies as usize
            && self.listed.iter().all(|d| self.is_in_sync(*d))
    }
}

/// A data server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SdsInfo {
    pub id: SdsId,
    pub name: String,
    /// Newest start; [`StartNo::ZERO`] if it never registered.
    pub start: StartNo,
    /// False once the MDM has logged its failure.
    pub up: bool,
    /// Same text on two daemons: same host, Unix sockets reach.
    pub host: String,
    /// One a shard.
    pub endpoints: Vec<Endpoint>,
}

/// A device of a data server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceInfo {
    pub id: DeviceId,
    pub sds: SdsId,
    pub pool: PoolId,
    /// Index in the server's endpoints.
    pub shard: u16,
}

/// A data client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SdcInfo {
    pub id: SdcId,
    pub name: String,
    /// Newest instance; requests of an older one are refused everywhere (R19).
    pub instance: Instance,
    pub host: String,
}

/// A storage pool as data paths need it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PoolInfo {
    pub id: PoolId,
    pub name: String,
    pub pg_count: u32,
    /// False: `ack = durable`. True: `ack = cached`.
    pub cached: bool,
    /// `reads = confirm`: a primary asks the members before it serves, and trusts no clock (R18).
    #[serde(default)]
    pub confirm: bool,
    /// Bytes a second of sync traffic a primary may send (0: no limit).
    #[serde(default)]
    pub rebuild_bytes_per_second: u64,
    /// Bytes a second that the scrub of each of its devices reads (0: none); `None`: as each server is set itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub_bytes_per_second: Option<u64>,
}

/// A mapping of a volume to a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapEntry {
    pub sdc: SdcId,
    pub read_only: bool,
    /// A request that has waited for so long fails (R25); 0: none does.
    #[serde(default)]
    pub io_timeout_ms: u64,
    /// The client should attach a kernel device.
    pub device: bool,
    /// The volume's generation when the client got it. Another one than before: it was taken away in between.
    #[serde(default)]
    pub since: Generation,
}

/// A volume as data paths need it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeInfo {
    pub id: VolumeId,
    pub name: String,
    pub vtree: VtreeId,
    pub pool: PoolId,
    pub size_bytes: u64,
    /// Raised whenever a mapping is added or removed (R21).
    pub generation: Generation,
    pub mappings: Vec<MapEntry>,
    /// Its unwritten space is kept free of other volumes' data.
    #[serde(default)]
    pub thick: bool,
}

/// One change of the view.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Pg(PgConfig),
    PgGone(PgId),
    Sds(SdsInfo),
    SdsGone(SdsId),
    Device(DeviceInfo),
    DeviceGone(DeviceId),
    Sdc(SdcInfo),
    SdcGone(SdcId),
    Pool(PoolInfo),
    PoolGone(PoolId),
    Volume(VolumeInfo),
    /// Deleted: primaries log a DropVtree for it.
    VolumeGone {
        id: VolumeId,
        vtree: VtreeId,
        pool: PoolId,
    },
}

/// Everything a data path knows of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClusterView {
    /// Log index of the newest change in it.
    pub index: ConfigIndex,
    pub pgs: BTreeMap<PgId, PgConfig>,
    pub sds: BTreeMap<SdsId, SdsInfo>,
    pub devices: BTreeMap<DeviceId, DeviceInfo>,
    pub sdcs: BTreeMap<SdcId, SdcInfo>,
    pub pools: BTreeMap<PoolId, PoolInfo>,
    pub volumes: BTreeMap<VolumeId, VolumeInfo>,
    /// Deleted vTrees whose groups may still hold blocks, with their pool, as an MDM of an earlier release tells them.
    #[serde(default)]
    pub deleted: BTreeMap<VtreeId, PoolId>,
    /// The same, in runs.
    #[serde(default)]
    pub deleted_runs: Deleted,
}

impl ClusterView {
    /// Applies one change. A configuration never goes back to an older epoch (R2).
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Pg(c) => match self.pgs.get_mut(&c.pg) {
                Some(have) if have.epoch > c.epoch => {}
                Some(have) => {
                    let fell = have.fell;
                    *have = c;
                    have.learn_fell(fell);
                }
                None => {
                    self.pgs.insert(c.pg, c);
                }
            },
            Change::PgGone(id) => drop(self.pgs.remove(&id)),
            Change::Sds(s) => drop(self.sds.insert(s.id, s)),
            Change::SdsGone(id) => drop(self.sds.remove(&id)),
            Change::Device(d) => drop(self.devices.insert(d.id, d)),
            Change::DeviceGone(id) => drop(self.devices.remove(&id)),
            Change::Sdc(s) => drop(self.sdcs.insert(s.id, s)),
            Change::SdcGone(id) => drop(self.sdcs.remove(&id)),
            Change::Pool(p) => drop(self.pools.insert(p.id, p)),
            Change::PoolGone(id) => {
                self.pools.remove(&id);
                self.deleted.retain(|_, pool| *pool != id);
                self.deleted_runs.forget_pool(id);
            }
            Change::Volume(v) => drop(self.volumes.insert(v.id, v)),
            Change::VolumeGone { id, vtree, pool } => {
                self.volumes.remove(&id);
                let left = self.volumes.values().filter(|v| v.pool == pool).map(|v| v.vtree);
                self.deleted_runs.insert(pool, vtree, left);
            }
        }
    }

    /// Was this vTree of the pool deleted?
    pub fn is_deleted(&self, pool: PoolId, vtree: VtreeId) -> bool {
        self.deleted_runs.contains(pool, vtree) || self.deleted.get(&vtree) == Some(&pool)
    }

    /// The pool's deleted vTrees in runs of first and last, without those in `without`, which are in order.
    pub fn deleted_without(&self, pool: PoolId, without: &[VtreeId]) -> Vec<(VtreeId, VtreeId)> {
        let mut out = self.deleted_runs.runs_without(pool, without);
        let single = self.deleted.iter().filter(|(v, p)| **p == pool && !without.contains(v));
        out.extend(single.map(|(v, _)| (*v, *v)));
        out
    }

    /// The group that holds an extent of a volume.
    pub fn pg_of(&self, volume: &VolumeInfo, extent: Extent) -> Option<PgId> {
        let pool = self.pools.get(&volume.pool)?;
        Some(quarry_base::pg_of(pool.id, pool.pg_count, volume.vtree, extent))
    }

    /// Where to reach a member's device, and the host it is on.
    pub fn endpoint(&self, device: DeviceId) -> Option<(&SdsInfo, &Endpoint)> {
        let d = self.devices.get(&device)?;
        let s = self.sds.get(&d.sds)?;
        Some((s, s.endpoints.get(d.shard as usize)?))
    }
}
