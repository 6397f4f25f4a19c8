//! Bugs planted on command, to see that the checks of `tests/common` catch each of them.
//!
//! They exist in this crate's own unit tests only: everywhere else `planted` is a constant `false`,
//! so no binary, and no other crate's test, can contain one.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// The write of a lone batch is not followed by its sync.
    SkippedSync,
    /// What was only written is reported stable.
    StableBeforeSync,
    /// A superblock is written without a sync of the table pages and data that it stands for.
    CheckpointUnsynced,
    /// A page counts as destaged when its write begins: the log is cut before its data is there.
    CheckpointBeforeData,
    /// A table page is written over the side that counts.
    SameSide,
    /// The content of a page is not checked against its checksum.
    CrcUnchecked,
    /// The check of a page is its CRC-32C alone: any other page of the same one passes for it.
    CheckWithoutAddress,
    /// A freed slot can be allocated before what freed it is durable.
    ReusedEarly,
    /// A freed slot can be allocated while a destage, or a read, is still on it.
    ChangedOwner,
    /// All pages of a block with a new slot count as valid.
    NoValidMask,
    /// Any batch beyond the log's end makes it damaged.
    TailCalledCorruption,
    /// A hole below the sync mark is taken for the log's end.
    CorruptionCalledTail,
    /// Whatever lies where the next batch is expected counts, of whichever incarnation.
    OldIncarnation,
    /// A read does not notice that its page was replaced meanwhile.
    DestageUnderReader,
    /// A page is destaged although its commit point is not durable.
    CommitNotDurable,
    /// The data of direct writes above the sync mark is not checked.
    DirectUnchecked,
    /// Checkpoint records leave tombstones out.
    TombstonesForgotten,
    /// Checkpoint records leave the id table out.
    IdsForgotten,
    /// A write forgets which parts of its block were written before.
    DirtyForgotten,
    /// A batch that says that parts are in their place is durable without a sync of them.
    PlacedUnsynced,
    /// It counts at a recovery although nothing vouches for it.
    PlacedUnvouched,
    /// A recovery takes the parts of an intent for written without a look at them.
    IntentTakenForDone,
    /// A block gets the version of parts that were placed while older ones of it are still only in the log.
    PartsRaiseVersion,
    /// What an intent that did not get there lies over in the log is forgotten.
    BeneathForgotten,
    /// That an intent did not get there is not said.
    VoidsForgotten,
    /// Parts count as placed before their intent is in the index.
    PlacedUnseen,
    /// A trimmed block's slot is never given back.
    LeakedSlot,
}

#[cfg(test)]
thread_local! {
    static NOW: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in every store of this thread.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    NOW.set(bug);
}

#[cfg(test)]
pub(crate) fn planted(bug: Bug) -> bool {
    NOW.get() == Some(bug)
}

/// Is this bug planted here? Never, outside of this crate's unit tests.
#[cfg(not(test))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
