//! `deploy/` with a real Prometheus: its one job finds every daemon by service discovery, every alert and every query of the
//! dashboard names metrics that a live cluster exports and is accepted by the server; a dead server shows. The alert rules
//! have unit tests for `promtool`.

use quarry_tests::cluster::root;
use quarry_tests::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::Duration;

#[test]
fn every_alert_rule_has_a_test_that_passes() -> Res<()> {
    let name = "every_alert_rule_has_a_test_that_passes";
    if let Some(why) = need_programs(&["promtool"]) {
        skip(name, &why);
        return Ok(());
    }
    let dir = root().join("deploy/prometheus");
    let file = |n: &str| dir.join(n).display().to_string();
    Command::new("promtool").args(["check", "rules", &file("alerts.yml")]).ok()?;
    Command::new("promtool").args(["test", "rules", &file("alerts_test.yml")]).ok()?;
    let rules = std::fs::read_to_string(dir.join("alerts.yml"))?;
    let tests = std::fs::read_to_string(dir.join("alerts_test.yml"))?;
    let runbook = std::fs::read_to_string(root().join("docs/RUNBOOK.md"))?;
    let alerts: Vec<&str> =
        rules.lines().filter_map(|l| l.trim().strip_prefix("- alert: ")).collect();
    ensure!(alerts.len() >= 20, "only {} alerts", alerts.len());
    for a in alerts {
        // One that must fire and one that must not.
        let block = tests.split("  - name: ").filter(|b| b.starts_with(&format!("{a}\n")));
        let block: String = block.collect();
        ensure!(block.contains("exp_labels") && block.contains("exp_alerts: []"), "{a}: no test");
        ensure!(rules.contains(&format!("RUNBOOK.md#{}\"", a.to_lowercase())), "{a}: no runbook");
        ensure!(runbook.contains(&format!("\n### {a}\n")), "the runbook has no section '{a}'");
    }
    Ok(())
}

#[test]
fn a_prometheus_server_scrapes_a_cluster() -> Res<()> {
    let name = "a_prometheus_server_scrapes_a_cluster";
    if let Some(why) = need_programs(&["prometheus"]) {
        skip(name, &why);
        return Ok(());
    }
    let files = Scratch::new()?;
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("scraped", "64MiB", "sdc1")?;
        let server = Server::start(cluster, &files)?;
        let history = History::new(5);
        let load = Load::start(LoadSpec::new(&uri).area(Area::spread(32, 4)), &history)?;
        let mut cases = Cases::new();
        cases.case("one scrape job finds every daemon", || {
            let want = cluster.members()?.len();
            wait_until("all targets up", Duration::from_secs(40), || {
                let up = server.query("up{job=\"quarry\"} == 1")?;
                let roles: BTreeSet<&str> =
                    up.iter().filter_map(|r| r["metric"]["role"].as_str()).collect();
                ensure!(up.len() == want && roles.len() == 3, "{} up: {up:?}", up.len());
                Ok(Some(()))
            })
        });
        cases.case("figures of the load arrive", || {
            wait_until("a rate of writes", Duration::from_secs(40), || {
                let q =
                    "sum(rate(quarry_sdc_requests_total{volume=\"scraped\",op=\"write\"}[30s]))";
                let r = server.query(q)?;
                let v = r.first().and_then(|r| r["value"][1].as_str()?.parse::<f64>().ok());
                ensure!(v.is_some_and(|v| v > 1.0), "{r:?}");
                Ok(Some(()))
            })
        });
        let live = live_names(cluster)?;
        cases.case("every query of the dashboard names metrics that exist", || {
            let queries = dashboard()?;
            ensure!(queries.len() >= 30, "only {} queries", queries.len());
            queries.iter().try_for_each(|q| known(q, &live))?;
            for q in &queries {
                server.query(&q.replace("$__rate_interval", "30s").replace("$volume", ".*"))?;
            }
            Ok(())
        });
        cases.case("every alert names metrics that exist and is loaded", || {
            for expr in alert_expressions()? {
                known(&expr, &live)?;
            }
            let rules = server.get("/api/v1/rules")?;
            let groups = rules["groups"].as_array().cloned().unwrap_or_default();
            let all: Vec<&Value> =
                groups.iter().flat_map(|g| g["rules"].as_array().into_iter().flatten()).collect();
            ensure!(all.len() == alert_expressions()?.len(), "{} rules loaded", all.len());
            ensure!(all.iter().all(|r| r["health"] != "err"), "{rules}");
            Ok(())
        });
        load.stop().expect_no_error()?;
        cases.case("a dead server shows by name", || {
            cluster.kill("sds2")?;
            wait_until("sds2 in the alert", Duration::from_secs(40), || {
                let down = server.query("min by (daemon) (quarry_daemon_up{kind=\"sds\"}) == 0")?;
                ensure!(down.len() == 1 && down[0]["metric"]["daemon"] == "sds2", "{down:?}");
                let gone = server.query("up{job=\"quarry\"} == 0")?;
                ensure!(gone.len() == 1 && gone[0]["metric"]["node"] == "sds2", "{gone:?}");
                Ok(Some(()))
            })
        });
        cases.finish()
    })
}

/// A Prometheus with the configuration of `deploy/`, its MDM address and intervals replaced.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(cluster: &Cluster, files: &Scratch) -> Res<Server> {
        let from = root().join("deploy/prometheus");
        let text = std::fs::read_to_string(from.join("prometheus.yml"))?;
        ensure!(text.contains("http://127.0.0.1:7400"), "prometheus.yml has no MDM address");
        let text = text
            .replace("http://127.0.0.1:7400", &cluster.info("api")?)
            .replace("scrape_interval: 5s", "scrape_interval: 1s")
            .replace("refresh_interval: 15s", "refresh_interval: 2s")
            .replace("evaluation_interval: 15s", "evaluation_interval: 2s");
        std::fs::write(files.file("prometheus.yml"), text)?;
        std::fs::copy(from.join("alerts.yml"), files.file("alerts.yml"))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = std::fs::File::create(files.file("prometheus.log"))?;
        let child = std::process::Command::new("prometheus")
            .arg(format!("--config.file={}", files.file("prometheus.yml")))
            .arg(format!("--storage.tsdb.path={}", files.file("tsdb")))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let server = Server { child, url: format!("http://127.0.0.1:{port}") };
        wait_until("Prometheus to be ready", Duration::from_secs(30), || {
            let answer = http::get(&format!("{}/-/ready", server.url))?;
            Ok((answer.status == 200).then_some(()))
        })?;
        Ok(server)
    }

    /// `data` of an answer; anything but success is a failure with Prometheus's reason.
    fn get(&self, path: &str) -> Res<Value> {
        let json = http::get(&format!("{}{path}", self.url))?.json()?;
        ensure!(json["status"] == "success", "{path}: {json}");
        Ok(json["data"].clone())
    }

    fn query(&self, expr: &str) -> Res<Vec<Value>> {
        let mut encoded = String::new();
        for b in expr.bytes() {
            if b.is_ascii_alphanumeric() {
                encoded.push(b as char);
            } else {
                encoded.push_str(&format!("%{b:02X}"));
            }
        }
        let data = self.get(&format!("/api/v1/query?query={encoded}"))?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(e) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("prometheus did not end: {e}");
        }
    }
}

/// Names of all samples and families that the daemons export now.
fn live_names(cluster: &Cluster) -> Res<BTreeSet<String>> {
    let mut names = BTreeSet::from(["up".to_string()]);
    for m in cluster.members()? {
        for line in http::get(&m.metrics)?.body.lines() {
            // A family without a series yet is known by its type line; a counter's samples end with _total.
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
                match kind {
                    "counter" => drop(names.insert(format!("{name}_total"))),
                    "histogram" => drop(names.insert(format!("{name}_bucket"))),
                    _ => drop(names.insert(name.to_string())),
                }
            } else if !line.starts_with('#') {
                let end = line.find(['{', ' ']).unwrap_or(line.len());
                names.extend(line.get(..end).map(str::to_string));
            }
        }
    }
    Ok(names)
}

/// Fails unless every metric that an expression names is exported.
fn known(expr: &str, live: &BTreeSet<String>) -> Res<()> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names: Vec<&str> = expr
        .split(|c| !word(c))
        .filter(|w| w.starts_with("quarry_") || w.starts_with("process_") || *w == "up")
        .collect();
    ensure!(!names.is_empty(), "no metric in: {expr}");
    for n in names {
        ensure!(live.contains(n), "{n} is not exported by any daemon: {expr}");
    }
    Ok(())
}

/// Every expression of the dashboard, the ones of its variables too.
fn dashboard() -> Res<Vec<String>> {
    let text = std::fs::read_to_string(root().join("deploy/grafana/quarry.json"))?;
    let json: Value = serde_json::from_str(&text)?;
    let panels = json["panels"].as_array().cloned().unwrap_or_default();
    let targets = panels.iter().flat_map(|p| p["targets"].as_array().into_iter().flatten());
    let exprs: Vec<String> =
        targets.filter_map(|t| t["expr"].as_str().map(str::to_string)).collect();
    let variables = json["templating"]["list"].as_array().cloned().unwrap_or_default();
    let asked = variables.iter().filter_map(|v| {
        let inner = v["definition"].as_str()?.strip_prefix("label_values(")?;
        inner.split(',').next().map(str::to_string)
    });
    Ok(exprs.iter().cloned().chain(asked).collect())
}

fn alert_expressions() -> Res<Vec<String>> {
    let text = std::fs::read_to_string(root().join("deploy/prometheus/alerts.yml"))?;
    let exprs = text.lines().filter_map(|l| l.trim().strip_prefix("expr: "));
    Ok(exprs.map(|e| e.replace("job=\"quarry\"", "")).collect())
}
