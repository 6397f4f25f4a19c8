//! `scli doctor`: can this host run Quarry? One line a check, with the cure.

mod host;
mod storage;

use crate::args::DoctorArgs;
use crate::error::CliError;
use crate::output::Output;
use serde_json::{json, Value};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    /// Works, with something missing or slower.
    Warn,
    /// Quarry will not run.
    Fail,
}

/// One check's outcome.
#[derive(Clone, Debug)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    /// What was found.
    pub message: String,
    /// What to do; empty when all is well.
    pub cure: String,
}

impl Finding {
    pub fn ok(check: &'static str, message: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Ok, message: message.into(), cure: String::new() }
    }
    pub fn warn(check: &'static str, message: impl Into<String>, cure: &str) -> Finding {
        let message = message.into();
        Finding { check, verdict: Verdict::Warn, message, cure: cure.to_string() }
    }
    pub fn fail(check: &'static str, message: impl Into<String>, cure: &str) -> Finding {
        let message = message.into();
        Finding { check, verdict: Verdict::Fail, message, cure: cure.to_string() }
    }

    fn word(&self) -> &'static str {
        match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
    fn line(&self) -> String {
        let cure = if self.cure.is_empty() { String::new() } else { format!("; {}", self.cure) };
        format!("{:<5} {:<12} {}{cure}", self.word(), self.check, self.message)
    }
    fn json(&self) -> Value {
        json!({"check": self.check, "status": self.word(), "message": self.message,
               "cure": self.cure})
    }
}

/// Runs all checks; exit status 1 when one failed.
pub fn run(args: &DoctorArgs, out: Output) -> Result<u8, CliError> {
    let findings = [
        host::rust(),
        host::kernel(),
        host::io_uring(),
        storage::direct(&args.dir),
        storage::space(&args.dir),
        host::memlock(),
        host::files(),
        host::memory(),
        host::fuse(),
        host::loop_device(),
        host::nbd(),
        storage::socket_path(&args.socket_dir),
    ];
    if out.json {
        out.text(&Value::from(findings.iter().map(Finding::json).collect::<Vec<_>>()).to_string())?;
    } else {
        out.text(&findings.iter().map(Finding::line).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(u8::from(findings.iter().any(|f| f.verdict == Verdict::Fail)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_cure() {
        let f = Finding::warn("nbd", "the kernel has no nbd", "modprobe nbd");
        assert_eq!(f.line(), "warn  nbd          the kernel has no nbd; modprobe nbd");
        assert_eq!(f.json()["status"], "warn");
    }
}
