//! A fixed set of seeds, every seed that ever failed by name, and proofs that the checkers notice broken rules.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quarry_sim::disk::Lie;
use quarry_sim::mdm::Wrong;
use quarry_sim::{run, run_seed, Config};

fn good(seeds: impl IntoIterator<Item = u64>) {
    for seed in seeds {
        if let Err(e) = run_seed(seed) {
            panic!("{e}\n  replay: cargo run -p quarry-sim --bin sim -- --seed {seed} --trace");
        }
    }
}

#[test]
fn seeds_1_to_12_keep_every_promise() {
    good(1..=12);
}

#[test]
fn seeds_40_to_52_keep_every_promise() {
    good(40..=52);
}

/// A member that a sync completed without a record in its stream was taken for one that lost data.
#[test]
fn a_member_added_without_a_write_since_is_not_said_to_have_lost_data() {
    good([1]);
}

/// The stream to a syncing member was opened on a connection that was gone, again and again.
#[test]
fn a_dead_connection_is_made_anew() {
    good([36]);
}

/// A copy at the version of a record that the member had applied to a stale block has to replace the block.
#[test]
fn a_copy_replaces_a_stale_block_that_a_record_has_touched() {
    good([16, 19, 24, 29, 32]);
}

/// The member's commit point was moved into the gap before its stream; it then seemed to have diverged.
#[test]
fn a_commit_point_in_the_gap_before_a_stream_is_not_taken() {
    good([1350]);
}

/// A committed record was applied before a copy that lay before it in the same log batch.
#[test]
fn a_record_does_not_overtake_a_copy_of_its_block() {
    good([23, 31]);
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
        let cfg = Config { rot: true, fault_every_ms: 100, ..Config::of_seed(seed) };
        let r = run(seed, cfg).unwrap();
        rotten += r.seen.get("bit rot").copied().unwrap_or(0);
        repaired += r.seen.get("Repaired").copied().unwrap_or(0);
    }
    assert!(rotten > 0 && repaired > 0, "{rotten} rotten, {repaired} repaired");
}

fn noticed(change: impl Fn(&mut Config)) -> bool {
    (100..130).any(|seed| {
        let mut cfg = Config::of_seed(seed);
        change(&mut cfg);
        std::panic::catch_unwind(|| run(seed, cfg)).map_or(true, |r| r.is_err())
    })
}

#[test]
fn disks_that_lie_about_syncs_are_noticed() {
    assert!(noticed(|c| c.lie = Lie::Sync));
}

#[test]
fn an_mdm_that_adds_members_too_early_is_noticed() {
    assert!(noticed(|c| c.wrong = Wrong::AddsTooEarly));
}
