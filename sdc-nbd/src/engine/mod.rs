//! The volume engine: requests of NBD clients in, frames to primaries out. Sans-IO.
//!
//! A request is split at extents into parts; a part belongs to one placement group (PG) and is routed
//! to its primary. Whatever happens to servers, links and configurations, a part waits and is sent
//! again under the same id until a primary answers it: no single failure becomes an I/O error.
//!
//! Invariants (rules of the design in brackets):
//! - A part that changes data keeps its id for ever; within one epoch and one link it is sent once, unless
//!   the server itself said "again" (R19, R20). One that does not takes a new id after a refusal.
//! - Writes of a volume that share a 4 KiB page are on the wire one at a time, in order of arrival (R20);
//!   one that `io_timeout` gave up holds no other back.
//! - At most `pg_in_flight` parts of a PG, and ids within `pg_id_window` of the lowest unanswered one.
//! - Data handed to a client matched the checksums that came with it.
//! - A fenced engine (a newer instance exists) sends nothing any more.
//!
//! Everything is driven by events and deadlines; `flush` runs what is due and sends what may go.

mod expiry;
mod links;
mod overlap;
mod pgs;
mod replies;
mod serve;
mod types;
mod unflushed;
mod view;
mod volume;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_fell;
#[cfg(test)]
mod tests_map;
#[cfg(test)]
mod tests_random;
#[cfg(test)]
mod tests_wait;

pub use types::*;

use links::Links;
use pgs::Pgs;
use quarry_base::{Instance, Nanos, SdcId, VolumeId};
use quarry_ring::TimerHeap;
use quarry_wire::ClusterView;
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet};
use volume::{Part, Request, Volume};

/// What a deadline is for. Whoever is woken checks whether it still matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Timer {
    /// Refused parts of a PG (its number) may be sent again.
    Hold(usize),
    /// Some that were put off may be.
    PutOff(usize),
    /// A server may be dialled again.
    Dial(Target),
    /// The handshake must be over.
    Hello(LinkId),
    /// Look whether the other end still speaks.
    Silence(LinkId),
    /// Parts of a volume waited long enough for a newer mapping.
    Mapping(VolumeId),
    /// Requests of a volume may have waited for too long.
    Expiry(VolumeId),
    /// What is still out on a volume that was taken away fails.
    Unmapped(VolumeId),
}

/// The engine of one client.
pub struct Engine {
    cfg: EngineConfig,
    me: Option<(SdcId, Instance)>,
    fenced: bool,
    view: ClusterView,
    /// In order: the same events give the same actions, in the same order.
    volumes: BTreeMap<VolumeId, Volume>,
    requests: Slab<Request>,
    parts: Slab<Part>,
    pgs: Pgs,
    links: Links,
    /// Servers that are primary of a group of a mapped volume's pool: links are kept to them.
    wanted: BTreeSet<Target>,
    /// `wanted` is to be worked out again.
    wanted_stale: bool,
    timers: TimerHeap<Timer>,
    dirty_pgs: Vec<usize>,
    dirty_volumes: Vec<VolumeId>,
    now: Nanos,
    out: Vec<Action>,
    stats: EngineStats,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(cfg: EngineConfig) -> Engine {
        Engine {
            cfg,
            me: None,
            fenced: false,
            view: ClusterView::default(),
            volumes: BTreeMap::new(),
            requests: Slab::new(),
            parts: Slab::new(),
            pgs: Pgs::default(),
            links: Links::default(),
            wanted: BTreeSet::new(),
            wanted_stale: false,
            timers: TimerHeap::new(),
            dirty_pgs: Vec::new(),
            dirty_volumes: Vec::new(),
            now: Nanos::ZERO,
            out: Vec::new(),
            stats: EngineStats::default(),
        }
    }

    /// Takes one event; actions are added to `out`. Call [`Engine::flush`] after the events of a turn.
    pub fn step(&mut self, now: Nanos, event: Event, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        match event {
            Event::Registered { sdc, instance } => self.registered(sdc, instance),
            Event::View(v) => self.take_view(v),
            Event::Changes { index, changes } => self.take_changes(index, changes),
            Event::Request { client, handle, volume, op } => {
                self.request(client, handle, volume, op)
            }
            Event::ClientGone { client } => self.client_gone(client),
            Event::LinkUp { link, target } => self.link_up(link, target),
            Event::LinkDown { link } => self.link_lost(link, "the connection broke"),
            Event::DialFailed { target } => self.dial_failed(target),
            Event::Frame { link, frame } => self.frame(link, frame),
        }
        out.append(&mut self.out);
    }

    /// Runs what is due and sends what may go. Once a turn, after its events.
    pub fn flush(&mut self, now: Nanos, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        if self.wanted_stale {
            self.refresh_wanted();
        }
        while let Some(t) = self.timers.pop_due(self.now) {
            self.timer(t);
        }
        while !self.dirty_volumes.is_empty() || !self.dirty_pgs.is_empty() {
            let mut volumes = std::mem::take(&mut self.dirty_volumes);
            for v in volumes.drain(..) {
                self.admit(v);
            }
            if self.dirty_volumes.is_empty() {
                self.dirty_volumes = volumes;
            }
            let mut pgs = std::mem::take(&mut self.dirty_pgs);
            for n in pgs.drain(..) {
                self.pump(n);
            }
            if self.dirty_pgs.is_empty() {
                self.dirty_pgs = pgs;
            }
        }
        out.append(&mut self.out);
    }

    /// When to call [`Engine::flush`] at the latest.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.timers.next_deadline()
    }

    /// Whether more requests of a volume should be read from its clients: back-pressure when not.
    pub fn has_room(&self, volume: VolumeId) -> bool {
        let l = &self.cfg.limits;
        self.volumes
            .get(&volume)
            .is_none_or(|v| v.load < l.volume_queue && v.load_bytes < l.volume_queue_bytes)
    }

    /// Requests of a volume that are not answered (those of clients that went away included).
    pub fn load(&self, volume: VolumeId) -> usize {
        self.volumes.get(&volume).map_or(0, |v| v.load)
    }

    /// True once a newer instance of this client was met.
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Counters since the start.
    pub fn stats(&self) -> &EngineStats {
        &self.stats
    }

    /// Links that stand, handshake done.
    pub fn links_up(&self) -> usize {
        self.links.up_count()
    }

    /// Log index of the newest change applied.
    pub fn view_index(&self) -> quarry_base::ConfigIndex {
        self.view.index
    }

    fn timer(&mut self, t: Timer) {
        match t {
            Timer::Hold(pg) => self.end_hold(pg),
            Timer::PutOff(pg) => self.end_put_off(pg),
            Timer::Dial(target) => self.redial(target),
            Timer::Hello(link) => self.hello_due(link),
            Timer::Silence(link) => self.check_silence(link),
            Timer::Mapping(volume) => self.retry_mapping(volume),
            Timer::Expiry(volume) => self.expire(volume),
            Timer::Unmapped(volume) => self.end_unmapped(volume),
        }
    }

    fn note(&mut self, n: Note) {
        self.out.push(Action::Note(n));
    }

    fn mark_pg(&mut self, n: usize) {
        if let Some(p) = self.pgs.list.get_mut(n) {
            if !p.dirty {
                p.dirty = true;
                self.dirty_pgs.push(n);
            }
        }
    }

    fn mark_volume(&mut self, id: VolumeId) {
        if let Some(v) = self.volumes.get_mut(&id) {
            if !v.dirty {
                v.dirty = true;
                self.dirty_volumes.push(id);
            }
        }
    }

    /// A newer instance exists: everything fails, nothing is sent any more (R19).
    fn fence(&mut self, why: &'static str) {
        if self.fenced {
            return;
        }
        self.fenced = true;
        self.note(Note::Fenced { why });
        for link in self.links.all() {
            self.drop_link(link, why);
        }
        let volumes: Vec<VolumeId> = self.volumes.keys().copied().collect();
        for v in volumes {
            self.fail_waiting(v, true);
        }
    }
}
