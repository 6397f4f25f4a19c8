//! From request to frames: admission, splitting, sending, completion.

use super::types::{Action, ClientId, IoError, IoOp, LinkId, ReadData};
use super::volume::{Part, PartKind, PartState, Request};
use super::{Engine, Timer};
use bytes::Bytes;
use quarry_base::crc::piece_count;
use quarry_base::{crc32c, crc_pieces, Extent, PgId, RequestId, VolumeId, EXTENT, PAGE};
use quarry_wire::{flags, Frame, Header, Op};
use smallvec::SmallVec;

/// The 4 KiB-aligned range around one inside an extent.
pub(super) fn widened(offset: u32, len: u32) -> (u32, u32) {
    let page = PAGE as u32;
    let from = offset / page * page;
    let to = (offset + len).div_ceil(page) * page;
    (from, to - from)
}

impl Engine {
    /// A new request of a client.
    pub(super) fn request(&mut self, client: ClientId, handle: u64, id: VolumeId, op: IoOp) {
        let (cursor, end) = match &op {
            IoOp::Read { offset, len } | IoOp::Map { offset, len } => {
                (*offset, offset.saturating_add(u64::from(*len)))
            }
            IoOp::Write { offset, data, .. } => (*offset, offset.saturating_add(data.len() as u64)),
            IoOp::Zero { offset, len, .. } => (*offset, offset.saturating_add(*len)),
            IoOp::Flush => (0, 0),
        };
        let possible = match self.volumes.get(&id) {
            Some(v) if v.mapped && !self.fenced => v.check(&op),
            _ => Err(IoError::Shutdown),
        };
        let answer = match possible {
            Err(e) => Some(Err(e)),
            Ok(()) if matches!(op, IoOp::Flush) => return self.flush_request(client, handle, id),
            Ok(()) if cursor == end => Some(Ok(ReadData::new())),
            Ok(()) => None,
        };
        if let Some(result) = answer {
            return self.out.push(Action::Done { client, handle, result });
        }
        let r = Request {
            client,
            handle,
            volume: id,
            op,
            begun: self.now,
            cursor,
            end,
            made: 0,
            left: 0,
            queued: true,
            orphan: false,
            data: ReadData::new(),
            written: SmallVec::new(),
            lost: SmallVec::new(),
            error: None,
        };
        let cost = r.cost();
        let key = self.requests.insert(r);
        if let Some(v) = self.volumes.get_mut(&id) {
            v.load += 1;
            v.load_bytes += cost;
            v.queue.push_back(key);
        }
        self.mark_volume(id);
        self.watch_expiry(id);
    }

    /// With `ack = durable` what is answered is durable. Else every group written since its last
    /// flush is asked (R29).
    fn flush_request(&mut self, client: ClientId, handle: u64, id: VolumeId) {
        let groups: Vec<(PgId, u64)> = match self.volumes.get_mut(&id) {
            Some(v) if v.cached => {
                if v.shared {
                    v.touch_all();
                }
                v.unflushed.iter().map(|(p, u)| (*p, u.newest)).collect()
            }
            _ => Vec::new(),
        };
        if groups.is_empty() {
            return self.out.push(Action::Done { client, handle, result: Ok(ReadData::new()) });
        }
        let request = self.requests.insert(Request {
            client,
            handle,
            volume: id,
            op: IoOp::Flush,
            begun: self.now,
            cursor: 0,
            end: 0,
            made: groups.len() as u32,
            left: groups.len() as u32,
            queued: false,
            orphan: false,
            data: ReadData::new(),
            written: SmallVec::new(),
            lost: SmallVec::new(),
            error: None,
        });
        if let Some(v) = self.volumes.get_mut(&id) {
            v.load += 1;
            v.parts += groups.len();
        }
        for (index, (pg, mark)) in groups.into_iter().enumerate() {
            let pg = self.pg_number(pg);
            let key = self.parts.insert(Part {
                request,
                volume: id,
                pg,
                index: index as u32,
                extent: 0,
                offset: 0,
                len: 0,
                kind: PartKind::Flush { mark, lost: None },
                id: 0,
                refusals: 0,
                state: PartState::Ready,
            });
            self.make_ready(key);
        }
        self.watch_expiry(id);
    }

    /// Forgets a client: what was not begun is dropped, the rest runs to its end unanswered.
    pub(super) fn client_gone(&mut self, client: ClientId) {
        let mut touched = Vec::new();
        for (_, r) in self.requests.iter_mut().filter(|(_, r)| r.client == client) {
            r.orphan = true;
            r.cursor = r.end;
            touched.push(r.volume);
        }
        touched.into_iter().for_each(|v| self.mark_volume(v));
    }

    /// Splits waiting requests of a volume, in order of arrival, as far as its limits go.
    pub(super) fn admit(&mut self, id: VolumeId) {
        let limits = (self.cfg.limits.volume_parts, self.cfg.limits.volume_bytes);
        if let Some(v) = self.volumes.get_mut(&id) {
            v.dirty = false;
        }
        while let Some(v) = self.volumes.get_mut(&id) {
            let Some(&key) = v.queue.front() else { return };
            let Some(r) = self.requests.get_mut(key) else {
                v.queue.pop_front();
                continue;
            };
            if r.cursor >= r.end {
                v.queue.pop_front();
                r.queued = false;
                self.finish_if_done(key);
                continue;
            }
            let at = (r.cursor % u64::from(EXTENT)) as u32;
            let len = u64::from(EXTENT - at).min(r.end - r.cursor) as u32;
            let cost = if matches!(r.op, IoOp::Zero { .. } | IoOp::Map { .. }) {
                0
            } else {
                u64::from(len)
            };
            let fits = v.parts < limits.0 && (v.bytes == 0 || v.bytes + cost <= limits.1);
            if v.pg_count == 0 || !fits {
                self.stats.limit_volume += u64::from(!fits);
                return;
            }
            self.split(id, key, at, len);
        }
    }

    /// Makes the next part of a request: `len` bytes at `at` of the extent its cursor is in.
    fn split(&mut self, id: VolumeId, request: usize, at: u32, len: u32) {
        let (Some(v), Some(r)) = (self.volumes.get(&id), self.requests.get_mut(request)) else {
            return;
        };
        let extent = (r.cursor / u64::from(EXTENT)) as u32;
        let pg = quarry_base::pg_of(v.pool, v.pg_count, v.vtree, Extent(extent));
        let kind = match &r.op {
            IoOp::Read { offset, .. } | IoOp::Map { offset, .. } => {
                if r.data.is_empty() {
                    let last = r.end.saturating_sub(1) / u64::from(EXTENT);
                    let n = last - offset / u64::from(EXTENT) + 1;
                    r.data.resize(n as usize, Bytes::new());
                }
                match r.op {
                    IoOp::Map { .. } => PartKind::Map,
                    _ => PartKind::Read,
                }
            }
            IoOp::Write { offset, data, fua } => {
                let from = (r.cursor - offset) as usize;
                write_kind(at, data.slice(from..from + len as usize), *fua)
            }
            IoOp::Zero { no_hole, trim, fua, .. } => {
                let bit = |on: bool, f: u16| if on { f } else { 0 };
                let flags =
                    bit(*no_hole, flags::NO_HOLE) | bit(*trim, flags::TRIM) | bit(*fua, flags::FUA);
                PartKind::Zero { flags }
            }
            IoOp::Flush => return,
        };
        let index = r.made;
        r.made += 1;
        r.left += 1;
        r.cursor += u64::from(len);
        let pg = self.pg_number(pg);
        let state = PartState::Blocked;
        let (volume, offset, refusals) = (id, at, 0);
        let part =
            Part { request, volume, pg, index, extent, offset, len, kind, id: 0, refusals, state };
        let (cost, changes) = (part.cost(), part.changes_data());
        let key = self.parts.insert(part);
        let mut free = true;
        if let Some(v) = self.volumes.get_mut(&id) {
            v.parts += 1;
            v.bytes += cost;
            free = !changes || v.overlaps.add(extent, at, len, key);
        }
        if free {
            self.make_ready(key);
        } else {
            self.stats.overlap_waits += 1;
        }
    }

    /// The part may be sent when its turn comes.
    fn make_ready(&mut self, key: usize) {
        let Some(p) = self.parts.get_mut(key) else { return };
        p.state = PartState::Ready;
        let (n, volume) = (p.pg, p.volume);
        if let Some(pg) = self.pgs.list.get_mut(n) {
            pg.push_ready(volume, key);
        }
        self.mark_pg(n);
    }

    /// The number of a group, its routing known.
    fn pg_number(&mut self, id: PgId) -> usize {
        let (n, new) = self.pgs.number(id);
        if new {
            self.refresh_pg(n);
        }
        n
    }

    /// Sends what a group has to send, as far as its limits and its link allow.
    pub(super) fn pump(&mut self, n: usize) {
        let Some(pg) = self.pgs.list.get_mut(n) else { return };
        pg.dirty = false;
        let (Some(target), true) = (pg.target, pg.wants_link()) else { return };
        let Some(link) = self.links.ready(target) else { return self.want(target) };
        while let Some(id) = self.pgs.list[n].resend.pop_front() {
            let key = self.pgs.list[n].part(id);
            let waiting =
                key.and_then(|k| self.parts.get(k)).is_some_and(|p| p.state == PartState::Waiting);
            if let (Some(key), true) = (key, waiting) {
                self.stats.resent += 1;
                self.send_part(key, link);
            }
        }
        let limits = (self.cfg.limits.pg_in_flight, self.cfg.limits.pg_id_window);
        loop {
            let pg = &mut self.pgs.list[n];
            if !pg.has_ready() {
                return;
            }
            if pg.busy() >= limits.0 {
                self.stats.limit_pg_in_flight += 1;
                return;
            }
            if pg.span() >= limits.1 {
                self.stats.limit_id_window += 1;
                return;
            }
            let Some(key) = pg.pop_ready() else { return };
            if let Some(p) = self.parts.get_mut(key) {
                p.id = pg.give_id(key);
                self.send_part(key, link);
            }
        }
    }

    fn send_part(&mut self, key: usize, link: LinkId) {
        self.look_for_loss(key);
        let Some(p) = self.parts.get_mut(key) else { return };
        let (Some(v), Some((_, instance))) = (self.volumes.get(&p.volume), self.me) else { return };
        let Some(pg) = self.pgs.list.get(p.pg) else { return };
        p.state = PartState::Sent { link, epoch: pg.epoch };
        let mut h = Header::new(Op::Read);
        h.request_id = RequestId(p.id);
        h.lowest_unanswered = pg.lowest();
        h.pg = pg.id;
        h.epoch = pg.epoch;
        h.config_index = self.view.index;
        h.instance = instance;
        h.generation = v.generation;
        h.vtree = v.vtree;
        h.extent = Extent(p.extent);
        (h.offset, h.length) = (p.offset, p.len);
        let frame = match &p.kind {
            PartKind::Read => {
                (h.offset, h.length) = widened(p.offset, p.len);
                Frame::bare(h)
            }
            PartKind::Map => {
                h.op = Op::Map;
                (h.offset, h.length) = widened(p.offset, p.len);
                Frame::bare(h)
            }
            PartKind::Write { data, list, crc, fua } => {
                h.op = Op::Write;
                h.flags = if *fua { flags::FUA } else { 0 };
                h.data_crc = *crc;
                Frame { header: h, meta: list.clone(), data: data.clone() }
            }
            PartKind::Zero { flags } => {
                h.op = Op::Zero;
                h.flags = *flags;
                Frame::bare(h)
            }
            PartKind::Flush { .. } => {
                h.op = Op::Flush;
                Frame::bare(h)
            }
        };
        self.stats.sent += 1;
        self.send(link, frame);
    }

    /// Parts of a group that are out, in a state that `which` names, wait to be sent again.
    pub(super) fn take_back(&mut self, n: usize, which: impl Fn(PartState) -> bool) {
        let Some(pg) = self.pgs.list.get(n) else { return };
        let back: Vec<usize> = pg
            .unanswered()
            .filter(|(_, k)| self.parts.get(*k).is_some_and(|p| which(p.state)))
            .map(|(_, k)| k)
            .collect();
        for key in back {
            if let Some(id) = self.wait_again(key) {
                self.pgs.list[n].resend.push_back(id);
                self.mark_pg(n);
            }
        }
    }

    /// The part is not out any more. `None`: its volume is gone, and so is the part.
    pub(super) fn wait_again(&mut self, key: usize) -> Option<u64> {
        let p = self.parts.get_mut(key)?;
        p.state = PartState::Waiting;
        let id = p.id;
        let served = !self.fenced && self.volumes.get(&p.volume).is_some_and(|v| v.mapped);
        if !served {
            self.complete(key, Err(IoError::Shutdown));
            return None;
        }
        Some(id)
    }

    /// A part is done.
    pub(super) fn complete(&mut self, key: usize, result: Result<Bytes, IoError>) {
        let p = self.parts.remove(key);
        if let Some(pg) = self.pgs.list.get_mut(p.pg) {
            if p.id != 0 {
                pg.answered(p.id);
                if pg.has_ready() {
                    self.mark_pg(p.pg);
                }
            }
        }
        let mut freed = Vec::new();
        let mut served = false;
        if let Some(v) = self.volumes.get_mut(&p.volume) {
            v.parts -= 1;
            v.bytes -= p.cost();
            served = v.mapped && !self.fenced;
            if p.changes_data() {
                v.overlaps.remove(p.extent, key, &mut freed);
            }
            if !v.queue.is_empty() {
                self.mark_volume(p.volume);
            }
        }
        // Those of a volume that is gone are completed by whoever fails them.
        if served {
            freed.into_iter().for_each(|k| self.make_ready(k));
        }
        if let Some(r) = self.requests.get_mut(p.request) {
            r.left -= 1;
            match result {
                Ok(data) => {
                    if let Some(slot) = r.data.get_mut(p.index as usize) {
                        *slot = data;
                    }
                }
                Err(e) => {
                    r.error.get_or_insert(e);
                    r.cursor = r.end;
                    self.mark_volume(p.volume);
                }
            }
        }
        self.finish_if_done(p.request);
    }

    /// Answers a request that is wholly split and has no part left.
    pub(super) fn finish_if_done(&mut self, key: usize) {
        let Some(r) = self.requests.get(key) else { return };
        if r.left > 0 || r.queued && r.cursor < r.end {
            return;
        }
        if r.queued {
            // The common case is its own: first in the queue, wholly split, just done.
            let Some(v) = self.volumes.get_mut(&r.volume) else { return };
            if v.queue.front() != Some(&key) {
                return;
            }
            v.queue.pop_front();
        }
        let r = self.requests.remove(key);
        let cost = r.cost();
        if let Some(v) = self.volumes.get_mut(&r.volume) {
            v.load -= 1;
            v.load_bytes -= cost;
        }
        self.note_end(&r);
        if !r.orphan {
            let result = match r.error {
                Some(e) => Err(e),
                None => Ok(r.data),
            };
            self.out.push(Action::Done { client: r.client, handle: r.handle, result });
        }
    }

    /// Fails what waits on a volume that is not served any more; what is out too if `all`.
    pub(super) fn fail_waiting(&mut self, id: VolumeId, all: bool) {
        self.pgs.list.iter_mut().for_each(|p| p.drop_ready(id));
        let keys: Vec<usize> = self
            .parts
            .iter()
            .filter(|(_, p)| p.volume == id && (all || !matches!(p.state, PartState::Sent { .. })))
            .map(|(k, _)| k)
            .collect();
        let waiting = self.volumes.get(&id).map(|v| v.queue.iter().copied().collect::<Vec<_>>());
        for key in waiting.unwrap_or_default() {
            if let Some(r) = self.requests.get_mut(key) {
                r.cursor = r.end;
                r.error.get_or_insert(IoError::Shutdown);
            }
        }
        for key in keys {
            self.complete(key, Err(IoError::Shutdown));
        }
        self.admit(id);
    }

    /// The hold on a group's refused parts is over.
    pub(super) fn end_hold(&mut self, n: usize) {
        let Some(pg) = self.pgs.list.get_mut(n) else { return };
        pg.hold_armed = false;
        let held = std::mem::take(&mut pg.held);
        pg.resend.extend(held);
        self.mark_pg(n);
    }

    /// Parts of a group that were put off take their place among those never sent.
    pub(super) fn end_put_off(&mut self, n: usize) {
        let Some(pg) = self.pgs.list.get_mut(n) else { return };
        pg.queue_put_off(Some(self.now));
        self.mark_pg(n);
    }

    /// Sends a refused part again after a moment; the moments grow while the group refuses.
    pub(super) fn hold(&mut self, key: usize) {
        let Some(id) = self.wait_again(key) else { return };
        let Some(p) = self.parts.get_mut(key) else { return };
        let (n, volume) = (p.pg, p.volume);
        let (first, longest) = self.cfg.limits.retry;
        let Some(pg) = self.pgs.list.get_mut(n) else { return };
        if !p.changes_data() {
            // Nobody would notice if it were carried out twice. Kept, its id would hold the window, and in the end every
            // other request of the group, for as long as it is refused.
            pg.answered(id);
            // A group that refuses one part after another is asked ever more slowly too.
            let rounds = u32::try_from(pg.refusing / self.cfg.limits.pg_in_flight.max(1));
            let refusals = p.refusals.max(rounds.unwrap_or(u32::MAX));
            let at = self.now + super::links::backoff(first, longest, refusals);
            (p.id, p.state) = (0, PartState::Ready);
            p.refusals = p.refusals.saturating_add(1);
            pg.put_off.push((at, volume, key));
            pg.refusing = pg.refusing.saturating_add(1);
            self.timers.arm(at, Timer::PutOff(n));
            return self.mark_pg(n);
        }
        pg.held.push(id);
        if !pg.hold_armed {
            pg.hold_armed = true;
            let wait = super::links::backoff(first, longest, pg.refusals);
            pg.refusals = pg.refusals.saturating_add(1);
            self.timers.arm(self.now + wait, Timer::Hold(n));
        }
    }

    /// Parts that waited for a newer mapping are tried again.
    pub(super) fn retry_mapping(&mut self, id: VolumeId) {
        let Some(v) = self.volumes.get_mut(&id) else { return };
        for (n, id) in std::mem::take(&mut v.mapping_waiters) {
            if let Some(pg) = self.pgs.list.get_mut(n) {
                pg.resend.push_back(id);
            }
            self.mark_pg(n);
        }
    }
}

/// The checksums of a write are made here, once; they travel to the disk unchanged.
fn write_kind(at: u32, data: Bytes, fua: bool) -> PartKind {
    if piece_count(at, data.len()) == 1 {
        let crc = crc32c(&data);
        return PartKind::Write { data, list: Bytes::new(), crc, fua };
    }
    let crcs = crc_pieces(at, &data);
    let frame = Frame::with_data(header_at(at), data, &crcs);
    PartKind::Write { data: frame.data, list: frame.meta, crc: frame.header.data_crc, fua }
}

fn header_at(offset: u32) -> Header {
    let mut h = Header::new(Op::Write);
    h.offset = offset;
    h
}
