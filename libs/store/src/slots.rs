//! The block table by slot: who owns a data block, at which version, and the checks of its pages.
//!
//! A table group describes 63 slots in two pages, the table page and the CRC page, always written
//! together, to the side that does not count now. They count once the superblock names their
//! generation, so a checkpoint is atomic. The owners of all groups in use are in memory, packed (see `owners`); the
//! checks stand apart, in a bounded cache (see `checks`). A changed group needs its old checks too when it is written: they are read
//! as soon as it changes, and if a checkpoint begins before they are here, that group's pages wait.

use crate::checks::{CheckCache, GroupChecks, Table, PER};
use crate::codec::{crc_without, Get, Put};
use crate::layout::{Layout, GROUP_SLOTS};
use crate::owners::{Owners, Packed, Unpacked};
use crate::planted::{planted, Bug};
use crate::seal::stamp;
use crate::types::BlockKey;
use bytes::Bytes;
use quarry_base::{Epoch, Extent, Layer, PageBuf, PgId, Seq, Version, VtreeId, PAGE};

const TABLE_MAGIC: u32 = 0x5442_5251; // "QRBT"
const CRC_MAGIC: u32 = 0x4342_5251; // "QRBC"
const HEAD: usize = 64;
const ENTRY: usize = 64;
const CRC_AT: usize = 4;

/// What the table says of one slot that is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlotEntry {
    pub pg: PgId,
    pub key: BlockKey,
    pub version: Version,
    pub valid: u16,
    pub dirty: u16,
}

/// A group's entries as a page of the table has them.
pub(crate) type Entries = [Option<SlotEntry>; PER];

#[derive(Default)]
struct Group {
    data: Option<Box<[Packed; PER]>>,
    /// Generation and checksum on disk, and the side that counts.
    gen: u64,
    crc: u32,
    side: u8,
    dirty: bool,
    /// A checkpoint that has not committed yet writes it.
    writing: bool,
}

/// A group to be written by a checkpoint.
pub(crate) struct GroupWrite {
    pub group: u64,
    pub side: u8,
    pub crc: u32,
    /// Table page and CRC page.
    pub pages: Pages,
}

pub(crate) enum Pages {
    Ready(Bytes),
    /// Some of its checks are not in memory yet; as it was when the checkpoint began.
    Late {
        gen: u64,
        entries: Box<Entries>,
        checks: Box<GroupChecks>,
    },
}

impl GroupWrite {
    /// The group's CRC page was read, or is lost.
    pub fn complete(&mut self, disk: Option<&Table>) {
        let Pages::Late { gen, entries, checks } = &mut self.pages else { return };
        match disk {
            Some(d) => checks.merge(d),
            None => checks.give_up(),
        }
        let (data, _) = encode(self.group, *gen, Some(entries), &checks.checks);
        self.pages = Pages::Ready(data);
    }
}

pub(crate) struct SlotTable {
    groups: Vec<Group>,
    dirty: Vec<u32>,
    pub digest: u64,
    pub cache: CheckCache,
    pub owners: Owners,
    /// Two slots of one block were found at opening.
    pub twice: bool,
}

fn digest_of(group: u64, gen: u64, crc: u32) -> u64 {
    if gen == 0 {
        return 0;
    }
    let mut x = group.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ gen.rotate_left(32) ^ u64::from(crc);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl SlotTable {
    /// `cache_bytes`: what the checks in memory may take.
    pub fn new(l: &Layout, cache_bytes: u64) -> SlotTable {
        let groups = (0..l.groups).map(|_| Group::default()).collect();
        let (cache, owners) = (CheckCache::new(cache_bytes), Owners::default());
        SlotTable { groups, dirty: Vec::new(), digest: 0, cache, owners, twice: false }
    }

    fn place(slot: u32) -> (usize, usize) {
        (slot as usize / PER, slot as usize % PER)
    }

    fn touch(&mut self, group: usize) {
        let g = &mut self.groups[group];
        if !g.dirty {
            g.dirty = true;
            let fresh = g.gen == 0;
            self.dirty.push(group as u32);
            self.cache.group(group as u32, fresh).held = true;
            self.cache.want(group as u32, fresh);
        }
    }

    pub fn dirty_groups(&self) -> usize {
        self.dirty.len()
    }

    /// The slot's entry as it is in memory; `Packed::FREE` also where there is no such slot.
    pub fn packed(&self, slot: u32) -> Packed {
        let (g, i) = Self::place(slot);
        self.groups.get(g).and_then(|g| g.data.as_ref()).map_or(Packed::FREE, |d| d[i])
    }

    pub fn entry(&self, slot: u32) -> Option<SlotEntry> {
        unpack(&self.owners, slot, self.packed(slot))
    }

    /// The slot is that of this block now, or free.
    pub fn set(&mut self, slot: u32, e: Option<Unpacked>) {
        self.put(slot, e);
        self.touch(Self::place(slot).0);
    }

    /// As `set`, of what is on disk already.
    pub fn put(&mut self, slot: u32, e: Option<Unpacked>) {
        let (g, i) = Self::place(slot);
        let data = &mut self.groups[g].data;
        let at = &mut data.get_or_insert_with(|| Box::new([Packed::FREE; PER]))[i];
        *at = match e {
            Some(e) => self.owners.pack(slot, *at, e),
            None => {
                self.owners.forget(slot, *at);
                Packed::FREE
            }
        };
    }

    /// Slots in use whose entry nobody has any more: the index has the block elsewhere, or not at all. In order.
    pub fn disowned(&self, has: impl Fn(u32, Packed) -> bool) -> Vec<u32> {
        let all = self.used().filter(|(slot, p)| !has(*slot, *p));
        all.map(|(slot, _)| slot).collect()
    }

    fn used(&self) -> impl Iterator<Item = (u32, Packed)> + '_ {
        self.groups.iter().enumerate().flat_map(|(n, g)| {
            let all = g.data.iter().flat_map(|d| d.iter().enumerate());
            all.filter(|(_, p)| !p.is_free()).map(move |(i, p)| ((n * PER + i) as u32, *p))
        })
    }

    /// Check of page `page` of a slot, see `seal`.
    pub fn check(&self, slot: u32, page: u32) -> Option<u32> {
        let (g, i) = Self::place(slot);
        self.cache.check(g as u32, i, page)
    }

    /// Are the checks of these pages of a slot in memory? If not, they will be.
    pub fn need(&mut self, slot: u32, pages: u16) -> bool {
        let (g, i) = Self::place(slot);
        let fresh = self.groups.get(g).is_none_or(|g| g.gen == 0);
        self.cache.need(g as u32, i, pages, fresh)
    }

    /// Keeps the checks of the slot's group in memory for a read that waits; the group, for `unpin`.
    pub fn pin(&mut self, slot: u32) -> u32 {
        let (g, _) = Self::place(slot);
        let fresh = self.groups.get(g).is_none_or(|g| g.gen == 0);
        self.cache.pin(g as u32, fresh);
        g as u32
    }

    /// A group whose checks are to be read: its number, the side that counts and that side's generation.
    pub fn next_load(&mut self) -> Option<(u64, u8, u64)> {
        let n = self.cache.next_wanted()?;
        let g = self.groups.get(n as usize)?;
        Some((u64::from(n), g.side, g.gen))
    }

    /// The two pages of a group's side, read when it counted and was of generation `gen`. What came of it: the
    /// checks, if it is as it was written; and whether all that can be known of the group now is.
    pub fn load_ended(&mut self, n: u64, gen: u64, pair: Option<&[u8]>) -> (Option<Table>, bool) {
        let Some(g) = self.groups.get(n as usize) else { return (None, true) };
        let good = pair.filter(|p| {
            matches!(side_state(n, p), Side::Good { gen: found, crc } if found == gen && (g.gen != gen || crc == g.crc))
        });
        let table = good.and_then(|p| decode(n, p)).map(|(_, t)| *t);
        if table.is_none() && g.gen != gen {
            // A checkpoint has been: the side that was read may be half overwritten.
            self.cache.load_again(n as u32);
            return (None, false);
        }
        let whole = self.cache.loaded(n as u32, table.as_ref());
        (table, whole)
    }

    pub fn set_check(&mut self, slot: u32, page: u32, check: u32) {
        let (g, i) = Self::place(slot);
        let fresh = self.groups[g].gen == 0;
        self.cache.set(g as u32, i, page, check, fresh);
        self.touch(g);
    }

    /// Takes all changed groups for the checkpoint `gen`; what changes from now on belongs to the
    /// next. Also the digest after it.
    pub fn snapshot(&mut self, gen: u64) -> (Vec<GroupWrite>, u64) {
        let mut digest = self.digest;
        let mut list = std::mem::take(&mut self.dirty);
        list.sort_unstable();
        let mut out = Vec::with_capacity(list.len());
        for n in list {
            let g = &mut self.groups[n as usize];
            (g.dirty, g.writing) = (false, true);
            let checks = self.cache.group(n, g.gen == 0);
            let entries = unpack_group(&self.owners, n, g.data.as_deref());
            let (data, crc) = encode(u64::from(n), gen, Some(&entries), &checks.checks);
            let pages = if checks.is_whole() {
                Pages::Ready(data)
            } else {
                Pages::Late { gen, entries, checks: Box::new(checks.clone()) }
            };
            digest = digest
                .wrapping_sub(digest_of(u64::from(n), g.gen, g.crc))
                .wrapping_add(digest_of(u64::from(n), gen, crc));
            let side = if planted(Bug::SameSide) { g.side } else { g.side ^ 1 };
            out.push(GroupWrite { group: u64::from(n), side, crc, pages });
        }
        (out, digest)
    }

    /// The checkpoint counts now.
    pub fn committed(&mut self, gen: u64, digest: u64, written: &[(u64, u8, u32)]) {
        for (n, side, crc) in written {
            let g = &mut self.groups[*n as usize];
            (g.gen, g.side, g.crc, g.writing) = (gen, *side, *crc, false);
            self.cache.group(*n as u32, false).held = g.dirty;
        }
        self.digest = digest;
    }

    /// Recovery: takes group `n` from its 16 KiB on disk, as of checkpoint `ckpt`. Its entries, if any is in use, are for
    /// the index to take over, see `put`. `Err`: damaged.
    pub fn load(
        &mut self,
        n: u64,
        bytes: &[u8],
        ckpt: u64,
    ) -> Result<Option<Box<Entries>>, Damaged> {
        let mut best: Option<(u8, u64, u32)> = None;
        let mut later = false;
        let mut broken = 0;
        let mut used = None;
        for side in 0..2u8 {
            let at = side as usize * 2 * PAGE;
            let Some(pair) = bytes.get(at..at + 2 * PAGE) else { return Err(Damaged) };
            match side_state(n, pair) {
                Side::Blank => {}
                Side::Broken => broken += 1,
                Side::Good { gen, .. } if gen > ckpt => later = true,
                Side::Good { gen, crc } => {
                    if best.is_none_or(|b| gen > b.1) {
                        best = Some((side, gen, crc));
                    }
                }
            }
        }
        if broken == 2 {
            return Err(Damaged);
        }
        if let Some((side, gen, crc)) = best {
            let at = side as usize * 2 * PAGE;
            let Some((entries, checks)) = decode(n, &bytes[at..at + 2 * PAGE]) else {
                return Err(Damaged);
            };
            let g = &mut self.groups[n as usize];
            (g.side, g.gen, g.crc) = (side, gen, crc);
            if entries.iter().any(Option::is_some) {
                used = Some(entries);
                self.cache.preload(n as u32, &checks);
            }
            self.digest = self.digest.wrapping_add(digest_of(n, gen, crc));
        } else {
            // Nothing counts yet: the first checkpoint overwrites whichever side is not side 0 of
            // an unwritten group, so the debris must be on the other one.
            let debris = !matches!(side_state(n, &bytes[..2 * PAGE]), Side::Blank);
            self.groups[n as usize].side = u8::from(debris);
        }
        if later || broken > 0 {
            // What a checkpoint that never counted left behind must be overwritten by the next
            // one, or it would count then.
            self.touch(n as usize);
        }
        Ok(used)
    }

    /// Has a checkpoint written this group?
    pub fn is_written(&self, n: u64) -> bool {
        self.stamp(n) > 0
    }

    /// Generation of the side that counts; 0: none.
    pub fn stamp(&self, n: u64) -> u64 {
        self.groups.get(n as usize).map_or(0, |g| g.gen)
    }

    /// Do these 16 KiB of the device hold, on the side that counts, what was written there?
    pub fn is_as_written(&self, n: u64, bytes: &[u8]) -> bool {
        let Some(g) = self.groups.get(n as usize) else { return true };
        let at = g.side as usize * 2 * PAGE;
        let pair = bytes.get(at..at + 2 * PAGE);
        pair.is_some_and(|p| match side_state(n, p) {
            Side::Good { gen, crc } => (gen, crc) == (g.gen, g.crc),
            Side::Blank | Side::Broken => false,
        })
    }

    /// What is wrong with the cache of checks, for tests. `quiet`: nothing is read and no read waits.
    pub fn cache_fault(&self, quiet: bool) -> Option<String> {
        let held = self.groups.iter().enumerate().filter(|(_, g)| g.dirty || g.writing);
        let want: Vec<u32> = held.map(|(n, _)| n as u32).collect();
        self.cache.fault(&want, quiet)
    }

    /// The next checkpoint writes this group, whatever has changed.
    pub fn rewrite(&mut self, n: u64) {
        if (n as usize) < self.groups.len() {
            self.touch(n as usize);
        }
    }

    /// How many slots are in use, for the audit.
    pub fn count_used(&self) -> usize {
        self.used().count()
    }

    /// Bytes of memory of the entries and what they share, the cache of checks not counted.
    pub fn memory(&self) -> usize {
        let pages = self.groups.iter().filter(|g| g.data.is_some()).count();
        self.groups.capacity() * size_of::<Group>()
            + pages * size_of::<[Packed; PER]>().next_multiple_of(64)
            + self.dirty.capacity() * 4
            + self.owners.memory()
    }

    /// All entries, by slot.
    pub fn entries(&self) -> impl Iterator<Item = (u32, SlotEntry)> + '_ {
        self.used().filter_map(|(slot, p)| Some((slot, unpack(&self.owners, slot, p)?)))
    }
}

/// Neither side of a table group is whole.
pub(crate) struct Damaged;

fn unpack(o: &Owners, slot: u32, p: Packed) -> Option<SlotEntry> {
    if p.is_free() {
        return None;
    }
    let (l, extent) = o.extent(p.ext)?;
    let key = BlockKey { vtree: l.vtree, layer: l.layer, extent, block: p.block() };
    let version = o.version(slot, p);
    Some(SlotEntry { pg: l.pg, key, version, valid: p.valid, dirty: p.dirty })
}

fn unpack_group(o: &Owners, n: u32, d: Option<&[Packed; PER]>) -> Box<Entries> {
    let mut out: Box<Entries> = Box::new([None; PER]);
    for (i, p) in d.into_iter().flatten().enumerate() {
        out[i] = unpack(o, n * PER as u32 + i as u32, *p);
    }
    out
}

enum Side {
    Blank,
    Broken,
    Good { gen: u64, crc: u32 },
}

fn page_state(group: u64, magic: u32, page: &[u8]) -> Option<(u64, u32)> {
    let mut g = Get(page);
    let (m, crc, n, gen) = (g.u32()?, g.u32()?, g.u64()?, g.u64()?);
    (m == magic && n == group && crc == crc_without(page, CRC_AT)).then_some((gen, crc))
}

fn side_state(group: u64, pair: &[u8]) -> Side {
    let (t, c) = pair.split_at(PAGE);
    match (page_state(group, TABLE_MAGIC, t), page_state(group, CRC_MAGIC, c)) {
        (Some((a, crc)), Some((b, _))) if a == b => Side::Good { gen: a, crc },
        _ if pair.iter().all(|&x| x == 0) => Side::Blank,
        _ => Side::Broken,
    }
}

fn encode(group: u64, gen: u64, d: Option<&Entries>, checks: &Table) -> (Bytes, u32) {
    let mut v = Vec::with_capacity(2 * PAGE);
    for magic in [TABLE_MAGIC, CRC_MAGIC] {
        v.u32(magic);
        v.u32(0);
        v.u64(group);
        v.u64(gen);
        let start = v.len() - 24;
        v.resize(start + HEAD, 0);
        for i in 0..PER {
            if magic == CRC_MAGIC {
                let slot = (group * GROUP_SLOTS) as u32 + i as u32;
                put_checks(&mut v, slot, d.and_then(|d| Some((d[i]?, &checks[i]))));
            } else {
                put_entry(&mut v, d.and_then(|d| d[i].as_ref()));
            }
        }
    }
    let mut buf = PageBuf::copy_of(&v);
    let mut table_crc = 0;
    for (i, page) in buf.chunks_exact_mut(PAGE).enumerate() {
        let crc = crc_without(page, CRC_AT);
        page[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        if i == 0 {
            table_crc = crc;
        }
    }
    (buf.freeze(), table_crc)
}

fn put_entry(v: &mut Vec<u8>, e: Option<&SlotEntry>) {
    let start = v.len();
    if let Some(e) = e {
        v.u64(e.pg.0);
        v.u64(e.key.vtree.0);
        v.u32(e.key.layer.0);
        v.u32(e.key.extent.0);
        v.u64(e.version.epoch.0);
        v.u64(e.version.seq.0);
        v.u8(e.key.block);
        v.u8(1);
        v.u16(e.valid);
        v.u16(e.dirty);
    }
    v.resize(start + ENTRY, 0);
}

/// The checks of the pages that count, the block's version laid over them.
fn put_checks(v: &mut Vec<u8>, slot: u32, e: Option<(SlotEntry, &[u32; 16])>) {
    let Some((e, checks)) = e else { return v.resize(v.len() + ENTRY, 0) };
    let stamp = stamp(slot, e.version);
    for (p, c) in checks.iter().enumerate() {
        v.u32(if e.valid >> p & 1 == 1 { c ^ stamp } else { 0 });
    }
}

fn get_entry(b: &[u8]) -> Option<SlotEntry> {
    let mut g = Get(b);
    let pg = PgId(g.u64()?);
    let (vtree, layer, extent) = (VtreeId(g.u64()?), Layer(g.u32()?), Extent(g.u32()?));
    let version = Version::new(Epoch(g.u64()?), Seq(g.u64()?));
    let block = g.u8()?;
    let used = g.u8()? == 1;
    let (valid, dirty) = (g.u16()?, g.u16()?);
    let key = BlockKey { vtree, layer, extent, block };
    (used && block < 16).then_some(SlotEntry { pg, key, version, valid, dirty })
}

fn decode(group: u64, pair: &[u8]) -> Option<(Box<Entries>, Box<Table>)> {
    let mut d: Box<Entries> = Box::new([None; PER]);
    let mut checks: Box<Table> = Box::new([[0; 16]; PER]);
    let (t, c) = pair.split_at(PAGE);
    for i in 0..PER {
        let at = HEAD + i * ENTRY;
        d[i] = get_entry(t.get(at..at + ENTRY)?);
        let mut g = Get(c.get(at..at + ENTRY)?);
        let Some(e) = d[i] else { continue };
        let stamp = stamp((group * GROUP_SLOTS) as u32 + i as u32, e.version);
        for (p, check) in checks[i].iter_mut().enumerate() {
            let kept = g.u32()?;
            *check = if e.valid >> p & 1 == 1 { kept ^ stamp } else { 0 };
        }
    }
    Some((d, checks))
}
