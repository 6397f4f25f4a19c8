//! Several cases on one cluster: all are run, all failures are told.

use crate::{Failure, Res};
use std::time::Instant;

/// Runs named cases one after another and gathers their failures.
#[derive(Default)]
pub struct Cases {
    failed: Vec<String>,
    run: usize,
}

impl Cases {
    /// None yet.
    pub fn new() -> Cases {
        Cases::default()
    }

    /// Runs one case now. A failure is printed and kept; the next case runs all the same.
    pub fn case(&mut self, name: &str, body: impl FnOnce() -> Res<()>) {
        let start = Instant::now();
        self.run += 1;
        match body() {
            Ok(()) => eprintln!("  ok    {name} ({:.1} s)", start.elapsed().as_secs_f64()),
            Err(e) => {
                eprintln!("  FAIL  {name} ({:.1} s): {e}", start.elapsed().as_secs_f64());
                self.failed.push(format!("{name}: {e}"));
            }
        }
    }

    /// Fails when a case did, naming each; also when there was no case at all.
    pub fn finish(self) -> Res<()> {
        if self.run == 0 {
            return Err(Failure::new("no case was run"));
        }
        if self.failed.is_empty() {
            return Ok(());
        }
        let list = self.failed.join("\n  - ");
        Err(Failure::new(format!(
            "{} of {} cases failed:\n  - {list}",
            self.failed.len(),
            self.run
        )))
    }
}
