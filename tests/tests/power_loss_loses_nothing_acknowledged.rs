//! Disks with a volatile write cache lose what was not flushed, together with their server's process: one server, then all at
//! once, then with caches that are flushed at random moments in between. Rows 5 to 7 of the fault table, for `ack = durable`.

use quarry_tests::*;
use rustix::process::Signal;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

const SIZE: u64 = 512 << 20;

#[test]
fn power_loss_loses_nothing_acknowledged() -> Res<()> {
    let name = "power_loss_loses_nothing_acknowledged";
    if !full() {
        return Ok(());
    }
    if let Some(why) = Disk::unavailable() {
        skip(name, &why);
        return Ok(());
    }
    let mut cases = Cases::new();
    cases.case("rows 5 and 6: all that was not flushed is lost", || on_disks(&[5, 6], false));
    cases.case("row 7: a part of it was written before", || on_disks(&[7, 7], true));
    cases.finish()
}

/// One server loses power, then all; `torn`: the caches are flushed at random moments too, so that what was lost begins in the
/// middle of something.
fn on_disks(rows: &[u32; 2], torn: bool) -> Res<()> {
    let mut disks = (0..3).map(|_| Disk::volatile(SIZE)).collect::<Res<Vec<Disk>>>()?;
    let paths: Vec<String> = disks.iter().map(Disk::path).collect();
    let special = json!({
        "sds1": { "devices": [paths[0]] },
        "sds2": { "devices": [paths[1]] },
        "sds3": { "devices": [paths[2]] },
    });
    let options = ClusterOptions { device_size: "512MiB", ..ClusterOptions::default() };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for path in paths.iter().filter(|_| torn) {
            scope.spawn(|| flush_at_random(path, &over));
        }
        let result = with_members(options, special, |c| losses(c, rows, &mut disks));
        over.store(true, Relaxed);
        result
    })
}

/// Syncs a disk every few milliseconds while there is power.
fn flush_at_random(path: &str, over: &AtomicBool) {
    let mut rng = rng::Rng::new(path.len() as u64);
    while !over.load(Relaxed) {
        let synced = std::fs::File::open(path).and_then(|f| f.sync_data());
        let pause = if synced.is_ok() { rng.below(8000) } else { 50_000 };
        std::thread::sleep(Duration::from_micros(pause));
    }
}

fn losses(cluster: &Cluster, rows: &[u32; 2], disks: &mut [Disk]) -> Res<()> {
    let uri = cluster.new_volume("power", "128MiB", "sdc1")?;
    let spec = |seed| {
        let mut spec = LoadSpec::new(&uri).area(Area::spread(64, 8)).seed(seed);
        spec.most_per_second = 3000;
        spec
    };
    let mut one = Fault::new(cluster, rows[0], "power loss of one server", Duration::from_secs(4));
    for (round, disk) in disks.iter_mut().enumerate() {
        let sds = format!("sds{}", round + 1);
        one.round(spec(50 + round as u64), |load| {
            cluster.kill(&sds)?;
            disk.cut_power()?;
            load.run_for(Duration::from_secs(2))?;
            disk.power_on()?;
            cluster.start(&sds)
        })?;
    }
    one.check(&[&uri])?;
    let bound = Duration::from_secs(30);
    let mut all = Fault::new(cluster, rows[1], "power loss of all servers at once", bound);
    for round in 0..5 {
        all.round(spec(60 + round), |load| {
            for sds in ["sds1", "sds2", "sds3"] {
                cluster.signal(sds, Signal::KILL)?;
            }
            for d in disks.iter_mut() {
                d.cut_power()?;
            }
            for (n, d) in disks.iter_mut().enumerate() {
                d.power_on()?;
                cluster.start(&format!("sds{}", n + 1))?;
            }
            load.run_requests(200, bound)
        })?;
    }
    all.finish(&[&uri])
}
