//! Long work: tasks begin, end, and are cancelled. How far one is follows from the state ([`State::task_left`]).

use super::{Answer, Ctx, Reject, State, Task, TaskKind, TaskState, TASKS};

impl State {
    /// Begins a task, or gives the running one that does the same.
    pub(crate) fn add_task(&mut self, ctx: &mut Ctx, kind: TaskKind, total: u64) -> Answer {
        if let Some(t) =
            self.tasks.values().find(|t| t.kind == kind && t.state == TaskState::Running)
        {
            return Answer::Task(t.id);
        }
        let over = (self.tasks.len() + 1).saturating_sub(TASKS);
        let ended = self.tasks.values().filter(|t| t.state != TaskState::Running).map(|t| t.id);
        for id in ended.take(over).collect::<Vec<_>>() {
            self.tasks.remove(&id);
        }
        self.next.task += 1;
        let id = self.next.task;
        ctx.event("task_begin", format!("task {id} {}", kind.name()), "");
        let task = Task {
            id,
            kind,
            state: TaskState::Running,
            created_ms: ctx.at_ms,
            finished_ms: None,
            detail: String::new(),
            total,
        };
        self.tasks.insert(id, task);
        Answer::Task(id)
    }

    pub(crate) fn end_task(
        &mut self,
        ctx: &mut Ctx,
        id: u64,
        ok: bool,
        detail: &str,
    ) -> Result<Answer, Reject> {
        let state = if ok { TaskState::Done } else { TaskState::Failed };
        if let Some(TaskKind::Rebalance { pool }) = self.finish_task(ctx, id, state, detail)? {
            if let Some(p) = self.pools.get_mut(&pool) {
                p.rebalancing = false;
            }
        }
        Ok(Answer::Done)
    }

    /// What kind it was, `None` if it had ended already.
    fn finish_task(
        &mut self,
        ctx: &mut Ctx,
        id: u64,
        state: TaskState,
        detail: &str,
    ) -> Result<Option<TaskKind>, Reject> {
        let t = self.tasks.get_mut(&id).ok_or_else(|| Reject::not_found("tasks", id))?;
        if t.state != TaskState::Running {
            return Ok(None);
        }
        t.state = state;
        t.finished_ms = Some(ctx.at_ms);
        t.detail = detail.into();
        let outcome = match state {
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
            TaskState::Running | TaskState::Done => "ok",
        };
        let kind = t.kind.clone();
        ctx.outcome("task_end", format!("task {id} {}", kind.name()), outcome, detail);
        Ok(Some(kind))
    }

    /// Ends every running task of this kind as cancelled.
    pub(crate) fn drop_task(&mut self, ctx: &mut Ctx, kind: &TaskKind, detail: &str) {
        let running = |t: &&Task| t.kind == *kind && t.state == TaskState::Running;
        for id in self.tasks.values().filter(running).map(|t| t.id).collect::<Vec<_>>() {
            // It is there: it was just found.
            self.finish_task(ctx, id, TaskState::Cancelled, detail).ok();
        }
    }

    pub(crate) fn cancel_task(&mut self, ctx: &mut Ctx, id: u64) -> Result<Answer, Reject> {
        let t = self.tasks.get(&id).ok_or_else(|| Reject::not_found("tasks", id))?;
        if t.state != TaskState::Running {
            return Err(Reject::conflict("ended", format!("task {id} has ended already"), ""));
        }
        match t.kind.clone() {
            TaskKind::DrainSds { sds } => {
                if let Some(node) = self.lacks_sds(sds) {
                    return Err(Reject::conflict(
                        "capability_taken",
                        format!(
                            "node {} has no capability SDS any more: its copies have to go",
                            node.name
                        ),
                        "give it back, which ends the task: scli node capability add --capability sds",
                    ));
                }
                if let Some(s) = self.sds.get_mut(&sds) {
                    s.draining = false;
                }
                self.stop_moves(ctx, None);
            }
            TaskKind::DrainDevice { device } => {
                if let Some(d) = self.devices.get_mut(&device) {
                    d.draining = false;
                }
                self.stop_moves(ctx, None);
            }
            TaskKind::Rebalance { pool } => {
                if let Some(p) = self.pools.get_mut(&pool) {
                    p.rebalancing = false;
                    // Else it would begin again by itself at once.
                    p.auto_rebalance = false;
                }
                self.stop_moves(ctx, Some(pool));
            }
            TaskKind::Rebuild { pool } => {
                self.rebuild_switch(ctx, pool, false)?;
            }
            TaskKind::AcceptStale { pgs, .. } => self.unfence_groups(ctx, &pgs),
            TaskKind::Map { .. } | TaskKind::Unmap { .. } => {
                return Err(Reject::conflict(
                    "not_cancelable",
                    format!("task {id} cannot be cancelled: it waits for nodes to confirm"),
                    "map or unmap the volume again to go the other way",
                ));
            }
        }
        // A rebuild's task has been ended by the switch.
        self.finish_task(ctx, id, TaskState::Cancelled, "cancelled by the operator")?;
        Ok(Answer::Task(id))
    }

    /// Copies that a task has still to move or to restore.
    pub fn task_left(&self, kind: &TaskKind) -> u64 {
        match kind {
            TaskKind::DrainSds { sds } => self.copies_on_sds(*sds),
            TaskKind::DrainDevice { device } => self.copies_on(*device),
            TaskKind::Rebalance { pool } => self.moves_left(*pool),
            TaskKind::Rebuild { pool } => self.copies_missing(*pool),
            TaskKind::AcceptStale { pgs, .. } => {
                pgs.iter().filter(|pg| self.is_fenced(**pg)).count() as u64
            }
            TaskKind::Map { .. } | TaskKind::Unmap { .. } => 1,
        }
    }

    /// Copies that groups of the pool lack.
    pub fn copies_missing(&self, pool: quarry_base::PoolId) -> u64 {
        let lack = |p: &super::Pg| {
            let good = p.config.in_sync.iter().filter(|m| self.good(m)).count();
            (p.config.copies as usize).saturating_sub(good) as u64
        };
        self.pool_pgs(pool).map(lack).sum()
    }
}
