//! The primary's role in one epoch: what it has, and its turn of the crank.
//!
//! It sequences from the start; it acknowledges and serves only when *active*: its epoch-start record is
//! committed (with it everything inherited, R9), and no earlier primary serves any more (R18, `quiet.rs`).

use super::commit::Sequenced;
use super::flush::Flushes;
use super::locks::Locks;
use super::merge::Merge;
use super::repair::Repair;
use super::request::{answer, Request, Standing};
use super::room::Short;
use super::rounds::Rounds;
use super::stream::Follower;
use super::Pg;
use crate::credit::{blocks_of, Charges};
use crate::cx::Cx;
use crate::event::{LinkId, Note};
use crate::history::Era;
use crate::planted::Bug;
use quarry_base::{DeviceId, Epoch, Nanos, PgId, Seq, Version, VtreeId, PAGE};
use quarry_store::{Origin, Record, RecordKind};
use quarry_wire::{PgConfig, Status};
use std::collections::{BTreeSet, VecDeque};

pub(crate) struct Primary {
    pub pg: PgId,
    pub device: DeviceId,
    pub epoch: Epoch,
    pub cfg: PgConfig,
    pub history: Vec<Era>,
    pub all_through: Version,
    /// Number of the epoch-start record.
    pub base: Seq,
    pub started: bool,
    pub active: bool,
    /// No earlier primary serves from then on.
    pub quiet_from: Nanos,
    pub last: Seq,
    pub commit: Seq,
    /// When the commit point last moved.
    pub commit_moved: Nanos,
    pub followers: Vec<Follower>,
    /// Writes without a number, in order of arrival.
    pub waiting: VecDeque<Request>,
    /// Writes with a number, not answered; in order of numbers.
    pub sequenced: VecDeque<Sequenced>,
    /// The time that records took to be durable here is noted up to this one.
    pub own_noted: Seq,
    pub window_bytes: usize,
    pub window_records: usize,
    /// When the window was last empty as a record came.
    pub window_since: Nanos,
    /// Bytes of the tail that was here before: not committed before the epoch-start record is.
    pub inherited_bytes: u64,
    pub merges: Vec<Merge>,
    pub locks: Locks,
    /// Reads that came before the role was active.
    pub early_reads: VecDeque<Request>,
    /// Reads whose data is there and whose lease is not.
    pub leaseless: Vec<super::reads::Held>,
    pub leaseless_since: Nanos,
    /// `reads = confirm`: how many of `leaseless`, from the front, the open round of questions covers.
    pub confirms: Rounds,
    pub confirmable: usize,
    pub flushes: Flushes,
    pub repairs: Vec<Repair>,
    pub log_full: bool,
    /// Blocks that records which are not committed may take on our own device (R24), and since when it is short of them.
    pub charges: Charges,
    pub short: Short,
    /// Since when a device that counts has no block for thick volumes.
    pub thick_short: Short,
    /// Questions to members for their copies of blocks.
    pub questions: u64,
    pub all_through_at: Seq,
    /// Deleted vTrees have been looked for since this index of the view.
    pub drops_checked: Option<quarry_base::ConfigIndex>,
    pub syncs: u64,
    /// This configuration is led since.
    pub since: Nanos,
    pub wake_at: Nanos,
}

impl Primary {
    pub fn new(pg: &Pg, cfg: PgConfig, cx: &Cx) -> Primary {
        let state = cx.store.pg_state(pg.id);
        let others = cfg.members().filter(|m| m.device != pg.device);
        let followers =
            others.map(|m| Follower::new(*m, cfg.is_in_sync(m.device), cx.now)).collect();
        Primary {
            pg: pg.id,
            device: pg.device,
            epoch: cfg.epoch,
            history: pg.meta.history.clone(),
            all_through: pg.meta.all_through,
            base: Seq(state.last.seq.0 + 1),
            started: false,
            active: false,
            quiet_from: pg.quiet_from(cfg.epoch, cx),
            last: state.last.seq,
            commit: state.commit,
            commit_moved: cx.now,
            followers,
            waiting: VecDeque::new(),
            sequenced: VecDeque::new(),
            own_noted: Seq::ZERO,
            window_bytes: 0,
            window_records: 0,
            window_since: cx.now,
            inherited_bytes: tail_bytes(pg.id, state.commit, cx),
            merges: Vec::new(),
            locks: Locks::default(),
            early_reads: VecDeque::new(),
            leaseless: Vec::new(),
            leaseless_since: Nanos::MAX,
            confirms: Rounds::default(),
            confirmable: 0,
            flushes: Flushes::default(),
            repairs: Vec::new(),
            log_full: false,
            charges: inherited(pg.id, state.commit, cx),
            short: Short::default(),
            thick_short: Short::default(),
            questions: 0,
            all_through_at: state.commit,
            drops_checked: None,
            syncs: 0,
            since: cx.now,
            wake_at: Nanos::MAX,
            cfg,
        }
    }

    /// Answers a request.
    pub fn answer(&self, r: &Request, status: Status, cx: &mut Cx) {
        self.answer_to(&r.h, r.link, status, cx);
    }

    pub fn answer_to(&self, h: &quarry_wire::Header, link: LinkId, status: Status, cx: &mut Cx) {
        match status {
            Status::TryAgain => cx.stats.try_again += 1,
            Status::StaleEpoch => cx.stats.stale_epoch += 1,
            Status::StaleInstance | Status::StaleMapping | Status::StaleRequest => {
                cx.stats.fenced += 1
            }
            Status::Full => cx.stats.full += 1,
            _ => {}
        }
        let standing =
            Standing { config: Some(&self.cfg), commit: self.commit, index: cx.view.index() };
        answer(h, link, status, &standing, cx.links, cx.out);
    }

    /// The role is over: every request goes back, with the next configuration if there is one.
    /// What has a number stays in the tail, and its origin in the id table: the repeat is recognised.
    pub fn send_back(&self, next: Option<&PgConfig>, cx: &mut Cx) {
        let standing = Standing {
            config: next.or(Some(&self.cfg)),
            commit: self.commit,
            index: cx.view.index(),
        };
        let status = if next.is_some() { Status::StaleEpoch } else { Status::TryAgain };
        let reads = self.leaseless.iter().map(|h| (&h.req.h, h.req.link));
        let reads = reads.chain(self.early_reads.iter().map(|r| (&r.h, r.link)));
        let reads =
            reads.chain(self.repairs.iter().flat_map(|r| r.readers.iter()).map(|r| (&r.h, r.link)));
        let writes = self.waiting.iter().map(|r| (&r.h, r.link));
        let writes = writes.chain(self.merges.iter().map(|m| (&m.req.h, m.req.link)));
        let writes = writes.chain(self.sequenced.iter().map(|s| (&s.h, s.link)));
        let flushes = self.flushes.requests().map(|r| (&r.0, r.1));
        for (h, link) in reads.chain(writes).chain(flushes) {
            cx.stats.stale_epoch += 1;
            answer(h, link, status, &standing, cx.links, cx.out);
        }
    }

    /// A client's connection is gone: what waits for a number is dropped, it will be sent again.
    pub fn link_closed(&mut self, link: LinkId) {
        self.waiting.retain(|r| r.link != link);
        self.early_reads.retain(|r| r.link != link);
        let gone = |h: &&super::reads::Held| h.req.link == link;
        self.confirmable -= self.leaseless.iter().take(self.confirmable).filter(gone).count();
        self.leaseless.retain(|h| h.req.link != link);
        self.flushes.link_closed(link);
    }

    /// Writes the epoch-start record (R8); everything else follows it.
    fn start(&mut self, cx: &mut Cx) {
        let rec = Record {
            version: Version::new(self.stamp(cx), self.base),
            origin: Origin::default(),
            kind: RecordKind::EpochStart { base: Seq(self.base.0 - 1) },
        };
        if cx.append(self.pg, rec.clone()).is_err() {
            self.log_full = true;
            return;
        }
        self.started = true;
        self.last = self.base;
        self.replicate(&rec, 0, None, cx);
    }

    /// The epoch of new records: this one (R8).
    pub fn stamp(&self, cx: &Cx) -> Epoch {
        match self.history.last() {
            Some(old) if cx.limits.planted(Bug::SeqReused) => old.epoch,
            _ => self.epoch,
        }
    }

    fn maybe_activate(&mut self, cx: &mut Cx) {
        let committed = self.commit >= self.base || cx.limits.planted(Bug::ServeOldTail);
        if self.active || !self.started || !committed {
            return;
        }
        if cx.now >= self.quiet_from || cx.limits.planted(Bug::NoGrantWait) {
            self.active = true;
            let waits = cx.now < cx.born + cx.limits.lease_granted();
            cx.stats.quiet_starts += u64::from(waits);
            cx.note(Note::PrimaryActive { pg: self.pg, epoch: self.epoch });
        }
    }

    pub fn turn(&mut self, cx: &mut Cx) {
        self.wake_at = Nanos::MAX;
        self.log_full = false;
        if !self.started {
            self.start(cx);
        }
        self.open_streams(cx);
        if !self.started {
            return;
        }
        let inherited = self.commit < self.base;
        self.advance_commit(cx);
        if inherited && self.commit >= self.base {
            self.open_streams(cx);
        }
        self.maybe_activate(cx);
        self.acknowledge(cx);
        if self.active {
            self.start_early_reads(cx);
            self.serve_leased(cx);
            self.turn_flushes(cx);
            self.drop_deleted(cx);
        }
        self.turn_repairs(cx);
        self.turn_merges(cx);
        self.admit(cx);
        self.give_room_back(cx);
        self.turn_syncs(cx);
        self.send_commits(cx);
        self.watch_followers(cx);
    }

    /// No more sequence numbers until the next epoch?
    pub fn is_closed(&self, cx: &Cx) -> bool {
        !self.started || cx.handing_over || self.cfg.in_sync.len() < self.cfg.min_copies as usize
    }

    /// Deleted volumes: one record drops a vTree's blocks of this group.
    fn drop_deleted(&mut self, cx: &mut Cx) {
        if self.is_closed(cx) || self.drops_checked == Some(cx.view.index()) {
            return;
        }
        let pool = self.pg.pool();
        let tail: Vec<_> = cx.store.tail(self.pg, Seq(self.commit.0 + 1)).collect();
        // Of what is here, not of all that was ever deleted.
        let mut here: BTreeSet<VtreeId> = cx.store.vtrees_of(self.pg).into_iter().collect();
        here.extend(tail.iter().filter_map(|t| vtree_of(&t.rec)));
        here.retain(|v| cx.view.is_deleted(pool, *v));
        for vtree in here {
            let held = cx.store.has_blocks_of(self.pg, vtree);
            let pending = tail.iter().any(|t| vtree_of(&t.rec) == Some(vtree));
            let dropping = tail
                .iter()
                .any(|t| matches!(t.rec.kind, RecordKind::DropVtree { vtree: v } if v == vtree));
            if (!held && !pending) || dropping {
                continue;
            }
            let rec = Record {
                version: Version::new(self.stamp(cx), Seq(self.last.0 + 1)),
                origin: Origin::default(),
                kind: RecordKind::DropVtree { vtree },
            };
            if cx.append(self.pg, rec.clone()).is_err() {
                self.log_full = true;
                return;
            }
            self.last = rec.version.seq;
            self.replicate(&rec, 0, None, cx);
        }
        self.drops_checked = Some(cx.view.index());
    }

    /// While every listed device is in sync, tombstones and masks below the commit point are of no use to anybody.
    /// With `ack = cached` that holds only for what a flush has put on every medium.
    pub fn take_all_through(&mut self, cx: &Cx) -> Option<Version> {
        if cx.is_cached(self.pg) {
            if self.active && self.commit.0 >= self.all_through_at.0 + cx.limits.all_through_every {
                self.all_through_at = self.commit;
                self.flushes.wanted = true;
            }
            return self.flushes.through.take();
        }
        if !self.active || self.commit.0 < self.all_through_at.0 + cx.limits.all_through_every {
            return None;
        }
        self.all_through_at = self.commit;
        (self.cfg.is_complete() || cx.limits.planted(Bug::MasksReset))
            .then(|| cx.store.pg_state(self.pg).commit_version)
    }

    pub fn wake_by(&mut self, at: Nanos) {
        self.wake_at = self.wake_at.min(at);
    }

    /// When the next turn is due if nothing happens before.
    pub fn wake(&self) -> Nanos {
        let mut at = self.wake_at;
        if self.started && !self.active && self.commit >= self.base {
            at = at.min(self.quiet_from);
        }
        at
    }
}

/// What the tail that was here before may still take.
fn inherited(pg: PgId, commit: Seq, cx: &Cx) -> Charges {
    let tail = cx.store.tail(pg, Seq(commit.0 + 1));
    Charges::of_tail(tail.map(|t| (t.version.seq, blocks_of(&t.rec.kind))))
}

/// What the records of that tail hold of the log at least.
fn tail_bytes(pg: PgId, commit: Seq, cx: &Cx) -> u64 {
    let bytes = |rec: &Record| match &rec.kind {
        RecordKind::Write { data, .. } => data.len() as u64,
        _ => PAGE as u64,
    };
    cx.store.tail(pg, Seq(commit.0 + 1)).map(|t| bytes(&t.rec)).sum()
}

fn vtree_of(rec: &Record) -> Option<VtreeId> {
    match &rec.kind {
        RecordKind::Write { vtree, .. } | RecordKind::Zero { vtree, .. } => Some(*vtree),
        _ => None,
    }
}
