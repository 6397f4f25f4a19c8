//! The power of every data server fails at once, under load, on disks that lose, keep or tear whatever was not flushed:
//! after the restart every acknowledged write is there (`ack = durable`), and the devices are clean.

use quarry_tests::volatile::{Sync, VolatileDisk};
use quarry_tests::*;
use std::path::Path;
use std::time::{Duration, Instant};

const NAME: &str = "power_loss_of_every_sds_loses_no_acknowledged_write";

/// A cluster whose data servers stand on such disks.
fn on_volatile_disks(cluster: &Cluster, sync: Sync) -> Res<Vec<VolatileDisk>> {
    cluster.down()?;
    let mut disks = Vec::new();
    for m in cluster.of_role("sds")? {
        for device in &m.devices {
            disks.push(VolatileDisk::over(Path::new(device), sync)?);
        }
    }
    cluster.up_again()?;
    Ok(disks)
}

/// Cuts the power of all disks and kills all data servers; then everything is there again.
fn power_cycle(cluster: &Cluster, disks: &[VolatileDisk], seed: u64) -> Res<usize> {
    let mut unflushed = 0;
    for (i, d) in disks.iter().enumerate() {
        unflushed += d.cut(seed * 16 + i as u64)?;
    }
    cluster.kill_everything()?;
    disks.iter().for_each(VolatileDisk::on);
    Ok(unflushed)
}

#[test]
fn power_loss_of_every_sds_loses_no_acknowledged_write() -> Res<()> {
    if let Some(why) = need_programs(&["nbdfuse", "fusermount3"]) {
        skip(NAME, &why);
        return Ok(());
    }
    let cuts = if full() { 50 } else { 3 };
    let options = ClusterOptions { sds: 2, device_size: "256MiB", ..ClusterOptions::default() };
    with_cluster(options, |cluster| {
        let disks = on_volatile_disks(cluster, Sync::Done)?;
        let mut uri = cluster.new_volume("p", "256MiB", "sdc1")?;
        let history = History::new(2);
        let mut unflushed = 0;
        for cut in 1..=cuts {
            let spec = LoadSpec::new(&uri).area(Area::spread(64, 12)).seed(cut);
            let load = Load::start(spec, &history)?;
            load.run_requests(500, Duration::from_secs(20))?;
            load.run_for(Duration::from_millis(500))?;
            let began = Instant::now();
            unflushed += power_cycle(cluster, &disks, cut)?;
            let mut report = load.stop();
            eprintln!("cut {cut}: {report}");
            report.expect_no_nbd_error()?;
            let mended = Instant::now();
            cluster.up_again().map_err(|e| e.within(format!("restart after cut {cut}")))?;
            uri = cluster.map("p", "sdc1")?;
            report.longest_gap = began.elapsed();
            cluster.wait_health("ok", Duration::from_secs(60))?;
            fault::leave_run(6, "power loss of all, 2 servers", &report, mended.elapsed())?;
            history.final_read(&uri)?;
            let verdict = check::verify(&history);
            verdict.expect_clean().map_err(|e| e.within(format!("after cut {cut}")))?;
        }
        ensure!(unflushed > 0, "no cut ever met an unflushed page: it shows nothing");
        ensure!(disks.iter().all(|d| d.flushes() > 0), "a disk was never flushed");
        cluster.expect_identical_replicas()?;
        for m in cluster.of_role("sds")? {
            let checked = Command::new(cluster::binary("sds-server")?)
                .args(["check", m.devices.first().map_or("", String::as_str)])
                .run()?;
            ensure!(checked.status == Some(0), "{}", checked.told());
        }
        drop(disks);
        Ok(())
    })
}

/// The check of the check: disks whose flushes do nothing must lose something.
#[test]
#[ignore = "the check of the check: takes its turn"]
fn power_loss_on_disks_that_ignore_flushes_is_noticed() -> Res<()> {
    if let Some(why) = need_programs(&["nbdfuse", "fusermount3"]) {
        skip("power_loss_on_disks_that_ignore_flushes_is_noticed", &why);
        return Ok(());
    }
    let options = ClusterOptions { sds: 2, device_size: "256MiB", ..ClusterOptions::default() };
    with_cluster(options, |cluster| {
        let disks = on_volatile_disks(cluster, Sync::Ignored)?;
        let mut uri = cluster.new_volume("p", "256MiB", "sdc1")?;
        let history = History::new(2);
        for cut in 1..=5 {
            let load = Load::start(LoadSpec::new(&uri).seed(cut), &history)?;
            load.run_requests(500, Duration::from_secs(20))?;
            power_cycle(cluster, &disks, cut)?;
            load.stop();
            // A store that says that its log is damaged has noticed too.
            if cluster.up_again().is_err() {
                return Ok(());
            }
            uri = cluster.map("p", "sdc1")?;
            history.final_read(&uri)?;
            if check::verify(&history).expect_clean().is_err() {
                return Ok(());
            }
        }
        fail!("five cuts of disks without flushes lost nothing")
    })
}
