//! Messages from the control thread, and the end.

use super::{Shard, Stage, FLUSH, HAND_OVER};
use crate::mail::ToShard;
use quarry_base::{Nanos, SdsId, StartNo};
use quarry_replica::Event as In;
use quarry_wire::Change;

impl Shard {
    /// Takes everything the control thread sent.
    pub(super) fn mail(&mut self, now: Nanos) {
        while let Ok(m) = self.rx.try_recv() {
            match m {
                ToShard::Registered { cluster, cluster_text, sds, start, devices } => {
                    self.engine.set_cluster(cluster_text);
                    self.register(now, sds, start);
                    self.devices_registered(now, cluster, &devices);
                }
                ToShard::View(view) => {
                    self.reported.clear();
                    self.servers = view.sds.clone();
                    self.engine.step(now, In::View(*view), &mut self.actions);
                }
                ToShard::Changes { index, changes } => {
                    changes.iter().for_each(|c| self.note_server(c));
                    self.engine.step(now, In::Changes { index, changes }, &mut self.actions);
                }
                ToShard::ProposalResult { request, accepted, reason } => {
                    let event = In::ProposalResult { request, accepted, reason };
                    self.engine.step(now, event, &mut self.actions);
                }
                ToShard::Heartbeat => self.heartbeat(),
                ToShard::Report(answer) => {
                    // Nobody waits any more: nobody needs it.
                    answer.try_send(self.device_reports()).ok();
                }
                ToShard::HandOver => self.begin_hand_over(now),
            }
        }
    }

    fn register(&mut self, now: Nanos, sds: SdsId, start: StartNo) {
        if let Some((_, old)) = self.registered.filter(|(_, s)| *s != start) {
            tracing::warn!(
                old = old.0,
                new = start.0,
                "the MDM had declared this server failed; its roles end and begin anew"
            );
        }
        self.registered = Some((sds, start));
        self.engine.step(now, In::Registered { sds, start }, &mut self.actions);
        self.take_up_held(now);
    }

    fn note_server(&mut self, change: &Change) {
        match change {
            Change::Sds(s) => drop(self.servers.insert(s.id, s.clone())),
            Change::SdsGone(id) => drop(self.servers.remove(id)),
            _ => {}
        }
    }

    fn begin_hand_over(&mut self, now: Nanos) {
        if !matches!(self.stage, Stage::Running) {
            return;
        }
        if self.registered.is_none() {
            return self.begin_flush(now);
        }
        self.stage = Stage::HandingOver { until: now + HAND_OVER };
        self.engine.step(now, In::HandOver, &mut self.actions);
    }

    /// Destages and checkpoints, so that the next start is quick. Bounded: it is not needed for safety.
    pub(super) fn begin_flush(&mut self, now: Nanos) {
        self.stage = Stage::Flushing { until: now + FLUSH };
        self.engine.flush_stores();
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.engine.stores_idle() && self.disks.in_flight() == 0
    }
}
