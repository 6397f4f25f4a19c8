//! The scores of rendezvous hashing, in arithmetic that gives the same bits everywhere.

/// Mixes three numbers into one (splitmix64 finaliser, twice). Part of the placement contract.
pub(crate) fn mix(a: u64, b: u64, level: u64) -> u64 {
    finish(
        finish(a ^ level.wrapping_mul(0xA076_1D64_78BD_642F))
            .wrapping_add(b.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
    )
}

fn finish(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// `-log2(h / 2^64)`: 0 for the largest hash. Error below 1e-4, which only shifts shares by as much.
fn neg_log2(h: u64) -> f64 {
    let h = h | 1;
    let lead = h.leading_zeros();
    // 1 <= m < 2
    let m = ((h << lead) >> 11) as f64 / (1u64 << 52) as f64;
    // atanh series around sqrt(2): log2(m) = 0.5 + 2/ln 2 * (t + t^3/3 + t^5/5), |t| < 0.172
    let root = std::f64::consts::SQRT_2;
    let t = (m - root) / (m + root);
    let t2 = t * t;
    let log = 0.5 + 2.0 * std::f64::consts::LOG2_E * t * (1.0 + t2 * (1.0 / 3.0 + t2 / 5.0));
    (lead as f64 + 1.0 - log).max(0.0)
}

/// Score of a candidate: the smallest wins. Chance of winning is in proportion to the weight.
pub(crate) fn score(hash: u64, weight: f64) -> f64 {
    neg_log2(hash) / weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_close_to_the_true_one() {
        for i in 1..2000u64 {
            let h = mix(i, 0, 0);
            let truth = 64.0 - (h as f64).log2();
            assert!((neg_log2(h) - truth).abs() < 1e-4, "{h}: {} {truth}", neg_log2(h));
        }
        assert!(neg_log2(0) >= 63.0);
        assert!(neg_log2(u64::MAX) < 1e-3);
    }
}
