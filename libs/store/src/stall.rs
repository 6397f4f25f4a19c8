//! Is the device still doing anything? Judged by progress: time in which operations were in flight and none
//! ended, as far as the store was awake to see it. A process that was paused says nothing about its device.
//!
//! A device that does nothing for `stall_warn` is reported; one that does nothing for `hang_limit` has failed, for
//! good: what it might still do later is not waited for (slow is worse than dead).

use crate::error::StoreError;
use crate::store::Store;
use crate::types::StoreEvent;
use quarry_base::Nanos;
use std::time::Duration;

/// Longest time between two looks that counts: more, and it was we who slept.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Stall {
    looked: Nanos,
    /// Without progress so far.
    pub idle: Duration,
    /// An operation ended since the last look, or none is in flight.
    pub moved: bool,
    told: bool,
}

impl Store {
    /// How long operations have been in flight without one ending.
    pub fn stalled_for(&self) -> Duration {
        self.stall.idle
    }

    pub(crate) fn poll_stall(&mut self, now: Nanos) {
        let s = &mut self.stall;
        let passed = now.since(s.looked).min(LOOK);
        s.looked = now;
        if std::mem::take(&mut s.moved) || self.ops.is_empty() {
            (s.idle, s.told) = (Duration::ZERO, false);
            return;
        }
        s.idle += passed;
        let idle = s.idle;
        if idle >= self.cfg.stall_warn && !s.told {
            s.told = true;
            self.events.push(StoreEvent::Stalled { idle });
        }
        if idle >= self.cfg.hang_limit && self.failed.is_none() {
            self.fail(StoreError::Hung { seconds: idle.as_secs() });
        }
    }

    /// When the next look is due.
    pub(crate) fn stall_deadline(&self) -> Option<Nanos> {
        (!self.ops.is_empty()).then(|| self.stall.looked + LOOK)
    }

    /// The device has failed: nothing more becomes stable.
    pub(crate) fn fail(&mut self, e: StoreError) {
        if self.recovery.is_some() {
            return self.open_failed(e);
        }
        self.failed = Some(e.clone());
        self.events.push(StoreEvent::Failed(e));
        self.unpark();
    }
}
