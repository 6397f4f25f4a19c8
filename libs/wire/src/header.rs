//! The fixed 144-byte frame header, little-endian. See docs/WIRE.md.

use crate::{WireError, MAX_DATA, MAX_META};
use quarry_base::{
    crc32c, ConfigIndex, Epoch, Extent, Generation, Instance, Layer, PgId, RequestId, Seq, StartNo,
    Version, VtreeId,
};

/// "QRY1" in little-endian order.
pub const MAGIC: u32 = u32::from_le_bytes(*b"QRY1");
/// Version of the frame format.
pub const WIRE_VERSION: u8 = 1;
/// Bytes of a header.
pub const HEADER_LEN: usize = 144;

macro_rules! codes {
    ($(#[$m:meta])* $name:ident: $t:ty { $($(#[$vm:meta])* $v:ident = $n:literal),+ $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr($t)]
        pub enum $name { $($(#[$vm])* $v = $n),+ }
        impl $name {
            /// The value of a code, if it is known.
            pub fn from_code(c: $t) -> Option<$name> {
                match c { $($n => Some($name::$v),)+ _ => None }
            }
            /// Every value, for tests and metrics.
            pub const ALL: &'static [$name] = &[$($name::$v),+];
        }
    };
}

codes! {
    /// What a frame is.
    Op: u8 {
        /// First frame on a connection, both ways; meta is a JSON [`crate::Hello`].
        Hello = 1,
        /// Answer to a Hello that is not accepted; `status` says why, then the connection ends.
        HelloRefused = 2,
        /// Heartbeat connection: the lease question (R17). `config_index`, `request_id` = number of the question.
        GrantAsk = 3,
        /// Heartbeat connection: the lease answer; meta lists the asker's PGs that are not covered.
        GrantAnswer = 4,
        /// SDC to primary: 4 KiB-aligned `offset`, `length` inside `extent`.
        Read = 16,
        /// SDC to primary: any byte range inside one extent; data follows.
        Write = 17,
        /// SDC to primary: range becomes zeroes (flags TRIM, NO_HOLE).
        Zero = 18,
        /// SDC to primary (`ack = cached`): everything completed before is durable in this PG.
        Flush = 19,
        /// SDC to primary: which pages of a range have content; as Read, answered by a ReadReply whose
        /// data is a bit a page, the first in the lowest bit: 0 means that the page reads as zeroes.
        Map = 20,
        /// Primary to SDC: outcome of `request_id`, in `status`.
        Reply = 24,
        /// Primary to SDC: data of a read.
        ReadReply = 25,
        /// Primary to member: opens the PG's ordered stream at `epoch`; meta is the PgConfig.
        StreamOpen = 32,
        /// Member to primary: where it stands; meta is a StreamPos.
        StreamPos = 33,
        /// Primary to member: drop what is at or above `seq`, the stream starts there; meta is a StreamStart.
        StreamStart = 34,
        /// Primary to member: one record of the sequence.
        Replicate = 35,
        /// Member to primary: everything up to `seq` (and `request_id` sync items) is durable here.
        ReplAck = 36,
        /// Primary to member: commit point without a record to carry it.
        Commit = 37,
        /// Primary to syncing member: one block at a version, in the stream.
        SyncCopy = 38,
        /// Primary to syncing member: forget the blocks of a key range that are not listed in meta.
        SyncDrop = 39,
        /// Primary to syncing member: the id table (R19); meta is opaque to the wire.
        SyncIds = 40,
        /// SDS to in-sync member: send me your copy of this block (repair); `version` wanted.
        FetchBlock = 41,
        /// Answer to FetchBlock, laid out as SyncCopy; `status` Corrupt or Invalid without data.
        BlockData = 42,
        /// Primary to member (`ack = cached`, R29): put on the medium what you have reported; `request_id` = number
        /// of the question.
        SyncAsk = 43,
        /// Answer to SyncAsk: it is.
        SyncDone = 44,
        /// Primary to member (`reads = confirm`, R18): is this still your epoch? `request_id` = number of the question.
        Confirm = 45,
        /// Answer to Confirm: it was when this was sent.
        Confirmed = 46,
        /// Receiver of an older epoch: here is the newer configuration; meta is a PgConfig.
        ConfigPush = 48,
        /// Receiver of a newer epoch: send me the configuration of `pg`.
        ConfigAsk = 49,
        /// Clean hand-over: the sender of this grant gives it up for `pg` (R18).
        GrantGiveUp = 50,
        /// SDC to secondary or back: liveness of an idle connection.
        Ping = 60,
        /// Answer to Ping.
        Pong = 61,
    }
}

codes! {
    /// Outcome of a request.
    Status: u16 {
        Ok = 0,
        /// The sender's epoch is old, or the receiver is not the primary; meta has the PgConfig if known.
        StaleEpoch = 1,
        /// The receiver does not know the sender's newer epoch yet, or is not ready: send it again after a moment.
        TryAgain = 2,
        /// No space: ENOSPC.
        Full = 3,
        /// Every copy of a block is bad: EIO.
        Corrupt = 4,
        /// A newer instance of this SDC exists: this one is fenced for good.
        StaleInstance = 5,
        /// The mapping generation is not the present one.
        StaleMapping = 6,
        /// An id below the lowest unanswered one.
        StaleRequest = 7,
        /// The request makes no sense (range, alignment, length).
        Invalid = 8,
        /// Data did not match its checksum on arrival: send it again.
        BadChecksum = 9,
        /// Another cluster, or a version that is not spoken here.
        NotAccepted = 10,
    }
}

/// Bits of the `flags` field.
pub mod flags {
    /// Write, Zero: durable before the answer (a matter of course with `ack = durable`).
    pub const FUA: u16 = 1;
    /// Zero: a trim; parts smaller than 4 KiB may be ignored.
    pub const TRIM: u16 = 2;
    /// Zero: keep the space.
    pub const NO_HOLE: u16 = 4;
    /// Replicate: the record is an epoch start; `offset`/`length` unused, base seq in `generation`.
    pub const EPOCH_START: u16 = 8;
    /// Replicate: the record drops a whole vTree.
    pub const DROP_VTREE: u16 = 16;
    /// Replicate: the record is a range of zeroes.
    pub const ZERO: u16 = 32;
    /// Read: the caller accepts data of any in-sync replica (not used by default).
    pub const ANY: u16 = 64;
    /// SyncDrop, SyncCopy: last item of the sync.
    pub const LAST: u16 = 128;
    /// GrantGiveUp: no primary of an earlier epoch serves any more, whoever it was (R18).
    pub const QUIET: u16 = 256;
}

/// The header of every frame. Fields that an operation does not use are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub op: Op,
    /// See [`flags`].
    pub flags: u16,
    pub status: Status,
    /// Bytes of the meta section, set by [`crate::Frame::encode`].
    pub meta_len: u32,
    /// Bytes of the data section, set by [`crate::Frame::encode`].
    pub data_len: u32,
    pub request_id: RequestId,
    /// All ids of this instance and PG below this one are answered (R19).
    pub lowest_unanswered: RequestId,
    pub pg: PgId,
    /// The sender's epoch of the PG (R2).
    pub epoch: Epoch,
    /// The sender's start number; 0 from an SDC.
    pub start: StartNo,
    /// MDM log index that the sender has applied.
    pub config_index: ConfigIndex,
    /// Version of the record or block carried.
    pub version: Version,
    /// The PG's commit point as the sender knows it (R6).
    pub commit: Seq,
    pub instance: Instance,
    pub generation: Generation,
    pub vtree: VtreeId,
    pub layer: Layer,
    pub extent: Extent,
    /// Byte offset inside the extent.
    pub offset: u32,
    /// Bytes of the range.
    pub length: u32,
    pub meta_crc: u32,
    /// CRC-32C of the data if it is one piece (see `quarry_base::crc::pieces`), else 0 and the list is in meta.
    pub data_crc: u32,
}

impl Header {
    /// A header with everything zero.
    pub fn new(op: Op) -> Header {
        Header {
            op,
            flags: 0,
            status: Status::Ok,
            meta_len: 0,
            data_len: 0,
            request_id: RequestId::ZERO,
            lowest_unanswered: RequestId::ZERO,
            pg: PgId(0),
            epoch: Epoch::ZERO,
            start: StartNo::ZERO,
            config_index: ConfigIndex::ZERO,
            version: Version::ZERO,
            commit: Seq::ZERO,
            instance: Instance::ZERO,
            generation: Generation::ZERO,
            vtree: VtreeId::ZERO,
            layer: Layer::ZERO,
            extent: Extent::ZERO,
            offset: 0,
            length: 0,
            meta_crc: 0,
            data_crc: 0,
        }
    }

    /// True if every bit of `f` is set.
    pub fn has(&self, f: u16) -> bool {
        self.flags & f == f
    }

    /// The 144 bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut w = Writer { out: [0; HEADER_LEN], at: 0 };
        w.put(&MAGIC.to_le_bytes());
        w.put(&[WIRE_VERSION, self.op as u8]);
        w.put(&self.flags.to_le_bytes());
        w.put(&(self.status as u16).to_le_bytes());
        w.put(&[0, 0]);
        w.put(&self.meta_len.to_le_bytes());
        w.put(&self.data_len.to_le_bytes());
        for v in [
            self.request_id.0,
            self.lowest_unanswered.0,
            self.pg.0,
            self.epoch.0,
            self.start.0,
            self.config_index.0,
            self.version.epoch.0,
            self.version.seq.0,
            self.commit.0,
            self.instance.0,
            self.generation.0,
            self.vtree.0,
        ] {
            w.put(&v.to_le_bytes());
        }
        for v in
            [self.layer.0, self.extent.0, self.offset, self.length, self.meta_crc, self.data_crc]
        {
            w.put(&v.to_le_bytes());
        }
        let crc = crc32c(&w.out[..HEADER_LEN - 4]);
        w.put(&crc.to_le_bytes());
        w.out
    }

    /// Reads a header. Errors name what is wrong; lengths are within the limits if it is accepted.
    pub fn decode(b: &[u8; HEADER_LEN]) -> Result<Header, WireError> {
        let mut r = Reader { b, at: 0 };
        let magic = r.u32();
        if magic != MAGIC {
            return Err(WireError::BadMagic(magic));
        }
        // Before the checksum: another version may lay out and check its header otherwise.
        let version = r.u8();
        if version != WIRE_VERSION {
            return Err(WireError::BadVersion(version));
        }
        if crc32c(&b[..HEADER_LEN - 4]) != u32_at(b, HEADER_LEN - 4) {
            return Err(WireError::HeaderCrc);
        }
        let code = r.u8();
        let op = Op::from_code(code).ok_or(WireError::BadOpcode(code))?;
        let mut h = Header::new(op);
        h.flags = r.u16();
        h.status = Status::from_code(r.u16()).ok_or(WireError::Malformed("status"))?;
        // Two spare bytes: sent as zero, ignored.
        r.u16();
        h.meta_len = r.u32();
        h.data_len = r.u32();
        h.request_id = RequestId(r.u64());
        h.lowest_unanswered = RequestId(r.u64());
        h.pg = PgId(r.u64());
        h.epoch = Epoch(r.u64());
        h.start = StartNo(r.u64());
        h.config_index = ConfigIndex(r.u64());
        h.version = Version::new(Epoch(r.u64()), Seq(r.u64()));
        h.commit = Seq(r.u64());
        h.instance = Instance(r.u64());
        h.generation = Generation(r.u64());
        h.vtree = VtreeId(r.u64());
        h.layer = Layer(r.u32());
        h.extent = Extent(r.u32());
        h.offset = r.u32();
        h.length = r.u32();
        h.meta_crc = r.u32();
        h.data_crc = r.u32();
        check_len("meta section", h.meta_len as usize, MAX_META)?;
        check_len("data section", h.data_len as usize, MAX_DATA)?;
        Ok(h)
    }
}

pub(crate) fn check_len(what: &'static str, len: usize, limit: usize) -> Result<(), WireError> {
    if len > limit {
        return Err(WireError::TooLong { what, len, limit });
    }
    Ok(())
}

fn u32_at(b: &[u8; HEADER_LEN], at: usize) -> u32 {
    Reader { b, at }.u32()
}

struct Writer {
    out: [u8; HEADER_LEN],
    at: usize,
}
impl Writer {
    fn put(&mut self, b: &[u8]) {
        self.out[self.at..self.at + b.len()].copy_from_slice(b);
        self.at += b.len();
    }
}

struct Reader<'a> {
    b: &'a [u8; HEADER_LEN],
    at: usize,
}
impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut x = [0; N];
        x.copy_from_slice(&self.b[self.at..self.at + N]);
        self.at += N;
        x
    }
    fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}
