//! Servers: their engines' events and actions, frames, starts and ends.

use crate::config::{store_of, Config};
use crate::coverage::note_name;
use crate::disk::{Disk, Failing};
use crate::net::Addr;
use crate::world::{Ev, Up, World, MS};
use quarry_base::*;
use quarry_replica::{Action, Event, LinkId, LinkKind};
use quarry_sdc::engine::Event as SdcEvent;
use quarry_store::{DeviceIdent, DiskOp};

impl World {
    pub fn step(&mut self, node: usize, ev: Event) {
        let n = &mut self.nodes[node];
        let local = n.local(self.now);
        let Some(engine) = &mut n.engine else { return };
        let mut out = Vec::new();
        engine.step(local, ev, &mut out);
        self.act(node, out);
        // The turn comes a little later: several events share it.
        let soon = self.now + self.rng.below(20_000);
        self.turn_by(node, soon);
    }

    pub(crate) fn turn_by(&mut self, node: usize, at: u64) {
        if at < self.nodes[node].turn_at {
            self.nodes[node].turn_at = at;
            let gen = self.nodes[node].gen;
            self.at(at, Ev::Turn { node, gen, at });
        }
    }

    pub(crate) fn turn(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.turn_at = u64::MAX;
        let local = n.local(self.now);
        let Some(engine) = &mut n.engine else { return };
        let mut out = Vec::new();
        // As the daemon does.
        engine.write_logs(local, &mut out);
        engine.flush(local, &mut out);
        let next = engine.next_deadline();
        let next = next.map(|d| n.global(d).max(self.now + 1000));
        self.act(node, out);
        if let Some(at) = next {
            self.turn_by(node, at);
        }
    }

    fn act(&mut self, node: usize, actions: Vec<Action>) {
        let gen = self.nodes[node].gen;
        for a in actions {
            match a {
                Action::Disk { op, .. } => {
                    let at = self.disk_time(node, &op);
                    let id = self.nodes[node].disk.begin(op);
                    self.at(at, Ev::Disk { node, gen, id });
                }
                Action::Send { link, frame } => {
                    if self.cfg.trace && frame.header.op as u8 >= 32 {
                        let h = &frame.header;
                        let far = self.net.ends.get(&link).map(|e| e.far);
                        self.trace(|| {
                            format!(
                                "    sds{} {:?} -> {far:?} link {link} {} epoch {} version {} commit {} id {}.{} at {}+{}k len {}",
                                node + 1, h.op, h.pg, h.epoch, h.version, h.commit, h.instance, h.request_id,
                                h.extent, h.offset / 1024, h.length
                            )
                        });
                    }
                    self.send(link, frame);
                }
                Action::Dial { sds, kind } => {
                    let at = self.now + self.rng.within(50, 2000) * 1000;
                    self.at(at, Ev::Dialled { node, gen, sds, kind });
                }
                Action::Close { link } => self.close(link),
                Action::Propose { request, proposal } => {
                    self.trace(|| format!("sds{} proposes {proposal:?}", node + 1));
                    let start = self.nodes[node].start;
                    self.tell_mdm(node, Up::Propose { start, request, proposal });
                }
                Action::HandedOver => {
                    self.count("handed over");
                    self.trace(|| format!("sds{} has handed over", node + 1));
                    // It ends by itself: what it has sent arrives.
                    for l in self.net.of(Addr::Sds(node)) {
                        self.end_link(l, true);
                    }
                    self.crash(node, false);
                    let back = self.now + self.rng.within(50, 2000) * MS;
                    self.at(back, Ev::Restart { node });
                    return;
                }
                Action::Note(n) => self.note(node, &n),
            }
        }
    }

    fn note(&mut self, node: usize, n: &quarry_replica::Note) {
        self.trace(|| format!("sds{} {n:?}", node + 1));
        let text = format!("{n:?}");
        let name = note_name(&text);
        self.count(name);
        if let quarry_replica::Note::SyncStarted { device, .. } = n {
            if self.strikes() {
                let at = self.now + self.rng.within(0, 60) * MS;
                self.at(at, Ev::Strike { node: device.0 as usize - 1 });
            }
        }
        if name == "PrimaryStarted" && self.presses() {
            let at = self.now + self.rng.within(0, 60) * MS;
            self.at(at, Ev::Press { node });
        }
        // With `ack = cached` a group may fall back behind what a member that is not in sync has.
        let forks = self.cfg.shape.cached && name == "StartedEmpty";
        let given_up = match n {
            quarry_replica::Note::StartedEmpty { pg, device }
            | quarry_replica::Note::PgDropped { pg, device } => {
                // What it had while it was in sync is not there any more.
                self.left_at.remove(&(*pg, *device));
                self.forsaking.gone_back.contains(pg)
            }
            _ => false,
        };
        let lost = name == "LostData" || name == "StartedEmpty";
        if lost && !forks && !given_up && !self.cfg.broken() {
            self.fail(format!("sds{}: {text}", node + 1));
        }
    }

    /// When an operation handed out now ends.
    fn disk_time(&mut self, node: usize, op: &DiskOp) -> u64 {
        let (until, by) = self.nodes[node].slow;
        let often = if matches!(op, DiskOp::Read { .. }) { self.cfg.slow_reads } else { 1 };
        let slow = if self.now < until {
            by
        } else if self.rng.chance(often) {
            self.rng.within(5, 50) * MS
        } else {
            0
        };
        let sync = matches!(op, DiskOp::Sync { .. });
        let base = if sync { self.rng.within(100, 800) } else { self.rng.within(20, 400) };
        self.now + base * 1000 + slow
    }

    pub(crate) fn gone(&mut self, sds: SdsId, start: StartNo) {
        let node = sds.0 as usize - 1;
        if self.net.is_apart(Addr::Sds(node), Addr::Mdm) || self.now < self.mdm.down_until {
            // The MDM finds out by itself.
            return;
        }
        self.mdm.closed(sds, start, self.now);
    }

    pub fn send(&mut self, link: LinkId, frame: quarry_wire::Frame) {
        if let Some((to, at)) = self.net.send(link, frame, self.now, &mut self.rng) {
            self.at(at, Ev::Deliver { link: to });
        }
    }

    pub fn close(&mut self, link: LinkId) {
        let late = self.rng.chance(50);
        self.end_link(link, late);
    }

    fn end_link(&mut self, link: LinkId, late: bool) {
        if let Some(e) = self.net.close(link, late, self.now, &mut self.rng) {
            self.at(e.at, Ev::Closed { link: e.link, owner: e.owner, gen: e.gen });
        }
    }

    pub(crate) fn deliver(&mut self, link: LinkId) {
        let Some(end) = self.net.ends.get(&link) else { return };
        let (owner, gen) = (end.owner, end.gen);
        if let Addr::Sds(n) = owner {
            let until = self.nodes[n].paused_until;
            if until > self.now {
                return self.at(until, Ev::Deliver { link });
            }
        }
        let frame = match self.net.take(link, self.now) {
            Ok(Some(f)) => f,
            Ok(None) => return,
            Err(at) => return self.at(at, Ev::Deliver { link }),
        };
        self.seen.frame(frame.header.op);
        match owner {
            Addr::Sds(n) if self.nodes[n].gen == gen => self.step(n, Event::Frame { link, frame }),
            Addr::Sdc(c) if self.clients[c].gen == gen => {
                self.tell_client(c, SdcEvent::Frame { link, frame });
            }
            _ => {}
        }
    }

    pub(crate) fn closed(&mut self, link: LinkId, owner: Addr, gen: u64) {
        if self.net.forget(link) {
            self.told_closed(link, owner, gen);
        }
    }

    pub(crate) fn told_closed(&mut self, link: LinkId, owner: Addr, gen: u64) {
        match owner {
            Addr::Sds(n) if self.nodes[n].gen == gen => self.step(n, Event::Closed { link }),
            Addr::Sdc(c) if self.clients[c].gen == gen => {
                self.tell_client(c, SdcEvent::LinkDown { link });
            }
            _ => {}
        }
    }

    pub(crate) fn dialled(&mut self, node: usize, sds: SdsId, kind: LinkKind) {
        let to = sds.0 as usize - 1;
        let (a, b) = (Addr::Sds(node), Addr::Sds(to));
        let there = self.nodes.get(to).is_some_and(|n| n.engine.is_some());
        if !there || self.net.is_apart(a, b) {
            return self.step(node, Event::DialFailed { sds, kind });
        }
        let (x, y) = self.net.connect((a, self.nodes[node].gen), (b, self.nodes[to].gen));
        self.accept(to, y);
        self.step(node, Event::Dialled { link: x, sds, kind });
    }

    pub(crate) fn accept(&mut self, node: usize, link: LinkId) {
        // The kernel accepts also for a stopped process; it sees the connection before its first frame.
        self.step(node, Event::Accepted { link });
    }

    /// Gives a server an empty disk.
    pub fn format(&mut self, node: usize) -> Result<(), String> {
        self.nodes[node].disk = fresh_disk(node, &self.cfg)?;
        Ok(())
    }

    pub fn restart(&mut self, node: usize) {
        if self.nodes[node].engine.is_some() {
            return;
        }
        let limits = self.cfg.limits.clone();
        self.nodes[node].disk.failing = Failing::Nothing;
        if let Err(e) = self.nodes[node].boot(self.now, &limits) {
            return self.fail(format!("sds{}: {e}", node + 1));
        }
        self.trace(|| format!("sds{} starts", node + 1));
        self.nodes[node].turn_at = u64::MAX;
        let gen = self.nodes[node].gen;
        self.turn_by(node, self.now + 1000);
        self.hello(node);
        self.at(self.now + 100 * MS, Ev::Beat { node, gen });
    }

    /// The process ends; with `power`, the disk loses what was not synced.
    pub fn crash(&mut self, node: usize, power: bool) {
        let n = &mut self.nodes[node];
        if let Some(e) = n.engine.take() {
            self.seen.engine(e.stats());
        }
        let (sds, start) = (n.sds, n.start);
        n.gen += 1;
        n.inbox.clear();
        n.subscribed = false;
        n.start = StartNo::ZERO;
        n.paused_until = 0;
        n.boot += u64::from(power);
        if power {
            n.disk.power_loss(&mut self.rng);
        } else {
            n.disk.kill(&mut self.rng);
        }
        self.outboxes[node].clear();
        for l in self.net.of(Addr::Sds(node)) {
            self.close(l);
        }
        let at = self.now + self.rng.within(1, 20) * MS;
        self.at(at, Ev::Gone { sds, start });
    }
}

pub(crate) fn fresh_disk(node: usize, cfg: &Config) -> Result<Disk, String> {
    let n = node as u32 + 1;
    let ident = DeviceIdent { cluster: [7; 16], device_uuid: [n as u8; 16], device: DeviceId(n) };
    let mut disk = Disk::formatted(&store_of(cfg), ident)?;
    disk.lie = cfg.lie;
    Ok(disk)
}
