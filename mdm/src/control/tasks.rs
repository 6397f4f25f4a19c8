//! When a mapping stands and when it is gone: judged by what the nodes report (R21).

use super::hub::HubInner;
use crate::state::{Pg, State, TaskKind};
use quarry_base::{ConfigIndex, DeviceId, Generation, SdcId, SdsId, VolumeId};
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
        // What it has of a mapping that was made since does not count.
        let again =
            state.volumes.get(&volume).and_then(|v| v.mappings.iter().find(|m| m.sdc == sdc));
        let counts =
            |a: &Attachment| a.volume == volume && again.is_none_or(|m| a.generation < m.since);
        let holds = l.attachments.as_ref().is_none_or(|a| a.iter().any(counts));
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

/// What a task has still to do.
#[derive(Clone, Debug, Default)]
pub struct TaskLeft {
    pub copies: u64,
    pub bytes: Option<u64>,
    pub eta_seconds: Option<u64>,
    /// Why it does not go on, if so.
    pub blocked: Vec<String>,
}

/// How much a task has still to move or to restore, judged by what primaries report.
pub fn left_of(s: &State, hub: &HubInner, kind: &TaskKind) -> TaskLeft {
    let copies = s.task_left(kind);
    let on = |d: DeviceId| match kind {
        TaskKind::DrainDevice { device } => d == *device,
        TaskKind::DrainSds { sds } => s.devices.get(&d).is_some_and(|x| x.sds == *sds),
        _ => false,
    };
    let concerns = |p: &&Pg| match kind {
        TaskKind::DrainSds { .. } | TaskKind::DrainDevice { .. } => {
            p.config.listed.iter().any(|d| on(*d))
        }
        TaskKind::Rebalance { pool } => p.config.pg.pool() == *pool && !p.retiring.is_empty(),
        TaskKind::Rebuild { pool } => {
            p.config.pg.pool() == *pool && p.config.in_sync.len() < p.config.copies as usize
        }
        TaskKind::Map { .. } | TaskKind::Unmap { .. } | TaskKind::AcceptStale { .. } => false,
    };
    let groups: Vec<&Pg> = s.pgs.values().filter(concerns).collect();
    let mut out = TaskLeft { copies, ..TaskLeft::default() };
    if let TaskKind::AcceptStale { pgs, .. } = kind {
        out.blocked = crate::stale::unfenced(hub, s, pgs);
        return out;
    }
    if matches!(kind, TaskKind::Map { .. } | TaskKind::Unmap { .. }) {
        return out;
    }
    let mut bytes = 0;
    for p in &groups {
        let Some(r) = hub.pgs.get(&p.config.pg).and_then(|l| l.report.as_ref()) else { continue };
        let synced = r.epoch == p.config.epoch && (r.sync_left_bytes > 0 || r.sync_done_bytes > 0);
        bytes += if synced { r.sync_left_bytes } else { r.bytes };
    }
    // Copies that have not begun to move are taken to be like those that have.
    if let TaskKind::Rebalance { pool } = kind {
        let (n, sum) = s.pool_pgs(*pool).fold((0u64, 0u64), |(n, sum), p| {
            let r = hub.pgs.get(&p.config.pg).and_then(|l| l.report.as_ref());
            (n + 1, sum + r.map_or(0, |r| r.bytes))
        });
        bytes += copies.saturating_sub(groups.len() as u64) * sum.checked_div(n).unwrap_or(0);
    }
    out.bytes = Some(bytes);
    out.eta_seconds = hub.task_rates.get(&rate_key(kind)).and_then(|r| {
        let rate = r.bytes_per_second()?;
        Some((bytes as f64 / rate).ceil() as u64)
    });
    if let TaskKind::Rebalance { pool } = kind {
        // Nothing moves, and something is left: what is left waits.
        if groups.is_empty() && copies > 0 {
            let lack =
                s.pool_pgs(*pool).filter(|p| p.config.in_sync.len() < p.config.copies as usize);
            let n = lack.count();
            if n > 0 {
                out.eta_seconds = None;
                out.blocked
                    .push(format!("{n} placement groups miss a copy: they move when restored"));
            }
        }
    }
    if !matches!(kind, TaskKind::Rebuild { .. }) {
        let lack = groups.iter().filter(|p| p.config.in_sync.len() < p.config.copies as usize);
        let n = lack.count();
        if n > 0 {
            out.blocked.push(format!("{n} placement groups miss a copy: they are restored first"));
        }
    }
    out
}

/// Rates are kept for each thing that is emptied or filled.
pub fn rate_key(kind: &TaskKind) -> String {
    serde_json::to_string(kind).unwrap_or_default()
}
