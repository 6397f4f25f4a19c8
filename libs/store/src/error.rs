//! Errors of the store.

/// Why a device cannot be opened or has stopped taking writes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the configuration does not fit the device: {0}")]
    Config(&'static str),
    #[error("the device is blank: it holds no Quarry superblock")]
    Blank,
    #[error("the device holds something that is not a Quarry store")]
    ForeignData,
    #[error("the device has format version {found}, this program knows up to {known}")]
    NewerFormat { found: u32, known: u32 },
    #[error(
        "the device has format version {found}, which this program (version {known}) does not read any more: its content comes back from the other copies"
    )]
    OlderFormat { found: u32, known: u32 },
    #[error("the device belongs to another cluster")]
    OtherCluster,
    #[error("both superblocks are damaged")]
    SuperblockCorrupt,
    #[error("the log is damaged at position {pos}, below what was synced ({synced}): {what}")]
    LogCorrupt { pos: u64, synced: u64, what: &'static str },
    #[error("table page {page} is damaged in both slots")]
    TableCorrupt { page: u64 },
    #[error("the device's tables contradict each other: {0}")]
    Inconsistent(&'static str),
    #[error("the device hangs: what it was given has not ended for {seconds} s")]
    Hung { seconds: u64 },
    #[error("reads go on being refused by the medium: what it holds is being lost")]
    Unreadable,
    #[error("{what} failed with errno {errno}")]
    Io { what: &'static str, errno: i32 },
}

/// Why an append was refused. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError {
    #[error("no log space now; try again after StoreEvent::LogSpace")]
    LogFull,
    #[error("the device has failed")]
    Failed,
    #[error("the payload is larger than one log batch takes")]
    TooLarge,
    /// The caller's mistake: alignment, a wrong checksum, a gap in the sequence.
    #[error("not a valid record: {0}")]
    Invalid(&'static str),
}

/// Why a read has no content.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// Byte offsets inside the extent of the bad 4 KiB pages: their content is wrong, or the medium does not give it.
    #[error("{} page(s) cannot be read or do not match their checksum", pages.len())]
    Corrupt { pages: Vec<u32> },
    #[error("read failed with errno {0}")]
    Io(i32),
}

/// Why a repair was refused. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RepairError {
    #[error("the copy's version is not the block's")]
    OtherVersion,
    #[error("the copy's content does not match the block's checksums")]
    OtherContent,
    #[error("the block is gone")]
    NoBlock,
    #[error(transparent)]
    Append(#[from] AppendError),
}
