//! Listening sockets. One accept is outstanding a listener; it is armed again as it completes.
//!
//! Out of descriptors or memory, or at `max_conns`, accepting pauses: new peers wait in the kernel's
//! backlog, everything else goes on.
#![allow(unsafe_code)]

use crate::config::ACCEPT_RETRY;
use crate::op::{user_data, OpKind, PART_MAIN};
use crate::reactor::error_of;
use crate::sockets::{self, SocketFile};
use crate::{ConnId, Event, ListenerId, Reactor, RingError};
use io_uring::{opcode, types::Fd};
use quarry_base::Nanos;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

pub(crate) struct Listener {
    fd: OwnedFd,
    token: u64,
    /// The socket file of a Unix listener, removed with it.
    file: Option<SocketFile>,
    accepting: Option<u64>,
    /// Paused until then.
    retry_at: Option<Nanos>,
    /// The last accept failed, which was told.
    refused: bool,
    closing: bool,
}

impl Reactor {
    /// Listens on a Unix socket with exactly `mode` (e.g. 0o660). A socket file nobody listens on is
    /// replaced; one that is served, or anything else there, is an error. Paths: 107 bytes at most.
    /// The file is removed when the listener closes.
    pub fn listen_unix(
        &mut self,
        path: &Path,
        mode: u32,
        token: u64,
    ) -> Result<ListenerId, RingError> {
        let (fd, file) = sockets::listen_unix(path, mode)?;
        Ok(self.add_listener(fd, Some(file), token))
    }

    /// Listens on a TCP address; gives the address bound (port 0: the kernel chose one).
    pub fn listen_tcp(
        &mut self,
        addr: SocketAddr,
        token: u64,
    ) -> Result<(ListenerId, SocketAddr), RingError> {
        let (fd, bound) = sockets::listen_tcp(addr)?;
        Ok((self.add_listener(fd, None, token), bound))
    }

    /// Stops listening. Connections accepted before stay.
    pub fn close_listener(&mut self, id: ListenerId) {
        if self.listeners.get(id.index, id.gen).is_none() {
            self.stats.stale_calls += 1;
            return;
        }
        self.close_listener_index(id.index);
    }

    fn add_listener(&mut self, fd: OwnedFd, file: Option<SocketFile>, token: u64) -> ListenerId {
        let l = Listener {
            fd,
            token,
            file,
            accepting: None,
            retry_at: None,
            refused: false,
            closing: false,
        };
        let id = ListenerId::from_parts(self.listeners.insert(l));
        self.arm_accept(id.index);
        id
    }

    pub(crate) fn close_listener_index(&mut self, index: u32) {
        let Some(l) = self.listeners.raw(index) else { return };
        if l.closing {
            return;
        }
        l.closing = true;
        l.file = None;
        if l.retry_at.take().is_some() {
            self.paused_listeners -= 1;
        }
        let target = l.accepting;
        self.listeners.retire(index);
        match target {
            Some(target) => self.cancel(target),
            None => drop(self.listeners.remove(index)),
        }
    }

    fn arm_accept(&mut self, index: u32) {
        if self.conns.len() >= self.cfg.max_conns {
            self.pause_accept(index);
            return;
        }
        let Some(l) = self.listeners.raw(index) else { return };
        let fd = l.fd.as_raw_fd();
        let (slot, gen) = self.store_op(OpKind::Accept { listener: index });
        let ud = user_data(slot, gen, PART_MAIN);
        let entry = opcode::Accept::new(Fd(fd), std::ptr::null_mut(), std::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build();
        if let Some(l) = self.listeners.raw(index) {
            l.accepting = Some(ud);
        }
        self.push(entry.user_data(ud), None);
    }

    fn pause_accept(&mut self, index: u32) {
        let at = self.now + ACCEPT_RETRY;
        if let Some(l) = self.listeners.raw(index) {
            if l.retry_at.replace(at).is_none() {
                self.paused_listeners += 1;
                self.stats.accept_pauses += 1;
            }
        }
    }

    /// When the first paused listener tries again.
    pub(crate) fn accept_retry_at(&self) -> Option<Nanos> {
        self.listeners.values().filter_map(|l| l.retry_at).min()
    }

    /// Arms paused listeners whose time has come.
    pub(crate) fn service_listeners(&mut self) {
        if self.paused_listeners == 0 {
            return;
        }
        self.now = crate::now_boottime();
        for index in self.listeners.indices() {
            let now = self.now;
            let Some(l) = self.listeners.raw(index) else { continue };
            if l.retry_at.is_some_and(|at| at <= now) {
                l.retry_at = None;
                self.paused_listeners -= 1;
                self.arm_accept(index);
            }
        }
    }

    pub(crate) fn on_accept(&mut self, index: u32, result: i32) {
        // SAFETY: a non-negative result of an accept without a fixed slot is a new descriptor that
        // nobody else owns.
        let fd = (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) });
        let Some(l) = self.listeners.raw(index) else { return };
        l.accepting = None;
        if l.closing {
            // A connection that slipped in is closed with its descriptor.
            drop(self.listeners.remove(index));
            return;
        }
        let token = l.token;
        l.refused &= fd.is_none();
        let listener = ListenerId { index, gen: self.listeners.gen(index) };
        if let Some(fd) = fd {
            self.stats.accepts += 1;
            let conn: ConnId = self.adopt(fd, token);
            self.ready.push(Event::Accepted { listener, token, conn });
            self.arm_accept(index);
            return;
        }
        match -result {
            // The peer went away while it waited, or a signal came.
            libc::ECONNABORTED | libc::EINTR | libc::EPROTO => self.arm_accept(index),
            _ => {
                let l = self.listeners.raw(index);
                if !l.is_some_and(|l| std::mem::replace(&mut l.refused, true)) {
                    tracing::warn!(error = %error_of(result), "accepting connections pauses");
                }
                self.pause_accept(index);
            }
        }
    }
}
