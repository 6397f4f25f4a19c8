//! Clean stop (SIGTERM): no new sequence numbers, commit what has one, ask the MDM to hand the roles over,
//! give the grants up as the new configurations come (R18).

use crate::engine::Engine;
use crate::event::Action;
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
                // A group with no other in-sync member cannot be handed to anybody.
                let left = self
                    .groups
                    .iter_mut()
                    .filter_map(|g| g.primary())
                    .any(|p| p.cfg.in_sync.len() > 1);
                if !left && self.hand_over.stage == Stage::Accepted {
                    self.hand_over.stage = Stage::Done;
                    out.push(Action::HandedOver);
                }
            }
        }
    }
}
