//! `ack = cached`: what a flush says after its group lost what all its caches had (R29).

use super::fake::*;
use super::*;
use bytes::Bytes;
use quarry_base::*;
use quarry_wire::{PgConfig, Status};

/// A volume whose first flush (of what an earlier start may have written) is over.
fn cached() -> World {
    let mut w = World::with(Limits::default(), true);
    flush(&mut w, 900, Ok(()));
    w
}

fn flush(w: &mut World, handle: u64, want: Result<(), IoError>) {
    w.ask(handle, IoOp::Flush);
    w.settle();
    let (h, got) = w.done.pop().unwrap();
    assert_eq!((h, got.map(|_| ())), (handle, want));
}

/// The next epoch of an extent's group as the client hears of it, led by the same server.
fn tell_next(w: &mut World, extent: u32, change: impl FnOnce(&mut PgConfig)) {
    let mut c = w.configs[&pg(extent)].clone();
    c.epoch = Epoch(c.epoch.0 + 1);
    c.index = ConfigIndex(c.epoch.0);
    change(&mut c);
    w.set_config(c);
    w.tell_config(pg(extent));
}

/// The same, and everything that is out is served; `fell`: all its hosts had booted.
fn next_epoch(w: &mut World, extent: u32, fell: bool) {
    tell_next(w, extent, |c| c.fell = if fell { c.epoch } else { c.fell });
    w.settle();
}

fn write(w: &mut World, handle: u64, extent: u32) {
    w.write(handle, u64::from(extent) << 20, 4096, 1);
    w.settle();
    assert_eq!(w.oks(), [handle]);
}

#[test]
fn a_flush_fails_once_if_what_it_covers_may_be_gone() {
    let mut w = cached();
    write(&mut w, 1, 0);
    next_epoch(&mut w, 0, true);
    w.other.clear();
    flush(&mut w, 2, Err(IoError::FellBack));
    assert_eq!(IoError::FellBack.errno(), 5);
    let told = Note::FellBack { volume: VOLUME, pg: pg(0) };
    assert!(w.other.iter().any(|a| matches!(a, Action::Note(n) if *n == told)));
    assert_eq!(w.e.stats().fell_back, 1);
    flush(&mut w, 3, Ok(()));
    write(&mut w, 4, 0);
    flush(&mut w, 5, Ok(()));
}

#[test]
fn a_fall_concerns_neither_what_was_flushed_nor_what_was_durable_nor_other_groups() {
    let mut w = cached();
    write(&mut w, 1, 0);
    flush(&mut w, 2, Ok(()));
    w.ask(3, IoOp::Write { offset: 0, data: Bytes::from(vec![1; 4096]), fua: true });
    w.settle();
    assert_eq!(w.oks(), [3]);
    write(&mut w, 4, 1);
    next_epoch(&mut w, 0, true);
    flush(&mut w, 5, Ok(()));
}

#[test]
fn an_epoch_after_the_fall_does_not_hide_it_and_one_without_a_fall_says_nothing() {
    let mut w = cached();
    write(&mut w, 1, 0);
    next_epoch(&mut w, 0, false);
    flush(&mut w, 2, Ok(()));
    write(&mut w, 3, 0);
    next_epoch(&mut w, 0, true);
    next_epoch(&mut w, 0, false);
    flush(&mut w, 4, Err(IoError::FellBack));
}

#[test]
fn a_flush_answered_before_the_fall_saved_what_it_covers() {
    let mut w = cached();
    write(&mut w, 1, 0);
    w.ask(2, IoOp::Flush);
    let (l, f) = w.requests().pop().unwrap();
    let answer = w.answer_frame(&f.header, Status::Ok, Bytes::new());
    // The answer is under way while the group falls; the flush is sent anew meanwhile.
    tell_next(&mut w, 0, |c| c.fell = c.epoch);
    assert_eq!(w.requests().len(), 1, "sent again");
    w.deliver(l, &f.header, answer);
    assert_eq!(w.oks(), [2]);
}

#[test]
fn a_part_that_was_lost_before_the_whole_write_was_answered_is_told_by_the_flush_after_it() {
    let mut w = cached();
    w.write(1, (1 << 20) - 4096, 8192, 1);
    let mut parts = w.requests();
    parts.sort_by_key(|(_, f)| f.header.extent);
    let (l, f) = parts.remove(0);
    w.reply(l, &f.header, Status::Ok, Bytes::new());
    next_epoch(&mut w, 0, true);
    // Not about a write that is not answered.
    flush(&mut w, 2, Ok(()));
    let (l, f) = parts.remove(0);
    w.reply(l, &f.header, Status::Ok, Bytes::new());
    assert_eq!(w.oks(), [1]);
    flush(&mut w, 3, Err(IoError::FellBack));
    flush(&mut w, 4, Ok(()));
}

#[test]
fn what_the_operator_gave_up_is_told_too() {
    let mut w = cached();
    write(&mut w, 1, 0);
    tell_next(&mut w, 0, |c| c.line = c.epoch);
    flush(&mut w, 2, Err(IoError::FellBack));
}

#[test]
fn a_mapping_made_anew_is_told_nothing_of_the_one_before() {
    let mut w = cached();
    write(&mut w, 1, 0);
    // Something is out all the time: the volume is kept.
    w.read(2, 1 << 20, 4096);
    w.requests();
    for (index, mapped) in [(20, false), (21, true)] {
        let v = quarry_wire::Change::Volume(volume(index, mapped));
        w.step(Event::Changes { index: ConfigIndex(index), changes: vec![v] });
    }
    w.settle();
    w.done.clear();
    next_epoch(&mut w, 0, true);
    flush(&mut w, 4, Ok(()));
}

#[test]
fn a_later_write_of_the_same_epoch_does_not_hide_one_that_the_flush_is_about() {
    let mut w = cached();
    write(&mut w, 1, 0);
    w.ask(2, IoOp::Flush);
    let held = w.requests();
    assert_eq!(held.len(), 1);
    write(&mut w, 3, 0);
    next_epoch(&mut w, 0, true);
    assert_eq!(w.done.drain(..).collect::<Vec<_>>(), [(2, Err(IoError::FellBack))]);
    flush(&mut w, 4, Err(IoError::FellBack));
    flush(&mut w, 5, Ok(()));
}

#[test]
fn a_flush_that_nobody_waits_for_any_more_does_not_use_the_report_up() {
    let mut w = cached();
    write(&mut w, 1, 0);
    w.ask_as(7, 2, IoOp::Flush);
    w.requests();
    w.step(Event::ClientGone { client: ClientId(7) });
    next_epoch(&mut w, 0, true);
    assert!(w.done.is_empty());
    flush(&mut w, 3, Err(IoError::FellBack));
    flush(&mut w, 4, Ok(()));
}

#[test]
fn a_client_that_leaves_before_the_last_group_answers_does_not_use_the_report_of_the_first_up() {
    let mut w = cached();
    write(&mut w, 1, 0);
    write(&mut w, 2, 1);
    next_epoch(&mut w, 0, true);
    next_epoch(&mut w, 1, true);
    w.ask_as(7, 3, IoOp::Flush);
    let mut out = w.requests();
    assert_eq!(out.len(), 2);
    let (l, f) = out.remove(0);
    w.reply(l, &f.header, Status::Ok, Bytes::new());
    w.step(Event::ClientGone { client: ClientId(7) });
    let (l, f) = out.remove(0);
    w.reply(l, &f.header, Status::Ok, Bytes::new());
    assert_eq!((w.done.len(), w.e.stats().fell_back), (0, 0));
    flush(&mut w, 4, Err(IoError::FellBack));
    assert_eq!(w.e.stats().fell_back, 2);
    flush(&mut w, 5, Ok(()));
}

#[test]
fn a_configuration_from_who_knows_no_falls_does_not_make_a_client_forget_one() {
    let mut w = cached();
    write(&mut w, 1, 0);
    next_epoch(&mut w, 0, true);
    tell_next(&mut w, 0, |c| c.fell = Epoch::ZERO);
    flush(&mut w, 2, Err(IoError::FellBack));
    flush(&mut w, 3, Ok(()));
}
