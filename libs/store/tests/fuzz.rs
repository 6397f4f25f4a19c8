//! Random bytes in every on-disk structure, with checksums made right again, so that what lies behind them is
//! reached: opening such a device ends in a store or in an error, never in a panic, and what opens can be read.
//!
//! `STORE_FUZZ_SECONDS=N` (20), `STORE_FUZZ_SEED=S` for one case. Cases that failed once are in `FOUND`, or have a test here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/golden.rs"]
mod golden;
#[path = "common/reseal.rs"]
mod reseal;

use common::rig::*;
use common::{Rng, SimDisk};
use quarry_base::*;
use quarry_store::*;
use reseal::{kind, Log, Rec, LOG_AT};
use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::{Duration, Instant};

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
        let some =
            BlockCopy { part: 0b111, dirty: 0b11, ..copy_of(key(1, 4), at, 0b11, &[t, t + 1]) };
        r.store.append_copy(PG, some).unwrap();
        r.run_all();
        let ids = r.store.ids_export(PG);
        r.store.ids_import(PG, ids).unwrap();
        r.put(PG, RecordKind::DropVtree { vtree: VtreeId(9) });
        r.store.append_copy(PG, copy_of(key(5, 1), at, 1, &[t + 63])).unwrap();
        r.store.drop_keys(PG, key(5, 0), key(6, 0), &[]).unwrap();
        r.store.put_meta(PG, format!("meta {t}").into_bytes().into()).unwrap();
        r.run_all();
        // More often than the others: all kinds of records are in its log.
        out.extend(vec![r.disk.durable.clone(); 3]);
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

/// What is changed on a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Target {
    Superblocks,
    Table,
    /// The other page of a table group.
    Checks,
    Header,
    Records,
    /// What records of this kind carry.
    Payload(u8),
}

/// Kinds of records that carry something in the log.
const CARRY: [u8; 7] = [
    kind::WRITE,
    kind::COPY,
    kind::COPY_PART,
    kind::DROP_BLOCKS,
    kind::META,
    kind::PG_CHECKPOINT,
    kind::IDS_IMPORT,
];

fn any_target(rng: &mut Rng) -> Target {
    match rng.below(12) {
        0 => Target::Superblocks,
        1 => Target::Table,
        2 => Target::Checks,
        3 => Target::Header,
        4..=6 => Target::Records,
        _ => Target::Payload(CARRY[rng.below(CARRY.len() as u64) as usize]),
    }
}

/// Damages one structure and, with `seal`, makes its checksums right again. Of the log: which of the batches that a
/// recovery reads was hit. `None`: there is nothing of this kind.
fn mutate(d: &mut [u8], rng: &mut Rng, target: Target, seal: bool) -> Option<usize> {
    let times = 1 + rng.below(3);
    match target {
        Target::Superblocks => {
            for at in [0, 65536] {
                let page = &mut d[at..at + 4096];
                (0..times).for_each(|_| disturb(&mut page[8..168], rng));
                if seal {
                    reseal::page(page, 12);
                }
            }
        }
        Target::Table | Target::Checks => {
            let other = usize::from(target == Target::Checks);
            let n = TABLE_AT + (rng.below(2) as usize * 2 + other) * 4096;
            let page = &mut d[n..n + 4096];
            // Seldom its head: with another generation it does not count.
            let from = if rng.one_in(4) { 8 } else { 64 };
            (0..times).for_each(|_| disturb(&mut page[from..64 + 64 * 8], rng));
            if seal {
                reseal::page(page, 4);
                reseal::digest(d, TABLE_AT, 1);
            }
        }
        Target::Header | Target::Records | Target::Payload(_) => {
            return mutate_log(&mut Log::of(d, LOG_BYTES), rng, target, seal, times);
        }
    }
    Some(0)
}

fn mutate_log(
    log: &mut Log<'_>,
    rng: &mut Rng,
    target: Target,
    seal: bool,
    times: u64,
) -> Option<usize> {
    let live = log.live();
    let of = |r: &Rec| matches!(target, Target::Payload(k) if k == r.kind);
    let carry = |i: &usize| log.records(live[*i]).iter().any(of);
    let any: Vec<usize> = match target {
        Target::Payload(_) => (0..live.len()).filter(carry).collect(),
        _ => (0..live.len()).collect(),
    };
    let i = *any.get(rng.below(any.len() as u64) as usize)?;
    let area = match target {
        Target::Header => live[i] + 16..live[i] + 128,
        Target::Records => live[i] + 128..log.descriptor(live[i]).end,
        _ => {
            let all: Vec<Rec> = log.records(live[i]).into_iter().filter(of).collect();
            log.meant(*all.get(rng.below(all.len() as u64) as usize)?)
        }
    };
    if area.len() < 8 {
        return None;
    }
    (0..times).for_each(|_| disturb(&mut log.bytes[area.clone()], rng));
    if seal {
        // A changed record has another key for what it carries; now and then that is left as it is.
        if target != Target::Header && !rng.one_in(8) {
            log.records(live[i]).into_iter().for_each(|r| log.seal_payload(r));
        }
        log.seal(&live[i..]);
    }
    Some(i)
}

/// Batches that a recovery takes from the log.
fn taken(image: &[u8]) -> usize {
    let log = image[LOG_AT..TABLE_AT].to_vec();
    let lines = inspect::log_lines(&image[..IDENT_BYTES], log.into(), &[]);
    lines.iter().filter(|l| l.starts_with("batch ")).count()
}

/// Did what was changed get past the checksums, to whoever reads it?
fn reached(image: &[u8], (target, at): (Target, usize), out: &Result<(), StoreError>) -> bool {
    let opens = !matches!(
        out,
        Err(StoreError::TableCorrupt { .. } | StoreError::SuperblockCorrupt)
            | Err(StoreError::Inconsistent("a table page is older than the checkpoint"))
    );
    match target {
        Target::Superblocks => read_ident(&image[..IDENT_BYTES]).is_ok_and(|i| i.is_some()),
        Target::Table | Target::Checks => opens,
        Target::Header | Target::Records => taken(image) > at,
        // Everything that is taken is replayed, or does not read.
        Target::Payload(_) => {
            let unread = StoreError::Inconsistent("a log record does not read");
            taken(image) > at && (out.is_ok() || *out == Err(unread))
        }
    }
}

/// Opens it; what opens is read, written to, flushed. How it opened.
fn exercise(cfg: StoreConfig, image: &[u8]) -> Result<(), StoreError> {
    let log = image[LOG_AT..LOG_AT + cfg.log_bytes as usize].to_vec();
    let mut r = Rig::on(cfg, SimDisk::of(image.to_vec()));
    read_ident(&image[..IDENT_BYTES]).ok();
    inspect::superblocks(&image[..IDENT_BYTES]);
    inspect::log_lines(&image[..IDENT_BYTES], log.into(), &[0, 4096, u64::MAX]);
    r.open_whatever(None)?;
    assert!(r.store.table_lines().count() < 200);
    for pg in r.store.pgs() {
        let s = r.store.pg_state(pg);
        r.store.scan(pg, BlockKey::MIN, 1000, None);
        r.store.meta(pg);
        r.store.ids_export(pg);
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
    Ok(())
}

/// The image of a seed, and what was changed last.
fn image(bases: &[Vec<u8>], seed: u64) -> (Vec<u8>, Option<(Target, usize)>) {
    let mut rng = Rng(seed);
    let mut d = bases[rng.below(bases.len() as u64) as usize].clone();
    let mut hit = None;
    for _ in 0..1 + rng.below(2) {
        let seal = !rng.one_in(10);
        // Not every device has something of every kind in its log.
        hit = (0..8).find_map(|_| {
            let target = any_target(&mut rng);
            Some((target, mutate(&mut d, &mut rng, target, seal)?))
        });
    }
    (d, hit)
}

/// How often each target was hit, and how often that got past the checksums.
type Counts = BTreeMap<Target, (u64, u64)>;

fn case(bases: &[Vec<u8>], seed: u64, counts: &mut Counts) -> Result<(), String> {
    let (d, hit) = image(bases, seed);
    let out = catch_unwind(AssertUnwindSafe(|| exercise(config(), &d)))
        .map_err(|_| format!("STORE_FUZZ_SEED={seed} panics"))?;
    if let Some(hit) = hit {
        let n = counts.entry(hit.0).or_default();
        *n = (n.0 + 1, n.1 + u64::from(reached(&d, hit, &out)));
    }
    Ok(())
}

#[test]
fn no_structure_on_disk_makes_the_store_panic() {
    let var = |n: &str| std::env::var(n).ok().and_then(|v| v.parse::<u64>().ok());
    let bases = bases();
    if let Some(seed) = var("STORE_FUZZ_SEED") {
        let (d, hit) = image(&bases, seed);
        eprintln!("{hit:?}");
        eprintln!("{:?}", exercise(config(), &d));
        return;
    }
    let mut counts = Counts::new();
    let mut bad: Vec<String> =
        FOUND.iter().filter_map(|s| case(&bases, *s, &mut counts).err()).collect();
    let end = Instant::now() + Duration::from_secs(var("STORE_FUZZ_SECONDS").unwrap_or(20));
    let first = var("STORE_FUZZ_FIRST").unwrap_or(0);
    let mut n = 0;
    while Instant::now() < end && bad.len() < 10 {
        bad.extend(case(&bases, first + n, &mut counts).err());
        n += 1;
    }
    eprintln!("{n} cases; hit, and past the checksums: {counts:?}");
    assert!(n > 0 && bad.is_empty(), "{}", bad.join("\n"));
}

/// A fuzzer whose bytes are all refused by a checksum shows nothing: it looked so for a while.
#[test]
fn every_reader_of_the_disk_meets_bytes_that_were_changed() {
    let bases = bases();
    for base in &bases {
        assert!(taken(base) >= 1, "a device with nothing in its log");
    }
    let fixed =
        [Target::Superblocks, Target::Table, Target::Checks, Target::Header, Target::Records];
    for target in fixed.into_iter().chain(CARRY.map(Target::Payload)) {
        let (mut rng, mut hit, mut past) = (Rng(5), 0, 0);
        for d in bases.iter().cycle().take(6 * bases.len()) {
            let mut d = d.clone();
            let Some(at) = mutate(&mut d, &mut rng, target, true) else { continue };
            let out = exercise(config(), &d);
            hit += 1;
            past += u32::from(reached(&d, (target, at), &out));
        }
        eprintln!("{target:?}: {past} of {hit}");
        // Most changes of a header, of sizes and of what the superblock counts are seen by others.
        let least = if matches!(target, Target::Payload(_)) { hit / 2 } else { hit / 10 };
        assert!(past > least, "{target:?}: only {past} of {hit} get past the checksums");
    }
}

/// Nobody writes an intent of a whole block: nothing would be left to say what was there before. Found by this fuzzer once.
#[test]
fn an_intent_of_a_whole_block_is_no_record() {
    let mut found = 0;
    for base in bases() {
        let mut d = base.clone();
        let live = Log::of(&mut d, LOG_BYTES).live();
        for (i, at) in live.iter().enumerate() {
            let mut d = base.clone();
            let mut log = Log::of(&mut d, LOG_BYTES);
            let intents: Vec<Rec> =
                log.records(*at).into_iter().filter(|r| r.kind == kind::INTENT).collect();
            let Some(r) = intents.first() else { continue };
            // The parts that it is about.
            log.bytes[r.at + 100..r.at + 102].fill(0xFF);
            log.seal(&live[i..]);
            assert_eq!(taken(&d), i, "it is taken for a record");
            exercise(config(), &d).ok();
            found += 1;
        }
    }
    assert!(found >= 3, "{found} devices with an intent");
}

/// A device with golden bytes, and where which of them are.
type Grafted = (Vec<u8>, Vec<(&'static str, usize)>);

/// The golden bytes, each where it was on a device, in place of what this program wrote there.
fn golden_devices() -> [Grafted; 2] {
    let page = |d: &[u8], at: usize| {
        let pos = u64::from_le_bytes(d[at + 40..at + 48].try_into().unwrap());
        golden::LOG + pos as usize % (golden::TABLE - golden::LOG)
    };
    let graft = |d: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        d[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let read = |name: &'static str| std::fs::read(golden::path(name)).unwrap();
    let mut r = Rig::new(small_config());
    golden::history(&mut r);
    let mut opened = r.disk.durable.clone();
    opened[..golden::LOG + 4 * 4096].fill(0);
    graft(&mut opened, 0, &read("superblock-opened"));
    graft(&mut opened, golden::LOG, &read("log-batch"));
    golden::rest(&mut r);
    golden::intent_pages(&mut r);
    let mut settled = r.disk.durable.clone();
    settled[..golden::LOG].fill(0);
    settled[golden::TABLE..golden::TABLE + 16384].fill(0);
    graft(&mut settled, 65536, &read("superblock-checkpointed"));
    graft(&mut settled, golden::TABLE, &read("table-group"));
    let intents = read("log-intent");
    let mut places = vec![("superblock-checkpointed", 65536), ("table-group", golden::TABLE)];
    for piece in intents.chunks(4096) {
        let at = page(piece, 0);
        settled[at..at + 4096].fill(0);
        graft(&mut settled, at, piece);
        places.push(("log-intent", at));
    }
    [(opened, vec![("superblock-opened", 0), ("log-batch", golden::LOG)]), (settled, places)]
}

#[test]
fn the_corpus_of_golden_bytes_opens_and_survives_damage() {
    let [(opened, _), (settled, _)] = &golden_devices();
    let open = |d: &[u8]| {
        let mut r = Rig::on(small_config(), SimDisk::of(d.to_vec()));
        r.open_whatever(None).map(|()| r)
    };
    let r = open(opened).expect("superblock and log batch are read");
    assert_eq!(r.store.meta(PG).as_deref(), Some(&b"meta"[..]));
    assert_eq!(r.store.pg_state(PG).last.seq, Seq(5));
    let mut r = open(settled).expect("superblock, table group and intents are read");
    assert!(r.store.table_lines().count() >= 2);
    r.pages(PG, 0, 65536, &whole(2)[..1]);
    r.pages(PG, 0, 65536 + 4096, &[40]);
    for (d, places) in golden_devices() {
        for (name, place) in places {
            for cut in [0, 1, 7, 8, 12, 16, 24, 40, 64, 68, 100, 128, 132, 136, 200, 232, 300, 4095]
            {
                let mut d = d.clone();
                d[place + cut] ^= 0x40;
                exercise(small_config(), &d).ok();
                let seal = if name == "table-group" { 4 } else { 12 };
                reseal::page(&mut d[place..place + 4096], seal);
                if name == "table-group" {
                    reseal::digest(&mut d, golden::TABLE, 3);
                }
                exercise(small_config(), &d).ok();
            }
        }
    }
}
