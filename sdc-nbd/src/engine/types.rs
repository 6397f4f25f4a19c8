//! What goes into the engine and what comes out of it.

use bytes::Bytes;
use quarry_base::{
    ConfigIndex, DeviceId, Generation, Instance, PgId, RequestId, SdcId, SdsId, VolumeId,
};
use quarry_wire::{Change, ClusterView, Endpoint, Frame};
use smallvec::SmallVec;
use std::time::Duration;

/// The caller's number for a connection to a data server, never used again.
pub type LinkId = u64;

/// Who asks: one NBD connection. Never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u64);

/// Where a placement group is served: one shard of a data server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Target {
    pub sds: SdsId,
    /// Index in the server's endpoints.
    pub shard: u16,
}

/// A request on a volume; offsets and lengths in bytes, any alignment.
#[derive(Clone, Debug)]
pub enum IoOp {
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        data: Bytes,
        fua: bool,
    },
    /// The range becomes zeroes. `trim`: a hint, parts below 4 KiB may keep their content; `no_hole`:
    /// the space stays.
    Zero {
        offset: u64,
        len: u64,
        no_hole: bool,
        trim: bool,
        fua: bool,
    },
    /// Which pages have content: for each extent that the range touches, from the page its first byte is in,
    /// a bit a 4 KiB page, the first in the lowest bit. 0: the page reads as zeroes.
    Map {
        offset: u64,
        len: u32,
    },
    /// Everything answered before is durable when this is answered.
    Flush,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The MDM knows this process. Before anything else. Another instance later fences the engine.
    Registered { sdc: SdcId, instance: Instance },
    /// A snapshot of the cluster.
    View(ClusterView),
    /// Changes in order of the MDM's log index.
    Changes { index: ConfigIndex, changes: Vec<Change> },
    /// A request of a client; `handle` comes back in [`Action::Done`].
    Request { client: ClientId, handle: u64, volume: VolumeId, op: IoOp },
    /// The client is gone: nothing is answered to it any more.
    ClientGone { client: ClientId },
    /// The transport to `target` stands (the engine makes the handshake).
    LinkUp { link: LinkId, target: Target },
    /// The transport broke.
    LinkDown { link: LinkId },
    /// Dialling did not lead to a transport.
    DialFailed { target: Target },
    /// A frame arrived.
    Frame { link: LinkId, frame: Frame },
}

/// Pieces of a read's data, in order.
pub type ReadData = SmallVec<[Bytes; 1]>;

/// How a request can fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
pub enum IoError {
    #[error("no space left in the pool")]
    NoSpace,
    #[error("every copy of a block is damaged")]
    Corrupt,
    #[error("the volume is not served here any more")]
    Shutdown,
    #[error("outside the volume")]
    Invalid,
    #[error("the volume is mapped read-only")]
    ReadOnly,
    #[error("refused by the data server")]
    Refused,
    #[error("not answered within the mapping's io_timeout")]
    TimedOut,
    /// FLUSH with `ack = cached`: it came too late for writes that were answered before; told once.
    #[error("the hosts of all copies booted: answered writes that were not flushed may be gone")]
    FellBack,
}

impl IoError {
    /// The `errno` (Linux numbers) for it.
    pub const fn errno(self) -> i32 {
        match self {
            IoError::NoSpace => 28,
            IoError::Corrupt | IoError::Refused | IoError::FellBack => 5,
            IoError::Shutdown => 108,
            IoError::Invalid => 22,
            IoError::ReadOnly => 1,
            IoError::TimedOut => 110,
        }
    }
}

/// A volume mapped to this client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MappedVolume {
    pub id: VolumeId,
    pub name: String,
    pub size_bytes: u64,
    pub generation: Generation,
    /// The volume's generation when the mapping was made; zero: an MDM of an older release does not say.
    pub since: Generation,
    pub read_only: bool,
    /// A kernel device is wanted.
    pub device: bool,
}

/// What the caller is to do.
#[derive(Debug)]
pub enum Action {
    /// Connect; answer with `LinkUp` or `DialFailed`. `same_host`: the Unix socket reaches.
    Dial {
        target: Target,
        endpoint: Endpoint,
        same_host: bool,
    },
    Send {
        link: LinkId,
        frame: Frame,
    },
    /// End the connection; no `LinkDown` is expected.
    Close {
        link: LinkId,
    },
    /// The answer to a request; data for reads only.
    Done {
        client: ClientId,
        handle: u64,
        result: Result<ReadData, IoError>,
    },
    /// A volume was mapped, changed (`Some`) or is not mapped here any more (`None`).
    VolumeChanged {
        volume: VolumeId,
        state: Option<MappedVolume>,
    },
    /// The primary of `pg` cannot be reached from here but another member can (R27).
    Unreachable {
        pg: PgId,
        device: DeviceId,
    },
    /// For the log.
    Note(Note),
}

/// Something worth a line in the log. Never one an I/O.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    LinkReady {
        target: Target,
        link: LinkId,
    },
    LinkLost {
        target: Target,
        link: LinkId,
        why: &'static str,
    },
    /// The server does not accept this client; dialled again later.
    HelloRefused {
        target: Target,
        why: String,
    },
    /// A newer instance of this client exists: nothing is served any more, the process should end.
    Fenced {
        why: &'static str,
    },
    /// A bug: the server calls an id old that is not answered.
    StaleRequest {
        pg: PgId,
        id: RequestId,
    },
    /// A bug: the server finds a request malformed.
    Refused {
        pg: PgId,
        id: RequestId,
    },
    /// Data arrived that does not match its checksum; asked for again.
    BadData {
        target: Target,
    },
    /// A flush failed: the group lost what all its caches had.
    FellBack {
        volume: VolumeId,
        pg: PgId,
    },
}

/// Limits; reaching one holds requests back, none fails.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Requests of a placement group on the wire or to be sent again.
    pub pg_in_flight: usize,
    /// Ids of a placement group from the lowest unanswered one (R19).
    pub pg_id_window: u64,
    /// Bytes of reads and writes of a volume being served.
    pub volume_bytes: u64,
    /// Parts of a volume being served.
    pub volume_parts: usize,
    /// Requests of a volume waiting to be served before [`super::Engine::has_room`] says no.
    pub volume_queue: usize,
    /// Bytes of requests of a volume, waiting ones included, before `has_room` says no.
    pub volume_queue_bytes: u64,
    /// First and longest wait before a refused part is sent again.
    pub retry: (Duration, Duration),
    /// First and longest wait before a server is dialled again.
    pub redial: (Duration, Duration),
    /// Longest wait for a newer mapping generation before the part is tried again.
    pub mapping_wait: Duration,
    /// Longest handshake.
    pub hello: Duration,
    /// Silence, with requests out, after which a link is asked; and after which it counts as dead.
    pub silence: (Duration, Duration),
    /// A server out of reach for this long is reported (R27): longer than a process takes to start.
    pub unreachable_after: Duration,
    /// Shortest time between two reports about an unreachable server.
    pub unreachable_every: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let ms = Duration::from_millis;
        Limits {
            pg_in_flight: 128,
            pg_id_window: 1000,
            volume_bytes: 64 << 20,
            volume_parts: 2048,
            volume_queue: 4096,
            volume_queue_bytes: 256 << 20,
            retry: (ms(2), ms(20)),
            redial: (ms(50), ms(500)),
            mapping_wait: ms(200),
            hello: ms(1500),
            silence: (ms(250), ms(1000)),
            unreachable_after: ms(500),
            unreachable_every: ms(2000),
        }
    }
}

/// Who this client is, and what it may use.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Cluster id; a server of another cluster is not talked to.
    pub cluster: String,
    /// This host, as in `SdsInfo::host`.
    pub host: String,
    pub limits: Limits,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Parts sent, repeats included.
    pub sent: u64,
    /// Parts sent again.
    pub resent: u64,
    /// Answers by what they said.
    pub stale_epoch: u64,
    pub try_again: u64,
    pub stale_mapping: u64,
    pub bad_checksum: u64,
    /// Answers to what is answered already.
    pub late_answers: u64,
    /// Read data that did not match its checksums here.
    pub bad_data: u64,
    pub stale_request: u64,
    /// Requests that failed after the mapping's `io_timeout`.
    pub timed_out: u64,
    /// Flushes of groups that failed because the group fell back (`ack = cached`).
    pub fell_back: u64,
    /// Times a limit held something back.
    pub limit_pg_in_flight: u64,
    pub limit_id_window: u64,
    pub limit_volume: u64,
    /// Writes that waited for an earlier overlapping one.
    pub overlap_waits: u64,
    pub dials: u64,
    pub dials_failed: u64,
    pub links_lost: u64,
}
