//! Telling systemd how a daemon stands (`Type=notify`): one datagram to the socket it names.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A state systemd is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// What depends on this unit may start.
    Ready,
    /// It ends in good order.
    Stopping,
}

impl State {
    fn text(self) -> &'static str {
        match self {
            State::Ready => "READY=1",
            State::Stopping => "STOPPING=1",
        }
    }
}

/// Tells systemd, if it started this process and wants to know. A failure is logged: the unit then
/// fails to start in time, and the log should say why.
pub fn notify(state: State) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let socket = socket.to_string_lossy().into_owned();
    if let Err(error) = send(&socket, state.text()) {
        tracing::warn!(%error, socket, "systemd cannot be told {}", state.text());
    }
}

/// `@` in front stands for an abstract address.
fn send(socket: &str, text: &str) -> std::io::Result<()> {
    let to = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &to).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_arrives_at_a_path_and_at_an_abstract_address() {
        let name = format!("quarry-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let at_path = UnixDatagram::bind(&path).unwrap();
        let abstract_at = SocketAddr::from_abstract_name(&name).unwrap();
        let at_abstract = UnixDatagram::bind_addr(&abstract_at).unwrap();
        let mut buf = [0u8; 64];
        send(&path.to_string_lossy(), State::Ready.text()).unwrap();
        let n = at_path.recv(&mut buf).unwrap();
        assert_eq!(&buf[..n], b"READY=1");
        send(&format!("@{name}"), State::Stopping.text()).unwrap();
        let n = at_abstract.recv(&mut buf).unwrap();
        assert_eq!(&buf[..n], b"STOPPING=1");
        std::fs::remove_file(&path).unwrap();
        assert!(send(&path.to_string_lossy(), "x").is_err());
    }
}
