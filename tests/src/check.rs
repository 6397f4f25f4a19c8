//! Whether a history is linearizable: every 4 KiB page is a register of its own.
//!
//! A page's requests become register operations: a write (value unique to it), a trim or zeroing (value
//! 0), or a successful read. A write whose outcome is unknown, or that was answered with an error, may take effect at any time after
//! it was sent, or never. The page passes when all of them can be put in one order that agrees with
//! real time and in which each read returns what was written last before it.
//!
//! - Written values are unique: then the order exists exactly if the *zones* of the values do not
//!   conflict ([`zones`]; Gibbons and Korach 1997), which is decided in O(n log n) whatever the concurrency.
//! - Pages that were trimmed or zeroed have one value (0) written many times: these are searched
//!   ([`search`]: operations are ordered when the first of them must be, states are merged), and the
//!   unique values keep the search small. A page whose search grows beyond its limit is *undecided*,
//!   which counts as a failure of the test, never as a pass.

pub mod register;
pub mod search;
#[cfg(test)]
mod tests;
pub mod zones;

use crate::history::{History, Kind, Op, Outcome};
use crate::page::{self, Value, ZERO};
use crate::{fail, Res};
use register::{Action, RegisterOp};
use std::collections::BTreeMap;
use std::fmt;

/// How a page's history is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A read returned a page mixed from several writes, or damaged.
    Torn,
    /// A read returned the content of another page.
    Misplaced,
    /// A read returned what nobody wrote there.
    Nowhere,
    /// A read ended before the write it shows was sent.
    Future,
    /// A read returned a value although another write had begun and ended between that value's and the read.
    Stale,
    /// Two values would each have to come before the other: a lost write, a resurrected one, reads that go back.
    Order,
    /// The search gave up; not known to be wrong, not known to be right.
    Undecided,
}

/// One page's first violation.
#[derive(Clone, Debug)]
pub struct Violation {
    pub page: u64,
    pub fault: Fault,
    /// What was seen, with the requests that contradict each other.
    pub text: String,
}
impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}: {:?}: {}", self.page, self.fault, self.text)
    }
}

/// The checker's answer.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Violations, at most one a page, in order of pages.
    pub violations: Vec<Violation>,
    /// Pages, reads and writes (per page) that were checked.
    pub pages: usize,
    pub reads: usize,
    pub writes: usize,
}

impl Verdict {
    /// Fails when there is a violation or when nothing was checked.
    pub fn expect_clean(&self) -> Res<()> {
        if self.reads == 0 || self.writes == 0 {
            fail!("nothing was checked: {} reads and {} writes", self.reads, self.writes);
        }
        if self.violations.is_empty() {
            return Ok(());
        }
        let shown: Vec<String> = self.violations.iter().take(5).map(|v| v.to_string()).collect();
        let (bad, pages) = (self.violations.len(), self.pages);
        fail!("{bad} of {pages} pages are not linearizable:\n{}", shown.join("\n"))
    }
}

/// Checks every page of a history.
pub fn verify(history: &History) -> Verdict {
    let pages = history.with_ops(by_page);
    let mut verdict = Verdict { pages: pages.len(), ..Verdict::default() };
    for (page, ops) in pages {
        let reads = ops.iter().filter(|o| o.is_read()).count();
        verdict.reads += reads;
        verdict.writes += ops.len() - reads;
        if let Err((fault, text)) = check_register(history.initial(page), &ops) {
            verdict.violations.push(Violation { page, fault, text });
        }
    }
    verdict
}

/// Checks one register that held `initial` before the first operation.
pub fn check_register(initial: Value, ops: &[RegisterOp]) -> Result<(), (Fault, String)> {
    register::check_reads(initial, ops)?;
    let zeroed = ops.iter().any(|o| o.action == Action::Write(ZERO));
    if zeroed {
        search::search(initial, ops)
    } else {
        zones::zones(initial, ops)
    }
}

fn by_page(ops: &[Op]) -> BTreeMap<u64, Vec<RegisterOp>> {
    let mut pages: BTreeMap<u64, Vec<RegisterOp>> = BTreeMap::new();
    for op in ops {
        for index in 0..op.pages {
            if let Some(r) = on_page(op, index) {
                pages.entry(op.page + index).or_default().push(r);
            }
        }
    }
    pages
}

/// What a request did to its page `index`; None where it can have done and told nothing.
fn on_page(op: &Op, index: u64) -> Option<RegisterOp> {
    let action = match op.kind {
        Kind::Flush => return None,
        Kind::Read => Action::Read(*op.seen.get(usize::try_from(index).ok()?)?),
        Kind::Write => Action::Write(page::value_of(op.id, index)),
        Kind::Trim | Kind::Zero => Action::Write(ZERO),
    };
    let certain = op.outcome == Outcome::Ok;
    if !certain && matches!(action, Action::Read(_)) {
        return None;
    }
    let completed = if certain { op.completed } else { u64::MAX };
    Some(RegisterOp { id: op.id, client: op.client, action, invoked: op.invoked, completed })
}
