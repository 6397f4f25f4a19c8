//! Reading a log area: where it ends, what is damaged. Pure functions on its bytes.

use crate::apply::{blocks_of, slot_of};
use crate::index::ExtKey;
use crate::layout::{Layout, LOG_START, NO_SLOT};
use crate::log_format::{BatchHeader, Kind, RawRecord};
use crate::planted::{planted, Bug};
use crate::seal::{BlockSeal, Checks, DeviceKey};
use crate::superblock::Superblock;
use crate::types::BlockKey;
use bytes::Bytes;
use quarry_base::{PageBuf, BLOCK, EXTENT, PAGE};
use smallvec::SmallVec;
use std::collections::BTreeSet;

/// The log area in memory, in chunks.
pub(crate) struct LogImage {
    chunk: u64,
    parts: Vec<Bytes>,
    /// Pages that cannot be read, counted from the log's start.
    unreadable: BTreeSet<u64>,
}

impl LogImage {
    pub fn new(chunk: u64) -> LogImage {
        LogImage { chunk, parts: Vec::new(), unreadable: BTreeSet::new() }
    }
    /// These pages could not be read.
    pub fn lacks(&mut self, pages: impl Iterator<Item = u64>) {
        self.unreadable.extend(pages);
    }
    fn is_hurt(&self, at: u64, len: u64) -> bool {
        self.unreadable.range(at..at + len).next().is_some()
    }
    pub fn put(&mut self, i: usize, b: Bytes) {
        if self.parts.len() <= i {
            self.parts.resize(i + 1, Bytes::new());
        }
        self.parts[i] = b;
    }
    /// `len` bytes from `at`, counted from the log's start; without copying if in one chunk.
    pub fn bytes(&self, at: u64, len: usize) -> Option<Bytes> {
        if len == 0 {
            // A record without payload may end the log's last page.
            return Some(Bytes::new());
        }
        let (i, off) = ((at / self.chunk) as usize, (at % self.chunk) as usize);
        let first = self.parts.get(i)?;
        if off + len <= first.len() {
            return Some(first.slice(off..off + len));
        }
        let mut buf = PageBuf::new(len);
        let (mut done, mut i, mut off) = (0, i, off);
        while done < len {
            let part = self.parts.get(i)?;
            let n = part.len().checked_sub(off)?.min(len - done);
            if n == 0 {
                return None;
            }
            buf[done..done + n].copy_from_slice(&part[off..off + n]);
            (done, i, off) = (done + n, i + 1, 0);
        }
        Some(buf.freeze())
    }
}

/// No batch is longer, bytes: one that does not fit before the area's end begins less than so far from it.
const LONGEST_BATCH: u64 = 4 << 20;

/// A valid batch.
pub(crate) struct Found {
    pub header: BatchHeader,
    pub crc: u32,
    pub records: Vec<RawRecord>,
    /// A direct block of it is not what the record says.
    pub broken: bool,
}

pub(crate) struct Walk {
    pub found: Vec<Found>,
    /// Where no valid batch followed.
    pub end: u64,
    /// Below this everything was synced.
    pub synced: u64,
    /// There is a batch of a later incarnation than the superblock knows: the newest superblock is lost.
    pub later: bool,
    /// What follows cannot be read: there may be a batch, and it may have been acknowledged.
    pub hidden: bool,
}

/// Walks the log from the superblock's tail.
pub(crate) fn walk(image: &LogImage, l: &Layout, sb: &Superblock) -> Walk {
    let (end, synced) = (sb.tail_pos, sb.inc_pos);
    let mut w = Walk { found: Vec::new(), end, synced, later: false, hidden: false };
    let (mut no, mut prev, mut inc) = (sb.tail_batch, sb.tail_prev_crc, 0);
    loop {
        let expect = Expect { no, prev, min_inc: inc };
        let next = next_batch(image, l, sb, w.end, &expect);
        let Some(f) = next.filter(|f| f.header.pos + f.header.len - sb.tail_pos <= l.log_bytes)
        else {
            let start = w.end.next_multiple_of(l.log_bytes);
            w.hidden = is_hidden(image, l, sb, w.end, no)
                || start - w.end <= LONGEST_BATCH && is_hidden(image, l, sb, start, no);
            break;
        };
        (no, prev, inc) = (no + 1, f.crc, f.header.incarnation);
        w.end = f.header.pos + f.header.len;
        w.synced = w.synced.max(f.header.synced_upto);
        w.found.push(f);
    }
    let (synced, later) = marks_beyond(image, l, sb, no);
    (w.synced, w.later) = (w.synced.max(synced), later);
    w
}

struct Expect {
    no: u64,
    prev: u32,
    min_inc: u64,
}

/// The batch that follows: where the last one ended, or at the area's start if it did not fit there. Both may be there: one
/// that a recovery cut off, for its direct data was not, stays where it is if what was written in its place did not fit.
/// Then the later incarnation counts.
fn next_batch(
    image: &LogImage,
    l: &Layout,
    sb: &Superblock,
    end: u64,
    e: &Expect,
) -> Option<Found> {
    let here = batch_at(image, l, sb, end, e);
    let wrapped = end.next_multiple_of(l.log_bytes);
    let settled = here.as_ref().is_some_and(|f| f.header.incarnation == sb.incarnation);
    if settled || wrapped == end {
        return here;
    }
    let there = batch_at(image, l, sb, wrapped, e);
    let inc = |f: &Option<Found>| f.as_ref().map(|f| f.header.incarnation);
    if inc(&there) > inc(&here) {
        there
    } else {
        here
    }
}

/// The header at a position, if its descriptor is whole and it belongs to this device and place.
fn header_at(
    image: &LogImage,
    l: &Layout,
    sb: &Superblock,
    at: u64,
) -> Option<(BatchHeader, Bytes, u32)> {
    let h = BatchHeader::peek(&image.bytes(at, PAGE)?)?;
    let placed = l.log_offset(h.pos) - LOG_START == at && h.format_id == sb.format_id();
    if !placed || h.len > l.log_bytes - at {
        return None;
    }
    let desc = image.bytes(at, h.desc_pages() * PAGE)?;
    let crc = BatchHeader::verify(&desc)?;
    Some((h, desc, crc))
}

/// Can it not be told whether batch `no` is at a position, for a page of it cannot be read?
fn is_hidden(image: &LogImage, l: &Layout, sb: &Superblock, pos: u64, no: u64) -> bool {
    let at = pos % l.log_bytes;
    if image.is_hurt(at, PAGE as u64) {
        return true;
    }
    let header = image.bytes(at, PAGE).and_then(|p| BatchHeader::peek(&p));
    let it = header.filter(|h| h.format_id == sb.format_id() && (h.pos, h.batch) == (pos, no));
    it.is_some_and(|h| image.is_hurt(at, h.len.min(l.log_bytes - at)))
}

fn batch_at(image: &LogImage, l: &Layout, sb: &Superblock, pos: u64, e: &Expect) -> Option<Found> {
    let at = pos % l.log_bytes;
    let (header, desc, crc) = header_at(image, l, sb, at)?;
    let inc_fits = if e.no >= sb.inc_batch {
        header.incarnation == sb.incarnation
    } else {
        header.incarnation < sb.incarnation && header.incarnation >= e.min_inc
    };
    let follows = header.prev_crc == e.prev && inc_fits || planted(Bug::OldIncarnation);
    if header.pos != pos || header.batch != e.no || !follows {
        return None;
    }
    let mut records = header.records(&desc)?;
    let key = DeviceKey::of(sb.format_id());
    let whole = records.iter_mut().all(|r| {
        sane(r, l)
            && (r.payload_page as u64 + r.payload_pages as u64) * PAGE as u64 <= header.len
            && {
                let from = at + u64::from(r.payload_page) * PAGE as u64;
                image
                    .bytes(from, r.payload_pages as usize * PAGE)
                    .is_some_and(|b| payload_ok(r, &b, key))
            }
    });
    whole.then_some(Found { header, crc, records, broken: false })
}

/// Sync marks in batches of this incarnation beyond the end found; is there a batch of a later one?
fn marks_beyond(image: &LogImage, l: &Layout, sb: &Superblock, no: u64) -> (u64, bool) {
    let (mut top, mut later) = (0, false);
    for page in 0..l.log_bytes / PAGE as u64 {
        let Some((h, _, _)) = header_at(image, l, sb, page * PAGE as u64) else { continue };
        later |= h.incarnation > sb.incarnation;
        if h.incarnation == sb.incarnation && h.batch >= no.max(sb.inc_batch) {
            let end = if planted(Bug::TailCalledCorruption) { h.pos } else { 0 };
            top = top.max(h.synced_upto).max(end);
        }
    }
    (top, later)
}

/// Do the sizes of a record fit each other?
fn sane(r: &RawRecord, l: &Layout) -> bool {
    let slots_exist = r.slots.iter().all(|s| *s == NO_SLOT || u64::from(*s) < l.blocks);
    let in_extent = u64::from(r.offset) + u64::from(r.len) <= u64::from(EXTENT);
    let aligned = (r.offset as usize).is_multiple_of(PAGE) && (r.len as usize).is_multiple_of(PAGE);
    // Something follows every record.
    let numbers = r.version.seq.0 < u64::MAX && r.commit.0 < u64::MAX;
    slots_exist
        && numbers
        && match r.kind {
            Kind::Write => {
                let blocks = blocks_of(r.offset, if in_extent { r.len } else { 0 });
                let logged: u32 = blocks
                    .filter(|(b, _, _)| slot_of(&r.slots, r.offset, *b) == NO_SLOT)
                    .map(|(_, from, to)| to - from)
                    .sum();
                let n = r.checks.len();
                let whole = (r.offset.saturating_add(r.len) / BLOCK)
                    .saturating_sub(r.offset.div_ceil(BLOCK));
                in_extent
                    && aligned
                    && (r.slots.is_empty() || r.slots.len() == whole as usize)
                    && n * PAGE == r.len as usize
                    && n > 0
                    && logged == r.payload_pages
            }
            Kind::Zero => in_extent && aligned,
            Kind::EpochStart | Kind::DropVtree => r.payload_pages == 0,
            Kind::Copy | Kind::CopyPart | Kind::Repair => {
                let n = (r.aux as u16).count_ones() as usize;
                let logged = if r.slots.is_empty() { n } else { 0 };
                let direct = r.slots.is_empty()
                    || r.kind == Kind::Copy && r.slots.len() == 1 && r.slots[0] != NO_SLOT;
                direct
                    && (r.aux as u16) & !r.part() == 0
                    && aligned
                    && in_extent
                    && r.offset < EXTENT
                    && r.checks.len() == n
                    && logged == r.payload_pages as usize
            }
            Kind::Intent | Kind::Placed => {
                let slots = if r.kind == Kind::Placed { 1 } else { 0 };
                // Never a whole block: what it is silent about has its content elsewhere.
                let some = r.kind == Kind::Placed || r.part() != u16::MAX;
                some && r.slots.len() <= slots
                    && (r.aux as u16) & !r.part() == 0
                    && aligned
                    && in_extent
                    && r.offset < EXTENT
                    && r.checks.len() == (r.aux as u16).count_ones() as usize
                    && r.payload_pages == 0
            }
            _ => {
                r.checks.len() == r.payload_pages as usize
                    && r.aux <= r.payload_pages as u64 * PAGE as u64
            }
        }
}

/// The pages of blocks that a record has content for, in order: of which block, and whether in the log.
fn pages_of(r: &RawRecord) -> Vec<(BlockKey, u32, bool)> {
    let key = |block| BlockKey { vtree: r.vtree, layer: r.layer, extent: r.extent, block };
    match r.kind {
        Kind::Write => blocks_of(r.offset, r.len)
            .flat_map(|(b, from, to)| {
                let logged = slot_of(&r.slots, r.offset, b) == NO_SLOT;
                (from..to).map(move |p| (key(b), p, logged))
            })
            .collect(),
        _ => {
            let held = (0..16u32).filter(|p| r.aux >> p & 1 == 1);
            let logged = r.slots.is_empty() && !matches!(r.kind, Kind::Intent | Kind::Placed);
            held.map(|p| (key((r.offset / BLOCK) as u8), p, logged)).collect()
        }
    }
}

/// Is the payload what the record's checks say? Its CRCs are noted.
fn payload_ok(r: &mut RawRecord, payload: &[u8], key: DeviceKey) -> bool {
    let mut pages = payload.chunks(PAGE);
    let mut crcs = SmallVec::new();
    let mut matches = |seal: BlockSeal, page: u32, check: &u32| {
        let Some(data) = pages.next() else { return false };
        let (crc, found) = seal.both(page, data);
        crcs.push(crc);
        found == *check
    };
    let ok = match r.kind {
        Kind::Write | Kind::Copy | Kind::CopyPart | Kind::Repair | Kind::Intent | Kind::Placed => {
            let list = pages_of(r);
            let logged = list.iter().zip(&r.checks).filter(|((_, _, logged), _)| *logged);
            let mut logged = logged.map(|((k, p, _), c)| (key.block(r.pg, *k), *p, c));
            let ok = logged.all(|(seal, p, c)| matches(seal, p, c));
            let mut found = std::mem::take(&mut crcs).into_iter();
            let of = |logged: bool| if logged { found.next().unwrap_or(0) } else { 0 };
            crcs = list.iter().map(|l| l.2).map(of).collect();
            ok
        }
        _ => {
            let seal = key.blob(r.pg, r.kind as u8);
            (0..).zip(&r.checks).all(|(i, c)| matches(seal, i, c))
        }
    };
    r.crcs = crcs;
    ok
}

/// A block whose data a record put straight to disk.
pub(crate) struct Direct {
    pub key: BlockKey,
    pub slot: u32,
    pub pages: u16,
    pub checks: Checks,
}

/// Whole blocks of a write with a slot, each with the number of its first page in the record's data.
pub(crate) fn direct_of(
    slots: &[u32],
    ext: ExtKey,
    offset: u32,
    checks: &[u32],
) -> Vec<(usize, Direct)> {
    let mut at = 0;
    let mut out = Vec::new();
    for (b, from, to) in blocks_of(offset, (checks.len() * PAGE) as u32) {
        let n = (to - from) as usize;
        let slot = slot_of(slots, offset, b);
        if slot != NO_SLOT {
            let checks = Checks::from_slice(&checks[at..at + n]);
            out.push((at, Direct { key: ext.block(b), slot, pages: 0xFFFF, checks }));
        }
        at += n;
    }
    out
}

/// All blocks that a record put straight to disk.
pub(crate) fn direct_blocks(r: &RawRecord) -> Vec<Direct> {
    let ext = ExtKey(r.vtree, r.layer, r.extent);
    match (r.kind, r.slots.first()) {
        (Kind::Write, Some(_)) => {
            direct_of(&r.slots, ext, r.offset, &r.checks).into_iter().map(|(_, d)| d).collect()
        }
        (Kind::Copy, Some(&slot)) if slot != NO_SLOT => {
            let key = ext.block((r.offset / BLOCK) as u8);
            vec![Direct { key, slot, pages: r.aux as u16, checks: Checks::from_slice(&r.checks) }]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_format::HEADER_BYTES;
    use crate::types::DeviceIdent;
    use quarry_base::DeviceId;

    const LOG: u64 = 1 << 20;
    const END: u64 = LOG - PAGE as u64;

    struct Area {
        layout: Layout,
        sb: Superblock,
        bytes: Vec<u8>,
    }

    impl Area {
        /// A log whose tail is batch 1 at `END`, its last page.
        fn new(incarnation: u64, inc_batch: u64, inc_pos: u64) -> Area {
            let layout = Layout::new(64 << 20, LOG).unwrap();
            let ident = DeviceIdent { cluster: [7; 16], device_uuid: [3; 16], device: DeviceId(1) };
            let fresh = Superblock::fresh(&layout, ident);
            let sb = Superblock {
                incarnation,
                inc_batch,
                inc_pos,
                tail_pos: END,
                tail_batch: 1,
                tail_prev_crc: 9,
                ..fresh
            };
            Area { layout, sb, bytes: vec![0; LOG as usize] }
        }

        /// A batch of one page without records; its checksum.
        fn put(&mut self, incarnation: u64, batch: u64, pos: u64, prev_crc: u32) -> u32 {
            let at = (pos % LOG) as usize;
            let page = &mut self.bytes[at..at + PAGE];
            let h = BatchHeader {
                format_id: self.sb.format_id(),
                incarnation,
                batch,
                pos,
                len: PAGE as u64,
                synced_upto: pos,
                prev_crc,
                records: 0,
                desc_bytes: HEADER_BYTES as u32,
            };
            h.seal(page)
        }

        fn walk(&self) -> Walk {
            let mut image = LogImage::new(LOG);
            image.put(0, Bytes::from(self.bytes.clone()));
            walk(&image, &self.layout, &self.sb)
        }
    }

    fn found(w: &Walk) -> Vec<(u64, u64)> {
        w.found.iter().map(|f| (f.header.batch, f.header.incarnation)).collect()
    }

    /// Batch 1 was cut off by a recovery, its successor of the same number was too long for the rest of the area, and the next
    /// recovery is over: the device did not open any more, for "its log was damaged" (store model, seed 1493).
    #[test]
    fn a_batch_that_was_cut_off_at_the_areas_end_is_not_taken_for_its_successor_at_the_start() {
        let mut a = Area::new(3, 3, LOG + 2 * PAGE as u64);
        a.put(1, 1, END, 9);
        let crc = a.put(2, 1, LOG, 9);
        a.put(2, 2, LOG + PAGE as u64, crc);
        let w = a.walk();
        assert_eq!(found(&w), [(1, 2), (2, 2)]);
        assert_eq!((w.end, w.synced), (a.sb.inc_pos, a.sb.inc_pos));
        // In the incarnation that wrote the successor nothing older counts, whether the successor is there or not.
        a.sb = Superblock { incarnation: 2, inc_batch: 1, inc_pos: END, ..a.sb };
        assert_eq!(found(&a.walk()), [(1, 2), (2, 2)]);
        a.bytes[..PAGE].fill(0);
        assert!(a.walk().found.is_empty());
    }

    #[test]
    fn what_an_earlier_round_left_at_the_areas_start_follows_nothing() {
        let mut a = Area::new(2, 2, LOG);
        // Of the same number, but it names another batch before it.
        a.put(2, 1, LOG, 8);
        a.put(1, 1, END, 9);
        assert_eq!(found(&a.walk()), [(1, 1)]);
        // A batch that did not fit lies at the start alone.
        a.bytes.fill(0);
        a.put(1, 1, LOG, 9);
        assert_eq!(found(&a.walk()), [(1, 1)]);
    }
}
