//! The store on sled, used so that it is really durable.
//!
//! sled's `flush` writes but does not sync: after it, our own descriptor on its `db` file is synced, and only
//! then is anything answered. Values stay small (see `chunk`), so that nothing goes to `blobs/`, which sled never
//! syncs: checked at every barrier. A snapshot counts once its last key, written after a barrier, is there.

use super::chunk::{self, Bad, Joiner};
use super::{Loaded, MetaStore, StoreError};
use rustix::fs::Dir;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Writes between two barriers at most.
const BATCH: usize = 64;
const SEGMENT: usize = 2 << 20;
/// Bytes sled may cache.
const CACHE: u64 = 32 << 20;
/// Snapshots kept.
const GENERATIONS: usize = 2;

/// The log in sled. One thread writes.
pub struct SledStore {
    path: PathBuf,
    db: sled::Db,
    /// Index and chunk to a part of a command.
    pub(super) log: sled::Tree,
    /// Index and chunk to a part of a snapshot.
    pub(super) snap: sled::Tree,
    /// Index to an empty value: this snapshot is whole.
    whole: sled::Tree,
    file: File,
    /// Kept open, like `file`: a barrier must not fail because descriptors have run out.
    blobs: Option<Dir>,
}

impl SledStore {
    /// Opens the store in directory `path`, creating it when there is none.
    pub fn open(path: &Path) -> Result<SledStore, StoreError> {
        let io = |source| StoreError::Io { path: path.into(), source };
        let sled = |source| StoreError::Sled { path: path.into(), source };
        let db = sled::Config::new()
            .path(path)
            .segment_size(SEGMENT)
            .flush_every_ms(None)
            .cache_capacity(CACHE)
            .open()
            .map_err(sled)?;
        let (log, snap, whole) = (
            db.open_tree("log").map_err(sled)?,
            db.open_tree("snap").map_err(sled)?,
            db.open_tree("whole").map_err(sled)?,
        );
        let file = File::open(path.join("db")).map_err(io)?;
        for e in std::fs::read_dir(path).map_err(io)? {
            File::open(e.map_err(io)?.path()).and_then(|f| f.sync_all()).map_err(io)?;
        }
        File::open(path).and_then(|f| f.sync_all()).map_err(io)?;
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(parent).and_then(|f| f.sync_all()).map_err(io)?;
        }
        let mut s = SledStore { path: path.into(), db, log, snap, whole, file, blobs: None };
        s.barrier()?;
        Ok(s)
    }

    fn sled(&self, source: sled::Error) -> StoreError {
        StoreError::Sled { path: self.path.clone(), source }
    }

    fn bad(&self, bad: Bad) -> StoreError {
        match bad {
            Bad::Newer(format) => StoreError::Newer { path: self.path.clone(), format },
            Bad::Damaged(what) => StoreError::Damaged { path: self.path.clone(), what },
        }
    }

    /// Everything written so far is durable on return.
    fn barrier(&mut self) -> Result<(), StoreError> {
        self.db.flush().map_err(|e| self.sled(e))?;
        let io = |source| StoreError::Io { path: self.path.clone(), source };
        self.file.sync_data().map_err(io)?;
        let blobs = self.path.join("blobs");
        if self.blobs.is_none() {
            self.blobs = match File::open(&blobs) {
                Ok(d) => Some(Dir::new(d).map_err(|e| io(e.into()))?),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(io(e)),
            };
        }
        if let Some(dir) = &mut self.blobs {
            dir.rewind();
            while let Some(e) = dir.read() {
                let name = e.map_err(|e| io(e.into()))?;
                let own = [&b"."[..], b".."].contains(&name.file_name().to_bytes());
                assert!(own, "{} is not empty", blobs.display());
            }
        }
        Ok(())
    }

    fn remove_keys(&mut self, tree: &sled::Tree, keys: Vec<sled::IVec>) -> Result<(), StoreError> {
        for part in keys.chunks(BATCH) {
            let mut b = sled::Batch::default();
            part.iter().for_each(|k| b.remove(k.clone()));
            tree.apply_batch(b).map_err(|e| self.sled(e))?;
        }
        Ok(())
    }

    /// The values of a tree from an index on, every checksum verified. Incomplete ones are an error unless `partial`.
    fn read(
        &self,
        tree: &sled::Tree,
        from: u64,
        partial: bool,
    ) -> Result<BTreeMap<u64, Vec<u8>>, StoreError> {
        let mut out = BTreeMap::new();
        let mut j = Joiner::default();
        for item in tree.range(chunk::key(from, 0)..) {
            let (k, v) = item.map_err(|e| self.sled(e))?;
            match j.push(&k, &v) {
                Ok(Some((index, bytes))) => drop(out.insert(index, bytes)),
                Ok(None) => {}
                // A snapshot whose writing was cut off: the next one begins here.
                Err(Bad::Damaged(_)) if partial && chunk::decode(&k, &v).is_ok() => {
                    j = Joiner::default();
                    if let Ok(Some((index, bytes))) = j.push(&k, &v) {
                        out.insert(index, bytes);
                    }
                }
                Err(e) => return Err(self.bad(e)),
            }
        }
        if !partial {
            j.finish().map_err(|e| self.bad(e))?;
        }
        Ok(out)
    }

    fn whole_snapshots(&self) -> Result<Vec<u64>, StoreError> {
        let mut out = Vec::new();
        for item in self.whole.iter() {
            let (k, v) = item.map_err(|e| self.sled(e))?;
            chunk::decode(&k, &v).map_err(|e| self.bad(e))?;
            out.extend(chunk::split_key(&k).map(|k| k.0));
        }
        Ok(out)
    }

    /// Drops snapshots but the newest two, unfinished ones, and the log before the older one kept.
    fn prune(&mut self) -> Result<(), StoreError> {
        let all = self.whole_snapshots()?;
        let keep: Vec<u64> = all.iter().rev().take(GENERATIONS).copied().collect();
        let not_kept = |k: &sled::IVec| chunk::split_key(k).is_none_or(|k| !keep.contains(&k.0));
        for tree in [self.whole.clone(), self.snap.clone()] {
            let keys = tree.iter().keys().filter(|k| k.as_ref().map_or(true, not_kept));
            let keys = keys.collect::<Result<Vec<_>, _>>().map_err(|e| self.sled(e))?;
            self.remove_keys(&tree, keys)?;
        }
        // With a single snapshot the whole log stays: it is the second generation.
        if keep.len() == GENERATIONS {
            let oldest = keep.last().copied().unwrap_or(0);
            let log = self.log.clone();
            let keys = log.range(..chunk::key(oldest + 1, 0)).keys();
            let keys = keys.collect::<Result<Vec<_>, _>>().map_err(|e| self.sled(e))?;
            self.remove_keys(&log, keys)?;
        }
        self.barrier()
    }
}

#[cfg(test)]
impl SledStore {
    /// Removes chunks `0..n` of an entry of the log.
    pub(super) fn remove_first_chunks(&mut self, index: u64, n: u32) {
        (0..n).for_each(|c| drop(self.log.remove(chunk::key(index, c))));
    }
}

impl MetaStore for SledStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let mut snaps = self.read(&self.snap, 0, true)?;
        let newest = self.whole_snapshots()?.into_iter().max();
        let snapshot = match newest {
            None => None,
            Some(i) => match snaps.remove(&i) {
                Some(bytes) => Some((i, bytes)),
                None => return Err(self.bad(Bad::Damaged(format!("snapshot {i} is missing")))),
            },
        };
        let from = snapshot.as_ref().map_or(0, |s| s.0) + 1;
        // Before the snapshot a crash may have left a part of an entry that was being removed.
        let entries: Vec<(u64, Vec<u8>)> = self.read(&self.log, from, false)?.into_iter().collect();
        for (i, e) in entries.iter().enumerate() {
            if e.0 != from + i as u64 {
                return Err(
                    self.bad(Bad::Damaged(format!("log entry {} is missing", from + i as u64)))
                );
            }
        }
        Ok(Loaded { snapshot, entries })
    }

    fn append(&mut self, entries: &[(u64, Vec<u8>)]) -> Result<(), StoreError> {
        for part in entries.chunks(BATCH) {
            let mut b = sled::Batch::default();
            for (index, bytes) in part {
                for (k, v) in chunk::encode(*index, bytes) {
                    b.insert(&k, v);
                }
            }
            self.log.apply_batch(b).map_err(|e| self.sled(e))?;
            self.barrier()?;
        }
        Ok(())
    }

    fn snapshot(&mut self, index: u64, bytes: &[u8]) -> Result<(), StoreError> {
        for part in chunk::encode(index, bytes).chunks(BATCH) {
            let mut b = sled::Batch::default();
            part.iter().for_each(|(k, v)| b.insert(k, v.as_slice()));
            self.snap.apply_batch(b).map_err(|e| self.sled(e))?;
            self.barrier()?;
        }
        for (k, v) in chunk::encode(index, &[]) {
            self.whole.insert(k, v).map_err(|e| self.sled(e))?;
        }
        self.barrier()?;
        self.prune()
    }
}
