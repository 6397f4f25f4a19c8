//! Time inside the cores: nanoseconds of `CLOCK_BOOTTIME`, given to them, never read by them.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time, nanoseconds since the host booted (suspended time included).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Nanos(pub u64);

impl Nanos {
    /// The beginning of time.
    pub const ZERO: Nanos = Nanos(0);
    /// Never.
    pub const MAX: Nanos = Nanos(u64::MAX);

    /// Time passed since `earlier`; zero if that lies in the future.
    pub fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
impl Add<Duration> for Nanos {
    type Output = Nanos;
    fn add(self, d: Duration) -> Nanos {
        Nanos(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}
impl Sub for Nanos {
    type Output = Duration;
    fn sub(self, o: Nanos) -> Duration {
        self.since(o)
    }
}
