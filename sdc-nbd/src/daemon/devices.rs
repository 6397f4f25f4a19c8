//! Kernel devices: a worker thread a volume ([`super::device`]), given the newest wish.
//!
//! When the daemon ends devices stay connected: the kernel holds requests until the next start.

use super::device::{Device, Link};
use super::mail::{DeviceState, DeviceWish, ToShard, WantedDevice};
use super::owner::{release, unwanted, Notes, Owner, PATIENCE};
use crate::kernel::{probe_or_load, Roots};
use quarry_base::VolumeId;
use quarry_ring::Waker;
use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{sync_channel, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Volumes with kernel devices at most.
const MAX_DEVICES: usize = 256;

/// Wait before a device that was refused is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// What a worker is to do, replaced by what is newer.
#[derive(Clone, Default)]
pub(super) struct Newest(Arc<Mutex<Wish>>);

#[derive(Default)]
struct Wish {
    wanted: Option<WantedDevice>,
    /// The connection broke since the worker looked last.
    lost: bool,
}

impl Newest {
    fn with<T>(&self, f: impl FnOnce(&mut Wish) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(|e| e.into_inner()))
    }
    /// The wish, and whether the connection broke since this was asked last.
    pub fn take(&self) -> (Option<WantedDevice>, bool) {
        self.with(|w| (w.wanted.clone(), std::mem::take(&mut w.lost)))
    }
    /// Whether a device is wanted at all.
    pub fn wanted(&self) -> bool {
        self.with(|w| w.wanted.is_some())
    }
}

struct Worker {
    newest: Newest,
    /// Absent: the worker ends when it has let go.
    bell: Option<SyncSender<()>>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn ring(&self) {
        if let Some(bell) = &self.bell {
            // Full: it rings already.
            bell.try_send(()).ok();
        }
    }
}

/// The workers.
pub struct Devices {
    shard: mpsc::Sender<ToShard>,
    waker: Waker,
    owner: Owner,
    notes: Notes,
    workers: HashMap<VolumeId, Worker>,
    /// Wanted, and refused for now: offered again.
    refused: HashMap<VolumeId, WantedDevice>,
    retried: Option<Instant>,
    /// So many at most.
    limit: usize,
}

impl Devices {
    pub fn new(shard: mpsc::Sender<ToShard>, waker: Waker, data_dir: &Path) -> Devices {
        Devices {
            shard,
            waker,
            owner: Owner::default(),
            notes: Notes::new(data_dir.to_path_buf()),
            workers: HashMap::new(),
            refused: HashMap::new(),
            retried: None,
            limit: MAX_DEVICES,
        }
    }

    /// Whose devices these are: part of every identifier.
    pub fn set_owner(&mut self, owner: Owner) {
        self.owner = owner;
    }

    /// Detaches what an earlier process of this client left connected and no mapping wants: nobody would ever serve it. Once,
    /// when all that is wanted at the start has been asked for.
    pub fn sweep(&self) {
        let wanted = self.workers.keys().chain(self.refused.keys()).copied().collect();
        let (owner, notes) = (self.owner.clone(), self.notes.clone());
        let body = move || {
            let gone = unwanted(owner.left(&Roots::default()), &wanted, &notes);
            if gone.is_empty() {
                return;
            }
            match probe_or_load() {
                Ok(kernel) => gone.iter().for_each(|l| {
                    if release(&kernel, l, PATIENCE) && !l.ours {
                        notes.forget(l.volume);
                    }
                }),
                Err(error) => tracing::warn!(%error, "kernel devices of earlier mappings stay"),
            }
        };
        if let Err(error) = std::thread::Builder::new().name("sdc-dev-sweep".into()).spawn(body) {
            tracing::warn!(%error, "kernel devices of earlier mappings stay");
        }
    }

    /// A device is wanted, changed, or not wanted any more.
    pub fn wish(&mut self, wish: DeviceWish) {
        let DeviceWish { volume, wanted } = wish;
        self.refused.remove(&volume);
        let link = Link { shard: self.shard.clone(), waker: self.waker.clone(), volume };
        self.workers.retain(|_, w| w.bell.is_some() || !w.thread.is_finished());
        let leaving = match self.workers.get_mut(&volume) {
            Some(w) if w.bell.is_some() => {
                let end = wanted.is_none();
                w.newest.with(|n| n.wanted = wanted);
                w.ring();
                if end {
                    w.bell = None;
                }
                return;
            }
            _ => self.workers.remove(&volume),
        };
        let wanted = match (wanted, leaving.is_some()) {
            (Some(w), _) => w,
            // Its worker says so when it has let go.
            (None, true) => return self.workers.extend(leaving.map(|w| (volume, w))),
            (None, false) => return link.state_later(DeviceState::None),
        };
        // One that is letting go of its device may take long, and is none of them any more.
        if self.workers.values().filter(|w| w.bell.is_some()).count() >= self.limit {
            self.workers.extend(leaving.map(|w| (volume, w)));
            let why = format!("{} kernel devices are the limit of one client", self.limit);
            return self.refuse(link, wanted, why);
        }
        self.spawn(link, wanted, leaving.map(|w| w.thread));
    }

    /// For now: what is in the way may pass.
    fn refuse(&mut self, link: Link, wanted: WantedDevice, why: String) {
        self.refused.insert(link.volume, wanted);
        link.state_later(DeviceState::Failed(why));
    }

    /// Tries again what was refused, now and then.
    pub fn retry(&mut self, now: Instant) {
        if self.refused.is_empty() || self.retried.is_some_and(|at| now - at < RETRY) {
            return;
        }
        self.retried = Some(now);
        for (volume, wanted) in std::mem::take(&mut self.refused) {
            self.wish(DeviceWish { volume, wanted: Some(wanted) });
        }
    }

    /// The connection of a volume's device broke.
    pub fn lost(&mut self, volume: VolumeId) {
        if let Some(w) = self.workers.get(&volume) {
            w.newest.with(|n| n.lost = true);
            w.ring();
        }
    }

    fn spawn(&mut self, link: Link, wanted: WantedDevice, leaving: Option<JoinHandle<()>>) {
        let volume = link.volume;
        let newest = Newest::default();
        let device = Device::new(link.clone(), self.owner.clone(), self.notes.clone());
        newest.with(|n| n.wanted = Some(wanted.clone()));
        let (bell, rings) = sync_channel(1);
        let (seen, told) = (newest.clone(), link);
        let body = move || {
            if leaving.is_some_and(|t| t.join().is_err()) {
                tracing::error!(%volume, "the earlier worker of a kernel device failed");
            }
            device.follow(&seen, &rings);
        };
        match std::thread::Builder::new().name(format!("sdc-dev-{volume}")).spawn(body) {
            Ok(thread) => {
                drop(self.workers.insert(volume, Worker { newest, bell: Some(bell), thread }))
            }
            Err(e) => self.refuse(told, wanted, format!("cannot start a thread: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_base::Generation;
    use quarry_ring::{Reactor, RingConfig};

    fn wanted() -> WantedDevice {
        let since = Generation(2);
        WantedDevice { name: "v".into(), since, size_bytes: 1 << 20, read_only: false }
    }

    #[tokio::test]
    async fn a_device_that_was_refused_is_tried_again() {
        let (tx, mut rx) = mpsc::channel(16);
        let reactor = Reactor::new(RingConfig::default()).unwrap();
        let mut d = Devices::new(tx, reactor.waker(), Path::new("/nonexistent"));
        d.limit = 0;
        let volume = VolumeId(7);
        d.wish(DeviceWish { volume, wanted: Some(wanted()) });
        let mut told = async || match rx.recv().await {
            Some(ToShard::Device { state, .. }) => state,
            _ => panic!("something else is told"),
        };
        let DeviceState::Failed(why) = told().await else { panic!("not refused") };
        assert!(why.contains("the limit of one client"), "{why}");
        let now = Instant::now();
        // Still refused; then there is room, and later it is looked again.
        d.retry(now);
        assert!(matches!(told().await, DeviceState::Failed(_)));
        d.limit = 1;
        d.retry(now + RETRY / 2);
        assert!(d.workers.is_empty());
        d.retry(now + RETRY);
        assert!(d.workers.contains_key(&volume) && d.refused.is_empty());
        // It is not wanted any more: nor is it tried.
        d.wish(DeviceWish { volume, wanted: None });
        d.limit = 0;
        d.wish(DeviceWish { volume, wanted: Some(wanted()) });
        d.wish(DeviceWish { volume, wanted: None });
        d.limit = 1;
        d.retry(now + 3 * RETRY);
        assert!(d.refused.is_empty());
        assert!(d.workers.values().all(|w| w.bell.is_none()));
    }
}
