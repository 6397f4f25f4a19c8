//! Primaries are spread evenly over the devices again after servers came back, by ordinary changes of configuration: the old
//! primary gives its grants up, so no I/O waits for a lease (R18).
//!
//! Calm comes first (R27): only in a pool in which every group has all its copies, a few groups at a time, a group at most
//! twice a minute, and never one that moved because a client could not reach its primary a while ago.
//!
//! The changes of a round, which may take minutes, are one event at its end.

use super::pg::Primaries;
use super::{Answer, Ctx, Pg, Pool, PrimariesRound, Reject, State};
use quarry_base::{DeviceId, PgId, PoolId};
use std::collections::HashMap;

/// Groups of a pool that change their primary with one command; there is one a second.
const AT_ONCE: usize = 4;
/// A group whose primary has changed, for whatever reason, stays for this long, milliseconds: so it has two changes a
/// minute at most where only one server failed.
const STAYS_MS: u64 = 60_000;
/// After so long without a change a round is over, milliseconds: whatever could move has moved.
const REST_MS: u64 = STAYS_MS + 5_000;
/// One that moved at a client's request stays for this long, milliseconds.
pub(super) const REACHED_MS: u64 = 600_000;

/// `at` is less than `ms` ago. What lies ahead, because the clock went back, is not.
fn recent(at: u64, ms: u64, now_ms: u64) -> bool {
    at <= now_ms && now_ms - at < ms
}

/// The group may change its primary now.
fn may_move(p: &Pg, now_ms: u64) -> bool {
    p.retiring.is_empty()
        && !p.led_ms.is_some_and(|at| recent(at, STAYS_MS, now_ms))
        && !p.moved_ms.iter().any(|at| recent(*at, REACHED_MS, now_ms))
}

impl State {
    /// Every group of the pool has all its copies.
    fn all_copies(&self, p: &Pool) -> bool {
        self.pool_pgs(p.id).all(|g| {
            let c = &g.config;
            c.syncing.is_empty()
                && c.in_sync.len() >= p.copies as usize
                && c.in_sync.iter().all(|m| self.fit(m))
        })
    }

    /// Changes of primary that even a pool out, best first: (group, new primary). Only groups that `may` change.
    fn primary_moves(&self, pool: PoolId, may: impl Fn(&Pg) -> bool) -> Vec<(PgId, DeviceId)> {
        if !self.pools.get(&pool).is_some_and(|p| self.all_copies(p)) {
            return Vec::new();
        }
        let groups: Vec<&Pg> = self.pool_pgs(pool).collect();
        let mut n: HashMap<DeviceId, u32> = HashMap::new();
        for d in groups.iter().filter_map(|g| g.config.primary) {
            *n.entry(d).or_default() += 1;
        }
        let mut out = Vec::new();
        while out.len() < AT_ONCE {
            let of = |d: &DeviceId| n.get(d).copied().unwrap_or(0);
            // How much a group's move helps, and where to.
            let gain = |g: &&&Pg| {
                let from = g.config.primary?;
                let free = g.config.in_sync.iter().map(|m| m.device).filter(|d| !self.draining(*d));
                let to = free.min_by_key(|d| (of(d), *d))?;
                let more = of(&from).checked_sub(of(&to)).filter(|more| *more > 1)?;
                Some((more, from, to))
            };
            let taken = |g: &&Pg| out.iter().any(|(pg, _)| *pg == g.config.pg);
            let open = groups.iter().filter(|g| !taken(g) && may(g));
            let best = open.filter_map(|g| Some((gain(&g)?, std::cmp::Reverse(g.config.pg)))).max();
            let Some(((_, from, to), std::cmp::Reverse(pg))) = best else { break };
            if let Some(k) = n.get_mut(&from) {
                *k -= 1;
            }
            *n.entry(to).or_default() += 1;
            out.push((pg, to));
        }
        out
    }

    /// The round has come to its end, and how: primaries are even, a copy is missing, or nothing moved for long.
    fn round_over(&self, pool: &Pool, now_ms: u64) -> Option<(PrimariesRound, &'static str)> {
        let round = pool.primaries_round?;
        if !self.all_copies(pool) {
            return Some((round, "stopped until every block has all its copies again"));
        }
        if self.primary_moves(pool.id, |_| true).is_empty() {
            return Some((round, "they are spread evenly now"));
        }
        let over = !recent(round.last_ms, REST_MS, now_ms);
        over.then_some((round, "the others have to stay where they are for now"))
    }

    /// True if [`super::Op::BalancePrimaries`] would change something now.
    pub fn primaries_due(&self, now_ms: u64) -> bool {
        let moves = |p: &Pool| !self.primary_moves(p.id, |g| may_move(g, now_ms)).is_empty();
        self.pools.values().any(|p| moves(p) || self.round_over(p, now_ms).is_some())
    }

    pub(crate) fn balance_primaries(&mut self, ctx: &mut Ctx) -> Result<Answer, Reject> {
        for pool in self.pools.keys().copied().collect::<Vec<_>>() {
            let moves = self.primary_moves(pool, |g| may_move(g, ctx.at_ms));
            for (pg, to) in &moves {
                let Some(p) = self.pgs.get(pg) else { continue };
                let mut c = p.config.clone();
                c.primary = Some(*to);
                self.finish(ctx, c, &mut Primaries::None);
            }
            if let Some(p) = self.pools.get_mut(&pool).filter(|_| !moves.is_empty()) {
                let round = p.primaries_round.get_or_insert_default();
                round.changes = round.changes.saturating_add(moves.len() as u32);
                round.last_ms = ctx.at_ms;
            }
            self.end_round(ctx, pool);
        }
        Ok(Answer::Done)
    }

    fn end_round(&mut self, ctx: &mut Ctx, pool: PoolId) {
        let over = self.pools.get(&pool).and_then(|p| self.round_over(p, ctx.at_ms));
        let (Some((round, how)), Some(p)) = (over, self.pools.get_mut(&pool)) else { return };
        p.primaries_round = None;
        let text = format!("{} changes of primary to spread them evenly: {how}", round.changes);
        ctx.event("primaries_balance", format!("pool {}", p.name), text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Lab;
    use super::super::Op;
    use super::*;
    use quarry_base::SdcId;
    use std::collections::BTreeMap;

    fn spread(l: &Lab) -> BTreeMap<DeviceId, u32> {
        let mut n: BTreeMap<DeviceId, u32> = l.s.devices.keys().map(|d| (*d, 0)).collect();
        for c in l.all() {
            *n.entry(c.primary.unwrap()).or_default() += 1;
        }
        n
    }

    fn uneven(l: &Lab) -> u32 {
        let n = spread(l);
        n.values().max().unwrap() - n.values().min().unwrap()
    }

    #[test]
    fn primaries_go_back_to_a_server_that_returned_a_few_at_a_time() {
        let mut l = Lab::cluster(3, 2);
        assert!(uneven(&l) <= 1 && !l.s.primaries_due(l.at_ms));
        l.fail(1, &[2, 3]);
        l.register(1, None, &[2, 3]);
        assert!(!l.s.primaries_due(l.at_ms), "copies are restored first");
        l.heal();
        assert!(uneven(&l) > 5, "{:?}", spread(&l));
        l.at_ms += STAYS_MS;
        let (mut rounds, mut all) = (0, 0);
        while l.s.primaries_due(l.at_ms) {
            assert!(told(&l).is_empty(), "not each second");
            let before: Vec<_> = l.all();
            l.ok(Op::BalancePrimaries);
            let moved = l.all().iter().zip(&before).filter(|(a, b)| a.primary != b.primary).count();
            assert!((1..=AT_ONCE).contains(&moved));
            for (a, b) in l.all().iter().zip(&before).filter(|(a, b)| a != b) {
                assert!(a.is_in_sync(a.primary.unwrap()) && a.in_sync == b.in_sync);
            }
            rounds += 1;
            all += moved;
            l.at_ms += 1000;
        }
        assert!(uneven(&l) <= 1 && rounds > 2, "{:?} after {rounds}", spread(&l));
        let want =
            format!("{all} changes of primary to spread them evenly: they are spread evenly now");
        assert_eq!(told(&l), [want]);
    }

    /// What events say of primaries that were spread.
    fn told(l: &Lab) -> Vec<String> {
        let all = l.s.events.iter().filter(|e| e.what == "primaries_balance");
        all.map(|e| e.reason.clone()).collect()
    }

    /// Server 1 of 3 failed and is back with all copies; its primaries may move back now.
    fn returned() -> Lab {
        let mut l = Lab::cluster(3, 2);
        l.fail(1, &[2, 3]);
        l.register(1, None, &[2, 3]);
        l.heal();
        l.at_ms += STAYS_MS;
        l
    }

    #[test]
    fn a_round_that_a_failure_stops_is_told_once_and_the_next_one_anew() {
        let mut l = returned();
        l.ok(Op::BalancePrimaries);
        assert!(told(&l).is_empty());
        l.fail(2, &[1, 3]);
        assert!(l.s.primaries_due(l.at_ms));
        l.ok(Op::BalancePrimaries);
        let stopped = told(&l);
        assert!(stopped.len() == 1 && stopped[0].starts_with("4 changes"), "{stopped:?}");
        assert!(!l.s.primaries_due(l.at_ms));
        l.register(2, None, &[1, 3]);
        l.heal();
        for _ in 0..300 {
            if l.s.primaries_due(l.at_ms) {
                l.ok(Op::BalancePrimaries);
            }
            l.at_ms += 1000;
        }
        let all = told(&l);
        assert!(uneven(&l) <= 1 && all.len() == 2, "{all:?}");
        assert!(all[1].ends_with("they are spread evenly now"), "{all:?}");
    }

    #[test]
    fn a_round_whose_rest_may_not_move_ends_when_nothing_moved_for_long() {
        let mut l = returned();
        // Clients could not reach server 1 a moment ago in all groups but a few.
        let now = l.at_ms;
        let ours = l.all().into_iter().filter(|c| c.is_in_sync(DeviceId(1))).map(|c| c.pg);
        let held: Vec<PgId> = ours.skip(4).collect();
        for pg in held {
            l.s.pgs.get_mut(&pg).unwrap().moved_ms.push(now);
        }
        let mut seconds = 0;
        while told(&l).is_empty() {
            if l.s.primaries_due(l.at_ms) {
                l.ok(Op::BalancePrimaries);
            }
            l.at_ms += 1000;
            seconds += 1;
            assert!(seconds < 200, "{:?}", l.s.pools[&PoolId(1)].primaries_round);
        }
        assert!(uneven(&l) > 1 && seconds > REST_MS / 1000, "{seconds}");
        assert!(!l.s.primaries_due(l.at_ms), "at rest");
        assert!(told(&l)[0].contains("have to stay"), "{:?}", told(&l));
        // A pool stored before there were rounds is read.
        let p = &l.s.pools[&PoolId(1)];
        let stored = serde_json::to_value(p).unwrap();
        assert!(stored.get("primaries_round").is_none());
        assert_eq!(&serde_json::from_value::<Pool>(stored).unwrap(), p);
    }

    #[test]
    fn r27_a_group_that_a_client_could_not_reach_is_not_moved_back() {
        let mut l = Lab::cluster(3, 2);
        let one = l.all()[0].primary.unwrap();
        let led: Vec<PgId> =
            l.all().iter().filter(|c| c.primary == Some(one)).map(|c| c.pg).collect();
        for pg in &led {
            l.ok(Op::Unreachable { sdc: SdcId(1), pg: *pg, device: one });
        }
        assert_eq!(spread(&l)[&one], 0);
        l.at_ms += 60_000;
        for _ in 0..60 {
            l.ok(Op::BalancePrimaries);
            l.at_ms += 1000;
        }
        assert!(l.all().iter().filter(|c| led.contains(&c.pg)).all(|c| c.primary != Some(one)));
    }
}
