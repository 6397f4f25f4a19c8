//! Devices join pools, are emptied, and leave; servers and clients are removed.

use super::nodes::check_name;
use super::{Answer, Ctx, Reject, State, TaskKind};
use quarry_base::{DeviceId, Instance, NodeId, PoolId, SdcId, SdsId};
use quarry_wire::Change;
use std::collections::BTreeSet;

impl State {
    pub(crate) fn add_device(
        &mut self,
        ctx: &mut Ctx,
        id: DeviceId,
        pool: PoolId,
    ) -> Result<Answer, Reject> {
        let d = self.devices.get(&id).ok_or_else(|| Reject::not_found("device", id))?;
        let p = self.pools.get(&pool).ok_or_else(|| Reject::not_found("pool", pool))?;
        if d.pool == Some(pool) && d.draining {
            self.undrain_device(ctx, id);
            return Ok(Answer::Done);
        }
        if let Some(has) = d.pool {
            return Err(Reject::conflict(
                "device_in_use",
                format!("device {id} belongs to pool {has}"),
                "drain and delete it first, or name an unassigned device: GET /device/list",
            ));
        }
        if self.sds.get(&d.sds).is_none_or(|s| s.domain != p.domain) {
            return Err(Reject::invalid(
                "other_domain",
                format!("device {id} is in another protection domain than pool {}", p.name),
                "POST /sds/add with protection_domain_id moves an empty server",
            ));
        }
        let name = p.name.clone();
        self.assign(ctx, id, Some(pool));
        ctx.event("device_add", format!("device {id}"), format!("pool {name}"));
        self.lay_out(ctx, pool);
        Ok(Answer::Done)
    }

    pub(crate) fn drain_device(&mut self, ctx: &mut Ctx, id: DeviceId) -> Result<Answer, Reject> {
        let d = self.devices.get(&id).ok_or_else(|| Reject::not_found("device", id))?;
        let Some(pool) = d.pool else {
            return Err(Reject::conflict(
                "not_in_pool",
                format!("device {id} belongs to no pool: it holds nothing"),
                "",
            ));
        };
        self.check_drain(pool, &|x| x.id == id, &format!("device {id}"))?;
        let total = self.copies_on(id);
        if let Some(d) = self.devices.get_mut(&id) {
            d.draining = true;
        }
        ctx.event(
            "device_drain",
            format!("device {id}"),
            format!("{total} copies are to be moved"),
        );
        Ok(self.add_task(ctx, TaskKind::DrainDevice { device: id }, total))
    }

    /// Can a server be emptied? Its name.
    pub(crate) fn check_drain_sds(&self, id: SdsId) -> Result<String, Reject> {
        let s = self.sds.get(&id).ok_or_else(|| Reject::not_found("sds", id))?;
        let pools: BTreeSet<PoolId> =
            self.devices.values().filter(|d| d.sds == id).filter_map(|d| d.pool).collect();
        for pool in pools {
            self.check_drain(pool, &|x| x.sds == id, &format!("SDS {}", s.name))?;
        }
        Ok(s.name.clone())
    }

    pub(crate) fn drain_sds(&mut self, ctx: &mut Ctx, id: SdsId) -> Result<Answer, Reject> {
        let name = self.check_drain_sds(id)?;
        let total = self.copies_on_sds(id);
        if let Some(s) = self.sds.get_mut(&id) {
            s.draining = true;
        }
        ctx.event("sds_drain", format!("sds {name}"), format!("{total} copies are to be moved"));
        Ok(self.add_task(ctx, TaskKind::DrainSds { sds: id }, total))
    }

    /// A drained or draining server takes copies again.
    pub(crate) fn undrain_sds(&mut self, ctx: &mut Ctx, id: SdsId) {
        let Some(s) = self.sds.get_mut(&id).filter(|s| s.draining) else { return };
        s.draining = false;
        ctx.event("sds_undrain", format!("sds {}", s.name), "it takes copies again");
        self.drop_task(ctx, &TaskKind::DrainSds { sds: id }, "the server was taken back");
        self.stop_moves(ctx, None);
        self.lay_out_waiting(ctx);
    }

    fn undrain_device(&mut self, ctx: &mut Ctx, id: DeviceId) {
        if let Some(d) = self.devices.get_mut(&id) {
            d.draining = false;
        }
        ctx.event("device_undrain", format!("device {id}"), "it takes copies again");
        self.drop_task(ctx, &TaskKind::DrainDevice { device: id }, "the device was added again");
        self.stop_moves(ctx, None);
        self.lay_out_waiting(ctx);
    }

    /// Refuses a drain that leaves too few servers for all copies, or too little room for the data promised in full.
    fn check_drain(
        &self,
        pool: PoolId,
        goes: &dyn Fn(&super::Device) -> bool,
        what: &str,
    ) -> Result<(), Reject> {
        let Some(p) = self.pools.get(&pool) else { return Ok(()) };
        let stay: Vec<&super::Device> = self
            .pool_devices(pool)
            .filter(|d| !goes(d) && self.healthy(d) && !self.draining(d.id))
            .collect();
        let mut servers: Vec<SdsId> = stay.iter().map(|d| d.sds).collect();
        servers.sort();
        servers.dedup();
        if servers.len() < p.copies as usize && self.pool_pgs(pool).next().is_some() {
            return Err(Reject::invalid(
                "no_sds_capable_node",
                format!(
                    "without {what} pool {} has {} healthy SDS nodes for {} copies",
                    p.name,
                    servers.len(),
                    p.copies
                ),
                "add an SDS node with devices to the pool first",
            ));
        }
        let left: u64 =
            stay.iter().map(|d| d.capacity_bytes).sum::<u64>() / u64::from(p.copies.max(1));
        let thick = self.capacity(p).thick;
        if thick > left {
            return Err(Reject::invalid(
                "no_space",
                format!(
                    "without {what} pool {} has room for {left} bytes, {thick} are promised in full",
                    p.name
                ),
                "add devices to the pool first",
            ));
        }
        Ok(())
    }

    pub(crate) fn delete_device(&mut self, ctx: &mut Ctx, id: DeviceId) -> Result<Answer, Reject> {
        let d = self.devices.get(&id).ok_or_else(|| Reject::not_found("device", id))?;
        let n = self.copies_on(id);
        if n > 0 {
            return Err(holds(&format!("device {id}"), n, &format!("POST /device/{id}/drain")));
        }
        // One whose server is away is kept in mind: the disk that comes back with it does not join by itself.
        let gone = !self.sds.contains_key(&d.sds);
        self.drop_task(ctx, &TaskKind::DrainDevice { device: id }, "the device was removed");
        self.assign(ctx, id, None);
        if gone {
            self.devices.remove(&id);
        } else if let Some(d) = self.devices.get_mut(&id) {
            d.removed = true;
        }
        ctx.event("device_delete", format!("device {id}"), "asked by the operator");
        Ok(Answer::Done)
    }

    pub(crate) fn delete_sds(&mut self, ctx: &mut Ctx, id: SdsId) -> Result<Answer, Reject> {
        let s = self.sds.get(&id).ok_or_else(|| Reject::not_found("sds", id))?;
        let (name, node) = (s.name.clone(), s.node);
        let n = self.copies_on_sds(id);
        if n > 0 {
            return Err(holds(&format!("SDS {name}"), n, &format!("POST /sds/{id}/drain")));
        }
        self.drop_task(ctx, &TaskKind::DrainSds { sds: id }, "the server was removed");
        let devices: Vec<DeviceId> =
            self.devices.values().filter(|d| d.sds == id).map(|d| d.id).collect();
        for d in devices {
            self.drop_task(ctx, &TaskKind::DrainDevice { device: d }, "the server was removed");
            self.assign(ctx, d, None);
            self.devices.remove(&d);
        }
        self.sds.remove(&id);
        self.removed_sds.insert(name.clone());
        ctx.change(Change::SdsGone(id));
        ctx.event("sds_delete", format!("sds {name}"), "asked by the operator");
        self.forget_node(ctx, node);
        Ok(Answer::Done)
    }

    pub(crate) fn delete_sdc(&mut self, ctx: &mut Ctx, id: SdcId) -> Result<Answer, Reject> {
        let s = self.sdcs.get(&id).ok_or_else(|| Reject::not_found("sdc", id))?;
        let (name, node) = (s.name.clone(), s.node);
        self.refuse_mapped(id, &format!("SDC {name}"))?;
        self.sdcs.remove(&id);
        self.removed_sdc.insert(name.clone());
        ctx.change(Change::SdcGone(id));
        ctx.event("sdc_delete", format!("sdc {name}"), "asked by the operator");
        self.forget_node(ctx, node);
        Ok(Answer::Done)
    }

    /// Refuses while volumes are mapped to the client, or an unmap is not confirmed yet (R21).
    pub(crate) fn refuse_mapped(&self, id: SdcId, what: &str) -> Result<(), Reject> {
        let has = self.volumes.values().filter(|v| v.mappings.iter().any(|m| m.sdc == id));
        let ids: Vec<_> = has.map(|v| v.id).collect();
        if !ids.is_empty() {
            return Err(Reject::conflict(
                "mapped",
                format!("{what} has these volumes mapped: {}", self.volume_names(&ids)),
                "unmap them first",
            ));
        }
        let open = self.tasks.values().find(|t| {
            t.state == super::TaskState::Running
                && matches!(t.kind, TaskKind::Unmap { sdc, .. } if sdc == id)
        });
        match open {
            None => Ok(()),
            Some(t) => Err(Reject::conflict(
                "unmap_pending",
                format!("an unmap from {what} is not confirmed yet (task {})", t.id),
                format!("GET /tasks/{} names who it waits for", t.id),
            )),
        }
    }

    /// A node without any daemon that could come back leaves the cluster view.
    fn forget_node(&mut self, ctx: &mut Ctx, node: Option<NodeId>) {
        let Some(id) = node else { return };
        let used = self.sds.values().any(|s| s.node == Some(id))
            || self.sdcs.values().any(|s| s.node == Some(id));
        let mdm = |n: &super::Node| n.capabilities.contains(&quarry_control::Capability::Mdm);
        if used || self.nodes.get(&id).is_none_or(mdm) {
            return;
        }
        if let Some(n) = self.nodes.remove(&id) {
            ctx.event(
                "node_leave",
                format!("node {}", n.name),
                "its last server or client was removed",
            );
        }
    }

    pub(crate) fn sdc_lost(
        &mut self,
        ctx: &mut Ctx,
        id: SdcId,
        instance: Instance,
    ) -> Result<Answer, Reject> {
        let s = self.sdcs.get_mut(&id).ok_or_else(|| Reject::not_found("sdc", id))?;
        if s.instance != instance || !s.up {
            return Err(Reject::stale(format!(
                "instance {instance} of SDC {id} has ended already"
            )));
        }
        s.up = false;
        ctx.event(
            "sdc_down",
            format!("sdc {}", s.name),
            "its session closed and did not come back",
        );
        Ok(Answer::Done)
    }

    /// Refuses a daemon whose server or client was removed, or whose capability was taken away.
    pub(crate) fn check_removed(&self, r: &super::Register) -> Result<(), Reject> {
        check_name(&r.name)?;
        let (removed, kind, need) = match r.role {
            quarry_control::Role::Sds => {
                (&self.removed_sds, "sds", quarry_control::Capability::Sds)
            }
            quarry_control::Role::Sdc => {
                (&self.removed_sdc, "sdc", quarry_control::Capability::Sdc)
            }
        };
        if removed.contains(&r.name) {
            return Err(Reject::conflict(
                "removed",
                format!("{} was removed from the cluster", r.name),
                format!("scli {kind} add --name {} lets it in again", r.name),
            ));
        }
        let node = self.nodes.values().find(|n| n.name == r.name);
        let holds = || {
            let s = self.sds.values().find(|s| s.name == r.name);
            s.is_some_and(|s| self.copies_on_sds(s.id) > 0)
        };
        let off = node.is_some_and(|n| n.disabled.contains(&need));
        if off && !(need == quarry_control::Capability::Sds && holds()) {
            return Err(Reject::conflict(
                "capability_removed",
                format!("the capability {need} was taken from node {}", r.name),
                "scli node capability add gives it back",
            ));
        }
        Ok(())
    }
}

fn holds(what: &str, copies: u64, how: &str) -> Reject {
    Reject::conflict(
        "holds_copies",
        format!("{what} holds copies of {copies} placement groups"),
        format!("move them off first: {how}"),
    )
}
