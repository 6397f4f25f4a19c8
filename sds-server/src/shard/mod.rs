//! The shard: one thread, one ring, the engine with its stores, all connections and devices.
//!
//! A turn: wait for events; hand each to the engine; send what that called for; flush the engine once; carry
//! its actions out; lend receive buffers again. Nothing here blocks, and nothing is logged per I/O.

mod actions;
mod control;
mod disks;
mod lately;
mod net;
mod report;

use crate::device::{self, Device};
use crate::disk::Disks;
use crate::error::SdsError;
use crate::links::{LinkId, Links};
use crate::mail::{FromShard, Started, ToShard};
use crate::metrics::{DeviceMetrics, SdsMetrics};
use crate::patience::patiently;
use crate::settings::Config;
use crate::state::{FailedDevice, StateFile};
use quarry_base::{DeviceId, Nanos, SdsId, StartNo};
use quarry_control::Proposal;
use quarry_replica::{Action, Engine, EngineConfig, Event};
use quarry_ring::{Event as RingEvent, Reactor, RingConfig, TimerHeap};
use quarry_wire::{Endpoint, Frame, SdsInfo};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::mpsc::SyncSender;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often levels are published for metrics.
const PUBLISH: Duration = Duration::from_millis(500);
/// Longest time for handing roles over.
const HAND_OVER: Duration = Duration::from_secs(3);
/// Longest time for destaging and the last checkpoint after it.
const FLUSH: Duration = Duration::from_secs(4);
/// Connections of a shard at most; more wait in the kernel.
const MAX_CONNECTIONS: usize = 4096;
/// Proposals waiting for the control thread; the oldest is dropped beyond it, the engine asks again.
const MAX_PROPOSALS: usize = 4096;
/// Mode of the data socket.
const SOCKET_MODE: u32 = 0o660;

/// What fires on the shard's own timers.
enum Timer {
    /// A connection took too long to come about.
    Dial(LinkId),
    /// One that came before the registration waited for it long enough.
    Held(LinkId),
}

/// How far the end has come.
enum Stage {
    Running,
    HandingOver { until: Nanos },
    Flushing { until: Nanos },
}

/// Everything the shard thread owns.
pub struct Shard {
    reactor: Reactor,
    engine: Engine,
    devices: Vec<Device>,
    /// Paths of devices that it goes on without.
    left_out: Vec<String>,
    by_id: HashMap<DeviceId, usize>,
    metrics: SdsMetrics,
    device_metrics: Vec<DeviceMetrics>,
    disks: Disks,
    links: Links,
    /// Accepted before registration: not read from yet.
    held: Vec<LinkId>,
    /// Where other servers listen.
    servers: BTreeMap<SdsId, SdsInfo>,
    host: String,
    registered: Option<(SdsId, StartNo)>,
    rx: mpsc::Receiver<ToShard>,
    tx: mpsc::Sender<FromShard>,
    proposals: VecDeque<(u64, Proposal)>,
    /// Devices, by identity, whose failure the control thread has still to keep.
    failures: Vec<(String, FailedDevice)>,
    timers: TimerHeap<Timer>,
    /// Events for the engine that arose here; told in the next turn.
    inbox: VecDeque<Event>,
    actions: Vec<Action>,
    /// Kept for its memory.
    frames: Vec<Frame>,
    /// Connections whose receive buffer came back in this turn.
    to_arm: Vec<LinkId>,
    /// Clients that do not take their answers.
    paused: Vec<LinkId>,
    publish_at: Nanos,
    reported: report::Reported,
    lately: lately::Lately,
    stage: Stage,
}

/// What the shard thread needs to begin.
pub struct Setup {
    pub config: Config,
    pub host: String,
    pub metrics: SdsMetrics,
    pub rx: mpsc::Receiver<ToShard>,
    pub tx: mpsc::Sender<FromShard>,
}

/// The shard thread: sets up, says so or why not, then runs until told to stop.
pub fn run(setup: Setup, started: SyncSender<Result<Started, SdsError>>) -> Result<(), SdsError> {
    let mut shard = match Shard::start(setup) {
        Ok((mut shard, mut up)) => match shard.recover() {
            Ok(()) => {
                up.devices = shard.device_reports();
                if started.send(Ok(up)).is_err() {
                    return Ok(());
                }
                shard
            }
            Err(e) => {
                started.send(Err(e)).ok();
                return Ok(());
            }
        },
        Err(e) => {
            // Only fails when nobody waits any more.
            started.send(Err(e)).ok();
            return Ok(());
        }
    };
    shard.work()
}

impl Shard {
    fn start(setup: Setup) -> Result<(Shard, Started), SdsError> {
        let Setup { config, host, metrics, rx, tx } = setup;
        if let Some(core) = config.shard_core {
            quarry_ring::pin_current_thread(core)
                .map_err(|why| SdsError::Setting(format!("--shard-core: {why}")))?;
        }
        let limits = RingConfig { max_conns: MAX_CONNECTIONS, ..RingConfig::default() };
        let mut reactor = Reactor::new(limits)?;
        let mut state = StateFile::load(&config.data_dir)?;
        let (mut devices, left_out) =
            device::open_all(&mut reactor, &config.devices, config.device_bytes, &mut state)?;
        devices.iter_mut().for_each(|d| {
            d.set_scrub_rate(config.scrub_rate);
            d.set_checksum_cache(config.checksum_cache);
        });
        let endpoint = listen(&mut reactor, &config)?;
        let started = Started {
            waker: reactor.waker(),
            endpoint,
            ring: reactor.probe().to_string(),
            devices: Vec::new(),
        };
        let device_metrics =
            devices.iter().map(|d| metrics.device(&d.path.to_string_lossy())).collect();
        let engine = Engine::new(EngineConfig {
            cluster: state.state.cluster.clone().unwrap_or_default(),
            limits: Default::default(),
        });
        let publish_at = reactor.now();
        let shard = Shard {
            reactor,
            engine,
            devices,
            left_out: left_out.iter().map(|l| l.path.display().to_string()).collect(),
            by_id: HashMap::new(),
            metrics,
            device_metrics,
            disks: Disks::default(),
            links: Links::default(),
            held: Vec::new(),
            servers: BTreeMap::new(),
            host,
            registered: None,
            rx,
            tx,
            proposals: VecDeque::new(),
            failures: Vec::new(),
            timers: TimerHeap::new(),
            inbox: VecDeque::new(),
            actions: Vec::new(),
            frames: Vec::new(),
            to_arm: Vec::new(),
            paused: Vec::new(),
            publish_at,
            reported: report::Reported::default(),
            lately: lately::Lately::default(),
            stage: Stage::Running,
        };
        Ok((shard, started))
    }

    /// Recovers all formatted devices: the first registration says what each group has (R11, R13).
    fn recover(&mut self) -> Result<(), SdsError> {
        let mut events = Vec::new();
        // Its first call is the start of the process for R18.
        self.engine.flush(quarry_ring::now_boottime(), &mut self.actions);
        self.drive_devices();
        while self.devices.iter().any(Device::is_opening) {
            let until = device::next_deadline(&self.devices);
            self.reactor.turn(until, &mut events)?;
            let now = self.reactor.now();
            for e in events.drain(..) {
                self.ring_event(now, e);
            }
            self.drive_devices();
        }
        Ok(())
    }

    fn work(&mut self) -> Result<(), SdsError> {
        let mut events = Vec::new();
        loop {
            self.drive_devices();
            self.reactor.turn(Some(self.deadline()), &mut events)?;
            // Read after the completions were taken: a lease is never counted from before its question came.
            let now = quarry_ring::now_boottime();
            self.disks.look(now);
            self.mail(now);
            while let Some(e) = self.inbox.pop_front() {
                self.engine.step(now, e, &mut self.actions);
            }
            for e in events.drain(..) {
                self.ring_event(now, e);
            }
            self.due_timers(now);
            if self.registered.is_some() {
                self.first_things(now, &mut events);
                self.engine.flush(now, &mut self.actions);
            }
            self.carry_out();
            self.arm();
            self.publish_if_due(now);
            if self.ended(now)? {
                self.publish(now);
                return Ok(());
            }
        }
    }

    /// What somebody else waits for, before the rest of the turn: answers, reports and records go out and
    /// what was appended goes to the log. Where that is in memory it is there at once, and is told at once.
    fn first_things(&mut self, now: Nanos, events: &mut Vec<RingEvent>) {
        self.send_ahead();
        self.engine.write_logs(now, &mut self.actions);
        if self.actions.is_empty() {
            return;
        }
        self.carry_out();
        self.reactor.finish_in_memory(events);
        if !events.is_empty() {
            let now = quarry_ring::now_boottime();
            events.drain(..).for_each(|e| self.ring_event(now, e));
        }
        self.send_ahead();
    }

    fn send_ahead(&mut self) {
        if !self.actions.is_empty() {
            self.carry_out();
            self.reactor.send_now();
        }
    }

    /// When the next turn has to end at the latest.
    fn deadline(&self) -> Nanos {
        if !self.inbox.is_empty() || !self.actions.is_empty() {
            return Nanos::ZERO;
        }
        let engine = self.registered.and_then(|_| self.engine.next_deadline());
        let stage = match self.stage {
            Stage::Running => None,
            Stage::HandingOver { until } | Stage::Flushing { until } => Some(until),
        };
        let (timer, disks) = (self.timers.next_deadline(), self.disks.next_look());
        [engine, timer, device::next_deadline(&self.devices), disks, stage]
            .into_iter()
            .flatten()
            .fold(self.publish_at, Nanos::min)
    }

    fn due_timers(&mut self, now: Nanos) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Dial(link) => self.dial_timeout(link),
                Timer::Held(link) if self.held.contains(&link) => self.cut(now, link),
                Timer::Held(_) => {}
            }
        }
    }

    /// Moves the end on; true when there is nothing more to do.
    fn ended(&mut self, now: Nanos) -> Result<bool, SdsError> {
        match self.stage {
            Stage::Running => {
                self.none_formatted().map_or(Ok(false), |why| Err(SdsError::NoDevice(why)))
            }
            Stage::HandingOver { until } if now >= until => {
                tracing::warn!("handing over took too long; the others will find out");
                self.begin_flush(now);
                Ok(false)
            }
            Stage::HandingOver { .. } => Ok(false),
            Stage::Flushing { until } => Ok(now >= until || self.is_flushed()),
        }
    }
}

/// Listens for data connections.
fn listen(reactor: &mut Reactor, config: &Config) -> Result<Endpoint, SdsError> {
    if let Some(path) = &config.socket {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)
                .map_err(|source| SdsError::File { path: dir.to_path_buf(), source })?;
        }
        patiently(|| reactor.listen_unix(path, SOCKET_MODE, 0))?;
    }
    let (_, bound) = patiently(|| reactor.listen_tcp(config.listen, 0))?;
    Ok(Endpoint { unix: config.socket.clone(), tcp: Some(config.reachable(bound)?) })
}
