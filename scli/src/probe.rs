//! `scli probe`: connects as an independent NBD client (the `nbd` crate, which shares no code with
//! the server here), asks for size and flags, reads one block, leaves.

use crate::error::{CliError, Exit};
use crate::uri::{self, Place};
use nbd::client::{handshake, NbdClient};
use serde_json::{json, Value};
use std::io::{self, BufWriter, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bytes read in the round trip, or the whole export when it is smaller.
const READ_BYTES: u64 = 4096;

/// Both directions of a connection; what is written goes out in one piece at `flush`.
struct Stream<S: Read + Write> {
    out: BufWriter<S>,
}
impl<S: Read + Write> Read for Stream<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.out.flush()?;
        self.out.get_mut().read(buf)
    }
}
impl<S: Read + Write> Write for Stream<S> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.out.write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Probes the export at `text`, with `limit` for every single step.
pub fn run(text: &str, limit: Duration) -> Result<Value, CliError> {
    let target = uri::parse(text)?;
    let failed = |step: &str, e: io::Error| {
        let (why, hint) = explain(step, &target.export, &e);
        CliError::new(Exit::Failed, "probe_failed", format!("{text}: {why}")).hint(hint)
    };
    let name = target.export.as_bytes();
    let measured = match &target.place {
        Place::Unix(path) => {
            let s = UnixStream::connect(path).map_err(|e| failed("connect", e))?;
            s.set_read_timeout(Some(limit))?;
            s.set_write_timeout(Some(limit))?;
            talk(s, name)
        }
        Place::Tcp { host, port } => {
            let s = connect(host, *port, limit).map_err(|e| failed("connect", e))?;
            s.set_nodelay(true)?;
            s.set_read_timeout(Some(limit))?;
            s.set_write_timeout(Some(limit))?;
            talk(s, name)
        }
    };
    let (export, handshake_time, read_time) = measured.map_err(|(step, e)| failed(step, e))?;
    Ok(json!({
        "uri": text,
        "export": target.export,
        "size_bytes": export.size,
        "read_only": export.readonly,
        "flush": export.send_flush,
        "trim": export.send_trim,
        "rotational": export.rotational,
        "resizable": export.resizeable,
        "handshake_seconds": handshake_time.as_secs_f64(),
        "read_seconds": read_time.as_secs_f64(),
    }))
}

fn connect(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(s) => return Ok(s),
            Err(e) => last = e,
        }
    }
    Err(last)
}

type Measured = (nbd::Export, Duration, Duration);

fn talk<S: Read + Write>(s: S, name: &[u8]) -> Result<Measured, (&'static str, io::Error)> {
    let mut s = Stream { out: BufWriter::new(s) };
    let began = Instant::now();
    let export = handshake(&mut s, name).map_err(|e| ("handshake", e))?;
    let handshake_time = began.elapsed();
    let began = Instant::now();
    let mut block = vec![0u8; export.size.min(READ_BYTES) as usize];
    let mut client = NbdClient::new(&mut s, &export);
    client.read_exact(&mut block).map_err(|e| ("read", e))?;
    let read_time = began.elapsed();
    disconnect(&mut s).map_err(|e| ("disconnect", e))?;
    Ok((export, handshake_time, read_time))
}

/// `NBD_CMD_DISC`, which the crate's client does not send: request magic, no flags, command 2, no
/// handle, offset or length.
fn disconnect<S: Read + Write>(s: &mut Stream<S>) -> io::Result<()> {
    let mut request = [0u8; 28];
    let magic = 0x2560_9513u32.to_be_bytes().into_iter().chain([0, 0, 0, 2]);
    for (to, from) in request.iter_mut().zip(magic) {
        *to = from;
    }
    s.write_all(&request)?;
    s.flush()
}

fn explain(step: &str, export: &str, e: &io::Error) -> (String, String) {
    match (step, e.kind()) {
        ("connect", _) => (
            format!("cannot connect: {e}"),
            "is the volume mapped and sdc-nbd running? scli volume map shows the address".into(),
        ),
        ("handshake", io::ErrorKind::UnexpectedEof) => (
            format!("the server ended the handshake; it has no export '{export}'"),
            "the name in the address is the volume's name".into(),
        ),
        (_, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => (
            format!("no answer in time ({step})"),
            "scli status tells whether the data is available; --timeout waits longer".into(),
        ),
        _ => (format!("{step}: {e}"), "sdc-nbd's log tells more".into()),
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
