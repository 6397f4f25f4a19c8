//! Limits of a reactor, and what it counts.

/// Pieces (iovecs) of one `sendmsg` at most.
pub const MAX_SEND_PIECES: usize = 64;
/// Bytes of one `sendmsg` at most: 1 MiB. More stays queued for the next one.
pub const MAX_SEND_BYTES: usize = 1 << 20;
/// Queued bytes above which a connection's next empty queue is told as [`crate::Event::Drained`]: 1 MiB.
pub const SEND_HIGH_WATER_BYTES: usize = 1 << 20;
/// Buffers of one vectored file write at most (`IOV_MAX`); more are written in several operations.
pub(crate) const MAX_WRITE_PIECES: usize = 1024;
/// Bytes of one file operation at most: 1 GiB, below the kernel's limit of 2 GiB - 4 KiB.
pub(crate) const MAX_DISK_BYTES: usize = 1 << 30;
/// How often an interrupted file operation is started again before its error is final.
pub(crate) const MAX_RETRIES: u8 = 32;
/// How long accepting pauses after the process ran out of file descriptors or memory.
pub(crate) const ACCEPT_RETRY: std::time::Duration = std::time::Duration::from_millis(100);
/// How long `close_after_flush` waits for a peer that does not read.
pub(crate) const FLUSH_GRACE: std::time::Duration = std::time::Duration::from_secs(10);
/// How long a shutdown waits for operations in flight before it leaks their buffers.
pub(crate) const SHUTDOWN_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
/// Connections waiting in the kernel to be accepted, a listener.
pub(crate) const LISTEN_BACKLOG: i32 = 1024;

/// Limits of a [`crate::Reactor`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Submission queue entries, 8 to 32768 (rounded up to a power of two). A full queue is submitted.
    pub entries: u32,
    /// File operations in the kernel at once; more wait inside the reactor, in order.
    pub max_inflight: usize,
    /// Size of the buffers [`crate::Reactor::recv_buf`] gives, bytes.
    pub recv_buf_bytes: usize,
    /// Connections at once. Reached: accepting pauses; `connect_*` is refused an eighth above it, so that nobody who
    /// connects to us keeps us from connecting to others.
    pub max_conns: usize,
    /// Completions of file operations that a turn hands out, 1 at least. What the caller asks for next is in the
    /// kernel before it gets the others: else all operations come back together, are worked on together and go out
    /// together, and a device that serves them one after another has nothing to do meanwhile. What somebody waits for goes
    /// before what nobody does ([`crate::Reactor::write_behind_at`]).
    pub disk_batch: usize,
}

impl Default for RingConfig {
    fn default() -> RingConfig {
        RingConfig {
            entries: 1024,
            max_inflight: 8192,
            recv_buf_bytes: 128 << 10,
            max_conns: 16_384,
            disk_batch: 2,
        }
    }
}

/// Counters since the reactor started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Calls of `turn`.
    pub turns: u64,
    /// `io_uring_enter` calls.
    pub enters: u64,
    /// Submission entries queued.
    pub sqes: u64,
    /// Completions taken.
    pub cqes: u64,
    /// Times the submission queue was full and had to be submitted before the turn's end.
    pub sq_full: u64,
    /// Completions that brought data from a peer.
    pub recvs: u64,
    /// Bytes received.
    pub recv_bytes: u64,
    /// Send operations started.
    pub sends: u64,
    /// Bytes the kernel accepted for sending.
    pub send_bytes: u64,
    /// Sends that took only part of what they were given.
    pub short_sends: u64,
    /// File reads started (continuations included).
    pub reads: u64,
    /// Bytes read from files.
    pub read_bytes: u64,
    /// File writes started (continuations included).
    pub writes: u64,
    /// Bytes written to files.
    pub write_bytes: u64,
    /// Short file reads and writes that were continued.
    pub short_disk: u64,
    /// `fdatasync` operations started.
    pub fsyncs: u64,
    /// Writes started that are durable when they are done, without an `fdatasync` of their own.
    pub dsync_writes: u64,
    /// Discards started.
    pub discards: u64,
    /// File operations of those above that the reactor carried out itself (files in memory).
    pub inline_ops: u64,
    /// File operations that had to wait because `max_inflight` was reached.
    pub disk_waits: u64,
    /// Connections accepted.
    pub accepts: u64,
    /// Times accepting paused: out of file descriptors or memory, or `max_conns` reached.
    pub accept_pauses: u64,
    /// Calls with an id whose object is gone.
    pub stale_calls: u64,
    /// Completions that belonged to no operation; always 0 unless there is a bug.
    pub stray_cqes: u64,
    /// Connections present, those being torn down included.
    pub conns: u64,
    /// Operations in the kernel, waiting for it or waiting to be told of now.
    pub inflight: u64,
}

impl RingStats {
    /// Counts an operation on a file in memory as it is begun.
    pub(crate) fn count_inline(&mut self, kind: &crate::op::OpKind) {
        use crate::op::{OpKind, Stage};
        match kind {
            OpKind::Read(_) => self.reads += 1,
            OpKind::Write(w) if w.stage == Stage::Sync => self.fsyncs += 1,
            OpKind::Write(_) => self.writes += 1,
            OpKind::Sync { .. } => self.fsyncs += 1,
            OpKind::Discard { .. } => self.discards += 1,
            _ => return,
        }
        self.inline_ops += 1;
    }
}
