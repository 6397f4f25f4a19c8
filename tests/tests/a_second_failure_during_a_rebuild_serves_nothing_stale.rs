//! A server returns and is being brought up to date when the next thing happens: it is paused in the middle, the server that
//! it learns from is killed, or the very blocks being copied are written and trimmed. Rows 23 and 24 of the fault table.

use quarry_tests::*;
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// MiB written while the server is away, so that its sync takes a moment.
const MISSED: u64 = 96;
/// Syncs begun until one is caught under way.
const TRIES: u32 = 4;
/// Two servers are away at once in some rounds: I/O waits until one is back.
const BOUND: Duration = Duration::from_secs(20);

#[test]
fn a_second_failure_during_a_rebuild_serves_nothing_stale() -> Res<()> {
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("again", "256MiB", "sdc1")?;
        let mut cases = Cases::new();
        cases.case("row 23: the target pauses, the source dies", || second_failure(cluster, &uri));
        cases.case("row 24: writes and trims race the copies", || racing(cluster, &uri));
        cases.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        cases.finish()
    })
}

/// Bytes of groups that wait for a copy of a server that runs: what is left of its sync.
fn left_to_sync(cluster: &Cluster, sds: &str) -> Res<u64> {
    let id = cluster.member(sds)?.id;
    let headers = [format!("Authorization: Bearer {}", cluster.info("token")?)];
    let url = format!("{}/pg/list", cluster.info("api")?);
    let rows = http::request("GET", &url, &headers, None)?.json()?;
    let waits = |row: &&Value| {
        row["syncing"].as_array().into_iter().flatten().any(|m| m["sds"].as_u64() == Some(id))
    };
    let rows = rows.as_array().into_iter().flatten().filter(waits);
    Ok(rows.filter_map(|row| row["bytes_degraded"].as_u64()).sum())
}

/// Kills a server and writes much: what it has to learn.
fn fall_behind(cluster: &Cluster, uri: &Uri, sds: &str, fill: u8) -> Res<()> {
    cluster.kill(sds)?;
    cluster.wait_health("degraded", Duration::from_secs(10))?;
    let mut c = nbd::Connection::open(uri)?;
    let data = vec![fill; MIB];
    for n in 0..MISSED {
        c.write_at((128 + n) * MIB as u64, &data)?;
    }
    c.disconnect()
}

/// Strikes `wait` after a sync of `sds` began, while there is something left of it: begins anew when it was over.
fn in_the_middle(
    cluster: &Cluster,
    uri: &Uri,
    (sds, fill): (&str, u8),
    wait: Duration,
    strike: impl Fn() -> Res<()>,
) -> Res<()> {
    for attempt in 1..=TRIES {
        let before = cluster.member(sds)?.pid;
        fall_behind(cluster, uri, sds, fill.wrapping_mul(attempt as u8))?;
        let struck = std::thread::scope(|scope| {
            // It has begun, and may have ended, before the script says that it runs.
            let started = scope.spawn(|| cluster.start(sds));
            let struck = strike_syncing(cluster, sds, before, wait / attempt, &strike);
            let started =
                started.join().map_err(|_| Failure::new("the starting thread panicked"))?;
            started.and(struck)
        })?;
        if struck {
            return Ok(());
        }
        cluster.wait_health("ok", fault::HEAL)?;
    }
    fail!("{TRIES} syncs of {sds} were over before anything could be broken")
}

/// Waits for a sync of a server that is no longer the process `before`, and strikes; whether there was anything left of it.
fn strike_syncing(
    cluster: &Cluster,
    sds: &str,
    before: i32,
    wait: Duration,
    strike: impl Fn() -> Res<()>,
) -> Res<bool> {
    let began = Instant::now();
    while cluster.member(sds)?.pid == before || left_to_sync(cluster, sds)? == 0 {
        if began.elapsed() > Duration::from_secs(10) {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(wait);
    let left = left_to_sync(cluster, sds)?;
    if left > 0 {
        eprintln!("  {left} bytes of {sds} are left to sync");
        strike()?;
    }
    Ok(left > 0)
}

fn second_failure(cluster: &Cluster, uri: &Uri) -> Res<()> {
    let mut f = Fault::new(cluster, 23, "a second failure during a rebuild", BOUND);
    for round in 0..short_or_full(1, 4).as_secs() {
        let spec = |seed| LoadSpec::new(uri).area(Area::spread(64, 8)).seed(seed);
        f.round(spec(230 + round), |load| {
            let target = ("sds1", 1 + round as u8);
            in_the_middle(cluster, uri, target, Duration::ZERO, || pause(cluster, "sds1"))?;
            load.run_for(Duration::from_secs(1))
        })?;
        f.round(spec(330 + round), |load| {
            let target = ("sds2", 101 + round as u8);
            let wait = Duration::from_millis(50 + 60 * round);
            in_the_middle(cluster, uri, target, wait, || cluster.signal("sds3", Signal::KILL))?;
            std::thread::sleep(short_or_full(1, 3));
            cluster.start("sds3")?;
            load.run_requests(100, BOUND)
        })?;
    }
    f.check(&[uri])
}

/// Pauses a server that is being brought up to date, three times briefly and once until it is given up.
fn pause(cluster: &Cluster, sds: &str) -> Res<()> {
    for n in 0..4 {
        cluster.signal(sds, Signal::STOP)?;
        let left = left_to_sync(cluster, sds);
        std::thread::sleep(Duration::from_millis(if n == 3 { 1500 } else { 40 }));
        cluster.signal(sds, Signal::CONT)?;
        // What stood still cannot have ended.
        ensure!(n > 0 || left? > 0, "the sync of {sds} was over when it was paused");
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

fn racing(cluster: &Cluster, uri: &Uri) -> Res<()> {
    let mut f = Fault::new(
        cluster,
        24,
        "writes and trims of the blocks being copied",
        Duration::from_secs(4),
    );
    let mix = Mix { read: 30, write: 48, trim: 10, zero: 10, flush: 2 };
    for round in 0..short_or_full(1, 6).as_secs() {
        let spec = LoadSpec::new(uri).area(Area::spread(12, 64)).mix(mix).seed(240 + round);
        let sds = ["sds3", "sds1", "sds2"][round as usize % 3];
        f.round(spec, |load| {
            cluster.kill(sds)?;
            load.run_for(Duration::from_secs(2))?;
            cluster.start(sds)?;
            load.run_for(short_or_full(1, 4))
        })?;
    }
    f.check(&[uri])
}
