//! Logs: structured, to stderr (or a file that rotates), with repeated messages counted, not
//! repeated.
//!
//! A place in the code may log [`BURST`] messages in [`WINDOW`]; what comes after is counted, and the
//! count is logged when the window ends, by a thread of its own, so that the last repeats are
//! reported too even if the message never comes again.

use crate::cli::{CommonArgs, LogFormat};
use crate::registry::Sample;
use crate::rotate::{RotatingFile, MAX_BYTES};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Messages one place may log in a window.
pub const BURST: u32 = 20;
/// Length of a window.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Target of the lines that report left-out messages; never limited itself.
const OWN_TARGET: &str = "quarry::log";

static BY_LEVEL: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];
static SUPPRESSED: AtomicU64 = AtomicU64::new(0);
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Messages by level since the process started, those left out included.
pub(crate) fn counts() -> Vec<Sample> {
    let value = |(name, n): (&&str, &AtomicU64)| (vec![name.to_string()], n.load(Relaxed) as f64);
    LEVELS.iter().zip(&BY_LEVEL).map(value).collect()
}

/// Messages left out since the process started.
pub(crate) fn suppressed() -> u64 {
    SUPPRESSED.load(Relaxed)
}

fn level_index(level: &Level) -> usize {
    match *level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        Level::DEBUG => 3,
        Level::TRACE => 4,
    }
}

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `--log` is neither a level nor a filter.
    #[error("log level '{level}': {why}; give error, warn, info, debug or trace")]
    Level { level: String, why: String },
    /// `--log-file` cannot be opened.
    #[error("cannot open log file {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    /// Something in this process set up logging already.
    #[error("logging is set up already")]
    Twice,
}

/// Sets up logging for the process as the common flags say. Call once, early.
pub fn init(args: &CommonArgs) -> Result<(), LogError> {
    let level = args.log.clone().unwrap_or_else(|| "info".to_string());
    let filter = EnvFilter::builder()
        .parse(&level)
        .map_err(|e| LogError::Level { level, why: e.to_string() })?;
    let limit = RateLimit::new(BURST, WINDOW);
    let reporter = limit.clone();
    let base = tracing_subscriber::registry().with(filter).with(limit);
    let json = args.log_format == Some(LogFormat::Json);
    let writer = writer(args)?;
    let plain = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let done = if json {
        base.with(plain.json().flatten_event(true)).try_init()
    } else {
        base.with(plain).try_init()
    };
    done.map_err(|_| LogError::Twice)?;
    // Without the thread only the counts would be missing, so a failure is no reason to stop.
    if let Err(error) = start_reporter(reporter) {
        tracing::warn!(%error, "left-out messages will not be counted in the log");
    }
    Ok(())
}

type Writer = tracing_subscriber::fmt::writer::BoxMakeWriter;

fn writer(args: &CommonArgs) -> Result<Writer, LogError> {
    match &args.log_file {
        None => Ok(Writer::new(std::io::stderr)),
        Some(path) => {
            let file = RotatingFile::open(path, MAX_BYTES)
                .map_err(|source| LogError::File { path: path.clone(), source })?;
            Ok(Writer::new(Mutex::new(file)))
        }
    }
}

fn start_reporter(limit: RateLimit) -> std::io::Result<()> {
    let run = move || loop {
        std::thread::sleep(WINDOW);
        for left_out in limit.take_report(Instant::now()) {
            tracing::warn!(
                target: OWN_TARGET,
                place = left_out.place,
                count = left_out.count,
                "repeated messages were left out"
            );
        }
    };
    std::thread::Builder::new().name("quarry-log".to_string()).spawn(run).map(drop)
}

/// A layer that lets each place in the code log `burst` messages a window.
#[derive(Clone)]
struct RateLimit {
    burst: u32,
    window: Duration,
    places: Arc<Mutex<HashMap<Place, Window>>>,
}

/// A callsite: bounded by the size of the program. Line numbers keep this readable for people.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    file: &'static str,
    line: u32,
}

struct Window {
    began: Instant,
    seen: u32,
    left_out: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct LeftOut {
    place: String,
    count: u64,
}

fn place_of(m: &Metadata<'static>) -> Place {
    Place { file: m.file().unwrap_or(m.target()), line: m.line().unwrap_or(0) }
}

impl RateLimit {
    fn new(burst: u32, window: Duration) -> RateLimit {
        RateLimit { burst, window, places: Arc::default() }
    }

    /// Whether a message from `place` at `now` is logged.
    fn admit(&self, place: Place, now: Instant) -> bool {
        let mut places = self.places.lock().unwrap_or_else(|e| e.into_inner());
        let w = places.entry(place).or_insert(Window { began: now, seen: 0, left_out: 0 });
        if now.saturating_duration_since(w.began) >= self.window {
            w.began = now;
            w.seen = 0;
        }
        w.seen = w.seen.saturating_add(1);
        if w.seen <= self.burst {
            return true;
        }
        w.left_out += 1;
        SUPPRESSED.fetch_add(1, Relaxed);
        false
    }

    /// What was left out since the last report; places that were quiet for a window are forgotten.
    fn take_report(&self, now: Instant) -> Vec<LeftOut> {
        let mut places = self.places.lock().unwrap_or_else(|e| e.into_inner());
        let mut out = Vec::new();
        for (place, w) in places.iter_mut() {
            if w.left_out > 0 {
                let place = format!("{}:{}", place.file, place.line);
                out.push(LeftOut { place, count: std::mem::take(&mut w.left_out) });
            }
        }
        places.retain(|_, w| now.saturating_duration_since(w.began) < self.window);
        out
    }
}

impl<S: Subscriber> Layer<S> for RateLimit {
    fn event_enabled(&self, event: &Event<'_>, _ctx: Context<'_, S>) -> bool {
        let m = event.metadata();
        if let Some(n) = BY_LEVEL.get(level_index(m.level())) {
            n.fetch_add(1, Relaxed);
        }
        m.target() == OWN_TARGET || self.admit(place_of(m), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(line: u32) -> Place {
        Place { file: "x.rs", line }
    }

    #[test]
    fn a_repeated_message_is_limited_and_counted_per_place() {
        let l = RateLimit::new(3, Duration::from_secs(10));
        let t = Instant::now();
        let logged = (0..10).filter(|_| l.admit(place(1), t)).count();
        assert_eq!(logged, 3);
        assert!(l.admit(place(2), t), "another place is not affected");
        let report = l.take_report(t);
        assert_eq!(report, vec![LeftOut { place: "x.rs:1".to_string(), count: 7 }]);
        assert!(l.take_report(t).is_empty(), "a count is reported once");
    }

    #[test]
    fn after_the_window_messages_are_logged_again() {
        let l = RateLimit::new(1, Duration::from_secs(10));
        let t = Instant::now();
        assert!(l.admit(place(1), t));
        assert!(!l.admit(place(1), t + Duration::from_secs(9)));
        assert!(l.admit(place(1), t + Duration::from_secs(10)));
    }

    #[test]
    fn quiet_places_are_forgotten() {
        let l = RateLimit::new(1, Duration::from_secs(10));
        let t = Instant::now();
        l.admit(place(1), t);
        l.take_report(t + Duration::from_secs(11));
        assert!(l.places.lock().unwrap().is_empty());
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Sink {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_layer_limits_what_reaches_the_log() {
        let sink = Sink::default();
        let out = sink.clone();
        let fmt = tracing_subscriber::fmt::layer().with_writer(move || out.clone());
        let limit = RateLimit::new(2, Duration::from_secs(10));
        let sub = tracing_subscriber::registry().with(limit).with(fmt);
        tracing::subscriber::with_default(sub, || {
            for n in 0..5 {
                tracing::warn!(n, "again");
            }
            tracing::warn!(target: OWN_TARGET, "report");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("again").count(), 2, "{text}");
        assert!(text.contains("report"));
    }
}
