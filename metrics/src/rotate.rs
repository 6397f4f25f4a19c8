//! A log file that is kept small: when it is full it is renamed and a new one begun.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Bytes in the current log file at most (one message may go over).
pub const MAX_BYTES: u64 = 16 << 20;
/// Old files kept: `FILE.1` (the newest) to `FILE.4`.
pub const KEEP: u32 = 4;

/// An append-only file that rotates by size.
#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl RotatingFile {
    /// Opens `path` to append, with at most `max_bytes` a file.
    pub fn open(path: &Path, max_bytes: u64) -> io::Result<RotatingFile> {
        let file = open(path)?;
        let bytes = file.metadata()?.len();
        Ok(RotatingFile { path: path.to_path_buf(), file, bytes, max_bytes })
    }

    fn numbered(&self, n: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    }

    fn rotate(&mut self) -> io::Result<()> {
        for n in (1..KEEP).rev() {
            let from = self.numbered(n);
            if from.exists() {
                std::fs::rename(from, self.numbered(n + 1))?;
            }
        }
        std::fs::rename(&self.path, self.numbered(1))?;
        self.file = open(&self.path)?;
        self.bytes = 0;
        Ok(())
    }
}

impl Write for RotatingFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes > 0 && self.bytes + data.len() as u64 > self.max_bytes {
            // A failed rename must not lose the message: it goes to the old file, and the next
            // attempt comes a full file later.
            if self.rotate().is_err() {
                self.bytes = 0;
            }
        }
        let n = self.file.write(data)?;
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_renamed_and_old_ones_are_dropped() {
        let dir = std::env::temp_dir().join(format!("quarry-rotate-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("log");
        let mut f = RotatingFile::open(&path, 10).unwrap();
        for n in 0..7 {
            f.write_all(format!("line {n}..\n").as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        assert_eq!(read("log"), "line 6..\n");
        assert_eq!(read("log.1"), "line 5..\n");
        assert_eq!(read("log.4"), "line 2..\n");
        assert!(!dir.join("log.5").exists());
        drop(f);
        let mut again = RotatingFile::open(&path, 100).unwrap();
        again.write_all(b"more\n").unwrap();
        assert_eq!(read("log"), "line 6..\nmore\n");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
