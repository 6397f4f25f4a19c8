//! What is known of the sessions now. Nothing here is durable; all of it comes again after a restart.
//!
//! Invariant: a session's queue gets one snapshot and then every change after it, in order of the log (R3): the hub's
//! lock is held from applying a command to queueing its changes. A session whose queue is full is closed; it
//! comes back and gets a snapshot again.

use super::questions::Questions;
use super::{now, Detector};
use crate::engine::SharedState;
use crate::state::State;
use quarry_base::{
    ConfigIndex, DeviceId, Instance, Nanos, PgId, SdcId, SdsId, Seq, StartNo, Version,
};
use quarry_control::{Attachment, Change, PgReport, ToNode};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

/// Messages a session may have waiting.
pub const SESSION_QUEUE: usize = 1024;
/// Samples of the progress of syncs, one a second.
const RATE_SAMPLES: usize = 15;

/// A session's queue and its off switch.
struct Queue {
    tx: mpsc::Sender<Arc<ToNode>>,
    close: watch::Sender<bool>,
}

/// Device figures as reported.
#[derive(Clone, Debug, Default)]
pub struct DeviceLive {
    pub capacity: u64,
    pub used: u64,
    pub failed: Option<String>,
    /// It is open: the server recovers or formats it before it serves it.
    pub open: bool,
}

/// An SDS, as heard.
#[derive(Clone, Debug, Default)]
pub struct SdsLive {
    pub session: Option<u64>,
    pub start: StartNo,
    /// The first start that its process was given, as far as is known here: it may have got a new one since.
    pub process: StartNo,
    /// The process began while this MDM was there.
    pub whole: bool,
    pub host: String,
    pub pid: u32,
    pub heard: Nanos,
    pub applied: ConfigIndex,
    pub confirmed: ConfigIndex,
    pub devices: HashMap<DeviceId, DeviceLive>,
    pub counters: BTreeMap<String, u64>,
    /// What it held when it registered (R11).
    pub positions: HashMap<(DeviceId, PgId), Held>,
    /// When it registered, Unix milliseconds.
    pub registered_ms: u64,
}

impl SdsLive {
    /// `process` and `whole` of a server that registers: it got `start`, says that it had `resume`, and was `old` so far.
    pub fn process_of(
        start: StartNo,
        resume: Option<StartNo>,
        old: Option<&SdsLive>,
    ) -> (StartNo, bool) {
        match (resume, old) {
            (None, _) => (start, true),
            (Some(r), Some(old)) if old.start == r => (old.process, old.whole),
            (Some(r), _) => (r, false),
        }
    }

    /// From where the process's counters, which stand at `now`, are news: from zero if it began while this MDM was
    /// there; else an earlier MDM has told what came before.
    pub fn told_before<const N: usize>(&self, now: [u64; N]) -> [u64; N] {
        match self.whole {
            true => [0; N],
            false => now,
        }
    }
}

/// What a device held of a group when its server registered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Newest durable record.
    pub last: Version,
    /// Commit point it knew.
    pub commit: Seq,
    /// Everything up to here was there (R12).
    pub through: Version,
}

/// An SDC, as heard.
#[derive(Clone, Debug, Default)]
pub struct SdcLive {
    pub session: Option<u64>,
    pub instance: Instance,
    pub host: String,
    pub pid: u32,
    pub heard: Nanos,
    /// Newest change that it has applied.
    pub applied: ConfigIndex,
    /// `None` until it reports.
    pub attachments: Option<Vec<Attachment>>,
    pub counters: BTreeMap<String, u64>,
}

/// A placement group, as its primary reports it.
#[derive(Clone, Debug, Default)]
pub struct PgLive {
    pub report: Option<PgReport>,
    /// The start that reported.
    pub start: StartNo,
    /// When its configuration changed last.
    pub changed: Nanos,
    /// When it was last seen to serve.
    pub active: Nanos,
}

/// Progress of syncs over the last seconds.
#[derive(Default)]
pub struct SyncRate {
    samples: VecDeque<(Nanos, u64)>,
}

impl SyncRate {
    /// Notes how many bytes are left now.
    pub fn sample(&mut self, at: Nanos, left: u64) {
        if self.samples.len() >= RATE_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((at, left));
    }
    /// Bytes a second by which the rest shrinks, `None` if it does not.
    pub fn bytes_per_second(&self) -> Option<f64> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.0.since(first.0).as_secs_f64();
        let done = first.1.checked_sub(last.1).filter(|d| *d > 0)?;
        (seconds > 0.5).then(|| done as f64 / seconds)
    }
}

/// All of it, under one lock.
pub struct HubInner {
    index: ConfigIndex,
    queues: HashMap<u64, Queue>,
    next_session: u64,
    pub detector: Detector,
    pub sds: HashMap<SdsId, SdsLive>,
    pub sdcs: HashMap<SdcId, SdcLive>,
    pub pgs: HashMap<PgId, PgLive>,
    pub rates: HashMap<quarry_base::PoolId, SyncRate>,
    /// Progress of running tasks, by what they do.
    pub task_rates: HashMap<String, SyncRate>,
    /// Application traffic of each pool: bytes so far and a second.
    pub loads: HashMap<quarry_base::PoolId, (u64, u64)>,
    /// When this MDM started.
    pub started: Nanos,
    /// Sessions closed because they did not take their messages.
    pub slow_sessions: u64,
    /// Memberships changed since the driver looked last.
    pub dirty: bool,
    pub questions: Questions,
    /// What was told of each server's findings.
    pub damage: HashMap<SdsId, super::damage::Told>,
    /// What was told of the passes of each device's scrub.
    pub scrubs: HashMap<(SdsId, DeviceId), super::scrubs::Told>,
}

/// Shared by sessions, engine, driver and API.
pub struct Hub(Mutex<HubInner>);

/// A session's end of its queue.
pub struct Attached {
    pub id: u64,
    pub rx: mpsc::Receiver<Arc<ToNode>>,
    pub closed: watch::Receiver<bool>,
}

impl Hub {
    pub fn new(state: &State) -> Hub {
        let up = state.sds.values().filter(|s| s.up).map(|s| (s.id, s.start));
        let at = now();
        Hub(Mutex::new(HubInner {
            index: state.index,
            queues: HashMap::new(),
            next_session: 0,
            detector: Detector::new(at, up),
            sds: HashMap::new(),
            sdcs: HashMap::new(),
            pgs: HashMap::new(),
            rates: HashMap::new(),
            task_rates: HashMap::new(),
            loads: HashMap::new(),
            started: at,
            slow_sessions: 0,
            dirty: true,
            questions: Questions::default(),
            damage: HashMap::new(),
            scrubs: HashMap::new(),
        }))
    }

    /// To be held for a moment only; taken before the state's lock where both are needed.
    pub fn lock(&self) -> MutexGuard<'_, HubInner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a queue and puts the registration and a snapshot into it.
    pub fn attach(
        &self,
        registered: ToNode,
        state: &SharedState,
        fits: impl Fn(&State) -> bool,
    ) -> Option<Attached> {
        let mut h = self.lock();
        let view = {
            let s = state.read();
            if !fits(&s) {
                return None;
            }
            s.view()
        };
        let (tx, rx) = mpsc::channel(SESSION_QUEUE);
        let (close, closed) = watch::channel(false);
        for m in [registered, ToNode::Snapshot(view)] {
            tx.try_send(Arc::new(m)).ok()?;
        }
        h.next_session += 1;
        let id = h.next_session;
        h.queues.insert(id, Queue { tx, close });
        Some(Attached { id, rx, closed })
    }

    /// The session has ended.
    pub fn detach(&self, id: u64) {
        let mut h = self.lock();
        let at = now();
        h.queues.remove(&id);
        let ended: Vec<SdsId> =
            h.sds.iter().filter(|(_, s)| s.session == Some(id)).map(|(k, _)| *k).collect();
        for sds in ended {
            h.detector.closed(sds, at);
            if let Some(l) = h.sds.get_mut(&sds) {
                l.session = None;
            }
        }
        for l in h.sdcs.values_mut().filter(|l| l.session == Some(id)) {
            l.session = None;
        }
    }
}

impl HubInner {
    /// Newest index published.
    pub fn index(&self) -> ConfigIndex {
        self.index
    }

    /// Queues a message for one session.
    pub fn send(&mut self, session: u64, m: Arc<ToNode>) {
        let Some(q) = self.queues.get(&session) else { return };
        if q.tx.try_send(m).is_err() {
            tracing::warn!(
                session,
                limit = SESSION_QUEUE,
                "a session cannot keep up: closed, it gets a snapshot again"
            );
            self.slow_sessions += 1;
            self.close(session);
        }
    }

    /// Ends a session.
    pub fn close(&mut self, session: u64) {
        if let Some(q) = self.queues.remove(&session) {
            q.close.send_replace(true);
        }
    }

    /// Takes a command's changes and queues them for every session.
    pub fn publish(&mut self, index: ConfigIndex, changes: Vec<Change>, state: &State) {
        self.index = index;
        if changes.is_empty() {
            return;
        }
        let at = now();
        for c in &changes {
            match c {
                Change::Pg(c) => {
                    self.pgs.entry(c.pg).or_default().changed = at;
                    self.dirty = true;
                }
                Change::PgGone(pg) => drop(self.pgs.remove(pg)),
                // Removed by the operator: the daemon is told so when it comes again.
                Change::SdsGone(id) => {
                    if let Some(l) = self.sds.remove(id) {
                        self.detector.forget(*id, l.start);
                        l.session.into_iter().for_each(|s| self.close(s));
                    }
                }
                Change::SdcGone(id) => {
                    let session = self.sdcs.remove(id).and_then(|l| l.session);
                    session.into_iter().for_each(|s| self.close(s));
                }
                Change::Sds(s) => {
                    self.dirty = true;
                    self.end_older(s.id, state);
                }
                _ => {}
            }
        }
        let m = Arc::new(ToNode::Changes { index, changes });
        for session in self.queues.keys().copied().collect::<Vec<_>>() {
            self.send(session, m.clone());
        }
    }

    /// A session of a start that has ended is closed: the process registers anew (R1).
    fn end_older(&mut self, sds: SdsId, state: &State) {
        let Some(s) = state.sds.get(&sds) else { return };
        if !s.up {
            let start = self.sds.get(&sds).map_or(s.start, |l| l.start);
            self.detector.forget(sds, start);
            self.detector.forget(sds, s.start);
        }
        let Some(l) = self.sds.get_mut(&sds) else { return };
        if l.start != s.start || !s.up {
            if let Some(id) = l.session.take() {
                self.close(id);
            }
        }
    }

    /// A report of a group's primary.
    pub fn pg_report(&mut self, start: StartNo, r: PgReport, at: Nanos) {
        let p = self.pgs.entry(r.pg).or_default();
        if p.report.as_ref().is_some_and(|old| old.epoch > r.epoch) {
            return;
        }
        if r.active {
            p.active = at;
        }
        p.start = start;
        p.report = Some(r);
    }
}
