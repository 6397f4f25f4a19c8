//! Devices: formatting, recovery, and the way of completions to whoever asked.

use super::Shard;
use crate::device::Phase;
use crate::disk::{Owner, Target};
use crate::format;
use crate::mail::FromShard;
use crate::state::{to_hex, FailedDevice};
use quarry_base::{DeviceId, Nanos};
use quarry_control::RegisteredDevice;
use quarry_replica::Event as In;
use quarry_store::{DiskOp, DiskResult, StoreError, StoreEvent};

impl Shard {
    /// Starts an operation on a device.
    pub(super) fn submit(&mut self, device: usize, op: DiskOp) {
        let (Some(d), Some(metrics)) = (self.devices.get(device), self.device_metrics.get(device))
        else {
            return;
        };
        let to = Target { device, file: d.file, direct: d.direct, metrics };
        self.disks.submit(&mut self.reactor, &to, op);
    }

    /// Index of a device by the id the MDM gave it.
    pub(super) fn index_of(&self, id: DeviceId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn disk_done(&mut self, now: Nanos, token: u64, result: DiskResult) {
        let Some(done) = self.disks.complete(now, token, result, &self.device_metrics) else {
            tracing::error!(token, "a completion that belongs to nothing");
            return;
        };
        if let Some(errno) = done.lost {
            self.remember_failure(done.device, errno);
        }
        let Some(d) = self.devices.get_mut(done.device) else { return };
        match (done.owner, &mut d.phase) {
            (Owner::Store(id), Phase::Opening(s) | Phase::Recovered(s)) => {
                s.complete(now, id, done.result);
            }
            (Owner::Store(id), Phase::Serving) => {
                if let Some(device) = d.id {
                    let event = In::Disk { device, id, result: done.result };
                    self.engine.step(now, event, &mut self.actions);
                }
            }
            (Owner::Format, Phase::Formatting(_)) => self.format_done(done.device, done.result),
            // The store is gone with its failure; what it had under way interests nobody.
            _ => {}
        }
    }

    /// A write or sync of a device has failed. Behind the page cache that outlasts this process: see `state.rs`.
    fn remember_failure(&mut self, device: usize, errno: i32) {
        let Some(d) = self.devices.get_mut(device).filter(|d| !d.direct && !d.lost) else { return };
        d.lost = true;
        let why = format!("a write or sync: {}", std::io::Error::from_raw_os_error(errno));
        let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let at = at.map_or(0, |d| d.as_secs());
        let boot = quarry_control::host_identity().1;
        let failed = FailedDevice { path: d.path.clone(), why, at, boot };
        self.failures.push((to_hex(&d.uuid), failed));
        self.tell_failures();
    }

    /// Has failures kept by the control thread; those it has no room for now, at the next call.
    pub(super) fn tell_failures(&mut self) {
        while let Some((uuid, device)) = self.failures.pop() {
            if let Err(e) = self.tx.try_send(FromShard::Failed { uuid, device }) {
                if let FromShard::Failed { uuid, device } = e.into_inner() {
                    self.failures.push((uuid, device));
                }
                return;
            }
        }
    }

    fn format_done(&mut self, device: usize, result: DiskResult) {
        let DiskResult::Done(Err(errno)) = result else {
            return self.format_step(device);
        };
        if let Some(d) = self.devices.get_mut(device) {
            let why = format::failure(&d.path, errno);
            tracing::error!(device = %d.path.display(), "{why}");
            d.phase = Phase::Failed(why);
            d.unformatted = true;
        }
    }

    /// Does the next step of formatting, or begins recovery after the last one.
    fn format_step(&mut self, device: usize) {
        let (Some(d), Some(metrics)) =
            (self.devices.get_mut(device), self.device_metrics.get(device))
        else {
            return;
        };
        let Phase::Formatting(f) = &mut d.phase else { return };
        match f.next_op() {
            Some(op) => {
                let to = Target { device, file: d.file, direct: d.direct, metrics };
                self.disks.submit_format(&mut self.reactor, &to, op);
            }
            None => {
                tracing::info!(device = %d.path.display(), "formatted");
                d.recover(None);
                let path = d.path.clone();
                if self.tx.try_send(FromShard::Formatted(path)).is_err() {
                    // The remembered identity is then only forgotten later.
                    tracing::debug!("the control thread is busy");
                }
            }
        }
    }

    /// Turns the crank of stores that recover.
    pub(super) fn drive_devices(&mut self) {
        if !self.devices.iter().any(|d| matches!(d.phase, Phase::Opening(_) | Phase::Recovered(_)))
        {
            return;
        }
        let now = self.reactor.now();
        for device in 0..self.devices.len() {
            let (mut ops, mut events) = (Vec::new(), Vec::new());
            match self.devices.get_mut(device).map(|d| &mut d.phase) {
                Some(Phase::Opening(s) | Phase::Recovered(s)) => s.poll(now, &mut ops, &mut events),
                _ => continue,
            }
            for op in ops {
                self.submit(device, op);
            }
            for e in events {
                match e {
                    StoreEvent::Opened => self.recovered(now, device),
                    StoreEvent::OpenFailed(error) => self.open_failed(device, &error),
                    _ => {}
                }
            }
        }
    }

    fn recovered(&mut self, now: Nanos, device: usize) {
        let Some(d) = self.devices.get_mut(device) else { return };
        let phase = std::mem::replace(&mut d.phase, Phase::Blank);
        let Phase::Opening(store) = phase else {
            d.phase = phase;
            return;
        };
        d.open_seconds = now.since(d.opening_since).as_secs_f64();
        let stats = store.stats();
        d.capacity_bytes = stats.capacity_bytes;
        d.used_bytes = stats.used_bytes;
        d.recovered = quarry_replica::haves_of(&store);
        tracing::info!(device = %d.path.display(), groups = d.recovered.len(), "device is open");
        let pages = store.unreadable_at_open();
        if pages > 0 {
            tracing::warn!(device = %d.path.display(), pages, "pages of the device's tables or log cannot be read: taken as damaged, none of them is needed");
        }
        d.phase = Phase::Recovered(store);
        self.serve_if_known(now, device);
    }

    fn open_failed(&mut self, device: usize, error: &StoreError) {
        let Some(d) = self.devices.get_mut(device) else { return };
        let why = format!(
            "{}: {error}; its data is restored from other copies: replace the device, or wipe it with `sds-server format --force {}`",
            d.path.display(),
            d.path.display()
        );
        tracing::error!(device = %d.path.display(), "{why}");
        d.phase = Phase::Failed(why);
    }

    /// Why there is nothing to serve: no device could be formatted. `None` while one has data. (A server
    /// whose devices fail later stays, so that the MDM can tell why.)
    pub(super) fn none_formatted(&self) -> Option<String> {
        if !self.devices.iter().all(|d| d.unformatted) {
            return None;
        }
        let why: Vec<&str> = self.devices.iter().filter_map(|d| d.failure()).collect();
        Some(why.join("; "))
    }

    /// The MDM has given ids: blank devices are formatted, recovered ones served.
    pub(super) fn devices_registered(
        &mut self,
        now: Nanos,
        cluster: [u8; 16],
        ids: &[RegisteredDevice],
    ) {
        for index in 0..self.devices.len() {
            let Some(d) = self.devices.get_mut(index) else { continue };
            let uuid = to_hex(&d.uuid);
            let Some(known) = ids.iter().find(|r| r.uuid == uuid) else {
                tracing::warn!(device = %d.path.display(), "the MDM does not know this device yet");
                continue;
            };
            if d.id.is_some_and(|id| id != known.id) && matches!(d.phase, Phase::Serving) {
                tracing::error!(device = %d.path.display(), "the MDM gave a device another id; kept as it was");
                continue;
            }
            d.id = Some(known.id);
            self.by_id.insert(known.id, index);
            if matches!(d.phase, Phase::Blank) {
                if let Err(why) = d.format(cluster, known.id) {
                    let why = format!("{} cannot be formatted: {why}", d.path.display());
                    tracing::error!("{why}");
                    d.phase = Phase::Failed(why);
                    d.unformatted = true;
                    continue;
                }
                self.format_step(index);
            }
            self.serve_if_known(now, index);
        }
    }

    /// Gives a recovered store to the engine when registration is there.
    fn serve_if_known(&mut self, now: Nanos, index: usize) {
        let Some(d) = self.devices.get_mut(index) else { return };
        let (Some(_), Some(device)) = (self.registered, d.id) else { return };
        if !self.by_id.contains_key(&device) {
            return;
        }
        match std::mem::replace(&mut d.phase, Phase::Serving) {
            Phase::Recovered(store) => {
                let event = In::DeviceOpened { device, store: *store };
                self.engine.step(now, event, &mut self.actions);
            }
            other => d.phase = other,
        }
    }
}
