//! The engine's behaviours, one a test.

use super::fake::*;
use super::*;
use bytes::Bytes;
use quarry_base::*;
use quarry_wire::{Change, Frame, Header, Op, SdcInfo, Status};

fn primary(w: &World, extent: u32) -> u32 {
    w.configs[&pg(extent)].primary.unwrap().0
}
fn moved(w: &World, extent: u32) -> quarry_wire::PgConfig {
    let c = &w.configs[&pg(extent)];
    config(pg(extent).index(), c.epoch.0 + 1, 3 - c.primary.unwrap().0)
}

#[test]
fn a_request_over_several_extents_is_split_and_merged() {
    let mut w = World::ready();
    w.write(1, (1 << 20) - 100, (1 << 20) + 300, 7);
    let parts = w.requests();
    let mut lens: Vec<_> =
        parts.iter().map(|(_, f)| (f.header.extent.0, f.header.offset, f.header.length)).collect();
    lens.sort();
    assert_eq!(lens, [(0, (1 << 20) - 100, 100), (1, 0, 1 << 20), (2, 0, 200)]);
    for (l, f) in parts {
        assert!(w.done.is_empty());
        let (s, d) = w.execute(&f);
        w.reply(l, &f.header, s, d);
    }
    assert_eq!(w.oks(), [1]);
    w.read(2, (1 << 20) - 101, (1 << 20) + 302);
    w.settle();
    let got = w.done.pop().unwrap().1.unwrap();
    assert_eq!(
        (got[0], got[1], got[got.len() - 2], got[got.len() - 1], got.len()),
        (0, 7, 7, 0, (1 << 20) + 302)
    );
}

#[test]
fn a_read_is_widened_to_pages_and_cut_afterwards() {
    let mut w = World::ready();
    w.truth[5000] = 9;
    w.read(1, 5000, 2);
    let (l, f) = w.requests().pop().unwrap();
    assert_eq!((f.header.offset, f.header.length), (4096, 4096));
    let (s, d) = w.execute(&f);
    w.reply(l, &f.header, s, d);
    assert_eq!(w.done, [(1, Ok(vec![9, 0]))]);
}

#[test]
fn damaged_read_data_is_counted_and_asked_for_again() {
    let mut w = World::ready();
    w.read(1, 0, 4096);
    let (l, f) = w.requests().pop().unwrap();
    let mut bad = w.answer_frame(&f.header, Status::Ok, Bytes::from(vec![1; 4096]));
    bad.header.data_crc ^= 1;
    w.deliver(l, &f.header, bad);
    assert!(w.done.is_empty() && w.e.stats().bad_data == 1);
    assert!(w.requests().is_empty(), "not at once");
    w.tick(2);
    w.settle();
    assert_eq!(w.oks(), [1]);
}

#[test]
fn a_refused_part_is_sent_again_after_growing_moments() {
    let mut w = World::ready();
    w.write(1, 0, 512, 1);
    let mut waits = vec![];
    for _ in 0..6 {
        let (l, f) = w.requests().pop().unwrap();
        assert_eq!(f.header.request_id, RequestId(1));
        w.reply(l, &f.header, Status::TryAgain, Bytes::new());
        let mut ms = 0;
        while w.links.values().all(|l| l.inbox.iter().all(|f| f.header.op == Op::Ping)) {
            ms += 1;
            w.tick(1);
        }
        waits.push(ms);
    }
    assert_eq!(waits, [2, 4, 8, 16, 20, 20]);
    assert_eq!(w.e.stats().try_again, 6);
    w.settle();
    assert_eq!(w.oks(), [1]);
}

#[test]
fn a_stale_epoch_answer_is_followed_without_the_mdm() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    let c = moved(&w, 0);
    let new = c.primary.unwrap().0;
    w.set_config(c);
    let (l, f) = w.requests().pop().unwrap();
    w.reply(l, &f.header, Status::StaleEpoch, Bytes::new());
    let (l2, f2) = w.requests().pop().unwrap();
    assert_eq!(w.links[&l2].target.sds.0, new);
    assert_eq!((f2.header.request_id, f2.header.epoch), (f.header.request_id, Epoch(2)));
    w.reply(l2, &f2.header, Status::Ok, Bytes::new());
    assert_eq!(w.oks(), [1]);
    assert_eq!(w.e.stats().stale_epoch, 1);
}

#[test]
fn a_newer_configuration_from_the_mdm_moves_what_is_out() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    let (old, f) = w.requests().pop().unwrap();
    w.set_config(moved(&w, 0));
    w.tell_config(pg(0));
    let (new, f2) = w.requests().pop().unwrap();
    assert!(old != new && f2.header.request_id == f.header.request_id);
    // The old primary's Ok comes late, and counts; the new one's answer then says nothing more.
    w.reply(old, &f.header, Status::Ok, Bytes::new());
    assert_eq!(w.oks(), [1]);
    w.reply(new, &f2.header, Status::Ok, Bytes::new());
    assert!(w.done.is_empty());
    assert_eq!(w.e.stats().late_answers, 1);
}

/// R26: what the old primary says it has done is lost. Compare the late Ok above, which counts.
#[test]
fn an_answer_of_a_line_of_records_that_was_given_up_does_not_count() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    let (old, f) = w.requests().pop().unwrap();
    let mut c = moved(&w, 0);
    c.line = c.epoch;
    w.set_config(c);
    w.tell_config(pg(0));
    let (new, f2) = w.requests().pop().unwrap();
    w.reply(old, &f.header, Status::Ok, Bytes::new());
    assert!(w.done.is_empty(), "the write is not done in the line that counts");
    // In the new line everything is as ever, refusals too.
    w.reply(new, &f2.header, Status::TryAgain, Bytes::new());
    w.tick(100);
    let (new, f3) = w.requests().pop().expect("a refused part is sent again");
    w.reply(new, &f3.header, Status::Ok, Bytes::new());
    assert_eq!(w.oks(), [1]);
}

#[test]
fn a_late_refusal_of_an_earlier_attempt_changes_nothing() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    let (old, f) = w.requests().pop().unwrap();
    w.set_config(moved(&w, 0));
    w.tell_config(pg(0));
    for s in
        [Status::StaleEpoch, Status::TryAgain, Status::Full, Status::StaleRequest, Status::Corrupt]
    {
        w.reply(old, &f.header, s, Bytes::new());
    }
    w.tick(100);
    assert!(w.done.is_empty());
    assert_eq!(w.requests().len(), 1, "only the attempt at the new primary");
}

#[test]
fn a_refusal_after_an_epoch_change_at_the_same_primary_is_tried_again() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    let same = primary(&w, 0);
    w.set_config(config(pg(0).index(), 2, same));
    let (l, f) = w.requests().pop().unwrap();
    w.reply(l, &f.header, Status::StaleEpoch, Bytes::new());
    let (l2, f2) = w.requests().pop().unwrap();
    assert_eq!((l2, f2.header.epoch), (l, Epoch(2)), "sent again at once, on the same link");
    w.reply(l2, &f2.header, Status::TryAgain, Bytes::new());
    w.tick(100);
    let (l3, f3) = w.requests().pop().expect("a refused part is sent again");
    w.reply(l3, &f3.header, Status::Ok, Bytes::new());
    assert_eq!(w.oks(), [1]);
}

#[test]
fn an_older_configuration_is_ignored() {
    let mut w = World::ready();
    w.set_config(moved(&w, 0));
    w.tell_config(pg(0));
    let old = config(pg(0).index(), 1, 3 - primary(&w, 0));
    w.step(Event::Changes { index: ConfigIndex(9), changes: vec![Change::Pg(old)] });
    w.step(Event::View(view(false)));
    w.write(1, 0, 4096, 1);
    let (l, f) = w.requests().pop().unwrap();
    assert_eq!(f.header.epoch, Epoch(2), "also a whole view does not bring an epoch back");
    assert_eq!(w.links[&l].target.sds.0, primary(&w, 0));
}

#[test]
fn without_a_primary_requests_wait() {
    let mut w = World::ready();
    let none = config(pg(0).index(), 2, 0);
    w.set_config(none);
    w.tell_config(pg(0));
    w.write(1, 0, 4096, 1);
    w.tick(60_000);
    assert!(w.requests().is_empty() && w.done.is_empty());
    w.set_config(config(pg(0).index(), 3, 1));
    w.tell_config(pg(0));
    w.settle();
    assert_eq!(w.oks(), [1]);
}

#[test]
fn a_lost_link_is_dialled_again_and_its_parts_keep_their_ids() {
    let mut w = World::ready();
    w.accept = false;
    w.write(1, 0, 4096, 1);
    w.write(2, 8192, 4096, 2);
    let (l, f) = w.requests().remove(0);
    w.dialled.clear();
    w.break_link(l);
    assert!(w.dialled.is_empty(), "not at once");
    w.tick(50);
    let target = *w.dialled.first().unwrap();
    w.accept = true;
    let l2 = w.link(target);
    assert!(
        w.requests().iter().all(|(_, f)| f.header.op == Op::Hello),
        "nothing before the handshake"
    );
    w.greet(l2);
    let again: Vec<_> = w.requests();
    assert_eq!(again.len(), 2);
    assert_eq!(again[0].1.header.request_id, f.header.request_id);
    assert_eq!(w.e.stats().resent, 2);
    for (l, f) in again {
        w.reply(l, &f.header, Status::Ok, Bytes::new());
    }
    assert_eq!(w.oks(), [1, 2]);
}

#[test]
fn redialling_slows_down_to_half_a_second_and_never_ends() {
    let mut w = World::ready();
    w.accept = false;
    let target = w.links[&w.link_to(1)].target;
    w.break_link(w.link_to(1));
    w.dialled.clear();
    let mut gaps = vec![];
    for _ in 0..7 {
        let mut ms = 0;
        while w.dialled.is_empty() {
            w.tick(10);
            ms += 10;
        }
        gaps.push(ms);
        w.dialled.clear();
        w.step(Event::DialFailed { target });
    }
    assert_eq!(gaps, [50, 100, 200, 400, 500, 500, 500]);
}

#[test]
fn a_primary_out_of_reach_is_reported_when_another_member_is_in_reach() {
    let mut w = World::ready();
    w.accept = false;
    let sds = primary(&w, 0);
    let link = w.link_to(sds);
    let target = w.links[&link].target;
    w.write(1, 0, 4096, 1);
    w.break_link(link);
    for _ in 0..8 {
        w.tick(500);
        w.step(Event::DialFailed { target });
    }
    let told = w.other.iter().filter_map(|a| match a {
        Action::Unreachable { pg, device } => Some((*pg, device.0)),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    assert!(told.iter().all(|t| t.1 == sds), "{told:?}");
    assert_eq!(told.first(), Some(&(pg(0), sds)), "the one that waits comes first: {told:?}");
    let times = told.iter().filter(|t| t.0 == pg(0)).count();
    assert!((1..=2).contains(&times), "limited: {told:?}");
}

#[test]
fn overlapping_writes_go_one_after_another_over_all_clients() {
    let mut w = World::ready();
    for (client, handle) in [(1, 10), (2, 20), (3, 30)] {
        let data = Bytes::from(vec![handle as u8; 100]);
        w.ask_as(client, handle, IoOp::Write { offset: handle * 10, data, fua: false });
    }
    w.ask_as(2, 40, IoOp::Zero { offset: 0, len: 8192, no_hole: false, trim: true, fua: false });
    w.write(50, 8192, 4096, 5);
    for want in [vec![10, 50], vec![20], vec![30], vec![40]] {
        let batch = w.requests();
        assert_eq!(batch.len(), want.len());
        for (l, f) in batch {
            let (s, d) = w.execute(&f);
            w.reply(l, &f.header, s, d);
        }
        assert_eq!(w.oks(), want);
    }
}

#[test]
fn reads_are_not_held_by_writes() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    w.read(2, 0, 4096);
    assert_eq!(w.requests().len(), 2);
}

#[test]
fn a_failed_write_lets_the_next_one_go() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    w.write(2, 0, 4096, 2);
    let (l, f) = w.requests().pop().unwrap();
    w.writes_out.clear();
    w.reply(l, &f.header, Status::Full, Bytes::new());
    assert_eq!(w.done, [(1, Err(IoError::NoSpace))]);
    w.settle();
    assert_eq!(w.done.pop(), Some((2, Ok(vec![]))));
}

#[test]
fn at_most_128_parts_of_a_group_are_in_flight() {
    let mut w = World::ready();
    for i in 0..200 {
        w.read(i, (i % 256) * 4096, 4096);
    }
    let out = w.requests();
    assert_eq!(out.len(), 128);
    assert!(w.e.stats().limit_pg_in_flight > 0);
    for (l, f) in out {
        let (s, d) = w.execute(&f);
        w.reply(l, &f.header, s, d);
    }
    assert_eq!(w.requests().len(), 72);
}

#[test]
fn one_stuck_request_holds_the_id_window_at_1000() {
    let mut w = World::ready();
    w.read(0, 0, 4096);
    let stuck = w.requests().pop().unwrap();
    for i in 1..=1500u64 {
        w.read(i, 4096, 4096);
        for (l, f) in w.requests() {
            assert_eq!(f.header.lowest_unanswered, RequestId(1));
            let (s, d) = w.execute(&f);
            w.reply(l, &f.header, s, d);
        }
    }
    assert_eq!(w.done.len(), 999, "ids 2 to 1000");
    assert!(w.e.stats().limit_id_window > 0);
    w.reply(stuck.0, &stuck.1.header, Status::Ok, Bytes::from(vec![0; 4096]));
    w.settle();
    assert_eq!(w.done.len(), 1501);
}

#[test]
fn a_volume_uses_a_bounded_number_of_bytes() {
    let mut w = World::with(Limits { volume_bytes: 3 << 20, ..Limits::default() }, false);
    for i in 0..8 {
        w.read(i, 0, 1 << 20);
    }
    assert_eq!(w.requests().len(), 3);
    let limits = Limits { volume_queue: 4, ..Limits::default() };
    let mut w = World::with(limits, false);
    assert!(w.e.has_room(VOLUME));
    (0..4).for_each(|i| w.read(i, 0, 4096));
    assert!(!w.e.has_room(VOLUME), "the session is not read from");
    w.settle();
    assert!(w.e.has_room(VOLUME));
}

#[test]
fn a_stale_mapping_waits_for_a_newer_generation() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    let (l, f) = w.requests().pop().unwrap();
    w.reply(l, &f.header, Status::StaleMapping, Bytes::new());
    w.tick(100);
    assert!(w.requests().is_empty());
    w.step(Event::Changes {
        index: ConfigIndex(7),
        changes: vec![Change::Volume(volume(2, true))],
    });
    let (l, f) = w.requests().pop().unwrap();
    assert_eq!((f.header.generation, f.header.request_id), (Generation(2), RequestId(1)));
    // A server that is behind instead: a later attempt.
    w.reply(l, &f.header, Status::StaleMapping, Bytes::new());
    w.tick(200);
    w.settle();
    assert_eq!(w.oks(), [1]);
}

#[test]
fn unmapping_fails_what_waits_and_lets_what_is_out_finish() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    w.write(2, 0, 4096, 2);
    let (l, f) = w.requests().pop().unwrap();
    w.step(Event::Changes {
        index: ConfigIndex(7),
        changes: vec![Change::Volume(volume(2, false))],
    });
    assert!(matches!(w.other.pop(), Some(Action::VolumeChanged { volume: VOLUME, state: None })));
    assert_eq!(w.done.drain(..).collect::<Vec<_>>(), [(2, Err(IoError::Shutdown))]);
    w.reply(l, &f.header, Status::Ok, Bytes::new());
    assert_eq!(w.oks(), [1]);
    w.read(3, 0, 4096);
    assert_eq!(w.done.pop(), Some((3, Err(IoError::Shutdown))));
    w.step(Event::Changes {
        index: ConfigIndex(8),
        changes: vec![Change::Volume(volume(3, true))],
    });
    w.read(4, 0, 4096);
    w.settle();
    assert_eq!(w.oks(), [4]);
}

#[test]
fn an_extended_volume_is_told_and_usable_at_once() {
    let mut w = World::ready();
    w.read(1, SIZE, 4096);
    assert_eq!(w.done.pop(), Some((1, Err(IoError::Invalid))));
    let mut v = volume(1, true);
    v.size_bytes += 4096;
    w.step(Event::Changes { index: ConfigIndex(7), changes: vec![Change::Volume(v)] });
    assert!(
        matches!(w.other.pop(), Some(Action::VolumeChanged { state: Some(s), .. }) if s.size_bytes == SIZE + 4096)
    );
    w.read(2, SIZE, 4096);
    w.settle();
    assert_eq!(w.oks(), [2]);
}

#[test]
fn a_fenced_instance_fails_everything_and_sends_nothing_more() {
    for how in 0..3 {
        let mut w = World::ready();
        w.write(1, 0, 4096, 1);
        w.write(2, 0, 4096, 2);
        w.read(3, 1 << 20, 4096);
        let (l, f) = w.requests().pop().unwrap();
        match how {
            0 => w.reply(l, &f.header, Status::StaleInstance, Bytes::new()),
            1 => {
                let s = SdcInfo {
                    id: SdcId(9),
                    name: "c".into(),
                    instance: Instance(78),
                    host: "h".into(),
                };
                w.step(Event::Changes { index: ConfigIndex(9), changes: vec![Change::Sdc(s)] });
            }
            _ => w.step(Event::Registered { sdc: SdcId(9), instance: Instance(78) }),
        }
        let mut failed: Vec<_> = w.done.drain(..).collect();
        failed.sort_by_key(|(h, _)| *h);
        let want: Vec<(u64, Answer)> = (1..=3).map(|h| (h, Err(IoError::Shutdown))).collect();
        assert_eq!(failed, want, "way {how}");
        assert!(w.e.is_fenced() && w.links.is_empty());
        assert!(w.other.iter().any(|a| matches!(a, Action::Note(Note::Fenced { .. }))));
        w.read(4, 0, 4096);
        w.dialled.clear();
        w.tick(5000);
        assert_eq!(w.done.pop(), Some((4, Err(IoError::Shutdown))));
        assert!(w.dialled.is_empty());
    }
}

#[test]
fn errors_reach_the_application_only_where_they_are_final() {
    let mut w = World::ready();
    for (n, status, want) in [
        (1, Status::Full, IoError::NoSpace),
        (2, Status::Corrupt, IoError::Corrupt),
        (3, Status::StaleRequest, IoError::Refused),
        (4, Status::Invalid, IoError::Refused),
    ] {
        w.read(n, 0, 4096);
        let (l, f) = w.requests().pop().unwrap();
        w.reply(l, &f.header, status, Bytes::new());
        assert_eq!(w.done.pop(), Some((n, Err(want))));
    }
    assert_eq!(w.e.stats().stale_request, 1);
}

#[test]
fn a_client_that_left_gets_no_answer_and_leaves_nothing_behind() {
    let mut w = World::with(Limits { volume_bytes: 4096, ..Limits::default() }, false);
    w.write(1, 0, 4096, 1);
    w.write(2, 8192, 4096, 1);
    w.step(Event::ClientGone { client: ClientId(1) });
    w.settle();
    assert!(w.done.is_empty());
    assert_eq!((w.e.load(VOLUME), w.e.requests.len(), w.e.parts.len()), (0, 0, 0));
    assert_eq!((w.truth[0], w.truth[8192]), (1, 0), "what was not begun is dropped");
}

#[test]
fn with_durable_acknowledgement_a_flush_needs_no_io() {
    let mut w = World::ready();
    w.write(1, 0, 4096, 1);
    w.ask(2, IoOp::Flush);
    assert_eq!(w.oks(), [2], "never waits for pending writes");
}

#[test]
fn with_cached_acknowledgement_a_flush_asks_every_group_written_since() {
    let mut w = World::with(Limits::default(), true);
    // An earlier start of this client may have written anywhere: the first flush asks every group.
    w.ask(1, IoOp::Flush);
    w.settle();
    w.write(2, 0, 3 << 20, 1);
    w.settle();
    assert_eq!(w.oks(), [1, 2]);
    w.ask(3, IoOp::Flush);
    let mut groups = std::collections::BTreeSet::from([pg(0), pg(1), pg(2)]);
    let out = w.requests();
    assert_eq!(out.len(), groups.len());
    // A write completed meanwhile keeps its group on the list.
    w.write(4, 0, 4096, 2);
    let (l, f) = w.requests().pop().unwrap();
    w.reply(l, &f.header, Status::Ok, Bytes::new());
    for (l, f) in out {
        assert!(f.header.op == Op::Flush && groups.remove(&f.header.pg));
        assert!(!w.done.iter().any(|(h, _)| *h == 3));
        w.reply(l, &f.header, Status::Ok, Bytes::new());
    }
    assert_eq!(w.oks(), [4, 3]);
    w.ask(5, IoOp::Flush);
    let left = w.requests();
    assert_eq!(left.iter().map(|(_, f)| f.header.pg).collect::<Vec<_>>(), [pg(0)]);
}

#[test]
fn a_silent_server_is_asked_then_given_up() {
    let mut w = World::ready();
    w.settle();
    w.read(1, 0, 4096);
    let (l, _) = w.requests().pop().unwrap();
    w.dialled.clear();
    let mut pings = 0;
    for _ in 0..8 {
        w.tick(100);
        pings += w.links.get_mut(&l).map_or(0, |l| std::mem::take(&mut l.inbox).len());
    }
    assert!(pings >= 1 && w.links.contains_key(&l));
    w.tick(2000);
    assert!(!w.links.contains_key(&l), "given up");
    w.tick(50);
    assert_eq!(w.dialled.len(), 1);
}

#[test]
fn a_server_of_another_cluster_is_not_talked_to() {
    let mut w = World::empty(Limits::default());
    w.e.cfg.cluster = "other".into();
    w.step(Event::Registered { sdc: SdcId(9), instance: INSTANCE });
    w.step(Event::View(view(false)));
    w.settle();
    assert!(w.links.is_empty() && w.e.links_up() == 0);
    assert!(w.other.iter().any(|a| matches!(a, Action::Note(Note::HelloRefused { .. }))));
}

#[test]
fn a_server_that_does_not_greet_is_dropped() {
    let mut w = World::empty(Limits::default());
    w.step(Event::Registered { sdc: SdcId(9), instance: INSTANCE });
    w.step(Event::View(view(false)));
    assert_eq!(w.links.len(), 2);
    w.accept = false;
    w.tick(2000);
    assert!(w.links.is_empty());
}

#[test]
fn zeroes_may_come_without_data() {
    let mut w = World::ready();
    w.read(1, 100, 50);
    let (l, f) = w.requests().pop().unwrap();
    let mut h = Header::new(Op::ReadReply);
    (h.pg, h.request_id, h.flags) = (f.header.pg, f.header.request_id, ZERO_FLAG);
    w.deliver(l, &f.header, Frame::bare(h));
    assert_eq!(w.done, [(1, Ok(vec![0; 50]))]);
}

#[test]
fn a_huge_zero_request_is_split_lazily() {
    let mut w = World::with(Limits { volume_parts: 2, ..Limits::default() }, false);
    w.ask(1, IoOp::Zero { offset: 0, len: SIZE, no_hole: false, trim: false, fua: false });
    assert_eq!(w.requests().len(), 2);
    assert_eq!(w.e.parts.len(), 2);
}
