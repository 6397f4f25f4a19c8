//! What waits for long: `io_timeout`, a volume that is taken away, a stuck volume beside others, flushes of many.

use super::fake::*;
use super::*;
use bytes::Bytes;
use quarry_base::*;
use quarry_wire::{Change, Status, VolumeInfo};

fn tell(w: &mut World, index: u64, v: quarry_wire::VolumeInfo) {
    w.step(Event::Changes { index: ConfigIndex(index), changes: vec![Change::Volume(v)] });
}

fn with_timeout(ms: u64) -> World {
    let mut w = World::ready();
    let mut v = volume(1, true);
    v.mappings[0].io_timeout_ms = ms;
    tell(&mut w, 7, v);
    w
}

#[test]
fn without_a_timeout_a_request_waits_for_ever() {
    let mut w = with_timeout(0);
    w.write(1, 0, 4096, 1);
    w.requests();
    for _ in 0..100 {
        w.tick(1900);
        w.requests();
    }
    assert_eq!((w.done.len(), w.e.load(VOLUME)), (0, 1));
}

#[test]
fn with_a_timeout_what_waits_too_long_fails_and_its_late_answer_means_nothing() {
    let mut w = with_timeout(3000);
    // One is out, one waits behind it, one comes later.
    w.write(1, 0, 4096, 1);
    w.write(2, 0, 4096, 2);
    let (l, f) = w.requests().pop().unwrap();
    w.tick(1000);
    w.read(3, 1 << 20, 4096);
    w.tick(1900);
    assert!(w.done.is_empty());
    w.tick(500);
    let failed: Vec<_> = w.done.drain(..).collect();
    assert_eq!(failed, [(1, Err(IoError::TimedOut)), (2, Err(IoError::TimedOut))]);
    assert_eq!(IoError::TimedOut.errno(), 110);
    if w.links.contains_key(&l) {
        w.reply(l, &f.header, Status::Ok, Bytes::new());
    }
    w.settle();
    assert_eq!(w.oks(), [3], "answered once each");
    // The first one may lie unread at a server still.
    w.writes_out.clear();
    // The next write says that the ones before are answered: whoever holds them refuses them now.
    w.write(4, 0, 4096, 4);
    let sent = w.requests();
    assert!(sent.iter().any(|(_, s)| s.header.lowest_unanswered > f.header.request_id));
    for (l, f) in sent {
        w.reply(l, &f.header, Status::Ok, Bytes::new());
    }
    assert_eq!((w.oks(), w.e.requests.len(), w.e.parts.len()), (vec![4], 0, 0));
}

#[test]
fn a_request_that_was_not_even_begun_fails_in_time_too() {
    let mut w = World::with(Limits { volume_parts: 1, ..Limits::default() }, false);
    let mut v = volume(1, true);
    v.mappings[0].io_timeout_ms = 500;
    tell(&mut w, 7, v);
    (1..=3).for_each(|i| w.write(i, (i - 1) << 20, 4096, 1));
    assert_eq!(w.requests().len(), 1);
    w.tick(600);
    let failed: Vec<u64> = w.done.drain(..).map(|(h, _)| h).collect();
    assert_eq!((failed, w.e.load(VOLUME)), (vec![1, 2, 3], 0));
    assert_eq!((w.e.requests.len(), w.e.parts.len()), (0, 0));
}

#[test]
fn what_is_out_on_a_volume_that_is_taken_away_fails_soon() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    w.requests();
    tell(&mut w, 7, volume(2, false));
    assert!(w.done.is_empty(), "it may be answered still");
    w.tick(1100);
    assert_eq!(w.done.drain(..).collect::<Vec<_>>(), [(1, Err(IoError::Shutdown))]);
    assert!(w.e.requests.is_empty() && w.e.parts.is_empty());
}

#[test]
fn a_volume_taken_away_and_given_again_unheard_is_cut_first_and_nothing_of_then_is_sent() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    w.write(2, 0, 4096, 2);
    let sent = w.requests();
    assert_eq!(sent.len(), 1, "the second waits for the first");
    // Others got it and lost it: the same mapping goes on.
    tell(&mut w, 7, volume(3, true));
    // An MDM of an older release says nothing of it.
    let mut v = volume(4, true);
    v.mappings[0].since = Generation(0);
    tell(&mut w, 8, v);
    assert!(w.done.is_empty() && w.requests().is_empty());
    w.other.clear();
    let mut v = volume(5, true);
    v.mappings[0].since = Generation(5);
    tell(&mut w, 9, v);
    let mut failed: Vec<_> = w.done.drain(..).collect();
    failed.sort_by_key(|f| f.0);
    assert_eq!(failed, [(1, Err(IoError::Shutdown)), (2, Err(IoError::Shutdown))]);
    let told: Vec<bool> = w
        .other
        .drain(..)
        .filter_map(|a| match a {
            Action::VolumeChanged { state, .. } => Some(state.is_some()),
            _ => None,
        })
        .collect();
    assert_eq!(told, [false, true], "who has it open is cut off before it is offered again");
    w.tick(500);
    assert!(w.requests().is_empty());
    w.writes_out.clear();
    w.write(3, 0, 4096, 3);
    let (l, f) = w.requests().pop().unwrap();
    assert_eq!(f.header.generation, Generation(5));
    w.reply(l, &f.header, Status::Ok, Bytes::new());
    assert_eq!(w.oks(), [3]);
}

#[test]
fn what_is_out_when_a_volume_is_taken_away_is_not_sent_again_when_it_is_given_back() {
    // An MDM of an older release does not say since when a mapping stands.
    for since in [3, 0] {
        let mut w = World::ready();
        w.write(1, 0, 4096, 1);
        let (link, _) = w.requests().pop().unwrap();
        tell(&mut w, 7, volume(2, false));
        assert!(w.done.is_empty(), "it may be answered still");
        let mut v = volume(3, true);
        v.mappings[0].since = Generation(since);
        tell(&mut w, 8, v);
        assert_eq!(w.done.drain(..).collect::<Vec<_>>(), [(1, Err(IoError::Shutdown))]);
        w.break_link(link);
        w.tick(100);
        for link in w.links.keys().copied().collect::<Vec<_>>() {
            if !w.links[&link].hello {
                w.greet(link);
            }
        }
        assert!(w.requests().iter().all(|(_, f)| f.header.generation != Generation(3)));
        w.tick(2000);
        assert!(w.done.is_empty() && w.e.requests.is_empty() && w.e.parts.is_empty());
    }
}

#[test]
fn a_timeout_that_is_made_shorter_counts_for_what_waits_already() {
    let mut w = with_timeout(3_600_000);
    w.write(1, 0, 4096, 1);
    w.requests();
    w.tick(2000);
    let mut v = volume(1, true);
    v.mappings[0].io_timeout_ms = 3000;
    tell(&mut w, 8, v);
    w.tick(500);
    assert!(w.done.is_empty());
    w.tick(1000);
    assert_eq!(w.done.drain(..).collect::<Vec<_>>(), [(1, Err(IoError::TimedOut))]);
}

#[test]
fn a_stuck_volume_starves_no_other() {
    let mut w = World::ready();
    let other = VolumeInfo { id: VolumeId(77), vtree: VtreeId(4), ..volume(1, true) };
    tell(&mut w, 7, other);
    // Everything of the first volume goes to one group, and that one does not answer.
    let stuck = pg(0);
    let mut handle = 0;
    while w.e.has_room(VOLUME) {
        handle += 1;
        w.read(handle, 0, 4096);
    }
    let out = w.requests().len();
    assert!(out <= Limits::default().pg_in_flight && w.e.stats().limit_pg_in_flight > 0);
    let free = (0..3).find(|e| pg_of(PoolId(1), PGS, VtreeId(4), Extent(*e)) != stuck).unwrap();
    assert!(w.e.has_room(VolumeId(77)), "its buffers are its own");
    for i in 1..=100 {
        let op = IoOp::Read { offset: u64::from(free) << 20, len: 4096 };
        w.step(Event::Request {
            client: ClientId(2),
            handle: 1_000_000 + i,
            volume: VolumeId(77),
            op,
        });
        let (l, f) = w.requests().pop().expect("sent at once");
        assert_eq!(f.header.vtree, VtreeId(4));
        let data = Bytes::from(vec![0; 4096]);
        w.reply(l, &f.header, Status::Ok, data);
    }
    assert_eq!(w.oks().len(), 100);
    assert_eq!(w.e.load(VOLUME) as u64, handle, "all of the stuck one's still wait");
}

#[test]
fn a_read_that_is_refused_for_long_holds_up_nothing_else_of_its_group() {
    let mut w = World::ready();
    let answer = |w: &mut World| {
        let out = w.requests();
        for (l, f) in &out {
            let read = f.header.op == quarry_wire::Op::Read;
            let status = if read { Status::TryAgain } else { Status::Ok };
            w.reply(*l, &f.header, status, Bytes::new());
        }
        out.iter().filter(|(_, f)| f.header.op == quarry_wire::Op::Read).count()
    };
    w.read(1, 0, 4096);
    let mut reads = 0;
    for i in 0..1100u64 {
        w.write(10 + i, 4096 + i % 100 * 4096, 4096, 1);
        reads += answer(&mut w);
        w.tick(1);
    }
    assert_eq!(w.oks().len(), 1100);
    // The waits grow, whatever else the group answers: about one attempt in 20 ms.
    assert!((40..80).contains(&reads), "{reads} attempts in 1.1 s");
    for _ in 0..200 {
        w.tick(1);
        w.settle();
    }
    assert_eq!(w.oks(), [1], "and is answered in the end");
}

#[test]
fn a_group_that_refuses_everything_is_not_asked_without_end() {
    let mut w = World::ready();
    for i in 0..1000 {
        w.read(i, i % 100 * 4096, 4096);
    }
    let mut asked = 0;
    for _ in 0..100 {
        loop {
            let out = w.requests();
            if out.is_empty() {
                break;
            }
            asked += out.len();
            out.iter().for_each(|(l, f)| w.reply(*l, &f.header, Status::TryAgain, Bytes::new()));
        }
        w.tick(1);
    }
    let most = Limits::default().pg_in_flight * 12;
    assert!(asked <= most, "{asked} attempts in 100 ms");
    w.settle();
    for _ in 0..100 {
        w.tick(1);
        w.settle();
    }
    assert_eq!(w.oks().len(), 1000);
}

#[test]
fn a_read_put_off_ends_with_its_time_and_with_its_volume() {
    for timeout in [true, false] {
        let mut w = with_timeout(if timeout { 500 } else { 0 });
        w.read(1, 0, 4096);
        let (l, f) = w.requests().pop().unwrap();
        w.reply(l, &f.header, Status::TryAgain, Bytes::new());
        assert!(w.requests().is_empty());
        // Nothing of its group is answered meanwhile.
        if timeout {
            w.now = w.now + std::time::Duration::from_millis(600);
            w.tick(0);
        } else {
            tell(&mut w, 8, volume(2, false));
        }
        let failed = w.done.drain(..).collect::<Vec<_>>();
        let error = if timeout { IoError::TimedOut } else { IoError::Shutdown };
        assert_eq!(failed, [(1, Err(error))]);
        w.tick(100);
        assert!(w.e.requests.is_empty() && w.e.parts.is_empty());
        assert!(w.e.pgs.list.iter().all(|p| p.put_off.is_empty() && !p.has_ready()));
    }
}

#[test]
fn a_flush_of_a_volume_that_others_write_to_asks_every_group() {
    let mut w = World::with(Limits::default(), true);
    w.ask(1, IoOp::Flush);
    w.settle();
    let mut shared = volume(2, true);
    shared.mappings.push(quarry_wire::MapEntry { sdc: SdcId(8), ..shared.mappings[0] });
    w.step(Event::Changes { index: ConfigIndex(9), changes: vec![Change::Volume(shared)] });
    let groups: std::collections::BTreeSet<PgId> = (0..4).map(pg).collect();
    for handle in [2, 3] {
        w.ask(handle, IoOp::Flush);
        let out = w.requests();
        assert_eq!(out.len(), groups.len(), "nothing was written here");
        for (l, f) in out {
            w.reply(l, &f.header, Status::Ok, Bytes::new());
        }
    }
    assert_eq!(w.oks(), [1, 2, 3]);
}

#[test]
fn what_is_out_when_a_volume_is_taken_away_is_not_sent_under_the_next_mapping() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    let (l, f) = w.requests().pop().unwrap();
    tell(&mut w, 7, volume(2, false));
    assert!(w.done.is_empty(), "it may be answered still");
    let mut v = volume(3, true);
    v.mappings[0].since = Generation(3);
    tell(&mut w, 8, v);
    assert_eq!(w.done.drain(..).collect::<Vec<_>>(), [(1, Err(IoError::Shutdown))]);
    // Others may have written there meanwhile (R21).
    w.reply(l, &f.header, Status::StaleMapping, Bytes::new());
    w.tick(1500);
    assert!(w.requests().is_empty());
    w.writes_out.clear();
    w.write(2, 0, 4096, 2);
    w.settle();
    assert_eq!(w.oks(), [2]);
}
