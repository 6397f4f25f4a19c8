//! Connections to data servers: dialling, receiving frames, sending them.

use super::shard::{Tag, Token};
use crate::engine::{LinkId, Target};
use quarry_base::Nanos;
use quarry_ring::{ConnId, Reactor, RecvBuf};
use quarry_wire::{Endpoint, Frame, FrameReader, RecvPlan, WireError};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait for a connection.
const DIAL_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

struct Link {
    conn: ConnId,
    target: Target,
    reader: FrameReader,
    /// Being dialled: what to try next, and until when.
    dialling: Option<(Option<Address>, Nanos)>,
}

/// All of them.
pub struct Links {
    map: HashMap<LinkId, Link>,
    next: LinkId,
    no_unix: bool,
}

impl Links {
    pub fn new(no_unix: bool) -> Links {
        Links { map: HashMap::new(), next: 0, no_unix }
    }

    /// Starts connecting: by Unix socket on the same host, by TCP otherwise or when that fails.
    /// False: there is nothing to try.
    pub fn dial(
        &mut self,
        reactor: &mut Reactor,
        target: Target,
        to: &Endpoint,
        same_host: bool,
    ) -> bool {
        let unix = to.unix.clone().filter(|_| same_host && !self.no_unix).map(Address::Unix);
        let tcp = to.tcp.map(Address::Tcp);
        let (first, second) = if unix.is_some() { (unix, tcp) } else { (tcp, None) };
        first.is_some_and(|a| self.connect(reactor, target, a, second))
    }

    fn connect(
        &mut self,
        reactor: &mut Reactor,
        target: Target,
        to: Address,
        then: Option<Address>,
    ) -> bool {
        self.next += 1;
        let token = Token::make(Tag::Link, self.next);
        let conn = match &to {
            Address::Unix(path) => reactor.connect_unix(path, token),
            Address::Tcp(addr) => reactor.connect_tcp(*addr, token),
        };
        match conn {
            Ok(conn) => {
                let dialling = Some((then, reactor.now() + DIAL_TIMEOUT));
                self.map
                    .insert(self.next, Link { conn, target, reader: FrameReader::new(), dialling });
                true
            }
            Err(error) => {
                tracing::debug!(%error, ?to, "cannot dial a data server");
                then.is_some_and(|a| self.connect(reactor, target, a, None))
            }
        }
    }

    /// A connection stands; where it leads.
    pub fn connected(&mut self, reactor: &mut Reactor, id: LinkId) -> Option<Target> {
        let l = self.map.get_mut(&id)?;
        l.dialling.take()?;
        let target = l.target;
        self.arm(reactor, id);
        Some(target)
    }

    /// A connection ended. `Some(target)`: dialling it came to nothing. `None` with `true`: it stood.
    pub fn closed(&mut self, reactor: &mut Reactor, id: LinkId) -> (Option<Target>, bool) {
        let Some(l) = self.map.remove(&id) else { return (None, false) };
        match l.dialling {
            None => (None, true),
            Some((next, _)) => {
                let tried = next.is_some_and(|a| self.connect(reactor, l.target, a, None));
                ((!tried).then_some(l.target), false)
            }
        }
    }

    /// Gives up what has been dialled for too long; where that led.
    pub fn overdue(&mut self, reactor: &mut Reactor, now: Nanos) -> Vec<Target> {
        let late: Vec<LinkId> = self
            .map
            .iter()
            .filter(|(_, l)| l.dialling.as_ref().is_some_and(|(_, at)| *at <= now))
            .map(|(id, _)| *id)
            .collect();
        late.into_iter()
            .filter_map(|id| {
                let conn = self.map.get(&id)?.conn;
                reactor.close(conn);
                self.closed(reactor, id).0
            })
            .collect()
    }

    /// When [`Links::overdue`] has something to do.
    pub fn deadline(&self) -> Option<Nanos> {
        self.map.values().filter_map(|l| l.dialling.as_ref().map(|d| d.1)).min()
    }

    /// Received bytes become frames. An error: the stream is broken, the link is closed.
    pub fn received(
        &mut self,
        reactor: &mut Reactor,
        id: LinkId,
        buf: RecvBuf,
        n: usize,
        out: &mut Vec<Frame>,
    ) -> Result<(), WireError> {
        let Some(l) = self.map.get_mut(&id) else { return Ok(()) };
        let plan = RecvPlan { buf: buf.buf, start: buf.start, end: buf.end };
        let result = l.reader.received(plan, n, out);
        match result {
            Ok(()) => self.arm(reactor, id),
            Err(_) => self.close(reactor, id),
        }
        result
    }

    fn arm(&mut self, reactor: &mut Reactor, id: LinkId) {
        if let Some(l) = self.map.get_mut(&id) {
            let p = l.reader.next_recv();
            reactor.arm_recv(l.conn, RecvBuf { buf: p.buf, start: p.start, end: p.end });
        }
    }

    pub fn send(&self, reactor: &mut Reactor, id: LinkId, frame: Frame) {
        if let Some(l) = self.map.get(&id) {
            let (head, body) = frame.encode();
            reactor.send(l.conn, head, body);
        }
    }

    pub fn close(&mut self, reactor: &mut Reactor, id: LinkId) {
        if let Some(l) = self.map.remove(&id) {
            reactor.close(l.conn);
        }
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }
}
