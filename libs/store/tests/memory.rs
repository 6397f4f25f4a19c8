//! What the block table takes in memory, by its own account: 0.4 GiB for a full TiB are 25.6 bytes a block.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/standin.rs"]
mod standin;

use bytes::Bytes;
use quarry_base::*;
use quarry_store::*;
use standin::Disk;

const GROUPS: u32 = 64;
/// 0.4 GiB a TiB in tenths of a byte for each block of 64 KiB.
const LIMIT: u64 = 256;

struct Rig {
    cfg: StoreConfig,
    disk: Disk,
    s: Store,
    epoch: u64,
}

impl Rig {
    fn new(gib: u64) -> Rig {
        let cfg = StoreConfig { device_bytes: gib << 30, ..StoreConfig::default() };
        let disk = Disk::new(&cfg);
        let mut r = Rig { s: Store::open(cfg.clone(), None), cfg, disk, epoch: 1 };
        r.run();
        r
    }

    fn run(&mut self) {
        let mut events = Vec::new();
        self.disk.run(&mut self.s, &mut events, false);
        assert!(!events.iter().any(|e| matches!(e, StoreEvent::OpenFailed(_))), "{events:?}");
    }

    fn kill(&mut self) {
        self.s = Store::open(self.cfg.clone(), None);
        // The data is forgotten, so nobody looks at it: no scrub, and all direct writes below the sync mark.
        self.run();
    }

    fn flush(&mut self) {
        self.s.flush_all();
        self.run();
    }

    fn write(&mut self, extent: u32, offset: u32, data: &Bytes) {
        let pg = PgId::new(PoolId(1), extent % GROUPS);
        let crcs: smallvec::SmallVec<[u32; 1]> = data.chunks(PAGE).map(crc32c).collect();
        for _ in 0..3 {
            let seq = Seq(self.s.pg_state(pg).last.seq.0 + 1);
            let kind = RecordKind::Write {
                vtree: VtreeId(1),
                layer: Layer(0),
                extent: Extent(extent),
                offset,
                crcs: crcs.clone(),
                data: data.clone(),
            };
            let version = Version::new(Epoch(self.epoch), seq);
            let r = self.s.append(pg, Record { version, origin: Origin::default(), kind });
            self.run();
            self.s.set_commit(pg, seq.min(self.s.pg_state(pg).stable.seq));
            if r.is_ok() {
                return;
            }
            self.flush();
        }
        panic!("no room for a record");
    }

    /// Tenths of a byte for each block in use.
    fn each(&self) -> u64 {
        self.s.check_invariants().unwrap();
        let blocks = self.s.stats().used_bytes / u64::from(BLOCK);
        self.s.table_memory() * 10 / blocks
    }
}

fn full_of_extents(gib: u64) -> Rig {
    let mut r = Rig::new(gib);
    let extent = PageBuf::zeroed(EXTENT as usize).freeze();
    let mut n = 0;
    while !r.s.headroom().full {
        r.write(n, 0, &extent);
        n += 1;
    }
    r.flush();
    r
}

#[test]
fn a_full_device_costs_less_than_two_fifths_of_a_gib_a_tib() {
    let mut r = full_of_extents(2);
    let first = r.each();
    println!("filled: {first} tenths of a byte a block");
    assert!(first <= LIMIT, "{first} tenths of a byte a block, filled");
    // Small writes all over the device, under one epoch after another: each makes its block hot for a while.
    let page = PageBuf::zeroed(PAGE).freeze();
    for n in 0..8000u32 {
        r.epoch += u64::from(n % 100 == 0);
        r.write(n * 7 % 1700, n % 256 * PAGE as u32, &page);
    }
    r.flush();
    let then = r.each();
    println!("small writes: {then}");
    assert!(then <= LIMIT, "{then} tenths of a byte a block after small writes");
    r.kill();
    let after = r.each();
    println!("recovered: {after}");
    assert!(after <= LIMIT, "{after} tenths of a byte a block after a recovery");
}

/// The worst there is: no two blocks share an extent. What docs/DISK-FORMAT.md says of it.
#[test]
fn a_block_alone_in_its_extent_costs_no_more_than_is_said() {
    let mut r = Rig::new(2);
    let block = PageBuf::zeroed(BLOCK as usize).freeze();
    for n in 0..20_000 {
        r.write(n, n % 16 * BLOCK, &block);
    }
    r.flush();
    let each = r.each();
    println!("alone in its extent: {each}");
    assert!(each <= 1250, "{each} tenths of a byte a block");
}
