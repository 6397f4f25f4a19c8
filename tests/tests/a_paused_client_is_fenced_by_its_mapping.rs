//! A client daemon is paused with writes under way, its volume is taken from it and given to another client, and then it
//! wakes up: nothing it sends changes the volume any more. Row 9 of the fault table.

use nbd::consts::*;
use quarry_base::PAGE;
use quarry_tests::*;
use rustix::process::Signal;
use std::time::Duration;

/// Pages the two clients write.
const PAGES: u64 = 64;

#[test]
#[ignore = "row 9: takes its turn"]
fn a_paused_client_is_fenced_by_its_mapping() -> Res<()> {
    let options = ClusterOptions { sdc: 2, ..ClusterOptions::default() };
    with_cluster(options, |cluster| {
        cluster.new_volume("moved", "64MiB", "sdc1")?;
        let mut f = Fault::new(
            cluster,
            9,
            "a paused client wakes after its volume was given away",
            Duration::from_secs(60),
        );
        // Another volume is under the checked load meanwhile, through the client that stays.
        let other = cluster.new_volume("other", "64MiB", "sdc2")?;
        f.round(LoadSpec::new(&other).area(Area::spread(32, 8)), |_| {
            for round in 0..short_or_full(2, 5).as_secs() as u8 {
                hand_over(cluster, round)?;
            }
            Ok(())
        })?;
        f.finish(&[&other])
    })
}

fn hand_over(cluster: &Cluster, round: u8) -> Res<()> {
    let old = cluster.map("moved", "sdc1")?;
    // Many writes are under way when it is paused.
    let load_history = History::new(900 + u64::from(round));
    let mut spec = LoadSpec::new(&old).area(Area::hot(PAGES)).mix(Mix::READ_WRITE).reconnecting();
    spec.patience = Duration::from_millis(200);
    let load = Load::start(spec, &load_history)?;
    load.run_requests(200, Duration::from_secs(20))?;
    cluster.signal("sdc1", Signal::STOP)?;
    let taken = (|| -> Res<nbd::Connection> {
        cluster.scli_json(["volume", "unmap", "--name", "moved", "--sdc", "sdc1"])?;
        let new = cluster.map("moved", "sdc2")?;
        let mut c = nbd::Connection::open(&new)?;
        let fill = vec![200 + round; PAGE];
        for page in 0..PAGES {
            c.write_at(page * PAGE as u64, &fill)?;
        }
        Ok(c)
    })();
    cluster.signal("sdc1", Signal::CONT)?;
    let mut c = taken?;
    std::thread::sleep(Duration::from_secs(2));
    // It may end connections or refuse; it may not write.
    drop(load.stop());
    let all = c.read_at(0, PAGES as usize * PAGE)?;
    ensure!(all.iter().all(|b| *b == 200 + round), "the old client's writes came through");
    let reply = c.call(CMD_WRITE, 0, 0, PAGE as u32, &vec![1; PAGE])?;
    ensure!(reply.error == 0, "the new client's write ended with {}", reply.error);
    c.disconnect()?;
    cluster.scli_json(["volume", "unmap", "--name", "moved", "--sdc", "sdc2"]).map(drop)
}
