//! What clients asked, when, and what they were told.
//!
//! One [`History`] spans any number of loads, clients and daemon restarts; times are nanoseconds since it was made, on
//! the monotonic clock of this process. The checker reads it afterwards.

use crate::nbd::{Connection, Uri};
use crate::page::{self, Value};
use crate::{fail, Res};
use quarry_base::PAGE;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pages one request of a survey or a final read covers.
const SWEEP_PAGES: u64 = 64;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Kind {
    Read,
    Write,
    Trim,
    Zero,
    Flush,
}

/// What the client knows of a request's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Ok,
    /// Answered with this NBD error: a write may have taken effect or not.
    Error(u32),
    /// The connection was lost first: a write may take effect at any later time, or never.
    Unknown,
}

/// One request and its end.
#[derive(Clone, Debug)]
pub struct Op {
    /// Unique in the history, from 1.
    pub id: u64,
    /// Which connection sent it.
    pub client: u32,
    pub kind: Kind,
    /// First page.
    pub page: u64,
    /// How many pages.
    pub pages: u64,
    /// When it was about to be sent.
    pub invoked: u64,
    /// When its answer had been read; `u64::MAX` when unknown.
    pub completed: u64,
    pub outcome: Outcome,
    /// What a successful read found, page by page.
    pub seen: Box<[Value]>,
}

/// The record of a run.
pub struct History {
    start: Instant,
    run: u64,
    next: AtomicU64,
    ops: Mutex<Vec<Op>>,
    initial: Mutex<BTreeMap<u64, Value>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl History {
    /// An empty one. `run` marks this run's pages, so that those of an earlier one are told apart. Pages count as zeroes
    /// at the beginning unless [`History::survey`] was called.
    pub fn new(run: u64) -> Arc<History> {
        Arc::new(History {
            start: Instant::now(),
            run,
            next: AtomicU64::new(1),
            ops: Mutex::new(Vec::new()),
            initial: Mutex::new(BTreeMap::new()),
        })
    }

    /// The mark of this run's pages.
    pub fn run(&self) -> u64 {
        self.run
    }
    /// Nanoseconds since the beginning, at least 1.
    pub fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX - 1).max(1)
    }
    /// An id for the next request.
    pub fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
    /// Adds finished requests, in any order.
    pub fn add(&self, ops: Vec<Op>) {
        lock(&self.ops).extend(ops);
    }
    /// Works on all requests so far.
    pub fn with_ops<T>(&self, f: impl FnOnce(&[Op]) -> T) -> T {
        f(&lock(&self.ops))
    }
    /// What a page held at the beginning.
    pub fn initial(&self, page: u64) -> Value {
        lock(&self.initial).get(&page).copied().unwrap_or(page::ZERO)
    }
    /// Says what a page held at the beginning.
    pub fn set_initial(&self, page: u64, value: Value) {
        lock(&self.initial).insert(page, value);
    }

    /// Reads pages before the first write and takes what is there as their beginning.
    pub fn survey(&self, uri: &Uri, pages: impl IntoIterator<Item = u64>) -> Res<()> {
        let mut c = Connection::open(uri)?;
        for (first, count) in runs(pages.into_iter().collect()) {
            let data = c.read_at(first * PAGE as u64, count as usize * PAGE)?;
            for (i, p) in data.chunks(PAGE).enumerate() {
                let number = first + i as u64;
                self.set_initial(number, page::read(p, number, self.run));
            }
        }
        c.disconnect()
    }

    /// Reads every page that any request touched, over one new connection, and records what is there. Call it when
    /// all loads have ended; an error is a failure.
    pub fn final_read(&self, uri: &Uri) -> Res<()> {
        let mut touched = BTreeSet::new();
        self.with_ops(|ops| {
            for o in ops {
                touched.extend(o.page..o.page + o.pages);
            }
        });
        if touched.is_empty() {
            fail!("the history is empty: nothing was tested");
        }
        let mut c = Connection::open(uri)?;
        let mut done = Vec::new();
        for (first, count) in runs(touched) {
            let invoked = self.now();
            let data = c
                .read_at(first * PAGE as u64, count as usize * PAGE)
                .map_err(|e| e.within("final read"))?;
            let seen = data.chunks(PAGE).enumerate();
            done.push(Op {
                id: self.next_id(),
                client: u32::MAX,
                kind: Kind::Read,
                page: first,
                pages: count,
                invoked,
                completed: self.now(),
                outcome: Outcome::Ok,
                seen: seen.map(|(i, p)| page::read(p, first + i as u64, self.run)).collect(),
            });
        }
        self.add(done);
        c.disconnect()
    }
}

/// Joins neighbouring pages to requests.
fn runs(pages: BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for p in pages {
        match out.last_mut() {
            Some((first, n)) if *first + *n == p && *n < SWEEP_PAGES => *n += 1,
            _ => out.push((p, 1)),
        }
    }
    out
}

/// The longest time in which requests were outstanding and none completed, and when it began. Requests of unknown
/// outcome count as outstanding until the last completion of all.
pub fn longest_gap(ops: &[Op]) -> (Duration, u64) {
    let last = ops.iter().filter(|o| o.completed != u64::MAX).map(|o| o.completed).max();
    let Some(last) = last else { return (Duration::ZERO, 0) };
    let mut marks: Vec<(u64, bool)> = Vec::with_capacity(ops.len() * 2);
    for o in ops {
        marks.push((o.invoked, true));
        if o.completed != u64::MAX {
            marks.push((o.completed, false));
        }
    }
    marks.sort_unstable();
    let (mut outstanding, mut since, mut worst) = (0u64, 0, (0, 0));
    for (at, begins) in marks {
        if at > last {
            break;
        }
        if begins {
            if outstanding == 0 {
                since = at;
            }
            outstanding += 1;
        } else {
            worst = worst.max((at - since, since));
            outstanding -= 1;
            since = at;
        }
    }
    (Duration::from_nanos(worst.0), worst.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(invoked: u64, completed: u64) -> Op {
        Op {
            id: 1,
            client: 0,
            kind: Kind::Read,
            page: 0,
            pages: 1,
            invoked,
            completed,
            outcome: Outcome::Ok,
            seen: Box::new([]),
        }
    }

    #[test]
    fn a_gap_counts_only_while_something_is_outstanding() {
        let gap = |v: &[(u64, u64)]| {
            let ops: Vec<Op> = v.iter().map(|&(a, b)| op(a, b)).collect();
            let (d, at) = longest_gap(&ops);
            (d.as_nanos() as u64, at)
        };
        assert_eq!(gap(&[(10, 20), (500, 510)]), (10, 500), "idle between the two");
        assert_eq!(gap(&[(10, 20), (15, 100)]), (80, 20));
        assert_eq!(gap(&[(10, 100), (20, 30), (40, 45)]), (55, 45));
        assert_eq!(gap(&[(10, u64::MAX), (20, 300)]), (290, 10), "a lost request is outstanding");
        assert_eq!(gap(&[]), (0, 0));
    }

    #[test]
    fn neighbouring_pages_are_read_together() {
        assert_eq!(runs([1, 2, 3, 7, 8].into()), [(1, 3), (7, 2)]);
        assert_eq!(runs((0..SWEEP_PAGES + 1).collect()), [(0, SWEEP_PAGES), (SWEEP_PAGES, 1)]);
    }
}
