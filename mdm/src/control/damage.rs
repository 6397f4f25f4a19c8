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
    process: StartNo,
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
        let before = || live.told_before(now);
        let fresh = || Told { process: live.process, counts: before(), news: None, at: None };
        let told = damage.entry(id).or_insert_with(fresh);
        if told.process != live.process {
            // Another process counts from nothing; one that only got a new start counts on.
            (told.process, told.counts) = (live.process, before());
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

#[cfg(test)]
mod tests {
    use super::super::hub::{Hub, SdsLive};
    use super::*;
    use crate::state::State;
    use quarry_base::SdsId;

    const ID: SdsId = SdsId(1);

    /// A hub, the second it is at, and what was told.
    struct Lab {
        hub: Hub,
        second: u64,
        start: u64,
    }

    impl Lab {
        fn new() -> Lab {
            Lab { hub: Hub::new(&State::default()), second: 1000, start: 0 }
        }

        /// The server registers, having had the start `resume`.
        fn register(&mut self, resume: Option<u64>) {
            self.start += 1;
            let start = StartNo(self.start);
            let mut h = self.hub.lock();
            let old = h.sds.remove(&ID);
            let (process, whole) = SdsLive::process_of(start, resume.map(StartNo), old.as_ref());
            h.sds.insert(ID, SdsLive { start, process, whole, ..SdsLive::default() });
        }

        /// The server has this count of findings, repairs and blocks without a good copy; `seconds` pass.
        fn beats(&mut self, counts: [u64; 3], seconds: u64) -> Vec<[u64; 3]> {
            if let Some(l) = self.hub.lock().sds.get_mut(&ID) {
                let named = COUNTERS.iter().zip(counts);
                l.counters = named.map(|(n, v)| (n.to_string(), v)).collect();
            }
            self.pass(seconds)
        }

        fn pass(&mut self, seconds: u64) -> Vec<[u64; 3]> {
            let mut told = Vec::new();
            for _ in 0..seconds {
                self.second += 1;
                for op in due(&mut self.hub.lock(), Nanos(self.second * 1_000_000_000)) {
                    let Op::NoteDamage { sds, found, repaired, lost } = op else {
                        panic!("{op:?}")
                    };
                    assert_eq!(sds, ID);
                    told.push([found, repaired, lost]);
                }
            }
            told
        }
    }

    #[test]
    fn findings_are_told_together_with_what_came_of_them_and_once_a_minute() {
        let mut l = Lab::new();
        l.register(None);
        assert!(l.beats([0, 0, 0], 5).is_empty(), "nothing was found");
        assert!(l.beats([3, 0, 0], 1).is_empty(), "what comes of them is waited for");
        assert_eq!(l.beats([3, 2, 1], 5), [[3, 2, 1]]);
        assert!(l.beats([9, 2, 1], 50).is_empty(), "not twice in a minute");
        assert_eq!(l.beats([10, 9, 1], 20), [[7, 7, 0]], "all that came meanwhile");
        assert!(l.pass(300).is_empty());
    }

    #[test]
    fn a_restarted_server_counts_from_nothing_and_its_new_findings_are_told() {
        let mut l = Lab::new();
        l.register(None);
        assert_eq!(l.beats([5, 5, 0], 5), [[5, 5, 0]]);
        l.pass(60);
        l.register(None);
        assert!(l.pass(5).is_empty(), "it has said nothing yet");
        assert!(l.beats([0, 0, 0], 5).is_empty());
        assert_eq!(l.beats([2, 1, 0], 5), [[2, 1, 0]]);
        l.pass(60);
        l.register(None);
        assert_eq!(l.beats([2, 1, 0], 5), [[2, 1, 0]], "as many as before, and new all the same");
        l.pass(60);
        // Found before it was looked at for the first time.
        let mut l = Lab::new();
        l.register(None);
        assert_eq!(l.beats([1, 0, 1], 5), [[1, 0, 1]]);
    }

    #[test]
    fn of_a_server_that_goes_and_comes_back_nothing_is_told_twice() {
        let mut l = Lab::new();
        l.register(None);
        assert_eq!(l.beats([5, 5, 0], 5), [[5, 5, 0]]);
        l.pass(60);
        // Its session broke, or it was declared failed and got a new start: the process is the same.
        for counts in [[5, 5, 0], [6, 6, 0], [7, 7, 0]] {
            let had = l.start;
            l.register(Some(had));
            assert!(l.pass(5).is_empty());
            let told = l.beats(counts, 5);
            match counts[0] {
                5 => assert!(told.is_empty(), "{told:?}"),
                _ => assert_eq!(told, [[1, 1, 0]]),
            }
            l.pass(60);
        }
        l.hub.lock().sds.remove(&ID);
        assert!(l.pass(5).is_empty());
        assert!(l.hub.lock().damage.is_empty(), "a removed server is forgotten");
    }

    #[test]
    fn what_was_found_before_the_mdm_started_is_no_news() {
        let mut l = Lab::new();
        l.start = 40;
        l.register(Some(17));
        assert!(l.beats([5, 5, 2], 300).is_empty());
        assert_eq!(l.beats([6, 5, 3], 5), [[1, 0, 1]]);
        l.pass(60);
        l.register(Some(41));
        assert!(l.beats([6, 5, 3], 300).is_empty());
    }
}
