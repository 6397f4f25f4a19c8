//! One placement group on one device: its durable meta data and its present role.
//!
//! A configuration counts only if its epoch is above the stored one (R2). It ends the old role at once and is
//! made durable before the new role begins (R1); a primary's role also waits until everything up to the
//! configuration's index has come from the MDM (R3).

pub(crate) mod commit;
pub(crate) mod confirm;
pub(crate) mod dedup;
pub(crate) mod flush;
pub(crate) mod locks;
pub(crate) mod member;
pub(crate) mod mend;
pub(crate) mod merge;
mod noting;
pub(crate) mod primary;
pub(crate) mod quiet;
pub(crate) mod reads;
pub(crate) mod repair;
pub(crate) mod request;
pub(crate) mod requests;
pub(crate) mod role;
pub(crate) mod room;
pub(crate) mod rounds;
pub(crate) mod stream;
pub(crate) mod sync;

use crate::credit::Promise;
use crate::cx::{Cx, Me};
use crate::event::{LinkId, Note};
use crate::history::{trim, Era};
use crate::meta::PgMeta;
use crate::planted::Bug;
use member::Member;
use primary::Primary;
use quarry_base::{DeviceId, Epoch, Nanos, PgId, Seq, StartNo, Version};
use quarry_store::{AppendId, BlockKey};
use quarry_wire::{PgConfig, Status};
use request::Request;

/// Why the store was asked to read.
pub(crate) enum Purpose {
    /// A client's read at an epoch.
    Read(Epoch, Box<Request>),
    /// A partial page of a merge: lock of the merge, true for the last page.
    Merge { epoch: Epoch, lock: locks::LockId, tail: bool },
    /// A block for a syncing member.
    Copy { epoch: Epoch, device: DeviceId, sync: u64, lock: locks::LockId, key: BlockKey },
    /// A block that the primary wants for a repair.
    Fetch(Box<member::Fetch>),
}

#[derive(Default)]
pub(crate) enum Role {
    #[default]
    None,
    Primary(Box<Primary>),
    Member(Box<Member>),
}

/// One placement group on one device.
pub(crate) struct Pg {
    pub id: PgId,
    pub dev: usize,
    pub device: DeviceId,
    pub meta: PgMeta,
    /// The newest `put_meta` that is not durable yet.
    pub meta_wait: Option<AppendId>,
    /// The device refused it: no role until a later one is taken.
    pub meta_failed: bool,
    /// What is known of earlier primaries (R18).
    earlier: quiet::Earlier,
    pub role: Role,
    /// Not in sync, and copies were taken from this start of a primary; zero: from some start, before we started.
    pub copied_by: Option<StartNo>,
    /// A stream that was opened before the member's role had begun.
    pub pending_open: Option<(LinkId, u64)>,
    pub dirty: bool,
    pub wake: Nanos,
    /// Given back: nothing more happens to it.
    pub dropped: bool,
    /// Blocks with a damaged page, while a member.
    pub mends: Vec<mend::Mend>,
    /// Room promised to the primary (R24); over the end of a stream as long as we are in sync.
    pub promise: Promise,
}

/// A member that stopped in the middle of a sync may have copies of anybody.
fn meta_copies(meta: &PgMeta) -> Option<StartNo> {
    meta.frozen.map(|_| StartNo::ZERO)
}

impl Pg {
    pub fn new(id: PgId, dev: usize, device: DeviceId, meta: PgMeta) -> Pg {
        Pg {
            id,
            dev,
            device,
            meta_wait: None,
            meta_failed: false,
            earlier: Default::default(),
            role: Role::None,
            copied_by: meta_copies(&meta),
            pending_open: None,
            dirty: false,
            wake: Nanos::MAX,
            dropped: false,
            mends: Vec::new(),
            promise: Promise::default(),
            meta,
        }
    }

    /// Epoch of the stored configuration.
    pub fn epoch(&self) -> Epoch {
        self.meta.config.as_ref().map_or(Epoch::ZERO, |c| c.epoch)
    }

    pub fn primary(&mut self) -> Option<&mut Primary> {
        match &mut self.role {
            Role::Primary(p) => Some(p),
            _ => None,
        }
    }

    /// A configuration from the MDM or from a peer. True if it was newer than the stored one.
    pub fn on_config(&mut self, mut cfg: PgConfig, cx: &mut Cx) -> bool {
        let old = cx.limits.planted(Bug::OldEpochAfterRestart)
            && !matches!(self.role, Role::Primary(_))
            && cfg.epoch < self.epoch()
            && cfg.primary != Some(self.device);
        if (cfg.epoch <= self.epoch() && !old) || cfg.pg != self.id {
            return false;
        }
        cx.stats.configs += 1;
        self.meta.config.iter().for_each(|c| cfg.learn_fell(c.fell));
        self.end_role(&cfg, cx);
        self.note_grants(&cfg, cx);
        let state = cx.store.pg_state(self.id);
        let old = self.meta.config.take();
        let was = old.as_ref().is_some_and(|c| c.is_in_sync(self.device));
        if cfg.is_in_sync(self.device) {
            self.meta.frozen = None;
            self.copied_by = None;
        } else if was {
            self.meta.frozen = Some(state.stable.min(state.last));
        } else if self.meta.frozen.is_none() {
            self.meta.frozen = Some(Version::ZERO);
        }
        // With `ack = cached` only what a flush covered is certain to be everywhere.
        if was && old.is_some_and(|c| c.is_complete()) && !cx.is_cached(self.id) {
            // All listed were in sync, so all of them have everything up to here: masks begin anew, and whoever is leaving now
            // gets what changes from now on when it returns, not whole blocks that were written long before.
            self.meta.all_through = self.meta.all_through.max(state.commit_version);
            cx.store.set_all_through(self.id, self.meta.all_through);
        }
        if self.is_primary_of(&cfg, cx.me) {
            let h = &mut self.meta.history;
            h.truncate(crate::history::pruned(h, state.last).len());
            if h.is_empty() || !cx.limits.planted(Bug::SeqReused) {
                h.push(Era { epoch: cfg.epoch, base: Seq(state.last.seq.0 + 1) });
            }
        }
        self.trim_history(cx);
        self.meta.config = Some(cfg);
        self.store_meta(cx);
        true
    }

    pub fn trim_history(&mut self, cx: &Cx) {
        let (keep, max) = (cx.limits.history_keep, cx.limits.history_max);
        trim(&mut self.meta.history, self.meta.all_through, keep, max);
    }

    pub fn store_meta(&mut self, cx: &mut Cx) {
        match cx.put_meta(self.id, self.meta.encode()) {
            Ok(id) => {
                self.meta_wait = Some(id);
                self.meta_failed = false;
            }
            Err(_) => self.meta_failed = true,
        }
    }

    /// Names this device's running process as the primary?
    pub fn is_primary_of(&self, cfg: &PgConfig, me: Me) -> bool {
        cfg.primary == Some(self.device)
            && cfg
                .member(self.device)
                .is_some_and(|m| m.sds == me.sds && m.start == me.start && m.start != StartNo::ZERO)
    }

    /// Does the stored configuration name this process as the primary, whether the role has begun or not?
    pub fn leads(&self, me: Me) -> bool {
        self.meta.config.as_ref().is_some_and(|c| self.is_primary_of(c, me))
    }

    /// Durable state changed, time passed, a frame came: do what can be done now.
    pub fn turn(&mut self, cx: &mut Cx) {
        self.wake = Nanos::MAX;
        if self.dropped {
            return self.settle_account(cx);
        }
        if self.meta_failed {
            self.store_meta(cx);
        }
        if self.meta_wait.is_some_and(|id| id <= cx.durable) {
            self.meta_wait = None;
        }
        self.maybe_start(cx);
        match &mut self.role {
            Role::None => {}
            Role::Primary(p) => {
                p.turn(cx);
                self.wake = p.wake();
                if p.active {
                    self.earlier.is_quiet_before(p.epoch);
                }
                let through = p.take_all_through(cx);
                if let Some(v) = through {
                    self.meta.all_through = self.meta.all_through.max(v);
                    cx.store.set_all_through(self.id, self.meta.all_through);
                }
            }
            Role::Member(_) => self.member_turn(cx),
        }
        self.settle_account(cx);
    }

    /// Something of this group became durable here: whoever waits for that hears it first, the rest of
    /// what comes of it is for the turn.
    pub fn tell_durable(&mut self, cx: &mut Cx) {
        match &mut self.role {
            Role::None => {}
            Role::Primary(p) => p.acknowledge(cx),
            Role::Member(_) => self.report(cx),
        }
    }

    /// A read that was under way when the role ended.
    pub fn send_back_read(&self, r: &Request, cx: &mut Cx) {
        cx.stats.stale_epoch += 1;
        let commit = cx.store.pg_state(self.id).commit;
        let newer = self.epoch() > r.h.epoch;
        let s =
            request::Standing { config: self.meta.config.as_ref(), commit, index: cx.view.index() };
        let status = if newer { Status::StaleEpoch } else { Status::TryAgain };
        request::answer(&r.h, r.link, status, &s, cx.links, cx.out);
    }

    /// This device no longer holds the group: frees everything of it.
    pub fn drop_data(&mut self, cx: &mut Cx) -> bool {
        let r = cx.store.drop_pg(self.id);
        match r {
            Ok(id) => {
                cx.appends.push_back((id, cx.group));
                cx.note(Note::PgDropped { pg: self.id, device: self.device });
                self.dropped = true;
                true
            }
            Err(_) => false,
        }
    }
}
