//! How often groups change their primary: at most twice a minute each, whatever a bad network makes of it (R11).
//!
//! Sampled from the MDM's list of groups, so changes there and back between two samples are not seen; a storm is.

use crate::{ensure, Cluster, Res};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(250);
const WINDOW: Duration = Duration::from_secs(60);
/// Changes of a group in a minute that pass.
const MOST: usize = 2;

/// Changes of a group that fall to `watched`, one at least.
fn share(watched: Duration) -> usize {
    let share = watched.as_secs_f64() / WINDOW.as_secs_f64();
    (MOST as f64 * share.min(1.0)).ceil().max(1.0) as usize
}

/// Runs `body` and fails when a group changed its primary more than twice within a minute meanwhile. Where servers are lost
/// again and again, those two may come one after the other.
pub fn calm<T>(cluster: &Cluster, body: impl FnOnce() -> Res<T>) -> Res<T> {
    watched(cluster, |_| MOST, body)
}

/// The same where no server is lost: a `body` of less than a minute may have as many changes as fall to its time, one at least.
pub fn calm_throughout<T>(cluster: &Cluster, body: impl FnOnce() -> Res<T>) -> Res<T> {
    watched(cluster, share, body)
}

fn watched<T>(
    cluster: &Cluster,
    most: impl Fn(Duration) -> usize,
    body: impl FnOnce() -> Res<T>,
) -> Res<T> {
    let over = AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| changes(cluster, &over));
        let result = body();
        over.store(true, Relaxed);
        let watched = began.elapsed();
        let seen = watch.join().map_err(|_| crate::Failure::new("the watching thread panicked"))?;
        let result = result?;
        ensure!(!seen.is_empty(), "the list of groups was never read");
        let worst = seen.iter().map(|(pg, at)| (most_in_a_window(at), pg)).max();
        if let Some((n, pg)) = worst {
            let all: usize = seen.values().map(Vec::len).sum();
            let (most, groups) = (most(watched), seen.len());
            eprintln!(
                "  {all} changes of primaries in {groups} groups in {watched:.0?}; at most {n} within a minute, \
                 {most} may be"
            );
            ensure!(n <= most, "{pg} changed its primary {n} times within {watched:.0?}");
        }
        Ok(result)
    })
}

/// When each group's primary was seen to be another one than before.
fn changes(cluster: &Cluster, over: &AtomicBool) -> BTreeMap<String, Vec<Instant>> {
    let mut now: BTreeMap<String, u64> = BTreeMap::new();
    let mut seen: BTreeMap<String, Vec<Instant>> = BTreeMap::new();
    while !over.load(Relaxed) {
        // The MDM may not answer for a while: that is no change.
        let rows = cluster.scli_json(["pg", "list"]).unwrap_or_default();
        for row in rows.as_array().into_iter().flatten() {
            let (pg, primary) = (row["id"].to_string(), row["primary"].as_u64());
            let times = seen.entry(pg.clone()).or_default();
            // A group without one has not changed it yet.
            let Some(primary) = primary else { continue };
            if now.insert(pg, primary).is_some_and(|before| before != primary) {
                times.push(Instant::now());
            }
        }
        std::thread::sleep(EVERY);
    }
    seen
}

fn most_in_a_window(at: &[Instant]) -> usize {
    let within =
        |from: &Instant| at.iter().filter(|t| **t >= *from && **t - *from < WINDOW).count();
    at.iter().map(within).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_counted_within_a_minute() {
        let t = Instant::now();
        let at = |s: &[u64]| s.iter().map(|s| t + Duration::from_secs(*s)).collect::<Vec<_>>();
        assert_eq!(most_in_a_window(&at(&[])), 0);
        assert_eq!(most_in_a_window(&at(&[0, 30, 61])), 2);
        assert_eq!(most_in_a_window(&at(&[0, 30, 59, 200])), 3);
    }

    #[test]
    fn a_shorter_time_may_have_fewer_changes() {
        let of = |s| share(Duration::from_secs(s));
        assert_eq!((of(1), of(22), of(30)), (1, 1, 1));
        assert_eq!((of(31), of(60), of(600)), (2, 2, 2));
    }
}
