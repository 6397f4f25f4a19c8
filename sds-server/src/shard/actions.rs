//! Carries out what the engine decided.

use super::{Shard, Stage, MAX_PROPOSALS};
use crate::links::LinkId;
use crate::mail::FromShard;
use quarry_replica::{Action, Note};
use quarry_wire::Frame;

impl Shard {
    /// Carries out all actions in order. What arises from them waits for the next turn.
    pub(super) fn carry_out(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        for a in actions.drain(..) {
            self.act(a);
        }
        if self.actions.is_empty() {
            self.actions = actions;
        }
        self.send_proposals();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Disk { device, op } => match self.index_of(device) {
                Some(index) => self.submit(index, op),
                None => tracing::error!(device = device.0, "an operation for an unknown device"),
            },
            Action::Send { link, frame } => self.send(link, frame),
            Action::Dial { sds, kind } => self.dial_server(sds, kind),
            Action::Close { link } => {
                if let Some(l) = self.links.remove(link) {
                    // The last words (a refusal, for instance) still go out.
                    self.reactor.close_after_flush(l.conn);
                }
            }
            Action::Propose { request, proposal } => {
                if self.proposals.len() >= MAX_PROPOSALS {
                    self.proposals.pop_front();
                    self.metrics.limit_reached.with(&["proposals"]).inc();
                }
                self.proposals.push_back((request, proposal));
            }
            Action::HandedOver => {
                if matches!(self.stage, Stage::HandingOver { .. }) {
                    tracing::info!("roles are handed over");
                    self.begin_flush(self.reactor.now());
                }
            }
            Action::Note(note) => {
                log_note(&note);
                if matches!(note, Note::DeviceStalled { .. } | Note::DeviceMoves { .. }) {
                    // The MDM hears of it at once.
                    self.heartbeat();
                }
            }
        }
    }

    fn send(&mut self, link: LinkId, frame: Frame) {
        if !self.links.send(&mut self.reactor, link, frame) {
            self.metrics.limit_reached.with(&["send_queue"]).inc();
            tracing::warn!(link, "a connection is closed: its peer does not take what it is sent");
            let now = self.reactor.now();
            self.cut(now, link);
        }
    }

    fn send_proposals(&mut self) {
        while let Some((request, proposal)) = self.proposals.front().cloned() {
            if self.tx.try_send(FromShard::Propose { request, proposal }).is_err() {
                return;
            }
            self.proposals.pop_front();
        }
    }
}

/// What the engine finds worth telling an operator.
fn log_note(note: &Note) {
    match note {
        Note::Corruption { .. }
        | Note::NoGoodCopy { .. }
        | Note::TableDamaged { .. }
        | Note::LostData { .. }
        | Note::BadMeta { .. }
        | Note::DeviceFailed { .. } => tracing::error!(?note, "replication"),
        Note::DeviceStalled { .. }
        | Note::MemberSilent { .. }
        | Note::Fenced { .. }
        | Note::Refused { .. }
        | Note::StartedEmpty { .. }
        | Note::SyncGivenUp { .. }
        | Note::Repaired { .. } => tracing::warn!(?note, "replication"),
        Note::PrimaryStarted { .. } | Note::PrimaryActive { .. } => {
            tracing::debug!(?note, "replication")
        }
        _ => tracing::info!(?note, "replication"),
    }
}
