//! A device whose write failed, and the next starts of its server: where O_DIRECT is refused it stays failed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
use common::*;
use quarry_control::FromNode;
use std::process::Command;

/// No write of this server reaches beyond 16 KiB of a file; it gets an error for it, not a signal.
const LIMITED: [&str; 4] = ["sh", "-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "sh"];

/// A memory file system that refuses O_DIRECT.
struct Ramfs(std::path::PathBuf);

impl Ramfs {
    /// `None`: nobody lets us.
    fn mount(dir: &Dir) -> Option<Ramfs> {
        let at = dir.0.join("ramfs");
        std::fs::create_dir(&at).unwrap();
        let out = Command::new("mount").args(["-t", "ramfs", "none"]).arg(&at).output();
        out.is_ok_and(|o| o.status.success()).then_some(Ramfs(at))
    }
}

impl Drop for Ramfs {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// Starts the server; what its first message says of the device.
fn hello(before: &[&str], d: &Dir, mdm: &Mdm) -> (Server, Session) {
    let server = Server::start_in(before, d, "a", mdm);
    (server, mdm.accept())
}

/// A formatted device, the superblock of whose next opening was refused; why, as that server said.
fn refused(d: &Dir, mdm: &Mdm) -> (String, String) {
    format_device(d, mdm);
    // Every opening writes one superblock, the two in turn; only one is within the limit.
    for _ in 0..4 {
        let (mut server, s) = hello(&LIMITED, d, mdm);
        let first = s.hello.devices[0].clone();
        s.register(1, 1);
        // Its beats come after what it had to keep.
        for _ in 0..5 {
            s.until(|m| matches!(m, FromNode::Heartbeat { .. }).then_some(()));
        }
        server.kill();
        if let Some(why) = first.failed {
            return (why, first.uuid);
        }
    }
    panic!("no write was refused");
}

#[test]
fn a_device_that_failed_behind_the_page_cache_stays_failed_until_it_is_formatted_anew() {
    let (d, mdm) = (Dir::new("buffered"), Mdm::new());
    let Some(ramfs) = Ramfs::mount(&d) else {
        eprintln!("skipped: a ramfs cannot be mounted here");
        return;
    };
    let (link, file) = (d.0.join("a.img"), ramfs.0.join("device"));
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let (_, uuid) = refused(&d, &mdm);
    let before = std::fs::read(&file).unwrap();
    for start in 2..4 {
        let (mut server, s) = hello(&[], &d, &mdm);
        let device = &s.hello.devices[0];
        let why = device.failed.clone().expect("the next start opens it");
        assert!(why.contains("File too large") && why.contains("O_DIRECT is refused"), "{why}");
        assert!(why.contains("format --force"), "{why}");
        assert_eq!(device.uuid, uuid);
        s.register(1, start);
        let told = s.until(|m| match m {
            FromNode::Heartbeat { devices, .. } => devices.first().and_then(|d| d.3.clone()),
            _ => None,
        });
        assert_eq!(told, why, "as of one that fails while it serves");
        assert!(metrics(&s).contains("quarry_device_failed{device="), "{}", metrics(&s));
        server.kill();
    }
    assert!(std::fs::read(&file).unwrap() == before, "it was written to");
    let mut tool = Command::new(env!("CARGO_BIN_EXE_sds-server"));
    assert!(tool.args(["format", "--force"]).arg(&link).status().unwrap().success());
    let (mut server, s) = hello(&[], &d, &mdm);
    assert_eq!(s.hello.devices[0].failed, None);
    assert_ne!(s.hello.devices[0].uuid, uuid, "another device");
    s.register(1, 9);
    s.until_open();
    server.kill();
}

#[test]
fn a_restart_is_another_try_for_a_device_that_failed_past_the_page_cache() {
    let (d, mdm) = (Dir::new("direct"), Mdm::new());
    let (why, uuid) = refused(&d, &mdm);
    assert!(why.contains("a write at open"), "{why}");
    let (mut server, s) = hello(&[], &d, &mdm);
    if server.text().contains("O_DIRECT is refused") {
        eprintln!("skipped: O_DIRECT is refused here");
        return;
    }
    assert_eq!((&s.hello.devices[0].failed, &s.hello.devices[0].uuid), (&None, &uuid));
    s.register(1, 2);
    s.until_open();
    server.kill();
}
