//! Registers whose written values are all different.
//!
//! All operations of one value (its write and the reads that returned it) form a cluster, which must stand together in
//! any order. Let `first_end` be the earliest end and `last_start` the latest start in it. Cluster A must come before B
//! exactly if something of A ended before something of B started: `A.first_end < B.last_start`. An order exists
//! exactly if no two clusters must each come before the other (a longer circle always holds such a
//! pair: take its member with the latest `last_start` and the one after it).
//!
//! Where `first_end < last_start` (a forward zone) the value must have been there all that time; other zones are
//! backward. Two backward zones never conflict; two forward zones conflict when they overlap; a backward zone
//! conflicts with a forward one that contains it. Sorting finds either.

use super::register::{list, RegisterOp};
use super::Fault;
use crate::page::{self, Value};
use std::collections::HashMap;

/// Operations shown of each value in a message.
const SHOWN: usize = 6;

#[derive(Clone, Copy, Debug)]
struct Zone {
    value: Value,
    first_end: u64,
    last_start: u64,
}

impl Zone {
    fn forward(&self) -> bool {
        self.first_end < self.last_start
    }
    fn conflicts(&self, other: &Zone) -> bool {
        self.first_end < other.last_start && other.first_end < self.last_start
    }
}

/// Decides a register whose writes all wrote different values, none of them `initial`. Reads were checked by
/// [`check_reads`](super::register::check_reads) before.
pub fn zones(initial: Value, ops: &[RegisterOp]) -> Result<(), (Fault, String)> {
    let mut clusters: HashMap<Value, Zone> = HashMap::new();
    clusters.insert(initial, Zone { value: initial, first_end: 0, last_start: 0 });
    for o in ops {
        let fresh = Zone { value: o.value(), first_end: u64::MAX, last_start: 0 };
        let z = clusters.entry(o.value()).or_insert(fresh);
        z.first_end = z.first_end.min(o.completed);
        z.last_start = z.last_start.max(o.invoked);
    }
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) =
        clusters.into_values().partition(Zone::forward);
    forward.sort_by_key(|z| z.first_end);
    for pair in forward.windows(2) {
        if pair[0].conflicts(&pair[1]) {
            return Err(explain(pair[0], pair[1], ops));
        }
    }
    for b in &backward {
        // Forward zones do not overlap now: only the last that begins before b can contain it.
        let after = forward.partition_point(|z| z.first_end < b.last_start);
        if let Some(f) = after.checked_sub(1).and_then(|i| forward.get(i)) {
            if f.conflicts(b) {
                return Err(explain(*f, *b, ops));
            }
        }
    }
    Ok(())
}

fn explain(a: Zone, b: Zone, ops: &[RegisterOp]) -> (Fault, String) {
    let of = |z: Zone| ops.iter().filter(move |o| o.value() == z.value);
    let fault = if stale(a, b, ops) || stale(b, a, ops) { Fault::Stale } else { Fault::Order };
    let text = format!(
        "{} and {} would each have to come first:\n{}\n{}",
        page::show(a.value),
        page::show(b.value),
        list(of(a), SHOWN),
        list(of(b), SHOWN)
    );
    (fault, text)
}

/// Whether a read of `old` began after the write of `new` had ended, which began after that of `old` had ended.
fn stale(old: Zone, new: Zone, ops: &[RegisterOp]) -> bool {
    let write = |v| ops.iter().find(move |o| !o.is_read() && o.value() == v);
    let Some(newer) = write(new.value) else { return false };
    let older_ended = write(old.value).map_or(0, |w| w.completed);
    let late = |o: &RegisterOp| o.is_read() && o.value() == old.value && newer.before(o);
    older_ended < newer.invoked && ops.iter().any(late)
}
