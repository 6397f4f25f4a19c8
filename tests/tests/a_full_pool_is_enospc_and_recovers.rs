//! A thin volume larger than the pool: when the space is used up new writes end with ENOSPC and nothing else happens; what
//! is there can be read and overwritten; trimmed space can be written again.

use quarry_tests::nbd::consts::*;
use quarry_tests::*;
use std::time::Duration;

const MIB: u64 = 1 << 20;

#[test]
fn a_full_pool_is_enospc_and_recovers() -> Res<()> {
    let options = ClusterOptions { device_size: "512MiB", ..ClusterOptions::default() };
    with_cluster(options, |cluster| {
        let uri = cluster.new_volume("full", "2GiB", "sdc1")?;
        let mut c = nbd::Connection::open(&uri)?;
        let mut cases = Cases::new();
        let mut written = 0;
        cases.case("writes go on until there is no space, then ENOSPC", || {
            for n in 0..2048u64 {
                let reply = c.call(CMD_WRITE, 0, n * MIB, MIB as u32, &content(n))?;
                match reply.error {
                    0 => written = n + 1,
                    ENOSPC => break,
                    other => fail!("MiB {n}: NBD error {other}, not ENOSPC"),
                }
            }
            eprintln!("  {written} MiB were written");
            // Three devices of 512 MiB, two copies: 768 MiB less log, tables and reserve.
            ensure!((300..=768).contains(&written), "{written} MiB fit");
            Ok(())
        });
        cases.case("all that was acknowledged is there and can be overwritten", || {
            for n in 0..written {
                ensure!(c.read_at(n * MIB, MIB as usize)? == content(n), "MiB {n} differs");
            }
            c.write_at(0, &content(77))?;
            ensure!(c.read_at(0, MIB as usize)? == content(77), "the overwritten MiB");
            Ok(())
        });
        cases.case("the daemons live and say why", || {
            cluster.expect_all_running()?;
            let status = cluster.status()?;
            ensure!(status["health"] == "ok", "a full pool has all its copies: {status}");
            Ok(())
        });
        cases.case("trimmed space can be written again", || {
            c.trim(0, (100 * MIB) as usize)?;
            ensure!(
                c.read_at(0, MIB as usize)? == vec![0; MIB as usize],
                "trimmed space reads as zeroes"
            );
            wait_until("space after the trim", Duration::from_secs(20), || {
                for n in 0..50 {
                    c.write_at((1500 + n) * MIB, &content(n))?;
                }
                Ok(Some(()))
            })?;
            ensure!(c.read_at(1549 * MIB, MIB as usize)? == content(49), "written after the trim");
            Ok(())
        });
        cases.finish()
    })
}

fn content(n: u64) -> Vec<u8> {
    let mut rng = rng::Rng::new(n);
    (0..MIB / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect()
}
