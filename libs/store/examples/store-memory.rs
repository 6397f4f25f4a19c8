//! What a full device costs in memory, and how long it takes to open: `store-memory [GIB]` (16).
//!
//! The device is a stand-in that keeps superblocks, log and table and forgets the data, so that a device of any size
//! fits here. It is filled with whole blocks, killed, and opened again; then a log as full as it gets is opened.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/common/standin.rs"]
mod standin;

use quarry_base::*;
use quarry_store::*;
use standin::Disk;
use std::time::Instant;

/// Resident bytes of this process without the disk's pages.
fn resident(d: &Disk) -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    (pages * PAGE as u64).saturating_sub(d.pages.len() as u64 * (PAGE as u64 + 64))
}

fn main() {
    let gib: u64 = std::env::args().nth(1).map_or(16, |a| a.parse().expect("GiB"));
    let cfg = StoreConfig { device_bytes: gib << 30, ..StoreConfig::default() };
    let mut disk = Disk::new(&cfg);
    let mut s = Store::open(cfg.clone(), None);
    let mut events = Vec::new();
    disk.run(&mut s, &mut events, false);
    let before = resident(&disk);
    let content = PageBuf::zeroed(EXTENT as usize).freeze();
    let crcs: smallvec::SmallVec<[u32; 1]> = content.chunks(PAGE).map(crc32c).collect();
    let mut n = 0u64;
    while !s.headroom().full {
        let pg = PgId::new(PoolId(1), (n % 64) as u32);
        let seq = Seq(s.pg_state(pg).last.seq.0 + 1);
        let kind = RecordKind::Write {
            vtree: VtreeId(1),
            layer: Layer(0),
            extent: Extent(n as u32),
            offset: 0,
            crcs: crcs.clone(),
            data: content.clone(),
        };
        let version = Version::new(Epoch(1), seq);
        match s.append(pg, Record { version, origin: Origin::default(), kind }) {
            Ok(_) => n += 1,
            Err(AppendError::LogFull) => {}
            Err(e) => panic!("{e}"),
        }
        disk.run(&mut s, &mut events, false);
        s.set_commit(pg, seq.min(s.pg_state(pg).stable.seq));
        events.clear();
    }
    s.flush_all();
    disk.run(&mut s, &mut events, false);
    let show = |what: &str, bytes: u64, blocks: u64| {
        println!(
            "{what}: {:.1} MiB resident, {:.1} bytes a block, {:.2} GiB a TiB",
            bytes as f64 / 1048576.0,
            bytes as f64 / blocks as f64,
            bytes as f64 / blocks as f64 * 16.0 / 1024.0
        );
    };
    let blocks = s.stats().used_bytes / u64::from(BLOCK);
    println!("{blocks} blocks of a device of {gib} GiB in use");
    show("filled", resident(&disk) - before, blocks);
    show("of that, the block table by its own account", s.table_memory(), blocks);
    let st = s.stats();
    println!(
        "of that, cached checksums: {:.1} MiB, limit {:.1} MiB",
        st.check_cache_bytes as f64 / 1048576.0,
        st.check_cache_limit as f64 / 1048576.0
    );
    drop(s);
    let s = opened(&cfg, &mut disk, "after a clean end");
    assert_eq!(s.stats().used_bytes / u64::from(BLOCK), blocks);
    full_log(&cfg, &mut disk, s);
}

fn opened(cfg: &StoreConfig, disk: &mut Disk, what: &str) -> Store {
    let start = Instant::now();
    let mut s = Store::open(cfg.clone(), None);
    disk.run(&mut s, &mut Vec::new(), true);
    let st = s.stats();
    println!(
        "opened {what} in {:.2} s (log {} MiB, {} MiB of it in use, {} pages in memory)",
        start.elapsed().as_secs_f64(),
        st.log_bytes >> 20,
        st.log_used_bytes >> 20,
        st.dirty_pages
    );
    s
}

/// Single pages until the log takes no more, none of them destaged; then the process is killed.
fn full_log(cfg: &StoreConfig, disk: &mut Disk, s: Store) {
    drop(s);
    let lazy = StoreConfig { destage_start: 1 << 20, ..cfg.clone() };
    let mut s = Store::open(lazy, None);
    let (mut events, mut ops) = (Vec::new(), Vec::new());
    disk.run(&mut s, &mut events, false);
    let data = PageBuf::zeroed(PAGE).freeze();
    let pg = PgId::new(PoolId(1), 1);
    let crcs: smallvec::SmallVec<[u32; 1]> = data.chunks(PAGE).map(crc32c).collect();
    let mut n = 0u32;
    loop {
        let last = s.pg_state(pg).last;
        let kind = RecordKind::Write {
            vtree: VtreeId(1),
            layer: Layer(0),
            extent: Extent(1 + 64 * (n / 256 % 64)),
            offset: n % 256 * PAGE as u32,
            crcs: crcs.clone(),
            data: data.clone(),
        };
        let version = Version::new(Epoch(1), Seq(last.seq.0 + 1));
        if s.append(pg, Record { version, origin: Origin::default(), kind }).is_err() {
            break;
        }
        n += 1;
        if n.is_multiple_of(16) {
            disk.run(&mut s, &mut events, false);
            events.clear();
            let stable = s.pg_state(pg).stable.seq;
            s.set_commit(pg, stable);
        }
    }
    s.poll(Nanos(1), &mut ops, &mut events);
    drop(s);
    opened(cfg, disk, "after a kill with a full log");
}
