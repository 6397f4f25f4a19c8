//! One request to generic netlink and its answer.

use super::genl::{self, Message};
use super::KernelError;
use rustix::io::Errno;
use rustix::net::netlink::{SocketAddrNetlink, GENERIC};
use rustix::net::sockopt::{set_socket_timeout, Timeout};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Room for one datagram: thousands of devices in a status.
const DATAGRAM: usize = 256 << 10;

/// A netlink socket, bound to a port the kernel chose.
pub(super) struct Netlink {
    fd: OwnedFd,
    seq: u32,
}

fn refused(what: &'static str, e: Errno) -> KernelError {
    match e {
        Errno::PERM | Errno::ACCESS => KernelError::NotPermitted { what },
        Errno::AGAIN | Errno::TIMEDOUT => {
            KernelError::NoAnswer { what, seconds: ANSWER_TIMEOUT.as_secs() }
        }
        e => KernelError::Refused { what, errno: e.raw_os_error() },
    }
}

impl Netlink {
    pub fn open() -> Result<Netlink, KernelError> {
        let open = || -> Result<OwnedFd, Errno> {
            let kind = SocketType::RAW;
            let fd = net::socket_with(
                AddressFamily::NETLINK,
                kind,
                SocketFlags::CLOEXEC,
                Some(GENERIC),
            )?;
            net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
            set_socket_timeout(&fd, Timeout::Recv, Some(Duration::from_secs(1)))?;
            Ok(fd)
        };
        let fd = open().map_err(|e| refused("opening a netlink socket", e))?;
        Ok(Netlink { fd, seq: 0 })
    }

    /// A number for the next request.
    pub fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    /// Sends a request and waits until the kernel acknowledges it. The attributes of its replies go
    /// to `reply`. An errno of the kernel is returned as [`KernelError::Refused`].
    pub fn exchange(
        &mut self,
        what: &'static str,
        request: &[u8],
        mut reply: impl FnMut(&[u8]) -> Result<(), genl::ParseError>,
    ) -> Result<(), KernelError> {
        let seq = self.seq;
        let kernel = SocketAddrNetlink::new(0, 0);
        net::sendto(&self.fd, request, SendFlags::empty(), &kernel)
            .map_err(|e| refused(what, e))?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut buf = vec![0u8; DATAGRAM];
        while Instant::now() < deadline {
            let got = net::recv(&self.fd, &mut buf[..], RecvFlags::TRUNC);
            let n = match got {
                Ok((n, whole)) if n == whole => n,
                Ok(_) => return Err(genl::ParseError::Short.into()),
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(e) => return Err(refused(what, e)),
            };
            for message in genl::messages(buf.get(..n).unwrap_or(&[])) {
                match message? {
                    Message::Done { seq: s, errno: 0 } if s == seq => return Ok(()),
                    Message::Done { seq: s, errno } if s == seq => {
                        return Err(refused(what, Errno::from_raw_os_error(errno)))
                    }
                    Message::Reply { seq: s, attributes, .. } if s == seq => reply(attributes)?,
                    // An answer to something older, or a notification.
                    _ => {}
                }
            }
        }
        Err(KernelError::NoAnswer { what, seconds: ANSWER_TIMEOUT.as_secs() })
    }
}

/// Requests that the kernel has not answered yet, their callers gone on.
static LEFT_BEHIND: AtomicUsize = AtomicUsize::new(0);
/// So many of them, and no more are begun.
const MOST_LEFT_BEHIND: usize = 64;

/// One request without replies, whose caller goes on after `wait` whatever the kernel does.
///
/// The kernel carries requests out inside the system call that sends them, so some (`DISCONNECT`,
/// a new size) can block for as long as requests to the device do, with no timeout of a socket to
/// help. They run on a thread of their own, which stays behind if the kernel never returns.
///
/// `keep`: descriptors that the request names. They stay open until the kernel has answered, so that it never finds another
/// file under their numbers.
pub(super) fn bounded(
    what: &'static str,
    wait: Duration,
    keep: Vec<OwnedFd>,
    build: impl FnOnce(u32, &[OwnedFd]) -> Vec<u8>,
) -> Result<(), KernelError> {
    if LEFT_BEHIND.load(Ordering::Relaxed) >= MOST_LEFT_BEHIND {
        return Err(KernelError::NoAnswer { what, seconds: wait.as_secs() });
    }
    let mut netlink = Netlink::open()?;
    let request = build(netlink.next_seq(), &keep);
    let (done, result) = mpsc::sync_channel(1);
    // Set by who ends first, the kernel or the wait: one that comes after the wait leaves the count again.
    let over = Arc::new(AtomicBool::new(false));
    let left = Arc::clone(&over);
    let run = move || {
        let answer = netlink.exchange(what, &request, |_| Ok(()));
        drop(keep);
        if left.swap(true, Ordering::AcqRel) {
            LEFT_BEHIND.fetch_sub(1, Ordering::Relaxed);
        }
        // Nobody listens any more if this took too long; the caller has reported it then.
        let _late = done.send(answer);
    };
    std::thread::Builder::new()
        .name("nbd-netlink".into())
        .spawn(run)
        .map_err(|e| KernelError::io("starting a thread for", what, e))?;
    match result.recv_timeout(wait) {
        Ok(r) => r,
        Err(_) => {
            LEFT_BEHIND.fetch_add(1, Ordering::Relaxed);
            if over.swap(true, Ordering::AcqRel) {
                LEFT_BEHIND.fetch_sub(1, Ordering::Relaxed);
            }
            Err(KernelError::NoAnswer { what, seconds: wait.as_secs() })
        }
    }
}
