//! What goes wrong, chosen by the seed.

use crate::net::Addr;
use crate::world::{Ev, World, MS};

impl World {
    /// One fault, and the time of the next.
    pub fn fault(&mut self) {
        let end = 10_000 * MS + self.cfg.faults_ms * MS;
        if self.now >= end {
            return;
        }
        let next = self.now + self.rng.within(1, 2 * self.cfg.fault_every_ms) * MS;
        self.at(next, Ev::Fault);
        if self.cfg.rot {
            return self.rot();
        }
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        match self.rng.below(100) {
            0..=29 => self.crash_one(node),
            30..=36 => self.crash_many(),
            37..=49 => self.pause(node),
            50..=76 => self.partition(node),
            77..=84 => self.cut_link(node),
            85..=89 => self.crash_client(),
            90..=95 => self.hand_over(node),
            _ => self.wipe(node),
        }
    }

    /// A bit turns in the data area of the first server's disk.
    fn rot(&mut self) {
        let (from, to) = crate::node::data_area(&self.nodes[0].disk);
        if self.nodes[0].disk.rot(from, to, &mut self.rng) {
            self.count("bit rot");
        }
    }

    fn crash_one(&mut self, node: usize) {
        if self.nodes[node].engine.is_none() {
            return;
        }
        let power = self.rng.chance(60);
        self.count(if power { "power loss" } else { "kill" });
        self.trace(|| {
            format!("--- sds{} {}", node + 1, if power { "loses power" } else { "is killed" })
        });
        self.crash(node, power);
        let back = self.now + self.rng.within(1, 3000) * MS;
        self.at(back, Ev::Restart { node });
    }

    fn crash_many(&mut self) {
        for node in 0..self.nodes.len() {
            if self.rng.chance(80) {
                self.crash_one(node);
            }
        }
    }

    fn pause(&mut self, node: usize) {
        if self.nodes[node].engine.is_some() {
            self.count("pause");
            let ms = self.rng.within(10, 3000);
            self.trace(|| format!("--- sds{} stops for {ms} ms", node + 1));
            self.nodes[node].paused_until = self.now + ms * MS;
        }
    }

    fn partition(&mut self, node: usize) {
        let a = Addr::Sds(node);
        let b = match self.rng.below(3) {
            0 => Addr::Mdm,
            1 => Addr::Sdc(self.rng.below(self.clients.len() as u64) as usize),
            _ => Addr::Sds(self.rng.below(self.nodes.len() as u64) as usize),
        };
        if a == b || self.net.is_cut(a, b) {
            return;
        }
        self.count("partition");
        let ms = self.rng.within(10, 3000);
        self.trace(|| format!("--- {a:?} and {b:?} are apart for {ms} ms"));
        self.net.cut.insert((a.min(b), a.max(b)));
        if self.rng.chance(50) {
            for l in self.net.of(a) {
                if self.net.ends.get(&l).is_some_and(|e| e.far == b) {
                    self.sever(l);
                }
            }
        }
        self.at(self.now + ms * MS, Ev::Heal { a, b });
    }

    pub fn heal(&mut self, a: Addr, b: Addr) {
        self.net.cut.remove(&(a.min(b), a.max(b)));
    }

    fn cut_link(&mut self, node: usize) {
        let links = self.net.of(Addr::Sds(node));
        if let Some(l) = self.rng.pick(&links).copied() {
            self.count("link cut");
            self.sever(l);
        }
    }

    /// A connection breaks: both ends are told.
    fn sever(&mut self, l: quarry_replica::LinkId) {
        if let Some(owner) = self.net.ends.get(&l).map(|e| (e.owner, e.gen)) {
            self.close(l);
            self.at(self.now + MS, Ev::Closed { link: l, owner: owner.0, gen: owner.1 });
        }
    }

    fn crash_client(&mut self) {
        let c = self.rng.below(self.clients.len() as u64) as usize;
        self.count("client crash");
        let id = self.clients[c].id;
        self.trace(|| format!("--- client {id} crashes"));
        for l in self.net.of(Addr::Sdc(c)) {
            self.close(l);
        }
        let instance = self.mdm.register_sdc(id);
        self.spread_news();
        self.clients[c].crash(instance, &self.mdm.view, &mut self.history);
        let back = self.now + self.rng.within(1, 100) * MS;
        self.at(back, Ev::ClientWake { client: c });
    }

    fn hand_over(&mut self, node: usize) {
        if self.nodes[node].engine.is_some() && !self.nodes[node].leaving {
            self.count("hand-over");
            self.trace(|| format!("--- sds{} is asked to stop", node + 1));
            self.nodes[node].leaving = true;
            self.step(node, quarry_replica::Event::HandOver);
            // The daemon ends at most 5 s later.
            let gen = self.nodes[node].gen;
            self.at(self.now + 5000 * MS, Ev::Stop { node, gen });
        }
    }

    /// A device that nobody needs comes back empty.
    fn wipe(&mut self, node: usize) {
        if self.mdm.needed().contains(&self.nodes[node].device) {
            return;
        }
        self.count("wipe");
        self.trace(|| format!("--- sds{} comes back empty", node + 1));
        self.crash(node, true);
        if let Err(e) = self.format(node) {
            return self.fail(e);
        }
        let back = self.now + self.rng.within(1, 500) * MS;
        self.at(back, Ev::Restart { node });
    }
}
