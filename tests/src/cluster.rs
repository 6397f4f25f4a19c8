//! A cluster of real daemons, through `scripts/cluster` and `scli`, as `INTERFACE` describes them.
//!
//! A [`Cluster`] is purged when it is dropped, also by a panic. Use [`with_cluster`]: it shows the end of
//! every log when the test fails.

use crate::command::tail;
use crate::failure::While;
use crate::scratch::keep;
use crate::{ensure, fail, replicas, wait_until, Command, Failure, Output, Res, Scratch, Uri};
use rustix::process::{kill_process, Pid, Signal};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What `scripts/cluster up` is asked for.
#[derive(Clone, Copy, Debug)]
pub struct ClusterOptions {
    pub mdm: u32,
    pub sds: u32,
    pub sdc: u32,
    pub copies: u32,
    /// For `--device-size`.
    pub device_size: &'static str,
    /// For `--ack`: `durable` or `cached`.
    pub ack: &'static str,
}

impl Default for ClusterOptions {
    fn default() -> ClusterOptions {
        ClusterOptions { mdm: 1, sds: 3, sdc: 1, copies: 2, device_size: "1GiB", ack: "durable" }
    }
}

/// One daemon, from `cluster.json`.
#[derive(Clone, Debug)]
pub struct Member {
    pub role: String,
    pub name: String,
    pub id: u64,
    pub pid: i32,
    pub metrics: String,
    pub data: String,
    pub devices: Vec<String>,
    pub log: String,
    pub command: Vec<String>,
}

/// A running cluster.
pub struct Cluster {
    directory: PathBuf,
    backing: String,
    options: ClusterOptions,
    /// For `--members`; null for none.
    special: Value,
    // Last: the directories go after the daemons.
    scratch: Scratch,
    _memory: Scratch,
}

/// Starts a cluster, runs `body` on it and purges it. When `body` fails the end of each log is printed.
pub fn with_cluster<T>(options: ClusterOptions, body: impl FnOnce(&Cluster) -> Res<T>) -> Res<T> {
    with_members(options, Value::Null, body)
}

/// The same with members that are placed, wrapped or given devices, as `scripts/cluster up --members` takes them.
pub fn with_members<T>(
    options: ClusterOptions,
    special: Value,
    body: impl FnOnce(&Cluster) -> Res<T>,
) -> Res<T> {
    let cluster = Cluster::up_with(options, special)?;
    let result = body(&cluster);
    if result.is_err() {
        cluster.show_logs();
    }
    result
}

/// Root of the source tree.
pub fn root() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// A binary of Quarry: from `QUARRY_BIN_DIR`, else `target/release`.
pub fn binary(name: &str) -> Res<String> {
    let dir = std::env::var_os("QUARRY_BIN_DIR").map(PathBuf::from);
    let path = dir.unwrap_or_else(|| root().join("target/release")).join(name);
    ensure!(path.is_file(), "{} does not exist: build it, or set QUARRY_BIN_DIR", path.display());
    Ok(path.to_string_lossy().into_owned())
}

impl Cluster {
    /// Starts a new cluster with its devices in memory and waits until it is healthy.
    pub fn up(options: ClusterOptions) -> Res<Cluster> {
        Cluster::up_with(options, Value::Null)
    }

    /// The same with special members ([`with_members`]).
    pub fn up_with(options: ClusterOptions, special: Value) -> Res<Cluster> {
        // Missing binaries are said at once: the script would begin to build them.
        for name in ["mdm", "sds-server", "sdc-nbd", "scli"] {
            binary(name)?;
        }
        let (scratch, memory) = (Scratch::new()?, Scratch::in_memory()?);
        let cluster = Cluster {
            directory: scratch.path().join("c"),
            backing: memory.file("data"),
            options,
            special,
            scratch,
            _memory: memory,
        };
        cluster.up_again()?;
        Ok(cluster)
    }

    /// `scripts/cluster up` on the same directory: starts what does not run.
    pub fn up_again(&self) -> Res<()> {
        let o = &self.options;
        let numbers =
            [("--mdm", o.mdm), ("--sds", o.sds), ("--sdc", o.sdc), ("--copies", o.copies)];
        let mut args: Vec<String> = vec!["--backing".to_string(), self.backing.clone()];
        args.extend(["--device-size".to_string(), o.device_size.to_string()]);
        args.extend(["--ack".to_string(), o.ack.to_string()]);
        for (flag, n) in numbers {
            args.extend([flag.to_string(), n.to_string()]);
        }
        if !self.special.is_null() {
            let file = self.scratch.file("members.json");
            std::fs::write(&file, self.special.to_string()).doing(|| format!("writing {file}"))?;
            args.extend(["--members".to_string(), file]);
        }
        // `up` itself gives up after 60 s.
        self.script("up", &args, 90)?.map_good()
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn script(&self, command: &str, args: &[String], seconds: u64) -> Res<Output> {
        let script = root().join("scripts/cluster");
        ensure!(script.is_file(), "{} does not exist", script.display());
        let directory = self.directory.to_string_lossy();
        Command::new(&script)
            .args([command, "--dir", &directory])
            .args(args)
            .limit(Duration::from_secs(seconds))
            .run()
    }

    /// Runs `scripts/cluster COMMAND NAME`, whatever comes of it.
    pub fn try_member(&self, command: &str, name: &str) -> Res<Output> {
        self.script(command, &[name.to_string()], 60)
    }
    /// `kill -9` of one member.
    pub fn kill(&self, name: &str) -> Res<()> {
        self.try_member("kill", name)?.map_good()
    }
    /// Ends one member in good order (SIGTERM).
    pub fn stop(&self, name: &str) -> Res<()> {
        self.try_member("stop", name)?.map_good()
    }
    /// Starts a member that does not run.
    pub fn start(&self, name: &str) -> Res<()> {
        self.try_member("start", name)?.map_good()
    }
    /// Ends all members in good order; the data stays. [`Cluster::up_again`] starts them.
    pub fn down(&self) -> Res<()> {
        self.script("down", &[], 60)?.map_good()
    }
    /// `kill -9` of every daemon at once, directly; returns when all are gone.
    pub fn kill_everything(&self) -> Res<()> {
        self.kill_all_of(self.members()?)
    }
    /// Kills every member with this role at once and waits for their ends.
    pub fn kill_role(&self, role: &str) -> Res<()> {
        self.kill_all_of(self.of_role(role)?)
    }
    fn kill_all_of(&self, members: Vec<Member>) -> Res<()> {
        for m in &members {
            self.signal(&m.name, Signal::KILL)?;
        }
        wait_until("the end of all daemons", Duration::from_secs(10), || {
            // A dead process has no command line, also before somebody reaps it.
            let lives = |m: &Member| {
                !std::fs::read(format!("/proc/{}/cmdline", m.pid)).unwrap_or_default().is_empty()
            };
            Ok((!members.iter().any(lives)).then_some(()))
        })
    }
    /// Sends a signal to a member's process.
    pub fn signal(&self, name: &str, signal: Signal) -> Res<()> {
        let member = self.member(name)?;
        let Some(pid) = Pid::from_raw(member.pid) else { fail!("{name} has pid {}", member.pid) };
        kill_process(pid, signal).doing(|| format!("signal to {name} (pid {})", member.pid))
    }

    /// `cluster.json`.
    pub fn json(&self) -> Res<Value> {
        let path = self.directory.join("cluster.json");
        let text =
            std::fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).doing(|| format!("{} is not JSON", path.display()))
    }
    /// A text of `cluster.json`: `api`, `token`, `cluster_id`.
    pub fn info(&self, field: &str) -> Res<String> {
        text(&self.json()?, field)
    }
    /// All members.
    pub fn members(&self) -> Res<Vec<Member>> {
        let json = self.json()?;
        let Some(list) = json["members"].as_array() else { fail!("cluster.json has no members") };
        list.iter().map(member).collect()
    }
    /// Members of one role: `mdm`, `sds`, `sdc`.
    pub fn of_role(&self, role: &str) -> Res<Vec<Member>> {
        Ok(self.members()?.into_iter().filter(|m| m.role == role).collect())
    }
    /// One member.
    pub fn member(&self, name: &str) -> Res<Member> {
        let found = self.members()?.into_iter().find(|m| m.name == name);
        found.ok_or_else(|| Failure::new(format!("cluster.json has no member {name}")))
    }
    /// Fails unless each member still runs under the pid that `cluster.json` says.
    pub fn expect_all_running(&self) -> Res<()> {
        for m in self.members()? {
            let command = std::fs::read(format!("/proc/{}/cmdline", m.pid)).unwrap_or_default();
            ensure!(!command.is_empty(), "{} (pid {}) has died", m.name, m.pid);
        }
        Ok(())
    }

    /// Runs `scli` with this cluster's address and token, whatever comes of it.
    pub fn scli<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Res<Output> {
        Command::new(binary("scli")?)
            .args(args)
            .env("QUARRY_API", &self.info("api")?)
            .env("QUARRY_TOKEN", &self.info("token")?)
            .run()
    }
    /// Runs `scli --json` and returns its answer; any exit status but 0 is a failure.
    pub fn scli_json<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Res<Value> {
        let mut all = vec!["--json".to_string()];
        all.extend(args.into_iter().map(|a| a.as_ref().to_string()));
        let out = self.scli(all)?;
        ensure!(out.status == Some(0), "{}", out.told());
        serde_json::from_str(&out.stdout).doing(|| format!("not JSON: {}", out.told()))
    }

    /// Creates a thin volume and maps it; where it is.
    pub fn new_volume(&self, name: &str, size: &str, sdc: &str) -> Res<Uri> {
        self.scli_json(["volume", "create", "--name", name, "--size", size])?;
        self.map(name, sdc)
    }
    /// Maps a volume; where it is.
    pub fn map(&self, name: &str, sdc: &str) -> Res<Uri> {
        let answer = self.scli_json(["volume", "map", "--name", name, "--sdc", sdc])?;
        Uri::parse(&text(&answer, "uri")?)
    }
    /// `scli status --json`.
    pub fn status(&self) -> Res<Value> {
        self.scli_json(["status"])
    }
    /// Waits until `health` is `wanted` (`ok`, `degraded`, `unavailable`).
    pub fn wait_health(&self, wanted: &str, limit: Duration) -> Res<()> {
        wait_until(&format!("health {wanted}"), limit, || {
            let status = self.status()?;
            if status["health"] == wanted {
                return Ok(Some(()));
            }
            fail!("{status}")
        })
    }

    /// Kills everything at rest (nothing may be writing) and compares all copies of every placement group on the
    /// devices. Waits for health `ok` first; nothing runs afterwards.
    pub fn expect_identical_replicas(&self) -> Res<replicas::Compared> {
        self.wait_health("ok", Duration::from_secs(60))?;
        // The last records reach all members; commit points need not.
        std::thread::sleep(Duration::from_millis(200));
        self.kill_everything()?;
        let mut devices = Vec::new();
        for m in self.of_role("sds")? {
            for path in &m.devices {
                devices.push(replicas::Device::open(&m.name, Path::new(path))?);
            }
        }
        let seen = replicas::compare(&mut devices, self.options.copies as usize)?;
        eprintln!("  replicas: {seen}");
        Ok(seen)
    }

    /// Prints the end of each daemon's log.
    pub fn show_logs(&self) {
        let members = match self.members() {
            Ok(members) => members,
            Err(e) => return eprintln!("no logs to show: {e}"),
        };
        for m in members {
            let log = std::fs::read(&m.log).unwrap_or_default();
            eprintln!("---- {} ({}):\n{}", m.name, m.log, tail(&String::from_utf8_lossy(&log)));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if keep() {
            eprintln!("kept running: {}", self.directory.display());
            return;
        }
        // A paused daemon would not hear the SIGTERM of `down`.
        let paused = self.members().unwrap_or_default();
        for m in paused.iter().filter(|m| m.pid > 0) {
            if let Err(e) = self.signal(&m.name, Signal::CONT) {
                if !e.text().contains("No such process") {
                    eprintln!("{e}");
                }
            }
        }
        if !self.directory.exists() {
            return;
        }
        let purged = self.script("down", &["--purge".to_string()], 60).and_then(Output::map_good);
        if let Err(e) = purged {
            eprintln!("the cluster did not go down in good order: {e}");
            for m in paused {
                self.kill_hard(&m);
            }
        }
    }
}

impl Cluster {
    /// Kills a member if its pid still belongs to its program.
    fn kill_hard(&self, m: &Member) {
        let command = std::fs::read(format!("/proc/{}/cmdline", m.pid)).unwrap_or_default();
        let program = m.command.first().map(String::as_bytes).unwrap_or_default();
        if !program.is_empty() && command.starts_with(program) {
            if let Err(e) = self.signal(&m.name, Signal::KILL) {
                eprintln!("{e}");
            }
        }
    }
}

impl Output {
    /// Fails unless the status is 0.
    pub fn map_good(self) -> Res<()> {
        ensure!(self.status == Some(0), "{}", self.told());
        Ok(())
    }
}

/// A text field.
pub fn text(json: &Value, field: &str) -> Res<String> {
    match json[field].as_str() {
        Some(text) => Ok(text.to_string()),
        None => fail!("no text '{field}' in {json}"),
    }
}

fn member(json: &Value) -> Res<Member> {
    let list = |field: &str| -> Vec<String> {
        let items = json[field].as_array().into_iter().flatten();
        items.filter_map(|d| d.as_str().map(str::to_string)).collect()
    };
    Ok(Member {
        role: text(json, "role")?,
        name: text(json, "name")?,
        id: json["id"].as_u64().unwrap_or_default(),
        pid: json["pid"].as_i64().and_then(|p| i32::try_from(p).ok()).unwrap_or_default(),
        metrics: text(json, "metrics")?,
        data: text(json, "data")?,
        devices: list("devices"),
        log: text(json, "log")?,
        command: list("command"),
    })
}
