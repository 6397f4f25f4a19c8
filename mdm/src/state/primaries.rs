//! Primaries are spread evenly over the devices again after servers came back, by ordinary changes of configuration: the old
//! primary gives its grants up, so no I/O waits for a lease (R18).
//!
//! Calm comes first (R27): only in a pool in which every group has all its copies, a few groups at a time, a group at most
//! twice a minute, and never one that moved because a client could not reach its primary a while ago.

use super::pg::Primaries;
use super::{Answer, Ctx, Pg, Reject, State};
use quarry_base::{DeviceId, PgId, PoolId};
use std::collections::HashMap;

/// Groups of a pool that change their primary with one command; there is one a second.
const AT_ONCE: usize = 4;
/// A group whose primary has changed, for whatever reason, stays for this long, milliseconds: so it has two changes a
/// minute at most where only one server failed.
const STAYS_MS: u64 = 60_000;
/// One that moved at a client's request stays for this long, milliseconds.
pub(super) const REACHED_MS: u64 = 600_000;

impl State {
    /// The group may change its primary now.
    fn may_move(&self, p: &Pg, now_ms: u64) -> bool {
        let recent = |at: u64, ms: u64| at <= now_ms && now_ms - at < ms;
        p.retiring.is_empty()
            && !p.led_ms.is_some_and(|at| recent(at, STAYS_MS))
            && !p.moved_ms.iter().any(|at| recent(*at, REACHED_MS))
    }

    /// Changes of primary that even a pool out, best first: (group, new primary).
    fn primary_moves(&self, pool: PoolId, now_ms: u64) -> Vec<(PgId, DeviceId)> {
        let Some(p) = self.pools.get(&pool) else { return Vec::new() };
        let groups: Vec<&Pg> = self.pool_pgs(pool).collect();
        let copies = p.copies as usize;
        let calm = groups.iter().all(|g| {
            let c = &g.config;
            c.syncing.is_empty()
                && c.in_sync.len() >= copies
                && c.in_sync.iter().all(|m| self.good(m))
        });
        if !calm {
            return Vec::new();
        }
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
            let open = groups.iter().filter(|g| !taken(g) && self.may_move(g, now_ms));
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

    /// True if [`super::Op::BalancePrimaries`] would change something now.
    pub fn primaries_due(&self, now_ms: u64) -> bool {
        self.pools.keys().any(|p| !self.primary_moves(*p, now_ms).is_empty())
    }

    pub(crate) fn balance_primaries(&mut self, ctx: &mut Ctx) -> Result<Answer, Reject> {
        for pool in self.pools.keys().copied().collect::<Vec<_>>() {
            let moves = self.primary_moves(pool, ctx.at_ms);
            for (pg, to) in &moves {
                let Some(p) = self.pgs.get(pg) else { continue };
                let mut c = p.config.clone();
                c.primary = Some(*to);
                self.finish(ctx, c, &mut Primaries::None);
            }
            if let Some(p) = self.pools.get(&pool).filter(|_| !moves.is_empty()) {
                let text = format!("{} placement groups get another primary", moves.len());
                ctx.event("primaries_balance", format!("pool {}", p.name), text);
            }
        }
        Ok(Answer::Done)
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
        let mut rounds = 0;
        while l.s.primaries_due(l.at_ms) {
            let before: Vec<_> = l.all();
            l.ok(Op::BalancePrimaries);
            let moved = l.all().iter().zip(&before).filter(|(a, b)| a.primary != b.primary).count();
            assert!((1..=AT_ONCE).contains(&moved));
            for (a, b) in l.all().iter().zip(&before).filter(|(a, b)| a != b) {
                assert!(a.is_in_sync(a.primary.unwrap()) && a.in_sync == b.in_sync);
            }
            rounds += 1;
            l.at_ms += 1000;
        }
        assert!(uneven(&l) <= 1 && rounds > 2, "{:?} after {rounds}", spread(&l));
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
