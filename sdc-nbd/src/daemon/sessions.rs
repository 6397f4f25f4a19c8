//! NBD connections: bytes to sessions, their requests to the engine, the answers back.

use super::exports::Offer;
use super::extents;
use super::meters::OpKind;
use super::shard::{Shard, Tag, Token};
use crate::engine::{ClientId, Event, IoError, IoOp, ReadData};
use quarry_base::{Nanos, VolumeId};
use quarry_nbd_proto::{Export, Handle, Limits, NbdErrno, RecvPlan, Session, SessionEvent};
use quarry_ring::{ConnId, RecvBuf, SEND_HIGH_WATER_BYTES};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Connections of one volume at most.
pub const MAX_SESSIONS: usize = 1024;
/// What the connections of one volume share: bytes of requests in flight and of answers not yet sent. Each has its part, so that
/// one whose client does not read holds up nobody else, and their crowd does not take all memory.
const VOLUME_BYTES: usize = 256 << 20;
/// Least and largest part of one connection, bytes. The kernel's has the largest: it always reads. Beside it a connection has
/// what the reactor is sending, up to three times [`SEND_HIGH_WATER_BYTES`].
const PART_BYTES: (usize, usize) = (1 << 20, 64 << 20);
/// Connections of one volume that get a full-sized receive buffer; later ones get a small one, so that a
/// crowd costs little memory.
const ROOMY_SESSIONS: usize = 32;
/// Receive buffer of a connection in a crowd, bytes.
const SMALL_RECV: usize = 16 << 10;

/// What has been in flight for so long stands still: whoever waits for it may wait for ever.
const STILL: Duration = Duration::from_millis(500);
/// In the first while of a connection the kernel may hold what it sent on the one before.
const SETTLING: Duration = Duration::from_secs(5);

/// One NBD connection. Its number is the engine's client id.
pub struct NbdConn {
    conn: ConnId,
    session: Session,
    volume: VolumeId,
    /// The kernel's, not a client's: what is not answered is sent again after a reconnect.
    kernel: bool,
    /// How often its volume had been closed when it came, and when that was.
    closings: u32,
    since: Nanos,
    /// A receive is out.
    armed: bool,
    /// In the list of those to be serviced.
    touched: bool,
    /// Not read from because the volume has enough to do.
    pub starved: bool,
}

impl NbdConn {
    /// Its part of what so many connections have together.
    fn share(&mut self, connections: usize) {
        let (least, most) = PART_BYTES;
        let part = if self.kernel { most } else { VOLUME_BYTES / connections.max(1) };
        self.session.limit_bytes(part.clamp(least, most));
    }
}

/// A request handed to the engine.
pub struct InFlight {
    session: u64,
    handle: Handle,
    kind: OpKind,
    offset: u64,
    bytes: u64,
    started: Nanos,
}

impl Shard {
    /// A client connected to a volume's socket.
    pub(super) fn accept(&mut self, volume: VolumeId, conn: ConnId) {
        let Some(slot) = self.exports.get_mut(volume) else { return self.reactor.close(conn) };
        if slot.sessions >= MAX_SESSIONS || self.stopping.is_some() {
            self.handles.connections.inc();
            return self.reactor.close(conn);
        }
        slot.sessions += 1;
        let mut limits = Limits::default();
        if slot.sessions > ROOMY_SESSIONS {
            limits.recv_buffer = SMALL_RECV;
        }
        self.add_session(volume, conn, Session::new(limits), false);
    }

    /// A connection of the kernel, which is in the transmission phase already.
    pub(super) fn adopt(&mut self, volume: VolumeId, fd: OwnedFd) {
        // Not mapped any more: the device is let go in a moment.
        let mapped = self.exports.get_mut(volume).is_some_and(|s| s.is_wanted());
        if self.stopping.is_some() || !mapped {
            return;
        }
        // What an earlier connection of the device still holds unread is sent again on this one.
        let mut old = Vec::new();
        for (id, c) in self.sessions.iter_mut().filter(|(_, c)| c.kernel && c.volume == volume) {
            c.kernel = false;
            // Until it has ended, in a moment, it is a connection like any other.
            if let Some(s) = self.exports.get_mut(volume) {
                s.meter.joined();
            }
            old.push(*id);
        }
        old.into_iter().for_each(|id| self.end_session(self.reactor.now(), id));
        let Some(slot) = self.exports.get_mut(volume) else { return };
        slot.sessions += 1;
        let export: Export = slot.export.clone();
        let conn = self.reactor.adopt(fd, 0);
        self.add_session(volume, conn, Session::attached(Limits::default(), export), true);
    }

    fn add_session(&mut self, volume: VolumeId, conn: ConnId, session: Session, kernel: bool) {
        self.next_session += 1;
        let id = self.next_session;
        self.reactor.set_token(conn, Token::make(Tag::Nbd, id));
        let closings = self.exports.get_mut(volume).map_or(0, |s| s.closings());
        let since = self.reactor.now();
        let (armed, touched, starved) = (false, false, false);
        let c = NbdConn { conn, session, volume, kernel, closings, since, armed, touched, starved };
        self.sessions.insert(id, c);
        if let Some(s) = self.exports.get_mut(volume).filter(|_| !kernel) {
            s.meter.joined();
        }
        self.meters.connections.set_u64(self.sessions.len() as u64);
        self.touch(id);
    }

    /// The session is serviced before the turn ends.
    pub(super) fn touch(&mut self, id: u64) {
        if let Some(c) = self.sessions.get_mut(&id) {
            if !c.touched {
                c.touched = true;
                self.touched.push(id);
            }
        }
    }

    /// Bytes from a client.
    pub(super) fn nbd_received(&mut self, now: Nanos, id: u64, buf: RecvBuf, n: usize) {
        let mut events = std::mem::take(&mut self.session_events);
        if let Some(c) = self.sessions.get_mut(&id) {
            c.armed = false;
            let plan = RecvPlan { buf: buf.buf, start: buf.start, end: buf.end };
            let slot = self.exports.get_mut(c.volume);
            c.share(slot.as_ref().map_or(1, |s| s.sessions));
            c.session.received(plan, n, &Offer(slot.map(|s| &s.export)), &mut events);
        }
        self.submit(now, id, &mut events);
        self.session_events = events;
        self.touch(id);
    }

    /// Hands a session's requests to the engine.
    fn submit(&mut self, now: Nanos, id: u64, events: &mut Vec<SessionEvent>) {
        for e in events.drain(..) {
            let (handle, op, kind, offset, bytes) = match e {
                SessionEvent::Read { handle, offset, len, .. } => {
                    (handle, IoOp::Read { offset, len }, OpKind::Read, offset, u64::from(len))
                }
                SessionEvent::Write { handle, offset, data, fua } => {
                    let bytes = data.len() as u64;
                    (handle, IoOp::Write { offset, data, fua }, OpKind::Write, offset, bytes)
                }
                SessionEvent::Flush { handle } => (handle, IoOp::Flush, OpKind::Flush, 0, 0),
                SessionEvent::Trim { handle, offset, len, fua } => {
                    let len = u64::from(len);
                    let op = IoOp::Zero { offset, len, no_hole: false, trim: true, fua };
                    (handle, op, OpKind::Trim, offset, len)
                }
                SessionEvent::WriteZeroes { handle, offset, len, fua, no_hole, .. } => {
                    let len = u64::from(len);
                    let op = IoOp::Zero { offset, len, no_hole, trim: false, fua };
                    (handle, op, OpKind::Zero, offset, len)
                }
                SessionEvent::BlockStatus { handle, offset, len, .. } => {
                    let len = len.min(extents::MOST);
                    (handle, IoOp::Map { offset, len }, OpKind::BlockStatus, offset, u64::from(len))
                }
                other => {
                    self.answer_here(id, other);
                    continue;
                }
            };
            let Some(c) = self.sessions.get(&id) else { return };
            let volume = c.volume;
            if let Some(slot) = self.exports.get_mut(volume) {
                slot.meter.in_flight.add(1.0);
            }
            let f = InFlight { session: id, handle, kind, offset, bytes, started: now };
            let key = self.in_flight.insert(f) as u64;
            match &mut self.engine {
                Some(e) => {
                    let ev = Event::Request { client: ClientId(id), handle: key, volume, op };
                    e.step(now, ev, &mut self.actions);
                }
                None => self.answer(now, ClientId(id), key, Err(IoError::Shutdown)),
            }
        }
    }

    /// What needs no engine.
    fn answer_here(&mut self, id: u64, e: SessionEvent) {
        let Some(c) = self.sessions.get_mut(&id) else { return };
        match e {
            SessionEvent::Cache { handle, .. } => c.session.reply_ok(handle),
            SessionEvent::ProtocolError { reason } => {
                self.meters.protocol_errors.inc();
                tracing::warn!(volume = %c.volume, %reason, "an NBD client broke the protocol");
            }
            SessionEvent::Opened { export } => {
                tracing::debug!(volume = %export.name, session = id, "NBD client connected");
            }
            _ => {}
        }
    }

    /// The engine's answer to a request.
    pub(super) fn answer(
        &mut self,
        now: Nanos,
        client: ClientId,
        key: u64,
        result: Result<ReadData, IoError>,
    ) {
        let slot = usize::try_from(key).unwrap_or(usize::MAX);
        // An answer that crossed its client's end on the way may meet another request in its place.
        if self.in_flight.get(slot).is_none_or(|f| f.session != client.0) {
            return;
        }
        let f = self.in_flight.remove(slot);
        let Some(c) = self.sessions.get_mut(&f.session) else { return };
        if self.fenced.is_some() && result.is_err() {
            // The newer instance serves the volume: no error may reach anybody from here.
            return self.end_session(now, client.0);
        }
        if let Some(s) = self.exports.get_mut(c.volume) {
            let m = s.meter.op(f.kind);
            s.meter.in_flight.add(-1.0);
            m.requests.inc();
            m.seconds.record(u64::try_from(now.since(f.started).as_nanos()).unwrap_or(u64::MAX));
            match &result {
                Ok(_) => m.bytes.add(f.bytes),
                Err(_) => m.errors.inc(),
            }
        }
        match result {
            Ok(data) if f.kind == OpKind::Read => c.session.reply_read(f.handle, f.offset, &data),
            Ok(maps) if f.kind == OpKind::BlockStatus => {
                let found = extents::extents(f.offset, f.bytes as u32, &maps);
                c.session.reply_block_status(f.handle, &found);
            }
            Ok(_) => c.session.reply_ok(f.handle),
            Err(e) => c.session.reply_error(f.handle, NbdErrno::from_os(e.errno()), &e.to_string()),
        }
        self.touch(client.0);
    }

    /// Sends what there is to send, goes on with what was held back, receives on.
    pub(super) fn service(&mut self, now: Nanos, id: u64) {
        let mut events = std::mem::take(&mut self.session_events);
        let mut bytes = std::mem::take(&mut self.output);
        if let Some(c) = self.sessions.get_mut(&id) {
            c.touched = false;
            if c.session.output_pending() > 0
                && self.reactor.queued_bytes(c.conn) <= SEND_HIGH_WATER_BYTES
            {
                // The rest counts as this connection's until it can be sent.
                c.session.take_some(SEND_HIGH_WATER_BYTES, &mut bytes);
                self.reactor.send_many(c.conn, bytes.drain(..));
            }
            let room = self.engine.as_ref().is_none_or(|e| e.has_room(c.volume));
            if room {
                let slot = self.exports.get_mut(c.volume);
                c.share(slot.as_ref().map_or(1, |s| s.sessions));
                c.session.resume(&Offer(slot.map(|s| &s.export)), &mut events);
            }
        }
        self.output = bytes;
        self.submit(now, id, &mut events);
        self.session_events = events;
        self.settle_session(now, id);
    }

    /// Receives on, waits, or ends.
    fn settle_session(&mut self, now: Nanos, id: u64) {
        let Some(c) = self.sessions.get_mut(&id) else { return };
        if c.session.output_pending() > 0
            && self.reactor.queued_bytes(c.conn) <= SEND_HIGH_WATER_BYTES
        {
            self.touch(id);
            return;
        }
        if c.session.closing() {
            if c.kernel && self.stopping.is_none() {
                // Its answers have no reader: the kernel sends again what was not answered, on another connection.
                return self.end_session(now, id);
            }
            if c.session.in_flight().0 == 0 && c.session.output_pending() == 0 {
                self.reactor.close_after_flush(c.conn);
                self.forget_session(id);
            }
            return;
        }
        let receives = c.session.may_receive();
        // One that holds a request back has nothing in flight, perhaps, that would make it look again.
        if c.armed || !(receives || c.session.holds_back()) {
            return;
        }
        if self.engine.as_ref().is_some_and(|e| !e.has_room(c.volume)) {
            if !c.starved {
                c.starved = true;
                self.starved.push(id);
                self.handles.queue.inc();
            }
            return;
        }
        if !receives {
            return;
        }
        c.armed = true;
        let p = c.session.next_recv();
        self.reactor.arm_recv(c.conn, RecvBuf { buf: p.buf, start: p.start, end: p.end });
    }

    /// Sessions that waited for their volume look again.
    pub(super) fn feed_starved(&mut self) {
        for id in std::mem::take(&mut self.starved) {
            let volume = match self.sessions.get_mut(&id) {
                Some(c) => c.volume,
                None => continue,
            };
            if self.engine.as_ref().is_none_or(|e| e.has_room(volume)) {
                if let Some(c) = self.sessions.get_mut(&id) {
                    c.starved = false;
                }
                self.touch(id);
            } else {
                self.starved.push(id);
            }
        }
    }

    /// The client's socket is gone, or is to be cut.
    pub(super) fn end_session(&mut self, now: Nanos, id: u64) {
        if let Some(c) = self.sessions.get(&id) {
            if self.reactor.is_open(c.conn) {
                self.reactor.close(c.conn);
            }
            let client = ClientId(id);
            if let Some(e) = &mut self.engine {
                e.step(now, Event::ClientGone { client }, &mut self.actions);
            }
            self.forget_session(id);
        }
    }

    fn forget_session(&mut self, id: u64) {
        let Some(c) = self.sessions.remove(&id) else { return };
        let before = self.in_flight.len();
        if c.session.in_flight().0 > 0 {
            self.in_flight.retain(|_, f| f.session != id);
        }
        let dropped = before - self.in_flight.len();
        if let Some(s) = self.exports.get_mut(c.volume) {
            s.session_ended(c.closings);
            if !c.kernel {
                s.meter.left();
            }
            s.meter.in_flight.add(-(dropped as f64));
        }
        self.meters.connections.set_u64(self.sessions.len() as u64);
        if c.kernel && self.stopping.is_none() {
            self.device_lost(c.volume);
        }
    }

    /// Whether a connection of the volume's kernel device is served.
    pub(super) fn has_kernel_session(&self, volume: VolumeId) -> bool {
        self.sessions.values().any(|c| c.kernel && c.volume == volume)
    }

    /// Does all that the volume's kernel device has in flight seem to be answered soon?
    pub(super) fn is_calm(&self, now: Nanos, volume: VolumeId) -> bool {
        let kernel = self.sessions.iter().find(|(_, c)| c.kernel && c.volume == volume);
        let Some((id, c)) = kernel.filter(|_| self.stopping.is_none()) else { return false };
        let mut mine = self.in_flight.iter().filter(|(_, f)| f.session == *id);
        let moves = mine.all(|(_, f)| now.since(f.started) < STILL);
        moves && !c.session.holds_back() && now.since(c.since) >= SETTLING
    }

    /// Connections of a volume.
    pub(super) fn sessions_of(&self, volume: VolumeId) -> Vec<u64> {
        self.sessions.iter().filter(|(_, c)| c.volume == volume).map(|(id, _)| *id).collect()
    }

    /// Connections of a volume that is being closed: those from before.
    pub(super) fn old_sessions_of(&mut self, volume: VolumeId) -> Vec<u64> {
        // One that is not mapped has no others.
        let before = self.exports.get_mut(volume).filter(|s| s.is_wanted()).map(|s| s.closings());
        let old = |c: &NbdConn| c.volume == volume && before.is_none_or(|n| c.closings < n);
        self.sessions.iter().filter(|(_, c)| old(c)).map(|(id, _)| *id).collect()
    }

    pub(super) fn resize_sessions(&mut self, volume: VolumeId, size: u64) {
        for c in self.sessions.values_mut().filter(|c| c.volume == volume) {
            c.session.set_size(size);
        }
    }

    /// Lets connections finish what is in flight, and ends those that have nothing.
    pub(super) fn wind_down(&mut self, ids: Vec<u64>) {
        for id in ids {
            let Some(c) = self.sessions.get_mut(&id) else { continue };
            if self.stopping.is_some() {
                // An error here would be an I/O error of a file system. Unanswered, the kernel sends it again, and so does
                // a client that connects again.
                c.session.stop_reading();
            } else {
                c.session.begin_shutdown();
            }
            if c.session.in_flight().0 == 0 && c.session.output_pending() == 0 {
                self.reactor.close_after_flush(c.conn);
                self.forget_session(id);
            } else {
                self.winding.push(id);
            }
        }
    }

    /// Ends connections that have finished since.
    pub(super) fn check_winding(&mut self) {
        if !self.winding.is_empty() {
            let ids = std::mem::take(&mut self.winding);
            self.wind_down(ids);
        }
    }
}
