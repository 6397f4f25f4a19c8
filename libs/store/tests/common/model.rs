//! What a store must do, as a plain list of what was appended, folded anew for every check.
//!
//! After a crash the store's state must be that of some prefix of the log, at least everything that
//! was reported stable. The commit points are taken from the store (they may fall back), the rest is
//! compared: history, tail, content, versions, tombstones, metadata, ids.

use bytes::Bytes;
use quarry_base::*;
use quarry_store::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};

#[derive(Clone, Debug)]
pub enum Ev {
    Rec(Record, Vec<u32>),
    Copy(BlockKey, Version, u16, Vec<u32>),
    Part(Part),
    Drop(Vec<(BlockKey, Version)>),
    Meta(Bytes),
    DropPg,
    /// Not in the log: recovery may undo it.
    Truncate(Seq),
}

/// A copy of some parts of a block.
#[derive(Clone, Debug)]
pub struct Part {
    pub key: BlockKey,
    pub version: Version,
    pub mask: u16,
    /// Content of each part of the mask, in order; 0: zeroes.
    pub tags: Vec<u32>,
    /// It goes straight to its pages, and which later append says that it is there.
    pub intent: bool,
    pub by: Option<AppendId>,
    /// Parts that a crash kept from getting there.
    pub missed: u16,
}

impl Part {
    /// Each part and its content.
    pub fn parts(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        (0..16).filter(|p| self.mask >> p & 1 == 1).zip(self.tags.iter().copied())
    }
    pub fn valid(&self) -> u16 {
        self.parts().filter(|(_, t)| *t != 0).fold(0, |m, (p, _)| m | 1 << p)
    }
}

pub struct Event {
    pub id: AppendId,
    pub pg: PgId,
    pub ev: Ev,
}

#[derive(Clone, Default, Debug, PartialEq)]
pub struct Blk {
    pub version: Version,
    /// Content tag of each page; 0: zeroes.
    pub pages: [u32; 16],
    /// Newest version that wrote or trimmed each page.
    pub touched: [Version; 16],
}

impl Blk {
    /// Pages with content.
    pub fn valid(&self) -> u16 {
        self.mask(|p| self.pages[p] != 0)
    }
    /// Pages that a delta from `since` must have.
    pub fn touched_since(&self, since: Version) -> u16 {
        self.mask(|p| self.touched[p] > since)
    }
    fn mask(&self, f: impl Fn(usize) -> bool) -> u16 {
        (0..16).filter(|p| f(*p)).fold(0, |m, p| m | 1 << p)
    }
}

#[derive(Clone, Default, Debug)]
pub struct PgModel {
    pub line: Vec<Version>,
    pub last: Version,
    pub blocks: BTreeMap<BlockKey, Blk>,
    pub tombs: BTreeMap<BlockKey, Version>,
    /// Newest trim of a block that was trimmed already: what its tombstone says, if it still has one.
    pub trimmed: BTreeMap<BlockKey, Version>,
    pub dropped: BTreeMap<VtreeId, Version>,
    pub meta: Option<Bytes>,
    pub ids: BTreeMap<(Instance, RequestId), Seq>,
    pub floors: BTreeMap<Instance, RequestId>,
    pub exists: bool,
}

/// A page's content for a tag. All of them end in their own CRC-32C, so that all have one and the same: a page
/// in another's place must be noticed by more than that.
pub fn page_of(tag: u32) -> Vec<u8> {
    if tag == 0 {
        return vec![0; PAGE];
    }
    let word = (u64::from(tag) << 32 | u64::from(tag)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut page: Vec<u8> = (0..PAGE / 8).flat_map(|i| (word ^ i as u64).to_le_bytes()).collect();
    let crc = crc32c(&page[..PAGE - 4]);
    page[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
    page
}

impl PgModel {
    fn newest(&self, k: BlockKey) -> Version {
        match self.blocks.get(&k) {
            Some(b) => b.version,
            None => self.tombs.get(&k).max(self.dropped.get(&k.vtree)).copied().unwrap_or_default(),
        }
    }

    /// The block, at version `v`; made if it is not there.
    fn changed(&mut self, k: BlockKey, v: Version) -> &mut Blk {
        self.tombs.remove(&k);
        let new = || Blk { touched: [v; 16], ..Blk::default() };
        let b = self.blocks.entry(k).or_insert_with(new);
        b.version = v;
        b
    }

    /// A block without content is a tombstone.
    fn settle(&mut self, k: BlockKey, v: Version) {
        if self.blocks.get(&k).is_some_and(|b| b.pages == [0; 16]) {
            self.blocks.remove(&k);
            self.tombs.insert(k, v);
            self.trimmed.remove(&k);
        }
    }

    fn pages(
        &mut self,
        ext: (VtreeId, Layer, Extent),
        offset: u32,
        tags: &[u32],
        v: Version,
        zero: bool,
    ) {
        let mut by: BTreeMap<u8, Vec<(usize, u32)>> = BTreeMap::new();
        for (i, t) in tags.iter().enumerate() {
            let page = offset as usize / PAGE + i;
            by.entry((page / 16) as u8).or_default().push((page % 16, *t));
        }
        for (block, list) in by {
            let k = BlockKey { vtree: ext.0, layer: ext.1, extent: ext.2, block };
            if self.newest(k) >= v {
                continue;
            }
            if zero && !self.blocks.contains_key(&k) {
                self.trimmed.insert(k, v);
                continue;
            }
            let b = self.changed(k, v);
            for (p, t) in list {
                (b.pages[p], b.touched[p]) = (t, v);
            }
            self.settle(k, v);
        }
    }

    fn apply(&mut self, r: &Record, tags: &[u32]) {
        let v = r.version;
        match &r.kind {
            RecordKind::Write { vtree, layer, extent, offset, .. } => {
                self.pages((*vtree, *layer, *extent), *offset, tags, v, false)
            }
            RecordKind::Zero { vtree, layer, extent, offset, len } => {
                let tags = vec![0; *len as usize / PAGE];
                self.pages((*vtree, *layer, *extent), *offset, &tags, v, true)
            }
            RecordKind::DropVtree { vtree } => {
                self.blocks.retain(|k, b| k.vtree != *vtree || b.version >= v);
                self.tombs.retain(|k, t| k.vtree != *vtree || *t >= v);
                self.dropped.insert(*vtree, v);
            }
            RecordKind::EpochStart { .. } => {}
        }
        if r.origin.instance.0 > 0 {
            let f = self.floors.entry(r.origin.instance).or_default();
            *f = r.origin.lowest_unanswered.max(*f);
            self.ids.insert((r.origin.instance, r.origin.id), v.seq);
        }
    }

    fn copy(&mut self, k: BlockKey, v: Version, valid: u16, tags: &[u32]) {
        if self.newest(k) > v {
            return;
        }
        self.blocks.remove(&k);
        self.tombs.remove(&k);
        if valid == 0 {
            self.tombs.insert(k, v);
            self.trimmed.remove(&k);
            return;
        }
        let mut b = Blk { version: v, pages: [0; 16], touched: [v; 16] };
        let mut tags = tags.iter();
        for p in 0..16 {
            if valid >> p & 1 == 1 {
                b.pages[p] = *tags.next().unwrap();
            }
        }
        self.blocks.insert(k, b);
    }
}

impl PgModel {
    fn part(&mut self, part: &Part) {
        let (k, v) = (part.key, part.version);
        if self.newest(k) > v {
            return;
        }
        let b = self.changed(k, v);
        for (p, t) in part.parts() {
            b.touched[p] = v;
            // Zeroes need no way to the device.
            if t == 0 || part.missed >> p & 1 == 0 {
                b.pages[p] = t;
            }
        }
        self.settle(k, v);
    }
}

/// Which versions make up each group's history after these events; truncations before number `heed`
/// count. (One is undone by a crash as long as the log still has the records; not if a record was
/// appended since, also one beyond a gap.)
fn lines(events: &[Event], heed: usize) -> HashMap<PgId, Vec<Version>> {
    let mut out: HashMap<PgId, Vec<Version>> = HashMap::new();
    let mut cut: HashMap<PgId, Seq> = HashMap::new();
    for (i, e) in events.iter().enumerate() {
        let line = out.entry(e.pg).or_default();
        match &e.ev {
            Ev::Rec(r, _) => {
                let from = cut.remove(&e.pg).map_or(r.version.seq, |c| c.min(r.version.seq));
                line.retain(|v| v.seq < from);
                line.push(r.version);
            }
            Ev::Truncate(from) if i < heed => line.retain(|v| v.seq < *from),
            Ev::Truncate(from) => {
                let c = cut.entry(e.pg).or_insert(*from);
                *c = (*from).min(*c);
            }
            Ev::DropPg => {
                line.clear();
                cut.remove(&e.pg);
            }
            _ => {}
        }
    }
    out
}

/// The state after `events`, with these commit points.
pub fn fold(
    events: &[Event],
    heed: usize,
    commit: &dyn Fn(PgId) -> Seq,
) -> BTreeMap<PgId, PgModel> {
    let mut out: BTreeMap<PgId, PgModel> = BTreeMap::new();
    let lines = lines(events, heed);
    let line_sets: HashMap<PgId, BTreeSet<Version>> =
        lines.iter().map(|(p, l)| (*p, l.iter().copied().collect())).collect();
    for e in events {
        let m = out.entry(e.pg).or_default();
        match &e.ev {
            Ev::Truncate(_) => continue,
            Ev::Rec(r, tags) => {
                m.exists = true;
                if r.version.seq <= commit(e.pg) && line_sets[&e.pg].contains(&r.version) {
                    m.apply(r, tags);
                }
            }
            Ev::Copy(k, v, valid, tags) => {
                m.exists = true;
                m.copy(*k, *v, *valid, tags)
            }
            Ev::Part(p) => {
                m.exists = true;
                m.part(p);
            }
            Ev::Drop(list) => {
                m.exists = true;
                for (k, v) in list {
                    if m.newest(*k) <= *v {
                        m.blocks.remove(k);
                        m.tombs.remove(k);
                    }
                }
            }
            Ev::Meta(b) => {
                m.exists = true;
                m.meta = Some(b.clone())
            }
            Ev::DropPg => *m = PgModel::default(),
        }
    }
    for (p, l) in lines {
        if let Some(m) = out.get_mut(&p) {
            m.last = l.last().copied().unwrap_or_default();
            m.line = l;
        }
    }
    out
}

/// Compares everything but content (which takes reads). The first difference.
pub fn compare(s: &Store, pg: PgId, m: &PgModel, all_through: Version) -> Result<(), String> {
    let st = s.pg_state(pg);
    let here = s.pgs().contains(&pg);
    // Of a group whose only record was truncated the group itself is left, which says nothing.
    let empty = here && st == PgState::default();
    if here != m.exists && !empty {
        return Err(format!("{pg} is here: {here}, should be: {}", m.exists));
    }
    if st.last != m.last {
        return Err(format!("{pg}: last {} should be {}", st.last, m.last));
    }
    let tail: Vec<Version> = s.tail(pg, Seq(st.commit.0 + 1)).map(|t| t.version).collect();
    let want: Vec<Version> = m.line.iter().copied().filter(|v| v.seq > st.commit).collect();
    if tail != want {
        return Err(format!("{pg}: tail {tail:?} should be {want:?}"));
    }
    if s.meta(pg) != m.meta {
        return Err(format!("{pg}: other metadata"));
    }
    let rows = s.scan(pg, BlockKey::MIN, usize::MAX, None);
    if rows.windows(2).any(|w| w[0].key >= w[1].key) {
        return Err(format!("{pg}: scan is out of order"));
    }
    let blocks: BTreeMap<BlockKey, Version> =
        rows.iter().filter(|r| r.valid != 0).map(|r| (r.key, r.version)).collect();
    let want: BTreeMap<BlockKey, Version> = m.blocks.iter().map(|(k, b)| (*k, b.version)).collect();
    if blocks != want {
        let k = blocks.keys().chain(want.keys()).find(|k| blocks.get(k) != want.get(k)).unwrap();
        return Err(format!(
            "{pg}: commit {} {k:?} is {:?} should be {:?}",
            st.commit,
            blocks.get(k),
            want.get(k)
        ));
    }
    for r in rows.iter().filter(|r| r.valid != 0) {
        let b = &m.blocks[&r.key];
        let need = b.touched_since(all_through);
        if r.valid != b.valid() || need & !r.dirty != 0 {
            return Err(format!(
                "{pg}: {:?} valid {:04x} dirty {:04x}, should be {:04x} and {need:04x}",
                r.key,
                r.valid,
                r.dirty,
                b.valid()
            ));
        }
    }
    for (k, v) in m.tombs.iter().filter(|(_, v)| **v > all_through) {
        let v = m.trimmed.get(k).unwrap_or(v);
        if !rows.iter().any(|r| r.key == *k && r.valid == 0 && r.version == *v) {
            return Err(format!("{pg}: tombstone {k:?} {v} is missing"));
        }
    }
    for ((i, id), seq) in &m.ids {
        let seen = s.seen(pg, *i, *id);
        let low = m.floors.get(i).copied().unwrap_or_default();
        let fine = if *id < low { seen == Seen::BelowFloor } else { seen == Seen::Committed };
        if !fine {
            return Err(format!("{pg}: request {i}/{id} of {seq} is {seen:?}, floor {low}"));
        }
    }
    for t in s.tail(pg, Seq(st.commit.0 + 1)) {
        let o = t.rec.origin;
        if o.instance.0 > 0 && s.seen(pg, o.instance, o.id) != Seen::InTail(t.version.seq) {
            return Err(format!(
                "{pg}: request {o:?} in the tail is {:?}",
                s.seen(pg, o.instance, o.id)
            ));
        }
    }
    Ok(())
}
