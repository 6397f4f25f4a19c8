//! What the world does for its clients.

use crate::client::Want;
use crate::net::Addr;
use crate::node::CLUSTER;
use crate::world::{Ev, World};
use quarry_base::*;
use quarry_wire::Change;

impl World {
    pub(crate) fn client_news(&mut self, c: usize) {
        if let Some(changes) = self.client_news[c].pop_front() {
            for ch in &changes {
                if let Change::Pg(cfg) = ch {
                    self.clients[c].on_config(cfg);
                }
            }
            self.pump(c);
        }
    }

    pub fn pump(&mut self, c: usize) {
        let mut out = Vec::new();
        let mut load = self.cfg.load.clone();
        if self.quiet {
            load.operations = 0;
        }
        self.clients[c].pump(self.now, &load, &mut self.rng, &mut out);
        self.serve(c, out);
    }

    pub(crate) fn serve(&mut self, c: usize, wants: Vec<Want>) {
        for w in wants {
            match w {
                Want::Dial(sds) => {
                    let gen = self.clients[c].gen;
                    let at = self.now + self.rng.within(50, 2000) * 1000;
                    self.at(at, Ev::ClientDialled { client: c, gen, sds });
                }
                Want::Send(link, frame) => self.send(link, frame),
                Want::WakeAt(at) => {
                    let client = &mut self.clients[c];
                    if at < client.wake_at {
                        client.wake_at = at;
                        self.at(at, Ev::ClientWake { client: c });
                    }
                }
            }
        }
        if let Some(e) = self.clients[c].errors.pop() {
            self.fail(format!("client {}: {e}", c + 1));
        }
    }

    pub(crate) fn client_dialled(&mut self, c: usize, gen: u64, sds: SdsId) {
        if self.clients[c].gen != gen {
            return;
        }
        let to = sds.0 as usize - 1;
        let (a, b) = (Addr::Sdc(c), Addr::Sds(to));
        if self.nodes[to].engine.is_none() || self.net.is_cut(a, b) {
            self.clients[c].dial_failed(sds, self.now, &mut self.rng);
            return self.pump(c);
        }
        let (x, y) = self.net.connect((a, gen), (b, self.nodes[to].gen));
        self.accept(to, y);
        let mut out = Vec::new();
        self.clients[c].dialled(sds, x, CLUSTER, &mut out);
        self.serve(c, out);
    }
}
