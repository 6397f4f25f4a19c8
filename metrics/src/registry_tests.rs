//! What a scrape shows.

use super::*;

fn metrics() -> Metrics {
    Metrics::new(Info::new("sds-server", 1, 1, 1), "sds", "sds1")
}

#[test]
fn a_scrape_shows_build_process_and_registered_values() {
    let m = metrics();
    m.counter("quarry_sds_requests_total", "Requests").add(7);
    m.gauge("quarry_sds_used_bytes", "Bytes").set_u64(1 << 40);
    let f = m.counter_family("quarry_sds_io_bytes_total", "Bytes moved", &["device", "op"]);
    f.with(&["/dev/\"x\"", "read"]).add(4096);
    let text = m.encode().unwrap();
    for line in [
        "quarry_sds_requests_total 7\n",
        "quarry_sds_used_bytes 1099511627776.0\n",
        "# UNIT quarry_sds_io_bytes bytes\n",
        "quarry_sds_io_bytes_total{device=\"/dev/\\\"x\\\"\",op=\"read\"} 4096\n",
        "# TYPE process_cpu_seconds counter\n",
        "role=\"sds\"",
    ] {
        assert!(text.contains(line), "{line} not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(text.contains("quarry_build_info{version="));
}

#[test]
fn a_histogram_is_exported_in_seconds_with_cumulative_buckets() {
    let m = metrics();
    let f = m.histogram_family("quarry_sdc_request_seconds", "Latency", &["op"]);
    let h = f.with(&["write"]);
    h.record(2_000);
    h.record(1_000_000_000);
    let text = m.encode().unwrap();
    assert!(text.contains("quarry_sdc_request_seconds_count{op=\"write\"} 2\n"), "{text}");
    assert!(text.contains("quarry_sdc_request_seconds_sum{op=\"write\"} 1.000002\n"), "{text}");
    assert!(text.contains("quarry_sdc_request_seconds_bucket{le=\"+Inf\",op=\"write\"} 2\n"));
    assert!(text.contains("le=\"0.000002048\",op=\"write\"} 1\n"), "{text}");
}

#[test]
fn computed_values_are_read_at_each_scrape() {
    let m = metrics();
    let n = Arc::new(std::sync::atomic::AtomicU64::new(1));
    let seen = Arc::clone(&n);
    m.gauge_fn("quarry_pgs", "PGs by state", &["state"], move || {
        let v = seen.load(std::sync::atomic::Ordering::Relaxed) as f64;
        vec![(vec!["ok".to_string()], v)]
    });
    assert!(m.encode().unwrap().contains("quarry_pgs{state=\"ok\"} 1.0\n"));
    n.store(5, std::sync::atomic::Ordering::Relaxed);
    assert!(m.encode().unwrap().contains("quarry_pgs{state=\"ok\"} 5.0\n"));
}

#[test]
#[should_panic(expected = "registered twice")]
fn a_name_is_registered_once() {
    let m = metrics();
    m.counter("quarry_x_total", "x");
    m.counter("quarry_x_total", "x");
}

#[test]
fn names_lists_what_was_registered() {
    let m = metrics();
    m.counter("quarry_x_total", "x");
    assert!(m.names().contains(&"quarry_x_total".to_string()));
}
