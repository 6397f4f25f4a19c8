//! The primary's side of the ordered streams to the other members (R5, R8, R9).
//!
//! A stream belongs to one (group, epoch, member, connection). A broken connection ends it; the primary
//! opens another on the next one, and sends again what the member lacks.

use super::primary::Primary;
use super::rounds::Answers;
use super::sync::Sync;
use crate::codec::{decode, encode, StreamPos, StreamStart};
use crate::credit::Credit;
use crate::cx::Cx;
use crate::event::{LinkId, Note};
use crate::history::{common_point, version_at};
use crate::planted::Bug;
use bytes::Bytes;
use quarry_base::{DeviceId, Nanos, RequestId, Seq, Version};
use quarry_store::{Record, RecordKind};
use quarry_wire::{flags, Frame, Header, Member, Op, Proposal, Status};
use std::collections::VecDeque;

/// A connection on which so many streams in a row were not answered is closed and made anew.
const UNANSWERED_STREAMS: u32 = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stream {
    Down,
    /// StreamOpen is sent, the member's position awaited.
    Opened {
        link: LinkId,
        number: u64,
        at: Nanos,
    },
    Running {
        link: LinkId,
        first: Seq,
    },
}

/// A member as its primary sees it.
pub(crate) struct Follower {
    pub member: Member,
    pub in_sync: bool,
    /// Has everything, counts as in sync, the MDM does not know yet (R15).
    pub candidate: bool,
    /// The MDM was asked to add it: it counts until the next epoch.
    pub add_asked: Option<Nanos>,
    pub stream: Stream,
    streams: u64,
    /// Streams opened in a row that got no answer.
    unanswered: u32,
    /// Everything up to here is durable there; kept over a new stream of this epoch.
    report: Seq,
    /// The time that records took to be durable there is noted up to this one (while it counts).
    pub noted: Seq,
    /// Commit point it was told.
    pub told: Seq,
    /// Last progress, or when something began to wait for it.
    pub heard: Nanos,
    pub down_since: Nanos,
    pub complained_at: Nanos,
    /// Where a sync may begin from: complete up to here.
    pub complete_through: Version,
    /// What it said to questions for a sync (`ack = cached`) and about the epoch (`reads = confirm`).
    pub syncs: Answers,
    pub confirms: Answers,
    /// Candidate, `ack = cached`: the round of syncs that it has to have answered before it is proposed.
    pub sync_needed: Option<u64>,
    pub sync: Option<Sync>,
    /// What it has promised in this stream (R24).
    pub credit: Credit,
    /// Records sent to a member that does not count, not reported yet.
    unacked: VecDeque<(Seq, usize)>,
    pub unacked_bytes: usize,
}

impl Follower {
    pub fn new(member: Member, in_sync: bool, now: Nanos) -> Follower {
        Follower {
            member,
            in_sync,
            candidate: false,
            add_asked: None,
            stream: Stream::Down,
            streams: 0,
            unanswered: 0,
            report: Seq::ZERO,
            noted: Seq::ZERO,
            told: Seq::ZERO,
            heard: now,
            down_since: now,
            complained_at: Nanos::ZERO,
            complete_through: Version::ZERO,
            syncs: Answers::default(),
            confirms: Answers::default(),
            sync_needed: None,
            sync: None,
            credit: Credit::default(),
            unacked: VecDeque::new(),
            unacked_bytes: 0,
        }
    }

    /// Its report is waited for by every commit, its grant by every read.
    pub fn counts(&self) -> bool {
        self.in_sync || self.candidate
    }
    pub fn report(&self) -> Seq {
        self.report
    }
    pub fn is_running(&self) -> bool {
        matches!(self.stream, Stream::Running { .. })
    }
    pub fn running_link(&self) -> Option<LinkId> {
        match self.stream {
            Stream::Running { link, .. } => Some(link),
            _ => None,
        }
    }
    pub fn first(&self) -> Option<Seq> {
        match self.stream {
            Stream::Running { first, .. } => Some(first),
            _ => None,
        }
    }
    fn link(&self) -> Option<LinkId> {
        match self.stream {
            Stream::Down => None,
            Stream::Opened { link, .. } | Stream::Running { link, .. } => Some(link),
        }
    }
    /// End of its server's grant.
    pub fn grants(&self, cx: &Cx) -> Nanos {
        let p = cx.links.peers.get(&self.member.sds);
        p.map_or(Nanos::ZERO, |p| p.grants.until(self.member.start))
    }

    fn down(&mut self, now: Nanos) {
        self.stream = Stream::Down;
        self.down_since = now;
        self.credit = Credit::default();
        self.unacked.clear();
        self.unacked_bytes = 0;
        self.syncs.broke();
        self.confirms.broke();
    }
}

impl Primary {
    /// Opens the streams that are not there and could be.
    pub fn open_streams(&mut self, cx: &mut Cx) {
        for i in 0..self.followers.len() {
            let f = &mut self.followers[i];
            // One to be brought up to date is cut where nothing is known to be committed, and what was inherited may be: a copy
            // that was in sync a moment ago would lose what was acknowledged then. So that comes first.
            if !f.counts() && self.commit < self.base {
                continue;
            }
            let again = match f.stream {
                Stream::Down => true,
                Stream::Opened { at, .. } => {
                    self.wake_at = self.wake_at.min(at + cx.limits.silent_after);
                    cx.now >= at + cx.limits.silent_after
                }
                Stream::Running { .. } => false,
            };
            let Some(link) = link_to(&f.member, cx) else { continue };
            if !again {
                continue;
            }
            f.streams += 1;
            f.unanswered += 1;
            if f.unanswered > UNANSWERED_STREAMS {
                f.unanswered = 0;
                cx.close(link);
                continue;
            }
            f.stream = Stream::Opened { link, number: f.streams, at: cx.now };
            let number = f.streams;
            cx.stats.streams_opened += 1;
            let mut h = cx.header(Op::StreamOpen, self.pg);
            h.epoch = self.epoch;
            h.request_id = RequestId(number);
            h.commit = self.commit;
            cx.send(link, Frame::with_meta(h, self.cfg.to_meta()));
            self.wake_at = self.wake_at.min(cx.now + cx.limits.silent_after);
        }
    }

    /// A connection is gone: its streams end.
    pub fn stream_link_closed(&mut self, link: LinkId, cx: &mut Cx) {
        for i in 0..self.followers.len() {
            if self.followers[i].link() == Some(link) {
                self.break_stream(i, "connection closed", cx);
            }
        }
    }

    pub fn break_stream(&mut self, i: usize, why: &'static str, cx: &mut Cx) {
        let f = &mut self.followers[i];
        if f.stream == Stream::Down {
            return;
        }
        f.down(cx.now);
        // A candidate that the MDM was not asked about is a syncing member again.
        if f.candidate && f.add_asked.is_none() {
            f.candidate = false;
            f.sync_needed = None;
        }
        let device = f.member.device;
        if let Some(s) = f.sync.take() {
            self.release_sync(s);
        }
        cx.stats.streams_broken += 1;
        cx.note(Note::StreamBroken { pg: self.pg, device, why });
    }

    /// Makes the connection to a silent member anew.
    pub fn reconnect(&mut self, i: usize, cx: &mut Cx) {
        if let Some(link) = self.followers.get(i).and_then(Follower::link) {
            cx.close(link);
        }
    }

    /// Asks the MDM to judge a member (R10).
    pub fn complain(&mut self, i: usize, why: &'static str, cx: &mut Cx) {
        let f = &mut self.followers[i];
        f.complained_at = cx.now;
        let (device, in_sync) = (f.member.device, f.in_sync);
        if in_sync {
            return self.complain_of(device, why, cx);
        }
        // R15: a candidate that is waited for in vain is dropped at the same epoch.
        cx.note(Note::SyncGivenUp { pg: self.pg, device, why });
        cx.propose(Proposal::DropSyncing {
            pg: self.pg,
            epoch: self.epoch,
            device,
            reason: why.to_string(),
            damaged: None,
            no_room: false,
        });
    }

    fn complain_of(&mut self, device: DeviceId, why: &'static str, cx: &mut Cx) {
        cx.note(Note::MemberSilent { pg: self.pg, device, why });
        cx.propose(Proposal::MemberSilent {
            pg: self.pg,
            epoch: self.epoch,
            device,
            reason: why.to_string(),
        });
    }

    /// A member says where it stands: decide from where its stream goes.
    pub fn on_stream_pos(&mut self, link: LinkId, frame: &Frame, cx: &mut Cx) {
        let h = &frame.header;
        let found = self.followers.iter().position(|f| {
            matches!(f.stream, Stream::Opened { link: l, number, .. } if l == link && number == h.request_id.0)
        });
        let (Some(i), Some(pos)) = (found, decode::<StreamPos>(&frame.meta)) else { return };
        self.followers[i].unanswered = 0;
        if !self.started {
            // The position is good until the member appends again, which only our stream makes it do.
            self.followers[i].stream = Stream::Down;
            return;
        }
        let common = common_point(
            &self.history,
            Version::new(self.epoch, self.last),
            &pos.history,
            h.version,
        );
        if self.followers[i].counts() {
            self.resume(i, link, common, h, cx);
        } else {
            self.begin_syncing(i, link, common, h, pos.complete_through, cx);
        }
    }

    /// An in-sync member: everything it lacks is in the tail (R9).
    fn resume(&mut self, i: usize, link: LinkId, common: Version, h: &Header, cx: &mut Cx) {
        let device = self.followers[i].member.device;
        let next = Seq(common.seq.0 + 1);
        if common.seq < h.commit {
            return self.lost_data(i, self.device, cx);
        }
        if common.seq < self.commit {
            return self.lost_data(i, device, cx);
        }
        if cx.limits.planted(Bug::AcceptGap) {
            return self.send_start(i, link, Seq(self.last.0 + 1), next.0, common, cx);
        }
        let tail: Vec<_> = cx.store.tail(self.pg, next).collect();
        let whole = tail.iter().zip(next.0..).all(|(t, n)| t.version.seq.0 == n);
        if !whole || common.seq.0 + tail.len() as u64 != self.last.0 {
            return self.lost_data(i, device, cx);
        }
        self.send_start(i, link, next, next.0, common, cx);
        cx.stats.resends += tail.len() as u64;
        for t in tail {
            // Its room is what the member kept when the last stream ended.
            let frame = self.record_frame(&t.rec, 0, None, cx);
            cx.stats.records_sent += 1;
            cx.send(link, frame);
        }
    }

    /// R11: somebody is below a commit point that another knows. The MDM takes it out and has it synced.
    fn lost_data(&mut self, i: usize, device: DeviceId, cx: &mut Cx) {
        // The stream stays as it is (opened, not running) and is tried again later.
        if cx.now >= self.followers[i].complained_at + cx.limits.propose_every
            || self.followers[i].complained_at == Nanos::ZERO
        {
            self.followers[i].complained_at = cx.now;
            cx.note(Note::LostData { pg: self.pg, device });
            if device == self.followers[i].member.device && !self.followers[i].in_sync {
                return self.complain(i, "lost data", cx);
            }
            self.complain_of(device, "lost data", cx);
        }
    }

    /// A member to be brought up to date: its stream starts at the next number.
    fn begin_syncing(
        &mut self,
        i: usize,
        link: LinkId,
        common: Version,
        h: &Header,
        through: Version,
        cx: &mut Cx,
    ) {
        // R26: what it has belongs to a line that the operator gave up. Nothing of that is taken over.
        let given_up = h.version.epoch < self.cfg.line;
        let diverged = common.seq < h.commit || given_up;
        // Its stream jumps: what is not known to be committed goes first, nothing lies open below the jump.
        let cut = common.seq.min(self.commit.max(h.commit));
        let cut = if cut == common.seq { common } else { version_at(&self.history, cut) };
        let through = if diverged { Version::ZERO } else { through.min(cut) };
        self.followers[i].complete_through = through;
        let next = Seq(self.last.0 + 1);
        // Number 0 is committed everywhere: cut there, a member begins from empty.
        let truncate = if given_up { 0 } else { cut.seq.0 + 1 };
        self.send_start(i, link, next, truncate, through, cx);
    }

    fn send_start(
        &mut self,
        i: usize,
        link: LinkId,
        first: Seq,
        truncate: u64,
        frozen: Version,
        cx: &mut Cx,
    ) {
        let meta = StreamStart {
            truncate,
            frozen,
            history: self.history.clone(),
            all_through: self.all_through,
        };
        let f = &mut self.followers[i];
        f.stream = Stream::Running { link, first };
        f.heard = cx.now;
        f.told = self.commit;
        f.credit = Credit::default();
        if !f.counts() {
            f.report = Seq::ZERO;
        }
        let mut h = cx.header(Op::StreamStart, self.pg);
        h.epoch = self.epoch;
        h.version = Version::new(self.epoch, first);
        h.commit = self.commit;
        cx.send(link, Frame::with_meta(h, encode(&meta)));
    }

    /// A member reports.
    pub fn on_ack(&mut self, link: LinkId, h: &Header, cx: &mut Cx) {
        let last = self.last;
        let Some(f) = self.followers.iter_mut().find(|f| f.running_link() == Some(link)) else {
            return;
        };
        f.credit.told((h.vtree.0, h.generation.0, h.status == Status::Full, h.length));
        let seq = h.version.seq;
        if seq > last {
            return;
        }
        let news = seq > f.report;
        if news {
            f.report = seq;
            f.heard = cx.now;
        }
        while let Some(&(s, n)) = f.unacked.front() {
            if s > seq {
                break;
            }
            f.unacked_bytes -= n;
            f.unacked.pop_front();
        }
        if let Some(s) = &mut f.sync {
            if h.request_id.0 > s.acked && h.request_id.0 <= s.sent {
                s.acked = h.request_id.0;
                s.progress = cx.now;
                f.heard = cx.now;
            }
        }
        if news {
            self.acknowledge(cx);
        }
    }

    /// Sends a new record to every running stream, in the same step as the local append (R7).
    /// `meta`: the client's own list of checksums, if it fits.
    /// `blocks`: what it takes of every member's promise at most.
    pub fn replicate(&mut self, rec: &Record, blocks: u64, meta: Option<Bytes>, cx: &mut Cx) {
        if self.followers.iter().all(|f| !f.is_running()) {
            return;
        }
        let frame = self.record_frame(rec, blocks, meta, cx);
        let (seq, commit, len) = (rec.version.seq, self.commit, frame.wire_len());
        let mut overflown = None;
        for (i, f) in self.followers.iter_mut().enumerate() {
            let Some(link) = f.running_link() else { continue };
            if f.report.0 + 1 >= seq.0 {
                f.heard = cx.now;
            }
            f.told = commit;
            f.credit.used += blocks;
            if !f.counts() {
                f.unacked.push_back((seq, len));
                f.unacked_bytes += len;
                if f.unacked_bytes > cx.limits.cut_off_bytes {
                    overflown = Some(i);
                }
            }
            cx.stats.records_sent += 1;
            cx.send(link, frame.clone());
        }
        if let Some(i) = overflown {
            cx.stats.cut_offs += 1;
            self.break_stream(i, "too far behind", cx);
        }
    }

    fn record_frame(&self, rec: &Record, blocks: u64, meta: Option<Bytes>, cx: &Cx) -> Frame {
        let mut h = cx.header(Op::Replicate, self.pg);
        h.epoch = self.epoch;
        h.commit = self.commit;
        record_frame(h, rec, blocks, meta)
    }
}

/// The data connection to a member's present process.
fn link_to(m: &Member, cx: &Cx) -> Option<LinkId> {
    if cx.limits.planted(Bug::OldEpochAfterRestart) {
        return cx.links.peers.get(&m.sds)?.data.up.map(|(link, _)| link);
    }
    cx.links.data(m.sds, m.start)
}

/// A record as a frame.
pub(crate) fn record_frame(mut h: Header, rec: &Record, blocks: u64, meta: Option<Bytes>) -> Frame {
    h.version = rec.version;
    h.instance = rec.origin.instance;
    h.request_id = rec.origin.id;
    h.lowest_unanswered = rec.origin.lowest_unanswered;
    match &rec.kind {
        RecordKind::Write { vtree, layer, extent, offset, crcs, data } => {
            (h.vtree, h.layer, h.extent, h.offset) = (*vtree, *layer, *extent, *offset);
            h.length = data.len() as u32;
            h.generation.0 = blocks;
            match meta {
                Some(meta) => Frame { header: h, meta, data: data.clone() },
                None => Frame::with_data(h, data.clone(), crcs),
            }
        }
        RecordKind::Zero { vtree, layer, extent, offset, len } => {
            (h.vtree, h.layer, h.extent, h.offset) = (*vtree, *layer, *extent, *offset);
            h.length = *len;
            h.flags = flags::ZERO;
            Frame::bare(h)
        }
        RecordKind::EpochStart { base } => {
            h.flags = flags::EPOCH_START;
            h.generation.0 = base.0;
            Frame::bare(h)
        }
        RecordKind::DropVtree { vtree } => {
            h.flags = flags::DROP_VTREE;
            h.vtree = *vtree;
            Frame::bare(h)
        }
    }
}

/// A frame as a record, its data compared with its checksums. `None`: damaged or malformed.
pub(crate) fn frame_record(f: &Frame) -> Option<Record> {
    let h = &f.header;
    let page = quarry_base::PAGE as u32;
    let in_pages = |len: u32| {
        len > 0
            && h.offset.is_multiple_of(page)
            && len.is_multiple_of(page)
            && h.offset.checked_add(len).is_some_and(|e| e <= quarry_base::EXTENT)
    };
    let kind = if h.has(flags::EPOCH_START) {
        RecordKind::EpochStart { base: Seq(h.generation.0) }
    } else if h.has(flags::DROP_VTREE) {
        RecordKind::DropVtree { vtree: h.vtree }
    } else if h.has(flags::ZERO) {
        if !in_pages(h.length) {
            return None;
        }
        RecordKind::Zero {
            vtree: h.vtree,
            layer: h.layer,
            extent: h.extent,
            offset: h.offset,
            len: h.length,
        }
    } else {
        if !in_pages(f.data.len() as u32) {
            return None;
        }
        let crcs = f.verify_data().ok()?.into_iter().collect();
        RecordKind::Write {
            vtree: h.vtree,
            layer: h.layer,
            extent: h.extent,
            offset: h.offset,
            crcs,
            data: f.data.clone(),
        }
    };
    let origin = quarry_store::Origin {
        instance: h.instance,
        id: h.request_id,
        lowest_unanswered: h.lowest_unanswered,
    };
    Some(Record { version: h.version, origin, kind })
}
