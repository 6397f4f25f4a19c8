//! What can be wrong with received bytes. Each of these ends the connection: framing is lost.

/// Why a stream of frames was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum WireError {
    #[error("not a Quarry frame: bad magic {0:#010x}")]
    BadMagic(u32),
    #[error("wire version {0} is not spoken here")]
    BadVersion(u8),
    #[error("unknown opcode {0}")]
    BadOpcode(u8),
    #[error("header checksum mismatch")]
    HeaderCrc,
    #[error("meta section checksum mismatch")]
    MetaCrc,
    #[error("data checksum mismatch")]
    DataCrc,
    #[error("{what} of {len} bytes is above the limit of {limit}")]
    TooLong { what: &'static str, len: usize, limit: usize },
    #[error("malformed {0}")]
    Malformed(&'static str),
}
