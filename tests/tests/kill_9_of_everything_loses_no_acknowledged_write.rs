//! All daemons are killed with -9 at once under load, several times: after the restart every acknowledged write is there,
//! and no unacknowledged one comes back after it was overwritten.

use quarry_tests::*;
use std::time::Duration;

#[test]
fn kill_9_of_everything_loses_no_acknowledged_write() -> Res<()> {
    let rounds = if full() { 12 } else { 3 };
    with_cluster(ClusterOptions::default(), |cluster| {
        let mut uri = cluster.new_volume("all", "256MiB", "sdc1")?;
        let history = History::new(2);
        for round in 1..=rounds {
            let spec = LoadSpec::new(&uri).area(Area::spread(96, 12)).seed(round);
            let load = Load::start(spec, &history)?;
            load.run_requests(1000, Duration::from_secs(20))?;
            load.run_for(short_or_full(1, 3))?;
            cluster.kill_everything()?;
            let report = load.stop();
            eprintln!("round {round}: {report}");
            report.expect_no_nbd_error()?;
            let began = std::time::Instant::now();
            cluster.up_again().map_err(|e| e.within(format!("restart of round {round}")))?;
            fault::leave_run(4, "kill -9 of everything at once", &report, began.elapsed())?;
            uri = cluster.map("all", "sdc1")?;
            history.final_read(&uri)?;
            let verdict = check::verify(&history);
            verdict.expect_clean().map_err(|e| e.within(format!("after round {round}")))?;
        }
        cluster.expect_identical_replicas().map(drop)
    })
}
