//! The control thread: the session with the MDM, heartbeats, metrics, signals. Tokio, one thread.
//!
//! It only carries messages: the shard decides and answers. While no MDM is reachable the shard serves on.

use crate::error::SdsError;
use crate::mail::{FromShard, ShardHandle, ToShard};
use crate::settings::Config;
use crate::state::{from_hex, StateFile};
use quarry_base::{ConfigIndex, SdsId, StartNo};
use quarry_control::{
    host_identity, DeviceReport, FromNode, Hello, Proposal, RegisteredDevice, Role, Session,
    SessionConfig, SessionEvent, Standing, ToNode,
};
use quarry_metrics::systemd::{notify, State};
use quarry_ring::Waker;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// Heartbeats before the MDM says how often.
const FIRST_HEARTBEAT: Duration = Duration::from_millis(500);
/// Fastest and slowest heartbeat taken from the MDM, milliseconds.
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 50..=10_000;
/// Longest wait for the shard's report at a registration.
const REPORT: Duration = Duration::from_secs(2);
/// From SIGTERM to the end at the latest.
const END: Duration = Duration::from_millis(9_500);
/// How long the shard may leave a full mailbox untouched.
const STUCK: Duration = Duration::from_secs(8);

/// What a registration tells, and what is asked of the shard for it.
struct Greeter {
    hello: Hello,
    /// Start number of the first registration.
    start: Arc<Mutex<Option<u64>>>,
    cluster: Arc<Mutex<Option<String>>>,
    tx: mpsc::Sender<ToShard>,
    waker: Waker,
    /// Used when the shard does not answer in time; at first what it found at its start.
    last: Mutex<Vec<DeviceReport>>,
}

fn get<T: Clone>(m: &Mutex<T>) -> T {
    m.lock().unwrap_or_else(|e| e.into_inner()).clone()
}

fn set<T>(m: &Mutex<T>, v: T) {
    *m.lock().unwrap_or_else(|e| e.into_inner()) = v;
}

impl Greeter {
    fn greet(&self) -> Hello {
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        if self.tx.try_send(ToShard::Report(tx)).is_ok() {
            self.waker.wake();
            match rx.recv_timeout(REPORT) {
                Ok(devices) => set(&self.last, devices),
                Err(_) => tracing::warn!("the shard is slow: registering with its last report"),
            }
        }
        let mut hello = self.hello.clone();
        hello.resume = get(&self.start);
        hello.cluster = get(&self.cluster);
        hello.devices = get(&self.last);
        hello
    }
}

/// The control thread's state.
pub struct Control {
    shard: ShardHandle,
    session: Session,
    to_mdm: mpsc::Sender<FromNode>,
    state: StateFile,
    /// What `state` says is not in its file yet.
    unsaved: bool,
    start: Arc<Mutex<Option<u64>>>,
    cluster: Arc<Mutex<Option<String>>>,
    heartbeat: Interval,
    up: bool,
    /// Index up to which the shard was told everything in this session; before its snapshot, the end of all.
    told: ConfigIndex,
    /// A hand-over that is not answered.
    hand_over: Option<u64>,
    standing: Standing,
    /// SIGTERM came; the end is then at the latest.
    ending: Option<Instant>,
    /// The MDM did not: why.
    refused: Option<SdsError>,
}

/// What was prepared before.
pub struct Parts {
    pub config: Config,
    pub state: StateFile,
    pub shard: ShardHandle,
    pub metrics_at: SocketAddr,
    /// Shared with the health check.
    pub standing: Standing,
}

fn every(period: Duration) -> Interval {
    let mut i = tokio::time::interval(period);
    i.set_missed_tick_behavior(MissedTickBehavior::Delay);
    i
}

impl Control {
    /// Starts the session.
    pub fn new(parts: Parts) -> Control {
        let Parts { config, state, mut shard, metrics_at, standing } = parts;
        let (host, boot_id) = host_identity();
        let start = Arc::new(Mutex::new(None));
        let cluster = Arc::new(Mutex::new(state.state.cluster.clone()));
        let node = &config.node;
        let hello = Hello {
            role: Role::Sds,
            name: node.name.clone(),
            addresses: node.addresses.clone(),
            capabilities: node.capabilities.clone(),
            secret: config.secret.clone(),
            cluster: None,
            host,
            boot_id,
            pid: std::process::id(),
            release: quarry_metrics::version::RELEASE.to_string(),
            metrics: Some(format!("http://{metrics_at}/metrics")),
            resume: None,
            endpoints: vec![shard.endpoint.clone()],
            devices: Vec::new(),
            seen: ConfigIndex::ZERO,
        };
        let greeter = Greeter {
            hello,
            start: Arc::clone(&start),
            cluster: Arc::clone(&cluster),
            tx: shard.tx.clone(),
            waker: shard.waker.clone(),
            last: Mutex::new(std::mem::take(&mut shard.devices)),
        };
        let place =
            SessionConfig { mdms: node.mdm.clone(), data_dir: Some(config.data_dir.clone()) };
        let session = Session::start(place, move || greeter.greet());
        Control {
            to_mdm: session.sender(),
            session,
            shard,
            state,
            unsaved: false,
            start,
            cluster,
            heartbeat: every(FIRST_HEARTBEAT),
            up: false,
            told: ConfigIndex(u64::MAX),
            hand_over: None,
            standing,
            ending: None,
            refused: None,
        }
    }

    /// Runs until the shard has ended or something final happens.
    pub async fn run(mut self) -> Result<(), SdsError> {
        let system = |source| SdsError::System { what: "cannot listen for signals", source };
        let mut term = signal(SignalKind::terminate()).map_err(system)?;
        let mut int = signal(SignalKind::interrupt()).map_err(system)?;
        loop {
            let end = self.ending.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                e = self.session.events.recv(), if self.refused.is_none() => match e {
                    Some(e) => self.session_event(e).await?,
                    None => return Err(SdsError::Shard("the MDM session is gone".to_string())),
                },
                m = self.shard.rx.recv() => match m {
                    Some(m) => self.relay(m),
                    None => {
                        let refused = self.refused.take();
                        let ended = self.shard_ended();
                        return refused.map_or(ended, Err);
                    }
                },
                _ = self.heartbeat.tick() => {
                    if self.unsaved {
                        self.save_state();
                    }
                    if self.up {
                        // Full: the shard is behind, and a missing heartbeat says so.
                        if self.shard.tx.try_send(ToShard::Heartbeat).is_ok() {
                            self.shard.waker.wake();
                        }
                    }
                }
                _ = term.recv() => self.end().await?,
                _ = int.recv() => self.end().await?,
                () = tokio::time::sleep_until(end), if self.ending.is_some() => {
                    tracing::warn!("stopping took too long: ending now; recovery replays the log");
                    return self.refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn shard_ended(self) -> Result<(), SdsError> {
        match self.shard.thread.join() {
            Ok(result) => result,
            Err(_) => Err(SdsError::Shard(
                "its thread stopped on a broken invariant (see above)".to_string(),
            )),
        }
    }

    async fn end(&mut self) -> Result<(), SdsError> {
        if self.ending.is_none() {
            tracing::info!("stopping: handing roles over");
            notify(State::Stopping);
            self.ending = Some(Instant::now() + END);
            self.tell(ToShard::HandOver).await?;
        }
        Ok(())
    }

    /// Gives the shard a message. An error: it has not taken any for a long time.
    async fn tell(&self, m: ToShard) -> Result<(), SdsError> {
        match tokio::time::timeout(STUCK, self.shard.tx.send(m)).await {
            Ok(Ok(())) => self.shard.waker.wake(),
            // Gone: its end is noticed by the other channel.
            Ok(Err(_)) => {}
            Err(_) => {
                return Err(SdsError::Shard(format!(
                    "it has taken no message for {} s; a disk that hangs?",
                    STUCK.as_secs()
                )))
            }
        }
        Ok(())
    }

    /// Saves what is remembered; a save that fails is tried again with every heartbeat.
    fn save_state(&mut self) {
        let done = self.state.save();
        if let (Err(error), false) = (&done, self.unsaved) {
            tracing::error!(%error, "cannot save the state file; it is tried again");
        }
        self.unsaved = done.is_err();
    }

    fn relay(&mut self, m: FromShard) {
        let m = match m {
            FromShard::Send(m) => *m,
            FromShard::Propose { request, proposal } => {
                if proposal == Proposal::HandOver {
                    self.hand_over = Some(request);
                }
                FromNode::Propose { request, proposal }
            }
            FromShard::Formatted(path) => {
                self.state.state.blank.remove(&path);
                return self.save_state();
            }
            FromShard::Failed { uuid, device } => {
                self.state.state.failed.insert(uuid, device);
                return self.save_state();
            }
        };
        // Full or no session: everything is reported again with the next heartbeat or registration.
        if self.to_mdm.try_send(m).is_err() {
            tracing::debug!("a message to the MDM is dropped");
        }
    }

    async fn session_event(&mut self, e: SessionEvent) -> Result<(), SdsError> {
        match e {
            SessionEvent::Up { mdm } => self.standing.connected(&mdm),
            SessionEvent::Down { reason, refused } => {
                self.standing.down(&reason, refused);
                self.up = false;
                self.told = ConfigIndex(u64::MAX);
                if let Some(request) = self.hand_over.take() {
                    let reason = "the session broke".to_string();
                    self.tell(ToShard::ProposalResult { request, accepted: false, reason }).await?;
                }
            }
            // It serves nobody yet: the shard ends in order, and takes its socket file with it.
            SessionEvent::Refused(e) if !self.standing.was_registered() => {
                self.refused = Some(e.into());
                self.end().await?;
            }
            SessionEvent::Refused(e) => return Err(e.into()),
            SessionEvent::Message(m) => self.message(m).await?,
        }
        Ok(())
    }

    async fn message(&mut self, m: ToNode) -> Result<(), SdsError> {
        match m {
            ToNode::Registered { cluster, sds, start, devices, heartbeat_ms, .. } => {
                let sds = sds.ok_or_else(|| {
                    SdsError::Shard("the MDM registered this server without an SDS id".to_string())
                })?;
                self.registered(cluster, sds, start, devices).await?;
                let ms = heartbeat_ms.clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end());
                self.heartbeat = every(Duration::from_millis(ms));
                self.up = true;
                self.standing.registered();
            }
            ToNode::Snapshot(view) => {
                self.told = view.index;
                self.tell(ToShard::View(Box::new(view))).await?;
            }
            ToNode::Changes { index, changes } => {
                self.told = index;
                self.tell(ToShard::Changes { index, changes }).await?;
            }
            ToNode::ProposalResult { request, accepted, reason } => {
                self.hand_over = self.hand_over.filter(|r| *r != request);
                self.tell(ToShard::ProposalResult { request, accepted, reason }).await?;
            }
            // Queued in order behind all changes: whatever came before this index is told.
            ToNode::HeartbeatAck { index } if index > self.told => {
                self.told = index;
                self.tell(ToShard::Changes { index, changes: Vec::new() }).await?;
            }
            // The others are for clients.
            ToNode::HeartbeatAck { .. } | ToNode::MappedHere { .. } | ToNode::WhoUses { .. } => {}
            // The session turns it into an event of its own.
            ToNode::Refused { .. } => {}
        }
        Ok(())
    }

    async fn registered(
        &mut self,
        cluster: String,
        sds: SdsId,
        start: u64,
        devices: Vec<RegisteredDevice>,
    ) -> Result<(), SdsError> {
        let id = from_hex(&cluster).ok_or_else(|| {
            SdsError::Shard(format!(
                "the MDM's cluster id '{cluster}' is not 32 hexadecimal digits"
            ))
        })?;
        let cluster_text = cluster.clone();
        if let Some(ours) = get(&self.cluster) {
            if from_hex(&ours) != Some(id) {
                return Err(SdsError::Cluster { found: cluster, ours });
            }
        } else {
            self.state.state.cluster = Some(cluster.clone());
            self.state.save()?;
            set(&self.cluster, Some(cluster));
        }
        tracing::info!(sds = sds.0, start, devices = devices.len(), "registered");
        set(&self.start, Some(start));
        let start = StartNo(start);
        self.tell(ToShard::Registered { cluster: id, cluster_text, sds, start, devices }).await
    }
}
