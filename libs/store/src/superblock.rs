//! The superblock, twice: who the device is, where the log begins, which checkpoint counts.
//!
//! The copy with the higher generation counts; the other one is overwritten next, so a torn write
//! leaves the older. A checkpoint takes effect by the superblock alone: table pages of a later
//! generation than `ckpt_gen` do not exist for recovery.

use crate::codec::{crc_without, Get, Put};
use crate::config::StoreConfig;
use crate::error::StoreError;
use crate::layout::{Layout, LOG_START, SUPER_A, SUPER_B};
use crate::types::{DeviceIdent, FormatInfo, FormatStep};
use bytes::Bytes;
use quarry_base::{DeviceId, PageBuf, PAGE};

/// The format this program writes.
pub const FORMAT_VERSION: u32 = 3;
/// The oldest that it reads. Its log has no intents; a device is of the new one from its first opening on.
const OLDEST: u32 = 2;
const MAGIC: &[u8; 8] = b"QRYSTORE";
const CRC_AT: usize = 12;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Superblock {
    /// As found; what is written is of `FORMAT_VERSION`.
    pub version: u32,
    pub generation: u64,
    pub ident: DeviceIdent,
    pub device_bytes: u64,
    pub log_bytes: u64,
    pub blocks: u64,
    /// Raised at every recovery; batches from `inc_batch` on carry it.
    pub incarnation: u64,
    /// Log position and batch number where this incarnation began; all before it is synced.
    pub inc_pos: u64,
    pub inc_batch: u64,
    /// First batch that recovery needs.
    pub tail_pos: u64,
    pub tail_batch: u64,
    /// Descriptor checksum of the batch before it.
    pub tail_prev_crc: u32,
    pub ckpt_gen: u64,
    /// Sum over all table groups of a hash of (group, generation, table page CRC).
    pub table_digest: u64,
    /// Where the scrub goes on, and how many passes it has made.
    pub scrub_slot: u64,
    pub scrub_passes: u64,
}

impl Superblock {
    pub fn fresh(l: &Layout, ident: DeviceIdent) -> Superblock {
        Superblock {
            version: FORMAT_VERSION,
            generation: 1,
            ident,
            device_bytes: l.device_bytes,
            log_bytes: l.log_bytes,
            blocks: l.blocks,
            incarnation: 1,
            inc_pos: 0,
            inc_batch: 1,
            tail_pos: 0,
            tail_batch: 1,
            tail_prev_crc: 0,
            ckpt_gen: 0,
            table_digest: 0,
            scrub_slot: 0,
            scrub_passes: 0,
        }
    }

    /// Where this generation goes: odd ones to A, even ones to B.
    pub fn offset(&self) -> u64 {
        if self.generation % 2 == 1 {
            SUPER_A
        } else {
            SUPER_B
        }
    }

    pub fn encode(&self) -> Bytes {
        let mut v = Vec::with_capacity(PAGE);
        v.extend_from_slice(MAGIC);
        v.u32(FORMAT_VERSION);
        v.u32(0);
        v.u64(self.generation);
        v.extend_from_slice(&self.ident.cluster);
        v.extend_from_slice(&self.ident.device_uuid);
        v.u32(self.ident.device.0);
        v.u32(self.tail_prev_crc);
        for n in [
            self.device_bytes,
            self.log_bytes,
            self.blocks,
            self.incarnation,
            self.inc_pos,
            self.inc_batch,
            self.tail_pos,
            self.tail_batch,
            self.ckpt_gen,
            self.table_digest,
            self.scrub_slot,
            self.scrub_passes,
        ] {
            v.u64(n);
        }
        let mut page = PageBuf::zeroed(PAGE);
        page[..v.len()].copy_from_slice(&v);
        let crc = crc_without(&page, CRC_AT);
        page[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        page.freeze()
    }

    /// `Ok(None)`: not a superblock, or damaged.
    pub fn decode(page: &[u8]) -> Result<Option<Superblock>, StoreError> {
        if page.len() != PAGE || !page.starts_with(MAGIC) {
            return Ok(None);
        }
        let stored = Get(&page[CRC_AT..]).u32();
        if stored != Some(crc_without(page, CRC_AT)) {
            return Ok(None);
        }
        let found = Get(&page[8..]).u32().unwrap_or(0);
        if found < OLDEST {
            return Err(StoreError::OlderFormat { found, known: FORMAT_VERSION });
        }
        if found > FORMAT_VERSION {
            return Err(StoreError::NewerFormat { found, known: FORMAT_VERSION });
        }
        let fields = Self::fields(&page[16..]).filter(Superblock::is_sane);
        Ok(fields.map(|s| Superblock { version: found, ..s }))
    }

    /// Can these numbers come from a store? Counters that grow by one are never near their end.
    fn is_sane(&self) -> bool {
        const FAR: u64 = 1 << 56;
        let counters = [
            self.generation,
            self.incarnation,
            self.inc_pos,
            self.inc_batch,
            self.tail_pos,
            self.tail_batch,
            self.ckpt_gen,
            self.device_bytes,
            self.log_bytes,
            self.scrub_passes,
        ];
        let paged = [self.inc_pos, self.tail_pos, self.log_bytes];
        counters.iter().all(|n| *n < FAR)
            && paged.iter().all(|n| n.is_multiple_of(PAGE as u64))
            && self.tail_batch > 0
            && self.inc_batch > 0
    }

    fn fields(b: &[u8]) -> Option<Superblock> {
        let mut g = Get(b);
        let generation = g.u64()?;
        let ident =
            DeviceIdent { cluster: g.id16()?, device_uuid: g.id16()?, device: DeviceId(g.u32()?) };
        let tail_prev_crc = g.u32()?;
        Some(Superblock {
            version: FORMAT_VERSION,
            generation,
            ident,
            tail_prev_crc,
            device_bytes: g.u64()?,
            log_bytes: g.u64()?,
            blocks: g.u64()?,
            incarnation: g.u64()?,
            inc_pos: g.u64()?,
            inc_batch: g.u64()?,
            tail_pos: g.u64()?,
            tail_batch: g.u64()?,
            ckpt_gen: g.u64()?,
            table_digest: g.u64()?,
            scrub_slot: g.u64()?,
            scrub_passes: g.u64()?,
        })
    }

    /// The one that counts, of the pages at A and B.
    pub fn newest(a: &[u8], b: &[u8]) -> Result<Superblock, StoreError> {
        match (Superblock::decode(a)?, Superblock::decode(b)?) {
            (Some(x), Some(y)) => Ok(if x.generation > y.generation { x } else { y }),
            (Some(x), None) | (None, Some(x)) => Ok(x),
            (None, None) => Err(nothing(a, b)),
        }
    }

    /// Identifies this format of this device in log batches.
    pub fn format_id(&self) -> u64 {
        let (a, b) = self.ident.device_uuid.split_at(8);
        let n = |s: &[u8]| Get(s).u64().unwrap_or(0);
        n(a) ^ n(b).rotate_left(17)
    }
}

fn nothing(a: &[u8], b: &[u8]) -> StoreError {
    let blank = |p: &[u8]| p.iter().all(|&x| x == 0);
    if blank(a) && blank(b) {
        StoreError::Blank
    } else if a.starts_with(MAGIC) || b.starts_with(MAGIC) {
        StoreError::SuperblockCorrupt
    } else {
        StoreError::ForeignData
    }
}

/// Makes a page of one that cannot be read: it is not blank, and damaged whatever it was.
pub fn mark_unreadable(page: &mut [u8]) {
    page.fill(0xFF);
    if let Some(start) = page.get_mut(..MAGIC.len()) {
        start.copy_from_slice(MAGIC);
    }
}

/// Bytes at the device's start that [`read_ident`] wants.
pub const IDENT_BYTES: usize = SUPER_B as usize + PAGE;

/// Reads who a device is from its first [`IDENT_BYTES`] bytes. `None`: blank.
///
/// Errors: `ForeignData`, `SuperblockCorrupt`, `NewerFormat`, `OlderFormat`.
pub fn read_ident(start: &[u8]) -> Result<Option<FormatInfo>, StoreError> {
    if start.len() < IDENT_BYTES {
        return Err(StoreError::Config("too few bytes to find a superblock"));
    }
    match Superblock::newest(&start[..PAGE], &start[SUPER_B as usize..IDENT_BYTES]) {
        Ok(s) => Ok(Some(FormatInfo {
            ident: s.ident,
            format_version: s.version,
            device_bytes: s.device_bytes,
            log_bytes: s.log_bytes,
            blocks: s.blocks,
        })),
        Err(StoreError::Blank) => Ok(None),
        Err(e) => Err(e),
    }
}

/// What to do to a device to make it an empty store. A crash in between leaves a blank device.
pub fn format(cfg: &StoreConfig, ident: DeviceIdent) -> Result<Vec<FormatStep>, StoreError> {
    let l = Layout::from_config(cfg)?;
    let first = Superblock::fresh(&l, ident);
    let second = Superblock { generation: 2, ..first };
    Ok(vec![
        FormatStep::Zero { offset: 0, len: LOG_START },
        FormatStep::Sync,
        FormatStep::Zero { offset: LOG_START, len: l.data_start - LOG_START },
        FormatStep::Sync,
        FormatStep::Write { offset: first.offset(), data: first.encode() },
        FormatStep::Write { offset: second.offset(), data: second.encode() },
        FormatStep::Sync,
    ])
}
