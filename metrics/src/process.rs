//! The process's own facts, under the names every Prometheus dashboard knows (`process_*`).

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Reads `/proc/self` and the CPU clock at each scrape; what cannot be read is left out.
#[derive(Debug)]
pub(crate) struct ProcessCollector {
    start_seconds: f64,
}

impl ProcessCollector {
    /// Made at start-up, so that "now" is the start time.
    pub(crate) fn new() -> ProcessCollector {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        ProcessCollector { start_seconds: now.as_secs_f64() }
    }
}

/// CPU seconds of all threads of this process since it started.
pub fn cpu_seconds() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

/// A number from `/proc/self/status`: `VmRSS` and `VmSize` in KiB, `Threads` as it is.
fn status(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn open_fds() -> Option<u64> {
    // One of the entries is the directory being read.
    Some((std::fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

fn gauge(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: Option<f64>,
) -> fmt::Result {
    let Some(value) = value else { return Ok(()) };
    e.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
}

impl Collector for ProcessCollector {
    fn encode(&self, mut e: DescriptorEncoder<'_>) -> fmt::Result {
        let (secs, bytes) = (Some(&Unit::Seconds), Some(&Unit::Bytes));
        let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |key| status(&text, key).map(|k| (k * 1024) as f64);
        let max_fds = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;

        e.encode_descriptor("process_cpu", "CPU time of all threads", secs, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&cpu_seconds(), None)?;
        gauge(&mut e, "process_resident_memory", "Memory in RAM", bytes, kib("VmRSS"))?;
        gauge(&mut e, "process_virtual_memory", "Address space", bytes, kib("VmSize"))?;
        gauge(&mut e, "process_locked_memory", "Memory kept in RAM", bytes, kib("VmLck"))?;
        let fds = open_fds().map(|n| n as f64);
        gauge(&mut e, "process_open_fds", "Open file descriptors", None, fds)?;
        let limit = max_fds.map(|n| n as f64);
        gauge(&mut e, "process_max_fds", "Limit of open file descriptors", None, limit)?;
        let threads = status(&text, "Threads").map(|n| n as f64);
        gauge(&mut e, "process_threads", "Threads", None, threads)?;
        let start = Some(self.start_seconds);
        gauge(&mut e, "process_start_time", "Start, Unix time", secs, start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_facts_are_plausible() {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(status(&text, "VmRSS").unwrap() > 100);
        assert!(status(&text, "Threads").unwrap() >= 1);
        assert_eq!(status(&text, "NoSuchKey"), None);
        assert!(open_fds().unwrap() >= 3);
        let before = cpu_seconds();
        let mut x = 0u64;
        while cpu_seconds() <= before {
            x = std::hint::black_box(x + 1);
        }
        assert!(cpu_seconds() > before);
    }
}
