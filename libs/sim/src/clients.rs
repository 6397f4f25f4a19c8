//! What the world does for its clients.

use crate::client::{Unknown, Want};
use crate::coverage::note_name;
use crate::mdm::Mdm;
use crate::net::Addr;
use crate::world::{Ev, World, MS};
use mdm::state::{Answer, Op};
use quarry_base::*;
use quarry_sdc::engine::{Event, LinkId, Note, Target};
use quarry_wire::{Change, ClusterView, Frame};

/// From the MDM to a client, in order.
pub(crate) enum News {
    Changes(ConfigIndex, Vec<Change>),
    /// Of a session made anew.
    View(Box<ClusterView>),
}

/// An unmap that was ordered: once it is confirmed, nothing of the old mapping may take effect (R21).
pub(crate) struct Unmap {
    pub client: usize,
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
                    self.trace(|| {
                        format!("client {} cannot reach device {device} for {pg}", c + 1)
                    });
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
            Note::LinkReady { .. } | Note::LinkLost { .. } | Note::HelloRefused { .. } => {}
            // Here nobody runs a second process under a client's name, and nothing is damaged on the way.
            Note::Fenced { .. }
            | Note::StaleRequest { .. }
            | Note::Refused { .. }
            | Note::BadData { .. } => self.complain(c, &text),
        }
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
