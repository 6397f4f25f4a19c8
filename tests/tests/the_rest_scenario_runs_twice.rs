//! `scripts/scenario` on one cluster, twice: the whole life of a volume by REST alone, a server failed and recovered meanwhile.

use quarry_tests::cluster::root;
use quarry_tests::*;
use std::time::Duration;

#[test]
fn the_rest_scenario_runs_twice() -> Res<()> {
    with_cluster(ClusterOptions::default(), |cluster| {
        let size = if full() { "64MiB" } else { "16MiB" };
        for run in 1..=2 {
            let out = Command::new(root().join("scripts/scenario"))
                .args(["--api", &cluster.info("api")?, "--token", &cluster.info("token")?])
                .args(["--size", "256MiB", "--data", size])
                .limit(Duration::from_secs(300))
                .run()?;
            println!("{}{}", out.stdout, out.stderr);
            ensure!(out.status == Some(0), "run {run}: {}", out.told());
            ensure!(out.stdout.contains("every step held"), "run {run}: {}", out.told());
        }
        for list in ["/vol/list", "/pool/list", "/pd/list"] {
            let header = format!("Authorization: Bearer {}", cluster.info("token")?);
            let url = format!("{}{list}", cluster.info("api")?);
            let left = http::request("GET", &url, &[header], None)?.json()?;
            let own = usize::from(list != "/vol/list");
            ensure!(left.as_array().is_some_and(|a| a.len() == own), "left behind: {left}");
        }
        cluster.expect_all_running()
    })
}
