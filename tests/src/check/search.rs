//! Registers on which one value, zeroes, was written several times.
//!
//! Events are taken in order of time. A configuration is a value the register may have now and which of
//! the open operations have been put in order already. When an operation ends, every configuration in which it has no place
//! yet is grown until it has one; those that cannot are dropped. No configuration left: not linearizable.
//!
//! What keeps this small, and why each is right:
//! - An open read of the present value is ordered at once: it changes nothing.
//! - A unique value that some read not yet ordered returns cannot be overwritten: it would never come back.
//! - A unique value nobody reads is ordered right before another write: it is hidden there. If its outcome is unknown
//!   it is left out altogether.
//! - Of the open writes of zeroes the one that ends first is taken: they can trade places.
//! - An unknown write of a value that was read has taken effect by the end of the first such read.

use super::register::{list, Action, RegisterOp};
use super::Fault;
use crate::page::{Value, ZERO};
use std::collections::{HashMap, HashSet};

/// Operations open at one time; one bit each.
const MAX_OPEN: usize = 128;
/// Configurations at one time.
const MAX_CONFIGS: usize = 200_000;

type Config = (Value, u128);

struct Search<'a> {
    ops: &'a [RegisterOp],
    /// Operation in each slot, of those sent and not ended.
    open: Vec<Option<usize>>,
    /// Reads of a unique value that have not ended (sent or not).
    reads_left: HashMap<Value, usize>,
    /// Unique values that some read returned.
    read: HashSet<Value>,
    configs: HashSet<Config>,
}

/// Decides a register; written values are unique or [`ZERO`].
pub fn search(initial: Value, ops: &[RegisterOp]) -> Result<(), (Fault, String)> {
    let ops = &settle_unknown(ops);
    let mut reads_left: HashMap<Value, usize> = HashMap::new();
    for o in ops.iter().filter(|o| o.is_read() && o.value() != ZERO) {
        *reads_left.entry(o.value()).or_default() += 1;
    }
    let read = reads_left.keys().copied().collect();
    let configs = HashSet::from([(initial, 0)]);
    let mut s = Search { ops, open: vec![None; MAX_OPEN], reads_left, read, configs };
    for (_, ends, i) in events(ops) {
        if ends {
            s.end(i)?;
        } else {
            s.begin(i)?;
        }
    }
    Ok(())
}

/// Starts before ends at the same instant: such operations overlap.
fn events(ops: &[RegisterOp]) -> Vec<(u64, bool, usize)> {
    let mut events = Vec::with_capacity(ops.len() * 2);
    for (i, o) in ops.iter().enumerate() {
        events.push((o.invoked, false, i));
        if o.completed != u64::MAX {
            events.push((o.completed, true, i));
        }
    }
    events.sort_unstable();
    events
}

/// Gives unknown writes that were read an end; drops those that were not, except of zeroes.
fn settle_unknown(ops: &[RegisterOp]) -> Vec<RegisterOp> {
    let mut first_read: HashMap<Value, u64> = HashMap::new();
    for o in ops.iter().filter(|o| o.is_read()) {
        let at = first_read.entry(o.value()).or_insert(u64::MAX);
        *at = (*at).min(o.completed);
    }
    let settle = |o: &RegisterOp| match o.action {
        Action::Write(v) if v != ZERO && o.completed == u64::MAX => {
            first_read.get(&v).map(|&end| RegisterOp { completed: end.max(o.invoked), ..*o })
        }
        _ => Some(*o),
    };
    ops.iter().filter_map(settle).collect()
}

impl Search<'_> {
    fn begin(&mut self, i: usize) -> Result<(), (Fault, String)> {
        let Some(slot) = self.open.iter().position(Option::is_none) else {
            let text = format!("more than {MAX_OPEN} requests were open at once");
            return Err((Fault::Undecided, text));
        };
        self.open[slot] = Some(i);
        if let Action::Read(v) = self.ops[i].action {
            let of_value =
                |&(value, done): &Config| (value, if value == v { done | 1 << slot } else { done });
            self.configs = self.configs.iter().map(of_value).collect();
        }
        Ok(())
    }

    fn end(&mut self, i: usize) -> Result<(), (Fault, String)> {
        let Some(slot) = self.open.iter().position(|&o| o == Some(i)) else { return Ok(()) };
        let mut kept: HashSet<Config> = HashSet::new();
        let mut seen: HashSet<Config> = self.configs.clone();
        let mut todo: Vec<Config> = self.configs.drain().collect();
        while let Some(c) = todo.pop() {
            if c.1 >> slot & 1 == 1 {
                kept.insert((c.0, c.1 & !(1 << slot)));
                continue;
            }
            for next in self.grow(c) {
                if seen.insert(next) {
                    todo.push(next);
                }
            }
            if seen.len() > MAX_CONFIGS {
                let text = format!("more than {MAX_CONFIGS} states at {}", self.ops[i]);
                return Err((Fault::Undecided, text));
            }
        }
        if kept.is_empty() {
            return Err(self.explain(i));
        }
        self.configs = kept;
        self.open[slot] = None;
        if let Action::Read(v) = self.ops[i].action {
            if let Some(left) = self.reads_left.get_mut(&v) {
                *left -= 1;
            }
        }
        Ok(())
    }

    /// All configurations one write further.
    fn grow(&self, (value, done): Config) -> Vec<Config> {
        let waiting = |slot: usize| done >> slot & 1 == 0;
        let open =
            || self.open.iter().enumerate().filter_map(|(s, i)| i.map(|i| (s, &self.ops[i])));
        let free = open().filter(|&(s, o)| waiting(s) && !o.is_read());
        let zero = free.clone().filter(|(_, o)| o.value() == ZERO).min_by_key(|(_, o)| o.completed);
        if !self.may_overwrite(value, done) {
            // A write of zeroes over zeroes is not one: `value` is unique here.
            return Vec::new();
        }
        let hidden = free
            .clone()
            .filter(|(_, o)| o.value() != ZERO && !self.read.contains(&o.value()))
            .fold(0u128, |m, (s, _)| m | 1 << s);
        let unique = free.filter(|(_, o)| o.value() != ZERO);
        unique
            .chain(zero)
            .map(|(slot, o)| {
                // Zeroes over zeroes hide nothing: a hidden write may be wanted nowhere else, so it goes too.
                let now = done | hidden | 1 << slot;
                let reads = open().filter(|(_, r)| r.action == Action::Read(o.value()));
                (o.value(), reads.fold(now, |m, (s, _)| m | 1 << s))
            })
            .collect()
    }

    /// Whether every read of `value` has been ordered; zeroes may come back, so they always may go.
    fn may_overwrite(&self, value: Value, done: u128) -> bool {
        if value == ZERO {
            return true;
        }
        let left = self.reads_left.get(&value).copied().unwrap_or(0);
        let ordered = self.open.iter().enumerate().filter(|(s, i)| {
            done >> s & 1 == 1 && i.is_some_and(|i| self.ops[i].action == Action::Read(value))
        });
        ordered.count() == left
    }

    fn explain(&self, i: usize) -> (Fault, String) {
        let o = &self.ops[i];
        let near = self.ops.iter().filter(|p| !p.before(o) && !o.before(p));
        let last =
            self.ops.iter().filter(|p| !p.is_read() && p.before(o)).max_by_key(|p| p.completed);
        let text = format!(
            "nothing explains {o}; the write that ended last before it:\n{}\n  at the same time:\n{}",
            list(last, 1),
            list(near, 12)
        );
        (Fault::Order, text)
    }
}
