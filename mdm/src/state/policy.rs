//! Settings of pools that may change while they live, and the rates that follow from them.

use super::pools::check_limits;
use super::{Answer, Ctx, Pacing, Policy, Pool, Reject, State};
use quarry_base::PoolId;
use quarry_wire::Change;

/// Used where a policy needs a rate and none was given, bytes a second.
pub const DEFAULT_RATE: u64 = 10 << 20;
/// Longest grace time, seconds: a year.
const MAX_GRACE: u64 = 31_536_000;

/// Slowest rate of a group, and slowest that may be set for a pool, bytes a second: one block of the store.
const SLOWEST: u64 = 64 << 10;
/// Fastest rate that may be set, bytes a second: more is a slip of the pen.
const FASTEST: u64 = 1 << 40;
/// Load below which applications count as at rest, bytes a second.
const AT_REST: u64 = 1 << 20;
/// `dynamic` leaves this times the application's own rate to rebuilds when they are light.
const DYNAMIC_CEILING: u64 = 256 << 20;

/// The rate a pool's policy gives for a load of applications, bytes a second; 0: no limit.
pub fn rate(p: &Pool, application_bytes_per_second: u64) -> u64 {
    let floor = match p.rebuild_bytes_per_second {
        0 => DEFAULT_RATE,
        n => n,
    };
    let busy = application_bytes_per_second > AT_REST;
    match p.pacing {
        Pacing::Unlimited => 0,
        Pacing::Limit => p.rebuild_bytes_per_second,
        Pacing::FavourApplication if busy => floor,
        Pacing::Dynamic if busy => {
            // In powers of two, so that a load that wavers does not change it all the time.
            let rest = DYNAMIC_CEILING.saturating_sub(application_bytes_per_second);
            let step = if rest == 0 { 0 } else { 1 << rest.ilog2() };
            floor.max(step)
        }
        Pacing::FavourApplication | Pacing::Dynamic => 0,
    }
}

/// What each of `syncing` groups may take of the pool's rate; none yet: as if all began at once.
pub fn rate_of(p: &Pool, application_bytes_per_second: u64, syncing: usize) -> u64 {
    let total = rate(p, application_bytes_per_second);
    if total == 0 {
        return 0;
    }
    let groups = match syncing {
        0 => u64::from(p.pg_count),
        n => (n as u64).next_power_of_two().min(u64::from(p.pg_count)),
    };
    (total / groups.max(1)).max(SLOWEST)
}

impl State {
    pub(crate) fn set_policy(
        &mut self,
        ctx: &mut Ctx,
        id: PoolId,
        n: &Policy,
    ) -> Result<Answer, Reject> {
        let p = self.pools.get_mut(&id).ok_or_else(|| Reject::not_found("pool", id))?;
        let mut q = p.clone();
        q.pacing = n.pacing.unwrap_or(q.pacing);
        q.rebuild_bytes_per_second =
            n.rebuild_bytes_per_second.unwrap_or(q.rebuild_bytes_per_second);
        q.rebuild_grace_seconds = n.rebuild_grace_seconds.unwrap_or(q.rebuild_grace_seconds);
        q.over_commit = n.over_commit.unwrap_or(q.over_commit);
        q.reserve_percent = n.reserve_percent.unwrap_or(q.reserve_percent);
        q.alert_high_percent = n.alert_high_percent.unwrap_or(q.alert_high_percent);
        q.alert_critical_percent = n.alert_critical_percent.unwrap_or(q.alert_critical_percent);
        q.auto_rebalance = n.auto_rebalance.unwrap_or(q.auto_rebalance);
        q.moves_at_once = n.moves_at_once.unwrap_or(q.moves_at_once);
        q.scrub_bytes_per_second = scrub_after(q.scrub_bytes_per_second, n)?;
        check_limits(q.over_commit, q.reserve_percent)?;
        check_policy(&q)?;
        if q.pacing != p.pacing || q.rebuild_bytes_per_second != p.rebuild_bytes_per_second {
            q.rate_now = rate_of(&q, 0, 0);
        }
        if q.info() != p.info() {
            ctx.change(Change::Pool(q.info()));
        }
        let what = serde_json::to_value(n).unwrap_or_default();
        let set = what.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null());
        let text: Vec<String> = set.map(|(k, v)| format!("{k}={v}")).collect();
        ctx.event("policy_set", format!("pool {}", p.name), text.join(" "));
        *p = q;
        Ok(Answer::Pool(id))
    }

    pub(crate) fn set_rate(
        &mut self,
        ctx: &mut Ctx,
        id: PoolId,
        bytes_per_second: u64,
    ) -> Result<Answer, Reject> {
        let p = self.pools.get_mut(&id).ok_or_else(|| Reject::not_found("pool", id))?;
        if p.rate_now != bytes_per_second {
            p.rate_now = bytes_per_second;
            ctx.change(Change::Pool(p.info()));
        }
        Ok(Answer::Done)
    }
}

/// The rate of the scrub after a change, bytes a second and device; `None`: as each server is set itself.
fn scrub_after(before: Option<u64>, n: &Policy) -> Result<Option<u64>, Reject> {
    let after =
        match (n.scrub_by_server, n.scrub_bytes_per_second) {
            (Some(true), Some(_)) => return Err(Reject::invalid(
                "bad_limit",
                "scrub_by_server and scrub_bytes_per_second contradict each other",
                "give a rate for all devices of the pool, or leave it to each server's scrub_rate",
            )),
            (Some(false), None) if before.is_none() => {
                return Err(Reject::invalid(
                    "bad_limit",
                    "without scrub_by_server the scrub needs scrub_bytes_per_second",
                    "for example 8388608 for 8 MiB/s; 0 switches it off",
                ))
            }
            (Some(true), None) => None,
            (_, Some(rate)) => Some(rate),
            (_, None) => before,
        };
    if after.is_some_and(|rate| !is_rate(rate)) {
        return Err(Reject::invalid(
            "bad_limit",
            format!(
                "scrub_bytes_per_second must be 0 (no scrub) or {SLOWEST} to {FASTEST} for a device"
            ),
            "for example 8388608 for 8 MiB/s",
        ));
    }
    Ok(after)
}

fn is_rate(n: u64) -> bool {
    n == 0 || (SLOWEST..=FASTEST).contains(&n)
}

pub(super) fn check_policy(q: &Pool) -> Result<(), Reject> {
    let alerts = (1..=100).contains(&q.alert_high_percent)
        && (1..=100).contains(&q.alert_critical_percent)
        && q.alert_high_percent <= q.alert_critical_percent;
    if !alerts {
        return Err(Reject::invalid(
            "bad_limit",
            "alert_high_percent and alert_critical_percent must be 1 to 100, the first not above the second",
            "80 and 90 are the defaults",
        ));
    }
    if !(1..=1024).contains(&q.moves_at_once) || q.rebuild_grace_seconds > MAX_GRACE {
        return Err(Reject::invalid(
            "bad_limit",
            format!("moves_at_once must be 1 to 1024, rebuild_grace_seconds at most {MAX_GRACE}"),
            "8 and 60 are the defaults",
        ));
    }
    if !is_rate(q.rebuild_bytes_per_second) {
        return Err(Reject::invalid(
            "bad_limit",
            format!(
                "rebuild_bytes_per_second must be 0 (no limit) or {SLOWEST} to {FASTEST} for the pool"
            ),
            "for example scli policy set --rebuild limit --rate 100MiB (rebuild_bytes_per_second 104857600)",
        ));
    }
    if q.pacing == Pacing::Limit && q.rebuild_bytes_per_second == 0 {
        return Err(Reject::invalid(
            "bad_limit",
            "the policy limit needs rebuild_bytes_per_second",
            "for example scli policy set --rebuild limit --rate 100MiB (rebuild_bytes_per_second 104857600)",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::Lab;
    use super::*;

    #[test]
    fn a_rate_that_would_never_end_is_refused() {
        let mut l = Lab::cluster(2, 2);
        let pool = PoolId(1);
        let set = |n| super::super::Op::SetPolicy {
            pool,
            policy: Box::new(Policy { rebuild_bytes_per_second: Some(n), ..Policy::default() }),
        };
        for n in [5, FASTEST + 1, u64::MAX] {
            assert_eq!(l.run(set(n)).unwrap_err().code, "bad_limit");
        }
        l.ok(set(SLOWEST));
        l.ok(set(0));
    }

    #[test]
    fn the_scrub_of_a_pool_is_set_live_and_given_back_to_its_servers() {
        let mut l = Lab::cluster(2, 2);
        let pool = PoolId(1);
        let set = |rate, by_server| {
            let policy = Policy {
                scrub_bytes_per_second: rate,
                scrub_by_server: by_server,
                ..Policy::default()
            };
            super::super::Op::SetPolicy { pool, policy: Box::new(policy) }
        };
        let seen = |l: &Lab| (l.s.pools[&pool].scrub_bytes_per_second, l.view.pools[&pool].clone());
        assert_eq!(seen(&l).0, None, "as the servers are set");
        for rate in [32 << 20, 0] {
            l.ok(set(Some(rate), None));
            assert_eq!((seen(&l).0, seen(&l).1.scrub_bytes_per_second), (Some(rate), Some(rate)));
            let text = &l.s.events.back().unwrap().reason;
            assert!(text.contains(&format!("scrub_bytes_per_second={rate}")), "{text}");
        }
        let other = Policy { moves_at_once: Some(4), ..Policy::default() };
        l.ok(super::super::Op::SetPolicy { pool, policy: Box::new(other) });
        assert_eq!(seen(&l).1.scrub_bytes_per_second, Some(0), "what is left out stays");
        l.ok(set(Some(1 << 20), Some(false)));
        l.ok(set(None, Some(false)));
        assert_eq!(seen(&l).0, Some(1 << 20));
        l.ok(set(None, Some(true)));
        assert_eq!((seen(&l).0, seen(&l).1.scrub_bytes_per_second), (None, None));
    }

    #[test]
    fn a_scrub_that_would_never_end_or_contradicts_itself_is_refused() {
        let mut l = Lab::cluster(2, 2);
        let before = l.s.pools.clone();
        for (rate, by_server) in [
            (Some(1), None),
            (Some(SLOWEST - 1), None),
            (Some(SLOWEST), Some(true)),
            (None, Some(false)),
        ] {
            let policy = Policy {
                scrub_bytes_per_second: rate,
                scrub_by_server: by_server,
                ..Policy::default()
            };
            let e =
                l.run(super::super::Op::SetPolicy { pool: PoolId(1), policy: Box::new(policy) });
            let e = e.unwrap_err();
            assert!(
                e.code == "bad_limit" && e.message.contains("scrub") && !e.hint.is_empty(),
                "{e:?}"
            );
        }
        assert_eq!(l.s.pools, before);
    }

    #[test]
    fn a_pool_stored_before_there_was_a_scrub_policy_leaves_it_to_its_servers() {
        let l = Lab::cluster(2, 2);
        let p = l.s.pools.values().next().unwrap();
        let stored = serde_json::to_value(p).unwrap();
        assert!(stored.get("scrub_bytes_per_second").is_none(), "and an older MDM could read it");
        assert_eq!(&serde_json::from_value::<Pool>(stored).unwrap(), p);
        let told = serde_json::to_value(p.info()).unwrap();
        assert!(told.get("scrub_bytes_per_second").is_none());
        assert_eq!(serde_json::from_value::<quarry_wire::PoolInfo>(told).unwrap(), p.info());
        let logged = serde_json::json!({"moves_at_once": 3});
        let policy: Policy = serde_json::from_value(logged).unwrap();
        assert_eq!(policy, Policy { moves_at_once: Some(3), ..Policy::default() });
    }

    #[test]
    fn the_rate_follows_policy_and_load() {
        let l = Lab::cluster(2, 2);
        let mut p = l.s.pools.values().next().cloned().unwrap();
        let idle_and_busy = |p: &Pool| (rate(p, 0), rate(p, 100 << 20));
        assert_eq!(idle_and_busy(&p), (0, 0));
        p.rebuild_bytes_per_second = 5 << 20;
        p.pacing = Pacing::Limit;
        assert_eq!(idle_and_busy(&p), (5 << 20, 5 << 20));
        p.pacing = Pacing::FavourApplication;
        assert_eq!(idle_and_busy(&p), (0, 5 << 20));
        p.pacing = Pacing::Dynamic;
        assert_eq!(idle_and_busy(&p), (0, 128 << 20));
        assert_eq!(rate(&p, 300 << 20), 5 << 20, "never below what was given");
        assert!(rate(&p, 10 << 20) >= rate(&p, 200 << 20));
        p.pacing = Pacing::Limit;
        p.rebuild_bytes_per_second = 32 << 20;
        assert_eq!(rate_of(&p, 0, 0), 1 << 20, "as if all 32 groups began at once");
        assert_eq!((rate_of(&p, 0, 1), rate_of(&p, 0, 3)), (32 << 20, 8 << 20));
    }
}
