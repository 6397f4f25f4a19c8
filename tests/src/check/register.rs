//! Operations on one register, and what each read shows by itself.

use super::Fault;
use crate::page::{self, Value, FOREIGN, MISPLACED, TORN, ZERO};
use std::collections::HashMap;

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// A read that returned this.
    Read(Value),
    /// A write of this: unique, or [`ZERO`].
    Write(Value),
}

/// One operation on one register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegisterOp {
    /// The request, for messages.
    pub id: u64,
    pub client: u32,
    pub action: Action,
    pub invoked: u64,
    /// `u64::MAX`: the outcome of this write is unknown.
    pub completed: u64,
}

impl RegisterOp {
    /// Whether it is a read.
    pub fn is_read(&self) -> bool {
        matches!(self.action, Action::Read(_))
    }
    /// The value read or written.
    pub fn value(&self) -> Value {
        match self.action {
            Action::Read(v) | Action::Write(v) => v,
        }
    }
    /// Whether it ended before the other was sent.
    pub fn before(&self, other: &RegisterOp) -> bool {
        self.completed < other.invoked
    }
}

impl std::fmt::Display for RegisterOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |t: u64| t as f64 / 1e6;
        let what = match self.action {
            Action::Read(v) => format!("read of {}", page::show(v)),
            Action::Write(v) => format!("write of {}", page::show(v)),
        };
        write!(f, "#{} client {} {what} [{:.3}", self.id, self.client, ms(self.invoked))?;
        match self.completed {
            u64::MAX => write!(f, " ms, no answer]"),
            t => write!(f, " to {:.3} ms]", ms(t)),
        }
    }
}

/// Checks that each read returns something that was written there, by a write sent before the read ended.
pub fn check_reads(initial: Value, ops: &[RegisterOp]) -> Result<(), (Fault, String)> {
    // The earliest that each value can have been there.
    let mut written: HashMap<Value, u64> = HashMap::from([(initial, 0)]);
    for o in ops.iter().filter(|o| !o.is_read()) {
        let at = written.entry(o.value()).or_insert(o.invoked);
        *at = (*at).min(o.invoked);
    }
    for o in ops.iter().filter(|o| o.is_read()) {
        match written.get(&o.value()) {
            Some(&at) if o.completed < at => {
                let text =
                    format!("{o} ended before that was written (at {:.3} ms)", at as f64 / 1e6);
                return Err((Fault::Future, text));
            }
            Some(_) => {}
            None => return Err((unwritten(o.value()), format!("{o}"))),
        }
    }
    Ok(())
}

fn unwritten(value: Value) -> Fault {
    match value {
        ZERO => Fault::Nowhere,
        v if v & TORN == TORN => Fault::Torn,
        v if v & MISPLACED == MISPLACED => Fault::Misplaced,
        v if v & FOREIGN != 0 => Fault::Nowhere,
        _ => Fault::Nowhere,
    }
}

/// Lists operations in order of time, the first `most` of them.
pub fn list<'a>(ops: impl IntoIterator<Item = &'a RegisterOp>, most: usize) -> String {
    let mut ops: Vec<&RegisterOp> = ops.into_iter().collect();
    ops.sort_by_key(|o| (o.invoked, o.completed));
    let more = ops.len().saturating_sub(most);
    let mut lines: Vec<String> = ops.iter().take(most).map(|o| format!("    {o}")).collect();
    if more > 0 {
        lines.push(format!("    and {more} more"));
    }
    lines.join("\n")
}
