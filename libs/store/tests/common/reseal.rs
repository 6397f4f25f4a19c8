//! Makes the checksums of a device image right again after a hand has changed it: of pages, of the chain of log batches, of
//! what a batch carries, and the digest of the block table. Written from docs/DISK-FORMAT.md, not with the store's own code.

use quarry_base::{crc32c, BLOCK, EXTENT, PAGE};
use std::ops::Range;
use twox_hash::XxHash3_64;

pub const LOG_AT: usize = 128 << 10;
/// A batch's header and a record before its checks and slots, bytes.
const HEADER: usize = 128;
const RECORD: usize = 128;
const NO_SLOT: u32 = u32::MAX;

/// Kinds of records.
pub mod kind {
    pub const WRITE: u8 = 1;
    pub const COPY: u8 = 5;
    pub const DROP_BLOCKS: u8 = 6;
    pub const META: u8 = 7;
    pub const PG_CHECKPOINT: u8 = 8;
    pub const IDS_IMPORT: u8 = 9;
    pub const REPAIR: u8 = 13;
    pub const COPY_PART: u8 = 14;
    pub const INTENT: u8 = 15;
}

pub fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(b[at..at + 2].try_into().unwrap())
}
pub fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}
pub fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
}
pub fn set_u32(b: &mut [u8], at: usize, n: u32) {
    b[at..at + 4].copy_from_slice(&n.to_le_bytes());
}

/// Makes the checksum at `at` that of the pages.
pub fn page(pages: &mut [u8], at: usize) {
    let mut mix = [0u8; 16];
    mix[..4].copy_from_slice(&crc32c(&pages[..at]).to_le_bytes());
    mix[4..8].copy_from_slice(&crc32c(&pages[at + 4..]).to_le_bytes());
    mix[8..].copy_from_slice(&(pages.len() as u64).to_le_bytes());
    set_u32(pages, at, crc32c(&mix));
}

/// Where the superblock lies that counts.
pub fn newest(d: &[u8]) -> usize {
    if u64_at(d, 16) > u64_at(d, 65536 + 16) {
        0
    } else {
        65536
    }
}

fn stir(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
fn mix(a: u64, b: u64) -> u64 {
    stir((a ^ b).wrapping_add(0x9E37_79B9_7F4A_7C15))
}

/// The log of an image.
pub struct Log<'a> {
    pub bytes: &'a mut [u8],
    key: u64,
    tail: (u64, u64, u32),
}

/// A record, counted from the log's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rec {
    pub batch: usize,
    pub at: usize,
    pub kind: u8,
}

impl<'a> Log<'a> {
    pub fn of(d: &'a mut [u8], log_bytes: usize) -> Log<'a> {
        let s = newest(d);
        let id = u64_at(d, s + 40) ^ u64_at(d, s + 48).rotate_left(17);
        let tail = (u64_at(d, s + 112), u64_at(d, s + 120), u32_at(d, s + 60));
        Log { bytes: &mut d[LOG_AT..LOG_AT + log_bytes], key: mix(0, id), tail }
    }

    /// Where the batches begin that a recovery reads, in its order.
    pub fn live(&self) -> Vec<usize> {
        let ring = self.bytes.len() as u64;
        let (mut pos, mut no, mut prev) = self.tail;
        let mut out = Vec::new();
        while out.len() < self.bytes.len() / PAGE {
            let start = pos.checked_next_multiple_of(ring).unwrap_or(pos);
            let next = [pos, start].into_iter().find(|p| {
                let at = (p % ring) as usize;
                let b = self.bytes.get(at..at + PAGE).unwrap_or(&[]);
                b.starts_with(b"QRYLOG01")
                    && (u64_at(b, 40), u64_at(b, 32), u32_at(b, 64)) == (*p, no, prev)
            });
            let Some(p) = next else { break };
            let at = (p % ring) as usize;
            pos = p.saturating_add(u64_at(self.bytes, at + 48));
            (no, prev) = (no.wrapping_add(1), u32_at(self.bytes, at + 12));
            out.push(at);
        }
        out
    }

    /// Header and records of a batch; the whole of it where its sizes make no sense.
    pub fn descriptor(&self, batch: usize) -> Range<usize> {
        let end = batch.saturating_add(u32_at(self.bytes, batch + 8) as usize);
        batch..end.clamp(batch + HEADER, self.bytes.len())
    }

    pub fn records(&self, batch: usize) -> Vec<Rec> {
        let end = self.descriptor(batch).end;
        let (mut at, mut out) = (batch + HEADER, Vec::new());
        while at + RECORD <= end {
            out.push(Rec { batch, at, kind: self.bytes[at + 4] });
            at += (u32_at(self.bytes, at) as usize).max(RECORD);
        }
        out
    }

    /// What a record carries in the log.
    pub fn payload(&self, r: Rec) -> Range<usize> {
        let pages = |at| u32_at(self.bytes, r.at + at) as usize * PAGE;
        let from = r.batch.saturating_add(pages(104)).min(self.bytes.len());
        from..from.saturating_add(pages(108)).min(self.bytes.len())
    }

    /// Bytes of what it carries that mean something: of a blob its length.
    pub fn meant(&self, r: Rec) -> Range<usize> {
        let all = self.payload(r);
        let blob = (kind::DROP_BLOCKS..=kind::IDS_IMPORT).contains(&r.kind);
        let n = if blob { u64_at(self.bytes, r.at + 96) as usize } else { all.len() };
        all.start..all.start.saturating_add(n).min(all.end)
    }

    /// Makes a record's checks those of what it carries.
    pub fn seal_payload(&mut self, r: Rec) {
        let checks = u32_at(self.bytes, r.at + 112) as usize;
        let payload = self.payload(r);
        let end = self.descriptor(r.batch).end;
        for (i, (check, seed)) in self.logged(r).into_iter().enumerate() {
            let (from, to) = (payload.start + i * PAGE, r.at + RECORD + 4 * check);
            if check >= checks || from + PAGE > payload.end || to + 4 > end {
                return;
            }
            let data = &self.bytes[from..from + PAGE];
            let sum = crc32c(data) ^ XxHash3_64::oneshot_with_seed(seed, data) as u32;
            set_u32(self.bytes, to, sum.max(1));
        }
    }

    /// Which check is of which page in the log, and with what seed it is made.
    fn logged(&self, r: Rec) -> Vec<(usize, u64)> {
        let b = &self.bytes[r.at..r.at + RECORD];
        let (pg, vtree, aux) = (u64_at(b, 8), u64_at(b, 72), u64_at(b, 96));
        let place = u64::from(u32_at(b, 80)) << 32 | u64::from(u32_at(b, 84));
        let (offset, len) = (u32_at(b, 88), u32_at(b, 92));
        let block = |n: u32| [pg, vtree, place, u64::from(n)].into_iter().fold(self.key, mix);
        let page = |at: u32| mix(block(at / BLOCK), u64::from(at % BLOCK / PAGE as u32));
        let slots = usize::from(u16_at(b, 6));
        match r.kind {
            kind::WRITE => {
                let end = offset.saturating_add(len).min(EXTENT);
                let all = (offset.min(EXTENT)..end).step_by(PAGE).enumerate();
                let logged =
                    all.filter(|(_, at)| self.slot(r, slots, offset, at / BLOCK) == NO_SLOT);
                logged.map(|(i, at)| (i, page(at))).collect()
            }
            kind::COPY | kind::COPY_PART | kind::REPAIR if slots == 0 => {
                let held = (0..16u64).filter(|p| aux >> p & 1 == 1).enumerate();
                held.map(|(i, p)| (i, mix(block(offset / BLOCK), p))).collect()
            }
            kind::DROP_BLOCKS..=kind::IDS_IMPORT => {
                let seal = mix(mix(self.key, pg), !u64::from(r.kind));
                (0..self.payload(r).len() / PAGE).map(|i| (i, mix(seal, i as u64))).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The slot of a block that a write put straight to its place.
    fn slot(&self, r: Rec, slots: usize, offset: u32, block: u32) -> u32 {
        let checks = u32_at(self.bytes, r.at + 112) as usize;
        let i = block.checked_sub(offset.div_ceil(BLOCK)).map(|i| i as usize);
        let at = i.filter(|i| *i < slots).map(|i| r.at + RECORD + 4 * (checks.min(1 << 20) + i));
        at.filter(|at| at + 4 <= self.bytes.len()).map_or(NO_SLOT, |at| u32_at(self.bytes, at))
    }

    /// Makes a batch's checksum right, and those of all that follow: each has the one before in it.
    pub fn seal(&mut self, batches: &[usize]) {
        let mut prev = None;
        for at in batches {
            if let Some(crc) = prev {
                set_u32(self.bytes, at + 64, crc);
            }
            let d = self.descriptor(*at);
            let end = (d.end - d.start).next_multiple_of(PAGE) + d.start;
            page(&mut self.bytes[d.start..end.min(d.start + LONGEST)], 12);
            prev = Some(u32_at(self.bytes, at + 12));
        }
    }
}

/// No descriptor that a store writes is longer.
const LONGEST: usize = 64 << 10;

fn digest_of(group: u64, gen: u64, crc: u32) -> u64 {
    stir(group.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ gen.rotate_left(32) ^ u64::from(crc))
}

/// Makes the superblock's digest that of the table, `groups` groups from `table_at` on.
pub fn digest(d: &mut [u8], table_at: usize, groups: usize) {
    let s = newest(d);
    let ckpt = u64_at(d, s + 128);
    let mut sum = 0u64;
    for g in 0..groups {
        let side = |i: usize| {
            let at = table_at + (4 * g + 2 * i) * PAGE;
            (u64_at(d, at + 16), u64_at(d, at + PAGE + 16), u32_at(d, at + 4))
        };
        let counts =
            |(table, crcs, _): &(u64, u64, u32)| table == crcs && (1..=ckpt).contains(table);
        let sides = [side(0), side(1)].into_iter().filter(counts);
        // Of two equal ones the first.
        let best = sides.reduce(|a, b| if b.0 > a.0 { b } else { a });
        sum = sum.wrapping_add(best.map_or(0, |(gen, _, crc)| digest_of(g as u64, gen, crc)));
    }
    d[s + 136..s + 144].copy_from_slice(&sum.to_le_bytes());
    page(&mut d[s..s + PAGE], 12);
}
