//! The web console of a real cluster in a headless Chromium: tests/console/console.py does what a person would, refused
//! requests included, and checks each step against the API.

use quarry_tests::cluster::root;
use quarry_tests::*;
use std::time::Duration;

#[test]
fn the_console_works_in_a_browser() -> Res<()> {
    let name = "the_console_works_in_a_browser";
    if let Some(why) = need_programs(&["python3", "chromium", "chromedriver"]) {
        skip(name, &why);
        return Ok(());
    }
    with_cluster(ClusterOptions::default(), |cluster| {
        let script = root().join("tests/console/console.py");
        let json = cluster.directory().join("cluster.json");
        let mut args = vec!["--cluster".to_string(), json.display().to_string()];
        if let Ok(dir) = std::env::var("QUARRY_SCREENSHOTS") {
            args.extend(["--screenshots".to_string(), dir]);
        }
        let out = Command::new(script).args(args).limit(Duration::from_secs(240)).run()?;
        println!("{}{}", out.stdout, out.stderr);
        ensure!(out.status == Some(0), "{}", out.told());
        ensure!(out.stdout.contains("console: every step held"), "{}", out.told());
        cluster.expect_all_running()
    })
}
