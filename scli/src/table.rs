//! Tables: plain, narrow, aligned; numbers to the right, sizes and times as people read them.

use comfy_table::{presets, Cell, CellAlignment, ContentArrangement, Table};
use quarry_base::units::show_size;
use serde_json::Value;

/// How a value is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// As it is.
    Plain,
    /// Bytes as `10 GiB`.
    Size,
    /// GiB as `10 GiB`.
    Gib,
    /// Seconds as `3 min 20 s`.
    Duration,
}

/// A column: JSON field, heading, how to show. It is left out when no row has the field.
pub type Column = (&'static str, &'static str, Show);

/// A value as text.
pub fn show(value: &Value, how: Show) -> String {
    match (value, how) {
        (Value::Null, _) => "-".to_string(),
        (v, Show::Size) if v.is_u64() => show_size(v.as_u64().unwrap_or(0)),
        (v, Show::Gib) if v.is_number() => {
            show_size((v.as_f64().unwrap_or(0.0) * (1u64 << 30) as f64) as u64)
        }
        (v, Show::Duration) if v.is_number() => duration(v.as_f64().unwrap_or(0.0)),
        (Value::String(s), _) => printable(s),
        (Value::Array(a), _) if a.is_empty() => "-".to_string(),
        (Value::Array(a), _) => a.iter().map(|v| show(v, how)).collect::<Vec<_>>().join(","),
        (Value::Object(o), _) => {
            // What people would call it.
            let named = ["name", "path", "kind", "sdc", "sds", "id"].iter().find_map(|k| o.get(*k));
            named.map_or_else(|| value.to_string(), |n| show(n, Show::Plain))
        }
        (v, _) => v.to_string(),
    }
}

/// Text from elsewhere must not steer the terminal.
fn printable(s: &str) -> String {
    s.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Seconds as people say them.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0);
    if s < 10.0 {
        return format!("{s:.1} s");
    }
    let s = s as u64;
    match s {
        0..=89 => format!("{s} s"),
        90..=5399 => format!("{} min {} s", s / 60, s % 60),
        5400..=172_799 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// States that want attention.
fn is_bad(text: &str) -> bool {
    let words = ["down", "failed", "degraded", "unavailable", "fenced", "error", "lost"];
    words.iter().any(|w| text.eq_ignore_ascii_case(w))
}

fn bare() -> Table {
    let mut t = Table::new();
    t.load_style(presets::NOTHING);
    t.set_content_arrangement(ContentArrangement::Disabled);
    t
}

fn trimmed(t: &mut Table) -> String {
    for column in t.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = t.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Rows of a list, with headings.
pub fn rows(rows: &[Value], columns: &[Column]) -> String {
    let has = |key: &str| rows.iter().any(|r| r.get(key).is_some());
    let used: Vec<&Column> = columns.iter().filter(|c| has(c.0)).collect();
    let mut t = bare();
    t.set_header(used.iter().map(|c| Cell::new(c.1)));
    for row in rows {
        t.add_row(used.iter().map(|(key, _, how)| {
            let value = row.get(*key).unwrap_or(&Value::Null);
            let text = show(value, *how);
            // Capitals are seen without colours too.
            let state = matches!(*key, "state" | "health");
            let text = if state && is_bad(&text) { text.to_uppercase() } else { text };
            let right = value.is_number() || *how == Show::Size;
            let side = if right { CellAlignment::Right } else { CellAlignment::Left };
            Cell::new(text).set_alignment(side)
        }));
    }
    trimmed(&mut t)
}

/// How a field is shown, by its name: the interface's endings tell the unit.
fn by_name(key: &str) -> Show {
    if key.ends_with("_bytes") || key.starts_with("bytes_") || key == "bytes" {
        Show::Size
    } else if key.ends_with("_seconds") {
        Show::Duration
    } else if key.ends_with("_gb") {
        Show::Gib
    } else {
        Show::Plain
    }
}

/// One object: a field a line.
pub fn fields(object: &Value) -> String {
    let Some(map) = object.as_object() else { return show(object, Show::Plain) };
    let mut t = bare();
    for (key, value) in map {
        // The same number again, less exact.
        let bytes = key.strip_suffix("_gb").map(|k| format!("{k}_bytes"));
        if bytes.is_some_and(|b| map.contains_key(&b)) {
            continue;
        }
        t.add_row([key.as_str(), &show(value, by_name(key))]);
    }
    trimmed(&mut t)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_list_is_aligned_and_shouts_only_about_trouble() {
        let list = [
            json!({"id": 1, "name": "sds1", "state": "up", "capacity_bytes": 4294967296u64}),
            json!({"id": 12, "name": "sds2", "state": "down", "capacity_bytes": 1048576}),
        ];
        let cols: [Column; 5] = [
            ("id", "ID", Show::Plain),
            ("name", "NAME", Show::Plain),
            ("state", "STATE", Show::Plain),
            ("capacity_bytes", "SIZE", Show::Size),
            ("missing", "NEVER", Show::Plain),
        ];
        let text = rows(&list, &cols);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(!lines[0].contains("NEVER"));
        assert!(lines[1].contains("up") && lines[1].ends_with("4 GiB"), "{text}");
        assert!(lines[2].contains("DOWN") && lines[2].ends_with("1 MiB"), "{text}");
    }

    #[test]
    fn an_object_shows_units_from_the_field_names() {
        let text = fields(&json!({"size_bytes": 1073741824, "size_gb": 1, "age_seconds": 200}));
        assert!(text.contains("1 GiB") && text.contains("3 min 20 s"), "{text}");
        assert!(!text.contains("size_gb"));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(show(&json!("a\u{1b}[31mb"), Show::Plain), "a?[31mb");
    }

    #[test]
    fn durations_read_well() {
        let cases = [(0.5, "0.5 s"), (42.0, "42 s"), (200.0, "3 min 20 s"), (7200.0, "2 h 0 min")];
        for (s, want) in cases {
            assert_eq!(duration(s), want);
        }
    }
}
