//! Configurations of placement groups (ARCHITECTURE section 4, R1, R4, R10, R11, R15, R18).
//!
//! A member is *alive* if its server is up with the start number the configuration names, and *good* if
//! its device takes writes too and the server is not leaving. Members that are not good leave the in-sync set
//! only when a good one that has answered since remains (R10); so the set never becomes empty, and a group
//! whose members are all gone keeps it until one of them returns and is elected (R11).

use super::{Answer, Answered, Ctx, ElectPg, Left, Position, Reject, State};
use quarry_base::{DeviceId, Epoch, PgId, SdsId, StartNo};
use quarry_control::Proposal;
use quarry_wire::{Change, Member, PgConfig};
use std::collections::HashMap;

/// A device that its primary dropped comes back after this time, milliseconds (R27).
pub const READMIT_MS: u64 = 5_000;
/// As long after a sync that a block without a good copy held up.
const DAMAGED_MS: u64 = 60_000;
/// As long after one for which the device had no room: somebody has to delete or trim, or add devices.
const NO_ROOM_MS: u64 = 30_000;

/// Primaries per device, to spread them evenly; counted when first needed in a command.
pub(crate) type Primaries = Option<HashMap<DeviceId, u32>>;

impl State {
    /// The server plays the role of `m` now.
    pub fn alive(&self, m: &Member) -> bool {
        self.sds.get(&m.sds).is_some_and(|s| s.up && !s.fenced && s.start == m.start)
            && self.devices.get(&m.device).is_some_and(|d| !d.missing)
    }

    /// Alive, takes writes, and stays.
    pub fn good(&self, m: &Member) -> bool {
        self.alive(m)
            && self.devices.get(&m.device).is_some_and(|d| d.failed.is_none())
            && self.sds.get(&m.sds).is_some_and(|s| !s.leaving)
    }

    /// The device's server is up with any start, not fenced, and has it.
    pub(super) fn present(&self, device: DeviceId) -> Option<Member> {
        let d = self.devices.get(&device)?;
        let s = self.sds.get(&d.sds)?;
        (s.up && !s.fenced && !d.missing).then_some(Member { device, sds: s.id, start: s.start })
    }

    pub(crate) fn primaries(&self) -> HashMap<DeviceId, u32> {
        let mut n = HashMap::new();
        for d in self.pgs.values().filter_map(|p| p.config.primary) {
            *n.entry(d).or_default() += 1;
        }
        n
    }

    /// Groups in which the server has or should have a role.
    pub fn groups_of(&self, sds: SdsId) -> Vec<PgId> {
        let ours = |d: &DeviceId| self.devices.get(d).is_some_and(|d| d.sds == sds);
        let hit = |c: &PgConfig| c.members().any(|m| m.sds == sds) || c.listed.iter().any(ours);
        self.pgs.values().filter(|p| hit(&p.config)).map(|p| p.config.pg).collect()
    }

    /// Brings groups in line with who is up: the one deterministic effect of all membership commands (R4).
    pub(crate) fn settle(&mut self, ctx: &mut Ctx, pgs: &[PgId], answered: &Answered) {
        let mut n = Primaries::None;
        for pg in pgs {
            let Some(p) = self.pgs.get(pg) else { continue };
            let mut c = p.config.clone();
            self.remove_lost(&mut c, answered);
            self.remove_suspended(&mut c, answered);
            self.finish(ctx, c, &mut n);
        }
    }

    /// R10: members that are not good go if a good one that has answered since remains; without a good one, those
    /// that are not alive go if a live one has answered.
    fn remove_lost(&self, c: &mut PgConfig, answered: &Answered) {
        let stays = |m: &Member| answered.contains(&m.sds);
        if c.in_sync.iter().any(|m| self.good(m) && stays(m)) {
            c.in_sync.retain(|m| self.good(m));
        } else if c.in_sync.iter().any(|m| self.alive(m) && stays(m)) {
            c.in_sync.retain(|m| self.alive(m));
        }
    }

    /// Chooses a primary where there is none, lets listed devices join as syncing, and if anything has changed makes
    /// it the next epoch of the group.
    pub(crate) fn finish(&mut self, ctx: &mut Ctx, mut c: PgConfig, n: &mut Primaries) {
        let Some(p) = self.pgs.get(&c.pg) else { return };
        let old = p.config.clone();
        // Nobody leads while the operator gives the good copies up (R26).
        let fenced = p.fence.is_some();
        if !fenced && !c.primary.is_some_and(|d| c.is_in_sync(d)) {
            c.primary = self.choose_primary(&c, n.get_or_insert_with(|| self.primaries()));
        }
        self.fill_syncing(ctx, &mut c);
        if c == old {
            return;
        }
        assert!(!c.in_sync.is_empty(), "{}: the last in-sync member is never removed", c.pg);
        let led = c.primary.is_some_and(|d| c.is_in_sync(d));
        assert!(led != fenced, "{}: primary not in sync, or one behind a fence", c.pg);
        // One command makes one epoch, however many steps it takes.
        c.epoch = Epoch(old.epoch.0 + u64::from(old.index != ctx.index));
        c.index = ctx.index;
        if c.primary != old.primary {
            let n = n.get_or_insert_with(|| self.primaries());
            if let Some(k) = old.primary.and_then(|d| n.get_mut(&d)) {
                *k = k.saturating_sub(1);
            }
            if let Some(d) = c.primary {
                *n.entry(d).or_default() += 1;
            }
        }
        ctx.change(Change::Pg(c.clone()));
        if let Some(p) = self.pgs.get_mut(&c.pg) {
            p.held.retain(|h| is_held(h, ctx.at_ms));
            p.retiring.retain(|d| c.listed.contains(d));
            for m in old.in_sync.iter().filter(|m| !c.is_in_sync(m.device)) {
                p.left.retain(|l| l.device != m.device);
                p.left.push(Left { device: m.device, at_ms: ctx.at_ms, epoch: old.epoch });
            }
            if c.primary_member() != old.primary_member() {
                p.led_ms = Some(ctx.at_ms);
            }
            p.left.retain(|l| c.listed.contains(&l.device) && !c.is_in_sync(l.device));
            p.config = c;
        }
    }

    /// The in-sync member that is good and not suspended, with the fewest primaries; on a tie the first in order of placement.
    fn choose_primary(&self, c: &PgConfig, n: &HashMap<DeviceId, u32>) -> Option<DeviceId> {
        let rank = |m: &&Member| {
            let place = c.listed.iter().position(|d| *d == m.device).unwrap_or(usize::MAX);
            (
                !self.fit(m),
                !self.good(m),
                !self.alive(m),
                n.get(&m.device).copied().unwrap_or(0),
                place,
            )
        };
        c.in_sync.iter().min_by_key(rank).map(|m| m.device)
    }

    /// Syncing members are the listed devices that are good and not suspended but not in sync, while someone leads.
    fn fill_syncing(&self, ctx: &Ctx, c: &mut PgConfig) {
        let listed = c.listed.clone();
        c.syncing.retain(|m| self.fit(m) && listed.contains(&m.device));
        if !c.primary_member().is_some_and(|m| self.alive(m)) {
            return;
        }
        let held = self.pgs.get(&c.pg).map(|p| p.held.as_slice()).unwrap_or_default();
        for d in listed {
            let waits = held.iter().any(|h| h.0 == d && is_held(h, ctx.at_ms));
            if c.member(d).is_some() || waits {
                continue;
            }
            if let Some(m) = self.present(d).filter(|m| self.fit(m)) {
                c.syncing.push(m);
            }
        }
    }

    /// True if [`super::Op::Sweep`] would find something to do in this group.
    pub fn unsettled(&self, pg: PgId, answered: &Answered, now_ms: u64) -> bool {
        let Some(p) = self.pgs.get(&pg) else { return false };
        let mut c = p.config.clone();
        self.remove_lost(&mut c, answered);
        self.remove_suspended(&mut c, answered);
        if c.in_sync.len() != p.config.in_sync.len() {
            return true;
        }
        let leads = c.primary_member().is_some_and(|m| self.alive(m));
        let free = |d: &DeviceId| !p.held.iter().any(|h| h.0 == *d && is_held(h, now_ms));
        let waits = |d: &DeviceId| self.present(*d).is_some_and(|m| self.fit(&m)) && free(d);
        leads && c.listed.iter().any(|d| c.member(*d).is_none() && waits(d))
    }

    pub(crate) fn sweep(&mut self, ctx: &mut Ctx, answered: &Answered) -> Result<Answer, Reject> {
        let all: Vec<PgId> = self.pgs.keys().copied().collect();
        self.settle(ctx, &all, answered);
        Ok(Answer::Done)
    }

    /// R11: no in-sync member plays its role any more, and at least one is back.
    pub fn electable(&self, pg: PgId) -> bool {
        let Some(p) = self.pgs.get(&pg) else { return false };
        let c = &p.config;
        !c.in_sync.iter().any(|m| self.alive(m))
            && c.in_sync.iter().any(|m| self.present(m.device).is_some())
    }

    pub(crate) fn elect(&mut self, ctx: &mut Ctx, pgs: &[ElectPg]) -> Result<Answer, Reject> {
        let mut n = Primaries::None;
        let (mut done, mut fell_back) = (0, 0u64);
        for e in pgs {
            let counts = n.get_or_insert_with(|| self.primaries());
            if let Some(mut c) = self.elected(e, counts) {
                if let Some(p) = self.pgs.get_mut(&e.pg) {
                    p.lift_fence(&mut c);
                }
                if self.all_caches_lost(e.pg) {
                    // Clients compare it with the epochs of what they were told (R29).
                    c.fell = Epoch(c.epoch.0 + 1);
                    fell_back += 1;
                }
                self.finish(ctx, c, &mut n);
                done += 1;
            }
        }
        if fell_back > 0 {
            let why =
                "the hosts of all copies booted: what was written and not flushed may be gone";
            ctx.event("pg_fell_back", format!("{fell_back} placement groups"), why);
        }
        if done > 0 {
            ctx.event("pg_elect", format!("{done} placement groups"), "in-sync members restarted");
        }
        Ok(Answer::Done)
    }

    /// Would [`super::Op::Elect`] choose somebody now?
    pub fn can_elect(&self, e: &ElectPg) -> bool {
        self.elected(e, &HashMap::new()).is_some()
    }

    /// The host of this in-sync member booted since it was named: with `ack = cached` the newest of what it had
    /// acknowledged may be gone (R29).
    fn has_booted(&self, m: &Member) -> bool {
        let Some(now) = self.present(m.device) else { return true };
        now.sds != m.sds || self.sds.get(&m.sds).is_none_or(|s| s.booted > m.start)
    }

    fn is_cached(&self, pg: PgId) -> bool {
        self.pools.get(&pg.pool()).is_some_and(|p| p.ack == super::Ack::Cached)
    }

    fn all_caches_lost(&self, pg: PgId) -> bool {
        let c = self.pgs.get(&pg).map(|p| &p.config);
        self.is_cached(pg) && c.is_some_and(|c| c.in_sync.iter().all(|m| self.has_booted(m)))
    }

    /// R29: members whose host did not boot have everything; the others come back as syncing. Only if all are here
    /// and all their hosts booted, the longest leads alone and the others get what they lack from it. `None`: whoever
    /// may have more is awaited.
    fn without_lost_caches(
        &self,
        c: &PgConfig,
        mut present: Vec<Position>,
    ) -> Option<Vec<Position>> {
        let booted = |p: &Position| c.member(p.device).is_none_or(|m| self.has_booted(m));
        if !self.is_cached(c.pg) || !present.iter().any(booted) {
            return Some(present);
        }
        if present.iter().all(booted) {
            if present.len() < c.in_sync.len() {
                return None;
            }
            let longest = present.iter().map(|p| p.last).max()?;
            let at = present.iter().position(|p| p.last == longest)?;
            return Some(vec![present.swap_remove(at)]);
        }
        present.retain(|p| !booted(p));
        Some(present)
    }

    /// The configuration after an election, if the positions allow one.
    fn elected(&self, e: &ElectPg, n: &HashMap<DeviceId, u32>) -> Option<PgConfig> {
        let mut c = self.pgs.get(&e.pg)?.config.clone();
        if c.epoch != e.epoch || !self.electable(e.pg) {
            return None;
        }
        let fits = |p: &&Position| {
            c.is_in_sync(p.device) && self.present(p.device).is_some_and(|m| m.start == p.start)
        };
        let present: Vec<Position> = e.present.iter().filter(fits).copied().collect();
        let all = present.len() == c.in_sync.len();
        let present = self.without_lost_caches(&c, present)?;
        let winners = eligible(&present, if all { present.len() } else { c.in_sync.len() });
        let rank = |p: &&Position| {
            (
                p.last,
                std::cmp::Reverse(n.get(&p.device).copied().unwrap_or(0)),
                std::cmp::Reverse(p.device),
            )
        };
        let primary = winners.iter().max_by_key(rank)?.device;
        c.in_sync = winners.iter().filter_map(|p| self.present(p.device)).collect();
        c.primary = Some(primary);
        Some(c)
    }

    /// A request of an SDS for a change (R1, R10, R15, R18).
    pub(crate) fn propose(
        &mut self,
        ctx: &mut Ctx,
        sds: SdsId,
        start: StartNo,
        proposal: &Proposal,
        answered: &Answered,
    ) -> Result<Answer, Reject> {
        let s = self.sds.get_mut(&sds).ok_or_else(|| Reject::not_found("sds", sds))?;
        if s.start != start || !s.up || s.fenced {
            return Err(Reject::stale(format!("start {start} of SDS {sds} has ended")));
        }
        match proposal {
            Proposal::HandOver => {
                s.leaving = true;
                let name = s.name.clone();
                let pgs = self.groups_of(sds);
                self.settle(ctx, &pgs, answered);
                ctx.event("sds_hand_over", format!("sds {name}"), "it is stopping");
            }
            Proposal::Add { pg, epoch, device } => {
                let c = self.fresh(*pg, *epoch, sds, start)?;
                let c = self.added(c, *device)?;
                if let Some(p) = self.pgs.get_mut(pg) {
                    (p.damaged, p.short) = (None, None);
                }
                let mut n = Primaries::None;
                self.finish(ctx, c, &mut n);
            }
            Proposal::DropSyncing { pg, epoch, device, reason, damaged, no_room } => {
                let mut c = self.fresh(*pg, *epoch, sds, start)?;
                if !c.syncing.iter().any(|m| m.device == *device) {
                    return Err(Reject::stale(format!("{pg}: device {device} is not syncing")));
                }
                c.syncing.retain(|m| m.device != *device);
                // What is damaged everywhere, or has no room, does not mend itself in a moment.
                let pause = match damaged {
                    Some(_) => DAMAGED_MS,
                    None if *no_room => NO_ROOM_MS,
                    None => READMIT_MS,
                };
                self.hold(ctx, *pg, *device, pause);
                let short = no_room.then_some(*device);
                let mut told = false;
                if let Some(p) = self.pgs.get_mut(pg) {
                    // One event, not one each time that it is tried again.
                    told = short.is_some() && p.short == short;
                    (p.damaged, p.short) = (damaged.or(p.damaged), short);
                }
                let mut n = Primaries::None;
                self.finish(ctx, c, &mut n);
                if !told {
                    ctx.event("pg_drop_syncing", format!("pg {pg} device {device}"), reason);
                }
            }
            Proposal::MemberSilent { pg, epoch, device, reason } => {
                let mut c = self.fresh(*pg, *epoch, sds, start)?;
                if c.primary == Some(*device) || !c.is_in_sync(*device) {
                    return Err(Reject::stale(format!("{pg}: device {device} is not a secondary")));
                }
                // R10: the last member that takes writes does not go at the word of one that takes none any more; that
                // one's own failure makes the other the primary.
                if !c.primary_member().is_some_and(|m| self.good(m)) {
                    return Err(Reject::stale(format!(
                        "{pg}: its primary's own device has failed"
                    )));
                }
                // The primary asks, so a remaining in-sync member has answered since (R10).
                c.in_sync.retain(|m| m.device != *device);
                self.hold(ctx, *pg, *device, READMIT_MS);
                let mut n = Primaries::None;
                self.finish(ctx, c, &mut n);
                ctx.event("pg_member_silent", format!("pg {pg} device {device}"), reason);
            }
        }
        Ok(Answer::Done)
    }

    /// The configuration a primary's proposal builds on, if it is still that.
    fn fresh(
        &self,
        pg: PgId,
        epoch: Epoch,
        sds: SdsId,
        start: StartNo,
    ) -> Result<PgConfig, Reject> {
        let p = self.pgs.get(&pg).ok_or_else(|| Reject::stale(format!("{pg} does not exist")))?;
        let c = &p.config;
        if c.epoch != epoch {
            return Err(Reject::stale(format!("{pg} is at epoch {}, not {epoch}", c.epoch)));
        }
        match c.primary_member() {
            Some(m) if m.sds == sds && m.start == start => Ok(c.clone()),
            _ => Err(Reject::stale(format!("SDS {sds} does not lead {pg}"))),
        }
    }

    /// With `device` in sync. With all copies there, only these stay listed; a retiring device does not count.
    fn added(&self, mut c: PgConfig, device: DeviceId) -> Result<PgConfig, Reject> {
        let at = c.syncing.iter().position(|m| m.device == device);
        let Some(m) = at.map(|i| c.syncing.remove(i)).filter(|m| self.fit(m)) else {
            return Err(Reject::stale(format!(
                "{}: device {device} is not syncing with its present start",
                c.pg
            )));
        };
        c.in_sync.push(m);
        let retiring = self.pgs.get(&c.pg).map(|p| p.retiring.as_slice()).unwrap_or_default();
        let stays = |m: &&Member| self.fit(m) && !retiring.contains(&m.device);
        let keep: Vec<DeviceId> = c.in_sync.iter().filter(stays).map(|m| m.device).collect();
        if keep.len() >= c.copies as usize {
            c.in_sync.retain(|m| keep.contains(&m.device));
            c.listed.retain(|d| keep.contains(d));
            c.syncing.clear();
        }
        Ok(c)
    }

    fn hold(&mut self, ctx: &Ctx, pg: PgId, device: DeviceId, pause_ms: u64) {
        if let Some(p) = self.pgs.get_mut(&pg) {
            p.held.retain(|h| h.0 != device);
            p.held.push((device, ctx.at_ms.saturating_add(pause_ms)));
        }
    }
}

/// A device that was dropped waits still. An end further away than any can be was set before the clock went back:
/// it counts no more.
fn is_held(h: &(DeviceId, u64), now_ms: u64) -> bool {
    h.1 > now_ms && h.1 <= now_ms.saturating_add(DAMAGED_MS.max(READMIT_MS))
}

/// Who may be in sync after an election (R11): a member below a commit point that another knows has lost data. One
/// without any record counts only if all members are there and none has one: then nothing was ever written.
fn eligible(present: &[Position], members: usize) -> Vec<Position> {
    if present.iter().all(|p| !p.known) {
        return if present.len() == members { present.to_vec() } else { Vec::new() };
    }
    let commit_of_others = |me: DeviceId| {
        present.iter().filter(|p| p.device != me).map(|p| p.commit).max().unwrap_or_default()
    };
    present
        .iter()
        .filter(|p| p.known && p.last.seq >= commit_of_others(p.device))
        .copied()
        .collect()
}
