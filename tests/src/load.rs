//! A load generator that remembers everything it was told.
//!
//! Each connection has a thread that sends and one that receives, with up to `depth` requests in
//! flight. Every written page carries a value of its own ([`page`](crate::page)). What was asked and answered goes to a
//! [`History`] when the load is stopped; faults are injected by the caller meanwhile.

mod area;
mod report;
#[cfg(test)]
mod tests;
mod worker;

pub use area::Area;
pub use report::LoadReport;

use crate::{fail, History, Res, Uri};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use worker::WorkerEnd;

/// Relative shares of the kinds of requests.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub read: u64,
    pub write: u64,
    pub trim: u64,
    pub zero: u64,
    pub flush: u64,
}

impl Mix {
    /// Reads and writes, some trims, zeroings and flushes.
    pub const ALL: Mix = Mix { read: 45, write: 45, trim: 4, zero: 4, flush: 2 };
    /// Reads and writes alone: values are unique, the check is exact whatever the concurrency.
    pub const READ_WRITE: Mix = Mix { read: 50, write: 50, trim: 0, zero: 0, flush: 0 };
}

/// What to do.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// Connections go to these in turn (several SDCs, the same volume).
    pub uris: Vec<Uri>,
    pub connections: u32,
    /// Requests in flight on each connection.
    pub depth: usize,
    pub area: Area,
    /// Pages of the longest request; most have one.
    pub most_pages: u64,
    pub mix: Mix,
    pub seed: u64,
    /// Whether a lost connection is made again (until the end), or ends its worker.
    pub reconnect: bool,
    /// Requests a second over all connections, at most; bounds the history's size.
    pub most_per_second: u64,
    /// How long the end may wait for outstanding answers.
    pub patience: Duration,
}

impl LoadSpec {
    /// 4 connections, 16 deep, 1,024 hot pages, all kinds of requests up to 16 pages, at most 20,000 a second.
    pub fn new(uri: &Uri) -> LoadSpec {
        LoadSpec {
            uris: vec![uri.clone()],
            connections: 4,
            depth: 16,
            area: Area::hot(1024),
            most_pages: 16,
            mix: Mix::ALL,
            seed: 1,
            reconnect: false,
            most_per_second: 20_000,
            patience: Duration::from_secs(30),
        }
    }
    /// Sends some connections there too.
    pub fn also(mut self, uri: &Uri) -> LoadSpec {
        self.uris.push(uri.clone());
        self
    }
    /// Sets where.
    pub fn area(mut self, area: Area) -> LoadSpec {
        self.area = area;
        self
    }
    /// Sets what.
    pub fn mix(mut self, mix: Mix) -> LoadSpec {
        self.mix = mix;
        self
    }
    /// Sets connections and requests in flight on each.
    pub fn width(mut self, connections: u32, depth: usize) -> LoadSpec {
        self.connections = connections;
        self.depth = depth;
        self
    }
    /// Sets the seed.
    pub fn seed(mut self, seed: u64) -> LoadSpec {
        self.seed = seed;
        self
    }
    /// Makes lost connections again.
    pub fn reconnecting(mut self) -> LoadSpec {
        self.reconnect = true;
        self
    }
}

/// What the workers share.
pub(crate) struct Shared {
    pub spec: LoadSpec,
    pub history: Arc<History>,
    pub stop: AtomicBool,
    pub completed: AtomicU64,
    pub sent: AtomicU64,
    pub errors: AtomicU64,
    pub lost: AtomicU64,
    pub next_client: AtomicU64,
}

/// A load under way. Dropped without [`Load::stop`] it ends in the same way.
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<WorkerEnd>>,
    started: Instant,
}

impl Load {
    /// Connects all and starts. Fails when a first connection is refused.
    pub fn start(spec: LoadSpec, history: &Arc<History>) -> Res<Load> {
        let counter = || AtomicU64::new(0);
        let shared = Arc::new(Shared {
            spec,
            history: Arc::clone(history),
            stop: AtomicBool::new(false),
            completed: counter(),
            sent: counter(),
            errors: counter(),
            lost: counter(),
            next_client: AtomicU64::new(history.now() / 1_000_000 * 1000),
        });
        let mut load = Load { shared, workers: Vec::new(), started: Instant::now() };
        for n in 0..load.shared.spec.connections {
            let worker = worker::Worker::connect(Arc::clone(&load.shared), n)?;
            load.workers.push(std::thread::spawn(move || worker.run()));
        }
        Ok(load)
    }

    /// Requests answered so far.
    pub fn completed(&self) -> u64 {
        self.shared.completed.load(Ordering::Relaxed)
    }
    /// NBD errors and lost connections so far.
    pub fn troubles(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed) + self.shared.lost.load(Ordering::Relaxed)
    }
    /// Lets it run for a time. Fails when nothing was answered in it.
    pub fn run_for(&self, time: Duration) -> Res<()> {
        let before = self.completed();
        std::thread::sleep(time);
        if self.completed() == before {
            fail!("no request was answered in {:.1} s under load", time.as_secs_f64());
        }
        Ok(())
    }
    /// Waits until `n` more requests were answered.
    pub fn run_requests(&self, n: u64, limit: Duration) -> Res<()> {
        let target = self.completed() + n;
        let what = format!("{n} more answered requests");
        crate::wait_until(&what, limit, || Ok((self.completed() >= target).then_some(())))
    }
    /// Ends it: no more requests, outstanding ones are waited for ([`LoadSpec::patience`]), all is recorded.
    pub fn stop(mut self) -> LoadReport {
        self.finish()
    }

    fn finish(&mut self) -> LoadReport {
        let time = self.started.elapsed();
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut ends = Vec::new();
        for w in self.workers.drain(..) {
            ends.push(w.join().unwrap_or_else(|_| WorkerEnd::failed("a load thread panicked")));
        }
        let report = LoadReport::new(time, &mut ends);
        for e in ends {
            self.shared.history.add(e.ops);
        }
        report
    }
}

impl Drop for Load {
    /// A test that fails half-way leaves its load to this: a history that lacked its writes would show violations
    /// that are none.
    fn drop(&mut self) {
        if !self.workers.is_empty() {
            eprintln!("load: ended without being asked: {}", self.finish());
        }
    }
}
