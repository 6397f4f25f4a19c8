//! From when on no earlier primary of the group serves (R18).
//!
//! Known in two ways. By time: every grant we gave one has run out, and so has what an earlier process of ours, of which we
//! remember nothing, may have given. Or by word: a primary that is *active* has waited for all of that, so when its role ends
//! with the configuration right after its own, nobody before that configuration serves. It says so to the next primary,
//! which then has nothing to wait for, though it may have begun a moment ago (a server that came back).
//!
//! That an active primary has nobody before it, though it gave no grant to a primary of a set that it was not in, holds because a
//! set grows only by what an active primary synced (`sync.rs`): whoever joined was counted by every primary since, so
//! each needed its grant.

use super::{Pg, Role};
use crate::cx::Cx;
use crate::planted::Bug;
use quarry_base::{Epoch, Nanos, SdsId};
use quarry_wire::{flags, Frame, Op, PgConfig};
use smallvec::SmallVec;

/// An earlier primary's word that it serves nothing below an epoch any more.
#[derive(Clone, Copy)]
struct GaveUp {
    by: SdsId,
    epoch: Epoch,
    /// Nor does anybody else.
    quiet: bool,
}

/// What is known of earlier primaries.
#[derive(Default)]
pub(crate) struct Earlier {
    /// Their servers and the ends of the grants given to them.
    granted: SmallVec<[(SdsId, Nanos); 2]>,
    /// A word about an epoch that is not here yet.
    gave_up: Option<GaveUp>,
    /// No primary of an epoch below this one serves, or ever will.
    quiet: Epoch,
}

impl Earlier {
    /// Nobody serves below `epoch`.
    pub fn is_quiet_before(&mut self, epoch: Epoch) {
        self.quiet = self.quiet.max(epoch);
    }

    fn take_word(&mut self, w: GaveUp) {
        self.granted.retain(|(s, _)| *s != w.by);
        if w.quiet {
            self.is_quiet_before(w.epoch);
        }
    }
}

impl Pg {
    /// Whether nobody serves below `next` once our role of now has ended.
    fn is_last_before(&self, next: &PgConfig, cx: &Cx) -> bool {
        let Some(c) = self.meta.config.as_ref().filter(|c| c.primary == Some(self.device)) else {
            return false;
        };
        let proven = self.earlier.quiet == c.epoch || cx.limits.planted(Bug::QuietUnproven);
        let right_after = c.epoch.0.checked_add(1) == Some(next.epoch.0);
        proven && right_after
    }

    /// Our role as primary has ended because of `next`: whoever leads then need not wait for us.
    pub fn give_up(&mut self, next: &PgConfig, cx: &mut Cx) {
        let quiet = self.is_last_before(next, cx);
        let Some(m) = next.primary_member() else { return };
        if m.sds == cx.me.sds {
            if quiet && m.start == cx.me.start {
                self.earlier.quiet = next.epoch;
            }
        } else if let Some(link) = cx.links.data(m.sds, m.start) {
            let mut h = cx.header(Op::GrantGiveUp, self.id);
            h.epoch = next.epoch;
            h.flags = if quiet { flags::QUIET } else { 0 };
            cx.send(link, Frame::bare(h));
        }
    }

    /// What was granted to earlier primaries has to run out before we serve.
    pub fn note_grants(&mut self, cfg: &PgConfig, cx: &Cx) {
        self.earlier.granted.retain(|(_, end)| *end > cx.now);
        let old = self.meta.config.as_ref();
        let one = match old {
            // Exactly the next epoch: there was one earlier primary.
            Some(o) if o.epoch.0 + 1 == cfg.epoch.0 => Some(o.primary_member().map(|m| m.sds)),
            // Primaries in between may have asked us.
            _ => None,
        };
        for (sds, p) in &cx.links.peers {
            let end = p.grants.given_until;
            if end > cx.now && one.is_none_or(|o| o == Some(*sds)) {
                self.earlier.granted.push((*sds, end));
            }
        }
        match self.earlier.gave_up {
            Some(w) if w.epoch == cfg.epoch => self.earlier.take_word(w),
            Some(w) if w.epoch > cfg.epoch => self.earlier.granted.retain(|(s, _)| *s != w.by),
            _ => {}
        }
    }

    /// No earlier primary serves after this point in time.
    pub fn quiet_from(&self, epoch: Epoch, cx: &Cx) -> Nanos {
        if self.earlier.quiet == epoch {
            return Nanos::ZERO;
        }
        let granted = self.earlier.granted.iter().map(|(_, end)| *end);
        granted.fold(cx.born + cx.limits.lease_granted(), Nanos::max)
    }

    /// The server of an earlier primary gave its grant up for this group: it serves nothing below `epoch`, and if that is
    /// said too, nobody does.
    pub fn on_give_up(&mut self, by: SdsId, epoch: Epoch, quiet: bool, cx: &Cx) {
        let w = GaveUp { by, epoch, quiet };
        let known = self.epoch();
        if known < epoch {
            let better = |g: GaveUp| (epoch, quiet) >= (g.epoch, g.quiet);
            if self.earlier.gave_up.is_none_or(better) {
                self.earlier.gave_up = Some(w);
            }
        } else if known == epoch {
            self.earlier.take_word(w);
            let from = self.quiet_from(epoch, cx);
            if let Role::Primary(p) = &mut self.role {
                p.quiet_from = from;
            }
        }
    }
}
