//! Nodes, data servers, devices and clients: registration, failure, fencing.

use super::{
    valid_name, Answer, Answered, Ctx, Device, Domain, Node, Pg, Register, Reject, Sdc, Sds, State,
    MAX_OBJECTS,
};
use quarry_base::{DeviceId, DomainId, Instance, NodeId, PoolId, SdcId, SdsId, StartNo};
use quarry_control::{Capability, Role};
use quarry_wire::Change;
use std::collections::BTreeSet;

/// Name of the protection domain that is there from the start.
pub const DEFAULT_DOMAIN: &str = "default";

impl State {
    pub(crate) fn init(&mut self, ctx: &mut Ctx, cluster: &str) -> Result<Answer, Reject> {
        if !self.cluster.is_empty() {
            return Err(Reject::conflict(
                "initialised",
                "the cluster has its identity already",
                "",
            ));
        }
        self.cluster = cluster.into();
        self.next.domain = 1;
        let id = DomainId(1);
        self.domains.insert(id, Domain { id, name: DEFAULT_DOMAIN.into() });
        ctx.event("cluster_init", format!("cluster {cluster}"), "first start");
        Ok(Answer::Domain(id))
    }

    pub(crate) fn register_mdm(
        &mut self,
        ctx: &mut Ctx,
        name: &str,
        addresses: &[String],
        release: &str,
        host: &str,
        capabilities: &[Capability],
    ) -> Result<Answer, Reject> {
        check_name(name)?;
        let mut all = vec![Capability::Mdm];
        all.extend(capabilities.iter().filter(|c| **c != Capability::Mdm));
        self.upsert_node(ctx, name, addresses, &all, release, host);
        Ok(Answer::Done)
    }

    /// One row a host name; capabilities of all its daemons together.
    fn upsert_node(
        &mut self,
        ctx: &mut Ctx,
        name: &str,
        addresses: &[String],
        capabilities: &[Capability],
        release: &str,
        host: &str,
    ) -> NodeId {
        let known = self.nodes.values().find(|n| n.name == name).map(|n| n.id);
        let id = known.unwrap_or_else(|| {
            self.next.node += 1;
            ctx.event("node_join", format!("node {name}"), "registered");
            NodeId(self.next.node)
        });
        let n = self.nodes.entry(id).or_insert_with(|| Node {
            id,
            name: name.into(),
            addresses: Vec::new(),
            capabilities: Vec::new(),
            release: String::new(),
            host: String::new(),
            disabled: Vec::new(),
        });
        n.addresses = addresses.to_vec();
        n.release = release.into();
        n.host = host.into();
        let old = n.capabilities.clone();
        let all: BTreeSet<Capability> = capabilities.iter().copied().collect();
        // What the node file no longer lists goes, unless something depends on it.
        let kept = old.into_iter().filter(|c| !all.contains(c) && self.depends(id, *c));
        let kept: Vec<Capability> = kept.collect();
        if let Some(n) = self.nodes.get_mut(&id) {
            let gone: Vec<String> = n
                .capabilities
                .iter()
                .filter(|c| !all.contains(c))
                .map(|c| if kept.contains(c) { format!("{c} (kept)") } else { c.to_string() })
                .collect();
            if !gone.is_empty() {
                let why = "not listed in its node file any more; what is kept is in use: drain or unmap first";
                ctx.event("capability_gone", format!("node {name} {}", gone.join(", ")), why);
            }
            n.capabilities = all.into_iter().chain(kept).collect();
            n.capabilities.sort();
        }
        id
    }

    /// Data or mappings depend on this capability of the node, or it is the MDM that runs here.
    fn depends(&self, node: NodeId, c: Capability) -> bool {
        match c {
            Capability::Mdm => true,
            Capability::Sds => self.sds_of(node).iter().any(|s| self.copies_on_sds(*s) > 0),
            Capability::Sdc => {
                let here = self.sdcs.values().filter(|s| s.node == Some(node));
                let mapped = |id: SdcId| {
                    self.volumes.values().any(|v| v.mappings.iter().any(|m| m.sdc == id))
                };
                here.into_iter().any(|s| mapped(s.id))
            }
        }
    }

    pub(crate) fn register(&mut self, ctx: &mut Ctx, r: &Register) -> Result<Answer, Reject> {
        self.check_removed(r)?;
        let need = match r.role {
            Role::Sds => Capability::Sds,
            Role::Sdc => Capability::Sdc,
        };
        if !r.capabilities.contains(&need) {
            return Err(Reject::invalid(
                "capability_missing",
                format!("node {} does not list the capability {need}", r.name),
                "add it to capabilities in the node file",
            ));
        }
        if self.nodes.len() + self.devices.len() + r.devices.len() > MAX_OBJECTS {
            return Err(Reject::invalid("limit", "too many nodes and devices", ""));
        }
        if r.role == Role::Sds {
            self.check_devices(r)?;
        }
        let node =
            self.upsert_node(ctx, &r.name, &r.addresses, &r.capabilities, &r.release, &r.host);
        Ok(match r.role {
            Role::Sds => self.register_sds(ctx, r, node),
            Role::Sdc => self.register_sdc(ctx, r, node),
        })
    }

    fn check_devices(&self, r: &Register) -> Result<(), Reject> {
        let me = self.sds.values().find(|s| s.name == r.name).map(|s| s.id);
        let mut seen = BTreeSet::new();
        for d in &r.devices {
            if !seen.insert(&d.uuid) {
                return Err(Reject::conflict(
                    "device_twice",
                    format!("device {} is given twice ({})", d.uuid, d.path.display()),
                    "a copy of a device file has the identity of the original: format it anew",
                ));
            }
            let Some(known) = self.devices.values().find(|k| k.uuid == d.uuid) else { continue };
            if Some(known.sds) != me {
                self.check_apart(r, known)?;
            }
            let owner = self.sds.get(&known.sds);
            if Some(known.sds) != me && owner.is_some_and(|s| s.up) {
                let owner = owner.map(|s| s.name.clone()).unwrap_or_default();
                return Err(Reject::conflict(
                    "device_elsewhere",
                    format!("device {} ({}) is in use by SDS {owner}", known.id, d.path.display()),
                    format!("stop SDS {owner} first, or give this server a device of its own"),
                ));
            }
        }
        Ok(())
    }

    /// A device that comes from another server must not bring a second copy of a group to this one.
    fn check_apart(&self, r: &Register, moved: &Device) -> Result<(), Reject> {
        // Those that come with it; what shared a server with it before is no worse off.
        let named = |k: &&Device| r.devices.iter().any(|d| d.uuid == k.uuid);
        let with: BTreeSet<DeviceId> = self
            .devices
            .values()
            .filter(|k| k.sds != moved.sds)
            .filter(named)
            .map(|k| k.id)
            .collect();
        let has =
            |p: &Pg, d: DeviceId| p.config.listed.contains(&d) || p.config.member(d).is_some();
        let both = |p: &&Pg| has(p, moved.id) && with.iter().any(|d| has(p, *d));
        let n = self.pgs.values().filter(both).count();
        if n == 0 {
            return Ok(());
        }
        Err(Reject::conflict(
            "copies_together",
            format!(
                "device {} holds copies of {n} placement groups that have another copy on a device of SDS {}",
                moved.id, r.name
            ),
            "two copies of a group never share a server: give the disk to a server that has no other copy of them, or to one of its own",
        ))
    }

    fn register_sds(&mut self, ctx: &mut Ctx, r: &Register, node: NodeId) -> Answer {
        let id = match self.sds.values().find(|s| s.name == r.name) {
            Some(s) => s.id,
            None => self.new_sds(&r.name, DomainId(1), None),
        };
        let Some(s) = self.sds.get(&id) else { return Answer::Done };
        let kept = s.up
            && !s.fenced
            && r.resume == Some(s.start.get())
            && s.boot_id == r.boot_id
            && s.host == r.host;
        // Not knowing whether the host booted counts as that it did.
        let same_boot = !r.boot_id.is_empty() && s.boot_id == r.boot_id;
        let start = if kept { s.start } else { self.new_start() };
        if let Some(s) = self.sds.get_mut(&id) {
            if !same_boot {
                s.booted = start;
            }
            s.node = Some(node);
            s.start = start;
            s.up = true;
            s.leaving &= kept;
            s.down_since_ms = None;
            s.host = r.host.clone();
            s.boot_id = r.boot_id.clone();
            s.endpoints = r.endpoints.clone();
            s.metrics = r.metrics.clone();
            ctx.change(Change::Sds(s.info()));
        }
        let devices = self.register_devices(ctx, r, id);
        if !kept {
            ctx.event("sds_up", format!("sds {}", r.name), format!("start {start}"));
            let pgs = self.groups_of(id);
            self.settle(ctx, &pgs, &r.answered);
        }
        let pools: BTreeSet<PoolId> =
            self.devices.values().filter(|d| d.sds == id).filter_map(|d| d.pool).collect();
        for p in pools {
            self.lay_out(ctx, p);
        }
        Answer::Registered { node, sds: Some(id), sdc: None, start: start.get(), devices, kept }
    }

    /// Enters the devices; new ones join the only pool of the domain. One that could not be opened is as good as
    /// missing: unlike one whose writes failed later, it cannot even be read.
    fn register_devices(
        &mut self,
        ctx: &mut Ctx,
        r: &Register,
        sds: SdsId,
    ) -> Vec<(String, DeviceId)> {
        let domain = self.sds.get(&sds).map(|s| s.domain).unwrap_or_default();
        let mut pools = self.pools.values().filter(|p| p.domain == domain).map(|p| p.id);
        let only = pools.next().filter(|_| pools.next().is_none());
        let mut out = Vec::new();
        for d in &r.devices {
            let known = self.devices.values().find(|k| k.uuid == d.uuid).map(|k| k.id);
            let id = known.unwrap_or_else(|| {
                self.next.device += 1;
                DeviceId(self.next.device)
            });
            let k = self.devices.entry(id).or_insert_with(|| Device {
                id,
                uuid: d.uuid.clone(),
                sds,
                pool: None,
                path: d.path.clone(),
                capacity_bytes: 0,
                shard: 0,
                failed: None,
                failed_since_ms: None,
                missing: false,
                draining: false,
                removed: false,
                suspended: None,
                lapses: None,
            });
            k.sds = sds;
            k.path = d.path.clone();
            k.capacity_bytes = d.capacity_bytes;
            k.shard = d.shard;
            if let (Some(why), None) = (&d.failed, &k.failed) {
                k.failed_since_ms = Some(ctx.at_ms);
                // It failed while its server was away, or at its opening.
                ctx.event("device_failed", format!("device {id}"), why.clone());
            }
            k.failed = d.failed.clone();
            if k.failed.is_none() {
                // Its next loss begins then.
                k.failed_since_ms = None;
            }
            if k.failed.is_some() {
                k.suspended = None;
            }
            k.missing = d.unread;
            k.pool = k.pool.or(only.filter(|_| !k.removed));
            if let Some(info) = k.info() {
                ctx.change(Change::Device(info));
            }
            out.push((d.uuid.clone(), id));
        }
        // A removed device that its server does not have any more is forgotten.
        let here: BTreeSet<DeviceId> = out.iter().map(|d| d.1).collect();
        let forgotten: BTreeSet<DeviceId> = self
            .devices
            .values()
            .filter(|d| d.sds == sds && d.removed && !here.contains(&d.id))
            .map(|d| d.id)
            .filter(|id| self.copies_on(*id) == 0)
            .collect();
        self.devices.retain(|id, _| !forgotten.contains(id));
        let gone = self.devices.values_mut().filter(|d| d.sds == sds && !here.contains(&d.id));
        for d in gone.filter(|d| !d.missing) {
            d.missing = true;
            d.suspended = None;
            d.failed.get_or_insert_with(|| "its server registered without it".into());
            d.failed_since_ms.get_or_insert(ctx.at_ms);
            let (object, why) = (format!("device {}", d.id), d.failed.clone().unwrap_or_default());
            ctx.event("device_missing", object, why);
        }
        out
    }

    fn register_sdc(&mut self, ctx: &mut Ctx, r: &Register, node: NodeId) -> Answer {
        let id = match self.sdcs.values().find(|s| s.name == r.name) {
            Some(s) => s.id,
            None => self.new_sdc(&r.name),
        };
        let old = self.sdcs.get(&id).map(|s| s.instance.get()).unwrap_or(0);
        let kept = old != 0 && r.resume == Some(old);
        let known = kept && self.sdcs.get(&id).is_some_and(|s| s.up);
        let instance = if kept { Instance(old) } else { Instance(self.new_start().get()) };
        if let Some(s) = self.sdcs.get_mut(&id) {
            s.node = Some(node);
            s.instance = instance;
            s.host = r.host.clone();
            s.metrics = r.metrics.clone();
            s.up = true;
            ctx.change(Change::Sdc(s.info()));
        }
        if !known {
            ctx.event("sdc_up", format!("sdc {}", r.name), format!("instance {instance}"));
        }
        Answer::Registered {
            node,
            sds: None,
            sdc: Some(id),
            start: instance.get(),
            devices: Vec::new(),
            kept,
        }
    }

    pub(crate) fn new_start(&mut self) -> StartNo {
        self.next.start += 1;
        StartNo(self.next.start)
    }

    fn new_sds(&mut self, name: &str, domain: DomainId, fault_set: Option<u32>) -> SdsId {
        self.next.sds += 1;
        let id = SdsId(self.next.sds);
        let s = Sds {
            id,
            name: name.into(),
            node: None,
            domain,
            fault_set,
            start: StartNo::ZERO,
            up: false,
            fenced: false,
            leaving: false,
            draining: false,
            down_since_ms: None,
            host: String::new(),
            boot_id: String::new(),
            booted: StartNo::ZERO,
            endpoints: Vec::new(),
            metrics: None,
        };
        self.sds.insert(id, s);
        id
    }

    fn new_sdc(&mut self, name: &str) -> SdcId {
        self.next.sdc += 1;
        let id = SdcId(self.next.sdc);
        let s = Sdc {
            id,
            name: name.into(),
            node: None,
            instance: Instance::ZERO,
            host: String::new(),
            metrics: None,
            up: false,
            moved: (0, 0),
        };
        self.sdcs.insert(id, s);
        id
    }

    /// Names a server before it comes, so that it joins the right domain; or moves one that holds nothing.
    pub(crate) fn add_sds(
        &mut self,
        ctx: &mut Ctx,
        name: &str,
        domain: Option<DomainId>,
        fault_set: Option<u32>,
    ) -> Result<Answer, Reject> {
        check_name(name)?;
        let domain = domain.unwrap_or(DomainId(1));
        if !self.domains.contains_key(&domain) {
            return Err(Reject::not_found("pd", domain));
        }
        self.check_fault_set(fault_set, domain)?;
        let known = self.sds.values().find(|s| s.name == name).map(|s| (s.id, s.domain));
        let Some((id, old)) = known else {
            let id = self.new_sds(name, domain, fault_set);
            self.removed_sds.remove(name);
            ctx.event("sds_add", format!("sds {name}"), format!("domain {domain}"));
            return Ok(Answer::Sds(id));
        };
        if old == domain {
            return Err(Reject::conflict(
                "name_taken",
                format!("SDS {name} is in this protection domain already"),
                "GET /sds/list shows it",
            ));
        }
        if !self.groups_of(id).is_empty() {
            return Err(Reject::conflict(
                "sds_in_use",
                format!("SDS {name} holds data of another protection domain"),
                "drain it first",
            ));
        }
        if let Some(s) = self.sds.get_mut(&id) {
            s.domain = domain;
            s.fault_set = fault_set;
        }
        let mine: Vec<DeviceId> =
            self.devices.values().filter(|d| d.sds == id).map(|d| d.id).collect();
        let mut pools = self.pools.values().filter(|p| p.domain == domain).map(|p| p.id);
        let only = pools.next().filter(|_| pools.next().is_none());
        for d in mine {
            self.assign(ctx, d, only);
        }
        if let Some(p) = only {
            self.lay_out(ctx, p);
        }
        ctx.event("sds_add", format!("sds {name}"), format!("moved to domain {domain}"));
        Ok(Answer::Sds(id))
    }

    /// Puts a device into a pool or takes it out.
    pub(crate) fn assign(&mut self, ctx: &mut Ctx, device: DeviceId, pool: Option<PoolId>) {
        let Some(d) = self.devices.get_mut(&device) else { return };
        let was = d.pool;
        d.pool = pool;
        // What was asked for where it was before does not count where it comes.
        (d.draining, d.removed) = (false, d.removed && pool.is_none());
        (d.suspended, d.lapses) = (None, None);
        match d.info() {
            Some(info) => ctx.change(Change::Device(info)),
            None if was.is_some() => ctx.change(Change::DeviceGone(device)),
            None => {}
        }
    }

    pub(crate) fn add_sdc(&mut self, ctx: &mut Ctx, name: &str) -> Result<Answer, Reject> {
        check_name(name)?;
        if self.sdcs.values().any(|s| s.name == name) {
            return Err(Reject::conflict(
                "name_taken",
                format!("SDC {name} exists"),
                "GET /sdc/list shows it",
            ));
        }
        if self.sdcs.len() >= MAX_OBJECTS {
            return Err(Reject::invalid("limit", "too many clients", ""));
        }
        let id = self.new_sdc(name);
        self.removed_sdc.remove(name);
        if let Some(s) = self.sdcs.get(&id) {
            ctx.change(Change::Sdc(s.info()));
        }
        ctx.event("sdc_add", format!("sdc {name}"), "");
        Ok(Answer::Sdc(id))
    }

    /// R4: one command, one deterministic effect on all groups.
    pub(crate) fn sds_failed(
        &mut self,
        ctx: &mut Ctx,
        sds: SdsId,
        start: StartNo,
        reason: &str,
        answered: &Answered,
    ) -> Result<Answer, Reject> {
        let s = self.sds.get_mut(&sds).ok_or_else(|| Reject::not_found("sds", sds))?;
        if s.start != start || !s.up {
            return Err(Reject::stale(format!("start {start} of SDS {sds} has ended already")));
        }
        s.up = false;
        s.down_since_ms = Some(ctx.at_ms);
        ctx.change(Change::Sds(s.info()));
        ctx.event("sds_down", format!("sds {}", s.name), reason);
        let pgs = self.groups_of(sds);
        self.settle(ctx, &pgs, answered);
        Ok(Answer::Done)
    }

    pub(crate) fn device_failed(
        &mut self,
        ctx: &mut Ctx,
        device: DeviceId,
        start: StartNo,
        reason: &str,
        answered: &Answered,
    ) -> Result<Answer, Reject> {
        let d = self.devices.get_mut(&device).ok_or_else(|| Reject::not_found("device", device))?;
        if d.failed.is_some() || self.sds.get(&d.sds).map(|s| s.start) != Some(start) {
            return Err(Reject::stale(format!("device {device}: known, or of an earlier start")));
        }
        d.failed = Some(reason.into());
        d.failed_since_ms = Some(ctx.at_ms);
        d.suspended = None;
        let sds = d.sds;
        ctx.event("device_failed", format!("device {device}"), reason);
        let pgs = self.groups_of(sds);
        self.settle(ctx, &pgs, answered);
        Ok(Answer::Done)
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), Reject> {
    if valid_name(name) {
        return Ok(());
    }
    Err(Reject::invalid(
        "bad_name",
        format!("'{}' is not a name", name.chars().take(80).collect::<String>()),
        "letters, digits, '.', '_' and '-', 63 at most, a letter or digit first",
    ))
}
