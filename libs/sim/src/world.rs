//! The event heap and what happens at each event. No wall clock, no threads: one seed, one run.

use crate::client::{Client, Load};
use crate::disk::{Disk, Lie};
use crate::history::History;
use crate::mdm::{Mdm, Wrong};
use crate::net::{Addr, Net};
use crate::node::{store_config, Node};
use crate::rng::Rng;
use quarry_base::*;
use quarry_replica::{Action, Event, Limits, LinkId, LinkKind};
use quarry_store::{DeviceIdent, OpId};
use quarry_wire::{Change, PgHave, Proposal};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

pub const MS: u64 = 1_000_000;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Config {
    pub servers: u32,
    pub pgs: u32,
    pub copies: u8,
    pub clients: u32,
    pub load: Load,
    /// Faults happen until then, milliseconds.
    pub faults_ms: u64,
    /// Mean time between faults, milliseconds; 0: none.
    pub fault_every_ms: u64,
    pub limits: Limits,
    pub lie: Lie,
    pub wrong: Wrong,
    /// The only fault: bits turn on the first server's disk.
    pub rot: bool,
    /// Prints what happens.
    pub trace: bool,
}

impl Config {
    /// The shape of the run with this seed.
    pub fn of_seed(seed: u64) -> Config {
        let mut r = Rng::new(seed ^ 0x5EED);
        let copies = if r.chance(60) { 2 } else { 3 };
        Config {
            servers: r.within(u64::from(copies), 4) as u32,
            pgs: r.within(1, 4) as u32,
            copies,
            clients: r.within(1, 3) as u32,
            load: Load {
                extents: r.within(1, 6) as u32,
                depth: r.within(1, 8) as usize,
                think_ms: 60,
                operations: 400,
            },
            faults_ms: 14_000,
            fault_every_ms: r.within(200, 2500),
            limits: Limits::default(),
            lie: Lie::None,
            wrong: Wrong::None,
            rot: false,
            trace: false,
        }
    }
}

/// From a server to the MDM.
pub enum Up {
    Hello { haves: Vec<PgHave> },
    Heartbeat { start: StartNo },
    Propose { start: StartNo, request: u64, proposal: Proposal },
}

pub enum Ev {
    Turn {
        node: usize,
        gen: u64,
        at: u64,
    },
    Disk {
        node: usize,
        gen: u64,
        id: OpId,
    },
    Deliver {
        link: LinkId,
    },
    Closed {
        link: LinkId,
        owner: Addr,
        gen: u64,
    },
    Dialled {
        node: usize,
        gen: u64,
        sds: SdsId,
        kind: LinkKind,
    },
    ClientDialled {
        client: usize,
        gen: u64,
        sds: SdsId,
    },
    ClientWake {
        client: usize,
    },
    ClientNews {
        client: usize,
    },
    /// Something from the MDM may be in the inbox.
    Inbox {
        node: usize,
        gen: u64,
    },
    Outbox {
        node: usize,
        gen: u64,
    },
    Beat {
        node: usize,
        gen: u64,
    },
    MdmTick,
    Fault,
    Restart {
        node: usize,
    },
    /// A clean stop has taken too long.
    Stop {
        node: usize,
        gen: u64,
    },
    Heal {
        a: Addr,
        b: Addr,
    },
}

pub struct World {
    pub now: u64,
    pub cfg: Config,
    pub rng: Rng,
    heap: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Ev>,
    next: u64,
    pub nodes: Vec<Node>,
    pub(crate) outboxes: Vec<VecDeque<Up>>,
    pub clients: Vec<Client>,
    pub(crate) client_news: Vec<VecDeque<Vec<Change>>>,
    pub mdm: Mdm,
    pub net: Net,
    pub history: History,
    pub failure: Option<String>,
    pub steps: u64,
    /// How often what happened, by name: proof that a run exercised something.
    pub seen: BTreeMap<String, u64>,
    pub quiet: bool,
}

impl World {
    pub fn new(seed: u64, cfg: Config) -> Result<World, String> {
        let mut rng = Rng::new(seed);
        let now = 10_000 * MS;
        let mdm = Mdm::new(cfg.servers, cfg.pgs, cfg.copies, cfg.load.extents, now);
        let mut nodes = Vec::new();
        for i in 0..cfg.servers {
            let disk = fresh_disk(i as usize, cfg.lie)?;
            let drift = rng.within(0, 8000) as i64 - 4000;
            nodes.push(Node::new(i as usize, disk, rng.below(1 << 40), drift));
        }
        let n = nodes.len();
        let mut w = World {
            now,
            rng,
            heap: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 0,
            outboxes: (0..n).map(|_| VecDeque::new()).collect(),
            nodes,
            clients: Vec::new(),
            client_news: Vec::new(),
            mdm,
            net: Net::default(),
            history: History::default(),
            failure: None,
            steps: 0,
            seen: BTreeMap::new(),
            quiet: false,
            cfg,
        };
        w.mdm.wrong = w.cfg.wrong;
        for i in 0..n {
            w.restart(i);
        }
        for c in 0..w.cfg.clients {
            let id = SdcId(c + 1);
            let instance = w.mdm.register_sdc(id);
            let client = Client::new(id, instance, &w.mdm.view, now + 1500 * MS);
            w.clients.push(client);
            w.client_news.push(VecDeque::new());
            w.at(now + 1500 * MS, Ev::ClientWake { client: c as usize });
        }
        w.spread_news();
        w.at(now + 50 * MS, Ev::MdmTick);
        if w.cfg.fault_every_ms > 0 {
            w.at(now + 2000 * MS, Ev::Fault);
        }
        Ok(w)
    }

    pub fn at(&mut self, at: u64, ev: Ev) {
        self.next += 1;
        self.events.insert(self.next, ev);
        self.heap.push(Reverse((at.max(self.now), self.next)));
    }

    pub fn count(&mut self, what: &str) {
        *self.seen.entry(what.to_string()).or_default() += 1;
    }

    pub fn trace(&self, text: impl FnOnce() -> String) {
        if self.cfg.trace {
            println!("{:>9.3} {}", (self.now as f64 - 1e10) / 1e6, text());
        }
    }

    pub fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    /// Runs until `until` or until something is wrong.
    pub fn run_until(&mut self, until: u64) {
        while self.failure.is_none() {
            let Some(&Reverse((at, n))) = self.heap.peek() else { break };
            if at > until {
                break;
            }
            self.heap.pop();
            self.now = at;
            self.steps += 1;
            if let Some(ev) = self.events.remove(&n) {
                self.handle(ev);
            }
        }
        self.now = self.now.max(until);
    }

    fn handle(&mut self, ev: Ev) {
        // A stopped process handles what came when it goes on.
        if let Some((node, gen)) = node_of(&ev) {
            if self.nodes[node].gen != gen {
                return;
            }
            let until = self.nodes[node].paused_until;
            if until > self.now {
                if let Ev::Turn { .. } = ev {
                    self.nodes[node].turn_at = until;
                    return self.at(until, Ev::Turn { node, gen, at: until });
                }
                return self.at(until, ev);
            }
        }
        match ev {
            Ev::Turn { node, at, .. } => {
                if self.nodes[node].turn_at == at {
                    self.turn(node);
                }
            }
            Ev::Disk { node, id, .. } => {
                if let Some(result) = self.nodes[node].disk.finish(id) {
                    let device = self.nodes[node].device;
                    self.step(node, Event::Disk { device, id, result });
                }
            }
            Ev::Deliver { link } => self.deliver(link),
            Ev::Closed { link, owner, gen } => self.closed(link, owner, gen),
            Ev::Dialled { node, sds, kind, .. } => self.dialled(node, sds, kind),
            Ev::ClientDialled { client, gen, sds } => self.client_dialled(client, gen, sds),
            Ev::ClientWake { client } => {
                self.clients[client].wake_at = u64::MAX;
                self.pump(client);
            }
            Ev::ClientNews { client } => self.client_news(client),
            Ev::Inbox { node, gen } => self.inbox(node, gen),
            Ev::Outbox { node, gen } => self.outbox(node, gen),
            Ev::Beat { node, gen } => self.beat(node, gen),
            Ev::MdmTick => {
                self.mdm.tick(self.now);
                self.spread_news();
                self.at(self.now + 50 * MS, Ev::MdmTick);
            }
            Ev::Fault => self.fault(),
            Ev::Restart { node } => self.restart(node),
            Ev::Stop { node, gen } => {
                if self.nodes[node].gen == gen {
                    self.crash(node, false);
                    self.at(self.now + 100 * MS, Ev::Restart { node });
                }
            }
            Ev::Heal { a, b } => self.heal(a, b),
        }
    }

    // ---- servers ------------------------------------------------------------------------------------------

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

    fn turn(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.turn_at = u64::MAX;
        let local = n.local(self.now);
        let Some(engine) = &mut n.engine else { return };
        let mut out = Vec::new();
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
                    let id = self.nodes[node].disk.begin(op);
                    let slow = if self.rng.chance(1) { self.rng.within(5, 50) * MS } else { 0 };
                    let at = self.now + self.rng.within(20, 400) * 1000 + slow;
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
                    self.crash(node, false);
                    let back = self.now + self.rng.within(50, 2000) * MS;
                    self.at(back, Ev::Restart { node });
                    return;
                }
                Action::Note(n) => {
                    self.trace(|| format!("sds{} {n:?}", node + 1));
                    let text = format!("{n:?}");
                    let name: String = text.chars().take_while(|c| c.is_alphanumeric()).collect();
                    self.count(&name);
                    if (name == "LostData" || name == "StartedEmpty")
                        && self.cfg.lie == Lie::None
                        && self.cfg.wrong == Wrong::None
                    {
                        self.fail(format!("sds{}: {text}", node + 1));
                    }
                }
            }
        }
    }

    pub fn send(&mut self, link: LinkId, frame: quarry_wire::Frame) {
        if let Some((to, at)) = self.net.send(link, frame, self.now, &mut self.rng) {
            self.at(at, Ev::Deliver { link: to });
        }
    }

    pub fn close(&mut self, link: LinkId) {
        if let Some((other, owner, gen)) = self.net.close(link) {
            let at = self.now + self.rng.within(10, 2000) * 1000;
            self.at(at, Ev::Closed { link: other, owner, gen });
        }
    }

    fn deliver(&mut self, link: LinkId) {
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
        match owner {
            Addr::Sds(n) if self.nodes[n].gen == gen => self.step(n, Event::Frame { link, frame }),
            Addr::Sdc(c) if self.clients[c].gen == gen => {
                let (now, rng, h) = (self.now, &mut self.rng, &mut self.history);
                self.clients[c].frame(link, &frame, now, rng, h);
                self.pump(c);
            }
            _ => {}
        }
    }

    fn closed(&mut self, link: LinkId, owner: Addr, gen: u64) {
        match owner {
            Addr::Sds(n) if self.nodes[n].gen == gen => self.step(n, Event::Closed { link }),
            Addr::Sdc(c) if self.clients[c].gen == gen => {
                self.clients[c].closed(link, self.now, &mut self.rng);
                self.pump(c);
            }
            _ => {}
        }
    }

    fn dialled(&mut self, node: usize, sds: SdsId, kind: LinkKind) {
        let to = sds.0 as usize - 1;
        let (a, b) = (Addr::Sds(node), Addr::Sds(to));
        let there = self.nodes.get(to).is_some_and(|n| n.engine.is_some());
        if !there || self.net.is_cut(a, b) {
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
        self.nodes[node].disk = fresh_disk(node, self.cfg.lie)?;
        Ok(())
    }

    pub fn restart(&mut self, node: usize) {
        if self.nodes[node].engine.is_some() {
            return;
        }
        let limits = self.cfg.limits.clone();
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
        n.engine = None;
        n.gen += 1;
        n.inbox.clear();
        n.subscribed = false;
        n.start = StartNo::ZERO;
        n.paused_until = 0;
        if power {
            n.disk.power_loss(&mut self.rng);
        } else {
            n.disk.kill(&mut self.rng);
        }
        self.outboxes[node].clear();
        for l in self.net.of(Addr::Sds(node)) {
            self.close(l);
        }
    }
}

fn fresh_disk(node: usize, lie: Lie) -> Result<Disk, String> {
    let n = node as u32 + 1;
    let ident = DeviceIdent { cluster: [7; 16], device_uuid: [n as u8; 16], device: DeviceId(n) };
    let mut disk = Disk::formatted(&store_config(), ident)?;
    disk.lie = lie;
    Ok(disk)
}

fn node_of(ev: &Ev) -> Option<(usize, u64)> {
    match ev {
        Ev::Turn { node, gen, .. }
        | Ev::Disk { node, gen, .. }
        | Ev::Dialled { node, gen, .. }
        | Ev::Inbox { node, gen }
        | Ev::Beat { node, gen } => Some((*node, *gen)),
        Ev::Closed { owner: Addr::Sds(n), gen, .. } => Some((*n, *gen)),
        _ => None,
    }
}
