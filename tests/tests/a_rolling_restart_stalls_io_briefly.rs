//! Every daemon but the client's own is restarted in good order, one after the other, again and again, under load: no error, no
//! long stall, and each step waits only for health `ok`. Row 30 of the fault table.
//!
//! With the programs of another release in the directory that `QUARRY_OTHER_BIN_DIR` names, each restart is a change of release:
//! in the odd rounds to the other one, in the even rounds back, so that both are at work beside each other at every step.

use quarry_tests::*;
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

const MEMBERS: [&str; 4] = ["sds1", "sds2", "sds3", "mdm1"];

/// Starts a member's program from the directory that the file beside it names, otherwise as it is called.
const CHOOSE: &str = r#"#!/bin/sh
program=$2; from=$(cat "$1" 2>/dev/null)
shift 2
exec "${from:-$(dirname "$program")}/$(basename "$program")" "$@"
"#;

/// Which release the members are to be started from.
struct Releases {
    scratch: Scratch,
    other: Option<String>,
}

impl Releases {
    fn new() -> Res<Releases> {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new()?;
        let script = scratch.file("choose");
        std::fs::write(&script, CHOOSE)?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        let other = std::env::var("QUARRY_OTHER_BIN_DIR").ok();
        for program in ["mdm", "sds-server"] {
            if let Some(dir) = &other {
                ensure!(Path::new(dir).join(program).is_file(), "no {program} in {dir}");
            }
        }
        Ok(Releases { scratch, other })
    }

    /// As `scripts/cluster up --members` takes them.
    fn members(&self) -> Value {
        let wrap = |m: &str| json!({"wrap": [self.scratch.file("choose"), self.scratch.file(m)]});
        Value::Object(MEMBERS.iter().map(|m| (m.to_string(), wrap(m))).collect::<Map<_, _>>())
    }

    /// The next start of a member is of the other release, or of this one.
    fn choose(&self, member: &str, other: bool) -> Res<()> {
        let dir = self.other.as_deref().filter(|_| other).unwrap_or_default();
        Ok(std::fs::write(self.scratch.file(member), dir)?)
    }

    /// The member runs from where it should.
    fn is_started(&self, cluster: &Cluster, member: &str, other: bool) -> Res<()> {
        let Some(dir) = self.other.as_deref().filter(|_| other) else { return Ok(()) };
        let exe = std::fs::read_link(format!("/proc/{}/exe", cluster.member(member)?.pid))?;
        let from = exe.parent().map(Path::to_path_buf);
        ensure!(from == Some(Path::new(dir).canonicalize()?), "{member} runs {}", exe.display());
        Ok(())
    }
}

#[test]
#[ignore = "row 30: takes its turn"]
fn a_rolling_restart_stalls_io_briefly() -> Res<()> {
    let releases = Releases::new()?;
    let (what, rounds) = match &releases.other {
        Some(_) => ("rolling restart, each into another release and back", short_or_full(2, 4)),
        None => ("rolling restart", short_or_full(1, 3)),
    };
    with_members(ClusterOptions::default(), releases.members(), |cluster| {
        let uri = cluster.new_volume("rolling", "128MiB", "sdc1")?;
        let mut f = Fault::new(cluster, 30, what, Duration::from_secs(2));
        for round in 0..rounds.as_secs() {
            f.round(LoadSpec::new(&uri).area(Area::spread(64, 8)).seed(30 + round), |load| {
                for name in MEMBERS {
                    cluster.stop(name)?;
                    releases.choose(name, round % 2 == 0)?;
                    cluster.start(name)?;
                    releases.is_started(cluster, name, round % 2 == 0)?;
                    cluster.wait_health("ok", fault::HEAL)?;
                    load.run_for(Duration::from_millis(500))?;
                }
                Ok(())
            })?;
        }
        if full() {
            // The server that was restarted last leads next to nothing until its groups come back to it.
            f.round(LoadSpec::new(&uri).area(Area::spread(64, 8)).seed(40), |load| {
                for name in ["sds3", "sds2"] {
                    cluster.stop(name)?;
                    cluster.start(name)?;
                    cluster.wait_health("ok", fault::HEAL)?;
                }
                primaries_come_back(cluster, load)
            })?;
        }
        f.finish(&[&uri])
    })
}

/// Waits until every server leads nearly as many groups as the others.
fn primaries_come_back(cluster: &Cluster, load: &Load) -> Res<()> {
    let end = Instant::now() + Duration::from_secs(180);
    let before = leads(cluster)?;
    loop {
        let now = leads(cluster)?;
        if now.len() == 3 && now.values().max() <= now.values().min().map(|n| n + 4).as_ref() {
            eprintln!("  groups led by each device: {before:?}, evened out to {now:?}");
            return Ok(());
        }
        ensure!(Instant::now() < end, "uneven still: {now:?}, {before:?} in the beginning");
        load.run_for(Duration::from_secs(1))?;
    }
}

/// How many groups each device leads.
fn leads(cluster: &Cluster) -> Res<BTreeMap<u64, usize>> {
    let mut all = BTreeMap::new();
    let rows = cluster.scli_json(["pg", "list"])?;
    for primary in rows.as_array().into_iter().flatten().filter_map(|g| g["primary"].as_u64()) {
        *all.entry(primary).or_default() += 1;
    }
    Ok(all)
}
