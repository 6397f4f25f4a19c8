//! When a mapping stands and when it is gone: judged by what the nodes report (R21).

use super::hub::HubInner;
use crate::state::State;
use quarry_base::{ConfigIndex, Generation, SdcId, SdsId, VolumeId};
use quarry_control::Attachment;
use std::collections::BTreeSet;

/// What an SDC reports of a volume at this generation or a later one.
pub fn attachment(
    hub: &HubInner,
    volume: VolumeId,
    sdc: SdcId,
    generation: Generation,
) -> Option<Attachment> {
    let l = hub.sdcs.get(&sdc).filter(|l| l.session.is_some())?;
    let list = l.attachments.as_ref()?;
    list.iter().find(|a| a.volume == volume && a.generation >= generation).cloned()
}

/// Who has not confirmed yet that nothing of `sdc` reaches the volume any more; empty: the unmap is complete.
pub fn unconfirmed(
    hub: &HubInner,
    state: &State,
    volume: VolumeId,
    sdc: SdcId,
    index: ConfigIndex,
) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(l) = hub.sdcs.get(&sdc).filter(|l| l.session.is_some()) {
        let holds = l.attachments.as_ref().is_none_or(|a| a.iter().any(|a| a.volume == volume));
        if holds {
            let name = state.sdcs.get(&sdc).map_or("", |s| s.name.as_str());
            out.push(format!("sdc {name} has not detached"));
        }
    }
    let Some(v) = state.volumes.get(&volume) else { return out };
    let mut leaders: BTreeSet<SdsId> = BTreeSet::new();
    let mut headless = 0;
    for p in state.pool_pgs(v.pool) {
        match p.config.primary_member().filter(|m| state.alive(m)) {
            Some(m) => drop(leaders.insert(m.sds)),
            None => headless += 1,
        }
    }
    for s in leaders {
        if hub.sds.get(&s).is_none_or(|l| l.confirmed < index) {
            let name = state.sds.get(&s).map_or("", |s| s.name.as_str());
            out.push(format!("sds {name} has not confirmed"));
        }
    }
    if headless > 0 {
        out.push(format!("{headless} placement groups have no live primary"));
    }
    out
}
