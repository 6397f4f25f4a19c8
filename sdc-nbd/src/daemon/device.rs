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
use super::owner::{release, Left, Notes, Owner, PATIENCE};
use crate::kernel::{probe_or_load, socket_pair, Connect, KernelError, KernelNbd, Roots};
use quarry_base::{Generation, VolumeId, PAGE};
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
/// How long a volume's new device waits for the end of one of an earlier mapping, which somebody may still hold.
const BRIEFLY: Duration = Duration::from_secs(1);
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
    /// Its identifier, which one that was taken over keeps.
    backend: String,
}

/// What bringing a device to its wish came to.
struct Brought {
    state: DeviceState,
    /// Something is still to be done, after this wait.
    again: Option<Duration>,
}

/// One volume's device, in its worker.
pub(super) struct Device {
    link: Link,
    owner: Owner,
    notes: Notes,
    attached: Option<Attached>,
    told: DeviceState,
    /// A new size waits, and that has been said.
    held_up: bool,
}

impl Device {
    pub fn new(link: Link, owner: Owner, notes: Notes) -> Device {
        let told = DeviceState::Pending;
        Device { link, owner, notes, attached: None, told, held_up: false }
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
        if !kernel.is_connected_as(a.index, &a.backend) {
            // Detached by somebody else; its number may be another's by now.
            self.attached = None;
            return Err(self.vanished());
        }
        let node = kernel.publish(a.index, &w.name)?;
        let again = if a.size == w.size_bytes { None } else { self.resize(&kernel, w) };
        Ok(Brought { state: DeviceState::Attached(node.display().to_string()), again })
    }

    /// Gives the device its new size; when to try again. It works in its old size until the kernel takes the new one.
    ///
    /// Linux 6.9 and later let nothing more in until all that is in flight is answered, and hold the device's
    /// configuration meanwhile. If this process ended then, the next could not take the device over: so it is not begun while
    /// anything stands still.
    fn resize(&mut self, kernel: &KernelNbd, w: &WantedDevice) -> Option<Duration> {
        let volume = self.link.volume;
        if !self.link.is_calm() {
            if !self.held_up {
                tracing::info!(%volume, "a kernel device keeps its old size while its I/O stands still");
            }
            self.held_up = true;
            return Some(NOT_NOW);
        }
        self.held_up = false;
        let a = self.attached.as_mut()?;
        match kernel.resize(a.index, &a.backend, w.size_bytes) {
            Ok(()) => {
                tracing::info!(%volume, bytes = w.size_bytes, "kernel device resized");
                a.size = w.size_bytes;
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

    /// Takes over what is connected for this very mapping, or connects anew. What is connected for an earlier one goes: the
    /// kernel would send what it held of then again, over what others wrote since.
    fn attach(&self, kernel: &KernelNbd, w: &WantedDevice) -> Result<Attached, KernelError> {
        let volume = self.link.volume;
        let (same, earlier) = self.left(kernel.roots(), w.since);
        for left in earlier {
            tracing::warn!(%volume, index = left.index, "a kernel device of an earlier mapping is detached");
            release(kernel, &left, BRIEFLY);
        }
        let mut found = None;
        for left in same {
            if left.since == Generation::ZERO {
                self.notes.keep(volume, w.since);
            }
            match self.take_over(kernel, left.index, &left.backend) {
                Ok(()) => {
                    found = Some(left);
                    break;
                }
                // Detached earlier and still held open by somebody: it answers nothing any more.
                Err(KernelError::Invalid(why)) => {
                    tracing::warn!(%volume, why, "an earlier kernel device is not taken over");
                }
                Err(e) => return Err(e),
            }
        }
        let (index, size, backend) = match found {
            Some(f) => (f.index, f.size, f.backend),
            None => {
                self.forget_note(kernel.roots());
                let backend = self.owner.backend(volume, w.since, &w.name);
                (self.connect(kernel, w, &backend)?, w.size_bytes, backend)
            }
        };
        if let Err(error) = kernel.set_request_timer(index, REQUEST_TIMER) {
            tracing::warn!(%volume, %error, "requests in flight will wait 30 s after a crash of this daemon");
        }
        Ok(Attached { index, name: w.name.clone(), size, backend })
    }

    /// What is connected of the volume: devices that can be of the mapping since then, and those of earlier ones.
    fn left(&self, roots: &Roots, since: Generation) -> (Vec<Left>, Vec<Left>) {
        let volume = self.link.volume;
        let note = self.notes.get(volume);
        let all = self.owner.left_of(roots, volume);
        all.into_iter().partition(|l| l.may_be_of(since, note))
    }

    fn take_over(&self, kernel: &KernelNbd, index: u32, backend: &str) -> Result<(), KernelError> {
        let link = self.link.clone();
        kernel.reconnect(index, backend, 1, PATIENCE, &mut |fd| link.adopt(fd))?;
        tracing::info!(volume = %self.link.volume, index, "kernel device taken over");
        Ok(())
    }

    /// The connection broke while the daemon runs.
    fn connect_again(&mut self, kernel: &KernelNbd) -> Result<(), KernelError> {
        let Some(a) = &self.attached else { return Ok(()) };
        match self.take_over(kernel, a.index, &a.backend) {
            // Detached by somebody else: it is attached anew.
            Err(e @ KernelError::Invalid(_)) => {
                self.attached = None;
                Err(e)
            }
            r => r,
        }
    }

    fn connect(
        &self,
        kernel: &KernelNbd,
        w: &WantedDevice,
        backend: &str,
    ) -> Result<u32, KernelError> {
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
            backend,
            dead_conn_timeout: DEAD_CONN,
            io_timeout: Duration::ZERO,
            sockets: &[kernels],
        })
    }

    /// The volume is not mapped any more: its device goes, also when something still holds it, for
    /// its requests fail already.
    fn let_go(&mut self) {
        let roots = Roots::default();
        let going = self.going(&roots);
        self.attached = None;
        if !going.is_empty() {
            match probe_or_load() {
                Ok(kernel) => going.iter().for_each(|l| {
                    release(&kernel, l, PATIENCE);
                }),
                Err(error) => {
                    tracing::warn!(volume = %self.link.volume, %error, "a kernel device stays");
                }
            }
        }
        self.forget_note(&roots);
    }

    /// The devices to let go of: the attached one, and what is connected of the volume besides, as when it could not be taken
    /// over.
    fn going(&self, roots: &Roots) -> Vec<Left> {
        let volume = self.link.volume;
        let attached = self.attached.iter().map(|a| Left {
            index: a.index,
            size: a.size,
            backend: a.backend.clone(),
            volume,
            since: Generation::ZERO,
            ours: true,
            name: a.name.clone(),
        });
        let mut going: Vec<Left> = attached.collect();
        let noted = self.notes.get(volume).is_some();
        for l in self.owner.left_of(roots, volume) {
            if (l.ours || noted) && going.iter().all(|g| g.index != l.index) {
                going.push(l);
            }
        }
        going
    }

    /// Nothing needs to be remembered of the volume's devices, unless one that does not say its mapping is still there.
    fn forget_note(&self, roots: &Roots) {
        let left = self.owner.left_of(roots, self.link.volume);
        if left.iter().all(|l| l.since != Generation::ZERO) {
            self.notes.forget(self.link.volume);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::device::tests::{scratch, show};
    use quarry_base::SdcId;
    use quarry_ring::{Reactor, RingConfig};

    const VOLUME: VolumeId = VolumeId(7);

    fn device(dir: &std::path::Path) -> Device {
        let reactor = Reactor::new(RingConfig::default()).unwrap();
        let link = Link { shard: mpsc::channel(1).0, waker: reactor.waker(), volume: VOLUME };
        let owner = Owner { cluster: "c".into(), sdc: SdcId(9) };
        Device::new(link, owner, Notes::new(dir.to_path_buf()))
    }

    fn connected(roots: &Roots, index: u32, backend: &str) {
        show(roots, index, "size", "8\n");
        show(roots, index, "pid", "1\n");
        show(roots, index, "backend", backend);
    }

    fn indices(left: &[Left]) -> Vec<u32> {
        left.iter().map(|l| l.index).collect()
    }

    #[test]
    fn a_restarted_client_takes_nothing_over_of_an_earlier_mapping() {
        let dir = scratch("earlier");
        let (roots, d) = (Roots::under(&dir), device(&dir));
        connected(&roots, 0, "quarry:c:7.3.9:db");
        connected(&roots, 1, "quarry:c:7.5.9:db");
        connected(&roots, 2, "quarry:c:7.5.8:db");
        connected(&roots, 3, "quarry:c:7:db");
        let (same, earlier) = d.left(&roots, Generation(5));
        assert_eq!((indices(&same), indices(&earlier)), (vec![1, 3], vec![0]));
        // Once taken over under a mapping, one without its own word is of that one alone.
        d.notes.keep(VOLUME, Generation(5));
        let (same, earlier) = d.left(&roots, Generation(8));
        assert_eq!((indices(&same), indices(&earlier)), (vec![], vec![0, 1, 3]));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_device_that_could_not_be_taken_over_is_let_go_with_the_volume() {
        let dir = scratch("going");
        let (roots, mut d) = (Roots::under(&dir), device(&dir));
        connected(&roots, 0, "quarry:c:7.3.9:db");
        connected(&roots, 1, "quarry:c:7.3.8:db");
        connected(&roots, 2, "quarry:c:7:db");
        let going = |d: &Device| indices(&d.going(&roots));
        assert_eq!(going(&d), [0], "nothing is attached");
        d.notes.keep(VOLUME, Generation(3));
        assert_eq!(going(&d), [0, 2], "it was tried");
        let backend = "quarry:c:7.3.9:db".to_string();
        d.attached = Some(Attached { index: 4, name: "db".into(), size: 8, backend });
        assert_eq!(going(&d), [4, 0, 2]);
        d.forget_note(&roots);
        assert!(d.notes.get(VOLUME).is_some(), "one that does not say its mapping is held still");
        std::fs::remove_file(dir.join("sys/block/nbd2/pid")).unwrap();
        d.forget_note(&roots);
        assert_eq!(d.notes.get(VOLUME), None);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
