//! One connection: bytes in, events out, replies in, bytes out.
//!
//! Back-pressure: parsing stops in front of a request that would exceed a limit. The bytes behind it
//! stay where they are, [`Session::may_receive`] says no, and [`Session::resume`] goes on once
//! replies were made or output was taken.

use crate::consts::*;
use crate::inflight::{InFlight, Kind, Pending};
use crate::input::{Input, RecvPlan};
use crate::limits::DIRECT_PAYLOAD;
use crate::negotiate::Negotiation;
use crate::output::Output;
use crate::request::Agreed;
use crate::steps::{Discard, Step};
use crate::{Export, Exports, Handle, Limits, SessionEvent};
use bytes::Bytes;
use quarry_base::PageBuf;
use std::ops::Range;

/// The server's end of one NBD connection.
pub struct Session {
    pub(crate) limits: Limits,
    pub(crate) negotiation: Negotiation,
    /// The transmission phase, once it has begun.
    pub(crate) open: Option<Open>,
    input: Input,
    pub(crate) output: Output,
    pub(crate) in_flight: InFlight,
    /// A large write payload on its way into its own buffer.
    payload: Option<Payload>,
    pub(crate) discard: Option<Discard>,
    /// A plan is out.
    receiving: bool,
    /// A complete message is held back by a limit.
    blocked: bool,
    closing: bool,
}

/// The transmission phase.
pub(crate) struct Open {
    pub export: Export,
    pub agreed: Agreed,
}

struct Payload {
    pending: Pending,
    /// Absent while a plan holds it.
    buf: Option<PageBuf>,
    filled: usize,
}

impl Session {
    /// A session in front of the handshake, its greeting queued for output.
    pub fn new(limits: Limits) -> Session {
        let limits = limits.sanitised();
        let mut output = Output::default();
        Negotiation::greet(&mut output);
        Session {
            input: Input::new(limits.recv_buffer),
            limits,
            negotiation: Negotiation::default(),
            open: None,
            output,
            in_flight: InFlight::default(),
            payload: None,
            discard: None,
            receiving: false,
            blocked: false,
            closing: false,
        }
    }

    /// A session that begins with the transmission phase, with simple replies: the other end is a
    /// kernel that was told the export's size and flags by other means.
    pub fn attached(limits: Limits, export: Export) -> Session {
        let mut s = Session::new(limits);
        s.output = Output::default();
        let agreed = Agreed { structured: false, allocation: false, shutdown: false };
        s.open = Some(Open { export: export.sanitised(), agreed });
        s
    }

    /// Where the next bytes should be received to. Call it while [`Session::may_receive`] says yes;
    /// one plan is out at a time and comes back through [`Session::received`].
    pub fn next_recv(&mut self) -> RecvPlan {
        assert!(!self.receiving, "one receive at a time");
        self.receiving = true;
        if let Some(p) = &mut self.payload {
            if let Some(buf) = p.buf.take() {
                let end = buf.len();
                return RecvPlan { buf, start: p.filled, end };
            }
        }
        self.input.plan()
    }

    /// Takes a plan back with `n` bytes received; zero means that the client closed its end.
    /// Events are appended to `out`.
    pub fn received(
        &mut self,
        plan: RecvPlan,
        n: usize,
        exports: &dyn Exports,
        out: &mut Vec<SessionEvent>,
    ) {
        assert!(self.receiving && n <= plan.end - plan.start, "received more than was asked for");
        self.receiving = false;
        if self.closing {
            return;
        }
        if n == 0 {
            // Unparsed bytes of a partial message sit in the plan, in front of its start.
            return self.end_of_stream(plan.start > 0, out);
        }
        if let Some(mut p) = self.payload.take() {
            p.filled += n;
            if p.filled < plan.end {
                p.buf = Some(plan.buf);
                self.payload = Some(p);
            } else {
                let event = self.admit(p.pending, plan.buf.freeze());
                out.push(event);
            }
            return;
        }
        self.input.put(plan, n);
        self.parse(exports, out);
    }

    /// Goes on with messages held back by a limit. Call it after replies were made and after output
    /// was taken; it does nothing when nothing is held back.
    pub fn resume(&mut self, exports: &dyn Exports, out: &mut Vec<SessionEvent>) {
        if self.holds_back() {
            self.parse(exports, out);
        }
    }

    /// Moves the bytes to send to the end of `out`, in order. Take them when they can be sent: what
    /// is taken no longer counts against [`Limits::max_output`].
    pub fn take_output(&mut self, out: &mut Vec<Bytes>) {
        self.output.take(out);
    }

    /// Like [`Session::take_output`], but not much more than `most` bytes: a payload goes whole, and one at least.
    pub fn take_some(&mut self, most: usize, out: &mut Vec<Bytes>) {
        self.output.take_some(most, out);
    }

    /// Another [`Limits::max_in_flight_bytes`] from now on. What is in flight stays.
    pub fn limit_bytes(&mut self, bytes: usize) {
        self.limits.max_in_flight_bytes = bytes;
    }

    /// Bytes queued for sending and not taken.
    pub fn output_pending(&self) -> usize {
        self.output.pending()
    }

    /// Whether to receive now. While it says no, the client is not read from: a limit is reached
    /// or the session is ending.
    pub fn may_receive(&self) -> bool {
        if self.closing || self.receiving {
            return false;
        }
        // A payload that was let in, or is being thrown away, is read to its end.
        if self.payload.is_some() || self.discard.is_some() {
            return true;
        }
        !self.blocked && self.output.pending() < self.limits.max_output && self.has_room(0)
    }

    /// A message that was received waits for one of the limits: see [`Session::resume`].
    pub fn holds_back(&self) -> bool {
        self.blocked && !self.receiving && !self.closing
    }

    /// Requests handed out and not answered, and the payload bytes they move.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.in_flight.count(), self.in_flight.bytes())
    }

    /// Nothing more is read. Close the connection when the requests in flight are answered and the
    /// output is sent.
    pub fn closing(&self) -> bool {
        self.closing
    }

    /// The export, once the transmission phase has begun.
    pub fn export(&self) -> Option<&Export> {
        self.open.as_ref().map(|o| &o.export)
    }

    /// The volume was resized: requests are checked against the new size from now on.
    pub fn set_size(&mut self, size: u64) {
        if let Some(o) = &mut self.open {
            o.export.size = size;
        }
    }

    /// The server is shutting down: every further option and request is refused as such. Requests
    /// in flight are to be answered as usual.
    pub fn begin_shutdown(&mut self) {
        self.negotiation.shutdown = true;
        if let Some(o) = &mut self.open {
            o.agreed.shutdown = true;
        }
    }

    /// Nothing more is read, nothing more is refused: requests in flight are to be answered as usual,
    /// those not yet parsed get no answer. For a client that sends them again on another connection.
    pub fn stop_reading(&mut self) {
        self.close();
    }

    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        let (n, unsent) = (self.in_flight.count(), self.output.pending());
        // An answer that nobody takes is as much memory as it was before.
        let used = self.in_flight.bytes().saturating_add(unsent);
        n == 0 && unsent == 0
            || (n < self.limits.max_in_flight
                && used.saturating_add(bytes) <= self.limits.max_in_flight_bytes)
    }

    fn end_of_stream(&mut self, partial: bool, out: &mut Vec<SessionEvent>) {
        if partial || self.payload.is_some() || self.discard.is_some() {
            return self.fail("the connection ended inside a message".into(), out);
        }
        self.close();
        out.push(SessionEvent::Disconnect);
    }

    pub(crate) fn close(&mut self) {
        self.closing = true;
        self.blocked = false;
        self.payload = None;
        self.discard = None;
        self.input.clear();
    }

    pub(crate) fn fail(&mut self, reason: String, out: &mut Vec<SessionEvent>) {
        self.close();
        out.push(SessionEvent::ProtocolError { reason });
    }

    /// Deals with the unparsed bytes, as far as they and the limits go.
    fn parse(&mut self, exports: &dyn Exports, out: &mut Vec<SessionEvent>) {
        self.blocked = false;
        let Some(mut batch) = self.input.take() else {
            return;
        };
        let mut slices: Vec<Range<usize>> = Vec::new();
        let mut writes: Vec<usize> = Vec::new();
        let (mut need, mut large) = (0, false);
        while !batch.rest().is_empty() && !self.closing {
            match self.step(batch.rest(), exports, out) {
                Step::Used(n) => batch.at += n,
                Step::Write(pending) => {
                    large |= pending.len as usize >= DIRECT_PAYLOAD;
                    let from = batch.at + REQUEST_HEADER;
                    batch.at = from + pending.len as usize;
                    slices.push(from..batch.at);
                    writes.push(out.len());
                    let event = self.admit(pending, Bytes::new());
                    out.push(event);
                }
                Step::Direct(pending) => {
                    let here = batch.rest().get(REQUEST_HEADER..).unwrap_or(&[]);
                    let mut buf = PageBuf::new(pending.len as usize);
                    buf[..here.len()].copy_from_slice(here);
                    let filled = here.len();
                    self.payload = Some(Payload { pending, buf: Some(buf), filled });
                    large = true;
                    batch.at = batch.end;
                }
                Step::Need(n) => {
                    need = n;
                    break;
                }
                Step::Blocked => {
                    self.blocked = true;
                    break;
                }
            }
        }
        if self.closing {
            batch.at = batch.end;
        }
        if large {
            self.input.large_seen();
        }
        let payloads = self.input.restore(batch, need, &slices);
        for (at, bytes) in writes.into_iter().zip(payloads) {
            if let Some(SessionEvent::Write { data, .. }) = out.get_mut(at) {
                *data = bytes;
            }
        }
    }

    /// Counts a request as in flight and makes its event.
    pub(crate) fn admit(&mut self, p: Pending, data: Bytes) -> SessionEvent {
        let handle: Handle = self.in_flight.insert(p);
        let (offset, len) = (p.offset, p.len);
        match p.kind {
            Kind::Read { df } => SessionEvent::Read { handle, offset, len, df },
            Kind::Write { fua } => SessionEvent::Write { handle, offset, data, fua },
            Kind::Flush => SessionEvent::Flush { handle },
            Kind::Trim { fua } => SessionEvent::Trim { handle, offset, len, fua },
            Kind::WriteZeroes { fua, no_hole, fast } => {
                SessionEvent::WriteZeroes { handle, offset, len, fua, no_hole, fast }
            }
            Kind::Cache => SessionEvent::Cache { handle, offset, len },
            Kind::BlockStatus { req_one } => {
                SessionEvent::BlockStatus { handle, offset, len, req_one }
            }
        }
    }
}
