//! Requests of a volume: admission in order of arrival, splitting at extents, limits.

use super::overlap::Overlaps;
use super::types::{ClientId, IoError, IoOp, LinkId, MappedVolume, ReadData};
use super::unflushed::{Unflushed, Written};
use bytes::Bytes;
use quarry_base::{pg_of, Epoch, Extent, Generation, Nanos, PgId, PoolId, VtreeId, EXTENT};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// What the engine keeps of a volume.
pub(super) struct Volume {
    pub vtree: VtreeId,
    pub pool: PoolId,
    /// 0: the pool is not known yet; requests wait.
    pub pg_count: u32,
    pub cached: bool,
    /// Others have it mapped too: their writes are not known here.
    pub shared: bool,
    /// A request that has waited for so long fails (R25); zero: none does.
    pub io_timeout: Duration,
    /// The timer for that is running.
    pub expiry_armed: bool,
    pub size: u64,
    pub generation: Generation,
    /// Of the mapping: the generation with which it was made.
    pub since: Generation,
    pub read_only: bool,
    /// Mapped to this client.
    pub mapped: bool,
    /// What was told about it last.
    pub shown: Option<MappedVolume>,
    /// Requests not yet wholly split, in order of arrival.
    pub queue: VecDeque<usize>,
    /// In the engine's list of volumes to admit from.
    pub dirty: bool,
    /// Parts being served, and their bytes.
    pub parts: usize,
    pub bytes: u64,
    /// Requests present, and their bytes.
    pub load: usize,
    pub load_bytes: u64,
    pub overlaps: Overlaps,
    /// `ack = cached`: groups written since their last flush, by whomever.
    pub unflushed: BTreeMap<PgId, Unflushed>,
    pub writes_done: u64,
    /// (group number, id) of parts that wait for a newer generation.
    pub mapping_waiters: Vec<(usize, u64)>,
}

impl Volume {
    pub(super) fn new(vtree: VtreeId, pool: PoolId) -> Volume {
        Volume {
            vtree,
            pool,
            pg_count: 0,
            cached: false,
            shared: false,
            io_timeout: Duration::ZERO,
            expiry_armed: false,
            size: 0,
            generation: Generation::ZERO,
            since: Generation::ZERO,
            read_only: false,
            mapped: false,
            shown: None,
            queue: VecDeque::new(),
            dirty: false,
            parts: 0,
            bytes: 0,
            load: 0,
            load_bytes: 0,
            overlaps: Overlaps::default(),
            unflushed: BTreeMap::new(),
            writes_done: 0,
            mapping_waiters: Vec::new(),
        }
    }

    /// Every group that the volume has data in counts as written to.
    pub(super) fn touch_all(&mut self) {
        let extents = self.size.div_ceil(u64::from(EXTENT));
        let (pool, count) = (self.pool, self.pg_count);
        let mut touch = |pg| {
            self.unflushed.entry(pg).or_default();
        };
        if extents > 4 * u64::from(count) {
            (0..count).for_each(|i| touch(PgId::new(pool, i)));
        } else {
            let of = |e: u64| pg_of(pool, count, self.vtree, Extent(e as u32));
            (0..extents).for_each(|e| touch(of(e)));
        }
    }

    /// Whether the request is possible at all.
    pub(super) fn check(&self, op: &IoOp) -> Result<(), IoError> {
        let (offset, len, writes) = match op {
            IoOp::Read { offset, len } | IoOp::Map { offset, len } => {
                (*offset, u64::from(*len), false)
            }
            IoOp::Write { offset, data, .. } => (*offset, data.len() as u64, true),
            IoOp::Zero { offset, len, .. } => (*offset, *len, true),
            IoOp::Flush => return Ok(()),
        };
        if writes && self.read_only {
            return Err(IoError::ReadOnly);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(IoError::Invalid),
        }
    }
}

/// A request being served.
pub(super) struct Request {
    pub client: ClientId,
    pub handle: u64,
    pub volume: quarry_base::VolumeId,
    pub op: IoOp,
    pub begun: Nanos,
    /// First byte not yet split off, and the end.
    pub cursor: u64,
    pub end: u64,
    /// Parts made so far, and those not yet done.
    pub made: u32,
    pub left: u32,
    /// Still in its volume's queue.
    pub queued: bool,
    /// Nobody waits for the answer.
    pub orphan: bool,
    pub data: ReadData,
    /// `ack = cached`: parts that were answered well.
    pub written: SmallVec<[Written; 1]>,
    /// Of a flush: groups that fell back, and the newest write to each that it covers.
    pub lost: SmallVec<[(PgId, u64); 1]>,
    pub error: Option<IoError>,
}

impl Request {
    /// Bytes it moves.
    pub(super) fn cost(&self) -> u64 {
        match &self.op {
            IoOp::Read { len, .. } => u64::from(*len),
            IoOp::Write { data, .. } => data.len() as u64,
            IoOp::Zero { .. } | IoOp::Map { .. } | IoOp::Flush => 0,
        }
    }
}

/// A request's share of one extent; for a flush, of one placement group.
pub(super) struct Part {
    pub request: usize,
    pub volume: quarry_base::VolumeId,
    /// Number of the placement group.
    pub pg: usize,
    /// Place in the request's data.
    pub index: u32,
    pub extent: u32,
    /// Byte range inside the extent, as asked for.
    pub offset: u32,
    pub len: u32,
    pub kind: PartKind,
    /// 0: none yet.
    pub id: u64,
    /// How often it was put off.
    pub refusals: u32,
    pub state: PartState,
}

pub(super) enum PartKind {
    Read,
    /// Which pages have content.
    Map,
    /// `list` and `crc`: checksums as [`quarry_wire::Frame::with_data`] lays them out.
    Write {
        data: Bytes,
        list: Bytes,
        crc: u32,
        fua: bool,
    },
    Zero {
        flags: u16,
    },
    /// `mark`: number of the volume's newest write to the group that it covers. `lost`: an answer of this epoch or a
    /// later one does not save all of them.
    Flush {
        mark: u64,
        lost: Option<Epoch>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PartState {
    /// An earlier write overlaps.
    Blocked,
    /// Never sent, in its group's queue.
    Ready,
    /// Has an id, is to be sent (again).
    Waiting,
    Sent {
        link: LinkId,
        epoch: Epoch,
    },
}

impl Part {
    /// Bytes that count against the volume's limit.
    pub(super) fn cost(&self) -> u64 {
        match self.kind {
            PartKind::Read | PartKind::Write { .. } => u64::from(self.len),
            PartKind::Zero { .. } | PartKind::Map | PartKind::Flush { .. } => 0,
        }
    }
    pub(super) fn changes_data(&self) -> bool {
        matches!(self.kind, PartKind::Write { .. } | PartKind::Zero { .. })
    }
}
