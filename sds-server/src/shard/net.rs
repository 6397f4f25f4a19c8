//! Connections: bytes in, frames to the engine; dialling and its failures.

use super::{Shard, Timer};
use crate::links::{addresses, Address, LinkId};
use quarry_base::{Nanos, SdsId};
use quarry_replica::{Event as In, LinkKind};
use quarry_ring::{ConnId, Event as Ring, RecvBuf};
use quarry_store::DiskResult;
use std::collections::VecDeque;
use std::time::Duration;

/// How long a connection may wait for the registration; whoever still wants it dials again.
const HELD: Duration = Duration::from_secs(10);

impl Shard {
    /// Takes one event of the reactor.
    pub(super) fn ring_event(&mut self, now: Nanos, event: Ring) {
        match event {
            Ring::Accepted { conn, .. } => self.accepted(now, conn),
            Ring::Connected { token, .. } => self.connected(now, token),
            Ring::Received { token, buf, n, .. } => self.received(now, token, buf, n),
            Ring::Closed { token, .. } => self.closed(now, token),
            Ring::Drained { .. } => self.to_arm.append(&mut self.paused),
            Ring::ReadDone { token, result, buf } => {
                let result = result.map(|n| {
                    let mut buf = buf;
                    buf.set_len(n);
                    buf
                });
                self.disk_done(now, token, DiskResult::Read(result));
            }
            Ring::WriteDone { token, result }
            | Ring::SyncDone { token, result }
            | Ring::DiscardDone { token, result } => {
                self.disk_done(now, token, DiskResult::Done(result));
            }
            Ring::Woken => {}
        }
    }

    fn accepted(&mut self, now: Nanos, conn: ConnId) {
        let link = self.links.accept(&mut self.reactor, conn);
        if self.registered.is_none() {
            // Nothing is read from it, so that its end would not be seen either.
            self.timers.arm(now + HELD, Timer::Held(link));
            self.held.push(link);
            return;
        }
        self.engine.step(now, In::Accepted { link }, &mut self.actions);
        self.to_arm.push(link);
    }

    /// Registration is there: connections that waited for it are taken up.
    pub(super) fn take_up_held(&mut self, now: Nanos) {
        for link in std::mem::take(&mut self.held) {
            self.engine.step(now, In::Accepted { link }, &mut self.actions);
            self.to_arm.push(link);
        }
    }

    fn connected(&mut self, now: Nanos, link: LinkId) {
        if let Some((sds, kind)) = self.links.connected(link) {
            self.engine.step(now, In::Dialled { link, sds, kind }, &mut self.actions);
            self.to_arm.push(link);
        }
    }

    fn received(&mut self, now: Nanos, link: LinkId, buf: RecvBuf, n: usize) {
        if self.links.get(link).is_none() {
            // Cut off earlier in this turn.
            return;
        }
        let mut frames = std::mem::take(&mut self.frames);
        let result = self.links.received(link, buf, n, &mut frames);
        for frame in frames.drain(..) {
            self.engine.step(now, In::Frame { link, frame }, &mut self.actions);
        }
        self.frames = frames;
        match result {
            Ok(()) => self.to_arm.push(link),
            Err(error) => {
                tracing::warn!(link, %error, "a connection is closed: what it sent is not understood");
                self.metrics.wire_errors.inc();
                self.cut(now, link);
            }
        }
    }

    /// Ends a connection from this side for a reason the engine does not know.
    pub(super) fn cut(&mut self, now: Nanos, link: LinkId) {
        let Some(l) = self.links.remove(link) else { return };
        self.reactor.close(l.conn);
        self.gone(now, link);
    }

    fn closed(&mut self, now: Nanos, link: LinkId) {
        let Some(l) = self.links.remove(link) else { return };
        match l.retry() {
            Some((sds, kind, rest)) => self.dial(sds, kind, rest),
            None => self.gone(now, link),
        }
    }

    fn gone(&mut self, now: Nanos, link: LinkId) {
        if let Some(at) = self.held.iter().position(|l| *l == link) {
            // The engine never heard of it.
            // In order: of a client's connections the newest one counts.
            self.held.remove(at);
            return;
        }
        self.engine.step(now, In::Closed { link }, &mut self.actions);
    }

    /// The engine wants a connection to a server.
    pub(super) fn dial_server(&mut self, sds: SdsId, kind: LinkKind) {
        let to = match self.servers.get(&sds) {
            Some(s) => {
                let same_host = s.host == self.host;
                s.endpoints.first().map(|e| addresses(same_host, e)).unwrap_or_default()
            }
            None => VecDeque::new(),
        };
        self.dial(sds, kind, to);
    }

    fn dial(&mut self, sds: SdsId, kind: LinkKind, to: VecDeque<Address>) {
        match self.links.dial(&mut self.reactor, sds, kind, to) {
            Some((link, deadline)) => self.timers.arm(deadline, Timer::Dial(link)),
            None => self.inbox.push_back(In::DialFailed { sds, kind }),
        }
    }

    pub(super) fn dial_timeout(&mut self, link: LinkId) {
        if self.links.get(link).is_none_or(|l| l.dialling.is_none()) {
            return;
        }
        if let Some(l) = self.links.remove(link) {
            self.reactor.close(l.conn);
            if let Some((sds, kind, rest)) = l.retry() {
                self.dial(sds, kind, rest);
            }
        }
    }

    /// Lends receive buffers to the connections that gave theirs back.
    pub(super) fn arm(&mut self) {
        for link in std::mem::take(&mut self.to_arm) {
            if !self.links.arm(&mut self.reactor, link) {
                self.metrics.limit_reached.with(&["client_queue"]).inc();
                self.paused.push(link);
            }
        }
    }
}
