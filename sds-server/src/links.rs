//! Connections: a number each, a frame reader each, and how one is dialled.
//!
//! Back-pressure: a client that does not take its answers is not read from; a peer whose queue grows
//! beyond all measure is cut off. Servers are always read from, or two of them could wait for each
//! other.

use quarry_base::{Nanos, SdsId};
use quarry_replica::LinkKind;
use quarry_ring::{ConnId, Reactor, RecvBuf, RingError};
use quarry_wire::{Endpoint, Frame, FrameReader, Hello, Op, Peer, WireError};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Answers queued for a client, bytes, beyond which it is not read from.
pub const MAX_CLIENT_QUEUE: usize = 8 << 20;
/// Bytes queued for any peer beyond which the connection is cut.
pub const MAX_QUEUE: usize = 256 << 20;
/// Longest wait for a connection to another server.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The daemon's number for a connection, never used again.
pub type LinkId = u64;

/// Where to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// A connection being made.
pub struct Dialling {
    pub sds: SdsId,
    pub kind: LinkKind,
    /// Addresses to try when this one fails.
    rest: VecDeque<Address>,
    pub deadline: Nanos,
}

/// One connection.
pub struct Link {
    pub conn: ConnId,
    reader: FrameReader,
    pub dialling: Option<Dialling>,
    client: bool,
    /// A receive is with the kernel.
    armed: bool,
}

/// All connections.
#[derive(Default)]
pub struct Links {
    map: HashMap<LinkId, Link>,
    next: LinkId,
}

/// The addresses of an endpoint in the order to try them: the Unix socket first when it is on this host.
pub fn addresses(same_host: bool, e: &Endpoint) -> VecDeque<Address> {
    let unix = e.unix.clone().filter(|_| same_host).map(Address::Unix);
    unix.into_iter().chain(e.tcp.map(Address::Tcp)).collect()
}

impl Links {
    /// How many.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The connection behind a number.
    pub fn get(&self, id: LinkId) -> Option<&Link> {
        self.map.get(&id)
    }

    /// Takes over an accepted connection.
    pub fn accept(&mut self, reactor: &mut Reactor, conn: ConnId) -> LinkId {
        let id = self.insert(conn, None);
        reactor.set_token(conn, id);
        id
    }

    fn insert(&mut self, conn: ConnId, dialling: Option<Dialling>) -> LinkId {
        self.next += 1;
        let link = Link { conn, reader: FrameReader::new(), dialling, client: false, armed: false };
        self.map.insert(self.next, link);
        self.next
    }

    /// Starts connecting to the first address that can be tried. `None`: there is none.
    pub fn dial(
        &mut self,
        reactor: &mut Reactor,
        sds: SdsId,
        kind: LinkKind,
        mut to: VecDeque<Address>,
    ) -> Option<(LinkId, Nanos)> {
        while let Some(address) = to.pop_front() {
            let token = self.next + 1;
            match connect(reactor, &address, token) {
                Ok(conn) => {
                    let deadline = reactor.now() + DIAL_TIMEOUT;
                    let id = self.insert(conn, Some(Dialling { sds, kind, rest: to, deadline }));
                    return Some((id, deadline));
                }
                Err(error) => tracing::debug!(%error, sds = sds.0, "cannot dial"),
            }
        }
        None
    }

    /// A dialled connection stands. Gives whom it reaches; `None` if it was not being dialled.
    pub fn connected(&mut self, id: LinkId) -> Option<(SdsId, LinkKind)> {
        let d = self.map.get_mut(&id)?.dialling.take()?;
        Some((d.sds, d.kind))
    }

    /// Forgets a connection. If it was being dialled: what is still to be tried.
    pub fn remove(&mut self, id: LinkId) -> Option<Link> {
        self.map.remove(&id)
    }

    /// Feeds received bytes. Frames are appended to `out`, also those before an error.
    pub fn received(
        &mut self,
        id: LinkId,
        buf: RecvBuf,
        n: usize,
        out: &mut Vec<Frame>,
    ) -> Result<(), WireError> {
        let Some(link) = self.map.get_mut(&id) else { return Ok(()) };
        link.armed = false;
        let plan = quarry_wire::RecvPlan { buf: buf.buf, start: buf.start, end: buf.end };
        let from = out.len();
        let result = link.reader.received(plan, n, out);
        for f in out.iter().skip(from).filter(|f| f.header.op == Op::Hello) {
            // The engine judges the greeting; here it only tells who is read from without limit.
            let peer = Hello::from_meta(&f.meta).map(|h| h.peer);
            link.client = matches!(peer, Some(Peer::Sdc { .. }));
        }
        result
    }

    /// Lends the connection a receive buffer unless it has one or is held back. False: held back.
    pub fn arm(&mut self, reactor: &mut Reactor, id: LinkId) -> bool {
        let Some(link) = self.map.get_mut(&id) else { return true };
        if link.armed {
            return true;
        }
        if link.client && reactor.queued_bytes(link.conn) > MAX_CLIENT_QUEUE {
            return false;
        }
        let plan = link.reader.next_recv();
        link.armed = true;
        reactor.arm_recv(link.conn, RecvBuf { buf: plan.buf, start: plan.start, end: plan.end });
        true
    }

    /// Queues a frame. False: the connection has to be cut.
    pub fn send(&self, reactor: &mut Reactor, id: LinkId, frame: Frame) -> bool {
        let Some(link) = self.map.get(&id) else { return true };
        if let Err(error) = frame.check_limits() {
            tracing::error!(link = id, op = ?frame.header.op, %error, "a frame too large to send");
            return false;
        }
        let (head, data) = frame.encode();
        reactor.send(link.conn, head, data);
        reactor.queued_bytes(link.conn) <= MAX_QUEUE
    }
}

impl Link {
    /// The addresses left to try, if it was being dialled.
    pub fn retry(self) -> Option<(SdsId, LinkKind, VecDeque<Address>)> {
        self.dialling.map(|d| (d.sds, d.kind, d.rest))
    }
}

fn connect(reactor: &mut Reactor, to: &Address, token: u64) -> Result<ConnId, RingError> {
    match to {
        Address::Unix(path) => reactor.connect_unix(path, token),
        Address::Tcp(addr) => reactor.connect_tcp(*addr, token),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unix_socket_is_tried_first_and_only_on_the_same_host() {
        let tcp: SocketAddr = "10.0.0.1:7".parse().unwrap();
        let e = Endpoint { unix: Some("/run/x.sock".into()), tcp: Some(tcp) };
        assert_eq!(addresses(false, &e), [Address::Tcp(tcp)]);
        assert_eq!(addresses(true, &e), [Address::Unix("/run/x.sock".into()), Address::Tcp(tcp)]);
        assert!(addresses(true, &Endpoint::default()).is_empty());
    }
}
