//! All rings by object, and the points read from them.

use super::catalog::{Kind, Metric, Source};
use super::ring::{tier_for, Ring, TIERS};
use std::collections::BTreeMap;

/// Objects with a history at most; rows of more are left out and counted. A busy object takes up to 1,440 rows of at
/// most 160 bytes.
pub const MAX_OBJECTS: usize = 1024;
/// Points of one answer at most.
pub const MAX_POINTS: u64 = 2_000;
/// Longest look back, seconds.
pub const MAX_SECONDS: u64 = 60 * 720;

/// Row of one object: counters first, then gauges, as the [`Kind`] lists them.
pub type Track = (Kind, u32, Vec<f64>);

/// What of which object, and when.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    pub kind: Kind,
    pub id: u32,
    pub metric: Metric,
    /// How far back, seconds.
    pub seconds: u64,
    /// Seconds between points; `None`: as fits about 120 points.
    pub step: Option<u64>,
}

/// The history.
#[derive(Default)]
pub struct Book {
    objects: BTreeMap<(Kind, u32), Ring>,
    /// Objects were left out: one that comes in later was counted before.
    crowded: bool,
}

impl Book {
    /// Writes the rows of one moment and forgets objects that are gone: those not in `all`. Returns how many rows were left out.
    pub fn record(&mut self, at: u64, rows: Rows) -> u64 {
        self.objects.retain(|k, _| rows.all.binary_search(k).is_ok());
        let mut left_out = 0;
        for (kind, id, values) in rows.tracks {
            if self.objects.len() >= MAX_OBJECTS && !self.objects.contains_key(&(kind, id)) {
                left_out += 1;
                self.crowded = true;
                continue;
            }
            let from_zero = !self.crowded;
            let ring = self.objects.entry((kind, id)).or_insert_with(|| {
                let mut new = Ring::default();
                if from_zero {
                    new.push(at.saturating_sub(1), &before(kind, &values));
                }
                new
            });
            ring.push(at, &values);
        }
        left_out
    }

    /// The step that a query gets: a multiple of what its tier holds, so that there are [`MAX_POINTS`] at most.
    pub fn step(q: &Query) -> u64 {
        let want = q.step.unwrap_or(q.seconds / 120).max(q.seconds.div_ceil(MAX_POINTS)).max(1);
        let every = TIERS.get(tier_for(q.seconds + want)).map_or(1, |t| t.0);
        want.div_ceil(every) * every
    }

    /// Points up to `now`, oldest first; each stands for the step that ends at its time.
    pub fn points(&self, q: &Query, now: u64) -> Vec<(u64, f64)> {
        let Some(ring) = self.objects.get(&(q.kind, q.id)) else { return Vec::new() };
        let step = Book::step(q);
        let tier = tier_for(q.seconds + step);
        let end = now / step * step;
        let count = q.seconds / step;
        (0..count)
            .rev()
            .filter_map(|i| {
                let at = end.checked_sub(i * step)?;
                Some((at, value(ring, tier, at, step, q.metric.source)?))
            })
            .filter(|p| p.1.is_finite())
            .collect()
    }

    /// A metric over the last `window` seconds, from the finest rows.
    pub fn recent(
        &self,
        kind: Kind,
        id: u32,
        metric: Metric,
        now: u64,
        window: u64,
    ) -> Option<f64> {
        // The row of this second may not be there yet.
        let ring = self.objects.get(&(kind, id))?;
        let last = ring.at(0, now)?.0;
        value(ring, 0, last, window, metric.source)
    }

    /// Counters and gauges as recorded last.
    pub fn newest(&self, kind: Kind, id: u32) -> Option<&[f64]> {
        self.objects.get(&(kind, id))?.newest()
    }

    /// Objects with a history, sorted.
    pub fn keys(&self) -> Vec<(Kind, u32)> {
        self.objects.keys().copied().collect()
    }

    /// The rows of one object, to be written.
    pub fn save(&self, kind: Kind, id: u32) -> Option<Vec<Vec<Vec<i64>>>> {
        self.objects.get(&(kind, id)).map(Ring::save)
    }

    /// Puts an object's rows back.
    pub fn restore(&mut self, kind: Kind, id: u32, ring: Ring) {
        if self.objects.len() < MAX_OBJECTS {
            self.objects.insert((kind, id), ring);
        } else {
            self.crowded = true;
        }
    }

    /// (objects, rows) held.
    pub fn size(&self) -> (usize, usize) {
        (self.objects.len(), self.objects.values().map(Ring::rows).sum())
    }
}

/// What an object's first row grew from: the sums of its counters begin with nothing. Without it, what was done before the
/// first row would be in the counters and in no point.
fn before(kind: Kind, first: &[f64]) -> Vec<f64> {
    let counters = kind.counters().len();
    first.iter().enumerate().map(|(i, v)| if i < counters { 0.0 } else { *v }).collect()
}

fn value(ring: &Ring, tier: usize, at: u64, step: u64, source: Source) -> Option<f64> {
    let column = |c: usize| ring.at(tier, at)?.1.get(c).copied();
    let growth = |c: usize| {
        let (end, new) = ring.end(tier, at)?;
        let (begin, old) = ring.at(tier, at.checked_sub(step)?)?;
        (end > begin).then_some((new.get(c)? - old.get(c)?, (end - begin) as f64))
    };
    match source {
        Source::Total(c) | Source::Gauge(c) => column(c),
        Source::Rate(c) => growth(c).map(|(d, s)| d / s),
        Source::Mean { nanos, ops } => {
            let (n, o) = (growth(nanos)?.0, growth(ops)?.0);
            (o > 0.0).then_some(n / o / 1e9)
        }
    }
}

/// What [`Book::record`] takes.
#[derive(Default, Debug)]
pub struct Rows {
    pub tracks: Vec<Track>,
    /// Every object there is, sorted; the history of others is forgotten.
    pub all: Vec<(Kind, u32)>,
}
