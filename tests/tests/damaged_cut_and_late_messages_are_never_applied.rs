//! A relay stands in front of one server, for its clients and for the other servers, and misbehaves: it holds requests and lets
//! them arrive after their client has asked again elsewhere, cuts in the middle of messages, flips bits, delays. Rows 14 to 17
//! of the fault table.

use proxy::{Proxy, Way};
use quarry_tests::*;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(5);

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
            roles::calm(w.cluster, || w.delayed())
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
        f.round(self.spec(16), |load| {
            for round in 0..short_or_full(8, 60).as_secs() {
                let way = if round % 2 == 0 { Way::Up } else { Way::Down };
                let proxy = if round % 4 == 3 { self.back } else { self.front };
                proxy.hold(way);
                std::thread::sleep(Duration::from_millis(60 + 30 * (round % 3)));
                stranded += proxy.strand();
                // Long enough to be asked again, sometimes to be answered too.
                std::thread::sleep(Duration::from_millis(20 + 60 * (round % 5)));
                proxy.release();
                load.run_requests(100, Duration::from_secs(10))?;
            }
            Ok(())
        })?;
        ensure!(stranded > 4, "{stranded} connections were stranded only");
        f.check(&[&self.uri])
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
        f.round(self.spec(17), |load| {
            self.front.flip_every(1 << 20);
            self.back.flip_every(1 << 20);
            let during = load.run_for(short_or_full(6, 20));
            self.front.flip_every(0);
            self.back.flip_every(0);
            during
        })?;
        ensure!(self.front.flipped() > 5 && self.back.flipped() > 5, "hardly a bit was flipped");
        f.check(&[&self.uri])
    }

    fn delayed(&self) -> Res<()> {
        let mut f =
            Fault::new(self.cluster, 14, "200 ms delay and jitter", Duration::from_secs(20));
        let (delay, jitter) = (Duration::from_millis(200), Duration::from_millis(50));
        f.round(self.spec(114), |load| {
            self.front.delay(delay, jitter);
            self.back.delay(delay, jitter);
            let during = load.run_for(short_or_full(6, 20));
            self.front.delay(Duration::ZERO, Duration::ZERO);
            self.back.delay(Duration::ZERO, Duration::ZERO);
            during
        })?;
        f.check(&[&self.uri])
    }
}
