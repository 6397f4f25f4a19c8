//! Who has fallen silent: a pure clock keeper (R10, R27).
//!
//! A server counts as failed when its session closed and did not come back in time, or when nothing was heard from
//! it for too long. The clocks of all start again when the MDM starts (with a longer grace) and after it was itself
//! stalled, as then it may simply not have read what was sent.

use crate::state::Answered;
use quarry_base::{Nanos, SdsId, StartNo};
use std::collections::BTreeMap;
use std::time::Duration;

/// A closed session may come back within this time.
pub const RESUME: Duration = Duration::from_millis(300);
/// Longest silence on an open session.
pub const SILENCE: Duration = Duration::from_millis(800);
/// After the MDM's start, servers may take this long to come back.
pub const GRACE: Duration = Duration::from_secs(3);
/// A gap between two looks at the clock above this one means that the MDM was stalled.
pub const STALL: Duration = Duration::from_millis(300);
/// Somebody heard within this time is there.
const RECENT: Duration = Duration::from_millis(300);

struct Watch {
    start: StartNo,
    open: bool,
    /// The last thing really heard.
    heard: Option<Nanos>,
    /// When patience runs out.
    due: Nanos,
    /// From when on an answer of another counts as "since" (R10).
    since: Nanos,
}

/// A server that has failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failed {
    pub sds: SdsId,
    pub start: StartNo,
    pub reason: String,
    pub answered: Answered,
}

/// Watches the servers that are up.
pub struct Detector {
    watched: BTreeMap<SdsId, Watch>,
    last_tick: Nanos,
}

impl Detector {
    /// Starts with the servers that the state says are up.
    pub fn new(now: Nanos, up: impl IntoIterator<Item = (SdsId, StartNo)>) -> Detector {
        let watch = |start| Watch { start, open: false, heard: None, due: now + GRACE, since: now };
        let watched = up.into_iter().map(|(sds, start)| (sds, watch(start))).collect();
        Detector { watched, last_tick: now }
    }

    /// A session of this start stands.
    pub fn joined(&mut self, sds: SdsId, start: StartNo, now: Nanos) {
        let w = Watch { start, open: true, heard: Some(now), due: now + SILENCE, since: now };
        self.watched.insert(sds, w);
    }

    /// Something came from it.
    pub fn heard(&mut self, sds: SdsId, now: Nanos) {
        if let Some(w) = self.watched.get_mut(&sds).filter(|w| w.open) {
            w.heard = Some(now);
            w.due = now + SILENCE;
            w.since = now;
        }
    }

    /// Its session closed.
    pub fn closed(&mut self, sds: SdsId, now: Nanos) {
        if let Some(w) = self.watched.get_mut(&sds).filter(|w| w.open) {
            w.open = false;
            w.due = now + RESUME;
            w.since = now;
        }
    }

    /// Its failure is in the log, or it is gone for good.
    pub fn forget(&mut self, sds: SdsId, start: StartNo) {
        if self.watched.get(&sds).is_some_and(|w| w.start == start) {
            self.watched.remove(&sds);
        }
    }

    /// Who was heard a moment ago.
    pub fn recent(&self, now: Nanos) -> Answered {
        let fresh = |w: &Watch| w.open && w.heard.is_some_and(|h| now.since(h) <= RECENT);
        self.watched.iter().filter(|(_, w)| fresh(w)).map(|(s, _)| *s).collect()
    }

    /// Who has failed now, each with those who have answered since. To be called often.
    pub fn tick(&mut self, now: Nanos) -> Vec<Failed> {
        if now.since(self.last_tick) > STALL {
            for w in self.watched.values_mut() {
                let patience = if w.open { SILENCE } else { RESUME };
                w.due = w.due.max(now + patience);
            }
        }
        self.last_tick = now;
        let late: Vec<SdsId> =
            self.watched.iter().filter(|(_, w)| w.due <= now).map(|(s, _)| *s).collect();
        late.into_iter().filter_map(|s| self.fail(s)).collect()
    }

    fn fail(&mut self, sds: SdsId) -> Option<Failed> {
        let w = self.watched.get(&sds)?;
        let answered = self
            .watched
            .iter()
            .filter(|(s, o)| **s != sds && o.open && o.heard.is_some_and(|h| h > w.since))
            .map(|(s, _)| *s)
            .collect();
        let reason = match (w.open, w.heard) {
            (true, _) => format!("silent for {} ms", SILENCE.as_millis()),
            (false, Some(_)) => {
                format!("its session closed and did not come back in {} ms", RESUME.as_millis())
            }
            (false, None) => "it did not come back after the start of the MDM".into(),
        };
        let failed = Failed { sds, start: w.start, reason, answered };
        // Reported again if the command does not get through.
        if let Some(w) = self.watched.get_mut(&sds) {
            w.due = w.due + RESUME;
        }
        Some(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Nanos {
        Nanos(n * 1_000_000)
    }
    const A: SdsId = SdsId(1);
    const B: SdsId = SdsId(2);

    fn run(d: &mut Detector, from: u64, to: u64, alive: &[SdsId]) -> Vec<(u64, Failed)> {
        let mut out = Vec::new();
        for t in (from..to).step_by(50) {
            alive.iter().for_each(|s| d.heard(*s, ms(t)));
            for f in d.tick(ms(t)) {
                d.forget(f.sds, f.start);
                out.push((t, f));
            }
        }
        out
    }

    #[test]
    fn a_closed_session_fails_after_the_resume_time_and_names_who_answered_since() {
        let mut d = Detector::new(ms(0), []);
        d.joined(A, StartNo(1), ms(0));
        d.joined(B, StartNo(2), ms(0));
        run(&mut d, 0, 1000, &[A, B]);
        d.closed(A, ms(1000));
        let f = run(&mut d, 1000, 3000, &[B]);
        assert_eq!(f.len(), 1);
        assert_eq!((f[0].0, f[0].1.sds, f[0].1.start), (1300, A, StartNo(1)));
        assert_eq!(f[0].1.answered, Answered::from([B]));
    }

    #[test]
    fn a_session_that_resumes_in_time_has_not_failed() {
        let mut d = Detector::new(ms(0), []);
        d.joined(A, StartNo(1), ms(0));
        d.closed(A, ms(50));
        run(&mut d, 50, 300, &[]);
        d.joined(A, StartNo(1), ms(300));
        assert!(run(&mut d, 300, 2000, &[A]).is_empty());
    }

    #[test]
    fn silence_on_an_open_session_fails_later() {
        let mut d = Detector::new(ms(0), []);
        d.joined(A, StartNo(1), ms(0));
        let f = run(&mut d, 0, 2000, &[]);
        assert_eq!((f.len(), f[0].0), (1, 800));
    }

    #[test]
    fn servers_that_die_together_have_not_answered_since() {
        let mut d = Detector::new(ms(0), []);
        d.joined(A, StartNo(1), ms(0));
        d.joined(B, StartNo(2), ms(0));
        run(&mut d, 0, 1000, &[A, B]);
        d.closed(A, ms(1000));
        d.closed(B, ms(1001));
        let f = run(&mut d, 1050, 3000, &[]);
        assert_eq!(f.len(), 2);
        assert!(f.iter().all(|f| f.1.answered.is_empty()), "{f:?}");
    }

    #[test]
    fn after_the_start_of_the_mdm_everyone_has_the_grace_time() {
        let mut d = Detector::new(ms(0), [(A, StartNo(1)), (B, StartNo(2))]);
        d.joined(B, StartNo(2), ms(100));
        let f = run(&mut d, 100, 4000, &[B]);
        assert_eq!((f.len(), f[0].0, f[0].1.sds), (1, 3000, A));
        assert_eq!(f[0].1.answered, Answered::from([B]));
    }

    #[test]
    fn a_stalled_mdm_restarts_all_clocks() {
        let mut d = Detector::new(ms(0), []);
        d.joined(A, StartNo(1), ms(0));
        run(&mut d, 0, 500, &[A]);
        assert!(d.tick(ms(5000)).is_empty(), "the MDM slept, not A");
        assert_eq!(run(&mut d, 5050, 7000, &[])[0].0, 5800);
    }

    #[test]
    fn only_somebody_heard_a_moment_ago_counts_as_recent() {
        let mut d = Detector::new(ms(0), [(A, StartNo(1))]);
        d.joined(B, StartNo(2), ms(10));
        assert_eq!(d.recent(ms(100)), Answered::from([B]));
        assert!(d.recent(ms(400)).is_empty());
    }
}
