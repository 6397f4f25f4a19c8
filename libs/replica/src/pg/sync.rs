//! Bringing a member up to date (R13-R15): blocks by version, in the group's ordered stream.
//!
//! A block is locked, the writes in flight on it waited for, read, sent, released: no record on it can lie
//! between its reading and its sending. In a full compare the key space goes in spans: a span is locked until
//! nothing in flight touches it, then what the primary has in it is listed once and for all (SyncDrop).

use super::locks::{LockId, PageRange, Span};
use super::primary::Primary;
use super::Purpose;
use crate::codec::{copy_frame, encode, key_out, SyncDrop};
use crate::cx::Cx;
use crate::event::Note;
use crate::planted::Bug;
use quarry_base::{Nanos, Seq, Version, VtreeId, BLOCK, EXTENT, PAGE};
use quarry_store::{BlockCopy, BlockKey, Origin, ReadError, Record, RecordKind};
use quarry_wire::{Frame, Op, Proposal};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// From so many changed parts of 16 on a block goes whole: one write of the member, with nothing to wait for, instead of
/// several with an intent before them. 16 for 14 is little more on the wire and on the device.
const WHOLE_FROM: u32 = 14;

/// Progress of one member's sync.
pub(crate) struct Sync {
    /// Distinguishes it from an earlier one of the same member.
    pub id: u64,
    /// `Some`: it is sent what changed after this version, else everything.
    pub since: Option<Version>,
    cursor: BlockKey,
    /// Everything has been listed.
    listed: bool,
    /// Span being closed, in a full compare: up to where.
    span: Option<(LockId, BlockKey)>,
    /// Locked blocks that wait for the writes in flight on them.
    queue: VecDeque<(LockId, BlockKey)>,
    reading: Vec<LockId>,
    /// Blocks without a good copy; the sync cannot end while there are any.
    pub bad: Vec<BlockKey>,
    /// Blocks that were read whole and have damaged pages.
    damaged: Vec<BlockKey>,
    pub sent: u64,
    pub acked: u64,
    pub progress: Nanos,
    pub done_bytes: u64,
    pub total_bytes: u64,
    /// Token bucket of the pool's rate.
    tokens: f64,
    filled: Nanos,
}

/// How often it is looked whether what is committed is applied.
const APPLIED_POLL: Duration = Duration::from_millis(5);

impl Sync {
    /// A block without a good copy, if everything else is at the member.
    fn held_up_by(&self) -> Option<BlockKey> {
        let rest = self.listed && self.queue.is_empty() && self.reading.is_empty();
        self.bad.first().copied().filter(|_| rest && self.acked == self.sent)
    }
}

impl Primary {
    pub fn turn_syncs(&mut self, cx: &mut Cx) {
        for i in 0..self.followers.len() {
            let f = &self.followers[i];
            if f.in_sync {
                continue;
            }
            self.turn_sync(i, cx);
        }
    }

    fn turn_sync(&mut self, i: usize, cx: &mut Cx) {
        let f = &self.followers[i];
        if f.candidate {
            return self.ask_add(i, cx);
        }
        // Only active: who joins the set relies on it that nobody before us serves (`quiet.rs`).
        let Some(first) = f.first().filter(|first| self.active && self.commit.0 + 1 >= first.0)
        else {
            return;
        };
        // What goes before the stream is copied from what is applied.
        if self.oldest_open(cx).is_some_and(|seq| seq < first) {
            return self.wake_by(cx.now + APPLIED_POLL);
        }
        if f.sync.is_none() {
            self.begin_sync(i, cx);
        }
        // The sync is taken out while it is worked on.
        let Some(mut s) = self.followers[i].sync.take() else { return };
        if self.is_void(&s, cx) {
            self.followers[i].sync = Some(s);
            // The next stream begins with a full compare.
            return self.break_stream(i, "tombstones were dropped during the delta", cx);
        }
        self.pump(i, &mut s, cx);
        let f = &mut self.followers[i];
        let finished = s.listed && s.queue.is_empty() && s.reading.is_empty() && s.bad.is_empty();
        let first = f.first().unwrap_or(Seq::ZERO);
        // Its log has to reach into this stream: only then does its position say that it has everything.
        let reached = f.report() >= first;
        if finished && s.acked == s.sent && !reached && self.last < first {
            self.mark(cx);
        }
        let f = &mut self.followers[i];
        let acked = s.acked == s.sent || cx.limits.planted(Bug::AddBeforeAcked);
        if finished && acked && reached {
            f.candidate = !cx.limits.planted(Bug::AddBeforeCounting);
            f.heard = cx.now;
            f.sync = Some(s);
            return self.ask_add(i, cx);
        }
        let stalled = s.progress + cx.limits.sync_stall;
        let damaged = s.held_up_by();
        f.sync = Some(s);
        if cx.now >= stalled {
            self.give_up_sync(i, damaged, cx);
        } else {
            self.wake_by(stalled);
        }
    }

    /// A record without content.
    fn mark(&mut self, cx: &mut Cx) {
        let rec = Record {
            version: Version::new(self.stamp(cx), Seq(self.last.0 + 1)),
            origin: Origin::default(),
            kind: RecordKind::EpochStart { base: Seq(self.base.0.saturating_sub(1)) },
        };
        if cx.append(self.pg, rec.clone()).is_err() {
            self.log_full = true;
            return;
        }
        self.last = rec.version.seq;
        self.replicate(&rec, 0, None, cx);
    }

    fn begin_sync(&mut self, i: usize, cx: &mut Cx) {
        self.syncs += 1;
        let floor = self.floor(cx);
        let through = self.followers[i].complete_through;
        let since = (through > Version::ZERO && through >= floor).then_some(through);
        let total = cx.store.bytes_changed_since(self.pg, since);
        let mut s = Sync {
            id: self.syncs,
            since,
            cursor: BlockKey::MIN,
            listed: false,
            span: None,
            queue: VecDeque::new(),
            reading: Vec::new(),
            bad: Vec::new(),
            damaged: Vec::new(),
            sent: 0,
            acked: 0,
            progress: cx.now,
            done_bytes: 0,
            total_bytes: total,
            tokens: 0.0,
            filled: cx.now,
        };
        let device = self.followers[i].member.device;
        cx.note(Note::SyncStarted { pg: self.pg, device, full: since.is_none() });
        let mut h = cx.header(Op::SyncIds, self.pg);
        // The member has tombstones from our floor on only, and dirty masks that say no more than ours.
        h.version = floor;
        let ids = cx.store.ids_export(self.pg);
        self.send_item(i, &mut s, Frame::with_meta(h, ids), cx);
        if let Some(since) = since {
            self.send_dropped_vtrees(i, &mut s, since, cx);
        }
        self.followers[i].sync = Some(s);
    }

    /// vTrees deleted since: their blocks may still be there.
    fn send_dropped_vtrees(&mut self, i: usize, s: &mut Sync, since: Version, cx: &mut Cx) {
        let pool = self.pg.pool();
        // Still here: it is dropped by a record to come, or has a volume.
        let mut here = cx.store.vtrees_of(self.pg);
        here.retain(|v| cx.store.has_blocks_of(self.pg, *v));
        // Of these nothing was deleted, whatever a list says.
        here.extend(cx.view.cluster.volumes.values().filter(|v| v.pool == pool).map(|v| v.vtree));
        here.sort_unstable();
        here.dedup();
        let mut gone: BTreeSet<(VtreeId, VtreeId)> =
            cx.view.cluster.deleted_without(pool, &here).into_iter().collect();
        let logged = cx.store.dropped_vtrees(self.pg, since).into_iter().map(|d| d.0);
        let unknown = |v: &VtreeId| !cx.view.is_deleted(pool, *v) && !here.contains(v);
        gone.extend(logged.filter(unknown).map(|v| (v, v)));
        for (first, last) in gone {
            let from = BlockKey { vtree: first, ..BlockKey::MIN };
            let to = match last.0.checked_add(1) {
                Some(v) => BlockKey { vtree: VtreeId(v), ..BlockKey::MIN },
                None => BlockKey::MAX,
            };
            self.send_drop(i, s, from, to, &[], cx);
        }
    }

    fn send_item(&mut self, i: usize, s: &mut Sync, mut frame: Frame, cx: &mut Cx) {
        let Some(link) = self.followers[i].running_link() else { return };
        frame.header.epoch = self.epoch;
        frame.header.commit = self.commit;
        self.followers[i].told = self.commit;
        if s.acked == s.sent {
            s.progress = cx.now;
        }
        s.sent += 1;
        cx.send(link, frame);
    }

    fn send_drop(
        &mut self,
        i: usize,
        s: &mut Sync,
        from: BlockKey,
        to: BlockKey,
        keep: &[BlockKey],
        cx: &mut Cx,
    ) {
        let meta = SyncDrop {
            from: key_out(from),
            to: key_out(to),
            keep: keep.iter().map(|k| key_out(*k)).collect(),
        };
        let h = cx.header(Op::SyncDrop, self.pg);
        self.send_item(i, s, Frame::with_meta(h, encode(&meta)), cx);
    }

    /// Room for one more block now? Otherwise when to look again is noted.
    fn room(&mut self, i: usize, s: &mut Sync, cx: &Cx) -> bool {
        let open = (s.sent - s.acked) as usize + s.queue.len() + s.reading.len();
        if open >= cx.limits.sync_copies
            || self.followers[i].unacked_bytes >= cx.limits.sync_stream_bytes
        {
            return false;
        }
        let rate =
            cx.view.cluster.pools.get(&self.pg.pool()).map_or(0, |p| p.rebuild_bytes_per_second);
        if rate == 0 {
            (s.tokens, s.filled) = (0.0, cx.now);
            return true;
        }
        let gained = cx.now.since(s.filled).as_secs_f64() * rate as f64;
        s.tokens = (s.tokens + gained).min((rate as f64 / 10.0).max(f64::from(BLOCK)));
        s.filled = cx.now;
        if s.tokens >= f64::from(BLOCK) {
            return true;
        }
        let missing = (f64::from(BLOCK) - s.tokens) / rate as f64;
        // Waiting for the pool's rate is no lack of progress.
        s.progress = cx.now;
        self.wake_by(cx.now + Duration::from_secs_f64(missing.min(1.0)));
        false
    }

    /// Tombstones that the delta still needs are gone: it cannot be trusted any more.
    fn is_void(&self, s: &Sync, cx: &Cx) -> bool {
        !s.listed && s.since.is_some_and(|since| self.floor(cx) > since)
    }

    /// A delta from below this version is impossible.
    fn floor(&self, cx: &Cx) -> Version {
        if cx.limits.planted(Bug::MasksReset) {
            return Version::ZERO;
        }
        cx.store.delta_floor(self.pg)
    }

    fn pump(&mut self, i: usize, s: &mut Sync, cx: &mut Cx) {
        self.read_clear(i, s, cx);
        while !s.listed && self.room(i, s, cx) {
            let went = match s.since {
                Some(since) => self.list_next(s, since, cx),
                None => self.list_span(i, s, cx),
            };
            if !went {
                break;
            }
            self.read_clear(i, s, cx);
        }
    }

    /// Delta: the next block that is newer than what the member has. False: none left.
    fn list_next(&mut self, s: &mut Sync, since: Version, cx: &Cx) -> bool {
        if cx.limits.planted(Bug::TrimMissing) {
            let rows = cx.store.scan(self.pg, s.cursor, usize::MAX, Some(since));
            s.cursor = rows.iter().find(|r| r.valid != 0).map_or(BlockKey::MAX, |r| r.key);
        }
        match cx.store.scan(self.pg, s.cursor, 1, Some(since)).first() {
            Some(row) => {
                s.cursor = row.key.next();
                self.lock_block(s, row.key);
                true
            }
            None => {
                s.listed = true;
                false
            }
        }
    }

    /// Every block that is queued takes of the pool's rate; a span of them may take ahead.
    fn lock_block(&mut self, s: &mut Sync, key: BlockKey) {
        s.tokens -= f64::from(BLOCK);
        let lock = self.locks.take(Span::Pages(PageRange::of_block(key)));
        s.queue.push_back((lock, key));
    }

    /// Full compare: closes a span of keys, says which blocks it has, queues them. False: waits.
    fn list_span(&mut self, i: usize, s: &mut Sync, cx: &mut Cx) -> bool {
        let per = cx.limits.sync_copies;
        let (lock, mut to) = match s.span {
            Some(x) => x,
            None => {
                let rows = cx.store.scan(self.pg, s.cursor, per, None);
                let to = match rows.last() {
                    Some(r) if rows.len() == per => r.key.next(),
                    _ => BlockKey::MAX,
                };
                let lock = self.locks.take(Span::Keys { from: s.cursor, to });
                s.span = Some((lock, to));
                (lock, to)
            }
        };
        let span = Span::Keys { from: s.cursor, to };
        if self.locks.is_behind(lock, &span) || self.in_flight(&span, cx) {
            return false;
        }
        let mut rows = cx.store.scan(self.pg, s.cursor, per + 1, None);
        rows.retain(|r| r.key < to);
        if rows.len() > per {
            rows.truncate(per);
            to = rows.last().map_or(to, |r| r.key.next());
        }
        let keys: Vec<BlockKey> = rows.iter().map(|r| r.key).collect();
        self.send_drop(i, s, s.cursor, to, &keys, cx);
        for key in keys {
            self.lock_block(s, key);
        }
        self.locks.release(lock);
        s.span = None;
        s.cursor = to;
        s.listed = to == BlockKey::MAX;
        !s.listed
    }

    /// The first record that is not applied yet: not committed, or not in the log here.
    fn oldest_open(&self, cx: &Cx) -> Option<Seq> {
        cx.store.tail(self.pg, Seq::ZERO).next().map(|t| t.version.seq)
    }

    /// Does anything that is not applied touch the span? What is committed and not applied is looked for again soon.
    pub fn in_flight(&mut self, span: &Span, cx: &Cx) -> bool {
        if self.oldest_open(cx).is_some_and(|seq| seq <= self.commit) {
            self.wake_by(cx.now + APPLIED_POLL);
        }
        cx.store.tail(self.pg, Seq::ZERO).any(|t| span.touched_by(&t.rec))
    }

    /// Reads the locked blocks that nothing is in flight on.
    fn read_clear(&mut self, i: usize, s: &mut Sync, cx: &mut Cx) {
        let device = self.followers[i].member.device;
        let mut at = 0;
        while let Some(&(lock, key)) = s.queue.get(at) {
            let span = Span::Pages(PageRange::of_block(key));
            let overtakes = cx.limits.planted(Bug::CopyOvertakes);
            if !overtakes && (self.locks.is_behind(lock, &span) || self.in_flight(&span, cx)) {
                at += 1;
                continue;
            }
            s.queue.remove(at);
            s.reading.push(lock);
            let token =
                cx.token(Purpose::Copy { epoch: self.epoch, device, sync: s.id, lock, key });
            // In a delta the rest of the block is at the member; here it may even be damaged.
            match self.is_by_masks(s, cx) {
                true => {
                    let whole_from = if s.damaged.is_empty() { WHOLE_FROM } else { u32::MAX };
                    cx.store.read_block_dirty(token, self.pg, key, whole_from)
                }
                false => cx.store.read_block(token, self.pg, key),
            }
        }
    }

    /// A block was read for a member: send it, release it.
    pub fn copy_read(
        &mut self,
        who: (quarry_base::DeviceId, u64),
        lock: LockId,
        key: BlockKey,
        result: Result<Option<BlockCopy>, ReadError>,
        cx: &mut Cx,
    ) {
        self.locks.release(lock);
        let Some(i) = self.followers.iter().position(|f| f.member.device == who.0) else { return };
        let Some(mut s) = self.followers[i].sync.take() else { return };
        if s.id != who.1 || !s.reading.contains(&lock) {
            self.followers[i].sync = Some(s);
            return;
        }
        s.reading.retain(|l| *l != lock);
        match result {
            Ok(Some(copy)) => {
                // As `bytes_changed_since` counts them.
                s.done_bytes += match s.since {
                    Some(_) => u64::from(copy.dirty.count_ones()) * PAGE as u64,
                    None => u64::from(BLOCK),
                };
                let copy = self.needed(&s, copy, cx);
                cx.stats.sync_copies += 1;
                cx.stats.sync_bytes += copy.data.len() as u64;
                let h = cx.header(Op::SyncCopy, self.pg);
                self.send_item(i, &mut s, copy_frame(h, copy), cx);
            }
            // Gone without a tombstone: the member forgets it too.
            Ok(None) => self.send_drop(i, &mut s, key, key.next(), &[], cx),
            Err(ReadError::Corrupt { pages }) => {
                cx.stats.corrupt_pages += pages.len() as u64;
                if self.is_by_masks(&s, cx) && !s.damaged.contains(&key) {
                    // Perhaps not of what the member lacks: from now on nothing else is read.
                    s.damaged.push(key);
                    self.lock_block(&mut s, key);
                    self.followers[i].sync = Some(s);
                    return;
                }
                s.bad.push(key);
                self.followers[i].sync = Some(s);
                return self.repair_for_sync(key, key.mask(&pages), cx);
            }
            Err(ReadError::Io(_)) => s.bad.push(key),
        }
        self.followers[i].sync = Some(s);
    }

    /// The masks tell what the member lacks.
    fn is_by_masks(&self, s: &Sync, cx: &Cx) -> bool {
        s.since.is_some_and(|since| since >= self.floor(cx))
    }

    /// What of a block the member may lack: in a delta the parts written or trimmed since (R13). The masks
    /// reach back to `all_through`, which is not above the floor.
    fn needed(&self, s: &Sync, copy: BlockCopy, cx: &Cx) -> BlockCopy {
        let ignored = cx.limits.planted(Bug::MaskIgnored);
        if copy.part != BlockCopy::WHOLE && !ignored {
            return copy;
        }
        let dirty = if ignored { copy.dirty & 0x5555 } else { copy.dirty };
        if self.is_by_masks(s, cx) && copy.valid != 0 && dirty.count_ones() < WHOLE_FROM {
            return copy.only(dirty);
        }
        copy
    }

    /// A block that could not be read for a sync is good again.
    pub fn sync_repaired(&mut self, key: BlockKey) {
        for i in 0..self.followers.len() {
            let Some(mut s) = self.followers[i].sync.take() else { continue };
            if s.bad.contains(&key) {
                s.bad.retain(|k| *k != key);
                self.lock_block(&mut s, key);
            }
            self.followers[i].sync = Some(s);
        }
    }

    /// A candidate that has everything up to the commit point is proposed, until the outcome is known (R15).
    fn ask_add(&mut self, i: usize, cx: &mut Cx) {
        let (commit, pg, epoch) = (self.commit, self.pg, self.epoch);
        let f = &mut self.followers[i];
        let asked = f.add_asked.is_some();
        if !asked && (f.report() < commit || !f.is_running() || !self.is_candidate_synced(i, cx)) {
            return;
        }
        let f = &mut self.followers[i];
        let due = f.add_asked.map_or(cx.now, |at| at + cx.limits.propose_every);
        if cx.now < due {
            return self.wake_by(due);
        }
        let device = f.member.device;
        if f.add_asked.is_none() {
            cx.note(Note::SyncComplete { pg, device });
        }
        f.add_asked = Some(cx.now);
        cx.propose(Proposal::Add { pg, epoch, device });
        self.wake_by(cx.now + cx.limits.propose_every);
    }

    fn give_up_sync(&mut self, i: usize, damaged: Option<BlockKey>, cx: &mut Cx) {
        let device = self.followers[i].member.device;
        let credit = &self.followers[i].credit;
        let no_room = damaged.is_none() && (credit.low || credit.full_thick);
        let why = match damaged {
            Some(_) => "a block has no good copy",
            None if no_room => "no progress: the device is full or nearly so",
            None => "no progress",
        };
        if let Some(s) = self.followers[i].sync.as_mut() {
            s.progress = cx.now;
        }
        cx.note(Note::SyncGivenUp { pg: self.pg, device, why });
        cx.propose(Proposal::DropSyncing {
            pg: self.pg,
            epoch: self.epoch,
            device,
            reason: why.to_string(),
            damaged: damaged.map(|k| {
                let extent = u64::from(k.extent.0) * u64::from(EXTENT);
                (k.vtree, extent + u64::from(k.offset()))
            }),
            no_room,
        });
    }

    /// The sync is over before its end: nothing stays locked for it.
    pub fn release_sync(&mut self, s: Sync) {
        if let Some((lock, _)) = s.span {
            self.locks.release(lock);
        }
        for (lock, _) in s.queue {
            self.locks.release(lock);
        }
        for lock in s.reading {
            self.locks.release(lock);
        }
    }
}
