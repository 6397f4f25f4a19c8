//! `sim --seeds A..B [--trace]`: runs seeds; each failing one gives the line that replays it.

use quarry_sim::{run, Config};
use std::collections::BTreeMap;
use std::process::ExitCode;

const USAGE: &str = "usage: sim --seeds A..B | --seed N [--trace]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let trace = args.iter().any(|a| a == "--trace");
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
    let (mut failed, mut runs) = (0u64, 0u64);
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for seed in range {
        runs += 1;
        let cfg = Config { trace, ..Config::of_seed(seed) };
        let result = std::panic::catch_unwind(|| run(seed, cfg));
        match result {
            Ok(Ok(r)) => {
                for (k, n) in r.seen {
                    *seen.entry(k).or_default() += n;
                }
                if trace {
                    println!(
                        "seed {seed}: {} steps, {} operations, {} sector reads",
                        r.steps, r.operations, r.reads
                    );
                }
            }
            Ok(Err(e)) => {
                failed += 1;
                println!("FAILED: {e}\n  replay: cargo run -p quarry-sim --bin sim -- --seed {seed} --trace");
            }
            Err(_) => {
                failed += 1;
                println!("FAILED: panic\n  replay: cargo run -p quarry-sim --bin sim -- --seed {seed} --trace");
            }
        }
    }
    println!("{runs} seeds, {failed} failed; {seen:?}");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
