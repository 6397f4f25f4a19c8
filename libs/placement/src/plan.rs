//! The layout of a whole new pool: rendezvous hashing with bounded load, primaries balanced.

use crate::tree::Tree;
use crate::Candidate;
use quarry_base::{DeviceId, SdsId};
use std::collections::HashMap;

/// Above its share by weight a candidate may hold one part in this many.
const SLACK: f64 = 64.0;
/// Passes over the groups that even out copies and primaries; both settle in two or three.
const PASSES: usize = 16;

/// Device lists for groups `0..pg_count`, primary first. No server or device holds more than its share by
/// weight plus 1/64, rounded up (where the number of servers leaves a choice at all), and primaries are
/// spread evenly over the devices.
pub fn plan_pool(pg_count: u32, copies: usize, devices: &[Candidate]) -> Vec<Vec<DeviceId>> {
    let tree = Tree::build(devices, copies);
    let mut load = Load::new(&tree, pg_count, copies);
    let mut out = Vec::with_capacity(pg_count as usize);
    for pg in 0..pg_count {
        let mut at = tree.best(pg, copies, |_| true, |s| load.server_free(s));
        if at.len() < copies {
            at = tree.best(pg, copies, |_| true, |_| true);
        }
        let mut list = Vec::with_capacity(copies);
        for a in at {
            let device = tree
                .device_of(pg, a, |d| load.device_free(d))
                .or_else(|| tree.device_of(pg, a, |_| true));
            if let Some(d) = device {
                load.take(tree.sds_id(a), d);
                list.push(d);
            }
        }
        out.push(list);
    }
    even_out(&mut out, copies, devices);
    balance_primaries(&mut out);
    out
}

/// Nothing is stored yet, so moves are free: what the last groups found taken is made up for. A pool that begins even has
/// little to move when a server comes.
fn even_out(groups: &mut [Vec<DeviceId>], copies: usize, devices: &[Candidate]) {
    for _ in 0..PASSES {
        let moves = crate::rebalance(groups, copies, devices, usize::MAX);
        if moves.is_empty() {
            return;
        }
        for m in moves {
            let list = groups.get_mut(m.group as usize);
            if let Some(d) = list.and_then(|l| l.iter_mut().find(|d| **d == m.from)) {
                *d = m.to;
            }
        }
    }
}

/// Groups held and allowed, by server and by device.
struct Load {
    servers: HashMap<SdsId, (u32, u32)>,
    devices: HashMap<DeviceId, (u32, u32)>,
}

impl Load {
    fn new(tree: &Tree, pg_count: u32, copies: usize) -> Load {
        let all = || tree.domains.iter().flat_map(|d| &d.servers);
        let total: f64 = all().map(|s| s.weight).sum();
        let slots = pg_count as f64 * copies as f64;
        let cap = |w: f64| ((slots * w / total) * (1.0 + 1.0 / SLACK)).ceil() as u32;
        Load {
            servers: all().map(|s| (s.id, (0, cap(s.weight)))).collect(),
            devices: all().flat_map(|s| &s.devices).map(|d| (d.0, (0, cap(d.1)))).collect(),
        }
    }
    fn server_free(&self, s: SdsId) -> bool {
        self.servers.get(&s).is_some_and(|l| l.0 < l.1)
    }
    fn device_free(&self, d: DeviceId) -> bool {
        self.devices.get(&d).is_some_and(|l| l.0 < l.1)
    }
    fn take(&mut self, s: SdsId, d: DeviceId) {
        if let Some(l) = self.servers.get_mut(&s) {
            l.0 += 1;
        }
        if let Some(l) = self.devices.get_mut(&d) {
            l.0 += 1;
        }
    }
}

/// Moves the primary of a group to the member with the fewest, until no move helps.
fn balance_primaries(groups: &mut [Vec<DeviceId>]) {
    let mut count: HashMap<DeviceId, u32> = HashMap::new();
    for first in groups.iter().filter_map(|g| g.first()) {
        *count.entry(*first).or_default() += 1;
    }
    for _ in 0..PASSES {
        let mut moved = false;
        for g in groups.iter_mut() {
            let Some(first) = g.first().copied() else { continue };
            let of = |d: &DeviceId| count.get(d).copied().unwrap_or(0);
            let best = (0..g.len()).min_by_key(|i| of(&g[*i])).unwrap_or(0);
            if of(&first) > of(&g[best]) + 1 {
                let new = g[best];
                g.swap(0, best);
                *count.entry(first).or_default() -= 1;
                *count.entry(new).or_default() += 1;
                moved = true;
            }
        }
        if !moved {
            return;
        }
    }
}
