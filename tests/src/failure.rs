//! The one error of the tests: a text that says what was seen and what was wanted.

use std::fmt;
use std::time::{Duration, Instant};

/// Why a test failed, for a person. `Debug` prints the text itself, so that the test harness shows it readably.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(String);

/// Result of everything in this crate.
pub type Res<T> = Result<T, Failure>;

impl Failure {
    /// A failure with this text.
    pub fn new(text: impl Into<String>) -> Failure {
        Failure(text.into())
    }
    /// The same with `what` put in front: `what: text`.
    pub fn within(self, what: impl fmt::Display) -> Failure {
        Failure(format!("{what}: {}", self.0))
    }
    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl<E: std::error::Error> From<E> for Failure {
    fn from(e: E) -> Failure {
        Failure(e.to_string())
    }
}

/// Adds what was being done to an error.
pub trait While<T> {
    /// `what()` in front of the error's text.
    fn doing(self, what: impl FnOnce() -> String) -> Res<T>;
}
impl<T, E: Into<Failure>> While<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Res<T> {
        self.map_err(|e| e.into().within(what()))
    }
}

/// Returns a [`Failure`](crate::Failure) with a formatted text.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => { return Err($crate::Failure::new(format!($($arg)*))) };
}

/// Returns a [`Failure`](crate::Failure) unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($cond:expr, $($arg:tt)*) => { if !$cond { $crate::fail!($($arg)*) } };
}

/// Polls `probe` every 50 ms until it answers `Ok(Some(x))`. After `limit` the failure names `what` and the last
/// thing the probe said (its error, or that it was not so yet).
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Res<Option<T>>,
) -> Res<T> {
    let start = Instant::now();
    loop {
        let last = match probe() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => "not yet".to_string(),
            Err(e) => e.text().to_string(),
        };
        if start.elapsed() >= limit {
            fail!("waited {:.1} s for {what}; last: {last}", start.elapsed().as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
