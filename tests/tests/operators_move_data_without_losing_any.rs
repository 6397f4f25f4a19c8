//! What operators do to a running cluster: fail and recover a server, drain and remove one, add devices again. Under
//! load, with the checker; at no time is a block lost.

use quarry_tests::*;
use serde_json::{json, Value};
use std::time::Duration;

fn call(c: &Cluster, method: &str, path: &str, body: Value) -> Res<(u16, Value)> {
    let headers = vec![format!("Authorization: Bearer {}", c.info("token")?)];
    let url = format!("{}{path}", c.info("api")?);
    let r = http::request(method, &url, &headers, Some(&body.to_string()))?;
    Ok((r.status, r.json().unwrap_or(Value::String(r.body))))
}

fn get(c: &Cluster, path: &str) -> Res<Value> {
    let (s, v) = call(c, "GET", path, json!({}))?;
    ensure!(s == 200, "GET {path}: {s} {v}");
    Ok(v)
}

fn post(c: &Cluster, path: &str, body: Value) -> Res<Value> {
    let (s, v) = call(c, "POST", path, body)?;
    ensure!((200..300).contains(&s), "POST {path}: {s} {v}");
    Ok(v)
}

/// Copies that a server holds.
fn copies(c: &Cluster, sds: &str) -> Res<u64> {
    Ok(get(c, &format!("/sds/{sds}"))?["copies"].as_u64().unwrap_or(u64::MAX))
}

#[test]
fn operators_move_data_without_losing_any() -> Res<()> {
    let options = ClusterOptions { sds: 4, ..ClusterOptions::default() };
    with_cluster(options, |c| {
        let uri = c.new_volume("v", "128MiB", "sdc1")?;
        let history = History::new(31);
        // It runs for minutes: few requests a second, so that the history stays small.
        let spec =
            LoadSpec { most_per_second: 400, ..LoadSpec::new(&uri).area(Area::spread(64, 16)) };
        let load = Load::start(spec, &history)?;
        load.run_for(Duration::from_secs(1))?;
        let mut cases = Cases::new();
        cases.case("fail: fenced at once, rebuilt elsewhere, healthy; recover: back", || {
            fail_and_recover(c, &load)
        });
        cases.case("fail is refused where it would take the last copy", || last_copy(c));
        cases.case("drain moves every copy, is cancelled, and goes through", || drain(c, &load));
        cases.case("a removed server stays out until it is added again", || remove(c));
        load.run_for(Duration::from_secs(1))?;
        let report = load.stop();
        cases.case("no I/O error, nothing lost", || {
            report.expect_no_error()?;
            history.final_read(&uri)?;
            check::verify(&history).expect_clean()
        });
        cases.finish()
    })
}

fn fail_and_recover(c: &Cluster, load: &Load) -> Res<()> {
    let v = post(c, "/sds/sds1/fail?dry_run=true", json!({}))?;
    ensure!(v["dry_run"] == true && v["placement_groups_changed"].as_u64() > Some(0), "{v}");
    let v = post(c, "/sds/sds1/fail", json!({}))?;
    ensure!(v["state"] == "failed", "{v}");
    let status = c.status()?;
    ensure!(status["health"] != "ok", "health is degraded at once: {status}");
    load.run_for(Duration::from_secs(1))?;
    // The grace time is a minute: it is not waited for.
    c.wait_health("ok", Duration::from_secs(45))?;
    let pgs = get(c, "/pg/list?pool_id=1")?;
    let id = get(c, "/sds/sds1")?["id"].clone();
    for pg in pgs.as_array().into_iter().flatten() {
        let on = pg["in_sync"].as_array().into_iter().flatten().any(|m| m["sds"] == id);
        ensure!(!on, "a fenced server counts: {pg}");
    }
    post(c, "/sds/sds1/recover", json!({}))?;
    wait_until("the server to be taken back", Duration::from_secs(20), || {
        let v = get(c, "/sds/sds1")?;
        ensure!(v["state"] == "up", "{v}");
        Ok(Some(()))
    })?;
    // It comes back empty and gets its share again.
    wait_until("the copies to be spread again", Duration::from_secs(60), || {
        let n = copies(c, "sds1")?;
        ensure!(n > 20, "{n} copies; {}", get(c, "/tasks/list")?);
        Ok(Some(()))
    })?;
    let events = get(c, "/events")?;
    for what in
        ["sds_fail", "rebuild_begin", "pool_health", "sds_recover", "rebalance", "task_begin"]
    {
        let has = events.as_array().into_iter().flatten().any(|e| e["what"] == what);
        ensure!(has, "no event {what}");
    }
    c.wait_health("ok", Duration::from_secs(30))
}

fn last_copy(c: &Cluster) -> Res<()> {
    post(c, "/rebuild/cancel/default", json!({}))?;
    post(c, "/sds/sds1/fail", json!({}))?;
    let (s, v) = call(c, "POST", "/sds/sds2/fail", json!({}))?;
    ensure!(s == 409 && v["code"] == "last_copy", "{s} {v}");
    ensure!(v["message"].as_str().is_some_and(|m| m.ends_with(" v")), "the volume is named: {v}");
    let out = c.scli(["node", "can-stop", "--name", "sds2"])?;
    ensure!(out.status == Some(20) && out.stdout.contains("volumes: v"), "{}", out.told());
    let out = c.scli(["explain", "volume", "v"])?;
    ensure!(out.stdout.contains("taken out by the operator"), "{}", out.told());
    let out = c.scli(["status", "--wait", "1"])?;
    ensure!(out.status == Some(7) && out.stderr.contains("not ok after 1 s"), "{}", out.told());
    post(c, "/rebuild/start/default", json!({}))?;
    let out = c.scli(["sds", "recover", "--name", "sds1", "--wait", "45"])?;
    ensure!(out.status == Some(0), "{}", out.told());
    let status = c.status()?;
    ensure!(status["bytes_one_copy"] == 0, "it waited: {status}");
    c.wait_health("ok", Duration::from_secs(10))
}

fn drain(c: &Cluster, load: &Load) -> Res<()> {
    wait_until("rebalancing to end", Duration::from_secs(60), || {
        let tasks = get(c, "/tasks/list?state=running")?;
        ensure!(tasks == json!([]), "{tasks}");
        Ok(Some(()))
    })?;
    let t = post(c, "/sds/sds4/drain", json!({}))?;
    ensure!(t["state"] == "running" && t["total"].as_u64() > Some(20), "{t}");
    let t = post(c, &format!("/tasks/{}/cancel", t["id"]), json!({}))?;
    ensure!(t["state"] == "cancelled", "{t}");
    ensure!(copies(c, "sds4")? > 0, "the drain was cancelled");
    let out = c.scli(["sds", "drain", "--name", "sds4", "--wait", "90"])?;
    ensure!(out.status == Some(0), "{}", out.told());
    load.run_for(Duration::from_millis(500))?;
    ensure!(copies(c, "sds4")? == 0, "it is empty");
    let status = c.status()?;
    let missing = status["bytes_degraded"].as_u64().zip(status["bytes_one_copy"].as_u64());
    ensure!(missing == Some((0, 0)), "no copy was missing meanwhile: {status}");
    // A group that takes up its new configuration may still say so.
    c.wait_health("ok", Duration::from_secs(10))
}

fn remove(c: &Cluster) -> Res<()> {
    let out = c.scli(["sds", "delete", "--name", "sds4", "--yes"])?;
    ensure!(out.status == Some(0), "{}", out.told());
    wait_until("the daemon to be refused", Duration::from_secs(20), || {
        let m = c.member("sds4")?;
        let command = std::fs::read(format!("/proc/{}/cmdline", m.pid)).unwrap_or_default();
        ensure!(command.is_empty(), "it runs");
        Ok(Some(()))
    })?;
    let m = c.member("sds4")?;
    let log = std::fs::read_to_string(&m.log)?;
    ensure!(log.contains("was removed from the cluster"), "its log does not say why");
    let nodes = get(c, "/cluster/nodes")?;
    ensure!(!nodes.to_string().contains("sds4"), "{nodes}");
    post(c, "/sds/add", json!({"name": "sds4"}))?;
    c.start("sds4")?;
    wait_until("the server to get copies again", Duration::from_secs(60), || {
        let n = copies(c, "sds4")?;
        ensure!(n > 20, "{n} copies");
        Ok(Some(()))
    })?;
    c.wait_health("ok", Duration::from_secs(30))
}
