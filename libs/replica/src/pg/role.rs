//! Beginning and ending a role.

use super::member::Member;
use super::primary::Primary;
use super::{Pg, Role};
use crate::cx::Cx;
use crate::event::Note;
use crate::planted::Bug;
use quarry_base::StartNo;
use quarry_wire::PgConfig;

impl Pg {
    /// Takes the role that the stored configuration gives, once that is durable and (primary) the view reaches it.
    pub fn maybe_start(&mut self, cx: &mut Cx) {
        if !matches!(self.role, Role::None) || self.meta_wait.is_some() || self.meta_failed {
            return;
        }
        let Some(cfg) = self.meta.config.clone() else { return };
        let Some(me) = cfg.member(self.device) else { return };
        let old_start =
            cx.limits.planted(Bug::OldEpochAfterRestart) && cx.me.start != StartNo::ZERO;
        let named = me.sds == cx.me.sds && me.start == cx.me.start && me.start != StartNo::ZERO;
        if !named && !old_start {
            return;
        }
        if cfg.primary != Some(self.device) {
            if cfg.primary.is_some() {
                self.role = Role::Member(Box::new(Member::new(&cfg, self.device)));
            }
            return;
        }
        if cx.view.index() < cfg.index || !cx.view.known {
            return;
        }
        let epoch = cfg.epoch;
        for m in cfg.members().filter(|m| m.device != self.device) {
            cx.links.add_ref(m.sds, cx.now);
        }
        let p = Primary::new(self, cfg, cx);
        self.role = Role::Primary(Box::new(p));
        cx.note(Note::PrimaryStarted { pg: self.id, epoch });
    }

    /// Ends the role because of `next` (or of a new start number): what waits is sent back with it.
    pub fn end_role(&mut self, next: &PgConfig, cx: &mut Cx) {
        self.mends.clear();
        match std::mem::take(&mut self.role) {
            // The role had not begun: nothing was served.
            Role::None if self.leads(cx.me) => self.give_up(next, cx),
            Role::None | Role::Member(_) => {}
            Role::Primary(p) => {
                p.send_back(Some(next), cx);
                for m in p.cfg.members().filter(|m| m.device != self.device) {
                    cx.links.drop_ref(m.sds);
                }
                self.give_up(next, cx);
            }
        }
    }

    /// The process was declared dead and registered anew: every role of the old start is over.
    pub fn fence(&mut self, cx: &mut Cx) {
        if let Some(cfg) = self.meta.config.clone() {
            match std::mem::take(&mut self.role) {
                Role::Primary(p) => {
                    p.send_back(None, cx);
                    for m in cfg.members().filter(|m| m.device != self.device) {
                        cx.links.drop_ref(m.sds);
                    }
                }
                Role::None | Role::Member(_) => {}
            }
        }
    }
}
