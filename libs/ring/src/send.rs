//! Sending: a queue of pieces a connection, one operation outstanding, everything queued in a turn
//! in one message. Short sends are continued from where they stopped.

use crate::config::{MAX_SEND_BYTES, MAX_SEND_PIECES, SEND_HIGH_WATER_BYTES};
use crate::net::{Conn, State};
use crate::op::{user_data, OpKind, PART_MAIN};
use crate::reactor::errno;
use crate::{CloseReason, ConnId, Event, Reactor};
use bytes::{Buf, Bytes};
use io_uring::{opcode, squeue::Entry, types::Fd};
use std::os::fd::AsRawFd;

/// Message header and vectors of a connection's send in flight; at a fixed place on the heap.
pub(crate) struct SendVecs {
    hdr: libc::msghdr,
    iov: [libc::iovec; MAX_SEND_PIECES],
}

impl SendVecs {
    #[allow(unsafe_code)]
    fn new() -> Box<SendVecs> {
        // SAFETY: both are plain C structures for which all-zero is a valid value (null pointers,
        // zero lengths).
        Box::new(unsafe { std::mem::zeroed() })
    }
}

impl Reactor {
    /// Queues a message of two parts (either may be empty). It goes out with the next turn, together
    /// with everything else queued for the connection. Watch [`Reactor::queued_bytes`].
    pub fn send(&mut self, conn: ConnId, head: Bytes, body: Bytes) {
        self.send_many(conn, [head, body]);
    }

    /// Queues parts, in order.
    pub fn send_many(&mut self, conn: ConnId, parts: impl IntoIterator<Item = Bytes>) {
        let Some(c) = self.conns.get(conn.index, conn.gen) else {
            self.stats.stale_calls += 1;
            return;
        };
        if !matches!(c.state, State::Open | State::Connecting) {
            return;
        }
        for part in parts.into_iter().filter(|p| !p.is_empty()) {
            c.queued_bytes += part.len();
            c.queue.push_back(part);
        }
        c.was_high |= c.queued_bytes > SEND_HIGH_WATER_BYTES;
        self.mark_dirty(conn.index);
    }

    /// Hands everything queued for peers to the kernel now instead of with the next turn: they begin on it
    /// while the caller does what nobody waits for.
    pub fn send_now(&mut self) {
        if self.dirty.is_empty() {
            return;
        }
        self.flush_sends();
        self.flush_backlog();
        self.stats.enters += 1;
        if let Err(error) = self.ring.submit() {
            // Not final (completions to be taken first, no memory): the entries go with the next turn.
            tracing::trace!(%error, "sending ahead of the turn");
        }
    }

    /// Bytes queued and not yet accepted by the kernel; 0 for a dead id.
    pub fn queued_bytes(&self, conn: ConnId) -> usize {
        self.conns.peek(conn.index, conn.gen).map_or(0, |c| c.queued_bytes)
    }

    pub(crate) fn mark_dirty(&mut self, index: u32) {
        if let Some(c) = self.conns.raw(index) {
            if !c.dirty && !c.queue.is_empty() {
                c.dirty = true;
                self.dirty.push(index);
            }
        }
    }

    /// Starts a send for each connection that has something queued and none outstanding.
    pub(crate) fn flush_sends(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            self.start_send(index);
        }
        self.dirty = dirty;
    }

    fn start_send(&mut self, index: u32) {
        let Some(c) = self.conns.raw(index) else { return };
        c.dirty = false;
        let may = matches!(c.state, State::Open | State::Flushing);
        if !may || c.send_op.is_some() || c.queue.is_empty() {
            return;
        }
        let entry = message(c);
        let (slot, gen) = self.store_op(OpKind::Send { conn: index });
        let ud = user_data(slot, gen, PART_MAIN);
        if let Some(c) = self.conns.raw(index) {
            c.send_op = Some(ud);
        }
        self.stats.sends += 1;
        self.push(entry.user_data(ud), None);
    }

    pub(crate) fn on_send(&mut self, index: u32, result: i32) {
        let Some(c) = self.conns.raw(index) else { return };
        c.send_op = None;
        match c.state {
            State::Dead => return self.forget_if_idle(index),
            State::Open | State::Flushing => {}
            State::Failing(_) | State::Connecting => return,
        }
        if result == -libc::EINTR {
            return self.mark_dirty(index);
        }
        if result <= 0 {
            // A message is never empty, so taking nothing of it is no progress that could end.
            let e = if result == 0 { libc::EIO } else { errno(result) };
            return self.fail(index, CloseReason::Error(e));
        }
        let n = result as usize;
        let asked = c.asked;
        c.consume(n);
        let (left, token, state) = (c.queued_bytes, c.token, c.state);
        self.stats.send_bytes += n as u64;
        self.stats.short_sends += u64::from(n < asked);
        self.quiet += u64::from(state == State::Open);
        if left > 0 {
            return self.mark_dirty(index);
        }
        if state == State::Flushing {
            return self.teardown(index);
        }
        if let Some(c) = self.conns.raw(index) {
            if std::mem::take(&mut c.was_high) {
                let conn = ConnId { index, gen: self.conns.gen(index) };
                self.ready.push(Event::Drained { conn, token });
            }
        }
    }
}

impl Conn {
    /// Takes sent bytes off the queue's front.
    fn consume(&mut self, n: usize) {
        assert!(n <= self.queued_bytes, "more was sent than queued");
        self.queued_bytes -= n;
        let mut left = n;
        while left > 0 {
            let Some(front) = self.queue.front_mut() else { break };
            let take = left.min(front.len());
            front.advance(take);
            left -= take;
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
    }
}

/// The entry that sends the front of a connection's queue.
fn message(c: &mut Conn) -> Entry {
    let fd = Fd(c.fd.as_raw_fd());
    if let (1, Some(only)) = (c.queue.len(), c.queue.front()) {
        c.asked = only.len().min(MAX_SEND_BYTES);
        return opcode::Send::new(fd, only.as_ptr(), c.asked as u32)
            .flags(libc::MSG_NOSIGNAL)
            .build();
    }
    let vecs = c.vecs.get_or_insert_with(SendVecs::new);
    let mut room = MAX_SEND_BYTES;
    let mut used = 0;
    for (slot, piece) in vecs.iov.iter_mut().zip(&c.queue) {
        let len = piece.len().min(room);
        if len == 0 {
            break;
        }
        *slot = libc::iovec { iov_base: piece.as_ptr() as *mut libc::c_void, iov_len: len };
        room -= len;
        used += 1;
    }
    c.asked = MAX_SEND_BYTES - room;
    vecs.hdr.msg_iov = vecs.iov.as_mut_ptr();
    vecs.hdr.msg_iovlen = used as _;
    opcode::SendMsg::new(fd, &vecs.hdr).flags(libc::MSG_NOSIGNAL as u32).build()
}
