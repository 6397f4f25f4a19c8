//! One reactor: one OS thread owns one `io_uring` for network *and* disk.
//!
//! Everything queued since the last turn goes to the kernel in one `io_uring_enter`, which also
//! waits; then all completions are turned into [`Event`]s. The cores above are sans-IO: a daemon's
//! loop feeds them events and maps their actions to calls of [`Reactor`].
//!
//! Invariants:
//! - A buffer belongs to its operation until the operation's last completion, whatever happens to
//!   the connection, the file or the reactor meanwhile. If operations outlive even a patient
//!   shutdown, their memory is leaked rather than freed under the kernel.
//! - A short completion is continued or is an error, never taken for success.
//! - Ids carry a generation: a stale id reaches nothing (the call is ignored and counted).
//! - Nothing is dropped because a queue is full: a full submission queue is submitted, disk
//!   operations beyond `max_inflight` wait their turn, connections beyond `max_conns` stay in the
//!   listen backlog.
//!
//! `unsafe` is needed to hand pointers to the kernel; it is confined to the modules that do.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod arena;
mod config;
mod disk;
mod ended;
mod error;
mod event;
mod file;
mod inline;
mod listen;
mod net;
mod op;
mod probe;
mod process;
mod reactor;
mod send;
mod sockets;
mod submit;
mod timer;
mod waker;

pub use arena::{ConnId, FileId, ListenerId};
pub use config::{RingConfig, RingStats, MAX_SEND_BYTES, MAX_SEND_PIECES, SEND_HIGH_WATER_BYTES};
pub use error::{CloseReason, RingError};
pub use event::{Event, RecvBuf};
pub use file::{OpenOpts, OpenedFile};
pub use net::PeerCred;
pub use probe::Probe;
pub use process::{lock_memory, pin_current_thread, raise_nofile};
pub use reactor::{now_boottime, Reactor};
pub use timer::TimerHeap;
pub use waker::Waker;
