//! Bits flip in blocks of running data servers, primaries and others alike: nobody reads them, the scrub finds them,
//! the good copy of the other server replaces them, and afterwards both devices are clean.

use quarry_tests::*;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const PAGE: usize = 4096;
/// Pages flipped on each device.
const FLIPS: usize = 8;

/// Flips a bit in some pages of data that are nowhere else on a list; they join it.
fn rot(device: &str, reverse: bool, taken: &mut BTreeSet<Vec<u8>>) -> Res<()> {
    let all = std::fs::read(device)?;
    let f = File::options().write(true).open(device)?;
    // Behind superblocks, log (32 MiB) and table (1 MiB) lie the blocks.
    let first = (34 << 20) / PAGE;
    let mut pages: Vec<usize> = (first..all.len() / PAGE).collect();
    if reverse {
        pages.reverse();
    }
    let mut left = FLIPS;
    for p in pages {
        let page = &all[p * PAGE..(p + 1) * PAGE];
        if left > 0 && page.iter().any(|b| *b != 0) && taken.insert(page.to_vec()) {
            f.write_all_at(&[page[77] ^ 4], (p * PAGE + 77) as u64)?;
            left -= 1;
        }
    }
    ensure!(left == 0, "{device} has too few pages of data: {left} more are wanted");
    Ok(())
}

/// Sum of a metric over all its series.
fn metric(text: &str, name: &str) -> f64 {
    let lines = text.lines().filter(|l| l.starts_with(name) && !l.starts_with('#'));
    lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn sum(cluster: &Cluster, name: &str) -> Res<f64> {
    let mut all = 0.0;
    for m in cluster.of_role("sds")? {
        all += metric(&http::get(&m.metrics)?.body, name);
    }
    Ok(all)
}

#[test]
fn rot_on_live_devices_is_found_by_the_scrub_and_repaired() -> Res<()> {
    // The daemons take it from their environment.
    std::env::set_var("QUARRY_SCRUB_RATE", "256MiB");
    let options = ClusterOptions { sds: 2, device_size: "256MiB", ..ClusterOptions::default() };
    with_cluster(options, |cluster| {
        let uri = cluster.new_volume("rot", "256MiB", "sdc1")?;
        let history = History::new(9);
        let mut spec = LoadSpec::new(&uri).area(Area::spread(128, 16)).mix(Mix::READ_WRITE);
        // No whole blocks: those go to new places, and nobody looks at the old ones any more.
        spec.most_pages = 8;
        let load = Load::start(spec, &history)?;
        load.run_requests(4000, Duration::from_secs(20))?;
        load.stop().expect_no_error()?;
        // An idle log is written to its place.
        wait_until("everything to lie in blocks", Duration::from_secs(20), || {
            let used = sum(cluster, "quarry_device_log_used_bytes")?;
            Ok((used < 65536.0).then_some(()))
        })?;
        let mut taken = BTreeSet::new();
        for (n, m) in cluster.of_role("sds")?.iter().enumerate() {
            rot(m.devices.first().map_or("", String::as_str), n % 2 == 1, &mut taken)?;
        }
        // Two pages of one block are one repair.
        wait_until("the scrub to find them", Duration::from_secs(30), || {
            let found = sum(cluster, "quarry_scrub_bad_pages_total")?;
            Ok((found >= 2.0 * FLIPS as f64).then_some(()))
        })?;
        let before = sum(cluster, "quarry_scrub_passes_total")?;
        wait_until("two more passes", Duration::from_secs(30), || {
            Ok((sum(cluster, "quarry_scrub_passes_total")? >= before + 6.0).then_some(()))
        })?;
        ensure!(sum(cluster, "quarry_device_repairs_total")? > 0.0, "nothing was repaired");
        history.final_read(&uri)?;
        check::verify(&history).expect_clean()?;
        cluster.wait_health("ok", Duration::from_secs(30))?;
        cluster.down()?;
        for m in cluster.of_role("sds")? {
            let checked = Command::new(cluster::binary("sds-server")?)
                .args(["check", m.devices.first().map_or("", String::as_str)])
                .run()?;
            ensure!(checked.status == Some(0), "{}", checked.told());
        }
        Ok(())
    })
}
