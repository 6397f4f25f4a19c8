//! Placement of placement groups on devices (ARCHITECTURE section 3): pure functions, the same answer on every host.
//!
//! Weighted rendezvous hashing in three levels: fault domain, data server, device. Every candidate gets a
//! score from a hash of (group, candidate) and its weight; the best win. A candidate that comes or goes
//! therefore changes only the groups it wins or held. [`plan_pool`] lays out a whole new pool: the same
//! scores, but no candidate takes more than its share and a little.
//!
//! Invariants: no two copies on one data server; none in one fault set when there are at least as many
//! fault sets as copies. No library logarithm is used: its last bits differ between platforms, and the
//! members of the MDM must agree.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod plan;
mod rebalance;
mod score;
mod tree;

pub use plan::plan_pool;
use quarry_base::{DeviceId, SdsId};
pub use rebalance::{rebalance, rebalance_where, together, Move};
use serde::{Deserialize, Serialize};
use tree::Tree;

/// A device that may hold copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Candidate {
    pub device: DeviceId,
    pub sds: SdsId,
    /// Servers of one fault set are expected to fail together. `None`: the server stands alone.
    pub fault_set: Option<u32>,
    /// Relative capacity; bytes will do. 0: never chosen.
    pub weight: u64,
}

/// Devices for group `pg_index`, best first: `copies` of them, fewer when there are not enough
/// independent candidates.
pub fn place(pg_index: u32, copies: usize, devices: &[Candidate]) -> Vec<DeviceId> {
    replace(pg_index, copies, &[], devices)
}

/// What group `pg_index`, now on `current`, should be on: every current device that is still a candidate
/// stays (in its order; a later one that shares a server with an earlier one does not), and only the missing
/// copies are chosen anew. At most `copies` devices, fewer when there are not enough candidates.
pub fn replace(
    pg_index: u32,
    copies: usize,
    current: &[DeviceId],
    devices: &[Candidate],
) -> Vec<DeviceId> {
    let tree = Tree::build(devices, copies);
    let mut out = Vec::with_capacity(copies);
    let mut used = Vec::with_capacity(copies);
    let mut used_sds = Vec::with_capacity(copies);
    for d in current {
        let Some(c) = devices.iter().find(|c| c.device == *d) else { continue };
        if out.len() < copies && !used_sds.contains(&c.sds) {
            out.push(*d);
            used_sds.push(c.sds);
            used.extend(tree.domain_of(c.sds));
        }
    }
    let missing = copies - out.len();
    for at in tree.best(pg_index, missing, |n| !used.contains(&n), |s| !used_sds.contains(&s)) {
        out.push(tree.device_of(pg_index, at, |_| true).unwrap_or_default());
        used_sds.push(tree.sds_id(at));
    }
    // Current copies may already share fault sets so that the free ones do not suffice: servers then.
    if out.len() < copies {
        let flat = Tree::by_sds(devices);
        for at in flat.best(pg_index, copies - out.len(), |_| true, |s| !used_sds.contains(&s)) {
            out.push(flat.device_of(pg_index, at, |_| true).unwrap_or_default());
        }
    }
    out
}

#[cfg(test)]
mod tests;
