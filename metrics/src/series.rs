//! Handles to single values, and families of them by label.

use crate::histo::Histo;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock};

/// Series a family holds at most; what comes after is counted into one series whose labels are all
/// `other`, so that sums stay right.
pub const MAX_SERIES: usize = 4096;

/// A number that only grows. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// A counter at 0, not yet exported anywhere.
    pub fn new() -> Counter {
        Counter::default()
    }
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }
    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down: a float in atomic bits. Clones share it.
///
/// [`Gauge::set`] is one store; [`Gauge::add`] is a loop and meant for the control plane.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// A gauge at 0, not yet exported anywhere.
    pub fn new() -> Gauge {
        Gauge::default()
    }
    /// Sets the value.
    #[inline]
    pub fn set(&self, v: f64) {
        self.0.store(v.to_bits(), Relaxed);
    }
    /// Sets an integer value (exact up to 2^53).
    #[inline]
    pub fn set_u64(&self, v: u64) {
        self.set(v as f64);
    }
    /// Adds `d`, which may be negative.
    pub fn add(&self, d: f64) {
        let sum = |bits| Some((f64::from_bits(bits) + d).to_bits());
        // The closure always gives a value, so this cannot fail.
        let _previous = self.0.fetch_update(Relaxed, Relaxed, sum);
    }
    /// The value now.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

/// Values of one name told apart by labels: `Family<Counter>`, `Family<Gauge>`,
/// `Family<Arc<Histo>>`. Clones share it.
///
/// Look a series up once and keep the handle: [`Family::with`] takes a lock and is not for the I/O path.
#[derive(Debug)]
pub struct Family<M> {
    inner: Arc<Inner<M>>,
}

#[derive(Debug)]
struct Inner<M> {
    labels: &'static [&'static str],
    series: RwLock<BTreeMap<Vec<String>, M>>,
}

impl<M> Clone for Family<M> {
    fn clone(&self) -> Self {
        Family { inner: Arc::clone(&self.inner) }
    }
}

impl<M: Clone + Default> Family<M> {
    /// An empty family with these label names.
    pub fn new(labels: &'static [&'static str]) -> Family<M> {
        Family { inner: Arc::new(Inner { labels, series: RwLock::new(BTreeMap::new()) }) }
    }

    /// The series with these label values (one for each label name, in their order), made when new.
    pub fn with(&self, values: &[&str]) -> M {
        assert_eq!(values.len(), self.inner.labels.len(), "one value for each label");
        let key: Vec<String> = values.iter().map(|v| v.to_string()).collect();
        let mut map = self.inner.series.write().unwrap_or_else(|e| e.into_inner());
        if map.len() >= MAX_SERIES && !map.contains_key(&key) {
            let other = vec!["other".to_string(); values.len()];
            return map.entry(other).or_default().clone();
        }
        map.entry(key).or_default().clone()
    }

    /// Stops exporting a series; handles to it stay valid and go nowhere.
    pub fn remove(&self, values: &[&str]) {
        let key: Vec<String> = values.iter().map(|v| v.to_string()).collect();
        self.inner.series.write().unwrap_or_else(|e| e.into_inner()).remove(&key);
    }

    /// Stops exporting every series for which `keep` is false.
    pub fn retain(&self, mut keep: impl FnMut(&[String]) -> bool) {
        let mut map = self.inner.series.write().unwrap_or_else(|e| e.into_inner());
        map.retain(|labels, _| keep(labels));
    }

    /// All series now: label values and handle, ordered by label values.
    pub fn series(&self) -> Vec<(Vec<String>, M)> {
        let map = self.inner.series.read().unwrap_or_else(|e| e.into_inner());
        map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// The label names.
    pub fn labels(&self) -> &'static [&'static str] {
        self.inner.labels
    }
}

/// What a family can hold.
pub(crate) enum Value {
    Count(u64),
    Level(f64),
    Durations(Arc<Histo>),
}

/// A handle the exporter can read.
pub(crate) trait Read: Clone + Default + Send + Sync + std::fmt::Debug + 'static {
    fn read(&self) -> Value;
}
impl Read for Counter {
    fn read(&self) -> Value {
        Value::Count(self.get())
    }
}
impl Read for Gauge {
    fn read(&self) -> Value {
        Value::Level(self.get())
    }
}
impl Read for Arc<Histo> {
    fn read(&self) -> Value {
        Value::Durations(Arc::clone(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_of_a_handle_share_the_value() {
        let (c, g) = (Counter::new(), Gauge::new());
        c.clone().add(3);
        g.set(2.5);
        g.clone().add(-1.0);
        assert_eq!((c.get(), g.get()), (3, 1.5));
    }

    #[test]
    fn a_full_family_counts_the_rest_as_other() {
        let f: Family<Counter> = Family::new(&["volume"]);
        for i in 0..MAX_SERIES + 10 {
            f.with(&[&i.to_string()]).inc();
        }
        let series = f.series();
        assert_eq!(series.len(), MAX_SERIES + 1);
        assert_eq!(f.with(&["other"]).get(), 10);
        assert_eq!(series.iter().map(|(_, c)| c.get()).sum::<u64>(), MAX_SERIES as u64 + 10);
    }

    #[test]
    fn a_removed_series_is_no_longer_exported() {
        let f: Family<Gauge> = Family::new(&["volume", "op"]);
        f.with(&["a", "read"]).set(1.0);
        f.with(&["b", "read"]).set(2.0);
        f.remove(&["a", "read"]);
        assert_eq!(f.series().len(), 1);
        f.retain(|l| l[0] != "b");
        assert!(f.series().is_empty());
    }
}
