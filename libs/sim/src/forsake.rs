//! The operator's decision of R26: the good copies of some groups are away for long or for ever, older ones count.
//!
//! A member dies, its primary goes on alone and writes more; then that one dies too, or is cut off from everybody but its
//! clients and goes on acknowledging. The older copy comes back and the operator decides for it. The checker is told which groups
//! went back, when, and up to when the copy that counts now had everything; all others must lose nothing.

use crate::net::Addr;
use crate::world::{Ev, World, MS};
use mdm::state::{Answer, Op, StaleChoice};
use quarry_base::*;
use std::collections::BTreeSet;

/// A decision on its way.
#[derive(Default)]
pub struct Forsaking {
    /// Groups that may take a member nobody expects.
    pub(crate) deciding: BTreeSet<PgId>,
    /// Groups that went back: their older members begin from empty.
    pub(crate) gone_back: BTreeSet<PgId>,
    /// The lines of records that began so.
    lines: BTreeSet<(PgId, Epoch)>,
    /// Waits for the clients: its task, and the copies that were chosen.
    waiting: Option<(u64, Vec<(PgId, DeviceId)>)>,
    /// Servers with good copies that are away until it is over.
    away: Vec<usize>,
    on: bool,
}

/// What happens next of it.
#[derive(Clone, Copy)]
pub enum Step {
    /// The server with the good copies goes; `first` comes back.
    Part {
        first: usize,
        holder: usize,
    },
    Decide {
        server_off: bool,
    },
    End,
}

impl World {
    /// Begins: one of a group's two good copies dies.
    pub(crate) fn forsake(&mut self) -> bool {
        if self.forsaking.on || self.now < self.mdm.down_until {
            return false;
        }
        let all: Vec<_> = self.configs.values().filter(|c| c.in_sync.len() == 2).cloned().collect();
        let Some(c) = self.rng.pick(&all).cloned() else { return false };
        let Some(p) = c.primary_member().map(|m| m.sds) else { return false };
        let Some(other) = c.in_sync.iter().find(|m| m.sds != p).map(|m| m.sds) else {
            return false;
        };
        let (holder, first) = (p.0 as usize - 1, other.0 as usize - 1);
        if self.nodes[holder].engine.is_none() || self.nodes[first].engine.is_none() {
            return false;
        }
        self.trace(|| {
            format!("--- sds{} goes first, sds{} will be given up", first + 1, holder + 1)
        });
        self.forsaking.on = true;
        let power = self.rng.chance(50);
        self.crash(first, power);
        let at = self.now + self.rng.within(700, 2000) * MS;
        self.at(at, Ev::Forsake(Step::Part { first, holder }));
        true
    }

    pub(crate) fn forsake_step(&mut self, step: Step) {
        match step {
            Step::Part { first, holder } => self.part(first, holder),
            Step::Decide { server_off } => self.decide(server_off),
            Step::End => self.end_forsaking(),
        }
    }

    fn part(&mut self, first: usize, holder: usize) {
        let back = self.now + self.rng.within(50, 300) * MS;
        self.at(back, Ev::Restart { node: first });
        let isolate = self.rng.chance(50);
        if isolate {
            self.trace(|| format!("--- sds{} reaches nobody but clients", holder + 1));
            let a = Addr::Sds(holder);
            let others = (0..self.nodes.len()).filter(|n| *n != holder).map(Addr::Sds);
            for b in others.chain([Addr::Mdm]).collect::<Vec<_>>() {
                self.net.cut(a, b);
                self.net.cut(b, a);
                let heal = self.now + self.rng.within(6000, 9000) * MS;
                self.at(heal, Ev::Heal { a, b });
            }
        } else {
            let power = self.rng.chance(50);
            self.crash(holder, power);
            self.forsaking.away.push(holder);
        }
        let server_off = !isolate && self.rng.chance(50);
        let at = self.now + self.rng.within(3000, 4500) * MS;
        self.at(at, Ev::Forsake(Step::Decide { server_off }));
    }

    /// The newest copy that is there of every group whose good copies are not.
    fn choices(&self) -> Vec<StaleChoice> {
        let s = &self.mdm.state;
        let stale = s.pgs.values().filter(|p| s.only_stale(p.config.pg) && p.fence.is_none());
        let choice = |c: &quarry_wire::PgConfig| {
            let copies = self.nodes.iter().filter_map(|n| {
                let m = s.could_serve(n.device).filter(|m| !c.is_in_sync(m.device))?;
                let held = n.engine.as_ref()?.haves(n.device);
                let last = held.iter().find(|h| h.pg == c.pg)?.complete_through;
                Some((last, m))
            });
            let (_, m) = copies.max_by_key(|(last, m)| (*last, std::cmp::Reverse(m.device)))?;
            let (device, start) = (m.device, m.start);
            Some(StaleChoice { pg: c.pg, epoch: c.epoch, device, start, lost: String::new() })
        };
        stale.filter_map(|p| choice(&p.config)).collect()
    }

    /// The operator decides for the newest copies that are there, whose old servers are off; groups concerned.
    pub fn decide_for_older_copies(&mut self) -> usize {
        self.forsaking.on = true;
        self.decide(true);
        self.forsaking.deciding.len().max(self.forsaking.gone_back.len())
    }

    fn decide(&mut self, server_off: bool) {
        let over = self.now >= 10_000 * MS + self.cfg.faults_ms * MS;
        let choices = if over { Vec::new() } else { self.choices() };
        // The word that a server is off has to be true.
        let off = |c: &StaleChoice| {
            let p = self.mdm.state.pgs.get(&c.pg);
            p.is_some_and(|p| {
                let mut holders = p.config.in_sync.iter().map(|m| m.sds.0 as usize - 1);
                holders.all(|n| self.nodes[n].engine.is_none())
            })
        };
        let server_off = server_off && choices.iter().all(off);
        if choices.is_empty() || self.now < self.mdm.down_until {
            return self.end_forsaking();
        }
        let chosen: Vec<(PgId, DeviceId)> = choices.iter().map(|c| (c.pg, c.device)).collect();
        self.trace(|| {
            format!("--- the operator decides for {chosen:?}, servers off: {server_off}")
        });
        self.forsaking.deciding = chosen.iter().map(|c| c.0).collect();
        match self.mdm.submit(Op::AcceptStale { pool: PoolId(1), choices, server_off }, self.now) {
            Ok(Answer::Task(task)) => {
                self.spread_news();
                self.forsaking.waiting = Some((task, chosen));
            }
            Ok(_) => self.went_back(&chosen),
            Err(e) => {
                self.trace(|| format!("mdm: refused: {e}"));
                self.end_forsaking();
            }
        }
    }

    /// Completes a decision once every client has confirmed that it leaves the old primaries alone.
    pub(crate) fn settle_forsaking(&mut self) {
        if self.now < self.mdm.down_until {
            return;
        }
        let Some((task, chosen)) = self.forsaking.waiting.clone() else { return };
        let fences = chosen.iter().filter_map(|(pg, _)| self.mdm.state.pgs.get(pg)?.fence);
        let index = fences.map(|f| f.index).max();
        if index
            .is_some_and(|i| self.clients.iter().any(|c| !c.engine.is_fenced() && c.applied() < i))
        {
            return;
        }
        self.mdm.submit(Op::CompleteStale { task }, self.now).ok();
        let running = mdm::state::TaskState::Running;
        if self.mdm.state.tasks.get(&task).is_some_and(|t| t.state == running) {
            // Chosen copies are away; others may be complete.
            self.note_gone_back(&chosen);
            self.spread_news();
        } else {
            self.forsaking.waiting = None;
            self.went_back(&chosen);
        }
    }

    fn went_back(&mut self, chosen: &[(PgId, DeviceId)]) {
        self.note_gone_back(chosen);
        self.spread_news();
        self.forsaking.deciding.clear();
        let at = self.now + self.rng.within(100, 2500) * MS;
        self.at(at, Ev::Forsake(Step::End));
    }

    /// Tells the checker which groups have gone back. One that got its good copy again has not.
    fn note_gone_back(&mut self, chosen: &[(PgId, DeviceId)]) {
        for (pg, device) in chosen {
            let Some(p) = self.mdm.state.pgs.get(pg) else { continue };
            let done = p.fence.is_none() && p.config.is_in_sync(*device) && p.config.line.0 > 0;
            let line = p.config.line;
            if !done || !self.forsaking.lines.insert((*pg, line)) {
                continue;
            }
            self.count("went back");
            self.forsaking.gone_back.insert(*pg);
            let left = self.left_at.get(&(*pg, *device)).copied().unwrap_or(0);
            let since = if self.cfg.shape.cached { 0 } else { left };
            self.history.falls.give_up(*pg, self.now, since);
        }
    }

    /// What was given up comes back, some of it without its disk.
    fn end_forsaking(&mut self) {
        for node in std::mem::take(&mut self.forsaking.away) {
            let device = self.nodes[node].device;
            if self.nodes[node].engine.is_some() {
                // Another fault has brought it back already: nobody takes a disk from under it.
                continue;
            }
            if !self.mdm.needed().contains(&device) && self.rng.chance(40) {
                self.left_at.retain(|(_, d), _| *d != device);
                if let Err(e) = self.format(node) {
                    self.fail(e);
                }
            }
            self.at(self.now + MS, Ev::Restart { node });
        }
        if self.forsaking.waiting.is_none() {
            self.forsaking.on = false;
        }
    }
}
