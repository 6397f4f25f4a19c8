//! How a process stands with its MDM: what it says of a session that is away, and what its health check says.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often the same trouble is complained about.
const COMPLAIN: Duration = Duration::from_secs(30);

/// Written by the control thread, read by the health check.
#[derive(Clone, Default)]
pub struct Standing(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    registered: bool,
    /// Complained of an MDM that is away, and of one that refuses.
    away: Option<Instant>,
    refusal: Option<Instant>,
    /// Why the MDM refuses this process.
    refused: Option<String>,
}

impl Inner {
    /// Whether it is to be said now.
    fn due(&mut self, refused: bool, now: Instant) -> bool {
        let last = if refused { &mut self.refusal } else { &mut self.away };
        let due = last.is_none_or(|at| now.saturating_duration_since(at) > COMPLAIN);
        if due {
            *last = Some(now);
        }
        due
    }
}

impl Standing {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// A connection stands. An MDM that refuses is connected to each time: that is no news.
    pub fn connected(&self, mdm: &str) {
        if self.with(|i| i.refused.is_some()) {
            tracing::debug!(mdm, "connected to the MDM");
        } else {
            tracing::info!(mdm, "session with the MDM");
        }
    }

    /// The MDM has taken this process.
    pub fn registered(&self) {
        self.with(|i| *i = Inner { registered: true, ..Inner::default() });
    }

    /// The session is away; said now and then. `refused`: an MDM is there, and it will not have this process.
    pub fn down(&self, reason: &str, refused: bool) {
        let due = self.with(|i| {
            if refused {
                i.refused = Some(reason.to_string());
            }
            i.due(refused, Instant::now())
        });
        match (due, refused) {
            (false, _) => {}
            (true, true) => tracing::error!(
                reason,
                "the MDM at this address does not take this running process: a wrong MDM, or one that was restored or \
                 founded anew? I/O goes on, it is tried again"
            ),
            (true, false) => {
                tracing::warn!(reason, "no session with the MDM; trying again, I/O goes on");
            }
        }
    }

    /// Has an MDM taken this process once, in this run?
    pub fn was_registered(&self) -> bool {
        self.with(|i| i.registered)
    }

    /// For the health check: an error as long as an MDM refuses this process. One that is merely away is none.
    pub fn health(&self) -> Result<(), String> {
        self.with(|i| i.refused.clone()).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_health_reason_until_the_next_registration_and_a_missing_mdm_is_none() {
        let s = Standing::default();
        s.registered();
        s.down("connection refused", false);
        assert_eq!(s.health(), Ok(()));
        s.down("other_cluster", true);
        s.down("connection refused", false);
        assert_eq!(s.health(), Err("other_cluster".to_string()));
        s.registered();
        assert!(s.health().is_ok() && s.was_registered());
    }

    #[test]
    fn the_same_trouble_is_complained_about_now_and_then_and_a_refusal_at_once() {
        let (mut i, at) = (Inner::default(), Instant::now());
        assert!(i.due(false, at) && !i.due(false, at + COMPLAIN));
        assert!(i.due(true, at) && !i.due(true, at));
        assert!(i.due(false, at + COMPLAIN * 2));
    }
}
