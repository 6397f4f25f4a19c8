//! What the control thread and the data thread say to each other. Both ways bounded; the data thread
//! never waits.

use super::error::SdcError;
use quarry_base::{ConfigIndex, DeviceId, Generation, Instance, PgId, SdcId, VolumeId};
use quarry_control::{Attachment, Change, ClusterView};
use quarry_ring::Waker;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::SyncSender;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Messages waiting for the data thread; when full, the control thread waits.
pub const TO_SHARD: usize = 256;
/// Messages waiting for the control thread; when full, the newest state is told later.
pub const FROM_SHARD: usize = 256;

/// Control thread to data thread.
pub enum ToShard {
    Registered {
        cluster: String,
        sdc: SdcId,
        instance: Instance,
    },
    View(Box<ClusterView>),
    Changes {
        index: ConfigIndex,
        changes: Vec<Change>,
    },
    /// The daemon's end of a connection of a kernel device, to be served as the volume.
    Adopt {
        volume: VolumeId,
        fd: OwnedFd,
    },
    /// How it stands with the kernel device of a volume.
    Device {
        volume: VolumeId,
        state: DeviceState,
    },
    /// Will what the volume's kernel device has in flight be answered soon, as far as can be told?
    Calm {
        volume: VolumeId,
        answer: SyncSender<bool>,
    },
    /// SIGTERM: finish what is in flight, and end.
    Stop,
}

/// A kernel device of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum DeviceState {
    /// Not wanted.
    #[default]
    None,
    /// Wanted, being attached.
    Pending,
    Attached(String),
    Failed(String),
}

/// A kernel device that is wanted, or (with `None`) not any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceWish {
    pub volume: VolumeId,
    pub wanted: Option<WantedDevice>,
}

/// What the kernel device should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedDevice {
    pub name: String,
    /// The volume's generation when its mapping was made; zero: not known.
    pub since: Generation,
    pub size_bytes: u64,
    pub read_only: bool,
}

/// Data thread to control thread.
pub enum FromShard {
    /// The whole list.
    Attachments(Vec<Attachment>),
    Unreachable {
        pg: PgId,
        device: DeviceId,
    },
    Device(DeviceWish),
    /// The first view is applied: whatever device is wanted has been asked for.
    DevicesKnown,
    /// The connection of a volume's kernel device broke while it is still wanted.
    DeviceLost(VolumeId),
    /// A newer instance exists; the data thread ends.
    Fenced,
}

/// The data thread as the control thread sees it.
pub struct ShardHandle {
    pub tx: mpsc::Sender<ToShard>,
    pub rx: mpsc::Receiver<FromShard>,
    pub waker: Waker,
    /// Log index of the newest change applied.
    pub applied: Arc<AtomicU64>,
    pub thread: std::thread::JoinHandle<Result<(), SdcError>>,
}
