//! Writes and zeroes: from arrival to a sequence number.
//!
//! A write waits, in order of arrival, for overlapping locks (R22, R23), for the window, for log space (a group that cannot
//! commit for its part of it, see [`crate::pinned`]), for room on
//! every device that counts (R24) and for enough members (R25); never is it refused for these. Where a device says that it is
//! full, a write that needs a new block is answered `Full`. Rights and repeats are checked when it gets its
//! number (R19).

use super::commit::Sequenced;
use super::locks::PageRange;
use super::primary::Primary;
use super::request::Request;
use super::room::Room;
use crate::cx::Cx;
use crate::planted::Bug;
use bytes::Bytes;
use quarry_base::{crc32c, Seq, Version, PAGE};
use quarry_store::{Record, RecordKind};
use quarry_wire::{flags, Op, Status};
use smallvec::SmallVec;
use std::time::Duration;

/// How often a group that cannot commit looks whether it may go on.
const STUCK_LOOK: Duration = Duration::from_millis(500);

/// What became of a request that was tried.
enum Tried {
    /// It has a number, an answer, or a merge of its own.
    Done,
    /// It stays where it is; so does everything behind it.
    Wait,
}

impl Primary {
    /// A request of a client, at our epoch.
    pub fn on_request(&mut self, r: Request, cx: &mut Cx) {
        if !r.is_sound() {
            return self.answer(&r, Status::Invalid, cx);
        }
        match r.h.op {
            Op::Read | Op::Map => self.on_read(r, cx),
            Op::Write if !self.data_is_good(&r) => {
                cx.stats.bad_checksums += 1;
                self.answer(&r, Status::BadChecksum, cx);
            }
            _ => self.on_write(r, cx),
        }
    }

    fn data_is_good(&self, r: &Request) -> bool {
        let f = quarry_wire::Frame { header: r.h, meta: r.meta.clone(), data: r.data.clone() };
        f.verify_data().is_ok()
    }

    fn on_write(&mut self, r: Request, cx: &mut Cx) {
        if self.replace_twin(&r) {
            return;
        }
        if self.waiting.len() >= cx.limits.waiting_requests {
            return self.answer(&r, Status::TryAgain, cx);
        }
        self.waiting.push_back(r);
        self.admit(cx);
    }

    /// Gives numbers to what may have one.
    pub fn admit(&mut self, cx: &mut Cx) {
        if self.is_closed(cx) || self.log_full {
            return;
        }
        let mut held: SmallVec<[PageRange; 8]> = SmallVec::new();
        let mut i = 0;
        while let Some(r) = self.waiting.get(i) {
            if self.window_records >= cx.limits.window_records
                || self.window_bytes >= cx.limits.window_bytes
            {
                cx.stats.window_waits += 1;
                return;
            }
            let pages = r.pages();
            if self.locks.holds_back(&pages) || held.iter().any(|h| h.overlaps(&pages)) {
                held.push(pages);
                i += 1;
                continue;
            }
            let Some(r) = self.waiting.remove(i) else { return };
            match self.attempt(&r, cx) {
                Tried::Done => {}
                Tried::Wait => {
                    self.waiting.insert(i, r);
                    return;
                }
            }
        }
    }

    /// May the request be carried out now (R19, R21)?
    pub fn rights(&self, r: &Request, cx: &Cx) -> Result<(), Status> {
        match cx.view.check(r) {
            Err(Status::StaleInstance) if cx.limits.planted(Bug::OldInstance) => Ok(()),
            Err(Status::StaleMapping) if cx.limits.planted(Bug::OldMapping) => Ok(()),
            other => other,
        }
    }

    fn attempt(&mut self, r: &Request, cx: &mut Cx) -> Tried {
        if let Err(status) = self.rights(r, cx) {
            self.answer(r, status, cx);
            return Tried::Done;
        }
        if !self.is_new(r, cx) {
            return Tried::Done;
        }
        match r.h.op {
            Op::Write if r.is_aligned() => self.write_pages(r, r.data.clone(), None, cx),
            Op::Zero if r.is_aligned() => self.zero_pages(r, r.h.offset, r.h.length, cx),
            Op::Zero if r.h.has(flags::TRIM) => self.trim(r, cx),
            _ => {
                self.begin_merge(r.clone(), cx);
                Tried::Done
            }
        }
    }

    /// A trim that is not in whole pages: what is not a whole page of it is left alone.
    fn trim(&mut self, r: &Request, cx: &mut Cx) -> Tried {
        let page = PAGE as u32;
        let from = r.h.offset.div_ceil(page) * page;
        let to = (r.h.offset + r.h.length) / page * page;
        if from < to {
            return self.zero_pages(r, from, to - from, cx);
        }
        // Nothing to do; in order with what was acknowledged before it.
        self.await_commit(Seq::ZERO, r, cx);
        Tried::Done
    }

    fn zero_pages(&mut self, r: &Request, offset: u32, len: u32, cx: &mut Cx) -> Tried {
        let kind = RecordKind::Zero {
            vtree: r.h.vtree,
            layer: r.h.layer,
            extent: r.h.extent,
            offset,
            len,
        };
        cx.stats.zeroes += 1;
        self.sequence(r, kind, 0, None, cx)
    }

    /// Whole pages: the client's bytes, or those of a finished merge with their checksums.
    fn write_pages(
        &mut self,
        r: &Request,
        data: Bytes,
        merged: Option<SmallVec<[u32; 1]>>,
        cx: &mut Cx,
    ) -> Tried {
        let offset = r.h.offset - r.h.offset % PAGE as u32;
        let blocks = match self.room_for(r, cx) {
            Room::Yes(blocks) => blocks,
            Room::Wait => return Tried::Wait,
            Room::Full => {
                self.answer(r, Status::Full, cx);
                return Tried::Done;
            }
        };
        let from_client = merged.is_none();
        let crcs = match merged {
            Some(c) => c,
            None => match client_crcs(r) {
                Some(c) => c,
                None => {
                    self.answer(r, Status::BadChecksum, cx);
                    return Tried::Done;
                }
            },
        };
        let meta = (from_client && crcs.len() > 1).then(|| r.meta.clone());
        let kind = RecordKind::Write {
            vtree: r.h.vtree,
            layer: r.h.layer,
            extent: r.h.extent,
            offset,
            crcs,
            data,
        };
        cx.stats.writes += 1;
        cx.stats.write_bytes += r.len() as u64;
        self.sequence(r, kind, blocks, meta, cx)
    }

    /// The point where a request gets its number: appended here and sent to the members in the same step (R7).
    /// `blocks`: what it was found to take of every device at most.
    fn sequence(
        &mut self,
        r: &Request,
        kind: RecordKind,
        blocks: u64,
        meta: Option<Bytes>,
        cx: &mut Cx,
    ) -> Tried {
        let bytes = match &kind {
            RecordKind::Write { data, .. } => data.len(),
            _ => PAGE,
        };
        if cx.pinned.is_over(bytes as u64, cx.store.log_bytes()) && self.is_stuck(cx) {
            cx.stats.stuck_waits += 1;
            self.log_full = true;
            // Another group may commit or end its role; nobody hurries, as this one cannot commit.
            self.wake_by(cx.now + STUCK_LOOK);
            return Tried::Wait;
        }
        let room = cx.store.headroom().log_bytes;
        let need = bytes as u64 + cx.limits.log_reserve_bytes.min(cx.store.log_bytes() / 8);
        if room < need {
            cx.stats.log_waits += 1;
            self.log_full = true;
            // It has refused nothing: unless it is told, nobody wakes us.
            cx.store.want_log_room(need);
            return Tried::Wait;
        }
        let version = Version::new(self.stamp(cx), Seq(self.last.0 + 1));
        let origin = r.origin();
        let rec = Record { version, origin, kind };
        if cx.append(self.pg, rec.clone()).is_err() {
            self.log_full = true;
            return Tried::Wait;
        }
        self.last = version.seq;
        if self.window_records == 0 {
            self.window_since = cx.now;
        }
        self.window_bytes += bytes;
        self.window_records += 1;
        cx.pinned.set(cx.group, self.pinned_bytes());
        self.sequenced.push_back(Sequenced {
            seq: version.seq,
            link: r.link,
            h: r.h,
            bytes,
            counts: true,
            times: Some((r.came, cx.now)),
        });
        self.charges.add(version.seq, blocks);
        cx.ledger.set(cx.group, self.charges.sum());
        self.replicate(&rec, blocks, meta, cx);
        Tried::Done
    }

    /// Bytes of the device's log that it holds without a commit.
    pub(super) fn pinned_bytes(&self) -> u64 {
        let inherited = if self.commit < self.base { self.inherited_bytes } else { 0 };
        self.window_bytes as u64 + inherited
    }

    /// The commit point does not move, or cannot: somebody who counts is not even connected.
    fn is_stuck(&self, cx: &Cx) -> bool {
        let waits = self.window_records > 0 || self.commit < self.base;
        let since = self.commit_moved.max(self.window_since);
        (waits && cx.now.since(since) >= cx.limits.stuck_after)
            || self.followers.iter().any(|f| f.counts() && !f.is_running())
    }

    /// A merge is complete: its pages get one number. False: no room now, it stays.
    pub fn sequence_merged(
        &mut self,
        r: &Request,
        data: Bytes,
        crcs: SmallVec<[u32; 1]>,
        cx: &mut Cx,
    ) -> bool {
        if let Err(status) = self.rights(r, cx) {
            self.answer(r, status, cx);
            return true;
        }
        if !self.is_new(r, cx) {
            return true;
        }
        matches!(self.write_pages(r, data, Some(crcs), cx), Tried::Done)
    }
}

fn client_crcs(r: &Request) -> Option<SmallVec<[u32; 1]>> {
    let f = quarry_wire::Frame { header: r.h, meta: r.meta.clone(), data: r.data.clone() };
    f.claimed_crcs().ok().map(|c| c.into_iter().collect())
}

/// Checksums of whole pages.
pub(crate) fn page_crcs(data: &[u8]) -> SmallVec<[u32; 1]> {
    data.chunks(PAGE).map(crc32c).collect()
}
