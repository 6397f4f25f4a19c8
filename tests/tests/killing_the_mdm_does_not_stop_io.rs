//! Without any MDM I/O goes on; only joining and removing wait. An SDS restarted meanwhile waits for the MDM, and the I/O
//! that needs it waits too, without an error.

use quarry_tests::*;
use std::time::Duration;

#[test]
fn killing_the_mdm_does_not_stop_io() -> Res<()> {
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("mdm", "256MiB", "sdc1")?;
        let history = History::new(3);
        let mut cases = Cases::new();
        cases.case("I/O goes on without an MDM", || {
            let load = Load::start(LoadSpec::new(&uri).area(Area::spread(96, 12)), &history)?;
            load.run_requests(500, Duration::from_secs(20))?;
            cluster.kill("mdm1")?;
            // Longer than any lease or heartbeat time.
            load.run_for(short_or_full(6, 40))?;
            let out = cluster.scli(["status"])?;
            ensure!(
                out.status == Some(5),
                "without an MDM status must exit with 5: {}",
                out.told()
            );
            // A new client may come at any time.
            nbd::Connection::open(&uri)?.read_at(0, 4096)?;
            cluster.start("mdm1")?;
            load.run_for(short_or_full(2, 10))?;
            let report = load.stop();
            eprintln!("  {report}");
            report.expect_no_error()?;
            report.expect_stall_below(Duration::from_millis(1500))?;
            let began = std::time::Instant::now();
            cluster.wait_health("ok", Duration::from_secs(30))?;
            fault::leave_run(3, "kill -9 of the only MDM", &report, began.elapsed())
        });
        cases.case("an SDS restarted without an MDM waits and loses nothing", || {
            let load =
                Load::start(LoadSpec::new(&uri).area(Area::spread(96, 12)).seed(2), &history)?;
            load.run_requests(500, Duration::from_secs(20))?;
            cluster.kill("mdm1")?;
            cluster.kill("sds2")?;
            cluster.start("sds2")?;
            std::thread::sleep(short_or_full(2, 10));
            cluster.start("mdm1")?;
            cluster.wait_health("ok", Duration::from_secs(60))?;
            load.run_for(Duration::from_secs(1))?;
            let report = load.stop();
            eprintln!("  {report}");
            report.expect_no_error()
        });
        cases.case("every page reads as the history allows", || {
            history.final_read(&uri)?;
            check::verify(&history).expect_clean()
        });
        cases.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        cases.finish()
    })
}
