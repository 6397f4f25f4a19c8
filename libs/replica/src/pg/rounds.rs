//! Questions that every member that counts has to answer before something goes on: a sync of everything written
//! (`ack = cached`, R29), a confirmation of the epoch (`reads = confirm`, R18). One round at a time; what comes
//! meanwhile shares the next, however much it is.

use super::stream::Follower;
use crate::cx::Cx;
use quarry_base::{Epoch, Nanos, PgId, RequestId};
use quarry_wire::{Frame, Op};

/// What one member said to the questions of one kind.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Answers {
    /// Newest round it was asked about on its present stream.
    asked: u64,
    /// Newest round it answered.
    pub got: u64,
}

impl Answers {
    /// Its stream is gone: what it has not answered is asked again on the next.
    pub fn broke(&mut self) {
        self.asked = self.got;
    }
    /// It answered `round`.
    pub fn answered(&mut self, round: u64) {
        if round <= self.asked {
            self.got = self.got.max(round);
        }
    }
}

/// The rounds of one kind of question.
#[derive(Default, Debug)]
pub(crate) struct Rounds {
    /// Number of the newest round.
    pub round: u64,
    pub open: bool,
    /// When it began.
    pub since: Nanos,
}

impl Rounds {
    pub fn begin(&mut self, now: Nanos) {
        self.round += 1;
        self.open = true;
        self.since = now;
    }
}

/// Asks every member that counts and was not asked yet on its present stream.
pub(crate) fn ask_all(
    rounds: &Rounds,
    followers: &mut [Follower],
    of: fn(&mut Follower) -> &mut Answers,
    (op, pg, epoch): (Op, PgId, Epoch),
    cx: &mut Cx,
) {
    for f in followers.iter_mut().filter(|f| f.counts()) {
        let Some(link) = f.running_link() else { continue };
        let a = of(f);
        if a.asked < rounds.round {
            a.asked = rounds.round;
            let mut h = cx.header(op, pg);
            h.epoch = epoch;
            h.request_id = RequestId(rounds.round);
            cx.send(link, Frame::bare(h));
        }
    }
}
