//! Is the device still doing anything? Judged by progress: time in which operations were in flight and none
//! ended, and time for which the oldest write or sync has been in flight: reads may go on while one of those never
//! ends. Both as far as the store was awake to see it. A process that was paused says nothing about its device.
//!
//! A device that is silent for `stall_warn`, or has not ended a write for five times that, is reported; one that does nothing for
//! `hang_limit` has failed, for good: what it might still do later is not waited for (slow is worse than dead).

use crate::error::StoreError;
use crate::store::Store;
use crate::types::StoreEvent;
use quarry_base::Nanos;
use std::collections::VecDeque;
use std::time::Duration;

/// Longest time between two looks that counts: more, and it was we who slept. What ended meanwhile may not be told yet.
const LOOK: Duration = Duration::from_millis(100);

/// A write is a stall by itself only after so many times the time of silence that is one: it may have waited its turn behind
/// others, which all end.
const ITS_TURN: u32 = 5;

/// Writes that begin within so long of each other are one wave, which is as old as the last of them.
const GRAIN: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(crate) struct Stall {
    looked: Nanos,
    /// Without an operation that ended so far.
    silent: Duration,
    /// That, or the age of the oldest write if it is much.
    idle: Duration,
    /// An operation ended since the last look, or none is in flight.
    pub moved: bool,
    told: bool,
}

/// How long writes have been in flight. They are counted in waves, and waves are few: nothing is looked through when
/// one begins or ends, or when the oldest is asked for.
#[derive(Default)]
pub(crate) struct Ages {
    /// Time that was seen to pass.
    awake: Duration,
    /// The oldest is not empty.
    waves: VecDeque<Wave>,
    /// Number of the oldest.
    first: u64,
}

struct Wave {
    begun: Duration,
    last: Duration,
    left: u32,
}

impl Ages {
    /// A write begins: the number of its wave.
    pub fn begin(&mut self) -> u64 {
        let now = self.awake;
        match self.waves.back_mut().filter(|w| now - w.begun < GRAIN) {
            Some(w) => (w.last, w.left) = (now, w.left + 1),
            None => self.waves.push_back(Wave { begun: now, last: now, left: 1 }),
        }
        self.first + self.waves.len() as u64 - 1
    }

    /// A write of this wave has ended.
    pub fn end(&mut self, wave: u64) {
        let i = wave.checked_sub(self.first).map(|i| i as usize);
        if let Some(w) = i.and_then(|i| self.waves.get_mut(i)) {
            w.left = w.left.saturating_sub(1);
        }
        while self.waves.front().is_some_and(|w| w.left == 0) {
            self.waves.pop_front();
            self.first += 1;
        }
    }

    fn oldest(&self) -> Duration {
        self.waves.front().map_or(Duration::ZERO, |w| self.awake - w.last)
    }
}

impl Store {
    /// How long operations have been in flight without one ending, or the oldest write or sync once that is long.
    pub fn stalled_for(&self) -> Duration {
        self.stall.idle
    }

    pub(crate) fn poll_stall(&mut self, now: Nanos) {
        let s = &mut self.stall;
        let passed = now.since(s.looked).min(LOOK);
        s.looked = now;
        self.ops.writes.awake += passed;
        if std::mem::take(&mut s.moved) || self.ops.is_empty() {
            s.silent = Duration::ZERO;
        } else {
            s.silent += passed;
        }
        let oldest = self.ops.writes.oldest();
        let waited = oldest >= self.cfg.stall_warn * ITS_TURN;
        s.idle = if waited { s.silent.max(oldest) } else { s.silent };
        let idle = s.idle;
        if s.told != (idle >= self.cfg.stall_warn) {
            s.told = !s.told;
            match s.told {
                true => self.events.push(StoreEvent::Stalled { idle }),
                // What ends on a device that has failed is no news.
                false if self.failed.is_some() => {}
                false => self.events.push(StoreEvent::Moves),
            }
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
