//! The sessions between servers and the model MDM: ordered, delayed, held back by a partition.

use crate::net::Addr;
use crate::world::{Ev, Up, World, MS};
use quarry_base::*;
use quarry_replica::Event;
use quarry_wire::Change;

impl World {
    pub fn tell_mdm(&mut self, node: usize, up: Up) {
        self.outboxes[node].push_back(up);
        let gen = self.nodes[node].gen;
        let at = self.now + self.rng.within(100, 3000) * 1000;
        self.at(at, Ev::Outbox { node, gen });
    }

    pub(crate) fn outbox(&mut self, node: usize, gen: u64) {
        if self.nodes[node].gen != gen || self.outboxes[node].is_empty() {
            return;
        }
        if self.net.is_cut(Addr::Sds(node), Addr::Mdm) {
            return self.at(self.now + 5 * MS, Ev::Outbox { node, gen });
        }
        let Some(up) = self.outboxes[node].pop_front() else { return };
        let id = self.nodes[node].sds;
        match up {
            Up::Hello { haves } => {
                let start = self.mdm.register_sds(id, haves, self.now);
                self.spread_news();
                self.tell_node(node, Event::Registered { sds: id, start });
                let view = self.mdm.view.clone();
                self.tell_node(node, Event::View(view));
                self.nodes[node].subscribed = true;
            }
            Up::Heartbeat { start } => {
                if !self.mdm.heartbeat(id, start, self.now) && self.nodes[node].start == start {
                    // Declared dead: the process registers anew.
                    self.nodes[node].start = StartNo::ZERO;
                    self.nodes[node].subscribed = false;
                    self.hello(node);
                }
            }
            Up::Propose { start, request, proposal } => {
                let accepted = self.mdm.propose(id, start, proposal, self.now);
                self.spread_news();
                self.tell_node(
                    node,
                    Event::ProposalResult { request, accepted, reason: String::new() },
                );
            }
        }
    }

    pub(crate) fn hello(&mut self, node: usize) {
        self.count("registered");
        let n = &self.nodes[node];
        let haves = n.engine.as_ref().map(|e| e.haves(n.device)).unwrap_or_default();
        self.tell_mdm(node, Up::Hello { haves });
    }

    pub(crate) fn tell_node(&mut self, node: usize, ev: Event) {
        if let Event::Registered { start, .. } = &ev {
            self.nodes[node].start = *start;
        }
        self.nodes[node].inbox.push_back(ev);
        let gen = self.nodes[node].gen;
        let at = self.now + self.rng.within(100, 3000) * 1000;
        self.at(at, Ev::Inbox { node, gen });
    }

    pub(crate) fn inbox(&mut self, node: usize, gen: u64) {
        if self.net.is_cut(Addr::Sds(node), Addr::Mdm) {
            return self.at(self.now + 5 * MS, Ev::Inbox { node, gen });
        }
        if let Some(ev) = self.nodes[node].inbox.pop_front() {
            self.step(node, ev);
        }
    }

    pub(crate) fn beat(&mut self, node: usize, gen: u64) {
        let start = self.nodes[node].start;
        if start != StartNo::ZERO && !self.net.is_cut(Addr::Sds(node), Addr::Mdm) {
            self.tell_mdm(node, Up::Heartbeat { start });
        }
        self.at(self.now + 100 * MS, Ev::Beat { node, gen });
    }

    /// Tells everybody what the MDM has logged.
    pub fn spread_news(&mut self) {
        for (index, changes) in std::mem::take(&mut self.mdm.news) {
            for c in &changes {
                if let Change::Pg(c) = c {
                    self.trace(|| {
                        let m = |v: &[quarry_wire::Member]| {
                            v.iter().map(|m| m.device.0).collect::<Vec<_>>()
                        };
                        let p = c.primary.map_or(0, |d| d.0);
                        format!(
                            "mdm: {} epoch {} primary {p} in sync {:?} syncing {:?}",
                            c.pg,
                            c.epoch,
                            m(&c.in_sync),
                            m(&c.syncing)
                        )
                    });
                }
            }
            for n in 0..self.nodes.len() {
                if self.nodes[n].subscribed {
                    self.tell_node(n, Event::Changes { index, changes: changes.clone() });
                }
            }
            for c in 0..self.clients.len() {
                self.client_news[c].push_back(changes.clone());
                let at = self.now + self.rng.within(100, 20_000) * 1000;
                self.at(at, Ev::ClientNews { client: c });
            }
        }
    }
}
