//! The sessions between servers and the MDM: ordered, delayed, held back by a partition, broken and made anew.

use crate::clients::News;
use crate::mdm::Joining;
use crate::net::Addr;
use crate::world::{Ev, Up, World, MS};
use quarry_base::*;
use quarry_replica::Event;
use quarry_wire::{Change, Proposal};

impl World {
    pub fn tell_mdm(&mut self, node: usize, up: Up) {
        if let Up::Propose { request, proposal: Proposal::HandOver, .. } = &up {
            self.nodes[node].hand_over = Some(*request);
        }
        self.outboxes[node].push_back(up);
        let gen = self.nodes[node].gen;
        let at = self.now + self.rng.within(100, 3000) * 1000;
        self.at(at, Ev::Outbox { node, gen });
    }

    pub(crate) fn outbox(&mut self, node: usize, gen: u64) {
        if self.nodes[node].gen != gen || self.outboxes[node].is_empty() {
            return;
        }
        if self.net.is_cut(Addr::Sds(node), Addr::Mdm) || self.now < self.mdm.down_until {
            return self.at(self.now + 5 * MS, Ev::Outbox { node, gen });
        }
        let Some(up) = self.outboxes[node].pop_front() else { return };
        let id = self.nodes[node].sds;
        match up {
            Up::Hello => self.admit(node),
            Up::Heartbeat { start, confirmed, failed } => {
                if self.mdm.has_session(id, start) {
                    self.mdm.heard(id, self.now);
                    self.mdm.heartbeat(id, confirmed, failed, self.now);
                    let (device, ms) = self.nodes[node].stalled();
                    self.mdm.stalled(id, device, ms, self.now);
                    self.spread_news();
                }
            }
            Up::Propose { start, request, proposal } => {
                if !self.mdm.has_session(id, start) {
                    return;
                }
                self.mdm.heard(id, self.now);
                let text = format!("{proposal:?}");
                let name: String = text.chars().take_while(|c| c.is_alphanumeric()).collect();
                let add = matches!(proposal, Proposal::Add { .. });
                let (accepted, reason) = self.mdm.propose(id, start, proposal, self.now);
                self.count(&format!("{name} {}", if accepted { "accepted" } else { "refused" }));
                if add && accepted && self.strikes() {
                    let at = self.now + self.rng.within(0, 40) * MS;
                    self.at(at, Ev::Strike { node });
                }
                if !accepted {
                    self.trace(|| format!("mdm: sds{} {text} refused: {reason}", node + 1));
                }
                self.spread_news();
                self.tell_node(node, Event::ProposalResult { request, accepted, reason });
            }
        }
    }

    /// Is somebody killed at this very moment?
    pub(crate) fn strikes(&mut self) -> bool {
        self.is_restless() && self.cfg.strike > 0 && self.rng.chance(self.cfg.strike)
    }

    /// Is somebody asked to stop at this very moment?
    pub(crate) fn presses(&mut self) -> bool {
        self.is_restless() && self.cfg.press > 0 && self.rng.chance(self.cfg.press)
    }

    fn is_restless(&self) -> bool {
        self.now < 10_000 * MS + self.cfg.faults_ms * MS && self.cfg.fault_every_ms > 0
    }

    /// The MDM takes a registration.
    fn admit(&mut self, node: usize) {
        let n = &self.nodes[node];
        let joining = Joining {
            sds: n.sds,
            device: n.device,
            resume: (n.start != StartNo::ZERO).then_some(n.start),
            boot: n.boot,
            haves: n.engine.as_ref().map(|e| e.haves(n.device)).unwrap_or_default(),
            devices: vec![n.report()],
        };
        let (before, boot) = (n.start, n.boot);
        match self.mdm.register_sds(joining, self.now) {
            Some(start) => {
                self.boots.insert(start, boot);
                if start == before {
                    self.count("session resumed");
                }
                self.spread_news();
                let sds = self.nodes[node].sds;
                self.tell_node(node, Event::Registered { sds, start });
                let view = self.mdm.state.view();
                self.tell_node(node, Event::View(view));
                self.nodes[node].subscribed = true;
            }
            None => {
                let gen = self.nodes[node].gen;
                self.outboxes[node].push_front(Up::Hello);
                self.at(self.now + 50 * MS, Ev::Outbox { node, gen });
            }
        }
    }

    /// The server's session is over or not there yet: it registers (again).
    pub(crate) fn hello(&mut self, node: usize) {
        self.count("registered");
        self.outboxes[node].clear();
        let n = &mut self.nodes[node];
        n.inbox.clear();
        n.subscribed = false;
        n.session += 1;
        let unanswered = n.hand_over.take();
        self.tell_mdm(node, Up::Hello);
        // As the daemon: a hand-over without an answer counts as refused.
        if let Some(request) = unanswered {
            let reason = "the session broke".into();
            self.step(node, Event::ProposalResult { request, accepted: false, reason });
        }
    }

    /// The server learns that its session ended.
    pub(crate) fn session_end(&mut self, node: usize, gen: u64, session: u64) {
        let n = &self.nodes[node];
        if n.gen != gen || n.session != session || n.engine.is_none() {
            return;
        }
        if self.net.is_apart(Addr::Mdm, Addr::Sds(node)) || self.now < self.mdm.down_until {
            return self.at(self.now + 20 * MS, Ev::SessionEnd { node, gen, session });
        }
        self.hello(node);
    }

    /// Ends a session at the MDM's side; the server learns it a little later.
    pub(crate) fn end_session(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.subscribed = false;
        let (gen, session) = (n.gen, n.session);
        let at = self.now + self.rng.within(1, 100) * MS;
        self.at(at, Ev::SessionEnd { node, gen, session });
    }

    pub(crate) fn tell_node(&mut self, node: usize, ev: Event) {
        self.nodes[node].inbox.push_back(ev);
        let gen = self.nodes[node].gen;
        let at = self.now + self.rng.within(100, 3000) * 1000;
        self.at(at, Ev::Inbox { node, gen });
    }

    pub(crate) fn inbox(&mut self, node: usize, gen: u64) {
        if self.net.is_cut(Addr::Mdm, Addr::Sds(node)) {
            return self.at(self.now + 5 * MS, Ev::Inbox { node, gen });
        }
        let Some(ev) = self.nodes[node].inbox.pop_front() else { return };
        match &ev {
            Event::Registered { start, .. } => self.nodes[node].start = *start,
            Event::ProposalResult { request, .. }
                if self.nodes[node].hand_over == Some(*request) =>
            {
                self.nodes[node].hand_over = None
            }
            _ => {}
        }
        self.step(node, ev);
    }

    pub(crate) fn beat(&mut self, node: usize, gen: u64) {
        let n = &self.nodes[node];
        let start = n.start;
        if start != StartNo::ZERO && self.outboxes[node].len() < 8 {
            let (confirmed, failed) = match &n.engine {
                Some(e) => {
                    let failed = e.device_stats().into_iter().filter(|d| d.failed.is_some());
                    (e.reports().1, failed.map(|d| d.device).collect())
                }
                None => Default::default(),
            };
            self.tell_mdm(node, Up::Heartbeat { start, confirmed, failed });
        }
        self.at(self.now + 100 * MS, Ev::Beat { node, gen });
    }

    /// Tells everybody what the MDM has logged, and closes the sessions that it closes.
    pub fn spread_news(&mut self) {
        for what in std::mem::take(&mut self.mdm.done) {
            self.count(&format!("mdm {what}"));
        }
        for (index, changes) in std::mem::take(&mut self.mdm.news) {
            for c in &changes {
                if let Change::Pg(c) = c {
                    self.trace(|| told(c));
                    self.history_of_configs(c);
                }
            }
            for n in 0..self.nodes.len() {
                if self.nodes[n].subscribed {
                    self.tell_node(n, Event::Changes { index, changes: changes.clone() });
                }
            }
            for c in 0..self.clients.len() {
                self.inform_client(c, News::Changes(index, changes.clone()));
            }
        }
        for sds in std::mem::take(&mut self.mdm.closing) {
            self.end_session(sds.0 as usize - 1);
        }
    }

    /// What must hold for every configuration: epochs rise by one, the in-sync set is never empty, nobody
    /// joins it who was not syncing.
    fn history_of_configs(&mut self, c: &quarry_wire::PgConfig) {
        let old = self.configs.insert(c.pg, c.clone());
        let Some(o) = old else { return };
        if c.epoch.0 != o.epoch.0 + 1 {
            self.fail(format!("{} goes from epoch {} to {}", c.pg, o.epoch, c.epoch));
        }
        let lost = |m: &quarry_wire::Member| {
            self.boots.get(&m.start) != Some(&self.nodes[m.sds.0 as usize - 1].boot)
        };
        if self.cfg.shape.cached && o.in_sync.iter().all(lost) {
            // Nobody has served since the last of them lost power.
            self.history.falls.cut(c.pg, self.now);
            self.count("fell back");
        }
        let known = |d: DeviceId| o.is_in_sync(d) || o.syncing.iter().any(|m| m.device == d);
        for m in o.in_sync.iter().filter(|m| !c.is_in_sync(m.device)) {
            self.left_at.insert((c.pg, m.device), self.now);
        }
        // The operator may choose another one, in a new line.
        let decided = self.forsaking.deciding.contains(&c.pg);
        let expected = c.in_sync.iter().all(|m| known(m.device))
            || (decided && c.line.0 > 0 && c.in_sync.len() == 1);
        if c.in_sync.is_empty() || !expected {
            self.fail(format!("{}: {:?} follows {:?}", c.pg, c.in_sync, o.in_sync));
        }
    }
}

fn told(c: &quarry_wire::PgConfig) -> String {
    let m = |v: &[quarry_wire::Member]| v.iter().map(|m| m.device.0).collect::<Vec<_>>();
    let p = c.primary.map_or(0, |d| d.0);
    format!(
        "mdm: {} epoch {} primary {p} in sync {:?} syncing {:?} listed {:?}",
        c.pg,
        c.epoch,
        m(&c.in_sync),
        m(&c.syncing),
        c.listed.iter().map(|d| d.0).collect::<Vec<_>>()
    )
}
