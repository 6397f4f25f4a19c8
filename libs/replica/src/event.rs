//! What goes in and out of the engine.

use quarry_base::{ConfigIndex, DeviceId, Epoch, PgId, SdsId, StartNo};
use quarry_store::{BlockKey, DiskOp, DiskResult, OpId, Store, StoreError};
use quarry_wire::{Change, ClusterView, Frame, Proposal};

/// The daemon's number for a connection, never reused.
pub type LinkId = u64;

/// What a dialled connection between data servers is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkKind {
    /// Replication: the dialler's streams, as primary.
    Data,
    /// Lease questions of the dialler (R17: a connection of its own).
    Heartbeat,
}

/// Input of [`crate::Engine::step`].
// A store comes once a device; everything else is small.
#[allow(clippy::large_enum_variant)]
pub enum Event {
    /// The MDM gave this process an id and a start number. A later one with another start number
    /// means that the MDM declared this process failed: all roles end.
    Registered {
        sds: SdsId,
        start: StartNo,
    },
    /// An opened (recovered) device.
    DeviceOpened {
        device: DeviceId,
        store: Store,
    },
    /// A disk operation ended.
    Disk {
        device: DeviceId,
        id: OpId,
        result: DiskResult,
    },
    /// Somebody connected.
    Accepted {
        link: LinkId,
    },
    /// A connection asked for is there.
    Dialled {
        link: LinkId,
        sds: SdsId,
        kind: LinkKind,
    },
    DialFailed {
        sds: SdsId,
        kind: LinkKind,
    },
    Frame {
        link: LinkId,
        frame: Frame,
    },
    /// A connection is gone; nothing more comes from it.
    Closed {
        link: LinkId,
    },
    /// Snapshot from the MDM.
    View(ClusterView),
    /// Changes from the MDM, in order, none left out (R3).
    Changes {
        index: ConfigIndex,
        changes: Vec<Change>,
    },
    ProposalResult {
        request: u64,
        accepted: bool,
        reason: String,
    },
    /// Stop cleanly: no new sequence numbers, hand every role over, give grants up.
    HandOver,
}

/// Output of the engine.
#[derive(Debug)]
pub enum Action {
    Disk {
        device: DeviceId,
        op: DiskOp,
    },
    Send {
        link: LinkId,
        frame: Frame,
    },
    /// Connect to a data server; answered by `Dialled` or `DialFailed`.
    Dial {
        sds: SdsId,
        kind: LinkKind,
    },
    /// The engine is done with this link.
    Close {
        link: LinkId,
    },
    /// To the MDM; answered by `ProposalResult` if the session lives.
    Propose {
        request: u64,
        proposal: Proposal,
    },
    /// Nothing more to hand over: the process may end.
    HandedOver,
    Note(Note),
}

/// What an operator may want to know. For the log, never per request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    Refused {
        link: LinkId,
        why: &'static str,
    },
    /// All roles of the former start ended.
    Fenced {
        start: StartNo,
    },
    PrimaryStarted {
        pg: PgId,
        epoch: Epoch,
    },
    /// Serves reads and acknowledges writes.
    PrimaryActive {
        pg: PgId,
        epoch: Epoch,
    },
    MemberSilent {
        pg: PgId,
        device: DeviceId,
        why: &'static str,
    },
    LostData {
        pg: PgId,
        device: DeviceId,
    },
    StreamBroken {
        pg: PgId,
        device: DeviceId,
        why: &'static str,
    },
    SyncStarted {
        pg: PgId,
        device: DeviceId,
        full: bool,
    },
    SyncComplete {
        pg: PgId,
        device: DeviceId,
    },
    SyncGivenUp {
        pg: PgId,
        device: DeviceId,
        why: &'static str,
    },
    /// A member that had diverged for good starts again from empty.
    StartedEmpty {
        pg: PgId,
        device: DeviceId,
    },
    PgDropped {
        pg: PgId,
        device: DeviceId,
    },
    BadMeta {
        pg: PgId,
        device: DeviceId,
    },
    Corruption {
        pg: PgId,
        device: DeviceId,
        key: BlockKey,
    },
    Repaired {
        pg: PgId,
        device: DeviceId,
        key: BlockKey,
    },
    NoGoodCopy {
        pg: PgId,
        key: BlockKey,
    },
    /// A device has operations in flight and ends none, or not a certain write or sync.
    DeviceStalled {
        device: DeviceId,
        idle: std::time::Duration,
    },
    /// ... and has ended it.
    DeviceMoves {
        device: DeviceId,
    },
    /// Pages of the block table were damaged on the device; they are written anew from memory.
    TableDamaged {
        device: DeviceId,
        group: u64,
    },
    DeviceFailed {
        device: DeviceId,
        error: StoreError,
    },
    ProposalRefused {
        request: u64,
        reason: String,
    },
}
