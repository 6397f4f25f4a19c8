//! What the operator's decision about stale copies would lose, and who still stands in its way (R26, promise 5).
//!
//! Reads the state and what servers reported, changes nothing. What is not known is said to be so: a figure here is
//! what somebody has told, never a guess.

use crate::api::rfc3339;
use crate::control::HubInner;
use crate::state::{Pg, StaleChoice, State};
use quarry_base::{ConfigIndex, DeviceId, PgId, PoolId, SdcId, SdsId, Version, VolumeId};
use serde_json::{json, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// What would be decided.
#[derive(Default)]
pub struct Plan {
    pub choices: Vec<StaleChoice>,
    /// One row a group.
    pub rows: Vec<Value>,
    /// Groups of which there is no copy at all.
    pub without_copy: Vec<PgId>,
    pub volumes: Vec<String>,
    /// Records lost, as far as known.
    pub records: u64,
}

/// Groups of a pool of which only stale copies are left, no decision about them under way.
pub fn groups(s: &State, pool: PoolId) -> Vec<PgId> {
    let all = s.pool_pgs(pool).map(|p| p.config.pg);
    all.filter(|pg| s.only_stale(*pg) && !s.is_fenced(*pg)).collect()
}

/// A copy that could count, and what is known of it.
struct Copy {
    device: DeviceId,
    sds: SdsId,
    /// Everything up to here is in it, if known.
    through: Option<Version>,
    /// It has blocks that are newer, from a sync that did not end.
    mixed: bool,
    /// Until when it was in sync.
    left: Option<crate::state::Left>,
}

struct Cx<'a> {
    s: &'a State,
    hub: &'a HubInner,
}

/// Chooses the newest stale copy of each group: on `sds`, or wherever it is.
pub fn plan(s: &State, hub: &HubInner, pgs: &[PgId], sds: Option<SdsId>) -> Plan {
    let cx = Cx { s, hub };
    let mut out = Plan::default();
    let mut found = Vec::new();
    for p in pgs.iter().filter_map(|pg| s.pgs.get(pg)) {
        match cx.best(p, sds) {
            Some(copy) => found.push((p, copy)),
            None => out.without_copy.push(p.config.pg),
        }
    }
    let lost: BTreeSet<PgId> = found.iter().map(|(p, _)| p.config.pg).collect();
    let on = s.volumes_by_group(&lost);
    for (p, copy) in found {
        let volumes = on.get(&p.config.pg).map(Vec::as_slice).unwrap_or_default();
        cx.add(p, &copy, volumes, &mut out);
    }
    let volumes: BTreeSet<VolumeId> = on.into_values().flatten().collect();
    let names = volumes.into_iter().filter_map(|v| s.volumes.get(&v));
    out.volumes = names.map(|v| v.name.clone()).collect();
    out
}

impl Plan {
    /// Names what would be decided: the same as long as groups, configurations and chosen copies are.
    pub fn token(&self) -> String {
        let mut h = DefaultHasher::new();
        for c in &self.choices {
            (c.pg, c.epoch, c.device, c.start).hash(&mut h);
        }
        format!("{:016x}", h.finish())
    }
}

impl Cx<'_> {
    fn name(&self, id: SdsId) -> String {
        self.s.sds.get(&id).map_or_else(|| id.to_string(), |x| x.name.clone())
    }

    fn best(&self, p: &Pg, sds: Option<SdsId>) -> Option<Copy> {
        let here = self.s.pool_devices(p.config.pg.pool()).filter(|d| match sds {
            Some(wanted) => d.sds == wanted,
            None => true,
        });
        let copies = here.filter_map(|d| self.copy(p, d.id, sds.is_some()));
        copies.max_by_key(|c| {
            let left = c.left.map(|l| l.epoch);
            (left, c.through, !c.mixed, std::cmp::Reverse(c.device))
        })
    }

    /// `named`: the operator wants this server, also where nothing shows that it has anything of the group.
    fn copy(&self, p: &Pg, device: DeviceId, named: bool) -> Option<Copy> {
        let c = &p.config;
        let m = self.s.could_serve(device).filter(|_| !c.is_in_sync(device))?;
        let live = self.hub.sds.get(&m.sds).filter(|l| l.start == m.start);
        let held = live.and_then(|l| l.positions.get(&(device, c.pg)));
        let left = p.left.iter().find(|l| l.device == device).copied();
        if held.is_none() && left.is_none() && !named {
            return None;
        }
        // What it held when it registered says nothing if it was in sync after that.
        let since = live.map_or(0, |l| l.registered_ms);
        let held = held.filter(|_| left.is_none_or(|l| l.at_ms <= since));
        let syncing = c.syncing.iter().any(|m| m.device == device);
        let mixed = syncing || held.is_some_and(|h| h.last > h.through);
        Some(Copy { device, sds: m.sds, through: held.map(|h| h.through), mixed, left })
    }

    /// The newest record that anybody told of a copy that is gone.
    fn good_last(&self, p: &Pg) -> Option<Version> {
        let report = self.hub.pgs.get(&p.config.pg).and_then(|l| l.report.as_ref()).map(|r| r.last);
        let held = p.config.in_sync.iter().filter_map(|m| {
            let live = self.hub.sds.get(&m.sds)?;
            live.positions.get(&(m.device, p.config.pg)).map(|h| h.last)
        });
        report.into_iter().chain(held).max().filter(|v| *v > Version::ZERO)
    }

    fn add(&self, p: &Pg, copy: &Copy, volumes: &[VolumeId], out: &mut Plan) {
        let c = &p.config;
        let good = self.good_last(p);
        let records = match (good, copy.through) {
            (Some(g), Some(t)) => Some(g.seq.0.saturating_sub(t.seq.0)),
            _ => None,
        };
        out.records += records.unwrap_or(0);
        let holders: Vec<String> = c.in_sync.iter().map(|m| self.name(m.sds)).collect();
        let until = copy.left.map(|l| rfc3339(l.at_ms));
        let names: Vec<&str> =
            volumes.iter().filter_map(|v| self.s.volumes.get(v).map(|v| v.name.as_str())).collect();
        let sds = self.name(copy.sds);
        let lost = match (records, &until) {
            (Some(n), _) => format!("at least {n} records"),
            (None, Some(at)) => format!("everything written since {at}"),
            (None, None) => "nobody knows how much".to_string(),
        };
        out.choices.push(StaleChoice {
            pg: c.pg,
            epoch: c.epoch,
            device: copy.device,
            start: self.s.could_serve(copy.device).map(|m| m.start).unwrap_or_default(),
            lost: format!(
                "the copy on sds {sds} counts, the good one on sds {} is given up: {lost} lost; volumes: {}",
                holders.join(" and "),
                self.s.volume_names(volumes)
            ),
        });
        out.rows.push(json!({
            "id": c.pg.to_string(), "epoch": c.epoch, "stale_device": copy.device, "stale_sds": sds,
            "in_sync_until": until, "stale_epoch": copy.through.map(|v| v.epoch),
            "stale_seq": copy.through.map(|v| v.seq), "good_sds": holders,
            "good_epoch": good.map(|v| v.epoch), "good_seq": good.map(|v| v.seq),
            "records_lost": records, "mixed": copy.mixed, "volumes": names,
        }));
    }

    /// Clients with a volume in one of the groups that have not applied that group's index. This is looked at several
    /// times a second: a volume's groups are worked out once at most, and only where one of its clients lags at all.
    fn unconfirmed(&self, open: &BTreeMap<PgId, ConfigIndex>) -> BTreeSet<SdcId> {
        let mut out = BTreeSet::new();
        let Some(newest) = open.values().max() else { return out };
        let pools: BTreeSet<PoolId> = open.keys().map(|pg| pg.pool()).collect();
        let applied = |sdc: &SdcId| self.hub.sdcs.get(sdc).map(|l| l.applied);
        for v in self.s.volumes.values().filter(|v| pools.contains(&v.pool)) {
            let mapped = v.mappings.iter().map(|m| (m.sdc, applied(&m.sdc)));
            let late: Vec<_> = mapped.filter(|(_, at)| at.is_none_or(|at| at < *newest)).collect();
            if late.iter().all(|(sdc, _)| out.contains(sdc)) {
                continue;
            }
            let here = self.s.volume_pgs(v).into_iter().filter_map(|pg| open.get(&pg)).max();
            let behind =
                |at: Option<ConfigIndex>| here.is_some_and(|i| at.is_none_or(|at| at < *i));
            out.extend(late.into_iter().filter(|l| behind(l.1)).map(|l| l.0));
        }
        out
    }
}

/// Who could still reach an old primary of a group that is being given up, and which chosen copies are away; empty: the
/// decision can be completed.
pub fn unfenced(hub: &HubInner, s: &State, pgs: &[PgId]) -> Vec<String> {
    let cx = Cx { s, hub };
    let mut out: BTreeSet<String> = BTreeSet::new();
    // Groups with a path to an old primary left, and the index that closes it.
    let mut open: BTreeMap<PgId, ConfigIndex> = BTreeMap::new();
    for p in pgs.iter().filter_map(|pg| s.pgs.get(pg)) {
        let Some(f) = p.fence else { continue };
        if s.could_serve(f.device).is_none() {
            let sds = s.devices.get(&f.device).map(|d| cx.name(d.sds)).unwrap_or_default();
            out.insert(format!("sds {sds}, which has the stale copy, is not there"));
        }
        // An old primary that has applied the fence leads no more: every path to it is closed.
        let closed = |sds: SdsId| {
            hub.sds.get(&sds).is_some_and(|l| l.session.is_some() && l.applied >= f.index)
        };
        if p.config.in_sync.iter().all(|m| closed(m.sds)) {
            continue;
        }
        open.insert(p.config.pg, f.index);
    }
    for sdc in cx.unconfirmed(&open) {
        let name = s.sdcs.get(&sdc).map_or("?", |x| x.name.as_str());
        out.insert(format!("sdc {name} has not confirmed that it leaves the old server alone"));
    }
    out.into_iter().collect()
}
