//! Which devices are too slow, by what their servers measure on them, and when a suspended one is tried again (R27).
//!
//! A pure keeper of looks, as [`super::Detector`]: the state machine says what may be done ([`State::check_suspend`]). The figures are
//! of a device's own operations, taken by its server, which leaves out the time in which it did not run itself; neither the
//! network nor requests that wait are in them.

use super::hub::HubInner;
use crate::state::{Answered, Device, Op, Sluggish, State};
use quarry_base::{DeviceId, Nanos, PoolId};
use quarry_control::{disk_times, stalled};
use std::collections::BTreeMap;
use std::time::Duration;

/// A device is stalled after this time without progress, milliseconds.
const STALLED_MS: u64 = 1_000;
/// A device is slow if half of its operations take longer than this, microseconds, ...
const SLOW_US: u64 = 100_000;
/// ... and so many times longer than those of the others of its pool.
const TIMES: u64 = 8;
/// Of fewer operations nothing is concluded.
const FEWEST: u64 = 4;
/// Between two looks at the times of devices.
const LOOK: Duration = Duration::from_secs(1);
/// So many looks in a row find it slow, over this time at least.
const LOOKS: u32 = 3;
const OVER: Duration = Duration::from_secs(3);
/// Looks further apart than this are not in a row: it was the MDM that did not run.
const APART: Duration = Duration::from_millis(2500);
/// What a server said longer ago than this says nothing of its devices now.
const FRESH: Duration = Duration::from_millis(1000);

/// What a server says of one of its devices.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// For so long operations have been under way and none ended; 0: it moves.
    pub stalled_ms: u64,
    /// Median of the time of its last writes and syncs, and their number.
    pub median_us: u64,
    pub ops: u64,
}

/// Looks at devices.
#[derive(Default)]
pub struct Looks {
    /// Found slow since, and how often in a row.
    slow: BTreeMap<DeviceId, (Nanos, u32)>,
    looked: Option<Nanos>,
}

impl Looks {
    /// Commands that are due. To be called often; `answered`: who was heard a moment ago.
    pub fn due(
        &mut self,
        s: &State,
        figures: &BTreeMap<DeviceId, Figures>,
        at: Nanos,
        now_ms: u64,
        answered: &Answered,
    ) -> Vec<Op> {
        let mut found: Vec<(DeviceId, Sluggish)> = figures
            .iter()
            .filter(|(d, f)| f.stalled_ms >= STALLED_MS && stalls_alone(s, figures, **d))
            .map(|(d, f)| (*d, Sluggish::Stalled { idle_ms: f.stalled_ms }))
            .collect();
        if self.looked.is_none_or(|l| at.since(l) >= LOOK) {
            found.extend(self.look(s, figures, at));
        }
        let suspend = found.into_iter().filter_map(|(device, why)| {
            let start = s.devices.get(&device).and_then(|d| s.sds.get(&d.sds))?.start;
            s.check_suspend(device, start, &why).ok()?;
            Some(Op::SuspendDevice { device, start, why, answered: answered.clone() })
        });
        let over = s.devices.values().filter(|d| {
            d.suspended.as_ref().is_some_and(|x| {
                let moves = figures.get(&d.id).is_some_and(|f| f.stalled_ms == 0);
                x.is_over(now_ms) && s.healthy(d) && (moves || !x.why.is_stalled())
            })
        });
        suspend.chain(over.map(|d| Op::ResumeDevice { device: d.id })).collect()
    }

    /// Devices that have been slow for long enough.
    fn look(
        &mut self,
        s: &State,
        figures: &BTreeMap<DeviceId, Figures>,
        at: Nanos,
    ) -> Vec<(DeviceId, Sluggish)> {
        if self.looked.is_some_and(|l| at.since(l) > APART) {
            self.slow.clear();
        }
        self.looked = Some(at);
        let mut pools: BTreeMap<PoolId, Vec<(DeviceId, Figures)>> = BTreeMap::new();
        for (d, f) in figures.iter().filter(|(_, f)| f.ops >= FEWEST) {
            if let Some(pool) = s.devices.get(d).and_then(|d| d.pool) {
                pools.entry(pool).or_default().push((*d, *f));
            }
        }
        let slow: BTreeMap<DeviceId, Sluggish> =
            pools.values().flat_map(|all| slow_ones(all)).collect();
        self.slow.retain(|d, _| slow.contains_key(d));
        let mut out = Vec::new();
        for (d, why) in slow {
            let (since, looks) = self.slow.entry(d).or_insert((at, 0));
            *looks += 1;
            if *looks >= LOOKS && at.since(*since) >= OVER {
                out.push((d, why));
            }
        }
        out
    }
}

/// Does it stall where others of its pool work? They may all lie on one disk, or wait for the same thing: then nothing is gained
/// by doing without some of them. A minority at most is ever away for this.
fn stalls_alone(s: &State, figures: &BTreeMap<DeviceId, Figures>, device: DeviceId) -> bool {
    let Some(pool) = s.devices.get(&device).and_then(|d| d.pool) else { return false };
    let says = |d: &DeviceId| figures.get(d).copied().unwrap_or_default();
    let stalls = |d: &&Device| {
        let suspended = d.suspended.as_ref().is_some_and(|x| x.why.is_stalled());
        suspended || says(&d.id).stalled_ms >= STALLED_MS
    };
    let (all, away) = (s.pool_devices(pool).count(), s.pool_devices(pool).filter(stalls).count());
    let moves = |d: &Device| d.id != device && says(&d.id).stalled_ms == 0 && says(&d.id).ops > 0;
    away <= (all.saturating_sub(1) / 2).max(1) && s.pool_devices(pool).any(moves)
}

/// Devices of a pool that are much slower than the others now.
fn slow_ones(all: &[(DeviceId, Figures)]) -> Vec<(DeviceId, Sluggish)> {
    let slow = all.iter().filter(|(_, f)| f.median_us >= SLOW_US);
    slow.filter_map(|(d, f)| {
        let mut others: Vec<u64> =
            all.iter().filter(|o| o.0 != *d).map(|o| o.1.median_us).collect();
        others.sort_unstable();
        let others_us = *others.get(others.len() / 2)?;
        let why = Sluggish::Slow { median_us: f.median_us, others_us, ops: f.ops };
        (f.median_us >= others_us.saturating_mul(TIMES)).then_some((*d, why))
    })
    .collect()
}

/// What servers that were heard a moment ago say of devices that they serve. An older server says nothing.
pub fn figures(hub: &HubInner, at: Nanos) -> BTreeMap<DeviceId, Figures> {
    let mut out = BTreeMap::new();
    for live in hub.sds.values() {
        if live.session.is_none() || at.since(live.heard) > FRESH || live.counters.is_empty() {
            continue;
        }
        for (d, _) in live.devices.iter().filter(|(_, l)| l.open && l.failed.is_none()) {
            let count = |name: &str| live.counters.get(name).copied().unwrap_or(0);
            let [median_us, ops] = disk_times(*d).map(|n| count(&n));
            out.insert(*d, Figures { stalled_ms: count(&stalled(*d)), median_us, ops });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::Lab;

    const FAST: Figures = Figures { stalled_ms: 0, median_us: 900, ops: 50 };
    const SLOW: Figures = Figures { stalled_ms: 0, median_us: 200_000, ops: 15 };

    /// A cluster of three, looked at ten times a second.
    struct Watch {
        l: Lab,
        looks: Looks,
        ms: u64,
    }

    impl Watch {
        fn new() -> Watch {
            Watch { l: Lab::cluster(3, 2), looks: Looks::default(), ms: 5_000 }
        }

        /// What is done in the next `ms`, while the devices 1.. say this.
        fn pass(&mut self, ms: u64, all: [Figures; 3]) -> Vec<(u64, Op)> {
            let figures = (1..).map(DeviceId).zip(all).collect();
            let heard = crate::state::tests::answered(&[1, 2, 3]);
            let mut out = Vec::new();
            for _ in 0..ms / 100 {
                (self.ms, self.l.at_ms) = (self.ms + 100, self.l.at_ms + 100);
                let at = Nanos(self.ms * 1_000_000);
                for op in self.looks.due(&self.l.s, &figures, at, self.l.at_ms, &heard) {
                    self.l.ok(op.clone());
                    out.push((self.ms, op));
                }
            }
            out
        }
    }

    fn suspended(w: &Watch) -> Vec<u32> {
        let all = w.l.s.devices.values().filter(|d| d.suspended.is_some());
        all.map(|d| d.id.get()).collect()
    }

    #[test]
    fn a_slow_device_is_suspended_after_several_looks_and_not_before() {
        let mut w = Watch::new();
        assert!(w.pass(10_000, [FAST; 3]).is_empty());
        assert!(w.pass(2_900, [FAST, SLOW, FAST]).is_empty(), "too early");
        assert!(w.pass(1_100, [FAST; 3]).is_empty());
        assert!(w.pass(2_900, [FAST, SLOW, FAST]).is_empty(), "not in a row");
        assert_eq!(w.pass(1_500, [FAST, SLOW, FAST]).len(), 1);
        assert_eq!(suspended(&w), [2]);
    }

    #[test]
    fn times_that_all_have_or_few_operations_or_small_ones_are_not_slow() {
        let mut w = Watch::new();
        assert!(w.pass(10_000, [SLOW; 3]).is_empty(), "all of them: it is not the disk");
        let half = Figures { median_us: 40_000, ..SLOW };
        assert!(w.pass(10_000, [half, SLOW, half]).is_empty(), "five times as slow");
        let tenth = Figures { median_us: 90_000, ..SLOW };
        assert!(w.pass(10_000, [FAST, tenth, FAST]).is_empty(), "90 ms is no hurry");
        let few = Figures { ops: 3, ..SLOW };
        assert!(w.pass(10_000, [FAST, few, FAST]).is_empty(), "three operations");
        let none = Figures::default();
        assert!(w.pass(10_000, [none, SLOW, none]).is_empty(), "the others do no I/O");
    }

    #[test]
    fn looks_of_an_mdm_that_did_not_run_do_not_count() {
        let mut w = Watch::new();
        for _ in 0..5 {
            assert!(w.pass(2_000, [FAST, SLOW, FAST]).is_empty());
            w.ms += 5_000;
        }
    }

    #[test]
    fn devices_that_stall_together_or_where_nobody_is_seen_to_work_stay() {
        let mut w = Watch::new();
        let hangs = Figures { stalled_ms: 1_200, ..FAST };
        assert!(w.pass(1_000, [hangs, hangs, FAST]).is_empty(), "two of three: they share a disk");
        assert!(w.pass(1_000, [hangs; 3]).is_empty());
        let quiet = Figures::default();
        assert!(w.pass(1_000, [quiet, hangs, quiet]).is_empty(), "nobody else does anything");
        assert_eq!(w.pass(100, [FAST, hangs, quiet]).len(), 1);
    }

    #[test]
    fn a_stalled_device_is_suspended_at_once_and_comes_back_when_it_moves() {
        let mut w = Watch::new();
        let hangs = |ms| Figures { stalled_ms: ms, ..FAST };
        assert!(w.pass(1_000, [FAST, hangs(900), FAST]).is_empty());
        let first = w.pass(100, [FAST, hangs(1_000), FAST]);
        assert!(matches!(first[..], [(_, Op::SuspendDevice { .. })]), "{first:?}");
        assert!(w.pass(20_000, [FAST, hangs(9_000), FAST]).is_empty(), "it hangs still");
        assert_eq!(suspended(&w), [2]);
        assert_eq!(w.pass(100, [FAST; 3]).len(), 1);
        assert!(suspended(&w).is_empty());
        // Again soon: it moves, and is not trusted for a minute.
        w.pass(1_000, [FAST, hangs(1_500), FAST]);
        assert!(w.pass(58_000, [FAST; 3]).is_empty());
        assert_eq!(suspended(&w), [2]);
        assert_eq!(w.pass(2_000, [FAST; 3]).len(), 1);
    }
}
