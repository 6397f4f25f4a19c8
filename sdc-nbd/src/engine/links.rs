//! Links to data servers: dialling, handshake, liveness.

use super::pgs::Pg;
use super::types::{Action, LinkId, Note, Target};
use super::volume::PartState;
use super::{Engine, Timer};
use quarry_base::{DeviceId, Nanos, PgId, StartNo};
use quarry_wire::{Frame, Header, Hello, Op, Peer, Status, WIRE_VERSION};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// Failures in a row before an unreachable server is reported (R27).
const FAILS_TO_REPORT: u32 = 2;
/// Groups named in one report at most; the next report names the rest.
const REPORT_GROUPS: usize = 256;

/// How it stands with a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Idle,
    /// Until its timer fires.
    Waiting,
    Dialing,
    Hello(LinkId),
    Up(LinkId),
}

#[derive(Default)]
struct Server {
    state: State,
    /// Attempts in a row that led to nothing.
    fails: u32,
    /// Since the first of them.
    down_since: Option<Nanos>,
    reported: Option<Nanos>,
}

struct Link {
    target: Target,
    /// Start number the server gave in its Hello.
    start: StartNo,
    /// Something was sent then and nothing came back since.
    unheard_since: Option<Nanos>,
    /// The server is known to answer pings.
    answers: bool,
}

/// All of them.
#[derive(Default)]
pub(super) struct Links {
    servers: HashMap<Target, Server>,
    links: HashMap<LinkId, Link>,
}

impl Links {
    /// The link to a server, when it is ready for requests.
    pub(super) fn ready(&self, target: Target) -> Option<LinkId> {
        match self.servers.get(&target)?.state {
            State::Up(link) => Some(link),
            _ => None,
        }
    }
    pub(super) fn up_count(&self) -> usize {
        self.servers.values().filter(|s| matches!(s.state, State::Up(_))).count()
    }
    /// Every link, in order.
    pub(super) fn all(&self) -> Vec<LinkId> {
        let mut all: Vec<LinkId> = self.links.keys().copied().collect();
        all.sort_unstable();
        all
    }
    pub(super) fn target(&self, link: LinkId) -> Option<Target> {
        self.links.get(&link).map(|l| l.target)
    }
    pub(super) fn start(&self, link: LinkId) -> StartNo {
        self.links.get(&link).map_or(StartNo::ZERO, |l| l.start)
    }
}

impl Engine {
    /// Dials a server unless that is under way.
    pub(super) fn want(&mut self, target: Target) {
        if self.fenced || self.me.is_none() {
            return;
        }
        if self.links.servers.get(&target).is_some_and(|s| s.state != State::Idle) {
            return;
        }
        let Some(info) = self.view.sds.get(&target.sds) else { return };
        let Some(endpoint) = info.endpoints.get(usize::from(target.shard)).cloned() else { return };
        let same_host = !self.cfg.host.is_empty() && info.host == self.cfg.host;
        self.links.servers.entry(target).or_default().state = State::Dialing;
        self.stats.dials += 1;
        self.out.push(Action::Dial { target, endpoint, same_host });
    }

    /// The wait before dialling again is over.
    pub(super) fn redial(&mut self, target: Target) {
        let Some(s) = self.links.servers.get_mut(&target) else { return };
        if s.state != State::Waiting {
            return;
        }
        s.state = State::Idle;
        if self.wanted.contains(&target) {
            self.want(target);
        }
        self.mark_target(target);
    }

    pub(super) fn dial_failed(&mut self, target: Target) {
        let dialling = self.links.servers.get(&target).is_some_and(|s| s.state == State::Dialing);
        if dialling {
            self.stats.dials_failed += 1;
            self.later(target, false);
        }
    }

    /// Dials again after a while; longest wait if there is no hurry.
    fn later(&mut self, target: Target, patient: bool) {
        let (first, longest) = self.cfg.limits.redial;
        let s = self.links.servers.entry(target).or_default();
        let wait = if patient { longest } else { backoff(first, longest, s.fails) };
        s.fails = s.fails.saturating_add(1);
        s.down_since.get_or_insert(self.now);
        s.state = State::Waiting;
        self.timers.arm(self.now + wait, Timer::Dial(target));
        self.report_unreachable(target);
    }

    pub(super) fn link_up(&mut self, link: LinkId, target: Target) {
        let Some((sdc, instance)) = self.me else { return self.out.push(Action::Close { link }) };
        let dialling = self.links.servers.get(&target).is_some_and(|s| s.state == State::Dialing);
        if self.fenced || !dialling {
            return self.out.push(Action::Close { link });
        }
        let hello = Hello {
            versions: (WIRE_VERSION, WIRE_VERSION),
            cluster: self.cfg.cluster.clone(),
            peer: Peer::Sdc { id: sdc, instance },
            device: DeviceId::ZERO,
            auth: None,
        };
        let mut h = Header::new(Op::Hello);
        h.instance = instance;
        self.out.push(Action::Send { link, frame: Frame::with_meta(h, hello.to_meta()) });
        let l = Link { target, start: StartNo::ZERO, unheard_since: None, answers: false };
        self.links.links.insert(link, l);
        self.links.servers.entry(target).or_default().state = State::Hello(link);
        self.timers.arm(self.now + self.cfg.limits.hello, Timer::Hello(link));
    }

    pub(super) fn hello_due(&mut self, link: LinkId) {
        let Some(target) = self.links.target(link) else { return };
        if self.links.servers.get(&target).is_some_and(|s| s.state == State::Hello(link)) {
            self.drop_link(link, "no answer to the Hello");
        }
    }

    /// The server's answer to our Hello.
    pub(super) fn hello(&mut self, link: LinkId, frame: &Frame) {
        let Some(target) = self.links.target(link) else { return };
        if self.links.servers.get(&target).map(|s| s.state) != Some(State::Hello(link)) {
            return self.drop_link(link, "a second Hello");
        }
        let Some(h) = Hello::from_meta(&frame.meta) else {
            return self.refused(link, "its Hello is not understood".into());
        };
        let start = match h.peer {
            Peer::Sds { id, start } | Peer::SdsHeartbeat { id, start } if id == target.sds => start,
            other => return self.refused(link, format!("another server answers there: {other:?}")),
        };
        if !same_cluster(&h.cluster, &self.cfg.cluster) {
            return self.refused(link, format!("it belongs to cluster {}", h.cluster));
        }
        if let Some(l) = self.links.links.get_mut(&link) {
            l.start = start;
        }
        let s = self.links.servers.entry(target).or_default();
        s.state = State::Up(link);
        s.fails = 0;
        s.down_since = None;
        self.note(Note::LinkReady { target, link });
        self.ping(link);
        self.timers.arm(self.now + self.cfg.limits.silence.0, Timer::Silence(link));
        self.mark_target(target);
    }

    pub(super) fn hello_refused(&mut self, link: LinkId, frame: &Frame) {
        if frame.header.status == Status::StaleInstance {
            return self.fence("a data server knows a newer instance of this client");
        }
        let text = String::from_utf8_lossy(&frame.meta);
        self.refused(link, format!("{:?} {text}", frame.header.status));
    }

    fn refused(&mut self, link: LinkId, why: String) {
        let Some(target) = self.links.target(link) else { return };
        self.note(Note::HelloRefused { target, why });
        self.out.push(Action::Close { link });
        self.forget(link);
        self.later(target, true);
    }

    /// Ends a link from our side.
    pub(super) fn drop_link(&mut self, link: LinkId, why: &'static str) {
        if self.links.links.contains_key(&link) {
            self.out.push(Action::Close { link });
            self.link_lost(link, why);
        }
    }

    /// A link is gone: what was out on it goes back to waiting, under the same ids.
    pub(super) fn link_lost(&mut self, link: LinkId, why: &'static str) {
        let Some(target) = self.links.target(link) else { return };
        self.stats.links_lost += 1;
        self.note(Note::LinkLost { target, link, why });
        self.forget(link);
        self.later(target, false);
    }

    fn forget(&mut self, link: LinkId) {
        self.links.links.remove(&link);
        for n in 0..self.pgs.list.len() {
            self.take_back(
                n,
                |state| matches!(state, PartState::Sent { link: l, .. } if l == link),
            );
        }
    }

    /// Every frame from a link shows that its server lives.
    pub(super) fn heard(&mut self, link: LinkId, op: Op) {
        if let Some(l) = self.links.links.get_mut(&link) {
            l.unheard_since = None;
            l.answers |= op == Op::Pong;
        }
    }

    /// Sends on a link that stands.
    pub(super) fn send(&mut self, link: LinkId, frame: Frame) {
        let now = self.now;
        if let Some(l) = self.links.links.get_mut(&link) {
            l.unheard_since.get_or_insert(now);
        }
        self.out.push(Action::Send { link, frame });
    }

    fn ping(&mut self, link: LinkId) {
        self.send(link, Frame::bare(Header::new(Op::Ping)));
    }

    /// Asks a silent server whether it lives; gives it up when it answered before and does not now.
    pub(super) fn check_silence(&mut self, link: LinkId) {
        let (ask, dead) = self.cfg.limits.silence;
        let Some(l) = self.links.links.get(&link) else { return };
        let silent = l.unheard_since.map_or(Duration::ZERO, |t| self.now.since(t));
        if silent >= dead && l.answers {
            return self.drop_link(link, "the server is silent");
        }
        if silent >= ask {
            self.ping(link);
        }
        self.timers.arm(self.now + ask, Timer::Silence(link));
    }

    /// Wakes the groups that a server leads.
    fn mark_target(&mut self, target: Target) {
        for n in 0..self.pgs.list.len() {
            if self.pgs.list[n].target == Some(target) {
                self.mark_pg(n);
            }
        }
    }

    /// Tells the MDM which groups wait for a server that others can be reached instead of (R27).
    fn report_unreachable(&mut self, target: Target) {
        self.reach_for_others(target);
        let (now, l) = (self.now, &self.cfg.limits);
        let (after, every) = (l.unreachable_after, l.unreachable_every);
        let Some(s) = self.links.servers.get(&target) else { return };
        let down = s.down_since.map_or(Duration::ZERO, |t| now.since(t));
        let led = || self.pgs.list.iter().filter(|p| p.target == Some(target));
        if s.fails < FAILS_TO_REPORT
            || down < after
            || s.reported.is_some_and(|t| now.since(t) < every)
            || !led().any(|p| p.wants_link())
        {
            return;
        }
        // The idle ones too: their requests would find the same out one after the other.
        let (waiting, idle): (Vec<&Pg>, Vec<&Pg>) = led().partition(|p| p.wants_link());
        let told: Vec<Action> = waiting
            .into_iter()
            .chain(idle)
            .filter_map(|p| {
                let ready = |t: Target| self.links.ready(t).is_some();
                self.others(p.id, target).any(ready).then_some(())?;
                Some(Action::Unreachable { pg: p.id, device: p.device? })
            })
            .take(REPORT_GROUPS)
            .collect();
        if told.is_empty() {
            return;
        }
        if let Some(s) = self.links.servers.get_mut(&target) {
            s.reported = Some(now);
        }
        self.out.extend(told);
    }

    /// Where the other in-sync members of a group are.
    fn others(&self, pg: PgId, than: Target) -> impl Iterator<Item = Target> + '_ {
        let members = self.view.pgs.get(&pg).into_iter().flat_map(|c| c.in_sync.iter());
        members.filter_map(move |m| self.target_of(m.device)).filter(move |t| *t != than)
    }

    /// Dials the other members of a server's groups: one may lead nothing, so that no link to it stands, and only
    /// a link shows that it can be reached.
    fn reach_for_others(&mut self, target: Target) {
        let led = self.pgs.list.iter().filter(|p| p.target == Some(target) && p.wants_link());
        let others: BTreeSet<Target> = led.flat_map(|p| self.others(p.id, target)).collect();
        for other in others {
            self.want(other);
        }
    }
}

/// The same id, written with or without hyphens.
pub(super) fn same_cluster(a: &str, b: &str) -> bool {
    let digits = |t: &str| {
        t.chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect::<String>()
    };
    digits(a) == digits(b)
}

/// `first` doubled `n` times, at most `longest`.
pub(super) fn backoff(first: Duration, longest: Duration, n: u32) -> Duration {
    first.saturating_mul(1u32.checked_shl(n.min(16)).unwrap_or(u32::MAX)).min(longest)
}
