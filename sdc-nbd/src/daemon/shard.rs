//! The data thread: one reactor for NBD clients and data servers, with the engine in between.
//!
//! A turn: take what happened, feed it to sessions and engine, perform the engine's actions, answer
//! clients, arm receives; everything queued goes to the kernel with the next turn. Nothing here
//! blocks, logs per I/O, or takes a lock.

use super::error::SdcError;
use super::exports::{Exports, Follow};
use super::links::Links;
use super::mail::{
    DeviceWish, FromShard, ShardHandle, ToShard, WantedDevice, FROM_SHARD, TO_SHARD,
};
use super::meters::{EngineMeters, Meters};
use super::sessions::{InFlight, NbdConn};
use super::settings::Config;
use crate::engine::{Action, Engine, EngineConfig, EngineStats, Event, Limits, MappedVolume, Note};
use bytes::Bytes;
use quarry_base::{Nanos, VolumeId};
use quarry_control::Attachment;
use quarry_nbd_proto::SessionEvent;
use quarry_ring::{Event as RingEvent, Reactor, RingConfig};
use quarry_wire::Frame;
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long requests in flight may take when the daemon stops.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long the last answers may take to leave.
const FLUSH_GRACE: Duration = Duration::from_secs(1);
/// How often the engine's counters reach the metrics.
const STATS_EVERY: Duration = Duration::from_millis(100);
/// Wait before a full mailbox is tried again.
const MAIL_RETRY: Duration = Duration::from_millis(50);

/// What a connection's or listener's token means: kind in the top byte, number below.
pub struct Token;
/// Kinds of token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tag {
    Link = 1,
    Nbd = 2,
    Listener = 3,
}
impl Token {
    pub const fn make(tag: Tag, id: u64) -> u64 {
        ((tag as u64) << 56) | id
    }
    fn split(token: u64) -> (Option<Tag>, u64) {
        let tag = match token >> 56 {
            1 => Some(Tag::Link),
            2 => Some(Tag::Nbd),
            3 => Some(Tag::Listener),
            _ => None,
        };
        (tag, token & ((1 << 56) - 1))
    }
}

/// The data thread's state.
pub struct Shard {
    pub(super) reactor: Reactor,
    host: String,
    pub(super) engine: Option<Engine>,
    pub(super) links: Links,
    pub(super) exports: Exports,
    pub(super) sessions: HashMap<u64, NbdConn>,
    pub(super) next_session: u64,
    pub(super) in_flight: Slab<InFlight>,
    pub(super) touched: Vec<u64>,
    pub(super) starved: Vec<u64>,
    /// Connections that are to end when they have finished.
    pub(super) winding: Vec<u64>,
    pub(super) actions: Vec<Action>,
    pub(super) session_events: Vec<SessionEvent>,
    pub(super) output: Vec<Bytes>,
    frames: Vec<Frame>,
    pub(super) meters: Meters,
    pub(super) handles: EngineMeters,
    counted: EngineStats,
    stats_due: Option<Nanos>,
    rx: mpsc::Receiver<ToShard>,
    tx: mpsc::Sender<FromShard>,
    outbox: VecDeque<FromShard>,
    reported: Option<Vec<Attachment>>,
    /// A view was taken: the MDM is to hear what is open here, changed or not.
    report_anyway: bool,
    /// A first view was taken, and the control thread knows what devices are wanted under it.
    devices_told: bool,
    /// Kernel devices asked for.
    wishes: HashMap<VolumeId, WantedDevice>,
    applied: Arc<AtomicU64>,
    pub(super) fenced: Option<&'static str>,
    /// When stopping ends at the latest.
    pub(super) stopping: Option<Nanos>,
    /// All is answered; the answers may take until then to leave.
    leaving: Option<Nanos>,
}

/// Starts the data thread.
pub fn start(config: &Config, host: String, meters: Meters) -> Result<ShardHandle, SdcError> {
    let (tx, shard_rx) = mpsc::channel(TO_SHARD);
    let (shard_tx, rx) = mpsc::channel(FROM_SHARD);
    let applied = Arc::new(AtomicU64::new(0));
    let (ready_tx, ready) = std::sync::mpsc::sync_channel(1);
    let (config, seen) = (config.clone(), Arc::clone(&applied));
    let body = move || {
        if let Some(Err(error)) = config.shard_core.map(quarry_ring::pin_current_thread) {
            tracing::warn!(%error, "the data thread is not pinned");
        }
        let reactor = match Reactor::new(RingConfig::default()) {
            Ok(r) => r,
            Err(e) => {
                // Whoever starts the thread waits for exactly this.
                ready_tx.send(Err(e)).ok();
                return Ok(());
            }
        };
        tracing::info!(ring = %reactor.probe(), "data thread");
        let mut shard = Shard::new(reactor, &config, host, meters, shard_rx, shard_tx, seen);
        ready_tx.send(Ok(shard.reactor.waker())).ok();
        shard.run()
    };
    let thread =
        std::thread::Builder::new().name("sdc-data".into()).spawn(body).map_err(|source| {
            SdcError::System { what: "cannot start the data thread".into(), source }
        })?;
    match ready.recv() {
        Ok(Ok(waker)) => Ok(ShardHandle { tx, rx, waker, applied, thread }),
        Ok(Err(e)) => Err(e.into()),
        Err(_) => Err(SdcError::Shard("it did not start".into())),
    }
}

impl Shard {
    pub(super) fn new(
        reactor: Reactor,
        config: &Config,
        host: String,
        meters: Meters,
        rx: mpsc::Receiver<ToShard>,
        tx: mpsc::Sender<FromShard>,
        applied: Arc<AtomicU64>,
    ) -> Shard {
        Shard {
            reactor,
            host,
            engine: None,
            links: Links::new(config.no_unix),
            exports: Exports::new(config.socket_dir.clone(), meters.clone()),
            sessions: HashMap::new(),
            next_session: 0,
            in_flight: Slab::new(),
            touched: Vec::new(),
            starved: Vec::new(),
            winding: Vec::new(),
            actions: Vec::new(),
            session_events: Vec::new(),
            output: Vec::new(),
            frames: Vec::new(),
            handles: meters.engine_handles(),
            meters,
            counted: EngineStats::default(),
            stats_due: None,
            rx,
            tx,
            outbox: VecDeque::new(),
            reported: None,
            report_anyway: false,
            devices_told: false,
            wishes: HashMap::new(),
            applied,
            fenced: None,
            stopping: None,
            leaving: None,
        }
    }

    fn run(&mut self) -> Result<(), SdcError> {
        let mut events = Vec::new();
        loop {
            let until = self.deadline();
            let now = self.turn(until, &mut events)?;
            if self.finished(now) {
                return match self.fenced {
                    Some(why) => Err(SdcError::Fenced(why)),
                    None => Ok(()),
                };
            }
        }
    }

    /// One turn, which waits for something to do until then; when it ended.
    pub(super) fn turn(
        &mut self,
        until: Option<Nanos>,
        events: &mut Vec<RingEvent>,
    ) -> Result<Nanos, SdcError> {
        self.reactor.turn(until, events)?;
        let now = self.reactor.now();
        for e in events.drain(..) {
            self.event(now, e);
        }
        for target in self.links.overdue(&mut self.reactor, now) {
            self.tell(now, Event::DialFailed { target });
        }
        self.work(now);
        self.housekeeping(now);
        Ok(now)
    }

    fn deadline(&self) -> Option<Nanos> {
        let engine = self.engine.as_ref().and_then(Engine::next_deadline);
        let mail = (!self.outbox.is_empty()).then(|| self.reactor.now() + MAIL_RETRY);
        let stop = self.leaving.or(self.stopping);
        [engine, self.links.deadline(), self.exports.deadline(), self.stats_due, mail, stop]
            .into_iter()
            .flatten()
            .min()
    }

    /// Gives the engine an event.
    fn tell(&mut self, now: Nanos, e: Event) {
        if let Some(engine) = &mut self.engine {
            engine.step(now, e, &mut self.actions);
        }
    }

    fn event(&mut self, now: Nanos, e: RingEvent) {
        match e {
            RingEvent::Received { token, buf, n, .. } => match Token::split(token) {
                (Some(Tag::Nbd), id) => self.nbd_received(now, id, buf, n),
                (Some(Tag::Link), id) => {
                    let mut frames = std::mem::take(&mut self.frames);
                    let read = self.links.received(&mut self.reactor, id, buf, n, &mut frames);
                    for frame in frames.drain(..) {
                        self.tell(now, Event::Frame { link: id, frame });
                    }
                    self.frames = frames;
                    if let Err(error) = read {
                        tracing::warn!(link = id, %error, "a data server's stream is broken");
                        self.tell(now, Event::LinkDown { link: id });
                    }
                }
                _ => {}
            },
            RingEvent::Accepted { token, conn, .. } => {
                let (_, id) = Token::split(token);
                self.accept(VolumeId(id as u32), conn);
            }
            RingEvent::Connected { token, .. } => {
                let (_, id) = Token::split(token);
                if let Some(target) = self.links.connected(&mut self.reactor, id) {
                    self.tell(now, Event::LinkUp { link: id, target });
                }
            }
            RingEvent::Closed { token, .. } => match Token::split(token) {
                (Some(Tag::Nbd), id) => self.end_session(now, id),
                (Some(Tag::Link), id) => match self.links.closed(&mut self.reactor, id) {
                    (Some(target), _) => self.tell(now, Event::DialFailed { target }),
                    (None, true) => self.tell(now, Event::LinkDown { link: id }),
                    (None, false) => {}
                },
                _ => {}
            },
            RingEvent::Drained { token, .. } => {
                if let (Some(Tag::Nbd), id) = Token::split(token) {
                    self.touch(id);
                }
            }
            RingEvent::Woken => self.take_mail(now),
            _ => {}
        }
    }

    fn take_mail(&mut self, now: Nanos) {
        while let Ok(m) = self.rx.try_recv() {
            match m {
                ToShard::Registered { cluster, sdc, instance } => {
                    let host = self.host.clone();
                    self.engine.get_or_insert_with(|| {
                        Engine::new(EngineConfig { cluster, host, limits: Limits::default() })
                    });
                    self.tell(now, Event::Registered { sdc, instance });
                }
                ToShard::View(view) => {
                    self.report_anyway = true;
                    self.tell(now, Event::View(*view));
                }
                ToShard::Changes { index, changes } => {
                    self.tell(now, Event::Changes { index, changes })
                }
                ToShard::Adopt { volume, fd } => self.adopt(volume, fd),
                ToShard::Device { volume, state } => {
                    self.exports.set_device(volume, state);
                    // Its connection may have broken before this was told.
                    if !self.has_kernel_session(volume) {
                        self.device_lost(volume);
                    }
                }
                ToShard::Calm { volume, answer } => {
                    // Whoever asked may have gone on without it.
                    answer.try_send(self.is_calm(now, volume)).ok();
                }
                ToShard::Stop => self.stop(now),
            }
        }
    }

    fn stop(&mut self, now: Nanos) {
        if self.stopping.is_none() {
            self.stopping = Some(now + STOP_GRACE);
            self.exports.stop(&mut self.reactor);
            let all = self.sessions.keys().copied().collect();
            self.wind_down(all);
        }
    }

    /// Performs the engine's actions and serves the sessions they touch, until nothing is left to do.
    fn work(&mut self, now: Nanos) {
        loop {
            if let Some(e) = &mut self.engine {
                e.flush(now, &mut self.actions);
            }
            if !self.starved.is_empty() {
                self.feed_starved();
            }
            if self.actions.is_empty() && self.touched.is_empty() {
                return;
            }
            let mut actions = std::mem::take(&mut self.actions);
            for a in actions.drain(..) {
                self.perform(now, a);
            }
            if self.actions.is_empty() {
                self.actions = actions;
            }
            let mut touched = std::mem::take(&mut self.touched);
            for id in touched.drain(..) {
                self.service(now, id);
            }
            if self.touched.is_empty() {
                self.touched = touched;
            }
        }
    }

    fn perform(&mut self, now: Nanos, a: Action) {
        match a {
            Action::Send { link, frame } => self.links.send(&mut self.reactor, link, frame),
            Action::Done { client, handle, result } => self.answer(now, client, handle, result),
            Action::Dial { target, endpoint, same_host } => {
                if !self.links.dial(&mut self.reactor, target, &endpoint, same_host) {
                    self.tell(now, Event::DialFailed { target });
                }
            }
            Action::Close { link } => self.links.close(&mut self.reactor, link),
            Action::VolumeChanged { volume, state } => self.volume_changed(volume, state),
            Action::Unreachable { pg, device } => {
                self.outbox.push_back(FromShard::Unreachable { pg, device })
            }
            Action::Note(n) => self.note(n),
        }
    }

    fn volume_changed(&mut self, id: VolumeId, state: Option<MappedVolume>) {
        if self.stopping.is_some() {
            return;
        }
        self.wish(id, state.as_ref());
        match self.exports.set(&mut self.reactor, id, state) {
            Follow::Nothing => {}
            Follow::Resize(size) => self.resize_sessions(id, size),
            Follow::End => {
                let ids = self.sessions_of(id);
                self.wind_down(ids);
            }
        }
    }

    /// Asks for a kernel device, another size of it, or its end.
    fn wish(&mut self, volume: VolumeId, state: Option<&MappedVolume>) {
        let wanted = state.filter(|v| v.device).map(|v| WantedDevice {
            name: v.name.clone(),
            since: v.since,
            size_bytes: v.size_bytes,
            read_only: v.read_only,
        });
        if self.wishes.get(&volume) == wanted.as_ref() {
            return;
        }
        match &wanted {
            Some(w) => drop(self.wishes.insert(volume, w.clone())),
            None => drop(self.wishes.remove(&volume)),
        }
        self.outbox.push_back(FromShard::Device(DeviceWish { volume, wanted }));
    }

    /// The connection of a kernel device is gone: another is asked for, unless the device is to go
    /// anyway or is only being attached.
    pub(super) fn device_lost(&mut self, volume: VolumeId) {
        if self.wishes.contains_key(&volume) && self.exports.is_attached(volume) {
            self.outbox.push_back(FromShard::DeviceLost(volume));
        }
    }

    fn note(&mut self, n: Note) {
        match n {
            Note::Fenced { why } => {
                tracing::error!(why, "fenced: this client serves nothing any more");
                self.fenced = Some(why);
                self.outbox.push_back(FromShard::Fenced);
                let now = self.reactor.now();
                self.stop(now);
            }
            Note::LinkReady { target, link } => {
                tracing::info!(sds = %target.sds, shard = target.shard, link, "data server connected");
            }
            Note::LinkLost { target, link, why } => {
                tracing::warn!(sds = %target.sds, shard = target.shard, link, why, "data server lost; requests wait");
            }
            Note::HelloRefused { target, why } => {
                tracing::warn!(sds = %target.sds, shard = target.shard, why, "not accepted by a data server");
            }
            Note::StaleRequest { pg, id } => {
                tracing::error!(%pg, %id, "a data server calls an unanswered request old: a bug; the request failed");
            }
            Note::Refused { pg, id } => {
                tracing::error!(%pg, %id, "a data server finds a request malformed: a bug; the request failed");
            }
            Note::FellBack { volume, pg } => {
                tracing::error!(%volume, %pg, "the hosts of all copies booted (ack = cached): answered writes that were not flushed may be gone; the flush failed");
            }
            Note::BadData { target } => {
                tracing::warn!(sds = %target.sds, "data arrived damaged; asked for again");
            }
        }
    }

    /// Once a turn, after the work.
    fn housekeeping(&mut self, now: Nanos) {
        self.check_winding();
        for id in self.exports.due(&mut self.reactor) {
            for s in self.old_sessions_of(id) {
                self.end_session(now, s);
            }
            self.exports.due(&mut self.reactor);
        }
        self.count(now);
        self.report();
        while let Some(m) = self.outbox.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(m)) = self.tx.try_send(m) {
                self.outbox.push_front(m);
                return;
            }
        }
    }

    fn count(&mut self, now: Nanos) {
        let Some(e) = &self.engine else { return };
        self.applied.store(e.view_index().0, Relaxed);
        if *e.stats() == self.counted {
            return;
        }
        match self.stats_due {
            None => self.stats_due = Some(now + STATS_EVERY),
            Some(at) if at <= now => {
                self.meters.engine(&self.handles, e.stats(), &self.counted);
                self.meters.links.set_u64(e.links_up() as u64);
                self.counted = *e.stats();
                self.stats_due = None;
            }
            Some(_) => {}
        }
    }

    /// Tells what is open here when that changed.
    fn report(&mut self) {
        if !self.exports.changed && !self.report_anyway {
            return;
        }
        if self.engine.is_none() || self.stopping.is_some() {
            return;
        }
        let list = self.exports.attachments();
        if self.report_anyway || self.reported.as_ref() != Some(&list) {
            self.outbox.retain(|m| !matches!(m, FromShard::Attachments(_)));
            self.outbox.push_back(FromShard::Attachments(list.clone()));
            self.reported = Some(list);
        }
        if self.report_anyway && !std::mem::replace(&mut self.devices_told, true) {
            // Behind the wishes that came of the view.
            self.outbox.push_back(FromShard::DevicesKnown);
        }
        self.exports.changed = false;
        self.report_anyway = false;
    }

    /// Whether stopping is through: all answered and sent, or out of time.
    fn finished(&mut self, now: Nanos) -> bool {
        let Some(deadline) = self.stopping else { return false };
        if self.leaving.is_none() && (self.sessions.is_empty() || deadline <= now) {
            let late: Vec<u64> = self.sessions.keys().copied().collect();
            if !late.is_empty() {
                tracing::warn!(
                    connections = late.len(),
                    "clients are cut off with requests in flight"
                );
            }
            late.into_iter().for_each(|id| self.end_session(now, id));
            self.leaving = Some(now + FLUSH_GRACE);
        }
        let Some(at) = self.leaving else { return false };
        // Only links to servers are left: every client's connection has sent its last answer.
        at <= now || self.reactor.stats().conns <= self.links.len() as u64
    }
}
