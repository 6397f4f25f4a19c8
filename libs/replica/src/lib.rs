//! The replica engine: all placement groups of the devices of one shard, as primary or member.
//!
//! Sans-IO: [`Engine::step`] takes an event and the time, [`Engine::flush`] (once a reactor turn) polls the
//! stores, moves every touched group on and sends the coalesced reports. `docs/REPLICATION.md` is the design,
//! the rule numbers are those of `docs/ARCHITECTURE.md`.
//!
//! Invariants (asserted or tested by the simulator):
//! - nothing is acknowledged that is not durable on every member that counts (R6, R10, R15);
//! - nothing is served that is not committed under the present epoch and leased (R9, R17, R18);
//! - a configuration is durable before its role begins, and epochs never go back (R1, R2).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod codec;
mod config;
mod credit;
mod cx;
mod engine;
mod event;
mod grants;
mod handover;
mod history;
mod links;
mod meta;
mod pg;
mod pinned;
mod planted;
mod reports;
mod stats;
mod times;
mod view;

pub use config::{EngineConfig, Limits};
pub use engine::Engine;
pub use event::{Action, Event, LinkId, LinkKind, Note};
pub use history::Era;
pub use meta::{MetaError, PgMeta, META_VERSION};
#[cfg(feature = "planted")]
pub use planted::{Bug, BUGS};
pub use reports::{haves_of, DeviceStats};
pub use stats::EngineStats;
pub use times::{LedTimes, Spell, WriteTimes};
