//! The server and its MDM: registration, identity, broken sessions, the end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
use common::*;
use quarry_control::{FromNode, Role, ToNode};
use std::time::{Duration, Instant};

#[test]
fn a_fresh_device_is_formatted_after_registration_and_keeps_its_identity() {
    let (d, mdm) = (Dir::new("fresh"), Mdm::new());
    let mut server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    assert_eq!((s.hello.role, s.hello.name.as_str()), (Role::Sds, "a"));
    assert_eq!((s.hello.cluster.clone(), s.hello.resume), (None, None));
    assert_eq!((s.hello.devices.len(), s.hello.endpoints.len()), (1, 1));
    assert!(s.hello.devices[0].pgs.is_empty() && s.hello.devices[0].failed.is_none());
    let uuid = s.hello.devices[0].uuid.clone();
    s.register(7, 100);
    s.until_open();
    server.kill();
    drop(s);

    let _server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    assert_eq!(s.hello.cluster.as_deref(), Some(CLUSTER));
    assert_eq!(s.hello.devices[0].uuid, uuid, "read from the device now");
    assert_eq!(s.hello.resume, None, "another process");
}

#[test]
fn a_crash_before_formatting_does_not_register_the_device_twice() {
    let (d, mdm) = (Dir::new("crash"), Mdm::new());
    let mut server = Server::start(&d, "a", &mdm);
    let uuid = mdm.accept().hello.devices[0].uuid.clone();
    server.kill();
    let _server = Server::start(&d, "a", &mdm);
    assert_eq!(mdm.accept().hello.devices[0].uuid, uuid);
}

#[test]
fn a_redialled_session_names_the_start_it_was_given() {
    let (d, mdm) = (Dir::new("resume"), Mdm::new());
    let _server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    s.register(1, 55);
    let capacity = s.until_open();
    drop(s);
    let s = mdm.accept();
    assert_eq!(s.hello.resume, Some(55));
    assert_eq!(s.hello.devices[0].capacity_bytes, capacity);
    s.register(1, 56);
    s.until_open();
    drop(s);
    assert_eq!(mdm.accept().hello.resume, Some(56), "the newest one counts");
}

#[test]
fn a_refusal_is_said_and_ends_the_process() {
    let (d, mdm) = (Dir::new("refused"), Mdm::new());
    let mut server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    let sockets = || {
        let all = std::fs::read_dir(&d.0).unwrap();
        all.filter(|e| e.as_ref().is_ok_and(|e| e.path().extension().is_some_and(|x| x == "sock")))
            .count()
    };
    assert_eq!(sockets(), 1);
    s.send(&ToNode::Refused {
        code: "bad_secret".into(),
        message: "the secret does not match".into(),
        hint: "copy it from the MDM".into(),
    });
    assert_eq!(server.ended().code(), Some(1));
    let text = server.text();
    assert!(
        text.contains("the secret does not match") && text.contains("copy it from the MDM"),
        "{text}"
    );
    assert_eq!(sockets(), 0, "its socket file is left behind");
}

#[test]
fn a_running_server_outlives_an_mdm_that_refuses_it_and_ends_when_it_is_removed() {
    let (d, mdm) = (Dir::new("wrong"), Mdm::new());
    let mut server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    s.register(7, 100);
    s.until_open();
    let mut client = Client::greet(&s, 1);
    drop(s);
    let refuse = |s: &Session, code: &str| {
        let (message, hint) = ("it is another one".to_string(), "mount its metadata".to_string());
        s.send(&ToNode::Refused { code: code.into(), message, hint });
    };
    refuse(&mdm.accept(), "other_cluster");
    let s = mdm.accept();
    client.send(quarry_wire::Frame::bare(quarry_wire::Header::new(quarry_wire::Op::Ping)));
    assert_eq!(client.recv().unwrap().header.op, quarry_wire::Op::Pong, "it serves on");
    let health = page(&s, "/healthz");
    assert!(health.contains(" 503 ") && health.contains("other_cluster"), "{health}");
    let text = server.text();
    assert!(text.contains("ERROR") && text.contains("mount its metadata"), "{text}");
    refuse(&s, "wrong_secret");
    let s = mdm.accept();
    assert_eq!(s.hello.resume, Some(100), "the same process");
    s.register(7, 100);
    s.until_open();
    drop(s);
    refuse(&mdm.accept(), "removed");
    assert_eq!(server.ended().code(), Some(1));
}

#[test]
fn another_clusters_mdm_is_not_obeyed() {
    let (d, mdm) = (Dir::new("cluster"), Mdm::new());
    let mut server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    s.register(1, 1);
    s.until_open();
    drop(s);
    let s = mdm.accept();
    s.register_in("ffffffffffffffffffffffffffffffff", 1, 2);
    assert_eq!(server.ended().code(), Some(1));
    assert!(server.text().contains("another cluster"), "{}", server.text());
}

#[test]
fn a_device_of_another_cluster_is_refused() {
    let (d, mdm) = (Dir::new("swap"), Mdm::new());
    format_device(&d, &mdm);
    let state = d.0.join("a-data/sds.json");
    let text = std::fs::read_to_string(&state).unwrap();
    std::fs::write(&state, text.replace(CLUSTER, &"f".repeat(32))).unwrap();
    let mut server = Server::start(&d, "a", &mdm);
    assert_eq!(server.ended().code(), Some(1));
    let text = server.text();
    assert!(text.contains("belongs to cluster") && text.contains("format --force"), "{text}");
}

#[test]
fn sigterm_ends_a_registered_server_quickly_with_status_0() {
    let (d, mdm) = (Dir::new("term"), Mdm::new());
    let mut server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    s.register(1, 1);
    s.until_open();
    let socket = s.hello.endpoints[0].unix.clone().unwrap();
    let start = Instant::now();
    server.terminate();
    assert!(server.ended().success());
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(!socket.exists(), "the socket goes with the server");
}

#[test]
fn garbage_closes_its_connection_only_and_is_counted() {
    let (d, mdm) = (Dir::new("garbage"), Mdm::new());
    let _server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    s.register(1, 1);
    s.until_open();
    let mut good = Client::greet(&s, 1);
    let mut bad = Client::connect(&s);
    bad.raw(&[0x55; 4096]);
    assert!(bad.recv().is_none(), "closed");
    good.send(quarry_wire::Frame::bare(quarry_wire::Header::new(quarry_wire::Op::Ping)));
    assert_eq!(good.recv().unwrap().header.op, quarry_wire::Op::Pong);
    let page = metrics(&s);
    assert!(page.contains("quarry_sds_wire_errors_total 1"), "{page}");
}

#[test]
fn heartbeats_come_as_often_as_asked_and_carry_counters() {
    let (d, mdm) = (Dir::new("beat"), Mdm::new());
    let _server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    s.register(3, 1);
    s.until_open();
    let start = Instant::now();
    for _ in 0..10 {
        match s.recv() {
            FromNode::Heartbeat { devices, counters, .. } => {
                assert_eq!(devices[0].0 .0, 3);
                assert!(counters.iter().any(|(n, _)| n.starts_with("sds.")), "{counters:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_cluster_id_written_as_a_uuid_is_the_same_cluster_after_a_restart() {
    let (d, mdm) = (Dir::new("uuid"), Mdm::new());
    let mut server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    let text = "00112233-4455-6677-8899-aabbccddeeff";
    s.register_in(text, 1, 1);
    s.until_open();
    server.kill();
    drop(s);
    let _server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    assert_eq!(s.hello.cluster.as_deref(), Some(text), "in the MDM's spelling");
    s.register_in(text, 1, 2);
    s.until_open();
}

#[test]
fn the_bounds_of_a_device_and_how_close_it_is_to_them_are_exported() {
    let (d, mdm) = (Dir::new("bounds"), Mdm::new());
    format_device(&d, &mdm);
    let _server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    s.register(1, 2);
    s.until_open();
    let label = format!("device=\"{}\"", d.0.join("a.img").display());
    let value = |page: &str, name: &str, more: &str| {
        let line = page.lines().find(|l| {
            l.starts_with(&format!("{name}{{")) && l.contains(&label) && l.contains(more)
        });
        let line = line.unwrap_or_else(|| panic!("no {name} {more} in {page}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let limit = Instant::now() + Duration::from_secs(10);
    let page = loop {
        let page = metrics(&s);
        if value(&page, "quarry_device_headroom_blocks", "") > 0.0 {
            break page;
        }
        assert!(Instant::now() < limit, "no levels: {page}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let of = |name: &str| value(&page, name, "");
    for counter in [
        "log_full",
        "log_batches",
        "log_records",
        "relogged_records",
        "checkpoints",
        "syncs",
        "destaged_pages",
        "direct_writes",
    ] {
        assert!(of(&format!("quarry_device_{counter}_total")) >= 0.0);
    }
    assert_eq!((of("quarry_device_dirty_pages"), of("quarry_device_tombstones")), (0.0, 0.0));
    // 160 MiB less its log, its table and the reserve.
    let blocks = of("quarry_device_headroom_blocks");
    assert!((1500.0..2048.0).contains(&blocks), "{blocks}");
    assert!(of("quarry_device_log_headroom_bytes") > f64::from(16 << 20));
    assert!(of("quarry_device_table_memory_bytes") > 0.0, "measured at once");
    let open = of("quarry_device_open_seconds");
    assert!(open > 0.0 && open < 20.0, "{open}");
    for (kind, n) in [("log_batches", 8.0), ("reads", 256.0), ("destages", 16.0)] {
        let kind = format!("kind=\"{kind}\"");
        assert_eq!(value(&page, "quarry_device_in_flight_limit", &kind), n);
    }
    assert!(page.contains("quarry_sds_disk_in_flight_limit 8192"), "{page}");
}
