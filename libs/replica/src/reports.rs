//! What the daemon tells the MDM: what devices hold, how groups stand, what is confirmed.

use crate::engine::Engine;
use crate::meta::PgMeta;
use quarry_base::{ConfigIndex, DeviceId, Seq};
use quarry_store::Store;
use quarry_wire::{PgHave, PgReport};

/// Numbers sequenced before a change of rights; when all are committed, the change is confirmed (R21).
pub(crate) struct Barrier {
    pub index: ConfigIndex,
    /// Group and its last number then.
    pub open: Vec<(usize, Seq)>,
}

/// A device for heartbeats.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceStats {
    pub device: DeviceId,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// A write or a sync failed: it takes no writes any more (R10).
    pub failed: Option<String>,
}

/// What a recovered device holds, for registration (R11, R13).
pub fn haves_of(store: &Store) -> Vec<PgHave> {
    let metas = store.pgs().into_iter().map(|pg| {
        let meta = store.meta(pg).and_then(|b| PgMeta::decode(&b).ok()).unwrap_or_default();
        (pg, meta)
    });
    metas
        .map(|(pg, meta)| {
            let s = store.pg_state(pg);
            let stable = s.stable.min(s.last);
            let in_sync = |m: &PgMeta| m.config.is_some() && m.frozen.is_none();
            PgHave {
                pg,
                last: stable,
                commit: s.commit,
                complete_through: if in_sync(&meta) {
                    stable
                } else {
                    meta.frozen.unwrap_or_default()
                },
                config: meta.config,
            }
        })
        .collect()
}

impl Engine {
    /// What a device holds, for registration.
    pub fn haves(&self, device: DeviceId) -> Vec<PgHave> {
        self.store(device).map(haves_of).unwrap_or_default()
    }

    /// Newest change applied; newest one before which everything sequenced is committed; state of every
    /// group led here.
    pub fn reports(&self) -> (ConfigIndex, ConfigIndex, Vec<PgReport>) {
        let applied = self.view.index();
        let open = self.barriers.iter().map(|b| ConfigIndex(b.index.0.saturating_sub(1))).min();
        let mut pgs = Vec::new();
        for g in &self.groups {
            let crate::pg::Role::Primary(p) = &g.role else { continue };
            let Some(d) = self.devices.get(g.dev) else { continue };
            let syncing = p.followers.iter().filter(|f| !f.in_sync);
            let (mut left, mut done) = (0, 0);
            for f in syncing {
                match &f.sync {
                    Some(s) => {
                        left += s.total_bytes.saturating_sub(s.done_bytes);
                        done += s.done_bytes;
                    }
                    None => left += d.store.bytes_changed_since(g.id, Some(f.complete_through)),
                }
            }
            pgs.push(PgReport {
                pg: g.id,
                epoch: p.epoch,
                device: g.device,
                active: p.active,
                last: quarry_base::Version::new(p.epoch, p.last),
                bytes: d.store.pg_state(g.id).bytes_used,
                sync_left_bytes: left,
                sync_done_bytes: done,
            });
        }
        (applied, open.unwrap_or(applied).min(applied), pgs)
    }

    /// Every device, for heartbeats.
    pub fn device_stats(&self) -> Vec<DeviceStats> {
        let one = |d: &crate::engine::Device| {
            let s = d.store.stats();
            DeviceStats {
                device: d.id,
                capacity_bytes: s.capacity_bytes,
                used_bytes: s.used_bytes,
                failed: d.store.unfit().map(|e| e.to_string()),
            }
        };
        self.devices.iter().map(one).collect()
    }

    /// Counters since the engine was made.
    pub fn stats(&self) -> &crate::stats::EngineStats {
        &self.stats
    }

    /// What writes took since the engine was made.
    pub fn write_times(&self) -> &crate::times::WriteTimes {
        &self.times
    }

    /// Forgets barriers whose numbers are committed, dropped, or not ours to commit any more.
    pub(crate) fn settle_barriers(&mut self) {
        let (groups, devices) = (&self.groups, &self.devices);
        self.barriers.retain_mut(|b| {
            b.open.retain(|(g, seq)| {
                let Some(pg) = groups.get(*g).filter(|p| !p.dropped) else { return false };
                let Some(d) = devices.get(pg.dev) else { return false };
                let s = d.store.pg_state(pg.id);
                let ours = pg.meta.config.as_ref().is_some_and(|c| c.is_in_sync(pg.device));
                ours && s.commit < *seq && s.last.seq >= *seq
            });
            !b.open.is_empty()
        });
    }
}
