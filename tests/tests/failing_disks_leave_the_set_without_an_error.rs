//! One server's disk begins to fail under load: writes, reads or syncs end with EIO, it becomes slow, or it hangs. Clients see no
//! error; after the disk is well again and its server was restarted, all copies are back. Rows 20 and 21 of the fault table.

use disk::Fails;
use quarry_tests::*;
use serde_json::json;
use std::time::{Duration, Instant};

const SIZE: u64 = 512 << 20;
const BOUND: Duration = Duration::from_secs(5);
/// A slow disk is evicted by progress, which takes longer to judge than a dead one.
const SLOW_BOUND: Duration = Duration::from_secs(10);

/// At most 3,000 requests a second.
fn spec(uri: &Uri, seed: u64) -> LoadSpec {
    let mut spec = LoadSpec::new(uri).area(Area::spread(64, 8)).seed(seed);
    spec.most_per_second = 3000;
    spec
}

#[test]
fn failing_disks_leave_the_set_without_an_error() -> Res<()> {
    let name = "failing_disks_leave_the_set_without_an_error";
    if let Some(why) = Disk::unavailable() {
        skip(name, &why);
        return Ok(());
    }
    let (disk, syncs) = (Disk::failing(SIZE)?, Disk::failing_syncs(SIZE)?);
    let special =
        json!({ "sds1": { "devices": [disk.path()] }, "sds2": { "devices": [syncs.path()] } });
    let options = ClusterOptions { device_size: "512MiB", ..ClusterOptions::default() };
    with_members(options, special, |cluster| {
        let uri = cluster.new_volume("eio", "128MiB", "sdc1")?;
        let mut cases = Cases::new();
        let mut f = Fault::new(cluster, 20, "EIO of writes, syncs or reads", BOUND);
        cases.case("row 20: writes end with EIO", || {
            f.round(spec(&uri, 20), |load| fails(cluster, load, "sds1", &disk, Fails::Writes))
                .map(drop)
        });
        cases.case("row 20: syncs end with EIO", || {
            f.round(spec(&uri, 120), |load| fails(cluster, load, "sds2", &syncs, Fails::Syncs))
                .map(drop)
        });
        cases.case("row 20: reads end with EIO", || {
            let metrics = cluster.member("sds1")?.metrics;
            let repairs = || http::metric(&metrics, "quarry_device_repairs_total", "");
            let mut mended = 0.0;
            let report = f.round(spec(&uri, 220), |load| {
                let before = repairs()?;
                // What cannot be read comes from the other copy; nobody waits for the disk, and one that goes on
                // failing leaves the set.
                disk.fail(Fails::Reads, true)?;
                let during = gone(cluster, load);
                mended = repairs()? - before;
                disk.fail(Fails::Reads, false)?;
                cluster.kill("sds1")?;
                cluster.start("sds1")?;
                during
            })?;
            ensure!(mended > 0.0, "no read met the failing disk");
            // Shorter with time enough to tell the failing disk from the kill at its end.
            report.expect_stall_below(if full() { Duration::from_secs(2) } else { BOUND })
        });
        cases.case("row 20: every page reads as the history allows", || f.check(&[&uri]));
        cases.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        cases.finish()
    })
}

#[test]
#[ignore = "row 21: takes its turn"]
fn a_slow_or_hanging_disk_holds_nobody_up() -> Res<()> {
    if let Some(why) = Disk::unavailable() {
        skip("a_slow_or_hanging_disk_holds_nobody_up", &why);
        return Ok(());
    }
    let disk = Disk::failing(SIZE)?;
    let special = json!({ "sds1": { "devices": [disk.path()] } });
    let options = ClusterOptions { device_size: "512MiB", ..ClusterOptions::default() };
    with_members(options, special, |cluster| {
        let uri = cluster.new_volume("slow", "128MiB", "sdc1")?;
        let mut cases = Cases::new();
        let mut f = Fault::new(cluster, 21, "a disk that is slow, then hangs", SLOW_BOUND);
        cases.case("row 21: every operation takes 200 ms", || {
            f.round(spec(&uri, 21), |load| slow(cluster, load, &disk)).map(drop)
        });
        cases.case("row 21: the disk hangs", || {
            f.round(spec(&uri, 121), |load| hangs(cluster, load, &disk)).map(drop)
        });
        cases.case("row 21: every page reads as the history allows", || f.check(&[&uri]));
        cases.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        cases.finish()
    })
}

/// The disk fails for a while; then it is well again and its server starts anew, as after a replacement of the cable.
fn fails(cluster: &Cluster, load: &Load, sds: &str, disk: &Disk, what: Fails) -> Res<()> {
    disk.fail(what, true)?;
    let during = gone(cluster, load);
    disk.fail(what, false)?;
    cluster.kill(sds)?;
    cluster.start(sds)?;
    during
}

/// A server's disk has begun to fail: the load goes on, and the server is let go.
fn gone(cluster: &Cluster, load: &Load) -> Res<()> {
    load.run_for(short_or_full(2, 10))?;
    cluster.wait_health("degraded", Duration::from_secs(10))
}

fn slow(cluster: &Cluster, load: &Load, disk: &Disk) -> Res<()> {
    let end = Instant::now() + short_or_full(8, 20);
    while Instant::now() < end {
        disk.pause(true)?;
        std::thread::sleep(Duration::from_millis(200));
        disk.pause(false)?;
        std::thread::sleep(Duration::from_millis(5));
    }
    // Suspended by then, or serving on: the server is named either way.
    let told = cluster.scli_json(["explain", "volume", "slow"])?;
    eprintln!("  with a slow disk: {} {}", told["why"], told["timing"]);
    ensure!(told["why"].to_string().contains("sds sds1"), "it does not name the server: {told}");
    load.run_for(Duration::from_secs(2))
}

fn hangs(cluster: &Cluster, load: &Load, disk: &Disk) -> Res<()> {
    disk.pause(true)?;
    let during = load.run_for(short_or_full(8, 20));
    let state = cluster.status();
    disk.pause(false)?;
    eprintln!("  with a hung disk: {}", state?["reasons"]);
    during?;
    load.run_for(Duration::from_secs(3))
}
