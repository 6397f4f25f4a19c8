//! A thousand connections, clients that read nothing, and few file descriptors: whoever keeps in bounds is served as before. Row
//! 29 of the fault table.

use nbd::consts::*;
use nbd::raw::{request_header, Raw};
use nbd::Stream;
use quarry_tests::*;
use serde_json::json;
use std::time::Duration;

#[test]
#[ignore = "row 29: takes its turn"]
fn exhausted_limits_hurt_nobody_else() -> Res<()> {
    if let Some(why) = need_programs(&["prlimit"]) {
        skip("exhausted_limits_hurt_nobody_else", &why);
        return Ok(());
    }
    // A port that is free now, so that it is known where to knock.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let special = json!({
        "sds1": { "wrap": ["prlimit", "--nofile=128:128"], "port": port.port() },
        "sdc1": { "wrap": ["prlimit", "--nofile=512:512"] },
    });
    with_members(ClusterOptions::default(), special, |cluster| {
        let uri = cluster.new_volume("limits", "128MiB", "sdc1")?;
        let mut f = Fault::new(
            cluster,
            29,
            "1,000 connections, slow readers, few descriptors",
            Duration::from_secs(3),
        );
        let spec = |seed| LoadSpec::new(&uri).area(Area::spread(64, 8)).seed(seed);
        f.round(spec(29), |load| {
            // More than the client daemon may open; those it cannot take wait or are closed.
            let crowd: Vec<Stream> = (0..1000).filter_map(|_| Stream::connect(&uri).ok()).collect();
            ensure!(crowd.len() > 300, "only {} connections were taken", crowd.len());
            load.run_for(short_or_full(2, 5))?;
            drop(crowd);
            load.run_for(Duration::from_secs(1))
        })?;
        f.round(spec(129), |load| {
            let crowd: Vec<_> =
                (0..400).filter_map(|_| std::net::TcpStream::connect(port).ok()).collect();
            ensure!(crowd.len() > 64, "only {} connections were taken", crowd.len());
            load.run_for(short_or_full(2, 5))?;
            drop(crowd);
            load.run_for(Duration::from_secs(1))
        })?;
        f.round(spec(229), |load| {
            let slow: Vec<Raw> = (0..8).map(|_| greedy(&uri)).collect::<Res<_>>()?;
            load.run_for(short_or_full(2, 5))?;
            drop(slow);
            load.run_for(Duration::from_secs(1))
        })?;
        f.finish(&[&uri])
    })
}

/// Asks for much and reads none of it.
fn greedy(uri: &Uri) -> Res<Raw> {
    let (mut raw, _) = Raw::transmission(uri)?;
    raw.stream.set_timeout(Duration::from_millis(200))?;
    for n in 0..256u64 {
        // As much as it takes.
        if raw.send(&request_header(REQUEST_MAGIC, 0, CMD_READ, n, 0, 1 << 20)).is_err() {
            break;
        }
    }
    Ok(raw)
}
