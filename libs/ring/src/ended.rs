//! File operations that the kernel has finished and the caller has not been told of.
//!
//! A turn tells of few of them ([`crate::RingConfig::disk_batch`]). What somebody waits for goes first: a log write
//! that a client waits for is not told after a dozen writes that follow it some day, each of which costs a turn's work.

use crate::op::OpKind;
use std::collections::VecDeque;

/// So many others go ahead of one that nobody waits for, at most: it holds memory, and the log's space.
const PATIENCE: u32 = 4;

#[derive(Default)]
pub(crate) struct Ended {
    first: VecDeque<(OpKind, i32)>,
    behind: VecDeque<(OpKind, i32)>,
    /// Told since one of `behind` was, or since there are any.
    passed: u32,
}

impl Ended {
    /// Notes a file operation with its (last) result.
    pub(crate) fn put(&mut self, kind: OpKind, result: i32) {
        match &kind {
            OpKind::Write(w) if w.behind => self.behind.push_back((kind, result)),
            _ => self.first.push_back((kind, result)),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.behind.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.behind.is_empty()
    }

    /// The one to be told of next.
    pub(crate) fn next(&mut self) -> Option<(OpKind, i32)> {
        let others_waited = self.passed >= PATIENCE && !self.behind.is_empty();
        if let Some(op) = (!others_waited).then(|| self.first.pop_front()).flatten() {
            self.passed += u32::from(!self.behind.is_empty());
            return Some(op);
        }
        self.passed = 0;
        self.behind.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sync(token: u64) -> OpKind {
        OpKind::Sync { file: 0, token }
    }

    fn write(token: u64) -> OpKind {
        OpKind::Write(crate::op::WriteOp::behind(token))
    }

    fn all(e: &mut Ended) -> Vec<u64> {
        let told = std::iter::from_fn(|| e.next());
        told.map(|(kind, _)| match kind {
            OpKind::Sync { token, .. } => token,
            OpKind::Write(w) => w.token,
            _ => unreachable!(),
        })
        .collect()
    }

    #[test]
    fn what_somebody_waits_for_is_told_first_and_all_else_in_order() {
        let mut e = Ended::default();
        (10..14).for_each(|n| e.put(write(n), 0));
        (0..2).for_each(|n| e.put(sync(n), 0));
        assert_eq!(all(&mut e), [0, 1, 10, 11, 12, 13]);
        assert!(e.is_empty());
    }

    #[test]
    fn what_nobody_waits_for_gets_its_turn_among_others_without_end() {
        let mut e = Ended::default();
        (0..100).for_each(|n| e.put(sync(n), 0));
        (0..3).for_each(|n| e.put(write(1000 + n), 0));
        let told = all(&mut e);
        let places: Vec<usize> =
            told.iter().enumerate().filter(|(_, t)| **t >= 1000).map(|(i, _)| i).collect();
        assert_eq!(places, [4, 9, 14]);
        // Nothing is owed for a time in which nothing waited.
        (0..9).for_each(|n| e.put(sync(n), 0));
        (0..9).for_each(|_| assert!(e.next().is_some()));
        e.put(write(1000), 0);
        e.put(sync(0), 0);
        assert_eq!(all(&mut e), [0, 1000]);
    }
}
