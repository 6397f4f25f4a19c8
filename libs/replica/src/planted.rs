//! Rules that can be broken on purpose, to prove that the simulator notices: one run breaks one of them.
//!
//! Without the feature `planted` nothing can be: [`crate::Limits::planted`] is constant and the broken branches
//! are not compiled in. `scripts/lib/same-cores` checks that no daemon and no simulator is built with it.

/// A broken rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// R6: acknowledges before the secondaries are durable.
    AckBeforeSecondary,
    /// R6: acknowledges before its own log is durable.
    AckBeforeOwnSync,
    /// R6: reads see what is not committed.
    ReadUncommitted,
    /// R5: a stream goes on above what the member lacks, and the member takes it.
    AcceptGap,
    /// R12: `complete_through` follows the log while syncing.
    CompleteMovesInSync,
    /// R15: the MDM is asked to add a member that the primary does not wait for yet.
    AddBeforeCounting,
    /// R15: a member is added while its last copies are on their way.
    AddBeforeAcked,
    /// R8: a new epoch gives the numbers of the old one again.
    SeqReused,
    /// R1, R2: after a restart a member follows a primary of an older epoch.
    OldEpochAfterRestart,
    /// R17: reads are served without a grant.
    ReadAfterGrant,
    /// R19: a repeated request is applied again.
    RetryTwice,
    /// R19, R20: a late request of an old instance is carried out.
    OldInstance,
    /// R13: a delta leaves trims out.
    TrimMissing,
    /// R13: a delta of a block leaves out what its mask says.
    MaskIgnored,
    /// R14: a copy does not wait for the writes in flight on its block.
    CopyOvertakes,
    /// R18: a new primary does not wait for the grants of the old one.
    NoGrantWait,
    /// R18: a primary that still waits for earlier grants tells the next one that nobody serves.
    QuietUnproven,
    /// R9: a new primary serves before its tail is committed.
    ServeOldTail,
    /// R12, R13: masks are reset while a listed replica is away.
    MasksReset,
    /// R22: a partial write is merged on committed content.
    MergeOnCommitted,
    /// R10: the primary goes on without a silent member before the MDM has removed it.
    RemoveBeforeLog,
    /// R21: a request of an old mapping is carried out.
    OldMapping,
    /// R15, R29: a member is added while what it received is in its device's cache.
    AddBeforeSync,
    /// R18: with `reads = confirm`, a read is served without an answer of the members.
    ReadUnconfirmed,
    /// R24: a primary gives a number to a record though a member has not promised room for it.
    HeadroomIgnored,
}

/// All of them.
#[cfg(feature = "planted")]
pub const BUGS: &[Bug] = &[
    Bug::AckBeforeSecondary,
    Bug::AckBeforeOwnSync,
    Bug::ReadUncommitted,
    Bug::AcceptGap,
    Bug::CompleteMovesInSync,
    Bug::AddBeforeCounting,
    Bug::AddBeforeAcked,
    Bug::SeqReused,
    Bug::OldEpochAfterRestart,
    Bug::ReadAfterGrant,
    Bug::RetryTwice,
    Bug::OldInstance,
    Bug::TrimMissing,
    Bug::MaskIgnored,
    Bug::CopyOvertakes,
    Bug::NoGrantWait,
    Bug::QuietUnproven,
    Bug::ServeOldTail,
    Bug::MasksReset,
    Bug::MergeOnCommitted,
    Bug::RemoveBeforeLog,
    Bug::OldMapping,
    Bug::AddBeforeSync,
    Bug::ReadUnconfirmed,
    Bug::HeadroomIgnored,
];
