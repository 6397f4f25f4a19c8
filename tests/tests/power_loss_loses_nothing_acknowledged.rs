//! Disks with a volatile write cache lose what was not flushed, together with their server's process: one server, then all at
//! once, then with caches that are flushed at random moments in between. Rows 5 to 7 of the fault table, for `ack = durable`.

use quarry_tests::*;
use rustix::process::Signal;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

const SIZE: u64 = 512 << 20;

#[test]
#[ignore = "rows 5 and 6: takes its turn"]
fn power_loss_loses_nothing_acknowledged() -> Res<()> {
    on_disks("power_loss_loses_nothing_acknowledged", &[5, 6], false)
}

#[test]
#[ignore = "row 7: takes its turn"]
fn power_loss_in_the_middle_of_a_flush_loses_nothing_acknowledged() -> Res<()> {
    on_disks("power_loss_in_the_middle_of_a_flush_loses_nothing_acknowledged", &[7, 7], true)
}

/// One server loses power, then all; `torn`: the caches are flushed at random moments too, so that what was lost begins in the
/// middle of something.
fn on_disks(name: &str, rows: &[u32; 2], torn: bool) -> Res<()> {
    if let Some(why) = Disk::unavailable() {
        skip(name, &why);
        return Ok(());
    }
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
    for (round, disk) in disks.iter_mut().enumerate().take(short_or_full(1, 3).as_secs() as usize) {
        let sds = format!("sds{}", round + 1);
        one.round(spec(50 + round as u64), |load| {
            cluster.kill(&sds)?;
            disk.cut_power()?;
            load.run_for(short_or_full(1, 2))?;
            disk.power_on()?;
            cluster.start(&sds)
        })?;
    }
    one.check(&[&uri])?;
    let bound = Duration::from_secs(30);
    let mut all = Fault::new(cluster, rows[1], "power loss of all servers at once", bound);
    for round in 0..short_or_full(2, 5).as_secs() {
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
