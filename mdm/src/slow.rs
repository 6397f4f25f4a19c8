//! Where the time of requests goes: what the clients of a volume see, what servers say of the writes that they lead, what
//! their disks take (promise 6, "slow").
//!
//! All figures are means of the last ten seconds, by device: devices of a pool are compared with each other and with no
//! others. They are of everything in that pool: a server does not tell volumes apart. Concluded is only what stands out (nothing
//! is slow by itself, a copy is slower than others), and where two causes look alike both are named.

use crate::control::{disk_figures, Figures, HubInner};
use crate::state::{Ack, State};
use quarry_base::{DeviceId, Nanos, PgId, PoolId, SdsId};
use quarry_control::{led_times, COPIES_LEFT_OUT, COPY_TIMES, LED_TIMES};
use serde_json::{json, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a server said longer ago than this is not of now.
const FRESH: Duration = Duration::from_millis(1500);
/// Within this time after a change of a group its requests were sent again, and their time is in no server's figures.
const SETTLED: Duration = Duration::from_secs(15);
/// Of fewer writes nothing is concluded.
const FEWEST: u64 = 10;
/// Of fewer operations of a disk nothing is concluded.
const FEWEST_OPS: u64 = 4;
/// Less than this is not slow, microseconds, ...
const SLOW_US: u64 = 5_000;
/// ... nor what is not so many times what the others take.
const TIMES: u64 = 4;
/// What is slow although no device is slower than the others, microseconds.
const ALL_SLOW_US: u64 = 50_000;
/// Mean size of a client's writes above which they are parts of several groups, bytes.
const LARGE: f64 = 128.0 * 1024.0;
/// Rows of primaries shown at most, the slowest.
const SHOWN: usize = 8;

/// What the clients of a volume saw lately: requests a second, how long one takes in seconds, bytes written a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub writes: f64,
    pub write_seconds: Option<f64>,
    pub write_bytes: f64,
    pub reads: f64,
    pub read_seconds: Option<f64>,
}

/// What a server says of the writes that it led on one of its devices.
#[derive(Clone, Debug, Default)]
struct Led {
    count: u64,
    mean_us: u64,
    admit_us: u64,
    own_count: u64,
    own_us: u64,
}

/// A mean, and of how many.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    us: u64,
    count: u64,
}

impl Mean {
    fn join(&mut self, o: Mean) {
        let sum =
            u128::from(self.us) * u128::from(self.count) + u128::from(o.us) * u128::from(o.count);
        self.count = self.count.saturating_add(o.count);
        let us = sum.checked_div(u128::from(self.count)).unwrap_or(0);
        self.us = u64::try_from(us).unwrap_or(u64::MAX);
    }
}

/// Reasons with advice, and the figures.
#[derive(Debug, Default)]
pub struct Found {
    pub why: Vec<(String, String)>,
    /// `null`: nothing was written or read.
    pub timing: Value,
}

/// Looks at the writes of some groups; `seen` by the clients of the volume in question.
pub fn look(
    s: &State,
    hub: &HubInner,
    pgs: &BTreeSet<PgId>,
    seen: Option<Seen>,
    at: Nanos,
) -> Found {
    let configs = || pgs.iter().filter_map(|p| s.pgs.get(p)).map(|p| &p.config);
    let primaries: BTreeSet<DeviceId> = configs().filter_map(|c| c.primary).collect();
    let members: BTreeSet<DeviceId> =
        configs().flat_map(|c| c.in_sync.iter().map(|m| m.device)).collect();
    let told = Told::of(s, hub, at);
    let look = Look { s, told: &told, disks: &disk_figures(hub, at) };
    let pools: BTreeSet<PoolId> = pgs.iter().map(|p| p.pool()).collect();
    let mut why = Vec::new();
    for pool in pools {
        let mine: BTreeSet<DeviceId> = s.pool_devices(pool).map(|d| d.id).collect();
        why.extend(look.pool(&mine, &members));
    }
    let led: Vec<(DeviceId, &Led)> =
        told.led.iter().filter(|(d, _)| primaries.contains(d)).map(|(d, l)| (*d, l)).collect();
    why.extend(led.iter().filter_map(|(d, l)| look.admission(*d, l)));
    let changed = |p: &PgId| hub.pgs.get(p).is_none_or(|l| at.since(l.changed) < SETTLED);
    let cached = pgs.iter().any(|p| s.pools.get(&p.pool()).is_some_and(|p| p.ack == Ack::Cached));
    if let Some(seen) = seen.filter(|_| !cached && !pgs.iter().any(changed)) {
        why.extend(before(&led, seen));
    }
    Found { why, timing: look.timing(led, seen) }
}

/// What all servers that were heard a moment ago say.
#[derive(Default)]
struct Told {
    led: BTreeMap<DeviceId, Led>,
    /// By the server that led, and the member's device.
    copies: BTreeMap<(SdsId, DeviceId), Mean>,
    /// Servers that tell of their slowest members only.
    partly: BTreeSet<SdsId>,
}

impl Told {
    fn of(s: &State, hub: &HubInner, at: Nanos) -> Told {
        let mut told = Told::default();
        for (id, l) in &hub.sds {
            if l.session.is_none() || at.since(l.heard) > FRESH {
                continue;
            }
            for d in s.devices.values().filter(|d| d.sds == *id) {
                let [count, mean_us, admit_us, own_count, own_us] =
                    LED_TIMES.map(|w| l.counters.get(&led_times(d.id, w)).copied().unwrap_or(0));
                if count > 0 {
                    told.led.insert(d.id, Led { count, mean_us, admit_us, own_count, own_us });
                }
            }
            let from = l.counters.range(COPY_TIMES.to_string()..);
            for (name, n) in from.take_while(|(name, _)| name.starts_with(COPY_TIMES)) {
                let Some((device, what)) =
                    name.strip_prefix(COPY_TIMES).and_then(|x| x.split_once('.'))
                else {
                    continue;
                };
                let Ok(device) = device.parse().map(DeviceId) else { continue };
                let m = told.copies.entry((*id, device)).or_default();
                match what {
                    "mean_us" => m.us = *n,
                    "count" => m.count = *n,
                    _ => {}
                }
            }
            told.partly.extend(l.counters.contains_key(COPIES_LEFT_OUT).then_some(*id));
        }
        told
    }

    /// How long writes take to be durable on a device: those that it leads, or those that others lead, whichever is longer.
    fn durable(&self, device: DeviceId) -> Option<Mean> {
        let own = self.led.get(&device).map(|l| Mean { us: l.own_us, count: l.own_count });
        let of: Vec<_> = self.copies.iter().filter(|(k, _)| k.1 == device).collect();
        let partly = of.iter().all(|(k, _)| self.partly.contains(&k.0));
        if own.is_none() && partly && of.len() < 2 {
            // One server that tells of the slowest only: others may find it quick.
            return None;
        }
        let mut copies = Mean::default();
        of.iter().for_each(|(_, m)| copies.join(**m));
        // Not their mean: what it leads itself knows no network, and would hide one that is slow.
        let both = [own.unwrap_or_default(), copies];
        both.into_iter().filter(|m| m.count >= FEWEST).max_by_key(|m| m.us)
    }
}

/// Much of what clients wait for is before the servers.
fn before(led: &[(DeviceId, &Led)], seen: Seen) -> Option<(String, String)> {
    let mut theirs = Mean::default();
    led.iter().for_each(|(_, l)| theirs.join(Mean { us: l.mean_us, count: l.count }));
    let us = (seen.write_seconds? * 1e6) as u64;
    let rest = us.saturating_sub(theirs.us);
    let large = seen.write_bytes > LARGE * seen.writes;
    (theirs.count >= FEWEST && !large && rest >= SLOW_US && rest >= us / 2).then(|| {
        (
            format!("a write takes {} at the client and {} at the servers: the rest is before them: in the client's queue, on the network, or in requests that are sent again", ms(us), ms(theirs.us)),
            "on the client's host: ping and `ss -ti` to the servers, processor time of sdc-nbd and of what uses the volume, quarry_sdc_retries_total; many writes to the same blocks wait for each other".to_string(),
        )
    })
}

struct Look<'a> {
    s: &'a State,
    told: &'a Told,
    disks: &'a BTreeMap<DeviceId, Figures>,
}

impl Look<'_> {
    /// The server of a device.
    fn sds(&self, device: DeviceId) -> &str {
        let sds = self.s.devices.get(&device).and_then(|d| self.s.sds.get(&d.sds));
        sds.map_or("?", |x| x.name.as_str())
    }

    /// Members that are slower than the other devices of their pool.
    fn pool(
        &self,
        pool: &BTreeSet<DeviceId>,
        members: &BTreeSet<DeviceId>,
    ) -> Vec<(String, String)> {
        let durable: BTreeMap<DeviceId, u64> =
            pool.iter().filter_map(|d| Some((*d, self.told.durable(*d)?.us))).collect();
        let mut slow = Vec::new();
        for (d, us) in durable.iter().filter(|(d, _)| members.contains(d)) {
            let mut others: Vec<u64> = durable.iter().filter(|o| o.0 != d).map(|o| *o.1).collect();
            others.sort_unstable();
            let Some(usual) = others.get(others.len() / 2).copied() else { continue };
            if *us >= SLOW_US && *us >= usual.saturating_mul(TIMES) {
                slow.push(self.one(*d, *us, usual));
            }
        }
        if slow.is_empty() {
            slow.extend(pool.intersection(members).filter_map(|d| self.sender(*d, pool)));
        }
        if slow.is_empty() {
            let fastest = durable.values().min().filter(|us| **us >= ALL_SLOW_US);
            slow.extend(fastest.map(|us| {
                (
                    format!("writes are slow on every device of the pool: {} until one is durable on the fastest", ms(*us)),
                    "the disks are at their limit, or share one: fewer writes, more or faster devices".to_string(),
                )
            }));
        }
        slow
    }

    /// A primary whose copies are late on all members alike, though its own are not: it is what they have in common.
    fn sender(&self, device: DeviceId, pool: &BTreeSet<DeviceId>) -> Option<(String, String)> {
        let sds = self.s.devices.get(&device)?.sds;
        let own = self.told.led.get(&device).filter(|l| l.own_count >= FEWEST)?.own_us;
        let copies = self.told.copies.iter().filter(|(k, m)| k.0 == sds && m.count >= FEWEST);
        let us: Vec<u64> = copies.filter(|(k, _)| pool.contains(&k.1)).map(|(_, m)| m.us).collect();
        let least = us.iter().copied().min().filter(|_| us.len() > 1)?;
        (least >= SLOW_US && least >= own.saturating_mul(TIMES)).then(|| {
            let name = self.sds(device);
            (
                format!("copies of what sds {name} leads are late on all their servers alike ({} at least, {} on itself): it is the way from it, or its host", ms(least), ms(own)),
                format!("look at the network of the host of sds {name} (ping, `ss -ti`, how full the link is) and at what else runs there"),
            )
        })
    }

    fn one(&self, device: DeviceId, us: u64, usual: u64) -> (String, String) {
        let name = self.sds(device);
        let what = format!(
            "writes are durable on device {device} of sds {name} after {}, on others of the pool after {}",
            ms(us),
            ms(usual)
        );
        let half = |x: u64| x.saturating_mul(2) >= us;
        let disk = self.disks.get(&device).filter(|f| f.ops >= FEWEST_OPS).map(|f| f.median_us);
        if let Some(median) = disk.filter(|m| half(*m)) {
            return (
                format!("{what}: the disk takes {} for half of its operations", ms(median)),
                format!("look at that disk (SMART, dmesg, who else uses it); if it stays so: scli device drain --id {device}"),
            );
        }
        let host = format!("what else runs on the host of sds {name}");
        // Of those that it leads itself no network is in the time.
        let own = self.told.led.get(&device).filter(|l| l.own_count >= FEWEST).map(|l| l.own_us);
        match own {
            Some(own) if half(own) => (
                format!("{what}; those that it leads itself, too ({}): it is the disk, or the host", ms(own)),
                format!("look at the disk (quarry_device_request_seconds, SMART, dmesg) and at {host}"),
            ),
            Some(own) => (
                format!("{what}, those that it leads itself after {}: it is the way to it, or its host", ms(own)),
                format!("look at the network to it (ping, `ss -ti`) and at {host}"),
            ),
            None => (
                format!("{what}: the disk, the host, or the way to it"),
                format!("look at the disk (quarry_device_request_seconds), the network to it (ping, `ss -ti`) and at {host}"),
            ),
        }
    }

    /// Writes wait before they have their place in the order.
    fn admission(&self, device: DeviceId, l: &Led) -> Option<(String, String)> {
        let waits = l.admit_us >= SLOW_US && l.admit_us >= l.mean_us / 2 && l.count >= FEWEST;
        waits.then(|| {
            (
                format!("at sds {}, of the {} that a write takes it waits {} before it is begun: for room in a log or on a device, for writes of the same blocks, for enough copies, or for the rest of a page that it is a part of", self.sds(device), ms(l.mean_us), ms(l.admit_us)),
                "quarry_sds_events_total there says what for: window_waits (many writes at once), log_waits (disks slower than the writes), credit_waits (a member short of space), merges (writes that are no whole pages)".to_string(),
            )
        })
    }

    fn timing(&self, mut led: Vec<(DeviceId, &Led)>, seen: Option<Seen>) -> Value {
        let seen = seen.filter(|x| x.write_seconds.is_some() || x.read_seconds.is_some());
        if led.is_empty() && seen.is_none() {
            return Value::Null;
        }
        led.sort_by_key(|(d, l)| (std::cmp::Reverse(l.mean_us), *d));
        let row = |(d, l): &(DeviceId, &Led)| {
            let place = self.s.devices.get(d).map(|x| (x.sds, x.pool));
            let (sds, pool) = place.unwrap_or_default();
            let of = self.told.copies.iter().filter(|(k, _)| k.0 == sds);
            let same = of.filter(|(k, _)| self.s.devices.get(&k.1).is_some_and(|x| x.pool == pool));
            let copies = same.map(
                |(k, m)| json!({"sds": self.sds(k.1), "device": k.1, "seconds": seconds(m.us)}),
            );
            json!({
                "sds": self.sds(*d), "device": d, "writes": l.count, "write_seconds": seconds(l.mean_us),
                "admit_seconds": seconds(l.admit_us), "own_seconds": seconds(l.own_us),
                "copies": copies.collect::<Vec<_>>(),
            })
        };
        let client = seen.map(|x| {
            json!({
                "writes_per_second": x.writes, "write_seconds": x.write_seconds,
                "reads_per_second": x.reads, "read_seconds": x.read_seconds,
            })
        });
        json!({"client": client, "servers": led.iter().take(SHOWN).map(row).collect::<Vec<_>>()})
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn ms(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..100_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => format!("{} ms", us / 1000),
    }
}

#[cfg(test)]
mod tests;
