//! Broken rules, and the runs in which each has to be noticed. Only the package `quarry-sim-planted` has this file: the
//! same sources, on the cores of `quarry-replica-planted`. No program is built from either.

use crate::config::{Config, OPERATIONS};
use crate::faults::{Fault, Mix};
use quarry_replica::Bug;
use std::time::Duration;

/// Seeds within which a broken rule has to be noticed.
pub fn seeds(bug: Bug) -> u64 {
    match bug {
        // The configuration that says that it is in sync is stored with a sync of its own moments later, which hides it
        // from all but one run in 60.
        Bug::AddBeforeSync => 300,
        _ => 100,
    }
}

/// The run with this seed in which a rule is broken; faults are those that make it matter.
pub fn config(bug: Bug, seed: u64) -> Config {
    let mut c = Config::of_seed(seed);
    c.mix = mix(bug);
    c.limits.bug = Some(bug);
    c.fault_every_ms = 200 + seed % 4 * 150;
    c.clients = 3;
    c.load.operations = OPERATIONS / 3;
    c.load.think_ms = 14;
    c.load.depth = 4;
    c.load.extents = 1;
    c.load.blocks = 2;
    (c.load.overlaps, c.load.crossing) = (false, 0);
    c.sdc = Default::default();
    c.load.pages = 3;
    c.shape.pgs = 1;
    c.shape.fault_sets = 0;
    c.with_room();
    c.shape.min_copies = 1;
    c.shape.cached = bug == Bug::AddBeforeSync;
    c.shape.confirm = bug == Bug::ReadUnconfirmed;
    c.load.trims = 1;
    c.shape.servers = c.shape.servers.clamp(3, 4);
    c.shape.copies = if seed.is_multiple_of(2) { 2 } else { 3 };
    (c.strike, c.press) = (0, 0);
    match bug {
        Bug::MasksReset => c.limits.all_through_every = 16,
        Bug::AddBeforeAcked => {
            (c.strike, c.load.blocks, c.load.pages, c.load.extents) = (40, 3, 16, 4)
        }
        Bug::AddBeforeCounting | Bug::CompleteMovesInSync => c.strike = 40,
        // The next one leads while the grants of the one before the last still run.
        Bug::QuietUnproven => {
            (c.shape.copies, c.press, c.limits.lease) = (3, 60, Duration::from_secs(3));
        }
        Bug::SeqReused => (c.load.blocks, c.load.pages, c.load.extents) = (3, 16, 4),
        Bug::AddBeforeSync => {
            (c.shape.copies, c.fault_every_ms, c.strike) = (2, 250, 80);
            c.load.flushes = 20;
            c.sdc.redial = (Duration::from_millis(5), Duration::from_millis(20));
        }
        // A block has to stay trimmed until the member is back.
        Bug::TrimMissing => (c.load.blocks, c.load.extents, c.load.trims) = (3, 4, 40),
        Bug::MaskIgnored => (c.load.blocks, c.load.pages) = (3, 16),
        Bug::CopyOvertakes => {
            (c.load.blocks, c.load.pages, c.load.extents) = (3, 16, 4);
            (c.slow_reads, c.load.depth) = (40, 8);
        }
        Bug::ServeOldTail => {
            // The commit point reaches members late, with many groups also on no later record.
            c.limits.commit_beat = Duration::from_secs(2);
            (c.shape.pgs, c.load.extents) = (8, 8);
            (c.load.depth, c.load.think_ms) = (16, 4);
            c.sdc.redial = (Duration::from_millis(5), Duration::from_millis(20));
        }
        Bug::OldEpochAfterRestart => c.shape.copies = 3,
        Bug::HeadroomIgnored => c.run_full(),
        _ => {}
    }
    c
}

fn mix(bug: Bug) -> Mix {
    use Fault::*;
    match bug {
        Bug::AckBeforeSecondary | Bug::AckBeforeOwnSync => vec![(PowerLoss, 10), (Kill, 3)],
        Bug::ReadUncommitted => vec![(Kill, 20), (HungDisk, 30), (SlowDisk, 10)],
        Bug::ServeOldTail => vec![(CrashMany, 30), (Kill, 10), (HungDisk, 20), (SlowDisk, 10)],
        Bug::AcceptGap => vec![(LinkCut, 20), (Partition, 10), (Kill, 4)],
        Bug::AddBeforeAcked => vec![(Kill, 12), (LinkStall, 30), (LinkCut, 10)],
        Bug::CompleteMovesInSync | Bug::AddBeforeCounting => {
            vec![(Kill, 12), (PowerLoss, 10), (SlowDisk, 5), (LinkCut, 3)]
        }
        Bug::SeqReused => vec![(Depose, 20), (Partition, 10), (Kill, 6)],
        Bug::OldEpochAfterRestart => vec![(Depose, 20), (Kill, 1)],
        Bug::ReadAfterGrant | Bug::NoGrantWait | Bug::QuietUnproven => {
            vec![(Depose, 20), (Partition, 4)]
        }
        Bug::RetryTwice => {
            vec![(LinkCut, 20), (Kill, 8), (HandOver, 4), (Partition, 8)]
        }
        Bug::OldInstance => vec![(ClientCrash, 30), (LinkStall, 10)],
        Bug::OldMapping => vec![(Remap, 20), (Partition, 6), (Pause, 4)],
        Bug::TrimMissing | Bug::MaskIgnored | Bug::MasksReset => {
            vec![(Kill, 12), (Pause, 8), (Partition, 4)]
        }
        Bug::CopyOvertakes => vec![(Kill, 12), (SlowDisk, 24)],
        Bug::MergeOnCommitted => vec![(Kill, 2), (SlowDisk, 10)],
        Bug::AddBeforeSync => vec![(Kill, 3), (PowerLoss, 30)],
        Bug::ReadUnconfirmed => vec![(Freeze, 20), (Depose, 10)],
        Bug::HeadroomIgnored => vec![(LinkCut, 4)],
        Bug::RemoveBeforeLog => vec![(Depose, 20), (Partition, 8)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run;
    use quarry_replica::BUGS;
    use std::sync::Mutex;

    fn without(bug: Bug, seed: u64) -> Result<(), String> {
        let mut c = config(bug, seed);
        c.limits.bug = None;
        run(seed, c).map(drop)
    }

    /// The seed at which the broken rule was noticed, and how. It proves nothing if the same run fails with the rule kept.
    fn noticed(bug: Bug) -> Option<(u64, String)> {
        (1..=seeds(bug)).find_map(|seed| {
            match std::panic::catch_unwind(|| run(seed, config(bug, seed))) {
                Ok(Ok(_)) => None,
                Ok(Err(e)) => Some((seed, e)),
                Err(p) => {
                    let text = p.downcast_ref::<String>().cloned();
                    Some((seed, text.unwrap_or_else(|| "an assertion".into())))
                }
            }
        })
    }

    #[test]
    fn every_broken_rule_is_noticed() {
        std::panic::set_hook(Box::new(|_| {}));
        let todo = Mutex::new(BUGS.to_vec());
        let found = Mutex::new(Vec::new());
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| loop {
                    let Some(bug) = todo.lock().unwrap().pop() else { break };
                    let at = noticed(bug);
                    let (good, text) = match &at {
                        None => (false, format!("NOT noticed in {} seeds", seeds(bug))),
                        Some((seed, how)) => match without(bug, *seed) {
                            Ok(()) => (true, format!("seed {seed}: {how}")),
                            Err(e) => (false, format!("seed {seed} fails with the rule KEPT: {e}")),
                        },
                    };
                    println!("{bug:?}: {}", text.chars().take(200).collect::<String>());
                    found.lock().unwrap().push((bug, good));
                });
            }
        });
        let missed: Vec<Bug> =
            found.into_inner().unwrap().into_iter().filter(|f| !f.1).map(|f| f.0).collect();
        assert!(missed.is_empty(), "not noticed: {missed:?}");
    }

    /// The faults alone break nothing: what is noticed above is the broken rule.
    #[test]
    fn without_a_broken_rule_the_same_runs_are_clean() {
        for bug in BUGS {
            for seed in 1..=2 {
                if let Err(e) = without(*bug, seed) {
                    panic!("the runs of {bug:?}, seed {seed}: {e}");
                }
            }
        }
    }
}
