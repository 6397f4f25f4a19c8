//! The cluster view as the engine uses it, and the check of a request's rights (R19, R21).

use crate::pg::request::Request;
use quarry_base::{pg_of, ConfigIndex, PgId, PoolId, VolumeId, VtreeId, EXTENT};
use quarry_wire::{Change, ClusterView, PoolInfo, Status, VolumeInfo};
use std::collections::HashMap;

/// The view, with the volumes' vTrees for quick look-up.
#[derive(Default)]
pub(crate) struct View {
    pub cluster: ClusterView,
    /// A snapshot has come.
    pub known: bool,
    vtrees: HashMap<VtreeId, VolumeId>,
}

impl View {
    pub fn index(&self) -> ConfigIndex {
        self.cluster.index
    }

    pub fn replace(&mut self, v: ClusterView) {
        self.vtrees = v.volumes.values().map(|v| (v.vtree, v.id)).collect();
        self.cluster = v;
        self.known = true;
    }

    pub fn apply(&mut self, change: Change) {
        match &change {
            Change::Volume(v) => {
                self.vtrees.insert(v.vtree, v.id);
            }
            Change::VolumeGone { vtree, .. } => {
                self.vtrees.remove(vtree);
            }
            _ => {}
        }
        self.cluster.apply(change);
    }

    /// Is space promised to this vTree?
    pub fn is_thick(&self, vtree: VtreeId) -> bool {
        self.volume(vtree).is_some_and(|v| v.thick)
    }

    fn volume(&self, vtree: VtreeId) -> Option<&VolumeInfo> {
        self.cluster.volumes.get(self.vtrees.get(&vtree)?)
    }

    /// Was this vTree of the pool deleted? Never one that has a volume.
    pub fn is_deleted(&self, pool: PoolId, vtree: VtreeId) -> bool {
        self.cluster.is_deleted(pool, vtree) && self.volume(vtree).is_none()
    }

    /// The pool's options, as far as they are known.
    pub fn pool(&self, pg: PgId) -> Option<&PoolInfo> {
        self.cluster.pools.get(&pg.pool())
    }

    /// May this request be carried out now? Checked on receipt and again when a number is given.
    pub fn check(&self, r: &Request) -> Result<(), Status> {
        let h = &r.h;
        let v = self.check_mapping(r)?;
        let pg_count = self.cluster.pools.get(&v.pool).map_or(0, |p| p.pg_count);
        let end = u64::from(h.extent.0) * u64::from(EXTENT) + u64::from(h.offset) + r.len() as u64;
        let size = v.size_bytes.next_multiple_of(quarry_base::PAGE as u64);
        if end > size || pg_of(v.pool, pg_count, h.vtree, h.extent) != h.pg {
            // The client may know of a change that has not come here yet.
            let ahead = h.config_index > self.cluster.index;
            return Err(if ahead { Status::TryAgain } else { Status::Invalid });
        }
        Ok(())
    }

    /// Instance and mapping of a request, whatever its range.
    pub fn check_mapping(&self, r: &Request) -> Result<&VolumeInfo, Status> {
        let h = &r.h;
        let newest = self.cluster.sdcs.get(&r.sdc).map(|s| s.instance);
        match newest {
            Some(i) if h.instance < i => return Err(Status::StaleInstance),
            Some(i) if h.instance == i => {}
            // A client that registered after the newest change known here.
            _ => return Err(Status::TryAgain),
        }
        let Some(v) = self.volume(h.vtree) else {
            let gone = self.is_deleted(h.pg.pool(), h.vtree);
            return Err(if gone { Status::StaleMapping } else { Status::TryAgain });
        };
        if h.generation > v.generation {
            return Err(Status::TryAgain);
        }
        let mapping = v.mappings.iter().find(|m| m.sdc == r.sdc);
        match mapping {
            Some(m) if h.generation == v.generation && !(m.read_only && r.is_write()) => {}
            Some(m) if h.generation == v.generation && m.read_only => return Err(Status::Invalid),
            _ => return Err(Status::StaleMapping),
        }
        Ok(v)
    }
}
