//! The store in memory: the twin of the sled store. Clones share their content, like a disk.

use super::{Loaded, MetaStore, StoreError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Default)]
struct Content {
    snapshots: BTreeMap<u64, Vec<u8>>,
    entries: BTreeMap<u64, Vec<u8>>,
}

/// A store that lives as long as one of its clones.
#[derive(Clone, Default)]
pub struct MemStore {
    content: Arc<Mutex<Content>>,
}

impl MemStore {
    fn with<T>(&self, f: impl FnOnce(&mut Content) -> T) -> T {
        f(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl MetaStore for MemStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        Ok(self.with(|c| {
            let snapshot = c.snapshots.last_key_value().map(|(i, b)| (*i, b.clone()));
            let from = snapshot.as_ref().map_or(0, |s| s.0) + 1;
            let entries = c.entries.range(from..).map(|(i, b)| (*i, b.clone())).collect();
            Loaded { snapshot, entries }
        }))
    }

    fn append(&mut self, entries: &[(u64, Vec<u8>)]) -> Result<(), StoreError> {
        self.with(|c| c.entries.extend(entries.iter().cloned()));
        Ok(())
    }

    fn snapshot(&mut self, index: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.with(|c| {
            c.snapshots.insert(index, bytes.to_vec());
            while c.snapshots.len() > 2 {
                c.snapshots.pop_first();
            }
            let oldest = c.snapshots.first_key_value().map_or(0, |s| *s.0);
            c.entries = c.entries.split_off(&(oldest + 1));
        });
        Ok(())
    }
}
