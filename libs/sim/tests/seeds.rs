//! A fixed set of seeds, every seed that ever failed by name, and proofs that the checkers notice broken rules.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quarry_sim::disk::Lie;
use quarry_sim::faults::Fault;
use quarry_sim::mdm::Wrong;
use quarry_sim::{run, run_seed, Config};

fn good(seeds: impl IntoIterator<Item = u64>) {
    for seed in seeds {
        if let Err(e) = run_seed(seed) {
            panic!("{e}\n  replay: scripts/sim --seed {seed}");
        }
    }
}

/// Seeds that failed once, with what was wrong then. What a seed does changes with the simulator; the rules that
/// they broke have tests of their own where one could be made.
const FAILED_ONCE: &[(u64, &str)] = &[
    (1, "a member that a sync completed without a record in its stream was taken for one that lost data"),
    (36, "the stream to a syncing member was opened on a connection that was gone, again and again"),
    (16, "a copy at the version of a record that the member had applied to a stale block has to replace the block"),
    (23, "a committed record was applied before a copy that lay before it in the same log batch"),
    (358, "a trim of a trimmed block left its tombstone older than the same trim made a member's stale block"),
    (970, "a group that only lacks room that thick volumes were promised is degraded, not broken"),
    (642, "a tombstone of a deleted volume hid its blocks: a member that had them kept them"),
    (20539, "the simulator formatted the disk of a server that was given up and had come back meanwhile, under the running process"),
    (100097, "a destage that brought a block its first slot counted it twice: a device with room told thick volumes that it was full"),
    (20680, "the same: it was formatted under the running process"),
    (100159, "the simulator's own client of then took the late refusal of an attempt that it had made again meanwhile for that of the new one"),
    (802716, "the simulator's own client of then: the answer to an attempt of an older epoch sent a request out twice in the present one"),
    (1218355, "a copy that had just left the set was cut where its new primary knew nothing to be committed yet: an acknowledged write less"),
    (200155, "a group that lacks copies for want of room, and has fewer than min_copies, answers no writes: not what full devices are to show"),
    (2039, "the checker took a copy that had to go to a taken fault set, after its server was fenced, for misplaced"),
    (5014493, "the checker took a write over two groups, one of which fell back before the other let it be answered, for flushed"),
    (11006831, "the run ended while a server was being stopped, which had no number for the record that drops a deleted volume"),
    (9002375, "a read that came again and again from a failing disk was served after its deleted volume's blocks were dropped, as zeroes"),
    (1350, "the member's commit point was moved into the gap before its stream; it then seemed to have diverged"),
];

#[test]
fn seeds_that_failed_once_keep_every_promise() {
    good(FAILED_ONCE.iter().map(|f| f.0));
}

/// Seed 7768 of the faults there were then: the last writes of a run found the log below the primary's reserve, which the store
/// had not refused, so that nobody told the primary when there was room again.
#[test]
fn writes_that_wait_for_log_space_go_on_though_nothing_else_happens() {
    let mut cfg = Config::of_seed(7768);
    cfg.mix.retain(|(f, _)| *f != Fault::Forsake);
    cfg.mix.iter_mut().filter(|(f, _)| *f == Fault::Volume).for_each(|(_, n)| *n = 3);
    run(7768, cfg).unwrap();
}

#[test]
fn seeds_40_to_52_keep_every_promise() {
    good(40..=52);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (a, b) = (run_seed(3).unwrap(), run_seed(3).unwrap());
    assert_eq!((a.steps, a.reads, a.seen), (b.steps, b.reads, b.seen));
}

#[test]
fn rotten_pages_are_never_served_and_are_repaired_from_a_good_copy() {
    let (mut rotten, mut repaired) = (0, 0);
    for seed in 200..206 {
        let mix = vec![(Fault::Rot, 1)];
        let cfg = Config { mix, fault_every_ms: 100, ..Config::of_seed(seed) };
        let r = run(seed, cfg).unwrap();
        rotten += r.seen.get("fault Rot");
        repaired += r.seen.get("Repaired");
    }
    assert!(rotten > 0 && repaired > 0, "{rotten} rotten, {repaired} repaired");
}

/// A run shows what `change` breaks, and the same run without it is clean.
fn noticed(change: impl Fn(&mut Config)) -> bool {
    let seed = (100..130).find(|seed| {
        let mut cfg = Config::of_seed(*seed);
        change(&mut cfg);
        std::panic::catch_unwind(|| run(*seed, cfg)).map_or(true, |r| r.is_err())
    });
    good(seed);
    seed.is_some()
}

#[test]
fn disks_that_lie_about_syncs_are_noticed() {
    assert!(noticed(|c| c.lie = Lie::Sync));
}

#[test]
fn an_mdm_that_adds_members_too_early_is_noticed() {
    assert!(noticed(|c| c.wrong = Wrong::AddsTooEarly));
}
