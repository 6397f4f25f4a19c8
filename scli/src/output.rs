//! Answers on stdout: JSON for programs, tables for people.

use crate::error::CliError;
use crate::table::{self, Column};
use serde_json::Value;
use std::io::{ErrorKind, Write};

/// Where answers go and how.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
}

impl Output {
    /// An array of objects.
    pub fn list(self, rows: &Value, columns: &[Column], what: &str) -> Result<(), CliError> {
        if self.json {
            return self.text(&rows.to_string());
        }
        let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
        if rows.is_empty() {
            return self.text(&format!("no {what}"));
        }
        self.text(&table::rows(rows, columns))
    }

    /// One object.
    pub fn object(self, object: &Value) -> Result<(), CliError> {
        if self.json {
            return self.text(&object.to_string());
        }
        self.text(&table::fields(object))
    }

    /// The outcome of a change: the object for programs, a sentence for people.
    pub fn done(self, object: &Value, sentence: &str) -> Result<(), CliError> {
        if self.json {
            let empty = serde_json::json!({});
            return self.text(&if object.is_null() { &empty } else { object }.to_string());
        }
        self.text(sentence)
    }

    /// Plain text and a line end. A reader that closed the pipe has seen enough.
    pub fn text(self, text: &str) -> Result<(), CliError> {
        self.text_to_reader(text).map(drop)
    }

    /// The same; false when there is no reader any more.
    pub fn text_to_reader(self, text: &str) -> Result<bool, CliError> {
        let mut out = std::io::stdout().lock();
        let written = out
            .write_all(text.trim_end_matches('\n').as_bytes())
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush());
        match written {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
            other => Ok(other.map(|()| true)?),
        }
    }
}
