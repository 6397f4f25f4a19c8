//! Scrub: everything on the device is read and checked in the background, at a set rate.
//!
//! Slot by slot, one read at a time: the pages of each block that count, by the same road as any read
//! (a page that was replaced meanwhile is planned anew, one that does not match is read twice), and before
//! the first slot of each table group the group's own pages. What is found is told as
//! `StoreEvent::Corruption`, whose repair takes content of exactly the block's version and checksum; a
//! damaged table group is simply written anew, its content is in memory.
//!
//! The position goes into every superblock: after a restart the pass goes on from there. On a device that takes no
//! writes a checkpoint is made for it alone now and then.

use crate::layout::{GROUP_BYTES, GROUP_SLOTS};
use crate::medium::is_medium_error;
use crate::slots::SlotEntry;
use crate::store::{OpKind, Store};
use crate::types::{DiskOp, StoreEvent};
use quarry_base::{Nanos, PageBuf};
use std::time::Duration;

/// Slots looked at in one turn at most: those that are free cost nothing but the look.
const LOOK: u32 = 4096;
/// Bytes read since the position was saved that are worth a checkpoint of their own: two minutes' at 8 MiB a second.
const WORTH_SAVING: u64 = 1 << 30;
/// The end of a pass is worth one if the last is so long ago: a small device may be gone through every second.
const SAVE_PASSES: Duration = Duration::from_secs(3600);

#[derive(Default)]
pub(crate) struct Scrub {
    /// Next slot.
    pub slot: u32,
    pub passes: u64,
    /// Position that the newest superblock has.
    pub saved: (u32, u64),
    /// Bytes read since open when it was taken, and when that was.
    saved_bytes: u64,
    saved_at: Nanos,
    /// Nothing is read before this.
    next: Nanos,
    /// A read is under way.
    busy: bool,
    /// Table group of `slot` has been looked at.
    group_done: Option<u64>,
    /// Table group whose pages were refused by the medium last: a second time counts.
    refused: Option<u64>,
    /// Something was looked at since the last pass ended.
    any: bool,
    /// What the pool says of the rate, bytes a second; `None`: nothing, so the server's own counts.
    policy: Option<u64>,
}

/// What a scrub has done and found, and how far it is.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct ScrubStats {
    /// Blocks looked at in this pass, and in all.
    pub position: u64,
    pub blocks: u64,
    /// Bytes a second that it reads at most now; 0: it is off.
    pub rate: u64,
    /// Passes completed since the device was formatted.
    pub passes: u64,
    /// Bytes read since open.
    pub bytes: u64,
    /// Pages that did not match, since open.
    pub bad_pages: u64,
    /// Table groups that were damaged on the device, since open.
    pub bad_groups: u64,
    /// Reads of the scrub that failed, since open.
    pub read_errors: u64,
    /// How it stood when a pass ended last.
    pub ended: ScrubEnded,
}

/// What the passes of a scrub that have ended since open read and found together. Passes that met an empty device do
/// not count.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct ScrubEnded {
    pub passes: u64,
    pub bytes: u64,
    pub bad_pages: u64,
    pub bad_groups: u64,
    pub read_errors: u64,
}

impl Store {
    /// How far the scrub is, and what it found.
    pub fn scrub_stats(&self) -> ScrubStats {
        ScrubStats {
            position: u64::from(self.scrub.slot),
            blocks: self.sp.layout.blocks,
            rate: self.scrub_rate(),
            passes: self.scrub.passes,
            ..self.sp.scrub
        }
    }

    /// Bytes a second from now on, as long as no policy says otherwise; 0: none.
    pub fn set_scrub_rate(&mut self, bytes_per_second: u64) {
        let before = self.scrub_rate();
        self.cfg.scrub_bytes_per_second = bytes_per_second;
        self.paced_anew(before);
    }

    /// What the pool says of the rate from now on, bytes a second; 0: no scrub; `None`: nothing, so that
    /// [`set_scrub_rate`](Store::set_scrub_rate)'s counts.
    pub fn set_scrub_policy(&mut self, bytes_per_second: Option<u64>) {
        let before = self.scrub_rate();
        self.scrub.policy = bytes_per_second;
        self.paced_anew(before);
    }

    /// The wait that an earlier rate called for ends: it may have been hours.
    fn paced_anew(&mut self, before: u64) {
        if self.scrub_rate() != before {
            self.scrub.next = Nanos::ZERO;
        }
    }

    fn scrub_rate(&self) -> u64 {
        self.scrub.policy.unwrap_or(self.cfg.scrub_bytes_per_second)
    }

    /// The next pass begins now, at the device's start.
    pub fn restart_scrub(&mut self) {
        self.scrub.slot = 0;
        self.scrub.group_done = None;
        self.scrub.next = Nanos::ZERO;
    }

    /// A kill now would have much of a pass done again.
    pub(crate) fn is_scrub_worth_saving(&self, now: Nanos) -> bool {
        let s = &self.scrub;
        let read = self.sp.scrub.bytes - s.saved_bytes;
        let ended = s.passes != s.saved.1 && now >= s.saved_at + SAVE_PASSES;
        read >= WORTH_SAVING || read > 0 && ended
    }

    /// The position goes into a superblock.
    pub(crate) fn save_scrub(&mut self, now: Nanos) {
        let s = &mut self.scrub;
        (s.saved, s.saved_bytes, s.saved_at) = ((s.slot, s.passes), self.sp.scrub.bytes, now);
    }

    fn scrubs(&self) -> bool {
        self.scrub_rate() > 0 && self.failed.is_none()
    }

    /// When the scrub wants to go on.
    pub(crate) fn scrub_deadline(&self) -> Option<Nanos> {
        (self.scrubs() && !self.scrub.busy).then_some(self.scrub.next)
    }

    pub(crate) fn poll_scrub(&mut self, now: Nanos, ops: &mut Vec<DiskOp>) {
        if !self.scrubs() || self.scrub.busy || now < self.scrub.next {
            return;
        }
        for _ in 0..LOOK {
            let slot = self.scrub.slot;
            if u64::from(slot) >= self.sp.layout.blocks {
                self.end_pass(now);
                return;
            }
            let group = u64::from(slot) / GROUP_SLOTS;
            if self.scrub.group_done != Some(group) {
                self.scrub.group_done = Some(group);
                if self.sp.slots.is_written(group) {
                    return self.read_group(now, group, ops);
                }
            }
            self.scrub.slot += 1;
            if let Some(e) = self.sp.slots.entry(slot).filter(|e| e.valid != 0) {
                return self.scrub_block(now, e, ops);
            }
        }
        // Much of the device is free: go on soon, but let others in between.
        self.scrub.next = now + Duration::from_millis(1);
    }

    fn end_pass(&mut self, now: Nanos) {
        self.scrub.slot = 0;
        self.scrub.group_done = None;
        self.scrub.passes += 1;
        if self.scrub.any {
            let s = &mut self.sp.scrub;
            s.ended = ScrubEnded {
                passes: s.ended.passes + 1,
                bytes: s.bytes,
                bad_pages: s.bad_pages,
                bad_groups: s.bad_groups,
                read_errors: s.read_errors,
            };
        }
        // An empty device is not looked at all the time.
        let pause = if self.scrub.any { 1 } else { 60 };
        self.scrub.any = false;
        self.scrub.next = now + Duration::from_secs(pause);
    }

    /// `bytes` are read now: when the next may be.
    fn pace(&mut self, now: Nanos, bytes: u64) {
        let nanos = bytes.saturating_mul(1_000_000_000) / self.scrub_rate().max(1);
        self.scrub.next = now + Duration::from_nanos(nanos);
        self.scrub.any = true;
        self.sp.scrub.bytes += bytes;
    }

    fn scrub_block(&mut self, now: Nanos, e: SlotEntry, ops: &mut Vec<DiskOp>) {
        self.pace(now, u64::from(e.valid.count_ones()) * quarry_base::PAGE as u64);
        self.scrub.busy = true;
        self.read_for_scrub(e.pg, e.key, ops);
    }

    /// A block has been read; its bad pages are told already.
    pub(crate) fn scrubbed(&mut self, bad_pages: usize, io: bool) {
        self.scrub.busy = false;
        self.sp.scrub.bad_pages += bad_pages as u64;
        self.sp.scrub.read_errors += u64::from(io);
    }

    fn read_group(&mut self, now: Nanos, group: u64, ops: &mut Vec<DiskOp>) {
        self.pace(now, GROUP_BYTES);
        self.scrub.busy = true;
        let stamp = self.sp.slots.stamp(group);
        let id = self.ops.start(OpKind::ScrubGroup(group, stamp));
        let offset = self.sp.layout.group_offset(group, 0);
        ops.push(DiskOp::Read { id, offset, len: GROUP_BYTES as usize });
    }

    /// The pages of a table group were read, when its side that counts was of generation `stamp`.
    pub(crate) fn scrubbed_group(&mut self, group: u64, stamp: u64, r: Result<PageBuf, i32>) {
        self.scrub.busy = false;
        let refused = matches!(r, Err(e) if is_medium_error(e)) && self.failed.is_none();
        let before = std::mem::replace(&mut self.scrub.refused, refused.then_some(group));
        if refused && before != Some(group) {
            self.scrub.group_done = None;
            return;
        }
        let good = match &r {
            Ok(buf) => self.sp.slots.is_as_written(group, buf),
            // A place that the medium refuses is as good as damaged: the device would not open again.
            Err(_) => !refused,
        };
        self.sp.scrub.read_errors += u64::from(r.is_err());
        // A checkpoint has written the group meanwhile: this says nothing about it.
        if good || self.sp.slots.stamp(group) != stamp {
            return;
        }
        self.sp.scrub.bad_groups += 1;
        self.sp.slots.rewrite(group);
        self.events.push(StoreEvent::TableDamaged { group });
    }
}
