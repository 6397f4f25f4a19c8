//! The daemon as a process, between a fake cluster and NBD clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use fake::*;
use quarry_base::*;
use quarry_control::FromNode;
use quarry_wire::Change;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

struct Setup {
    mdm: Mdm,
    sds: Vec<Sds>,
    truth: Arc<Mutex<Truth>>,
    paths: Vec<PathBuf>,
    daemon: Daemon,
}

fn setup(name: &str) -> Setup {
    let dir = directory(name);
    let paths = vec![dir.join("sds1.sock"), dir.join("sds2.sock")];
    let truth: Arc<Mutex<Truth>> = Arc::default();
    let sds = (1..).zip(&paths).map(|(i, p)| Sds::start(i, p, &truth)).collect();
    let mdm = Mdm::start(view(&paths, 1));
    let daemon = Daemon::start(&dir, &mdm.addr);
    Setup { mdm, sds, truth, paths, daemon }
}

#[test]
fn a_mapped_volume_is_served_until_sigterm() {
    let mut t = setup("serve");
    let socket = t.mdm.socket(1, 1);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&socket).unwrap());
    assert_eq!(mode & 0o777, 0o660);
    let mut c = Nbd::open(&socket, "vol1");
    assert_eq!(c.size, SIZE);
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7) as u8).collect();
    assert_eq!(c.write(1_000_001, &data), 0);
    let mut other = Nbd::open(&socket, "");
    assert!(other.read(1_000_000, 3_000_002)[1..3_000_001] == data[..]);
    let beat = wait("counters", || {
        let heard = t.mdm.heard.lock().unwrap();
        heard.iter().rev().find_map(|m| match m {
            FromNode::Heartbeat { counters, .. } => counters
                .iter()
                .find(|(k, v)| k == "volume.1.write_bytes" && *v > 0)
                .map(|(_, v)| *v),
            _ => None,
        })
    });
    assert_eq!(beat, 3_000_000);
    let (status, took) = t.daemon.stop();
    assert!(status.success(), "{status}");
    assert!(took.as_secs() < 5, "{took:?}");
    assert!(!socket.exists());
    assert_eq!(c.reply(), None);
}

#[test]
fn a_dead_server_only_makes_requests_wait() {
    let t = setup("failover");
    let socket = t.mdm.socket(1, 1);
    let mut c = Nbd::open(&socket, "vol1");
    assert_eq!(c.write(0, &[1; 8192]), 0);
    t.sds[0].kill();
    let ids: Vec<u64> = (0..8).map(|i| c.send(1, i << 20, 4096, &[2; 4096])).collect();
    // The MDM moves the groups; the same requests go to the other server.
    let moved: Vec<Change> = (0..PGS).map(|pg| Change::Pg(config(pg, 2, 2))).collect();
    t.mdm.change(9, moved);
    let mut answered: Vec<u64> =
        ids.iter().map(|_| c.reply().map(|(e, id)| (assert_eq!(e, 0), id).1).unwrap()).collect();
    answered.sort_unstable();
    assert_eq!(answered, ids);
    assert_eq!(c.read(0, 8192), [[2; 4096], [1; 4096]].concat());
}

#[test]
fn a_restarted_server_is_found_again_and_the_mdm_is_not_needed() {
    let mut t = setup("redial");
    let socket = t.mdm.socket(1, 1);
    let mut c = Nbd::open(&socket, "vol1");
    assert_eq!(c.write(0, &[1; 4096]), 0);
    t.mdm.break_session();
    t.sds[0].kill();
    c.send(1, 4096, 4096, &[3; 4096]);
    t.sds[0] = Sds::start(1, &t.paths[0], &t.truth);
    assert_eq!(c.reply().unwrap().0, 0);
    assert_eq!(c.read(4096, 1), [3]);
    let hellos = wait("the session again", || Some(t.mdm.hellos()).filter(|h| h.len() >= 2));
    assert_eq!((hellos[0].resume, hellos[1].resume), (None, Some(77)));
    assert_eq!(hellos[1].cluster.as_deref(), Some(CLUSTER));
    assert_eq!(c.write(0, &[5; 512]), 0, "the same instance goes on");
}

#[test]
fn connections_that_fill_their_volume_together_go_on_when_it_has_room() {
    // Each reaches a session's limit of requests, and all together twice the volume's.
    const CONNECTIONS: usize = 16;
    const REQUESTS: u64 = 600;
    let mut t = setup("crowded");
    let socket = t.mdm.socket(1, 1);
    let mut all: Vec<Nbd> = (0..CONNECTIONS).map(|_| Nbd::open(&socket, "vol1")).collect();
    t.sds.iter().for_each(Sds::kill);
    all.iter_mut().for_each(|c| c.burst(REQUESTS, 512));
    std::thread::sleep(std::time::Duration::from_millis(500));
    t.sds = (1..).zip(&t.paths).map(|(i, p)| Sds::start(i, p, &t.truth)).collect();
    all.iter_mut().for_each(|c| c.burst_replies(REQUESTS, 512));
}

/// Resident memory of the daemon, MiB.
fn resident(t: &Setup) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", t.daemon.child.id())).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn clients_that_do_not_read_their_answers_cost_bounded_memory_and_hold_up_nobody() {
    const SLOW: usize = 12;
    let t = setup("slow");
    let socket = t.mdm.socket(1, 1);
    let mut c = Nbd::open(&socket, "vol1");
    // Pages without content would cost nothing.
    (0..16).for_each(|i| assert_eq!(c.write(i << 20, &vec![i as u8 + 1; 1 << 20]), 0));
    let before = resident(&t);
    let mut slow: Vec<Nbd> = (0..SLOW).map(|_| Nbd::open(&socket, "vol1")).collect();
    slow.iter_mut().for_each(|s| s.burst(400, 256 << 10));
    let mut most = 0;
    for round in 0..3 {
        let mut still = 0;
        while still < 20 {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let now = resident(&t).saturating_sub(before);
            still = if now > most { 0 } else { still + 1 };
            most = most.max(now);
            assert_eq!(c.read(4096, 4096), [1; 4096], "others are served");
        }
        // A few answers are read: what was on its way is gone.
        let few = if round < 2 { 16 } else { 0 };
        slow.iter_mut().for_each(|s| s.burst_replies(few, 256 << 10));
    }
    eprintln!("{most} MiB for {SLOW} clients");
    // What they share, what the reactor is sending, what the allocator does not give back.
    assert!(most <= 256 + 3 * SLOW as u64 + 60, "{most} MiB for {SLOW} clients");
    // Whoever reads at last gets everything.
    slow[0].burst_replies(400 - 32, 256 << 10);
}

#[test]
fn mapping_unmapping_and_extending_follow_the_view() {
    let t = setup("map");
    let first = t.mdm.socket(1, 1);
    let mut old = Nbd::open(&first, "vol1");
    t.mdm.change(5, vec![Change::Volume(volume(2, "vol2", 1 << 20, 1, true))]);
    let second = t.mdm.socket(2, 1);
    assert!(second.ends_with("vol2.sock"));
    assert_eq!(Nbd::open(&second, "").size, 1 << 20);
    // Extended: new connections see it, old ones may use it.
    t.mdm.change(6, vec![Change::Volume(volume(1, "vol1", SIZE + (1 << 20), 1, true))]);
    wait("the new size", || (Nbd::open(&first, "vol1").size == SIZE + (1 << 20)).then_some(()));
    assert_eq!(old.write(SIZE, &[1; 4096]), 0);
    t.mdm.change(7, vec![Change::Volume(volume(1, "vol1", SIZE + (1 << 20), 2, false))]);
    wait("the unmapped volume to be gone", || {
        t.mdm.attachments().filter(|l| l.iter().all(|a| a.volume != VolumeId(1)))
    });
    assert!(!first.exists());
    assert_eq!(old.reply(), None, "its connections are closed");
    t.mdm.change(8, vec![Change::Volume(volume(1, "vol1", SIZE, 3, true))]);
    let again = t.mdm.socket(1, 3);
    assert_eq!(Nbd::open(&again, "vol1").read(SIZE - 1, 1), [0]);
}

#[test]
fn an_unmap_does_not_wait_for_ever_for_a_stuck_server() {
    let t = setup("stuck");
    let socket = t.mdm.socket(1, 1);
    let mut c = Nbd::open(&socket, "vol1");
    assert_eq!(c.write(0, &[1; 4096]), 0);
    t.truth.lock().unwrap().mute = true;
    c.send(1, 0, 4096, &[2; 4096]);
    t.mdm.change(7, vec![Change::Volume(volume(1, "vol1", SIZE, 2, false))]);
    wait("the unmapped volume to be gone", || t.mdm.attachments().filter(|l| l.is_empty()));
}

#[test]
fn sigterm_waits_for_what_is_in_flight_but_not_for_ever() {
    let mut t = setup("term");
    let socket = t.mdm.socket(1, 1);
    let mut c = Nbd::open(&socket, "vol1");
    assert_eq!(c.write(0, &[1; 4096]), 0);
    t.truth.lock().unwrap().mute = true;
    c.send(1, 0, 4096, &[2; 4096]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let (status, took) = std::thread::scope(|s| {
        let stopped = s.spawn(|| t.daemon.stop());
        std::thread::sleep(std::time::Duration::from_millis(300));
        // A client that is busy goes on sending.
        c.send(1, 4096, 4096, &[3; 4096]);
        stopped.join().unwrap()
    });
    assert!(status.success() && took.as_secs() >= 4 && took.as_secs() < 10, "{status} {took:?}");
    assert_eq!(c.reply(), None, "what is not done is not answered: the client sends it again");
}

#[test]
fn a_fenced_client_says_so_and_ends() {
    let mut t = setup("fence");
    let socket = t.mdm.socket(1, 1);
    let mut c = Nbd::open(&socket, "vol1");
    assert_eq!(c.write(0, &[1; 4096]), 0);
    t.truth.lock().unwrap().mute = true;
    c.send(1, 0, 4096, &[2; 4096]);
    let newer = quarry_wire::SdcInfo {
        id: SdcId(9),
        name: "c1".into(),
        instance: Instance(78),
        host: "x".into(),
    };
    t.mdm.change(9, vec![Change::Sdc(newer)]);
    assert_eq!(t.daemon.ended().code(), Some(1));
    assert!(t.daemon.log().contains("sdc-nbd: fenced"), "{}", t.daemon.log());
    assert_eq!(c.reply(), None, "no error of the older instance reaches anybody");
}

#[test]
fn a_running_client_outlives_an_mdm_that_refuses_it_and_ends_when_it_is_removed() {
    let mut t = setup("wrong");
    let mut c = Nbd::open(&t.mdm.socket(1, 1), "vol1");
    for (n, code) in ["other_cluster", "wrong_secret"].into_iter().enumerate() {
        t.mdm.refuse(code);
        wait("it is told", || t.daemon.log().contains(code).then_some(()));
        assert_eq!(c.write(0, &[1; 4096]), 0);
        wait("it registers again", || (t.mdm.hellos().len() == n + 2).then_some(()));
    }
    assert!(t.daemon.log().contains("ERROR") && t.daemon.log().contains("mount its metadata"));
    t.mdm.refuse("removed");
    assert_eq!(t.daemon.ended().code(), Some(1));
}

#[test]
fn a_second_copy_and_another_cluster_are_refused() {
    let mut t = setup("second");
    t.mdm.socket(1, 1);
    let out = Daemon::command(&t.daemon.dir, &t.mdm.addr).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        !out.status.success() && said.contains(&format!("process {}", t.daemon.child.id())),
        "{said}"
    );
    t.daemon.stop();
    std::fs::write(t.daemon.dir.join("data/cluster"), "another\n").unwrap();
    let out = Daemon::command(&t.daemon.dir, &t.mdm.addr).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("belongs to cluster another"), "{said}");
}

#[test]
fn a_metrics_port_in_use_is_named() {
    let dir = directory("port");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let mut c = Daemon::command(&dir, "127.0.0.1:1");
    let args: Vec<_> = c.get_args().map(|a| a.to_os_string()).collect();
    c = Command::new(c.get_program());
    c.args(&args[..args.len() - 1]).arg(&at);
    let out = c.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains(&at) && said.contains("in use"), "{said}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn servers_on_other_hosts_are_reached_by_tcp() {
    let dir = directory("tcp");
    let paths = vec![dir.join("sds1.sock"), dir.join("sds2.sock")];
    let truth: Arc<Mutex<Truth>> = Arc::default();
    let _sds = Sds::start(1, &paths[0], &truth);
    let mut v = view(&paths, 1);
    let info = v.sds.get_mut(&SdsId(1)).unwrap();
    // The path is a trap: nobody may take it on another host.
    info.endpoints[0].unix = Some(dir.join("trap.sock"));
    info.endpoints[0].tcp = Some(tcp_front(&paths[0]));
    info.host = "another".into();
    let mdm = Mdm::start(v);
    let _daemon = Daemon::start(&dir, &mdm.addr);
    let mut c = Nbd::open(&mdm.socket(1, 1), "vol1");
    let data = vec![9; 2 << 20];
    assert_eq!(c.write(4096, &data), 0);
    assert!(c.read(4096, 2 << 20) == data);
}

#[test]
fn a_client_that_vanishes_leaves_nothing_behind() {
    let t = setup("vanish");
    let socket = t.mdm.socket(1, 1);
    let mut stay = Nbd::open(&socket, "vol1");
    for round in 0..20u8 {
        let mut c = Nbd::open(&socket, "vol1");
        for i in 0..64 {
            c.send(1, i * 4096, 4096, &[round; 4096]);
            c.send(0, i * 4096, 4096, &[]);
        }
        drop(c);
        assert_eq!(stay.write(0, &[100 + round; 4096]), 0);
        assert_eq!(stay.read(0, 4096), [100 + round; 4096]);
    }
    let requests = wait("the gauge to fall", || {
        let at = t.mdm.hellos()[0].metrics.clone().unwrap();
        let host = at.trim_start_matches("http://").trim_end_matches("/metrics");
        let text = http_get(host, "/metrics");
        text.contains("quarry_sdc_in_flight{volume=\"vol1\"} 0").then_some(text)
    });
    assert!(
        requests.contains("quarry_sdc_requests_total{volume=\"vol1\",op=\"write\"}"),
        "{requests}"
    );
}

#[test]
fn without_the_kernels_driver_the_socket_works_and_the_reason_is_told() {
    if std::path::Path::new("/sys/module/nbd").exists()
        || std::path::Path::new("/sys/block/nbd0").exists()
    {
        eprintln!("this kernel has nbd: skipped");
        return;
    }
    let t = setup("nodriver");
    t.mdm.socket(1, 1);
    let mut v = volume(1, "vol1", SIZE, 2, true);
    v.mappings[0].device = true;
    t.mdm.change(5, vec![Change::Volume(v)]);
    let told = wait("the attachment", || {
        let list = t.mdm.attachments()?;
        list.into_iter().find(|a| a.volume.0 == 1 && a.generation.0 == 2)
    });
    assert!(told.error.unwrap().contains("NBD driver") && told.device.is_none());
    assert_eq!(Nbd::open(&told.socket.unwrap(), "vol1").write(0, &[1; 512]), 0);
    t.mdm.change(6, vec![Change::Volume(volume(1, "vol1", SIZE, 3, false))]);
    wait("the unmapped volume to be gone", || t.mdm.attachments().filter(|l| l.is_empty()));
}

#[test]
fn real_clients_work() {
    let t = setup("clients");
    let socket = t.mdm.socket(1, 1);
    let uri = format!("nbd+unix:///vol1?socket={}", socket.display());
    let file = t.daemon.dir.join("img");
    let data: Vec<u8> = (0..SIZE as u32).map(|i| (i / 4096 * 31 + i) as u8).collect();
    std::fs::write(&file, &data).unwrap();
    let back = t.daemon.dir.join("back");
    let (file, back) = (file.to_str().unwrap(), back.to_str().unwrap());
    let runs: Vec<Vec<&str>> = vec![
        vec!["nbdinfo", &uri],
        vec!["nbdinfo", "--map", &uri],
        vec!["nbdcopy", file, &uri],
        vec!["nbdcopy", &uri, back],
        vec![
            "qemu-io",
            "-f",
            "raw",
            &uri,
            "-c",
            "read -P 0 0 1",
            "-c",
            "write -P 7 513 70000",
            "-c",
            "read -P 7 513 70000",
            "-c",
            "write -z 4096 2M",
            "-c",
            "read -P 0 4096 2M",
            "-c",
            "discard 0 16M",
            "-c",
            "flush",
        ],
    ];
    for run in runs {
        let out = match Command::new(run[0]).args(&run[1..]).output() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("{} is not installed: skipped", run[0]);
                continue;
            }
            r => r.unwrap(),
        };
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        assert!(
            out.status.success() && !said.contains("Pattern verification failed"),
            "{run:?}: {said}"
        );
        if run[0] == "nbdcopy" && run[2] == back {
            assert!(std::fs::read(back).unwrap() == data, "nbdcopy read other data");
        }
    }
}
