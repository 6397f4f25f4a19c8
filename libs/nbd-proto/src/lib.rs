//! The server side of the NBD protocol as a state machine without I/O.
//!
//! [`Session`] is one connection: the daemon asks it where to receive to ([`Session::next_recv`]),
//! tells it what arrived ([`Session::received`]), acts on the [`SessionEvent`]s, answers through the
//! `reply_*` calls in any order, and sends what [`Session::take_output`] hands out. The rules are
//! those of the NBD specification (`doc/proto.md` of the reference implementation): fixed newstyle
//! handshake, simple and structured replies, `base:allocation`.
//!
//! Invariants:
//! - No byte sequence makes a session panic, loop, or hold more than its [`Limits`] say.
//! - Every request handed out as an event is inside the export, aligned and permitted; everything
//!   else is answered here. The error numbers of the wire are decided in [`errno`] alone.
//! - A write payload is copied at most once, a read payload never.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod consts;
pub mod errno;
mod event;
mod export;
mod inflight;
mod input;
mod limits;
mod negotiate;
mod options;
mod output;
mod replies;
mod request;
mod session;
mod steps;

pub use errno::NbdErrno;
pub use event::{Handle, SessionEvent};
pub use export::{Export, Exports};
pub use input::RecvPlan;
pub use limits::Limits;
pub use replies::ReadPart;
pub use session::Session;
