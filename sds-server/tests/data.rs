//! The whole server with real sockets and device files: writes, reads, crashes, replication. The MDM and
//! the client are played by the tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
use common::*;
use quarry_base::*;
use quarry_control::{FromNode, Proposal, ToNode};
use quarry_wire::*;
use std::time::{Duration, Instant};

const PG: PgId = PgId::new(PoolId(1), 0);
const INSTANCE: Instance = Instance(5);

fn member(n: u32, start: u64) -> Member {
    Member { device: DeviceId(n), sds: SdsId(n), start: StartNo(start) }
}

fn config(
    epoch: u64,
    primary: u32,
    in_sync: &[Member],
    syncing: &[Member],
    copies: u8,
) -> PgConfig {
    PgConfig {
        pg: PG,
        epoch: Epoch(epoch),
        index: ConfigIndex(10 + epoch),
        primary: Some(DeviceId(primary)),
        in_sync: in_sync.to_vec(),
        syncing: syncing.to_vec(),
        listed: (1..=u32::from(copies)).map(DeviceId).collect(),
        copies,
        min_copies: 1,
        line: Epoch::ZERO,
        fell: Epoch::ZERO,
    }
}

fn volume() -> VolumeInfo {
    VolumeInfo {
        id: VolumeId(1),
        name: "v".into(),
        vtree: VtreeId(1),
        pool: PoolId(1),
        size_bytes: 1 << 30,
        generation: Generation(1),
        mappings: [1, 2]
            .map(|sdc| MapEntry {
                sdc: SdcId(sdc),
                read_only: false,
                io_timeout_ms: 0,
                device: false,
                since: Generation(1),
            })
            .to_vec(),
        thick: false,
    }
}

/// A view with one group, one mapped volume, and these servers.
fn view(pg: PgConfig, servers: &[SdsInfo]) -> ToNode {
    let mut v = ClusterView { index: pg.index, ..ClusterView::default() };
    v.apply(Change::Pool(PoolInfo {
        id: PoolId(1),
        name: "default".into(),
        pg_count: 1,
        cached: false,
        confirm: false,
        rebuild_bytes_per_second: 0,
        scrub_bytes_per_second: None,
    }));
    for sdc in [1, 2] {
        v.apply(Change::Sdc(SdcInfo {
            id: SdcId(sdc),
            name: format!("c{sdc}"),
            instance: instance_of(sdc),
            host: String::new(),
        }));
    }
    v.apply(Change::Volume(volume()));
    for s in servers {
        v.apply(Change::Sds(s.clone()));
        v.apply(Change::Device(DeviceInfo {
            id: DeviceId(s.id.0),
            sds: s.id,
            pool: PoolId(1),
            shard: 0,
        }));
    }
    v.apply(Change::Pg(pg));
    ToNode::Snapshot(v)
}

fn change(pg: PgConfig) -> ToNode {
    ToNode::Changes { index: pg.index, changes: vec![Change::Pg(pg)] }
}

/// A client that repeats what it is told to repeat.
struct User {
    instance: Instance,
    client: Client,
    next: u64,
    epoch: u64,
}

/// The newest start of a client.
fn instance_of(sdc: u32) -> Instance {
    Instance(INSTANCE.0 + u64::from(sdc) - 1)
}

fn page(n: u64) -> Vec<u8> {
    (0..PAGE).map(|i| (i as u64).wrapping_mul(n + 3).wrapping_add(n) as u8).collect()
}

impl User {
    fn new(s: &Session, epoch: u64) -> User {
        // Request ids count on over servers: one instance, one counter.
        User::of(s, 1, epoch)
    }

    fn of(s: &Session, sdc: u32, epoch: u64) -> User {
        let instance = instance_of(sdc);
        User { client: Client::greet_as(s, sdc, instance.0), instance, next: 1, epoch }
    }

    fn header(&mut self, op: Op, at: u32, len: usize) -> Header {
        let mut h = Header::new(op);
        h.pg = PG;
        h.epoch = Epoch(self.epoch);
        h.instance = self.instance;
        h.generation = Generation(1);
        h.request_id = RequestId(self.next);
        h.lowest_unanswered = RequestId(self.next);
        h.vtree = VtreeId(1);
        h.offset = at;
        h.length = len as u32;
        self.next += 1;
        h
    }

    /// Sends and waits for the answer, again while told to try again.
    fn ask(&mut self, f: &Frame) -> Frame {
        let start = Instant::now();
        loop {
            self.client.send(f.clone());
            let answer = self.client.recv().expect("the server hung up");
            if answer.header.op == Op::Ping {
                continue;
            }
            assert_eq!(answer.header.request_id, f.header.request_id);
            let again = matches!(answer.header.status, Status::TryAgain);
            if !again {
                return answer;
            }
            assert!(start.elapsed() < Duration::from_secs(15), "told to try again for too long");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn write_frame(&mut self, at: u32, data: &[u8]) -> Frame {
        let h = self.header(Op::Write, at, data.len());
        Frame::with_data(h, data.to_vec().into(), &crc_pieces(at, data))
    }

    fn write(&mut self, at: u32, data: &[u8]) -> Status {
        let f = self.write_frame(at, data);
        self.ask(&f).header.status
    }

    fn read(&mut self, at: u32, len: usize) -> Vec<u8> {
        let f = Frame::bare(self.header(Op::Read, at, len));
        let answer = self.ask(&f);
        assert_eq!((answer.header.op, answer.header.status), (Op::ReadReply, Status::Ok));
        answer.verify_data().expect("checksums of a read");
        answer.data.to_vec()
    }
}

/// One server with the only copy, serving at epoch 1.
fn alone(dir: &Dir, mdm: &Mdm) -> (Server, Session) {
    let server = Server::start(dir, "a", mdm);
    let s = mdm.accept();
    s.register(1, 1);
    s.until_open();
    s.send(&view(config(1, 1, &[member(1, 1)], &[], 1), &[s.info(1, 1)]));
    (server, s)
}

#[test]
fn acknowledged_writes_survive_kill_9_and_come_back_with_a_new_epoch() {
    let (d, mdm) = (Dir::new("survive"), Mdm::new());
    let (mut server, s) = alone(&d, &mdm);
    let mut u = User::new(&s, 1);
    for n in 0..20u64 {
        assert_eq!(u.write(n as u32 * 8192, &page(n)), Status::Ok);
    }
    let big: Vec<u8> = (0..32).flat_map(|n| page(100 + n)).collect();
    assert_eq!(u.write(512 << 10, &big), Status::Ok, "128 KiB, straight to blocks");
    assert_eq!(u.write(100, b"a few bytes"), Status::Ok, "merged into a page");
    server.kill();
    drop(s);

    let _server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    let have = &s.hello.devices[0].pgs;
    assert_eq!(have.len(), 1);
    assert_eq!(have[0].config.as_ref().map(|c| c.epoch), Some(Epoch(1)));
    assert!(have[0].last.seq.0 >= 22, "{have:?}");
    s.register(1, 2);
    s.send(&view(config(2, 1, &[member(1, 2)], &[], 1), &[s.info(1, 2)]));
    let mut u = User { next: 1000, ..User::new(&s, 2) };
    let mut first = page(0);
    first[100..111].copy_from_slice(b"a few bytes");
    assert!(u.read(0, PAGE) == first);
    for n in 1..20u64 {
        assert!(u.read(n as u32 * 8192, PAGE) == page(n), "page {n}");
    }
    assert!(u.read(512 << 10, big.len()) == big);
    assert!(u.read(4096, PAGE).iter().all(|b| *b == 0), "never written");
}

#[test]
fn requests_of_an_old_epoch_or_instance_are_refused() {
    let (d, mdm) = (Dir::new("stale"), Mdm::new());
    let (_server, s) = alone(&d, &mdm);
    let mut u = User::new(&s, 1);
    assert_eq!(u.write(0, &page(1)), Status::Ok);
    let pg = config(2, 1, &[member(1, 1)], &[], 1);
    s.send(&change(pg.clone()));
    // The heartbeat says that the change is applied.
    s.until(|m| match m {
        FromNode::Heartbeat { applied, .. } if applied >= pg.index => Some(()),
        _ => None,
    });
    let f = u.write_frame(0, &page(2));
    let answer = u.ask(&f);
    assert_eq!(answer.header.status, Status::StaleEpoch);
    assert_eq!(PgConfig::from_meta(&answer.meta), Some(pg), "the answer brings the configuration");
    u.epoch = 2;
    let (client, instance) = (Client::greet(&s, 4), INSTANCE);
    let mut old = User { client, instance, next: 500, epoch: 2 };
    let mut f = old.write_frame(0, &page(3));
    f.header.instance = Instance(4);
    assert_eq!(old.ask(&f).header.status, Status::StaleInstance);
    assert!(u.read(0, PAGE) == page(1));
}

#[test]
fn a_client_that_connects_anew_has_given_its_older_connections_up() {
    let (d, mdm) = (Dir::new("older"), Mdm::new());
    let (_server, s) = alone(&d, &mdm);
    let mut old = User::new(&s, 1);
    assert_eq!(old.write(0, &page(1)), Status::Ok);
    // It waits in the network, is given up by the client, and comes after what was written since.
    let late = old.write_frame(0, &page(2));
    let mut new = User { next: old.next, ..User::new(&s, 1) };
    let mut f = new.write_frame(0, &page(3));
    f.header.lowest_unanswered = late.header.request_id;
    assert_eq!(new.ask(&f).header.status, Status::Ok);
    let _closed_already = old.client.try_send(late);
    while let Some(answer) = old.client.recv() {
        assert_eq!(answer.header.op, Op::Ping, "it is carried out");
    }
    assert!(new.read(0, PAGE) == page(3));
}

#[test]
fn a_lease_does_not_cover_a_group_whose_copy_was_given_away_meanwhile() {
    let (d, mdm) = (Dir::new("given-away"), Mdm::new());
    let (_server, s) = alone(&d, &mdm);
    let peer = Peer::SdsHeartbeat { id: SdsId(2), start: StartNo(1) };
    let mut asker = Client::greet_by(&s, peer);
    let mut asked = 0;
    let mut ask = |index: u64| {
        asked += 1;
        let mut h = Header::new(Op::GrantAsk);
        (h.request_id, h.start) = (RequestId(asked), StartNo(1));
        h.config_index = ConfigIndex(index);
        asker.send(Frame::bare(h));
        let answer = asker.recv().expect("an answer");
        assert_eq!((answer.header.op, answer.header.status), (Op::GrantAnswer, Status::Ok));
        answer.meta.len()
    };
    let nothing = ask(11);
    let pg = PgConfig { listed: vec![DeviceId(2)], ..config(2, 2, &[member(2, 1)], &[], 1) };
    s.send(&change(pg.clone()));
    s.until(|m| match m {
        FromNode::Heartbeat { applied, .. } if applied >= pg.index => Some(()),
        _ => None,
    });
    // One that slept and knows the first configuration only is told of the second, although nothing of the group is here.
    assert!(ask(11) > nothing);
    assert_eq!(ask(12), nothing);
}

#[test]
fn a_damaged_write_is_refused_and_the_connection_stays() {
    let (d, mdm) = (Dir::new("damaged"), Mdm::new());
    let (_server, s) = alone(&d, &mdm);
    let mut u = User::new(&s, 1);
    assert_eq!(u.write(0, &page(1)), Status::Ok);
    let mut f = u.write_frame(0, &page(2));
    f.header.data_crc ^= 1;
    assert_eq!(u.ask(&f).header.status, Status::BadChecksum);
    assert!(u.read(0, PAGE) == page(1));
}

#[test]
fn a_clean_stop_leaves_everything_and_hands_over_first() {
    let (d, mdm) = (Dir::new("clean"), Mdm::new());
    let (mut server, s) = alone(&d, &mdm);
    let mut u = User::new(&s, 1);
    for n in 0..64u64 {
        assert_eq!(u.write(n as u32 * 4096, &page(n)), Status::Ok);
    }
    server.terminate();
    s.until(|m| matches!(m, FromNode::Propose { proposal: Proposal::HandOver, .. }).then_some(()));
    assert!(server.ended().success());
    drop(s);
    let _server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    s.register(1, 2);
    s.send(&view(config(2, 1, &[member(1, 2)], &[], 1), &[s.info(1, 2)]));
    let mut u = User { next: 1000, ..User::new(&s, 2) };
    let all: Vec<u8> = (0..64).flat_map(page).collect();
    assert!(u.read(0, all.len()) == all);
}

#[test]
fn a_dead_member_is_reported_removed_healed_and_can_take_over() {
    let (d, mdm) = (Dir::new("pair"), Mdm::new());
    let _a = Server::start(&d, "a", &mdm);
    let sa = mdm.accept();
    sa.register(1, 1);
    sa.until_open();
    let mut b = Server::start(&d, "b", &mdm);
    let sb = mdm.accept();
    sb.register(2, 2);
    sb.until_open();
    let servers = [sa.info(1, 1), sb.info(2, 2)];
    let both = config(1, 1, &[member(1, 1), member(2, 2)], &[], 2);
    for s in [&sa, &sb] {
        s.send(&view(both.clone(), &servers));
    }
    let mut u = User::new(&sa, 1);
    for n in 0..10u64 {
        assert_eq!(u.write(n as u32 * 4096, &page(n)), Status::Ok);
    }
    assert!(u.read(0, PAGE) == page(0));

    // b dies: the next write waits until b is removed.
    b.kill();
    drop(sb);
    let f = u.write_frame(10 * 4096, &page(10));
    u.client.send(f.clone());
    let (pg, epoch, device) = sa.until(|m| match m {
        FromNode::Propose {
            proposal: Proposal::MemberSilent { pg, epoch, device, .. }, ..
        } => Some((pg, epoch, device)),
        _ => None,
    });
    assert_eq!((pg, epoch, device), (PG, Epoch(1), DeviceId(2)));
    sa.send(&change(config(2, 1, &[member(1, 1)], &[], 2)));
    let answer = u.client.recv().unwrap();
    if answer.header.status != Status::Ok {
        assert_eq!(answer.header.status, Status::StaleEpoch, "given back without a number");
        u.epoch = 2;
        let mut again = f;
        again.header.epoch = Epoch(2);
        assert_eq!(u.ask(&again).header.status, Status::Ok);
    }
    u.epoch = 2;
    assert_eq!(u.write(11 * 4096, &page(11)), Status::Ok, "goes on with one copy");

    // b comes back, is synced and proposed.
    let _b = Server::start(&d, "b", &mdm);
    let sb = mdm.accept();
    assert!(!sb.hello.devices[0].pgs.is_empty(), "it says what it has");
    sb.register(2, 3);
    let healing = config(3, 1, &[member(1, 1)], &[member(2, 3)], 2);
    let servers = [sa.info(1, 1), sb.info(2, 3)];
    for s in [&sa, &sb] {
        s.send(&view(healing.clone(), &servers));
    }
    sa.until(|m| match m {
        FromNode::Propose {
            proposal: Proposal::Add { epoch: Epoch(3), device: DeviceId(2), .. },
            ..
        } => Some(()),
        _ => None,
    });
    let healed = config(4, 1, &[member(1, 1), member(2, 3)], &[], 2);
    for s in [&sa, &sb] {
        s.send(&change(healed.clone()));
    }
    u.epoch = 4;
    assert_eq!(u.write(12 * 4096, &page(12)), Status::Ok, "both again");

    // b leads alone and has everything.
    sb.send(&change(config(5, 2, &[member(2, 3)], &[], 2)));
    let mut v = User { next: 5000, ..User::new(&sb, 5) };
    for n in 0..13u64 {
        assert!(v.read(n as u32 * 4096, PAGE) == page(n), "page {n}");
    }
    assert_eq!(v.write(0, &page(50)), Status::Ok);
}

#[test]
fn servers_on_other_hosts_are_reached_over_tcp() {
    let (d, mdm) = (Dir::new("tcp"), Mdm::new());
    let _a = Server::start(&d, "a", &mdm);
    let sa = mdm.accept();
    sa.register(1, 1);
    sa.until_open();
    let _b = Server::start(&d, "b", &mdm);
    let sb = mdm.accept();
    sb.register(2, 2);
    sb.until_open();
    // As the other one sees it: another host, so its socket file means nothing.
    let far = |s: SdsInfo| SdsInfo { host: "elsewhere".into(), ..s };
    let both = config(1, 1, &[member(1, 1), member(2, 2)], &[], 2);
    sa.send(&view(both.clone(), &[sa.info(1, 1), far(sb.info(2, 2))]));
    sb.send(&view(both, &[far(sa.info(1, 1)), sb.info(2, 2)]));
    let unix = sb.hello.endpoints[0].unix.clone().unwrap();
    std::fs::remove_file(unix).unwrap();
    let mut u = User::new(&sa, 1);
    assert_eq!(u.write(0, &page(1)), Status::Ok);
    assert!(u.read(0, PAGE) == page(1));
}

#[test]
fn a_vanished_socket_file_is_no_obstacle_on_the_same_host() {
    let (d, mdm) = (Dir::new("vanished"), Mdm::new());
    let _a = Server::start(&d, "a", &mdm);
    let sa = mdm.accept();
    sa.register(1, 1);
    sa.until_open();
    let _b = Server::start(&d, "b", &mdm);
    let sb = mdm.accept();
    sb.register(2, 2);
    sb.until_open();
    std::fs::remove_file(sb.hello.endpoints[0].unix.clone().unwrap()).unwrap();
    let both = config(1, 1, &[member(1, 1), member(2, 2)], &[], 2);
    for s in [&sa, &sb] {
        s.send(&view(both.clone(), &[sa.info(1, 1), sb.info(2, 2)]));
    }
    let mut u = User::new(&sa, 1);
    assert_eq!(u.write(0, &page(1)), Status::Ok, "TCP is tried next");
}

#[test]
fn a_client_that_takes_no_answers_is_not_read_from_and_harms_nobody() {
    let (d, mdm) = (Dir::new("slow"), Mdm::new());
    let (_server, s) = alone(&d, &mdm);
    let mut good = User::new(&s, 1);
    let big: Vec<u8> = (0..128).flat_map(page).collect();
    assert_eq!(good.write(0, &big), Status::Ok);
    // Reads of 512 KiB each, never taken: 64 MiB of answers.
    let mut slow = User { next: 10_000, ..User::of(&s, 2, 1) };
    let asks: Vec<Frame> =
        (0..128).map(|_| Frame::bare(slow.header(Op::Read, 0, big.len()))).collect();
    for f in &asks {
        slow.client.send(f.clone());
    }
    for n in 0..20 {
        assert!(good.read(n * 4096, PAGE) == page(u64::from(n)), "others are served");
    }
    // Once it takes them it gets every answer.
    for _ in &asks {
        let f = slow.client.recv().expect("it was not cut off");
        assert_eq!(f.header.op, Op::ReadReply);
        assert!(f.data == big);
    }
}

/// What the scrub of the server's device reads a second at most, as its metrics tell.
fn until_scrub_rate(s: &Session, want: u64) {
    let start = Instant::now();
    loop {
        let page = metrics(s);
        let of = |name: &str| {
            let line = page.lines().find(|l| l.starts_with(&format!("{name}{{")));
            line.and_then(|l| l.rsplit(' ').next()).and_then(|n| n.parse::<f64>().ok())
        };
        let now = of("quarry_scrub_rate_bytes_per_second");
        // Before its store is open it says nothing.
        if now == Some(want as f64) && of("quarry_scrub_blocks").is_some_and(|n| n > 0.0) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(15), "{now:?}, not {want}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_scrub_keeps_to_its_pools_rate_live_and_over_a_restart() {
    const OWN: u64 = 8 << 20;
    let (d, mdm) = (Dir::new("scrub"), Mdm::new());
    let with_rate = |m: ToNode, rate| {
        let ToNode::Snapshot(mut v) = m else { panic!("a snapshot") };
        v.pools.values_mut().for_each(|p| p.scrub_bytes_per_second = rate);
        v
    };
    let mut server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    s.register(1, 1);
    s.until_open();
    until_scrub_rate(&s, 0);
    let first = with_rate(view(config(1, 1, &[member(1, 1)], &[], 1), &[s.info(1, 1)]), None);
    let mut pool = first.pools[&PoolId(1)].clone();
    s.send(&ToNode::Snapshot(first));
    until_scrub_rate(&s, OWN);
    for (n, rate) in [(20, Some(0)), (21, Some(32 << 20)), (22, None), (23, Some(64 << 10))] {
        pool.scrub_bytes_per_second = rate;
        let changes = vec![Change::Pool(pool.clone())];
        s.send(&ToNode::Changes { index: ConfigIndex(n), changes });
        until_scrub_rate(&s, rate.unwrap_or(OWN));
    }
    server.kill();
    drop(s);

    let _server = Server::start(&d, "a", &mdm);
    let s = mdm.accept();
    s.register(1, 2);
    s.until_open();
    until_scrub_rate(&s, 0);
    let again = view(config(2, 1, &[member(1, 2)], &[], 1), &[s.info(1, 2)]);
    s.send(&ToNode::Snapshot(with_rate(again, Some(64 << 10))));
    until_scrub_rate(&s, 64 << 10);
    let changes = vec![Change::DeviceGone(DeviceId(1))];
    s.send(&ToNode::Changes { index: ConfigIndex(30), changes });
    until_scrub_rate(&s, OWN);
}
