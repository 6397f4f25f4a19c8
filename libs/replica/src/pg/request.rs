//! A request of a client, as long as it waits, and the answers to it.

use crate::event::{Action, LinkId};
use crate::links::Links;
use crate::pg::locks::PageRange;
use bytes::Bytes;
use quarry_base::{ConfigIndex, Nanos, SdcId, Seq, EXTENT, PAGE};
use quarry_store::Origin;
use quarry_wire::{Frame, Header, Op, PgConfig, Status};

/// A request, and the link its answer goes to.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub link: LinkId,
    pub sdc: SdcId,
    /// When it arrived.
    pub came: Nanos,
    pub h: Header,
    pub meta: Bytes,
    pub data: Bytes,
    /// Times it was read again after repairs.
    pub rounds: u8,
}

impl Request {
    pub fn new(link: LinkId, sdc: SdcId, came: Nanos, f: Frame) -> Request {
        Request { link, sdc, came, h: f.header, meta: f.meta, data: f.data, rounds: 0 }
    }

    /// Changes content; everything else is a question, or a flush.
    pub fn is_write(&self) -> bool {
        matches!(self.h.op, Op::Write | Op::Zero)
    }

    /// Bytes of its range.
    pub fn len(&self) -> usize {
        match self.h.op {
            Op::Write => self.data.len(),
            _ => self.h.length as usize,
        }
    }

    /// The range makes sense by itself. Reads are in whole pages.
    pub fn is_sound(&self) -> bool {
        let len = self.len() as u64;
        let end = u64::from(self.h.offset) + len;
        let aligned = |v: u64| v.is_multiple_of(PAGE as u64);
        len > 0
            && end <= u64::from(EXTENT)
            && (self.is_write() || (aligned(u64::from(self.h.offset)) && aligned(len)))
    }

    /// Starts and ends at page boundaries.
    pub fn is_aligned(&self) -> bool {
        (self.h.offset as usize).is_multiple_of(PAGE) && self.len().is_multiple_of(PAGE)
    }

    /// The pages it touches.
    pub fn pages(&self) -> PageRange {
        PageRange::of_bytes(
            self.h.vtree,
            self.h.layer,
            self.h.extent,
            self.h.offset,
            self.len() as u32,
        )
    }

    pub fn origin(&self) -> Origin {
        Origin {
            instance: self.h.instance,
            id: self.h.request_id,
            lowest_unanswered: self.h.lowest_unanswered,
        }
    }

    /// The same request, sent again.
    pub fn is_twin(&self, o: &Request) -> bool {
        self.h.request_id == o.h.request_id && self.h.instance == o.h.instance
    }
}

/// What an answer says about where the group stands.
pub(crate) struct Standing<'a> {
    pub config: Option<&'a PgConfig>,
    pub commit: Seq,
    pub index: ConfigIndex,
}

/// Sends the outcome of a request. `StaleEpoch` carries the configuration.
pub(crate) fn answer(
    h: &Header,
    link: LinkId,
    status: Status,
    s: &Standing,
    links: &Links,
    out: &mut Vec<Action>,
) {
    let mut r = Header::new(if h.op == Op::Read && status == Status::Ok {
        Op::ReadReply
    } else {
        Op::Reply
    });
    r.status = status;
    r.request_id = h.request_id;
    r.instance = h.instance;
    r.pg = h.pg;
    r.vtree = h.vtree;
    r.extent = h.extent;
    r.offset = h.offset;
    r.length = h.length;
    r.config_index = s.index;
    r.commit = s.commit;
    r.epoch = s.config.map_or(h.epoch, |c| c.epoch);
    // Which attempt this answers: the asker may have sent it again in a newer epoch meanwhile.
    r.version.epoch = h.epoch;
    let frame = match s.config {
        Some(c) if status == Status::StaleEpoch => Frame::with_meta(r, c.to_meta()),
        _ => Frame::bare(r),
    };
    links.send(link, frame, out);
}
