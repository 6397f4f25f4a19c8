//! What stands out among the devices of one pool.
//!
//! Two kinds of evidence, kept apart: what writes take on the primary's own device, in which no network is, judges disks and hosts;
//! what copies take between two servers that are quick by themselves judges the network. A delay of the sender's own would be in
//! the second; so senders that are slow themselves say nothing of others. Of a device that leads nothing, or alone does, only the
//! disk's service time is there to compare.

use super::{ms, Copies, Led, Reason, Told, ALL_SLOW_US, FEWEST, SLOW_US};
use crate::control::Figures;
use crate::state::{Ack, State};
use quarry_base::{DeviceId, PoolId, SdsId};
use std::collections::{BTreeMap, BTreeSet};

/// What is not so many times what the others take does not stand out.
const TIMES: u64 = 4;
/// Of fewer operations of a disk nothing is concluded.
const FEWEST_OPS: u64 = 4;
/// Of fewer copies nothing is concluded: a hiccup of a disk is not to be taken for the network.
const FEWEST_COPIES: u64 = 100;
/// Servers named at most.
const SERVERS: usize = 8;
/// Pairs named at most.
const PAIRS: usize = 3;

pub(super) struct Pool<'a> {
    s: &'a State,
    /// What they take on the primary's own device.
    own: BTreeMap<DeviceId, u64>,
    /// Median service time of their disks.
    disk: BTreeMap<DeviceId, u64>,
    copies: BTreeMap<(SdsId, DeviceId), Copies>,
    partly: &'a BTreeSet<SdsId>,
    /// What has happened to a write then.
    done: &'static str,
}

/// What a slow device takes, and what others take; of writes, or of the disk's operations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Slow {
    us: u64,
    usual: u64,
    disk: bool,
}

/// Replication from one server to another.
#[derive(Clone, Copy, Debug)]
struct Pair {
    from: SdsId,
    to: SdsId,
    us: u64,
    late: bool,
    /// What writes take on the receiver itself is known.
    sure: bool,
}

impl<'a> Pool<'a> {
    pub(super) fn new(
        s: &'a State,
        told: &'a Told,
        disks: &BTreeMap<DeviceId, Figures>,
        pool: PoolId,
    ) -> Pool<'a> {
        let here = |d: &DeviceId| s.devices.get(d).is_some_and(|d| d.pool == Some(pool));
        let own = told.led.iter().filter(|(d, l)| here(d) && l.own_count >= FEWEST);
        let disk = disks.iter().filter(|(d, f)| here(d) && f.ops >= FEWEST_OPS);
        let copies = told.copies.iter().filter(|(k, m)| here(&k.1) && m.count >= FEWEST_COPIES);
        let cached = s.pools.get(&pool).is_some_and(|p| p.ack == Ack::Cached);
        Pool {
            s,
            own: own.map(|(d, l): (&DeviceId, &Led)| (*d, l.own_us)).collect(),
            disk: disk.map(|(d, f)| (*d, f.median_us)).collect(),
            copies: copies.map(|(k, m)| (*k, *m)).collect(),
            partly: &told.partly,
            done: if cached { "written" } else { "durable" },
        }
    }

    /// `primaries` and `members` of the groups in question.
    pub(super) fn reasons(
        &self,
        primaries: &BTreeSet<DeviceId>,
        members: &BTreeSet<DeviceId>,
    ) -> Vec<Reason> {
        let slow = self.slow_devices();
        let named = self.by_server(&slow, members).into_values();
        let mut why: Vec<Reason> = named.take(SERVERS).collect();
        why.extend(self.network(&slow, primaries, members));
        // Of most devices it has to be known.
        let told: BTreeSet<&DeviceId> = self.own.keys().chain(self.disk.keys()).collect();
        let most = self.own.len() > 1 && self.own.len() * 2 > told.len();
        let fastest = self.own.values().min().filter(|us| most && **us >= ALL_SLOW_US);
        why.extend(fastest.filter(|_| why.is_empty()).map(|us| {
            (
                format!(
                    "writes are slow on every device of the pool: {} until {} on the fastest",
                    ms(*us),
                    self.done
                ),
                "the disks are at their limit, or share one: fewer writes, more or faster devices"
                    .to_string(),
            )
        }));
        why
    }

    fn server(&self, device: DeviceId) -> Option<SdsId> {
        self.s.devices.get(&device).map(|d| d.sds)
    }

    fn name(&self, id: SdsId) -> &str {
        self.s.sds.get(&id).map_or("?", |x| x.name.as_str())
    }

    /// Devices that are slow themselves, with what they take and what others take.
    fn slow_devices(&self) -> BTreeMap<DeviceId, Slow> {
        let own = outliers(&self.own).into_iter();
        let mut slow: BTreeMap<DeviceId, Slow> =
            own.map(|(d, (us, usual))| (d, Slow { us, usual, disk: false })).collect();
        let copies = self.copies.iter().filter(|(_, m)| m.us >= SLOW_US);
        let late: BTreeSet<DeviceId> = copies.map(|(k, _)| k.1).collect();
        // Where what it leads cannot be compared the disk is; it counts if its writes are late, too.
        let few = self.own.len() < 3;
        for (d, (us, usual)) in outliers(&self.disk) {
            let counts = match self.own.get(&d) {
                Some(own) => few && *own >= SLOW_US,
                None => late.contains(&d),
            };
            if counts {
                slow.entry(d).or_insert(Slow { us, usual, disk: true });
            }
        }
        slow
    }

    /// Those of `members`, a reason for each server.
    fn by_server(
        &self,
        slow: &BTreeMap<DeviceId, Slow>,
        members: &BTreeSet<DeviceId>,
    ) -> BTreeMap<SdsId, Reason> {
        let told: BTreeSet<&DeviceId> = self.own.keys().chain(self.disk.keys()).collect();
        // Servers with a device that is not slow.
        let quick = told.into_iter().filter(|d| !slow.contains_key(d));
        let quick: BTreeSet<SdsId> = quick.filter_map(|d| self.server(*d)).collect();
        let mut servers: BTreeMap<SdsId, Vec<DeviceId>> = BTreeMap::new();
        for d in slow.keys().filter(|d| members.contains(d)) {
            if let Some(sds) = self.server(*d) {
                servers.entry(sds).or_default().push(*d);
            }
        }
        let reason = |(sds, devices): (SdsId, Vec<DeviceId>)| {
            let worst = devices.iter().max_by_key(|d| slow.get(d)).copied()?;
            let Slow { us, usual, disk } = slow.get(&worst).copied()?;
            let name = self.name(sds);
            let all = devices.len() > 1 && !quick.contains(&sds);
            let what = match disk {
                true => format!(
                    "writes to device {worst} of sds {name} are late, and the median service time of its disk is {}, of other disks of the pool {}",
                    ms(us), ms(usual)
                ),
                false => format!(
                    "writes are {} on device {worst} of sds {name} after {}, on other devices of the pool after {}",
                    self.done, ms(us), ms(usual)
                ),
            };
            let r = match (all, self.disk.get(&worst).filter(|m| m.saturating_mul(2) >= us)) {
                (true, _) => (
                    format!("{what}, and all its other devices are slow, too: the host, or what its disks share"),
                    format!("look at the host of sds {name}: processor, memory, the controller of its disks"),
                ),
                (false, Some(m)) => (
                    match disk {
                        true => what,
                        false => format!("{what}: the median service time of the disk is {}", ms(*m)),
                    },
                    format!("look at that disk (SMART, dmesg, who else uses it); if it stays so, drain and replace it: scli device drain --id {worst}"),
                ),
                (false, None) => (
                    format!("{what}: the disk, or the load of the host"),
                    format!("look at the disk (quarry_device_request_seconds, SMART, dmesg) and at what else runs on the host of sds {name}"),
                ),
            };
            Some((sds, r))
        };
        servers.into_iter().filter_map(reason).collect()
    }

    /// Pairs of servers of which both ends are quick by themselves, as far as is known.
    fn pairs(&self, slow: &BTreeMap<DeviceId, Slow>) -> Vec<Pair> {
        let mut senders: BTreeMap<SdsId, u64> = BTreeMap::new();
        for (d, us) in &self.own {
            if let Some(sds) = self.server(*d) {
                let x = senders.entry(sds).or_default();
                *x = (*x).max(*us);
            }
        }
        let mut pairs: BTreeMap<(SdsId, SdsId), Pair> = BTreeMap::new();
        // Of one that tells of its slowest copies only it is not known whether the others are quick.
        let told = self.copies.iter().filter(|(k, _)| !self.partly.contains(&k.0));
        for ((from, device), m) in told {
            let (Some(own), Some(to)) = (senders.get(from).copied(), self.server(*device)) else {
                continue;
            };
            // What a slow sender notes late, or a slow device does, is no network.
            if own.saturating_mul(2) >= m.us.max(SLOW_US) || slow.contains_key(device) {
                continue;
            }
            let there = self.own.get(device).copied();
            let sure = there.is_some();
            let there = there.or(self.disk.get(device).copied()).unwrap_or(0);
            let late = m.us >= SLOW_US && m.us >= own.max(there).saturating_mul(TIMES);
            let p =
                pairs.entry((*from, to)).or_insert(Pair { from: *from, to, us: m.us, late, sure });
            // One quick device of a server is enough: it is not the network to it.
            (p.us, p.late, p.sure) = (p.us.min(m.us), p.late && late, p.sure || sure);
        }
        pairs.into_values().collect()
    }

    fn network(
        &self,
        slow: &BTreeMap<DeviceId, Slow>,
        primaries: &BTreeSet<DeviceId>,
        members: &BTreeSet<DeviceId>,
    ) -> Option<Reason> {
        let pairs = self.pairs(slow);
        let servers = |d: &BTreeSet<DeviceId>| -> BTreeSet<SdsId> {
            d.iter().filter_map(|d| self.server(*d)).collect()
        };
        let (from, to) = (servers(primaries), servers(members));
        let mut late: Vec<Pair> = pairs
            .iter()
            .filter(|p| p.late && from.contains(&p.from) && to.contains(&p.to))
            .copied()
            .collect();
        late.sort_by_key(|p| std::cmp::Reverse(p.us));
        let worst = late.first().copied()?;
        // A server that all late pairs have in common, and no quick one.
        let touches = |p: &Pair, x: SdsId| p.from == x || p.to == x;
        let stands_out = |x: &SdsId| {
            late.iter().all(|p| touches(p, *x)) && !pairs.iter().any(|p| !p.late && touches(p, *x))
        };
        let ends: Vec<SdsId> = [worst.from, worst.to].into_iter().filter(stands_out).collect();
        let disks = match late.iter().all(|p| p.sure) {
            true => "though the disks at both ends are quick",
            false => "and what the secondaries' disks take is not known",
        };
        let r = if let [one] = ends.as_slice() {
            let name = self.name(*one);
            (
                format!("replication between sds {name} and all others takes {}, {disks}: the network of its host, or the load there", ms(worst.us)),
                format!("look at the network of the host of sds {name} (ping, `ss -ti`, how full the link is) and at what else runs there"),
            )
        } else {
            let named = late.iter().take(PAIRS);
            let named: Vec<String> = named
                .map(|p| format!("{} to {} {}", self.name(p.from), self.name(p.to), ms(p.us)))
                .collect();
            let more = late.len().saturating_sub(PAIRS);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            (
                format!("replication is slow ({}{more}), {disks}: the network between these servers, or the load of their hosts", named.join(", ")),
                "look at the network between these hosts (ping, `ss -ti`, how full the links are) and at what else runs there".to_string(),
            )
        };
        Some(r)
    }
}

/// Of some figures those that are slow and many times what the others are, each with the median of the others.
fn outliers(all: &BTreeMap<DeviceId, u64>) -> BTreeMap<DeviceId, (u64, u64)> {
    let mut sorted: Vec<(u64, DeviceId)> = all.iter().map(|(d, us)| (*us, *d)).collect();
    sorted.sort_unstable();
    let middle = sorted.len().saturating_sub(2) / 2;
    let of = |(i, (us, d)): (usize, &(u64, DeviceId))| {
        // Without itself.
        let usual = sorted.get(middle + usize::from(middle >= i)).map(|x| x.0)?;
        (*us >= SLOW_US && *us >= usual.saturating_mul(TIMES)).then_some((*d, (*us, usual)))
    };
    sorted.iter().enumerate().filter_map(of).collect()
}
