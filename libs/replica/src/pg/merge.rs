//! Writes that do not fill whole pages (R22): the partial pages are read, merged, and the whole pages
//! become one record. Also a Zero that is no trim: its pages travel as data, so that the request stays one
//! record and a repeat of it cannot be applied by halves.
//!
//! The range stays locked from the decision to merge until the record has its number; writes sequenced
//! before it on the partial pages are waited for, so what is read is the newest content.

use super::locks::{LockId, PageRange, Span};
use super::primary::Primary;
use super::request::Request;
use super::requests::page_crcs;
use super::Purpose;
use crate::cx::Cx;
use crate::planted::Bug;
use bytes::Bytes;
use quarry_base::{PageBuf, PAGE};
use quarry_store::{ReadData, ReadError};
use quarry_wire::{Op, Status};
use smallvec::SmallVec;

/// A partial page.
#[derive(Debug)]
enum Part {
    None,
    Wanted,
    Asked,
    Have(Bytes),
}

pub(crate) struct Merge {
    pub lock: LockId,
    pub req: Request,
    pages: PageRange,
    head: Part,
    tail: Part,
    /// Waits for a repair of one of its pages.
    pub repairing: bool,
}

impl Merge {
    fn new(req: Request, lock: LockId) -> Merge {
        let pages = req.pages();
        let end = req.h.offset as usize + req.len();
        let one = pages.to - pages.from == 1;
        let wanted = |w: bool| if w { Part::Wanted } else { Part::None };
        let head = !(req.h.offset as usize).is_multiple_of(PAGE);
        let tail = !end.is_multiple_of(PAGE);
        Merge {
            lock,
            head: wanted(head || (one && tail)),
            tail: wanted(tail && !one),
            pages,
            req,
            repairing: false,
        }
    }

    fn page(&self, tail: bool) -> PageRange {
        let at = if tail { self.pages.to - 1 } else { self.pages.from };
        PageRange { from: at, to: at + 1, ..self.pages }
    }

    fn is_ready(&self) -> bool {
        !matches!(self.head, Part::Wanted | Part::Asked)
            && !matches!(self.tail, Part::Wanted | Part::Asked)
    }

    /// The whole pages, and one checksum each: the client's where it covers the page.
    fn compose(&self) -> (Bytes, SmallVec<[u32; 1]>) {
        let (_, len) = self.pages.bytes();
        let len = len as usize;
        let mut buf = PageBuf::new(len);
        if let Part::Have(b) = &self.head {
            buf[..PAGE].copy_from_slice(b);
        }
        if let Part::Have(b) = &self.tail {
            buf[len - PAGE..].copy_from_slice(b);
        }
        let at = self.req.h.offset as usize % PAGE;
        let range = at..at + self.req.len();
        if self.req.h.op == Op::Write {
            buf[range].copy_from_slice(&self.req.data);
        } else {
            buf[range].fill(0);
        }
        let mut crcs = page_crcs(&buf);
        self.keep_client_crcs(&mut crcs);
        (buf.freeze(), crcs)
    }

    /// Pages that the client filled keep the checksum that the client made.
    fn keep_client_crcs(&self, crcs: &mut [u32]) {
        if self.req.h.op != Op::Write {
            return;
        }
        let f = quarry_wire::Frame {
            header: self.req.h,
            meta: self.req.meta.clone(),
            data: self.req.data.clone(),
        };
        let Ok(claimed) = f.claimed_crcs() else { return };
        let (start, end) =
            (self.req.h.offset as usize, self.req.h.offset as usize + self.req.len());
        for (i, (mine, theirs)) in crcs.iter_mut().zip(&claimed).enumerate() {
            let page = (self.pages.from as usize + i) * PAGE;
            if page >= start && page + PAGE <= end {
                *mine = *theirs;
            }
        }
    }
}

impl Primary {
    pub fn begin_merge(&mut self, r: Request, cx: &mut Cx) {
        cx.stats.merges += 1;
        let lock = self.locks.take(Span::Pages(r.pages()));
        self.merges.push(Merge::new(r, lock));
        self.turn_merges(cx);
    }

    /// Moves every merge on as far as it goes.
    pub fn turn_merges(&mut self, cx: &mut Cx) {
        let mut i = 0;
        while i < self.merges.len() {
            self.ask_pages(i, cx);
            let m = &self.merges[i];
            if !m.is_ready() || m.repairing || self.log_full || self.is_closed(cx) {
                i += 1;
                continue;
            }
            let m = self.merges.remove(i);
            let (data, crcs) = m.compose();
            if self.sequence_merged(&m.req, data, crcs, cx) {
                self.locks.release(m.lock);
            } else {
                self.merges.insert(i, m);
                i += 1;
            }
        }
    }

    fn ask_pages(&mut self, i: usize, cx: &mut Cx) {
        let (pg, epoch, active) = (self.pg, self.epoch, self.commit >= self.base);
        let Some(m) = self.merges.get_mut(i) else { return };
        // Before the inherited tail is committed the newest content is not known to stay (R9).
        if !active || m.repairing || self.locks.is_behind(m.lock, &Span::Pages(m.pages)) {
            return;
        }
        for tail in [false, true] {
            let part = if tail { &m.tail } else { &m.head };
            if !matches!(part, Part::Wanted) {
                continue;
            }
            let page = m.page(tail);
            let (offset, len) = page.bytes();
            let busy = cx.store.tail_overlaps(pg, page.vtree, page.layer, page.extent, offset, len);
            if busy.is_some() && !cx.limits.planted(Bug::MergeOnCommitted) {
                continue;
            }
            let token = cx.token(Purpose::Merge { epoch, lock: m.lock, tail });
            cx.store.read(token, pg, page.vtree, page.layer, page.extent, offset, len);
            *(if tail { &mut m.tail } else { &mut m.head }) = Part::Asked;
        }
    }

    /// A partial page was read.
    pub fn merge_read(
        &mut self,
        lock: LockId,
        tail: bool,
        result: Result<ReadData, ReadError>,
        cx: &mut Cx,
    ) {
        let Some(i) = self.merges.iter().position(|m| m.lock == lock) else { return };
        let m = &mut self.merges[i];
        let part = if tail { &mut m.tail } else { &mut m.head };
        match result {
            Ok(d) => {
                *part = match d.segments.first() {
                    Some(b) if b.len() == PAGE => Part::Have(b.clone()),
                    _ => Part::Wanted,
                };
            }
            Err(ReadError::Corrupt { pages }) => {
                *part = Part::Wanted;
                m.repairing = true;
                m.req.rounds += 1;
                if m.req.rounds > cx.limits.repair_rounds {
                    // As a read that was repaired so often.
                    return self.fail_merge(lock, Status::TryAgain, cx);
                }
                let page = m.page(tail);
                cx.stats.corrupt_pages += pages.len() as u64;
                let key = page.first_key();
                self.repair_for_merge(key, key.mask(&pages), lock, cx);
            }
            // The device cannot be read: the client tries again, later perhaps at another primary.
            Err(ReadError::Io(_)) => {
                let m = self.merges.remove(i);
                self.locks.release(lock);
                self.answer(&m.req, Status::TryAgain, cx);
            }
        }
        self.turn_merges(cx);
    }

    /// No good copy of a partial page: only whole pages can be written there (R25).
    pub fn fail_merge(&mut self, lock: LockId, status: Status, cx: &mut Cx) {
        if let Some(i) = self.merges.iter().position(|m| m.lock == lock) {
            let m = self.merges.remove(i);
            self.locks.release(lock);
            self.answer(&m.req, status, cx);
        }
    }
}
