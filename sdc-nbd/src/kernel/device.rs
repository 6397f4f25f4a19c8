//! What the kernel shows about `/dev/nbdN`, and its device node.

use super::KernelError;
use rustix::fs::{makedev, mknodat, FileType, Mode, CWD};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time the kernel or udev gets to make a device node before this code makes it.
const NODE_WAIT: Duration = Duration::from_millis(500);
/// Time between two looks at a file that is to appear or vanish.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// Where the file systems of the kernel are; other places in tests.
#[derive(Clone, Debug)]
pub struct Roots {
    pub dev: PathBuf,
    pub sys: PathBuf,
    pub proc: PathBuf,
    /// Directory with the module trees of the installed kernels.
    pub modules: PathBuf,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots {
            dev: "/dev".into(),
            sys: "/sys".into(),
            proc: "/proc".into(),
            modules: "/lib/modules".into(),
        }
    }
}

impl Roots {
    /// All of them below one directory.
    pub fn under(dir: &Path) -> Roots {
        Roots {
            dev: dir.join("dev"),
            sys: dir.join("sys"),
            proc: dir.join("proc"),
            modules: dir.join("modules"),
        }
    }

    fn block(&self, index: u32) -> PathBuf {
        self.sys.join(format!("block/nbd{index}"))
    }

    /// The device's node.
    pub fn node(&self, index: u32) -> PathBuf {
        self.dev.join(format!("nbd{index}"))
    }
}

/// A device as `/sys/block/nbdN` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub index: u32,
    /// Process that connected it; present as long as it is connected.
    pub pid: Option<u32>,
    /// Bytes.
    pub size: u64,
    /// The identifier given at `CONNECT` (Linux 5.14 and later).
    pub backend: Option<String>,
}

fn read(path: PathBuf) -> Option<String> {
    fs::read_to_string(path).ok().map(|s| s.trim().to_string())
}

/// Reads a device's state; `None` if there is no such device.
pub fn attached(roots: &Roots, index: u32) -> Option<Attached> {
    let dir = roots.block(index);
    // The kernel counts in sectors of 512 bytes here, whatever the block size.
    let sectors: u64 = read(dir.join("size"))?.parse().ok()?;
    Some(Attached {
        index,
        pid: read(dir.join("pid")).and_then(|p| p.parse().ok()),
        size: sectors.saturating_mul(512),
        backend: read(dir.join("backend")).filter(|b| !b.is_empty()),
    })
}

/// Does this kernel show the identifiers of devices? Where one is shown, or the release says so.
pub fn shows_backends(roots: &Roots) -> bool {
    let text = read(roots.proc.join("sys/kernel/osrelease")).unwrap_or_default();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().ok());
    let release = (numbers.next().flatten(), numbers.next().flatten());
    matches!(release, (Some(major), Some(minor)) if (major, minor) >= (5, 14))
        || all_attached(roots).iter().any(|a| a.backend.is_some())
}

/// Every connected device, by index.
pub fn all_attached(roots: &Roots) -> Vec<Attached> {
    let Ok(entries) = fs::read_dir(roots.sys.join("block")) else { return Vec::new() };
    let index = |e: fs::DirEntry| e.file_name().to_str()?.strip_prefix("nbd")?.parse().ok();
    let mut all: Vec<Attached> = entries
        .flatten()
        .filter_map(index)
        .filter_map(|i| attached(roots, i))
        .filter(|a| a.pid.is_some())
        .collect();
    all.sort_by_key(|a| a.index);
    all
}

/// Sets how often the kernel looks at a request that is not answered. Not how long it may take: with
/// an I/O timeout of zero and one connection, all that happens is that a request which was sent on a
/// connection that has been replaced since is sent again (Linux 5.8 and later).
///
/// # Errors
/// If the kernel's file cannot be written; requests that were in flight when a daemon died then wait
/// 30 s after its return.
pub fn set_request_timer(roots: &Roots, index: u32, every: Duration) -> Result<(), KernelError> {
    let path = roots.block(index).join("queue/io_timeout");
    fs::write(&path, every.as_millis().to_string())
        .map_err(|e| KernelError::io("setting the request timer", path, e))
}

/// Major and minor number of the device.
pub fn numbers(roots: &Roots, index: u32) -> Option<(u32, u32)> {
    let text = read(roots.block(index).join("dev"))?;
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The device's node, made if neither the kernel nor udev makes it.
///
/// # Errors
/// If something else has the name, or making the node is not permitted.
pub fn ensure_node(roots: &Roots, index: u32) -> Result<PathBuf, KernelError> {
    let path = roots.node(index);
    let deadline = Instant::now() + NODE_WAIT;
    loop {
        match fs::metadata(&path) {
            Ok(m) => return check_node(roots, index, path, &m),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(KernelError::io("looking at", path, e))
            }
            Err(_) if Instant::now() < deadline => std::thread::sleep(POLL),
            Err(_) => break,
        }
    }
    let Some((major, minor)) = numbers(roots, index) else {
        return Err(KernelError::Invalid(format!("the kernel shows no device nbd{index}")));
    };
    let mode = Mode::from_raw_mode(0o660);
    match mknodat(CWD, &path, FileType::BlockDevice, mode, makedev(major, minor)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(path),
        Err(e) => Err(KernelError::io("making the device node", path, e.into())),
    }
}

fn check_node(
    roots: &Roots,
    index: u32,
    path: PathBuf,
    m: &fs::Metadata,
) -> Result<PathBuf, KernelError> {
    let want = numbers(roots, index).map(|(major, minor)| makedev(major, minor));
    if m.file_type().is_block_device() && want.is_none_or(|w| w == m.rdev()) {
        return Ok(path);
    }
    Err(KernelError::Invalid(format!("{} is not the device nbd{index}", path.display())))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An empty directory of this test's own.
    pub(crate) fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("quarry-kernel-{}-{name}", std::process::id()));
        let _gone_before = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    pub(crate) fn show(roots: &Roots, index: u32, file: &str, text: &str) {
        let dir = roots.block(index);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(file), text).unwrap();
    }

    #[test]
    fn connected_devices_are_found_with_their_backend() {
        let dir = scratch("attached");
        let roots = Roots::under(&dir);
        assert_eq!(all_attached(&roots), []);
        for (i, size) in [(0, "0\n"), (10, "2048\n"), (2, "16\n")] {
            show(&roots, i, "size", size);
        }
        show(&roots, 10, "pid", "77\n");
        show(&roots, 10, "backend", "quarry:vol\n");
        show(&roots, 2, "pid", "78\n");
        fs::create_dir_all(dir.join("sys/block/sda")).unwrap();
        let all = all_attached(&roots);
        assert_eq!(all.iter().map(|a| a.index).collect::<Vec<_>>(), [2, 10]);
        assert_eq!(all[0].backend, None);
        let want = Attached {
            index: 10,
            pid: Some(77),
            size: 1 << 20,
            backend: Some("quarry:vol".into()),
        };
        assert_eq!(all[1], want);
        assert_eq!(attached(&roots, 5), None);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn something_else_under_the_nodes_name_is_not_taken_for_the_device() {
        let dir = scratch("node");
        let roots = Roots::under(&dir);
        fs::create_dir_all(&roots.dev).unwrap();
        fs::write(roots.node(3), "").unwrap();
        let e = ensure_node(&roots, 3).unwrap_err().to_string();
        assert!(e.contains("is not the device nbd3"), "{e}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_request_timer_is_written_in_milliseconds() {
        let dir = scratch("timer");
        let roots = Roots::under(&dir);
        let e = set_request_timer(&roots, 1, Duration::from_secs(3)).unwrap_err().to_string();
        assert!(e.contains("nbd1/queue/io_timeout"), "{e}");
        show(&roots, 1, "size", "8");
        fs::create_dir_all(roots.block(1).join("queue")).unwrap();
        set_request_timer(&roots, 1, Duration::from_secs(3)).unwrap();
        assert_eq!(read(roots.block(1).join("queue/io_timeout")).as_deref(), Some("3000"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_kernel_of_release_5_14_shows_identifiers() {
        let dir = scratch("shows");
        let roots = Roots::under(&dir);
        fs::create_dir_all(dir.join("proc/sys/kernel")).unwrap();
        for (text, shows) in
            [("5.13.0-rc1\n", false), ("5.14.0\n", true), ("6.1.0-9-amd64\n", true), ("x\n", false)]
        {
            fs::write(dir.join("proc/sys/kernel/osrelease"), text).unwrap();
            assert_eq!(shows_backends(&roots), shows, "{text}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
