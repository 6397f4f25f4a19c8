//! Single behaviours, each in a small cluster of its own, with one fault placed by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quarry_sim::faults::Fault;
use quarry_sim::world::MS;
use quarry_sim::{run, Config, World};

/// A quiet cluster: no faults but those that the test brings about, load until the end.
fn quiet(seed: u64, servers: u32, copies: u8, min_copies: u8) -> Config {
    let mut c = Config::of_seed(seed);
    c.with_room();
    c.sdc = Default::default();
    c.shape.servers = servers;
    c.shape.copies = copies;
    c.shape.min_copies = min_copies;
    c.shape.fault_sets = 0;
    c.shape.grace_seconds = 60;
    (c.fault_every_ms, c.press) = (0, 0);
    c.load.operations = 100_000;
    c.load.think_ms = 20;
    c
}

fn after(w: &mut World, ms: u64) {
    let until = w.now + ms * MS;
    w.run_until(until);
    assert_eq!(w.failure, None);
}

/// Requests that were answered so far.
fn answered(w: &World) -> u64 {
    w.clients.iter().map(|c| c.finished).sum()
}

fn stat(w: &World, name: &str) -> u64 {
    let engines = w.nodes.iter().filter_map(|n| n.engine.as_ref());
    let one = |e: &quarry_replica::Engine| {
        e.stats().named().iter().find(|s| s.0 == name).map_or(0, |s| s.1)
    };
    engines.map(one).sum()
}

#[test]
fn a_clean_hand_over_holds_requests_back_for_a_moment_only() {
    for seed in 1..=6 {
        let mut w = World::new(seed, quiet(seed, 4, 2, 1)).unwrap();
        after(&mut w, 3000);
        // The first requests of all waited for the servers' first lease time.
        w.clients.iter_mut().for_each(|c| c.longest = 0);
        // One at a time: a group whose only other copy is away has nobody to hand over to.
        for node in 0..4 {
            assert!(w.hand_over(node));
            after(&mut w, 9000);
        }
        let ms = w.clients.iter().map(|c| c.longest).max().unwrap() / MS;
        println!("seed {seed}: longest request {ms} ms");
        assert!(ms <= 250, "seed {seed}: a request took {ms} ms");
        w.finish().unwrap();
    }
}

/// A server that has just come back remembers no grant that it gave before. The primary before it does.
#[test]
fn a_role_handed_to_a_server_that_has_just_come_back_holds_requests_back_for_a_moment_only() {
    for seed in 1..=6 {
        let mut c = quiet(seed, 3, 2, 1);
        // Whole again within moments.
        (c.shape.pgs, c.load.extents) = (4, 4);
        let mut w = World::new(seed, c).unwrap();
        after(&mut w, 3000);
        w.clients.iter_mut().for_each(|c| c.longest = 0);
        let mut soon = 0;
        for node in [0, 1, 2, 0, 1, 2] {
            assert!(w.hand_over(node));
            after(&mut w, 450);
            w.restart(node);
            let back = w.now;
            while !w.mdm.is_whole() {
                after(&mut w, 10);
                assert!(w.now < back + 5000 * MS, "seed {seed}: not whole");
            }
            soon += u32::from(w.now < back + 700 * MS);
        }
        after(&mut w, 3000);
        let ms = w.clients.iter().map(|c| c.longest).max().unwrap() / MS;
        println!("seed {seed}: whole again soon {soon} times of 6, longest request {ms} ms");
        assert!(soon >= 3, "seed {seed}: soon only {soon} times");
        assert!(ms <= 250, "seed {seed}: a request took {ms} ms");
        w.finish().unwrap();
    }
}

#[test]
fn a_killed_server_holds_requests_back_for_less_than_two_seconds() {
    for seed in 1..=4 {
        let mut w = World::new(seed, quiet(seed, 4, 2, 1)).unwrap();
        after(&mut w, 3000);
        w.crash(0, true);
        after(&mut w, 4000);
        let longest = w.clients.iter().map(|c| c.longest).max().unwrap() / MS;
        println!("seed {seed}: longest request {longest} ms");
        assert!(longest < 2000, "seed {seed}: {longest} ms");
        w.finish().unwrap();
    }
}

#[test]
fn a_returning_replica_is_sent_little_more_than_what_changed() {
    for seed in 1..=4 {
        let mut c = quiet(seed, 3, 2, 1);
        c.load.extents = 4;
        c.load.think_ms = 60;
        let mut w = World::new(seed, c).unwrap();
        after(&mut w, 6000);
        w.crash(1, false);
        after(&mut w, 1200);
        let before = (stat(&w, "write_bytes"), stat(&w, "sync_bytes"));
        after(&mut w, 2500);
        w.restart(1);
        after(&mut w, 3000);
        let changed = stat(&w, "write_bytes") - before.0;
        let sent = stat(&w, "sync_bytes") - before.1;
        println!("seed {seed}: {changed} bytes written meanwhile, {sent} sent");
        assert!(sent > 0 && sent <= changed + changed / 2, "{sent} bytes for {changed}");
        w.finish().unwrap();
    }
}

/// The end of each run looks for blocks that are of no volume, in every copy.
#[test]
fn a_server_that_was_away_while_volumes_came_and_went_keeps_nothing_of_those_deleted() {
    let mut deleted = 0;
    for seed in 1..=6 {
        let mut c = quiet(seed, 3, 2, 1);
        (c.mix, c.fault_every_ms, c.strike) = (vec![(Fault::Volume, 1)], 40, 0);
        (c.shape.pgs, c.load.extents, c.load.think_ms) = (4, 4, 10);
        let mut w = World::new(seed, c).unwrap();
        after(&mut w, 3000);
        w.crash(1, seed % 2 == 0);
        let before = w.seen.get("volume deleted");
        after(&mut w, 4000);
        deleted += w.seen.get("volume deleted") - before;
        w.restart(1);
        after(&mut w, 3000);
        let s = &w.mdm.state;
        for pool in s.pools.keys() {
            let volumes = s.volumes.values().filter(|v| v.pool == *pool).count();
            assert!(s.deleted_runs.runs(*pool).count() <= volumes + 1, "seed {seed}");
        }
        w.finish().unwrap();
    }
    println!("{deleted} volumes deleted while a server was away");
    assert!(deleted > 60, "{deleted}");
}

#[test]
fn with_fewer_copies_than_min_copies_writes_wait_and_then_go_on() {
    let mut w = World::new(5, quiet(5, 3, 3, 2)).unwrap();
    after(&mut w, 3000);
    w.crash(0, true);
    w.crash(1, true);
    after(&mut w, 3000);
    let before = stat(&w, "acks");
    after(&mut w, 3000);
    assert_eq!(stat(&w, "acks"), before, "writes wait");
    w.restart(0);
    after(&mut w, 4000);
    assert!(stat(&w, "acks") > before, "two copies are enough");
    w.finish().unwrap();
}

#[test]
fn an_older_copy_alone_serves_nothing() {
    let mut w = World::new(6, quiet(6, 2, 2, 1)).unwrap();
    after(&mut w, 3000);
    w.crash(0, false);
    after(&mut w, 3000);
    w.crash(1, true);
    w.restart(0);
    after(&mut w, 500);
    let before = answered(&w);
    after(&mut w, 4000);
    assert_eq!(answered(&w), before, "the newer copy is away: nobody answers");
    w.restart(1);
    after(&mut w, 4000);
    assert!(answered(&w) > before);
    w.finish().unwrap();
}

#[test]
fn a_clock_that_stands_still_breaks_leases_and_not_confirmed_reads() {
    let frozen = |seed, confirm| {
        let mut c = Config::of_seed(seed);
        (c.shape.confirm, c.shape.cached, c.shape.pgs) = (confirm, false, 1);
        (c.load.extents, c.load.blocks, c.load.pages, c.clients) = (1, 1, 2, 3);
        (c.mix, c.fault_every_ms, c.strike) = (vec![(Fault::Freeze, 1)], 300, 0);
        run(seed, c)
    };
    // A client that hears nothing from a server for a second leaves it: few runs are left in which one is still asked.
    let stale = (1..=60).find(|seed| frozen(*seed, false).is_err());
    assert!(stale.is_some(), "the fault has to break leases");
    for seed in 1..=6 {
        frozen(seed, true).unwrap();
    }
}

/// A cluster with `ack = cached` whose two copies of everything have been written to for a while.
fn cached(seed: u64) -> World {
    let mut c = quiet(seed, 2, 2, 1);
    c.shape.cached = true;
    let mut w = World::new(seed, c).unwrap();
    after(&mut w, 4000);
    w
}

#[test]
fn a_cached_copy_whose_host_booted_comes_back_as_syncing() {
    for seed in 1..=4 {
        let mut w = cached(seed);
        // Both processes end at once; the power of one host fails too.
        w.crash(0, true);
        w.crash(1, false);
        w.restart(0);
        after(&mut w, 3000);
        let before = stat(&w, "acks");
        after(&mut w, 1000);
        assert_eq!(stat(&w, "acks"), before, "the other one may have more: nobody leads");
        w.restart(1);
        after(&mut w, 4000);
        assert!(stat(&w, "acks") > before);
        assert_eq!(w.seen.get("fell back"), 0);
        w.finish().unwrap();
    }
}

#[test]
fn after_the_power_loss_of_all_cached_copies_nothing_flushed_is_missing_and_flushes_say_what_may_be(
) {
    let (mut fell, mut told) = (0, 0);
    for seed in 1..=6 {
        let mut w = cached(seed);
        w.crash(0, true);
        w.crash(1, true);
        w.restart(0);
        w.restart(1);
        after(&mut w, 4000);
        fell += w.seen.get("fell back");
        told += w.seen.get("flush failed");
        w.finish().unwrap();
    }
    assert!(fell > 0 && told > 0, "fell back {fell} times, told {told} times");
}

/// R26: the third copy was being brought up to date by the good one when that went: it has single blocks that are newer than
/// what counts from then on, and no position that says so.
#[test]
fn blocks_copied_from_a_copy_that_was_given_up_are_not_mixed_into_the_older_one() {
    let mut met = 0;
    for seed in 1..=6 {
        let mut c = quiet(seed, 3, 3, 1);
        c.shape.cached = false;
        (c.shape.pgs, c.load.extents, c.load.blocks, c.load.think_ms) = (2, 12, 3, 15);
        let mut w = World::new(seed, c).unwrap();
        after(&mut w, 2500);
        w.crash(2, false);
        after(&mut w, 1300);
        w.crash(1, false);
        after(&mut w, 1500);
        let before = stat(&w, "sync_copies");
        w.restart(2);
        for _ in 0..3000 {
            if stat(&w, "sync_copies") >= before + 6 {
                break;
            }
            after(&mut w, 1);
        }
        w.crash(0, false);
        w.restart(1);
        after(&mut w, 1500);
        met += w.decide_for_older_copies();
        after(&mut w, 2500);
        w.restart(0);
        after(&mut w, 5000);
        w.finish().unwrap();
    }
    assert!(met >= 4, "{met} groups went back");
}

#[test]
fn a_rebuild_is_never_faster_than_its_limit() {
    use mdm::state::{Op, Pacing, Policy};
    let mut c = quiet(3, 3, 2, 1);
    (c.shape.cached, c.shape.pgs) = (false, 1);
    (c.load.extents, c.load.blocks, c.load.think_ms) = (16, 3, 5);
    let mut w = World::new(3, c).unwrap();
    after(&mut w, 5000);
    // Four blocks of 64 KiB a second.
    let policy = Policy {
        pacing: Some(Pacing::Limit),
        rebuild_bytes_per_second: Some(256 << 10),
        ..Policy::default()
    };
    let set = Op::SetPolicy { pool: quarry_base::PoolId(1), policy: Box::new(policy) };
    w.mdm.submit(set, w.now).unwrap();
    after(&mut w, 1000);
    let member = w.mdm.state.pgs.values().next().unwrap().config.in_sync[1].sds.0 as usize - 1;
    w.crash(member, true);
    after(&mut w, 500);
    w.format(member).unwrap();
    w.restart(member);
    let before = stat(&w, "sync_copies");
    let mut began = None;
    let mut counts = Vec::new();
    for _ in 0..100 {
        after(&mut w, 100);
        let copies = stat(&w, "sync_copies") - before;
        began = began.or((copies > 0).then_some(w.now));
        let Some(t) = began else { continue };
        let ms = (w.now - t) / MS;
        // What one look at the keys lists may go ahead, and what had come together before.
        assert!(copies <= 4 * ms / 1000 + 16 + 2, "{copies} copies in {ms} ms");
        counts.push(copies);
    }
    assert!(counts.last().is_some_and(|n| *n > 25), "{counts:?}");
    w.finish().unwrap();
}

#[test]
fn a_damaged_page_whose_other_copy_is_away_is_waited_for() {
    let (mut rotten, mut repaired) = (0, 0);
    for seed in 1..=6 {
        let mut c = quiet(seed, 2, 2, 1);
        // What nobody reads stays damaged to the end.
        c.mix = vec![(Fault::Rot, 1)];
        c.load.think_ms = 2;
        let mut w = World::new(seed, c).unwrap();
        after(&mut w, 3000);
        // What is on the medium of the one is at the other too.
        w.cfg.load.reads_only = true;
        after(&mut w, 8000);
        w.crash(1, false);
        for _ in 0..200 {
            w.rot();
        }
        // Half of the runs go on writing: to blocks that are damaged elsewhere too.
        w.cfg.load.reads_only = seed % 2 == 0;
        let before = stat(&w, "no_good_copy");
        after(&mut w, 4000);
        rotten += stat(&w, "no_good_copy") - before;
        w.restart(1);
        after(&mut w, 5000);
        // In a run that goes on writing all of it may be written over before.
        let repairs = stat(&w, "repairs");
        assert!(repairs > 0 || seed % 2 == 1, "seed {seed}: nothing was repaired");
        repaired += repairs;
        w.finish().unwrap();
    }
    assert!(rotten > 0 && repaired > 10, "{rotten} damaged pages read, {repaired} repaired");
}

#[test]
fn a_damaged_block_that_is_trimmed_or_written_before_its_repair_is_no_error() {
    let mut repaired = 0;
    for seed in 1..=14 {
        let mut c = quiet(seed, 2, 2, 1);
        c.mix = vec![(Fault::Rot, 1)];
        (c.load.extents, c.load.depth, c.load.trims, c.load.think_ms) = (4, 16, 60, 0);
        let mut w = World::new(seed, c).unwrap();
        for _ in 0..3000 {
            after(&mut w, 2);
            w.rot();
        }
        repaired += stat(&w, "repairs");
        w.finish().unwrap();
    }
    assert!(repaired > 0, "no damaged page was read");
}

/// Row 18's worst case with places that the medium refuses: other pages of the same blocks on each server.
#[test]
fn blocks_with_other_unreadable_pages_on_each_server_heal_each_other() {
    let (mut refused, mut repaired) = (0, 0);
    for seed in 1..=6 {
        let mut c = quiet(seed, 2, 2, 1);
        (c.load.extents, c.load.think_ms) = (1, 2);
        let mut w = World::new(seed, c).unwrap();
        after(&mut w, 3000);
        w.cfg.load.reads_only = true;
        after(&mut w, 8000);
        // Most lie in slots that are free by now; fewer are read than make a device unfit.
        for _ in 0..240 {
            refused += w.refuse_pages();
        }
        w.cfg.load.reads_only = seed % 2 == 0;
        after(&mut w, 6000);
        repaired += stat(&w, "repairs");
        w.finish().unwrap();
    }
    assert!(refused > 100 && repaired > 20, "{refused} refused, {repaired} repaired");
}

/// A quarter of a device's log at most is for groups that cannot commit: with the MDM away nobody takes the dead server out
/// of them, and the others go on all the same.
#[test]
fn groups_that_cannot_commit_leave_the_log_to_those_that_can() {
    for seed in 1..=2 {
        let mut c = quiet(seed, 3, 2, 1);
        (c.shape.cached, c.shape.confirm) = (false, false);
        (c.shape.pgs, c.clients, c.load.think_ms) = (64, 3, 6);
        (c.load.extents, c.load.blocks, c.load.pages, c.load.depth) = (160, 3, 16, 50_000);
        // What waits for the groups that lack the server leaves the clients room for others.
        (c.sdc.volume_parts, c.sdc.volume_bytes) = (1_000_000, u64::MAX);
        (c.sdc.volume_queue, c.sdc.volume_queue_bytes) = (1_000_000, u64::MAX);
        // As much smaller than the log's reserve as on the smallest device.
        c.limits.window_bytes = 256 << 10;
        c.shape.device_bytes = 96 << 20;
        c.load.operations = 1_000_000;
        let mut w = World::new(seed, c).unwrap();
        after(&mut w, 4000);
        w.mdm.down_until = u64::MAX;
        w.crash(2, true);
        after(&mut w, 12_000);
        let before = (stat(&w, "acks"), stat(&w, "log_waits"));
        after(&mut w, 3000);
        let acks = stat(&w, "acks") - before.0;
        let (stuck, full) = (stat(&w, "stuck_waits"), stat(&w, "log_waits") - before.1);
        println!("seed {seed}: {acks} writes in 3 s, {stuck} stuck, {full} waited for the log");
        assert!(acks > 150, "seed {seed}: {acks} writes in 3 s");
        assert!(stuck > 0, "seed {seed}: nothing was held back");
        w.mdm.down_until = 0;
        w.restart(2);
        // What filled the logs goes: nothing that is needed for that waits for their space.
        after(&mut w, 3000);
        w.finish().unwrap();
    }
}

/// R27: nobody waits for a disk that does nothing until it has failed.
#[test]
fn a_disk_that_hangs_holds_requests_back_for_a_moment_only() {
    for seed in 1..=4 {
        let mut c = quiet(seed, 4, 2, 1);
        (c.shape.cached, c.shape.confirm) = (false, false);
        let mut w = World::new(seed, c).unwrap();
        after(&mut w, 4000);
        w.clients.iter_mut().for_each(|c| c.longest = 0);
        let led = |w: &World| {
            let all = w.mdm.state.pgs.values();
            all.filter(|p| p.config.primary == Some(w.nodes[0].device)).count()
        };
        assert!(led(&w) > 0, "seed {seed}: it leads nothing");
        w.nodes[0].hung_until = w.now + 8000 * MS;
        after(&mut w, 4000);
        assert_eq!(led(&w), 0, "seed {seed}");
        after(&mut w, 14_000);
        let longest = w.clients.iter().map(|c| c.longest).max().unwrap() / MS;
        println!("seed {seed}: longest request {longest} ms");
        assert!(longest < 2500, "seed {seed}: {longest} ms");
        // It moves again: it comes back as after any absence.
        let d = &w.mdm.state.devices[&w.nodes[0].device];
        assert_eq!((d.suspended.is_none(), d.lapses.map(|l| l.times)), (true, Some(1)));
        assert!(w.mdm.is_whole(), "seed {seed}: not whole again");
        w.finish().unwrap();
    }
}

#[test]
fn what_writes_take_is_told_apart_by_who_takes_it() {
    let mut c = quiet(5, 3, 3, 1);
    (c.shape.cached, c.shape.confirm) = (false, false);
    let mut w = World::new(5, c).unwrap();
    after(&mut w, 3000);
    let times = |w: &World| {
        let engines = w.nodes.iter().filter_map(|n| n.engine.as_ref());
        engines.map(|e| e.write_times().clone()).collect::<Vec<_>>()
    };
    let before = times(&w);
    let until = w.now + 4000 * MS;
    w.nodes[2].slow = (until, 30 * MS);
    let late = w.nodes[2].device;
    after(&mut w, 3500);
    let (mut fast, mut slow) = (0, 0);
    for (n, (now, then)) in times(&w).iter().zip(&before).enumerate() {
        for (device, led) in &now.led {
            let then = then.led.get(device).copied().unwrap_or_default();
            let (all, own) = (led.answered.since(&then.answered), led.own.since(&then.own));
            assert_eq!(led.admitted.count, led.answered.count, "each has one of both");
            println!(
                "sds{}: {} answered in {:?} us, own {:?}",
                n + 1,
                all.count,
                all.mean_us(),
                own.mean_us()
            );
            let own = own.mean_us().unwrap_or(0);
            assert!(if *device == late { own == 0 || own > 25_000 } else { own < 10_000 }, "{own}");
            // An answer waits for the slowest of all, and every group here has a copy on it.
            assert!(all.count < 10 || all.mean_us() > Some(25_000));
        }
        for (device, s) in &now.copies {
            let s = s.since(&then.copies.get(device).copied().unwrap_or_default());
            let Some(mean) = s.mean_us().filter(|_| s.count >= 10) else { continue };
            println!("sds{} to device {device}: {} in {mean} us", n + 1, s.count);
            assert!(if *device == late { mean > 25_000 } else { mean < 10_000 }, "{mean}");
            *(if *device == late { &mut slow } else { &mut fast }) += 1;
        }
    }
    assert!(fast > 0 && slow > 0, "{fast} {slow}");
    w.finish().unwrap();
}
