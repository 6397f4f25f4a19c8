//! What a person sees who starts the server wrongly: one line that says what to do, and status 1.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Dir(PathBuf);
impl Dir {
    fn new(name: &str) -> Dir {
        let p = std::env::temp_dir().join(format!("qsds-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&p).ok();
        std::fs::create_dir_all(&p).unwrap();
        let node = "name = 'n1'\ncapabilities = ['SDS']\nmdm = ['127.0.0.1:1']\n";
        std::fs::write(p.join("node.toml"), node).unwrap();
        Dir(p)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
    fn command(&self) -> Command {
        let mut c = program();
        c.arg("--node-config").arg(self.path("node.toml"));
        c.arg("--data-dir").arg(self.path("data")).arg("--socket-dir").arg(&self.0);
        c
    }
    fn with_device(&self) -> Command {
        let mut c = self.command();
        c.arg("--device").arg(self.path("dev")).args(["--device-size", "128MiB"]);
        c
    }
}
impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn program() -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_sds-server"));
    for (k, _) in std::env::vars().filter(|(k, _)| k.starts_with("QUARRY_")) {
        c.env_remove(k);
    }
    c
}

/// Runs it, expects status 1, gives the last line of stderr.
fn refused(c: &mut Command) -> String {
    let out = c.output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{text}");
    let errors: Vec<&str> = text.lines().filter(|l| l.starts_with("sds-server: ")).collect();
    assert_eq!(errors.len(), 1, "one line: {text}");
    errors[0].to_string()
}

#[track_caller]
fn says(c: &mut Command, words: &[&str]) {
    let line = refused(c);
    for w in words {
        assert!(line.contains(w), "'{w}' is not in: {line}");
    }
}

#[test]
fn missing_settings_are_named() {
    let d = Dir::new("missing");
    says(&mut program(), &["--node-config is missing"]);
    says(&mut d.command(), &["--device is missing"]);
    says(d.with_device().args(["--listen", "nonsense"]), &["--listen 'nonsense'", "IP:PORT"]);
    says(
        d.command().args(["--device", "x", "--device-size", "ten"]),
        &["--device-size", "'ten' is not a size"],
    );
}

/// A disk dies, the host boots: its server must come with the others. A path that never was a disk is a mistake, and is told.
#[test]
fn a_server_of_a_cluster_goes_on_without_a_disk_that_is_gone() {
    let d = Dir::new("gone");
    std::fs::create_dir_all(d.path("data")).unwrap();
    std::fs::File::create(d.path("dev")).unwrap().set_len(128 << 20).unwrap();
    let start = || {
        let mut c = d.command();
        c.arg("--device").arg(d.path("dev")).arg("--device").arg(d.path("gone"));
        c
    };
    says(&mut start(), &["gone does not exist"]);
    let state = r#"{"version":1,"cluster":"00112233445566778899aabbccddeeff","blank":{}}"#;
    std::fs::write(d.path("data").join("sds.json"), state).unwrap();
    let out = start().arg("--check-config").output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && text.contains("gone does not exist"), "{text}");
    let mut child = start().stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap()).lines();
    let err = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = |l: std::io::Result<String>| l.is_ok_and(|l| l.contains("left out"));
    let (a, b) = std::thread::scope(|s| {
        let (a, b) = (s.spawn(|| out.into_iter().any(told)), s.spawn(|| err.into_iter().any(told)));
        std::thread::sleep(std::time::Duration::from_secs(2));
        let alive = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        assert!(alive, "it has ended");
        (a.join().unwrap(), b.join().unwrap())
    });
    child.wait().unwrap();
    assert!(a || b, "it is said");
    let mut alone = d.command();
    says(alone.arg("--device").arg(d.path("gone")), &["gone does not exist"]);
}

#[test]
fn a_node_without_the_capability_is_refused() {
    let d = Dir::new("capability");
    std::fs::write(d.path("node.toml"), "name='n1'\ncapabilities=['SDC']\nmdm=['x:1']").unwrap();
    says(&mut d.with_device(), &["does not list the capability SDS"]);
}

#[test]
fn unusable_devices_are_refused_with_a_hint() {
    let d = Dir::new("devices");
    let at = |p: &Path| {
        let mut c = d.command();
        c.arg("--device").arg(p);
        c
    };
    says(&mut at(&d.path("none")), &["none does not exist", "--device-size"]);
    says(&mut at(&d.0), &["is a directory", "name a file or block device"]);
    std::fs::write(d.path("small"), vec![0; 1 << 20]).unwrap();
    says(&mut at(&d.path("small")), &["small has 1 MiB", "needs at least 128 MiB"]);
    let f = std::fs::File::create(d.path("foreign")).unwrap();
    f.set_len(128 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&f, b"some file system", 1024).unwrap();
    says(&mut at(&d.path("foreign")), &["not a Quarry device", "sds-server format --force"]);
    // Where neither the first nor the second superblock lies.
    let f = std::fs::File::create(d.path("zfs")).unwrap();
    f.set_len(128 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&f, b"label", 16 << 10).unwrap();
    says(&mut at(&d.path("zfs")), &["not a Quarry device"]);
    // A member of a mirror whose superblock is at the end; its file system's first MiB is zero.
    let f = std::fs::File::create(d.path("md")).unwrap();
    f.set_len(128 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&f, &[0xfc, 0x4e, 0x2b, 0xa9], (128 << 20) - 8192)
        .unwrap();
    let at_the_end = ((128 << 20) - 8192).to_string();
    says(&mut at(&d.path("md")), &["is not blank", &at_the_end, "sds-server format --force"]);
    let twice = d.path("twice");
    std::fs::File::create(&twice).unwrap().set_len(128 << 20).unwrap();
    says(at(&twice).arg("--device").arg(&twice), &["named twice"]);
    says(&mut at(Path::new("/dev/null")), &["neither a regular file nor a block device"]);
}

#[test]
fn a_foreign_device_is_taken_after_it_was_wiped() {
    let d = Dir::new("wipe");
    let p = d.path("dev");
    let f = std::fs::File::create(&p).unwrap();
    f.set_len(128 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&f, b"old", 0).unwrap();
    drop(f);
    says(program().arg("format").arg(&p), &["not a Quarry device"]);
    says(program().arg("inspect").arg(&p), &["not a Quarry device"]);
    let ok = program().args(["format", "--force"]).arg(&p).output().unwrap();
    assert!(ok.status.success(), "{}", String::from_utf8_lossy(&ok.stderr));
    let ok = program().arg("inspect").arg(&p).output().unwrap();
    assert!(String::from_utf8_lossy(&ok.stdout).contains("blank, 128 MiB"));
}

#[test]
fn a_socket_path_that_is_too_long_is_named() {
    let d = Dir::new("long");
    let long = d.path(&"x".repeat(120));
    let mut c = program();
    c.arg("--node-config").arg(d.path("node.toml")).arg("--data-dir").arg(d.path("data"));
    c.arg("--device")
        .arg(d.path("dev"))
        .args(["--device-size", "128MiB"])
        .arg("--socket-dir")
        .arg(long);
    says(&mut c, &["at most 107", "use a shorter directory"]);
}

#[test]
fn ports_in_use_are_named() {
    let d = Dir::new("port");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    says(d.with_device().args(["--listen", &addr]), &[&addr, "in use"]);
    says(d.with_device().args(["--metrics", &addr]), &[&addr, "in use", "--metrics"]);
}

#[test]
fn the_same_device_or_data_directory_is_used_once() {
    let d = Dir::new("second");
    let mut first = d.with_device().stderr(Stdio::piped()).spawn().unwrap();
    let pid = first.id().to_string();
    let mut lines = BufReader::new(first.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|l| l.contains("listening")), "the first copy starts");
    says(&mut d.with_device(), &["is in use by process", &pid]);
    let mut other = program();
    other.arg("--node-config").arg(d.path("node.toml")).arg("--data-dir").arg(d.path("data2"));
    other.arg("--device").arg(d.path("dev")).arg("--socket-dir").arg(d.path("s2"));
    says(&mut other, &["is in use by process", &pid, "stop it first"]);
    // Not registered yet: SIGTERM ends it at once.
    let term = Command::new("kill").arg(&pid).status().unwrap();
    assert!(term.success());
    assert!(first.wait().unwrap().success());
}

#[test]
fn version_help_and_config_check_answer() {
    let d = Dir::new("version");
    let out = program().arg("--version").output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.starts_with("sds-server ") && text.contains("wire 1, disk 3, api 1"), "{text}");
    assert!(program().arg("--help").output().unwrap().status.success());
    let out = d.with_device().arg("--check-config").output().unwrap();
    assert!(out.status.success());
    assert!(!d.path("dev").exists(), "checking touches nothing");
    let mut nowhere = d.command();
    nowhere.args(["--check-config", "--device"]).arg(d.path("no-such"));
    says(&mut nowhere, &["no-such does not exist", "give --device-size"]);
    let bad = program().arg("--no-such-flag").output().unwrap();
    assert_eq!(bad.status.code(), Some(2));
}
