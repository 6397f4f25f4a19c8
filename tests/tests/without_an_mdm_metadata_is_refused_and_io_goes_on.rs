//! The MDM's disk fills up: changes of the metadata are refused with 503 `no_mdm` and never half done, reads of it still answer for a
//! moment, `scli` ends with status 5, and volumes are read and written all the while. With room again everything goes on.

use quarry_tests::failure::While;
use quarry_tests::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

const NAME: &str = "without_an_mdm_metadata_is_refused_and_io_goes_on";

/// What a restored MDM does not know of moves no placement group: a volume made since the backup. Its number, and with it its
/// blocks, would go to the next volume.
#[test]
fn an_mdm_restored_from_an_older_backup_changes_nothing() -> Res<()> {
    with_cluster(ClusterOptions { sds: 2, ..ClusterOptions::default() }, |c| {
        c.stop("mdm1")?;
        let data = PathBuf::from(&c.member("mdm1")?.data);
        let backup = data.with_extension("backup");
        let copy = |from: &Path, to: &Path| {
            Command::new("cp").args(["-a"]).args([from, to].map(|p| p.display().to_string())).ok()
        };
        copy(&data, &backup)?;
        c.start("mdm1")?;
        c.wait_health("ok", Duration::from_secs(30))?;
        let uri = c.new_volume("secret", "64MiB", "sdc1")?;
        let newest = c.status()?["index"].as_u64().unwrap_or(u64::MAX);
        let mut io = nbd::Connection::open(&uri)?;
        io.write_at(0, &[0xA5; 4096])?;
        c.stop("mdm1")?;
        std::fs::rename(&data, data.with_extension("newer")).doing(|| "moving it away".into())?;
        copy(&backup, &data)?;
        c.start("mdm1")?;
        wait_until("the MDM to find out", Duration::from_secs(20), || {
            let reasons = c.status()?["reasons"].to_string();
            Ok(reasons.contains("newer than anything here").then_some(()))
        })?;
        let (status, answer) = create(c, "other")?;
        ensure!(status == 503 && answer["code"] == "state_older", "{status} {answer}");
        ensure!(io.read_at(0, 4096)? == [0xA5; 4096], "I/O goes on");
        // Also where nothing ran on that could remember: daemons keep what they were told, within a second.
        for name in ["sds1", "sds2", "sdc1"] {
            let file = Path::new(&c.member(name)?.data).join("told.json");
            wait_until("what was told to be kept", Duration::from_secs(10), || {
                let told: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
                Ok((told["index"].as_u64() >= Some(newest)).then_some(()))
            })?;
        }
        drop(io);
        for name in ["mdm1", "sds1", "sds2", "sdc1"] {
            c.kill(name)?;
        }
        for name in ["mdm1", "sds1", "sds2", "sdc1"] {
            c.start(name)?;
        }
        wait_until("the MDM to find out again", Duration::from_secs(20), || {
            let reasons = c.status()?["reasons"].to_string();
            Ok(reasons.contains("was told of change").then_some(()))
        })?;
        let (status, answer) = create(c, "other")?;
        ensure!(status == 503 && answer["code"] == "state_older", "{status} {answer}");
        // The newer state is put back: everything is there.
        c.stop("mdm1")?;
        std::fs::remove_dir_all(&data).doing(|| "removing the old state".into())?;
        std::fs::rename(data.with_extension("newer"), &data).doing(|| "putting it back".into())?;
        c.start("mdm1")?;
        c.wait_health("ok", Duration::from_secs(30))?;
        ensure!(
            c.scli_json(["volume", "get", "--name", "secret"])?["name"] == "secret",
            "it is gone"
        );
        Ok(())
    })
}

#[test]
fn without_an_mdm_metadata_is_refused_and_io_goes_on() -> Res<()> {
    let root = rustix::process::geteuid().is_root();
    let why =
        if root { need_programs(&["mount"]) } else { Some("mounting needs root".to_string()) };
    if let Some(why) = why {
        skip(NAME, &why);
        return Ok(());
    }
    with_cluster(ClusterOptions::default(), |c| {
        let uri = c.new_volume("v", "64MiB", "sdc1")?;
        let mut io = nbd::Connection::open(&uri)?;
        io.write_at(0, &[1; 4096])?;
        c.stop("mdm1")?;
        let disk = SmallDisk::under(&c.member("mdm1")?.data)?;
        c.start("mdm1")?;
        c.wait_health("ok", Duration::from_secs(30))?;
        let (status, made) = create(c, "before")?;
        ensure!(status == 201, "{status} {made}");

        disk.fill()?;
        // The store writes into space that it has for a while.
        let mut tried = 0;
        let refused = loop {
            tried += 1;
            let (status, answer) = create(c, &name(tried))?;
            if status != 201 {
                break (status, answer);
            }
            ensure!(tried < 20_000, "everything is taken on a full disk");
        };
        let (status, answer) = refused;
        ensure!(status == 503 && answer["code"] == "no_mdm", "{status} {answer}");
        ensure!(answer["hint"].as_str().is_some_and(|h| !h.is_empty()), "no hint: {answer}");
        ensure!(answer.get("leader").is_some(), "503 names the leader, null here: {answer}");
        let out = c.scli(["pd", "create", "--name", "other"])?;
        ensure!(out.status == Some(5), "scli: {}", out.told());
        io.write_at(4096, &[2; 4096])?;

        // It ends, and says what is wrong.
        wait_until("the end of the MDM", Duration::from_secs(20), || {
            Ok(c.expect_all_running().is_err().then_some(()))
        })?;
        let out = c.scli(["pd", "create", "--name", "other", "--json"])?;
        let told: Value = serde_json::from_str(&out.stderr).doing(|| out.told())?;
        ensure!(out.status == Some(5) && told["code"] == "no_mdm", "{}", out.told());
        ensure!(io.read_at(0, 8192)? == [[1; 4096], [2; 4096]].concat(), "what was written");

        disk.empty()?;
        c.start("mdm1")?;
        c.wait_health("ok", Duration::from_secs(30))?;
        let list = c.scli_json(["pd", "list"])?;
        let there: std::collections::BTreeSet<&str> =
            list.as_array().into_iter().flatten().filter_map(|p| p["name"].as_str()).collect();
        for made in ["before".to_string()].into_iter().chain((1..tried).map(name)) {
            ensure!(there.contains(made.as_str()), "{made} was made and is gone");
        }
        let (status, made) = create(c, "after")?;
        ensure!(status == 201, "{status} {made}");
        io.write_at(8192, &[3; 4096])?;
        c.stop("mdm1")
    })
}

/// Long, so that the disk is soon full.
fn name(n: u32) -> String {
    format!("p{n}-{}", "x".repeat(50))
}

fn create(c: &Cluster, name: &str) -> Res<(u16, Value)> {
    let key = format!("{name}-{}", "k".repeat(120));
    let headers = vec![
        format!("Authorization: Bearer {}", c.info("token")?),
        format!("Idempotency-Key: {key}"),
    ];
    let url = format!("{}/pd/create", c.info("api")?);
    let body = format!(r#"{{"name":"{name}"}}"#);
    let r = http::request("POST", &url, &headers, Some(&body))?;
    Ok((r.status, r.json().unwrap_or(Value::String(r.body))))
}

/// A directory that has become a file system of 64 MiB, with the content it had.
struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    fn under(dir: &str) -> Res<SmallDisk> {
        let before = format!("{dir}.before");
        Command::new("cp").args(["-a", dir, &before]).ok()?;
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "none", dir]).ok()?;
        let disk = SmallDisk { dir: Path::new(dir).to_path_buf() };
        Command::new("cp").args(["-a", &format!("{before}/."), dir]).ok()?;
        std::fs::remove_dir_all(&before)?;
        Ok(disk)
    }
    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }
    fn fill(&self) -> Res<()> {
        let mut file = std::fs::File::create(self.ballast())?;
        let piece = vec![1; 4096];
        while std::io::Write::write_all(&mut file, &piece).is_ok() {}
        Ok(())
    }
    fn empty(&self) -> Res<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(e) = Command::new("umount").args(["-l", &self.dir.to_string_lossy()]).run() {
            eprintln!("{e}");
        }
    }
}
