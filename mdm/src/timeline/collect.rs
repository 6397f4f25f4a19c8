//! From what daemons reported to rows: sums counters over daemons and carries them over their restarts.

use super::book::Rows;
use super::catalog::{Kind, IO, SDS};
use crate::control::{degraded_bytes, HubInner};
use crate::health::{pg_health, Health};
use crate::state::{Pool, State};
use quarry_base::{Nanos, PoolId, SdcId, SdsId, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Sums of counters since recording began.
type Sums<const N: usize> = [u64; N];
const IO_N: usize = IO.len();
const SDS_N: usize = SDS.len();

/// What a daemon reported last.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Last {
    /// Its start number or instance.
    pub start: u64,
    pub counters: BTreeMap<String, u64>,
}

/// A part of what a daemon reported last, as it is saved.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    kind: String,
    /// Number of the client or server.
    of: u32,
    start: u64,
    counters: BTreeMap<String, u64>,
}

/// Remembers what was reported, so that growth is counted once.
#[derive(Clone, Serialize, Deserialize)]
pub struct Collector {
    /// Starts and instances up to this one began before this MDM.
    #[serde(skip)]
    before: u64,
    sdcs: HashMap<SdcId, Last>,
    sds: HashMap<SdsId, Last>,
    by_volume: HashMap<VolumeId, Sums<IO_N>>,
    by_sdc: HashMap<SdcId, Sums<IO_N>>,
    by_pool: HashMap<PoolId, Sums<IO_N>>,
    by_sds: HashMap<SdsId, Sums<SDS_N>>,
}

impl Collector {
    /// `before`: the newest start number given so far.
    pub fn new(before: u64) -> Collector {
        Collector {
            before,
            sdcs: HashMap::new(),
            sds: HashMap::new(),
            by_volume: HashMap::new(),
            by_sdc: HashMap::new(),
            by_pool: HashMap::new(),
            by_sds: HashMap::new(),
        }
    }

    /// The same after a restart of the MDM.
    pub fn resumed(self, before: u64) -> Collector {
        Collector { before, ..self }
    }

    /// Takes the reports out, in parts of at most `most` counters: with many volumes and clients all of them at once are
    /// more than a line that is read.
    pub(super) fn take_reports(&mut self, most: usize) -> Vec<Report> {
        let sdcs = std::mem::take(&mut self.sdcs).into_iter().map(|(i, l)| (Kind::Sdc, i.get(), l));
        let sds = std::mem::take(&mut self.sds).into_iter().map(|(i, l)| (Kind::Sds, i.get(), l));
        let mut out = Vec::new();
        for (kind, of, last) in sdcs.chain(sds) {
            let part =
                |counters| Report { kind: kind.name().into(), of, start: last.start, counters };
            let all: Vec<(String, u64)> = last.counters.into_iter().collect();
            if all.is_empty() {
                out.push(part(BTreeMap::new()));
            }
            out.extend(all.chunks(most.max(1)).map(|c| part(c.iter().cloned().collect())));
        }
        out
    }

    /// Puts a part of a report back. `None`: it is of nobody who reports.
    pub(super) fn put_report(&mut self, r: Report) -> Option<()> {
        let last = match Kind::parse(&r.kind)? {
            Kind::Sdc => self.sdcs.entry(SdcId(r.of)).or_default(),
            Kind::Sds => self.sds.entry(SdsId(r.of)).or_default(),
            _ => return None,
        };
        last.start = r.start;
        last.counters.extend(r.counters);
        Some(())
    }

    /// The rows of this moment. Objects whose daemons are all silent have none.
    pub fn rows(&mut self, s: &State, hub: &HubInner, now: Nanos) -> Rows {
        self.clients(s, hub);
        self.servers(hub);
        self.sdcs.retain(|id, _| s.sdcs.contains_key(id));
        self.sds.retain(|id, _| s.sds.contains_key(id));
        self.by_volume.retain(|id, _| s.volumes.contains_key(id));
        self.by_pool.retain(|id, _| s.pools.contains_key(id));
        self.by_sdc.retain(|id, _| s.sdcs.contains_key(id));
        self.by_sds.retain(|id, _| s.sds.contains_key(id));
        let mut rows = Rows::default();
        rows.all.extend(s.volumes.keys().map(|id| (Kind::Volume, id.get())));
        rows.all.extend(s.sds.keys().map(|id| (Kind::Sds, id.get())));
        rows.all.extend(s.sdcs.keys().map(|id| (Kind::Sdc, id.get())));
        rows.all.extend(s.pools.keys().map(|id| (Kind::Pool, id.get())));
        self.volume_rows(s, hub, &mut rows);
        self.server_rows(hub, &mut rows);
        self.client_rows(hub, &mut rows);
        self.pool_rows(s, hub, now, &mut rows);
        rows
    }

    fn clients(&mut self, s: &State, hub: &HubInner) {
        for (id, l) in hub.sdcs.iter().filter(|(_, l)| l.session.is_some()) {
            let last = self.sdcs.entry(*id).or_default();
            for (name, grown) in growth(last, self.before, l.instance.get(), &l.counters) {
                let Some((volume, column)) = volume_counter(name) else { continue };
                let add = |sums: &mut Sums<IO_N>| {
                    if let Some(x) = sums.get_mut(column) {
                        *x += grown;
                    }
                };
                add(self.by_sdc.entry(*id).or_default());
                if let Some(v) = s.volumes.get(&volume) {
                    add(self.by_volume.entry(volume).or_default());
                    add(self.by_pool.entry(v.pool).or_default());
                }
            }
            *last = Last { start: l.instance.get(), counters: l.counters.clone() };
        }
    }

    fn servers(&mut self, hub: &HubInner) {
        for (id, l) in hub.sds.iter().filter(|(_, l)| l.session.is_some()) {
            let last = self.sds.entry(*id).or_default();
            let sums = self.by_sds.entry(*id).or_default();
            for (name, grown) in growth(last, self.before, l.process.get(), &l.counters) {
                let name = name.strip_prefix("sds.").unwrap_or(name);
                let column = SDS.iter().position(|c| *c == name);
                if let Some(x) = column.and_then(|c| sums.get_mut(c)) {
                    *x += grown;
                }
            }
            // A process that was given a new start counts on.
            *last = Last { start: l.process.get(), counters: l.counters.clone() };
        }
    }

    fn volume_rows(&self, s: &State, hub: &HubInner, rows: &mut Rows) {
        let there = |id: &SdcId| hub.sdcs.get(id).is_some_and(|l| l.session.is_some());
        for v in s.volumes.values() {
            // Mapped, and none of those who could do I/O is heard: what it does is not known.
            if !v.mappings.is_empty() && !v.mappings.iter().any(|m| there(&m.sdc)) {
                continue;
            }
            let sums = self.by_volume.get(&v.id).copied().unwrap_or_default();
            rows.tracks.push((Kind::Volume, v.id.get(), row(&sums, &[v.size_bytes])));
        }
    }

    fn server_rows(&self, hub: &HubInner, rows: &mut Rows) {
        for (id, l) in hub.sds.iter().filter(|(_, l)| l.session.is_some()) {
            let sums = self.by_sds.get(id).copied().unwrap_or_default();
            let used = l.devices.values().map(|d| d.used).sum();
            let capacity = l.devices.values().map(|d| d.capacity).sum();
            rows.tracks.push((Kind::Sds, id.get(), row(&sums, &[used, capacity])));
        }
    }

    fn client_rows(&self, hub: &HubInner, rows: &mut Rows) {
        for (id, l) in hub.sdcs.iter().filter(|(_, l)| l.session.is_some()) {
            let sums = self.by_sdc.get(id).copied().unwrap_or_default();
            let volumes = l.attachments.as_ref().map_or(0, |a| a.len() as u64);
            rows.tracks.push((Kind::Sdc, id.get(), row(&sums, &[volumes])));
        }
    }

    fn pool_rows(&self, s: &State, hub: &HubInner, now: Nanos, rows: &mut Rows) {
        for p in s.pools.values() {
            let sums = self.by_pool.get(&p.id).copied().unwrap_or_default();
            rows.tracks.push((Kind::Pool, p.id.get(), row(&sums, &pool_levels(s, hub, p, now))));
        }
    }
}

/// In the order of the pool's gauges in the catalog.
fn pool_levels(s: &State, hub: &HubInner, p: &Pool, now: Nanos) -> [u64; 7] {
    let c = s.capacity(p);
    let used = |d: &crate::state::Device| Some(hub.sds.get(&d.sds)?.devices.get(&d.id)?.used);
    let used = s.pool_devices(p.id).filter_map(used).sum();
    let (mut degraded, mut groups) = (0, [0u64; 3]);
    for pg in s.pool_pgs(p.id) {
        degraded += degraded_bytes(hub.pgs.get(&pg.config.pg), &pg.config);
        let [ok, less, none] = &mut groups;
        match pg_health(s, hub, pg, now) {
            Health::Ok => *ok += 1,
            Health::Degraded => *less += 1,
            Health::Unavailable => *none += 1,
        }
    }
    let [ok, less, none] = groups;
    [used, c.raw, c.provisioned, degraded, ok, less, none]
}

fn row(counters: &[u64], gauges: &[u64]) -> Vec<f64> {
    counters.iter().chain(gauges).map(|n| *n as f64).collect()
}

/// By how much each counter grew since `last`. A process that started anew counts from zero; one that ran before this MDM did
/// is taken as it is found.
pub(super) fn growth<'a>(
    last: &Last,
    before: u64,
    start: u64,
    counters: &'a BTreeMap<String, u64>,
) -> Vec<(&'a str, u64)> {
    let same = last.start == start;
    let found = start <= before && (!same || last.counters.is_empty());
    let mut out = Vec::with_capacity(counters.len());
    for (name, n) in counters {
        let old = match last.counters.get(name).filter(|_| same) {
            // It fell: the volume was unmapped and mapped again meanwhile.
            Some(old) if old > n => 0,
            Some(old) => *old,
            None if found => *n,
            None => 0,
        };
        if *n > old {
            out.push((name.as_str(), n - old));
        }
    }
    out
}

/// `volume.<id>.<counter>`: the volume and the column in [`IO`].
fn volume_counter(name: &str) -> Option<(VolumeId, usize)> {
    let (id, what) = name.strip_prefix("volume.")?.split_once('.')?;
    let id = VolumeId(id.parse().ok()?);
    let what = if what.ends_with("_errors") { "errors" } else { what };
    Some((id, IO.iter().position(|c| *c == what)?))
}
