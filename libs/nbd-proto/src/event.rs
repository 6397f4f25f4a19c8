//! What a session tells its daemon.

use crate::Export;
use bytes::Bytes;

/// Names one request in flight: the client's cookie, and the place it has in this session, so that
/// two requests with the same cookie stay apart. Answer each exactly once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle {
    pub(crate) cookie: u64,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Handle {
    /// The client's cookie, for messages to people. Not unique.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }
}

/// Something to act on. Ranges lie inside the export, are aligned to its minimum block, and have a
/// length of at least 1; offsets and lengths in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionEvent {
    /// The handshake is over.
    Opened { export: Export },
    /// Answer with `reply_read`, `reply_read_parts` or an error.
    Read { handle: Handle, offset: u64, len: u32, df: bool },
    /// With `fua`, answer only when the data is durable.
    Write { handle: Handle, offset: u64, data: Bytes, fua: bool },
    /// Answer when every write answered before (on any connection if multi-conn) is durable.
    Flush { handle: Handle },
    /// A hint that the range is not needed any more. `len` can exceed the maximum payload.
    Trim { handle: Handle, offset: u64, len: u32, fua: bool },
    /// `no_hole`: stay allocated. `fast`: answer `Enotsup` at once unless quicker than a write.
    WriteZeroes { handle: Handle, offset: u64, len: u32, fua: bool, no_hole: bool, fast: bool },
    /// A hint that the range is about to be used.
    Cache { handle: Handle, offset: u64, len: u32 },
    /// Answer with `reply_block_status` or an error.
    BlockStatus { handle: Handle, offset: u64, len: u32, req_one: bool },
    /// The client is done (`DISC`, `ABORT`, or it closed between two messages).
    Disconnect,
    /// The client broke the protocol; nothing more is read from it.
    ProtocolError { reason: String },
}
