//! The commit point (R6) and the answers that wait for it.

use super::primary::Primary;
use crate::cx::Cx;
use crate::event::LinkId;
use crate::planted::Bug;
use quarry_base::{Nanos, Seq};
use quarry_wire::{Frame, Header, Op, Status};

/// A write that has a number.
pub(crate) struct Sequenced {
    pub seq: Seq,
    pub link: LinkId,
    pub h: Header,
    /// Bytes it takes of the window; 0 for a repeat that waits for its first sending.
    pub bytes: usize,
    pub counts: bool,
    /// When the request came and when it got its number; `None`: a repeat.
    pub times: Option<(Nanos, Nanos)>,
}

impl Primary {
    /// Smallest durable number of the primary and of everybody who counts: where the commit point may go.
    fn durable_everywhere(&self, cx: &Cx) -> Seq {
        let mut to = cx.stable(self.pg).seq;
        if cx.limits.planted(Bug::AckBeforeOwnSync) {
            to = self.last;
        }
        let all = !cx.limits.planted(Bug::AckBeforeSecondary);
        for f in self.followers.iter().filter(|f| all && f.counts()) {
            to = to.min(f.report());
        }
        to
    }

    /// Moves the commit point on; never back.
    pub fn advance_commit(&mut self, cx: &mut Cx) {
        let to = self.durable_everywhere(cx);
        if to <= self.commit {
            return;
        }
        assert!(to <= self.last, "commit point above the last record");
        self.commit = to;
        self.commit_moved = cx.now;
        cx.store.set_commit(self.pg, to);
        self.settle_room(to, cx);
        // The window frees as numbers commit, answered or not.
        for s in &mut self.sequenced {
            if s.seq > to {
                break;
            }
            if s.counts {
                s.counts = false;
                self.window_bytes -= s.bytes;
                self.window_records -= 1;
            }
        }
    }

    /// Answers what is durable everywhere, in order. Only an active primary does (R18). The commit point
    /// itself moves in the turn that follows: an answer is not held up by the work that comes of it.
    pub fn acknowledge(&mut self, cx: &mut Cx) {
        if self.sequenced.is_empty() {
            return;
        }
        self.note_times(cx);
        if !self.active {
            return;
        }
        let upto = self.commit.max(self.durable_everywhere(cx));
        while self.sequenced.front().is_some_and(|s| s.seq <= upto) {
            let Some(s) = self.sequenced.pop_front() else { break };
            if s.counts {
                self.window_bytes -= s.bytes;
                self.window_records -= 1;
            }
            cx.stats.acks += 1;
            self.note_answer(&s, cx);
            if self.needs_flush(&s.h, cx) {
                cx.stats.flushes += 1;
                self.flush_later(s.h, s.link);
                continue;
            }
            self.answer_to(&s.h, s.link, Status::Ok, cx);
        }
    }

    /// Sends the commit point to members whom no record told it, on the beat after it moved: what the
    /// groups of a server have to tell goes out together, one wake-up for all.
    pub fn send_commits(&mut self, cx: &mut Cx) {
        if self.followers.iter().all(|f| !f.is_running() || f.told >= self.commit) {
            return;
        }
        let due = cx.limits.beat_after(self.commit_moved);
        if cx.now < due {
            self.wake_by(due);
            return;
        }
        for i in 0..self.followers.len() {
            self.tell_commit(i, cx);
        }
    }

    /// Tells one member the commit point now, if it does not know it.
    pub fn tell_commit(&mut self, i: usize, cx: &mut Cx) {
        let (commit, pg, epoch) = (self.commit, self.pg, self.epoch);
        let Some(f) = self.followers.get_mut(i) else { return };
        let Some(link) = f.running_link() else { return };
        if f.told < commit {
            f.told = commit;
            let mut h = cx.header(Op::Commit, pg);
            h.epoch = epoch;
            h.commit = commit;
            cx.send(link, Frame::bare(h));
        }
    }

    /// R10, R27: asks the MDM to take silent members out; connections that stay silent are made anew.
    pub fn watch_followers(&mut self, cx: &mut Cx) {
        let own = cx.stable(self.pg).seq;
        let waits = self.last > self.commit || !self.leaseless.is_empty() || self.flushes.waits();
        for i in 0..self.followers.len() {
            self.watch_follower(i, own, waits, cx);
        }
    }

    fn watch_follower(&mut self, i: usize, own: Seq, waits: bool, cx: &mut Cx) {
        let Some(f) = self.followers.get(i) else { return };
        let lim = cx.limits;
        let (why, due) = if f.running_link().is_none() {
            let since = cx.links.away_since(f.member.sds).max(f.down_since);
            let has_link = cx.links.data(f.member.sds, f.member.start).is_some();
            let after = if has_link { lim.silent_after } else { lim.away_after };
            ("no stream", since + after)
        } else if f.report() < self.last && (f.report() < own || f.report() < self.last) {
            ("reports nothing", f.heard + lim.silent_after)
        } else if self.flushes.rounds.open && f.counts() && f.syncs.got < self.flushes.rounds.round
        {
            ("syncs nothing", self.flushes.rounds.since + lim.sync_patience)
        } else if self.confirms.open && f.counts() && f.confirms.got < self.confirms.round {
            ("confirms no read", self.confirms.since + lim.silent_after)
        } else if !self.leaseless.is_empty() && f.counts() && !cx.confirms(self.pg) {
            ("grants no lease", self.leaseless_since + lim.silent_after)
        } else if f.counts() && f.credit.starves() {
            // It answers every question within a second.
            ("promises no room", f.credit.since + lim.no_room_after)
        } else {
            return;
        };
        if !f.counts() {
            return;
        }
        if !waits && why == "reports nothing" {
            return;
        }
        if why == "grants no lease" && f.grants(cx) > cx.now {
            return;
        }
        let reconnect = (why == "reports nothing").then(|| f.heard + lim.reconnect_after);
        let due = due.max(f.complained_at + lim.propose_every);
        if cx.now >= due {
            self.complain(i, why, cx);
            if cx.limits.planted(Bug::RemoveBeforeLog) {
                self.followers[i].in_sync = false;
            }
        } else {
            self.wake_by(due);
        }
        if let Some(at) = reconnect {
            if cx.now >= at {
                self.reconnect(i, cx);
            } else {
                self.wake_by(at);
            }
        }
        let again =
            self.followers.get(i).map_or(Nanos::MAX, |f| f.complained_at + lim.propose_every);
        if again > cx.now {
            self.wake_by(again);
        }
    }
}
