//! The load generator and the checker against servers known to be right, slow, or broken on purpose.

use super::*;
use crate::check;
use crate::nbd::tests::Server;

fn run(
    server: &Server,
    spec: impl Fn(LoadSpec) -> LoadSpec,
    ms: u64,
) -> (LoadReport, check::Verdict) {
    let history = History::new(9);
    let load = Load::start(spec(LoadSpec::new(&server.uri)), &history).unwrap();
    load.run_for(Duration::from_millis(ms)).unwrap();
    let report = load.stop();
    history.final_read(&server.uri).unwrap();
    (report, check::verify(&history))
}

#[test]
fn a_right_server_passes_under_a_hot_concurrent_load() {
    for server in [Server::nbdkit(&["memory", "64M"])].into_iter().flatten() {
        let single = |s: LoadSpec| LoadSpec { most_pages: 1, ..s.area(Area::hot(8)).width(3, 8) };
        let (report, verdict) = run(&server, single, 700);
        report.expect_no_error().unwrap();
        verdict.expect_clean().unwrap();
        assert!(report.ok > 500 && verdict.reads > 100, "{report}");
    }
}

#[test]
fn errors_are_counted_and_stop_nothing() {
    let args = ["--filter=error", "memory", "64M", "error-pwrite=EIO", "error-pwrite-rate=20%"];
    let Some(server) = Server::nbdkit(&args) else { return };
    let (report, verdict) = run(&server, |s| s, 500);
    assert!(report.errors.get(&5).is_some_and(|&n| n > 10), "{report}");
    assert!(report.expect_no_error().is_err());
    verdict.expect_clean().unwrap();
}

#[test]
fn a_slow_server_shows_as_a_stall() {
    let args = ["--filter=delay", "memory", "64M", "wdelay=400ms"];
    let Some(server) = Server::nbdkit(&args) else { return };
    let (report, verdict) = run(&server, |s| s.width(1, 4).mix(Mix::READ_WRITE), 900);
    assert!(report.expect_stall_below(Duration::from_millis(350)).is_err(), "{report}");
    report.expect_stall_below(Duration::from_secs(20)).unwrap();
    verdict.expect_clean().unwrap();
}

/// A plug-in that now and then answers a read of the first page with what it held before the last write to it.
const STALE: &str = r#"
import threading
API_VERSION = 2
disk = bytearray(64 << 20)
old = bytearray(64 << 20)
reads = 0
def thread_model():
    return THREAD if False else 0
def open(readonly):
    return 1
def get_size(h):
    return len(disk)
def pread(h, buf, offset, flags):
    global reads
    reads += 1
    source = old if reads % 50 == 0 else disk
    buf[:] = source[offset:offset + len(buf)]
def pwrite(h, buf, offset, flags):
    end = offset + len(buf)
    old[offset:end] = disk[offset:end]
    disk[offset:end] = buf
"#;

#[test]
fn a_server_that_returns_stale_pages_is_caught() {
    let scratch = crate::Scratch::new().unwrap();
    let script = scratch.file("stale.py");
    std::fs::write(&script, STALE).unwrap();
    let probe = std::process::Command::new("nbdkit").args(["python", "--version"]).output();
    if !probe.is_ok_and(|o| o.status.success()) {
        return crate::skip(
            "a_server_that_returns_stale_pages_is_caught",
            "nbdkit has no python plug-in",
        );
    }
    let Some(server) = Server::nbdkit(&["python", &script]) else { return };
    let (_, verdict) =
        run(&server, |s| s.area(Area::hot(16)).width(1, 2).mix(Mix::READ_WRITE), 600);
    assert!(verdict.expect_clean().is_err());
}

#[test]
fn a_server_that_vanishes_leaves_unanswered_requests_and_no_violation() {
    let Some(server) = Server::nbdkit(&["--filter=delay", "memory", "64M", "delay-write=50ms"])
    else {
        return;
    };
    let history = History::new(9);
    let load = Load::start(LoadSpec::new(&server.uri), &history).unwrap();
    load.run_requests(50, Duration::from_secs(10)).unwrap();
    drop(server);
    let report = load.stop();
    assert!(report.unanswered > 0 && report.lost_connections == 4, "{report}");
    report.expect_no_nbd_error().unwrap();
    assert!(report.expect_no_error().is_err());
    assert!(check::verify(&history).violations.is_empty());
}
