//! What a placement group needs of the engine while it handles something: borrowed for one call.

use crate::config::Limits;
use crate::credit::Ledger;
use crate::event::{Action, LinkId, Note};
use crate::links::Links;
use crate::pg::Purpose;
use crate::pinned::Pinned;
use crate::stats::EngineStats;
use crate::times::WriteTimes;
use crate::view::View;
use bytes::Bytes;
use quarry_base::{Nanos, PgId, SdsId, StartNo, Version};
use quarry_store::{AppendError, AppendId, Appended, BlockCopy, BlockKey, Record, Store};
use quarry_wire::{Frame, Header, Op, Proposal};
use slab::Slab;
use std::collections::VecDeque;

/// This process, as the MDM knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Me {
    pub sds: SdsId,
    pub start: StartNo,
}

/// A store operation under way, and which group waits for it.
pub(crate) struct Waiting {
    pub group: usize,
    pub purpose: Purpose,
}

pub(crate) struct Cx<'a> {
    pub now: Nanos,
    pub out: &'a mut Vec<Action>,
    pub limits: &'a Limits,
    pub me: Me,
    /// When this process began.
    pub born: Nanos,
    pub view: &'a View,
    pub store: &'a mut Store,
    /// What the device has promised (R24).
    pub ledger: &'a mut Ledger,
    /// What groups hold of the device's log without a commit.
    pub pinned: &'a mut Pinned,
    pub links: &'a mut Links,
    pub stats: &'a mut EngineStats,
    pub times: &'a mut WriteTimes,
    pub tokens: &'a mut Slab<Waiting>,
    /// Appends of the device that are not durable yet, with their groups, in order.
    pub appends: &'a mut VecDeque<(AppendId, usize)>,
    /// Everything up to here is durable on the device (`ack = cached`: written).
    pub durable: AppendId,
    /// `ack = cached`: everything up to here is on the medium; groups that wait for it to move.
    pub synced: AppendId,
    pub sync_waits: &'a mut Vec<(AppendId, usize)>,
    pub proposals: &'a mut u64,
    pub handing_over: bool,
    /// Index of the group in the engine.
    pub group: usize,
}

impl Cx<'_> {
    pub fn note(&mut self, n: Note) {
        self.out.push(Action::Note(n));
    }

    /// Ends a connection; the engine treats it as closed at the end of the step.
    pub fn close(&mut self, link: LinkId) {
        self.links.close_soon(link);
    }

    pub fn send(&mut self, link: LinkId, frame: Frame) {
        self.links.send(link, frame, self.out);
    }

    pub fn propose(&mut self, proposal: Proposal) -> u64 {
        *self.proposals += 1;
        let request = *self.proposals;
        self.out.push(Action::Propose { request, proposal });
        request
    }

    /// A header of ours with what every frame between servers carries.
    pub fn header(&self, op: Op, pg: PgId) -> Header {
        let mut h = Header::new(op);
        h.pg = pg;
        h.start = self.me.start;
        h.config_index = self.view.index();
        h
    }

    /// The group's pool acknowledges what is written and not synced (R29).
    pub fn is_cached(&self, pg: PgId) -> bool {
        self.view.pool(pg).is_some_and(|p| p.cached)
    }

    /// Reads of the group's pool are confirmed by the members (R18).
    pub fn confirms(&self, pg: PgId) -> bool {
        self.view.pool(pg).is_some_and(|p| p.confirm)
    }

    /// Asks the device to sync what is written; the group has a turn when that is done.
    pub fn sync_written(&mut self) -> AppendId {
        let upto = self.store.sync_written();
        if upto > self.synced {
            self.sync_waits.push((upto, self.group));
        }
        upto
    }

    fn appended(&mut self, r: Result<AppendId, AppendError>) -> Result<AppendId, AppendError> {
        match r {
            Ok(id) => {
                self.appends.push_back((id, self.group));
                Ok(id)
            }
            Err(e) => {
                self.stats.log_waits += u64::from(e == AppendError::LogFull);
                Err(e)
            }
        }
    }

    /// A record whose data was compared with its checksums on arrival, or whose checksums were made here.
    pub fn append(&mut self, pg: PgId, rec: Record) -> Result<AppendId, AppendError> {
        let r = self.store.append_verified(pg, rec);
        self.appended(r)
    }

    pub fn put_meta(&mut self, pg: PgId, blob: Bytes) -> Result<AppendId, AppendError> {
        let r = self.store.put_meta(pg, blob);
        self.appended(r)
    }

    /// A copy for a member that is not in sync.
    pub fn place_copy(&mut self, pg: PgId, copy: BlockCopy) -> Result<Appended, AppendError> {
        let r = self.store.place_copy(pg, copy);
        if !matches!(r, Ok(Appended::Intent(_))) {
            self.appended(r.map(Appended::id))?;
        }
        r
    }

    pub fn drop_keys(
        &mut self,
        pg: PgId,
        from: BlockKey,
        to: BlockKey,
        keep: &[BlockKey],
    ) -> Result<AppendId, AppendError> {
        let r = self.store.drop_keys(pg, from, to, keep);
        self.appended(r)
    }

    pub fn ids_import(&mut self, pg: PgId, ids: Bytes) -> Result<AppendId, AppendError> {
        let r = self.store.ids_import(pg, ids);
        self.appended(r)
    }

    /// A token for a store operation whose end is for this group.
    pub fn token(&mut self, purpose: Purpose) -> u64 {
        let group = self.group;
        self.tokens.insert(Waiting { group, purpose }) as u64
    }

    /// Newest durable record of a group, not above its newest.
    pub fn stable(&self, pg: PgId) -> Version {
        let s = self.store.pg_state(pg);
        s.stable.min(s.last)
    }
}
