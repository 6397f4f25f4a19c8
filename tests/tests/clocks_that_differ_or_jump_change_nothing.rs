//! One server counts its boot and monotonic clocks from elsewhere (a time namespace), another one's wall clock jumps by an hour, back
//! and forth: leases are of one clock of one host and never compared, so nothing changes. Row 26 of the fault table.

use quarry_tests::*;
use serde_json::json;
use std::time::Duration;

#[test]
#[ignore = "row 26: takes its turn"]
fn clocks_that_differ_or_jump_change_nothing() -> Res<()> {
    let name = "clocks_that_differ_or_jump_change_nothing";
    let root = rustix::process::geteuid().is_root();
    let why = if root {
        need_programs(&["unshare", "faketime"])
    } else {
        Some("time namespaces need root".to_string())
    };
    if let Some(why) = why {
        skip(name, &why);
        return Ok(());
    }
    let Some(lib) = library() else {
        skip(name, "libfaketime is not installed");
        return Ok(());
    };
    let files = Scratch::new()?;
    let stamp = files.file("stamp");
    std::fs::write(&stamp, "+0")?;
    let faked = |library: &str| {
        let vars = [
            format!("LD_PRELOAD={library}"),
            format!("FAKETIME_TIMESTAMP_FILE={stamp}"),
            "FAKETIME_NO_CACHE=1".to_string(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_string(),
        ];
        [vec!["/usr/bin/env".to_string()], vars.to_vec()].concat()
    };
    let special = json!({
        "sds1": { "wrap": ["unshare", "--time", "--boottime", "8640000", "--monotonic", "8640000"] },
        "sds2": { "wrap": faked(&lib) },
        "mdm1": { "wrap": faked(&lib) },
    });
    with_members(ClusterOptions::default(), special, |cluster| {
        let uri = cluster.new_volume("clock", "128MiB", "sdc1")?;
        let mut f =
            Fault::new(cluster, 26, "clocks apart, wall clock +-1 h", Duration::from_secs(3));
        let spec = |seed| LoadSpec::new(&uri).area(Area::spread(64, 8)).seed(seed);
        f.round(spec(26), |load| {
            for jump in ["+3600", "-3600", "+0", "+86400", "+0"] {
                std::fs::write(&stamp, jump)?;
                load.run_for(Duration::from_millis(if full() { 2000 } else { 700 }))?;
            }
            Ok(())
        })?;
        f.round(spec(126), |load| {
            cluster.kill("sds1")?;
            std::fs::write(&stamp, "-7200")?;
            load.run_for(short_or_full(1, 3))?;
            cluster.start("sds1")?;
            load.run_for(Duration::from_secs(2))?;
            Ok(std::fs::write(&stamp, "+0")?)
        })?;
        f.finish(&[&uri])
    })
}

fn library() -> Option<String> {
    let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
    let all = places.iter().map(|p| format!("{p}/faketime/libfaketime.so.1"));
    all.into_iter().find(|p| std::path::Path::new(p).exists())
}
