//! Lease questions and answers between data servers (R17).

use super::Engine;
use crate::codec::{not_covered_in, not_covered_out};
use crate::event::{Action, LinkId};
use quarry_base::{Nanos, RequestId, SdsId, StartNo};
use quarry_wire::{Frame, Header, Op, PgConfig, Status};

impl Engine {
    /// Asks a peer now.
    pub(super) fn ask_grant(&mut self, sds: SdsId, now: Nanos, out: &mut Vec<Action>) {
        let (every, limit) = (self.cfg.limits.ask_every, self.cfg.limits.reconnect_after);
        let Some(p) = self.links.peers.get_mut(&sds) else { return };
        let Some((link, _)) = p.beat.up else { return };
        if p.grants.unanswered(now) >= limit {
            // A host that vanished and came back answers on a new connection long before this one is given up.
            p.grants.ask_at = now + every;
            return self.links.close_soon(link);
        }
        p.grants.ask_at = now + every;
        let mut h = Header::new(Op::GrantAsk);
        h.request_id = RequestId(p.grants.ask(now));
        h.start = self.me.start;
        h.config_index = self.view.index();
        self.stats.grants_asked += 1;
        self.links.send(link, Frame::bare(h), out);
    }

    /// Asks everybody whose time has come.
    pub(super) fn ask_due(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let up =
            self.links.peers.iter().filter(|(_, p)| p.beat.up.is_some() && p.grants.ask_at <= now);
        let due: Vec<SdsId> = up.map(|(s, _)| *s).collect();
        for sds in due {
            self.ask_grant(sds, now, out);
        }
    }

    pub(super) fn next_ask(&self) -> Option<Nanos> {
        self.links.peers.values().filter(|p| p.beat.up.is_some()).map(|p| p.grants.ask_at).min()
    }

    /// A peer asks to go on serving reads. Groups that we know at a newer configuration are not covered.
    pub(super) fn on_grant_ask(
        &mut self,
        link: LinkId,
        sds: SdsId,
        start: StartNo,
        h: &Header,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        let mut a = Header::new(Op::GrantAnswer);
        a.request_id = h.request_id;
        a.start = self.me.start;
        a.config_index = self.view.index();
        let known = self.view.cluster.sds.get(&sds).map_or(StartNo::ZERO, |s| s.start);
        let mut list: Vec<PgConfig> = Vec::new();
        if self.newest_config > h.config_index {
            // Groups whose copies were given away too: nobody else may be there to tell a server that slept.
            let held = self.groups.iter().filter_map(|p| p.meta.config.as_ref());
            list.extend(held.filter(|c| c.index > h.config_index).cloned());
        }
        if list.len() > self.cfg.limits.grant_list || start < known {
            a.status = Status::TryAgain;
            self.links.send(link, Frame::bare(a), out);
            return;
        }
        let until = now + self.cfg.limits.lease_granted();
        let given = &mut self.links.peers.entry(sds).or_default().grants.given_until;
        *given = until.max(*given);
        self.stats.grants_given += 1;
        self.links.send(link, Frame::with_meta(a, not_covered_out(&list)), out);
    }

    /// A peer grants. What it lists ends our roles first.
    pub(super) fn on_grant_answer(
        &mut self,
        sds: SdsId,
        start: StartNo,
        frame: &Frame,
        now: Nanos,
        out: &mut Vec<Action>,
    ) {
        if frame.header.status != Status::Ok {
            if let Some(p) = self.links.peers.get_mut(&sds) {
                p.grants.refused(frame.header.request_id.0);
            }
            return;
        }
        let Some(list) = not_covered_in(&frame.meta) else { return };
        for cfg in list {
            self.take_config(cfg, now, out);
        }
        let lease = self.cfg.limits.lease_asked();
        let Some(p) = self.links.peers.get_mut(&sds) else { return };
        if p.grants.answered(frame.header.request_id.0, start, lease) {
            self.touch_leaseless();
        }
    }

    fn touch_leaseless(&mut self) {
        for g in 0..self.groups.len() {
            if self.groups[g].primary().is_some_and(|p| !p.leaseless.is_empty()) {
                self.touch(g);
            }
        }
    }
}
