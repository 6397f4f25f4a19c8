//! Copies of some parts of blocks: what a crash may leave of one that was on its way to its place.

use super::model::*;
use super::world::*;
use bytes::Bytes;
use quarry_base::*;
use quarry_store::*;
use smallvec::SmallVec;

fn touches(kind: &RecordKind, k: BlockKey) -> bool {
    let (v, l, e, from, len) = match kind {
        RecordKind::Write { vtree, layer, extent, offset, data, .. } => {
            (*vtree, *layer, *extent, *offset, data.len() as u32)
        }
        RecordKind::Zero { vtree, layer, extent, offset, len } => {
            (*vtree, *layer, *extent, *offset, *len)
        }
        RecordKind::DropVtree { vtree } => return *vtree == k.vtree,
        RecordKind::EpochStart { .. } => return false,
    };
    let at = k.offset();
    (v, l, e) == (k.vtree, k.layer, k.extent) && from < at + BLOCK && at < from + len
}

impl World {
    pub fn part(&mut self) {
        let pg = self.pick_pg();
        let s = self.store.pg_state(pg);
        // Blocks that are there, mostly.
        let live = self.live().remove(&pg).unwrap_or_default();
        let keys: Vec<BlockKey> = live.blocks.keys().copied().collect();
        let key = match keys.len() as u64 {
            n if n > 0 && !self.rng.one_in(8) => keys[self.rng.below(n) as usize],
            _ => self.pick_key(),
        };
        // A sync sends every part that anything not applied yet writes.
        let open = self.store.tail(pg, Seq(0)).any(|t| touches(&t.rec.kind, key));
        if open || !self.may_copy(pg, key) {
            return;
        }
        let version = s.commit_version;
        let mask = self.rng.next() as u16 & if self.rng.one_in(2) { 0xFFFF } else { 0x0421 };
        let here = live.blocks.get(&key).filter(|b| b.version == version);
        let mut tags = Vec::new();
        for p in (0..16u32).filter(|p| mask >> p & 1 == 1) {
            let known = here.filter(|b| b.touched[p as usize] == version);
            let known = known.map(|b| b.pages[p as usize]);
            let new = if self.rng.one_in(6) { 0 } else { self.tag + 1 };
            self.tag += 1;
            let tag = self.part_tags.entry((pg, key, version, p));
            tags.push(*tag.or_insert(known.unwrap_or(new)));
        }
        if mask == 0 || mask == BlockCopy::WHOLE {
            return;
        }
        let part = Part { key, version, mask, tags, intent: false, by: None, missed: 0 };
        self.send_part(pg, part).ok();
    }

    pub fn send_part(&mut self, pg: PgId, mut part: Part) -> Result<AppendId, AppendError> {
        let held = part.tags.iter().filter(|t| **t != 0);
        let data: Vec<u8> = held.flat_map(|t| page_of(*t)).collect();
        let crcs: SmallVec<[u32; 16]> = data.chunks(PAGE).map(crc32c).collect();
        let (key, version, valid) = (part.key, part.version, part.valid());
        let (mask, data) = (part.mask, Bytes::from(data));
        let copy = BlockCopy { key, version, part: mask, valid, dirty: mask, crcs, data };
        let appended = self.store.place_copy(pg, copy)?;
        (part.intent, part.by) = (matches!(appended, Appended::Intent(_)), None);
        self.events.push(Event { id: appended.id(), pg, ev: Ev::Part(part) });
        Ok(appended.id())
    }

    pub fn placed(&mut self, intent: AppendId, by: AppendId) {
        for e in self.events.iter_mut().rev().filter(|e| e.id == intent) {
            if let Ev::Part(p) = &mut e.ev {
                p.by = Some(by);
            }
        }
    }

    /// Parts that were on their way: nobody was told that they are there.
    fn on_their_way(&self) -> impl Iterator<Item = (usize, PgId, &Part)> {
        let stable = self.stable;
        self.events.iter().enumerate().filter_map(move |(i, e)| match &e.ev {
            Ev::Part(p) if p.intent && p.by.is_none_or(|by| by > stable) => Some((i, e.pg, p)),
            _ => None,
        })
    }

    pub fn may_be_torn(&self, pg: PgId, key: BlockKey, pages: u16) -> bool {
        let torn = self.torn.get(&(pg, key)).copied().unwrap_or(0);
        let mut on_way = self.on_their_way().filter(|(_, g, p)| (*g, p.key) == (pg, key));
        pages & !torn == 0 || on_way.any(|(_, _, p)| pages & !torn & !p.valid() == 0)
    }

    /// After a recovery: each part that was on its way is there, or the page is what it was, or torn.
    pub fn look_for_parts(&mut self) -> Check {
        let list: Vec<(usize, PgId, Part)> =
            self.on_their_way().map(|(i, pg, p)| (i, pg, p.clone())).collect();
        for (i, pg, part) in list {
            let mut missed = 0;
            for (p, tag) in part.parts().filter(|(_, t)| *t != 0) {
                match self.page(pg, part.key, p)? {
                    Some(page) if page == page_of(tag) => {}
                    _ => missed |= 1 << p,
                }
            }
            if let Ev::Part(p) = &mut self.events[i].ev {
                (p.intent, p.missed) = (false, missed);
            }
        }
        Ok(())
    }

    /// What a page holds; `None`: it is torn.
    fn page(&mut self, pg: PgId, key: BlockKey, page: usize) -> Result<Option<Vec<u8>>, String> {
        let at = key.offset() + page as u32 * PAGE as u32;
        let token = self.begin_raw(pg, key, at, PAGE as u32);
        match self.raw(token)? {
            Ok(d) => Ok(Some(d.segments.concat())),
            Err(ReadError::Corrupt { .. }) if self.torn.contains_key(&(pg, key)) => Ok(None),
            Err(_) if self.disk.happened => Err(NOTICED.into()),
            Err(e) => Err(format!("{pg} {key:?}: {e}")),
        }
    }

    /// Torn pages are sent again, as a sync that begins anew would.
    pub fn send_torn_again(&mut self) -> Check {
        for ((pg, key), pages) in std::mem::take(&mut self.torn) {
            self.torn.insert((pg, key), pages);
            // What is open may not touch the block.
            let last = self.store.pg_state(pg).last.seq;
            self.store.set_commit(pg, last);
            self.crank(300)?;
            let live = self.live().remove(&pg).unwrap_or_default();
            let Some(b) = live.blocks.get(&key) else {
                self.torn.remove(&(pg, key));
                continue;
            };
            let of = |p: u32| self.part_tags.get(&(pg, key, b.version, p)).copied();
            let parts: Vec<u32> = (0..16).filter(|p| pages >> p & 1 == 1).collect();
            let mut tags = Vec::new();
            for p in &parts {
                // Written by a newer record meanwhile: the same once more.
                tags.push(of(*p).unwrap_or(b.pages[*p as usize]));
            }
            let version = b.version;
            let part = Part { key, version, mask: pages, tags, intent: false, by: None, missed: 0 };
            let mut turns = 0;
            let id = loop {
                if let Ok(id) = self.send_part(pg, part.clone()) {
                    break id;
                }
                turns += 1;
                if turns > 2000 {
                    // A stuck group holds the log.
                    return Err(NOTICED.into());
                }
                self.now = self.now + std::time::Duration::from_millis(100);
                self.crank(5)?;
            };
            while self.stable < id || self.on_their_way().next().is_some() {
                turns += 1;
                if turns > 20_000 {
                    return Err(format!("{pg} {key:?} does not get to its place"));
                }
                self.crank(1)?;
            }
            self.torn.remove(&(pg, key));
        }
        Ok(())
    }
}
