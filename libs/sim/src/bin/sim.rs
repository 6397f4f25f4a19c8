//! `sim --seeds A..B [--json]` runs seeds; `sim --seed N [--trace]` runs one again. A failing one gives the line
//! that replays it. `scripts/sim` runs many on all cores.

use quarry_sim::coverage::{required, Seen};
use quarry_sim::{run, Config};
use std::process::ExitCode;

const USAGE: &str = "usage: sim --seeds A..B [--json] | --seed N [--trace]";

#[derive(Default)]
struct Total {
    runs: u64,
    operations: u64,
    faults: u64,
    failed: Vec<(u64, String)>,
    seen: Seen,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|a| a == name);
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
    let range = match (value("--seeds"), value("--seed")) {
        (Some(r), _) => {
            r.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?))
        }
        (None, Some(n)) => n.parse().ok().map(|n: u64| n..n + 1),
        _ => None,
    };
    let Some(range) = range else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let json = has("--json");
    let mut t = Total::default();
    for seed in range {
        one(seed, has("--trace"), json, &mut t);
    }
    if json {
        println!("{}", to_json(&t));
    } else {
        println!(
            "{} seeds, {} failed, {} operations, {} faults; {:?}; never seen: {:?}",
            t.runs,
            t.failed.len(),
            t.operations,
            t.faults,
            t.seen.all(),
            t.seen.missing()
        );
    }
    if t.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn one(seed: u64, trace: bool, json: bool, t: &mut Total) {
    t.runs += 1;
    let cfg = Config { trace, ..Config::of_seed(seed) };
    let why = match std::panic::catch_unwind(|| run(seed, cfg)) {
        Ok(Ok(r)) => {
            t.seen.add(&r.seen);
            t.operations += r.operations;
            t.faults += r.faults;
            if trace {
                println!(
                    "seed {seed}: {} steps, {} operations, {} faults, {} sector reads",
                    r.steps, r.operations, r.faults, r.reads
                );
            }
            return;
        }
        Ok(Err(e)) => e,
        Err(p) => match p.downcast_ref::<String>() {
            Some(text) => format!("panic: {text}"),
            None => "panic".into(),
        },
    };
    if !json {
        println!("FAILED: seed {seed}: {why}\n  replay: scripts/sim --seed {seed}");
    }
    t.failed.push((seed, why));
}

fn to_json(t: &Total) -> String {
    let seen: Vec<String> =
        t.seen.all().iter().map(|(k, n)| format!("{}:{n}", quoted(k))).collect();
    let failed: Vec<String> =
        t.failed.iter().map(|(s, w)| format!("[{s},{}]", quoted(w))).collect();
    let required: Vec<String> = required().iter().map(|n| quoted(n)).collect();
    format!(
        r#"{{"runs":{},"operations":{},"faults":{},"failed":[{}],"seen":{{{}}},"required":[{}]}}"#,
        t.runs,
        t.operations,
        t.faults,
        failed.join(","),
        seen.join(","),
        required.join(",")
    )
}

fn quoted(s: &str) -> String {
    let plain: String =
        s.chars().take(2000).map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("\"{}\"", plain.replace('\\', "\\\\").replace('"', "\\\""))
}
