//! The recorded history of volumes, data servers, clients and pools: what the graphs of the console and
//! `GET /metrics/timeline` are drawn from.
//!
//! Once a second [`run`] reads what the daemons reported over their control sessions (heartbeats carry their counters
//! ten times a second) and writes one row an object. Nothing is invented: a second in which nobody who serves an
//! object was heard has no row, and a point is given only where rows exist on both ends of its step.
//!
//! Invariants: counters here never go back, also when a daemon restarts ([`collect`]); memory is bounded by
//! [`book::MAX_OBJECTS`] and the rows of a [`ring::Ring`]. It is written to a file now and then and read again at the start
//! ([`saved`]).

pub mod book;
pub mod catalog;
pub mod collect;
pub mod ring;
pub mod saved;
#[cfg(test)]
mod tests;

pub use book::{Book, Query, Track};
pub use catalog::{Kind, Metric, Unit};

use crate::control::{now, Hub};
use crate::engine::{unix_ms, SharedState};
use collect::Collector;
use quarry_metrics::Counter;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shared by the recorder and the API.
#[derive(Clone, Default)]
pub struct Timeline(Arc<Mutex<Book>>);

impl Timeline {
    /// To be held for a moment only; taken after the hub's and the state's lock where those are needed.
    pub fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fills a [`Timeline`] and keeps it in a file.
pub struct Recorder {
    timeline: Timeline,
    collector: Mutex<Collector>,
    cluster: String,
    /// Where it is kept; `None`: nowhere.
    file: Option<PathBuf>,
}

impl Recorder {
    /// Goes on with what the file holds, if it can be used.
    pub fn new(timeline: Timeline, state: &SharedState, file: Option<PathBuf>) -> Recorder {
        let (before, cluster) = {
            let s = state.read();
            (s.next.start, s.cluster.clone())
        };
        let mut collector = Collector::new(before);
        if let Some(path) = &file {
            match saved::read(path, &cluster, unix_ms() / 1000) {
                Ok(Some((book, sums))) => {
                    *timeline.lock() = book;
                    collector = sums.resumed(before);
                }
                Ok(None) => {}
                Err(why) => {
                    tracing::warn!(path = %path.display(), %why, "the recorded history begins anew");
                }
            }
        }
        Recorder { timeline, collector: Mutex::new(collector), cluster, file }
    }

    fn record(&self, hub: &Hub, state: &SharedState) -> u64 {
        let rows = {
            let hub = hub.lock();
            let s = state.read();
            self.collector().rows(&s, &hub, now())
        };
        self.timeline.lock().record(unix_ms() / 1000, rows)
    }

    fn collector(&self) -> MutexGuard<'_, Collector> {
        self.collector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the file. What fails is told and tried again with the next.
    pub fn save(&self) {
        let Some(path) = &self.file else { return };
        let (keys, sums) = (self.timeline.lock().keys(), self.collector().clone());
        let one = |kind, id| self.timeline.lock().save(kind, id);
        if let Err(error) = saved::write(path, &self.cluster, &keys, one, sums) {
            tracing::warn!(path = %path.display(), %error, "the recorded history is not written");
        }
    }
}

/// Records once a second, for ever. `full` counts rows left out because there were too many objects.
pub async fn run(recorder: Arc<Recorder>, hub: Arc<Hub>, state: SharedState, full: Counter) {
    let mut due = Instant::now() + saved::EVERY;
    loop {
        tokio::time::sleep(until_half(unix_ms())).await;
        full.add(recorder.record(&hub, &state));
        if Instant::now() >= due {
            due = Instant::now() + saved::EVERY;
            let r = Arc::clone(&recorder);
            // One at a time; it ends by a panic only, which has been told.
            tokio::task::spawn_blocking(move || r.save()).await.ok();
        }
    }
}

/// Time until the middle of a second. There a tick that comes a little early or late still falls into its own second,
/// so that no second has two rows and the next one none.
fn until_half(unix_ms: u64) -> Duration {
    let part = unix_ms % 1000;
    Duration::from_millis(if part < 500 { 500 - part } else { 1500 - part })
}
