//! Two SDCs map the same volume and race on a few pages: together they are linearizable, also when one of them is killed with -9
//! in the middle and starts again.

use quarry_tests::*;
use std::time::Duration;

#[test]
fn two_sdcs_see_one_volume() -> Res<()> {
    let options = ClusterOptions { sdc: 2, ..ClusterOptions::default() };
    with_cluster(options, |cluster| {
        let first = cluster.new_volume("shared", "256MiB", "sdc1")?;
        let second = cluster.map("shared", "sdc2")?;
        let again = cluster.map("shared", "sdc2")?;
        ensure!(again == second, "map twice gives {second} and {again}");
        let history = History::new(5);
        let mut cases = Cases::new();
        cases.case("hot pages raced by both", || {
            let spec =
                LoadSpec::new(&first).also(&second).area(Area::spread(16, 4)).mix(Mix::READ_WRITE);
            let load = Load::start(spec, &history)?;
            load.run_for(short_or_full(4, 30))?;
            let report = load.stop();
            eprintln!("  {report}");
            report.expect_no_error()?;
            check::verify(&history).expect_clean()
        });
        cases.case("trims and zeroings among them", || {
            let spec = LoadSpec::new(&first).also(&second).area(Area::spread(64, 8)).seed(2);
            let load = Load::start(spec, &history)?;
            load.run_for(short_or_full(4, 30))?;
            let report = load.stop();
            eprintln!("  {report}");
            report.expect_no_error()
        });
        cases.case("one SDC is killed with -9 and starts again", || {
            let spec = LoadSpec::new(&first).also(&second).area(Area::spread(64, 8)).seed(3);
            let load = Load::start(spec.reconnecting(), &history)?;
            load.run_requests(500, Duration::from_secs(20))?;
            cluster.kill("sdc1")?;
            load.run_for(Duration::from_secs(2))?;
            cluster.start("sdc1")?;
            load.run_for(short_or_full(3, 10))?;
            let report = load.stop();
            eprintln!("  {report}");
            fault::leave_run(
                2,
                "kill -9 of a client daemon, another shares its volume",
                &report,
                Duration::ZERO,
            )?;
            ensure!(report.lost_connections >= 1, "killing sdc1 was not noticed: {report}");
            report.expect_no_nbd_error()?;
            nbd::Connection::open(&first)
                .map_err(|e| e.within("sdc1 after its restart"))?
                .disconnect()
        });
        cases.case("every page reads as the history allows, from both", || {
            history.final_read(&first)?;
            history.final_read(&second)?;
            check::verify(&history).expect_clean()
        });
        cases.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        cases.finish()
    })
}
