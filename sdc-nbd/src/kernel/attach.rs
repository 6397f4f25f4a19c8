//! Attach, take over, resize and detach by generic netlink.

use super::device::{
    attached, ensure_node, set_request_timer, shows_backends, Attached, Roots, POLL,
};
use super::genl::{self, Config};
use super::holders::{describe, holders};
use super::links;
use super::socket::{bounded, Netlink};
use super::KernelError;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Connections of one device at most.
const MAX_SOCKETS: usize = 64;
/// Longest backend identifier, bytes.
const MAX_BACKEND: usize = 200;
/// How long a new size may wait for the requests in flight.
const RESIZE_WAIT: Duration = Duration::from_secs(30);
/// How long the kernel may take to look at new sockets.
const RECONFIGURE_WAIT: Duration = Duration::from_secs(10);
/// How long the kernel may take to begin a disconnect.
const DISCONNECT_WAIT: Duration = Duration::from_secs(30);

/// How to connect a device.
#[derive(Clone, Debug)]
pub struct Connect<'a> {
    /// A certain device, or any free one.
    pub index: Option<u32>,
    /// Bytes; a multiple of `block_size`.
    pub size: u64,
    /// Logical block size in bytes: a power of two, 512 to 4096.
    pub block_size: u32,
    /// Transmission flags of the export without structured replies. More than one socket needs
    /// the multi-connection flag.
    pub flags: u16,
    /// Says whose device this is; must be repeated by whoever takes it over.
    pub backend: &'a str,
    /// How long requests wait for a new socket when all are dead. Zero means an I/O error at once.
    pub dead_conn_timeout: Duration,
    /// Time after which a request is sent again on another socket; zero never gives up on one.
    pub io_timeout: Duration,
    /// The kernel's ends. It keeps what it takes; the caller closes its own descriptors afterwards.
    pub sockets: &'a [OwnedFd],
}

/// The kernel's NBD driver. Made by [`super::probe`].
#[derive(Clone, Debug)]
pub struct KernelNbd {
    family: u16,
    roots: Roots,
}

/// A connected pair: the daemon's end, the kernel's end.
pub fn socket_pair() -> Result<(OwnedFd, OwnedFd), KernelError> {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|e| KernelError::Refused { what: "making a socket pair", errno: e.raw_os_error() })
}

impl KernelNbd {
    pub(super) fn new(family: u16, roots: Roots) -> KernelNbd {
        KernelNbd { family, roots }
    }

    /// Where this looks for device nodes and state.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Connects a device and returns its index. The other ends of the sockets must be served
    /// already: as soon as this returns, and for some kernels before, requests arrive.
    ///
    /// # Errors
    /// [`KernelError::InUse`] if that device is taken, [`KernelError::Invalid`] for values the kernel
    /// would refuse without a word.
    pub fn connect(&self, c: &Connect<'_>) -> Result<u32, KernelError> {
        check(c)?;
        let fds = raw(c.sockets);
        let config = Config {
            index: c.index,
            size: Some(c.size),
            block_size: Some(c.block_size as u64),
            timeout: Some(whole_seconds(c.io_timeout)),
            server_flags: Some(c.flags as u64),
            client_flags: None,
            dead_conn_timeout: Some(whole_seconds(c.dead_conn_timeout)),
            backend: Some(c.backend),
            sockets: &fds,
        };
        let mut netlink = Netlink::open()?;
        let request = genl::connect(self.family, netlink.next_seq(), &config);
        let mut index = c.index;
        let done = netlink.exchange("connecting a kernel device", &request, |a| {
            index = Some(genl::connected_index(a)?);
            Ok(())
        });
        match (done, c.index) {
            (Ok(()), _) => {}
            (Err(KernelError::Refused { errno, .. }), Some(i)) if is_busy(errno) => {
                return Err(self.in_use(i))
            }
            (Err(e), _) => return Err(e),
        }
        index.ok_or(KernelError::Parse(genl::ParseError::Missing("the device's index")))
    }

    /// Device node and stable name of a connected device; returns the node.
    pub fn publish(&self, index: u32, volume: &str) -> Result<PathBuf, KernelError> {
        let node = ensure_node(&self.roots, index)?;
        links::set(&self.roots, volume, index)?;
        Ok(node)
    }

    /// Offers one new connection to a connected device. `Some` is the daemon's end, to be served at
    /// once; `None` means that the kernel has no dead connection to replace (yet).
    ///
    /// The kernel reports success in both cases. When it does not take the socket nobody holds the
    /// other end any more, which shows as a hang-up on ours.
    pub fn reconnect_one(&self, index: u32, backend: &str) -> Result<Option<OwnedFd>, KernelError> {
        let (ours, kernels) = socket_pair()?;
        self.reconfigure(index, backend, vec![kernels])?;
        Ok((!hung_up(ours.as_fd())?).then_some(ours))
    }

    /// Takes a device over after a restart: offers connections until `count` are taken or `wait`
    /// has passed. Each is handed to `serve` as soon as it is taken. Returns how many were; ask for
    /// as many as the device was connected with.
    ///
    /// # Errors
    /// Of the kernel; [`KernelError::NoAnswer`] if no connection at all was taken.
    pub fn reconnect(
        &self,
        index: u32,
        backend: &str,
        count: usize,
        wait: Duration,
        serve: &mut dyn FnMut(OwnedFd),
    ) -> Result<usize, KernelError> {
        let deadline = Instant::now() + wait;
        let mut taken = 0;
        while taken < count.min(MAX_SOCKETS) {
            match self.reconnect_one(index, backend)? {
                Some(end) => {
                    serve(end);
                    taken += 1;
                }
                None if Instant::now() >= deadline => break,
                None => std::thread::sleep(POLL),
            }
        }
        if taken == 0 && count > 0 {
            let what = "taking a kernel device over (its old connections are still alive)";
            return Err(KernelError::NoAnswer { what, seconds: wait.as_secs() });
        }
        Ok(taken)
    }

    /// Sets a new size in bytes. The kernel waits for requests in flight: the sockets must be
    /// served meanwhile.
    pub fn resize(&self, index: u32, backend: &str, size: u64) -> Result<(), KernelError> {
        let config = Config {
            index: Some(index),
            size: Some(size),
            backend: Some(backend),
            ..Config::default()
        };
        let family = self.family;
        let r = bounded("resizing a kernel device", RESIZE_WAIT, Vec::new(), |seq, _| {
            genl::reconfigure(family, seq, &config)
        });
        self.explain(index, backend, r)
    }

    /// Gives the device `sockets` in place of dead ones and closes them here. Success does not mean that they were
    /// taken: see [`KernelNbd::reconnect_one`].
    ///
    /// # Errors
    /// Of the kernel; [`KernelError::NoAnswer`] if another change to the device is under way and does not end.
    pub fn reconfigure(
        &self,
        index: u32,
        backend: &str,
        sockets: Vec<OwnedFd>,
    ) -> Result<(), KernelError> {
        let family = self.family;
        let what = "reconfiguring a kernel device";
        let r = bounded(what, RECONFIGURE_WAIT, sockets, |seq, sockets| {
            let fds = raw(sockets);
            let config = Config {
                index: Some(index),
                backend: Some(backend),
                sockets: &fds,
                ..Config::default()
            };
            genl::reconfigure(family, seq, &config)
        });
        self.explain(index, backend, r)
    }

    /// Says what an `EINVAL` of the kernel means here.
    fn explain(
        &self,
        index: u32,
        backend: &str,
        r: Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        match (r, self.state(index)) {
            (Err(KernelError::Refused { errno, .. }), state) if is_gone(errno) => {
                Err(KernelError::Invalid(match state {
                    Some(Attached { pid: Some(pid), backend: Some(other), .. })
                        if other != backend =>
                    {
                        format!("/dev/nbd{index} is {other:?} of process {pid}, not {backend:?}")
                    }
                    Some(Attached { pid: Some(_), .. }) => {
                        format!("the kernel refuses the change to /dev/nbd{index}")
                    }
                    _ => format!("/dev/nbd{index} is not connected"),
                }))
            }
            (r, _) => r,
        }
    }

    /// Asks the kernel to disconnect. Requests in flight or waiting for a connection fail.
    pub fn disconnect(&self, index: u32) -> Result<(), KernelError> {
        self.disconnect_within(index, DISCONNECT_WAIT)
    }

    fn disconnect_within(&self, index: u32, wait: Duration) -> Result<(), KernelError> {
        let family = self.family;
        let r = bounded("disconnecting a kernel device", wait, Vec::new(), |seq, _| {
            genl::disconnect(family, seq, index)
        });
        match r {
            // Not connected, or no such device: that is what was wanted.
            Err(KernelError::Refused { errno, .. }) if is_gone(errno) => Ok(()),
            r => r,
        }
    }

    /// Is the device connected under that identifier? Where the kernel shows none at all: connected.
    pub fn is_connected_as(&self, index: u32, backend: &str) -> bool {
        match self.state(index) {
            Some(Attached { pid: Some(_), backend: Some(b), .. }) => b == backend,
            Some(Attached { pid: Some(_), backend: None, .. }) => !shows_backends(&self.roots),
            _ => false,
        }
    }

    /// Detaches a device for good: refuses while something uses it (unless `force`), removes the
    /// volume's link, disconnects, and waits until the kernel has let go, at most `wait`. A device that is not
    /// connected as `backend` any more is gone already; whoever has its number now is left alone.
    ///
    /// # Errors
    /// [`KernelError::InUse`] names who holds it, before or after.
    pub fn detach(
        &self,
        index: u32,
        backend: &str,
        volume: &str,
        force: bool,
        wait: Duration,
    ) -> Result<(), KernelError> {
        if !force && !holders(&self.roots, index).is_empty() {
            return Err(self.in_use(index));
        }
        let deadline = Instant::now() + wait;
        // The kernel disconnects by number alone: so it is looked at last thing before.
        if !self.is_connected_as(index, backend) {
            let now = self.state(index).and_then(|a| a.backend).unwrap_or_default();
            // Another client's of a volume of this name: the link is its.
            let theirs = now != backend && now.ends_with(&format!(":{volume}"));
            return if theirs { Ok(()) } else { links::remove(&self.roots, volume, index) };
        }
        links::remove(&self.roots, volume, index)?;
        match self.disconnect_within(index, wait) {
            Err(KernelError::NoAnswer { .. }) => return Err(self.in_use(index)),
            r => r?,
        }
        while self.is_connected_as(index, backend) {
            if Instant::now() >= deadline {
                return Err(self.in_use(index));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Index and connectedness of every device the driver has. A device stays connected here until
    /// its last user has closed it.
    pub fn status(&self) -> Result<Vec<(u32, bool)>, KernelError> {
        let mut netlink = Netlink::open()?;
        let request = genl::status(self.family, netlink.next_seq(), None);
        let mut list = Vec::new();
        netlink.exchange("asking for the kernel's devices", &request, |a| {
            list.extend(genl::device_list(a)?);
            Ok(())
        })?;
        Ok(list)
    }

    /// How often the kernel looks at unanswered requests: see [`set_request_timer`].
    pub fn set_request_timer(&self, index: u32, every: Duration) -> Result<(), KernelError> {
        set_request_timer(&self.roots, index, every)
    }

    /// What the kernel shows about a device.
    pub fn state(&self, index: u32) -> Option<Attached> {
        attached(&self.roots, index)
    }

    fn in_use(&self, index: u32) -> KernelError {
        let mut found = holders(&self.roots, index);
        if let (true, Some(Attached { pid: Some(pid), backend, .. })) =
            (found.is_empty(), self.state(index))
        {
            let backend = backend.unwrap_or_else(|| "a device without identifier".into());
            found.push(format!("connected by process {pid} as {backend}"));
        }
        KernelError::InUse { index, holders: describe(&found) }
    }
}

/// The times travel in whole seconds: more than nothing must not become nothing.
fn whole_seconds(d: Duration) -> u64 {
    d.as_secs() + u64::from(d.subsec_nanos() > 0)
}

fn raw(sockets: &[OwnedFd]) -> Vec<i32> {
    sockets.iter().map(|s| s.as_fd().as_raw_fd()).collect()
}

fn is_busy(errno: i32) -> bool {
    errno == Errno::BUSY.raw_os_error()
}

fn is_gone(errno: i32) -> bool {
    errno == Errno::INVAL.raw_os_error() || errno == Errno::NOENT.raw_os_error()
}

/// Whether the other end of a socket pair is closed.
fn hung_up(end: BorrowedFd<'_>) -> Result<bool, KernelError> {
    let mut fds = [PollFd::from_borrowed_fd(end, PollFlags::IN)];
    let zero = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&zero))
        .map_err(|e| KernelError::Refused { what: "polling a socket", errno: e.raw_os_error() })?;
    Ok(fds.iter().any(|f| f.revents().contains(PollFlags::HUP)))
}

/// Checks what the kernel would refuse with no more than `EINVAL`.
fn check(c: &Connect<'_>) -> Result<(), KernelError> {
    let bad = |text: String| Err(KernelError::Invalid(text));
    let b = c.block_size as u64;
    if !(512..=4096).contains(&b) || !b.is_power_of_two() {
        return bad(format!("block size {b}: a power of two from 512 to 4096 is needed"));
    }
    if c.size == 0 || !c.size.is_multiple_of(b) || c.size > i64::MAX as u64 {
        return bad(format!(
            "size {}: a positive multiple of the block size {b} is needed",
            c.size
        ));
    }
    if c.sockets.is_empty() || c.sockets.len() > MAX_SOCKETS {
        return bad(format!("{} sockets: 1 to {MAX_SOCKETS} are needed", c.sockets.len()));
    }
    if c.sockets.len() > 1 && c.flags & MULTI_CONN == 0 {
        return bad("several sockets need an export with multi-connection".into());
    }
    if c.backend.is_empty() || c.backend.len() > MAX_BACKEND || c.backend.contains('\0') {
        return bad(format!("a backend identifier has 1 to {MAX_BACKEND} bytes without NUL"));
    }
    Ok(())
}

const MULTI_CONN: u16 = quarry_nbd_proto::consts::NBD_FLAG_CAN_MULTI_CONN;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::device::tests::{scratch, show};

    fn good(sockets: &[OwnedFd]) -> Connect<'_> {
        Connect {
            index: None,
            size: 1 << 30,
            block_size: 4096,
            flags: MULTI_CONN | 1,
            backend: "quarry:vol",
            dead_conn_timeout: Duration::from_secs(60),
            io_timeout: Duration::ZERO,
            sockets,
        }
    }

    #[test]
    fn values_the_kernel_would_refuse_are_named() {
        let (a, b) = socket_pair().unwrap();
        let two = [a, b];
        assert!(check(&good(&two)).is_ok());
        let says = |c: Connect<'_>, word: &str| {
            let e = check(&c).unwrap_err().to_string();
            assert!(e.contains(word), "{e}");
        };
        says(Connect { block_size: 8192, ..good(&two) }, "block size");
        says(Connect { block_size: 1000, ..good(&two) }, "block size");
        says(Connect { size: 4097, ..good(&two) }, "size 4097");
        says(Connect { size: 0, ..good(&two) }, "size 0");
        says(good(&[]), "0 sockets");
        says(Connect { flags: 1, ..good(&two) }, "multi-connection");
        says(Connect { backend: "", ..good(&two) }, "backend");
        says(Connect { backend: "a\0", ..good(&two) }, "backend");
    }

    #[test]
    fn a_fraction_of_a_second_is_not_never() {
        assert_eq!(whole_seconds(Duration::ZERO), 0);
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(60)), 60);
    }

    #[test]
    fn a_socket_nobody_took_is_seen_as_hung_up() {
        let (ours, kernels) = socket_pair().unwrap();
        let keeper = kernels.try_clone().unwrap();
        drop(kernels);
        assert!(!hung_up(ours.as_fd()).unwrap(), "somebody keeps it");
        drop(keeper);
        assert!(hung_up(ours.as_fd()).unwrap());
    }

    #[test]
    fn a_mounted_device_is_not_detached() {
        let dir = scratch("detach");
        let k = KernelNbd::new(0, Roots::under(&dir));
        show(k.roots(), 7, "dev", "43:224");
        std::fs::create_dir_all(dir.join("proc/self")).unwrap();
        let mount = "30 1 43:224 / /mnt/a rw - ext4 /dev/nbd7 rw\n";
        std::fs::write(dir.join("proc/self/mountinfo"), mount).unwrap();
        let e = k.detach(7, "quarry:vol", "vol", false, Duration::ZERO).unwrap_err().to_string();
        assert_eq!(e, "/dev/nbd7 is in use: mounted at /mnt/a");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_number_that_another_program_has_now_is_left_alone() {
        let dir = scratch("foreign");
        let k = KernelNbd::new(0, Roots::under(&dir));
        show(k.roots(), 1, "size", "8");
        show(k.roots(), 1, "pid", "1");
        show(k.roots(), 1, "backend", "another's");
        let link = links::set(k.roots(), "vol", 1).unwrap();
        let detach = || k.detach(1, "quarry:vol", "vol", true, Duration::ZERO);
        // Were the kernel asked, the device would still be connected afterwards, which is an error.
        detach().unwrap();
        assert!(std::fs::read_link(link).is_err(), "it does not name the volume any more");
        // Without identifier it is another's too, if the kernel shows any.
        show(k.roots(), 1, "backend", "");
        show(k.roots(), 2, "pid", "1");
        show(k.roots(), 2, "size", "8");
        show(k.roots(), 2, "backend", "quarry:vol");
        detach().unwrap();
        assert!(!k.is_connected_as(1, "quarry:vol") && k.is_connected_as(2, "quarry:vol"));
        // One that shows none (before Linux 5.14) says nothing of whose it is.
        std::fs::remove_file(dir.join("sys/block/nbd2/backend")).unwrap();
        assert!(k.is_connected_as(1, "quarry:vol"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
