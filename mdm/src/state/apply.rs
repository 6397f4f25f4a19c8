//! Applies one command: dispatch, idempotency, events.

use super::{Answer, Applied, Command, Ctx, Op, Reject, Remembered, State, Task, TaskState};
use super::{EVENTS, REMEMBERED, TASKS};
use quarry_base::{crc32c, ConfigIndex};
use quarry_wire::Change;
use std::collections::HashSet;

impl State {
    /// Applies the command with log index `index`, which must follow the last one. A refused command counts as
    /// applied and changes nothing but the index.
    pub fn apply(&mut self, index: ConfigIndex, cmd: &Command) -> Result<Applied, Reject> {
        assert!(index.0 == self.index.0 + 1, "log index {index} after {}", self.index);
        self.index = index;
        if self.cluster.is_empty() && !matches!(cmd.op, Op::Init { .. }) {
            return Err(Reject::conflict("not_initialised", "the cluster has no identity yet", ""));
        }
        let op_crc = cmd.key.as_ref().map(|_| op_crc(&cmd.op));
        if let (Some(key), Some(crc)) = (&cmd.key, op_crc) {
            if let Some(r) = self.remembered.iter().find(|r| r.key == *key) {
                return replay(r, crc);
            }
        }
        let mut ctx = Ctx {
            index,
            at_ms: cmd.at_ms,
            who: cmd.who.clone(),
            changes: Vec::new(),
            events: Vec::new(),
        };
        let answer = self.dispatch(&mut ctx, &cmd.op)?;
        if let (Some(key), Some(op_crc)) = (&cmd.key, op_crc) {
            if self.remembered.len() >= REMEMBERED {
                self.remembered.pop_front();
            }
            self.remembered.push_back(Remembered {
                key: key.clone(),
                op_crc,
                answer: answer.clone(),
            });
        }
        for e in &mut ctx.events {
            self.next.event += 1;
            e.id = self.next.event;
            if self.events.len() >= EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(e.clone());
        }
        Ok(Applied { answer, changes: newest(ctx.changes), events: ctx.events })
    }

    fn dispatch(&mut self, ctx: &mut Ctx, op: &Op) -> Result<Answer, Reject> {
        match op {
            Op::Init { cluster } => self.init(ctx, cluster),
            Op::RegisterMdm { name, addresses, release, host } => {
                self.register_mdm(ctx, name, addresses, release, host)
            }
            Op::Register(r) => self.register(ctx, r),
            Op::SdsFailed { sds, start, reason, answered } => {
                self.sds_failed(ctx, *sds, *start, reason, answered)
            }
            Op::Sweep { answered } => self.sweep(ctx, answered),
            Op::Elect { pgs } => self.elect(ctx, pgs),
            Op::Propose { sds, start, proposal, answered } => {
                self.propose(ctx, *sds, *start, proposal, answered)
            }
            Op::DeviceFailed { device, start, reason, answered } => {
                self.device_failed(ctx, *device, *start, reason, answered)
            }
            Op::Unreachable { sdc, pg, device } => self.unreachable(ctx, *sdc, *pg, *device),
            Op::Rebuild => self.rebuild(ctx),
            Op::AddDomain { name } => self.add_domain(ctx, name),
            Op::DeleteDomain { id } => self.delete_domain(ctx, *id),
            Op::AddPool(p) => self.add_pool(ctx, p),
            Op::DeletePool { id } => self.delete_pool(ctx, *id),
            Op::AddSds { name, domain, fault_set } => self.add_sds(ctx, name, *domain, *fault_set),
            Op::FenceSds { id, force, answered } => self.fence_sds(ctx, *id, *force, answered),
            Op::RecoverSds { id } => self.recover_sds(ctx, *id),
            Op::AddSdc { name } => self.add_sdc(ctx, name),
            Op::CreateVolume { name, pool, size_bytes, provisioning } => {
                self.create_volume(ctx, name, *pool, *size_bytes, *provisioning)
            }
            Op::ExtendVolume { id, size_bytes } => self.extend_volume(ctx, *id, *size_bytes),
            Op::DeleteVolume { id } => self.delete_volume(ctx, *id),
            Op::Map { volume, sdc, read_only, device } => {
                self.map(ctx, *volume, *sdc, *read_only, *device)
            }
            Op::Unmap { volume, sdc } => self.unmap(ctx, *volume, *sdc),
            Op::RebuildNow { pool } => self.rebuild_switch(ctx, *pool, true),
            Op::RebuildCancel { pool } => self.rebuild_switch(ctx, *pool, false),
            Op::AddTask { kind } => Ok(self.add_task(ctx, kind.clone())),
            Op::EndTask { id, ok, detail } => self.end_task(ctx, *id, *ok, detail),
        }
    }

    fn add_task(&mut self, ctx: &Ctx, kind: super::TaskKind) -> Answer {
        if let Some(t) =
            self.tasks.values().find(|t| t.kind == kind && t.state == TaskState::Running)
        {
            return Answer::Task(t.id);
        }
        let over = self.tasks.len().saturating_sub(TASKS);
        let ended = self.tasks.values().filter(|t| t.state != TaskState::Running).map(|t| t.id);
        for id in ended.take(over).collect::<Vec<_>>() {
            self.tasks.remove(&id);
        }
        self.next.task += 1;
        let id = self.next.task;
        let task = Task {
            id,
            kind,
            state: TaskState::Running,
            created_ms: ctx.at_ms,
            finished_ms: None,
            detail: String::new(),
        };
        self.tasks.insert(id, task);
        Answer::Task(id)
    }

    fn end_task(&mut self, ctx: &Ctx, id: u64, ok: bool, detail: &str) -> Result<Answer, Reject> {
        let t = self.tasks.get_mut(&id).ok_or_else(|| Reject::not_found("tasks", id))?;
        t.state = if ok { TaskState::Done } else { TaskState::Failed };
        t.finished_ms = Some(ctx.at_ms);
        t.detail = detail.into();
        Ok(Answer::Done)
    }
}

/// Only the last configuration of each group is published: the ones before it never stood.
fn newest(mut changes: Vec<Change>) -> Vec<Change> {
    let mut seen = HashSet::new();
    changes.reverse();
    changes.retain(|c| match c {
        Change::Pg(c) => seen.insert(c.pg),
        _ => true,
    });
    changes.reverse();
    changes
}

fn op_crc(op: &Op) -> u32 {
    // A command came from JSON or goes to it: writing it cannot fail.
    crc32c(&serde_json::to_vec(op).unwrap_or_default())
}

fn replay(r: &Remembered, crc: u32) -> Result<Applied, Reject> {
    if r.op_crc != crc {
        return Err(Reject::invalid(
            "idempotency_key_reused",
            "this Idempotency-Key was used for another request",
            "use a new key for a new request",
        ));
    }
    Ok(Applied { answer: r.answer.clone(), changes: Vec::new(), events: Vec::new() })
}
