//! Sizes as people write them.

/// Parses a size: bytes, or a number with `MiB GiB TiB KiB` (`K M G T` mean the same).
///
/// Errors are one sentence that says what would be accepted.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let t = text.trim();
    let digits = t.chars().take_while(|c| c.is_ascii_digit() || *c == '.').count();
    let (number, unit) = t.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "K" | "KiB" | "k" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(bad(text)),
    };
    if let Ok(n) = number.parse::<u64>() {
        return n.checked_mul(1 << shift).ok_or_else(|| format!("size '{text}' is too large"));
    }
    match number.parse::<f64>() {
        Ok(n) if shift > 0 && n.is_finite() && n * ((1u64 << shift) as f64) < 9.0e18 => {
            Ok((n * (1u64 << shift) as f64) as u64)
        }
        _ => Err(bad(text)),
    }
}

fn bad(text: &str) -> String {
    format!(
        "'{text}' is not a size: give bytes, or a number with MiB, GiB or TiB, for example 10GiB"
    )
}

/// A size for people: the largest unit that leaves at least 1, with up to two decimals.
pub fn show_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift {
            let v = bytes as f64 / (1u64 << shift) as f64;
            let s = format!("{v:.2}");
            return format!("{} {unit}", s.trim_end_matches('0').trim_end_matches('.'));
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_size("1048576"), Ok(1 << 20));
        assert_eq!(parse_size("10GiB"), Ok(10 << 30));
        assert_eq!(parse_size("10G"), Ok(10 << 30));
        assert_eq!(parse_size("1.5 T"), Ok(3 << 39));
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        for bad in ["", "ten", "10X", "-1", "1.5", "99999999999T", "10 GiBs"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_fitting_unit() {
        assert_eq!(show_size(10 << 30), "10 GiB");
        assert_eq!(show_size(3 << 39), "1.5 TiB");
        assert_eq!(show_size(100), "100 B");
    }
}
