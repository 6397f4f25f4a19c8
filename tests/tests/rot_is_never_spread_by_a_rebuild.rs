//! Pages rot on one server, while it runs or is stopped, and before anybody reads them another server's copies are given up: those
//! that are made anew from the damaged ones have the right content. Row 18 of the fault table, in a rebuild.

use quarry_tests::*;
use rot::{Damage, Medium};
use serde_json::{json, Value};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(4);
/// What is damaged. The load of the rebuild works elsewhere, or its reads would mend it.
const STILL: Area = Area { first: 252, groups: 64, pages_per_group: 8, stride: 256 };

#[test]
fn rot_is_never_spread_by_a_rebuild() -> Res<()> {
    from_rotten("bit rot, then a rebuild from it", false)
}

#[test]
#[ignore = "row 18: takes its turn"]
fn rot_of_a_stopped_server_is_never_spread_by_a_rebuild() -> Res<()> {
    from_rotten("bit rot of a stopped server, then a rebuild from it", true)
}

fn from_rotten(what: &str, stopped: bool) -> Res<()> {
    // The scrub must not find it first.
    let wrap = json!({ "wrap": ["env", "QUARRY_SCRUB_RATE=0"] });
    let special = json!({ "sds1": wrap, "sds2": wrap, "sds3": wrap, "sds4": wrap });
    let options = ClusterOptions { sds: 4, copies: 3, ..ClusterOptions::default() };
    with_members(options, special, |cluster| {
        let uri = cluster.new_volume("rot", "128MiB", "sdc1")?;
        let mut f = Fault::new(cluster, 18, what, BOUND);
        written(&mut f, &uri)?;
        let n = if stopped { rot_away(cluster)? } else { rot(cluster)? };
        rebuilt(cluster, &mut f, &uri, n)?;
        f.check(&[&uri])?;
        mended(cluster)?;
        f.finish(&[&uri])
    })
}

/// Writes what is to rot, and waits until it is on the medium: blocks at rest leave the log after a second.
fn written(f: &mut Fault<'_>, uri: &Uri) -> Res<()> {
    let mut spec = LoadSpec::new(uri).area(STILL).seed(1).mix(Mix::READ_WRITE);
    spec.most_per_second = 4000;
    f.round(spec, |load| load.run_for(Duration::from_millis(500)))?;
    std::thread::sleep(Duration::from_millis(2500));
    Ok(())
}

/// A bit turns in each of the pages on the first server; how many.
fn rot(cluster: &Cluster) -> Res<usize> {
    let sds1 = cluster.member("sds1")?;
    let Some(path) = sds1.devices.first() else { fail!("sds1 has no device") };
    let medium = Medium::open(Path::new(path))?;
    let still: BTreeSet<u64> = STILL.pages().collect();
    let mut pages = medium.pages()?;
    pages.retain(|p| still.contains(&page::number(&p.content)));
    let n = medium.damage(&pages, Damage::Bits)?;
    ensure!(n > 100, "{n} pages were damaged only");
    Ok(n)
}

/// The same while the server is stopped. Others go briefly after it, so that it leads groups again.
fn rot_away(cluster: &Cluster) -> Res<usize> {
    cluster.stop("sds1")?;
    let n = rot(cluster)?;
    cluster.start("sds1")?;
    for sds in ["sds2", "sds3", "sds4"] {
        cluster.wait_health("ok", fault::HEAL)?;
        cluster.stop(sds)?;
        cluster.start(sds)?;
    }
    cluster.wait_health("ok", fault::HEAL)?;
    Ok(n)
}

/// The second server's copies are given up and made anew on others, under a load; the first one is asked for many of them.
fn rebuilt(cluster: &Cluster, f: &mut Fault<'_>, uri: &Uri, damaged: usize) -> Res<()> {
    let sds1 = cluster.member("sds1")?;
    let of = |kind: &str| {
        http::metric(&sds1.metrics, "quarry_sds_events_total", &format!("kind=\"{kind}\""))
    };
    ensure!(led(cluster, sds1.id)? > 0, "sds1 leads no group: nothing is copied from it");
    let (sent, met, mended) = (of("sync_bytes")?, of("corrupt_pages")?, of("repairs")?);
    let area = Area::spread(32, 8).shifted(80);
    f.round(LoadSpec::new(uri).area(area).seed(2), |load| {
        cluster.scli_json(["sds", "fail", "--name", "sds2", "--yes"])?;
        cluster.wait_health("degraded", Duration::from_secs(10))?;
        cluster.wait_health("ok", fault::HEAL)?;
        load.run_for(Duration::from_millis(500))
    })?;
    // Counters are published twice a second.
    std::thread::sleep(Duration::from_millis(700));
    let (sent, met, mended) =
        (of("sync_bytes")? - sent, of("corrupt_pages")? - met, of("repairs")? - mended);
    eprintln!(
        "  {damaged} pages damaged; the rebuild took {sent} bytes from there, met {met} of them, {mended} repairs"
    );
    ensure!(sent > 0.0, "nothing was copied from the damaged server");
    ensure!(met > 0.0 && mended > 0.0, "the rebuild met no damaged page");
    Ok(())
}

/// What nobody was asked for is left to the scrub; it is done with a pass of the first server.
fn mended(cluster: &Cluster) -> Res<()> {
    let sds1 = cluster.member("sds1")?;
    let passes = || http::metric(&sds1.metrics, "quarry_scrub_passes_total", "");
    ensure!(passes()? == 0.0, "the scrub has been there before the rebuild");
    cluster.scli_json(["policy", "set", "--pool", "default", "--scrub", "64MiB"])?;
    wait_until("a pass of the scrub", Duration::from_secs(60), || {
        Ok((passes()? > 0.0).then_some(()))
    })
}

/// Groups that a server leads.
fn led(cluster: &Cluster, sds: u64) -> Res<usize> {
    let rows = cluster.scli_json(["pg", "list"])?;
    let leads = |row: &&Value| {
        let mut all = row["in_sync"].as_array().into_iter().flatten();
        all.any(|m| m["device"] == row["primary"] && m["sds"].as_u64() == Some(sds))
    };
    Ok(rows.as_array().into_iter().flatten().filter(leads).count())
}
