//! Bytes of a log batch: descriptor pages (header, then records), then whole 4 KiB payload pages.
//!
//! A batch counts only if its descriptor checksum is right, it stands where it says it stands, it
//! names the checksum of the batch before it, and every payload page matches its own check (see `seal`).

use crate::codec::{crc_without, Get, Put};
use crate::types::Origin;
use quarry_base::{Epoch, Extent, Instance, Layer, PgId, RequestId, Seq, Version, VtreeId, PAGE};
use smallvec::SmallVec;

pub(crate) const HEADER_BYTES: usize = 128;
pub(crate) const RECORD_BYTES: usize = 128;
const MAGIC: &[u8; 8] = b"QRYLOG01";
const CRC_AT: usize = 12;

/// What a log record is. The numbers are on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Write = 1,
    Zero = 2,
    EpochStart = 3,
    DropVtree = 4,
    Copy = 5,
    DropBlocks = 6,
    Meta = 7,
    PgCheckpoint = 8,
    IdsImport = 9,
    DropPg = 10,
    /// Only carries the commit point.
    Commit = 11,
    /// Only carries the batch header's sync mark.
    Mark = 12,
    /// A copy of exactly the version that is there.
    Repair = 13,
    /// A copy of some parts of a block; the others stay as they are.
    CopyPart = 14,
    /// As CopyPart, but its content goes straight to its pages.
    Intent = 15,
    /// The content of an Intent is there.
    Placed = 16,
}

impl Kind {
    fn from_u8(n: u8) -> Option<Kind> {
        use Kind::*;
        [
            Write,
            Zero,
            EpochStart,
            DropVtree,
            Copy,
            DropBlocks,
            Meta,
            PgCheckpoint,
            IdsImport,
            DropPg,
            Commit,
            Mark,
            Repair,
            CopyPart,
            Intent,
            Placed,
        ]
        .into_iter()
        .find(|k| *k as u8 == n)
    }
}

/// One record of a descriptor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RawRecord {
    pub kind: Kind,
    pub pg: PgId,
    pub version: Version,
    pub origin: Origin,
    /// The PG's commit point when this was appended.
    pub commit: Seq,
    /// It does not follow the PG's last record: a stream began here.
    pub jump: bool,
    /// The log had it before this: its direct blocks were written then, and may be newer by now.
    pub again: bool,
    /// Log position of the batch with the PG's previous record; `u64::MAX`: none.
    pub prev_pos: u64,
    pub vtree: VtreeId,
    pub layer: Layer,
    pub extent: Extent,
    pub offset: u32,
    pub len: u32,
    /// By kind: base seq of an epoch, masks of a copy, byte length of a blob.
    pub aux: u64,
    /// First payload page, counted from the batch's start, and how many.
    pub payload_page: u32,
    pub payload_pages: u32,
    /// One for each page of content, in the log or not, see `seal`.
    pub checks: SmallVec<[u32; 16]>,
    /// Their CRC-32Cs, as found when the payload was verified; not in the log. 0 for one that is elsewhere.
    pub crcs: SmallVec<[u32; 16]>,
    pub slots: SmallVec<[u32; 16]>,
}

impl RawRecord {
    pub fn new(kind: Kind, pg: PgId) -> RawRecord {
        RawRecord {
            kind,
            pg,
            version: Version::ZERO,
            origin: Origin::default(),
            commit: Seq(0),
            jump: false,
            again: false,
            prev_pos: u64::MAX,
            vtree: VtreeId(0),
            layer: Layer(0),
            extent: Extent(0),
            offset: 0,
            len: 0,
            aux: 0,
            payload_page: 0,
            payload_pages: 0,
            checks: SmallVec::new(),
            crcs: SmallVec::new(),
            slots: SmallVec::new(),
        }
    }

    /// Parts of the block that a copy speaks about.
    pub fn part(&self) -> u16 {
        match self.kind {
            Kind::CopyPart | Kind::Intent => (self.aux >> 32) as u16,
            _ => u16::MAX,
        }
    }

    /// Bytes in the descriptor.
    pub fn size(checks: usize, slots: usize) -> usize {
        (RECORD_BYTES + 4 * (checks + slots)).next_multiple_of(8)
    }

    pub fn encode(&self, v: &mut Vec<u8>) {
        let start = v.len();
        let size = RawRecord::size(self.checks.len(), self.slots.len());
        v.u32(size as u32);
        v.u8(self.kind as u8);
        v.u8(u8::from(self.jump) | u8::from(self.again) << 1);
        v.u16(self.slots.len() as u16);
        v.u64(self.pg.0);
        v.u64(self.version.epoch.0);
        v.u64(self.version.seq.0);
        v.u64(self.origin.instance.0);
        v.u64(self.origin.id.0);
        v.u64(self.origin.lowest_unanswered.0);
        v.u64(self.commit.0);
        v.u64(self.prev_pos);
        v.u64(self.vtree.0);
        v.u32(self.layer.0);
        v.u32(self.extent.0);
        v.u32(self.offset);
        v.u32(self.len);
        v.u64(self.aux);
        v.u32(self.payload_page);
        v.u32(self.payload_pages);
        v.u32(self.checks.len() as u32);
        v.resize(start + RECORD_BYTES, 0);
        self.checks.iter().for_each(|c| v.u32(*c));
        self.slots.iter().for_each(|s| v.u32(*s));
        v.resize(start + size, 0);
    }

    fn decode(g: &mut Get) -> Option<RawRecord> {
        let size = Get(g.0).u32()? as usize;
        let mut r = Get(g.bytes(size)?);
        r.u32()?;
        let kind = Kind::from_u8(r.u8()?)?;
        let flags = r.u8()?;
        let nslots = r.u16()? as usize;
        let mut rec = RawRecord::new(kind, PgId(r.u64()?));
        (rec.jump, rec.again) = (flags & 1 != 0, flags & 2 != 0);
        rec.version = Version::new(Epoch(r.u64()?), Seq(r.u64()?));
        rec.origin = Origin {
            instance: Instance(r.u64()?),
            id: RequestId(r.u64()?),
            lowest_unanswered: RequestId(r.u64()?),
        };
        rec.commit = Seq(r.u64()?);
        rec.prev_pos = r.u64()?;
        rec.vtree = VtreeId(r.u64()?);
        rec.layer = Layer(r.u32()?);
        rec.extent = Extent(r.u32()?);
        rec.offset = r.u32()?;
        rec.len = r.u32()?;
        rec.aux = r.u64()?;
        rec.payload_page = r.u32()?;
        rec.payload_pages = r.u32()?;
        let nchecks = r.u32()? as usize;
        r.bytes(RECORD_BYTES - 116)?;
        if size != RawRecord::size(nchecks, nslots) {
            return None;
        }
        for _ in 0..nchecks {
            rec.checks.push(r.u32()?);
        }
        for _ in 0..nslots {
            rec.slots.push(r.u32()?);
        }
        Some(rec)
    }
}

/// Header of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchHeader {
    pub format_id: u64,
    pub incarnation: u64,
    pub batch: u64,
    pub pos: u64,
    /// Whole batch, descriptor pages included.
    pub len: u64,
    /// Log position below which everything was synced when this was built.
    pub synced_upto: u64,
    pub prev_crc: u32,
    pub records: u32,
    /// Bytes of header and records.
    pub desc_bytes: u32,
}

impl BatchHeader {
    pub fn desc_pages(&self) -> usize {
        (self.desc_bytes as usize).div_ceil(PAGE)
    }

    /// Fills the descriptor pages at the start of `buf` (zeroed up to their end by the caller's
    /// `records`, which begins with `HEADER_BYTES` of room). Returns the descriptor's checksum.
    pub fn seal(&self, desc: &mut [u8]) -> u32 {
        let mut v = Vec::with_capacity(HEADER_BYTES);
        v.extend_from_slice(MAGIC);
        v.u32(self.desc_bytes);
        v.u32(0);
        v.u64(self.format_id);
        v.u64(self.incarnation);
        v.u64(self.batch);
        v.u64(self.pos);
        v.u64(self.len);
        v.u64(self.synced_upto);
        v.u32(self.prev_crc);
        v.u32(self.records);
        desc[..v.len()].copy_from_slice(&v);
        desc[v.len()..HEADER_BYTES].fill(0);
        let crc = crc_without(desc, CRC_AT);
        desc[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// The header in a page, unchecked but for the magic and sizes that make no sense.
    pub fn peek(page: &[u8]) -> Option<BatchHeader> {
        let mut g = Get(page);
        if g.bytes(8)? != MAGIC {
            return None;
        }
        let desc_bytes = g.u32()?;
        g.u32()?;
        let h = BatchHeader {
            desc_bytes,
            format_id: g.u64()?,
            incarnation: g.u64()?,
            batch: g.u64()?,
            pos: g.u64()?,
            len: g.u64()?,
            synced_upto: g.u64()?,
            prev_crc: g.u32()?,
            records: g.u32()?,
        };
        let sane = desc_bytes as usize >= HEADER_BYTES
            && h.len.is_multiple_of(PAGE as u64)
            && (h.desc_pages() * PAGE) as u64 <= h.len;
        sane.then_some(h)
    }

    /// Checks the descriptor's checksum; it is returned if right.
    pub fn verify(desc: &[u8]) -> Option<u32> {
        let stored = Get(desc.get(CRC_AT..)?).u32()?;
        (stored == crc_without(desc, CRC_AT)).then_some(stored)
    }

    /// The records of a verified descriptor.
    pub fn records(&self, desc: &[u8]) -> Option<Vec<RawRecord>> {
        let mut g = Get(desc.get(HEADER_BYTES..self.desc_bytes as usize)?);
        let mut out = Vec::with_capacity((self.records as usize).min(g.0.len() / RECORD_BYTES));
        for _ in 0..self.records {
            out.push(RawRecord::decode(&mut g)?);
        }
        Some(out)
    }
}
