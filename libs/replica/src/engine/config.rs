//! Devices, views and configurations.

use super::{Device, Engine};
use crate::event::{Action, Note};
use crate::meta::PgMeta;
use crate::pg::Pg;
use crate::reports::Barrier;
use quarry_base::{ConfigIndex, DeviceId, Nanos, PgId, StartNo};
use quarry_store::{AckMode, Store};
use quarry_wire::{Change, ClusterView, PgConfig};

impl Engine {
    /// A recovered device: every group it holds is known again, without a role.
    pub(super) fn on_device(
        &mut self,
        device: DeviceId,
        store: Store,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        if self.devices.iter().any(|d| d.id == device) {
            return;
        }
        let dev = self.devices.len();
        let held: Vec<(PgId, Option<bytes::Bytes>)> =
            store.pgs().into_iter().map(|pg| (pg, store.meta(pg))).collect();
        self.devices.push(Device {
            id: device,
            store,
            ledger: Default::default(),
            pinned: Default::default(),
            appends: Default::default(),
            durable: 0,
            synced: 0,
            sync_waits: Vec::new(),
            failed: None,
        });
        for (pg, blob) in held {
            let meta = match blob.as_deref().map(PgMeta::decode) {
                Some(Ok(m)) => m,
                None => PgMeta::default(),
                Some(Err(_)) => {
                    out.push(Action::Note(Note::BadMeta { pg, device }));
                    continue;
                }
            };
            self.hold(pg, dev, device, meta);
        }
        self.set_by_pools();
        self.meet_configs(now, out);
        self.promise();
    }

    /// A device acknowledges as its pool does (R29); until its pool is known, only what is durable. It is scrubbed as
    /// its pool says; one that is in none, or whose pool says nothing, as the server is set.
    fn set_by_pools(&mut self) {
        for d in &mut self.devices {
            let pool = self.view.cluster.devices.get(&d.id).map(|i| i.pool);
            let pool = pool.and_then(|p| self.view.cluster.pools.get(&p));
            if self.view.known {
                d.store.set_scrub_policy(pool.and_then(|p| p.scrub_bytes_per_second));
            }
            let Some(p) = pool else { continue };
            d.store.set_ack(if p.cached { AckMode::Cached } else { AckMode::Durable });
        }
    }

    fn hold(&mut self, pg: PgId, dev: usize, device: DeviceId, meta: PgMeta) -> usize {
        if let Some(c) = &meta.config {
            self.newest_config = self.newest_config.max(c.index);
        }
        if meta.all_through > quarry_base::Version::ZERO {
            // The store keeps it with its next checkpoint only.
            self.devices[dev].store.set_all_through(pg, meta.all_through);
        }
        self.devices[dev].ledger.groups += 1;
        let g = self.groups.len();
        self.groups.push(Pg::new(pg, dev, device, meta));
        self.index.insert(pg, g);
        self.touch(g);
        g
    }

    pub(super) fn on_view(&mut self, v: ClusterView, now: Nanos, out: &mut Vec<Action>) {
        v.sds.values().for_each(|s| self.links.met(s.id, s.start));
        self.view.replace(v);
        self.set_by_pools();
        self.barrier();
        self.meet_configs(now, out);
        self.forget_instances();
        self.promise();
    }

    pub(super) fn on_changes(
        &mut self,
        index: ConfigIndex,
        changes: Vec<Change>,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let mut configs = Vec::new();
        let mut sdcs = false;
        let mut fences = false;
        let mut gone = false;
        let promises = changes.iter().any(super::promise::concerns);
        let mut pools = false;
        for c in changes {
            match &c {
                Change::Pg(cfg) => configs.push(cfg.clone()),
                Change::Sds(s) => self.links.met(s.id, s.start),
                Change::Sdc(_) | Change::SdcGone(_) => (sdcs, fences) = (true, true),
                Change::Volume(_) => fences = true,
                Change::VolumeGone { .. } => (fences, gone) = (true, true),
                Change::PgGone(_) => gone = true,
                Change::PoolGone(_) => (gone, pools) = (true, true),
                Change::Pool(_) | Change::Device(_) | Change::DeviceGone(_) => pools = true,
                _ => {}
            }
            self.view.apply(c);
        }
        self.view.cluster.index = self.view.cluster.index.max(index);
        if pools {
            self.set_by_pools();
        }
        if fences {
            self.barrier();
        }
        for cfg in configs {
            self.meet_config(cfg, now, out);
        }
        if gone {
            self.meet_configs(now, out);
        }
        if sdcs {
            self.forget_instances();
        }
        if promises {
            self.promise();
        }
        // A role may have waited for this index (R3).
        for g in 0..self.groups.len() {
            self.touch(g);
        }
    }

    /// Every configuration of the view that concerns us, and every group here that the view no longer has.
    fn meet_configs(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if !self.view.known {
            return;
        }
        let configs: Vec<PgConfig> = self.view.cluster.pgs.values().cloned().collect();
        for cfg in configs {
            self.meet_config(cfg, now, out);
        }
        for g in 0..self.groups.len() {
            let pg = &self.groups[g];
            let known = pg.meta.config.as_ref().map_or(ConfigIndex::ZERO, |c| c.index);
            let gone = !self.view.cluster.pgs.contains_key(&pg.id)
                && !self.view.cluster.pools.contains_key(&pg.id.pool())
                && known <= self.view.index();
            if gone && !pg.dropped {
                self.drop_group(g, now, out);
            }
        }
    }

    /// A configuration from the MDM.
    fn meet_config(&mut self, cfg: PgConfig, now: Nanos, out: &mut Vec<Action>) {
        self.take_config(cfg.clone(), now, out);
        let Some(&g) = self.index.get(&cfg.pg) else { return };
        let device = self.groups[g].device;
        let newest = self.groups[g].epoch() == cfg.epoch;
        let unlisted = cfg.member(device).is_none() && !cfg.listed.contains(&device);
        if unlisted && newest && cfg.is_complete() {
            self.drop_group(g, now, out);
        }
    }

    fn drop_group(&mut self, g: usize, now: Nanos, out: &mut Vec<Action>) {
        let pg = self.groups[g].id;
        self.with(g, now, out, |pg, cx| pg.fence(cx));
        if self.with(g, now, out, |pg, cx| pg.drop_data(cx)) == Some(true) {
            self.index.remove(&pg);
        }
    }

    /// A configuration from anybody (R2). True if it was news.
    pub(super) fn take_config(&mut self, cfg: PgConfig, now: Nanos, out: &mut Vec<Action>) -> bool {
        let g = match self.index.get(&cfg.pg) {
            Some(&g) => g,
            None => {
                let ours = |d: &Device| cfg.member(d.id).is_some_and(|m| m.sds == self.me.sds);
                let Some(dev) = self.devices.iter().position(ours) else { return false };
                if self.me.start == StartNo::ZERO {
                    return false;
                }
                let device = self.devices[dev].id;
                self.hold(cfg.pg, dev, device, PgMeta::default())
            }
        };
        self.newest_config = self.newest_config.max(cfg.index);
        self.with(g, now, out, |pg, cx| pg.on_config(cfg, cx)).unwrap_or(false)
    }

    /// Ids of instances that were replaced are of no use any more. One not known yet stays.
    fn forget_instances(&mut self) {
        let newest: std::collections::BTreeSet<_> =
            self.view.cluster.sdcs.values().map(|s| s.instance).collect();
        let Some(&max) = newest.last() else { return };
        for d in &mut self.devices {
            d.store.forget_instances(&|i| i > max || newest.contains(&i));
        }
    }

    /// Everything sequenced so far has to be committed before the present index is confirmed (R21).
    fn barrier(&mut self) {
        let mut open = Vec::new();
        for (g, pg) in self.groups.iter().enumerate().filter(|(_, p)| !p.dropped) {
            let Some(d) = self.devices.get(pg.dev) else { continue };
            let s = d.store.pg_state(pg.id);
            if s.last.seq > s.commit
                && pg.meta.config.as_ref().is_some_and(|c| c.is_in_sync(pg.device))
            {
                open.push((g, s.last.seq));
            }
        }
        if !open.is_empty() {
            self.barriers.push(Barrier { index: self.view.index(), open });
        }
    }
}
