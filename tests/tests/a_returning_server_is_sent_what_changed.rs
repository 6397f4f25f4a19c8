//! A server is away while single pages of a volume change that was filled long before. When it returns, what its sockets bring it is
//! little more than those pages, counted by the kernel (`ss -ti`): not the blocks they lie in, nor anything else.

use quarry_base::PAGE;
use quarry_tests::*;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// The volume, MiB.
const SIZE: u64 = 64;
const CHANGED: usize = 2000;

#[test]
fn a_returning_server_is_sent_what_changed() -> Res<()> {
    if let Some(why) = need_programs(&["ss"]) {
        skip("a_returning_server_is_sent_what_changed", &why);
        return Ok(());
    }
    // The kernel counts the bytes of TCP connections only.
    let tcp = json!({ "args": ["--no-unix"] });
    let special = json!({ "sds1": tcp, "sds2": tcp });
    with_members(ClusterOptions { sds: 2, ..ClusterOptions::default() }, special, |cluster| {
        let uri = cluster.new_volume("delta", "64MiB", "sdc1")?;
        let mut c = nbd::Connection::open(&uri)?;
        for n in 0..SIZE {
            c.write_at(n * MIB, &vec![n as u8 + 1; MIB as usize])?;
        }
        cluster.kill("sds2")?;
        cluster.wait_health("degraded", Duration::from_secs(10))?;
        let mut rng = rng::Rng::new(13);
        let mut pages = BTreeSet::new();
        while pages.len() < CHANGED {
            pages.insert(rng.below(SIZE * MIB / PAGE as u64));
        }
        for p in &pages {
            c.write_at(p * PAGE as u64, &vec![0xEE; PAGE])?;
        }
        c.disconnect()?;
        cluster.start("sds2")?;
        cluster.wait_health("ok", Duration::from_secs(60))?;
        let (came, changed) = (received(cluster.member("sds2")?.pid)?, (CHANGED * PAGE) as u64);
        eprintln!("  {changed} bytes changed, {came} came through the sockets");
        ensure!(came >= changed, "fewer bytes came than changed: they went another way");
        ensure!(came <= changed * 3 / 2, "{came} bytes for {changed} that changed");
        cluster.expect_identical_replicas().map(drop)
    })
}

/// Bytes that a process's TCP connections have brought it, of those that stand.
fn received(pid: i32) -> Res<u64> {
    let out = Command::new("ss").args(["-tinpH"]).ok()?.stdout;
    let (mark, mut mine, mut bytes) = (format!("pid={pid},"), false, 0);
    for line in out.lines() {
        if !line.starts_with(char::is_whitespace) {
            mine = line.contains(&mark);
        } else if mine {
            let counts = line.split_whitespace().filter_map(|w| w.strip_prefix("bytes_received:"));
            bytes += counts.filter_map(|n| n.parse::<u64>().ok()).sum::<u64>();
        }
    }
    Ok(bytes)
}
