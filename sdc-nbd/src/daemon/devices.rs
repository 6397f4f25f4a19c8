//! Kernel devices: a worker thread a volume ([`super::device`]), given the newest wish.
//!
//! When the daemon ends devices stay connected: the kernel holds requests until the next start.

use super::device::{Device, Link};
use super::mail::{DeviceState, DeviceWish, ToShard, WantedDevice};
use quarry_base::VolumeId;
use quarry_ring::Waker;
use std::collections::HashMap;
use std::sync::mpsc::{sync_channel, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Volumes with kernel devices at most.
const MAX_DEVICES: usize = 256;

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
    cluster: String,
    workers: HashMap<VolumeId, Worker>,
}

impl Devices {
    pub fn new(shard: mpsc::Sender<ToShard>, waker: Waker) -> Devices {
        Devices { shard, waker, cluster: String::new(), workers: HashMap::new() }
    }

    /// The cluster's id, part of every device's identifier.
    pub fn set_cluster(&mut self, cluster: &str) {
        self.cluster = cluster.to_string();
    }

    /// A device is wanted, changed, or not wanted any more.
    pub fn wish(&mut self, wish: DeviceWish) {
        let DeviceWish { volume, wanted } = wish;
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
            _ => self.workers.remove(&volume).map(|w| w.thread),
        };
        let Some(wanted) = wanted else { return link.state_later(DeviceState::None) };
        if self.workers.len() >= MAX_DEVICES {
            let why = format!("{MAX_DEVICES} kernel devices are the limit of one client");
            return link.state_later(DeviceState::Failed(why));
        }
        self.spawn(link, wanted, leaving);
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
        let device = Device::new(link.clone(), &self.cluster, &wanted.name);
        newest.with(|n| n.wanted = Some(wanted));
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
            Err(e) => told.state_later(DeviceState::Failed(format!("cannot start a thread: {e}"))),
        }
    }
}
