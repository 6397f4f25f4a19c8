//! Clean stop (SIGTERM): no new sequence numbers, commit what has one, ask the MDM to hand the roles over,
//! give the grants up as the new configurations come (R18).

use crate::engine::Engine;
use crate::event::Action;
use crate::pg::Pg;
use quarry_wire::Proposal;

#[derive(Default, PartialEq, Eq, Clone, Copy, Debug)]
enum Stage {
    #[default]
    Off,
    /// Waits until everything sequenced is committed.
    Draining,
    Asked(u64),
    /// The MDM accepted, or there is nothing more to wait for.
    Accepted,
    Done,
}

#[derive(Default)]
pub(crate) struct HandOver {
    stage: Stage,
}

impl HandOver {
    pub fn begin(&mut self) {
        if self.stage == Stage::Off {
            self.stage = Stage::Draining;
        }
    }
    pub fn is_on(&self) -> bool {
        self.stage != Stage::Off
    }
    pub fn is_answer(&self, request: u64) -> bool {
        self.stage == Stage::Asked(request)
    }
    pub fn answered(&mut self, accepted: bool) {
        self.stage = if accepted { Stage::Accepted } else { Stage::Draining };
    }
}

impl Engine {
    /// Is there a group that somebody else could lead, and we still do, or shall as soon as its configuration is durable?
    fn has_heirs(&self) -> bool {
        let of = |g: &Pg| {
            let others = g.meta.config.as_ref().is_some_and(|c| c.in_sync.len() > 1);
            !g.dropped && others && g.leads(self.me)
        };
        self.groups.iter().any(of)
    }

    /// Moves a hand-over on.
    pub(crate) fn turn_hand_over(&mut self, out: &mut Vec<Action>) {
        match self.hand_over.stage {
            Stage::Off | Stage::Done => {}
            Stage::Draining => {
                let open =
                    self.groups.iter_mut().filter_map(|g| g.primary()).any(|p| p.last > p.commit);
                if !open {
                    self.proposals += 1;
                    self.hand_over.stage = Stage::Asked(self.proposals);
                    out.push(Action::Propose {
                        request: self.proposals,
                        proposal: Proposal::HandOver,
                    });
                }
            }
            Stage::Asked(_) | Stage::Accepted => {
                if self.hand_over.stage == Stage::Accepted && !self.has_heirs() {
                    self.hand_over.stage = Stage::Done;
                    out.push(Action::HandedOver);
                }
            }
        }
    }
}
