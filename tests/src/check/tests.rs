//! Histories made by hand, and random small ones judged by trying every order.

use super::register::{Action, RegisterOp};
use super::{check_register, Fault};
use crate::page::{FOREIGN, MISPLACED, TORN, ZERO};
use crate::rng::Rng;

const NEVER: u64 = u64::MAX;

fn w(value: u64, invoked: u64, completed: u64) -> RegisterOp {
    RegisterOp { id: value, client: 0, action: Action::Write(value), invoked, completed }
}
fn r(value: u64, invoked: u64, completed: u64) -> RegisterOp {
    RegisterOp { id: 0, client: 1, action: Action::Read(value), invoked, completed }
}
fn fault(ops: &[RegisterOp]) -> Option<Fault> {
    check_register(ZERO, ops).err().map(|(f, _)| f)
}
/// The same history with trims far away in time, so that the search decides it instead of the zones.
fn by_search(ops: &[RegisterOp]) -> Option<Fault> {
    let late = ops.iter().flat_map(|o| [o.invoked, o.completed]).filter(|&t| t != NEVER).max();
    let late = late.unwrap_or(0);
    let mut ops = ops.to_vec();
    ops.push(w(ZERO, late + 10, late + 20));
    ops.push(r(ZERO, late + 30, late + 40));
    fault(&ops)
}
fn assert_bad(ops: &[RegisterOp], wanted: Fault) {
    assert_eq!(fault(ops), Some(wanted));
    assert!(by_search(ops).is_some(), "the search must find it too");
}
fn assert_good(ops: &[RegisterOp]) {
    assert_eq!(fault(ops), None);
    assert_eq!(by_search(ops), None, "the search must agree");
}

#[test]
fn a_stale_read_is_found() {
    assert_bad(&[w(1, 1, 2), w(2, 3, 4), r(1, 5, 6)], Fault::Stale);
    assert_bad(&[w(1, 1, 4), r(ZERO, 5, 6)], Fault::Stale);
}

#[test]
fn a_lost_write_is_found() {
    // Acknowledged, and gone after the crash: the old value is back for good.
    assert_bad(&[w(1, 1, 2), r(1, 3, 4), w(2, 5, 6), r(1, 100, 110), r(1, 120, 130)], Fault::Stale);
    // Seen by a reader although never acknowledged, then gone.
    assert_bad(&[w(1, 1, 2), w(2, 3, NEVER), r(2, 5, 6), r(1, 7, 8)], Fault::Order);
}

#[test]
fn a_resurrected_write_is_found() {
    // An unanswered write may take effect late, but only once.
    assert_bad(&[w(1, 1, NEVER), r(1, 3, 4), w(2, 5, 6), r(2, 7, 8), r(1, 9, 10)], Fault::Order);
    assert_bad(&[w(1, 1, 2), w(2, 3, 4), r(2, 5, 6), r(1, 7, 8)], Fault::Stale);
}

#[test]
fn a_read_inversion_is_found() {
    // Both reads run while the write does; the second may not go back.
    assert_bad(&[w(1, 1, 2), w(2, 3, 100), r(2, 10, 20), r(1, 30, 40)], Fault::Order);
    // Two readers that disagree on the order of two racing writes.
    let writes = [w(1, 1, 10), w(2, 1, 10)];
    let reads = [r(1, 11, 12), r(2, 13, 14), r(1, 15, 16)];
    assert_bad(&[writes.as_slice(), &reads].concat(), Fault::Order);
}

#[test]
fn torn_misplaced_and_unknown_content_is_found() {
    for (value, wanted) in [
        (TORN | 5, Fault::Torn),
        (MISPLACED | 5, Fault::Misplaced),
        (FOREIGN | 5, Fault::Nowhere),
        (4711, Fault::Nowhere),
    ] {
        assert_bad(&[w(1, 1, 2), r(value, 3, 4)], wanted);
    }
}

#[test]
fn a_read_from_the_future_is_found() {
    assert_bad(&[r(1, 1, 2), w(1, 3, 4)], Fault::Future);
}

#[test]
fn content_from_before_the_run_counts_until_it_is_overwritten() {
    let old = FOREIGN | 5;
    assert!(check_register(old, &[r(old, 1, 2), w(1, 3, 4), r(1, 5, 6)]).is_ok());
    assert!(check_register(old, &[w(1, 3, 4), r(old, 5, 6)]).is_err());
    assert!(check_register(old, &[r(ZERO, 1, 2)]).is_err(), "nobody wrote zeroes");
}

#[test]
fn racing_operations_pass_in_every_order_that_time_allows() {
    assert_good(&[w(1, 1, 100), r(ZERO, 10, 20), r(1, 30, 40)]);
    assert_good(&[w(1, 1, 100), w(2, 2, 100), w(3, 3, 100), r(2, 4, 100), r(3, 101, 102)]);
    assert_good(&[w(1, 1, 50), r(1, 10, 20), w(2, 30, 40), r(2, 60, 70)]);
    assert_good(&[r(ZERO, 1, 100), w(1, 10, 20), r(1, 30, 40)]);
}

#[test]
fn an_unanswered_write_may_take_effect_at_any_later_time_or_never() {
    assert_good(&[w(1, 1, 2), w(2, 3, NEVER), r(1, 10, 20), r(1, 30, 40)]);
    assert_good(&[
        w(1, 1, 2),
        w(2, 3, NEVER),
        r(1, 10, 20),
        w(3, 21, 22),
        r(3, 23, 24),
        r(2, 30, 40),
    ]);
    assert_bad(&[w(2, 30, NEVER), r(2, 10, 20)], Fault::Future);
}

#[test]
fn trims_make_zeroes_again() {
    let trim = |a, b| w(ZERO, a, b);
    assert_eq!(fault(&[w(1, 1, 2), trim(3, 4), r(ZERO, 5, 6), w(2, 7, 8), r(2, 9, 10)]), None);
    assert_eq!(fault(&[w(1, 1, 2), trim(3, 4), r(1, 5, 6)]), Some(Fault::Order));
    assert_eq!(fault(&[w(1, 1, 2), r(1, 3, 4), r(ZERO, 5, 6), trim(7, 8)]), Some(Fault::Order));
    assert_eq!(fault(&[w(1, 1, 2), trim(3, 4), w(2, 5, 6), r(ZERO, 7, 8)]), Some(Fault::Order));
    // The trim races with the second write: either may be last, both may be seen, but not in turns.
    let race = [w(1, 1, 2), trim(3, 20), w(2, 3, 20)];
    for seen in [vec![ZERO], vec![2], vec![ZERO, 2], vec![2, ZERO]] {
        let reads = seen.iter().zip(4..).map(|(&v, i)| r(v, 2 * i, 2 * i + 1));
        let ops: Vec<RegisterOp> = race.into_iter().chain(reads).collect();
        assert_eq!(fault(&ops), None, "{seen:?}");
    }
    let turns = [r(ZERO, 5, 6), r(2, 7, 8), r(ZERO, 9, 10)];
    assert_eq!(fault(&[race.as_slice(), &turns].concat()), Some(Fault::Order));
    // A trim without an answer may come late, once.
    let lost = [trim(1, NEVER), w(1, 2, 3), r(1, 4, 5), r(ZERO, 6, 7)];
    assert_eq!(fault(&lost), None);
    let twice = [w(2, 8, 9), r(ZERO, 10, 11)];
    assert_eq!(fault(&[lost.as_slice(), &twice].concat()), Some(Fault::Order));
}

/// Tries every order: the definition itself.
fn possible(initial: u64, ops: &[RegisterOp]) -> bool {
    fn go(value: u64, ops: &[RegisterOp], used: &mut Vec<bool>) -> bool {
        let open: Vec<usize> = (0..ops.len()).filter(|&i| !used[i]).collect();
        if open.iter().all(|&i| ops[i].completed == NEVER) {
            return true;
        }
        for &i in &open {
            if open.iter().any(|&j| ops[j].before(&ops[i])) {
                continue;
            }
            let next = match ops[i].action {
                Action::Read(v) if v == value => value,
                Action::Read(_) => continue,
                Action::Write(v) => v,
            };
            used[i] = true;
            let found = go(next, ops, used);
            used[i] = false;
            if found {
                return true;
            }
        }
        false
    }
    go(initial, ops, &mut vec![false; ops.len()])
}

/// A random history of a few operations on one register; reads return any value written somewhere in it.
fn random_history(rng: &mut Rng, zeroes: bool) -> Vec<RegisterOp> {
    let n = 3 + rng.below(5);
    let mut ops: Vec<RegisterOp> = Vec::new();
    for i in 0..n {
        let invoked = 1 + rng.below(24);
        let length = 1 + rng.below(10);
        let mut completed = invoked + length;
        let is_write = rng.below(2) == 0;
        let value = if !is_write {
            match rng.below(3) {
                0 => ZERO,
                _ => 1 + rng.below(n),
            }
        } else if zeroes && rng.below(3) == 0 {
            ZERO
        } else {
            i + 1
        };
        if is_write && rng.below(5) == 0 {
            completed = NEVER;
        }
        ops.push(if is_write {
            w(value, invoked, completed)
        } else {
            r(value, invoked, completed)
        });
    }
    // Reads of a value that nobody writes are the easy case: turn most of them into possible ones.
    let written: Vec<u64> = ops.iter().filter(|o| !o.is_read()).map(RegisterOp::value).collect();
    for o in ops.iter_mut().filter(|o| o.is_read()) {
        if !written.contains(&o.value()) && !written.is_empty() {
            o.action = Action::Read(written[rng.below(written.len() as u64) as usize]);
        }
    }
    ops
}

#[test]
fn the_checker_agrees_with_trying_every_order() {
    let mut rng = Rng::new(7);
    let mut counts = [[0; 2]; 2];
    for round in 0..40_000u32 {
        let zeroes = round % 2 == 0;
        let ops = random_history(&mut rng, zeroes);
        let truth = possible(ZERO, &ops);
        let answer = check_register(ZERO, &ops);
        assert_eq!(answer.is_ok(), truth, "round {round}: {answer:?}\n{ops:#?}");
        counts[usize::from(zeroes)][usize::from(truth)] += 1;
    }
    assert!(counts.iter().flatten().all(|&c| c > 1000), "both answers must be common: {counts:?}");
}

#[test]
fn a_long_history_of_a_real_register_passes_and_one_changed_read_does_not() {
    let mut rng = Rng::new(3);
    for zeroes in [false, true] {
        let mut ops = long_history(&mut rng, zeroes);
        assert_eq!(fault(&ops), None);
        let reads: Vec<usize> = (0..ops.len()).filter(|&i| ops[i].is_read()).collect();
        let (early, late) = (reads[reads.len() / 4], reads[reads.len() - 5]);
        ops[late].action = ops[early].action;
        if ops[late].value() != ZERO {
            assert!(fault(&ops).is_some(), "an old value came back");
        }
    }
}

/// Operations that take effect at one moment between their start and their end, 32 open at a time.
fn long_history(rng: &mut Rng, zeroes: bool) -> Vec<RegisterOp> {
    let mut value = ZERO;
    let mut ops = Vec::new();
    for i in 1..6000u64 {
        let at = i * 10;
        let (invoked, completed) = (at - rng.below(160).min(at - 1), at + 1 + rng.below(160));
        ops.push(match rng.below(10) {
            0..=4 => r(value, invoked, completed),
            5 if zeroes => {
                value = ZERO;
                w(ZERO, invoked, completed)
            }
            _ => {
                value = i;
                w(i, invoked, completed)
            }
        });
    }
    ops
}
