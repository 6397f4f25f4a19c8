//! What goes in and out of a [`Store`](crate::Store): keys, records, copies, disk operations, events.

use bytes::Bytes;
use quarry_base::{
    Extent, Instance, Layer, PageBuf, RequestId, Seq, Version, VtreeId, BLOCK, BLOCKS_PER_EXTENT,
};
use smallvec::SmallVec;

use crate::error::{ReadError, StoreError};

/// Position in the device's one log order: 1, 2, 3, ... from each `open`. 0 is before the first.
pub type AppendId = u64;

/// A disk operation's name, unique within one `Store`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(pub u64);

/// A 64 KiB block of a placement group: which vTree, layer, 1 MiB extent, and which of its 16 blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockKey {
    pub vtree: VtreeId,
    pub layer: Layer,
    pub extent: Extent,
    /// `0..16`.
    pub block: u8,
}

impl BlockKey {
    /// Not above any key.
    pub const MIN: BlockKey =
        BlockKey { vtree: VtreeId(0), layer: Layer(0), extent: Extent(0), block: 0 };
    /// Above every key a block can have.
    pub const MAX: BlockKey = BlockKey {
        vtree: VtreeId(u64::MAX),
        layer: Layer(u32::MAX),
        extent: Extent(u32::MAX),
        block: u8::MAX,
    };

    /// The block of `extent` that holds byte `offset` (`0..1 MiB`).
    pub const fn at(vtree: VtreeId, layer: Layer, extent: Extent, offset: u32) -> BlockKey {
        BlockKey { vtree, layer, extent, block: (offset / BLOCK) as u8 }
    }

    /// First byte of the block inside its extent.
    pub const fn offset(&self) -> u32 {
        self.block as u32 * BLOCK
    }

    /// Those of some pages, by their byte offsets in the extent, that lie in the block: bit i is its page i.
    pub fn mask(&self, pages: &[u32]) -> u16 {
        let inside = |p: &&u32| **p / BLOCK == u32::from(self.block);
        pages.iter().filter(inside).fold(0, |m, p| m | 1 << (p % BLOCK / PAGE as u32))
    }

    /// The next key in order, or `MAX` at the very end.
    pub fn next(self) -> BlockKey {
        if self.block as u32 + 1 < BLOCKS_PER_EXTENT {
            return BlockKey { block: self.block + 1, ..self };
        }
        if self.extent.0 < u32::MAX {
            return BlockKey { extent: Extent(self.extent.0 + 1), block: 0, ..self };
        }
        if self.layer.0 < u32::MAX {
            return BlockKey {
                layer: Layer(self.layer.0 + 1),
                extent: Extent(0),
                block: 0,
                ..self
            };
        }
        match self.vtree.0.checked_add(1) {
            Some(v) => BlockKey { vtree: VtreeId(v), ..BlockKey::MIN },
            None => BlockKey::MAX,
        }
    }
}

/// The content of one block at one version, or of some parts of it, as it travels in a sync (R13, R14).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockCopy {
    pub key: BlockKey,
    pub version: Version,
    /// Bit i: the copy says what 4 KiB part i holds; a part it is silent about stays as it is.
    /// [`BlockCopy::WHOLE`]: the block becomes exactly this.
    pub part: u16,
    /// Bit i: part i is here; a part that is not reads as zeroes. Inside `part`. 0 of a whole copy is a
    /// tombstone.
    pub valid: u16,
    /// Bit i: part i was written or trimmed since `all_through`.
    pub dirty: u16,
    /// One CRC-32C for each valid part, in order.
    pub crcs: SmallVec<[u32; 16]>,
    /// The valid parts, packed in order: `valid.count_ones() * 4096` bytes.
    pub data: Bytes,
}

const PAGE: usize = quarry_base::PAGE;

impl BlockCopy {
    /// `part` of a copy of a whole block.
    pub const WHOLE: u16 = u16::MAX;

    /// The same copy, silent about everything but the parts in `mask`.
    pub fn only(mut self, mask: u16) -> BlockCopy {
        let keep = self.valid & mask;
        if keep != self.valid {
            let (mut crcs, mut data) = (SmallVec::new(), Vec::new());
            let held = (0..16).filter(|p| self.valid >> p & 1 == 1);
            for (i, _) in held.enumerate().filter(|(_, p)| keep >> p & 1 == 1) {
                crcs.extend(self.crcs.get(i).copied());
                data.extend_from_slice(&self.data[i * PAGE..(i + 1) * PAGE]);
            }
            self.crcs = crcs;
            self.data = quarry_base::PageBuf::copy_of(&data).freeze();
        }
        (self.part, self.valid) = (mask, keep);
        self
    }
}

/// Who asked for a write (R19). `instance` 0: nobody, the record is not entered in the id table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    pub instance: Instance,
    pub id: RequestId,
    /// Ids below this one are answered: a request that carries one is refused from now on.
    pub lowest_unanswered: RequestId,
}

/// One entry of a placement group's sequence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// `seq` is the PG's last one plus 1, or any higher one where nothing uncommitted is left (a
    /// syncing replica's stream starts at a named seq); `epoch` is never below the last one's.
    pub version: Version,
    pub origin: Origin,
    pub kind: RecordKind,
}

/// What a record does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordKind {
    /// Whole 4 KiB pages at a page-aligned byte `offset` inside one extent, 1 MiB at most;
    /// one CRC-32C a page.
    Write {
        vtree: VtreeId,
        layer: Layer,
        extent: Extent,
        offset: u32,
        crcs: SmallVec<[u32; 1]>,
        data: Bytes,
    },
    /// TRIM and WRITE_ZEROES: the page-aligned range reads as zeroes.
    Zero { vtree: VtreeId, layer: Layer, extent: Extent, offset: u32, len: u32 },
    /// First record of an epoch (R8): `base` is the last seq before it.
    EpochStart { base: Seq },
    /// Everything of this vTree is gone. vTree ids are never used again.
    DropVtree { vtree: VtreeId },
}

/// A record still known in memory, see [`Store::tail`](crate::Store::tail).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TailRecord {
    pub version: Version,
    pub rec: Record,
}

/// What the id table says about a request (R19).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Never seen.
    New,
    /// Its record has this seq, above the commit point.
    InTail(Seq),
    /// Its record is committed: answer, do not apply.
    Committed,
    /// Below the instance's lowest unanswered id: refuse.
    BelowFloor,
}

/// Where a placement group stands on this device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PgState {
    /// Newest appended.
    pub last: Version,
    /// Newest that is durable here (in `Cached` mode: written to the device).
    pub stable: Version,
    /// The commit point given by `set_commit`, at most `last.seq`.
    pub commit: Seq,
    /// Version of the record at the commit point.
    pub commit_version: Version,
    /// Bytes of the blocks allocated for it, unwritten log overlay not counted.
    pub bytes_used: u64,
    /// Blocks with content.
    pub blocks: u64,
}

/// One row of [`Store::scan`](crate::Store::scan).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockInfo {
    pub key: BlockKey,
    pub version: Version,
    /// 0: a tombstone.
    pub valid: u16,
    pub dirty: u16,
}

/// Content of a range, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadData {
    /// Whole pages each; together as long as the range asked for.
    pub segments: SmallVec<[Bytes; 4]>,
    /// One CRC-32C a page, of the committed content (of zeroes for a hole).
    pub crcs: SmallVec<[u32; 16]>,
}

/// Names a device and the cluster it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceIdent {
    pub cluster: [u8; 16],
    pub device_uuid: [u8; 16],
    pub device: quarry_base::DeviceId,
}

/// What a superblock says, see [`read_ident`](crate::read_ident).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FormatInfo {
    pub ident: DeviceIdent,
    pub format_version: u32,
    /// Size of the device at format time.
    pub device_bytes: u64,
    pub log_bytes: u64,
    /// Data blocks of 64 KiB.
    pub blocks: u64,
}

/// One step of formatting a device, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FormatStep {
    /// Write zeroes (really written, so that a later sync commits no file-system metadata).
    Zero {
        offset: u64,
        len: u64,
    },
    Write {
        offset: u64,
        data: Bytes,
    },
    Sync,
}

/// What has to be durable before a write counts as done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteSync {
    /// Nothing.
    None,
    /// Nothing, and nobody waits for it: that others have ended may be told first.
    Behind,
    /// This write, and nothing besides: less than a flush where the device can do it (FUA).
    Own,
    /// It and every write completed before it: an fdatasync that starts after it has completed.
    All,
}

/// An operation for the device. Offsets and lengths are multiples of 4 KiB, buffers page-aligned.
#[derive(Clone, Debug)]
pub enum DiskOp {
    Read {
        id: OpId,
        offset: u64,
        len: usize,
    },
    Write {
        id: OpId,
        offset: u64,
        data: Vec<Bytes>,
        sync: WriteSync,
    },
    /// fdatasync: covers every write *completed* before it was handed out.
    Sync {
        id: OpId,
    },
    /// A hint; its failure is not an error.
    Discard {
        id: OpId,
        offset: u64,
        len: u64,
    },
}

impl DiskOp {
    /// The operation's id.
    pub fn id(&self) -> OpId {
        match self {
            DiskOp::Read { id, .. }
            | DiskOp::Write { id, .. }
            | DiskOp::Sync { id }
            | DiskOp::Discard { id, .. } => *id,
        }
    }
}

/// How a [`DiskOp`] ended; errors are errno values. A short read or write is an error.
#[derive(Debug)]
pub enum DiskResult {
    Read(Result<PageBuf, i32>),
    Done(Result<(), i32>),
}

/// How a copy gets on the device, see [`Store::place_copy`](crate::Store::place_copy).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Appended {
    /// Durable when this id is stable.
    Logged(AppendId),
    /// Its content goes straight to its pages: durable when what [`StoreEvent::Placed`] names for this id is stable.
    Intent(AppendId),
}

impl Appended {
    /// The id of what was appended.
    pub fn id(self) -> AppendId {
        let (Appended::Logged(id) | Appended::Intent(id)) = self;
        id
    }
}

/// What [`Store::poll`](crate::Store::poll) reports.
#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// Recovery is done; everything may be called.
    Opened,
    /// Recovery failed; nothing more comes.
    OpenFailed(StoreError),
    /// Everything appended up to and including this id is durable.
    Stable {
        upto: AppendId,
    },
    /// Everything appended up to and including this id is synced: the answer to `Store::sync`.
    Synced {
        upto: AppendId,
    },
    /// The content of a copy that was appended as [`Appended::Intent`] is in its place: it is durable when `by` is stable.
    Placed {
        pg: quarry_base::PgId,
        intent: AppendId,
        by: AppendId,
    },
    /// There is log space again after a refusal with `LogFull`.
    LogSpace,
    ReadDone {
        token: u64,
        result: Result<ReadData, ReadError>,
    },
    /// `None`: no such block and no tombstone.
    BlockDone {
        token: u64,
        result: Result<Option<BlockCopy>, ReadError>,
    },
    /// The device failed: nothing more becomes stable. Reads go on.
    Failed(StoreError),
    /// Operations are in flight and none has ended for a while, or a write or sync has been for so long, whatever
    /// else ended: the device is slow, or hangs.
    Stalled {
        idle: std::time::Duration,
    },
    /// What a `Stalled` was told of has ended.
    Moves,
    /// A page's content does not match its checksum, also after it was read again.
    Corruption {
        pg: quarry_base::PgId,
        key: BlockKey,
        pages: u16,
    },
    /// Pages of the block table were damaged on the device. Nothing is lost: the next checkpoint
    /// writes them anew.
    TableDamaged {
        group: u64,
    },
}
