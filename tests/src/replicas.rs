//! Whether the copies of every placement group are the same, seen from outside: the devices of a stopped cluster are
//! recovered without writing to them, and every block is read; its content must match the checksums kept for it.
//!
//! A device is opened as a data server would open it after a power cut, by the store itself, but everything it writes stays in
//! memory ([`disk`]). The newest configuration stored on any device says who has to agree. In a group at rest all that
//! the log has counts as committed: the last commit point need not have reached every member.

mod disk;
#[cfg(test)]
mod tests;

use crate::{ensure, fail, page, Failure, Res};
use disk::Overlay;
use quarry_base::{DeviceId, Nanos, PgId, Version};
use quarry_replica::PgMeta;
use quarry_store::{read_ident, BlockCopy, BlockKey, Store, StoreConfig, StoreEvent, IDENT_BYTES};
use quarry_wire::PgConfig;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Turns of the crank without an answer after which a store counts as stuck.
const MOST_TURNS: usize = 1_000_000;
/// Differences told; the rest is counted.
const MOST_TOLD: usize = 8;

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    pub groups: usize,
    /// Copies of groups.
    pub copies: usize,
    /// Blocks with content, each counted once a copy.
    pub blocks: usize,
    pub bytes: u64,
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mib, c) = (self.bytes >> 20, self);
        write!(
            f,
            "{} groups, {} copies, {} blocks, {mib} MiB: identical",
            c.groups, c.copies, c.blocks
        )
    }
}

/// A device of a stopped server, recovered in memory.
pub struct Device {
    /// For messages.
    pub name: String,
    pub id: DeviceId,
    store: Store,
    disk: Overlay,
}

/// What one block is: version, which pages, their content (checked against the checksums kept for it).
type Blocks = BTreeMap<BlockKey, (Version, u16, Vec<u64>)>;

impl Device {
    /// Recovers the device in `file`. Fails when it is blank or its log is damaged.
    pub fn open(name: &str, file: &Path) -> Res<Device> {
        let disk = Overlay::open(file)?;
        let first = disk.read(0, IDENT_BYTES)?;
        let ident = read_ident(&first).map_err(|e| Failure::new(format!("{name}: {e}")))?;
        let Some(info) = ident else { fail!("{name}: {} is no Quarry device", file.display()) };
        let config = StoreConfig { device_bytes: disk.size(), ..StoreConfig::default() };
        let store = Store::open(config, Some(info.ident.cluster));
        let mut device = Device { name: name.to_string(), id: info.ident.device, store, disk };
        device.turn_until("recovery", |e| match e {
            StoreEvent::Opened => Some(Ok(())),
            StoreEvent::OpenFailed(e) => Some(Err(e.to_string())),
            _ => None,
        })?;
        Ok(device)
    }

    /// Turns the store's crank until `wanted` takes an event.
    fn turn_until<T>(
        &mut self,
        what: &str,
        wanted: impl Fn(StoreEvent) -> Option<Result<T, String>>,
    ) -> Res<T> {
        let (mut ops, mut events) = (Vec::new(), Vec::new());
        for _ in 0..MOST_TURNS {
            self.store.poll(Nanos(1), &mut ops, &mut events);
            if let Some(answer) = events.drain(..).find_map(&wanted) {
                return answer.map_err(|e| Failure::new(format!("{}: {what}: {e}", self.name)));
            }
            for op in std::mem::take(&mut ops) {
                let (id, result) = (op.id(), self.disk.carry_out(op)?);
                self.store.complete(Nanos(1), id, result);
            }
        }
        fail!("{}: {what} does not end", self.name)
    }

    fn config(&self, pg: PgId) -> Res<Option<PgConfig>> {
        let Some(blob) = self.store.meta(pg) else { return Ok(None) };
        let meta =
            PgMeta::decode(&blob).map_err(|e| Failure::new(format!("{}: {pg}: {e}", self.name)))?;
        Ok(meta.config)
    }

    /// Newest record of a group that is here.
    pub fn last(&self, pg: PgId) -> Version {
        self.store.pg_state(pg).last
    }

    /// Every block of a group that has content, all of the log counted.
    fn blocks(&mut self, pg: PgId) -> Res<Blocks> {
        self.store.set_commit(pg, self.last(pg).seq);
        let rows = self.store.scan(pg, BlockKey::MIN, usize::MAX, None);
        let mut all = Blocks::new();
        for key in rows.into_iter().filter(|r| r.valid != 0).map(|r| r.key) {
            self.store.read_block(0, pg, key);
            let what = format!("{pg} {key:?}");
            let copy: Option<BlockCopy> = self.turn_until(&what, |e| match e {
                StoreEvent::BlockDone { result, .. } => Some(result.map_err(|e| e.to_string())),
                _ => None,
            })?;
            let Some(c) = copy else { fail!("{}: {what} has no content", self.name) };
            let content = c.data.chunks(quarry_base::PAGE).map(page::hash).collect();
            all.insert(key, (c.version, c.valid, content));
        }
        Ok(all)
    }
}

/// Compares all copies of all groups on these devices. Every group must have `copies` in-sync members in its newest
/// configuration, and they must agree on the newest record and on every block: version, pages, content.
pub fn compare(devices: &mut [Device], copies: usize) -> Res<Compared> {
    let mut newest: BTreeMap<PgId, PgConfig> = BTreeMap::new();
    for d in devices.iter() {
        for pg in d.store.pgs() {
            let Some(c) = d.config(pg)? else { continue };
            if newest.get(&pg).is_none_or(|n| n.epoch < c.epoch) {
                newest.insert(pg, c);
            }
        }
    }
    let (mut seen, mut wrong) = (Compared::default(), Vec::new());
    for (pg, config) in &newest {
        seen.groups += 1;
        if config.in_sync.len() < copies {
            wrong.push(format!("{pg} has {} of {copies} copies in sync", config.in_sync.len()));
        }
        let members: Vec<DeviceId> = config.in_sync.iter().map(|m| m.device).collect();
        group(devices, *pg, &members, &mut seen, &mut wrong)?;
    }
    ensure!(seen.groups > 0, "no placement group is on these devices");
    let n = wrong.len();
    wrong.truncate(MOST_TOLD);
    ensure!(n == 0, "{n} differences between replicas:\n{}", wrong.join("\n"));
    Ok(seen)
}

fn group(
    devices: &mut [Device],
    pg: PgId,
    members: &[DeviceId],
    seen: &mut Compared,
    wrong: &mut Vec<String>,
) -> Res<()> {
    let mut first: Option<(String, Version, Blocks)> = None;
    for id in members {
        let Some(d) = devices.iter_mut().find(|d| d.id == *id) else {
            wrong.push(format!("{pg} is on device {id}, which is not among those compared"));
            continue;
        };
        let (last, blocks) = (d.last(pg), d.blocks(pg)?);
        seen.copies += 1;
        seen.blocks += blocks.len();
        let pages: usize = blocks.values().map(|b| b.2.len()).sum();
        seen.bytes += (pages * quarry_base::PAGE) as u64;
        let Some((name, want, all)) = &first else {
            first = Some((d.name.clone(), last, blocks));
            continue;
        };
        if *want != last {
            wrong.push(format!("{pg}: newest record {want} on {name}, {last} on {}", d.name));
        }
        for key in all.keys().chain(blocks.keys().filter(|k| !all.contains_key(k))) {
            let (a, b) = (all.get(key), blocks.get(key));
            if a != b {
                wrong.push(format!(
                    "{pg} {key:?}: {} on {name}, {} on {}",
                    told(a),
                    told(b),
                    d.name
                ));
            }
        }
    }
    Ok(())
}

fn told(block: Option<&(Version, u16, Vec<u64>)>) -> String {
    let Some((version, valid, pages)) = block else { return "absent".to_string() };
    let sum = pages.iter().fold(0u64, |s, c| s.rotate_left(5) ^ c);
    format!("{version} pages {valid:04x} sum {sum:016x}")
}
