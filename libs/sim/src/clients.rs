//! What the world does for its clients.

use crate::client::{Unknown, Want};
use crate::mdm::Mdm;
use crate::net::Addr;
use crate::node::CLUSTER;
use crate::world::{Ev, World, MS};
use mdm::state::{Answer, Op};
use quarry_base::*;

/// An unmap that was ordered: once it is confirmed, nothing of the old mapping may take effect (R21).
pub(crate) struct Unmap {
    client: usize,
    volume: VolumeId,
    index: ConfigIndex,
    generation: Generation,
    confirmed: Option<u64>,
    unknown: Vec<Unknown>,
}

impl World {
    pub(crate) fn client_news(&mut self, c: usize) {
        if self.net.is_cut(Addr::Mdm, Addr::Sdc(c)) {
            return self.at(self.now + 5 * MS, Ev::ClientNews { client: c });
        }
        let Some((index, changes)) = self.client_news[c].pop_front() else { return };
        let given_up = self.clients[c].on_news(index, &changes, &mut self.history);
        for (volume, u) in given_up {
            let of = |x: &&mut Unmap| x.client == c && x.volume == volume;
            let Some(unmap) = self.unmaps.iter_mut().rev().find(of) else { continue };
            match unmap.confirmed {
                Some(at) => self.history.shut_out(u.1, u.2, at),
                None => unmap.unknown.push(u),
            }
        }
        self.pump(c);
    }

    /// Maps a volume to a client, or takes it away. False: nothing changed.
    pub(crate) fn map(&mut self, c: usize, volume: VolumeId, on: bool) -> bool {
        let sdc = self.clients[c].id;
        let now = self.now;
        let op = if on {
            Op::Map {
                volume,
                sdc,
                read_only: false,
                device: false,
                io_timeout_ms: None,
                no_device: false,
            }
        } else {
            Op::Unmap { volume, sdc }
        };
        let done = self.mdm.submit(op, now);
        self.spread_news();
        match done {
            Ok(Answer::Unmapped { index, .. }) => {
                let v = self.mdm.state.volumes.get(&volume);
                self.unmaps.push(Unmap {
                    client: c,
                    volume,
                    index,
                    generation: v.map_or(Generation(u64::MAX), |v| v.generation),
                    confirmed: None,
                    unknown: Vec::new(),
                });
                true
            }
            Ok(_) => true,
            Err(_) => false,
        }
    }

    /// Looks which unmaps are complete.
    pub(crate) fn settle_unmaps(&mut self) {
        let (now, mdm, history): (u64, &Mdm, _) = (self.now, &self.mdm, &mut self.history);
        let mut confirmed = 0;
        for u in self.unmaps.iter_mut().filter(|u| u.confirmed.is_none()) {
            if mdm.confirmed(u.volume, u.index) {
                u.confirmed = Some(now);
                confirmed += 1;
                u.unknown.drain(..).for_each(|(_, at, value)| history.shut_out(at, value, now));
            }
        }
        for _ in 0..confirmed {
            self.count("unmap confirmed");
        }
    }

    /// A write that began when its mapping was gone for good may not be answered (R21).
    pub(crate) fn check_acks(&mut self, c: usize) {
        for (volume, generation, begin) in std::mem::take(&mut self.clients[c].acks) {
            let gone = self.unmaps.iter().any(|u| {
                u.client == c
                    && u.volume == volume
                    && generation < u.generation
                    && u.confirmed.is_some_and(|at| at < begin)
            });
            if gone {
                let n = c + 1;
                self.fail(format!(
                    "client {n} wrote to volume {volume} after its unmap was confirmed"
                ));
            }
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
        if self.nodes[to].engine.is_none() || self.net.is_apart(a, b) {
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
