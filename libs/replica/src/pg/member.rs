//! A member's role: it takes its primary's ordered stream and reports what is durable.
//!
//! Invariants: records are appended in order without a gap from where the stream starts (R5); nothing is
//! accepted from another stream, epoch or start; while the log is full, everything that follows waits in order.

use super::{Pg, Purpose, Role};
use crate::codec::{
    copy_frame, decode, encode, frame_copy, key_in, StreamPos, StreamStart, SyncDrop,
};
use crate::credit::{blocks_of, Told};
use crate::cx::Cx;
use crate::event::{LinkId, Note};
use crate::history::pruned;
use crate::pg::stream::frame_record;
use crate::planted::Bug;
use quarry_base::{DeviceId, Epoch, RequestId, SdsId, Seq, StartNo, Version, VtreeId};
use quarry_store::{AppendError, AppendId, Appended, BlockCopy, BlockKey, ReadError};
use quarry_wire::{Frame, Header, Op, PgConfig, Status};
use std::collections::VecDeque;

/// So many committed records are followed though records behind them are not durable yet.
const FOLLOW_AT: u64 = 16;

/// A block that the primary wants for a repair.
pub(crate) struct Fetch {
    pub link: LinkId,
    pub h: Header,
    /// Pages that are damaged here too.
    pub without: u16,
}

/// The present stream.
struct InStream {
    link: LinkId,
    /// Set by StreamStart.
    first: Option<Seq>,
    /// Numbers are left out between what was here and where the stream starts.
    gap: bool,
    next: Seq,
    /// Sync items not durable yet, and how many are.
    items: VecDeque<Appended>,
    items_done: u64,
    reported: Option<(Seq, u64, Told)>,
    /// Highest commit point that came with a record.
    heard: Seq,
    /// Frames that wait for log space.
    stalled: VecDeque<Frame>,
    /// The first of them is a span, of which everything before this key has been dropped.
    dropped: Option<BlockKey>,
}

pub(crate) struct Member {
    epoch: Epoch,
    primary: (SdsId, StartNo),
    in_sync: bool,
    stream: Option<InStream>,
    /// The primary's questions for a sync (R29): number, and what has to be synced.
    pub sync_asks: Vec<(u64, AppendId)>,
}

/// What became of a frame of the stream.
enum Took {
    Yes,
    /// No log space: it waits.
    Full,
    Broken(&'static str),
}

impl Member {
    pub fn new(cfg: &PgConfig, device: DeviceId) -> Member {
        let primary = cfg.primary_member().map_or((SdsId(0), StartNo(0)), |m| (m.sds, m.start));
        let in_sync = cfg.is_in_sync(device);
        Member { epoch: cfg.epoch, primary, in_sync, stream: None, sync_asks: Vec::new() }
    }

    pub fn is_in_sync(&self) -> bool {
        self.in_sync
    }

    pub fn has_stream(&self) -> bool {
        self.stream.is_some()
    }

    /// Everything up to and including `upto` is durable on the device.
    fn stable(&mut self, upto: AppendId) {
        if let Some(s) = &mut self.stream {
            while matches!(s.items.front(), Some(Appended::Logged(id)) if *id <= upto) {
                s.items.pop_front();
                s.items_done += 1;
            }
        }
    }

    /// What was appended as `intent` is durable when `by` is.
    fn placed(&mut self, intent: AppendId, by: AppendId) {
        let items = self.stream.iter_mut().flat_map(|s| s.items.iter_mut());
        let it = items.filter(|i| **i == Appended::Intent(intent));
        it.for_each(|i| *i = Appended::Logged(by));
    }
}

impl Pg {
    fn member(&mut self) -> Option<&mut Member> {
        match &mut self.role {
            Role::Member(m) => Some(m),
            _ => None,
        }
    }

    /// The connection of the present stream.
    pub fn stream_link(&self) -> Option<LinkId> {
        match &self.role {
            Role::Member(m) => m.stream.as_ref().map(|s| s.link),
            _ => None,
        }
    }

    /// The primary opens a stream. Its configuration, which came along, has been looked at already.
    pub fn on_stream_open(
        &mut self,
        link: LinkId,
        from: (SdsId, StartNo),
        h: &Header,
        cx: &mut Cx,
    ) {
        if h.epoch != self.epoch() {
            return;
        }
        match self.member() {
            Some(m) if m.primary == from && m.epoch == h.epoch => {
                self.open_stream(link, h.request_id.0, cx)
            }
            Some(_) => {}
            // Answered when the role begins.
            None => self.pending_open = Some((link, h.request_id.0)),
        }
    }

    fn open_stream(&mut self, link: LinkId, number: u64, cx: &mut Cx) {
        if self.has_foreign_copies(cx) && !self.start_empty(cx) {
            self.pending_open = Some((link, number));
            return;
        }
        let state = cx.store.pg_state(self.id);
        let pos = StreamPos {
            complete_through: match cx.limits.planted(Bug::CompleteMovesInSync) {
                true => state.stable.min(state.last),
                false => self.meta.complete_through(self.device, state.stable.min(state.last)),
            },
            history: pruned(&self.meta.history, state.last).to_vec(),
        };
        let mut h = cx.header(Op::StreamPos, self.id);
        h.epoch = self.epoch();
        h.version = state.last;
        h.commit = state.commit;
        h.request_id = RequestId(number);
        cx.send(link, Frame::with_meta(h, encode(&pos)));
        self.promise.renew();
        if let Some(m) = self.member() {
            m.sync_asks.clear();
            m.stream = Some(InStream {
                link,
                first: None,
                gap: false,
                next: Seq::ZERO,
                items: VecDeque::new(),
                items_done: 0,
                reported: None,
                heard: Seq::ZERO,
                stalled: VecDeque::new(),
                dropped: None,
            });
        }
    }

    /// R29: a group with `ack = cached` may have fallen back behind copies that another start of a primary sent. Their
    /// versions would keep out what is right now; only a primary that never stopped since cannot have fallen back.
    fn has_foreign_copies(&mut self, cx: &Cx) -> bool {
        let by = self.copied_by;
        let start = self.member().filter(|m| !m.in_sync).map(|m| m.primary.1);
        cx.is_cached(self.id) && start.is_some_and(|s| by.is_some_and(|b| b != s))
    }

    /// Forgets everything of the group, to be sent all of it. False: no log space now.
    fn start_empty(&mut self, cx: &mut Cx) -> bool {
        let Ok(id) = cx.store.drop_pg(self.id) else { return false };
        cx.appends.push_back((id, cx.group));
        self.copied_by = None;
        self.promise.truncated(Seq::ZERO);
        self.meta.frozen = Some(Version::ZERO);
        self.meta.all_through = Version::ZERO;
        cx.note(Note::StartedEmpty { pg: self.id, device: self.device });
        self.store_meta(cx);
        true
    }

    pub fn member_link_closed(&mut self, link: LinkId) {
        if self.pending_open.is_some_and(|(l, _)| l == link) {
            self.pending_open = None;
        }
        if let Some(m) = self.member() {
            if m.stream.as_ref().is_some_and(|s| s.link == link) {
                m.stream = None;
            }
        }
    }

    /// A frame of a stream, at our epoch. Anything but the present stream's is dropped.
    pub fn on_stream_frame(&mut self, link: LinkId, frame: Frame, cx: &mut Cx) {
        let Some(s) = self.member().and_then(|m| m.stream.as_mut()) else { return };
        if s.link != link {
            return;
        }
        match frame.header.op {
            Op::SyncAsk if s.first.is_some() => return self.on_sync_ask(&frame.header, cx),
            Op::Confirm if s.first.is_some() => return self.on_confirm(link, &frame.header, cx),
            _ => {}
        }
        let Some(s) = self.member().and_then(|m| m.stream.as_mut()) else { return };
        if !s.stalled.is_empty() {
            let (commit, waiting) = (frame.header.commit, s.stalled.len());
            s.stalled.push_back(frame);
            self.follow_early(commit, cx);
            if waiting >= cx.limits.stalled_frames {
                self.break_in_stream("log full for too long", cx);
            }
            return;
        }
        self.take_or_stall(frame, cx);
    }

    /// False: nothing more can be taken now.
    fn take_or_stall(&mut self, frame: Frame, cx: &mut Cx) -> bool {
        match self.take(&frame, cx) {
            Took::Yes => true,
            Took::Full => {
                self.follow_early(frame.header.commit, cx);
                if let Some(s) = self.member().and_then(|m| m.stream.as_mut()) {
                    s.stalled.push_front(frame);
                }
                false
            }
            Took::Broken(why) => {
                self.break_in_stream(why, cx);
                false
            }
        }
    }

    fn break_in_stream(&mut self, why: &'static str, cx: &mut Cx) {
        let (pg, device) = (self.id, self.device);
        if let Some(s) = self.member().and_then(|m| m.stream.take()) {
            cx.note(Note::StreamBroken { pg, device, why });
            cx.close(s.link);
        }
    }

    fn take(&mut self, frame: &Frame, cx: &mut Cx) -> Took {
        let started =
            self.member().and_then(|m| m.stream.as_ref()).is_some_and(|s| s.first.is_some());
        match frame.header.op {
            Op::StreamStart if !started => self.take_start(frame, cx),
            _ if !started => Took::Broken("a record before the start of its stream"),
            Op::Replicate => self.take_record(frame, cx),
            Op::Commit => {
                self.follow_commit(frame.header.commit, cx);
                self.on_room_asked(&frame.header, cx);
                Took::Yes
            }
            Op::SyncCopy | Op::SyncDrop | Op::SyncIds => self.take_item(frame, cx),
            Op::FetchBlock => {
                self.follow_commit(frame.header.commit, cx);
                self.fetch(frame, cx);
                Took::Yes
            }
            _ => Took::Broken("an unexpected frame in a stream"),
        }
    }

    /// Where the stream starts, what goes before it, and the history it belongs to (R8, R9).
    fn take_start(&mut self, frame: &Frame, cx: &mut Cx) -> Took {
        let h = &frame.header;
        let Some(start) = decode::<StreamStart>(&frame.meta) else {
            return Took::Broken("malformed StreamStart");
        };
        let state = cx.store.pg_state(self.id);
        let in_sync = self.member().is_some_and(|m| m.in_sync);
        if start.truncate <= state.commit.0 {
            if in_sync {
                return Took::Broken("the primary lacks what is committed here");
            }
            // Diverged for good: begin again from nothing.
            if !self.start_empty(cx) {
                return Took::Full;
            }
        } else if start.truncate <= state.last.seq.0 {
            cx.store.truncate(self.id, Seq(start.truncate));
            self.promise.truncated(Seq(start.truncate));
        }
        self.meta.history = start.history;
        if !in_sync {
            let frozen = self.meta.frozen.unwrap_or(Version::ZERO);
            self.meta.frozen = Some(frozen.min(start.frozen));
        }
        let last = cx.store.pg_state(self.id).last.seq;
        let gap = h.version.seq.0 > last.0 + 1;
        if gap && !in_sync {
            // Nothing may lie open below the jump: what is left here is committed.
            cx.store.set_commit(self.id, last);
        }
        if cx.limits.planted(Bug::AcceptGap) {
            let last = cx.store.pg_state(self.id).last.seq;
            cx.store.set_commit(self.id, last);
        }
        self.trim_history(cx);
        self.store_meta(cx);
        // The role is there already: this one is ordered before the records by the log itself.
        if let Some(s) = self.member().and_then(|m| m.stream.as_mut()) {
            (s.first, s.gap) = (Some(h.version.seq), gap);
            s.next = h.version.seq;
        }
        self.follow_commit(h.commit, cx);
        Took::Yes
    }

    fn take_record(&mut self, frame: &Frame, cx: &mut Cx) -> Took {
        let h = &frame.header;
        let next = self.member().and_then(|m| m.stream.as_ref()).map_or(Seq::ZERO, |s| s.next);
        if h.version.seq != next {
            return Took::Broken("a gap in the sequence");
        }
        let Some(rec) = frame_record(frame) else {
            return Took::Broken("a damaged record");
        };
        let blocks = if blocks_of(&rec.kind) > 0 { h.generation.0 } else { 0 };
        match cx.append(self.id, rec) {
            Ok(_) => {}
            Err(AppendError::LogFull) => return Took::Full,
            // The device is at its end: it reports no more, the MDM takes it out.
            Err(AppendError::Failed) => return Took::Full,
            Err(_) => return Took::Broken("a record that the store refuses"),
        }
        cx.stats.records_received += 1;
        let kept_to = self.promise.take(h.version.seq, blocks);
        let in_sync = self.member().is_some_and(|m| m.in_sync);
        cx.stats.overdrawn += u64::from(in_sync && !kept_to);
        if let Some(s) = self.member().and_then(|m| m.stream.as_mut()) {
            s.next = Seq(next.0 + 1);
            s.heard = s.heard.max(h.commit);
        }
        Took::Yes
    }

    /// A commit point in the gap before a syncing member's stream says nothing about what is here.
    fn follow_commit(&mut self, commit: Seq, cx: &mut Cx) {
        if let Role::Member(m) = &self.role {
            let first = m.stream.as_ref().filter(|s| s.gap).and_then(|s| s.first);
            if !m.in_sync && first.is_some_and(|f| commit < f) {
                return;
            }
        }
        let state = cx.store.pg_state(self.id);
        let to = commit.min(state.last.seq);
        if to > state.commit {
            cx.store.set_commit(self.id, to);
        }
    }

    /// Of a frame that has to wait: what is committed of the records here is what makes room for it. Before the stream's
    /// start it says nothing of them, some may have to go.
    fn follow_early(&mut self, commit: Seq, cx: &mut Cx) {
        if self.stream().is_some_and(|s| s.first.is_some()) {
            self.follow_commit(commit, cx);
        }
    }

    /// One item of a sync, applied in the order of the stream (R14).
    fn take_item(&mut self, frame: &Frame, cx: &mut Cx) -> Took {
        self.follow_commit(frame.header.commit, cx);
        let done = match frame.header.op {
            Op::SyncIds => {
                if frame.header.version > Version::ZERO {
                    self.meta.all_through = self.meta.all_through.max(frame.header.version);
                    cx.store.set_all_through(self.id, frame.header.version);
                    // Durable before what follows: the floor goes with the copies.
                    self.store_meta(cx);
                    if self.meta_failed {
                        return Took::Full;
                    }
                }
                cx.ids_import(self.id, frame.meta.clone()).map(Appended::Logged)
            }
            Op::SyncDrop => {
                let Some(d) = decode::<SyncDrop>(&frame.meta) else {
                    return Took::Broken("malformed SyncDrop");
                };
                let keep: Vec<BlockKey> = d.keep.into_iter().map(key_in).collect();
                self.drop_span(key_in(d.from), key_in(d.to), &keep, cx).map(Appended::Logged)
            }
            _ => {
                let Some(copy) = frame_copy(frame) else {
                    return Took::Broken("a damaged copy");
                };
                if !self.has_room_for_copy(&copy, cx) {
                    return Took::Full;
                }
                if self.member().is_some_and(|m| m.in_sync) {
                    return Took::Broken("a copy for a member in sync");
                }
                self.copied_by = self.member().map(|m| m.primary.1);
                cx.place_copy(self.id, copy)
            }
        };
        match done {
            Ok(id) => {
                if let Some(s) = self.member().and_then(|m| m.stream.as_mut()) {
                    s.items.push_back(id);
                }
                Took::Yes
            }
            Err(AppendError::LogFull | AppendError::Failed) => Took::Full,
            Err(_) => Took::Broken("an item that the store refuses"),
        }
    }

    /// Drops what is in `from..to` and not to be kept, one vTree after the other: a span may hold many, more than the log
    /// takes at once. After `LogFull` it goes on where it was.
    fn drop_span(
        &mut self,
        from: BlockKey,
        to: BlockKey,
        keep: &[BlockKey],
        cx: &mut Cx,
    ) -> Result<AppendId, AppendError> {
        let id = self.id;
        let mut at = self.stream().and_then(|s| s.dropped.take()).unwrap_or(from);
        let mut ends: Vec<BlockKey> = Vec::new();
        for vtree in cx.store.vtrees_of(id) {
            let Some(next) = vtree.0.checked_add(1) else { break };
            ends.push(BlockKey { vtree: VtreeId(next), ..BlockKey::MIN });
        }
        ends.retain(|end| at < *end && *end < to);
        ends.push(to);
        let mut done = Err(AppendError::Invalid("an empty span"));
        for end in ends {
            done = cx.drop_keys(id, at, end, keep);
            if done.is_err() {
                if let Some(s) = self.stream() {
                    s.dropped = Some(at);
                }
                break;
            }
            at = end;
        }
        done
    }

    fn stream(&mut self) -> Option<&mut InStream> {
        self.member().and_then(|m| m.stream.as_mut())
    }

    /// The primary repairs a block: here is ours, at whatever version it has.
    fn fetch(&mut self, frame: &Frame, cx: &mut Cx) {
        let h = frame.header;
        let Some(link) = self.member().and_then(|m| m.stream.as_ref()).map(|s| s.link) else {
            return;
        };
        let token = cx.token(Purpose::Fetch(Box::new(Fetch { link, h, without: 0 })));
        cx.store.read_block(token, self.id, BlockKey::at(h.vtree, h.layer, h.extent, h.offset));
    }

    /// Our copy of a block was read for the primary.
    pub fn fetched(
        &mut self,
        f: &Fetch,
        result: Result<Option<BlockCopy>, ReadError>,
        cx: &mut Cx,
    ) {
        let key = BlockKey::at(f.h.vtree, f.h.layer, f.h.extent, f.h.offset);
        if let Err(ReadError::Corrupt { pages }) = &result {
            // Other pages of it are damaged here, perhaps: what is good may be what is asked for.
            let bad = key.mask(pages);
            if bad & !f.without != 0 {
                let without = f.without | bad;
                let again = Fetch { link: f.link, h: f.h, without };
                let token = cx.token(Purpose::Fetch(Box::new(again)));
                return cx.store.read_block_without(token, self.id, key, without);
            }
        }
        let mut h = cx.header(Op::BlockData, self.id);
        h.epoch = f.h.epoch;
        h.request_id = f.h.request_id;
        (h.vtree, h.layer, h.extent, h.offset) = (key.vtree, key.layer, key.extent, key.offset());
        let frame = match result {
            Ok(Some(copy)) if copy.valid != 0 || f.without == 0 => copy_frame(h, copy),
            Ok(Some(_)) => {
                h.status = Status::Corrupt;
                Frame::bare(h)
            }
            Ok(None) => {
                h.status = Status::Invalid;
                Frame::bare(h)
            }
            Err(_) => {
                h.status = Status::Corrupt;
                Frame::bare(h)
            }
        };
        cx.send(f.link, frame);
    }

    /// Takes what waited for log space, and reports.
    pub fn member_turn(&mut self, cx: &mut Cx) {
        if let Some((link, number)) = self.pending_open.take() {
            self.open_stream(link, number, cx);
        }
        while let Some(f) =
            self.member().and_then(|m| m.stream.as_mut()).and_then(|s| s.stalled.pop_front())
        {
            if !self.take_or_stall(f, cx) {
                break;
            }
        }
        self.turn_mends(cx);
        self.report(cx);
        self.answer_syncs(cx);
        self.follow_heard(cx);
    }

    /// Follows the commit point that came with records. What it commits is applied when nothing here is
    /// waited for any more: a record's way to the disk does not lead over the work for those before it.
    fn follow_heard(&mut self, cx: &mut Cx) {
        let Some(heard) = self.member().and_then(|m| m.stream.as_ref()).map(|s| s.heard) else {
            return;
        };
        let state = cx.store.pg_state(self.id);
        let waited_for = state.stable.min(state.last) < state.last;
        if waited_for && heard.0 < state.commit.0 + FOLLOW_AT {
            return;
        }
        self.follow_commit(heard, cx);
    }

    /// The parts of a copy are in their place: what the item of the sync waits for is known.
    pub fn copy_placed(&mut self, intent: AppendId, by: AppendId) {
        if let Some(m) = self.member() {
            m.placed(intent, by);
        }
    }

    /// One report a turn, if there is news (R5).
    pub fn report(&mut self, cx: &mut Cx) {
        let durable = cx.durable;
        let stable = cx.stable(self.id).seq;
        let (pg, epoch) = (self.id, self.epoch());
        if self.member().is_none_or(|m| m.stream.is_none()) {
            return;
        }
        let room = self.promise_room(cx);
        let Role::Member(m) = &mut self.role else { return };
        m.stable(durable);
        let in_sync = m.in_sync;
        let Some(s) = &mut m.stream else { return };
        let Some(first) = s.first else { return };
        let seq = if in_sync || stable >= first { stable } else { Seq(first.0.saturating_sub(1)) };
        let news = (seq, s.items_done, room);
        if s.reported == Some(news) {
            return;
        }
        s.reported = Some(news);
        let link = s.link;
        let mut h = cx.header(Op::ReplAck, pg);
        h.epoch = epoch;
        h.version = Version::new(epoch, seq);
        h.request_id = RequestId(news.1);
        (h.vtree.0, h.generation.0, h.length) = (room.0, room.1, room.3);
        h.status = if room.2 { Status::Full } else { Status::Ok };
        cx.send(link, Frame::bare(h));
    }
}
