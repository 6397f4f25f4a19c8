//! The engine: dispatch of events to placement groups, and the turn of the crank.

mod config;
mod flush;
mod frames;
mod lease;
mod promise;
#[cfg(test)]
mod tests_links;

use crate::config::EngineConfig;
use crate::credit::Ledger;
use crate::cx::{Cx, Me, Waiting};
use crate::event::{Action, Event, LinkId, LinkKind, Note};
use crate::handover::HandOver;
use crate::links::{refusal, Links, Met, Who};
use crate::pg::Pg;
use crate::pinned::Pinned;
use crate::planted::Bug;
use crate::reports::Barrier;
use crate::stats::EngineStats;
use crate::times::WriteTimes;
use crate::view::View;
use quarry_base::{ConfigIndex, DeviceId, Nanos, PgId, SdsId, StartNo};
use quarry_store::{AppendId, Store, StoreError};
use quarry_wire::{Hello, Peer, WIRE_VERSION};
use slab::Slab;
use std::collections::{BTreeSet, HashMap, VecDeque};

/// A device and what is under way on it.
pub(crate) struct Device {
    pub id: DeviceId,
    pub store: Store,
    /// What it has promised (R24).
    pub ledger: Ledger,
    /// What the groups it leads hold of its log.
    pub pinned: Pinned,
    /// Not durable yet, in order, with the group each is for.
    pub appends: VecDeque<(AppendId, usize)>,
    pub durable: AppendId,
    /// `ack = cached`: on the medium up to here, and the groups that wait for it to move.
    pub synced: AppendId,
    pub sync_waits: Vec<(AppendId, usize)>,
    pub failed: Option<StoreError>,
}

/// All placement groups of the devices of one shard.
pub struct Engine {
    pub(crate) cfg: EngineConfig,
    pub(crate) me: Me,
    /// When this process began, as far as the engine knows.
    pub(crate) born: Option<Nanos>,
    pub(crate) view: View,
    pub(crate) spreads: promise::Spreads,
    pub(crate) devices: Vec<Device>,
    pub(crate) groups: Vec<Pg>,
    /// Look-up only, never iterated: the engine is deterministic.
    pub(crate) index: HashMap<PgId, usize>,
    pub(crate) dirty: Vec<usize>,
    pub(crate) timers: BTreeSet<(Nanos, usize)>,
    pub(crate) tokens: Slab<Waiting>,
    pub(crate) links: Links,
    pub(crate) stats: EngineStats,
    pub(crate) times: WriteTimes,
    pub(crate) proposals: u64,
    pub(crate) hand_over: HandOver,
    pub(crate) barriers: Vec<Barrier>,
    /// Highest configuration index of any group here: most lease answers list nothing.
    pub(crate) newest_config: ConfigIndex,
}

impl Engine {
    /// An engine without devices, not registered.
    pub fn new(cfg: EngineConfig) -> Engine {
        Engine {
            cfg,
            me: Me::default(),
            born: None,
            view: View::default(),
            spreads: Default::default(),
            devices: Vec::new(),
            groups: Vec::new(),
            index: HashMap::new(),
            dirty: Vec::new(),
            timers: BTreeSet::new(),
            tokens: Slab::new(),
            links: Links::default(),
            stats: EngineStats::default(),
            times: WriteTimes::default(),
            proposals: 0,
            hand_over: HandOver::default(),
            barriers: Vec::new(),
            newest_config: ConfigIndex::ZERO,
        }
    }

    /// The cluster id, where it becomes known only at registration.
    pub fn set_cluster(&mut self, cluster: String) {
        self.cfg.cluster = cluster;
    }

    /// The store of a device, for its statistics.
    pub fn store(&self, device: DeviceId) -> Option<&Store> {
        self.devices.iter().find(|d| d.id == device).map(|d| &d.store)
    }

    /// Starts writing everything in the logs to its place, for a clean stop.
    pub fn flush_stores(&mut self) {
        self.devices.iter_mut().for_each(|d| d.store.flush_all());
    }

    /// Nothing is under way on any device.
    pub fn stores_idle(&self) -> bool {
        self.devices.iter().all(|d| d.store.is_idle())
    }

    /// Handles one event. [`Engine::flush`] has to follow before the next wait.
    pub fn step(&mut self, now: Nanos, ev: Event, out: &mut Vec<Action>) {
        self.born.get_or_insert(now);
        match ev {
            Event::Registered { sds, start } => self.on_registered(sds, start, now, out),
            Event::DeviceOpened { device, store } => self.on_device(device, store, now, out),
            Event::Disk { device, id, result } => {
                if let Some(d) = self.devices.iter().position(|d| d.id == device) {
                    let store = &mut self.devices[d].store;
                    store.complete(now, id, result);
                    let upto = store.stable_upto();
                    self.durable(d, upto, now, out);
                }
            }
            Event::Accepted { link } => self.on_accepted(link, now, out),
            Event::Dialled { link, sds, kind } => self.on_dialled(link, (sds, kind), now, out),
            Event::DialFailed { sds, kind } => self.links.dial_failed(sds, kind),
            Event::Frame { link, frame } => self.on_frame(link, frame, now, out),
            Event::Closed { link } => self.on_closed(link, now, out),
            Event::View(v) => self.on_view(v, now, out),
            Event::Changes { index, changes } => self.on_changes(index, changes, now, out),
            Event::ProposalResult { request, accepted, reason } => {
                if self.hand_over.is_answer(request) {
                    self.hand_over.answered(accepted);
                } else if !accepted {
                    out.push(Action::Note(Note::ProposalRefused { request, reason }));
                }
            }
            Event::HandOver => self.hand_over.begin(),
        }
        self.close_links(now, out);
    }

    /// Runs `f` on a group with everything it needs; the group has its turn in the next flush.
    pub(crate) fn with<R>(
        &mut self,
        group: usize,
        now: Nanos,
        out: &mut Vec<Action>,
        f: impl FnOnce(&mut Pg, &mut Cx) -> R,
    ) -> Option<R> {
        let pg = self.groups.get_mut(group)?;
        let dev = self.devices.get_mut(pg.dev)?;
        let mut cx = Cx {
            now,
            out,
            limits: &self.cfg.limits,
            me: self.me,
            born: self.born.unwrap_or(now),
            view: &self.view,
            store: &mut dev.store,
            ledger: &mut dev.ledger,
            pinned: &mut dev.pinned,
            links: &mut self.links,
            stats: &mut self.stats,
            times: &mut self.times,
            tokens: &mut self.tokens,
            appends: &mut dev.appends,
            durable: dev.durable,
            synced: dev.synced,
            sync_waits: &mut dev.sync_waits,
            proposals: &mut self.proposals,
            handing_over: self.hand_over.is_on(),
            group,
        };
        let r = f(pg, &mut cx);
        if !pg.dirty {
            pg.dirty = true;
            self.dirty.push(group);
        }
        Some(r)
    }

    pub(crate) fn touch(&mut self, group: usize) {
        if let Some(pg) = self.groups.get_mut(group) {
            if !pg.dirty {
                pg.dirty = true;
                self.dirty.push(group);
            }
        }
    }

    pub(crate) fn for_all(
        &mut self,
        now: Nanos,
        out: &mut Vec<Action>,
        mut f: impl FnMut(&mut Pg, &mut Cx),
    ) {
        for g in 0..self.groups.len() {
            if !self.groups[g].dropped {
                self.with(g, now, out, &mut f);
            }
        }
    }

    fn on_registered(&mut self, sds: SdsId, start: StartNo, now: Nanos, out: &mut Vec<Action>) {
        let old = self.me;
        self.me = Me { sds, start };
        if old.start != StartNo::ZERO && old.start != start {
            out.push(Action::Note(Note::Fenced { start: old.start }));
            self.for_all(now, out, |pg, cx| pg.fence(cx));
            // Connections said Hello with the old start.
            for link in self.links.all() {
                self.links.close_soon(link);
            }
        }
        self.for_all(now, out, |_, _| {});
    }

    fn hello(&self, kind: LinkKind) -> Hello {
        let Me { sds: id, start } = self.me;
        let peer = match kind {
            LinkKind::Data => Peer::Sds { id, start },
            LinkKind::Heartbeat => Peer::SdsHeartbeat { id, start },
        };
        Hello {
            versions: (WIRE_VERSION, WIRE_VERSION),
            cluster: self.cfg.cluster.clone(),
            peer,
            device: DeviceId::ZERO,
            auth: None,
        }
    }

    fn on_accepted(&mut self, link: LinkId, now: Nanos, out: &mut Vec<Action>) {
        if self.links.count() >= self.cfg.limits.links || self.me.start == StartNo::ZERO {
            out.push(Action::Close { link });
            return;
        }
        self.links.accepted(link, now + self.cfg.limits.hello_within);
    }

    fn on_dialled(
        &mut self,
        link: LinkId,
        to: (SdsId, LinkKind),
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let hello = self.hello(to.1);
        self.links.dialled(link, to, now + self.cfg.limits.hello_within, hello, out);
    }

    fn on_hello(
        &mut self,
        link: LinkId,
        frame: &quarry_wire::Frame,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let ours = self.hello(LinkKind::Data);
        let keeps = self.cfg.limits.planted(Bug::OldInstance);
        match self.links.hello(link, frame, &ours, keeps, out) {
            Met::Nobody => {}
            Met::DataUp(_) => self.touch_primaries(),
            Met::BeatUp(sds) => self.ask_grant(sds, now, out),
            Met::Refused(why) => {
                out.push(Action::Note(Note::Refused { link, why }));
                self.links.send(link, refusal(), out);
                self.links.close_soon(link);
            }
        }
    }

    pub(crate) fn touch_primaries(&mut self) {
        for g in 0..self.groups.len() {
            if self.groups[g].primary().is_some() {
                self.touch(g);
            }
        }
    }

    fn on_closed(&mut self, link: LinkId, now: Nanos, out: &mut Vec<Action>) {
        let Some(who) = self.links.closed(link, now) else { return };
        match who {
            Who::Beat { id, .. } => {
                if let Some(p) = self.links.peers.get_mut(&id) {
                    if p.beat.up.is_none() {
                        p.grants.broke();
                    }
                }
            }
            Who::Sds { .. } => self.for_all(now, out, |pg, cx| {
                pg.member_link_closed(link);
                if let Some(p) = pg.primary() {
                    p.stream_link_closed(link, cx);
                }
            }),
            Who::Sdc { .. } => self.for_all(now, out, |pg, _| {
                if let Some(p) = pg.primary() {
                    p.link_closed(link);
                }
            }),
            Who::Stranger | Who::Asked(..) => {}
        }
    }

    /// Ends the connections that this step or turn decided to end.
    fn close_links(&mut self, now: Nanos, out: &mut Vec<Action>) {
        for link in self.links.take_closing() {
            out.push(Action::Close { link });
            self.on_closed(link, now, out);
        }
    }
}
