//! The one naming scheme, checked when a metric is registered.
//!
//! Names are given as Prometheus shows them: `quarry_sds_read_bytes_total`. The exporter wants the
//! parts (base name, unit, type) and puts the suffixes back.

use prometheus_client::registry::Unit;

/// Kinds of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; name ends with `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution of durations; name ends with `_seconds`.
    Histogram,
}

/// A checked name, split.
#[derive(Clone, Debug)]
pub struct Name {
    /// As scraped.
    pub full: String,
    /// Without unit and `_total`.
    pub base: String,
    /// Seconds or bytes, when the name says so.
    pub unit: Option<Unit>,
}

fn well_formed(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.chars().all(plain) && !name.contains("__") && !name.ends_with('_')
}

/// Splits `name`, or says which rule it breaks.
pub fn split(name: &str, kind: Kind) -> Result<Name, String> {
    let own = name.starts_with("quarry_") || name.starts_with("process_");
    if !own || !well_formed(name) {
        return Err(format!(
            "metric '{name}': wants quarry_, lower case, digits, single underscores"
        ));
    }
    let stem = match (kind, name.strip_suffix("_total")) {
        (Kind::Counter, Some(stem)) => stem,
        (Kind::Counter, None) => return Err(format!("counter '{name}' must end with _total")),
        (_, Some(_)) => return Err(format!("'{name}' is no counter but ends with _total")),
        (_, None) => name,
    };
    for bad in ["_ms", "_us", "_ns", "_milliseconds", "_nanos", "_kb", "_mb", "_gb", "_percent"] {
        if stem.ends_with(bad) {
            return Err(format!("metric '{name}': base units only (seconds, bytes, ratio)"));
        }
    }
    let (base, unit) = if let Some(base) = stem.strip_suffix("_seconds") {
        (base, Some(Unit::Seconds))
    } else if let Some(base) = stem.strip_suffix("_bytes") {
        (base, Some(Unit::Bytes))
    } else {
        (stem, None)
    };
    if kind == Kind::Histogram && !matches!(unit, Some(Unit::Seconds)) {
        return Err(format!("histogram '{name}' must end with _seconds"));
    }
    Ok(Name { full: name.to_string(), base: base.to_string(), unit })
}

/// Label names are lower case; `le` and `quantile` are Prometheus's own.
pub fn label_ok(label: &str) -> bool {
    well_formed(label) && !label.is_empty() && !matches!(label, "le" | "quantile")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_follow_the_scheme_are_split() {
        let n = split("quarry_sds_read_bytes_total", Kind::Counter).unwrap();
        assert_eq!(n.base, "quarry_sds_read");
        assert!(matches!(n.unit, Some(Unit::Bytes)));
        let n = split("quarry_sdc_request_seconds", Kind::Histogram).unwrap();
        assert_eq!(n.base, "quarry_sdc_request");
        let n = split("quarry_pgs", Kind::Gauge).unwrap();
        assert!(n.base == "quarry_pgs" && n.unit.is_none());
    }

    #[test]
    fn names_that_break_the_scheme_are_refused() {
        for (name, kind) in [
            ("sds_reads_total", Kind::Counter),
            ("quarry_reads", Kind::Counter),
            ("quarry_reads_total", Kind::Gauge),
            ("quarry_latency_ms", Kind::Gauge),
            ("quarry_read_bytes", Kind::Histogram),
            ("quarry_Reads_total", Kind::Counter),
            ("quarry__reads_total", Kind::Counter),
        ] {
            assert!(split(name, kind).is_err(), "{name}");
        }
    }
}
