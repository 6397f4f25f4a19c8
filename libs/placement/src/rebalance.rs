//! Evening out a pool that has its layout already: the fewest moves of one copy each.
//!
//! Every device has a share of all copies by its weight; a fault domain never more than one copy of each group. First
//! copies that share a domain are parted, then copies go from the device that has most above its share to the one
//! that lacks most, as long as a move brings both nearer to their shares. Nothing else moves.

use crate::tree::Tree;
use crate::Candidate;
use quarry_base::{DeviceId, SdsId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// One copy of a group goes from a device to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    pub group: u32,
    pub from: DeviceId,
    pub to: DeviceId,
}

/// What a device has above its share, in millionths, and the device: whole numbers can be ordered.
type Rank = (i64, Reverse<DeviceId>);

fn rank(device: DeviceId, over: f64) -> Rank {
    ((over * 1e6).round() as i64, Reverse(device))
}

struct Plan<'a> {
    lists: Vec<Vec<DeviceId>>,
    /// Server and fault domain of each candidate.
    place: BTreeMap<DeviceId, (SdsId, usize)>,
    /// Copies above the share.
    over: BTreeMap<DeviceId, f64>,
    /// The devices by that, the emptiest first.
    order: BTreeSet<Rank>,
    groups: HashMap<DeviceId, Vec<u32>>,
    /// Groups that move no more: they have, or may not now.
    fixed: Vec<bool>,
    devices: &'a [Candidate],
}

/// At most `limit` moves that even out the groups on `lists`, in the order to make them; a group moves once.
/// Devices that are no candidates keep what they have.
pub fn rebalance(
    lists: &[Vec<DeviceId>],
    copies: usize,
    devices: &[Candidate],
    limit: usize,
) -> Vec<Move> {
    rebalance_where(lists, copies, devices, limit, |_| true)
}

/// The same where some groups may not move now: they stay, count for what their devices have, and others move in their
/// place where that helps as well.
pub fn rebalance_where(
    lists: &[Vec<DeviceId>],
    copies: usize,
    devices: &[Candidate],
    limit: usize,
    may_move: impl Fn(u32) -> bool,
) -> Vec<Move> {
    let mut p = Plan::new(lists, copies, devices);
    p.fixed = (0..lists.len()).map(|g| !may_move(g as u32)).collect();
    let mut out = Vec::new();
    p.part(&mut out, limit);
    while out.len() < limit {
        match p.best() {
            Some(m) => p.apply(m, &mut out),
            None => break,
        }
    }
    out
}

/// True if a group has two copies in one fault domain although there are enough domains.
pub fn together(lists: &[Vec<DeviceId>], copies: usize, devices: &[Candidate]) -> bool {
    let p = Plan::new(lists, copies, devices);
    (0..lists.len()).any(|g| p.pair(g).is_some_and(|from| p.target(g as u32, from).is_some()))
}

impl<'a> Plan<'a> {
    fn new(lists: &[Vec<DeviceId>], copies: usize, devices: &'a [Candidate]) -> Plan<'a> {
        let tree = Tree::build(devices, copies);
        let mut place = BTreeMap::new();
        for (i, d) in tree.domains.iter().enumerate() {
            for s in &d.servers {
                place.extend(s.devices.iter().map(|x| (x.0, (s.id, i))));
            }
        }
        let mut groups: HashMap<DeviceId, Vec<u32>> = HashMap::new();
        for (g, list) in lists.iter().enumerate() {
            for d in list.iter().filter(|d| place.contains_key(d)) {
                groups.entry(*d).or_default().push(g as u32);
            }
        }
        let total: usize = groups.values().map(Vec::len).sum();
        let mut over = shares(&tree, total as f64, lists.len() as f64);
        for (d, share) in &mut over {
            *share = groups.get(d).map_or(0, Vec::len) as f64 - *share;
        }
        Plan {
            lists: lists.to_vec(),
            place,
            order: over.iter().map(|(d, o)| rank(*d, *o)).collect(),
            over,
            groups,
            fixed: vec![false; lists.len()],
            devices,
        }
    }

    fn is_free(&self, g: u32) -> bool {
        self.fixed.get(g as usize) == Some(&false)
    }

    /// A copy of the group that shares a domain with an earlier one.
    fn pair(&self, g: usize) -> Option<DeviceId> {
        let list = self.lists.get(g)?;
        let at = |d: &DeviceId| self.place.get(d).map(|p| p.1);
        list.iter().enumerate().find_map(|(i, d)| {
            let mine = at(d)?;
            list.get(..i)?.iter().any(|e| at(e) == Some(mine)).then_some(*d)
        })
    }

    fn part(&mut self, out: &mut Vec<Move>, limit: usize) {
        for g in 0..self.lists.len() {
            if out.len() >= limit {
                return;
            }
            let Some(from) = self.pair(g).filter(|_| self.is_free(g as u32)) else { continue };
            if let Some(to) = self.target(g as u32, from) {
                self.apply(Move { group: g as u32, from, to }, out);
            }
        }
    }

    /// May the copy of the group on `from` be on `to` instead?
    fn fits(&self, g: u32, from: DeviceId, to: DeviceId) -> bool {
        let Some(list) = self.lists.get(g as usize) else { return false };
        let Some(place) = self.place.get(&to) else { return false };
        let clash = |d: &DeviceId| {
            *d == to
                || self.place.get(d).map_or_else(
                    // Not a candidate now: at least not the same server.
                    || self.devices.iter().any(|c| c.device == *d && c.sds == place.0),
                    |p| p.0 == place.0 || p.1 == place.1,
                )
        };
        !list.iter().filter(|d| **d != from).any(clash)
    }

    /// The emptiest device that fits.
    fn target(&self, g: u32, from: DeviceId) -> Option<DeviceId> {
        let fit = self.over.iter().filter(|(d, _)| **d != from && self.fits(g, from, **d));
        fit.min_by(|a, b| a.1.total_cmp(b.1).then(a.0.cmp(b.0))).map(|x| *x.0)
    }

    /// The move that helps most.
    fn best(&self) -> Option<Move> {
        for (more, Reverse(from)) in self.order.iter().rev() {
            let groups = self.groups.get(from).map(Vec::as_slice).unwrap_or_default();
            if !groups.iter().any(|g| self.is_free(*g)) {
                continue;
            }
            for (less, Reverse(to)) in &self.order {
                if more - less <= 1_000_001 {
                    break;
                }
                let fit = |g: &&u32| self.is_free(**g) && self.fits(**g, *from, *to);
                if let Some(g) = groups.iter().find(fit) {
                    return Some(Move { group: *g, from: *from, to: *to });
                }
            }
            // Where even the fullest and the emptiest are near, nobody is far.
            if self.order.first().is_none_or(|(less, _)| more - less <= 1_000_001) {
                break;
            }
        }
        None
    }

    fn apply(&mut self, m: Move, out: &mut Vec<Move>) {
        let g = m.group as usize;
        if let Some(d) = self.lists.get_mut(g).and_then(|l| l.iter_mut().find(|d| **d == m.from)) {
            *d = m.to;
        }
        if let Some(fixed) = self.fixed.get_mut(g) {
            *fixed = true;
        }
        self.groups.entry(m.from).or_default().retain(|x| *x != m.group);
        self.groups.entry(m.to).or_default().push(m.group);
        for (d, by) in [(m.from, -1.0), (m.to, 1.0)] {
            let over = self.over.entry(d).or_default();
            self.order.remove(&rank(d, *over));
            *over += by;
            self.order.insert(rank(d, *over));
        }
        out.push(m);
    }
}

/// Share of each device of `total` copies of `groups` groups: by weight, a domain at most one copy a group.
fn shares(tree: &Tree, total: f64, groups: f64) -> BTreeMap<DeviceId, f64> {
    let weight = |d: &crate::tree::Domain| d.servers.iter().map(|s| s.weight).sum::<f64>();
    let mut share: Vec<Option<f64>> = vec![None; tree.domains.len()];
    let mut left = total;
    loop {
        let open = || tree.domains.iter().zip(&share).filter(|(_, s)| s.is_none());
        let sum: f64 = open().map(|(d, _)| weight(d)).sum();
        let over: Vec<usize> = (0..share.len())
            .filter(|i| share[*i].is_none() && left * weight(&tree.domains[*i]) / sum > groups)
            .collect();
        if over.is_empty() {
            for (i, d) in tree.domains.iter().enumerate() {
                if share[i].is_none() {
                    share[i] = Some(left * weight(d) / sum);
                }
            }
            break;
        }
        for i in over {
            share[i] = Some(groups);
            left -= groups;
        }
    }
    let mut out = BTreeMap::new();
    for (d, s) in tree.domains.iter().zip(share) {
        let part = s.unwrap_or(0.0) / weight(d);
        for server in &d.servers {
            out.extend(server.devices.iter().map(|x| (x.0, part * x.1)));
        }
    }
    out
}
