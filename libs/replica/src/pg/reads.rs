//! Reads: the last committed content, served only while every other member that counts grants it (R17).
//!
//! An active primary has committed everything it inherited, so what is uncommitted was sequenced by itself
//! and is acknowledged by nobody (or in this very turn, and then the read came before anybody knew): the last
//! committed content is the right answer (R6), no read waits for a write. The lease is checked after the data
//! has been read.

use super::primary::Primary;
use super::request::Request;
use super::Purpose;
use crate::cx::Cx;
use crate::planted::Bug;
use bytes::Bytes;
use quarry_base::{Nanos, PageBuf, Seq};
use quarry_store::{BlockKey, ReadData, ReadError, RecordKind};
use quarry_wire::{Frame, Header, Op, Status};

/// A read whose data is there.
pub(crate) struct Held {
    pub req: Request,
    data: ReadData,
}

impl Primary {
    pub fn on_read(&mut self, r: Request, cx: &mut Cx) {
        if self.active {
            return self.start_read(r, cx);
        }
        if self.early_reads.len() >= cx.limits.waiting_requests {
            return self.answer(&r, Status::TryAgain, cx);
        }
        self.early_reads.push_back(r);
    }

    pub fn start_early_reads(&mut self, cx: &mut Cx) {
        while let Some(r) = self.early_reads.pop_front() {
            self.start_read(r, cx);
        }
    }

    pub fn start_read(&mut self, r: Request, cx: &mut Cx) {
        if let Err(status) = self.rights(&r, cx) {
            return self.answer(&r, status, cx);
        }
        let (h, pg) = (r.h, self.pg);
        let token = cx.token(Purpose::Read(self.epoch, Box::new(r)));
        match h.op {
            Op::Map => cx.store.map(token, pg, h.vtree, h.layer, h.extent, h.offset, h.length),
            _ => cx.store.read(token, pg, h.vtree, h.layer, h.extent, h.offset, h.length),
        }
    }

    /// The store has read for a client.
    pub fn read_done(
        &mut self,
        mut req: Request,
        result: Result<ReadData, ReadError>,
        cx: &mut Cx,
    ) {
        match result {
            Ok(data) => {
                let data = self.with_uncommitted(&req, data, cx);
                if self.is_alone() || (!cx.confirms(self.pg) && self.is_leased(cx)) {
                    self.serve(Held { req, data }, cx);
                } else {
                    cx.stats.lease_waits += 1;
                    if self.leaseless.is_empty() {
                        self.leaseless_since = cx.now;
                    }
                    self.leaseless.push(Held { req, data });
                }
            }
            Err(ReadError::Corrupt { pages }) => {
                cx.stats.corrupt_pages += pages.len() as u64;
                req.rounds += 1;
                match pages.first() {
                    Some(at) if req.rounds <= cx.limits.repair_rounds * 16 => {
                        let key = BlockKey::at(req.h.vtree, req.h.layer, req.h.extent, *at);
                        self.repair_for_read(key, key.mask(&pages), req, cx);
                    }
                    // Repaired again and again, and damaged again: there is a good copy, so it is no error.
                    _ => self.answer(&req, Status::TryAgain, cx),
                }
            }
            Err(ReadError::Io(_)) => self.answer(&req, Status::TryAgain, cx),
        }
    }

    /// Everybody who counts grants reads at this moment.
    pub fn is_leased(&self, cx: &Cx) -> bool {
        let any = cx.limits.planted(Bug::ReadAfterGrant);
        self.active && self.followers.iter().all(|f| any || !f.counts() || f.grants(cx) > cx.now)
    }

    /// What was read, untouched; with a broken rule, under what is not committed.
    fn with_uncommitted(&self, r: &Request, data: ReadData, cx: &Cx) -> ReadData {
        if !cx.limits.planted(Bug::ReadUncommitted) {
            return data;
        }
        let mut buf = joined(data.segments.as_slice()).to_vec();
        let (from, to) = (r.h.offset as usize, r.h.offset as usize + buf.len());
        for t in cx.store.tail(self.pg, Seq(self.commit.0 + 1)) {
            let RecordKind::Write { vtree, extent, offset, data, .. } = &t.rec.kind else {
                continue;
            };
            let at = *offset as usize;
            let (a, b) = (at.max(from), (at + data.len()).min(to));
            if *vtree == r.h.vtree && *extent == r.h.extent && a < b {
                buf[a - from..b - from].copy_from_slice(&data[a - at..b - at]);
            }
        }
        let crcs = super::requests::page_crcs(&buf);
        let mut out = data;
        out.segments = [PageBuf::copy_of(&buf).freeze()].into_iter().collect();
        out.crcs = crcs.into_iter().collect();
        out
    }

    /// Nobody else counts: nothing has to be granted.
    fn is_alone(&self) -> bool {
        self.active && !self.followers.iter().any(|f| f.counts())
    }

    pub fn serve_leased(&mut self, cx: &mut Cx) {
        if cx.confirms(self.pg) {
            return self.turn_confirms(cx);
        }
        if self.leaseless.is_empty() || !self.is_leased(cx) {
            return;
        }
        for held in std::mem::take(&mut self.leaseless) {
            self.serve(held, cx);
        }
        self.leaseless_since = Nanos::MAX;
    }

    pub fn serve(&mut self, held: Held, cx: &mut Cx) {
        let Held { req, data } = held;
        // It may have been read again and again (a disk that fails), and at last after the volume's blocks were dropped.
        if cx.view.is_deleted(self.pg.pool(), req.h.vtree) {
            return self.answer(&req, Status::StaleMapping, cx);
        }
        cx.stats.reads += 1;
        cx.stats.read_bytes += data.segments.iter().map(|s| s.len() as u64).sum::<u64>();
        let mut h = Header::new(Op::ReadReply);
        h.request_id = req.h.request_id;
        h.instance = req.h.instance;
        h.pg = self.pg;
        h.epoch = self.epoch;
        h.version.epoch = req.h.epoch;
        h.config_index = cx.view.index();
        h.commit = self.commit;
        h.vtree = req.h.vtree;
        h.layer = req.h.layer;
        h.extent = req.h.extent;
        h.offset = req.h.offset;
        h.length = req.h.length;
        let frame = Frame::with_data(h, joined(data.segments.as_slice()), &data.crcs);
        cx.send(req.link, frame);
    }
}

/// One run of bytes; copies only where there is more than one segment.
fn joined(segments: &[Bytes]) -> Bytes {
    if let [one] = segments {
        return one.clone();
    }
    let mut buf = PageBuf::new(segments.iter().map(Bytes::len).sum());
    let mut at = 0;
    for s in segments {
        buf[at..at + s.len()].copy_from_slice(s);
        at += s.len();
    }
    buf.freeze()
}
