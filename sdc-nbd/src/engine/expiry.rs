//! Requests that wait for too long: `io_timeout` of a mapping (R25), and what is out on a volume that was taken away.
//!
//! A request that fails here may still be carried out: its outcome is unknown, as after any I/O error. It is carried out
//! at most once, and not after a later overlapping write of this client: on one connection they arrive in order, and a
//! server closes the older connections of a client that connects anew, so nothing comes late from them (R20).

use super::types::IoError;
use super::{Engine, Timer};
use quarry_base::{Nanos, VolumeId};
use std::time::Duration;

/// What is out when a volume is taken away may be answered for so long.
const UNMAP_WAIT: Duration = Duration::from_secs(1);
/// Looks for expired requests at most so many times an `io_timeout`.
const LOOKS: u32 = 8;

impl Engine {
    /// Makes sure that somebody looks when the oldest request of the volume is due.
    pub(super) fn watch_expiry(&mut self, id: VolumeId) {
        let Some(v) = self.volumes.get_mut(&id) else { return };
        if v.io_timeout.is_zero() || v.expiry_armed || v.load == 0 {
            return;
        }
        v.expiry_armed = true;
        let timeout = v.io_timeout;
        let oldest = self.requests.iter().filter(|(_, r)| r.volume == id).map(|(_, r)| r.begun);
        let oldest = oldest.min().unwrap_or(self.now);
        let at = (oldest + timeout).max(self.now + timeout / LOOKS);
        self.timers.arm(at, Timer::Expiry(id));
    }

    /// Fails the requests of a volume that have waited for `io_timeout`.
    pub(super) fn expire(&mut self, id: VolumeId) {
        let Some(v) = self.volumes.get_mut(&id) else { return };
        v.expiry_armed = false;
        let timeout = v.io_timeout;
        if !timeout.is_zero() {
            let due = |begun: Nanos| begun + timeout <= self.now;
            let late = self.requests.iter().filter(|(_, r)| r.volume == id && due(r.begun));
            let late: Vec<usize> = late.map(|(key, _)| key).collect();
            self.stats.timed_out += late.len() as u64;
            late.into_iter().for_each(|key| self.fail_request(key));
            self.watch_expiry(id);
        }
    }

    fn fail_request(&mut self, key: usize) {
        let Some(r) = self.requests.get_mut(key) else { return };
        r.cursor = r.end;
        r.error.get_or_insert(IoError::TimedOut);
        let volume = r.volume;
        let parts = self.parts.iter().filter(|(_, p)| p.request == key);
        let parts: Vec<(usize, usize)> = parts.map(|(k, p)| (k, p.pg)).collect();
        for (part, pg) in parts {
            if let Some(pg) = self.pgs.list.get_mut(pg) {
                pg.unready(volume, part);
            }
            self.complete(part, Err(IoError::TimedOut));
        }
        // It may stand anywhere in its volume's queue.
        if let Some(r) = self.requests.get_mut(key).filter(|r| r.left == 0) {
            r.queued = false;
            if let Some(v) = self.volumes.get_mut(&volume) {
                v.queue.retain(|k| *k != key);
            }
            self.finish_if_done(key);
        }
    }

    /// A volume was taken away: what is out now and not answered soon fails too.
    pub(super) fn watch_unmapped(&mut self, id: VolumeId) {
        self.timers.arm(self.now + UNMAP_WAIT, Timer::Unmapped(id));
    }

    pub(super) fn end_unmapped(&mut self, id: VolumeId) {
        if self.volumes.get(&id).is_none_or(|v| v.mapped) {
            return;
        }
        self.fail_waiting(id, true);
        if self.volumes.get(&id).is_some_and(|v| v.load == 0 && v.parts == 0) {
            self.volumes.remove(&id);
        }
    }
}
