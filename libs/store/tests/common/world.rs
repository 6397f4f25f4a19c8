//! Random work on one store, with crashes in between: what is done, and when.

use super::model::*;
use super::*;
use bytes::Bytes;
use quarry_base::*;
use quarry_store::*;
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

pub const DEVICE: u64 = 10 << 20;
pub const LOG: u64 = 1 << 20;

fn config(rng: &mut Rng) -> StoreConfig {
    StoreConfig {
        device_bytes: DEVICE,
        log_bytes: LOG,
        max_batch_bytes: 128 << 10,
        max_batches_in_flight: 1 + rng.below(6) as usize,
        destage_depth: 1 + rng.below(16) as usize,
        max_dirty_table_pages: 1 + rng.below(4) as usize,
        max_reads_in_flight: 1 + rng.below(20) as usize,
        // Little is in memory: the device has a handful of groups.
        check_cache_bytes: 0,
        ack: if rng.one_in(4) { AckMode::Cached } else { AckMode::Durable },
        ..StoreConfig::default()
    }
}

pub struct World {
    pub rng: Rng,
    pub cfg: StoreConfig,
    pub disk: SimDisk,
    pub store: Store,
    pub now: Nanos,
    pub ops: Vec<DiskOp>,
    pub events: Vec<Event>,
    pub stable: AppendId,
    pub synced: AppendId,
    pub epochs: HashMap<PgId, u64>,
    pub tag: u32,
    pub all_through: HashMap<PgId, Version>,
    pub next_id: HashMap<(PgId, u64), u64>,
    pub reads: HashMap<u64, Result<ReadData, ReadError>>,
    pub pending: HashMap<u64, Pending>,
    pub token: u64,
    pub crashes: u32,
    /// Also gaps in the sequence, and a group that gets no commits for long.
    pub harsh: bool,
    pub stuck: Option<PgId>,
    pub mishap: Option<Mishap>,
    /// Also copies of some parts of blocks, as to a member that is brought up to date.
    pub parts: bool,
    /// What each part of a version holds: the same in every copy of it.
    pub part_tags: HashMap<(PgId, BlockKey, Version, u32), u32>,
    /// Pages torn by a crash on their way to their place, until they are sent again.
    pub torn: BTreeMap<(PgId, BlockKey), u16>,
    /// The device has failed: nothing more becomes stable until it is opened again.
    pub failed: bool,
}

/// How the disk behaves, and the callers.
#[derive(Clone, Copy, Default, Debug)]
pub struct Plan {
    pub lie: Option<Lie>,
    pub harsh: bool,
    pub mishap: Option<Mishap>,
    pub flaky: bool,
    pub parts: bool,
}

/// Ends a run early: the store has noticed what the disk did to it, which is all that it can do.
pub const NOTICED: &str = "noticed";
/// Ends a step early: the device has failed.
const FAILED: &str = "failed";

/// A read under way: what was expected when it began, the commit point and number of events then.
pub struct Pending {
    pg: PgId,
    key: BlockKey,
    offset: u32,
    len: u32,
    before: Vec<u32>,
    commit: Seq,
    events: usize,
}

pub type Check = Result<(), String>;

pub fn run(seed: u64, steps: u32, lie: Option<Lie>, harsh: bool) -> Check {
    run_plan(seed, steps, Plan { lie, harsh, ..Plan::default() })
}

pub fn run_plan(seed: u64, steps: u32, plan: Plan) -> Check {
    match history(seed, steps, plan) {
        Err(e) if e == NOTICED => Ok(()),
        out => out,
    }
}

fn history(seed: u64, steps: u32, plan: Plan) -> Check {
    let mut rng = Rng(seed);
    let cfg = config(&mut rng);
    let ident = DeviceIdent { cluster: [7; 16], device_uuid: [3; 16], device: DeviceId(1) };
    let mut disk = SimDisk::new(DEVICE);
    disk.run_format(format(&cfg, ident).unwrap());
    disk.lie = plan.lie;
    disk.flaky = plan.flaky;
    disk.spared = (128 << 10)..(128 << 10) + LOG;
    let store = Store::open(cfg.clone(), Some([7; 16]));
    let mut w = World {
        rng,
        cfg,
        disk,
        store,
        now: Nanos(1),
        ops: Vec::new(),
        events: Vec::new(),
        stable: 0,
        synced: 0,
        epochs: HashMap::new(),
        tag: 0,
        all_through: HashMap::new(),
        next_id: HashMap::new(),
        reads: HashMap::new(),
        pending: HashMap::new(),
        token: 0,
        crashes: 0,
        harsh: plan.harsh,
        stuck: None,
        mishap: plan.mishap,
        parts: plan.parts,
        part_tags: HashMap::new(),
        torn: BTreeMap::new(),
        failed: false,
    };
    w.open()?;
    if let Some(m) = plan.mishap {
        // Late enough that there is something to lose, and somewhere in between.
        let after = 20 + w.rng.below(if m == Mishap::Rot { 200 } else { 400 });
        w.disk.mishap = Some((m, after));
    }
    for _ in 0..steps {
        let done = w.step();
        w.unless_failed(done)?;
    }
    let done = w.settle();
    if w.unless_failed(done)? {
        return w.settle();
    }
    Ok(())
}

impl World {
    pub fn pick_pg(&mut self) -> PgId {
        PgId::new(PoolId(1), self.rng.below(3) as u32)
    }

    pub fn pick_key(&mut self) -> BlockKey {
        // Few blocks, so that they meet; the third vTree is deleted now and then.
        BlockKey {
            vtree: VtreeId(1 + self.rng.below(3)),
            layer: Layer(0),
            extent: Extent(self.rng.below(2) as u32),
            block: self.rng.below(6) as u8,
        }
    }

    pub fn crank(&mut self, steps: u64) -> Check {
        for _ in 0..steps {
            self.turn()?;
            if self.failed {
                return Err(FAILED.into());
            }
        }
        Ok(())
    }

    pub fn turn(&mut self) -> Check {
        let mut out = Vec::new();
        self.store.poll(self.now, &mut self.ops, &mut out);
        self.disk.submit(&mut self.ops);
        for e in out {
            self.event(e)?;
        }
        if let Some((id, r)) = self.disk.step(&mut self.rng) {
            self.store.complete(self.now, id, r);
        }
        Ok(())
    }

    pub fn event(&mut self, e: StoreEvent) -> Check {
        match e {
            StoreEvent::Stable { .. } | StoreEvent::Synced { .. } if self.failed => {
                return Err("something became stable after the device had failed".into())
            }
            StoreEvent::Stable { upto } => self.stable = upto,
            StoreEvent::Synced { upto } => self.synced = upto,
            StoreEvent::ReadDone { token, result } => self.read_answer(token, result)?,
            StoreEvent::OpenFailed(_) | StoreEvent::Corruption { .. } if self.disk.happened => {
                return Err(NOTICED.into())
            }
            StoreEvent::OpenFailed(e) => return Err(format!("open failed: {e}")),
            StoreEvent::Failed(_) if self.disk.happened && !self.failed => self.failed = true,
            StoreEvent::Failed(e) => return Err(format!("failed: {e}")),
            StoreEvent::Corruption { pg, key, pages } if self.may_be_torn(pg, key, pages) => {
                *self.torn.entry((pg, key)).or_default() |= pages;
            }
            StoreEvent::Corruption { pg, key, pages } => {
                return Err(format!("corruption in {pg} {key:?} pages {pages:x}"))
            }
            StoreEvent::TableDamaged { .. } if self.disk.happened => {}
            StoreEvent::TableDamaged { group } => {
                return Err(format!("table group {group} is damaged"))
            }
            StoreEvent::Placed { intent, by, .. } => self.placed(intent, by),
            StoreEvent::Opened
            | StoreEvent::LogSpace
            | StoreEvent::Stalled { .. }
            | StoreEvent::Moves
            | StoreEvent::BlockDone { .. } => {}
        }
        Ok(())
    }

    /// A read that ran among writes sees, page by page, what was committed when it began, now, or in
    /// between.
    pub fn read_answer(&mut self, token: u64, result: Result<ReadData, ReadError>) -> Check {
        let Some(Pending { pg, key, offset, len, before, commit, events }) =
            self.pending.remove(&token)
        else {
            self.reads.insert(token, result);
            return Ok(());
        };
        let d = match result {
            // What was committed and will never be written, or a read that failed: said, not served.
            Err(ReadError::Io(5) | ReadError::Corrupt { .. }) if self.disk.happened => {
                return Ok(());
            }
            result => result.map_err(|e| format!("read in {pg}: {e}"))?,
        };
        let after = self.expect(pg, key, offset, len);
        let got: Vec<u8> = d.segments.concat();
        for (i, page) in got.chunks(PAGE).enumerate() {
            let here = self.events.iter().enumerate().filter(|(_, e)| e.pg == pg);
            let mut since = here.flat_map(|(n, e)| match &e.ev {
                Ev::Rec(r, tags) if r.version.seq > commit => &tags[..],
                Ev::Copy(_, _, _, tags) if n >= events => &tags[..],
                Ev::Part(p) if n >= events => &p.tags[..],
                _ => &[],
            });
            let old_or_new = page == page_of(before[i]) || page == page_of(after[i]);
            if !old_or_new && page != page_of(0) && !since.any(|t| page == page_of(*t)) {
                return Err(format!(
                    "{pg} {key:?} page {i} of {offset}: neither old nor new content"
                ));
            }
        }
        Ok(())
    }

    pub fn live(&self) -> std::collections::BTreeMap<PgId, PgModel> {
        fold(&self.events, usize::MAX, &|p| self.store.pg_state(p).commit)
    }

    pub fn expect(&self, pg: PgId, key: BlockKey, offset: u32, len: u32) -> Vec<u32> {
        let m = self.live().remove(&pg).unwrap_or_default();
        let first = offset as usize / PAGE;
        (first..first + len as usize / PAGE)
            .map(|p| {
                let k = BlockKey { block: (p / 16) as u8, ..key };
                m.blocks.get(&k).map_or(0, |b| b.pages[p % 16])
            })
            .collect()
    }

    fn step(&mut self) -> Check {
        if let Some((Mishap::Rot, n)) = self.disk.mishap {
            self.disk.mishap = Some((Mishap::Rot, n.saturating_sub(1)));
            if n == 0 {
                self.rot()?;
            }
        }
        self.now = self.now + Duration::from_millis(self.rng.below(30));
        if self.harsh && self.rng.one_in(40) {
            self.stuck = if self.rng.one_in(3) { None } else { Some(self.pick_pg()) };
        }
        if self.parts && self.rng.one_in(8) {
            self.part();
        }
        match self.rng.below(100) {
            0..=54 => self.append(),
            55..=74 => self.commit(),
            75..=77 => self.truncate(),
            78..=79 => self.meta(),
            80..=82 => self.copy(),
            83 => self.drop_keys()?,
            84 if self.rng.one_in(6) => self.drop_pg(),
            85..=90 => self.start_read(),
            91 => self.store.flush_all(),
            92 => self.now = self.now + Duration::from_secs(2),
            93 => self.all_through(),
            94 => {
                self.store.sync();
            }
            95 => self.verify_live()?,
            96 | 97 if self.rng.one_in(3) => self.crash()?,
            _ => {}
        }
        let n = self.rng.below(6);
        self.crank(n)
    }

    fn append(&mut self) {
        let pg = self.pick_pg();
        let last = self.store.pg_state(pg).last;
        let epoch = *self.epochs.entry(pg).or_insert(1);
        let commit = self.store.pg_state(pg).commit;
        let gap = if self.harsh && commit == last.seq && self.rng.one_in(3) {
            self.rng.below(5)
        } else {
            0
        };
        let version = Version::new(Epoch(epoch), Seq(last.seq.0 + 1 + gap));
        let k = self.pick_key();
        let (vtree, layer, extent) = (k.vtree, k.layer, k.extent);
        let mut tags = Vec::new();
        let kind = match self.rng.below(20) {
            0 if self.rng.one_in(4) => RecordKind::DropVtree { vtree: VtreeId(3) },
            1 => RecordKind::EpochStart { base: last.seq },
            2..=4 => {
                let pages = 1 + self.rng.below(20) as u32;
                let offset = k.offset() + self.rng.below(16) as u32 * 4096;
                RecordKind::Zero { vtree, layer, extent, offset, len: pages * 4096 }
            }
            n => {
                let (offset, pages) = match n {
                    5 | 6 => (k.offset(), 16 * (1 + self.rng.below(3) as u32)),
                    7 => (k.offset() + 4096 * 12, 16 + self.rng.below(24) as u32),
                    _ => (
                        k.offset() + self.rng.below(16) as u32 * 4096,
                        1 + self.rng.below(4) as u32,
                    ),
                };
                tags = (0..pages).map(|i| self.tag + 1 + i).collect();
                self.tag += pages;
                let data: Vec<u8> = tags.iter().flat_map(|t| page_of(*t)).collect();
                let crcs = data.chunks(PAGE).map(crc32c).collect();
                RecordKind::Write { vtree, layer, extent, offset, crcs, data: data.into() }
            }
        };
        let instance = self.rng.below(3);
        let next = self.next_id.entry((pg, instance)).or_insert(1);
        let id = RequestId(*next);
        *next += 1;
        let lowest_unanswered = RequestId(next.saturating_sub(10));
        let origin = Origin { instance: Instance(instance), id, lowest_unanswered };
        let rec = Record { version, origin, kind };
        if let Ok(id) = self.store.append(pg, rec.clone()) {
            self.events.push(Event { id, pg, ev: Ev::Rec(rec, tags) });
        }
    }

    fn commit(&mut self) {
        let pg = self.pick_pg();
        if self.stuck == Some(pg) {
            return;
        }
        let s = self.store.pg_state(pg);
        // Mostly what is stable, as in a group of in-sync replicas; at times ahead of it.
        let top = if self.rng.one_in(8) { s.last.seq } else { s.stable.seq };
        let span = top.0.saturating_sub(s.commit.0);
        if span > 0 {
            let to = if self.rng.one_in(3) { 1 + self.rng.below(span) } else { span };
            self.store.set_commit(pg, Seq(s.commit.0 + to));
        }
    }

    fn truncate(&mut self) {
        let pg = self.pick_pg();
        let s = self.store.pg_state(pg);
        let open = s.last.seq.0.saturating_sub(s.commit.0);
        if open > 0 {
            let from = Seq(s.commit.0 + 1 + self.rng.below(open));
            self.store.truncate(pg, from);
            *self.epochs.entry(pg).or_insert(1) += 1;
            let id = self.events.last().map_or(0, |e| e.id);
            self.events.push(Event { id, pg, ev: Ev::Truncate(from) });
        }
    }

    fn meta(&mut self) {
        let pg = self.pick_pg();
        let len = self.rng.below(6000) as usize;
        let blob = Bytes::from(vec![self.rng.next() as u8; len]);
        if let Ok(id) = self.store.put_meta(pg, blob.clone()) {
            self.events.push(Event { id, pg, ev: Ev::Meta(blob) });
        }
    }

    fn copy(&mut self) {
        let pg = self.pick_pg();
        let s = self.store.pg_state(pg);
        let key = self.pick_key();
        if !self.may_copy(pg, key) {
            return;
        }
        let known = |p| self.part_tags.contains_key(&(pg, key, s.commit_version, p));
        if (0..16).any(known) {
            return;
        }
        let valid = match self.rng.below(4) {
            0 => 0,
            1 => 0xFFFF,
            _ => self.rng.next() as u16,
        };
        let tags: Vec<u32> = (0..valid.count_ones()).map(|i| self.tag + 1 + i).collect();
        self.tag += valid.count_ones();
        let data: Vec<u8> = tags.iter().flat_map(|t| page_of(*t)).collect();
        let crcs: SmallVec<[u32; 16]> = data.chunks(PAGE).map(crc32c).collect();
        let version = s.commit_version;
        let copy = BlockCopy {
            key,
            version,
            part: BlockCopy::WHOLE,
            valid,
            dirty: 0xFFFF,
            crcs,
            data: data.into(),
        };
        if let Ok(id) = self.store.append_copy(pg, copy) {
            self.events.push(Event { id, pg, ev: Ev::Copy(key, version, valid, tags) });
        }
    }

    /// May a sync bring this block now, at the commit point's version?
    pub fn may_copy(&self, pg: PgId, key: BlockKey) -> bool {
        let s = self.store.pg_state(pg);
        let busy =
            self.store.tail_overlaps(pg, key.vtree, key.layer, key.extent, key.offset(), BLOCK);
        // No block has the version of a record that deletes a vTree.
        let deletes = |e: &Event| match &e.ev {
            Ev::Rec(r, _) => {
                let drops = matches!(r.kind, RecordKind::DropVtree { .. });
                e.pg == pg && r.version == s.commit_version && drops
            }
            _ => false,
        };
        busy.is_none()
            && s.commit_version != Version::ZERO
            && !self.may_bring_back(pg)
            && !self.events.iter().any(deletes)
    }

    /// A crash may bring back a truncated record, which the model applies where it was appended.
    fn may_bring_back(&self, pg: PgId) -> bool {
        let commit = self.store.pg_state(pg).commit;
        let cut = |e: &Event| match &e.ev {
            Ev::Rec(r, _) => e.pg == pg && r.version.seq > commit,
            _ => false,
        };
        self.events.iter().filter(|e| cut(e)).count() > self.store.tail(pg, commit).count()
    }

    fn drop_keys(&mut self) -> Check {
        // Quiet first: what the call sees is what the model sees.
        self.quiet()?;
        let pg = self.pick_pg();
        let s = self.store.pg_state(pg);
        if s.last.seq != s.commit || s.last == Version::ZERO || self.may_bring_back(pg) {
            return Ok(());
        }
        let from = self.pick_key();
        let to = BlockKey { block: 16, ..from };
        let rows = self.store.scan(pg, from, usize::MAX, None);
        let keep: Vec<BlockKey> =
            rows.iter().map(|r| r.key).filter(|_| self.rng.one_in(2)).collect();
        let gone = rows.iter().filter(|r| r.key < to && !keep.contains(&r.key));
        let gone = gone.map(|r| (r.key, r.version)).collect();
        if let Ok(id) = self.store.drop_keys(pg, from, to, &keep) {
            self.events.push(Event { id, pg, ev: Ev::Drop(gone) });
        }
        Ok(())
    }

    fn drop_pg(&mut self) {
        let pg = self.pick_pg();
        if let Ok(id) = self.store.drop_pg(pg) {
            self.events.push(Event { id, pg, ev: Ev::DropPg });
            *self.epochs.entry(pg).or_insert(1) += 1;
            // Reads under way may find either.
            self.pending.retain(|_, p| p.pg != pg);
        }
    }

    fn all_through(&mut self) {
        let pg = self.pick_pg();
        let v = self.store.pg_state(pg).commit_version;
        self.store.set_all_through(pg, v);
        let a = self.all_through.entry(pg).or_default();
        *a = v.max(*a);
    }

    fn start_read(&mut self) {
        let pg = self.pick_pg();
        let key = self.pick_key();
        let offset = key.offset() + self.rng.below(16) as u32 * 4096;
        let len = (1 + self.rng.below(40) as u32) * 4096;
        let unsure = |e: &&Event| e.pg == pg && !matches!(e.ev, Ev::Rec(..) | Ev::Truncate(_));
        if self.events.iter().filter(unsure).any(|e| e.id > self.stable) {
            return;
        }
        self.token += 1;
        let want = self.expect(pg, key, offset, len);
        self.store.read(self.token, pg, key.vtree, key.layer, key.extent, offset, len);
        let (commit, events) = (self.store.pg_state(pg).commit, self.events.len());
        let p = Pending { pg, key, offset, len, before: want, commit, events };
        self.pending.insert(self.token, p);
    }
}
