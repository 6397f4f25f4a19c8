//! The registry: what is exported, under which name, and how it is written out.

use crate::histo::Histo;
use crate::naming::{self, Kind, Name};
use crate::process::ProcessCollector;
use crate::series::{Counter, Family, Gauge, Read, Value};
use crate::version::{Info, COMMIT, RELEASE};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{text, DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};

/// Label values and value of one series, for values that are computed when somebody scrapes.
pub type Sample = (Vec<String>, f64);

type HealthCheck = dyn Fn() -> Result<(), String> + Send + Sync;

/// All metrics of one process. Clones share it.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Mutex<Inner>>,
    health: Arc<Mutex<Option<Arc<HealthCheck>>>>,
}

struct Inner {
    registry: Registry,
    names: BTreeSet<String>,
}

impl Metrics {
    /// A registry that exports `quarry_build_info`, the process's own facts and log counts from the
    /// start. `role` is `mdm`, `sds`, `sdc`; `instance` the member's name, for people.
    pub fn new(info: Info, role: &str, instance: &str) -> Metrics {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(BuildInfo::new(info, role, instance)));
        registry.register_collector(Box::new(ProcessCollector::new()));
        let names = BTreeSet::from(["quarry_build_info".to_string()]);
        let m = Metrics {
            inner: Arc::new(Mutex::new(Inner { registry, names })),
            health: Arc::default(),
        };
        m.counter_fn(
            "quarry_log_messages_total",
            "Log messages by level, also those left out",
            &["level"],
            crate::logging::counts,
        );
        m.counter_fn(
            "quarry_log_suppressed_total",
            "Repeated log messages left out by the rate limit",
            &[],
            || vec![(vec![], crate::logging::suppressed() as f64)],
        );
        m
    }

    /// A counter without labels. `name` ends with `_total`.
    pub fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.counter_family(name, help, &[]).with(&[])
    }
    /// A gauge without labels.
    pub fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.gauge_family(name, help, &[]).with(&[])
    }
    /// A histogram of durations without labels. `name` ends with `_seconds`.
    pub fn histogram(&self, name: &'static str, help: &'static str) -> Arc<Histo> {
        self.histogram_family(name, help, &[]).with(&[])
    }
    /// Counters told apart by labels.
    pub fn counter_family(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Family<Counter> {
        self.family(name, help, labels, Kind::Counter)
    }
    /// Gauges told apart by labels.
    pub fn gauge_family(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Family<Gauge> {
        self.family(name, help, labels, Kind::Gauge)
    }
    /// Histograms told apart by labels.
    pub fn histogram_family(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Family<Arc<Histo>> {
        self.family(name, help, labels, Kind::Histogram)
    }

    /// Gauges computed at each scrape; `read` must not block.
    pub fn gauge_fn(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        read: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) {
        self.computed(name, help, labels, Kind::Gauge, Box::new(read));
    }
    /// Counters computed at each scrape; `read` must not block, values must not go back.
    pub fn counter_fn(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        read: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) {
        self.computed(name, help, labels, Kind::Counter, Box::new(read));
    }

    /// What `/healthz` answers: 200 for `Ok`, 503 with the text for `Err`. Must not block.
    pub fn set_health(&self, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        *self.health.lock().unwrap_or_else(|e| e.into_inner()) = Some(Arc::new(check));
    }
    /// The answer of the health check; `Ok` when none was set.
    pub fn health(&self) -> Result<(), String> {
        let check = self.health.lock().unwrap_or_else(|e| e.into_inner()).clone();
        check.map_or(Ok(()), |c| c())
    }

    /// Everything in OpenMetrics text; served with [`crate::http::CONTENT_TYPE`].
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::with_capacity(16 << 10);
        let inner = self.inner.lock().unwrap_or_else(|e| e.into_inner());
        text::encode(&mut out, &inner.registry)?;
        Ok(out)
    }

    /// The names registered so far, sorted, as Prometheus shows them (`_total` included).
    pub fn names(&self) -> Vec<String> {
        let inner = self.inner.lock().unwrap_or_else(|e| e.into_inner());
        inner.names.iter().cloned().collect()
    }

    fn family<M: Read>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        kind: Kind,
    ) -> Family<M> {
        let family = Family::new(labels);
        let source = Source::Family(Box::new(FamilyOf(family.clone())));
        self.register(name, help, labels, kind, source);
        family
    }

    fn computed(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        kind: Kind,
        read: Box<dyn Fn() -> Vec<Sample> + Send + Sync>,
    ) {
        self.register(name, help, labels, kind, Source::Computed(read));
    }

    fn register(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        kind: Kind,
        source: Source,
    ) {
        let checked = naming::split(name, kind);
        assert!(checked.is_ok(), "{}", checked.as_ref().err().map_or("", |e| e.as_str()));
        assert!(labels.iter().all(|l| naming::label_ok(l)), "labels of '{name}': {labels:?}");
        let Ok(name) = checked else { return };
        let mut inner = self.inner.lock().unwrap_or_else(|e| e.into_inner());
        let new = inner.names.insert(name.full.clone());
        assert!(new, "metric '{}' is registered twice", name.full);
        inner.registry.register_collector(Box::new(Exported { name, help, labels, kind, source }));
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metrics({} names)", self.names().len())
    }
}

/// Where the values of one name come from.
enum Source {
    Family(Box<dyn ReadAll>),
    Computed(Box<dyn Fn() -> Vec<Sample> + Send + Sync>),
}

trait ReadAll: Send + Sync {
    fn read_all(&self) -> Vec<(Vec<String>, Value)>;
}
struct FamilyOf<M>(Family<M>);
impl<M: Read> ReadAll for FamilyOf<M> {
    fn read_all(&self) -> Vec<(Vec<String>, Value)> {
        self.0.series().into_iter().map(|(l, m)| (l, m.read())).collect()
    }
}

struct Exported {
    name: Name,
    help: &'static str,
    labels: &'static [&'static str],
    kind: Kind,
    source: Source,
}

impl fmt::Debug for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name.full)
    }
}

impl Exported {
    fn read(&self) -> Vec<(Vec<String>, Value)> {
        match &self.source {
            Source::Family(f) => f.read_all(),
            Source::Computed(read) => {
                let value = |v| match self.kind {
                    // Whole numbers are written as such.
                    Kind::Counter if v >= 0.0 && v == f64::trunc(v) => Value::Count(v as u64),
                    _ => Value::Level(v),
                };
                read().into_iter().map(|(l, v)| (l, value(v))).collect()
            }
        }
    }

    fn write(&self, e: &mut MetricEncoder<'_>, value: &Value) -> fmt::Result {
        match (value, self.kind) {
            (Value::Count(n), Kind::Counter) => e.encode_counter::<NoLabelSet, _, f64>(n, None),
            (Value::Level(v), Kind::Counter) => e.encode_counter::<NoLabelSet, _, f64>(v, None),
            (Value::Count(n), _) => e.encode_gauge(n),
            (Value::Level(v), _) => e.encode_gauge(v),
            (Value::Durations(h), _) => {
                let s = h.snapshot();
                let sum = s.sum_nanos() as f64 / 1e9;
                e.encode_histogram::<NoLabelSet>(sum, s.count(), &s.exported(), None)
            }
        }
    }
}

impl Collector for Exported {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        };
        let unit = self.name.unit.as_ref();
        let mut metric = encoder.encode_descriptor(&self.name.base, self.help, unit, kind)?;
        for (values, value) in self.read() {
            let labels: Vec<(&str, &str)> =
                self.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
            if labels.is_empty() {
                self.write(&mut metric, &value)?;
            } else {
                self.write(&mut metric.encode_family(&labels)?, &value)?;
            }
        }
        Ok(())
    }
}

/// `quarry_build_info`.
#[derive(Debug)]
struct BuildInfo {
    labels: Vec<(&'static str, String)>,
}

impl BuildInfo {
    fn new(info: Info, role: &str, instance: &str) -> BuildInfo {
        let labels = vec![
            ("version", RELEASE.to_string()),
            ("commit", COMMIT.to_string()),
            ("role", role.to_string()),
            ("name", instance.to_string()),
            ("wire", info.wire.to_string()),
            ("disk", info.disk.to_string()),
            ("api", info.api.to_string()),
        ];
        BuildInfo { labels }
    }
}

impl Collector for BuildInfo {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Release, commit and format versions of this process";
        let mut m = encoder.encode_descriptor("quarry_build", help, None, MetricType::Info)?;
        m.encode_info(&self.labels)
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
