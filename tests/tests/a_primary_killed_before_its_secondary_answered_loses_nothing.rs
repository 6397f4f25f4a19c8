//! A primary is killed with -9 when its own log has writes that its secondary has not answered, again and again: both copies
//! are identical after healing, nothing acknowledged is lost, nothing unacknowledged comes back later.
//!
//! Each round: a checked load runs, one server (secondary of half of the groups) is paused, the load comes to a stop on it
//! while the other one goes on writing to its own device, and then that one is killed. Three ways to go on:
//! - the secondary wakes up, takes over without what it never got, and the killed one returns with a tail to drop;
//! - the killed one is started first and both meet with tails of different length;
//! - the secondary is killed too, and both start.

use quarry_tests::*;
use rustix::process::Signal;
use std::time::{Duration, Instant};

const HEAL: Duration = Duration::from_secs(60);
/// Rounds between two comparisons of all copies, with everything killed.
const BATCH: u64 = 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    TakeOver,
    Return,
    Both,
}

#[test]
fn a_primary_killed_before_its_secondary_answered_loses_nothing() -> Res<()> {
    let rounds = if full() { 200 } else { BATCH };
    let options = ClusterOptions { sds: 2, ..ClusterOptions::default() };
    with_cluster(options, |cluster| {
        let mut uri = cluster.new_volume("between", "64MiB", "sdc1")?;
        let history = History::new(21);
        let (mut caught, mut longest) = (0, Duration::ZERO);
        let began = Instant::now();
        for round in 0..rounds {
            let ways = [Way::TakeOver, Way::Return, Way::TakeOver, Way::Both];
            let way = ways[(round / 2 % 4) as usize];
            let (primary, secondary) =
                if round % 2 == 0 { ("sds1", "sds2") } else { ("sds2", "sds1") };
            let name = format!("round {round}, {primary} killed, {way:?}");
            let (tail, report) = one(cluster, &uri, &history, round, primary, secondary, way)
                .map_err(|e| e.within(&name))?;
            caught += u64::from(tail > 0);
            longest = longest.max(report.longest_request);
            if !full() {
                eprintln!("  {name}: {tail} bytes ahead; {report}");
            }
            report.expect_no_error().map_err(|e| e.within(&name))?;
            if (round + 1) % BATCH == 0 {
                history.final_read(&uri)?;
                let seen = cluster.expect_identical_replicas().map_err(|e| e.within(&name))?;
                check::verify(&history).expect_clean().map_err(|e| e.within(&name))?;
                eprintln!("  after {} rounds: {seen}", round + 1);
                if round + 1 < rounds {
                    cluster.up_again()?;
                    uri = cluster.map("between", "sdc1")?;
                }
            }
        }
        eprintln!(
            "  {rounds} rounds in {:.0} s, in {caught} the primary was ahead when it died, longest request {longest:.1?}",
            began.elapsed().as_secs_f64()
        );
        ensure!(
            caught * 10 >= rounds * 8,
            "the primary was ahead in {caught} of {rounds} rounds only"
        );
        Ok(())
    })
}

/// One round. Gives the bytes the primary wrote to its device while its secondary was paused, and what the load saw.
fn one(
    cluster: &Cluster,
    uri: &Uri,
    history: &std::sync::Arc<History>,
    round: u64,
    primary: &str,
    secondary: &str,
    way: Way,
) -> Res<(u64, LoadReport)> {
    let mut spec = LoadSpec::new(uri).area(Area::spread(48, 4)).width(2, 16).seed(round);
    spec.most_pages = 4;
    spec.most_per_second = 2000;
    let load = Load::start(spec, history)?;
    load.run_requests(50, Duration::from_secs(20))?;
    let url = cluster.member(primary)?.metrics;
    cluster.signal(secondary, Signal::STOP)?;
    let before = written(&url)?;
    stuck(&load)?;
    let tail = written(&url)?.saturating_sub(before);
    cluster.signal(primary, Signal::KILL)?;
    match way {
        Way::TakeOver => {
            cluster.signal(secondary, Signal::CONT)?;
            // In every second of these the other one takes over before the killed one is back.
            std::thread::sleep(Duration::from_millis(round % 4 / 2 * 700));
        }
        Way::Return => {}
        Way::Both => cluster.signal(secondary, Signal::KILL)?,
    }
    cluster.start(primary)?;
    match way {
        Way::TakeOver => {}
        Way::Return => cluster.signal(secondary, Signal::CONT)?,
        Way::Both => cluster.start(secondary)?,
    }
    let began = Instant::now();
    cluster.wait_health("ok", HEAL)?;
    let whole = began.elapsed();
    load.run_requests(50, Duration::from_secs(20))?;
    let report = load.stop();
    fault::leave_run(1, "kill -9 of a primary ahead of its secondary", &report, whole)?;
    Ok((tail, report))
}

/// Waits until nothing is answered any more, or a quarter of a second: the pause must not be taken for a failure.
fn stuck(load: &Load) -> Res<()> {
    let end = Instant::now() + Duration::from_millis(250);
    let (mut seen, mut since) = (load.completed(), Instant::now());
    while Instant::now() < end && since.elapsed() < Duration::from_millis(40) {
        std::thread::sleep(Duration::from_millis(5));
        if load.completed() != seen {
            (seen, since) = (load.completed(), Instant::now());
        }
    }
    Ok(())
}

/// Bytes a server has written to its devices.
fn written(metrics: &str) -> Res<u64> {
    Ok(http::metric(metrics, "quarry_device_bytes_total", "op=\"write\"")? as u64)
}
