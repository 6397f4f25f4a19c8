//! Epoch history of a placement group (R8): which epoch began at which sequence number.
//!
//! Invariants: epochs and bases rise. A history describes the log it belongs to only up to the epoch of
//! the log's newest record: entries above it were learned before their epoch-start record arrived, and are
//! not counted (see [`pruned`]).

use quarry_base::{Epoch, Seq, Version};
use serde::{Deserialize, Serialize};

/// An epoch, and the sequence number of its epoch-start record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Era {
    pub epoch: Epoch,
    pub base: Seq,
}

/// The part of `history` that describes a log whose newest record is `last`.
pub fn pruned(history: &[Era], last: Version) -> &[Era] {
    let n = history.partition_point(|e| e.epoch <= last.epoch);
    &history[..n]
}

/// Last sequence number of era `i` in a log that ends at `last`.
fn last_of(history: &[Era], i: usize, last: Version) -> Seq {
    match history.get(i + 1) {
        Some(next) => Seq(next.base.0.saturating_sub(1)),
        None => last.seq,
    }
}

/// Newest position that two logs share: each given as its history and its newest record.
/// [`Version::ZERO`] if there is none that the histories can name.
pub fn common_point(a: &[Era], a_last: Version, b: &[Era], b_last: Version) -> Version {
    let (a, b) = (pruned(a, a_last), pruned(b, b_last));
    for (i, era) in b.iter().enumerate().rev() {
        let Ok(j) = a.binary_search_by_key(&era.epoch, |e| e.epoch) else {
            continue;
        };
        if a[j].base != era.base {
            continue;
        }
        let seq = last_of(b, i, b_last).min(last_of(a, j, a_last));
        return Version::new(era.epoch, seq);
    }
    Version::ZERO
}

/// Version of the record with number `seq` in the log of `history`; [`Version::ZERO`] below its first entry.
pub fn version_at(history: &[Era], seq: Seq) -> Version {
    let n = history.partition_point(|e| e.base <= seq);
    match n.checked_sub(1).and_then(|i| history.get(i)) {
        Some(e) => Version::new(e.epoch, seq),
        None => Version::ZERO,
    }
}

/// Drops the oldest entries below `through`, keeping `keep` at least and `max` at most.
pub fn trim(history: &mut Vec<Era>, through: Version, keep: usize, max: usize) {
    let mut drop = history.partition_point(|e| e.epoch < through.epoch);
    drop = drop.min(history.len().saturating_sub(keep));
    drop = drop.max(history.len().saturating_sub(max));
    history.drain(..drop);
}

#[cfg(test)]
mod tests {
    use super::*;
    fn h(v: &[(u64, u64)]) -> Vec<Era> {
        v.iter().map(|&(e, b)| Era { epoch: Epoch(e), base: Seq(b) }).collect()
    }
    fn v(e: u64, s: u64) -> Version {
        Version::new(Epoch(e), Seq(s))
    }

    #[test]
    fn a_shorter_log_of_the_same_epoch_shares_all_it_has() {
        assert_eq!(common_point(&h(&[(1, 1)]), v(1, 10), &h(&[(1, 1)]), v(1, 7)), v(1, 7));
        assert_eq!(common_point(&h(&[(1, 1)]), v(1, 7), &h(&[(1, 1)]), v(1, 10)), v(1, 7));
        assert_eq!(common_point(&h(&[(1, 1)]), v(1, 7), &[], v(0, 0)), Version::ZERO);
    }

    #[test]
    fn a_tail_of_an_epoch_that_only_one_side_saw_is_not_shared() {
        // The member followed epoch 2 from 8 on; the primary never saw it and went on from (1,12).
        let (p, m) = (h(&[(1, 1), (3, 13)]), h(&[(1, 1), (2, 8)]));
        assert_eq!(common_point(&p, v(3, 13), &m, v(2, 9)), v(1, 7));
        // The other way round: the primary began epoch 3 at 6.
        assert_eq!(common_point(&h(&[(1, 1), (3, 6)]), v(3, 9), &m, v(2, 9)), v(1, 5));
    }

    #[test]
    fn entries_learned_before_their_records_do_not_count() {
        // The member knows that epoch 2 begins at 8, but its log still is (1,10).
        let m = h(&[(1, 1), (2, 8)]);
        assert_eq!(common_point(&m, v(2, 8), &m, v(1, 10)), v(1, 7));
        assert_eq!(pruned(&m, v(1, 10)).len(), 1);
    }

    #[test]
    fn versions_are_found_by_their_era() {
        let p = h(&[(1, 1), (3, 13)]);
        assert_eq!(version_at(&p, Seq(12)), v(1, 12));
        assert_eq!(version_at(&p, Seq(13)), v(3, 13));
        assert_eq!(version_at(&p, Seq(0)), Version::ZERO);
    }

    #[test]
    fn trimming_keeps_what_a_delta_may_need() {
        let mut x = h(&[(1, 1), (2, 2), (3, 3), (4, 4)]);
        trim(&mut x, v(3, 3), 1, 10);
        assert_eq!(x, h(&[(3, 3), (4, 4)]));
        trim(&mut x, v(9, 9), 2, 10);
        assert_eq!(x.len(), 2);
        trim(&mut x, v(0, 0), 1, 1);
        assert_eq!(x, h(&[(4, 4)]));
    }
}
