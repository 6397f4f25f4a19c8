//! Connections: who is on the other end, and which of ours reach a peer.
//!
//! A data server dials one data connection to each peer that is a member of a group it leads (its streams
//! go there) and one heartbeat connection (its lease questions). The peer dials its own for its groups.
//! So no two sides ever race for one connection.

use crate::event::{Action, LinkId, LinkKind};
use crate::grants::Grants;
use quarry_base::{Instance, Nanos, SdcId, SdsId, StartNo};
use quarry_wire::{Frame, Header, Hello, Op, Peer, Status, WIRE_VERSION};
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

/// Who is on the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    /// Accepted, has not said Hello.
    Stranger,
    /// Dialled, has not answered our Hello.
    Asked(SdsId, LinkKind),
    Sdc {
        id: SdcId,
        instance: Instance,
    },
    Sds {
        id: SdsId,
        start: StartNo,
    },
    Beat {
        id: SdsId,
        start: StartNo,
    },
}

/// One of our two connections to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Conn {
    /// Usable connection and the peer's start number.
    pub up: Option<(LinkId, StartNo)>,
    dialling: bool,
    retry_at: Nanos,
    /// Since when it is not usable.
    pub down_since: Nanos,
}

/// A data server we talk to.
#[derive(Default)]
pub(crate) struct PeerLinks {
    /// Groups we lead with a member there.
    refs: u32,
    pub data: Conn,
    pub beat: Conn,
    pub grants: Grants,
}

#[derive(Default)]
pub(crate) struct Links {
    links: HashMap<LinkId, Who>,
    pub peers: BTreeMap<SdsId, PeerLinks>,
    /// To be closed by the engine at the end of the step.
    closing: Vec<LinkId>,
    /// Connections that have not said Hello, or not answered ours, and when that is too late; in order.
    silent: VecDeque<(LinkId, Nanos)>,
}

/// What a Hello changed.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Met {
    /// Nothing that matters to the groups.
    Nobody,
    /// Our data connection to this peer is usable.
    DataUp(SdsId),
    /// Our heartbeat connection is usable.
    BeatUp(SdsId),
    Refused(&'static str),
}

impl Links {
    pub fn who(&self, link: LinkId) -> Option<Who> {
        self.links.get(&link).copied()
    }

    pub fn close_soon(&mut self, link: LinkId) {
        if self.links.contains_key(&link) && !self.closing.contains(&link) {
            self.closing.push(link);
        }
    }

    pub fn take_closing(&mut self) -> Vec<LinkId> {
        std::mem::take(&mut self.closing)
    }

    /// Every connection, in order of its number.
    pub fn all(&self) -> Vec<LinkId> {
        let mut v: Vec<LinkId> = self.links.keys().copied().collect();
        v.sort_unstable();
        v
    }

    pub fn count(&self) -> usize {
        self.links.len()
    }

    /// Somebody dialled us and has to say Hello by `due`.
    pub fn accepted(&mut self, link: LinkId, due: Nanos) {
        self.links.insert(link, Who::Stranger);
        self.silent.push_back((link, due));
    }

    /// Ends what has not introduced itself in time.
    pub fn end_silent(&mut self, now: Nanos) {
        while let Some((link, _)) = self.silent.front().copied().filter(|(_, due)| *due <= now) {
            self.silent.pop_front();
            if matches!(self.who(link), Some(Who::Stranger | Who::Asked(..))) {
                self.close_soon(link);
            }
        }
    }

    /// A process of `sds` with this start number lives: our connections to an earlier one are dead, though its host may
    /// not have been there to say so.
    pub fn met(&mut self, sds: SdsId, start: StartNo) {
        let Some(p) = self.peers.get(&sds) else { return };
        let dead = [p.data.up, p.beat.up].into_iter().flatten().filter(|(_, s)| *s < start);
        let dead: SmallVec<[LinkId; 2]> = dead.map(|(link, _)| link).collect();
        dead.into_iter().for_each(|link| self.close_soon(link));
    }

    /// Sends a frame if the link is still there.
    pub fn send(&self, link: LinkId, frame: Frame, out: &mut Vec<Action>) {
        if self.links.contains_key(&link) {
            out.push(Action::Send { link, frame });
        }
    }

    /// Our data connection to `sds`, if its process there has this start number.
    pub fn data(&self, sds: SdsId, start: StartNo) -> Option<LinkId> {
        let (link, s) = self.peers.get(&sds)?.data.up?;
        (s == start).then_some(link)
    }

    /// Since when we have no data connection to that start of `sds`.
    pub fn away_since(&self, sds: SdsId) -> Nanos {
        self.peers.get(&sds).map_or(Nanos::ZERO, |p| p.data.down_since)
    }

    pub fn add_ref(&mut self, sds: SdsId, now: Nanos) {
        let p = self.peers.entry(sds).or_default();
        if p.refs == 0 && p.data.up.is_none() {
            p.data.down_since = now;
        }
        p.refs += 1;
    }

    pub fn drop_ref(&mut self, sds: SdsId) {
        if let Some(p) = self.peers.get_mut(&sds) {
            p.refs = p.refs.saturating_sub(1);
        }
    }

    /// Dials what is wanted and not there.
    pub fn dial(&mut self, now: Nanos, every: Duration, out: &mut Vec<Action>) {
        for (&sds, p) in self.peers.iter_mut().filter(|(_, p)| p.refs > 0) {
            for (conn, kind) in [(&mut p.data, LinkKind::Data), (&mut p.beat, LinkKind::Heartbeat)]
            {
                if conn.up.is_none() && !conn.dialling && now >= conn.retry_at {
                    conn.dialling = true;
                    conn.retry_at = now + every;
                    out.push(Action::Dial { sds, kind });
                }
            }
        }
    }

    /// When [`Links::dial`] or [`Links::end_silent`] has something to do next.
    pub fn next_due(&self) -> Option<Nanos> {
        let wanted = self.peers.values().filter(|p| p.refs > 0);
        let conns = wanted.flat_map(|p| [&p.data, &p.beat]);
        let dials = conns.filter(|c| c.up.is_none() && !c.dialling).map(|c| c.retry_at).min();
        dials.into_iter().chain(self.silent.front().map(|(_, due)| *due)).min()
    }

    fn conn(&mut self, sds: SdsId, kind: LinkKind) -> &mut Conn {
        let p = self.peers.entry(sds).or_default();
        match kind {
            LinkKind::Data => &mut p.data,
            LinkKind::Heartbeat => &mut p.beat,
        }
    }

    pub fn dial_failed(&mut self, sds: SdsId, kind: LinkKind) {
        self.conn(sds, kind).dialling = false;
    }

    /// Our own connection is there: say Hello first; the answer has to come by `due`.
    pub fn dialled(
        &mut self,
        link: LinkId,
        (sds, kind): (SdsId, LinkKind),
        due: Nanos,
        hello: Hello,
        out: &mut Vec<Action>,
    ) {
        self.links.insert(link, Who::Asked(sds, kind));
        self.silent.push_back((link, due));
        out.push(Action::Send { link, frame: hello_frame(&hello) });
    }

    /// The connection is gone. True if it was one of ours to a peer.
    pub fn closed(&mut self, link: LinkId, now: Nanos) -> Option<Who> {
        let who = self.links.remove(&link)?;
        if let Who::Asked(sds, kind) = who {
            self.conn(sds, kind).dialling = false;
        }
        for p in self.peers.values_mut() {
            for c in [&mut p.data, &mut p.beat] {
                if c.up.is_some_and(|(l, _)| l == link) {
                    c.up = None;
                    c.down_since = now;
                }
            }
        }
        Some(who)
    }

    /// First frame of a connection. `ours` is our own Hello, sent back to a dialler. `keeps`: a broken rule.
    pub fn hello(
        &mut self,
        link: LinkId,
        frame: &Frame,
        ours: &Hello,
        keeps: bool,
        out: &mut Vec<Action>,
    ) -> Met {
        let theirs = match serde_json_hello(frame) {
            Some(h) => h,
            None => return Met::Refused("malformed Hello"),
        };
        if theirs.cluster != ours.cluster {
            return Met::Refused("another cluster");
        }
        if theirs.versions.0 > WIRE_VERSION || theirs.versions.1 < WIRE_VERSION {
            return Met::Refused("no common wire version");
        }
        match self.who(link) {
            Some(Who::Stranger) => {
                let who = match theirs.peer {
                    Peer::Sdc { id, instance } => Who::Sdc { id, instance },
                    Peer::Sds { id, start } => Who::Sds { id, start },
                    Peer::SdsHeartbeat { id, start } => Who::Beat { id, start },
                };
                match who {
                    Who::Sdc { id, instance } if !keeps => self.close_older(id, instance),
                    Who::Sds { id, start } | Who::Beat { id, start } => self.met(id, start),
                    _ => {}
                }
                self.links.insert(link, who);
                out.push(Action::Send { link, frame: hello_frame(ours) });
                Met::Nobody
            }
            Some(Who::Asked(sds, kind)) => match theirs.peer {
                Peer::Sds { id, start } if id == sds => {
                    let conn = self.conn(sds, kind);
                    conn.dialling = false;
                    conn.up = Some((link, start));
                    match kind {
                        LinkKind::Data => {
                            self.links.insert(link, Who::Sds { id, start });
                            Met::DataUp(sds)
                        }
                        LinkKind::Heartbeat => {
                            self.links.insert(link, Who::Beat { id, start });
                            Met::BeatUp(sds)
                        }
                    }
                }
                _ => Met::Refused("another server answered"),
            },
            _ => Met::Refused("a second Hello"),
        }
    }

    /// A client that connects anew has given its older connections up (R20). What may still come over one of them, sent
    /// again by its host's network, would be older than what comes over the new one.
    fn close_older(&mut self, sdc: SdcId, instance: Instance) {
        let older =
            |w: &Who| matches!(w, Who::Sdc { id, instance: i } if *id == sdc && *i <= instance);
        let mut all: Vec<LinkId> =
            self.links.iter().filter(|(_, w)| older(w)).map(|(l, _)| *l).collect();
        all.sort_unstable();
        all.into_iter().for_each(|l| self.close_soon(l));
    }
}

fn serde_json_hello(frame: &Frame) -> Option<Hello> {
    Hello::from_meta(&frame.meta)
}

pub(crate) fn hello_frame(h: &Hello) -> Frame {
    Frame::with_meta(Header::new(Op::Hello), h.to_meta())
}

pub(crate) fn refusal() -> Frame {
    let mut h = Header::new(Op::HelloRefused);
    h.status = Status::NotAccepted;
    Frame::bare(h)
}
