//! Volumes and mappings.

use super::nodes::check_name;
use super::{Answer, Ctx, Provisioning, Reject, State, Volume, MAX_OBJECTS, MAX_VOLUME};
use quarry_base::units::show_size;
use quarry_base::{Generation, PoolId, SdcId, VolumeId, VtreeId, EXTENT};
use quarry_wire::{Change, MapEntry};
use std::collections::BTreeSet;

/// Most clients that map one volume.
pub const MAX_MAPPINGS: usize = 64;

impl State {
    pub(crate) fn create_volume(
        &mut self,
        ctx: &mut Ctx,
        name: &str,
        pool: PoolId,
        size_bytes: u64,
        provisioning: Provisioning,
        used_bytes: u64,
    ) -> Result<Answer, Reject> {
        check_name(name)?;
        check_size(size_bytes)?;
        let p = self.pools.get(&pool).ok_or_else(|| Reject::not_found("pool", pool))?;
        if self.volumes.values().any(|v| v.name == name) {
            return Err(Reject::conflict(
                "name_taken",
                format!("volume {name} exists"),
                "choose another name",
            ));
        }
        if self.volumes.len() >= MAX_OBJECTS {
            return Err(Reject::invalid("limit", "too many volumes", ""));
        }
        if !self.pool_devices(pool).any(|d| self.healthy(d)) || self.pool_pgs(pool).next().is_none()
        {
            return Err(Reject::invalid(
                "no_sds_capable_node",
                format!("pool {} has no devices on enough healthy SDS nodes for {} copies", p.name, p.copies),
                "start SDS nodes with devices in this protection domain; GET /sds/list shows who is there",
            ));
        }
        self.check_room(pool, size_bytes, provisioning, used_bytes)?;
        self.next.volume += 1;
        self.next.vtree += 1;
        let id = VolumeId(self.next.volume);
        let v = Volume {
            id,
            name: name.into(),
            vtree: VtreeId(self.next.vtree),
            pool,
            size_bytes,
            provisioning,
            generation: Generation(1),
            mappings: Vec::new(),
            created_ms: ctx.at_ms,
        };
        ctx.change(Change::Volume(v.info()));
        self.volumes.insert(id, v);
        ctx.event("vol_create", format!("volume {name}"), format!("{size_bytes} bytes"));
        Ok(Answer::Volume(id))
    }

    pub(crate) fn extend_volume(
        &mut self,
        ctx: &mut Ctx,
        id: VolumeId,
        size_bytes: u64,
        used_bytes: u64,
    ) -> Result<Answer, Reject> {
        let v = self.volume(id)?;
        if size_bytes < v.size_bytes {
            return Err(Reject::invalid(
                "shrink",
                format!("volume {} has {}: it can only grow", v.name, show_size(v.size_bytes)),
                "give a size above the present one",
            ));
        }
        check_size(size_bytes)?;
        self.check_room(v.pool, size_bytes - v.size_bytes, v.provisioning, used_bytes)?;
        let v = self.volume_mut(id)?;
        if v.size_bytes != size_bytes {
            v.size_bytes = size_bytes;
            ctx.change(Change::Volume(v.info()));
            ctx.event("vol_extend", format!("volume {}", v.name), format!("{size_bytes} bytes"));
        }
        Ok(Answer::Volume(id))
    }

    pub(crate) fn delete_volume(&mut self, ctx: &mut Ctx, id: VolumeId) -> Result<Answer, Reject> {
        let v = self.volume(id)?.clone();
        if !v.mappings.is_empty() {
            let sdcs = v.mappings.iter().filter_map(|m| self.sdcs.get(&m.sdc));
            let names: Vec<&str> = sdcs.map(|s| s.name.as_str()).collect();
            return Err(Reject::conflict(
                "mapped",
                format!("volume {} is mapped to {}", v.name, names.join(", ")),
                "unmap it first",
            ));
        }
        self.volumes.remove(&id);
        self.note_deleted(v.pool, v.vtree);
        ctx.change(Change::VolumeGone { id, vtree: v.vtree, pool: v.pool });
        ctx.event("vol_delete", format!("volume {}", v.name), "");
        Ok(Answer::Done)
    }

    fn note_deleted(&mut self, pool: PoolId, vtree: VtreeId) {
        let left = self.volumes.values().filter(|v| v.pool == pool).map(|v| v.vtree);
        self.deleted_runs.insert(pool, vtree, left);
    }

    /// Makes runs of what an earlier release kept one by one; for a state that has been loaded.
    pub(crate) fn gather_deleted(&mut self) {
        let live: BTreeSet<(PoolId, VtreeId)> =
            self.volumes.values().map(|v| (v.pool, v.vtree)).collect();
        for (vtree, pool) in std::mem::take(&mut self.deleted) {
            let of = |at: &&(PoolId, VtreeId)| at.0 == pool;
            let before = live.range(..(pool, vtree)).next_back().filter(of);
            let behind = live.range((pool, vtree)..).next().filter(of);
            let next = before.into_iter().chain(behind).map(|at| at.1);
            self.deleted_runs.insert(pool, vtree, next);
        }
    }

    pub(crate) fn map(
        &mut self,
        ctx: &mut Ctx,
        volume: VolumeId,
        sdc: SdcId,
        (read_only, device, no_device): (bool, bool, bool),
        io_timeout_ms: Option<u64>,
    ) -> Result<Answer, Reject> {
        let x = self.sdcs.get(&sdc).ok_or_else(|| Reject::not_found("sdc", sdc))?;
        let name = x.name.clone();
        let node = x.node.and_then(|n| self.nodes.get(&n));
        if node.is_some_and(|n| !n.can(quarry_control::Capability::Sdc)) {
            return Err(Reject::invalid(
                "node_lacks_sdc",
                format!("the node of SDC {name} has no SDC capability"),
                "map to a node with an SDC: GET /sdc/list",
            ));
        }
        let v = self.volume_mut(volume)?;
        let index = ctx.index;
        if let Some(m) = v.mappings.iter_mut().find(|m| m.sdc == sdc) {
            if m.read_only != read_only {
                return Err(Reject::conflict(
                    "mapped_otherwise",
                    format!(
                        "volume {} is mapped to {name} {}",
                        v.name,
                        if m.read_only { "read-only" } else { "read-write" }
                    ),
                    "unmap it first",
                ));
            }
            let timeout = io_timeout_ms.unwrap_or(m.io_timeout_ms);
            if timeout != m.io_timeout_ms {
                m.io_timeout_ms = timeout;
                ctx.change(Change::Volume(v.info()));
                ctx.event(
                    "vol_io_timeout",
                    format!("volume {} sdc {name}", v.name),
                    format!("requests fail after {timeout} ms (0: never)"),
                );
            }
            let Some(m) = v.mappings.iter_mut().find(|m| m.sdc == sdc) else {
                return Err(Reject::not_found("sdc", sdc));
            };
            let wanted = device || (m.device && !no_device);
            if m.device == wanted {
                return Ok(Answer::Mapped { volume, generation: v.generation, index, new: false });
            }
            m.device = wanted;
        } else {
            if v.mappings.len() >= MAX_MAPPINGS {
                return Err(Reject::invalid(
                    "limit",
                    format!("volume {} is mapped {MAX_MAPPINGS} times", v.name),
                    "unmap it somewhere",
                ));
            }
            let io_timeout_ms = io_timeout_ms.unwrap_or(0);
            let since = Generation(v.generation.0 + 1);
            v.mappings.push(MapEntry { sdc, read_only, io_timeout_ms, device, since });
        }
        v.generation = Generation(v.generation.0 + 1);
        let generation = v.generation;
        ctx.change(Change::Volume(v.info()));
        ctx.event(
            "vol_map",
            format!("volume {} sdc {name}", v.name),
            format!("generation {generation}"),
        );
        Ok(Answer::Mapped { volume, generation, index, new: true })
    }

    pub(crate) fn unmap(
        &mut self,
        ctx: &mut Ctx,
        volume: VolumeId,
        sdc: SdcId,
    ) -> Result<Answer, Reject> {
        let name = self.sdcs.get(&sdc).ok_or_else(|| Reject::not_found("sdc", sdc))?.name.clone();
        let v = self.volume_mut(volume)?;
        let before = v.mappings.len();
        v.mappings.retain(|m| m.sdc != sdc);
        if v.mappings.len() == before {
            return Err(Reject::new(
                404,
                "not_mapped",
                format!("volume {} is not mapped to {name}", v.name),
                "GET /vol/list shows the mappings",
            ));
        }
        v.generation = Generation(v.generation.0 + 1);
        ctx.change(Change::Volume(v.info()));
        ctx.event(
            "vol_unmap",
            format!("volume {} sdc {name}", v.name),
            format!("generation {}", v.generation),
        );
        Ok(Answer::Unmapped { volume, index: ctx.index })
    }

    fn volume(&self, id: VolumeId) -> Result<&Volume, Reject> {
        self.volumes.get(&id).ok_or_else(|| Reject::not_found("vol", id))
    }

    fn volume_mut(&mut self, id: VolumeId) -> Result<&mut Volume, Reject> {
        self.volumes.get_mut(&id).ok_or_else(|| Reject::not_found("vol", id))
    }
}

fn check_size(size: u64) -> Result<(), Reject> {
    let mib = EXTENT as u64;
    if size == 0 || !size.is_multiple_of(mib) {
        return Err(Reject::invalid(
            "bad_size",
            format!("a size of {size} bytes is not possible"),
            "give a multiple of 1 MiB (1048576 bytes), at least 1 MiB",
        ));
    }
    if size > MAX_VOLUME {
        return Err(Reject::invalid(
            "bad_size",
            format!("a size of {size} bytes is above the limit of {MAX_VOLUME}"),
            "use several volumes",
        ));
    }
    Ok(())
}
