//! Connections: how they come about, receive and end. Sending is in `send.rs`.
//!
//! A connection's slot stays as long as the kernel has an operation on it; its id dies at once when
//! it is closed or its end is told.
//!
//! When a send fails while a receive is outstanding, the receive is cancelled first and what it
//! still brought is delivered before `Closed`: the peer's last words say why it left.

use crate::config::FLUSH_GRACE;
use crate::op::{user_data, OpKind, PART_MAIN};
use crate::reactor::errno;
use crate::send::SendVecs;
use crate::{sockets, CloseReason, ConnId, Event, Reactor, RecvBuf, RingError};
use bytes::Bytes;
use io_uring::{opcode, types::Fd};
use socket2::{SockAddr, SockRef};
use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Connecting,
    Open,
    /// Closed locally; what is queued still goes out. The id is dead.
    Flushing,
    /// A send failed; `Closed` is told when the outstanding receive has completed.
    Failing(CloseReason),
    /// Over; waits for its operations to complete. The id is dead.
    Dead,
}

pub(crate) struct Conn {
    pub fd: OwnedFd,
    pub token: u64,
    pub state: State,
    pub connect_op: Option<u64>,
    pub recv_op: Option<u64>,
    pub send_op: Option<u64>,
    /// Armed before the connection was there.
    early_recv: Option<RecvBuf>,
    /// What is not yet accepted by the kernel. The pieces in flight are the first ones and stay
    /// untouched until their send completes.
    pub queue: VecDeque<Bytes>,
    pub queued_bytes: usize,
    /// Bytes the send in flight covers.
    pub asked: usize,
    pub was_high: bool,
    pub dirty: bool,
    pub vecs: Option<Box<SendVecs>>,
}

/// Who is at the other end of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCred {
    /// Process id as seen from here.
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Conn {
    fn new(fd: OwnedFd, token: u64, state: State) -> Conn {
        Conn {
            fd,
            token,
            state,
            connect_op: None,
            recv_op: None,
            send_op: None,
            early_recv: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
            asked: 0,
            was_high: false,
            dirty: false,
            vecs: None,
        }
    }
    fn busy(&self) -> bool {
        self.connect_op.is_some() || self.recv_op.is_some() || self.send_op.is_some()
    }
}

impl Reactor {
    /// Starts connecting to a Unix socket; `Connected` or `Closed` tells the outcome. Sends and one
    /// receive may be queued meanwhile.
    pub fn connect_unix(&mut self, path: &Path, token: u64) -> Result<ConnId, RingError> {
        let addr = sockets::unix_address(path)?;
        self.connect(addr, &path.display().to_string(), token)
    }

    /// Starts connecting to a TCP address; as `connect_unix`.
    pub fn connect_tcp(&mut self, addr: SocketAddr, token: u64) -> Result<ConnId, RingError> {
        self.connect(addr.into(), &addr.to_string(), token)
    }

    fn connect(&mut self, addr: SockAddr, shown: &str, token: u64) -> Result<ConnId, RingError> {
        let limit = self.cfg.max_conns + self.cfg.max_conns / 8;
        if self.conns.len() >= limit {
            return Err(RingError::TooManyConnections { limit });
        }
        let fd = sockets::for_connect(&addr, shown)?;
        let raw = fd.as_raw_fd();
        let (index, conn_gen) = self.conns.insert(Conn::new(fd, token, State::Connecting));
        let addr = Box::new(addr);
        let entry = opcode::Connect::new(Fd(raw), addr.as_ptr().cast(), addr.len()).build();
        let (slot, gen) = self.store_op(OpKind::Connect { conn: index, addr });
        let ud = user_data(slot, gen, PART_MAIN);
        if let Some(c) = self.conns.raw(index) {
            c.connect_op = Some(ud);
        }
        self.push(entry.user_data(ud), None);
        Ok(ConnId::from_parts((index, conn_gen)))
    }

    /// Takes over a connected stream socket.
    pub fn adopt(&mut self, fd: OwnedFd, token: u64) -> ConnId {
        sockets::prepare_connected(&fd);
        ConnId::from_parts(self.conns.insert(Conn::new(fd, token, State::Open)))
    }

    /// Lends a buffer for the next data from the peer; `Received` gives it back. One at a time: not
    /// arming is back-pressure. After the connection's end the buffer is dropped.
    pub fn arm_recv(&mut self, conn: ConnId, mut buf: RecvBuf) {
        assert!(buf.start < buf.end && buf.end <= buf.buf.capacity(), "a receive needs room");
        let Some(c) = self.conns.get(conn.index, conn.gen) else {
            self.stats.stale_calls += 1;
            return;
        };
        match c.state {
            State::Connecting => {
                assert!(c.early_recv.replace(buf).is_none(), "one receive at a time");
                return;
            }
            State::Open => assert!(c.recv_op.is_none(), "one receive at a time"),
            State::Flushing | State::Failing(_) | State::Dead => return,
        }
        if buf.buf.len() < buf.end {
            buf.buf.set_len(buf.end);
        }
        let raw = c.fd.as_raw_fd();
        let room = &mut buf.buf[buf.start..buf.end];
        let len = u32::try_from(room.len()).unwrap_or(u32::MAX);
        let entry = opcode::Recv::new(Fd(raw), room.as_mut_ptr(), len).build();
        let (slot, gen) = self.store_op(OpKind::Recv { conn: conn.index, buf });
        let ud = user_data(slot, gen, PART_MAIN);
        if let Some(c) = self.conns.raw(conn.index) {
            c.recv_op = Some(ud);
        }
        self.push(entry.user_data(ud), None);
    }

    /// Whether the id is alive: not closed, its end not told.
    pub fn is_open(&self, conn: ConnId) -> bool {
        self.conns.peek(conn.index, conn.gen).is_some()
    }

    /// Changes the token the connection's events carry.
    pub fn set_token(&mut self, conn: ConnId, token: u64) {
        match self.conns.get(conn.index, conn.gen) {
            Some(c) => c.token = token,
            None => self.stats.stale_calls += 1,
        }
    }

    /// Process and user at the other end of a Unix socket.
    pub fn peer_cred(&self, conn: ConnId) -> Option<PeerCred> {
        let c = self.conns.peek(conn.index, conn.gen)?;
        let u = rustix::net::sockopt::socket_peercred(&c.fd).ok()?;
        Some(PeerCred {
            pid: u.pid.as_raw_nonzero().get() as u32,
            uid: u.uid.as_raw(),
            gid: u.gid.as_raw(),
        })
    }

    /// Ends a connection now. What is queued is dropped, no event about it follows (those a turn
    /// has handed out already excepted), buffers stay with the kernel until it is done with them.
    pub fn close(&mut self, conn: ConnId) {
        if self.conns.get(conn.index, conn.gen).is_none() {
            self.stats.stale_calls += 1;
            return;
        }
        self.ready.retain(|e| e.conn() != Some(conn));
        self.conns.retire(conn.index);
        self.teardown(conn.index);
    }

    /// Ends a connection when what is queued has been sent, or after 10 s. No event follows.
    pub fn close_after_flush(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get(conn.index, conn.gen) else {
            self.stats.stale_calls += 1;
            return;
        };
        if c.state != State::Open || c.queued_bytes == 0 {
            self.close(conn);
            return;
        }
        c.state = State::Flushing;
        let recv = c.recv_op;
        self.ready.retain(|e| e.conn() != Some(conn));
        self.conns.retire(conn.index);
        let gen = self.conns.gen(conn.index);
        self.flushing.push((ConnId { index: conn.index, gen }, self.now + FLUSH_GRACE));
        if let Some(target) = recv {
            self.cancel(target);
        }
    }

    /// Ends flushing connections whose time is over.
    pub(crate) fn service_flushing(&mut self) {
        if self.flushing.is_empty() {
            return;
        }
        let now = crate::now_boottime();
        let mut flushing = std::mem::take(&mut self.flushing);
        flushing.retain(|&(id, at)| {
            let still =
                self.conns.get(id.index, id.gen).is_some_and(|c| c.state == State::Flushing);
            if still && at <= now {
                self.teardown(id.index);
            }
            still && at > now
        });
        self.flushing = flushing;
    }

    /// Stops everything on a connection whose id is dead, and forgets it when nothing is in flight.
    pub(crate) fn teardown(&mut self, index: u32) {
        let Some(c) = self.conns.raw(index) else { return };
        if c.state != State::Dead {
            c.state = State::Dead;
            let ops = [c.connect_op, c.recv_op, c.send_op];
            if c.busy() {
                // The peer learns it now, not when the last operation lets go of the descriptor;
                // it also ends operations that wait for the peer. Not connected: nothing to tell.
                if let Err(e) = SockRef::from(&c.fd).shutdown(Shutdown::Both) {
                    tracing::trace!(error = %e, "shutdown of a connection");
                }
            }
            for target in ops.into_iter().flatten() {
                self.cancel(target);
            }
        }
        self.forget_if_idle(index);
    }

    pub(crate) fn forget_if_idle(&mut self, index: u32) {
        let idle = self.conns.raw(index).is_some_and(|c| c.state == State::Dead && !c.busy());
        if idle {
            drop(self.conns.remove(index));
        }
    }

    /// The connection ended by itself: tells so, after what an outstanding receive still brings.
    pub(crate) fn fail(&mut self, index: u32, reason: CloseReason) {
        let Some(c) = self.conns.raw(index) else { return };
        match (c.state, c.recv_op) {
            (State::Connecting | State::Open, Some(target)) => {
                c.state = State::Failing(reason);
                self.cancel(target);
            }
            (State::Connecting | State::Open | State::Failing(_), None) => {
                let token = c.token;
                let conn = ConnId { index, gen: self.conns.gen(index) };
                self.ready.push(Event::Closed { conn, token, reason });
                self.conns.retire(index);
                self.teardown(index);
            }
            (State::Failing(_), Some(_)) => {}
            (State::Flushing | State::Dead, _) => self.teardown(index),
        }
    }

    pub(crate) fn on_connect(&mut self, index: u32, result: i32) {
        let Some(c) = self.conns.raw(index) else { return };
        c.connect_op = None;
        if c.state != State::Connecting {
            self.forget_if_idle(index);
            return;
        }
        if result < 0 {
            self.fail(index, CloseReason::ConnectFailed(errno(result)));
            return;
        }
        c.state = State::Open;
        let (token, early) = (c.token, c.early_recv.take());
        let conn = ConnId { index, gen: self.conns.gen(index) };
        self.ready.push(Event::Connected { conn, token });
        if let Some(buf) = early {
            self.arm_recv(conn, buf);
        }
        self.mark_dirty(index);
    }

    pub(crate) fn on_recv(&mut self, index: u32, buf: RecvBuf, result: i32) {
        let Some(c) = self.conns.raw(index) else { return };
        c.recv_op = None;
        let (state, token) = (c.state, c.token);
        match state {
            State::Open | State::Failing(_) => {}
            State::Flushing | State::Connecting => return,
            State::Dead => return self.forget_if_idle(index),
        }
        let conn = ConnId { index, gen: self.conns.gen(index) };
        if result == -libc::EINTR && state == State::Open {
            return self.arm_recv(conn, buf);
        }
        if result > 0 {
            let n = result as usize;
            self.stats.recvs += 1;
            self.stats.recv_bytes += n as u64;
            self.ready.push(Event::Received { conn, token, buf, n });
        }
        match (state, result) {
            (State::Failing(reason), _) => self.fail(index, reason),
            (_, 0) => self.fail(index, CloseReason::Eof),
            (_, r) if r < 0 => self.fail(index, CloseReason::Error(errno(r))),
            _ => {}
        }
    }
}
