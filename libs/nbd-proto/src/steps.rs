//! One look at the unparsed bytes: what the next message is and what follows from it.

use crate::consts::*;
use crate::inflight::{Kind, Pending};
use crate::limits::DIRECT_PAYLOAD;
use crate::negotiate::Outcome;
use crate::request::{check, Agreed, Header, Refusal};
use crate::session::{Open, Session};
use crate::{Exports, SessionEvent};
use bytes::Bytes;

/// Bytes to throw away, and what to answer then.
pub(crate) struct Discard {
    left: usize,
    then: Then,
}

enum Then {
    RefuseOption(u32),
    RefuseRequest(u64, Refusal),
}

/// What one look at the unparsed bytes came to.
pub(crate) enum Step {
    /// A message of that many bytes is dealt with.
    Used(usize),
    /// A write whose payload is complete.
    Write(Pending),
    /// A write whose payload gets its own buffer.
    Direct(Pending),
    /// The message needs that many bytes.
    Need(usize),
    /// A limit is reached.
    Blocked,
}

impl Session {
    pub(crate) fn step(
        &mut self,
        bytes: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<SessionEvent>,
    ) -> Step {
        if let Some(d) = self.discard.take() {
            return self.discard_some(d, bytes.len());
        }
        if self.output.pending() >= self.limits.max_output {
            return Step::Blocked;
        }
        match &self.open {
            Some(_) => self.step_request(bytes, out),
            None => self.step_handshake(bytes, exports, out),
        }
    }

    fn discard_some(&mut self, mut d: Discard, have: usize) -> Step {
        let n = d.left.min(have);
        d.left -= n;
        if d.left > 0 {
            self.discard = Some(d);
        } else {
            self.discarded(d.then);
        }
        Step::Used(n)
    }

    fn discarded(&mut self, then: Then) {
        match then {
            Then::RefuseOption(option) => self.negotiation.too_long(option, &mut self.output),
            Then::RefuseRequest(cookie, (errno, message)) => {
                let structured = self.open.as_ref().is_some_and(|o| o.agreed.structured);
                self.output.error(structured, cookie, errno.code(), message, None);
            }
        }
    }

    /// Throws the next `left` bytes away, then answers.
    fn discard(&mut self, left: usize, then: Then) {
        if left == 0 {
            self.discarded(then);
        } else {
            self.discard = Some(Discard { left, then });
        }
    }

    fn step_handshake(
        &mut self,
        bytes: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<SessionEvent>,
    ) -> Step {
        if !self.negotiation.greeted {
            let Some(flags) = bytes.first_chunk::<4>() else {
                return Step::Need(4);
            };
            let outcome = self.negotiation.client_flags(u32::from_be_bytes(*flags));
            self.follow(outcome, out);
            return Step::Used(4);
        }
        let Some((magic, rest)) = bytes.split_first_chunk::<8>() else {
            return Step::Need(OPTION_HEADER);
        };
        if u64::from_be_bytes(*magic) != NBD_OPTS_MAGIC {
            self.fail("not an option: wrong magic".into(), out);
            return Step::Used(0);
        }
        let Some((option, rest)) = rest.split_first_chunk::<4>() else {
            return Step::Need(OPTION_HEADER);
        };
        let Some((len, rest)) = rest.split_first_chunk::<4>() else {
            return Step::Need(OPTION_HEADER);
        };
        let (option, len) = (u32::from_be_bytes(*option), u32::from_be_bytes(*len));
        if let Some(reason) = self.negotiation.refuse_header(option, len, &self.limits) {
            self.fail(reason, out);
            return Step::Used(0);
        }
        let data = if option == NBD_OPT_ABORT {
            // Whatever comes with it is of no interest.
            Some(&rest[..0])
        } else if len > self.limits.max_option_len {
            self.discard(len as usize, Then::RefuseOption(option));
            return Step::Used(OPTION_HEADER);
        } else {
            rest.get(..len as usize)
        };
        let Some(data) = data else {
            return Step::Need(OPTION_HEADER + len as usize);
        };
        let outcome = self.negotiation.option(option, data, exports, &mut self.output);
        self.follow(outcome, out);
        Step::Used(OPTION_HEADER + data.len())
    }

    fn follow(&mut self, outcome: Outcome, out: &mut Vec<SessionEvent>) {
        match outcome {
            Outcome::More => {}
            Outcome::Open { export, allocation } => {
                let structured = self.negotiation.structured;
                let shutdown = self.negotiation.shutdown;
                let agreed = Agreed { structured, allocation, shutdown };
                out.push(SessionEvent::Opened { export: export.clone() });
                self.open = Some(Open { export, agreed });
            }
            Outcome::Abort => {
                self.close();
                out.push(SessionEvent::Disconnect);
            }
            Outcome::Drop(reason) => self.fail(reason, out),
        }
    }

    fn step_request(&mut self, bytes: &[u8], out: &mut Vec<SessionEvent>) -> Step {
        let Some(open) = &self.open else {
            return Step::Blocked;
        };
        if bytes.first_chunk::<4>().is_some_and(|m| *m != NBD_REQUEST_MAGIC.to_be_bytes()) {
            self.fail("not a request: wrong magic".into(), out);
            return Step::Used(0);
        }
        let header = bytes.first_chunk::<REQUEST_HEADER>().map(Header::decode);
        let Some(Some(h)) = header else {
            return Step::Need(REQUEST_HEADER);
        };
        if h.command == NBD_CMD_DISC {
            self.close();
            out.push(SessionEvent::Disconnect);
            return Step::Used(REQUEST_HEADER);
        }
        match check(&h, &open.export, open.agreed) {
            Ok(p) if p.len == 0 && p.kind != Kind::Flush => {
                self.nothing_to_do(p);
                Step::Used(REQUEST_HEADER)
            }
            Ok(p) if !self.has_room(p.cost()) => Step::Blocked,
            Ok(p) if matches!(p.kind, Kind::Write { .. }) => self.step_write(p, bytes.len()),
            Ok(p) => {
                let event = self.admit(p, Bytes::new());
                out.push(event);
                Step::Used(REQUEST_HEADER)
            }
            Err(_) if h.payload() > self.limits.max_discard => {
                self.fail(format!("a write of {} bytes", h.payload()), out);
                Step::Used(0)
            }
            Err(refusal) => {
                self.discard(h.payload() as usize, Then::RefuseRequest(h.cookie, refusal));
                Step::Used(REQUEST_HEADER)
            }
        }
    }

    fn step_write(&self, p: Pending, have: usize) -> Step {
        let whole = REQUEST_HEADER + p.len as usize;
        if have >= whole {
            Step::Write(p)
        } else if whole - have >= DIRECT_PAYLOAD || whole > self.limits.recv_buffer {
            Step::Direct(p)
        } else {
            Step::Need(whole)
        }
    }

    /// Answers a permitted request of length zero.
    fn nothing_to_do(&mut self, p: Pending) {
        let structured = self.open.as_ref().is_some_and(|o| o.agreed.structured);
        if structured && matches!(p.kind, Kind::Read { .. }) {
            self.output.chunk(p.cookie, NBD_REPLY_TYPE_NONE, true, 0);
        } else {
            self.output.simple(p.cookie, 0);
        }
    }
}
