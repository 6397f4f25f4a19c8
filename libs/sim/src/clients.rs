//! What the world does for its clients.

use crate::client::{Client, Unknown, Want};
use crate::coverage::note_name;
use crate::faults::Fault;
use crate::mdm::Mdm;
use crate::net::Addr;
use crate::world::{Ev, World, MS};
use mdm::state::{Answer, Op};
use quarry_base::*;
use quarry_sdc::engine::{Event, LinkId, Note, Target};
use quarry_wire::{Change, ClusterView, Frame};
use std::collections::VecDeque;

/// Processes of clients in a run.
const MOST_CLIENTS: usize = 8;

/// From the MDM to a client, in order.
pub(crate) enum News {
    Changes(ConfigIndex, Vec<Change>),
    /// Of a session made anew.
    View(Box<ClusterView>),
}

/// An unmap that was ordered: once it is confirmed, nothing of the old mapping may take effect (R21).
pub(crate) struct Unmap {
    pub sdc: SdcId,
    pub volume: VolumeId,
    index: ConfigIndex,
    pub generation: Generation,
    pub confirmed: Option<u64>,
    pub unknown: Vec<Unknown>,
}

impl World {
    pub(crate) fn client_news(&mut self, c: usize) {
        if self.net.is_cut(Addr::Mdm, Addr::Sdc(c)) {
            return self.at(self.now + 5 * MS, Ev::ClientNews { client: c });
        }
        match self.client_news[c].pop_front() {
            None => return,
            Some(News::Changes(index, changes)) => {
                self.clients[c].on_news(index, changes, self.now);
            }
            Some(News::View(view)) => self.clients[c].register(&view, self.now),
        }
        self.pump(c);
    }

    pub(crate) fn inform_client(&mut self, c: usize, news: News) {
        if !self.clients[c].subscribed {
            return;
        }
        self.client_news[c].push_back(news);
        let at = self.now + self.rng.within(100, 20_000) * 1000;
        self.at(at, Ev::ClientNews { client: c });
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
                    sdc,
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
        let gen = self.clients[c].gen;
        for w in wants {
            match w {
                Want::Dial(target) => {
                    let at = self.now + self.rng.within(50, 2000) * 1000;
                    self.at(at, Ev::ClientDialled { client: c, gen, target });
                }
                Want::Send(link, frame) => {
                    self.trace(|| sent(c, link, &frame));
                    self.send(link, frame);
                }
                Want::Close(link) => self.close(link),
                Want::WakeAt(at) => {
                    let client = &mut self.clients[c];
                    if at < client.wake_at {
                        client.wake_at = at;
                        self.at(at, Ev::ClientWake { client: c });
                    }
                }
                Want::Unreachable(pg, device) => {
                    self.count("unreachable reported");
                    let at = self.now + self.rng.within(100, 3000) * 1000;
                    self.at(at, Ev::ClientReport { client: c, gen, pg, device });
                }
                Want::Done(r, result) => self.answered(c, r, result),
                Want::Note(n) => self.client_note(c, &n),
            }
        }
    }

    fn client_note(&mut self, c: usize, n: &Note) {
        self.trace(|| format!("client {} {n:?}", c + 1));
        let text = format!("{n:?}");
        self.count(&format!("sdc {}", note_name(&text)));
        match n {
            Note::LinkReady { .. }
            | Note::LinkLost { .. }
            | Note::HelloRefused { .. }
            | Note::FellBack { .. } => {}
            Note::Fenced { .. } if self.newest(c) != c => {}
            // Nothing is damaged on the way.
            Note::Fenced { .. }
            | Note::StaleRequest { .. }
            | Note::Refused { .. }
            | Note::BadData { .. } => self.complain(c, &text),
        }
    }

    /// As the MDM's daemon takes it; without a session the client's drops it.
    pub(crate) fn client_report(&mut self, c: usize, gen: u64, pg: PgId, device: DeviceId) {
        let session = self.clients[c].subscribed && self.newest(c) == c;
        if self.clients[c].gen != gen || self.now < self.mdm.down_until || !session {
            return;
        }
        if self.net.is_cut(Addr::Sdc(c), Addr::Mdm) {
            return self.at(self.now + 5 * MS, Ev::ClientReport { client: c, gen, pg, device });
        }
        let sdc = self.clients[c].id;
        let done = self.mdm.submit(Op::Unreachable { sdc, pg, device }, self.now);
        self.trace(|| {
            format!("mdm: client {} cannot reach device {device} for {pg}: {done:?}", c + 1)
        });
        self.count(if done.is_ok() { "Unreachable accepted" } else { "Unreachable refused" });
        self.spread_news();
    }

    /// The newest process under the name of a client.
    pub(crate) fn newest(&self, c: usize) -> usize {
        let id = self.clients[c].id;
        self.clients.iter().rposition(|x| x.id == id).unwrap_or(c)
    }

    /// A client is started a second time while its process lives on, which is to end once it learns of that (R19).
    pub(crate) fn start_twice(&mut self) -> bool {
        let c = self.rng.below(self.clients.len() as u64) as usize;
        if self.newest(c) != c || self.clients.len() >= MOST_CLIENTS {
            return false;
        }
        let id = self.clients[c].id;
        self.trace(|| format!("--- client {} is started a second time", c + 1));
        let instance = self.mdm.register_sdc(id, self.now);
        self.spread_news();
        let begin = self.now + self.rng.within(1, 100) * MS;
        self.add_client(id, instance, begin);
        true
    }

    pub(crate) fn crash_client(&mut self) -> bool {
        let c = self.rng.below(self.clients.len() as u64) as usize;
        if self.newest(c) != c {
            return false;
        }
        let id = self.clients[c].id;
        self.trace(|| format!("--- client {} crashes", c + 1));
        let late = self.rng.chance(50);
        for l in self.net.of(Addr::Sdc(c)) {
            if late {
                // Its host goes down: what was sent arrives, the servers learn the end much later.
                self.count("late requests");
                let at = self.now + self.rng.within(20, 1500) * MS;
                self.net.stall(l, at);
                self.at(at + 100 * MS, Ev::Sever { link: l });
            } else {
                self.close(l);
            }
        }
        let instance = self.mdm.register_sdc(id, self.now);
        self.spread_news();
        let view = self.mdm.state.view();
        let back = self.now + self.rng.within(1, 100) * MS;
        self.seen.client(&self.clients[c]);
        let open = self.clients[c].crash(instance, &view, self.now, back);
        // What was on its way to the process that is gone is not told to this one.
        self.client_news[c].clear();
        self.clients[c].subscribed = true;
        open.iter().for_each(|r| self.orphan(c, r));
        self.at(back, Ev::ClientWake { client: c });
        true
    }

    pub(crate) fn give_back(&mut self, client: usize, volume: VolumeId) {
        if self.now < self.mdm.down_until {
            return self.at(self.now + 50 * MS, Ev::GiveBack { client, volume });
        }
        self.map(client, volume, true);
    }

    /// A client's session breaks: it hears nothing until it has a new one, and then how things are.
    pub(crate) fn cut_client_session(&mut self) -> bool {
        let c = self.rng.below(self.clients.len() as u64) as usize;
        if !std::mem::take(&mut self.clients[c].subscribed) {
            return false;
        }
        self.trace(|| format!("--- the session of client {} breaks", c + 1));
        self.client_news[c].clear();
        let at = self.now + self.rng.within(20, 1500) * MS;
        self.at(at, Ev::ClientSession { client: c });
        true
    }

    pub(crate) fn client_session(&mut self, c: usize) {
        if self.now < self.mdm.down_until || self.net.is_apart(Addr::Mdm, Addr::Sdc(c)) {
            return self.at(self.now + 20 * MS, Ev::ClientSession { client: c });
        }
        self.clients[c].subscribed = true;
        self.count("client session");
        let view = self.mdm.state.view();
        self.inform_client(c, News::View(Box::new(view)));
    }

    pub(crate) fn add_client(&mut self, id: SdcId, instance: Instance, begin: u64) {
        let view = self.mdm.state.view();
        let mut client = Client::new(id, instance, &self.cfg.sdc, &view, begin);
        client.disks_fail = self.cfg.mix.iter().any(|m| m.0 == Fault::FailingReads);
        self.clients.push(client);
        self.client_news.push(VecDeque::new());
        self.at(begin, Ev::ClientWake { client: self.clients.len() - 1 });
    }

    pub(crate) fn client_dialled(&mut self, c: usize, gen: u64, target: Target) {
        if self.clients[c].gen != gen {
            return;
        }
        let to = target.sds.0 as usize - 1;
        let (a, b) = (Addr::Sdc(c), Addr::Sds(to));
        if self.nodes[to].engine.is_none() || self.net.is_apart(a, b) {
            return self.tell_client(c, Event::DialFailed { target });
        }
        let (link, far) = self.net.connect((a, gen), (b, self.nodes[to].gen));
        self.accept(to, far);
        self.tell_client(c, Event::LinkUp { link, target });
    }

    /// An event for the client's engine, and its turn.
    pub(crate) fn tell_client(&mut self, c: usize, e: Event) {
        self.clients[c].event(e, self.now);
        self.pump(c);
    }
}

fn sent(c: usize, link: LinkId, f: &Frame) -> String {
    let h = &f.header;
    format!(
        "    client {} {:?} link {link} {} epoch {} id {}.{} low {} generation {} at {}+{}k len {}",
        c + 1,
        h.op,
        h.pg,
        h.epoch,
        h.instance,
        h.request_id,
        h.lowest_unanswered,
        h.generation,
        h.extent,
        h.offset / 1024,
        h.length
    )
}
