//! The one writer: takes commands, makes them durable, applies them, publishes what they changed.
//!
//! Invariant: nothing is applied, answered or published that is not durable. Commands that wait together are
//! written together (group commit). A store that fails is final: the engine stops, and with it the daemon.

use crate::control::Hub;
use crate::log::{MetaStore, StoreError};
use crate::state::{Applied, Command, Op, Reject, State};
use quarry_base::ConfigIndex;
use quarry_metrics::{Counter, Family, Histo, Metrics};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};

/// Commands that may wait; more wait at their sender.
const QUEUE: usize = 1024;
/// Commands written together.
const GROUP: usize = 64;
/// Commands between two snapshots.
const SNAPSHOT_EVERY: u64 = 5_000;

/// Unix time in milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The state, for readers. Everything in it is durable.
#[derive(Clone)]
pub struct SharedState(Arc<RwLock<State>>);

impl SharedState {
    pub fn new(state: State) -> SharedState {
        SharedState(Arc::new(RwLock::new(state)))
    }
    /// The state now. To be held for a moment only, never across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Job {
    command: Command,
    reply: oneshot::Sender<Result<Applied, Reject>>,
}

/// What the writer's queue carries.
enum Message {
    Run(Job),
    Stop,
}

/// Hands commands to the writer. Clones share it; after [`Engine::stop`] the writer ends with a snapshot.
#[derive(Clone)]
pub struct Engine {
    jobs: mpsc::Sender<Message>,
    stale: Arc<watch::Sender<Option<String>>>,
    ended: watch::Receiver<Option<String>>,
}

/// The running writer.
pub struct Writer {
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    /// Waits for the writer's end, which [`Engine::stop`] brings about.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the writer thread panicked");
        }
    }
}

/// Restores the state from a store.
pub fn restore(store: &mut dyn MetaStore) -> Result<State, StoreError> {
    let loaded = store.load()?;
    let parse = |what: &str, e: serde_json::Error| {
        StoreError::State(format!("{what} is not understood: {e}"))
    };
    let mut state = match &loaded.snapshot {
        Some((i, bytes)) => {
            serde_json::from_slice(bytes).map_err(|e| parse(&format!("snapshot {i}"), e))?
        }
        None => State::default(),
    };
    state.gather_deleted();
    for (i, bytes) in &loaded.entries {
        let c: Command =
            serde_json::from_slice(bytes).map_err(|e| parse(&format!("log entry {i}"), e))?;
        // A refused command was refused then too, and changed nothing.
        state.apply(ConfigIndex(*i), &c).ok();
    }
    Ok(state)
}

impl Engine {
    /// Starts the writer thread.
    pub fn start(
        store: Box<dyn MetaStore>,
        state: SharedState,
        hub: Arc<Hub>,
        metrics: &Metrics,
    ) -> std::io::Result<(Engine, Writer)> {
        let (jobs, rx) = mpsc::channel(QUEUE);
        let (ended_tx, ended) = watch::channel(None);
        let w = WriterState {
            store,
            state,
            hub,
            last_snapshot: 0,
            commands: metrics.counter_family(
                "quarry_mdm_commands_total",
                "Commands of the log, by kind",
                &["kind"],
            ),
            refused: metrics.counter("quarry_mdm_commands_refused_total", "Commands refused"),
            commit: metrics.histogram("quarry_mdm_commit_seconds", "Time to make commands durable"),
        };
        let thread = std::thread::Builder::new().name("mdm-writer".into()).spawn(move || {
            if let Err(e) = w.run(rx) {
                tracing::error!(error = %e, "the metadata store failed: nothing more is accepted");
                ended_tx.send_replace(Some(e.to_string()));
            }
        })?;
        let engine = Engine { jobs, stale: Arc::new(watch::channel(None).0), ended };
        Ok((engine, Writer { thread }))
    }

    /// Makes a command durable and applies it.
    pub async fn submit(&self, who: &str, key: Option<String>, op: Op) -> Result<Applied, Reject> {
        if let Some(why) = self.stale() {
            return Err(Reject::new(
                503,
                "state_older",
                why,
                "put the newest state back (docs/RUNBOOK.md, QuarryMdmStale)",
            ));
        }
        let (reply, answer) = oneshot::channel();
        let command = Command { at_ms: unix_ms(), who: who.into(), key, op };
        let gone = || {
            Reject::new(
                503,
                "no_mdm",
                "there is no MDM that takes changes: this one cannot write its state any more",
                "start it again; its log says why it ended",
            )
        };
        self.jobs.send(Message::Run(Job { command, reply })).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Stops all changes: the cluster knows a newer state than this one.
    pub fn set_stale(&self, why: String) {
        if self.stale().is_none() {
            tracing::error!(
                why,
                "this MDM's state is older than the cluster's: nothing is changed any more"
            );
            self.stale.send_replace(Some(why));
        }
    }

    /// Why nothing may be changed, if so.
    pub fn stale(&self) -> Option<String> {
        self.stale.borrow().clone()
    }

    /// Ends the writer after what is queued; later commands are refused.
    pub async fn stop(&self) {
        // An error means that it has ended already.
        self.jobs.send(Message::Stop).await.ok();
    }

    /// Resolves when the store has failed.
    pub async fn failed(&self) -> String {
        let mut rx = self.ended.clone();
        let failure = match rx.wait_for(|e| e.is_some()).await {
            Ok(e) => e.clone(),
            Err(_) => None,
        };
        match failure {
            Some(e) => e,
            // The writer ended in order.
            None => std::future::pending().await,
        }
    }
}

struct WriterState {
    store: Box<dyn MetaStore>,
    state: SharedState,
    hub: Arc<Hub>,
    last_snapshot: u64,
    commands: Family<Counter>,
    refused: Counter,
    commit: Arc<Histo>,
}

impl WriterState {
    fn run(mut self, mut rx: mpsc::Receiver<Message>) -> Result<(), StoreError> {
        self.last_snapshot = self.state.read().index.0;
        let mut stop = false;
        while !stop {
            let Some(Message::Run(first)) = rx.blocking_recv() else { break };
            let mut group = vec![first];
            while group.len() < GROUP && !stop {
                match rx.try_recv() {
                    Ok(Message::Run(j)) => group.push(j),
                    Ok(Message::Stop) => stop = true,
                    Err(_) => break,
                }
            }
            self.group(group)?;
            if self.state.read().index.0 >= self.last_snapshot + SNAPSHOT_EVERY {
                self.snapshot()?;
            }
        }
        self.snapshot()
    }

    fn group(&mut self, group: Vec<Job>) -> Result<(), StoreError> {
        let begin = Instant::now();
        let first = self.state.read().index.0 + 1;
        let mut entries = Vec::with_capacity(group.len());
        for (i, j) in group.iter().enumerate() {
            let bytes = serde_json::to_vec(&j.command)
                .map_err(|e| StoreError::State(format!("a command cannot be written: {e}")))?;
            entries.push((first + i as u64, bytes));
        }
        self.store.append(&entries)?;
        self.commit.record(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        for (i, job) in group.into_iter().enumerate() {
            self.commands.with(&[job.command.op.name()]).inc();
            let result = self.apply_one(ConfigIndex(first + i as u64), &job.command);
            if result.is_err() {
                self.refused.inc();
            }
            // The asker may have gone; the command is done all the same.
            job.reply.send(result).ok();
        }
        Ok(())
    }

    /// Applies and publishes under the hub's lock, so that every session sees every change once and in order.
    fn apply_one(&self, index: ConfigIndex, command: &Command) -> Result<Applied, Reject> {
        let mut hub = self.hub.lock();
        let result = {
            let mut s = self.state.0.write().unwrap_or_else(PoisonError::into_inner);
            s.apply(index, command)
        };
        let changes = result.as_ref().map(|a| a.changes.clone()).unwrap_or_default();
        hub.publish(index, changes, &self.state.read());
        result
    }

    fn snapshot(&mut self) -> Result<(), StoreError> {
        let (index, bytes) = {
            let s = self.state.read();
            (s.index.0, serde_json::to_vec(&*s))
        };
        if index == self.last_snapshot {
            return Ok(());
        }
        let bytes =
            bytes.map_err(|e| StoreError::State(format!("the state cannot be written: {e}")))?;
        self.store.snapshot(index, &bytes)?;
        self.last_snapshot = index;
        Ok(())
    }
}
