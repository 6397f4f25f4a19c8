//! NBD addresses: `nbd://HOST[:PORT]/NAME` and `nbd+unix:///NAME?socket=PATH`.

use crate::error::{CliError, Exit};
use std::path::PathBuf;

/// The port of NBD.
const PORT: u16 = 10809;

/// Where an export is.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// An address, read.
#[derive(Debug, PartialEq, Eq)]
pub struct NbdUri {
    pub place: Place,
    pub export: String,
}

/// Reads an NBD address; exit status 2 with a hint when it is none.
pub fn parse(text: &str) -> Result<NbdUri, CliError> {
    read(text).ok_or_else(|| {
        CliError::new(Exit::Usage, "bad_uri", format!("'{text}' is no NBD address"))
            .hint("nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH")
    })
}

fn read(text: &str) -> Option<NbdUri> {
    let (scheme, rest) = text.split_once("://")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decode(export)?;
    let place = match scheme {
        "nbd" => {
            let (host, port) = host_port(authority)?;
            Place::Tcp { host, port }
        }
        "nbd+unix" if authority.is_empty() => {
            let socket = query.split('&').find_map(|p| p.strip_prefix("socket="))?;
            Place::Unix(PathBuf::from(decode(socket)?)).non_empty()?
        }
        _ => return None,
    };
    Some(NbdUri { place, export })
}

impl Place {
    fn non_empty(self) -> Option<Place> {
        match &self {
            Place::Unix(p) if p.as_os_str().is_empty() => None,
            _ => Some(self),
        }
    }
}

fn host_port(authority: &str) -> Option<(String, u16)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let port = match rest.strip_prefix(':') {
            Some(p) => p.parse().ok()?,
            None => PORT,
        };
        return Some((host.to_string(), port));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, PORT),
    };
    (!host.is_empty()).then(|| (host.to_string(), port))
}

/// Undoes percent-encoding; `None` when it is broken or not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digit = |c: Option<u8>| (c? as char).to_digit(16);
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            out.push((high * 16 + low) as u8);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let unix = parse("nbd+unix:///vol1?socket=/tmp/q%20x/vol1.sock").unwrap();
        assert_eq!(unix.export, "vol1");
        assert_eq!(unix.place, Place::Unix(PathBuf::from("/tmp/q x/vol1.sock")));
        let tcp = parse("nbd://127.0.0.1:999/v").unwrap();
        assert_eq!(tcp.place, Place::Tcp { host: "127.0.0.1".to_string(), port: 999 });
        let six = parse("nbd://[::1]/v").unwrap();
        assert_eq!(six.place, Place::Tcp { host: "::1".to_string(), port: 10809 });
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in ["", "x", "http://a/b", "nbd://", "nbd+unix:///v", "nbd://h:x/v", "nbd://h/%zz"]
        {
            assert_eq!(parse(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
