//! What servers send: answers to parts, configurations, greetings.

use super::serve::widened;
use super::types::{IoError, LinkId, Note};
use super::volume::{PartKind, PartState};
use super::{Engine, Timer};
use bytes::Bytes;
use quarry_base::PAGE;
use quarry_wire::{flags, Change, Frame, Header, Op, PgConfig, Status};

impl Engine {
    pub(super) fn frame(&mut self, link: LinkId, frame: Frame) {
        if self.links.target(link).is_none() {
            return;
        }
        self.heard(link, frame.header.op);
        match frame.header.op {
            Op::Hello => self.hello(link, &frame),
            Op::HelloRefused => self.hello_refused(link, &frame),
            Op::Reply | Op::ReadReply => self.answer(link, frame),
            Op::ConfigPush => {
                self.adopt(&frame);
            }
            Op::ConfigAsk => self.give_config(link, &frame),
            Op::Ping => self.send(link, Frame::bare(Header::new(Op::Pong))),
            // A pong did its work above; nothing else is for a client.
            _ => {}
        }
    }

    /// The answer to a part. One that comes late, from an earlier link or epoch, is worth the same
    /// when it says Ok: the primary committed, or read what was committed, under its own lease. Not one of
    /// a line of records that the operator gave up (R26): what it acknowledges is lost.
    fn answer(&mut self, link: LinkId, frame: Frame) {
        let h = &frame.header;
        if h.status == Status::StaleInstance {
            return self.fence("a newer instance of this client is registered");
        }
        let n = self.pgs.find(h.pg);
        let key = n.and_then(|n| self.pgs.list.get(n)).and_then(|p| p.part(h.request_id.0));
        if h.status == Status::StaleEpoch && self.adopt(&frame) {
            // What was out under the older epoch, this part too, has been taken back to go there.
            self.stats.stale_epoch += 1;
            return;
        }
        let Some(key) = key else {
            self.stats.late_answers += 1;
            return;
        };
        let Some(part) = self.parts.get(key) else { return };
        if self.view.pgs.get(&h.pg).is_some_and(|c| h.version.epoch < c.line) {
            self.stats.late_answers += 1;
            return;
        }
        if h.status == Status::Ok {
            if let Some(pg) = self.pgs.list.get_mut(part.pg) {
                (pg.refusals, pg.refusing) = (0, 0);
            }
            return match self.read_data(key, &frame) {
                Some(data) => {
                    let told = self.note_answer(key, h.version.epoch);
                    self.complete(key, told.map(|()| data));
                }
                None => self.bad_data(link, key),
            };
        }
        // An answer names the epoch of the request it is for, and within one epoch and one link a part is
        // out once: the refusal is that of the present attempt, or of one that says nothing any more.
        let asked = h.version.epoch;
        let sent = part.state;
        if !matches!(sent, PartState::Sent { link: l, epoch } if l == link && epoch == asked) {
            self.stats.late_answers += 1;
            return;
        }
        self.refusal(key, h);
    }

    fn refusal(&mut self, key: usize, h: &Header) {
        match h.status {
            Status::StaleEpoch => {
                // It names no newer configuration: one will come, from here or from the MDM.
                self.stats.stale_epoch += 1;
                self.hold(key);
            }
            Status::TryAgain | Status::NotAccepted => {
                self.stats.try_again += 1;
                self.hold(key);
            }
            Status::BadChecksum => {
                self.stats.bad_checksum += 1;
                self.hold(key);
            }
            Status::StaleMapping => self.stale_mapping(key),
            Status::Full => self.complete(key, Err(IoError::NoSpace)),
            Status::Corrupt => self.complete(key, Err(IoError::Corrupt)),
            Status::StaleRequest => {
                self.stats.stale_request += 1;
                self.note(Note::StaleRequest { pg: h.pg, id: h.request_id });
                self.complete(key, Err(IoError::Refused));
            }
            Status::Invalid => {
                self.note(Note::Refused { pg: h.pg, id: h.request_id });
                self.complete(key, Err(IoError::Refused));
            }
            Status::Ok | Status::StaleInstance => {}
        }
    }

    /// The asked-for bytes of a read's answer, checked; empty for anything but a read.
    fn read_data(&self, key: usize, frame: &Frame) -> Option<Bytes> {
        let p = self.parts.get(key)?;
        let (from, len) = widened(p.offset, p.len);
        match p.kind {
            PartKind::Read => {}
            PartKind::Map => {
                let bits = (len as usize / PAGE).div_ceil(8);
                let good = frame.data.len() == bits && frame.verify_data().is_ok();
                return good.then(|| frame.data.clone());
            }
            _ => return Some(Bytes::new()),
        }
        let (skip, want) = ((p.offset - from) as usize, p.len as usize);
        if frame.data.is_empty() && frame.header.has(flags::ZERO) {
            return Some(Bytes::from(vec![0; want]));
        }
        // Checksums are cut at pages; the server may leave out the offset, but not move it.
        let aligned = (frame.header.offset as usize).is_multiple_of(PAGE);
        if !aligned || frame.data.len() != len as usize || frame.verify_data().is_err() {
            return None;
        }
        Some(frame.data.slice(skip..skip + want))
    }

    /// Damaged on the way: asked for again.
    fn bad_data(&mut self, link: LinkId, key: usize) {
        self.stats.bad_data += 1;
        if let Some(target) = self.links.target(link) {
            self.note(Note::BadData { target });
        }
        let out = self.parts.get(key).is_some_and(|p| matches!(p.state, PartState::Sent { .. }));
        if out {
            self.hold(key);
        }
    }

    /// The mapping changed: wait until the view shows it. If the server is behind instead, a later
    /// attempt finds it caught up.
    fn stale_mapping(&mut self, key: usize) {
        self.stats.stale_mapping += 1;
        let Some(id) = self.wait_again(key) else { return };
        let Some((n, volume)) = self.parts.get(key).map(|p| (p.pg, p.volume)) else { return };
        let Some(v) = self.volumes.get_mut(&volume) else { return };
        if v.mapping_waiters.is_empty() {
            self.timers.arm(self.now + self.cfg.limits.mapping_wait, Timer::Mapping(volume));
        }
        v.mapping_waiters.push((n, id));
    }

    /// A server's word about a group: counts if it is newer than what is known (R2).
    fn adopt(&mut self, frame: &Frame) -> bool {
        let Some(config) = PgConfig::from_meta(&frame.meta) else { return false };
        let known = self.view.pgs.get(&config.pg).map(|c| c.epoch);
        if config.pg != frame.header.pg || known.is_some_and(|e| e >= config.epoch) {
            return false;
        }
        let pg = config.pg;
        self.view.apply(Change::Pg(config));
        if let Some(n) = self.pgs.find(pg) {
            self.refresh_pg(n);
        }
        self.wanted_stale = true;
        true
    }

    /// A server that is behind asks for a configuration.
    fn give_config(&mut self, link: LinkId, frame: &Frame) {
        let Some(config) = self.view.pgs.get(&frame.header.pg) else { return };
        let meta = config.to_meta();
        let mut h = Header::new(Op::ConfigPush);
        h.pg = config.pg;
        h.epoch = config.epoch;
        h.config_index = config.index;
        self.send(link, Frame::with_meta(h, meta));
    }
}
