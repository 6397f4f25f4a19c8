//! The end of a run: faults stop, everything must heal, every replica must hold the same, and what clients
//! were told must still be there.

use crate::config::{FAULTS, OPERATIONS};
use crate::coverage::Seen;
use crate::disk::Failing;
use crate::faults::Fault;
use crate::net::Addr;
use crate::node::{recover, Node};
use crate::world::{Ev, World, MS};
use quarry_base::*;
use quarry_store::{BlockCopy, BlockKey, Store, StoreEvent};
use std::collections::BTreeMap;

/// Everything must be whole again this long after the last fault.
const HEALED_WITHIN: u64 = 40_000 * MS;

/// How a run ended.
#[derive(Debug)]
pub struct Report {
    pub steps: u64,
    pub operations: u64,
    pub faults: u64,
    pub reads: usize,
    /// Longest time that an answered request took, nanoseconds.
    pub longest: u64,
    pub seen: Seen,
}

impl World {
    /// Runs everything; an error names what was violated.
    pub fn run(mut self) -> Result<Report, String> {
        let faults_end = 10_000 * MS + self.cfg.faults_ms * MS;
        self.run_until(faults_end);
        self.finish()
    }

    /// Faults stop now; everything has to heal.
    pub fn finish(mut self) -> Result<Report, String> {
        // Some do not apply at all moments, some mixes at none.
        let tries = if self.cfg.fault_every_ms > 0 { 100 } else { 0 };
        for _ in 0..tries {
            if self.failure.is_some() || self.faults >= FAULTS {
                break;
            }
            self.fault_now();
            let next = self.now + 200 * MS;
            self.run_until(next);
        }
        self.end_faults();
        // One that is being stopped takes nothing new, and ends after 5 s at the latest.
        self.wait_until(10_000 * MS, "a server that was asked to stop does not end", |w| {
            !w.nodes.iter().any(|n| n.leaving)
        });
        self.wait_until_whole();
        // The rest of the load, by whoever has something mapped still.
        self.cfg.load.operations = u64::MAX;
        self.cfg.load.think_ms = self.cfg.load.think_ms.min(10);
        (0..self.clients.len()).for_each(|c| self.pump(c));
        self.wait_until(HEALED_WITHIN, "operations that do not end", World::is_done);
        self.quiet = true;
        self.wait_until(HEALED_WITHIN, "requests without an answer", |w| {
            w.clients.iter().all(|c| c.is_idle())
        });
        // Everything was whole again: there is a good copy of every block.
        self.clients.iter_mut().for_each(|c| c.disks_fail = false);
        self.read_everything();
        // The last commit points reach the members.
        let until = self.now + 500 * MS;
        self.run_until(until);
        if let Some(f) = self.failure.take() {
            return Err(f);
        }
        self.history.check()?;
        self.compare_replicas()?;
        let operations = self.clients.iter().map(|c| c.started).sum();
        let reads = self.history.reads();
        let longest = self.clients.iter().map(|c| c.longest).max().unwrap_or(0);
        Ok(Report {
            steps: self.steps,
            operations,
            faults: self.faults,
            reads,
            longest,
            seen: self.seen,
        })
    }

    fn is_done(&self) -> bool {
        self.clients.iter().map(|c| c.started).sum::<u64>() >= OPERATIONS
    }

    fn end_faults(&mut self) {
        self.trace(|| "--- no more faults".into());
        self.net.heal_all();
        let now = self.now;
        for n in 0..self.nodes.len() {
            let node = &mut self.nodes[n];
            node.paused_until = 0;
            node.frozen.1 = node.frozen.1.min(now).max(node.frozen.0);
            node.hung_until = 0;
            node.slow = (0, 0);
            let failed = std::mem::take(&mut node.disk.failing) != Failing::Nothing;
            if failed && node.engine.is_some() {
                self.crash(n, false);
            }
            self.recover_sds(n);
            if self.nodes[n].engine.is_none() {
                self.at(now, Ev::Restart { node: n });
            }
        }
        let volumes: Vec<VolumeId> = self.mdm.state.volumes.keys().copied().collect();
        for v in volumes {
            self.map(0, v, true);
        }
    }

    fn wait_until(&mut self, at_most: u64, what: &str, done: impl Fn(&World) -> bool) {
        let end = self.now + at_most;
        while self.failure.is_none() && !done(self) {
            if self.now >= end {
                let open: String = self.clients.iter().map(|c| c.describe()).collect();
                return self.fail(format!("{what}: {open}"));
            }
            let next = self.now + 50 * MS;
            self.run_until(next);
        }
    }

    fn wait_until_whole(&mut self) {
        let end = self.now + HEALED_WITHIN;
        while self.failure.is_none() && !(self.mdm.is_whole() && self.all_active()) {
            if self.now >= end && self.lacks_room_only() {
                return self.count("short of room");
            }
            if self.now >= end {
                let all: Vec<String> =
                    self.mdm.state.pgs.values().map(|p| format!("{:?}", p.config)).collect();
                for n in &self.nodes {
                    self.trace(|| n.describe());
                }
                return self.fail(format!("not whole: {}", all.join("; ")));
            }
            let next = self.now + 50 * MS;
            self.run_until(next);
        }
    }

    /// What is missing is missing on devices whose free blocks are all promised to thick volumes. Thin data that was
    /// written while such a device was away is not copied onto it then: the group stays degraded (R24, R28).
    fn lacks_room_only(&self) -> bool {
        let full = |d: &DeviceId| {
            let node = self.nodes.iter().find(|n| n.device == *d);
            let store = node.and_then(|n| n.engine.as_ref()?.store(*d));
            store.is_some_and(|s| s.headroom().blocks <= s.headroom().promised)
        };
        self.mdm.state.pgs.values().all(|p| {
            let c = &p.config;
            let missing = |d: &&DeviceId| !c.in_sync.iter().any(|m| m.device == **d);
            c.primary.is_some() && c.listed.iter().filter(missing).all(full)
        })
    }

    fn all_active(&self) -> bool {
        let led: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|n| n.engine.as_ref())
            .flat_map(|e| e.reports().2)
            .filter(|r| r.active)
            .map(|r| (r.pg, r.epoch))
            .collect();
        self.mdm.state.pgs.values().all(|p| led.contains(&(p.config.pg, p.config.epoch)))
    }

    fn read_everything(&mut self) {
        self.wait_until(HEALED_WITHIN, "a client does not learn of its volumes", |w| {
            w.clients[w.newest(0)].volumes().len() == w.mdm.state.volumes.len()
        });
        let c = self.newest(0);
        let all = self.clients[c].volumes();
        for (v, extents) in all {
            for block in 0..u64::from(extents * BLOCKS_PER_EXTENT) {
                let at = block * u64::from(BLOCK);
                self.clients[c].read_all(v, at, BLOCK, self.now);
            }
        }
        self.pump(c);
        self.wait_until(HEALED_WITHIN, "last reads without an answer", |w| {
            w.clients.iter().all(|c| c.is_idle())
        });
    }

    /// Stops every server, recovers every store, compares the members of each group block by block.
    fn compare_replicas(&mut self) -> Result<(), String> {
        for n in 0..self.nodes.len() {
            for l in self.net.of(Addr::Sds(n)) {
                self.close(l);
            }
            if let Some(e) = &self.nodes[n].engine {
                if let Some(s) = e.store(self.nodes[n].device) {
                    s.check_invariants().map_err(|e| format!("sds{}: {e}", n + 1))?;
                }
            }
        }
        for c in &self.clients {
            self.seen.client(c);
        }
        let mut stores = Vec::new();
        for n in &mut self.nodes {
            if let Some(e) = n.engine.take() {
                self.seen.engine(e.stats());
            }
            n.disk.kill(&mut self.rng);
            n.disk.unreadable.clear();
            stores.push(recover(&mut n.disk).map_err(|e| format!("at the end: {}: {e}", n.sds))?);
        }
        if self.seen.get("engine overdrawn") > 0 {
            return Err("a record took more of a member than it had promised (R24)".into());
        }
        // A server that is taken out is replaced at once, too.
        let moves = ["mdm rebuild", "mdm rebuild_start", "mdm sds_fail"];
        let moved = moves.iter().any(|m| self.seen.get(m) > 0);
        if let Some(bad) = self.mdm.misplaced(!moved) {
            return Err(bad);
        }
        let rot = self.cfg.mix.iter().any(|m| m.0 == Fault::Rot);
        for p in self.mdm.state.pgs.values() {
            let cfg = &p.config;
            let mut first: Option<(DeviceId, BTreeMap<BlockKey, BlockCopy>)> = None;
            for m in &cfg.in_sync {
                let i = m.sds.0 as usize - 1;
                let all = content(&mut stores[i], &mut self.nodes[i], cfg.pg, rot)?;
                let volumes = &self.mdm.state.volumes;
                let gone = |k: &&BlockKey| volumes.values().all(|v| v.vtree != k.vtree);
                if let Some(k) = all.keys().find(gone) {
                    let why = "of a deleted volume is still there";
                    return Err(format!("{}: device {}: {k:?} {why}", cfg.pg, m.device));
                }
                match &first {
                    None => first = Some((m.device, all)),
                    Some((d, want)) if !rot => compare(cfg.pg, *d, want, m.device, &all)?,
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }
}

fn compare(
    pg: PgId,
    a: DeviceId,
    want: &BTreeMap<BlockKey, BlockCopy>,
    b: DeviceId,
    have: &BTreeMap<BlockKey, BlockCopy>,
) -> Result<(), String> {
    for k in want.keys().chain(have.keys()) {
        match (want.get(k), have.get(k)) {
            (Some(x), Some(y))
                if x.version == y.version && x.valid == y.valid && x.data == y.data => {}
            (x, y) => {
                let s = |c: Option<&BlockCopy>| {
                    c.map(|c| format!("{} valid {:04x}", c.version, c.valid))
                };
                return Err(format!(
                    "{pg}: {k:?} differs: device {a} has {:?}, device {b} has {:?}",
                    s(x),
                    s(y)
                ));
            }
        }
    }
    Ok(())
}

/// Every block with content. All that the log has counts: in a quiet group it is committed.
fn content(
    store: &mut Store,
    node: &mut Node,
    pg: PgId,
    rot: bool,
) -> Result<BTreeMap<BlockKey, BlockCopy>, String> {
    let last = store.pg_state(pg).last.seq;
    store.set_commit(pg, last);
    let mut all = BTreeMap::new();
    let keys: Vec<BlockKey> = store
        .scan(pg, BlockKey::MIN, usize::MAX, None)
        .into_iter()
        .filter(|b| b.valid != 0)
        .map(|b| b.key)
        .collect();
    for (i, key) in keys.iter().enumerate() {
        store.read_block(i as u64, pg, *key);
        match wait_block(store, node) {
            Ok(copy) => drop(all.insert(*key, copy)),
            // Found bad and not read by anybody: it would be repaired when it is.
            Err(_) if rot && node.sds == SdsId(1) => {}
            Err(e) => return Err(format!("{pg} {key:?} on {}: {e}", node.sds)),
        }
    }
    Ok(all)
}

fn wait_block(store: &mut Store, node: &mut Node) -> Result<BlockCopy, String> {
    let (mut ops, mut events) = (Vec::new(), Vec::new());
    for _ in 0..100_000 {
        store.poll(Nanos(1), &mut ops, &mut events);
        for e in events.drain(..) {
            if let StoreEvent::BlockDone { result, .. } = e {
                return match result {
                    Ok(Some(c)) => Ok(c),
                    Ok(None) => Err("no block".into()),
                    Err(e) => Err(e.to_string()),
                };
            }
        }
        for op in std::mem::take(&mut ops) {
            let id = node.disk.begin(op);
            if let Some(r) = node.disk.finish(id) {
                store.complete(Nanos(1), id, r);
            }
        }
    }
    Err("the read does not end".into())
}
