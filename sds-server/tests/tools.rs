//! `sds-server check`, `dump`, `inspect` and `format`: what they find, and that they are safe on the wrong thing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::*;
use quarry_base::*;
use quarry_store::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const BYTES: u64 = 128 << 20;
const LOG_AT: u64 = 128 << 10;
const LOG_BYTES: u64 = 32 << 20;
const TABLE_AT: u64 = LOG_AT + LOG_BYTES;

fn cfg() -> StoreConfig {
    StoreConfig { device_bytes: BYTES, ..StoreConfig::default() }
}

/// Carries out what the store wants on a file, one after another.
fn settle(s: &mut Store, f: &File) -> Vec<StoreEvent> {
    let (mut ops, mut events) = (Vec::new(), Vec::new());
    loop {
        s.poll(Nanos(1), &mut ops, &mut events);
        if ops.is_empty() {
            return events;
        }
        for op in ops.drain(..) {
            let id = op.id();
            let r = match op {
                DiskOp::Read { offset, len, .. } => {
                    let mut b = PageBuf::zeroed(len);
                    f.read_exact_at(&mut b, offset).unwrap();
                    DiskResult::Read(Ok(b))
                }
                DiskOp::Write { mut offset, data, .. } => {
                    for d in data {
                        f.write_all_at(&d, offset).unwrap();
                        offset += d.len() as u64;
                    }
                    DiskResult::Done(Ok(()))
                }
                _ => DiskResult::Done(Ok(())),
            };
            s.complete(Nanos(1), id, r);
        }
    }
}

fn write(s: &mut Store, seq: u64, offset: u32, fill: u8, pages: usize) {
    let data = Bytes::from(vec![fill; pages * PAGE]);
    let kind = RecordKind::Write {
        vtree: VtreeId(1),
        layer: Layer(0),
        extent: Extent(0),
        offset,
        crcs: data.chunks(PAGE).map(crc32c).collect(),
        data,
    };
    let version = Version::new(Epoch(1), Seq(seq));
    s.append(PgId(1), Record { version, origin: Origin::default(), kind }).unwrap();
}

/// A device with blocks in their places and records in the log.
fn device(dir: &Dir, name: &str) -> PathBuf {
    let path = dir.0.join(name);
    let f = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    f.set_len(BYTES).unwrap();
    let ident = DeviceIdent { cluster: [7; 16], device_uuid: [3; 16], device: DeviceId(4) };
    for step in quarry_store::format(&cfg(), ident).unwrap() {
        if let FormatStep::Write { offset, data } = step {
            f.write_all_at(&data, offset).unwrap();
        }
    }
    let mut s = Store::open(cfg(), None);
    settle(&mut s, &f);
    write(&mut s, 1, 0, 0xA1, 16);
    write(&mut s, 2, 65536, 0xA2, 2);
    settle(&mut s, &f);
    s.set_commit(PgId(1), Seq(2));
    s.flush_all();
    settle(&mut s, &f);
    for i in 0..3u8 {
        write(&mut s, 3 + u64::from(i), 0, 0xB0 + i, 1);
        settle(&mut s, &f);
    }
    path
}

fn tool(args: &[&str], path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sds-server")).args(args).arg(path).output().unwrap()
}

fn text(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

/// Flips a bit of the last byte that is not zero in a range.
fn rot(path: &Path, from: u64, len: usize) {
    let f = File::options().read(true).write(true).open(path).unwrap();
    let mut b = vec![0; len];
    f.read_exact_at(&mut b, from).unwrap();
    let at = b.iter().rposition(|x| *x != 0).expect("something is there");
    f.write_all_at(&[b[at] ^ 4], from + at as u64).unwrap();
}

/// Where a page of this content lies.
fn find(path: &Path, fill: u8, from: u64) -> u64 {
    let all = std::fs::read(path).unwrap();
    let page = all[from as usize..].chunks(PAGE).position(|p| p.iter().all(|b| *b == fill));
    from + page.expect("the page is there") as u64 * PAGE as u64
}

#[test]
fn a_sound_device_is_clean_and_is_not_written_to() {
    let d = Dir::new("tools-clean");
    let p = device(&d, "dev");
    let before = std::fs::read(&p).unwrap();
    for args in [
        &["check"][..],
        &["inspect"],
        &["dump"],
        &["dump", "--part", "log"],
        &["dump", "--part", "table"],
    ] {
        let o = tool(args, &p);
        assert_eq!(o.status.code(), Some(0), "{args:?}: {}", text(&o));
        assert!(std::fs::read(&p).unwrap() == before, "{args:?} wrote");
    }
    assert!(text(&tool(&["check"], &p)).contains("clean"));
    let log = text(&tool(&["dump", "--part", "log"], &p));
    assert!(log.contains("Write") && log.contains("whole"), "{log}");
    let table = text(&tool(&["dump", "--part", "table"], &p));
    assert!(table.contains("valid ffff") && table.contains("valid 0003"), "{table}");
    assert!(
        text(&tool(&["dump"], &p)).contains("superblock at 64 KiB\n  format version 3, generation")
    );
}

#[test]
fn planted_damage_of_each_structure_is_found() {
    let d = Dir::new("tools-damage");
    let good = device(&d, "good");
    let newest = |p: &Path| {
        let all = std::fs::read(p).unwrap();
        let gen = |at: u64| {
            u64::from_le_bytes(all[at as usize + 16..at as usize + 24].try_into().unwrap())
        };
        if gen(TABLE_AT) > gen(TABLE_AT + 8192) {
            TABLE_AT
        } else {
            TABLE_AT + 8192
        }
    };
    let table = newest(&good);
    let block = find(&good, 0xA2, TABLE_AT);
    let logged = find(&good, 0xB0, LOG_AT);
    let cases: [(&str, u64, usize, &str); 6] = [
        ("super-a", 0, 144, "superblock at 0: damaged"),
        ("super-b", 65536, 144, "superblock at 64 KiB: damaged"),
        ("log", logged, PAGE, "it does not open: the log is damaged"),
        ("table", table, PAGE, "it does not open"),
        ("crc-page", table + 4096, PAGE, "it does not open"),
        ("block", block, PAGE, "do not match their checksums"),
    ];
    for (name, at, len, says) in cases {
        let p = d.0.join(name);
        std::fs::copy(&good, &p).unwrap();
        rot(&p, at, len);
        let o = tool(&["check"], &p);
        assert_eq!(o.status.code(), Some(3), "{name}: {}", text(&o));
        assert!(text(&o).contains(says), "{name}: {}", text(&o));
        std::fs::remove_file(&p).unwrap();
    }
}

#[test]
fn repair_writes_a_damaged_superblock_anew() {
    let d = Dir::new("tools-repair");
    let p = device(&d, "dev");
    rot(&p, 0, 144);
    let before = text(&tool(&["check"], &p));
    assert!(before.contains("DAMAGED"), "{before}");
    let o = tool(&["check", "--repair"], &p);
    assert!(text(&o).contains("written anew"), "{}", text(&o));
    let o = tool(&["check"], &p);
    assert_eq!(o.status.code(), Some(0), "{}", text(&o));
    // Everything that was in the log is there; what was not committed still is not.
    assert!(
        text(&tool(&["dump", "--part", "table"], &p)).contains("version (1,1)"),
        "{}",
        text(&tool(&["dump", "--part", "table"], &p))
    );
}

#[test]
fn what_lies_behind_a_zeroed_start_is_never_taken_for_blank() {
    let d = Dir::new("tools-zeroed");
    let sparse = |name: &str| {
        let path = d.0.join(name);
        let f = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        f.set_len(BYTES + 512).unwrap();
        (path, f)
    };
    let refused = |p: &Path, says: &[&str]| {
        let before = std::fs::read(p).unwrap();
        for args in [&["format"][..], &["inspect"], &["check"], &["check", "--repair"], &["dump"]] {
            let o = tool(args, p);
            let said = text(&o);
            assert_eq!(o.status.code(), Some(1), "{args:?}: {said}");
            assert!(says.iter().all(|s| said.contains(s)), "{args:?}: {said}");
            assert!(said.contains("sds-server format --force"), "{args:?}: {said}");
        }
        assert!(std::fs::read(p).unwrap() == before);
    };
    // Zeroes over a Quarry device: as far as its superblocks, and as far as its log.
    let p = device(&d, "dd");
    let f = File::options().write(true).open(&p).unwrap();
    f.write_all_at(&[0; LOG_AT as usize], 0).unwrap();
    refused(&p, &["was a Quarry device", "a piece of the log lies 131072 bytes"]);
    // Its start copied to where it does not belong.
    let (p, f) = sparse("moved");
    let magic = std::fs::read(device(&d, "good")).unwrap();
    f.write_all_at(&magic[..PAGE], 256 << 10).unwrap();
    f.write_all_at(b"before it", 200 << 10).unwrap();
    refused(&p, &["was a Quarry device", "a superblock lies 262144 bytes"]);
    // What others keep behind a start of zeroes, and at the end.
    for at in [70_000, (1 << 20) - 1, BYTES - (1 << 20), BYTES - 1] {
        let (p, f) = sparse(&format!("other-{at}"));
        f.write_all_at(b"!", at).unwrap();
        refused(&p, &["is not blank", &format!("something {at} bytes from its start")]);
        assert_eq!(tool(&["format", "--force"], &p).status.code(), Some(0));
        assert!(text(&tool(&["format"], &p)).contains("is blank already"));
        std::fs::remove_file(&p).unwrap();
    }
    let (p, _) = sparse("new");
    assert!(text(&tool(&["inspect"], &p)).contains("blank, 128"));
}

#[test]
fn the_tools_refuse_what_is_not_theirs() {
    let d = Dir::new("tools-wrong");
    let p = device(&d, "dev");
    let all = [&["check"][..], &["check", "--repair"], &["dump"], &["dump", "--part", "log"]];
    let refused = |p: &Path, says: &str| {
        let before = std::fs::read(p).ok();
        for args in all {
            let o = tool(args, p);
            assert_eq!(o.status.code(), Some(1), "{args:?}: {}", text(&o));
            assert!(text(&o).contains(says), "{args:?}: {}", text(&o));
        }
        assert!(std::fs::read(p).ok() == before);
    };
    // A foreign file, a blank one, a newer format, a directory, a file cut short.
    let foreign = d.0.join("foreign");
    std::fs::write(&foreign, vec![7u8; 1 << 20]).unwrap();
    refused(&foreign, "not a Quarry device");
    let blank = d.0.join("blank");
    File::create(&blank).unwrap().set_len(BYTES).unwrap();
    refused(&blank, "is blank");
    refused(&d.0, "is a directory");
    let short = d.0.join("short");
    std::fs::copy(&p, &short).unwrap();
    File::options().write(true).open(&short).unwrap().set_len(BYTES / 2).unwrap();
    refused(&short, "restore its size");
    // What is opened for its other end to come, or begins to work when it is opened.
    let fifo = d.0.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let tools = all.into_iter().chain([&["inspect"][..], &["format", "--force"]]);
    for args in tools {
        for p in [fifo.as_path(), Path::new("/dev/null")] {
            let program = env!("CARGO_BIN_EXE_sds-server");
            let mut waits = Command::new("timeout");
            let o = waits.args(["10", program]).args(args).arg(p).output().unwrap();
            assert_eq!(o.status.code(), Some(1), "{args:?} {}: {}", p.display(), text(&o));
            assert!(text(&o).contains("neither a regular file nor a block device"), "{}", text(&o));
        }
    }
    // A device in use: its lock.
    let f = File::options().read(true).write(true).open(&p).unwrap();
    rustix::fs::flock(&f, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    refused(&p, "in use");
    for args in [&["inspect"][..], &["format", "--force"]] {
        assert_eq!(tool(args, &p).status.code(), Some(1));
    }
    drop(f);
    // Another cluster's is shown, and is not formatted without being told so.
    let o = tool(&["format"], &p);
    assert_eq!(o.status.code(), Some(1));
    assert!(text(&o).contains("of cluster 0707"), "{}", text(&o));
}
