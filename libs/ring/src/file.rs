//! Opening the file or block device behind a storage device, and keeping others off it.

use crate::RingError;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// How to open a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOpts {
    /// Past the page cache (O_DIRECT) if the file system allows it; the result says.
    pub direct: bool,
    /// No writing; shares the lock with other readers.
    pub read_only: bool,
    /// Create a missing file, and give an empty one this size (sparse), bytes.
    pub create_size: Option<u64>,
}

/// A device that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedFile {
    pub id: crate::FileId,
    /// Bytes.
    pub size: u64,
    pub is_block_device: bool,
    /// False although asked for: O_DIRECT was refused, the page cache is in between.
    pub direct: bool,
    /// A file of a memory file system: nothing of it outlives the host's power.
    pub in_memory: bool,
}

/// What [`open`] found.
pub(crate) struct Opened {
    pub fd: OwnedFd,
    pub size: u64,
    pub is_block_device: bool,
    pub direct: bool,
    pub in_memory: bool,
    /// A write with RWF_DSYNC is durable when it is done.
    pub dsync: bool,
}

/// `statfs` types of file systems whose RWF_DSYNC on asynchronous direct writes was read in the kernel's source to end in a
/// flush. FUSE ignores it there, so that nothing is taken for granted.
const EXT4: u64 = 0xEF53;
const XFS: u64 = 0x5846_5342;

fn syncs_single_writes(file: &OwnedFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|s| matches!(s.f_type as u64, EXT4 | XFS))
}

/// udev holds a shared lock on a block device for moments while it looks at it.
const BLOCK_LOCK_TRIES: u32 = 25;
const BLOCK_LOCK_PAUSE: Duration = Duration::from_millis(20);

fn file_error(what: &'static str, path: &Path, e: Errno) -> RingError {
    RingError::File { what, path: path.to_path_buf(), source: e.into() }
}

/// Opens, checks and locks `path`. Blocking system calls: for start-up, not for a data path.
pub(crate) fn open(path: &Path, opts: OpenOpts) -> Result<Opened, RingError> {
    let (fd, direct) = open_fd(path, opts)?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| file_error("cannot look at", path, e))?;
    let is_block_device = is_block(path, &stat)?;
    lock(path, &fd, &stat, opts.read_only, is_block_device)?;
    let mut size = rustix::fs::seek(&fd, rustix::fs::SeekFrom::End(0))
        .map_err(|e| file_error("cannot find the size of", path, e))?;
    if let (0, false, false, Some(wanted)) =
        (size, is_block_device, opts.read_only, opts.create_size)
    {
        rustix::fs::ftruncate(&fd, wanted)
            .and_then(|()| rustix::fs::fsync(&fd))
            .map_err(|e| file_error("cannot set the size of", path, e))?;
        sync_directory(path)?;
        size = wanted;
    }
    let in_memory = !is_block_device && crate::inline::lies_in_memory(&fd);
    let dsync = direct && (is_block_device || syncs_single_writes(&fd));
    Ok(Opened { fd, size, is_block_device, direct, in_memory, dsync })
}

/// A block device, or a file? Everything else is refused.
fn is_block(path: &Path, stat: &Stat) -> Result<bool, RingError> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(false),
        FileType::BlockDevice => Ok(true),
        _ => Err(RingError::NotADevice { path: path.to_path_buf() }),
    }
}

/// Opens what a look has shown to be a file or a block device. The look comes first: to open a FIFO is to wait for its other
/// end, and some character devices begin their work when they are opened (a watchdog does).
fn open_fd(path: &Path, opts: OpenOpts) -> Result<(OwnedFd, bool), RingError> {
    let mut flags = OFlags::CLOEXEC;
    flags |= if opts.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let block = match rustix::fs::stat(path) {
        Ok(stat) => is_block(path, &stat)?,
        // Not there, or not to be looked at: opening it says what is to be said.
        Err(_) => false,
    };
    if !block {
        // Another thing may take its place meanwhile. Not for block devices: with it some drivers open what has no medium.
        flags |= OFlags::NONBLOCK;
    }
    if block && !opts.read_only {
        // Without O_CREAT this claims a block device: refused while it is mounted or claimed.
        flags |= OFlags::EXCL;
    } else if !block && !opts.read_only && opts.create_size.is_some() {
        flags |= OFlags::CREATE;
    }
    let mode = Mode::from_raw_mode(0o600);
    let opened = if opts.direct {
        match rustix::fs::open(path, flags | OFlags::DIRECT, mode) {
            Ok(fd) => Ok((fd, true)),
            Err(Errno::INVAL) => rustix::fs::open(path, flags, mode).map(|fd| (fd, false)),
            Err(e) => Err(e),
        }
    } else {
        rustix::fs::open(path, flags, mode).map(|fd| (fd, false))
    };
    let (fd, direct) = opened.map_err(|e| match e {
        Errno::BUSY => RingError::Locked {
            path: path.to_path_buf(),
            holder: "a mount or another exclusive user of the device".to_string(),
        },
        e => file_error("cannot open", path, e),
    })?;
    if flags.contains(OFlags::NONBLOCK) {
        // With it io_uring answers EAGAIN on file systems that cannot tell whether they would wait.
        rustix::fs::fcntl_getfl(&fd)
            .and_then(|now| rustix::fs::fcntl_setfl(&fd, now - OFlags::NONBLOCK))
            .map_err(|e| file_error("cannot set the flags of", path, e))?;
    }
    Ok((fd, direct))
}

fn lock(
    path: &Path,
    fd: &OwnedFd,
    stat: &Stat,
    shared: bool,
    block: bool,
) -> Result<(), RingError> {
    let how = if shared {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    let tries = if block { BLOCK_LOCK_TRIES } else { 1 };
    for attempt in 1..=tries {
        match rustix::fs::flock(fd, how) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if attempt < tries => std::thread::sleep(BLOCK_LOCK_PAUSE),
            Err(Errno::WOULDBLOCK) => {
                let holder = match holder_of(stat) {
                    Some(pid) => format!("process {pid}"),
                    None => "another process".to_string(),
                };
                return Err(RingError::Locked { path: path.to_path_buf(), holder });
            }
            Err(e) => return Err(file_error("cannot lock", path, e)),
        }
    }
    Ok(())
}

/// The pid that holds a lock on the file, as far as /proc tells (not across containers).
fn holder_of(stat: &Stat) -> Option<u32> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    holder_in(&locks, &format!("{major:02x}:{minor:02x}:{}", stat.st_ino))
}

/// Finds `file` (`major:minor:inode`) in text of the form
/// `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`; waiters have `->` after the number.
fn holder_in(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("FLOCK") || !words.any(|w| w == "READ" || w == "WRITE") {
            return None;
        }
        let pid = words.next()?.parse().ok().filter(|&p| p > 0)?;
        (words.next() == Some(file)).then_some(pid)
    })
}

fn sync_directory(path: &Path) -> Result<(), RingError> {
    let dir = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|d| rustix::fs::fsync(&d))
        .map_err(|e| file_error("cannot sync the directory", dir, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_read_from_the_kernels_table() {
        let locks = "1: POSIX  ADVISORY  WRITE 77 08:01:42 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 1234 08:01:42 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 5 08:01:43 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 0 08:01:44 0 EOF\n";
        assert_eq!(holder_in(locks, "08:01:42"), Some(1234));
        assert_eq!(holder_in(locks, "08:01:43"), None, "a waiter holds nothing");
        assert_eq!(
            holder_in(locks, "08:01:44"),
            None,
            "a process of another container has no pid here"
        );
    }
    fn scratch(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("quarry-file-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn what_is_neither_a_file_nor_a_block_device_is_not_even_opened() {
        let dir = scratch("fifo");
        let fifo = dir.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, 0o600.into(), 0).unwrap();
        let all = [false, true].map(|read_only| OpenOpts { read_only, ..OpenOpts::default() });
        for opts in all.into_iter().flat_map(|o| [o, OpenOpts { create_size: Some(4096), ..o }]) {
            for path in [&fifo, Path::new("/dev/null"), &dir] {
                let (tx, rx) = std::sync::mpsc::channel();
                let of = path.to_path_buf();
                std::thread::spawn(move || tx.send(open(&of, opts).err()).ok());
                let e = rx.recv_timeout(Duration::from_secs(10)).expect("it waits for ever");
                let refused = matches!(e, Some(RingError::NotADevice { .. }));
                assert!(refused, "{}: {e:?}", path.display());
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_file_is_left_as_one_that_waits_and_keeps_what_was_asked_for() {
        let dir = scratch("flags");
        let opts = OpenOpts { direct: true, read_only: false, create_size: Some(8192) };
        let o = open(&dir.join("new"), opts).unwrap();
        let flags = rustix::fs::fcntl_getfl(&o.fd).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "{flags:?}");
        assert_eq!(flags.contains(OFlags::DIRECT), o.direct);
        assert_eq!(o.size, 8192);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
