//! Each planted bug is caught by the model within a stated number of seeds.
//!
//! The numbers after each name: the first seed tried (one that is known to catch it, so that the test is
//! quick), and how many are tried after it. `STORE_HUNT=1` prints which of the first 400 seeds catch.

use crate::harness::world::{run_plan, Plan};
use crate::harness::Mishap;
use crate::planted::{plant, Bug};
use std::panic::catch_unwind;

/// Does a store with this bug fail on this seed?
fn fails(bug: Bug, plan: Plan, steps: u32, seed: u64) -> bool {
    plant(Some(bug));
    let out = catch_unwind(|| run_plan(seed, steps, plan));
    plant(None);
    !matches!(out, Ok(Ok(())))
}

fn caught(bug: Bug, plan: Plan, steps: u32, first: u64, more: u64) {
    if std::env::var_os("STORE_HUNT").is_some() {
        let hits: Vec<u64> = (0..400).filter(|s| fails(bug, plan, steps, *s)).take(8).collect();
        eprintln!("HUNT {bug:?} {plan:?}: {hits:?}");
        return;
    }
    let hit = std::iter::once(first).chain(0..more).find(|s| fails(bug, plan, steps, *s));
    assert!(hit.is_some(), "{bug:?} goes unnoticed in {more} seeds");
    // And it is the bug that is noticed, not the disk.
    let seed = hit.unwrap_or(0);
    assert_eq!(run_plan(seed, steps, plan), Ok(()), "seed {seed} fails without the bug");
}

const PLAIN: Plan = Plan { lie: None, harsh: false, mishap: None };
const HARSH: Plan = Plan { harsh: true, ..PLAIN };
const ROT: Plan = Plan { mishap: Some(Mishap::Rot), ..PLAIN };

macro_rules! caught {
    ($($name:ident: $bug:ident $plan:ident $steps:literal, $first:literal + $more:literal;)*) => {$(
        #[test]
        fn $name() {
            caught(Bug::$bug, $plan, $steps, $first, $more);
        }
    )*};
}

caught! {
    a_skipped_sync_of_a_batch: SkippedSync PLAIN 300, 0 + 100;
    an_acknowledgement_before_the_sync: StableBeforeSync PLAIN 300, 0 + 100;
    a_superblock_before_the_sync_of_its_tables: CheckpointUnsynced PLAIN 300, 0 + 100;
    a_checkpoint_before_its_data: CheckpointBeforeData PLAIN 300, 0 + 100;
    a_table_page_written_in_place: SameSide PLAIN 300, 0 + 200;
    a_checksum_not_checked: CrcUnchecked ROT 300, 0 + 200;
    a_block_reused_before_its_freeing_is_durable: ReusedEarly PLAIN 300, 0 + 100;
    a_block_reused_while_the_log_names_it: NamedSlotReused PLAIN 300, 0 + 200;
    a_destage_into_a_block_that_changed_owner: ChangedOwner PLAIN 300, 0 + 200;
    a_recycled_block_without_valid_mask: NoValidMask PLAIN 300, 0 + 100;
    a_legal_tail_called_corruption: TailCalledCorruption PLAIN 300, 0 + 100;
    corruption_called_a_tail: CorruptionCalledTail ROT 300, 0 + 200;
    records_of_an_older_incarnation: OldIncarnation PLAIN 300, 0 + 200;
    a_destage_under_a_reader: DestageUnderReader PLAIN 300, 0 + 200;
    a_destage_before_its_commit_is_durable: CommitNotDurable PLAIN 300, 0 + 200;
    a_destage_before_the_sync_mark_covers_it: MarkNotSynced PLAIN 300, 0 + 200;
    direct_data_not_checked: DirectUnchecked PLAIN 300, 0 + 100;
    tombstones_not_checkpointed: TombstonesForgotten PLAIN 300, 0 + 100;
    ids_not_checkpointed: IdsForgotten PLAIN 300, 0 + 100;
    a_dirty_mask_that_forgets: DirtyForgotten PLAIN 300, 0 + 100;
    a_slot_that_leaks: LeakedSlot PLAIN 300, 0 + 100;
    a_recovery_that_trusts_the_page_cache: RecoveryUnsynced HARSH 300, 0 + 200;
}
