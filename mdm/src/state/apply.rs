//! Applies one command: dispatch, idempotency, events.

use super::notes::Scrubbed;
use super::{Answer, Applied, Command, Ctx, Op, Reject, Remembered, State};
use super::{EVENTS, REMEMBERED};
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
                body: None,
            });
        }
        for e in &mut ctx.events {
            self.next.event += 1;
            e.id = self.next.event;
            self.events.push_back(e.clone());
        }
        while self.events.len() > self.events_kept.unwrap_or(EVENTS) {
            self.events.pop_front();
        }
        Ok(Applied { answer, changes: newest(ctx.changes), events: ctx.events, body: None })
    }

    fn dispatch(&mut self, ctx: &mut Ctx, op: &Op) -> Result<Answer, Reject> {
        match op {
            Op::Init { cluster } => self.init(ctx, cluster),
            Op::RegisterMdm { name, addresses, release, host, capabilities } => {
                self.register_mdm(ctx, name, addresses, release, host, capabilities)
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
            Op::CreateVolume { name, pool, size_bytes, provisioning, used_bytes } => {
                self.create_volume(ctx, name, *pool, *size_bytes, *provisioning, *used_bytes)
            }
            Op::ExtendVolume { id, size_bytes, used_bytes } => {
                self.extend_volume(ctx, *id, *size_bytes, *used_bytes)
            }
            Op::DeleteVolume { id } => self.delete_volume(ctx, *id),
            Op::Map { volume, sdc, read_only, device, io_timeout_ms, no_device } => {
                self.map(ctx, *volume, *sdc, (*read_only, *device, *no_device), *io_timeout_ms)
            }
            Op::Unmap { volume, sdc } => self.unmap(ctx, *volume, *sdc),
            Op::RebuildNow { pool } => self.rebuild_switch(ctx, *pool, true),
            Op::RebuildCancel { pool } => self.rebuild_switch(ctx, *pool, false),
            Op::AddTask { kind } => Ok(self.add_task(ctx, kind.clone(), 0)),
            Op::EndTask { id, ok, detail } => self.end_task(ctx, *id, *ok, detail),
            _ => self.dispatch_more(ctx, op),
        }
    }

    fn dispatch_more(&mut self, ctx: &mut Ctx, op: &Op) -> Result<Answer, Reject> {
        match op {
            Op::AcceptStale { pool, choices, server_off } => {
                self.accept_stale(ctx, *pool, choices, *server_off)
            }
            Op::SuspendDevice { device, start, why, answered } => {
                self.suspend_device(ctx, *device, *start, why, answered)
            }
            Op::ResumeDevice { device } => self.resume_device(ctx, *device),
            Op::BalancePrimaries => self.balance_primaries(ctx),
            Op::CompleteStale { task } => self.complete_stale(ctx, *task),
            Op::CancelTask { id } => self.cancel_task(ctx, *id),
            Op::DeleteSds { id } => self.delete_sds(ctx, *id),
            Op::DeleteSdc { id } => self.delete_sdc(ctx, *id),
            Op::DrainSds { id } => self.drain_sds(ctx, *id),
            Op::AddDevice { id, pool } => self.add_device(ctx, *id, *pool),
            Op::DrainDevice { id } => self.drain_device(ctx, *id),
            Op::DeleteDevice { id } => self.delete_device(ctx, *id),
            Op::AddFaultSet { name, domain } => self.add_fault_set(ctx, name, *domain),
            Op::DeleteFaultSet { id } => self.delete_fault_set(ctx, *id),
            Op::AssignFaultSet { sds, fault_set } => self.assign_fault_set(ctx, *sds, *fault_set),
            Op::SetPolicy { pool, policy } => self.set_policy(ctx, *pool, policy),
            Op::SetRate { pool, bytes_per_second } => self.set_rate(ctx, *pool, *bytes_per_second),
            Op::Move => self.move_copies(ctx),
            Op::Rebalance { pool } => self.rebalance(ctx, *pool),
            Op::NoteDamage { sds, found, repaired, lost } => {
                self.note_damage(ctx, *sds, *found, *repaired, *lost)
            }
            &Op::NoteScrub { sds, device, passes, bytes, bad_pages, bad_groups, read_errors } => {
                let s = Scrubbed { passes, bytes, bad_pages, bad_groups, read_errors };
                self.note_scrub(ctx, sds, device, &s)
            }
            Op::NoteLevel { pool, level, reason } => self.note_level(ctx, *pool, *level, reason),
            Op::NoteHealth { pool, health, reason } => self.note_health(ctx, *pool, health, reason),
            Op::SdcLost { id, instance } => self.sdc_lost(ctx, *id, *instance),
            Op::SetCapabilities { node, capabilities, drain } => {
                self.set_capabilities(ctx, *node, capabilities, *drain)
            }
            Op::KeepEvents { keep } => self.keep_events(ctx, *keep),
            Op::Remember { key, body } => Ok(self.remember(key, body)),
            // Every other one is dispatched above.
            _ => Err(Reject::new(500, "internal", format!("no effect for {}", op.name()), "")),
        }
    }

    /// Keeps the body of a first answer.
    fn remember(&mut self, key: &str, body: &str) -> Answer {
        if let Some(r) = self.remembered.iter_mut().find(|r| r.key == key) {
            r.body.get_or_insert_with(|| body.into());
        }
        Answer::Done
    }

    fn keep_events(&mut self, ctx: &mut Ctx, keep: usize) -> Result<Answer, Reject> {
        if !(100..=super::MAX_EVENTS).contains(&keep) {
            return Err(Reject::invalid(
                "bad_limit",
                format!("{keep} events cannot be kept"),
                format!("100 to {}", super::MAX_EVENTS),
            ));
        }
        self.events_kept = Some(keep);
        ctx.event("events_keep", "events".into(), format!("the newest {keep} are kept"));
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
    let mut op = op.clone();
    // What the API adds of its own is no part of the request.
    if let Op::CreateVolume { used_bytes, .. } | Op::ExtendVolume { used_bytes, .. } = &mut op {
        *used_bytes = 0;
    }
    // A command came from JSON or goes to it: writing it cannot fail.
    crc32c(&serde_json::to_vec(&op).unwrap_or_default())
}

fn replay(r: &Remembered, crc: u32) -> Result<Applied, Reject> {
    if r.op_crc != crc {
        return Err(Reject::invalid(
            "idempotency_key_reused",
            "this Idempotency-Key was used for another request",
            "use a new key for a new request",
        ));
    }
    Ok(Applied {
        answer: r.answer.clone(),
        changes: Vec::new(),
        events: Vec::new(),
        body: r.body.clone(),
    })
}
