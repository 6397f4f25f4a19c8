//! Kills, pauses and clean stops of all kinds of daemons, at random and overlapping, for a while; then everything is left alone and
//! must be whole again by itself. Row 31 of the fault table.

use quarry_tests::*;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// How long a request may wait while several servers are away at once.
const BOUND: Duration = Duration::from_secs(30);

#[test]
#[ignore = "row 31: takes its turn"]
fn after_many_faults_all_redundancy_returns() -> Res<()> {
    with_cluster(ClusterOptions { sds: 4, ..ClusterOptions::default() }, |cluster| {
        let uri = cluster.new_volume("many", "128MiB", "sdc1")?;
        let mut f = Fault::new(cluster, 31, "many faults at random, then peace", BOUND);
        for round in 0..short_or_full(1, 4).as_secs() {
            let spec = LoadSpec::new(&uri).area(Area::spread(64, 8)).seed(310 + round);
            f.round(spec, |_| storm(cluster, round))?;
        }
        f.finish(&[&uri])
    })
}

fn storm(cluster: &Cluster, seed: u64) -> Res<()> {
    let names = ["sds1", "sds2", "sds3", "sds4", "mdm1"];
    let mut rng = rng::Rng::new(seed);
    let end = Instant::now() + short_or_full(8, 25);
    while Instant::now() < end {
        let name = names[rng.below(5) as usize];
        let time = Duration::from_millis(100 + rng.below(2500));
        match rng.below(4) {
            0 | 1 => {
                cluster.kill(name)?;
                std::thread::sleep(time);
                cluster.start(name)?;
            }
            2 => {
                cluster.signal(name, Signal::STOP)?;
                std::thread::sleep(time);
                cluster.signal(name, Signal::CONT)?;
            }
            _ => {
                cluster.stop(name)?;
                cluster.start(name)?;
            }
        }
        std::thread::sleep(Duration::from_millis(rng.below(1500)));
    }
    Ok(())
}
