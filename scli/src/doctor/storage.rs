//! Checks of the directories data and sockets would lie in.

use super::Finding;
use quarry_base::units::show_size;
use quarry_base::PageBuf;
use rustix::fs::{open, statvfs, Mode, OFlags};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The kernel's limit on the path of a Unix socket.
const SOCKET_PATH: usize = 107;
/// Longest name of a volume, and what is put around it: `/`, `.sock`.
const NAME_AROUND: usize = 63 + 6;
/// Free space below which it is tight, and below which nothing will fit.
const SPACE_WANTED: u64 = 10 << 30;
const SPACE_NEEDED: u64 = 1 << 30;

/// How a directory is named that is looked at in place of one that does not exist yet.
fn shown(dir: &Path, looked_at: &Path) -> String {
    match dir.is_dir() {
        true => dir.display().to_string(),
        false => format!("{} (where {} would be made)", looked_at.display(), dir.display()),
    }
}

/// The nearest directory above `dir` that exists.
fn existing(dir: &Path) -> PathBuf {
    let full = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    full.ancestors().find(|p| p.is_dir()).map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
}

pub fn direct(dir: &Path) -> Finding {
    let name = "o_direct";
    let asked = dir;
    let dir = existing(asked);
    let path = dir.join(format!(".quarry-doctor-{}", std::process::id()));
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    let tried = open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(std::io::Error::from)
        .and_then(|fd| File::from(fd).write_all(&PageBuf::zeroed(4096)));
    // The file may be there even if the write was refused.
    let removed = std::fs::remove_file(&path);
    let shown = shown(asked, &dir);
    match tried {
        Ok(()) => match removed {
            Ok(()) => Finding::ok(name, format!("{shown} takes direct I/O")),
            Err(e) => Finding::warn(name, format!("{}: {e}", path.display()), "remove it by hand"),
        },
        Err(e) if e.raw_os_error() == Some(22) => {
            let cure = "use ext4, xfs, a block device, or tmpfs of Linux 6.6 and later";
            Finding::fail(name, format!("{shown} refuses direct I/O"), cure)
        }
        Err(e) => Finding::fail(name, format!("cannot write in {shown}: {e}"), "give --dir"),
    }
}

pub fn space(dir: &Path) -> Finding {
    let name = "space";
    let asked = dir;
    let dir = existing(asked);
    let free = match statvfs(&dir) {
        Ok(s) => s.f_bavail.saturating_mul(s.f_frsize),
        Err(e) => return Finding::warn(name, format!("{}: {e}", dir.display()), "give --dir"),
    };
    let message = format!("{} free in {}", show_size(free), shown(asked, &dir));
    if free >= SPACE_WANTED {
        Finding::ok(name, message)
    } else if free >= SPACE_NEEDED {
        Finding::warn(name, message, "small devices only; free some, or give --dir")
    } else {
        Finding::fail(name, message, "free some, or give --dir")
    }
}

pub fn socket_path(dir: &Path) -> Finding {
    let name = "socket_path";
    let full = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    let len = full.as_os_str().len();
    let message = format!("{} has {len} bytes", full.display());
    if len + NAME_AROUND <= SOCKET_PATH {
        return Finding::ok(name, message);
    }
    let room = SOCKET_PATH - NAME_AROUND;
    let cure = format!("{room} at most leave room for every volume name: give a shorter one");
    if len + 8 > SOCKET_PATH {
        return Finding::fail(name, message, &cure);
    }
    Finding::warn(name, message, &cure)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_long_socket_directory_is_noticed() {
        assert_eq!(socket_path(Path::new("/run/quarry")).verdict, Verdict::Ok);
        let long = format!("/{}", "d".repeat(60));
        assert_eq!(socket_path(Path::new(&long)).verdict, Verdict::Warn);
        let longer = format!("/{}", "d".repeat(110));
        assert_eq!(socket_path(Path::new(&longer)).verdict, Verdict::Fail);
    }

    #[test]
    fn a_directory_that_refuses_files_fails_and_nothing_is_left_behind() {
        assert_eq!(direct(Path::new("/proc")).verdict, Verdict::Fail);
        let dir = std::env::temp_dir().join(format!("scli-doctor-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        direct(&dir);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_missing_directory_is_judged_by_the_one_above() {
        assert_eq!(existing(Path::new("/no/such/dir")), PathBuf::from("/"));
    }
}
