//! What a turn brings back.

use crate::{CloseReason, ConnId, ListenerId};
use quarry_base::PageBuf;

/// A buffer to receive into: `buf[start..end]` is filled.
#[derive(Debug)]
pub struct RecvBuf {
    /// The memory, owned by the operation until it completes.
    pub buf: PageBuf,
    /// First byte to fill.
    pub start: usize,
    /// Past the last byte that may be filled; `start < end <= buf.capacity()`.
    pub end: usize,
}

impl RecvBuf {
    /// An empty buffer of `len` bytes, all of it to be filled.
    pub fn new(len: usize) -> RecvBuf {
        RecvBuf { buf: PageBuf::new(len), start: 0, end: len }
    }
}

/// One thing that happened. Errors are errno values.
#[derive(Debug)]
pub enum Event {
    /// A new connection; its token starts as the listener's.
    Accepted { listener: ListenerId, token: u64, conn: ConnId },
    /// A `connect_*` succeeded.
    Connected { conn: ConnId, token: u64 },
    /// `n >= 1` bytes were written at `buf.start` (which is unchanged). Not armed again by itself.
    Received { conn: ConnId, token: u64, buf: RecvBuf, n: usize },
    /// The connection ended by itself. Told once; the id is dead.
    Closed { conn: ConnId, token: u64, reason: CloseReason },
    /// The send queue is empty after it had been above [`crate::SEND_HIGH_WATER_BYTES`].
    Drained { conn: ConnId, token: u64 },
    /// A read is complete: `Ok(len)`, always the full length, or an error. End of file is `EIO`.
    ReadDone { token: u64, result: Result<usize, i32>, buf: PageBuf },
    /// A write (with its sync, for `write_then_sync`) is complete in full, or failed.
    WriteDone { token: u64, result: Result<(), i32> },
    /// An `fdatasync` is complete. A failure is final: what was written before may be lost.
    SyncDone { token: u64, result: Result<(), i32> },
    /// A discard is complete.
    DiscardDone { token: u64, result: Result<(), i32> },
    /// [`crate::Waker::wake`] was called at least once since the last `Woken`.
    Woken,
}

impl Event {
    /// The connection the event is about, if it is about one.
    pub fn conn(&self) -> Option<ConnId> {
        match self {
            Event::Accepted { conn, .. }
            | Event::Connected { conn, .. }
            | Event::Received { conn, .. }
            | Event::Closed { conn, .. }
            | Event::Drained { conn, .. } => Some(*conn),
            _ => None,
        }
    }
}
