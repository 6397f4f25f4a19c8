//! Room for a record on every device that counts, before it gets its number (R24); see [`crate::credit`].

use super::locks::PageRange;
use super::primary::Primary;
use super::request::Request;
use super::{Pg, Role};
use crate::credit::{for_thin, Told, PATIENCE};
use crate::cx::Cx;
use crate::planted::Bug;
use quarry_base::{Nanos, PgId, Seq};
use quarry_store::{BlockCopy, BlockKey};
use quarry_wire::{Frame, Header, Op};
use std::time::Duration;

/// How often room is looked for while somebody waits for it, and where there is none.
const POLL: Duration = Duration::from_millis(5);
const POLL_FULL: Duration = Duration::from_millis(100);

/// A shortage that nobody met for so long is over; who meets one next has all its patience.
const FORGOTTEN: Duration = Duration::from_millis(500);

/// How long our device has been too full for somebody.
#[derive(Default)]
pub(crate) struct Short {
    /// Met first, and last.
    met: Option<(Nanos, Nanos)>,
}

impl Short {
    /// It is met now: how long it lasts.
    fn lasts(&mut self, now: Nanos) -> Duration {
        let since = match self.met {
            Some((since, last)) if now.since(last) < FORGOTTEN => since,
            _ => now,
        };
        self.met = Some((since, now));
        now.since(since)
    }
}

/// Whether there is room for a record.
pub(super) enum Room {
    /// So many new blocks at most.
    Yes(u64),
    Wait,
    /// Somebody who counts has no block for it.
    Full,
}

/// Our own device's.
enum Own {
    Yes,
    Wait,
    Full,
}

fn is_there(pg: PgId, key: BlockKey, cx: &Cx) -> bool {
    let rows = cx.store.scan(pg, key, 1, None);
    rows.first().is_some_and(|b| b.key == key && b.valid != 0)
}

impl Primary {
    /// Blocks of the pages that are not there yet.
    fn new_blocks(&self, pages: &PageRange, cx: &Cx) -> u64 {
        pages.blocks().filter(|k| !is_there(self.pg, *k, cx)).count() as u64
    }

    /// Is there room for these pages on our own device and on that of everybody who counts?
    pub(super) fn room_for(&mut self, r: &Request, cx: &mut Cx) -> Room {
        let pages = r.pages();
        let h = cx.store.headroom();
        let others = !cx.limits.planted(Bug::HeadroomIgnored);
        let counted = || self.followers.iter().filter(|f| others && f.counts());
        if cx.view.is_thick(r.h.vtree) {
            let full = h.full || counted().any(|f| f.credit.full_thick);
            return self.thick_room(full, &pages, cx);
        }
        let free = cx.ledger.free(&h);
        let least = counted().map(|f| f.credit.left()).fold(free, u64::min);
        let mut need = pages.blocks().count() as u64;
        if need > least {
            need = self.new_blocks(&pages, cx);
        }
        if need == 0 {
            return Room::Yes(0);
        }
        match self.own_room(need, free, for_thin(&h), cx) {
            Own::Yes if !others => Room::Yes(need),
            Own::Yes => self.members_room(need, cx),
            Own::Wait => Room::Wait,
            Own::Full => Room::Full,
        }
    }

    /// Its space is kept on every device. One that is full all the same is so for a moment, while blocks that are
    /// overwritten whole have their old place and a new one; or more was promised than there is.
    fn thick_room(&mut self, full: bool, pages: &PageRange, cx: &mut Cx) -> Room {
        if !full || self.new_blocks(pages, cx) == 0 {
            return Room::Yes(0);
        }
        if self.thick_short.lasts(cx.now) >= PATIENCE {
            return Room::Full;
        }
        self.wake_by(cx.now + POLL);
        Room::Wait
    }

    fn own_room(&mut self, need: u64, free: u64, thin: u64, cx: &mut Cx) -> Own {
        if need <= free {
            return Own::Yes;
        }
        let lasts = self.short.lasts(cx.now);
        if need > thin || lasts >= PATIENCE {
            return Own::Full;
        }
        self.wake_by(cx.now + POLL);
        Own::Wait
    }

    fn members_room(&mut self, need: u64, cx: &mut Cx) -> Room {
        let mut waits = false;
        for i in 0..self.followers.len() {
            let f = &self.followers[i];
            if !f.counts() || need <= f.credit.left() {
                continue;
            }
            if !f.is_running() || f.credit.want != f.credit.used + need {
                self.ask_room(i, need, cx);
            } else if f.credit.full {
                return Room::Full;
            }
            waits = true;
        }
        if waits {
            cx.stats.credit_waits += 1;
            return Room::Wait;
        }
        Room::Yes(need)
    }

    /// Gives back what a member has promised and asks for `need`.
    fn ask_room(&mut self, i: usize, need: u64, cx: &mut Cx) {
        let Some(f) = self.followers.get_mut(i) else { return };
        let Some(link) = f.running_link() else { return };
        f.credit.ask(need, cx.now);
        f.told = self.commit;
        let mut h = cx.header(Op::Commit, self.pg);
        (h.epoch, h.commit) = (self.epoch, self.commit);
        (h.generation.0, h.vtree.0) = (f.credit.asks, f.credit.want);
        cx.send(link, Frame::bare(h));
    }

    /// Members that run low get back what nothing here waits for.
    pub(super) fn give_room_back(&mut self, cx: &mut Cx) {
        if !self.waiting.is_empty() || !self.merges.is_empty() {
            return;
        }
        for i in 0..self.followers.len() {
            let c = &self.followers[i].credit;
            if c.low && (c.left() > 0 || c.asks == 0 || c.starves()) {
                self.ask_room(i, 0, cx);
            }
        }
    }

    /// The records up to here are in the store's own count.
    pub(super) fn settle_room(&mut self, upto: Seq, cx: &mut Cx) {
        self.charges.committed(upto);
        cx.ledger.set(cx.group, self.charges.sum());
    }
}

impl Pg {
    /// The primary gives back what it has of our promise, and asks.
    pub(super) fn on_room_asked(&mut self, h: &Header, cx: &mut Cx) {
        if h.generation.0 > 0 {
            let last = cx.store.pg_state(self.id).last.seq;
            self.promise.asked(h.generation.0, h.vtree.0, last, cx.now);
        }
    }

    /// What we promise now; if more is waited for, when we look again is noted.
    pub(super) fn promise_room(&mut self, cx: &mut Cx) -> Told {
        let h = cx.store.headroom();
        let commit = cx.store.pg_state(self.id).commit;
        self.promise.top_up(cx.group, cx.ledger, &h, commit, cx.now);
        if self.promise.waits() || h.full {
            let after = if self.promise.is_full() || h.full { POLL_FULL } else { POLL };
            self.wake = self.wake.min(cx.now + after);
        }
        self.promise.told(cx.ledger, &h)
    }

    /// The account of the device follows the role. A member that may be sent things again keeps what it was promised.
    pub(super) fn settle_account(&mut self, cx: &mut Cx) {
        let pinned = if let Role::Primary(p) = &self.role { p.pinned_bytes() } else { 0 };
        cx.pinned.set(cx.group, pinned);
        match &self.role {
            Role::Primary(p) => {
                self.promise.clear();
                return cx.ledger.set(cx.group, p.charges.sum());
            }
            Role::Member(m) if m.is_in_sync() || m.has_stream() => {}
            Role::None if !self.dropped && self.counts_as_in_sync() => {}
            _ => self.promise.clear(),
        }
        self.promise.account(cx.group, cx.ledger);
    }

    fn counts_as_in_sync(&self) -> bool {
        self.meta.config.as_ref().is_some_and(|c| c.is_in_sync(self.device))
    }

    /// R28: a sync stops before what is promised to thick volumes, and before the reserve. False: no room now.
    pub(super) fn has_room_for_copy(&mut self, copy: &BlockCopy, cx: &mut Cx) -> bool {
        let h = cx.store.headroom();
        let full = match cx.view.is_thick(copy.key.vtree) {
            true => h.full,
            false => h.full || for_thin(&h) == 0,
        };
        if !full || copy.valid == 0 || is_there(self.id, copy.key, cx) {
            return true;
        }
        self.wake = self.wake.min(cx.now + POLL_FULL);
        false
    }
}
