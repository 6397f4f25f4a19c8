//! A relay stands in front of one server, for its clients and for the other servers, and misbehaves: it holds requests and lets
//! them arrive after their client has asked again elsewhere, cuts in the middle of messages, flips bits, delays. Rows 14 to 17
//! of the fault table.

use nbd::consts::CMD_WRITE;
use nbd::raw::Raw;
use proxy::{Proxy, Way};
use quarry_base::PAGE;
use quarry_tests::*;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(5);
/// Servers publish what they count twice a second.
const PUBLISHED: Duration = Duration::from_millis(700);

/// A cluster behind the relays, and a volume.
fn behind_relays(name: &str, cases: impl FnOnce(&World<'_>, &mut Cases)) -> Res<()> {
    if let Some(why) = net::Network::unavailable() {
        skip(name, &why);
        return Ok(());
    }
    let net = net::for_cluster(3, 1)?;
    // One for the client, one for the two other servers.
    let front = Proxy::start(&net.gateway(), net.data("sds1")?)?;
    let back = Proxy::start(&net.gateway(), net.data("sds1")?)?;
    net.divert("sdc1", "sds1", front.address())?;
    net.divert("sds2", "sds1", back.address())?;
    net.divert("sds3", "sds1", back.address())?;
    with_members(ClusterOptions::default(), net.members(), |cluster| {
        let uri = cluster.new_volume("relay", "128MiB", "sdc1")?;
        let w = World { cluster, front: &front, back: &back, uri };
        let mut all = Cases::new();
        cases(&w, &mut all);
        ensure!(
            front.connections() > 0 && back.connections() > 0,
            "nothing went through the relays"
        );
        all.case("all copies are identical", || cluster.expect_identical_replicas().map(drop));
        all.finish()
    })
}

#[test]
fn late_and_repeated_messages_are_never_applied() -> Res<()> {
    behind_relays("late_and_repeated_messages_are_never_applied", |w, cases| {
        cases.case("row 16: late and repeated requests", || w.late());
    })
}

#[test]
#[ignore = "row 15: takes its turn"]
fn messages_cut_in_the_middle_are_never_applied() -> Res<()> {
    behind_relays("messages_cut_in_the_middle_are_never_applied", |w, cases| {
        cases.case("row 15: connections cut in the middle of messages", || w.cut());
    })
}

#[test]
#[ignore = "row 17: takes its turn"]
fn damaged_messages_are_never_applied() -> Res<()> {
    behind_relays("damaged_messages_are_never_applied", |w, cases| {
        cases.case("row 17: flipped bits", || w.flipped());
    })
}

#[test]
#[ignore = "row 14: takes its turn"]
fn delayed_messages_only_slow_things_down() -> Res<()> {
    behind_relays("delayed_messages_only_slow_things_down", |w, cases| {
        cases.case("row 14: 200 ms more each way, with jitter", || {
            roles::calm_throughout(w.cluster, || w.delayed())
        });
    })
}

struct World<'a> {
    cluster: &'a Cluster,
    front: &'a Proxy,
    back: &'a Proxy,
    uri: Uri,
}

impl World<'_> {
    fn spec(&self, seed: u64) -> LoadSpec {
        let mut spec = LoadSpec::new(&self.uri).area(Area::spread(64, 8)).seed(seed);
        spec.most_per_second = 5000;
        spec
    }

    /// Requests that were sent are held while their connection is cut, so they are asked again; then the first ones arrive
    /// after all. In every second round it is the answers that are held: everything is asked twice.
    fn late(&self) -> Res<()> {
        let mut f =
            Fault::new(self.cluster, 16, "late and repeated requests after a reconnect", BOUND);
        let mut stranded = 0;
        // Requests that the server met twice, of each of the client's rounds.
        let (mut late, mut unanswered) = (Vec::new(), Vec::new());
        f.round(self.spec(16), |load| {
            let mut before = self.counted("repeats")?;
            for round in 0..short_or_full(8, 60).as_secs() {
                let way = if round % 2 == 0 { Way::Up } else { Way::Down };
                let proxy = if round % 3 == 2 { self.back } else { self.front };
                stranded += self.strand(proxy, way, round);
                load.run_requests(100, Duration::from_secs(10))?;
                load.run_for(PUBLISHED)?;
                let now = self.counted("repeats")?;
                let twice = now - before;
                before = now;
                match (round % 3, way) {
                    (2, _) => {}
                    (_, Way::Up) => late.push(twice),
                    (_, Way::Down) => unanswered.push(twice),
                }
            }
            Ok(())
        })?;
        eprintln!("  {stranded} connections stranded; met twice: {late:?} late requests, {unanswered:?} without an answer");
        ensure!(stranded > 4, "{stranded} connections were stranded only");
        // The server met late ones, or it would not know their repeats.
        ensure!(late.iter().all(|n| *n > 0.0), "no late request came before its repeat: {late:?}");
        ensure!(unanswered.iter().any(|n| *n > 0.0), "no repeat of what was done: {unanswered:?}");
        self.late_for_its_mapping()?;
        f.check(&[&self.uri])
    }

    /// Cuts connections with something held on them and lets that go on; how many. A server closes what a client has given up
    /// as soon as it connects anew: late requests of a client go first, its new connection after them.
    fn strand(&self, proxy: &Proxy, way: Way, round: u64) -> usize {
        let requests = way == Way::Up && std::ptr::eq(proxy, self.front);
        proxy.hold(way);
        if requests {
            proxy.hold_new();
        }
        std::thread::sleep(Duration::from_millis(60 + 30 * (round % 3)));
        let stranded = proxy.strand();
        // Long enough to be asked again, sometimes to be answered too.
        std::thread::sleep(Duration::from_millis(20 + 60 * (round % 5)));
        if requests {
            proxy.release_stranded();
            std::thread::sleep(Duration::from_millis(50));
        }
        proxy.release();
        stranded
    }

    /// Writes are held until their volume has been taken away and mapped anew: each is refused, and nothing of them is seen.
    fn late_for_its_mapping(&self) -> Res<()> {
        const EXTENTS: u64 = 64;
        let old = self.cluster.new_volume("remapped", "64MiB", "sdc1")?;
        let fill = |c: &mut nbd::Connection, with: u8| {
            (0..EXTENTS).try_for_each(|n| c.write_at(n << 20, &[with; PAGE]))
        };
        let mut c = nbd::Connection::open(&old)?;
        fill(&mut c, 1)?;
        c.disconnect()?;
        std::thread::sleep(PUBLISHED);
        let before = self.counted("fenced")?;
        let (mut raw, _) = Raw::transmission(&old)?;
        self.front.hold(Way::Up);
        let sent = (0..EXTENTS).try_for_each(|n| {
            raw.request(0, CMD_WRITE, n, n << 20, PAGE as u32)?;
            raw.send(&[2; PAGE])
        });
        std::thread::sleep(Duration::from_millis(200));
        let name = ["--name", "remapped", "--sdc", "sdc1"];
        let unmap = ["volume", "unmap", "--force"];
        let taken = self.cluster.scli_json(unmap.iter().chain(&name));
        let new = self.cluster.map("remapped", "sdc1");
        self.front.release();
        sent.and(taken)?;
        let mut c = nbd::Connection::open(&new?)?;
        let refused = wait_until("late writes to be refused", Duration::from_secs(5), || {
            let n = self.counted("fenced")? - before;
            Ok((n > 0.0).then_some(n))
        })?;
        let mut kept = 0;
        for n in 0..EXTENTS {
            let page = c.read_at(n << 20, PAGE)?;
            // Other servers had their writes in time.
            ensure!(page == [1; PAGE] || page == [2; PAGE], "extent {n} holds {}", page[0]);
            kept += u64::from(page[0] == 1);
        }
        eprintln!("  {refused} writes came after their mapping, {kept} extents are as before");
        ensure!(kept > 0, "every late write was carried out");
        fill(&mut c, 3)?;
        for n in 0..EXTENTS {
            ensure!(c.read_at(n << 20, PAGE)? == [3; PAGE], "extent {n} lost its newest write");
        }
        c.disconnect()
    }

    /// Damage that was met so far: the data of requests at the server, of answers at the client; a damaged record ends its stream.
    fn damage_counted(&self) -> Res<[(&'static str, f64); 3]> {
        let sdc1 = self.cluster.member("sdc1")?.metrics;
        let mut broken = 0.0;
        for sds in self.cluster.of_role("sds")? {
            let kind = "kind=\"streams_broken\"";
            broken += http::metric(&sds.metrics, "quarry_sds_events_total", kind)?;
        }
        Ok([
            ("requests at sds1", self.counted("bad_checksums")?),
            ("answers at sdc1", http::metric(&sdc1, "quarry_sdc_checksum_errors_total", "")?),
            ("streams between servers", broken),
        ])
    }

    /// What the server behind the relays has counted of a kind.
    fn counted(&self, kind: &str) -> Res<f64> {
        let sds1 = self.cluster.member("sds1")?;
        http::metric(&sds1.metrics, "quarry_sds_events_total", &format!("kind=\"{kind}\""))
    }

    fn cut(&self) -> Res<()> {
        let mut f =
            Fault::new(self.cluster, 15, "connections reset in the middle of a message", BOUND);
        f.round(self.spec(15), |load| {
            self.front.cut_every(300_000);
            self.back.cut_every(500_000);
            let during = load.run_for(short_or_full(6, 20));
            self.front.cut_every(0);
            self.back.cut_every(0);
            during
        })?;
        ensure!(self.front.cuts() > 10 && self.back.cuts() > 3, "hardly anything was cut");
        f.check(&[&self.uri])
    }

    fn flipped(&self) -> Res<()> {
        let mut f = Fault::new(self.cluster, 17, "bits flipped between clients and servers", BOUND);
        let before = self.damage_counted()?;
        f.round(self.spec(17), |load| {
            self.front.flip_every(1 << 20);
            self.back.flip_every(1 << 20);
            let during = load.run_for(short_or_full(6, 20));
            self.front.flip_every(0);
            self.back.flip_every(0);
            during
        })?;
        ensure!(self.front.flipped() > 5 && self.back.flipped() > 5, "hardly a bit was flipped");
        std::thread::sleep(PUBLISHED);
        let after = self.damage_counted()?;
        for ((who, after), (_, before)) in after.iter().zip(&before) {
            eprintln!("  {who}: {} counted", after - before);
            ensure!(after > before, "{who}: no damage was counted");
        }
        f.check(&[&self.uri])
    }

    fn delayed(&self) -> Res<()> {
        let mut f =
            Fault::new(self.cluster, 14, "200 ms delay and jitter", Duration::from_secs(20));
        let (delay, jitter) = (Duration::from_millis(200), Duration::from_millis(50));
        f.round(self.spec(114), |load| {
            self.front.delay(delay, jitter);
            self.back.delay(delay, jitter);
            let during = load.run_for(short_or_full(6, 70));
            self.front.delay(Duration::ZERO, Duration::ZERO);
            self.back.delay(Duration::ZERO, Duration::ZERO);
            during
        })?;
        f.check(&[&self.uri])
    }
}
