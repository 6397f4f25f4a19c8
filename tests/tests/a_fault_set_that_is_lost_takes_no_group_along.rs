//! Servers in two fault sets, two racks say: no group has both copies in one, and when every server of one is killed at once,
//! under load, all groups go on being served by the other.

use quarry_tests::*;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Each set and its servers.
const SETS: [(&str, [&str; 2]); 2] = [("left", ["sds1", "sds2"]), ("right", ["sds3", "sds4"])];
const HEAL: Duration = Duration::from_secs(60);

#[test]
fn a_fault_set_that_is_lost_takes_no_group_along() -> Res<()> {
    let options = ClusterOptions { sds: 4, device_size: "512MiB", ..ClusterOptions::default() };
    with_cluster(options, |cluster| {
        ensure!(together(cluster)? > 0, "copies lie apart without fault sets: this shows nothing");
        for (set, servers) in SETS {
            cluster.scli_json(["fault-set", "create", "--name", set])?;
            for sds in servers {
                cluster.scli_json(["fault-set", "assign", "--sds", sds, "--fault-set", set])?;
            }
        }
        wait_until("the copies of each group to lie in two fault sets", HEAL, || {
            let n = together(cluster)?;
            ensure!(n == 0, "{n} groups have both copies in one set");
            Ok(Some(()))
        })?;
        cluster.wait_health("ok", HEAL)?;
        let uri = cluster.new_volume("racks", "128MiB", "sdc1")?;
        let history = History::new(10);
        let mut cases = Cases::new();
        // The right one leads everything after the left one was lost.
        for (seed, (set, servers)) in (1..).zip(SETS) {
            cases.case(&format!("all servers of the {set} set are killed"), || {
                let spec = LoadSpec::new(&uri).area(Area::spread(96, 12)).seed(seed);
                let load = Load::start(spec, &history)?;
                let served = lose(cluster, &load, &servers);
                let began = Instant::now();
                let back = servers
                    .iter()
                    .try_for_each(|s| cluster.start(s))
                    .and_then(|()| cluster.wait_health("ok", HEAL));
                let whole = began.elapsed();
                let on = load.run_requests(200, Duration::from_secs(5));
                let report = load.stop();
                eprintln!("  {report}");
                fault::leave_run(1, "kill -9 of all servers of a fault set", &report, whole)?;
                served.and(back).and(on)?;
                report.expect_no_error()?;
                report.expect_stall_below(short_or_full(4, 2))?;
                let n = together(cluster)?;
                ensure!(n == 0, "{n} groups have both copies in one set afterwards");
                Ok(())
            });
        }
        cases.case("every page reads as the history allows", || {
            history.final_read(&uri)?;
            check::verify(&history).expect_clean()
        });
        cases.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        cases.finish()
    })
}

/// Kills the servers at once; every group is led by one that is left.
fn lose(cluster: &Cluster, load: &Load, servers: &[&str]) -> Res<()> {
    load.run_requests(300, Duration::from_secs(20))?;
    let gone: Vec<u64> = servers.iter().map(|s| Ok(cluster.member(s)?.id)).collect::<Res<_>>()?;
    servers.iter().try_for_each(|s| cluster.signal(s, Signal::KILL))?;
    wait_until("every group to be served by the other set", Duration::from_secs(10), || {
        for row in groups(cluster)? {
            let left = members(&row)
                .is_some_and(|m| m.len() == 1 && m.is_disjoint(&gone.iter().copied().collect()));
            ensure!(row["active"] == true && left, "{row}");
        }
        Ok(Some(()))
    })?;
    let status = cluster.status()?;
    ensure!(status["health"] == "degraded", "{status}");
    load.run_for(short_or_full(1, 10))
}

fn groups(cluster: &Cluster) -> Res<Vec<Value>> {
    let rows = cluster.scli_json(["pg", "list"])?;
    let Some(rows) = rows.as_array().filter(|r| !r.is_empty()) else { fail!("no groups: {rows}") };
    Ok(rows.clone())
}

/// The servers that have a copy of a group that counts; `None` when the row does not say.
fn members(row: &Value) -> Option<BTreeSet<u64>> {
    row["in_sync"].as_array()?.iter().map(|m| m["sds"].as_u64()).collect()
}

/// Groups whose copies are not in two sets: fewer than two servers, or both of one set.
fn together(cluster: &Cluster) -> Res<usize> {
    let mut sets = Vec::new();
    for (_, servers) in SETS {
        let ids = servers.iter().map(|s| Ok(cluster.member(s)?.id));
        sets.push(ids.collect::<Res<BTreeSet<u64>>>()?);
    }
    let apart = |row: &Value| {
        members(row)
            .is_some_and(|m| m.len() == 2 && sets.iter().all(|s| m.intersection(s).count() == 1))
    };
    Ok(groups(cluster)?.iter().filter(|row| !apart(row)).count())
}
