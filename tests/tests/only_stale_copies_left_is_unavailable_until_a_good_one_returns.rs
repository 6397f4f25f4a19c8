//! Of two servers one dies, the other goes on alone and dies too, and the first one returns: what it has is old. Nothing is
//! read from it, the state says so, and I/O goes on when the newer one is back. Row 25 of the fault table.

use quarry_tests::*;
use std::time::Duration;

#[test]
fn only_stale_copies_left_is_unavailable_until_a_good_one_returns() -> Res<()> {
    let options = ClusterOptions { sds: 2, ..ClusterOptions::default() };
    with_cluster(options, |cluster| {
        let uri = cluster.new_volume("stale", "64MiB", "sdc1")?;
        // What waits here waits for the good server: as long as the test lets it.
        let bound = short_or_full(15, 45);
        let mut f = Fault::new(cluster, 25, "only an older copy is left", bound);
        for (old, new) in [("sds1", "sds2"), ("sds2", "sds1")] {
            f.round(LoadSpec::new(&uri).area(Area::spread(48, 8)), |load| {
                cluster.kill(old)?;
                cluster.wait_health("degraded", Duration::from_secs(10))?;
                load.run_for(Duration::from_secs(1))?;
                cluster.kill(new)?;
                cluster.start(old)?;
                refuses(cluster, load, old, new)?;
                cluster.start(new)?;
                load.run_requests(100, bound)
            })?;
            if !full() {
                break;
            }
        }
        f.finish(&[&uri])
    })
}

/// With only the old copy: the state is "unavailable", names a reason, and no request is answered.
fn refuses(cluster: &Cluster, load: &Load, old: &str, new: &str) -> Res<()> {
    cluster.wait_health("unavailable", Duration::from_secs(10))?;
    let before = load.completed();
    std::thread::sleep(short_or_full(3, 15));
    ensure!(load.completed() == before, "{old} served though only {new} has everything");
    let status = cluster.status()?;
    ensure!(status["health"] == "unavailable", "{status}");
    let reasons = status["reasons"].to_string();
    ensure!(reasons.contains(new), "no reason names {new}: {status}");
    // Nobody is told that the server with all that is left may be stopped.
    let out = cluster.scli(["node", "can-stop", "--name", old])?;
    let no = out.status == Some(20) && out.told().contains("serve nothing already");
    ensure!(no, "{old}: {}", out.told());
    Ok(())
}
