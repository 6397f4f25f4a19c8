//! Under fio the recorded timeline, the SDC's `/metrics` and fio itself count the same operations and bytes of a volume, within 5 %.

use quarry_tests::*;
use serde_json::Value;
use std::time::Duration;

/// Allowed difference, as a part of what fio says.
const WITHIN: f64 = 0.05;

/// Operations and bytes of reads and writes.
#[derive(Debug, Clone, Copy)]
struct Counts {
    read_ops: f64,
    write_ops: f64,
    read_bytes: f64,
    write_bytes: f64,
}

impl Counts {
    fn gather(mut get: impl FnMut(&str) -> Res<f64>) -> Res<Counts> {
        Ok(Counts {
            read_ops: get("read_ops")?,
            write_ops: get("write_ops")?,
            read_bytes: get("read_bytes")?,
            write_bytes: get("write_bytes")?,
        })
    }
    fn list(self) -> [(&'static str, f64); 4] {
        [
            ("read_ops", self.read_ops),
            ("write_ops", self.write_ops),
            ("read_bytes", self.read_bytes),
            ("write_bytes", self.write_bytes),
        ]
    }
    fn expect_near(self, fio: Counts, who: &str) -> Res<()> {
        for ((name, seen), (_, want)) in self.list().into_iter().zip(fio.list()) {
            let off = (seen - want) / want;
            println!("{who:<22} {name:<12} {seen:>14.0}  fio {want:>14.0}  {:+.2} %", off * 100.0);
            ensure!(off.abs() <= WITHIN, "{who} says {name} {seen}, fio {want}");
        }
        Ok(())
    }
}

#[test]
fn timeline_metrics_and_fio_agree() -> Res<()> {
    let name = "timeline_metrics_and_fio_agree";
    if let Some(why) = need_programs(&["fio"]) {
        skip(name, &why);
        return Ok(());
    }
    let files = Scratch::new()?;
    with_cluster(ClusterOptions::default(), |cluster| {
        // A second volume with traffic of its own: figures are per volume.
        let other = cluster.new_volume("other", "64MiB", "sdc1")?;
        let uri = cluster.new_volume("measured", "128MiB", "sdc1")?;
        let history = History::new(3);
        let load = Load::start(LoadSpec::new(&other).area(Area::spread(16, 4)), &history)?;
        let before = exported(cluster)?;
        let fio = fio(&uri, &files)?;
        let after = exported(cluster)?;
        load.stop().expect_no_error()?;
        let metrics = Counts::gather(|n| Ok(pick(&after, n)? - pick(&before, n)?))?;
        metrics.expect_near(fio, "/metrics of the SDC")?;
        recorded(cluster, fio)?;
        let now = ask(cluster, "/metrics/volume/measured")?;
        let counters = Counts::gather(|n| {
            now["counters"][n].as_f64().ok_or_else(|| Failure::new(format!("no {n} in {now}")))
        })?;
        counters.expect_near(fio, "/metrics/volume")
    })
}

/// The timeline twice: points times step, and the recorded counter itself. The last row comes up to a second later.
fn recorded(cluster: &Cluster, fio: Counts) -> Res<()> {
    wait_until("the last row of the timeline", Duration::from_secs(10), || {
        let total = Counts::gather(|n| last(&points(cluster, &format!("{n}_total"), 1)?, n))?;
        total.expect_near(fio, "timeline, counters")?;
        let sum = |n: &str, step: u64| -> Res<f64> {
            Ok(points(cluster, n, step)?.iter().map(|p| p.1 * step as f64).sum())
        };
        Counts::gather(|n| sum(n, 1))?.expect_near(fio, "timeline, step 1 s")?;
        Ok(Some(()))
    })
}

fn last(points: &[(u64, f64)], name: &str) -> Res<f64> {
    points.last().map(|p| p.1).ok_or_else(|| Failure::new(format!("no points of {name}")))
}

fn points(cluster: &Cluster, metric: &str, step: u64) -> Res<Vec<(u64, f64)>> {
    let path = format!(
        "/metrics/timeline?kind=volume&id=measured&metric={metric}&seconds=200&step={step}"
    );
    let answer = ask(cluster, &path)?;
    let Some(list) = answer["points"].as_array() else { fail!("no points: {answer}") };
    let pair = |p: &Value| Some((p[0].as_u64()?, p[1].as_f64()?));
    list.iter()
        .map(|p| pair(p).ok_or_else(|| Failure::new(format!("not [time, value]: {p}"))))
        .collect()
}

fn ask(cluster: &Cluster, path: &str) -> Res<Value> {
    let header = format!("Authorization: Bearer {}", cluster.info("token")?);
    let answer = http::request("GET", &format!("{}{path}", cluster.info("api")?), &[header], None)?;
    ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.body);
    answer.json()
}

/// The SDC's exporter, as text.
fn exported(cluster: &Cluster) -> Res<String> {
    Ok(http::get(&cluster.member("sdc1")?.metrics)?.body)
}

/// `read_ops` is `quarry_sdc_requests_total{volume="measured",op="read"}`, `read_bytes` the same of bytes.
fn pick(text: &str, name: &str) -> Res<f64> {
    let (op, what) = name.split_once('_').unwrap_or((name, ""));
    let family = if what == "ops" { "quarry_sdc_requests_total" } else { "quarry_sdc_bytes_total" };
    let line = text.lines().find(|l| {
        l.starts_with(family)
            && l.contains("volume=\"measured\"")
            && l.contains(&format!("op=\"{op}\""))
    });
    let value = line.and_then(|l| l.rsplit(' ').next()).and_then(|v| v.parse().ok());
    value.ok_or_else(|| Failure::new(format!("{family} has no op {op}")))
}

fn fio(uri: &Uri, files: &Scratch) -> Res<Counts> {
    let seconds = short_or_full(8, 60).as_secs();
    let out = Command::new("fio")
        .args(["--name=agree", "--ioengine=nbd", "--rw=randrw", "--rwmixread=60"])
        .args(["--bssplit=4k/70:16k/20:64k/10", "--iodepth=8", "--time_based", "--thread"])
        .args(["--size=128M", "--randrepeat=1", "--output-format=json"])
        .args([format!("--uri={uri}"), format!("--runtime={seconds}")])
        .args([format!("--aux-path={}", files.path().display())])
        .limit(Duration::from_secs(seconds + 60))
        .ok()?;
    let json = out.stdout.find('{').and_then(|i| out.stdout.get(i..)).unwrap_or_default();
    let answer: Value = serde_json::from_str(json)?;
    let job = &answer["jobs"][0];
    let number = |v: &Value| {
        v.as_f64().ok_or_else(|| Failure::new(format!("fio's answer lacks a number: {job}")))
    };
    Ok(Counts {
        read_ops: number(&job["read"]["total_ios"])?,
        write_ops: number(&job["write"]["total_ios"])?,
        read_bytes: number(&job["read"]["io_bytes"])?,
        write_bytes: number(&job["write"]["io_bytes"])?,
    })
}
