//! fio writes random blocks of 512 bytes to 1 MiB with checksums over several connections at queue depths 1 to 64,
//! verifies them, and verifies them again after all daemons were restarted.

use quarry_tests::*;
use std::time::Duration;

/// MiB each job works on.
const PART: u64 = 24;

#[test]
fn fio_verify_over_several_connections() -> Res<()> {
    let name = "fio_verify_over_several_connections";
    if let Some(why) = need_programs(&["fio"]) {
        skip(name, &why);
        return Ok(());
    }
    let files = Scratch::new()?;
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("fio", "160MiB", "sdc1")?;
        fio(&uri, &files, &["--do_verify=1"])?;
        fio(&uri, &files, &["--verify_only"]).map_err(|e| e.within("verified again"))?;
        cluster.down()?;
        cluster.up_again()?;
        let uri = cluster.map("fio", "sdc1")?;
        fio(&uri, &files, &["--verify_only"])
            .map_err(|e| e.within("after a restart of everything"))?;
        cluster.expect_all_running()
    })
}

/// One connection a job, each on a part of its own, with a queue depth of its own.
fn fio(uri: &Uri, files: &Scratch, mode: &[&str]) -> Res<()> {
    let io = if full() { PART * 8 } else { PART };
    let mut args: Vec<String> = Vec::new();
    let global = [
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bsrange=512-1M",
        "--bssplit=512/20:4k/40:12k/10:64k/15:192k/10:1M/5",
        "--blockalign=512",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--randrepeat=1",
        "--thread",
        "--group_reporting",
    ];
    args.extend(global.map(String::from));
    args.extend([format!("--uri={uri}"), format!("--size={PART}M"), format!("--io_size={io}M")]);
    args.push(format!("--aux-path={}", files.path().display()));
    args.extend(mode.iter().map(|m| m.to_string()));
    for (n, depth) in (0u64..).zip([1, 4, 16, 64]) {
        args.extend([format!("--name=qd{depth}"), format!("--iodepth={depth}")]);
        args.push(format!("--offset={}M", n * (PART + 8)));
    }
    Command::new("fio").args(args).limit(Duration::from_secs(240)).ok().map(drop)
}
