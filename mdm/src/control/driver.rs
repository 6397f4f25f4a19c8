//! Looks at the clock and at what is known, and submits the commands that follow from it.
//!
//! All decisions are in the state machine or in the detector; here is only when to ask for them.

use super::hub::Hub;
use super::{attachment, damage, now, scrubs, sluggish, unconfirmed, watch, Looks};
use crate::engine::{unix_ms, Engine, SharedState};
use crate::stale;
use crate::state::{Answered, ElectPg, Op, Position, State, TaskKind, TaskState};
use quarry_base::{Nanos, PgId, PoolId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

const TICK: Duration = Duration::from_millis(50);
/// R11: how long an election waits for in-sync members that are not back.
const DETECTION: Duration = Duration::from_millis(800);

/// Runs for ever.
pub async fn run(hub: Arc<Hub>, engine: Engine, state: SharedState) {
    let (first_present, looks) = (HashMap::new(), Looks::default());
    let mut d = Driver { hub, engine, state, first_present, electing: true, looks };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    for n in 0u64.. {
        tick.tick().await;
        d.fail().await;
        d.elect().await;
        d.sluggish().await;
        if n % 5 == 0 {
            d.sweep().await;
            d.tasks().await;
        }
        if n % 20 == 0 {
            d.rebuild().await;
            d.moves().await;
            d.primaries().await;
            d.sample();
            d.watch().await;
        }
    }
}

struct Driver {
    hub: Arc<Hub>,
    engine: Engine,
    state: SharedState,
    /// When the first in-sync member of a group without any was back.
    first_present: HashMap<PgId, Nanos>,
    electing: bool,
    looks: Looks,
}

impl Driver {
    async fn submit(&self, op: Op) {
        let name = op.name();
        if let Err(e) = self.engine.submit("mdm", None, op).await {
            if e.code != "stale" {
                tracing::warn!(op = name, error = %e, "not done");
            }
        }
    }

    async fn fail(&self) {
        let late = self.hub.lock().detector.tick(now());
        for f in late {
            tracing::warn!(sds = %f.sds, start = %f.start, reason = f.reason, "an SDS has failed");
            self.submit(Op::SdsFailed {
                sds: f.sds,
                start: f.start,
                reason: f.reason,
                answered: f.answered,
            })
            .await;
            // Accepted or no longer true: either way this start is not watched any more.
            self.forget_if_down(f.sds, f.start);
        }
    }

    fn forget_if_down(&self, sds: quarry_base::SdsId, start: quarry_base::StartNo) {
        let mut hub = self.hub.lock();
        let over = self.state.read().sds.get(&sds).is_none_or(|s| !s.up || s.start != start);
        if over {
            hub.detector.forget(sds, start);
        }
    }

    async fn elect(&mut self) {
        let dirty = std::mem::take(&mut self.hub.lock().dirty);
        if !dirty && !self.electing {
            return;
        }
        let pgs = self.ready();
        if !pgs.is_empty() {
            tracing::info!(groups = pgs.len(), "choosing primaries among members that restarted");
            self.submit(Op::Elect { pgs }).await;
        }
    }

    /// Groups whose election need not wait any longer.
    fn ready(&mut self) -> Vec<ElectPg> {
        let at = now();
        let hub = self.hub.lock();
        let s = self.state.read();
        let waiting: Vec<PgId> = s.pgs.keys().copied().filter(|pg| s.electable(*pg)).collect();
        self.electing = !waiting.is_empty();
        self.first_present.retain(|pg, _| waiting.binary_search(pg).is_ok());
        let mut out = Vec::new();
        for pg in waiting {
            let first = *self.first_present.entry(pg).or_insert(at);
            let Some(p) = s.pgs.get(&pg) else { continue };
            let present: Vec<Position> = p
                .config
                .in_sync
                .iter()
                .filter_map(|m| {
                    let sds = s.devices.get(&m.device)?.sds;
                    let known = s.sds.get(&sds).filter(|x| x.up && !x.fenced)?;
                    let l = hub
                        .sds
                        .get(&sds)
                        .filter(|l| l.session.is_some() && l.start == known.start)?;
                    let have = l.positions.get(&(m.device, pg));
                    let held = have.copied().unwrap_or_default();
                    Some(Position {
                        device: m.device,
                        start: l.start,
                        last: held.last,
                        commit: held.commit,
                        known: have.is_some(),
                    })
                })
                .collect();
            let all = present.len() == p.config.in_sync.len();
            if !present.is_empty() && (all || at.since(first) >= DETECTION) {
                let e = ElectPg { pg, epoch: p.config.epoch, present };
                out.extend(s.can_elect(&e).then_some(e));
            }
        }
        out
    }

    /// Members that are down but could not be removed, and ones whose time to come back has come.
    async fn sweep(&self) {
        let answered = self.hub.lock().detector.recent(now());
        let due = {
            let s = self.state.read();
            let ms = unix_ms();
            let mut open =
                s.pgs.iter().filter(|(_, p)| !p.config.is_complete() || !all_good(&s, p));
            open.any(|(pg, _)| s.unsettled(*pg, &answered, ms))
        };
        if due && !answered.is_empty() {
            self.submit(Op::Sweep { answered: answered.iter().copied().collect::<Answered>() })
                .await;
        }
    }

    /// Devices that stall or are slow, and those that are tried again.
    async fn sluggish(&mut self) {
        let due = {
            let (hub, at) = (self.hub.lock(), now());
            let figures = sluggish::figures(&hub, at);
            let answered = hub.detector.recent(at);
            self.looks.due(&self.state.read(), &figures, at, unix_ms(), &answered)
        };
        for op in due {
            tracing::warn!(?op, "a device is suspended or tried again");
            self.submit(op).await;
        }
    }

    async fn rebuild(&self) {
        let due = self.state.read().rebuild_due(unix_ms());
        if due {
            self.submit(Op::Rebuild).await;
        }
    }

    /// Copies that change their place (drains, rebalancing).
    async fn moves(&self) {
        let due = self.state.read().moves_due();
        if due {
            self.submit(Op::Move).await;
        }
    }

    async fn primaries(&self) {
        let due = self.state.read().primaries_due(unix_ms());
        if due {
            self.submit(Op::BalancePrimaries).await;
        }
    }

    async fn watch(&self) {
        let due = {
            let mut hub = self.hub.lock();
            let mut due = damage::due(&mut hub, now());
            due.extend(scrubs::due(&mut hub, now()));
            due.extend(watch::due(&self.state.read(), &hub, now()));
            due
        };
        for op in due {
            self.submit(op).await;
        }
    }

    async fn tasks(&self) {
        let running: Vec<(u64, TaskKind)> = {
            let s = self.state.read();
            let r = s.tasks.values().filter(|t| t.state == TaskState::Running);
            r.map(|t| (t.id, t.kind.clone())).collect()
        };
        for (id, kind) in running {
            if let TaskKind::AcceptStale { pgs, .. } = &kind {
                let free = stale::unfenced(&self.hub.lock(), &self.state.read(), pgs).is_empty();
                if free {
                    self.submit(Op::CompleteStale { task: id }).await;
                }
                continue;
            }
            let end = {
                let hub = self.hub.lock();
                task_end(&hub, &self.state.read(), &kind)
            };
            if let Some((ok, detail)) = end {
                self.submit(Op::EndTask { id, ok, detail }).await;
            }
        }
    }

    /// Notes how much is left to sync in each pool, for the estimate of the time left.
    fn sample(&self) {
        let at = now();
        let mut hub = self.hub.lock();
        let mut left: BTreeMap<PoolId, u64> = BTreeMap::new();
        {
            let s = self.state.read();
            for p in s.pools.keys() {
                left.insert(*p, 0);
            }
            for p in s.pgs.values().filter(|p| !p.config.is_complete()) {
                let live = hub.pgs.get(&p.config.pg);
                *left.entry(p.config.pg.pool()).or_default() += degraded_bytes(live, &p.config);
            }
        }
        let (loads, tasks) = {
            let s = self.state.read();
            (watch::loads(&s, &hub), watch::task_bytes(&s, &hub))
        };
        hub.loads = loads.into_iter().collect();
        hub.task_rates.retain(|k, _| tasks.contains_key(k));
        for (k, n) in tasks {
            hub.task_rates.entry(k).or_default().sample(at, n);
        }
        hub.rates.retain(|p, _| left.contains_key(p));
        for (p, n) in left {
            if n == 0 {
                hub.rates.remove(&p);
            } else {
                hub.rates.entry(p).or_default().sample(at, n);
            }
        }
    }
}

fn all_good(s: &State, p: &crate::state::Pg) -> bool {
    p.config.in_sync.iter().all(|m| s.good(m))
}

/// Bytes of a group that have fewer copies than asked: what a sync still lacks, or all of it.
pub fn degraded_bytes(live: Option<&super::PgLive>, c: &quarry_wire::PgConfig) -> u64 {
    if c.in_sync.len() >= c.copies as usize {
        return 0;
    }
    let Some(r) = live.and_then(|l| l.report.as_ref()) else { return 0 };
    let syncing = c.in_sync.len() + c.syncing.len() >= c.copies as usize;
    if syncing && r.epoch == c.epoch && (r.sync_left_bytes > 0 || r.sync_done_bytes > 0) {
        r.sync_left_bytes
    } else {
        r.bytes
    }
}

fn task_end(hub: &super::HubInner, s: &State, kind: &TaskKind) -> Option<(bool, String)> {
    match kind {
        TaskKind::Map { volume, sdc, generation } => {
            let mapped =
                s.volumes.get(volume).is_some_and(|v| v.mappings.iter().any(|m| m.sdc == *sdc));
            if !mapped {
                return Some((false, "it was unmapped meanwhile".into()));
            }
            let a = attachment(hub, *volume, *sdc, *generation)?;
            match a.error {
                Some(e) => Some((false, e)),
                None => a.socket.map(|_| (true, "mapped".into())),
            }
        }
        TaskKind::Unmap { volume, sdc, index } => {
            unconfirmed(hub, s, *volume, *sdc, *index).is_empty().then(|| (true, "unmapped".into()))
        }
        TaskKind::DrainSds { .. } | TaskKind::DrainDevice { .. } => {
            (s.task_left(kind) == 0).then(|| (true, "it holds no copies any more".into()))
        }
        TaskKind::Rebalance { .. } => {
            (s.task_left(kind) == 0).then(|| (true, "copies are spread evenly".into()))
        }
        // Ended by the command that completes it.
        TaskKind::AcceptStale { .. } => None,
        TaskKind::Rebuild { .. } => {
            (s.task_left(kind) == 0).then(|| (true, "every group has all its copies".into()))
        }
    }
}
