//! The recorded history of volumes, data servers, clients and pools: what the graphs of the console and
//! `GET /metrics/timeline` are drawn from.
//!
//! Once a second [`run`] reads what the daemons reported over their control sessions (heartbeats carry their counters
//! ten times a second) and writes one row an object. Nothing is invented: a second in which nobody who serves an
//! object was heard has no row, and a point is given only where rows exist on both ends of its step.
//!
//! Invariants: counters here never go back, also when a daemon restarts ([`collect`]); memory is bounded by
//! [`book::MAX_OBJECTS`] and the rows of a [`ring::Ring`]; history begins anew with each start of the MDM.

pub mod book;
pub mod catalog;
pub mod collect;
pub mod ring;
#[cfg(test)]
mod tests;

pub use book::{Book, Query, Track};
pub use catalog::{Kind, Metric, Unit};

use crate::control::{now, Hub};
use crate::engine::{unix_ms, SharedState};
use collect::Collector;
use quarry_metrics::Counter;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Shared by the recorder and the API.
#[derive(Clone, Default)]
pub struct Timeline(Arc<Mutex<Book>>);

impl Timeline {
    /// To be held for a moment only; taken after the hub's and the state's lock where those are needed.
    pub fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records once a second, for ever. `full` counts rows left out because there were too many objects.
pub async fn run(timeline: Timeline, hub: Arc<Hub>, state: SharedState, full: Counter) {
    let mut collector = Collector::new(state.read().next.start);
    loop {
        tokio::time::sleep(until_half(unix_ms())).await;
        let rows = {
            let hub = hub.lock();
            let s = state.read();
            collector.rows(&s, &hub, now())
        };
        full.add(timeline.lock().record(unix_ms() / 1000, rows));
    }
}

/// Time until the middle of a second. There a tick that comes a little early or late still falls into its own second,
/// so that no second has two rows and the next one none.
fn until_half(unix_ms: u64) -> Duration {
    let part = unix_ms % 1000;
    Duration::from_millis(if part < 500 { 500 - part } else { 1500 - part })
}
