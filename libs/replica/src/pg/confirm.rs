//! `reads = confirm` (R18): the members are asked once for each batch of reads, after the data was read.
//!
//! A member answers only while it is at our epoch. A write of a later epoch is answered only after every member of
//! that epoch has taken it, and one of ours is among them: so at the moment of its answer nobody has been told of a
//! write that we do not know. No clock is trusted, so a machine whose clock stood still serves nothing old.

use super::primary::Primary;
use super::rounds::ask_all;
use crate::cx::Cx;
use crate::event::LinkId;
use crate::planted::Bug;
use quarry_base::RequestId;
use quarry_wire::{Frame, Header, Op};

impl Primary {
    /// Serves the reads that the newest answered round covers, and begins the next.
    pub fn turn_confirms(&mut self, cx: &mut Cx) {
        loop {
            if !self.confirms.open {
                if self.leaseless.is_empty() {
                    return;
                }
                // All of these have been read by now.
                self.confirms.begin(cx.now);
                self.confirmable = self.leaseless.len();
                cx.stats.confirms += 1;
            }
            let ask = (Op::Confirm, self.pg, self.epoch);
            ask_all(&self.confirms, &mut self.followers, |f| &mut f.confirms, ask, cx);
            let round = self.confirms.round;
            let any = cx.limits.planted(Bug::ReadUnconfirmed);
            if !self.followers.iter().all(|f| any || !f.counts() || f.confirms.got >= round) {
                return;
            }
            self.confirms.open = false;
            let n = self.confirmable.min(self.leaseless.len());
            let served: Vec<_> = self.leaseless.drain(..n).collect();
            for held in served {
                self.serve(held, cx);
            }
        }
    }

    /// A member is still at our epoch.
    pub fn on_confirmed(&mut self, link: LinkId, h: &Header, cx: &Cx) {
        if let Some(f) = self.followers.iter_mut().find(|f| f.running_link() == Some(link)) {
            f.confirms.answered(h.request_id.0);
            f.heard = cx.now;
        }
    }
}

impl super::Pg {
    /// The primary asks whether its epoch is ours. It is: frames of any other were turned away.
    pub fn on_confirm(&mut self, link: LinkId, asked: &Header, cx: &mut Cx) {
        let mut h = cx.header(Op::Confirmed, self.id);
        h.epoch = self.epoch();
        h.request_id = RequestId(asked.request_id.0);
        cx.send(link, Frame::bare(h));
    }
}
