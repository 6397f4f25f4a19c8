//! What a load saw.

use super::worker::WorkerEnd;
use crate::history::{longest_gap, Op, Outcome};
use crate::{ensure, Res};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Counts and times of one load.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// How long it ran.
    pub time: Duration,
    /// Requests answered without an error.
    pub ok: u64,
    /// Answered with an NBD error: how many of each number.
    pub errors: BTreeMap<u32, u64>,
    /// Not answered because their connection was lost or the end would not wait any longer.
    pub unanswered: u64,
    /// Connections lost.
    pub lost_connections: u64,
    /// Breaches of the protocol and failed threads.
    pub breaches: Vec<String>,
    /// Longest time without any answer while requests were outstanding, and when it began in the history (ns).
    pub longest_gap: Duration,
    pub longest_gap_at: u64,
    /// Longest single answered request, and when it was sent (ns).
    pub longest_request: Duration,
    pub longest_request_at: u64,
    /// Latency of answered requests.
    pub median: Duration,
    pub p99: Duration,
}

impl LoadReport {
    pub(super) fn new(time: Duration, ends: &mut [WorkerEnd]) -> LoadReport {
        let mut all: Vec<Op> = ends.iter().flat_map(|e| e.ops.iter().map(without_data)).collect();
        let (longest_gap, longest_gap_at) = longest_gap(&all);
        let mut r = LoadReport { time, longest_gap, longest_gap_at, ..LoadReport::default() };
        for e in ends.iter_mut() {
            r.lost_connections += e.lost;
            r.breaches.append(&mut e.breaches);
        }
        for o in &all {
            match o.outcome {
                Outcome::Ok => r.ok += 1,
                Outcome::Error(n) => *r.errors.entry(n).or_default() += 1,
                Outcome::Unknown => r.unanswered += 1,
            }
        }
        all.retain(|o| o.completed != u64::MAX);
        all.sort_unstable_by_key(|o| o.completed - o.invoked);
        let latency = |o: Option<&Op>| {
            o.map_or(Duration::ZERO, |o| Duration::from_nanos(o.completed - o.invoked))
        };
        r.longest_request = latency(all.last());
        r.longest_request_at = all.last().map_or(0, |o| o.invoked);
        r.median = latency(all.get(all.len() / 2));
        r.p99 = latency(all.get(all.len() * 99 / 100));
        r
    }

    /// Fails on any NBD error, lost connection, unanswered request or breach of the protocol, and when nothing was
    /// answered at all.
    pub fn expect_no_error(&self) -> Res<()> {
        let clean = self.errors.is_empty() && self.lost_connections == 0 && self.unanswered == 0;
        ensure!(clean && self.breaches.is_empty(), "the load saw errors: {self}");
        ensure!(self.ok > 0, "the load did nothing: {self}");
        Ok(())
    }
    /// Fails on NBD errors and breaches; lost connections and unanswered requests are in order.
    pub fn expect_no_nbd_error(&self) -> Res<()> {
        ensure!(self.errors.is_empty() && self.breaches.is_empty(), "the load saw errors: {self}");
        ensure!(self.ok > 0, "the load did nothing: {self}");
        Ok(())
    }
    /// Fails when a single request, or the time without any answer, was longer than `limit`.
    pub fn expect_stall_below(&self, limit: Duration) -> Res<()> {
        let worst = self.longest_request.max(self.longest_gap);
        ensure!(worst <= limit, "a stall of {worst:.1?}, {limit:.1?} is allowed: {self}");
        Ok(())
    }
}

fn without_data(o: &Op) -> Op {
    Op { seen: Box::new([]), ..*o }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_second = self.ok as f64 / self.time.as_secs_f64().max(0.001);
        let at = |ns: u64| ns as f64 / 1e9;
        write!(f, "{} ok ({per_second:.0} ops/s, {:.1} s)", self.ok, self.time.as_secs_f64())?;
        write!(f, ", median {:.1?}, p99 {:.1?}", self.median, self.p99)?;
        write!(
            f,
            ", longest request {:.1?} (sent at {:.3} s)",
            self.longest_request,
            at(self.longest_request_at)
        )?;
        write!(
            f,
            ", longest gap {:.1?} (from {:.3} s)",
            self.longest_gap,
            at(self.longest_gap_at)
        )?;
        write!(f, ", errors {:?}, unanswered {}", self.errors, self.unanswered)?;
        write!(f, ", lost connections {}, breaches {:?}", self.lost_connections, self.breaches)
    }
}
