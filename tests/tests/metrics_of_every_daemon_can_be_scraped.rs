//! `/metrics` of every daemon is well-formed, says what it is, and moves when there is I/O.

use quarry_tests::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What every device says of its store.
const BOUNDS: [&str; 10] = [
    "quarry_device_syncs_total",
    "quarry_device_log_full_total",
    "quarry_device_relogged_records_total",
    "quarry_device_checkpoints_total",
    "quarry_device_destaged_pages_total",
    "quarry_device_direct_writes_total",
    "quarry_device_dirty_pages",
    "quarry_device_tombstones",
    "quarry_device_in_flight_limit",
    "quarry_device_log_headroom_bytes",
];
/// ... and what of it is not zero once it was written to.
const MOVE: [&str; 5] = [
    "quarry_device_log_batches_total",
    "quarry_device_log_records_total",
    "quarry_device_headroom_blocks",
    "quarry_device_table_memory_bytes",
    "quarry_device_open_seconds",
];

type Samples = BTreeMap<String, f64>;

#[test]
fn metrics_of_every_daemon_can_be_scraped() -> Res<()> {
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("metrics", "64MiB", "sdc1")?;
        let mut cases = Cases::new();
        let mut before = BTreeMap::new();
        for m in cluster.members()? {
            cases.case(&format!("{} before I/O", m.name), || {
                before.insert(m.name.clone(), scrape(&m.metrics)?);
                Ok(())
            });
        }
        cases.case("a little I/O", || {
            let history = History::new(6);
            let load = Load::start(LoadSpec::new(&uri).area(Area::spread(48, 8)), &history)?;
            load.run_requests(2000, Duration::from_secs(20))?;
            load.stop().expect_no_error()
        });
        for m in cluster.members()?.into_iter().filter(|m| m.role != "mdm") {
            let Some(before) = before.get(&m.name) else { continue };
            cases.case(&format!("counters of {} moved", m.name), || {
                wait_until("counters that grow", Duration::from_secs(10), || {
                    let after = scrape(&m.metrics)?;
                    moved(before, &after, "bytes_total")?;
                    moved(before, &after, "_seconds_count")?;
                    fell(before, &after)?;
                    Ok(Some(()))
                })
            });
        }
        cases.case("how close each device is to its bounds", || {
            for m in cluster.members()?.into_iter().filter(|m| m.role == "sds") {
                let all = scrape(&m.metrics)?;
                for name in BOUNDS {
                    let of =
                        |k: &&String| k.split('{').next() == Some(name) && k.contains("device=");
                    let value = all.keys().find(of).and_then(|k| all.get(k));
                    ensure!(value.is_some(), "{} exports no {name}", m.name);
                }
                for name in MOVE {
                    let sum: f64 = all
                        .iter()
                        .filter_map(|(k, v)| (k.split('{').next() == Some(name)).then_some(*v))
                        .sum();
                    ensure!(sum > 0.0, "{name} of {} is 0 after I/O", m.name);
                }
            }
            Ok(())
        });
        cases.case("the MDM knows the cluster's health and space", || {
            let mdm = cluster.member("mdm1")?;
            let all = scrape(&mdm.metrics)?;
            let names: BTreeSet<&str> =
                all.keys().map(|k| k.split('{').next().unwrap_or(k)).collect();
            for part in ["health", "pg", "capacity"] {
                ensure!(
                    names.iter().any(|n| n.contains(part)),
                    "no metric about {part}: {names:?}"
                );
            }
            Ok(())
        });
        cases.case("service discovery names every daemon", || {
            let answer = authorized(cluster, "/prometheus/targets")?;
            let json = answer.json()?;
            ensure!(json.is_array(), "no HTTP service-discovery document: {json}");
            for m in cluster.members()? {
                let port =
                    m.metrics.trim_start_matches("http://").split('/').next().unwrap_or_default();
                ensure!(
                    answer.body.contains(port),
                    "{} ({port}) is not in {}",
                    m.name,
                    answer.body
                );
            }
            Ok(())
        });
        cases.case("a timeline of a volume", || {
            let path = "/metrics/timeline?kind=volume&id=1&metric=write_bytes&seconds=60&step=5";
            wait_until("points", Duration::from_secs(15), || {
                let answer = authorized(cluster, path)?;
                ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
                let json = answer.json()?;
                let points = json["points"].as_array().map_or(0, Vec::len);
                ensure!(points > 0 && json["unit"] == "bytes_per_second", "no points: {json}");
                Ok(Some(()))
            })
        });
        cases.finish()
    })
}

fn authorized(cluster: &Cluster, path: &str) -> Res<http::Response> {
    let header = format!("Authorization: Bearer {}", cluster.info("token")?);
    http::request("GET", &format!("{}{path}", cluster.info("api")?), &[header], None)
}

/// Fetches and parses; every line must be a comment or a sample of a declared metric.
fn scrape(url: &str) -> Res<Samples> {
    let answer = http::get(url)?;
    ensure!(answer.status == 200, "{url}: status {}", answer.status);
    let kind = answer.header("content-type").unwrap_or_default().to_string();
    ensure!(
        kind.starts_with("text/plain") || kind.starts_with("application/openmetrics-text"),
        "content type '{kind}'"
    );
    if kind.starts_with("application/openmetrics-text") {
        ensure!(answer.body.ends_with("# EOF\n"), "OpenMetrics without # EOF at the end");
    }
    let mut samples = Samples::new();
    let mut types: BTreeMap<String, String> = BTreeMap::new();
    for line in answer.body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            ensure!(
                types.insert(name.to_string(), kind.to_string()).is_none(),
                "{name} is declared twice"
            );
        } else if !line.starts_with('#') && !line.is_empty() {
            let (name, value) = sample(line)?;
            ensure!(samples.insert(name.to_string(), value).is_none(), "{name} appears twice");
        }
    }
    for name in samples.keys() {
        let family = name.split('{').next().unwrap_or(name);
        let declared = ["", "_total", "_bucket", "_sum", "_count", "_info", "_created"]
            .iter()
            .any(|suffix| family.strip_suffix(suffix).is_some_and(|f| types.contains_key(f)));
        ensure!(declared, "{family} has no # TYPE line");
        ensure!(
            family.starts_with("quarry_") || family.starts_with("process_"),
            "{family} is not named quarry_*"
        );
    }
    ensure!(
        samples.keys().any(|k| k.starts_with("quarry_build_info{")),
        "{url} has no quarry_build_info"
    );
    ensure!(samples.keys().any(|k| k.contains("process_")), "{url} has no process facts");
    Ok(samples)
}

fn sample(line: &str) -> Res<(&str, f64)> {
    let end = line.rfind('}').map_or_else(|| line.find(' '), |e| Some(e + 1));
    let Some((name, value)) = end.and_then(|e| line.split_at_checked(e)) else {
        fail!("no sample: {line}")
    };
    let value = value.split_whitespace().next().unwrap_or_default();
    match value.parse() {
        Ok(v) => Ok((name, v)),
        Err(_) => fail!("'{value}' is no number in: {line}"),
    }
}

/// Fails unless a sample whose name ends so has grown.
fn moved(before: &Samples, after: &Samples, suffix: &str) -> Res<()> {
    let of = |(name, value): (&String, &f64)| {
        let family = name.split('{').next().unwrap_or(name);
        family.ends_with(suffix) && *value > before.get(name).copied().unwrap_or(0.0)
    };
    ensure!(after.iter().any(of), "no *{suffix} has grown");
    Ok(())
}

/// Fails when a counter went back.
fn fell(before: &Samples, after: &Samples) -> Res<()> {
    for (name, value) in
        before.iter().filter(|(n, _)| n.split('{').next().unwrap_or(n).ends_with("_total"))
    {
        let now = after.get(name).copied().unwrap_or(f64::NAN);
        ensure!(now >= *value, "counter {name} went from {value} to {now}");
    }
    Ok(())
}
