//! The MDM: keeps the cluster's configuration, never in the path of I/O (ARCHITECTURE section 7).
//!
//! [`state`] is a pure state machine over a log of commands; [`log`] keeps the log durably; [`engine`] runs the
//! one writer and publishes what is durable; [`control`] holds the sessions of SDSs and SDCs and notices who is
//! gone; [`api`] is the REST interface; [`timeline`] records what the daemons
//! report for graphs.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod api;
mod can_stop;
pub mod control;
pub mod daemon;
pub mod engine;
mod explain;
mod gauges;
pub mod health;
pub mod log;
mod slow;
mod stale;
pub mod state;
#[cfg(test)]
mod test_util;
pub mod timeline;
pub mod token;
