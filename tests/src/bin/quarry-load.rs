//! Puts a checked load on an NBD export, for finding faults by hand.

use quarry_tests::{check, Area, History, Load, LoadSpec, Mix, Res, Uri};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
Puts a load on an NBD export and checks that what was read fits what was written (linearizable 4 KiB page by page).

usage: quarry-load --uri URI [options]

  --uri URI            nbd+unix:///NAME?socket=PATH or nbd://HOST[:PORT]/NAME; repeat for several servers of one volume
  --seconds N          how long (default 10)
  --connections C      connections, to the URIs in turn (default 4)
  --depth D            requests in flight on each connection (default 16)
  --pages P            how many 4 KiB pages are worked on (default 1024)
  --spread             16 pages each across extent boundaries (every MiB), instead of the first P pages
  --mix R,W,T,Z,F      shares of read, write, trim, zero, flush (default 45,45,4,4,2)
  --most-pages N       pages of the longest request (default 16)
  --rate N             requests a second at most (default 20000)
  --seed S             seed of the requests (default 1)
  --reconnect          make lost connections again; they and unanswered requests are no errors then
  --max-stall SECONDS  a longer stall is an error
  --report FILE        write the result there too

The volume is written to. Exit status: 0 all good, 1 an error or a violation, 2 usage.";

struct Options {
    spec: LoadSpec,
    seconds: f64,
    pages: u64,
    spread: bool,
    max_stall: Option<f64>,
    report: Option<String>,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("quarry-load: {why} (see --help)");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("quarry-load: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(o: &Options) -> Res<()> {
    let history = History::new(u64::from(std::process::id()) << 32 | o.spec.seed);
    history.survey(&o.spec.uris[0], o.spec.area.pages())?;
    let load = Load::start(o.spec.clone(), &history)?;
    let mut left = o.seconds;
    let mut before = 0;
    while left > 0.0 {
        let step = left.min(1.0);
        std::thread::sleep(Duration::from_secs_f64(step));
        left -= step;
        let now = load.completed();
        eprintln!(
            "{now:>10} answered, {:>7.0} ops/s, {} troubles",
            (now - before) as f64 / step,
            load.troubles()
        );
        before = now;
    }
    let report = load.stop();
    let last = history.final_read(&o.spec.uris[0]);
    let verdict = check::verify(&history);
    let mut text = format!(
        "{report}\nchecked {} pages, {} reads, {} writes: {} violations\n",
        verdict.pages,
        verdict.reads,
        verdict.writes,
        verdict.violations.len()
    );
    for v in &verdict.violations {
        text.push_str(&format!("{v}\n"));
    }
    print!("{text}");
    if let Some(file) = &o.report {
        std::fs::write(file, &text)?;
    }
    last?;
    if o.spec.reconnect {
        report.expect_no_nbd_error()?;
    } else {
        report.expect_no_error()?;
    }
    if let Some(most) = o.max_stall {
        report.expect_stall_below(Duration::from_secs_f64(most))?;
    }
    verdict.expect_clean()
}

/// None: help was asked for.
fn parse(args: impl Iterator<Item = String>) -> Res<Option<Options>> {
    let mut args = args.peekable();
    let mut uris = Vec::new();
    let mut o = Options {
        spec: LoadSpec::new(&Uri::parse("nbd://localhost/")?),
        seconds: 10.0,
        pages: 1024,
        spread: false,
        max_stall: None,
        report: None,
    };
    while let Some(flag) = args.next() {
        match flag.as_str() {
            "--help" | "-h" => return Ok(None),
            "--spread" => o.spread = true,
            "--reconnect" => o.spec.reconnect = true,
            _ => {
                let Some(value) = args.next() else {
                    quarry_tests::fail!("{flag} is unknown or lacks a value")
                };
                set(&mut o, &mut uris, &flag, &value)
                    .map_err(|e| e.within(format!("{flag} {value}")))?;
            }
        }
    }
    quarry_tests::ensure!(!uris.is_empty(), "--uri is missing");
    o.spec.uris = uris;
    o.spec.area =
        if o.spread { Area::spread(o.pages.div_ceil(16), 16) } else { Area::hot(o.pages) };
    Ok(Some(o))
}

fn set(o: &mut Options, uris: &mut Vec<Uri>, flag: &str, value: &str) -> Res<()> {
    match flag {
        "--uri" => uris.push(Uri::parse(value)?),
        "--seconds" => o.seconds = value.parse()?,
        "--connections" => o.spec.connections = value.parse()?,
        "--depth" => o.spec.depth = value.parse()?,
        "--pages" => o.pages = value.parse()?,
        "--most-pages" => o.spec.most_pages = value.parse()?,
        "--rate" => o.spec.most_per_second = value.parse()?,
        "--seed" => o.spec.seed = value.parse()?,
        "--max-stall" => o.max_stall = Some(value.parse()?),
        "--report" => o.report = Some(value.to_string()),
        "--mix" => {
            let n: Vec<u64> = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
            let [read, write, trim, zero, flush] = n[..] else {
                quarry_tests::fail!("give five numbers")
            };
            quarry_tests::ensure!(read + write + trim + zero + flush > 0, "all shares are 0");
            o.spec.mix = Mix { read, write, trim, zero, flush };
        }
        _ => quarry_tests::fail!("unknown option"),
    }
    Ok(())
}
