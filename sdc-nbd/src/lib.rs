//! The SDC: turns mapped volumes into NBD exports and kernel block devices.
//!
//! [`engine`] is the volume engine, sans-IO: the simulator runs the same code. [`daemon`] carries its
//! actions out on a reactor and talks to NBD clients and the MDM; [`kernel`] attaches `/dev/nbdN`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod daemon;
pub mod engine;
pub mod kernel;
