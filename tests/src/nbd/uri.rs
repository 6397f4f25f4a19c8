//! NBD URIs and the sockets behind them.

use crate::failure::While;
use crate::{fail, Failure, Res};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Where an export is: `nbd+unix:///NAME?socket=PATH` or `nbd://HOST[:PORT]/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    text: String,
    /// Socket path, or `host:port`.
    pub address: String,
    pub unix: bool,
    /// Export name.
    pub name: String,
}

impl Uri {
    /// Reads a URI; `%XX` in name and path are decoded.
    pub fn parse(text: &str) -> Res<Uri> {
        let make = |address: String, unix, name: &str| {
            Ok(Uri { text: text.to_string(), address, unix, name: decode(name) })
        };
        if let Some(rest) = text.strip_prefix("nbd+unix://") {
            let (name, query) = rest.split_once('?').unwrap_or((rest, ""));
            let socket = query.split('&').find_map(|p| p.strip_prefix("socket="));
            let Some(socket) = socket else { fail!("'{text}' names no socket") };
            return make(decode(socket), true, name.trim_start_matches('/'));
        }
        let Some(rest) = text.strip_prefix("nbd://") else {
            fail!("'{text}' is no NBD URI: nbd+unix:///NAME?socket=PATH or nbd://HOST[:PORT]/NAME");
        };
        let (host, name) = rest.split_once('/').unwrap_or((rest, ""));
        let port = host.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
        let address = if port { host.to_string() } else { format!("{host}:10809") };
        make(address, false, name)
    }
    /// As given.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}
impl std::fmt::Display for Uri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}
impl std::str::FromStr for Uri {
    type Err = Failure;
    fn from_str(text: &str) -> Res<Uri> {
        Uri::parse(text)
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|h| u8::from_str_radix(h, 16).ok());
        match hex {
            Some(b) if bytes[at] == b'%' => {
                out.push(b);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A connected socket of either kind.
#[derive(Debug)]
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Connects. Reads and writes wait 120 s at most, so that a test never hangs.
    pub fn connect(uri: &Uri) -> Res<Stream> {
        let s = if uri.unix {
            Stream::Unix(UnixStream::connect(&uri.address).doing(|| uri.address.clone())?)
        } else {
            let tcp = TcpStream::connect(&uri.address).doing(|| uri.address.clone())?;
            tcp.set_nodelay(true)?;
            Stream::Tcp(tcp)
        };
        s.set_timeout(Duration::from_secs(120))?;
        Ok(s)
    }
    /// Sets the longest that one read or write may take.
    pub fn set_timeout(&self, limit: Duration) -> Res<()> {
        match self {
            Stream::Unix(s) => {
                s.set_read_timeout(Some(limit)).and(s.set_write_timeout(Some(limit)))?
            }
            Stream::Tcp(s) => {
                s.set_read_timeout(Some(limit)).and(s.set_write_timeout(Some(limit)))?
            }
        }
        Ok(())
    }
    /// Another handle of the same socket.
    pub fn try_clone(&self) -> Res<Stream> {
        Ok(match self {
            Stream::Unix(s) => Stream::Unix(s.try_clone()?),
            Stream::Tcp(s) => Stream::Tcp(s.try_clone()?),
        })
    }
    /// Closes one or both directions.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Stream::Unix(s) => s.shutdown(how),
            Stream::Tcp(s) => s.shutdown(how),
        }
    }
}
impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(s) => s.read(buf),
            Stream::Tcp(s) => s.read(buf),
        }
    }
}
impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(s) => s.write(buf),
            Stream::Tcp(s) => s.write(buf),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_uri_are_read() {
        let u = Uri::parse("nbd+unix:///my%20vol?socket=/tmp/a%2Bb.sock").unwrap();
        assert_eq!(
            (u.address.as_str(), u.name.as_str(), u.unix),
            ("/tmp/a+b.sock", "my vol", true)
        );
        let u = Uri::parse("nbd://127.0.0.1/v").unwrap();
        assert_eq!((u.address.as_str(), u.name.as_str(), u.unix), ("127.0.0.1:10809", "v", false));
        assert_eq!(Uri::parse("nbd://localhost:99").unwrap().address, "localhost:99");
        for bad in ["http://x", "nbd+unix:///v", ""] {
            assert!(Uri::parse(bad).is_err(), "{bad}");
        }
    }
}
