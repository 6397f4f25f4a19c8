//! The event heap and what happens at each event. No wall clock, no threads: one seed, one run.

use crate::client::Client;
use crate::clients::{News, Unmap};
use crate::config::Config;
use crate::coverage::Seen;
use crate::history::History;
use crate::mdm::{Joining, Mdm};
use crate::net::{Addr, Net};
use crate::node::Node;
use crate::rng::Rng;
use crate::servers::fresh_disk;
use quarry_base::*;
use quarry_replica::{Event, LinkId, LinkKind};
use quarry_sdc::engine::Target;
use quarry_store::OpId;
use quarry_wire::{PgConfig, Proposal};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

pub const MS: u64 = 1_000_000;

/// From a server to the MDM.
pub enum Up {
    Hello,
    Heartbeat { start: StartNo, confirmed: ConfigIndex, failed: Vec<DeviceId> },
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
        target: Target,
    },
    /// A client's report that it cannot reach a primary.
    ClientReport {
        client: usize,
        gen: u64,
        pg: PgId,
        device: DeviceId,
    },
    ClientWake {
        client: usize,
    },
    /// A client gets a new session with the MDM.
    ClientSession {
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
    /// The server learns that its session ended.
    SessionEnd {
        node: usize,
        gen: u64,
        session: u64,
    },
    /// A process died: the MDM sees its session close.
    Gone {
        sds: SdsId,
        start: StartNo,
    },
    MdmTick,
    /// The MDM's process starts again.
    MdmBack,
    Fault,
    /// A server that has just begun to lead is asked to stop.
    Press {
        node: usize,
    },
    /// A server is killed and started again at once.
    Strike {
        node: usize,
    },
    /// A connection broke at this end too.
    Broken {
        link: LinkId,
        owner: Addr,
        gen: u64,
    },
    /// A connection of a host that is gone ends at last.
    Sever {
        link: LinkId,
    },
    /// A volume is mapped to a client again.
    GiveBack {
        client: usize,
        volume: VolumeId,
    },
    /// The operator takes a fenced server back.
    Recover {
        node: usize,
    },
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
    Forsake(crate::forsake::Step),
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
    pub(crate) client_news: Vec<VecDeque<News>>,
    pub(crate) unmaps: Vec<Unmap>,
    /// Newest configuration published of each group.
    pub(crate) configs: BTreeMap<PgId, PgConfig>,
    /// Start of a server's host in which a process start was given.
    pub(crate) boots: BTreeMap<StartNo, u64>,
    /// When a device left the in-sync set of a group.
    pub(crate) left_at: BTreeMap<(PgId, DeviceId), u64>,
    pub(crate) forsaking: crate::forsake::Forsaking,
    pub mdm: Mdm,
    pub net: Net,
    pub history: History,
    pub failure: Option<String>,
    pub steps: u64,
    pub faults: u64,
    /// How often what happened, by name: proof that a run exercised something.
    pub seen: Seen,
    pub quiet: bool,
}

impl World {
    pub fn new(seed: u64, cfg: Config) -> Result<World, String> {
        let mut rng = Rng::new(seed);
        let now = 10_000 * MS;
        let mdm = Mdm::new(&cfg.shape, now)?;
        let mut nodes = Vec::new();
        for i in 0..cfg.shape.servers {
            let disk = fresh_disk(i as usize, &cfg)?;
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
            unmaps: Vec::new(),
            configs: BTreeMap::new(),
            boots: BTreeMap::new(),
            left_at: BTreeMap::new(),
            forsaking: Default::default(),
            mdm,
            net: Net::default(),
            history: History::default(),
            failure: None,
            steps: 0,
            faults: 0,
            seen: Seen::default(),
            quiet: false,
            cfg,
        };
        w.mdm.wrong = w.cfg.wrong;
        w.found()?;
        w.at(now + 50 * MS, Ev::MdmTick);
        if w.cfg.fault_every_ms > 0 {
            w.at(now + 2000 * MS, Ev::Fault);
        }
        Ok(w)
    }

    /// The cluster as an operator sets it up: servers, a pool, a volume mapped to every client.
    fn found(&mut self) -> Result<(), String> {
        let now = self.now;
        let mut starts = Vec::new();
        for n in &self.nodes {
            let (sds, device) = (n.sds, n.device);
            let devices = vec![n.report()];
            let j = Joining { sds, device, resume: None, boot: 1, haves: Vec::new(), devices };
            let start = self.mdm.register_sds(j, now).ok_or("a server was refused")?;
            self.boots.insert(start, 1);
            starts.push(start);
        }
        self.mdm.lay_out(&self.cfg.shape, self.cfg.load.extents, now)?;
        for c in 0..self.cfg.clients {
            self.mdm.register_sdc(SdcId(c + 1), now);
            for volume in self.mdm.state.volumes.keys().copied().collect::<Vec<_>>() {
                let map = mdm::state::Op::Map {
                    volume,
                    sdc: SdcId(c + 1),
                    read_only: false,
                    device: false,
                    io_timeout_ms: None,
                    no_device: false,
                };
                self.mdm.submit(map, now).map_err(|e| e.to_string())?;
            }
        }
        self.spread_news();
        let view = self.mdm.state.view();
        for (i, start) in starts.into_iter().enumerate() {
            self.restart(i);
            self.outboxes[i].clear();
            let sds = self.nodes[i].sds;
            self.nodes[i].start = start;
            self.step(i, Event::Registered { sds, start });
            self.tell_node(i, Event::View(view.clone()));
            self.nodes[i].subscribed = true;
        }
        for c in 0..self.cfg.clients {
            let id = SdcId(c + 1);
            let instance = self.mdm.state.sdcs.get(&id).map_or(Instance::ZERO, |s| s.instance);
            self.add_client(id, instance, now + 1500 * MS);
        }
        Ok(())
    }

    pub fn at(&mut self, at: u64, ev: Ev) {
        self.next += 1;
        self.events.insert(self.next, ev);
        self.heap.push(Reverse((at.max(self.now), self.next)));
    }

    pub fn count(&mut self, what: &str) {
        self.seen.count(what);
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
            Ev::Disk { node, id, gen: _ } => {
                let until = self.nodes[node].hung_until;
                if until > self.now {
                    return self.at(until, ev);
                }
                if let Some(result) = self.nodes[node].disk.finish(id) {
                    let device = self.nodes[node].device;
                    self.step(node, Event::Disk { device, id, result });
                }
            }
            Ev::Deliver { link } => self.deliver(link),
            Ev::Closed { link, owner, gen } => self.closed(link, owner, gen),
            Ev::Dialled { node, sds, kind, .. } => self.dialled(node, sds, kind),
            Ev::ClientDialled { client, gen, target } => self.client_dialled(client, gen, target),
            Ev::ClientReport { client, gen, pg, device } => {
                self.client_report(client, gen, pg, device)
            }
            Ev::ClientWake { client } => {
                self.clients[client].wake_at = u64::MAX;
                self.pump(client);
            }
            Ev::ClientSession { client } => self.client_session(client),
            Ev::ClientNews { client } => self.client_news(client),
            Ev::Inbox { node, gen } => self.inbox(node, gen),
            Ev::Outbox { node, gen } => self.outbox(node, gen),
            Ev::Beat { node, gen } => self.beat(node, gen),
            Ev::MdmTick => {
                self.mdm.tick(self.now);
                self.spread_news();
                self.settle_unmaps();
                self.settle_forsaking();
                self.at(self.now + 50 * MS, Ev::MdmTick);
            }
            Ev::SessionEnd { node, gen, session } => self.session_end(node, gen, session),
            Ev::Gone { sds, start } => self.gone(sds, start),
            Ev::MdmBack => {
                self.trace(|| "--- the mdm is back".into());
                self.mdm.restart(self.now);
                let view = self.mdm.state.view();
                for c in 0..self.clients.len() {
                    self.inform_client(c, News::View(Box::new(view.clone())));
                }
            }
            Ev::Broken { link, owner, gen } => self.told_closed(link, owner, gen),
            Ev::Strike { node } => self.kill_shortly(node),
            Ev::Press { node } => self.press(node),
            Ev::Sever { link } => self.close(link),
            Ev::GiveBack { client, volume } => self.give_back(client, volume),
            Ev::Recover { node } => self.recover_sds(node),
            Ev::Fault => self.fault(),
            Ev::Restart { node } => self.restart(node),
            Ev::Stop { node, gen } => {
                if self.nodes[node].gen == gen {
                    self.crash(node, false);
                    self.at(self.now + 100 * MS, Ev::Restart { node });
                }
            }
            Ev::Heal { a, b } => self.heal(a, b),
            Ev::Forsake(step) => self.forsake_step(step),
        }
    }
}

fn node_of(ev: &Ev) -> Option<(usize, u64)> {
    match ev {
        Ev::Turn { node, gen, .. }
        | Ev::Disk { node, gen, .. }
        | Ev::Dialled { node, gen, .. }
        | Ev::Inbox { node, gen }
        | Ev::SessionEnd { node, gen, .. }
        | Ev::Beat { node, gen } => Some((*node, *gen)),
        Ev::Closed { owner: Addr::Sds(n), gen, .. }
        | Ev::Broken { owner: Addr::Sds(n), gen, .. } => Some((*n, *gen)),
        _ => None,
    }
}
