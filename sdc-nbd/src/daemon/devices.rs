//! Kernel devices: a worker thread a volume, because every call to the kernel there may block.
//!
//! A worker follows the newest wish: attaches (or takes over what an earlier process of this client
//! left connected), resizes, detaches, and tells the data thread. A wish that fails is tried again.
//! When the daemon ends devices stay connected: the kernel holds requests until the next start.

use super::mail::{DeviceState, DeviceWish, ToShard, WantedDevice};
use crate::kernel::{probe_or_load, socket_pair, Connect, KernelError, KernelNbd};
use quarry_base::{VolumeId, PAGE};
use quarry_nbd_proto::Export;
use quarry_ring::Waker;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;

/// Volumes with kernel devices at most.
const MAX_DEVICES: usize = 256;
/// Connections of a device.
const CONNECTIONS: usize = 4;
/// How long the kernel holds requests while this daemon is away. Longer than any restart.
const DEAD_CONN: Duration = Duration::from_secs(600);
/// How long taking a device over may take, and letting one go.
const PATIENCE: Duration = Duration::from_secs(10);
/// Wait before a failed wish is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// The way to the data thread.
#[derive(Clone)]
struct Link {
    shard: mpsc::Sender<ToShard>,
    waker: Waker,
    volume: VolumeId,
}

impl Link {
    /// From a worker thread only: waits for room.
    fn send(&self, m: ToShard) {
        // A data thread that is gone needs no news.
        if self.shard.blocking_send(m).is_ok() {
            self.waker.wake();
        }
    }
    fn state(&self, state: DeviceState) {
        self.send(ToShard::Device { volume: self.volume, state });
    }
    fn adopt(&self, fd: OwnedFd) {
        self.send(ToShard::Adopt { volume: self.volume, fd });
    }
    /// From the control thread, which must not wait.
    fn state_later(self, state: DeviceState) {
        tokio::spawn(async move {
            let m = ToShard::Device { volume: self.volume, state };
            if self.shard.send(m).await.is_ok() {
                self.waker.wake();
            }
        });
    }
}

type Newest = Arc<Mutex<Option<WantedDevice>>>;

struct Worker {
    newest: Newest,
    /// Absent: the worker ends when it has let go.
    bell: Option<SyncSender<()>>,
    thread: JoinHandle<()>,
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
                *w.newest.lock().unwrap_or_else(|e| e.into_inner()) = wanted;
                if let Some(bell) = &w.bell {
                    // Full: it rings already.
                    bell.try_send(()).ok();
                }
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

    fn spawn(&mut self, link: Link, wanted: WantedDevice, leaving: Option<JoinHandle<()>>) {
        let volume = link.volume;
        let newest: Newest = Arc::new(Mutex::new(Some(wanted)));
        let (bell, rings) = sync_channel(1);
        let backend = format!("quarry:{}:{volume}", self.cluster);
        let (seen, told) = (Arc::clone(&newest), link.clone());
        let body = move || {
            if leaving.is_some_and(|t| t.join().is_err()) {
                tracing::error!(%volume, "the earlier worker of a kernel device failed");
            }
            Device { link, backend, attached: None, told: DeviceState::Pending }
                .follow(&seen, &rings);
        };
        match std::thread::Builder::new().name(format!("sdc-dev-{volume}")).spawn(body) {
            Ok(thread) => {
                drop(self.workers.insert(volume, Worker { newest, bell: Some(bell), thread }))
            }
            Err(e) => told.state_later(DeviceState::Failed(format!("cannot start a thread: {e}"))),
        }
    }
}

/// One volume's device, in its worker.
struct Device {
    link: Link,
    backend: String,
    /// Index, name and size.
    attached: Option<(u32, String, u64)>,
    told: DeviceState,
}

impl Device {
    fn follow(mut self, newest: &Newest, rings: &Receiver<()>) {
        loop {
            let wanted = newest.lock().unwrap_or_else(|e| e.into_inner()).clone();
            let state = match &wanted {
                Some(w) => self.bring(w).unwrap_or_else(|e| DeviceState::Failed(e.to_string())),
                None => {
                    self.let_go();
                    DeviceState::None
                }
            };
            let failed = matches!(state, DeviceState::Failed(_));
            self.tell(state);
            let ring = match failed {
                true => rings.recv_timeout(RETRY),
                false => rings.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if let (Err(RecvTimeoutError::Disconnected), None) = (ring, &wanted) {
                return;
            }
            if ring == Err(RecvTimeoutError::Disconnected)
                && newest.lock().unwrap_or_else(|e| e.into_inner()).is_some()
            {
                // The daemon ends: the device stays connected.
                return;
            }
        }
    }

    fn tell(&mut self, state: DeviceState) {
        if self.told == state {
            return;
        }
        match &state {
            DeviceState::Attached(node) => {
                tracing::info!(volume = %self.link.volume, node, "kernel device attached");
            }
            DeviceState::Failed(why) => {
                tracing::warn!(volume = %self.link.volume, why, "no kernel device; the socket works");
            }
            DeviceState::None | DeviceState::Pending => {}
        }
        self.told = state.clone();
        self.link.state(state);
    }

    /// Attaches or resizes.
    fn bring(&mut self, w: &WantedDevice) -> Result<DeviceState, KernelError> {
        let kernel = probe_or_load()?;
        let index = match &self.attached {
            Some((index, _, size)) => {
                if *size != w.size_bytes {
                    kernel.resize(*index, &self.backend, w.size_bytes)?;
                }
                *index
            }
            None => match kernel.find(&self.backend) {
                Some(left) => self.take_over(&kernel, left.index, left.size, w)?,
                None => self.connect(&kernel, w)?,
            },
        };
        self.attached = Some((index, w.name.clone(), w.size_bytes));
        let node = kernel.publish(index, &w.name)?;
        Ok(DeviceState::Attached(node.display().to_string()))
    }

    fn take_over(
        &self,
        kernel: &KernelNbd,
        index: u32,
        size: u64,
        w: &WantedDevice,
    ) -> Result<u32, KernelError> {
        let link = self.link.clone();
        kernel.reconnect(index, &self.backend, CONNECTIONS, PATIENCE, &mut |fd| link.adopt(fd))?;
        if size != w.size_bytes {
            kernel.resize(index, &self.backend, w.size_bytes)?;
        }
        Ok(index)
    }

    fn connect(&self, kernel: &KernelNbd, w: &WantedDevice) -> Result<u32, KernelError> {
        let mut ends = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let (ours, kernels) = socket_pair()?;
            self.link.adopt(ours);
            ends.push(kernels);
        }
        let export = Export {
            name: w.name.clone(),
            description: String::new(),
            size: w.size_bytes,
            read_only: w.read_only,
            min_block: 1,
            preferred_block: PAGE as u32,
            max_block: 32 << 20,
            multi_conn: true,
        };
        let block_size = if w.size_bytes.is_multiple_of(PAGE as u64) { PAGE as u32 } else { 512 };
        kernel.connect(&Connect {
            index: None,
            size: w.size_bytes,
            block_size,
            flags: export.transmission_flags(false),
            backend: &self.backend,
            dead_conn_timeout: DEAD_CONN,
            io_timeout: Duration::ZERO,
            sockets: &ends,
        })
    }

    /// The volume is not mapped any more: its device goes, also when something still holds it, for
    /// its requests fail already.
    fn let_go(&mut self) {
        let Some((index, name, _)) = self.attached.take() else { return };
        let gone = probe_or_load().and_then(|k| k.detach(index, &name, true, PATIENCE));
        if let Err(error) = gone {
            tracing::warn!(volume = %self.link.volume, index, %error, "a kernel device is still held");
        }
    }
}
