//! Directories that vanish with the test.

use crate::failure::While;
use crate::Res;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory removed with all its content on drop, unless `QUARRY_TEST_KEEP=1`.
pub struct Scratch(PathBuf);

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Scratch {
    /// In the system's directory for temporary files, with a short name (socket paths are limited to 107 bytes).
    pub fn new() -> Res<Scratch> {
        Scratch::under(&std::env::temp_dir())
    }
    /// In memory where the machine has `/dev/shm`, else as [`Scratch::new`].
    pub fn in_memory() -> Res<Scratch> {
        let shm = Path::new("/dev/shm");
        Scratch::under(&if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() })
    }
    fn under(parent: &Path) -> Res<Scratch> {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("qt{}-{n}", std::process::id()));
        std::fs::create_dir(&path).doing(|| format!("making {}", path.display()))?;
        Ok(Scratch(path))
    }
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// `name` in it, as text for a command line.
    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

/// Whether everything is to be left for a look (`QUARRY_TEST_KEEP=1`).
pub fn keep() -> bool {
    std::env::var("QUARRY_TEST_KEEP").is_ok_and(|v| v == "1")
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if keep() {
            eprintln!("kept: {}", self.0.display());
        } else if let Err(e) = std::fs::remove_dir_all(&self.0) {
            if e.kind() != std::io::ErrorKind::NotFound {
                eprintln!("{} stays behind: {e}", self.0.display());
            }
        }
    }
}
