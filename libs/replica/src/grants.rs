//! Leases for reads, per pair of data servers (R17, R18).
//!
//! The asker counts a grant from when it *sent* the question, the granter from when it answered; both with
//! 1 % for clocks that run apart, so the asker's ends first. A grant covers every group except those the
//! answer lists, whose newer configuration ends the asker's role at once.

use quarry_base::{Nanos, StartNo};
use smallvec::SmallVec;
use std::time::Duration;

/// Questions remembered; an answer to an older one counts for nothing.
const OPEN_QUESTIONS: usize = 16;

/// Grants between this server and one peer, both ways.
#[derive(Default)]
pub(crate) struct Grants {
    /// The peer lets us serve until then ...
    until: Nanos,
    /// ... as promised by this start of it.
    by: StartNo,
    next: u64,
    asked: SmallVec<[(u64, Nanos); 8]>,
    /// When the oldest question since the last answer was sent.
    waits_since: Nanos,
    pub ask_at: Nanos,
    /// End of the last grant that we gave the peer.
    pub given_until: Nanos,
}

impl Grants {
    /// Number of a new question, sent now.
    pub fn ask(&mut self, now: Nanos) -> u64 {
        self.next += 1;
        if self.asked.is_empty() {
            self.waits_since = now;
        }
        if self.asked.len() == OPEN_QUESTIONS {
            self.asked.remove(0);
        }
        self.asked.push((self.next, now));
        self.next
    }

    /// The peer answered question `n`. True if the grant now reaches further.
    pub fn answered(&mut self, n: u64, start: StartNo, lease: Duration) -> bool {
        let Some(sent) = self.take(n) else { return false };
        if self.by != start {
            self.by = start;
            self.until = Nanos::ZERO;
        }
        let until = sent + lease;
        let further = until > self.until;
        self.until = self.until.max(until);
        further
    }

    /// How long questions have gone unanswered.
    pub fn unanswered(&self, now: Nanos) -> Duration {
        if self.asked.is_empty() {
            Duration::ZERO
        } else {
            now.since(self.waits_since)
        }
    }

    /// The peer answered question `n`, and grants nothing.
    pub fn refused(&mut self, n: u64) {
        self.take(n);
    }

    /// Question `n` and all before it wait no more. When it was sent, if it waited.
    fn take(&mut self, n: u64) -> Option<Nanos> {
        let (_, sent) = *self.asked.iter().find(|(q, _)| *q == n)?;
        self.asked.retain(|(q, _)| *q > n);
        self.waits_since = self.asked.first().map_or(Nanos::ZERO, |(_, sent)| *sent);
        Some(sent)
    }

    /// The connection broke: questions on it will not be answered. Grants run on.
    pub fn broke(&mut self) {
        self.asked.clear();
    }

    /// End of the grant by this start of the peer.
    pub fn until(&self, start: StartNo) -> Nanos {
        if self.by == start {
            self.until
        } else {
            Nanos::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const S: u64 = 1_000_000_000;

    #[test]
    fn a_grant_counts_from_when_the_question_was_sent() {
        let mut g = Grants::default();
        let n = g.ask(Nanos(S));
        assert!(g.answered(n, StartNo(3), Duration::from_secs(1)));
        assert_eq!(g.until(StartNo(3)), Nanos(2 * S));
        assert_eq!(g.until(StartNo(4)), Nanos::ZERO, "another start promised nothing");
    }

    #[test]
    fn a_late_answer_to_an_old_question_never_shortens_a_grant() {
        let mut g = Grants::default();
        let (a, b) = (g.ask(Nanos(S)), g.ask(Nanos(2 * S)));
        assert!(g.answered(b, StartNo(1), Duration::from_secs(1)));
        assert!(!g.answered(a, StartNo(1), Duration::from_secs(1)));
        assert_eq!(g.until(StartNo(1)), Nanos(3 * S));
        assert!(!g.answered(99, StartNo(1), Duration::from_secs(1)), "never asked");
    }

    #[test]
    fn a_refusal_is_an_answer_and_grants_nothing() {
        let mut g = Grants::default();
        let a = g.ask(Nanos(S));
        g.ask(Nanos(2 * S));
        assert_eq!(g.unanswered(Nanos(4 * S)), Duration::from_secs(3));
        g.refused(a);
        assert_eq!(g.unanswered(Nanos(4 * S)), Duration::from_secs(2));
        assert_eq!(g.until(StartNo(1)), Nanos::ZERO);
    }

    #[test]
    fn a_new_start_of_the_peer_takes_no_grant_over() {
        let mut g = Grants::default();
        let a = g.ask(Nanos(5 * S));
        assert!(g.answered(a, StartNo(1), Duration::from_secs(1)));
        let b = g.ask(Nanos(5 * S + 1));
        assert!(g.answered(b, StartNo(2), Duration::from_secs(1)));
        assert_eq!(g.until(StartNo(1)), Nanos::ZERO);
    }
}
