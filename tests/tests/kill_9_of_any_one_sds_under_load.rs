//! Each SDS in turn is killed with -9 under a checked load: no error, no stall over 2 s (3 s in the short form, which leaves room
//! for a busy machine), no violation, `degraded` while it is away, `ok` by itself after it is back.

use quarry_tests::*;
use std::time::Duration;

const HEAL: Duration = Duration::from_secs(60);

#[test]
fn kill_9_of_any_one_sds_under_load() -> Res<()> {
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("kill", "256MiB", "sdc1")?;
        let history = History::new(1);
        let mut cases = Cases::new();
        for (round, sds) in (1..).zip(cluster.of_role("sds")?) {
            cases.case(&format!("kill -9 {}", sds.name), || {
                let spec = LoadSpec::new(&uri).area(Area::spread(96, 12)).seed(round);
                let load = Load::start(spec, &history)?;
                let result = kill_and_heal(cluster, &load, &sds.name);
                let seen = load.stop();
                eprintln!("  {}: {seen}", sds.name);
                // The next round is to begin with all of them, whatever was wrong in this one.
                let began = std::time::Instant::now();
                let back = cluster.start(&sds.name).and_then(|()| cluster.wait_health("ok", HEAL));
                fault::leave_run(1, "kill -9 of one server", &seen, began.elapsed())?;
                result?;
                back?;
                seen.expect_no_error()?;
                seen.expect_stall_below(short_or_full(3, 2))
            });
        }
        cases.case("every page reads as the history allows", || {
            cluster.wait_health("ok", HEAL)?;
            history.final_read(&uri)?;
            check::verify(&history).expect_clean()
        });
        cases.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        cases.finish()
    })
}

fn kill_and_heal(cluster: &Cluster, load: &Load, sds: &str) -> Res<()> {
    load.run_requests(500, Duration::from_secs(20))?;
    cluster.kill(sds)?;
    cluster.wait_health("degraded", Duration::from_secs(10))?;
    let status = cluster.status()?;
    let reasons = status["reasons"].to_string();
    ensure!(reasons.contains(sds), "no reason names {sds}: {status}");
    load.run_for(short_or_full(3, 15))?;
    wait_until("bytes_degraded above 0", Duration::from_secs(5), || {
        let status = cluster.status()?;
        ensure!(status["bytes_degraded"].as_u64().is_some_and(|b| b > 0), "{status}");
        Ok(Some(()))
    })?;
    cluster.start(sds)?;
    cluster.wait_health("ok", HEAL)?;
    load.run_for(short_or_full(1, 5))
}
