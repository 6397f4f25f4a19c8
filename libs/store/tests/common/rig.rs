//! One store on one simulated disk, driven step by step: a test chooses which operations complete.

use super::model::page_of;
use super::{Rng, SimDisk};
use bytes::Bytes;
use quarry_base::*;
use quarry_store::*;
use smallvec::SmallVec;
use std::time::Duration;

pub const PG: PgId = PgId::new(PoolId(1), 0);
pub const IDENT: DeviceIdent =
    DeviceIdent { cluster: [7; 16], device_uuid: [3; 16], device: DeviceId(1) };

pub fn small_config() -> StoreConfig {
    StoreConfig {
        device_bytes: 10 << 20,
        log_bytes: 1 << 20,
        max_batch_bytes: 128 << 10,
        ..StoreConfig::default()
    }
}

/// The log of `small_config`.
pub const LOG: std::ops::Range<u64> = 128 << 10..(128 << 10) + (1 << 20);

pub struct Rig {
    pub cfg: StoreConfig,
    pub disk: SimDisk,
    pub store: Store,
    pub now: Nanos,
    pub pending: Vec<DiskOp>,
    pub events: Vec<StoreEvent>,
    /// Operations that fail with EIO.
    pub fails: fn(&DiskOp) -> bool,
    /// ... or with this.
    pub errno: i32,
    /// Pages of the device that cannot be read, by offset.
    pub unreadable: Vec<u64>,
    rng: Rng,
    token: u64,
}

pub fn is_sync(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Sync { .. } | DiskOp::Write { sync: WriteSync::Own | WriteSync::All, .. })
}

impl Rig {
    pub fn new(cfg: StoreConfig) -> Rig {
        let mut disk = SimDisk::new(cfg.device_bytes);
        disk.run_format(format(&cfg, IDENT).unwrap());
        let mut r = Rig::on(cfg, disk);
        assert_eq!(r.reopen(), Ok(()));
        r
    }

    /// On a disk with something on it; not opened yet.
    pub fn on(cfg: StoreConfig, disk: SimDisk) -> Rig {
        let store = Store::open(cfg.clone(), Some(IDENT.cluster));
        Rig {
            cfg,
            disk,
            store,
            now: Nanos(1),
            pending: Vec::new(),
            events: Vec::new(),
            fails: |_| false,
            errno: 5,
            unreadable: Vec::new(),
            rng: Rng(1),
            token: 0,
        }
    }

    pub fn poll(&mut self) {
        self.store.poll(self.now, &mut self.pending, &mut self.events);
    }

    /// Completes one operation of those allowed, oldest first. False: there is none.
    pub fn one(&mut self, allow: &dyn Fn(&DiskOp) -> bool) -> bool {
        self.poll();
        let Some(i) = self.pending.iter().position(allow) else { return false };
        let op = self.pending.remove(i);
        if let DiskOp::Write { offset, data, .. } = &op {
            // What is written anew can be read again.
            let end = *offset + data.iter().map(|d| d.len() as u64).sum::<u64>();
            self.unreadable.retain(|p| !(*offset..end).contains(p));
        }
        if (self.fails)(&op) || self.is_refused(&op) {
            let r = match op {
                DiskOp::Read { .. } => DiskResult::Read(Err(self.errno)),
                _ => DiskResult::Done(Err(self.errno)),
            };
            self.store.complete(self.now, op.id(), r);
        } else {
            self.disk.submit(&mut vec![op]);
            while self.disk.in_flight() > 0 {
                if let Some((id, r)) = self.disk.step(&mut self.rng) {
                    self.store.complete(self.now, id, r);
                }
            }
        }
        self.poll();
        true
    }

    fn is_refused(&self, op: &DiskOp) -> bool {
        let DiskOp::Read { offset, len, .. } = op else { return false };
        self.unreadable.iter().any(|p| (*offset..*offset + *len as u64).contains(p))
    }

    /// Completes everything allowed.
    pub fn run(&mut self, allow: &dyn Fn(&DiskOp) -> bool) {
        for _ in 0..200_000 {
            if !self.one(allow) {
                return;
            }
        }
        panic!("the store never comes to rest");
    }

    pub fn run_all(&mut self) {
        self.run(&|_| true);
    }

    /// Destages and checkpoints everything.
    pub fn flush(&mut self) {
        self.store.flush_all();
        self.run_all();
        assert!(self.store.is_idle(), "flushed and not idle");
        assert_eq!(self.store.check_invariants(), Ok(()));
    }

    /// Everything that was not synced is gone.
    pub fn power_loss(&mut self) {
        self.pending.clear();
        self.disk.lose_unsynced();
    }

    pub fn reopen(&mut self) -> Result<(), StoreError> {
        self.reopen_as(Some(IDENT.cluster))
    }

    pub fn reopen_as(&mut self, cluster: Option<[u8; 16]>) -> Result<(), StoreError> {
        let out = self.open_whatever(cluster);
        if out.is_ok() {
            assert_eq!(self.store.check_invariants(), Ok(()));
        }
        out
    }

    /// Opens what may be damaged in ways that only a deliberate hand makes.
    pub fn open_whatever(&mut self, cluster: Option<[u8; 16]>) -> Result<(), StoreError> {
        self.pending.clear();
        self.events.clear();
        self.store = Store::open(self.cfg.clone(), cluster);
        self.run_all();
        let out = self.events.drain(..).find_map(|e| match e {
            StoreEvent::Opened => Some(Ok(())),
            StoreEvent::OpenFailed(e) => Some(Err(e)),
            _ => None,
        });
        out.expect("it neither opens nor fails")
    }

    pub fn wait(&mut self, d: Duration) {
        self.now = self.now + d;
    }

    pub fn stable(&self) -> AppendId {
        let upto = |e: &StoreEvent| match e {
            StoreEvent::Stable { upto } => Some(*upto),
            _ => None,
        };
        self.events.iter().filter_map(upto).max().unwrap_or(0)
    }

    pub fn failures(&self) -> usize {
        self.events.iter().filter(|e| matches!(e, StoreEvent::Failed(_))).count()
    }

    /// Appends the group's next record.
    pub fn append(&mut self, pg: PgId, kind: RecordKind) -> Result<AppendId, AppendError> {
        let last = self.store.pg_state(pg).last;
        let epoch = Epoch(last.epoch.0.max(1));
        self.append_as(pg, Version::new(epoch, Seq(last.seq.0 + 1)), kind)
    }

    pub fn append_as(
        &mut self,
        pg: PgId,
        version: Version,
        kind: RecordKind,
    ) -> Result<AppendId, AppendError> {
        let origin = Origin {
            instance: Instance(1),
            id: RequestId(version.seq.0),
            lowest_unanswered: RequestId(0),
        };
        self.store.append(pg, Record { version, origin, kind })
    }

    pub fn commit_all(&mut self, pg: PgId) {
        let last = self.store.pg_state(pg).last.seq;
        self.store.set_commit(pg, last);
    }

    /// Writes, commits, and lets everything complete.
    pub fn put(&mut self, pg: PgId, kind: RecordKind) {
        self.append(pg, kind).unwrap();
        self.run_all();
        self.commit_all(pg);
        self.run_all();
    }

    /// As `put`, but nothing that is held back completes.
    pub fn put_without(&mut self, pg: PgId, kind: RecordKind, held: &dyn Fn(&DiskOp) -> bool) {
        self.append(pg, kind).unwrap();
        self.run(&|o| !held(o));
        self.commit_all(pg);
        self.run(&|o| !held(o));
    }

    /// Where a page of this tag lies, the last of them.
    pub fn find_page(&self, tag: u32) -> u64 {
        let want = page_of(tag);
        let at = self.disk.durable.chunks(PAGE).rposition(|p| p == want);
        at.expect("the page is on the disk") as u64 * PAGE as u64
    }

    /// Where the superblock lies that counts: the one of the higher generation.
    pub fn newest_super(disk: &[u8]) -> u64 {
        let generation = |at: usize| u64::from_le_bytes(disk[at + 16..at + 24].try_into().unwrap());
        if generation(0) > generation(64 << 10) {
            0
        } else {
            64 << 10
        }
    }

    pub fn begin_read(&mut self, pg: PgId, extent: u32, offset: u32, len: u32) -> u64 {
        self.token += 1;
        self.store.read(self.token, pg, VtreeId(1), Layer(0), Extent(extent), offset, len);
        self.token
    }

    /// The answer to a read; there must be exactly one.
    pub fn answer(&mut self, token: u64) -> Result<ReadData, ReadError> {
        let mut found = Vec::new();
        self.events.retain(|e| match e {
            StoreEvent::ReadDone { token: t, result } if *t == token => {
                found.push(result.clone());
                false
            }
            _ => true,
        });
        assert_eq!(found.len(), 1, "answers to one read");
        found.remove(0)
    }

    pub fn read(
        &mut self,
        pg: PgId,
        extent: u32,
        offset: u32,
        len: u32,
    ) -> Result<Vec<u8>, ReadError> {
        let t = self.begin_read(pg, extent, offset, len);
        self.run_all();
        self.answer(t).map(|d| d.segments.concat())
    }

    /// Tags found in the pages of a range.
    pub fn pages(&mut self, pg: PgId, extent: u32, offset: u32, tags: &[u32]) {
        let want: Vec<u8> = tags.iter().flat_map(|t| page_of(*t)).collect();
        let got = self.read(pg, extent, offset, want.len() as u32);
        // By tag where they are small.
        let of = |p: &[u8]| (0..2000).find(|t| p == page_of(*t));
        let found = got.clone().map(|g| g.chunks(PAGE).map(of).collect::<Vec<_>>());
        assert!(got == Ok(want), "not the content of {tags:?}: {found:?}");
    }

    pub fn block(&mut self, pg: PgId, key: BlockKey) -> Result<Option<BlockCopy>, ReadError> {
        self.token += 1;
        self.store.read_block(self.token, pg, key);
        self.run_all();
        let t = self.token;
        let all = self.events.iter().filter_map(|e| match e {
            StoreEvent::BlockDone { token, result } if *token == t => Some(result.clone()),
            _ => None,
        });
        let mut all: Vec<_> = all.collect();
        assert_eq!(all.len(), 1, "answers to one read");
        all.remove(0)
    }
}

pub fn key(extent: u32, block: u8) -> BlockKey {
    BlockKey { vtree: VtreeId(1), layer: Layer(0), extent: Extent(extent), block }
}

pub fn write(extent: u32, offset: u32, tags: &[u32]) -> RecordKind {
    let data: Vec<u8> = tags.iter().flat_map(|t| page_of(*t)).collect();
    RecordKind::Write {
        vtree: VtreeId(1),
        layer: Layer(0),
        extent: Extent(extent),
        offset,
        crcs: data.chunks(PAGE).map(crc32c).collect(),
        data: data.into(),
    }
}

pub fn zero(extent: u32, offset: u32, len: u32) -> RecordKind {
    RecordKind::Zero { vtree: VtreeId(1), layer: Layer(0), extent: Extent(extent), offset, len }
}

pub fn copy_of(key: BlockKey, version: Version, valid: u16, tags: &[u32]) -> BlockCopy {
    let data: Vec<u8> = tags.iter().flat_map(|t| page_of(*t)).collect();
    let crcs: SmallVec<[u32; 16]> = data.chunks(PAGE).map(crc32c).collect();
    BlockCopy {
        key,
        version,
        part: BlockCopy::WHOLE,
        valid,
        dirty: 0xFFFF,
        crcs,
        data: Bytes::from(data),
    }
}

pub fn v(epoch: u64, seq: u64) -> Version {
    Version::new(Epoch(epoch), Seq(seq))
}

/// Sixteen tags from `first` on: a whole block.
pub fn whole(first: u32) -> Vec<u32> {
    (first..first + 16).collect()
}
