//! A thousand connections, clients that read nothing, few file descriptors, and daemons that get no more memory: whoever keeps in
//! bounds is served as before. Row 29 of the fault table.

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
    // The allocator reserves nothing ahead, so that a limit of memory is felt at once.
    let bare = "MIMALLOC_ARENA_RESERVE=0";
    let special = json!({
        "sds1": { "wrap": ["env", bare, "prlimit", "--nofile=128:128"], "port": port.port() },
        "sdc2": { "wrap": ["env", bare] },
        "sdc1": { "wrap": ["prlimit", "--nofile=512:512"] },
    });
    let options = ClusterOptions { sdc: 2, ..ClusterOptions::default() };
    with_members(options, special, |cluster| {
        let uri = cluster.new_volume("limits", "128MiB", "sdc1")?;
        cluster.map("limits", "sdc2")?;
        let mut f = Fault::new(
            cluster,
            29,
            "1,000 connections, slow readers, few descriptors, no memory",
            short_or_full(5, 4),
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
        let mut large = spec(329).area(Area::spread(32, 256)).width(4, 32);
        large.most_pages = 256;
        f.round(large, |load| {
            without_memory(cluster, "sds1", || load.run_for(short_or_full(2, 5)))?;
            load.run_for(Duration::from_secs(1))
        })?;
        f.round(spec(429), |load| {
            without_memory(cluster, "sdc2", || {
                let other = cluster.map("limits", "sdc2")?;
                // It may end at once.
                let crowd: Vec<Res<Raw>> = (0..8).map(|_| greedy(&other)).collect();
                load.run_for(short_or_full(2, 5))?;
                drop(crowd);
                Ok(())
            })?;
            load.run_for(Duration::from_secs(1))
        })?;
        // The other client daemon serves again too.
        let other = cluster.map("limits", "sdc2")?;
        f.finish(&[&uri, &other])
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

/// A daemon is started and may not map a byte more than it has then, while `body` runs: it ends, as daemons do that get no memory.
/// It is started anew afterwards, as a supervisor would.
fn without_memory(cluster: &Cluster, name: &str, body: impl FnOnce() -> Res<()>) -> Res<()> {
    cluster.kill(name)?;
    cluster.start(name)?;
    let pid = cluster.member(name)?.pid.to_string();
    let limit = 1 << 20;
    let limits = [format!("--as={limit}:{limit}"), format!("--data={limit}:{limit}")];
    Command::new("prlimit").args(["--pid", &pid]).args(limits).ok()?;
    let during = body();
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    cluster.kill(name)?;
    cluster.start(name)?;
    during?;
    ensure!(command.is_empty(), "{name} never asked for more memory: this shows nothing");
    Ok(())
}
