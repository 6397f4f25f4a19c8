//! `ack = cached` (R29): FLUSH and FUA, and the sync of a candidate.
//!
//! A flush covers every write that was answered before it: all of them are committed, so written at every member
//! that counts. In one round the primary and each of these members put what they have on the medium. Nothing waits
//! for a write that is still on its way. With `ack = durable` all of it is there already and nothing is asked.

use super::primary::Primary;
use super::request::Request;
use super::rounds::{ask_all, Rounds};
use super::{Pg, Role};
use crate::cx::Cx;
use crate::event::LinkId;
use crate::planted::Bug;
use quarry_base::{RequestId, Version};
use quarry_store::AppendId;
use quarry_wire::{flags, Frame, Header, Op, Status};

/// The primary's flushes.
#[derive(Default)]
pub(crate) struct Flushes {
    pub rounds: Rounds,
    /// Our own device has to have synced up to here in the open round.
    own: AppendId,
    /// Commit point when it began.
    covers: Version,
    /// Answered when the open round ends; by the next.
    now: Vec<(Header, LinkId)>,
    next: Vec<(Header, LinkId)>,
    /// A round is wanted though nobody waits: a candidate, or `all_through`.
    pub wanted: bool,
    /// Committed and on the medium of every listed member up to here.
    pub through: Option<Version>,
}

impl Flushes {
    /// Requests without an answer.
    pub fn requests(&self) -> impl Iterator<Item = &(Header, LinkId)> {
        self.now.iter().chain(&self.next)
    }
    pub fn link_closed(&mut self, link: LinkId) {
        self.now.retain(|r| r.1 != link);
        self.next.retain(|r| r.1 != link);
    }
    /// Somebody waits for the answer of a member.
    pub fn waits(&self) -> bool {
        self.rounds.open && !self.now.is_empty()
    }
}

impl Primary {
    /// A client's FLUSH at our epoch.
    pub fn on_flush(&mut self, r: Request, cx: &mut Cx) {
        if let Err(status) = cx.view.check_mapping(&r) {
            return self.answer(&r, status, cx);
        }
        if !cx.is_cached(self.pg) {
            return self.answer(&r, Status::Ok, cx);
        }
        cx.stats.flushes += 1;
        self.flush_later(r.h, r.link);
    }

    /// The answer waits for the next round.
    pub fn flush_later(&mut self, h: Header, link: LinkId) {
        self.flushes.next.push((h, link));
    }

    /// Has this answer to wait for a sync? Its write is committed.
    pub fn needs_flush(&self, h: &Header, cx: &Cx) -> bool {
        h.has(flags::FUA) && matches!(h.op, Op::Write | Op::Zero) && cx.is_cached(self.pg)
    }

    /// Moves the rounds on. Only an active primary's commit point covers all that was ever answered.
    pub fn turn_flushes(&mut self, cx: &mut Cx) {
        loop {
            if !self.flushes.rounds.open {
                if self.flushes.next.is_empty() && !self.flushes.wanted {
                    return;
                }
                self.begin_flush(cx);
            }
            let ask = (Op::SyncAsk, self.pg, self.epoch);
            ask_all(&self.flushes.rounds, &mut self.followers, |f| &mut f.syncs, ask, cx);
            if !self.is_flushed(cx) {
                return;
            }
            self.end_flush(cx);
        }
    }

    fn begin_flush(&mut self, cx: &mut Cx) {
        self.flushes.rounds.begin(cx.now);
        self.flushes.own = cx.sync_written();
        self.flushes.covers = cx.store.pg_state(self.pg).commit_version;
        self.flushes.now = std::mem::take(&mut self.flushes.next);
        self.flushes.wanted = false;
    }

    fn is_flushed(&self, cx: &Cx) -> bool {
        let round = self.flushes.rounds.round;
        cx.synced >= self.flushes.own
            && self.followers.iter().all(|f| !f.counts() || f.syncs.got >= round)
    }

    fn end_flush(&mut self, cx: &mut Cx) {
        self.flushes.rounds.open = false;
        if self.cfg.is_complete() {
            self.flushes.through = Some(self.flushes.covers);
        }
        for (h, link) in std::mem::take(&mut self.flushes.now) {
            self.answer_to(&h, link, Status::Ok, cx);
        }
    }

    /// R15: with `ack = cached` a candidate is proposed only when what it received is on its medium.
    pub fn is_candidate_synced(&mut self, i: usize, cx: &mut Cx) -> bool {
        if !cx.is_cached(self.pg) || cx.limits.planted(Bug::AddBeforeSync) {
            return true;
        }
        let next = self.flushes.rounds.round + 1;
        let Some(f) = self.followers.get_mut(i) else { return false };
        let need = *f.sync_needed.get_or_insert(next);
        let got = f.syncs.got;
        if got < need && self.flushes.rounds.round < need {
            self.flushes.wanted = true;
            self.turn_flushes(cx);
        }
        got >= need
    }

    /// A member has synced what it had.
    pub fn on_sync_done(&mut self, link: LinkId, h: &Header, cx: &Cx) {
        if let Some(f) = self.followers.iter_mut().find(|f| f.running_link() == Some(link)) {
            f.syncs.answered(h.request_id.0);
            f.heard = cx.now;
        }
    }
}

impl Pg {
    /// The primary asks that what was reported goes to the medium. Reported is what is written, so it is that which
    /// is synced, and no frame that waits for log space holds it up.
    pub fn on_sync_ask(&mut self, h: &Header, cx: &mut Cx) {
        let upto = cx.sync_written();
        if let Role::Member(m) = &mut self.role {
            m.sync_asks.push((h.request_id.0, upto));
        }
    }

    /// Answers what is synced.
    pub fn answer_syncs(&mut self, cx: &mut Cx) {
        let (pg, epoch, link) = (self.id, self.epoch(), self.stream_link());
        let Role::Member(m) = &mut self.role else { return };
        let done = m.sync_asks.iter().filter(|a| a.1 <= cx.synced).map(|a| a.0).max();
        m.sync_asks.retain(|a| a.1 > cx.synced);
        if let (Some(round), Some(link)) = (done, link) {
            let mut h = cx.header(Op::SyncDone, pg);
            h.epoch = epoch;
            h.request_id = RequestId(round);
            cx.send(link, Frame::bare(h));
        }
    }
}
