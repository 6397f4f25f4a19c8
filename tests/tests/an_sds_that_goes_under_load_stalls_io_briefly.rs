//! How long I/O waits when a storage server goes, in three ways: killed with -9 under a mixed load 32 deep, killed under a
//! fio verify, and ended in good order. No error in any of them.
//!
//! The promises are 2 s for a kill and 0.2 s for a clean hand-over; the long form holds them, the short one leaves room for a
//! busy machine. What was measured is printed.

use quarry_tests::*;
use std::time::{Duration, Instant};

/// Longest stall that passes after a kill.
fn kill_bound() -> Duration {
    short_or_full(3, 2)
}
/// The same for an end in good order.
fn term_bound() -> Duration {
    Duration::from_millis(if full() { 200 } else { 1000 })
}

const HEAL: Duration = Duration::from_secs(60);

#[test]
fn an_sds_that_goes_under_load_stalls_io_briefly() -> Res<()> {
    let files = Scratch::new()?;
    let rounds = if full() { 5 } else { 1 };
    // A server that comes back leads nothing for a while: the next one to go is another.
    let turns = [("sds1", "sds2"), ("sds3", "sds1"), ("sds2", "sds3")];
    let turns = if full() { &turns[..] } else { &turns[..1] };
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("stall", "256MiB", "sdc1")?;
        let history = History::new(22);
        let mut cases = Cases::new();
        let (mut kills, mut terms) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            for (ended, killed) in turns {
                cases.case(&format!("{ended} is ended with SIGTERM, 32 deep"), || {
                    let r = away(cluster, &uri, &history, round, ended, Away::Ended)?;
                    r.expect_stall_below(term_bound())?;
                    terms.push(r.longest_request.max(r.longest_gap));
                    Ok(())
                });
                cases.case(&format!("{killed} is killed with -9, 32 deep"), || {
                    let r = away(cluster, &uri, &history, round, killed, Away::Killed)?;
                    r.expect_stall_below(kill_bound())?;
                    kills.push(r.longest_request.max(r.longest_gap));
                    Ok(())
                });
            }
        }
        eprintln!("  stalls: kill -9 {kills:.2?}, SIGTERM {terms:.2?}");
        cases.case("sds3 is killed with -9 under fio verify", || fio_verify(cluster, &uri, &files));
        cases.case("every page reads as the history allows", || {
            history.final_read(&uri)?;
            check::verify(&history).expect_clean()
        });
        cases.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        cases.finish()
    })
}

/// How a server goes.
#[derive(Clone, Copy)]
enum Away {
    Killed,
    Ended,
}

/// A load 32 deep on one connection; the server goes and comes back; what the load saw.
fn away(
    cluster: &Cluster,
    uri: &Uri,
    history: &std::sync::Arc<History>,
    round: u64,
    sds: &str,
    how: Away,
) -> Res<LoadReport> {
    let spec = LoadSpec::new(uri).area(Area::spread(96, 12)).width(1, 32).seed(round + 1);
    let load = Load::start(spec, history)?;
    let result = load.run_requests(300, Duration::from_secs(20)).and_then(|()| {
        match how {
            Away::Killed => cluster.kill(sds)?,
            Away::Ended => cluster.stop(sds)?,
        }
        load.run_for(short_or_full(2, 5))
    });
    let back = cluster.start(sds);
    let began = Instant::now();
    let back = back.and_then(|()| cluster.wait_health("ok", HEAL));
    let whole = began.elapsed();
    let on = load.run_for(Duration::from_millis(300));
    let report = load.stop();
    eprintln!("  {sds}: {report}");
    result.and(back).and(on)?;
    report.expect_no_error()?;
    let what = match how {
        Away::Killed => "kill -9 of one server, 32 deep",
        Away::Ended => "SIGTERM of one server, 32 deep",
    };
    fault::leave_run(1, what, &report, whole)?;
    Ok(report)
}

/// fio writes and verifies above what the history uses; the kill comes in the middle of it.
fn fio_verify(cluster: &Cluster, uri: &Uri, files: &Scratch) -> Res<()> {
    if let Some(why) = need_programs(&["fio"]) {
        skip("sds3 is killed with -9 under fio verify", &why);
        return Ok(());
    }
    let log = files.file("lat");
    let seconds = short_or_full(6, 20).as_secs().to_string();
    let args = [
        "--name=verify",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_backlog=512",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--rate_iops=4000",
        "--offset=128M",
        "--size=96M",
        "--time_based=1",
        "--output-format=json",
    ];
    let fio = Command::new("fio")
        .args(args)
        .args([format!("--uri={uri}"), format!("--runtime={seconds}"), format!("--output={log}")])
        .args([format!("--aux-path={}", files.path().display())])
        .limit(Duration::from_secs(120));
    std::thread::scope(|scope| {
        let began = Instant::now();
        let run = scope.spawn(|| fio.ok());
        std::thread::sleep(Duration::from_secs(2));
        cluster.kill("sds3")?;
        std::thread::sleep(Duration::from_secs(2));
        cluster.start("sds3")?;
        let out = run.join().map_err(|_| Failure::new("the thread of fio panicked"))?;
        out?;
        ensure!(began.elapsed() > Duration::from_secs(4), "fio ended before the server was back");
        let text = std::fs::read_to_string(&log)?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        let job = &json["jobs"][0];
        ensure!(job["error"] == 0, "fio says error {}", job["error"]);
        let most = |kind: &str| job[kind]["lat_ns"]["max"].as_u64().unwrap_or(u64::MAX);
        let (write, read) = (most("write"), most("read"));
        let worst = Duration::from_nanos(write.max(read));
        eprintln!("  fio verify: longest request {worst:.2?}");
        let bound = kill_bound();
        ensure!(worst <= bound, "fio waited {worst:.2?}, {bound:.0?} is allowed");
        cluster.wait_health("ok", HEAL)
    })
}
