//! The history on disk, so that graphs go on over a restart of the MDM.
//!
//! A plain file beside the metadata, replaced as a whole every [`EVERY`] and when the MDM ends; a crash loses what was
//! recorded since. It is no metadata: nothing depends on it, it is not synced, and a file that is damaged, of another
//! cluster or of a newer release is left aside. Bounded like the history itself: [`super::book::MAX_OBJECTS`] rings.
//!
//! Lines of JSON: a head, one line an object, what daemons reported last in parts (version 1 had it among the sums), one of
//! the sums behind the counters, and an end that tells how many objects there are; without it the file was cut off. No line
//! is longer than one that is read. A row is `[first, length, values...]`, each number the difference to the row
//! before it.

use super::book::Book;
use super::catalog::Kind;
use super::collect::{Collector, Report};
use super::ring::Ring;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

/// How often it is written.
pub const EVERY: Duration = Duration::from_secs(120);
/// Version of the layout.
const VERSION: u32 = 2;
/// The oldest that is read.
const OLDEST: u32 = 1;
/// Counters in one line at most.
const REPORT: usize = 10_000;
/// Longest line that is read.
const MAX_LINE: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Head {
    quarry_timeline: u32,
    cluster: String,
}

#[derive(Serialize, Deserialize)]
struct Object {
    kind: String,
    id: u32,
    tiers: Vec<Vec<Vec<i64>>>,
}

#[derive(Serialize, Deserialize)]
struct End {
    objects: usize,
}

/// Why a file is left aside.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it is damaged or cut off ({0})")]
    Damaged(&'static str),
    #[error("it is of another cluster")]
    OtherCluster,
    #[error("it has version {0}, this program knows {VERSION}")]
    Version(u32),
}

fn line(out: &mut impl Write, v: &impl Serialize) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(v)?;
    text.push(b'\n');
    if text.len() as u64 > MAX_LINE {
        return Err(std::io::Error::other("a line of it would be longer than one that is read"));
    }
    out.write_all(&text)
}

/// Replaces the file. `book` gives one object at a time, so that its lock is held for moments only.
pub fn write(
    path: &Path,
    cluster: &str,
    keys: &[(Kind, u32)],
    book: impl Fn(Kind, u32) -> Option<Vec<Vec<Vec<i64>>>>,
    mut collector: Collector,
) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut out = BufWriter::new(std::fs::File::create(&new)?);
    line(&mut out, &Head { quarry_timeline: VERSION, cluster: cluster.to_string() })?;
    let mut objects = 0;
    for (kind, id) in keys {
        if let Some(tiers) = book(*kind, *id) {
            line(&mut out, &Object { kind: kind.name().to_string(), id: *id, tiers })?;
            objects += 1;
        }
    }
    for report in collector.take_reports(REPORT) {
        line(&mut out, &report)?;
    }
    line(&mut out, &collector)?;
    line(&mut out, &End { objects })?;
    out.into_inner().map_err(|e| e.into_error())?;
    std::fs::rename(new, path)
}

/// Reads what [`write`] wrote; rows of a time after `now` (the clock went back) are left out. `None`: there is no file.
pub fn read(path: &Path, cluster: &str, now: u64) -> Result<Option<(Book, Collector)>, Unusable> {
    let file = match std::fs::File::open(path) {
        Ok(f) => f,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let mut input = BufReader::new(file);
    let head: Head = parse(&next(&mut input)?)?;
    if !(OLDEST..=VERSION).contains(&head.quarry_timeline) {
        return Err(Unusable::Version(head.quarry_timeline));
    }
    if head.cluster != cluster {
        return Err(Unusable::OtherCluster);
    }
    let (mut book, mut count, mut reports) = (Book::default(), 0, Vec::new());
    let sums = loop {
        let text = next(&mut input)?;
        if let Ok(r) = parse::<Report>(&text) {
            reports.push(r);
            continue;
        }
        let Ok(o) = parse::<Object>(&text) else { break text };
        let kind = Kind::parse(&o.kind).ok_or(Unusable::Damaged("a kind"))?;
        let columns = kind.counters().len() + kind.gauges().len();
        let ring = Ring::restore(&o.tiers, columns, now).ok_or(Unusable::Damaged("a row"))?;
        book.restore(kind, o.id, ring);
        count += 1;
    };
    let mut collector: Collector = parse(&sums)?;
    for r in reports {
        collector.put_report(r).ok_or(Unusable::Damaged("a report"))?;
    }
    let end: End = parse(&next(&mut input)?)?;
    if end.objects != count {
        return Err(Unusable::Damaged("its end"));
    }
    Ok(Some((book, collector)))
}

fn next(input: &mut impl BufRead) -> Result<String, Unusable> {
    let mut text = String::new();
    let n = std::io::Read::take(&mut *input, MAX_LINE).read_line(&mut text)?;
    if n == 0 || !text.ends_with('\n') {
        return Err(Unusable::Damaged("its length"));
    }
    Ok(text)
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Unusable> {
    serde_json::from_str(text).map_err(|_| Unusable::Damaged("a line"))
}

#[cfg(test)]
mod tests {
    use super::super::book::Rows;
    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("quarry-timeline-{}-{name}", std::process::id()))
    }

    fn busy(seconds: u64) -> Book {
        let mut book = Book::default();
        for i in 0..seconds {
            let mut row = vec![0.0; Kind::Volume.counters().len() + 1];
            row[1] = (i * 100) as f64;
            let tracks = vec![(Kind::Volume, 7, row)];
            book.record(1_000_000 + i, Rows { tracks, all: vec![(Kind::Volume, 7)] });
        }
        book
    }

    fn saved(book: &Book, path: &Path) {
        let collector = Collector::new(5);
        write(path, "c1", &book.keys(), |k, id| book.save(k, id), collector).unwrap();
    }

    #[test]
    fn what_was_recorded_is_the_same_after_a_restart() {
        let path = scratch("same");
        let book = busy(5000);
        saved(&book, &path);
        let (again, _) = read(&path, "c1", 1_005_000).unwrap().unwrap();
        assert_eq!(again.keys(), book.keys());
        assert_eq!(
            (again.size(), again.save(Kind::Volume, 7)),
            (book.size(), book.save(Kind::Volume, 7))
        );
        assert_eq!(again.newest(Kind::Volume, 7), book.newest(Kind::Volume, 7));
        let size = std::fs::metadata(&path).unwrap().len();
        assert!(size < 100 << 10, "{size} bytes for one object");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_many_daemons_reported_comes_back_though_it_is_longer_than_a_line() {
        let path = scratch("long");
        let report = |of: u32, n: std::ops::Range<u32>| {
            let name = |v| format!("volume.{v}.a_counter_with_a_long_name_and_more_of_it_here");
            let counters = n.map(|v| (name(v), 1u64)).collect::<std::collections::BTreeMap<_, _>>();
            let json =
                serde_json::json!({"kind": "sdc", "of": of, "start": 3, "counters": counters});
            serde_json::from_value::<Report>(json).unwrap()
        };
        let mut all = Collector::new(5);
        (0..10).for_each(|of| all.put_report(report(of, 0..30_000)).unwrap());
        assert!(serde_json::to_vec(&all).unwrap().len() as u64 > MAX_LINE);
        write(&path, "c1", &[], |_, _| None, all).unwrap();
        let (_, mut again) = read(&path, "c1", 1).unwrap().unwrap();
        let mut parts = again.take_reports(usize::MAX);
        assert_eq!(parts.len(), 10);
        assert!(parts.iter().any(|p| *p == report(7, 0..30_000)));
        assert!(parts.drain(..).all(|p| again.put_report(p).is_some()));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_of_the_release_before_is_read() {
        let path = scratch("before");
        let mut all = Collector::new(5);
        let r =
            serde_json::json!({"kind": "sds", "of": 1, "start": 3, "counters": {"sds.reads": 7}});
        all.put_report(serde_json::from_value(r.clone()).unwrap()).unwrap();
        let sums = serde_json::to_string(&all).unwrap();
        let head = "{\"quarry_timeline\":1,\"cluster\":\"c1\"}";
        std::fs::write(&path, format!("{head}\n{sums}\n{{\"objects\":0}}\n")).unwrap();
        let (_, mut again) = read(&path, "c1", 1).unwrap().unwrap();
        assert_eq!(serde_json::to_value(again.take_reports(9)).unwrap(), serde_json::json!([r]));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn rows_of_a_time_to_come_are_left_out() {
        let path = scratch("later");
        saved(&busy(100), &path);
        let (mut again, _) = read(&path, "c1", 1_000_050).unwrap().unwrap();
        assert_eq!(again.newest(Kind::Volume, 7).unwrap()[1], 5000.0);
        let row = again.newest(Kind::Volume, 7).unwrap().to_vec();
        again.record(1_000_051, Rows { tracks: vec![(Kind::Volume, 7, row)], all: again.keys() });
        assert_eq!(again.size(), (1, 51 + 6 + 2), "recording goes on");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_is_cut_off_damaged_or_of_another_cluster_is_left_aside() {
        let path = scratch("bad");
        assert!(read(&path, "c1", 0).unwrap().is_none());
        saved(&busy(100), &path);
        assert!(matches!(read(&path, "c2", 2_000_000), Err(Unusable::OtherCluster)));
        let whole = std::fs::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(7) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(read(&path, "c1", 2_000_000).is_err(), "cut at {cut}");
        }
        for at in (0..whole.len()).step_by(3) {
            let mut bad = whole.clone();
            bad[at] ^= 0x11;
            std::fs::write(&path, &bad).unwrap();
            // Whatever it says: no panic, and nothing without bounds.
            if let Ok(Some((b, _))) = read(&path, "c1", 2_000_000) {
                assert!(b.size().1 <= 1440);
            }
        }
        std::fs::remove_file(path).unwrap();
    }
}
