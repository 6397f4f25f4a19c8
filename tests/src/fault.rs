//! One fault of the fault table under a checked load: what every such test does, and the line it leaves for `scripts/faults`.
//!
//! A [`Fault`] has rounds. In each a load runs, the caller breaks something and mends it, and then everything must heal by
//! itself: the time to full redundancy is from the end of the caller's part. At the end every page is read, the history is
//! checked and the copies are compared.

use crate::failure::While;
use crate::{check, ensure, Cluster, History, Load, LoadReport, LoadSpec, Res, Uri};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everything must be whole again this long after a fault was mended.
pub const HEAL: Duration = Duration::from_secs(90);

/// A row of the fault table being run.
pub struct Fault<'a> {
    row: u32,
    what: String,
    cluster: &'a Cluster,
    /// What all loads saw.
    pub history: Arc<History>,
    /// Longest stall allowed.
    bound: Duration,
    /// Pages whose content at the beginning is known: an earlier row may have written them.
    surveyed: BTreeSet<u64>,
    seen: Seen,
}

#[derive(Default)]
struct Seen {
    runs: u32,
    stall: Duration,
    errors: u64,
    whole: Duration,
}

impl<'a> Fault<'a> {
    /// Row `row` of the table; `bound`: the longest stall that passes.
    pub fn new(cluster: &'a Cluster, row: u32, what: &str, bound: Duration) -> Fault<'a> {
        Fault {
            row,
            what: what.to_string(),
            cluster,
            history: History::new(u64::from(1000 + row)),
            bound,
            surveyed: BTreeSet::new(),
            seen: Seen::default(),
        }
    }

    /// One round: load, the fault (`break_and_mend` returns when it is mended), healing. No error and no stall above the bound.
    pub fn round(
        &mut self,
        spec: LoadSpec,
        break_and_mend: impl FnOnce(&Load) -> Res<()>,
    ) -> Res<LoadReport> {
        let what = format!("row {}, {}, round {}", self.row, self.what, self.seen.runs + 1);
        if let Some(uri) = spec.uris.first() {
            let new: Vec<u64> = spec.area.pages().filter(|p| self.surveyed.insert(*p)).collect();
            self.history.survey(uri, new).map_err(|e| e.within(&what))?;
        }
        let load = Load::start(spec, &self.history).map_err(|e| e.within(&what))?;
        let run =
            load.run_requests(200, Duration::from_secs(30)).and_then(|()| break_and_mend(&load));
        let mended = Instant::now();
        let whole = self.cluster.wait_health("ok", HEAL);
        let healed = mended.elapsed();
        let goes_on = load.run_requests(50, self.bound.max(Duration::from_secs(5)));
        let report = load.stop();
        eprintln!("  {what}: {report}; whole after {healed:.1?}");
        let stall = report.longest_request.max(report.longest_gap);
        self.seen.runs += 1;
        self.seen.stall = self.seen.stall.max(stall);
        self.seen.errors += report.errors.values().sum::<u64>();
        self.seen.whole = self.seen.whole.max(healed);
        let good = run.and(whole).and(goes_on).and_then(|()| {
            report.expect_no_error()?;
            report.expect_stall_below(self.bound)
        });
        match good {
            Ok(()) => Ok(report),
            Err(e) => {
                self.note(0, e.text())?;
                Err(e.within(what))
            }
        }
    }

    /// Fails when healing took longer than `limit` in any round.
    pub fn expect_whole_within(&self, limit: Duration) -> Res<()> {
        let whole = self.seen.whole;
        ensure!(
            whole <= limit,
            "row {}: whole after {whole:.1?}, {limit:.1?} is allowed",
            self.row
        );
        Ok(())
    }

    /// Reads every page through each of `uris`, checks the history and writes the row's line. Replicas are compared by
    /// [`Fault::finish`].
    pub fn check(&self, uris: &[&Uri]) -> Res<()> {
        for uri in uris {
            self.history.final_read(uri)?;
        }
        let verdict = check::verify(&self.history);
        self.note(verdict.violations.len(), "")?;
        verdict.expect_clean().map_err(|e| e.within(format!("row {}, {}", self.row, self.what)))
    }

    /// [`Fault::check`], then compares all copies; nothing runs afterwards.
    pub fn finish(&self, uris: &[&Uri]) -> Res<()> {
        self.check(uris)?;
        let same = self.cluster.expect_identical_replicas();
        if let Err(e) = &same {
            self.note(1, e.text())?;
        }
        same.map(drop)
    }

    fn note(&self, violations: usize, failure: &str) -> Res<()> {
        leave(self.row, &self.what, &self.seen, violations, failure)
    }
}

/// Leaves the line of one run of a row that is not a [`Fault`]: what its load saw, and how long healing took.
pub fn leave_run(row: u32, what: &str, report: &LoadReport, whole: Duration) -> Res<()> {
    let stall = report.longest_request.max(report.longest_gap);
    let seen = Seen { runs: 1, stall, errors: report.errors.values().sum(), whole };
    leave(row, what, &seen, 0, "")
}

/// Appends a line to the file `QUARRY_FAULTS` names.
fn leave(row: u32, what: &str, seen: &Seen, violations: usize, failure: &str) -> Res<()> {
    let Some(file) = std::env::var_os("QUARRY_FAULTS") else { return Ok(()) };
    let line = json!({
        "row": row,
        "fault": what,
        "runs": seen.runs,
        "stall_ms": seen.stall.as_millis() as u64,
        "errors": seen.errors,
        "violations": violations,
        "whole_ms": seen.whole.as_millis() as u64,
        "failure": failure,
    });
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(&file);
    opened.and_then(|mut f| writeln!(f, "{line}")).doing(|| "noting a fault".to_string())
}
