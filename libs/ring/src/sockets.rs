//! Making sockets: options, paths, stale files. Plain system calls, none of them on a data path.

use crate::config::LISTEN_BACKLOG;
use crate::RingError;
use rustix::fs::{AtFlags, FileType, Mode};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest Unix socket path: `sun_path` has 108 bytes, the last one 0.
const MAX_UNIX_PATH: usize = 107;

/// A Unix socket file we made: removed at the end if it is still the same file.
pub(crate) struct SocketFile {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = rustix::fs::lstat(&self.path)
            .is_ok_and(|st| st.st_dev == self.dev && st.st_ino == self.ino);
        if same {
            if let Err(e) = rustix::fs::unlink(&self.path) {
                tracing::warn!(path = %self.path.display(), error = %e, "cannot remove a socket file");
            }
        }
    }
}

fn socket_error(what: &'static str, address: &str, source: io::Error) -> RingError {
    RingError::Socket { what, address: address.to_string(), source }
}

/// What a Unix socket holds that its peer has not read: a few of the largest messages, so that a
/// message goes out in one piece and its sender is not woken for each part of it. The kernel caps
/// it at `net.core.wmem_max`. (TCP sizes its buffers itself.)
const UNIX_SEND_BUFFER: usize = 1 << 20;

/// Address of a Unix socket path, refused with its length if it does not fit.
pub(crate) fn unix_address(path: &Path) -> Result<SockAddr, RingError> {
    let len = path.as_os_str().as_bytes().len();
    if len > MAX_UNIX_PATH {
        return Err(RingError::PathTooLong { path: path.to_path_buf(), len });
    }
    SockAddr::unix(path)
        .map_err(|e| socket_error("bad socket path", &path.display().to_string(), e))
}

/// Removes a socket file nobody listens on. Error: somebody does, or it is no socket.
fn remove_stale(path: &Path, addr: &SockAddr) -> Result<(), RingError> {
    let shown = path.display().to_string();
    let st = match rustix::fs::lstat(path) {
        Ok(st) => st,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(e) => return Err(socket_error("cannot look at", &shown, e.into())),
    };
    if FileType::from_raw_mode(st.st_mode) != FileType::Socket {
        return Err(RingError::NotASocket { path: path.to_path_buf() });
    }
    let probe = new_socket(Domain::UNIX, &shown)?;
    probe.set_nonblocking(true).map_err(|e| socket_error("cannot probe", &shown, e))?;
    match probe.connect(addr).map_err(|e| e.raw_os_error()) {
        Err(Some(libc::ECONNREFUSED)) => match rustix::fs::unlink(path) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(socket_error("cannot remove the stale socket", &shown, e.into())),
        },
        Err(Some(libc::ENOENT)) => Ok(()),
        // Success, a full backlog, or a socket of another type: somebody is there.
        Ok(()) | Err(Some(libc::EAGAIN | libc::EPROTOTYPE)) => {
            Err(RingError::AddressInUse { address: shown })
        }
        Err(e) => Err(socket_error(
            "cannot tell whether anyone listens on",
            &shown,
            io::Error::from_raw_os_error(e.unwrap_or(libc::EIO)),
        )),
    }
}

fn new_socket(domain: Domain, shown: &str) -> Result<Socket, RingError> {
    let protocol = (domain != Domain::UNIX).then_some(Protocol::TCP);
    Socket::new(domain, Type::STREAM, protocol)
        .map_err(|e| socket_error("cannot create a socket for", shown, e))
}

fn bind_error(shown: &str, e: io::Error) -> RingError {
    if e.kind() == io::ErrorKind::AddrInUse {
        return RingError::AddressInUse { address: shown.to_string() };
    }
    socket_error("cannot listen on", shown, e)
}

/// A listening Unix socket with exactly `mode`, and the file it lives in.
pub(crate) fn listen_unix(path: &Path, mode: u32) -> Result<(OwnedFd, SocketFile), RingError> {
    let addr = unix_address(path)?;
    let shown = path.display().to_string();
    remove_stale(path, &addr)?;
    let socket = new_socket(Domain::UNIX, &shown)?;
    let mode = Mode::from_raw_mode(mode & 0o777);
    // The file inherits the socket's mode (less the umask), so it is at no time open to more.
    rustix::fs::fchmod(&socket, mode).map_err(|e| bind_error(&shown, e.into()))?;
    socket.bind(&addr).map_err(|e| bind_error(&shown, e))?;
    let st = rustix::fs::lstat(path).map_err(|e| bind_error(&shown, e.into()))?;
    let file = SocketFile { path: path.to_path_buf(), dev: st.st_dev, ino: st.st_ino };
    rustix::fs::chmodat(rustix::fs::CWD, path, mode, AtFlags::empty())
        .map_err(|e| bind_error(&shown, e.into()))?;
    socket.listen(LISTEN_BACKLOG).map_err(|e| bind_error(&shown, e))?;
    Ok((socket.into(), file))
}

/// A listening TCP socket and the address it got (port 0: chosen by the kernel).
pub(crate) fn listen_tcp(addr: SocketAddr) -> Result<(OwnedFd, SocketAddr), RingError> {
    let shown = addr.to_string();
    let socket = new_socket(Domain::for_address(addr), &shown)?;
    let bound = (|| {
        socket.set_reuse_address(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        socket.local_addr()
    })()
    .map_err(|e| bind_error(&shown, e))?;
    Ok((socket.into(), bound.as_socket().unwrap_or(addr)))
}

/// An unconnected stream socket for `addr`.
pub(crate) fn for_connect(addr: &SockAddr, shown: &str) -> Result<OwnedFd, RingError> {
    let socket = new_socket(addr.domain(), shown)?;
    match addr.domain() {
        Domain::UNIX => socket.set_send_buffer_size(UNIX_SEND_BUFFER),
        // Keepalive says nothing while data is on its way. Whoever dialled dials again; who was dialled may wait for a
        // peer that is paused.
        _ => tune_tcp(&SockRef::from(&socket))
            .and_then(|()| socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))),
    }
    .map_err(|e| socket_error("cannot set up", shown, e))?;
    Ok(socket.into())
}

/// How long a host that we dialled may leave data unacknowledged, or take none.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// TCP_NODELAY always (a reply must not wait for a delayed ACK); keepalive finds vanished hosts
/// on idle connections in about 10 s.
fn tune_tcp(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(4))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}

/// Prepares an accepted or adopted socket. A failure is logged: the connection works without.
pub(crate) fn prepare_connected(fd: &OwnedFd) {
    let socket = SockRef::from(fd);
    // io_uring fails operations on non-blocking files with EAGAIN instead of waiting for readiness.
    let set = socket.set_nonblocking(false).and_then(|()| match socket.domain()? {
        Domain::IPV4 | Domain::IPV6 => tune_tcp(&socket),
        _ => socket.set_send_buffer_size(UNIX_SEND_BUFFER),
    });
    if let Err(e) = set {
        tracing::warn!(error = %e, "cannot set the options of a connection");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_we_dialled_and_that_acknowledges_nothing_is_given_up() {
        let to = SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 1)));
        let fd = for_connect(&to, "a test").unwrap();
        assert_eq!(SockRef::from(&fd).tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
    }
}
