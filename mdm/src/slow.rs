//! Where the time of requests goes: what the clients of a volume see, what servers say of the writes that they lead, what
//! their disks take (promise 6, "slow").
//!
//! All figures are means of the last ten seconds, by device; those of servers are of everything that they do in that pool, as
//! they do not tell volumes apart. Devices of one pool are compared with each other and with no others. What a primary's own
//! device takes knows no network: disks are judged by it. Replication is judged by pairs, where both ends are quick by
//! themselves, and who is named is what the late pairs have in common.

mod judge;

use crate::control::{disk_figures, HubInner};
use crate::state::{Ack, State};
use judge::Pool;
use quarry_base::{DeviceId, Nanos, PgId, PoolId, SdsId};
use quarry_control::{COPIES_LEFT_OUT, COPY_TIMES, LED_PREFIX, LED_TIMES};
use serde_json::{json, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a server said longer ago than this is not of now.
const FRESH: Duration = Duration::from_millis(1500);
/// Within this time after a change of a group its requests were sent again, and their time is in no server's figures.
const SETTLED: Duration = Duration::from_secs(15);
/// Of fewer writes nothing is concluded.
const FEWEST: u64 = 10;
/// Less than this is not slow, microseconds.
const SLOW_US: u64 = 5_000;
/// What is slow although nothing is slower than the rest, microseconds.
const ALL_SLOW_US: u64 = 50_000;
/// Mean size of a client's writes above which they are parts of several groups, bytes.
const LARGE: f64 = 128.0 * 1024.0;
/// Rows of primaries shown at most, the slowest, and copies of each.
const SHOWN: usize = 8;
const COPIES: usize = 4;

/// What the clients of a volume saw lately: requests a second, how long one takes in seconds, bytes written a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub writes: f64,
    pub write_seconds: Option<f64>,
    pub write_bytes: f64,
    pub reads: f64,
    pub read_seconds: Option<f64>,
}

/// What a server says of the writes that it led on one of its devices: means in microseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Led {
    count: u64,
    mean_us: u64,
    admit_us: u64,
    own_count: u64,
    own_us: u64,
}

/// The same of the copies on a member's device.
#[derive(Clone, Copy, Debug, Default)]
struct Copies {
    us: u64,
    count: u64,
}

type Reason = (String, String);

/// Reasons with advice, and the figures.
#[derive(Debug, Default)]
pub struct Found {
    pub why: Vec<Reason>,
    /// To be said if there is no other reason.
    pub vague: Option<Reason>,
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
    let told = Told::of(hub, at);
    let disks = disk_figures(hub, at);
    let pools: BTreeSet<PoolId> = pgs.iter().map(|p| p.pool()).collect();
    let cached = |p: &PoolId| s.pools.get(p).is_some_and(|p| p.ack == Ack::Cached);
    let mut why = Vec::new();
    for pool in &pools {
        why.extend(Pool::new(s, &told, &disks, *pool).reasons(&primaries, &members));
    }
    let mut led: Vec<(DeviceId, Led)> =
        primaries.iter().filter_map(|d| Some((*d, *told.led.get(d)?))).collect();
    led.sort_by_key(|(d, l)| (std::cmp::Reverse(l.mean_us), *d));
    why.extend(led.iter().filter_map(|(d, l)| admission(s, *d, l)).take(SHOWN));
    let mut vague = None;
    if let Some(seen) = seen {
        let changed = |p: &PgId| hub.pgs.get(p).is_none_or(|l| at.since(l.changed) < SETTLED);
        let (all_told, settled) = (led.len() == primaries.len(), !pgs.iter().any(changed));
        if all_told && settled && !pools.iter().any(cached) {
            why.extend(before(&led, seen));
        }
        vague = slow_at_all(seen).filter(|_| settled);
    }
    Found { why, vague, timing: timing(s, &told, &led, &members, seen) }
}

/// What all servers that were heard a moment ago say.
#[derive(Default)]
struct Told {
    led: BTreeMap<DeviceId, Led>,
    /// By the server that led, and the member's device.
    copies: BTreeMap<(SdsId, DeviceId), Copies>,
    /// Servers that tell of their slowest members only.
    partly: BTreeSet<SdsId>,
}

impl Told {
    fn of(hub: &HubInner, at: Nanos) -> Told {
        let mut told = Told::default();
        let heard = hub.sds.iter().filter(|(_, l)| l.session.is_some());
        for (id, l) in heard.filter(|(_, l)| at.since(l.heard) <= FRESH) {
            for (device, what, n) in under(&l.counters, LED_PREFIX) {
                let led = told.led.entry(device).or_default();
                let all = [
                    &mut led.count,
                    &mut led.mean_us,
                    &mut led.admit_us,
                    &mut led.own_count,
                    &mut led.own_us,
                ];
                if let Some((_, x)) = LED_TIMES.iter().zip(all).find(|(w, _)| **w == what) {
                    *x = n;
                }
            }
            for (device, what, n) in under(&l.counters, COPY_TIMES) {
                let m = told.copies.entry((*id, device)).or_default();
                match what {
                    "mean_us" => m.us = n,
                    "count" => m.count = n,
                    _ => {}
                }
            }
            told.partly.extend(l.counters.contains_key(COPIES_LEFT_OUT).then_some(*id));
        }
        told
    }
}

/// Counters whose names are `prefix`, a device, a dot and what they count.
fn under<'a>(
    counters: &'a BTreeMap<String, u64>,
    prefix: &'a str,
) -> impl Iterator<Item = (DeviceId, &'a str, u64)> {
    let from = counters.range(prefix.to_string()..);
    from.map_while(move |(name, n)| Some((name.strip_prefix(prefix)?, *n))).filter_map(
        |(rest, n)| {
            let (device, what) = rest.split_once('.')?;
            Some((DeviceId(device.parse().ok()?), what, n))
        },
    )
}

/// Much of what clients wait for is before the servers.
fn before(led: &[(DeviceId, Led)], seen: Seen) -> Option<Reason> {
    let count = led.iter().fold(0u64, |n, (_, l)| n.saturating_add(l.count));
    // Of a few among many writes of other volumes the servers' means say nothing.
    let most = seen.writes * 10.0 * 2.0 >= count as f64;
    let theirs = led.iter().map(|(_, l)| l.mean_us).max()?;
    let us = (seen.write_seconds? * 1e6) as u64;
    let rest = us.saturating_sub(theirs);
    let small = seen.write_bytes <= LARGE * seen.writes;
    (count >= FEWEST && most && small && rest >= SLOW_US && rest >= us / 2).then(|| {
        (
            format!("a write takes {} at the client and {} at most at the servers: the rest is before them: in the client's queue, on the network, or in requests that are sent again", ms(us), ms(theirs)),
            "on the client's host: ping and `ss -ti` to the servers, processor time of sdc-nbd and of what uses the volume, quarry_sdc_retries_total; many writes to the same blocks wait for each other".to_string(),
        )
    })
}

/// Requests are slow, and nothing else was found.
fn slow_at_all(seen: Seen) -> Option<Reason> {
    let longest = seen.write_seconds.into_iter().chain(seen.read_seconds).fold(0.0, f64::max);
    let us = (longest * 1e6) as u64;
    (us >= ALL_SLOW_US).then(|| {
        (
            format!("requests take {} on average at the client, and no cause stands out", ms(us)),
            "see the times below; quarry_device_request_seconds by device, the load of the hosts, and how large the requests are".to_string(),
        )
    })
}

/// Writes wait before they have their place in the order.
fn admission(s: &State, device: DeviceId, l: &Led) -> Option<Reason> {
    let waits = l.admit_us >= SLOW_US && l.admit_us >= l.mean_us / 2 && l.count >= FEWEST;
    waits.then(|| {
        (
            format!("at device {device} of sds {} a write waits {} of its {} before it is begun: for room in a log or on a device, for writes of the same blocks, for enough copies, or for the rest of a page that it is a part of", sds_of(s, device), ms(l.admit_us), ms(l.mean_us)),
            "quarry_sds_events_total of that server says what for: window_waits (many writes at once), log_waits (disks slower than the writes), credit_waits (a member short of space), merges (writes that are no whole pages)".to_string(),
        )
    })
}

fn timing(
    s: &State,
    told: &Told,
    led: &[(DeviceId, Led)],
    members: &BTreeSet<DeviceId>,
    seen: Option<Seen>,
) -> Value {
    let seen = seen.filter(|x| x.write_seconds.is_some() || x.read_seconds.is_some());
    if led.is_empty() && seen.is_none() {
        return Value::Null;
    }
    let row = |(d, l): &(DeviceId, Led)| {
        let (sds, pool) = s.devices.get(d).map(|x| (x.sds, x.pool)).unwrap_or_default();
        let of = told.copies.range((sds, DeviceId(0))..=(sds, DeviceId(u32::MAX)));
        let here = |d: &DeviceId| s.devices.get(d).is_some_and(|x| x.pool == pool);
        let same = of.filter(|(k, _)| members.contains(&k.1) && here(&k.1));
        let mut copies: Vec<(DeviceId, &Copies)> = same.map(|(k, m)| (k.1, m)).collect();
        copies.sort_by_key(|(d, m)| (std::cmp::Reverse(m.us), *d));
        let more = copies.len().saturating_sub(COPIES);
        let copies = copies.iter().take(COPIES).map(
            |(d, m)| json!({"sds": sds_of(s, *d), "device": d, "seconds": seconds(m.us), "writes": m.count}),
        );
        json!({
            "sds": sds_of(s, *d), "device": d, "writes": l.count, "write_seconds": seconds(l.mean_us),
            "admit_seconds": seconds(l.admit_us),
            "own_seconds": (l.own_count > 0).then(|| seconds(l.own_us)),
            "copies": copies.collect::<Vec<_>>(), "more_copies": more,
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

/// The name of a device's server.
fn sds_of(s: &State, device: DeviceId) -> &str {
    let sds = s.devices.get(&device).and_then(|d| s.sds.get(&d.sds));
    sds.map_or("?", |x| x.name.as_str())
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
