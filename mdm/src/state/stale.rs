//! The operator's decision where only stale copies of a group are left (R26).
//!
//! Two steps. *Fencing* makes an epoch without a primary in which a new line of records begins ([`PgConfig::line`]): whoever
//! knows it neither asks the old primary nor takes its answers. *Completion* makes the chosen copy the only one in sync. Between
//! them the driver waits until every client that could still reach an old primary has confirmed the first step; the operator's
//! word that the old server is off takes both at once. A good copy that registers before the completion ends the decision;
//! one that comes later is of an old line and begins from empty.
//!
//! Invariant: only groups are touched of which no in-sync member is running, so nothing that is reachable is given up.

use super::pg::Primaries;
use super::{Answer, Ctx, Pg, Reject, State, TaskKind};
use quarry_base::{ConfigIndex, DeviceId, Epoch, PgId, PoolId, StartNo};
use quarry_wire::{Change, Member, PgConfig};
use serde::{Deserialize, Serialize};

/// Groups named in events of one decision at most.
const NAMED: usize = 64;

/// A stale copy that is to count as good.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StaleChoice {
    pub pg: PgId,
    /// The configuration the operator was shown.
    pub epoch: Epoch,
    pub device: DeviceId,
    pub start: StartNo,
    /// What is lost, for the event.
    pub lost: String,
}

/// A group whose good copies are being given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fence {
    /// The copy that is to count.
    pub device: DeviceId,
    /// `line` before, should it not come to that.
    pub line: Epoch,
    /// Index of the fencing configuration: who has applied it asks no old primary any more.
    pub index: ConfigIndex,
}

impl State {
    /// No in-sync member of the group runs, nor has one come back that could be elected.
    pub fn only_stale(&self, pg: PgId) -> bool {
        let here = |m: &Member| self.alive(m) || self.present(m.device).is_some();
        self.pgs.get(&pg).is_some_and(|p| !p.config.in_sync.iter().any(here))
    }

    /// The device as a member with its server's present start, if it could be given a role.
    pub fn could_serve(&self, device: DeviceId) -> Option<Member> {
        self.present(device).filter(|m| self.good(m))
    }

    pub(crate) fn accept_stale(
        &mut self,
        ctx: &mut Ctx,
        pool: PoolId,
        choices: &[StaleChoice],
        server_off: bool,
    ) -> Result<Answer, Reject> {
        let name =
            self.pools.get(&pool).ok_or_else(|| Reject::not_found("pool", pool))?.name.clone();
        for c in choices {
            self.check_choice(pool, c)?;
        }
        if choices.is_empty() {
            return Err(Reject::conflict(
                "nothing_stale",
                format!("pool {name} has no group of which only stale copies are left"),
                "scli explain pool says what is wrong with it",
            ));
        }
        for c in choices {
            self.fence_group(ctx, c);
        }
        for c in choices.iter().take(NAMED) {
            ctx.event("pg_accept_stale", format!("pg {} device {}", c.pg, c.device), &c.lost);
        }
        let how = match server_off {
            true => "the operator says that the old servers are switched off",
            false => "waits until no client can reach an old primary any more",
        };
        let n = choices.len();
        ctx.event("accept_stale", format!("pool {name}"), format!("{n} placement groups: {how}"));
        if server_off {
            choices.iter().for_each(|c| self.complete_group(ctx, c.pg));
            return Ok(Answer::Pool(pool));
        }
        let pgs = choices.iter().map(|c| c.pg).collect();
        Ok(self.add_task(ctx, TaskKind::AcceptStale { pool, pgs }, n as u64))
    }

    fn check_choice(&self, pool: PoolId, c: &StaleChoice) -> Result<(), Reject> {
        let again = "look again: what would be lost may have changed";
        let p = self.pgs.get(&c.pg).filter(|_| c.pg.pool() == pool);
        let p = p.ok_or_else(|| Reject::not_found("pg", c.pg))?;
        if p.fence.is_some() {
            return Err(Reject::conflict(
                "decided",
                format!("{} is being given to a stale copy already", c.pg),
                "scli task list shows what it waits for",
            ));
        }
        if p.config.epoch != c.epoch || !self.only_stale(c.pg) || p.config.is_in_sync(c.device) {
            let why = format!("{}: a good copy is back, or its configuration has changed", c.pg);
            return Err(Reject::conflict("not_stale", why, again));
        }
        match self.could_serve(c.device) {
            Some(m) if m.start == c.start => Ok(()),
            _ => {
                let why =
                    format!("device {} with the stale copy of {} is not there", c.device, c.pg);
                Err(Reject::conflict("copy_away", why, "bring its server back first"))
            }
        }
    }

    /// First step: an epoch without a primary.
    fn fence_group(&mut self, ctx: &mut Ctx, choice: &StaleChoice) {
        // Named twice: decided once.
        let Some(p) = self.pgs.get_mut(&choice.pg).filter(|p| p.fence.is_none()) else { return };
        let c = &mut p.config;
        p.fence = Some(Fence { device: choice.device, line: c.line, index: ctx.index });
        c.epoch = Epoch(c.epoch.0 + 1);
        c.index = ctx.index;
        c.line = c.epoch;
        c.primary = None;
        c.syncing.clear();
        ctx.change(Change::Pg(c.clone()));
    }

    /// Second step. A group of which a good copy has come back meanwhile has no fence any more and is left alone; one whose
    /// chosen copy is away waits for it.
    fn complete_group(&mut self, ctx: &mut Ctx, pg: PgId) {
        let Some(f) = self.pgs.get(&pg).and_then(|p| p.fence) else { return };
        let Some(m) = self.could_serve(f.device).filter(|_| self.only_stale(pg)) else { return };
        let Some(p) = self.pgs.get_mut(&pg) else { return };
        p.fence = None;
        let mut c = p.config.clone();
        c.in_sync = vec![m];
        c.primary = Some(m.device);
        if !c.listed.contains(&m.device) {
            c.listed.push(m.device);
        }
        self.finish(ctx, c, &mut Primaries::None);
    }

    /// Every client has confirmed the first step.
    pub(crate) fn complete_stale(&mut self, ctx: &mut Ctx, task: u64) -> Result<Answer, Reject> {
        let pgs = match self.tasks.get(&task).map(|t| &t.kind) {
            Some(TaskKind::AcceptStale { pgs, .. }) => pgs.clone(),
            _ => return Err(Reject::not_found("tasks", task)),
        };
        let waiting = |s: &State| pgs.iter().filter(|pg| s.is_fenced(**pg)).count();
        let before = waiting(self);
        pgs.iter().for_each(|pg| self.complete_group(ctx, *pg));
        let left = waiting(self);
        if left > 0 {
            // Their copies are away: the task goes on.
            return Ok(Answer::Task(task));
        }
        let detail = match pgs.len() - before {
            0 => format!("{before} stale copies count as good now"),
            n => format!(
                "{before} stale copies count as good now; of {n} groups a good copy came back"
            ),
        };
        self.end_task(ctx, task, true, &detail)
    }

    pub fn is_fenced(&self, pg: PgId) -> bool {
        self.pgs.get(&pg).is_some_and(|p| p.fence.is_some())
    }

    /// The decision is taken back: the groups wait for their good copies again.
    pub(crate) fn unfence_groups(&mut self, ctx: &mut Ctx, pgs: &[PgId]) {
        for pg in pgs {
            let Some(p) = self.pgs.get_mut(pg) else { continue };
            let mut c = p.config.clone();
            if p.lift_fence(&mut c) {
                self.finish(ctx, c, &mut Primaries::None);
            }
        }
    }
}

impl Pg {
    /// A good copy is there after all: its line goes on. False: there was no fence.
    pub(crate) fn lift_fence(&mut self, c: &mut PgConfig) -> bool {
        let Some(f) = self.fence.take() else { return false };
        c.line = f.line;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answered, Lab};
    use super::super::{Op, TaskState};
    use super::*;

    /// Two servers; both groups' copies on 1 and 2; 2 went first, then 1, and 2 is back.
    fn stale() -> Lab {
        let mut l = Lab::cluster(2, 2);
        l.fail(2, &[1]);
        l.fail(1, &[]);
        l.register(2, None, &[]);
        l
    }

    fn device_of(l: &Lab, server: u32) -> DeviceId {
        l.s.devices.values().find(|d| d.sds == l.id(server)).unwrap().id
    }

    fn choices(l: &Lab, server: u32) -> Vec<StaleChoice> {
        let device = device_of(l, server);
        let one = |c: PgConfig| StaleChoice {
            pg: c.pg,
            epoch: c.epoch,
            device,
            start: l.start(server),
            lost: "all".into(),
        };
        l.all().into_iter().map(one).collect()
    }

    fn accept(l: &mut Lab, server_off: bool) -> Result<Answer, Reject> {
        let choices = choices(l, 2);
        l.run(Op::AcceptStale { pool: PoolId(1), choices, server_off }).map(|a| a.answer)
    }

    #[test]
    fn r26_the_old_server_switched_off_completes_at_once() {
        let mut l = stale();
        let before = l.pg(0).clone();
        assert!(l.s.only_stale(before.pg) && before.in_sync[0].sds == l.id(1));
        assert!(accept(&mut l, true).is_ok());
        let two = device_of(&l, 2);
        for c in l.all() {
            assert_eq!((c.primary, c.in_sync.len(), c.in_sync[0].device), (Some(two), 1, two));
            assert_eq!(c.in_sync[0].start, l.start(2));
            assert_eq!((c.epoch.0, c.line), (before.epoch.0 + 1, c.epoch));
        }
        // The good copy that returns is brought up to date like any other, under the same line.
        l.register(1, None, &[2]);
        let c = l.pg(0).clone();
        assert!(c.primary == Some(two) && c.syncing[0].sds == l.id(1));
        assert_eq!(c.line.0, before.epoch.0 + 1);
        assert!(accept(&mut l, true).is_err(), "nothing is stale any more");
    }

    #[test]
    fn r26_without_that_word_nobody_leads_until_it_is_completed() {
        let mut l = stale();
        let Ok(Answer::Task(task)) = accept(&mut l, false) else { panic!("no task") };
        let c = l.pg(0).clone();
        assert_eq!((c.primary, c.line), (None, c.epoch));
        assert!(c.in_sync.iter().all(|m| m.sds == l.id(1)), "the good copies still count");
        assert!(accept(&mut l, false).is_err(), "it is being decided already");
        // Whatever happens to others makes no primary.
        l.fail(2, &[]);
        l.ok(Op::Sweep { answered: answered(&[]) });
        l.ok(Op::CompleteStale { task });
        assert_eq!(l.pg(0).primary, None, "the chosen copy is away");
        assert_eq!(l.s.tasks[&task].state, TaskState::Running);
        l.register(2, None, &[]);
        assert_eq!(l.pg(0).primary, None);
        l.ok(Op::CompleteStale { task });
        assert_eq!(l.pg(0).primary, Some(device_of(&l, 2)));
        assert_eq!(l.pg(0).line, c.line);
        assert_eq!(l.s.tasks[&task].state, TaskState::Done);
    }

    #[test]
    fn r26_a_good_copy_that_comes_back_in_time_ends_the_decision() {
        let mut l = stale();
        let Ok(Answer::Task(task)) = accept(&mut l, false) else { panic!("no task") };
        l.register(1, None, &[2]);
        l.elect(&[(1, (2, 900), 900)]);
        let c = l.pg(0).clone();
        assert_eq!((c.primary, c.line), (Some(device_of(&l, 1)), Epoch::ZERO));
        l.ok(Op::CompleteStale { task });
        assert_eq!(l.pg(0), &c, "nothing was given up");
        assert!(l.s.tasks[&task].detail.contains("a good copy came back"));
    }

    #[test]
    fn r26_a_decision_can_be_taken_back_before_it_is_complete() {
        let mut l = stale();
        // Also one that names every group twice.
        let choices = [choices(&l, 2), choices(&l, 2)].concat();
        let op = Op::AcceptStale { pool: PoolId(1), choices, server_off: false };
        let Ok(Answer::Task(task)) = l.run(op).map(|a| a.answer) else { panic!("no task") };
        l.ok(Op::CancelTask { id: task });
        assert!(l.pg(0).line == Epoch::ZERO && l.s.only_stale(l.pg(0).pg));
        assert!(accept(&mut l, true).is_ok());
    }

    #[test]
    fn r26_a_group_with_a_good_copy_is_never_given_up() {
        let mut l = Lab::cluster(3, 2);
        l.fail(1, &[2, 3]);
        let good = l.all().into_iter().find(|c| c.is_in_sync(device_of(&l, 2))).unwrap();
        let choice = StaleChoice {
            pg: good.pg,
            epoch: good.epoch,
            device: device_of(&l, 3),
            start: l.start(3),
            lost: String::new(),
        };
        let op = Op::AcceptStale { pool: PoolId(1), choices: vec![choice], server_off: true };
        assert_eq!(l.run(op).unwrap_err().code, "not_stale");
        let op = Op::AcceptStale { pool: PoolId(1), choices: Vec::new(), server_off: true };
        assert_eq!(l.run(op).unwrap_err().code, "nothing_stale");
    }

    #[test]
    fn when_a_copy_was_last_in_sync_is_remembered() {
        let mut l = Lab::cluster(2, 2);
        l.at_ms = 5_000;
        l.fail(2, &[1]);
        let two = device_of(&l, 2);
        let left = l.s.pgs[&l.pg(0).pg].left.clone();
        assert_eq!((left[0].device, left[0].at_ms), (two, 5_000));
        l.register(2, None, &[1]);
        l.heal();
        assert!(l.s.pgs[&l.pg(0).pg].left.is_empty());
    }
}
