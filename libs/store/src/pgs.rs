//! The calls on placement groups: append, commit, truncate, ids, sync.

use crate::apply;
use crate::batch::{Body, CopyKind};
use crate::codec::{Get, Put};
use crate::error::AppendError;
use crate::ids::{IdTable, Known};
use crate::index::{ExtKey, Pg, Sealed, TailRec, View};
use crate::layout::{BLOCK64, NO_SLOT};
use crate::log_format::Kind;
use crate::read::touches;
use crate::seal::{Checks, DeviceKey};
use crate::store::Store;
use crate::types::*;
use bytes::Bytes;
use quarry_base::{
    Extent, Instance, Layer, PageBuf, PgId, RequestId, Seq, Version, VtreeId, BLOCK,
    BLOCKS_PER_EXTENT, EXTENT, PAGE,
};
use smallvec::SmallVec;

/// Largest meta blob, bytes.
pub const MAX_META: usize = 64 << 10;
/// A copy of at least this many pages goes straight to a block.
const DIRECT_COPY_PAGES: u32 = 8;
/// Bytes of one dropped block in the log.
const DROP_BYTES: usize = 33;

/// The dirty mask as it counts: none at or below `all_through`.
pub(crate) fn dirty_of(pg: &Pg, b: &View<'_>) -> u16 {
    if b.newest() <= pg.all_through {
        0
    } else {
        b.dirty
    }
}

/// Whether a record's data was compared with its CRCs in this process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Crcs {
    ToCompare,
    Compared,
}

/// Is this a valid record? The checks of its pages.
fn check(key: DeviceKey, pg: PgId, rec: &Record, given: Crcs) -> Result<Checks, AppendError> {
    let page = PAGE as u32;
    let mut checks = Checks::new();
    match &rec.kind {
        RecordKind::Write { vtree, layer, extent, offset, crcs, data } => {
            let len = data.len();
            if offset % page != 0 || len == 0 || len % PAGE != 0 {
                return Err(AppendError::Invalid("a write is of whole pages"));
            }
            if len as u64 + u64::from(*offset) > u64::from(EXTENT) {
                return Err(AppendError::Invalid("a write stays inside its extent"));
            }
            let ext = ExtKey(*vtree, *layer, *extent);
            let good = crcs.len() == len / PAGE
                && seal(key, pg, ext, *offset, (crcs, given), data, &mut checks);
            if !good {
                return Err(AppendError::Invalid("the checksums are not the data's"));
            }
        }
        RecordKind::Zero { offset, len, .. } => {
            let end = u64::from(*offset) + u64::from(*len);
            if offset % page != 0 || len % page != 0 || *len == 0 || end > u64::from(EXTENT) {
                return Err(AppendError::Invalid("a trim is of whole pages inside an extent"));
            }
        }
        RecordKind::EpochStart { .. } | RecordKind::DropVtree { .. } => {}
    }
    if rec.version.seq.0 == 0 {
        return Err(AppendError::Invalid("seq 0 is before the first"));
    }
    Ok(checks)
}

/// Makes the checks of a write's pages. False: a CRC is wrong.
fn seal(
    key: DeviceKey,
    pg: PgId,
    ext: ExtKey,
    offset: u32,
    (crcs, given): (&[u32], Crcs),
    data: &[u8],
    out: &mut Checks,
) -> bool {
    let mut pages = data.chunks_exact(PAGE).zip(crcs);
    for (b, from, to) in apply::blocks_of(offset, data.len() as u32) {
        let seal = key.block(pg, ext.block(b));
        for (p, (d, want)) in (from..to).zip(&mut pages) {
            if given == Crcs::Compared {
                out.push(seal.check(p, d, *want));
                continue;
            }
            let (crc, check) = seal.both(p, d);
            if crc != *want {
                return false;
            }
            out.push(check);
        }
    }
    true
}

/// O_DIRECT wants page-aligned memory.
pub(crate) fn aligned(data: &Bytes) -> Bytes {
    if (data.as_ptr() as usize).is_multiple_of(PAGE) {
        data.clone()
    } else {
        PageBuf::copy_of(data).freeze()
    }
}

impl Store {
    pub(crate) fn room(&mut self, cost: u64, data: bool) -> Result<(), AppendError> {
        if self.failed.is_some() || self.sb.is_none() || self.cfg.read_only {
            return Err(AppendError::Failed);
        }
        let room = if data { self.data_log_room() } else { self.meta_log_room() };
        if cost > room {
            self.log.refused = true;
            self.sp.stats.log_full += 1;
            return Err(AppendError::LogFull);
        }
        Ok(())
    }

    /// Slots for application data: none below the reserve.
    fn data_slot(&mut self) -> Option<u32> {
        let kept = self.reserve_blocks() + self.slots_owed();
        if u64::from(self.sp.alloc.free()) <= kept {
            return None;
        }
        self.sp.stats.allocs += 1;
        self.sp.alloc.alloc()
    }

    /// Appends a record of a group's sequence to the log, its data compared with its checksums first.
    /// It is durable when `Stable` covers the id.
    ///
    /// Errors: `LogFull` (try again after `StoreEvent::LogSpace`), `Failed`, `TooLarge`, `Invalid`.
    pub fn append(&mut self, pg: PgId, rec: Record) -> Result<AppendId, AppendError> {
        self.append_given(pg, rec, Crcs::ToCompare)
    }

    /// As [`append`](Store::append) for data that this process has compared with its checksums already, or
    /// made them from: once on arrival is enough. They are in the checks at rest as they came, so that data
    /// which changed in memory since does not fit them.
    pub fn append_verified(&mut self, pg: PgId, rec: Record) -> Result<AppendId, AppendError> {
        self.append_given(pg, rec, Crcs::Compared)
    }

    fn append_given(
        &mut self,
        pg: PgId,
        mut rec: Record,
        given: Crcs,
    ) -> Result<AppendId, AppendError> {
        let checks = check(self.sp.key, pg, &rec, given)?;
        if let Some(p) = self.pg(pg) {
            let next = rec.version.seq.0 == p.last.seq.0 + 1;
            let jump = rec.version.seq > p.last.seq && p.commit >= p.last.seq;
            if !(next || jump) || rec.version.epoch < p.last.epoch {
                return Err(AppendError::Invalid("not the next of its sequence"));
            }
        }
        let jump = self.pg(pg).is_none_or(|p| rec.version.seq.0 != p.last.seq.0 + 1);
        let mut logged = 0;
        let mut whole = (0, 0);
        let mut is_data = false;
        if let RecordKind::Write { offset, data, .. } = &rec.kind {
            let end = offset + data.len() as u32;
            whole = (offset.div_ceil(BLOCK), end / BLOCK);
            logged = data.len();
            is_data = true;
        }
        let wholes = (whole.1.saturating_sub(whole.0)) as usize;
        // Admitted as if no slot were found for half of it: at worst it waits a little early.
        let direct_bytes = if u64::from(self.sp.alloc.free())
            > self.reserve_blocks() + self.slots_owed() + wholes as u64
        {
            wholes * BLOCK as usize
        } else {
            0
        };
        logged -= direct_bytes;
        if logged > self.cfg.max_batch_bytes {
            return Err(AppendError::TooLarge);
        }
        self.room(logged as u64 + 2 * PAGE as u64, is_data)?;
        let mut slots = SmallVec::<[u32; 16]>::new();
        if direct_bytes > 0 {
            slots.extend((0..wholes).map(|_| self.data_slot().unwrap_or(NO_SLOT)));
            if let RecordKind::Write { data, .. } = &mut rec.kind {
                *data = aligned(data);
            }
        }
        let idx = self.pg_or_new(pg);
        if let Some(p) = self.pgs[idx as usize].as_mut() {
            p.last = rec.version;
            if rec.origin.instance.0 != 0 {
                p.tail_ids.insert((rec.origin.instance, rec.origin.id), rec.version.seq);
            }
            let (rec, checks, slots) = (rec.clone(), checks.clone(), slots.clone());
            p.tail.push_back(TailRec { rec, checks, slots, jump, batch: 0, again: 0 });
        }
        Ok(self.push(idx, pg, Body::Record { rec, checks, slots, jump, again: false }, true))
    }

    /// Keeps `blob` (at most 64 KiB) for the group; the newest wins, for ever.
    pub fn put_meta(&mut self, pg: PgId, blob: Bytes) -> Result<AppendId, AppendError> {
        if blob.len() > MAX_META {
            return Err(AppendError::TooLarge);
        }
        self.room((blob.len() + 2 * PAGE) as u64, false)?;
        let idx = self.pg_or_new(pg);
        if let Some(p) = self.pgs[idx as usize].as_mut() {
            p.meta = Some(blob.clone());
        }
        self.ckpt.records_bytes += blob.len() as u64;
        Ok(self.push(idx, pg, Body::Blob { kind: Kind::Meta, data: blob }, true))
    }

    /// Appends a copy of a block (sync traffic). It replaces the block once the log has it, unless
    /// the block is as new already; records appended later apply on top.
    pub fn append_copy(&mut self, pg: PgId, mut copy: BlockCopy) -> Result<AppendId, AppendError> {
        let n = copy.valid.count_ones();
        let checks = self.checks_of(pg, &copy)?;
        self.room(copy.data.len() as u64 + 2 * PAGE as u64, true)?;
        let mut slot = NO_SLOT;
        if n >= DIRECT_COPY_PAGES && copy.part == BlockCopy::WHOLE {
            slot = self.data_slot().unwrap_or(NO_SLOT);
            if slot != NO_SLOT {
                copy.data = aligned(&copy.data);
            }
        }
        let idx = self.pg_or_new(pg);
        let copy = Box::new(Sealed { copy, checks, unlogged: false });
        Ok(self.push(idx, pg, Body::Copy { copy, slot, how: CopyKind::Sync }, true))
    }

    /// Is the copy whole and what it says? The checks of its pages.
    pub(crate) fn checks_of(&self, pg: PgId, copy: &BlockCopy) -> Result<Checks, AppendError> {
        let inside = copy.valid & !copy.part == 0 && copy.key.block < 16;
        let seal = self.sp.key.block(pg, copy.key);
        let checks = seal.checks(copy.valid, &copy.data, &copy.crcs).filter(|_| inside);
        checks.ok_or(AppendError::Invalid("the copy's content is not what it says"))
    }

    /// Forgets all blocks and tombstones in `from..to` but those in `keep` (full compare: the
    /// primary does not have them).
    pub fn drop_keys(
        &mut self,
        pg: PgId,
        from: BlockKey,
        to: BlockKey,
        keep: &[BlockKey],
    ) -> Result<AppendId, AppendError> {
        self.room(2 * PAGE as u64, false)?;
        let keep: std::collections::BTreeSet<&BlockKey> = keep.iter().collect();
        let rows = self.rows(pg, from).take_while(|r| r.key < to);
        let gone: Vec<(BlockKey, Version)> =
            rows.filter(|r| !keep.contains(&r.key)).map(|r| (r.key, r.version)).collect();
        let idx = self.pg_or_new(pg);
        let per = (self.cfg.max_batch_bytes / 2 / DROP_BYTES).max(1);
        self.room((gone.len() * DROP_BYTES * 2 + 4 * PAGE) as u64, false)?;
        for list in gone.chunks(per) {
            let blob = encode_drops(list);
            self.push(idx, pg, Body::Drop { list: list.to_vec(), blob }, true);
        }
        if gone.is_empty() {
            self.push(idx, pg, Body::Bare(Kind::Commit), true);
        }
        Ok(self.log.last_id)
    }

    /// Everything up to `seq` is committed: it is applied as soon as the log has it here. Never goes
    /// back; what is above the last record here does not count.
    pub fn set_commit(&mut self, pg: PgId, seq: Seq) {
        let Some(&idx) = self.by_id.get(&pg) else { return };
        let Some(p) = self.pgs[idx as usize].as_mut() else { return };
        // Always the seq of a record that is here: the next one appended may fill the gap above it.
        let i = p.tail.partition_point(|t| t.rec.version.seq <= seq);
        let Some(seq) = i.checked_sub(1).and_then(|i| p.tail.get(i)).map(|t| t.rec.version.seq)
        else {
            return;
        };
        if seq > p.commit {
            p.commit = seq;
            self.try_apply(idx);
        }
    }

    /// Drops the tail from seq `from` on; all of it must be uncommitted. A crash may bring it back:
    /// in recovery a record whose seq is not above the group's last replaces the tail from there.
    pub fn truncate(&mut self, pg: PgId, from: Seq) {
        let Some(&idx) = self.by_id.get(&pg) else { return };
        let Some(p) = self.pgs[idx as usize].as_mut() else { return };
        assert!(from > p.commit, "{pg}: truncation from {from} at commit {}", p.commit);
        truncate_tail(p, &mut self.sp, from);
    }

    /// Has the group a block of this vTree? Tombstones do not count.
    pub fn has_blocks_of(&self, pg: PgId, vtree: VtreeId) -> bool {
        self.pg(pg).is_some_and(|p| p.count(&self.sp.slots, vtree) > 0)
    }

    /// vTrees of which the group may have blocks, in order.
    pub fn vtrees_of(&self, pg: PgId) -> Vec<VtreeId> {
        let layers = self.pg(pg).into_iter().flat_map(|p| p.layers.keys());
        let mut all: Vec<VtreeId> = layers.map(|l| l.0).collect();
        all.dedup();
        all
    }

    /// Groups on this device.
    pub fn pgs(&self) -> Vec<PgId> {
        let mut v: Vec<PgId> = self.by_id.keys().copied().collect();
        v.sort_unstable();
        v
    }

    /// The group's newest meta blob.
    pub fn meta(&self, pg: PgId) -> Option<Bytes> {
        self.pg(pg)?.meta.clone()
    }

    /// Where a group stands; all zero if it is not here.
    pub fn pg_state(&self, pg: PgId) -> PgState {
        let Some(p) = self.pg(pg) else { return PgState::default() };
        let commit_version = if p.commit <= p.applied.seq {
            p.applied
        } else {
            let i = p.tail.partition_point(|t| t.rec.version.seq <= p.commit);
            i.checked_sub(1).and_then(|i| p.tail.get(i)).map_or(p.applied, |t| t.rec.version)
        };
        PgState {
            last: p.last,
            stable: p.stable,
            commit: p.commit,
            commit_version,
            bytes_used: p.slots * BLOCK64,
            blocks: p.blocks,
        }
    }

    /// Records from seq `from` on that are in memory: at least all above the commit point.
    pub fn tail(&self, pg: PgId, from: Seq) -> impl Iterator<Item = TailRecord> + '_ {
        let tail = self.pg(pg).map(|p| &p.tail);
        let skip = tail.map_or(0, |t| t.partition_point(|t| t.rec.version.seq < from));
        let all = tail.into_iter().flat_map(move |t| t.range(skip.min(t.len())..));
        all.map(|t| TailRecord { version: t.rec.version, rec: t.rec.clone() })
    }

    /// Newest uncommitted record that touches a range of an extent.
    pub fn tail_overlaps(
        &self,
        pg: PgId,
        vtree: VtreeId,
        layer: Layer,
        extent: Extent,
        offset: u32,
        len: u32,
    ) -> Option<Seq> {
        let p = self.pg(pg)?;
        let ext = ExtKey(vtree, layer, extent);
        let mut open = p.tail.iter().rev().take_while(|t| t.rec.version.seq > p.commit);
        open.find(|t| touches(&t.rec.kind, ext, offset, len)).map(|t| t.rec.version.seq)
    }

    /// What the id table knows of a request (R19).
    pub fn seen(&self, pg: PgId, instance: Instance, id: RequestId) -> Seen {
        let Some(p) = self.pg(pg) else { return Seen::New };
        if let Some(seq) = p.tail_ids.get(&(instance, id)) {
            return if *seq > p.commit { Seen::InTail(*seq) } else { Seen::Committed };
        }
        match p.ids.known(instance, id) {
            Known::No => Seen::New,
            Known::Yes => Seen::Committed,
            Known::BelowFloor => Seen::BelowFloor,
        }
    }

    /// The committed part of the id table, to hand over in a sync.
    pub fn ids_export(&self, pg: PgId) -> Bytes {
        let mut v = Vec::new();
        if let Some(p) = self.pg(pg) {
            p.ids.encode(&mut v);
        }
        v.into()
    }

    /// Adds an exported id table to the group's.
    pub fn ids_import(&mut self, pg: PgId, ids: Bytes) -> Result<AppendId, AppendError> {
        let table =
            IdTable::decode(&mut Get(&ids)).ok_or(AppendError::Invalid("not an id table"))?;
        if ids.len() > self.cfg.max_batch_bytes {
            return Err(AppendError::TooLarge);
        }
        self.room((ids.len() + 2 * PAGE) as u64, false)?;
        let idx = self.pg_or_new(pg);
        if let Some(p) = self.pgs[idx as usize].as_mut() {
            p.ids.merge(&table);
        }
        self.ckpt.records_bytes += ids.len() as u64;
        Ok(self.push(idx, pg, Body::Blob { kind: Kind::IdsImport, data: ids }, true))
    }

    /// Forgets the ids of instances that are gone for good, in all groups.
    pub fn forget_instances(&mut self, keep: &dyn Fn(Instance) -> bool) {
        for p in self.pgs.iter_mut().flatten() {
            p.cp_dirty |= p.ids.forget(keep);
        }
    }

    /// Blocks and tombstones from key `from` on, in key order, at most `limit`; with `since`, only
    /// those of a higher version.
    pub fn scan(
        &self,
        pg: PgId,
        from: BlockKey,
        limit: usize,
        since: Option<Version>,
    ) -> Vec<BlockInfo> {
        let rows = self.rows(pg, from).filter(|r| since.is_none_or(|s| r.version > s));
        rows.take(limit).collect()
    }

    /// Blocks and tombstones from key `from` on, in key order, one looked up after the other.
    fn rows(&self, pg: PgId, from: BlockKey) -> impl Iterator<Item = BlockInfo> + '_ {
        self.pg(pg).into_iter().flat_map(move |p| {
            let blocks = p.blocks_from(&self.sp.slots, ExtKey::of(from));
            let row = move |(key, b): (BlockKey, View<'_>)| BlockInfo {
                key,
                version: b.newest(),
                valid: b.content(),
                dirty: dirty_of(p, &b),
            };
            let dead = |(k, v): (&BlockKey, &Version)| BlockInfo {
                key: *k,
                version: *v,
                valid: 0,
                dirty: 0xFFFF,
            };
            let mut blocks = blocks.filter(move |(k, _)| *k >= from).map(row).peekable();
            let mut tombs = p.tombs.range(from..).map(dead).peekable();
            std::iter::from_fn(move || match (blocks.peek(), tombs.peek()) {
                (Some(b), Some(t)) if t.key < b.key => tombs.next(),
                (None, _) => tombs.next(),
                (Some(_), _) => blocks.next(),
            })
        })
    }

    /// Deleted vTrees and when, newer than `since`: a delta carries these beside `scan`'s rows. All of them only if
    /// `since` is not below [`delta_floor`](Store::delta_floor).
    pub fn dropped_vtrees(&self, pg: PgId, since: Version) -> Vec<(VtreeId, Version)> {
        let all = self.pg(pg).into_iter().flat_map(|p| p.dropped.iter());
        all.filter(|(_, v)| **v > since).map(|(t, v)| (*t, *v)).collect()
    }

    /// A delta from below this version is impossible: tombstones, or ends of vTrees, were forgotten.
    pub fn delta_floor(&self, pg: PgId) -> Version {
        self.pg(pg).map_or(Version::ZERO, |p| p.delta_floor)
    }

    /// Where all listed replicas were complete: tombstones and dirty masks up to here may go.
    pub fn set_all_through(&mut self, pg: PgId, v: Version) {
        let Some(&idx) = self.by_id.get(&pg) else { return };
        let Some(p) = self.pgs[idx as usize].as_mut() else { return };
        if v > p.all_through {
            p.all_through = v;
            p.delta_floor = p.delta_floor.max(v);
            p.tombs.retain(|_, t| *t > v);
            p.dropped.retain(|_, t| *t > v);
            p.cp_dirty = true;
        }
    }

    /// Bytes of blocks newer than `since`, for progress.
    pub fn bytes_changed_since(&self, pg: PgId, since: Option<Version>) -> u64 {
        let Some(p) = self.pg(pg) else { return 0 };
        let Some(since) = since else { return p.blocks * BLOCK64 };
        let all = p.blocks_from(&self.sp.slots, ExtKey::MIN);
        let new = all.filter(|(_, b)| b.newest() > since);
        new.map(|(_, b)| u64::from(dirty_of(p, &b).count_ones()) * PAGE as u64).sum()
    }

    /// This device no longer holds the group: everything of it goes.
    pub fn drop_pg(&mut self, pg: PgId) -> Result<AppendId, AppendError> {
        self.room(2 * PAGE as u64, false)?;
        if let Some(idx) = self.by_id.remove(&pg) {
            if let Some(mut p) = self.pgs[idx as usize].take() {
                clear_pg(&mut p, &mut self.sp);
            }
        }
        self.unpark();
        Ok(self.push(u32::MAX, pg, Body::Bare(Kind::DropPg), true))
    }
}

/// Drops tail records from `from` on; see [`Store::truncate`].
pub(crate) fn truncate_tail(p: &mut Pg, sp: &mut crate::space::Space, from: Seq) {
    while p.tail.back().is_some_and(|t| t.rec.version.seq >= from) {
        let Some(t) = p.tail.pop_back() else { break };
        t.pins().for_each(|no| sp.batches.unpin(no));
        t.slots.iter().for_each(|s| sp.free_slot(*s));
        let o = t.rec.origin;
        if p.tail_ids.get(&(o.instance, o.id)) == Some(&t.rec.version.seq) {
            p.tail_ids.remove(&(o.instance, o.id));
        }
    }
    if p.last.seq >= from {
        p.last = p.tail.back().map_or(p.applied, |t| t.rec.version);
        p.stable = if p.stable.seq >= from { p.last } else { p.stable };
    }
}

/// Frees everything a group has.
pub(crate) fn clear_pg(p: &mut Pg, sp: &mut crate::space::Space) {
    truncate_tail(p, sp, Seq(0));
    let keys: Vec<BlockKey> = p.blocks_from(&sp.slots, ExtKey::MIN).map(|(k, _)| k).collect();
    keys.into_iter().for_each(|k| apply::remove(p, sp, k));
}

fn encode_drops(list: &[(BlockKey, Version)]) -> Bytes {
    let mut v = Vec::with_capacity(list.len() * DROP_BYTES);
    for (k, ver) in list {
        put_key(&mut v, *k);
        put_version(&mut v, *ver);
    }
    v.into()
}

pub(crate) fn decode_drops(b: &[u8]) -> Option<Vec<(BlockKey, Version)>> {
    let mut g = Get(b);
    let mut out = Vec::with_capacity(b.len() / DROP_BYTES);
    while !g.0.is_empty() {
        out.push((get_key(&mut g)?, get_version(&mut g)?));
    }
    Some(out)
}

pub(crate) fn put_key(v: &mut Vec<u8>, k: BlockKey) {
    v.u64(k.vtree.0);
    v.u32(k.layer.0);
    v.u32(k.extent.0);
    v.u8(k.block);
}
pub(crate) fn get_key(g: &mut Get) -> Option<BlockKey> {
    let (vtree, layer, extent) = (VtreeId(g.u64()?), Layer(g.u32()?), Extent(g.u32()?));
    let block = g.u8().filter(|b| u32::from(*b) < BLOCKS_PER_EXTENT)?;
    Some(BlockKey { vtree, layer, extent, block })
}
pub(crate) fn put_version(v: &mut Vec<u8>, x: Version) {
    v.u64(x.epoch.0);
    v.u64(x.seq.0);
}
pub(crate) fn get_version(g: &mut Get) -> Option<Version> {
    Some(Version::new(quarry_base::Epoch(g.u64()?), Seq(g.u64()?)))
}
