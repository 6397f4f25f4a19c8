//! Pages on one server's medium change below it: bits turn, writes are lost and land in wrong places. Every
//! read gets the right content from the other copy, and the bad one is mended. Rows 18 and 19 of the fault table.

use quarry_base::PAGE;
use quarry_tests::*;
use rot::{Damage, Medium};
use std::path::Path;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(4);

#[test]
fn rot_on_one_replica_is_never_served_and_is_repaired() -> Res<()> {
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("rot", "128MiB", "sdc1")?;
        let mut cases = Cases::new();
        cases.case("row 18: bits turn on one replica", || {
            let mut f = Fault::new(cluster, 18, "bit rot on one replica", BOUND);
            damaged(cluster, &uri, &mut f, "sds1", |m, _| m.damage(&m.pages()?, Damage::Bits))
        });
        // All pages of a load have one and the same CRC-32C, so these are found by the address in their checksums alone.
        cases.case("row 19: writes that went astray", || {
            let mut f = Fault::new(cluster, 19, "misdirected writes", BOUND);
            damaged(cluster, &uri, &mut f, "sds2", |m, _| m.damage(&m.pages()?, Damage::Misplaced))
        });
        cases.case("row 18: other pages of the same blocks on each replica", || {
            let mut f =
                Fault::new(cluster, 18, "bit rot on all replicas, on each of other pages", BOUND);
            damaged_everywhere(cluster, &uri, &mut f)
        });
        cases.case("an event tells of each server's findings", || {
            // The last ones are told a few seconds later.
            let all = wait_until("events of both servers", Duration::from_secs(15), || {
                let all = cluster.scli_json(["events", "--what", "checksum_errors"])?.to_string();
                Ok(["sds1", "sds2"]
                    .iter()
                    .all(|s| all.contains(&format!("sds {s}")))
                    .then_some(all))
            })?;
            ensure!(all.contains("repaired from another copy"), "{all}");
            Ok(())
        });
        cases.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        cases.finish()
    })
}

#[test]
#[ignore = "row 19: takes its turn"]
fn lost_writes_are_never_served_and_are_repaired() -> Res<()> {
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("lost", "128MiB", "sdc1")?;
        let mut cases = Cases::new();
        cases.case("row 19: lost writes", || {
            let mut f = Fault::new(cluster, 19, "lost writes", BOUND);
            damaged(cluster, &uri, &mut f, "sds3", |m, old| m.lose_writes(old))
        });
        cases.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        cases.finish()
    })
}

/// Writes, waits until it is on the medium, damages one server's, reads everything under a load, then writes every page anew:
/// what nobody had read from the damaged medium is replaced.
fn damaged(
    cluster: &Cluster,
    uri: &Uri,
    f: &mut Fault<'_>,
    sds: &str,
    damage: impl FnOnce(&Medium, &[rot::Found]) -> Res<usize>,
) -> Res<()> {
    let area = Area::spread(64, 8);
    let member = cluster.member(sds)?;
    let Some(path) = member.devices.first() else { fail!("{sds} has no device") };
    let medium = Medium::open(Path::new(path))?;
    let mut c = nbd::Connection::open(uri)?;
    // What older cases left is replaced, so that no page but those of this history is there.
    for p in area.pages() {
        c.write_at(p * PAGE as u64, &vec![0x11; PAGE])?;
    }
    f.history.survey(uri, area.pages())?;
    let mut spec = LoadSpec::new(uri).area(area).seed(18).mix(Mix::READ_WRITE);
    spec.most_per_second = 4000;
    f.round(spec.clone(), |load| load.run_for(Duration::from_millis(500)))?;
    on_medium();
    let old = medium.pages()?;
    f.round(spec.clone().seed(19), |load| load.run_for(Duration::from_millis(500)))?;
    on_medium();
    let before = repairs(&member.metrics)?;
    let n = damage(&medium, &old)?;
    ensure!(n > 20, "{n} pages were damaged only");
    f.round(spec.seed(20), |load| load.run_for(short_or_full(1, 5)))?;
    f.check(&[uri])?;
    let after = repairs(&member.metrics)?;
    eprintln!("  {sds}: {n} pages damaged, {} repairs", after - before);
    ensure!(after > before, "nothing was repaired on {sds}");
    for p in area.pages() {
        c.write_at(p * PAGE as u64, &vec![0x22; PAGE])?;
    }
    c.disconnect()
}

/// Each server's share of the pages is damaged there: no page on two of them, but nearly every block on all that have it.
fn damaged_everywhere(cluster: &Cluster, uri: &Uri, f: &mut Fault<'_>) -> Res<()> {
    let area = Area::spread(64, 8);
    let mut c = nbd::Connection::open(uri)?;
    f.history.survey(uri, area.pages())?;
    let mut spec = LoadSpec::new(uri).area(area).seed(38).mix(Mix::READ_WRITE);
    spec.most_per_second = 4000;
    f.round(spec.clone(), |load| load.run_for(Duration::from_millis(500)))?;
    on_medium();
    for (i, sds) in ["sds1", "sds2", "sds3"].iter().enumerate() {
        let member = cluster.member(sds)?;
        let Some(path) = member.devices.first() else { fail!("{sds} has no device") };
        let medium = Medium::open(Path::new(path))?;
        let mut pages = medium.pages()?;
        pages.retain(|p| page::number(&p.content) % 3 == i as u64);
        let n = medium.damage(&pages, Damage::Bits)?;
        ensure!(n > 20, "{n} pages were damaged only");
    }
    f.check(&[uri])?;
    f.round(spec.seed(39), |load| load.run_for(short_or_full(1, 5)))?;
    f.check(&[uri])?;
    for p in area.pages() {
        c.write_at(p * PAGE as u64, &vec![0x33; PAGE])?;
    }
    c.disconnect()
}

/// Blocks at rest leave the log after a second.
fn on_medium() {
    std::thread::sleep(Duration::from_millis(2500));
}

fn repairs(metrics: &str) -> Res<f64> {
    http::metric(metrics, "quarry_device_repairs_total", "")
}
