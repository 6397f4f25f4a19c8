//! `sdctab`: the volumes a client maps and attaches when it starts, one a line, like `fstab`.
//!
//! ```text
//! # volume   as       options
//! db1        device   rw
//! logs       socket   ro
//! scratch    device
//! ```
//!
//! `as` is `device` (a kernel device `/dev/nbdN`, named `/dev/disk/by-id/quarry-VOLUME`) or `socket`
//! (the NBD socket alone). `options` is `rw` (the default) or `ro`. `#` begins a comment. A bad line is
//! named with its number and left out: the others are served.

use super::error::SdcError;
use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where it lies when no flag says otherwise.
pub const DEFAULT: &str = "/etc/quarry/sdctab";
/// Bytes of the file read at most.
const MAX_BYTES: u64 = 1 << 20;
/// Lines with volumes at most: as many as a client can have kernel devices.
const MAX_ENTRIES: usize = 256;
/// Longest name of a volume, bytes.
const MAX_NAME: usize = 63;

/// One volume to map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Line in the file, from 1.
    pub line: usize,
    pub volume: String,
    /// A kernel device is wanted.
    pub device: bool,
    pub read_only: bool,
}

/// A read file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Table {
    pub path: PathBuf,
    pub entries: Vec<Entry>,
    /// What is wrong, each with the file and the line.
    pub errors: Vec<String>,
}

/// Reads the file; one that is not there is empty unless it was `asked` for.
///
/// # Errors
/// If it cannot be read.
pub fn read(path: &Path, asked: bool) -> Result<Table, SdcError> {
    let failed = |e: std::io::Error| SdcError::Setting(format!("--sdctab {}: {e}", path.display()));
    match std::fs::metadata(path) {
        Ok(m) if m.len() > MAX_BYTES => {
            return Err(SdcError::Setting(format!(
                "--sdctab {} has {} bytes, {MAX_BYTES} are the limit",
                path.display(),
                m.len()
            )))
        }
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound && !asked => return Ok(Table::default()),
        Err(e) => return Err(failed(e)),
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    Ok(parse(path, &text))
}

fn parse(path: &Path, text: &str) -> Table {
    let mut table = Table { path: path.to_path_buf(), ..Table::default() };
    let mut seen = HashSet::new();
    for (line, raw) in (1..).zip(text.lines()) {
        let words: Vec<&str> = raw.split('#').next().unwrap_or("").split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        let entry = match entry(line, &words) {
            Ok(e) if !seen.insert(e.volume.clone()) => {
                Err(format!("volume '{}' is there twice", e.volume))
            }
            Ok(_) if table.entries.len() >= MAX_ENTRIES => {
                Err(format!("more than {MAX_ENTRIES} volumes"))
            }
            r => r,
        };
        match entry {
            Ok(e) => table.entries.push(e),
            Err(why) => table.errors.push(format!("{}, line {line}: {why}", path.display())),
        }
    }
    table
}

fn entry(line: usize, words: &[&str]) -> Result<Entry, String> {
    let (volume, how, options) = match *words {
        [volume, how] => (volume, how, "rw"),
        [volume, how, options] => (volume, how, options),
        [volume] => return Err(format!("after '{volume}': 'device' or 'socket' is missing")),
        _ => return Err("more than three words: VOLUME device|socket [rw|ro]".into()),
    };
    let named = volume.len() <= MAX_NAME
        && volume.starts_with(|c: char| c.is_ascii_alphanumeric())
        && volume.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !named {
        return Err(format!("'{volume}' cannot be the name of a volume"));
    }
    let device = match how {
        "device" => true,
        "socket" => false,
        other => return Err(format!("'{other}' is neither 'device' nor 'socket'")),
    };
    let read_only = match options {
        "rw" => false,
        "ro" => true,
        other => return Err(format!("'{other}' is neither 'rw' nor 'ro'")),
    };
    Ok(Entry { line, volume: volume.to_string(), device, read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_lines_are_taken_and_bad_ones_named_with_their_number() {
        let text =
            "# volumes\n\n db1  device rw # the database\nlogs\tsocket\tro\nscratch device\n\
                    db1 socket\nalone\n../etc device\nx floppy\ny device rwx\na b c d\n";
        let t = parse(Path::new("/etc/quarry/sdctab"), text);
        let got: Vec<_> =
            t.entries.iter().map(|e| (e.line, &e.volume[..], e.device, e.read_only)).collect();
        let want = [(3, "db1", true, false), (4, "logs", false, true), (5, "scratch", true, false)];
        assert_eq!(got, want);
        let whys = [
            (6, "there twice"),
            (7, "is missing"),
            (8, "cannot be the name"),
            (9, "neither 'device' nor 'socket'"),
            (10, "neither 'rw' nor 'ro'"),
            (11, "more than three words"),
        ];
        assert_eq!(t.errors.len(), whys.len(), "{:?}", t.errors);
        for (e, (line, why)) in t.errors.iter().zip(whys) {
            assert!(e.starts_with(&format!("/etc/quarry/sdctab, line {line}: ")), "{e}");
            assert!(e.contains(why), "{e}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_empty_unless_it_was_asked_for() {
        let none = Path::new("/nonexistent/sdctab");
        assert_eq!(read(none, false).unwrap(), Table::default());
        assert!(read(none, true).unwrap_err().to_string().contains("/nonexistent/sdctab"));
    }
}
