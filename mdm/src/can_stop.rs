//! Whether a node may be stopped (promise 6).

use crate::control::{now as clock, HubInner};
use crate::state::{State, Volume};
use quarry_base::units::show_size;
use quarry_base::{DeviceId, NodeId, PgId, SdsId, VolumeId};
use serde_json::{json, Value};
use std::collections::BTreeSet;

/// What stopping a node now would do; `None`: there is no such node.
pub fn can_stop(s: &State, hub: &HubInner, node: NodeId, mdm: &str) -> Option<Value> {
    let n = s.nodes.get(&node)?;
    let gone: BTreeSet<SdsId> = s.sds_of(node).into_iter().collect();
    let answered = hub.detector.recent(clock());
    let (mut lost, mut single) = (BTreeSet::new(), BTreeSet::new());
    let mut gone_already = 0;
    for p in s.pgs.values() {
        let c = &p.config;
        let here = |d: &DeviceId| s.devices.get(d).is_some_and(|d| gone.contains(&d.sds));
        let serves = c.in_sync.iter().any(|m| s.good(m) && answered.contains(&m.sds));
        if !serves && c.listed.iter().any(here) {
            // Its good copies are away: an older one that is here may be all that is left, and is needed to go on.
            gone_already += 1;
        }
        if !c.in_sync.iter().any(|m| gone.contains(&m.sds)) {
            continue;
        }
        let stay = c.in_sync.iter().filter(|m| !gone.contains(&m.sds) && s.good(m));
        let stay = stay.filter(|m| answered.contains(&m.sds)).count();
        if stay < (c.min_copies as usize).max(1) {
            lost.insert(c.pg);
        } else if stay == 1 && c.copies > 1 {
            single.insert(c.pg);
        }
    }
    let bytes = |set: &BTreeSet<PgId>| -> u64 {
        set.iter().filter_map(|p| hub.pgs.get(p)?.report.as_ref()).map(|r| r.bytes).sum()
    };
    let names = |ids: Vec<VolumeId>| -> Vec<String> {
        ids.iter().filter_map(|v| s.volumes.get(v)).map(|v| v.name.clone()).collect()
    };
    let volumes = names(s.volumes_on(&lost));
    let here = |v: &&Volume| {
        v.mappings.iter().any(|m| s.sdcs.get(&m.sdc).is_some_and(|x| x.node == Some(node)))
    };
    let mapped: Vec<String> = s.volumes.values().filter(here).map(|v| v.name.clone()).collect();
    let is_mdm = n.name == mdm;
    let mut reasons = Vec::new();
    if !volumes.is_empty() {
        reasons.push(format!(
            "{} placement groups would serve nothing: no other good copy has answered ({})",
            lost.len(),
            show_size(bytes(&lost))
        ));
    }
    if gone_already > 0 {
        reasons.push(format!(
            "{gone_already} placement groups with a copy here serve nothing already, as their good copies are away: first bring those back (scli status)"
        ));
    }
    if !single.is_empty() {
        reasons.push(format!(
            "{} would have one copy until it is back or rebuilt",
            show_size(bytes(&single))
        ));
    }
    if !mapped.is_empty() {
        reasons
            .push(format!("{} volumes are mapped to its SDC and lose their client", mapped.len()));
    }
    if is_mdm {
        reasons.push(
            "it runs the MDM: I/O goes on, but nothing is managed or repaired meanwhile".into(),
        );
    }
    let safe = volumes.is_empty() && gone_already == 0;
    let verdict = match (safe, mapped.is_empty() && !is_mdm) {
        (false, _) => "no",
        (true, false) => "with_care",
        (true, true) => "yes",
    };
    Some(json!({
        "node_id": node, "node": n.name, "verdict": verdict, "can_stop": verdict != "no", "reasons": reasons,
        "unavailable_volumes": volumes, "unavailable_pgs": lost.len(), "unavailable_bytes": bytes(&lost),
        "one_copy_pgs": single.len(), "one_copy_bytes": bytes(&single), "mapped_volumes": mapped, "is_mdm": is_mdm,
    }))
}
