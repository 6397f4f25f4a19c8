//! The control thread: session with the MDM, heartbeats, metrics, signals. Tokio, one thread.
//!
//! It carries messages; the data thread decides. While no MDM is reachable I/O goes on.

use super::cluster_id;
use super::devices::Devices;
use super::error::SdcError;
use super::mail::{FromShard, ShardHandle, ToShard};
use super::meters::Meters;
use super::owner::Owner;
use super::settings::Config;
use super::start::Start;
use super::usage::Usage;
use quarry_base::{ConfigIndex, Instance};
use quarry_control::{
    host_identity, FromNode, Hello, Role, Session, SessionConfig, SessionEvent, Standing, ToNode,
};
use quarry_metrics::systemd::{notify, State};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// Heartbeats before the MDM says how often.
const FIRST_HEARTBEAT: Duration = Duration::from_millis(500);
/// Fastest and slowest heartbeat taken from the MDM, milliseconds.
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 50..=10_000;
/// From SIGTERM to the end at the latest.
const END: Duration = Duration::from_millis(8_500);

/// What a registration repeats from earlier ones.
#[derive(Default)]
struct Known {
    /// Instance of the first registration; 0: none yet.
    instance: AtomicU64,
    cluster: Mutex<Option<String>>,
}

/// The control thread's state.
pub struct Control {
    config: Config,
    shard: ShardHandle,
    session: Session,
    to_mdm: mpsc::Sender<FromNode>,
    known: Arc<Known>,
    meters: Meters,
    devices: Devices,
    usage: Usage,
    heartbeat: Interval,
    start: Start,
    up: bool,
    /// Log index given to the data thread last.
    index: ConfigIndex,
    standing: Standing,
    ending: Option<Instant>,
}

fn every(period: Duration) -> Interval {
    let mut i = tokio::time::interval(period);
    i.set_missed_tick_behavior(MissedTickBehavior::Delay);
    i
}

impl Control {
    /// Starts the session with the MDM.
    pub fn new(
        config: Config,
        shard: ShardHandle,
        meters: Meters,
        metrics_at: SocketAddr,
        standing: Standing,
    ) -> Result<Control, SdcError> {
        let (host, boot_id) = host_identity();
        let known = Arc::new(Known::default());
        *known.cluster.lock().unwrap_or_else(|e| e.into_inner()) =
            cluster_id::read(&config.data_dir)?;
        let hello = Hello {
            role: Role::Sdc,
            name: config.node.name.clone(),
            addresses: config.node.addresses.clone(),
            capabilities: config.node.capabilities.clone(),
            secret: config.secret.clone(),
            cluster: None,
            host,
            boot_id,
            pid: std::process::id(),
            release: quarry_metrics::version::RELEASE.to_string(),
            metrics: Some(format!("http://{metrics_at}/metrics")),
            resume: None,
            endpoints: Vec::new(),
            devices: Vec::new(),
            seen: ConfigIndex::ZERO,
        };
        let seen = Arc::clone(&known);
        let greet = move || {
            let mut h = hello.clone();
            h.resume = Some(seen.instance.load(Relaxed)).filter(|i| *i != 0);
            h.cluster = seen.cluster.lock().unwrap_or_else(|e| e.into_inner()).clone();
            h
        };
        let place = SessionConfig {
            mdms: config.node.mdm.clone(),
            data_dir: Some(config.data_dir.clone()),
        };
        let session = Session::start(place, greet);
        Ok(Control {
            devices: Devices::new(shard.tx.clone(), shard.waker.clone(), &config.data_dir),
            usage: Usage::new(meters.clone()),
            start: Start::new(config.sdctab.clone(), Instant::now()),
            to_mdm: session.sender(),
            config,
            shard,
            session,
            known,
            meters,
            heartbeat: every(FIRST_HEARTBEAT),
            up: false,
            index: ConfigIndex::ZERO,
            standing,
            ending: None,
        })
    }

    /// Runs until the data thread has ended or something final happens.
    pub async fn run(mut self) -> Result<(), SdcError> {
        let system = |source| SdcError::System { what: "cannot listen for signals".into(), source };
        let mut term = signal(SignalKind::terminate()).map_err(system)?;
        let mut int = signal(SignalKind::interrupt()).map_err(system)?;
        loop {
            let end = self.ending.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                e = self.session.events.recv() => match e {
                    Some(e) => self.session_event(e).await?,
                    None => return Err(SdcError::Shard("the MDM session is gone".into())),
                },
                m = self.shard.rx.recv() => match m {
                    Some(m) => self.mail(m),
                    None => return self.shard_ended(),
                },
                _ = self.heartbeat.tick() => self.beat(),
                _ = term.recv() => self.end().await,
                _ = int.recv() => self.end().await,
                () = tokio::time::sleep_until(end), if self.ending.is_some() => {
                    tracing::warn!("stopping took too long: ending now");
                    return Ok(());
                }
            }
        }
    }

    fn shard_ended(self) -> Result<(), SdcError> {
        match self.shard.thread.join() {
            Ok(result) => result,
            Err(_) => Err(SdcError::Shard("it stopped on a broken invariant (see above)".into())),
        }
    }

    async fn end(&mut self) {
        if self.ending.is_none() {
            tracing::info!("stopping: requests in flight are finished");
            notify(State::Stopping);
            self.ending = Some(Instant::now() + END);
            self.tell(ToShard::Stop).await;
        }
    }

    async fn tell(&self, m: ToShard) {
        // Gone: its end is noticed by the other channel.
        if self.shard.tx.send(m).await.is_ok() {
            self.shard.waker.wake();
        }
    }

    fn mail(&mut self, m: FromShard) {
        match m {
            FromShard::Attachments(list) => {
                self.start.attachments(&list);
                self.to_mdm(FromNode::Attachments(list));
            }
            FromShard::Unreachable { pg, device } => {
                tracing::warn!(%pg, %device, "a primary is out of reach while another member is not");
                self.to_mdm(FromNode::Unreachable { pg, device });
            }
            FromShard::Device(wish) => self.devices.wish(wish),
            FromShard::DevicesKnown => self.devices.sweep(),
            FromShard::DeviceLost(volume) => {
                tracing::warn!(%volume, "the connection of a kernel device broke; connecting it again");
                self.devices.lost(volume);
            }
            FromShard::Fenced => {
                // The data thread answers what waits, then ends with the reason.
                self.ending.get_or_insert(Instant::now() + END);
            }
        }
    }

    fn to_mdm(&self, m: FromNode) {
        // Full, or no session: state is told again with the next view.
        if self.to_mdm.try_send(m).is_err() {
            tracing::debug!("a message to the MDM is dropped");
        }
    }

    fn beat(&mut self) {
        self.devices.retry(Instant::now());
        self.start.without_mdm(Instant::now());
        if !self.up {
            return;
        }
        self.usage.beat();
        self.start.due(Instant::now()).into_iter().for_each(|m| self.to_mdm(m));
        let applied = ConfigIndex(self.shard.applied.load(Relaxed));
        self.to_mdm(FromNode::Heartbeat {
            applied,
            confirmed: applied,
            pgs: Vec::new(),
            devices: Vec::new(),
            counters: self.meters.counters(),
        });
    }

    async fn session_event(&mut self, e: SessionEvent) -> Result<(), SdcError> {
        match e {
            SessionEvent::Up { mdm } => self.standing.connected(&mdm),
            SessionEvent::Down { reason, refused } => {
                self.standing.down(&reason, refused);
                self.up = false;
            }
            SessionEvent::Refused(e) => return Err(e.into()),
            SessionEvent::Message(m) => self.message(m).await?,
        }
        Ok(())
    }

    async fn message(&mut self, m: ToNode) -> Result<(), SdcError> {
        match m {
            ToNode::Registered { cluster, sdc, start, heartbeat_ms, .. } => {
                let sdc = sdc.ok_or(SdcError::NoId)?;
                self.keep_cluster(&cluster)?;
                let owner = Owner { cluster: cluster.clone(), sdc };
                self.devices.set_owner(owner.clone());
                self.usage.set_owner(owner);
                self.known.instance.compare_exchange(0, start, Relaxed, Relaxed).ok();
                tracing::info!(%sdc, instance = start, cluster, "registered");
                self.tell(ToShard::Registered { cluster, sdc, instance: Instance(start) }).await;
                let ms = heartbeat_ms.clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end());
                self.heartbeat = every(Duration::from_millis(ms));
                self.up = true;
                self.start.registered(Instant::now()).into_iter().for_each(|m| self.to_mdm(m));
                self.standing.registered();
            }
            ToNode::Snapshot(view) => {
                self.index = view.index;
                self.tell(ToShard::View(Box::new(view))).await;
            }
            ToNode::Changes { index, changes } => {
                self.index = self.index.max(index);
                self.tell(ToShard::Changes { index, changes }).await;
            }
            // Commands that change nothing here count as applied too.
            ToNode::HeartbeatAck { index } if index > self.index => {
                self.index = index;
                self.tell(ToShard::Changes { index, changes: Vec::new() }).await;
            }
            ToNode::WhoUses { request, volume } => {
                self.usage.answer(request, volume, self.to_mdm.clone());
            }
            ToNode::MappedHere { volume, result } => self.start.mapped(&volume, result),
            ToNode::HeartbeatAck { .. }
            | ToNode::Refused { .. }
            | ToNode::ProposalResult { .. } => {}
        }
        Ok(())
    }

    /// The first cluster met is kept; another one is refused.
    fn keep_cluster(&self, cluster: &str) -> Result<(), SdcError> {
        let mut known = self.known.cluster.lock().unwrap_or_else(|e| e.into_inner());
        match known.as_deref() {
            Some(own) if own == cluster => Ok(()),
            Some(own) => Err(SdcError::OtherCluster {
                dir: self.config.data_dir.clone(),
                own: own.to_string(),
                other: cluster.to_string(),
            }),
            None => {
                cluster_id::write(&self.config.data_dir, cluster)?;
                *known = Some(cluster.to_string());
                Ok(())
            }
        }
    }
}
