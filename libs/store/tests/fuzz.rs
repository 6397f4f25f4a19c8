//! Random bytes in every on-disk structure, with checksums made right again, so that what lies behind them is
//! reached: opening such a device ends in a store or in an error, never in a panic, and what opens can be read.
//!
//! `STORE_FUZZ_SECONDS=N` (5), `STORE_FUZZ_SEED=S` for one case. Cases that failed once are in `FOUND`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::rig::*;
use common::{Rng, SimDisk};
use quarry_base::*;
use quarry_store::*;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::{Duration, Instant};

const LOG_AT: usize = 128 << 10;
const LOG_BYTES: usize = 256 << 10;
const TABLE_AT: usize = LOG_AT + LOG_BYTES;

/// Seeds on which something went wrong once.
const FOUND: [u64; 0] = [];

fn config() -> StoreConfig {
    StoreConfig {
        device_bytes: 3 << 20,
        log_bytes: LOG_BYTES as u64,
        max_batch_bytes: 32 << 10,
        ..StoreConfig::default()
    }
}

/// Devices with something in every structure: destaged, in the log, uncommitted, dropped, copied.
fn bases() -> Vec<Vec<u8>> {
    let mut r = Rig::new(config());
    let mut out = Vec::new();
    for round in 0..3u32 {
        let t = round * 100;
        r.store.put_meta(PG, b"meta".to_vec().into()).unwrap();
        r.put(PG, write(0, 4096, &[t + 1, t + 2]));
        r.put(PG, write(0, 65536 * 2, &whole(t + 3)));
        r.put(PG, zero(0, 4096, 8192));
        r.put(PG, write(1, 0, &whole(t + 30)));
        r.put(PG, zero(1, 0, 65536));
        let at = r.store.pg_state(PG).commit_version;
        r.store.append_copy(PG, copy_of(key(1, 2), at, 0b101, &[t + 60, t + 61])).unwrap();
        r.store.append_copy(PG, copy_of(key(1, 3), at, 0xFFFF, &whole(t + 62))).unwrap();
        r.run_all();
        let ids = r.store.ids_export(PG);
        r.store.ids_import(PG, ids).unwrap();
        r.put(PG, RecordKind::DropVtree { vtree: VtreeId(9) });
        r.store.drop_keys(PG, key(5, 0), key(6, 0), &[]).unwrap();
        r.run_all();
        out.push(r.disk.durable.clone());
        r.flush();
        out.push(r.disk.durable.clone());
        // Parts of a block that go straight to their pages: there, and on their way.
        let parts = |at, tags: &[u32]| {
            let c = copy_of(key(1, 3), at, 0b1010, tags);
            BlockCopy { part: 0b1110, dirty: 0b1110, ..c }
        };
        let at = r.store.pg_state(PG).commit_version;
        let there = r.store.place_copy(PG, parts(at, &[t + 90, t + 91]));
        assert!(matches!(there, Ok(Appended::Intent(_))));
        r.run_all();
        out.push(r.disk.durable.clone());
        r.put(PG, write(0, 65536 * 6, &[t + 92]));
        let at = r.store.pg_state(PG).commit_version;
        r.store.place_copy(PG, parts(at, &[t + 93, t + 94])).unwrap();
        r.run(&|o| !matches!(o, DiskOp::Write { offset, .. } if *offset as usize >= TABLE_AT));
        out.push(r.disk.durable.clone());
        r.run_all();
        r.append(PG, write(0, 65536 * 3, &whole(t + 80))).unwrap();
        r.append(PG, write(0, 0, &[t + 99])).unwrap();
        r.run_all();
        out.push(r.disk.durable.clone());
        r.power_loss();
        assert_eq!(r.reopen(), Ok(()));
        let last = r.store.pg_state(PG).last.seq;
        r.store.set_commit(PG, last);
    }
    out
}

fn sealed(page: &mut [u8], at: usize) {
    let mut mix = [0u8; 16];
    mix[..4].copy_from_slice(&crc32c(&page[..at]).to_le_bytes());
    mix[4..8].copy_from_slice(&crc32c(&page[at + 4..]).to_le_bytes());
    mix[8..].copy_from_slice(&(page.len() as u64).to_le_bytes());
    page[at..at + 4].copy_from_slice(&crc32c(&mix).to_le_bytes());
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

/// Changes an integer somewhere in `area`: any value, one near the old, or one at a limit.
fn disturb(area: &mut [u8], rng: &mut Rng) {
    let width = [1, 2, 4, 8][rng.below(4) as usize];
    let at = rng.below((area.len() / width) as u64) as usize * width;
    let mut old = [0u8; 8];
    old[..width].copy_from_slice(&area[at..at + width]);
    let old = u64::from_le_bytes(old);
    let new = match rng.below(6) {
        0 => rng.next(),
        1 => old.wrapping_add(1 + rng.below(3)),
        2 => old.wrapping_sub(1 + rng.below(3)),
        3 => 0,
        4 => u64::MAX,
        _ => old ^ 1 << rng.below(8 * width as u64),
    };
    area[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
}

/// Damages one structure and makes its checksum right again, mostly.
fn mutate(d: &mut [u8], rng: &mut Rng) {
    let seal = !rng.one_in(10);
    let times = 1 + rng.below(3);
    match rng.below(8) {
        0 => {
            for at in [0, 65536] {
                let page = &mut d[at..at + 4096];
                (0..times).for_each(|_| disturb(&mut page[8..168], rng));
                if seal {
                    sealed(page, 12);
                }
            }
        }
        1 | 2 => {
            let n = TABLE_AT + rng.below(4) as usize * 4096;
            let page = &mut d[n..n + 4096];
            (0..times).for_each(|_| disturb(&mut page[8..64 + 64 * 8], rng));
            if seal {
                sealed(page, 4);
            }
        }
        _ => {
            // A batch of the log: its header, its records, or the payload of a blob.
            let log = &mut d[LOG_AT..TABLE_AT];
            let starts: Vec<usize> = (0..LOG_BYTES)
                .step_by(4096)
                .filter(|at| log[*at..].starts_with(b"QRYLOG01"))
                .collect();
            if starts.is_empty() {
                return;
            }
            let at = starts[rng.below(starts.len() as u64) as usize];
            let bytes = u32_at(log, at + 8) as usize;
            let pages = bytes.next_multiple_of(4096);
            // Mutated once already, perhaps.
            if at + pages + 4096 > log.len() || bytes < 128 + 8 {
                return;
            }
            let payload = rng.one_in(3);
            if payload {
                let p = &mut log[at + pages..at + pages + 256];
                (0..times).for_each(|_| disturb(p, rng));
                // The first record's first checksum, wherever it is that of this page.
                let crc = crc32c(&log[at + pages..at + pages + 4096]);
                log[at + 128 + 128..at + 128 + 132].copy_from_slice(&crc.to_le_bytes());
            } else {
                let from = if rng.one_in(3) { 16 } else { 128 };
                (0..times).for_each(|_| disturb(&mut log[at + from..at + bytes], rng));
            }
            if seal {
                sealed(&mut log[at..at + pages], 12);
            }
        }
    }
}

/// Opens it; what opens is read, written to, flushed.
fn exercise(image: &[u8]) {
    let cfg = config();
    let mut r = Rig::on(cfg.clone(), SimDisk::of(image.to_vec()));
    read_ident(&image[..IDENT_BYTES]).ok();
    inspect::superblocks(&image[..IDENT_BYTES]);
    let log = image[LOG_AT..TABLE_AT].to_vec();
    inspect::log_lines(&image[..IDENT_BYTES], log.into(), &[0, 4096, u64::MAX]);
    if r.open_whatever(None).is_err() {
        return;
    }
    assert!(r.store.table_lines().count() < 100);
    for pg in r.store.pgs() {
        let s = r.store.pg_state(pg);
        r.store.scan(pg, BlockKey::MIN, 1000, None);
        r.store.meta(pg);
        if s.last.seq > s.commit {
            r.store.set_commit(pg, s.last.seq);
        }
    }
    r.run_all();
    r.read(PG, 0, 0, EXTENT).ok();
    if r.store.failed().is_none() && r.append(PG, write(0, 0, &[7])).is_ok() {
        r.run_all();
    }
    r.store.flush_all();
    r.run_all();
}

fn case(bases: &[Vec<u8>], seed: u64) -> Result<(), String> {
    let mut rng = Rng(seed);
    let mut d = bases[rng.below(bases.len() as u64) as usize].clone();
    for _ in 0..1 + rng.below(2) {
        mutate(&mut d, &mut rng);
    }
    catch_unwind(AssertUnwindSafe(|| exercise(&d)))
        .map_err(|_| format!("STORE_FUZZ_SEED={seed} panics"))
}

#[test]
fn no_structure_on_disk_makes_the_store_panic() {
    let var = |n: &str| std::env::var(n).ok().and_then(|v| v.parse::<u64>().ok());
    let bases = bases();
    if let Some(seed) = var("STORE_FUZZ_SEED") {
        let mut rng = Rng(seed);
        let mut d = bases[rng.below(bases.len() as u64) as usize].clone();
        (0..1 + rng.below(2)).for_each(|_| mutate(&mut d, &mut rng));
        return exercise(&d);
    }
    let mut bad: Vec<String> = FOUND.iter().filter_map(|s| case(&bases, *s).err()).collect();
    let end = Instant::now() + Duration::from_secs(var("STORE_FUZZ_SECONDS").unwrap_or(5));
    let first = var("STORE_FUZZ_FIRST").unwrap_or(0);
    let mut n = 0;
    while Instant::now() < end && bad.len() < 10 {
        bad.extend(case(&bases, first + n).err());
        n += 1;
    }
    eprintln!("{n} cases");
    assert!(n > 0 && bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn the_corpus_of_golden_bytes_reads() {
    let dir = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut n = 0;
    for f in std::fs::read_dir(dir).unwrap() {
        let mut bytes = std::fs::read(f.unwrap().path()).unwrap();
        bytes.resize(IDENT_BYTES, 0);
        for cut in [0, 1, 7, 8, 12, 16, 100, 4095, 4096] {
            let mut b = bytes.clone();
            b[cut.min(4095)] ^= 0x40;
            read_ident(&b).ok();
        }
        n += 1;
    }
    assert!(n >= 4);
}
