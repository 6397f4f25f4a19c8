//! A thin volume fills the pool until it gets ENOSPC; a thick volume of the same pool, unwritten so far, then takes all it was
//! promised without an error, in pages and in whole extents, by whichever server leads.

use quarry_tests::nbd::consts::*;
use quarry_tests::*;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const THICK_MIB: u64 = 48;

#[test]
fn a_thick_volume_always_has_its_space() -> Res<()> {
    let options = ClusterOptions { device_size: "256MiB", ..ClusterOptions::default() };
    with_cluster(options, |cluster| {
        let size = format!("{THICK_MIB}MiB");
        let thick = ["volume", "create", "--name", "thick", "--size", &size];
        cluster.scli_json([&thick[..], &["--provisioning", "thick"]].concat())?;
        let mut promised = nbd::Connection::open(&cluster.map("thick", "sdc1")?)?;
        let mut thin = nbd::Connection::open(&cluster.new_volume("thin", "2GiB", "sdc1")?)?;
        let filled = fill(&mut thin)?;
        eprintln!("  the thin volume took {filled} MiB");
        ensure!(filled >= 60, "the thin volume got {filled} MiB only");
        wait_until("status to say that the pool is full", Duration::from_secs(20), || {
            let told = cluster.status()?["warnings"].to_string();
            Ok(told.contains("kept for what thick volumes").then_some(()))
        })?;
        // Single pages first: each takes a whole block. Then everything.
        for n in (0..THICK_MIB * 16).step_by(7) {
            promised.write_at(n * MIB / 16 + 8192, &content(n)[..4096])?;
        }
        for n in 0..THICK_MIB {
            promised.write_at(n * MIB, &content(n))?;
        }
        // What it trims stays its own, also when others want it.
        promised.trim(0, (16 * MIB) as usize)?;
        std::thread::sleep(Duration::from_secs(3));
        fill(&mut thin)?;
        for n in 0..THICK_MIB {
            promised.write_at(n * MIB, &content(n + 1000))?;
        }
        for n in 0..THICK_MIB {
            let there = promised.read_at(n * MIB, MIB as usize)?;
            ensure!(there == content(n + 1000), "MiB {n} of the thick volume differs");
        }
        for n in (0..filled).step_by(5) {
            ensure!(thin.read_at(n * MIB, MIB as usize)? == content(n), "MiB {n} of the thin one");
        }
        cluster.expect_all_running()
    })
}

/// Writes whole MiB until ten extents in a row, thus of several groups, have no space. Gives how many from the start on are written.
fn fill(c: &mut nbd::Connection) -> Res<u64> {
    let (mut refused, mut first) = (0, None);
    for n in 0..2048u64 {
        match c.call(CMD_WRITE, 0, n * MIB, MIB as u32, &content(n))?.error {
            0 => refused = 0,
            ENOSPC => {
                refused += 1;
                first.get_or_insert(n);
                if refused == 10 {
                    break;
                }
            }
            other => fail!("MiB {n}: NBD error {other}, not ENOSPC"),
        }
    }
    let Some(first) = first else { fail!("the pool never was full") };
    Ok(first)
}

fn content(n: u64) -> Vec<u8> {
    let mut rng = rng::Rng::new(n);
    (0..MIB / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect()
}
