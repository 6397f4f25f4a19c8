//! Pages of one server's medium rot and nobody reads them: the scrub finds each, has it mended from the other copy, counts it and
//! says so. Row 18 of the fault table, without the reader.

use quarry_tests::*;
use rot::{Damage, Medium};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// A pass over what this test writes takes about a second.
const RATE: &str = "QUARRY_SCRUB_RATE=64MiB";

#[test]
fn scrub_finds_rot_that_nobody_reads() -> Res<()> {
    let wrap = json!({ "wrap": ["env", RATE] });
    let special = json!({ "sds1": wrap, "sds2": wrap, "sds3": wrap });
    with_members(ClusterOptions::default(), special, |cluster| {
        let uri = cluster.new_volume("still", "128MiB", "sdc1")?;
        let area = Area::spread(64, 8);
        let mut f =
            Fault::new(cluster, 18, "bit rot that only the scrub meets", Duration::from_secs(4));
        f.history.survey(&uri, area.pages())?;
        let spec = LoadSpec::new(&uri).area(area).seed(1).mix(Mix::READ_WRITE);
        f.round(spec, |load| load.run_for(Duration::from_millis(500)))?;
        // Blocks at rest leave the log after a second.
        std::thread::sleep(Duration::from_millis(2500));
        let sds1 = cluster.member("sds1")?;
        let Some(path) = sds1.devices.first() else { fail!("sds1 has no device") };
        let medium = Medium::open(Path::new(path))?;
        // After a pass that met an empty device the next begins a minute later; after a start it goes on at once.
        cluster.stop("sds1")?;
        cluster.start("sds1")?;
        cluster.wait_health("ok", Duration::from_secs(60))?;
        let sds1 = cluster.member("sds1")?;
        let pages = medium.pages()?;
        let of = |name: &str| http::metric(&sds1.metrics, name, "");
        let (found, mended) =
            (of("quarry_scrub_bad_pages_total")?, of("quarry_device_repairs_total")?);
        let n = medium.damage(&pages, Damage::Bits)?;
        ensure!(n > 20, "{n} pages were damaged only");
        wait_until("the medium is whole again", Duration::from_secs(60), || {
            let now = medium.pages()?;
            let whole = pages.iter().all(|p| now.iter().any(|q| q == p));
            Ok(whole.then_some(()))
        })?;
        let (found, mended) = (
            of("quarry_scrub_bad_pages_total")? - found,
            of("quarry_device_repairs_total")? - mended,
        );
        eprintln!("  {n} pages rotted, the scrub found {found}, {mended} blocks were mended");
        ensure!(found >= n as f64, "{n} pages rotted, the scrub has counted {found}");
        ensure!(mended > 0.0, "no repair was counted");
        let log = std::fs::read_to_string(&sds1.log)?;
        ensure!(
            log.contains("Corruption") && log.contains("Repaired"),
            "the log says nothing of it"
        );
        // Told when the pass has ended; the passes before it found nothing.
        let told = wait_until("the event of the scrub's pass", Duration::from_secs(30), || {
            let all = cluster.scli_json(["events", "--what", "scrub_pass"])?;
            let mut all = all.as_array().cloned().unwrap_or_default().into_iter();
            Ok(all.find(|e| e["outcome"] == "damage_found"))
        })?;
        eprintln!("  {}: {}", told["object"], told["reason"]);
        ensure!(told["object"] == "sds sds1", "{told}");
        f.check(&[&uri])?;
        cluster.expect_identical_replicas().map(drop)
    })
}
