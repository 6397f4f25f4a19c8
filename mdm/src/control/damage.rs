//! Damaged blocks that servers found become events: how many, and what came of them. At most one a server and minute.

use super::hub::HubInner;
use crate::state::Op;
use quarry_base::{Nanos, StartNo};
use std::time::Duration;

/// Between two events of one server: a rotten device has thousands of findings.
const PAUSE: Duration = Duration::from_secs(60);
/// Findings are repaired in a moment; what came of them is told with them.
const GATHER: Duration = Duration::from_secs(2);

/// Counters of a server: damaged blocks found by reads and the scrub, repaired, without a good copy.
const COUNTERS: [&str; 3] = ["sds.corrupt_blocks", "sds.repairs", "sds.no_good_copy"];

/// What was told of a server.
pub struct Told {
    start: StartNo,
    counts: [u64; 3],
    /// When something new was first seen.
    news: Option<Nanos>,
    at: Option<Nanos>,
}

/// Events that are due.
pub fn due(hub: &mut HubInner, at: Nanos) -> Vec<Op> {
    let mut out = Vec::new();
    let HubInner { sds, damage, .. } = hub;
    damage.retain(|id, _| sds.contains_key(id));
    for (&id, live) in sds.iter().filter(|(_, l)| !l.counters.is_empty()) {
        let now = COUNTERS.map(|n| live.counters.get(n).copied().unwrap_or(0));
        // What an earlier MDM, or nobody, has told: this one begins here.
        let fresh = || Told { start: live.start, counts: now, news: None, at: None };
        let told = damage.entry(id).or_insert_with(fresh);
        if told.start != live.start {
            // A new process counts from nothing.
            (told.start, told.counts) = (live.start, [0; 3]);
        }
        if now == told.counts {
            continue;
        }
        let since = *told.news.get_or_insert(at);
        let quiet = told.at.is_none_or(|t| at.since(t) >= PAUSE);
        if at.since(since) < GATHER || !quiet {
            continue;
        }
        let [found, repaired, lost] =
            std::array::from_fn(|i| now[i].saturating_sub(told.counts[i]));
        (told.counts, told.news, told.at) = (now, None, Some(at));
        out.push(Op::NoteDamage { sds: id, found, repaired, lost });
    }
    out
}
