//! Disks with a volatile write cache lose what was not flushed, together with their server's process: one server, then all at
//! once, then all with caches that had written some of it early. Rows 5 to 7 of the fault table, for `ack = durable`.

use quarry_tests::*;
use serde_json::json;
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
    for (rows, cache) in [
        ("rows 5 and 6: all of the cache is lost", None),
        ("row 7: a part was written early", Some(1 << 20)),
    ] {
        cases.case(rows, || on_disks(cache));
    }
    cases.finish()
}

fn on_disks(cache: Option<u64>) -> Res<()> {
    let mut disks = (0..3).map(|_| Disk::volatile(SIZE, cache)).collect::<Res<Vec<Disk>>>()?;
    let special = json!({
        "sds1": { "devices": [disks[0].path()] },
        "sds2": { "devices": [disks[1].path()] },
        "sds3": { "devices": [disks[2].path()] },
    });
    let options = ClusterOptions { device_size: "512MiB", ..ClusterOptions::default() };
    with_members(options, special, |cluster| {
        let uri = cluster.new_volume("power", "128MiB", "sdc1")?;
        let spec = |seed| {
            let mut spec = LoadSpec::new(&uri).area(Area::spread(64, 8)).seed(seed);
            spec.most_per_second = 3000;
            spec
        };
        let row = if cache.is_some() { 7 } else { 5 };
        let mut one = Fault::new(cluster, row, "power loss of one server", Duration::from_secs(4));
        for round in 0..short_or_full(1, 3).as_secs() {
            let n = round as usize % 3;
            let sds = format!("sds{}", n + 1);
            one.round(spec(50 + round), |load| {
                cluster.kill(&sds)?;
                disks[n].cut_power()?;
                load.run_for(Duration::from_secs(2))?;
                disks[n].power_on()?;
                cluster.start(&sds)
            })?;
        }
        one.check(&[&uri])?;
        let row = if cache.is_some() { 7 } else { 6 };
        let mut all =
            Fault::new(cluster, row, "power loss of all servers at once", Duration::from_secs(30));
        for round in 0..short_or_full(1, 5).as_secs() {
            all.round(spec(60 + round), |load| {
                for sds in ["sds1", "sds2", "sds3"] {
                    cluster.signal(sds, rustix::process::Signal::KILL)?;
                }
                for d in &mut disks {
                    d.cut_power()?;
                }
                for (n, d) in disks.iter_mut().enumerate() {
                    d.power_on()?;
                    cluster.start(&format!("sds{}", n + 1))?;
                }
                load.run_requests(200, Duration::from_secs(30))
            })?;
        }
        all.finish(&[&uri])
    })
}
