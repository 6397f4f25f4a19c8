//! Which figures are recorded of each kind of object, and how a metric of the timeline is made of them.

use serde::Serialize;

/// Kinds of object with a history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Volume,
    Sds,
    Sdc,
    Pool,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Volume, Kind::Sds, Kind::Sdc, Kind::Pool];

    pub fn parse(text: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.name() == text)
    }
    pub fn name(self) -> &'static str {
        match self {
            Kind::Volume => "volume",
            Kind::Sds => "sds",
            Kind::Sdc => "sdc",
            Kind::Pool => "pool",
        }
    }
    /// Counters of a row, in order; the gauges follow them.
    pub fn counters(self) -> &'static [&'static str] {
        match self {
            Kind::Sds => SDS,
            _ => IO,
        }
    }
    /// Gauges of a row, in order.
    pub fn gauges(self) -> &'static [&'static str] {
        match self {
            Kind::Volume => &["size_bytes"],
            Kind::Sdc => &["volumes"],
            Kind::Sds => &["used_bytes", "capacity_bytes"],
            Kind::Pool => POOL,
        }
    }
}

/// What clients did, as their SDCs counted it when it was answered. `*_nanos` is the sum of the answers' times.
pub const IO: &[&str] = &[
    "read_ops",
    "write_ops",
    "flush_ops",
    "trim_ops",
    "zero_ops",
    "read_bytes",
    "write_bytes",
    "trim_bytes",
    "zero_bytes",
    "errors",
    "read_nanos",
    "write_nanos",
];
/// What an SDS's replication engine counted: clients' requests at its primaries, bytes sent to bring copies up to date.
pub const SDS: &[&str] = &[
    "read_ops",
    "write_ops",
    "zero_ops",
    "read_bytes",
    "write_bytes",
    "sync_bytes",
    "corrupt_pages",
    "repairs",
];
const POOL: &[&str] = &[
    "used_bytes",
    "capacity_bytes",
    "provisioned_bytes",
    "degraded_bytes",
    "pgs_ok",
    "pgs_degraded",
    "pgs_unavailable",
];

/// What a point's value counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    PerSecond,
    BytesPerSecond,
    Seconds,
    Bytes,
    Count,
}

/// How a metric is read from rows; numbers are columns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Growth of a counter a second.
    Rate(usize),
    /// A counter as it stood, since this MDM began to record.
    Total(usize),
    Gauge(usize),
    /// Mean time of the requests answered in the step.
    Mean {
        nanos: usize,
        ops: usize,
    },
}

/// One metric of the timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric {
    pub source: Source,
    pub unit: Unit,
}

impl Metric {
    /// `read_ops`, `write_bytes` and the like are rates; with `_total` they are the counters themselves;
    /// `read_latency_seconds` is a mean; the rest are levels.
    pub fn find(kind: Kind, name: &str) -> Option<Metric> {
        let column = |n: &str| kind.counters().iter().position(|c| *c == n);
        let bytes = |n: &str| n.ends_with("_bytes");
        if let Some(op) = name.strip_suffix("_latency_seconds") {
            let nanos = column(&format!("{op}_nanos"))?;
            let ops = column(&format!("{op}_ops"))?;
            return Some(Metric { source: Source::Mean { nanos, ops }, unit: Unit::Seconds });
        }
        if name.contains("_nanos") {
            return None;
        }
        if let Some(stem) = name.strip_suffix("_total") {
            let unit = if bytes(stem) { Unit::Bytes } else { Unit::Count };
            return Some(Metric { source: Source::Total(column(stem)?), unit });
        }
        if let Some(c) = column(name) {
            let unit = if bytes(name) { Unit::BytesPerSecond } else { Unit::PerSecond };
            return Some(Metric { source: Source::Rate(c), unit });
        }
        let g = kind.gauges().iter().position(|g| *g == name)?;
        let unit = if bytes(name) { Unit::Bytes } else { Unit::Count };
        Some(Metric { source: Source::Gauge(kind.counters().len() + g), unit })
    }

    /// Names that [`Metric::find`] knows for `kind`, without the `_total` ones.
    pub fn names(kind: Kind) -> Vec<String> {
        let counters = kind.counters().iter();
        let mut out: Vec<String> = counters
            .map(|c| match c.strip_suffix("_nanos") {
                Some(op) => format!("{op}_latency_seconds"),
                None => (*c).to_string(),
            })
            .collect();
        out.extend(kind.gauges().iter().map(|g| (*g).to_string()));
        out
    }
}
