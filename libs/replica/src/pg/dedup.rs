//! Repeats of a request (R19): answered, never applied again.

use super::commit::Sequenced;
use super::primary::Primary;
use super::request::Request;
use crate::cx::Cx;
use crate::planted::Bug;
use quarry_base::Seq;
use quarry_store::Seen;
use quarry_wire::Status;

impl Primary {
    /// A repeat of a write that has no number yet takes its place: the answer goes to the newer session.
    pub fn replace_twin(&mut self, r: &Request) -> bool {
        let queued = self.waiting.iter_mut().find(|w| w.is_twin(r));
        let twin = match queued {
            Some(w) => w,
            None => match self.merges.iter_mut().find(|m| m.req.is_twin(r)) {
                Some(m) => &mut m.req,
                None => return false,
            },
        };
        twin.link = r.link;
        twin.sdc = r.sdc;
        true
    }

    /// True if the request is new. A repeat is answered, now or when its record is committed.
    pub fn is_new(&mut self, r: &Request, cx: &mut Cx) -> bool {
        if cx.limits.planted(Bug::RetryTwice) {
            return true;
        }
        let seq = match cx.store.seen(self.pg, r.h.instance, r.h.request_id) {
            Seen::New => return true,
            Seen::BelowFloor => {
                self.answer(r, Status::StaleRequest, cx);
                return false;
            }
            Seen::InTail(seq) => seq,
            Seen::Committed => Seq::ZERO,
        };
        cx.stats.repeats += 1;
        self.await_commit(seq, r, cx);
        false
    }

    /// Answers the request when `seq` is committed and the role is active.
    pub fn await_commit(&mut self, seq: Seq, r: &Request, cx: &mut Cx) {
        let s = Sequenced { seq, link: r.link, h: r.h, bytes: 0, counts: false, times: None };
        let at = self.sequenced.partition_point(|s| s.seq <= seq);
        self.sequenced.insert(at, s);
        self.acknowledge(cx);
    }
}
