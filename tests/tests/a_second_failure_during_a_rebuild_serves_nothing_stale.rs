//! A server returns and is being brought up to date when the next thing happens: it is paused in the middle, the server that
//! it learns from is killed, or the very blocks being copied are written and trimmed. Rows 23 and 24 of the fault table.

use quarry_tests::*;
use rustix::process::Signal;
use std::time::Duration;

const MIB: usize = 1 << 20;
/// MiB written while the server is away, so that its sync takes a moment.
const MISSED: u64 = 96;
/// Two servers are away at once in some rounds: I/O waits until one is back.
const BOUND: Duration = Duration::from_secs(20);

#[test]
fn a_second_failure_during_a_rebuild_serves_nothing_stale() -> Res<()> {
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("again", "256MiB", "sdc1")?;
        let mut cases = Cases::new();
        cases.case("row 23: the target pauses, the source dies", || second_failure(cluster, &uri));
        cases.case("row 24: writes and trims race the copies", || racing(cluster, &uri));
        cases.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        cases.finish()
    })
}

/// Kills a server, writes much, starts it: a sync is under way when this returns.
fn syncing(cluster: &Cluster, uri: &Uri, sds: &str, fill: u8) -> Res<()> {
    cluster.kill(sds)?;
    cluster.wait_health("degraded", Duration::from_secs(10))?;
    let mut c = nbd::Connection::open(uri)?;
    let data = vec![fill; MIB];
    for n in 0..MISSED {
        c.write_at((128 + n) * MIB as u64, &data)?;
    }
    c.disconnect()?;
    cluster.start(sds)
}

fn second_failure(cluster: &Cluster, uri: &Uri) -> Res<()> {
    let mut f = Fault::new(cluster, 23, "a second failure during a rebuild", BOUND);
    for round in 0..short_or_full(1, 4).as_secs() {
        let spec = |seed| LoadSpec::new(uri).area(Area::spread(64, 8)).seed(seed);
        f.round(spec(230 + round), |load| {
            syncing(cluster, uri, "sds1", 1 + round as u8)?;
            for n in 0..4 {
                cluster.signal("sds1", Signal::STOP)?;
                std::thread::sleep(Duration::from_millis(if n == 3 { 1500 } else { 40 }));
                cluster.signal("sds1", Signal::CONT)?;
                std::thread::sleep(Duration::from_millis(30));
            }
            load.run_for(Duration::from_secs(1))
        })?;
        f.round(spec(330 + round), |load| {
            syncing(cluster, uri, "sds2", 101 + round as u8)?;
            std::thread::sleep(Duration::from_millis(50 + 60 * round));
            cluster.signal("sds3", Signal::KILL)?;
            std::thread::sleep(short_or_full(1, 3));
            cluster.start("sds3")?;
            load.run_requests(100, BOUND)
        })?;
    }
    f.check(&[uri])
}

fn racing(cluster: &Cluster, uri: &Uri) -> Res<()> {
    let mut f = Fault::new(
        cluster,
        24,
        "writes and trims of the blocks being copied",
        Duration::from_secs(4),
    );
    let mix = Mix { read: 30, write: 48, trim: 10, zero: 10, flush: 2 };
    for round in 0..short_or_full(1, 6).as_secs() {
        let spec = LoadSpec::new(uri).area(Area::spread(12, 64)).mix(mix).seed(240 + round);
        let sds = ["sds3", "sds1", "sds2"][round as usize % 3];
        f.round(spec, |load| {
            cluster.kill(sds)?;
            load.run_for(Duration::from_secs(2))?;
            cluster.start(sds)?;
            load.run_for(short_or_full(1, 4))
        })?;
    }
    f.check(&[uri])
}
