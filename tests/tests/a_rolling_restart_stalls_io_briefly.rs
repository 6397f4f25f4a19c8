//! Every daemon but the client's own is restarted in good order, one after the other, again and again, under load: no error, no
//! long stall, and each step waits only for health `ok`. Row 30 of the fault table (one release: no skew of versions yet).

use quarry_tests::*;
use std::time::Duration;

#[test]
#[ignore = "row 30: takes its turn"]
fn a_rolling_restart_stalls_io_briefly() -> Res<()> {
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("rolling", "128MiB", "sdc1")?;
        let mut f = Fault::new(cluster, 30, "rolling restart", Duration::from_secs(2));
        for round in 0..short_or_full(1, 3).as_secs() {
            f.round(LoadSpec::new(&uri).area(Area::spread(64, 8)).seed(30 + round), |load| {
                for name in ["sds1", "sds2", "sds3", "mdm1"] {
                    cluster.stop(name)?;
                    cluster.start(name)?;
                    cluster.wait_health("ok", fault::HEAL)?;
                    load.run_for(Duration::from_millis(500))?;
                }
                Ok(())
            })?;
        }
        f.finish(&[&uri])
    })
}
