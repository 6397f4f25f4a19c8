//! A reactor with a loop around it that gives up instead of hanging.
#![allow(dead_code)]

use bytes::Bytes;
use quarry_base::PageBuf;
use quarry_ring::{now_boottime, Event, FileId, OpenOpts, Reactor, RingConfig};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

pub struct Loop {
    pub r: Reactor,
    /// Events passed over by `until`, and all of `turn_for` and `settle`.
    pub seen: Vec<Event>,
}

impl Loop {
    pub fn new() -> Loop {
        Loop::with(RingConfig::default())
    }
    pub fn with(cfg: RingConfig) -> Loop {
        Loop { r: Reactor::new(cfg).unwrap(), seen: Vec::new() }
    }

    /// The first event that satisfies `f`, out of those seen and those to come; keeps the others.
    pub fn until(&mut self, f: impl Fn(&Event) -> bool) -> Event {
        let limit = now_boottime() + PATIENCE;
        loop {
            if let Some(i) = self.seen.iter().position(&f) {
                return self.seen.remove(i);
            }
            assert!(now_boottime() < limit, "it never happened; seen: {:?}", self.seen);
            self.r.turn(Some(limit), &mut self.seen).unwrap();
        }
    }

    /// Turns until `time` has passed, at least once.
    pub fn turn_for(&mut self, time: Duration) {
        let limit = now_boottime() + time;
        loop {
            self.r.turn(Some(limit), &mut self.seen).unwrap();
            if now_boottime() >= limit {
                return;
            }
        }
    }

    /// Turns until only the standing wake-up operation is in flight and nothing happens any more
    /// (between two sends of a long queue nothing is in flight for a moment).
    pub fn settle(&mut self) {
        let limit = now_boottime() + PATIENCE;
        loop {
            let before = self.r.stats().cqes;
            self.r.turn(Some(now_boottime() + Duration::from_millis(2)), &mut self.seen).unwrap();
            if self.r.stats().inflight <= 1 && self.r.stats().cqes == before {
                return;
            }
            assert!(now_boottime() < limit, "operations never end: {:?}", self.r.stats());
        }
    }
}

/// Bytes, and a handle that tells whether they are still held by anyone.
pub fn tracked(data: Vec<u8>) -> (Bytes, Weak<Vec<u8>>) {
    struct Owner(Arc<Vec<u8>>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let shared = Arc::new(data);
    let weak = Arc::downgrade(&shared);
    (Bytes::from_owner(Owner(shared)), weak)
}

pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        TempDir::under(std::env::temp_dir())
    }
    /// In the memory file system that every Linux has.
    pub fn in_memory() -> TempDir {
        TempDir::under("/dev/shm".into())
    }
    fn under(base: PathBuf) -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = base.join(format!("quarry-ring-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        TempDir(dir)
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {e}", self.0.display());
        }
    }
}

/// How a device file is made.
pub const CREATE: OpenOpts =
    OpenOpts { direct: true, read_only: false, create_size: Some(1 << 20) };

/// What became of the operation on a file; bytes read, otherwise 0.
pub fn done(l: &mut Loop, token: u64) -> Result<usize, i32> {
    let e = l.until(|e| match e {
        Event::ReadDone { token: t, .. }
        | Event::WriteDone { token: t, .. }
        | Event::SyncDone { token: t, .. }
        | Event::DiscardDone { token: t, .. } => *t == token,
        _ => false,
    });
    match e {
        Event::ReadDone { result, .. } => result,
        Event::WriteDone { result, .. }
        | Event::SyncDone { result, .. }
        | Event::DiscardDone { result, .. } => result.map(|()| 0),
        _ => unreachable!(),
    }
}

/// Reads all of it, or the error.
pub fn read(l: &mut Loop, f: FileId, offset: u64, len: usize) -> Result<PageBuf, i32> {
    l.r.read_at(f, offset, PageBuf::new(len), len, 77);
    match l.until(|e| matches!(e, Event::ReadDone { token: 77, .. })) {
        Event::ReadDone { result, buf, .. } => result.map(|n| {
            assert_eq!(n, len, "all or an error");
            buf
        }),
        _ => unreachable!(),
    }
}

/// A page full of `byte`.
pub fn page(byte: u8) -> Bytes {
    PageBuf::copy_of(&[byte; 4096]).freeze()
}
