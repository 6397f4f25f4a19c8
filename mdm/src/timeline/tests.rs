//! Rings, points and sums, without a clock.

use super::book::{Book, Query, Rows, MAX_OBJECTS, MAX_POINTS};
use super::catalog::{Kind, Metric, IO};
use super::collect::{growth, Collector, Last};
use super::ring::{Ring, TIERS};
use crate::control::{Hub, SdcLive, SdsLive};
use crate::state::{Command, Op, State};
use quarry_base::{ConfigIndex, Nanos, SdsId, StartNo};
use std::collections::BTreeMap;

fn rows(tracks: Vec<(Kind, u32, Vec<f64>)>) -> Rows {
    let mut all: Vec<_> = tracks.iter().map(|t| (t.0, t.1)).collect();
    all.sort();
    Rows { tracks, all }
}

/// A volume row: operations and bytes written so far, nanoseconds they took.
fn written(ops: u64, bytes: u64, nanos: u64) -> Vec<f64> {
    let mut v = vec![0.0; IO.len() + 1];
    let col = |n: &str| IO.iter().position(|c| *c == n).unwrap();
    v[col("write_ops")] = ops as f64;
    v[col("write_bytes")] = bytes as f64;
    v[col("write_nanos")] = nanos as f64;
    v[IO.len()] = 1e9;
    v
}

fn query(metric: &str, seconds: u64, step: Option<u64>) -> Query {
    let metric = Metric::find(Kind::Volume, metric).unwrap();
    Query { kind: Kind::Volume, id: 1, metric, seconds, step }
}

/// `seconds` of a volume with 100 writes of 4 KiB in each second, from `from` on.
fn busy(book: &mut Book, from: u64, seconds: u64) {
    for i in 0..seconds {
        let n = i * 100;
        book.record(from + i, rows(vec![(Kind::Volume, 1, written(n, n * 4096, n * 2_000_000))]));
    }
}

#[test]
fn a_rate_is_the_growth_of_its_step_in_every_resolution() {
    let mut b = Book::default();
    let t = 1_000_000_000;
    busy(&mut b, t, 9000);
    let now = t + 8999;
    for (seconds, step, want_step) in [
        (60, Some(1), 1),
        (300, Some(3), 3),
        (1800, Some(7), 10),
        (7200, Some(30), 60),
        (120, None, 1),
    ] {
        let q = query("write_ops", seconds, step);
        assert_eq!(Book::step(&q), want_step);
        let p = b.points(&q, now);
        assert_eq!(p.len() as u64, seconds / want_step, "{seconds} {step:?}");
        assert!(p.iter().all(|p| (p.1 - 100.0).abs() < 1e-6), "{p:?}");
        assert!(p.windows(2).all(|w| w[1].0 - w[0].0 == want_step));
        assert!(now - p.last().unwrap().0 < want_step, "the newest point is fresh");
    }
    let bytes: f64 =
        b.points(&query("write_bytes", 100, Some(10)), now).iter().map(|p| p.1 * 10.0).sum();
    assert_eq!(bytes, 100.0 * 100.0 * 4096.0, "points times step is what was written");
    let latency = b.points(&query("write_latency_seconds", 60, Some(5)), now);
    assert!(latency.iter().all(|p| (p.1 - 0.002).abs() < 1e-9), "{latency:?}");
    let total = b.points(&query("write_ops_total", 10, Some(1)), now);
    assert_eq!(total.last(), Some(&(now, 899_900.0)));
}

#[test]
fn nothing_is_invented_for_a_time_without_rows() {
    let mut b = Book::default();
    let t = 1_000_000_000;
    busy(&mut b, t, 100);
    // Nobody was heard for 40 s; then counters go on where they are.
    for i in 140..200u64 {
        b.record(t + i, rows(vec![(Kind::Volume, 1, written(i * 100, 0, 0))]));
    }
    let p = b.points(&query("write_ops", 200, Some(1)), t + 199);
    let in_gap = p.iter().filter(|p| (t + 105..t + 140).contains(&p.0)).count();
    assert_eq!(in_gap, 0, "{p:?}");
    assert!(p.iter().any(|p| p.0 == t + 50) && p.iter().any(|p| p.0 == t + 190));
    // An object that was never recorded, and a mean without requests.
    assert!(b.points(&Query { id: 9, ..query("write_ops", 60, None) }, t + 199).is_empty());
    assert!(b.points(&query("read_latency_seconds", 60, Some(1)), t + 199).is_empty());
}

#[test]
fn a_row_that_comes_late_changes_no_sum() {
    let mut b = Book::default();
    let t = 1_000_000_000;
    for i in 0..100u64 {
        // Every tenth second has no row.
        if i % 10 != 5 {
            let n = i * i;
            b.record(t + i, rows(vec![(Kind::Volume, 1, written(n, n * 4096, 0))]));
        }
    }
    let p = b.points(&query("write_ops", 90, Some(1)), t + 99);
    assert_eq!(p.len(), 90);
    let sum: f64 = p.iter().map(|p| p.1).sum();
    assert_eq!(sum, f64::from(99 * 99 - 9 * 9), "{p:?}");
    // The second that has not been recorded yet has no point.
    assert_eq!(b.points(&query("write_ops", 90, Some(1)), t + 100).last().unwrap().0, t + 99);
}

#[test]
fn what_an_object_did_before_its_first_row_is_in_its_first_point() {
    let mut b = Book::default();
    let t = 1_000_000_000;
    for i in 0..10u64 {
        let n = 70 + i * 100;
        b.record(t + i, rows(vec![(Kind::Volume, 1, written(n, n * 4096, 0))]));
    }
    let p = b.points(&query("write_ops", 60, Some(1)), t + 9);
    assert_eq!(p.first(), Some(&(t, 70.0)));
    assert_eq!(p.iter().map(|p| p.1).sum::<f64>(), 970.0);
    let size = b.points(&query("size_bytes", 60, Some(1)), t + 9);
    assert!(size.iter().all(|p| p.1 == 1e9), "{size:?}");
    // One for which there was no room was counted before: it begins where it is.
    let mut b = Book::default();
    let one = |id, n| (Kind::Volume, id, written(n, 0, 0));
    b.record(t, rows((0..=MAX_OBJECTS as u32).map(|i| one(i, 1)).collect()));
    b.record(t + 1, rows(vec![one(MAX_OBJECTS as u32, 5000)]));
    b.record(t + 2, rows(vec![one(MAX_OBJECTS as u32, 5001)]));
    let late = Query { id: MAX_OBJECTS as u32, ..query("write_ops", 60, Some(1)) };
    assert_eq!(b.points(&late, t + 2), [(t + 2, 1.0)]);
}

#[test]
fn memory_is_bounded_and_idle_objects_take_one_row() {
    let mut idle = Ring::default();
    let mut busy = Ring::default();
    for i in 0..200_000u64 {
        idle.push(i, &[1.0, 2.0]);
        busy.push(i, &[i as f64, 2.0]);
    }
    assert_eq!(idle.rows(), TIERS.len());
    assert_eq!(busy.rows(), TIERS.iter().map(|t| t.1).sum::<usize>());
    let mut b = Book::default();
    let many: Vec<_> =
        (0..MAX_OBJECTS as u32 + 5).map(|i| (Kind::Volume, i, written(1, 1, 1))).collect();
    assert_eq!(b.record(100, rows(many)), 5, "what has no room is counted");
    assert_eq!(b.size().0, MAX_OBJECTS);
    assert_eq!(b.record(101, rows(vec![(Kind::Volume, 3, written(1, 1, 1))])), 0);
    assert_eq!(b.size().0, 1, "deleted objects are forgotten");
    let q = query("write_ops", 40_000, Some(1));
    assert!(40_000 / Book::step(&q) <= MAX_POINTS);
}

#[test]
fn a_clock_that_jumps_back_does_no_harm() {
    let mut r = Ring::default();
    for t in [100, 101, 50, 51, 102] {
        r.push(t, &[t as f64]);
    }
    assert_eq!(r.at(0, 102), Some((102, &[102.0][..])));
    assert_eq!(r.at(0, 101), Some((101, &[101.0][..])));
    assert_eq!(r.at(0, 51), None);
}

#[test]
fn every_listed_metric_is_found_and_nothing_else() {
    for kind in Kind::ALL {
        assert_eq!(Kind::parse(kind.name()), Some(kind));
        for n in Metric::names(kind) {
            assert!(Metric::find(kind, &n).is_some(), "{} {n}", kind.name());
        }
        for n in ["", "nonsense", "write_nanos", "_total", "size_bytes_total", "_latency_seconds"] {
            assert!(Metric::find(kind, n).is_none(), "{} {n}", kind.name());
        }
    }
    assert!(Metric::find(Kind::Sds, "read_latency_seconds").is_none());
}

fn counters(list: &[(&str, u64)]) -> BTreeMap<String, u64> {
    list.iter().map(|(n, v)| ((*n).to_string(), *v)).collect()
}

#[test]
fn a_counter_is_carried_over_restarts_of_its_daemon_and_of_the_mdm() {
    let grown = |last: &Last, start, now: &BTreeMap<String, u64>| {
        growth(last, 10, start, now).iter().map(|(n, v)| format!("{n}+{v}")).collect::<Vec<_>>()
    };
    let at = |start, n| Last { start, counters: counters(&[("a", n)]) };
    let now = counters(&[("a", 70)]);
    assert_eq!(grown(&at(11, 50), 11, &now), ["a+20"]);
    assert_eq!(grown(&at(11, 70), 11, &now), [""; 0]);
    assert_eq!(grown(&at(11, 90), 11, &now), ["a+70"], "mapped again: counts from zero");
    assert_eq!(grown(&at(11, 50), 12, &now), ["a+70"], "a new process counts from zero");
    assert_eq!(grown(&Last::default(), 11, &now), ["a+70"], "it came after this MDM");
    assert_eq!(grown(&Last::default(), 7, &now), [""; 0], "it ran before this MDM did");
    let none = Last { start: 7, counters: BTreeMap::new() };
    assert_eq!(grown(&none, 7, &now), [""; 0], "its first report was not there yet");
    let more = counters(&[("a", 50), ("b", 4)]);
    assert_eq!(grown(&at(7, 50), 7, &more), ["b+4"], "a volume mapped meanwhile");
}

#[test]
fn a_server_that_got_a_new_start_is_not_counted_twice() {
    let mut s = State::default();
    let add = Op::AddSds { name: "a".into(), domain: None, fault_set: None };
    for op in [Op::Init { cluster: "c".into() }, add] {
        let index = ConfigIndex(s.index.0 + 1);
        s.apply(index, &Command { at_ms: 1, who: "t".into(), key: None, op }).unwrap();
    }
    let hub = Hub::new(&s);
    let mut c = Collector::new(0);
    let mut reads = |start, process, n| {
        let mut h = hub.lock();
        let (start, process) = (StartNo(start), StartNo(process));
        let counters = counters(&[("sds.read_ops", n)]);
        let live = SdsLive { session: Some(1), start, process, counters, ..SdsLive::default() };
        h.sds.insert(SdsId(1), live);
        let rows = c.rows(&s, &h, Nanos(0));
        rows.tracks.iter().find(|t| t.0 == Kind::Sds).map(|t| t.2[0])
    };
    assert_eq!(reads(1, 1, 50), Some(50.0));
    assert_eq!(reads(2, 1, 60), Some(60.0), "it was declared failed, and lived");
    assert_eq!(reads(3, 3, 5), Some(65.0), "another process");
}

#[test]
fn what_removed_daemons_reported_is_forgotten() {
    let (s, hub) = (State::default(), Hub::new(&State::default()));
    let mut c = Collector::new(0);
    let live = SdsLive {
        session: Some(1),
        counters: counters(&[("sds.read_ops", 1)]),
        ..SdsLive::default()
    };
    hub.lock().sds.insert(SdsId(1), live);
    let live = SdcLive { session: Some(2), counters: counters(&[("a", 1)]), ..SdcLive::default() };
    hub.lock().sdcs.insert(quarry_base::SdcId(1), live);
    c.rows(&s, &hub.lock(), Nanos(0));
    assert_eq!(c.take_reports(10), []);
}

#[test]
fn rows_are_taken_in_the_middle_of_each_second() {
    for (now, wait) in [(7_000, 500), (7_499, 1), (7_500, 1_000), (7_501, 999), (7_999, 501)] {
        assert_eq!(super::until_half(now).as_millis() as u64, wait, "{now}");
    }
}
