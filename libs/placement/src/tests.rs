//! Placement: bounds on imbalance and movement, by property tests.

use crate::{place, plan_pool, rebalance, replace, together, Candidate};
use proptest::prelude::*;
use quarry_base::{DeviceId, SdsId};
use std::collections::{BTreeMap, BTreeSet};

fn cluster(servers: u32, per_server: u32, sets: Option<u32>) -> Vec<Candidate> {
    (0..servers * per_server)
        .map(|i| Candidate {
            device: DeviceId(i + 1),
            sds: SdsId(i / per_server + 1),
            fault_set: sets.map(|n| (i / per_server) % n),
            weight: 1 << 30,
        })
        .collect()
}

fn counts<'a>(lists: impl IntoIterator<Item = &'a DeviceId>) -> BTreeMap<DeviceId, usize> {
    let mut n = BTreeMap::new();
    for d in lists {
        *n.entry(*d).or_default() += 1;
    }
    n
}

fn spread(n: &BTreeMap<DeviceId, usize>, devices: usize) -> (usize, usize) {
    let min = if n.len() < devices { 0 } else { n.values().copied().min().unwrap_or(0) };
    (min, n.values().copied().max().unwrap_or(0))
}

#[test]
fn placement_never_changes() {
    let c = cluster(5, 2, None);
    let ids = |pg| place(pg, 3, &c).iter().map(|d| d.get()).collect::<Vec<_>>();
    assert_eq!([ids(0), ids(1), ids(77)], GOLD.map(|g| g.to_vec()));
}
const GOLD: [[u32; 3]; 3] = [[6, 3, 1], [6, 10, 4], [10, 5, 1]];

#[test]
fn three_equal_servers_share_groups_and_primaries_evenly() {
    let c = cluster(3, 1, None);
    let plan = plan_pool(128, 2, &c);
    let (min, max) = spread(&counts(plan.iter().flatten()), 3);
    assert!(max - min <= 10, "{min}..{max}");
    let (min, max) = spread(&counts(plan.iter().filter_map(|g| g.first())), 3);
    assert!(max - min <= 1, "primaries {min}..{max}");
}

#[test]
fn weights_decide_the_share() {
    let mut c = cluster(10, 1, None);
    c[0].weight *= 3;
    let plan = plan_pool(4096, 2, &c);
    let n = counts(plan.iter().flatten());
    let ratio = n[&DeviceId(1)] as f64 / n[&DeviceId(2)] as f64;
    assert!((2.3..3.4).contains(&ratio), "{ratio}");
}

#[test]
fn too_few_servers_give_fewer_copies_never_two_on_one() {
    assert_eq!(place(1, 3, &cluster(2, 4, None)).len(), 2);
    assert!(place(1, 2, &[]).is_empty());
    let mut c = cluster(2, 1, None);
    c[0].weight = 0;
    assert_eq!(place(1, 2, &c), [DeviceId(2)]);
}

#[test]
fn a_thousand_servers_with_ten_devices_each_are_planned_quickly() {
    let c = cluster(1000, 10, None);
    let pgs = if cfg!(debug_assertions) { 2048 } else { 65536 };
    let begin = std::time::Instant::now();
    let plan = plan_pool(pgs, 2, &c);
    let took = begin.elapsed();
    assert!(plan.iter().all(|g| g.len() == 2));
    assert!(took.as_secs() < 10, "{took:?}");
    let per = |d: DeviceId| SdsId((d.get() - 1) / 10 + 1);
    let mut servers: BTreeMap<SdsId, usize> = BTreeMap::new();
    for d in plan.iter().flatten() {
        *servers.entry(per(*d)).or_default() += 1;
    }
    let share = pgs as usize * 2 / 1000;
    let max = servers.values().max().copied().unwrap();
    assert!(max <= share + share / 16 + 2, "{max} of {share}");
}

fn distinct(list: &[DeviceId], c: &[Candidate], sets: bool) -> bool {
    let of = |d: &DeviceId| c.iter().find(|x| x.device == *d).unwrap();
    let keys: BTreeSet<u64> = list
        .iter()
        .map(|d| if sets { of(d).fault_set.unwrap() as u64 } else { of(d).sds.get() as u64 })
        .collect();
    keys.len() == list.len()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn copies_are_on_distinct_servers_and_fault_sets(
        servers in 1u32..12, per in 1u32..4, sets in proptest::option::of(1u32..6),
        copies in 1usize..4, pg in 0u32..1000,
    ) {
        let c = cluster(servers, per, sets);
        let list = place(pg, copies, &c);
        prop_assert_eq!(list.len(), copies.min(servers as usize));
        prop_assert!(distinct(&list, &c, false));
        let have = sets.map_or(0, |n| n.min(servers)) as usize;
        if have >= copies {
            prop_assert!(distinct(&list, &c, true));
        }
    }

    /// Bound on imbalance: share by weight, plus 1/64, plus two groups, where there is a choice.
    #[test]
    fn no_device_holds_much_more_than_its_share(servers in 4u32..12, per in 1u32..4, copies in 1usize..3) {
        let c = cluster(servers, per, None);
        let plan = plan_pool(512, copies, &c);
        let n = counts(plan.iter().flatten());
        let share = 512.0 * copies as f64 / c.len() as f64;
        let (_, max) = spread(&n, c.len());
        prop_assert!(max as f64 <= share * (1.0 + 1.0 / 64.0) + 2.0, "{} of {}", max, share);
        let (min, max) = spread(&counts(plan.iter().filter_map(|g| g.first())), c.len());
        prop_assert!(copies == 1 || max - min <= 3, "primaries {}..{}", min, max);
    }

    /// Bound on movement: only groups that held the lost device change, and only in that one place.
    #[test]
    fn losing_a_device_moves_only_its_own_copies(servers in 4u32..10, lost in 0usize..4, copies in 1usize..4) {
        let c = cluster(servers, 1, None);
        let gone = c[lost].device;
        let rest: Vec<_> = c.iter().filter(|x| x.device != gone).copied().collect();
        for pg in 0..128 {
            let before = place(pg, copies, &c);
            let after = replace(pg, copies, &before, &rest);
            let fresh = place(pg, copies, &rest);
            if before.contains(&gone) {
                let kept: Vec<_> = before.iter().filter(|d| **d != gone).copied().collect();
                prop_assert!(kept.iter().all(|d| after.contains(d)));
                prop_assert_eq!(after.len(), copies.min(servers as usize - 1));
            } else {
                prop_assert_eq!(&after, &before);
                prop_assert_eq!(&fresh, &before);
            }
            prop_assert!(distinct(&after, &rest, false));
        }
    }

    /// A new device takes over its share and nothing moves between the others.
    #[test]
    fn a_new_device_takes_only_for_itself(servers in 3u32..10) {
        let new = cluster(servers + 1, 1, None);
        let old = &new[..servers as usize];
        let mut moved = 0;
        for pg in 0..512 {
            let (a, b) = (place(pg, 2, old), place(pg, 2, &new));
            let came: Vec<_> = b.iter().filter(|d| !a.contains(d)).collect();
            prop_assert!(came.iter().all(|d| d.get() == servers + 1));
            moved += came.len();
        }
        let share = 1024.0 / (servers as f64 + 1.0);
        prop_assert!((moved as f64) < share * 1.35 + 10.0, "{} moved, share {}", moved, share);
    }
}

/// Carries out all moves, a round after the other.
fn even_out(lists: &mut [Vec<DeviceId>], copies: usize, c: &[Candidate]) -> usize {
    let mut n = 0;
    for _ in 0..64 {
        let moves = rebalance(lists, copies, c, 10_000);
        if moves.is_empty() {
            return n;
        }
        n += moves.len();
        for m in moves {
            let list = &mut lists[m.group as usize];
            let at = list.iter().position(|d| *d == m.from).unwrap();
            assert!(!list.contains(&m.to));
            list[at] = m.to;
        }
    }
    panic!("it does not come to rest");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// New servers get their share, by little more moves than that, and no two copies come together.
    #[test]
    fn rebalancing_fills_new_devices_and_moves_little(
        servers in 3u32..8, more in 1u32..4, per in 1u32..3, copies in 1usize..4,
        sets in proptest::option::of(3u32..6),
    ) {
        let new = cluster(servers + more, per, sets);
        let old = &new[..(servers * per) as usize];
        let mut lists = plan_pool(256, copies, old);
        let moved = even_out(&mut lists, copies, &new);
        let n = counts(lists.iter().flatten());
        for l in &lists {
            prop_assert!(distinct(l, &new, false));
            prop_assert_eq!(l.len(), copies);
        }
        prop_assert!(!together(&lists, copies, &new));
        if sets.is_none() {
            let share = 256.0 * copies as f64 / new.len() as f64;
            for c in &new {
                let has = n.get(&c.device).copied().unwrap_or(0) as f64;
                prop_assert!((has - share).abs() <= 2.0, "{} of {}", has, share);
            }
            let fair = share * f64::from(more * per);
            prop_assert!(moved as f64 <= fair * 1.1 + 16.0, "{} moved, {} would do", moved, fair);
        }
        prop_assert!(rebalance(&lists, copies, &new, 10).is_empty(), "at rest");
    }

    /// Copies that would fail together are parted once there are fault sets.
    #[test]
    fn new_fault_sets_part_copies(servers in 4u32..9, copies in 2usize..4) {
        let flat = cluster(servers, 1, None);
        let mut lists = plan_pool(128, copies, &flat);
        let sets = cluster(servers, 1, Some(copies as u32 + 1));
        even_out(&mut lists, copies, &sets);
        for l in &lists {
            prop_assert!(distinct(l, &sets, true), "{:?}", l);
        }
    }
}
