//! The control plane towards SDSs and SDCs: sessions, what they report, who has failed, what follows from it.

mod damage;
mod detector;
mod driver;
mod hub;
mod questions;
mod scrubs;
mod session;
mod sluggish;
mod tasks;
#[cfg(test)]
mod tests;
mod watch;

pub use detector::{Detector, Failed};
pub use driver::{degraded_bytes, run as drive};
pub use hub::{DeviceLive, Held, Hub, HubInner, PgLive, SdcLive, SdsLive, SyncRate};
pub use questions::users_of;
pub use session::{serve, Access};
pub use sluggish::{figures as disk_figures, Figures, Looks};
pub use tasks::{attachment, left_of, unconfirmed, TaskLeft};
pub use watch::may_still_come;

use quarry_base::Nanos;
use std::time::Duration;

/// How often daemons send a heartbeat.
pub const HEARTBEAT: Duration = Duration::from_millis(100);

/// Now, by the clock that runs on while the host is suspended.
pub fn now() -> Nanos {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Nanos((t.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(t.tv_nsec as u64))
}
