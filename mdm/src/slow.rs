//! Where the time of requests goes: what the clients of a volume see, what servers say of the writes that they lead, what
//! their disks take (promise 6, "slow").
//!
//! All figures are means of the last ten seconds, and those of servers are of everything that they do: a server does not tell
//! its volumes apart. Concluded is only what stands out: nothing is slow by itself, a copy is slower than others.

use crate::control::{disk_figures, Figures, HubInner};
use crate::state::State;
use quarry_base::{DeviceId, Nanos, SdsId};
use quarry_control::{copy_times, WRITE_TIMES};
use serde_json::{json, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a server said longer ago than this is not of now.
const FRESH: Duration = Duration::from_millis(1500);
/// Of fewer writes nothing is concluded.
const FEWEST: u64 = 10;
/// Less than this is not slow, microseconds, ...
const SLOW_US: u64 = 5_000;
/// ... nor what is not so many times what the others take.
const TIMES: u64 = 4;
/// What is slow although no server is slower than the others, microseconds.
const ALL_SLOW_US: u64 = 50_000;
/// Servers shown at most, the slowest.
const SHOWN: usize = 8;

/// What the clients of a volume saw lately: requests a second, and how long one takes in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub writes: f64,
    pub write_seconds: Option<f64>,
    pub reads: f64,
    pub read_seconds: Option<f64>,
}

/// What a server says of the writes that it led.
#[derive(Clone, Debug, Default)]
struct Led {
    count: u64,
    mean_us: u64,
    admit_us: u64,
    own_us: u64,
    /// Member, mean, number.
    copies: Vec<(SdsId, u64, u64)>,
}

/// How long writes take to be durable on a server, whoever led them: mean, and how many it is of.
type Durable = BTreeMap<SdsId, (u64, u64)>;

/// Reasons with advice, and the figures.
#[derive(Debug, Default)]
pub struct Found {
    pub why: Vec<(String, String)>,
    /// `null`: nothing was written or read.
    pub timing: Value,
}

/// Looks at the writes led by `servers`; `seen` by the clients of the volume in question.
pub fn look(
    s: &State,
    hub: &HubInner,
    servers: &BTreeSet<SdsId>,
    seen: Option<Seen>,
    at: Nanos,
) -> Found {
    let all: BTreeMap<SdsId, Led> = hub
        .sds
        .iter()
        .filter(|(_, l)| l.session.is_some() && at.since(l.heard) <= FRESH)
        .filter_map(|(id, l)| Some((*id, led(s, &l.counters)?)))
        .collect();
    let durable = durable(&all);
    let disks = disk_figures(hub, at);
    let mine: BTreeMap<SdsId, &Led> =
        all.iter().filter(|(id, _)| servers.contains(id)).map(|(id, l)| (*id, l)).collect();
    let looked = Look { s, all: &all, durable: &durable, disks: &disks };
    let mut why = looked.servers(&mine);
    why.extend(mine.iter().filter_map(|(id, l)| looked.admission(*id, l)));
    why.extend(seen.and_then(|seen| way(&mine, seen)));
    Found { why, timing: looked.timing(&mine, seen) }
}

/// `None`: it led no writes lately.
fn led(s: &State, counters: &BTreeMap<String, u64>) -> Option<Led> {
    let of = |name: &str| counters.get(name).copied();
    let [count, mean_us, admit_us, own_us] = WRITE_TIMES.map(|n| of(n).unwrap_or(0));
    let copies = s.sds.keys().filter_map(|m| {
        let [mean, n] = copy_times(*m);
        Some((*m, of(&mean)?, of(&n)?))
    });
    (count > 0).then(|| Led { count, mean_us, admit_us, own_us, copies: copies.collect() })
}

fn durable(all: &BTreeMap<SdsId, Led>) -> Durable {
    let mut sums: BTreeMap<SdsId, (u64, u64)> = BTreeMap::new();
    for (id, l) in all {
        for (sds, us, n) in l.copies.iter().copied().chain([(*id, l.own_us, l.count)]) {
            let (sum, of) = sums.entry(sds).or_default();
            *sum = sum.saturating_add(us.saturating_mul(n));
            *of += n;
        }
    }
    sums.retain(|_, (_, n)| *n >= FEWEST);
    sums.into_iter().map(|(id, (sum, n))| (id, (sum / n, n))).collect()
}

/// Most of what clients wait for is not at the servers.
fn way(mine: &BTreeMap<SdsId, &Led>, seen: Seen) -> Option<(String, String)> {
    let count: u64 = mine.values().map(|l| l.count).sum();
    let sum: u64 = mine.values().map(|l| l.mean_us.saturating_mul(l.count)).sum();
    let theirs = sum.checked_div(count).filter(|_| count >= FEWEST)?;
    let us = (seen.write_seconds? * 1e6) as u64;
    let rest = us.saturating_sub(theirs);
    (rest >= SLOW_US && rest >= us / 2).then(|| {
        (
            format!("a write takes {} at the client and {} at the servers: the rest is on the way between them, or the client's host is busy", ms(us), ms(theirs)),
            "ping and `ss -ti` between the client's host and the servers; processor time there of sdc-nbd and of what uses the volume".to_string(),
        )
    })
}

struct Look<'a> {
    s: &'a State,
    all: &'a BTreeMap<SdsId, Led>,
    durable: &'a Durable,
    disks: &'a BTreeMap<DeviceId, Figures>,
}

impl Look<'_> {
    fn name(&self, id: SdsId) -> &str {
        self.s.sds.get(&id).map_or("?", |x| x.name.as_str())
    }

    /// The slowest disk of a server: half of its operations take longer than this, microseconds.
    fn disk(&self, id: SdsId) -> Option<(DeviceId, u64)> {
        let own = self.s.devices.values().filter(|d| d.sds == id);
        let told = own.filter_map(|d| Some((d.id, self.disks.get(&d.id)?)));
        told.filter(|(_, f)| f.ops > 0).map(|(d, f)| (d, f.median_us)).max_by_key(|d| d.1)
    }

    /// Those who have copies of what `mine` lead, and are slower than the others.
    fn servers(&self, mine: &BTreeMap<SdsId, &Led>) -> Vec<(String, String)> {
        let copies = mine.values().flat_map(|l| l.copies.iter().map(|c| c.0));
        let concerned: BTreeSet<SdsId> = copies.chain(mine.keys().copied()).collect();
        let mut slow = Vec::new();
        for id in &concerned {
            let Some((us, _)) = self.durable.get(id).copied() else { continue };
            let mut others: Vec<u64> =
                self.durable.iter().filter(|o| o.0 != id).map(|o| o.1 .0).collect();
            others.sort_unstable();
            let Some(usual) = others.get(others.len().saturating_sub(1) / 2).copied() else {
                continue;
            };
            if us >= SLOW_US && us >= usual.saturating_mul(TIMES) {
                slow.push(self.one(*id, us, Some(usual)));
            }
        }
        if slow.is_empty() {
            let all: Vec<_> =
                concerned.iter().filter_map(|id| Some((*id, self.durable.get(id)?.0))).collect();
            let fastest = all.iter().min_by_key(|x| x.1).filter(|x| x.1 >= ALL_SLOW_US);
            slow.extend(fastest.map(|(id, us)| self.one(*id, *us, None)));
        }
        slow
    }

    fn one(&self, id: SdsId, us: u64, others: Option<u64>) -> (String, String) {
        let name = self.name(id);
        let what = match others {
            Some(o) => {
                format!(
                    "writes are durable on sds {name} after {}, on others after {}",
                    ms(us),
                    ms(o)
                )
            }
            None => format!(
                "writes are slow everywhere: durable on sds {name}, the fastest, after {}",
                ms(us)
            ),
        };
        let half = |x: u64| x.saturating_mul(2) >= us;
        let disk = self.disk(id);
        if let Some((d, median)) = disk.filter(|d| half(d.1)) {
            let todo = match others {
                Some(_) => format!("look at that disk (SMART, dmesg, who else uses it); if it stays so: scli device drain --id {d}"),
                None => "the disks are at their limit, or share one: fewer writes, more or faster devices".to_string(),
            };
            let why =
                format!("{what}: its device {d} takes {} for half of its operations", ms(median));
            return (why, todo);
        }
        // Of those that it leads itself no network is in the time.
        let own = self.all.get(&id).filter(|l| l.count >= FEWEST).map(|l| l.own_us);
        let host = format!("what else runs on the host of sds {name}");
        match (own, disk) {
            (Some(own), _) if half(own) => (
                format!("{what}; those that it leads itself, too ({}): it is one of its disks, or its host", ms(own)),
                format!("look at its disks (quarry_device_request_seconds by device, SMART, dmesg) and at {host}"),
            ),
            (None, None) => (what, format!("look at its disks, its network and at {host}")),
            (own, disk) => {
                let local = own.or(disk.map(|d| d.1)).unwrap_or(0);
                (
                    format!("{what}, but its own disks take {} only: it is on the way to it, or its host", ms(local)),
                    format!("look at the network to it (ping, `ss -ti`) and at {host}"),
                )
            }
        }
    }

    /// Writes wait before they have their place in the order.
    fn admission(&self, id: SdsId, l: &Led) -> Option<(String, String)> {
        let waits = l.admit_us >= SLOW_US && l.admit_us >= l.mean_us / 2 && l.count >= FEWEST;
        waits.then(|| {
            (
                format!("at sds {}, of the {} that a write takes it waits {} before it is begun: for room in a log or on a device, or for writes of the same blocks", self.name(id), ms(l.mean_us), ms(l.admit_us)),
                "quarry_sds_events_total there says what for: window_waits (many writes at once), log_waits (disks slower than the writes), credit_waits (a member short of space)".to_string(),
            )
        })
    }

    fn timing(&self, mine: &BTreeMap<SdsId, &Led>, seen: Option<Seen>) -> Value {
        let seen = seen.filter(|x| x.write_seconds.is_some() || x.read_seconds.is_some());
        if mine.is_empty() && seen.is_none() {
            return Value::Null;
        }
        let mut rows: Vec<(SdsId, &Led)> = mine.iter().map(|(id, l)| (*id, *l)).collect();
        rows.sort_by_key(|(id, l)| (std::cmp::Reverse(l.mean_us), *id));
        let copy = |c: &(SdsId, u64, u64)| json!({"sds": self.name(c.0), "seconds": seconds(c.1)});
        let row = |(id, l): &(SdsId, &Led)| {
            json!({
                "sds": self.name(*id), "writes": l.count, "write_seconds": seconds(l.mean_us),
                "admit_seconds": seconds(l.admit_us), "own_seconds": seconds(l.own_us),
                "copies": l.copies.iter().map(copy).collect::<Vec<_>>(),
            })
        };
        let client = seen.map(|x| {
            json!({
                "writes_per_second": x.writes, "write_seconds": x.write_seconds,
                "reads_per_second": x.reads, "read_seconds": x.read_seconds,
            })
        });
        json!({"client": client, "servers": rows.iter().take(SHOWN).map(row).collect::<Vec<_>>()})
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
