//! Parts of a block that are written once: straight to their pages, with only an intent in the log.
//!
//! For a copy that nobody counts on yet (a member that is brought up to date). The order, and why a crash at any point
//! damages nothing: docs/DISK-FORMAT.md, "Parts that are written once". Here is what the live store does of it: which intents
//! wait, their way to the device ahead of other destaging, and the record that says that they are there.

use crate::apply;
use crate::batch::{Body, CopyKind, PlacedIn};
use crate::config::AckMode;
use crate::destage::{Pages, Pick};
use crate::error::AppendError;
use crate::index::{ExtKey, OvPage, Overlay, Pg, Sealed};
use crate::layout::NO_SLOT;
use crate::pgs::aligned;
use crate::planted::{planted, Bug};
use crate::read::touches;
use crate::seal::Checks;
use crate::space::Space;
use crate::store::Store;
use crate::types::{AppendId, Appended, BlockCopy, BlockKey, DiskOp, StoreEvent, WriteSync};
use bytes::Bytes;
use quarry_base::{PgId, Seq, Version, BLOCK, PAGE};
use std::collections::HashMap;

/// An intent whose content is not known to be in its place.
struct Waiting {
    id: AppendId,
    pg: u32,
    pgid: PgId,
    key: BlockKey,
    version: Version,
    pages: u16,
    checks: Checks,
    /// Log batch that has the intent; 0: none yet.
    batch: u64,
    /// What must be durably committed before its block's slot may be written to; known once it is in the index.
    need: Option<Seq>,
}

/// So many intents of a device wait at most, and bytes of content with them: unlike other pages in memory they take next to
/// nothing of the log, which bounds those.
const MOST_WAITING: usize = 256;
const MOST_BYTES: usize = 16 << 20;

/// The intents under way.
#[derive(Default)]
pub(crate) struct Place {
    list: Vec<Waiting>,
    /// Blocks that got an intent while the log was replayed.
    pub replayed: Vec<(u32, BlockKey)>,
    /// Of which pages of intents that recovery found that they got to their place, or did not (no slot).
    found: Vec<(u32, PlacedIn)>,
    /// What had been at the last look: see `Store::stirred`.
    looked: (u64, u64, u64, u64, usize),
}

impl Place {
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
    pub fn len(&self) -> usize {
        self.list.len()
    }
    /// What became of a page, as a recovery found; in order.
    fn found(&mut self, idx: u32, key: BlockKey, page: &OvPage, slot: u32) {
        let (version, check) = (page.version, page.check);
        let of = (idx, key, version, slot);
        let last = self.found.last_mut();
        match last.filter(|(i, v)| (*i, v.key, v.version, v.slot) == of && v.pages >> page.idx == 0)
        {
            // By page, and so are its checks.
            Some((_, v)) => {
                v.pages |= 1 << page.idx;
                v.checks.push(check);
            }
            None => {
                let (pages, checks) = (1 << page.idx, Checks::from_slice(&[check]));
                self.found.push((idx, PlacedIn { key, version, pages, checks, slot }));
            }
        }
    }
    fn bytes(&self) -> usize {
        self.list.iter().map(|w| w.checks.len() * PAGE).sum()
    }

    /// The intent appended as `id` is in batch `no`.
    pub fn built(&mut self, id: AppendId, no: u64) {
        if let Some(w) = self.list.iter_mut().rev().find(|w| w.id == id) {
            w.batch = no;
        }
    }
}

impl Store {
    /// As [`append_copy`](Store::append_copy), on a device that nobody counts on for this group (a member that is brought up to
    /// date): some parts of a block that is there are written once, over what they replace. Until that is done a crash may
    /// leave each of these parts as it was or new, or torn, and then damaged; nothing else of the block.
    pub fn place_copy(&mut self, pg: PgId, mut copy: BlockCopy) -> Result<Appended, AppendError> {
        if !self.goes_to_its_place(pg, &copy) {
            return self.append_copy(pg, copy).map(Appended::Logged);
        }
        let checks = self.checks_of(pg, &copy)?;
        self.room(3 * PAGE as u64, true)?;
        copy.data = aligned(&copy.data);
        let idx = self.pg_or_new(pg);
        let (key, version, pages) = (copy.key, copy.version, copy.valid);
        let (copy, checks) =
            (Box::new(Sealed { copy, checks: checks.clone(), unlogged: true }), checks);
        let body = Body::Copy { copy, slot: NO_SLOT, how: CopyKind::Intent };
        let id = self.push(idx, pg, body, true);
        let (pg, pgid) = (idx, pg);
        let w = Waiting { id, pg, pgid, key, version, pages, checks, batch: 0, need: None };
        self.place.list.push(w);
        Ok(Appended::Intent(id))
    }

    /// Some parts of a block that has its slot, and that no record which is not applied yet will change first.
    fn goes_to_its_place(&self, pg: PgId, copy: &BlockCopy) -> bool {
        let Some(p) = self.pg(pg) else { return false };
        let (ext, at) = (ExtKey::of(copy.key), copy.key.offset());
        p.block(&self.sp.slots, copy.key).is_some_and(|b| b.slot != NO_SLOT)
            && copy.part != BlockCopy::WHOLE
            && copy.valid != 0
            // There a sync of the device costs more than the second write, and none is waited for.
            && self.cfg.ack == AckMode::Durable
            && self.sp.slots.dirty_groups() < self.cfg.max_dirty_table_pages
            && self.place.len() < MOST_WAITING
            && self.place.bytes() + copy.data.len() <= MOST_BYTES
            && !p.tail.iter().any(|t| touches(&t.rec.kind, ext, at, BLOCK))
    }

    /// Tells of the intents whose content is in its place or was replaced, and sends that of others there.
    pub(crate) fn poll_place(&mut self, ops: &mut Vec<DiskOp>) {
        if self.place.list.is_empty() || self.failed.is_some() || !self.stirred() {
            return;
        }
        let mut pages = Pages::new();
        let list = std::mem::take(&mut self.place.list);
        for mut w in list {
            let group = self.pgs.get(w.pg as usize).and_then(|p| p.as_ref());
            if group.is_none() {
                // Dropped; nobody waits.
                continue;
            }
            // Until its batch is written it is not in the index.
            let unseen = w.batch == 0 || w.batch > self.log.written_no;
            if unseen && !planted(Bug::PlacedUnseen) {
                self.place.list.push(w);
            } else if self.is_there(&w) {
                self.placed(w);
            } else {
                self.send_there(&mut w, &mut pages);
                self.place.list.push(w);
            }
        }
        self.write_merged(pages, WriteSync::None, ops);
    }

    /// Has anything moved that an intent may wait for: batches written and synced, jobs ended, records applied, new intents?
    fn stirred(&mut self) -> bool {
        let l = &self.log;
        let now =
            (l.written_no, l.synced_no, self.destage.ended, self.sp.applied, self.place.len());
        std::mem::replace(&mut self.place.looked, now) != now
    }

    /// No page of it is left in memory alone: each is in its place or was replaced by what is in the log. One that a later
    /// intent replaced has to get there too.
    fn is_there(&self, w: &Waiting) -> bool {
        let pg = self.pgs.get(w.pg as usize).and_then(|p| p.as_ref());
        let over = pg.and_then(|p| p.block(&self.sp.slots, w.key)).and_then(|b| b.over);
        let waits = |p: &OvPage| p.unlogged && w.pages >> p.idx & 1 == 1;
        over.is_none_or(|o| !o.pages.iter().any(waits))
    }

    fn placed(&mut self, w: Waiting) {
        let group = self.pgs.get(w.pg as usize).and_then(|p| p.as_ref());
        let block = group.and_then(|p| p.block(&self.sp.slots, w.key));
        let slot = block.map_or(NO_SLOT, |b| b.slot);
        let Waiting { id, pg, pgid, key, version, mut pages, mut checks, .. } = w;
        if slot == NO_SLOT {
            // Nothing of it is left. With its pages the record would say that they did not get there.
            (pages, checks) = (0, Checks::new());
        }
        let body = Body::Placed(Box::new(PlacedIn { key, version, pages, checks, slot }));
        let by = self.push(pg, pgid, body, true);
        self.sp.stats.placed += 1;
        self.events.push(StoreEvent::Placed { pg: pgid, intent: id, by });
    }

    fn send_there(&mut self, w: &mut Waiting, pages: &mut Pages) {
        let Some(pg) = self.pgs.get(w.pg as usize).and_then(|p| p.as_ref()) else { return };
        // The slot may be that of a direct write, which recovery checks while it is uncommitted.
        let need = *w.need.get_or_insert(pg.applied.seq);
        if w.batch > self.log.mark_no {
            return self.advance_mark();
        }
        if need > pg.durable_commit {
            return self.log_commit(w.pg);
        }
        if self.destage.under_way() >= self.cfg.destage_depth_full
            || self.sp.slots.dirty_groups() >= self.cfg.max_dirty_table_pages + MOST_WAITING
        {
            return;
        }
        let slot = pg.block(&self.sp.slots, w.key).map_or(NO_SLOT, |b| b.slot);
        if slot != NO_SLOT {
            // Not taken: a job or a read on it will end.
            self.pick_parts(w.pg, w.key, (w.version, w.pages), pages);
            return;
        }
        // Its block lost its slot meanwhile: a block like others that get their first.
        match self.pick(w.pg, w.key, pages) {
            Pick::NotMarked => self.advance_mark(),
            Pick::NotCommitted => self.log_commit(w.pg),
            // Without a slot it waits where destaging has it.
            Pick::NoSlot | Pick::Taken | Pick::Skip | Pick::Later => {}
        }
    }
}

/// The parts of an intent that is replayed join the overlay without content.
pub(crate) fn put_elsewhere(o: &mut Overlay, at: (u32, BlockKey), sp: &mut Space, s: &Sealed) {
    let version = s.copy.version;
    let parts = (0..16u8).filter(|p| s.copy.valid >> p & 1 == 1);
    for (idx, check) in parts.zip(s.checks.iter().copied()) {
        let here = o.pages.iter().position(|p| p.idx == idx);
        let beneath = sp.beneath.entry((at.0, at.1, idx)).or_default();
        match here {
            // What the log itself has of this version is the same, and surely there.
            Some(i) if o.pages[i].version == version && !o.pages[i].is_elsewhere() => continue,
            // If it did not get there this is what the page is.
            Some(i) => beneath.push(o.pages.remove(i)),
            None => beneath.clear(),
        }
        let i = o.pages.partition_point(|p| p.idx < idx);
        o.pages
            .insert(i, OvPage { idx, crc: 0, check, version, data: Bytes::new(), unlogged: true });
        sp.stats.dirty_pages += u64::from(here.is_none());
    }
}

/// The log says that these pages of an intent are in their place. `vouched`: and that it was synced; else that is looked at.
pub(crate) fn replay_placed(pg: &mut Pg, idx: u32, sp: &mut Space, p: &PlacedIn, vouched: bool) {
    let Some(b) = pg.block_mut(&mut sp.slots, p.key) else { return };
    let Some(o) = b.over.as_ref() else { return };
    let of = |q: &OvPage| q.is_elsewhere() && q.version == p.version && p.pages >> q.idx & 1 == 1;
    if !o.pages.iter().any(of) {
        return;
    }
    let checks = (0..16).filter(|i| p.pages >> i & 1 == 1).zip(p.checks.iter().copied());
    if p.slot == NO_SLOT {
        // A recovery found that they did not get there.
        for (page, check) in checks {
            let it = |q: &OvPage| of(q) && (q.idx, q.check) == (page, check);
            let over = pg.block(&sp.slots, p.key).and_then(|b| b.over);
            if over.is_some_and(|o| o.pages.iter().any(it)) {
                drop_elsewhere(pg, idx, sp, p.key, page);
            }
        }
        return apply::settle(pg, idx, sp, p.key);
    }
    if b.slot == NO_SLOT {
        // A destage gave it to the block. What else is in it is in the log too, or the table would have it.
        b.slot = p.slot;
        sp.unslotted -= 1;
        pg.slots += 1;
    } else if b.slot != p.slot {
        return;
    }
    for (page, check) in checks.filter(|_| vouched) {
        settle_page(pg, sp, p.key, page, p.version, check);
    }
    apply::settle(pg, idx, sp, p.key);
}

/// A page without content here leaves the overlay: it is valid in the block's slot. Its version is not the block's while other
/// pages are in the log alone.
fn settle_page(pg: &mut Pg, sp: &mut Space, key: BlockKey, page: u8, version: Version, check: u32) {
    let Some(b) = pg.block_mut(&mut sp.slots, key) else { return };
    let slot = b.slot;
    let Some(o) = b.over.as_mut() else { return };
    let it =
        |p: &OvPage| p.idx == page && p.is_elsewhere() && (p.version, p.check) == (version, check);
    let Some(i) = o.pages.iter().position(it) else { return };
    o.pages.remove(i);
    sp.stats.dirty_pages -= 1;
    sp.slots.set_check(slot, u32::from(page), check);
    b.valid |= 1 << page;
}

/// A page of an intent of which nothing says whether it got there.
#[derive(Clone, Copy)]
pub(crate) struct Unsettled {
    pg: u32,
    key: BlockKey,
    pub slot: u32,
    pub page: u8,
}

impl Store {
    /// All of these, once the log is replayed.
    pub(crate) fn unsettled(&self) -> Vec<Unsettled> {
        let mut out = Vec::new();
        for (pg, key) in self.blocks_with_intents() {
            let block = self.pgs.get(pg as usize).and_then(|p| p.as_ref());
            let Some(b) = block.and_then(|p| p.block(&self.sp.slots, key)) else { continue };
            let pages = b.over.into_iter().flat_map(|o| o.pages.iter());
            let elsewhere = pages.filter(|p| p.is_elsewhere() && b.slot != NO_SLOT);
            out.extend(elsewhere.map(|p| Unsettled { pg, key, slot: b.slot, page: p.idx }));
        }
        out
    }

    fn blocks_with_intents(&self) -> Vec<(u32, BlockKey)> {
        let mut all = self.place.replayed.clone();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Such a page was read; `None`: that was refused. The newest intent whose content it is has got there.
    pub(crate) fn settle_unsettled(&mut self, u: Unsettled, content: Option<&[u8]>) {
        let Some(p) = self.pgs.get_mut(u.pg as usize).and_then(|p| p.as_mut()) else { return };
        let seal = self.sp.key.block(p.id, u.key);
        let found = content.map(|c| seal.both(u32::from(u.page), c).1);
        loop {
            let b = p.block(&self.sp.slots, u.key);
            let Some(page) = b.and_then(|b| b.over_page(u32::from(u.page))) else { return };
            if !page.is_elsewhere() {
                return;
            }
            let (version, check, slot) = (page.version, page.check, b.map_or(NO_SLOT, |b| b.slot));
            // It cannot be told of one that is not read: with this check it is damaged, and can be mended.
            if found.is_none_or(|f| f == check) || planted(Bug::IntentTakenForDone) {
                self.place.found(u.pg, u.key, page, slot);
                return settle_page(p, &mut self.sp, u.key, u.page, version, check);
            }
            if let Some(gone) = drop_elsewhere(p, u.pg, &mut self.sp, u.key, u.page) {
                self.place.found(u.pg, u.key, &gone, NO_SLOT);
            }
        }
    }

    /// What the recovery found is said, in the log: the next one might find something else. A block may come to lie where a
    /// part of it got to that did not count; and a part that counts may rot.
    pub(crate) fn log_found(&mut self) {
        for (idx, v) in std::mem::take(&mut self.place.found) {
            let group = self.pgs.get(idx as usize).and_then(|p| p.as_ref());
            if let Some(pgid) = group.map(|p| p.id).filter(|_| !planted(Bug::VoidsForgotten)) {
                self.push(idx, pgid, Body::Placed(Box::new(v)), false);
            }
        }
    }

    /// What did not get there was never acknowledged: the pages stay what they were.
    pub(crate) fn forget_unsettled(&mut self) {
        for (idx, key) in self.blocks_with_intents() {
            let Some(p) = self.pgs.get_mut(idx as usize).and_then(|p| p.as_mut()) else { continue };
            if p.block(&self.sp.slots, key).is_none_or(|b| b.over.is_none()) {
                continue;
            }
            for page in 0..16 {
                while let Some(gone) = drop_elsewhere(p, idx, &mut self.sp, key, page) {
                    self.place.found(idx, key, &gone, NO_SLOT);
                }
            }
            apply::settle(p, idx, &mut self.sp, key);
        }
        self.place.replayed = Vec::new();
        self.sp.beneath = HashMap::new();
    }
}

/// Takes a page without content out of the overlay; what was beneath it is there again.
fn drop_elsewhere(
    pg: &mut Pg,
    idx: u32,
    sp: &mut Space,
    key: BlockKey,
    page: u8,
) -> Option<OvPage> {
    let o = pg.block_mut(&mut sp.slots, key)?.over.as_mut()?;
    let i = o.pages.iter().position(|p| p.idx == page && p.is_elsewhere())?;
    let beneath = sp.beneath.get_mut(&(idx, key, page)).and_then(Vec::pop);
    match beneath.filter(|_| !planted(Bug::BeneathForgotten)) {
        Some(before) => Some(std::mem::replace(&mut o.pages[i], before)),
        None => {
            sp.stats.dirty_pages -= 1;
            Some(o.pages.remove(i))
        }
    }
}
