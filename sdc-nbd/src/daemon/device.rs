//! One volume's kernel device, on a thread of its own: every call to the kernel here may block.
//!
//! Follows the newest wish: attaches (or takes over what an earlier process of this client left
//! connected), resizes, detaches, and tells the data thread. What fails is tried again.
//!
//! A device has **one** connection and no I/O timeout. With several, or with a timeout, the kernel
//! gives a connection up when a request takes long, and sends the request again on another while the
//! first may still lie unread in the old one's buffer: carried out late, it would undo newer writes.
//! As it is, the kernel sends again only what was sent on a connection that is gone, and this daemon
//! never reads from one that it has replaced.

use super::devices::Newest;
use super::mail::{DeviceState, ToShard, WantedDevice};
use crate::kernel::{probe_or_load, socket_pair, Connect, KernelError, KernelNbd};
use quarry_base::{VolumeId, PAGE};
use quarry_nbd_proto::Export;
use quarry_ring::Waker;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the kernel holds requests while this daemon is away. Longer than any restart.
const DEAD_CONN: Duration = Duration::from_secs(600);
/// How often the kernel looks whether the connection of an unanswered request was replaced: that long
/// may what was in flight when a daemon died wait after its return.
const REQUEST_TIMER: Duration = Duration::from_secs(3);
/// How long taking a device over may take, and letting one go.
const PATIENCE: Duration = Duration::from_secs(10);
/// Wait before what failed is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Wait before it is looked again whether a device can be resized now.
const NOT_NOW: Duration = Duration::from_secs(1);
/// How long the data thread may take to say how a volume does.
const ASK: Duration = Duration::from_secs(2);

/// The way to the data thread.
#[derive(Clone)]
pub(super) struct Link {
    pub shard: mpsc::Sender<ToShard>,
    pub waker: Waker,
    pub volume: VolumeId,
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
    /// Is what the device has in flight answered? From a worker thread only.
    fn is_calm(&self) -> bool {
        let (answer, told) = sync_channel(1);
        self.send(ToShard::Calm { volume: self.volume, answer });
        told.recv_timeout(ASK).unwrap_or(false)
    }
    fn adopt(&self, fd: OwnedFd) {
        self.send(ToShard::Adopt { volume: self.volume, fd });
    }
    /// From the control thread, which must not wait.
    pub fn state_later(self, state: DeviceState) {
        tokio::spawn(async move {
            let m = ToShard::Device { volume: self.volume, state };
            if self.shard.send(m).await.is_ok() {
                self.waker.wake();
            }
        });
    }
}

/// A connected device.
struct Attached {
    index: u32,
    name: String,
    size: u64,
}

/// What bringing a device to its wish came to.
struct Brought {
    state: DeviceState,
    /// Something is still to be done, after this wait.
    again: Option<Duration>,
}

/// The identifier of a volume's device; with an empty name how those of the volume begin.
pub(super) fn backend(cluster: &str, volume: VolumeId, name: &str) -> String {
    format!("quarry:{cluster}:{volume}:{name}")
}

/// One volume's device, in its worker.
pub(super) struct Device {
    link: Link,
    backend: String,
    attached: Option<Attached>,
    told: DeviceState,
    /// A new size waits, and that has been said.
    held_up: bool,
}

impl Device {
    /// The identifier is what the udev rule in deploy/ takes the volume's name from.
    pub fn new(link: Link, cluster: &str, name: &str) -> Device {
        let backend = backend(cluster, link.volume, name);
        Device { link, backend, attached: None, told: DeviceState::Pending, held_up: false }
    }

    /// Works until the volume is let go or the daemon ends.
    pub fn follow(mut self, newest: &Newest, rings: &Receiver<()>) {
        loop {
            let (wanted, lost) = newest.take();
            let brought = match &wanted {
                Some(w) => self.bring(w, lost).unwrap_or_else(|e| Brought {
                    state: DeviceState::Failed(e.to_string()),
                    again: Some(RETRY),
                }),
                None => {
                    self.let_go();
                    Brought { state: DeviceState::None, again: None }
                }
            };
            self.tell(brought.state);
            let ring = match brought.again {
                Some(wait) => rings.recv_timeout(wait),
                None => rings.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if ring != Err(RecvTimeoutError::Disconnected) {
                continue;
            }
            // Let go; or the daemon ends, and the device stays connected.
            if wanted.is_none() || newest.wanted() {
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

    /// Attaches, connects again what was lost, resizes.
    fn bring(&mut self, w: &WantedDevice, lost: bool) -> Result<Brought, KernelError> {
        let kernel = probe_or_load()?;
        if self.attached.is_none() {
            self.attached = Some(self.attach(&kernel, w)?);
        } else if lost {
            self.connect_again(&kernel)?;
        }
        let Some(a) = &self.attached else { return Err(self.vanished()) };
        let node = kernel.publish(a.index, &w.name)?;
        let (index, size) = (a.index, a.size);
        let again = if size == w.size_bytes { None } else { self.resize(&kernel, index, w) };
        Ok(Brought { state: DeviceState::Attached(node.display().to_string()), again })
    }

    /// Gives the device its new size; when to try again. It works in its old size until the kernel takes the new one.
    ///
    /// Linux 6.9 and later let nothing more in until all that is in flight is answered, and hold the device's
    /// configuration meanwhile. If this process ended then, the next could not take the device over: so it is not begun while
    /// anything stands still.
    fn resize(&mut self, kernel: &KernelNbd, index: u32, w: &WantedDevice) -> Option<Duration> {
        let volume = self.link.volume;
        if !self.link.is_calm() {
            if !self.held_up {
                tracing::info!(%volume, "a kernel device keeps its old size while its I/O stands still");
            }
            self.held_up = true;
            return Some(NOT_NOW);
        }
        self.held_up = false;
        match kernel.resize(index, &self.backend, w.size_bytes) {
            Ok(()) => {
                tracing::info!(%volume, bytes = w.size_bytes, "kernel device resized");
                self.attached.iter_mut().for_each(|a| a.size = w.size_bytes);
                None
            }
            Err(error) => {
                tracing::warn!(%volume, %error, "a kernel device keeps its old size for now");
                Some(RETRY)
            }
        }
    }

    fn vanished(&self) -> KernelError {
        KernelError::Invalid(format!("the device of volume {} is gone", self.link.volume))
    }

    /// Takes over what is connected already, or connects anew.
    fn attach(&self, kernel: &KernelNbd, w: &WantedDevice) -> Result<Attached, KernelError> {
        let mut found = None;
        for left in kernel.find(&self.backend) {
            match self.take_over(kernel, left.index) {
                Ok(()) => {
                    found = Some((left.index, left.size));
                    break;
                }
                // Detached earlier and still held open by somebody: it answers nothing any more.
                Err(KernelError::Invalid(why)) => {
                    tracing::warn!(volume = %self.link.volume, why, "an earlier kernel device is not taken over");
                }
                Err(e) => return Err(e),
            }
        }
        let (index, size) = match found {
            Some(f) => f,
            None => (self.connect(kernel, w)?, w.size_bytes),
        };
        if let Err(error) = kernel.set_request_timer(index, REQUEST_TIMER) {
            tracing::warn!(volume = %self.link.volume, %error, "requests in flight will wait 30 s after a crash of this daemon");
        }
        Ok(Attached { index, name: w.name.clone(), size })
    }

    fn take_over(&self, kernel: &KernelNbd, index: u32) -> Result<(), KernelError> {
        let link = self.link.clone();
        kernel.reconnect(index, &self.backend, 1, PATIENCE, &mut |fd| link.adopt(fd))?;
        tracing::info!(volume = %self.link.volume, index, "kernel device taken over");
        Ok(())
    }

    /// The connection broke while the daemon runs.
    fn connect_again(&mut self, kernel: &KernelNbd) -> Result<(), KernelError> {
        let Some(index) = self.attached.as_ref().map(|a| a.index) else { return Ok(()) };
        match self.take_over(kernel, index) {
            // Detached by somebody else: it is attached anew.
            Err(e @ KernelError::Invalid(_)) => {
                self.attached = None;
                Err(e)
            }
            r => r,
        }
    }

    fn connect(&self, kernel: &KernelNbd, w: &WantedDevice) -> Result<u32, KernelError> {
        let (ours, kernels) = socket_pair()?;
        self.link.adopt(ours);
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
            sockets: &[kernels],
        })
    }

    /// The volume is not mapped any more: its device goes, also when something still holds it, for
    /// its requests fail already.
    fn let_go(&mut self) {
        let Some(Attached { index, name, .. }) = self.attached.take() else { return };
        let gone = probe_or_load().and_then(|k| k.detach(index, &name, true, PATIENCE));
        match gone {
            Ok(()) => tracing::info!(volume = %self.link.volume, index, "kernel device detached"),
            Err(error) => {
                tracing::warn!(volume = %self.link.volume, index, %error, "a detached kernel device is still held");
            }
        }
    }
}
