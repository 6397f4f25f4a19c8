//! An SDS (primary of a third of all placement groups) is paused and goes on later: I/O continues meanwhile, and nothing
//! that it still believes is ever read. Two SDCs watch.

use quarry_tests::*;
use rustix::process::Signal;
use std::time::Duration;

#[test]
fn sigstop_of_a_primary_is_survived_without_stale_reads() -> Res<()> {
    let options = ClusterOptions { sdc: 2, ..ClusterOptions::default() };
    with_cluster(options, |cluster| {
        let first = cluster.new_volume("pause", "256MiB", "sdc1")?;
        let second = cluster.map("pause", "sdc2")?;
        let history = History::new(4);
        let mut cases = Cases::new();
        for (pause, sds) in [(short_or_full(6, 30), "sds1"), (Duration::from_millis(1200), "sds2")]
        {
            cases.case(&format!("{sds} is paused for {pause:?}"), || {
                let spec = LoadSpec::new(&first).also(&second).area(Area::spread(64, 8));
                let load = Load::start(spec, &history)?;
                load.run_requests(500, Duration::from_secs(20))?;
                cluster.signal(sds, Signal::STOP)?;
                let during = load.run_for(pause);
                cluster.signal(sds, Signal::CONT)?;
                during?;
                load.run_for(short_or_full(2, 10))?;
                let report = load.stop();
                eprintln!("  {sds}: {report}");
                report.expect_no_error()?;
                report.expect_stall_below(Duration::from_secs(3))?;
                let began = std::time::Instant::now();
                cluster.wait_health("ok", Duration::from_secs(60))?;
                fault::leave_run(8, "SIGSTOP of a primary", &report, began.elapsed())
            });
        }
        cases.case("every page reads as the history allows, from both", || {
            history.final_read(&first)?;
            history.final_read(&second)?;
            check::verify(&history).expect_clean()
        });
        cases.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        cases.finish()
    })
}
