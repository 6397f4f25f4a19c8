//! One process a data directory: an exclusive lock that names who holds it.
//!
//! The lock is the kernel's (`flock`), so it goes with the process however it ends; the file's text
//! only tells people who holds it.

use rustix::fs::{flock, FlockOperation};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Name of the lock file inside the data directory.
pub const FILE: &str = "LOCK";

/// Why a data directory cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "{dir} is in use by process {holder}: stop that one first, or give another --data-dir"
    )]
    Held { dir: PathBuf, holder: String },
    /// The directory or the file in it cannot be made or locked.
    #[error("cannot lock {path}: {source}; the data directory has to be writable and its disk to have room, or give another --data-dir")]
    Io { path: PathBuf, source: std::io::Error },
}

/// The lock on a data directory, held until dropped or the process ends.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
    path: PathBuf,
}

impl LockFile {
    /// Makes `dir` when it is missing and locks it for `program`.
    pub fn acquire(dir: &Path, program: &str) -> Result<LockFile, LockError> {
        let path = dir.join(FILE);
        let fail = |source| LockError::Io { path: path.clone(), source };
        std::fs::create_dir_all(dir).map_err(fail)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(fail)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let holder = holder(&mut file);
                return Err(LockError::Held { dir: dir.to_path_buf(), holder });
            }
            Err(e) => return Err(fail(e.into())),
        }
        file.set_len(0).map_err(fail)?;
        file.seek(SeekFrom::Start(0)).map_err(fail)?;
        file.write_all(format!("{} ({program})\n", std::process::id()).as_bytes()).map_err(fail)?;
        Ok(LockFile { _file: file, path })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What the holder wrote, or words for "cannot be read".
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(256).read_to_string(&mut text) {
        Ok(n) if n > 1 => text.trim().to_string(),
        _ => "(starting, not named yet)".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("quarry-lock-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&dir).ok();
        dir
    }

    #[test]
    fn a_second_holder_is_refused_and_told_the_first_ones_pid() {
        let dir = temp("second");
        let first = LockFile::acquire(&dir, "mdm").unwrap();
        let error = LockFile::acquire(&dir, "mdm").unwrap_err().to_string();
        assert!(error.contains(&format!("process {} (mdm)", std::process::id())), "{error}");
        drop(first);
        LockFile::acquire(&dir, "mdm").unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let error = LockFile::acquire(Path::new("/proc/none/x"), "mdm").unwrap_err().to_string();
        assert!(error.contains("/proc/none/x"), "{error}");
    }
}
