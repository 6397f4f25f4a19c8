//! A device's structures in words, for `sds-server check` and `dump`. Nothing here writes.

use crate::layout::{Layout, SUPER_B};
use crate::log_format::{Kind, RawRecord};
use crate::log_scan::{self, LogImage};
use crate::store::Store;
use crate::superblock::{Superblock, IDENT_BYTES};
use crate::types::DiskOp;
use bytes::Bytes;
use quarry_base::{Nanos, PAGE};

/// What one of the two superblocks is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SuperState {
    /// Valid; of which generation, and its fields, one a line.
    Good {
        generation: u64,
        lines: Vec<String>,
    },
    Blank,
    Damaged,
    /// Of a format version that this program does not know.
    Newer,
    /// Of one that it no longer reads.
    Older,
}

fn lines_of(s: &Superblock) -> Vec<String> {
    vec![
        format!("format version {}, generation {}", s.version, s.generation),
        format!("device {}", s.ident.device),
        format!("device bytes {}, log bytes {}, blocks {}", s.device_bytes, s.log_bytes, s.blocks),
        format!("incarnation {} from position {} batch {}", s.incarnation, s.inc_pos, s.inc_batch),
        format!(
            "log tail at position {} batch {} after checksum {:08x}",
            s.tail_pos, s.tail_batch, s.tail_prev_crc
        ),
        format!("checkpoint {} digest {:016x}", s.ckpt_gen, s.table_digest),
        format!("scrub at block {} after {} passes", s.scrub_slot, s.scrub_passes),
    ]
}

/// Both superblocks, from the device's first [`IDENT_BYTES`] bytes; too few bytes: both damaged.
pub fn superblocks(start: &[u8]) -> [SuperState; 2] {
    [0, SUPER_B as usize].map(|at| {
        let Some(page) = start.get(at..at + PAGE) else { return SuperState::Damaged };
        match Superblock::decode(page) {
            Ok(Some(s)) => SuperState::Good { generation: s.generation, lines: lines_of(&s) },
            Ok(None) if page.iter().all(|b| *b == 0) => SuperState::Blank,
            Ok(None) => SuperState::Damaged,
            Err(crate::StoreError::OlderFormat { .. }) => SuperState::Older,
            Err(_) => SuperState::Newer,
        }
    })
}

/// Where the log area lies, bytes: offset, length. `None`: no valid superblock.
pub fn log_area(start: &[u8]) -> Option<(u64, u64)> {
    let s = newest(start)?;
    Some((crate::layout::LOG_START, s.log_bytes))
}

fn newest(start: &[u8]) -> Option<Superblock> {
    let b = start.get(SUPER_B as usize..IDENT_BYTES)?;
    Superblock::newest(start.get(..PAGE)?, b).ok()
}

/// The batches that recovery would take from the log, and their records, one a line; then where the log
/// ends and whether that is an end, a damage, or a place that cannot be read. `log`: the whole log area; `refused`: its
/// pages that could not be read, bytes from the area's start, for which something else stands in `log`.
pub fn log_lines(start: &[u8], log: Bytes, refused: &[u64]) -> Vec<String> {
    let Some(sb) = newest(start) else { return vec!["no valid superblock".into()] };
    let Ok(layout) = Layout::new(sb.device_bytes, sb.log_bytes) else {
        return vec!["the superblock's sizes make no sense".into()];
    };
    if log.len() as u64 != sb.log_bytes {
        return vec!["the log area was not read whole".into()];
    }
    let mut image = LogImage::new(sb.log_bytes);
    image.put(0, log);
    image.lacks(refused.iter().copied());
    let walk = log_scan::walk(&image, &layout, &sb);
    let mut out = Vec::new();
    for f in &walk.found {
        let h = &f.header;
        out.push(format!(
            "batch {} position {} bytes {} incarnation {} synced up to {} records {} checksum {:08x}",
            h.batch, h.pos, h.len, h.incarnation, h.synced_upto, h.records, f.crc
        ));
        out.extend(f.records.iter().map(record_line));
    }
    out.extend(
        refused.iter().map(|at| format!("page at byte {at} of the log area cannot be read")),
    );
    // In the order in which recovery judges.
    let what = match (walk.later, walk.end < walk.synced, walk.hidden) {
        (true, ..) => "DAMAGED: a later incarnation goes on than the superblocks know",
        (_, true, _) => "DAMAGED: everything below the sync mark must be there",
        (.., true) => {
            "UNREADABLE: what follows may have been acknowledged, the device does not open"
        }
        _ => "whole",
    };
    out.push(format!("ends at position {}, sync mark {}: {what}", walk.end, walk.synced));
    out
}

fn record_line(r: &RawRecord) -> String {
    let mut s = format!("  {:?} {} {}", r.kind, r.pg, r.version);
    if r.len > 0 && r.kind != Kind::Intent {
        s += &format!(
            " vtree {} layer {} extent {} offset {} length {}",
            r.vtree.0, r.layer.0, r.extent.0, r.offset, r.len
        );
    }
    if r.origin.instance.0 > 0 {
        s += &format!(" request {}/{}", r.origin.instance.0, r.origin.id.0);
    }
    if matches!(r.kind, Kind::Intent | Kind::Placed) {
        s += &format!(
            " vtree {} layer {} extent {} offset {} parts {:04x}",
            r.vtree.0, r.layer.0, r.extent.0, r.offset, r.aux as u16
        );
    }
    let direct = r.slots.iter().filter(|s| **s != crate::layout::NO_SLOT).count();
    if r.kind == Kind::Placed {
        s += &r.slots.first().map_or(" not there".into(), |slot| format!(" in block {slot}"));
    } else if direct > 0 {
        s += &format!(" direct blocks {direct}");
    }
    for (set, word) in [(r.jump, " jump"), (r.again, " again")] {
        if set {
            s += word;
        }
    }
    s
}

impl Store {
    /// The block table, one line for each block in use, as it is after recovery.
    pub fn table_lines(&self) -> impl Iterator<Item = String> + '_ {
        self.sp.slots.entries().map(|(slot, e)| {
            format!(
                "block {slot} {} vtree {} layer {} extent {} block {} version {} valid {:04x} dirty {:04x}",
                e.pg,
                e.key.vtree.0,
                e.key.layer.0,
                e.key.extent.0,
                e.key.block,
                e.version,
                e.valid,
                e.dirty
            )
        })
    }

    /// One turn of a store opened read-only: reads alone.
    pub(crate) fn poll_read_only(&mut self, now: Nanos, ops: &mut Vec<DiskOp>) {
        self.poll_reads(ops);
        self.poll_scrub(now, ops);
        self.poll_checks(ops);
    }
}
