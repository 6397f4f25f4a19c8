//! The cluster as the MDM shows it, and what follows from a change.

use super::types::{Action, MappedVolume, Target};
use super::unflushed::Unflushed;
use super::volume::{PartState, Volume};
use super::Engine;
use quarry_base::{ConfigIndex, DeviceId, Generation, Instance, SdcId, StartNo, VolumeId};
use quarry_wire::{Change, ClusterView, VolumeInfo};
use std::time::Duration;

/// An MDM of an older release does not say since when a mapping stands.
const UNKNOWN: Generation = Generation::ZERO;

impl Engine {
    pub(super) fn registered(&mut self, sdc: SdcId, instance: Instance) {
        match self.me {
            None => {
                self.me = Some((sdc, instance));
                self.follow_view();
            }
            Some(me) if me == (sdc, instance) => {}
            // Requests under the old instance may be on their way: going on under a new one could
            // apply them twice. The process ends and begins anew.
            Some(_) => self.fence("the MDM gave this client a new instance"),
        }
    }

    /// A whole view. Epochs never go back (R2): what servers told meanwhile stays.
    pub(super) fn take_view(&mut self, mut view: ClusterView) {
        for (id, have) in std::mem::take(&mut self.view.pgs) {
            if let Some(new) = view.pgs.get_mut(&id) {
                let fell = new.fell.max(have.fell);
                if have.epoch > new.epoch {
                    *new = have;
                }
                new.learn_fell(fell);
            }
        }
        self.view = view;
        self.follow_view();
    }

    /// Changes since; in order, each once.
    pub(super) fn take_changes(&mut self, index: ConfigIndex, changes: Vec<Change>) {
        let mut groups_only = true;
        let mut groups = Vec::new();
        for c in changes {
            match &c {
                Change::Pg(p) => groups.push(p.pg),
                Change::PgGone(_) => {}
                _ => groups_only = false,
            }
            self.view.apply(c);
        }
        self.view.index = self.view.index.max(index);
        if groups_only && groups.is_empty() {
            return;
        }
        if !groups_only {
            return self.follow_view();
        }
        for id in groups {
            if let Some(n) = self.pgs.find(id) {
                self.refresh_pg(n);
            }
        }
        self.wanted_stale = true;
    }

    /// Brings everything in line with the view.
    fn follow_view(&mut self) {
        let Some((sdc, instance)) = self.me else { return };
        if self.view.sdcs.get(&sdc).is_some_and(|s| s.instance > instance) {
            return self.fence("the MDM knows a newer instance of this client");
        }
        self.drop_dead_links();
        (0..self.pgs.list.len()).for_each(|n| self.refresh_pg(n));
        self.refresh_volumes(sdc);
        self.wanted_stale = true;
    }

    /// Links to servers that are gone, or to an earlier start of one, lead nowhere.
    fn drop_dead_links(&mut self) {
        for link in self.links.all() {
            let Some(target) = self.links.target(link) else { continue };
            let start = self.links.start(link);
            match self.view.sds.get(&target.sds) {
                None => self.drop_link(link, "the server was removed"),
                Some(s) if start != StartNo::ZERO && s.start > start => {
                    self.drop_link(link, "the server was started anew");
                }
                Some(_) => {}
            }
        }
    }

    /// Where a device is served.
    pub(super) fn target_of(&self, device: DeviceId) -> Option<Target> {
        let d = self.view.devices.get(&device)?;
        Some(Target { sds: d.sds, shard: d.shard })
    }

    /// Takes a group's routing from the view. Under a newer epoch everything that is out is sent
    /// again there: whoever led before may not answer any more.
    pub(super) fn refresh_pg(&mut self, n: usize) {
        let Some(pg) = self.pgs.list.get(n) else { return };
        let config = self.view.pgs.get(&pg.id);
        let device = config.and_then(|c| c.primary);
        let target = device.and_then(|d| self.target_of(d));
        let epoch = config.map_or(pg.epoch, |c| c.epoch.max(pg.epoch));
        let (newer, moved) = (epoch > pg.epoch, target != pg.target);
        let pg = &mut self.pgs.list[n];
        (pg.epoch, pg.device, pg.target) = (epoch, device, target);
        if newer {
            (pg.refusals, pg.refusing) = (0, 0);
            let held = std::mem::take(&mut pg.held);
            pg.resend.extend(held);
            pg.queue_put_off(None);
            self.take_back(n, |s| matches!(s, PartState::Sent { epoch: e, .. } if e < epoch));
        }
        if newer || moved {
            self.mark_pg(n);
        }
    }

    fn refresh_volumes(&mut self, sdc: SdcId) {
        let mut known: Vec<VolumeId> = self.volumes.keys().copied().collect();
        let infos: Vec<VolumeInfo> = self
            .view
            .volumes
            .values()
            .filter(|v| v.mappings.iter().any(|m| m.sdc == sdc) || self.volumes.contains_key(&v.id))
            .cloned()
            .collect();
        for info in infos {
            known.retain(|id| *id != info.id);
            self.refresh_volume(sdc, &info);
        }
        known.into_iter().for_each(|id| self.unmap(id));
    }

    fn refresh_volume(&mut self, sdc: SdcId, info: &VolumeInfo) {
        let map = info.mappings.iter().find(|m| m.sdc == sdc);
        if map.is_some() && self.volumes.get(&info.id).is_some_and(|v| !v.mapped) {
            // Given again while what was out under the mapping before is not answered: that may not go out under this one.
            self.fail_waiting(info.id, true);
        }
        let was = self.volumes.get(&info.id).filter(|v| v.mapped).map_or(UNKNOWN, |v| v.since);
        let is = map.map_or(UNKNOWN, |m| m.since);
        if was != UNKNOWN && is != UNKNOWN && was != is {
            // Taken away and given again while nothing was heard. Nothing of then may be carried out now (R21), and what
            // is open on it, and what a file system has of it in memory, may be older than what others wrote meanwhile.
            self.unmap(info.id);
            self.fail_waiting(info.id, true);
        }
        let pool = self.view.pools.get(&info.pool);
        let (pg_count, cached) = pool.map_or((0, false), |p| (p.pg_count, p.cached));
        let v = self.volumes.entry(info.id).or_insert_with(|| Volume::new(info.vtree, info.pool));
        let older: Generation = v.generation;
        v.generation = info.generation;
        let Some(map) = map else { return self.unmap(info.id) };
        (v.vtree, v.pool, v.pg_count, v.cached) = (info.vtree, info.pool, pg_count, cached);
        let (was, size) = (v.mapped, v.size);
        (v.size, v.read_only, v.mapped) = (info.size_bytes, map.read_only, true);
        v.shared = info.mappings.len() > 1;
        if is != UNKNOWN {
            v.since = is;
        }
        let timeout = Duration::from_millis(map.io_timeout_ms);
        if v.io_timeout != timeout {
            // One more look, at the new time; the one that is due later does no harm.
            (v.io_timeout, v.expiry_armed) = (timeout, false);
        }
        // Whoever wrote here before has perhaps not flushed: an earlier start of this client, another client.
        if cached && pg_count > 0 && (!was || info.generation > older || info.size_bytes > size) {
            v.touch_all();
        }
        let state = MappedVolume {
            id: info.id,
            name: info.name.clone(),
            size_bytes: info.size_bytes,
            generation: info.generation,
            since: v.since,
            read_only: map.read_only,
            device: map.device,
        };
        if v.shown.as_ref() != Some(&state) {
            v.shown = Some(state.clone());
            self.out.push(Action::VolumeChanged { volume: info.id, state: Some(state) });
        }
        self.mark_volume(info.id);
        self.watch_expiry(info.id);
        if info.generation > older {
            self.retry_mapping(info.id);
        }
    }

    /// A volume is not mapped here any more: what waits fails, what is out may still be answered.
    fn unmap(&mut self, id: VolumeId) {
        let Some(v) = self.volumes.get_mut(&id) else { return };
        v.mapped = false;
        v.mapping_waiters.clear();
        v.unflushed.values_mut().for_each(Unflushed::forget_answers);
        if v.shown.take().is_some() {
            self.out.push(Action::VolumeChanged { volume: id, state: None });
        }
        self.fail_waiting(id, false);
        self.watch_unmapped(id);
        if self.volumes.get(&id).is_some_and(|v| v.load == 0 && v.parts == 0) {
            self.volumes.remove(&id);
        }
    }

    /// Keeps links to the servers that lead a group of a mapped volume's pool.
    pub(super) fn refresh_wanted(&mut self) {
        self.wanted_stale = false;
        let mut pools: Vec<_> =
            self.volumes.values().filter(|v| v.mapped).map(|v| v.pool).collect();
        pools.sort_unstable();
        pools.dedup();
        let primaries = self.view.pgs.values().filter(|c| pools.contains(&c.pg.pool()));
        let mut wanted: Vec<Target> =
            primaries.filter_map(|c| self.target_of(c.primary?)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        self.wanted = wanted.iter().copied().collect();
        for target in wanted {
            self.want(target);
        }
    }
}
