//! Placement of a large cluster, computed: how even it is, how much moves when a server goes or comes, how many devices take
//! part in a rebuild, how long it takes to work out.
//!
//!   cargo run --release --example placement-scale [SERVERS [DEVICES-OF-EACH [GROUPS [COPIES]]]]
//!
//! Default: 1,000 servers of 10 devices, 65,536 groups, 2 copies. Deterministic but for the times.

use quarry_base::{DeviceId, SdsId};
use quarry_placement::{plan_pool, rebalance, replace, together, Candidate};
use std::collections::BTreeMap;
use std::hash::Hash;
use std::time::Instant;

type Lists = Vec<Vec<DeviceId>>;

fn number(at: usize, default: u32) -> u32 {
    std::env::args().nth(at).and_then(|t| t.parse().ok()).unwrap_or(default)
}

fn cluster(servers: u32, per_server: u32) -> Vec<Candidate> {
    let one = |i| Candidate {
        device: DeviceId(i + 1),
        sds: SdsId(i / per_server + 1),
        fault_set: None,
        weight: 1 << 40,
    };
    (0..servers * per_server).map(one).collect()
}

/// Fewest, mean and most of what `items` counts over `n` things.
fn spread<K: Ord + Hash>(n: usize, items: impl Iterator<Item = K>) -> String {
    let mut count: BTreeMap<K, usize> = BTreeMap::new();
    for k in items {
        *count.entry(k).or_default() += 1;
    }
    let min = if count.len() < n { 0 } else { count.values().copied().min().unwrap_or(0) };
    let max = count.values().copied().max().unwrap_or(0);
    let mean = count.values().sum::<usize>() as f64 / n.max(1) as f64;
    format!("{min} to {max}, mean {mean:.2}; fullest {:+.1} %", (max as f64 / mean - 1.0) * 100.0)
}

fn main() {
    let (servers, per_server) = (number(1, 1000), number(2, 10));
    let (groups, copies) = (number(3, 65_536), number(4, 2) as usize);
    let all = cluster(servers, per_server);
    let sds_of: BTreeMap<DeviceId, SdsId> = all.iter().map(|c| (c.device, c.sds)).collect();
    let server = |d: &DeviceId| sds_of.get(d).copied().unwrap_or_default();
    println!("{servers} servers of {per_server} devices, {groups} groups of {copies} copies");

    let t = Instant::now();
    let plan: Lists = plan_pool(groups, copies, &all);
    println!("layout: worked out in {:.2} s", t.elapsed().as_secs_f64());
    println!("  copies a device: {}", spread(all.len(), plan.iter().flatten()));
    println!("  copies a server: {}", spread(servers as usize, plan.iter().flatten().map(server)));
    println!(
        "  primaries a server: {}",
        spread(servers as usize, plan.iter().flat_map(|g| g.first()).map(server))
    );
    lose(&plan, copies, &all, &server);
    gain(&plan, copies, &all, per_server);
}

/// A server goes: only its copies move, from many to many.
fn lose(plan: &Lists, copies: usize, all: &[Candidate], server: &dyn Fn(&DeviceId) -> SdsId) {
    let lost = SdsId(1);
    let rest: Vec<Candidate> = all.iter().filter(|c| c.sds != lost).copied().collect();
    let t = Instant::now();
    let (mut had, mut moved) = (0, 0);
    let (mut from, mut to): (Vec<SdsId>, Vec<SdsId>) = (Vec::new(), Vec::new());
    let mut to_devices: Vec<DeviceId> = Vec::new();
    for (i, g) in plan.iter().enumerate().filter(|(_, g)| g.iter().any(|d| server(d) == lost)) {
        had += g.iter().filter(|d| server(d) == lost).count();
        let keep: Vec<DeviceId> = g.iter().filter(|d| server(d) != lost).copied().collect();
        let new = replace(i as u32, copies, &keep, &rest);
        moved += new.iter().filter(|d| !g.contains(d)).count();
        from.extend(keep.first().map(server));
        to.extend(new.iter().filter(|d| !g.contains(d)).map(server));
        to_devices.extend(new.iter().filter(|d| !g.contains(d)));
    }
    let distinct = |v: &[SdsId]| {
        let mut v = v.to_vec();
        v.sort();
        v.dedup();
        v.len()
    };
    println!("a server of {had} copies is lost: worked out in {:.2} s", t.elapsed().as_secs_f64());
    println!("  copies restored: {moved} ({:.2} of the least)", moved as f64 / had.max(1) as f64);
    println!("  read from {} servers, written to {} servers", distinct(&from), distinct(&to));
    let most = |n: usize, v: &[SdsId]| spread(n, v.iter());
    println!("  copies that one server writes: {}", most(distinct(&to), &to));
    to_devices.sort();
    to_devices.dedup();
    println!("  devices that write: {}", to_devices.len());
}

/// A server comes: it is filled from the others, nothing else moves.
fn gain(plan: &Lists, copies: usize, all: &[Candidate], per_server: u32) {
    let mut more = all.to_vec();
    let new = SdsId(u32::MAX);
    let first = all.len() as u32 + 1;
    more.extend((0..per_server).map(|i| Candidate {
        device: DeviceId(first + i),
        sds: new,
        fault_set: None,
        weight: 1 << 40,
    }));
    let share = plan.iter().flatten().count() as f64 / (more.len() as f64) * f64::from(per_server);
    let t = Instant::now();
    let moves = rebalance(plan, copies, &more, 1 << 20);
    let to_new = moves.iter().filter(|m| m.to.get() >= first).count();
    println!("a server is added: worked out in {:.2} s", t.elapsed().as_secs_f64());
    println!(
        "  copies moved: {} ({to_new} to the new server, whose share is {share:.0}; {:.2} of the least)",
        moves.len(),
        moves.len() as f64 / share.floor()
    );
    let mut lists = plan.clone();
    for m in &moves {
        if let Some(d) = lists[m.group as usize].iter_mut().find(|d| **d == m.from) {
            *d = m.to;
        }
    }
    println!("  copies a device then: {}", spread(more.len(), lists.iter().flatten()));
    let t = Instant::now();
    let apart = !together(&lists, copies, &more);
    println!("  no two copies together: {apart}, looked at in {:.2} s", t.elapsed().as_secs_f64());
}
