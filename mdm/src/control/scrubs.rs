//! Passes of scrubs that ended become events: which device, what was read, what was found.
//!
//! A pass over little data takes seconds, and of the events that are kept other things matter more: of a device, passes without
//! findings are told once a day, such with findings once an hour. What is not told at once is in the figures of the next one.

use super::hub::HubInner;
use crate::state::Op;
use quarry_base::{Nanos, StartNo};
use quarry_control::{scrub_ended, SCRUB_ENDED};
use std::time::Duration;

const CALM: Duration = Duration::from_secs(24 * 3600);
const FOUND: Duration = Duration::from_secs(3600);

/// What was told of a device.
pub struct Told {
    process: StartNo,
    counts: [u64; SCRUB_ENDED.len()],
    /// When a pass was told, and when one with findings.
    any: Option<Nanos>,
    found: Option<Nanos>,
}

/// Events that are due.
pub fn due(hub: &mut HubInner, at: Nanos) -> Vec<Op> {
    let mut out = Vec::new();
    let HubInner { sds, scrubs, .. } = hub;
    scrubs.retain(|(id, device), _| sds.get(id).is_some_and(|l| l.devices.contains_key(device)));
    for (&id, live) in sds.iter() {
        for &device in live.devices.keys() {
            let count = |what: &str| live.counters.get(&scrub_ended(device, what)).copied();
            // Not heard yet, not open yet, or an older server.
            if count("passes").is_none() {
                continue;
            }
            let now = SCRUB_ENDED.map(|what| count(what).unwrap_or(0));
            let before = || live.told_before(now);
            let fresh = || Told { process: live.process, counts: before(), any: None, found: None };
            let told = scrubs.entry((id, device)).or_insert_with(fresh);
            if told.process != live.process {
                (told.process, told.counts) = (live.process, before());
            }
            let [passes, bytes, bad_pages, bad_groups, read_errors] =
                std::array::from_fn(|i| now[i].saturating_sub(told.counts[i]));
            if passes == 0 {
                continue;
            }
            let bad = [bad_pages, bad_groups, read_errors].iter().any(|n| *n > 0);
            let (last, pause) = if bad { (told.found, FOUND) } else { (told.any, CALM) };
            if last.is_some_and(|t| at.since(t) < pause) {
                continue;
            }
            (told.counts, told.any) = (now, Some(at));
            if bad {
                told.found = Some(at);
            }
            out.push(Op::NoteScrub {
                sds: id,
                device,
                passes,
                bytes,
                bad_pages,
                bad_groups,
                read_errors,
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::hub::{DeviceLive, Hub, SdsLive};
    use super::*;
    use crate::state::State;
    use quarry_base::{DeviceId, SdsId};

    const ID: SdsId = SdsId(1);
    const HOUR: u64 = 3600;

    struct Lab {
        hub: Hub,
        second: u64,
    }

    impl Lab {
        /// A server with two devices whose process began with the start 1.
        fn new(whole: bool) -> Lab {
            let l = Lab { hub: Hub::new(&State::default()), second: 1000 };
            l.process(1, whole);
            l
        }

        fn process(&self, process: u64, whole: bool) {
            let devices = [1, 2].map(|d| (DeviceId(d), DeviceLive::default())).into();
            let process = StartNo(process);
            let live = SdsLive { process, whole, devices, ..SdsLive::default() };
            self.hub.lock().sds.insert(ID, live);
        }

        /// A device has told this; `seconds` later: device, passes, bytes, findings of each event.
        fn beat(
            &mut self,
            device: u32,
            counts: [u64; 5],
            seconds: u64,
        ) -> Vec<(u32, u64, u64, u64)> {
            if let Some(l) = self.hub.lock().sds.get_mut(&ID) {
                let named = SCRUB_ENDED.iter().zip(counts);
                l.counters.extend(named.map(|(n, v)| (scrub_ended(DeviceId(device), n), v)));
            }
            self.second += seconds;
            let ops = due(&mut self.hub.lock(), Nanos(self.second * 1_000_000_000));
            let told = ops.into_iter().map(|op| match op {
                Op::NoteScrub {
                    device, passes, bytes, bad_pages, bad_groups, read_errors, ..
                } => (device.0, passes, bytes, bad_pages + bad_groups + read_errors),
                op => panic!("{op:?}"),
            });
            told.collect()
        }
    }

    #[test]
    fn a_pass_that_ends_is_told_and_the_next_ones_once_a_day_together() {
        let mut l = Lab::new(true);
        assert!(l.beat(1, [0; 5], 1).is_empty(), "none has ended");
        assert_eq!(l.beat(1, [1, 100, 0, 0, 0], 1), [(1, 1, 100, 0)]);
        assert_eq!(l.beat(2, [1, 50, 0, 0, 0], 1), [(2, 1, 50, 0)], "each device for itself");
        for n in 2..20 {
            assert!(l.beat(1, [n, n * 100, 0, 0, 0], HOUR).is_empty(), "pass {n}");
        }
        assert_eq!(l.beat(1, [20, 2000, 0, 0, 0], 10 * HOUR), [(1, 19, 1900, 0)]);
        assert!(l.beat(1, [20, 2000, 0, 0, 0], 100 * HOUR).is_empty(), "nothing has ended since");
    }

    #[test]
    fn findings_do_not_wait_for_the_day_but_for_an_hour() {
        let mut l = Lab::new(true);
        assert_eq!(l.beat(1, [1, 100, 0, 0, 0], 1), [(1, 1, 100, 0)]);
        assert_eq!(
            l.beat(1, [2, 200, 3, 1, 1], 1),
            [(1, 1, 100, 5)],
            "a quiet one came just before"
        );
        for n in 3..50 {
            assert!(l.beat(1, [n, n * 100, n, 1, 1], 60).is_empty(), "pass {n}");
        }
        assert_eq!(l.beat(1, [50, 5000, 50, 1, 1], HOUR), [(1, 48, 4800, 47)]);
        assert!(l.beat(1, [51, 5100, 50, 1, 1], HOUR).is_empty(), "that one was clean");
    }

    #[test]
    fn a_restarted_server_counts_from_nothing_and_floods_nobody() {
        let mut l = Lab::new(true);
        assert_eq!(l.beat(1, [7, 700, 2, 0, 0], 1), [(1, 7, 700, 2)]);
        l.process(2, true);
        assert!(l.beat(2, [0; 5], 1).is_empty());
        assert!(l.beat(1, [1, 100, 0, 0, 0], 1).is_empty(), "told of this device a moment ago");
        assert_eq!(l.beat(1, [2, 200, 0, 0, 0], 24 * HOUR), [(1, 2, 200, 0)]);
        assert_eq!(l.beat(1, [3, 300, 1, 0, 0], 1), [(1, 1, 100, 1)]);
        // The same process under a new start.
        l.process(2, true);
        assert!(l.beat(1, [3, 300, 1, 0, 0], 100 * HOUR).is_empty());
    }

    #[test]
    fn passes_that_ended_before_the_mdm_started_are_no_news() {
        let mut l = Lab::new(false);
        assert!(l.beat(1, [7, 700, 2, 0, 0], 1).is_empty());
        assert_eq!(l.beat(1, [8, 800, 2, 0, 0], 1), [(1, 1, 100, 0)]);
        l.hub.lock().sds.clear();
        assert!(l.beat(1, [0; 5], 1).is_empty());
        assert!(l.hub.lock().scrubs.is_empty(), "a removed server is forgotten");
    }
}
