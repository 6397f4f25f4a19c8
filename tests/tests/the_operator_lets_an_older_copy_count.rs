//! The good copies are lost for ever and an older one is there: one command says what would be lost, and does nothing by itself; the
//! decision waits for a client that could still reach the old server; then I/O goes on with the older state. What comes back of
//! the newer copy is neither used nor mixed in.

use quarry_tests::*;
use serde_json::Value;
use std::time::Duration;

const PAGES: u64 = 64;
const PAGE: usize = 4096;

#[test]
fn the_operator_lets_an_older_copy_count() -> Res<()> {
    let options = ClusterOptions { sds: 2, ..ClusterOptions::default() };
    with_cluster(options, |cluster| {
        let uri = cluster.new_volume("old", "64MiB", "sdc1")?;
        let mut c = nbd::Connection::open(&uri)?;
        for n in 0..PAGES {
            c.write_at(at(n), &page(n, 1))?;
        }
        cluster.kill("sds1")?;
        cluster.wait_health("degraded", Duration::from_secs(10))?;
        for n in (0..PAGES).step_by(2) {
            c.write_at(at(n), &page(n, 2))?;
        }
        drop(c);
        // What the MDM hears of it once a second.
        std::thread::sleep(Duration::from_millis(1500));
        cluster.kill("sds2")?;
        cluster.start("sds1")?;
        cluster.wait_health("unavailable", Duration::from_secs(10))?;
        what_would_be_lost(cluster)?;
        decide(cluster)?;
        cluster.wait_health("degraded", Duration::from_secs(10))?;
        let uri = cluster.map("old", "sdc1")?;
        let mut c = nbd::Connection::open(&uri)?;
        for n in 0..PAGES {
            ensure!(c.read_at(at(n), PAGE)? == page(n, 1), "page {n} is not what sds1 had");
        }
        for n in (0..PAGES).step_by(3) {
            c.write_at(at(n), &page(n, 3))?;
        }
        // The newer copy comes back: its line has ended.
        cluster.start("sds2")?;
        cluster.wait_health("ok", Duration::from_secs(30))?;
        for n in 0..PAGES {
            let want = if n % 3 == 0 { 3 } else { 1 };
            ensure!(c.read_at(at(n), PAGE)? == page(n, want), "page {n} after sds2 came back");
        }
        cluster.expect_identical_replicas().map(drop)
    })
}

fn at(n: u64) -> u64 {
    n << 20
}

fn page(n: u64, round: u8) -> Vec<u8> {
    let mut p = vec![round; PAGE];
    p[..8].copy_from_slice(&n.to_le_bytes());
    p
}

/// `explain` names the command; the dry run names volumes, servers and figures; nothing happens without a yes.
fn what_would_be_lost(cluster: &Cluster) -> Res<()> {
    let why = cluster.scli_json(["explain", "pool", "default"])?;
    ensure!(why["what_to_do"].to_string().contains("pg accept-stale"), "{why}");
    let loss = cluster.scli_json([
        "--dry-run",
        "pg",
        "accept-stale",
        "--pool",
        "default",
        "--all-unavailable",
    ])?;
    let groups = loss["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(!groups.is_empty() && loss["volumes"] == serde_json::json!(["old"]), "{loss}");
    for g in groups {
        ensure!(g["good_sds"] == serde_json::json!(["sds2"]) && g["stale_sds"] == "sds1", "{g}");
        ensure!(g["in_sync_until"].is_string() && g["stale_epoch"].is_u64(), "{g}");
    }
    ensure!(loss["records_lost"].as_u64().unwrap_or(0) >= PAGES / 2, "{loss}");
    let out = cluster.scli(["pg", "accept-stale", "--all-unavailable"])?;
    ensure!(out.status == Some(1) && out.stderr.contains("--yes"), "{}", out.told());
    ensure!(cluster.status()?["health"] == "unavailable", "asking has changed something");
    Ok(())
}

/// A client that is away may still reach the old server: the decision waits for it and says so.
fn decide(cluster: &Cluster) -> Res<()> {
    cluster.kill("sdc1")?;
    let task = cluster.scli_json(["--yes", "pg", "accept-stale", "--all-unavailable"])?;
    let id = task["task_id"].to_string();
    // Just after a change of configuration nobody can tell yet that nobody serves.
    std::thread::sleep(Duration::from_secs(1));
    cluster.wait_health("unavailable", Duration::from_secs(10))?;
    let task = cluster.scli_json(["task", "get", "--id", &id])?;
    ensure!(task["state"] == "running", "it went on without sdc1's word: {task}");
    ensure!(task["waiting_for"].to_string().contains("sdc sdc1"), "{task}");
    cluster.start("sdc1")?;
    let task = cluster.scli_json(["--wait", "20", "task", "get", "--id", &id])?;
    let done = |t: &Value| t["state"] == "done";
    ensure!(done(&task), "{task}");
    Ok(())
}
