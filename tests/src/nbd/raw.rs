//! A socket to an NBD server with nothing in between: any bytes, in any order.

use super::consts::*;
use super::uri::{Stream, Uri};
use crate::failure::While;
use crate::{ensure, fail, Res};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

/// Bytes of one option reply accepted.
const MAX_OPTION_REPLY: u32 = 1 << 20;

/// Big-endian numbers and bytes from a stream.
pub trait Take: Read {
    /// Reads exactly `n` bytes.
    fn take_bytes(&mut self, n: usize) -> Res<Vec<u8>> {
        let mut b = vec![0; n];
        self.read_exact(&mut b).doing(|| format!("reading {n} bytes"))?;
        Ok(b)
    }
    /// Reads a number.
    fn u16(&mut self) -> Res<u16> {
        let mut b = [0; 2];
        self.read_exact(&mut b).doing(|| "reading".to_string())?;
        Ok(u16::from_be_bytes(b))
    }
    /// Reads a number.
    fn u32(&mut self) -> Res<u32> {
        let mut b = [0; 4];
        self.read_exact(&mut b).doing(|| "reading".to_string())?;
        Ok(u32::from_be_bytes(b))
    }
    /// Reads a number.
    fn u64(&mut self) -> Res<u64> {
        let mut b = [0; 8];
        self.read_exact(&mut b).doing(|| "reading".to_string())?;
        Ok(u64::from_be_bytes(b))
    }
}
impl<R: Read> Take for R {}

impl Read for Raw {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.stream.read(buf)
    }
}

/// A connected socket. Reads wait 10 s at most.
pub struct Raw {
    pub stream: Stream,
}

impl Raw {
    /// Connects and says nothing.
    pub fn connect(uri: &Uri) -> Res<Raw> {
        let stream = Stream::connect(uri)?;
        stream.set_timeout(Duration::from_secs(10))?;
        Ok(Raw { stream })
    }
    /// Connects, reads the greeting (it must offer fixed newstyle) and answers with `flags`.
    pub fn greeted(uri: &Uri, flags: u32) -> Res<Raw> {
        let mut r = Raw::connect(uri)?;
        ensure!(r.u64()? == NBDMAGIC, "the greeting does not begin with NBDMAGIC");
        ensure!(r.u64()? == IHAVEOPT, "the greeting does not say IHAVEOPT");
        let offered = r.u16()?;
        ensure!(offered & FLAG_FIXED_NEWSTYLE != 0, "no fixed newstyle in {offered:#x}");
        r.send(&flags.to_be_bytes())?;
        Ok(r)
    }
    /// In transmission with simple replies, through `NBD_OPT_EXPORT_NAME` without the zeroes.
    pub fn transmission(uri: &Uri) -> Res<(Raw, u64)> {
        let mut r = Raw::greeted(uri, u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES))?;
        r.option(OPT_EXPORT_NAME, uri.name.as_bytes())?;
        let size = r.u64()?;
        r.u16()?;
        Ok((r, size))
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Res<()> {
        self.stream.write_all(bytes).doing(|| "sending".to_string())
    }
    /// Sends an option.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Res<()> {
        let len = u32::try_from(data.len())?;
        self.option_header(option, len)?;
        self.send(data)
    }
    /// Sends the header of an option that claims `len` bytes of data.
    pub fn option_header(&mut self, option: u32, len: u32) -> Res<()> {
        let mut b = IHAVEOPT.to_be_bytes().to_vec();
        b.extend(option.to_be_bytes());
        b.extend(len.to_be_bytes());
        self.send(&b)
    }
    /// Reads one option reply: its type and its data. It must answer `option`.
    pub fn option_reply(&mut self, option: u32) -> Res<(u32, Vec<u8>)> {
        ensure!(self.u64()? == OPTION_REPLY_MAGIC, "no option reply magic");
        let to = self.u32()?;
        ensure!(to == option, "the reply is to option {to}, not {option}");
        let kind = self.u32()?;
        let len = self.u32()?;
        ensure!(len <= MAX_OPTION_REPLY, "an option reply of {len} bytes");
        Ok((kind, self.take_bytes(len as usize)?))
    }
    /// Sends the header of a request; data, where it has any, comes extra.
    pub fn request(
        &mut self,
        flags: u16,
        kind: u16,
        cookie: u64,
        offset: u64,
        len: u32,
    ) -> Res<()> {
        self.send(&request_header(REQUEST_MAGIC, flags, kind, cookie, offset, len))
    }
    /// Reads the header of a simple reply: error number and cookie.
    pub fn simple_reply(&mut self) -> Res<(u32, u64)> {
        let magic = self.u32()?;
        ensure!(magic == SIMPLE_REPLY_MAGIC, "{magic:#x} is no simple reply");
        Ok((self.u32()?, self.u64()?))
    }

    /// Fails unless the server closes the connection within 10 s; bytes that come before are dropped.
    pub fn expect_closed(&mut self) -> Res<()> {
        let mut sink = vec![0; 65_536];
        loop {
            match self.stream.read(&mut sink) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    fail!("the server did not close the connection")
                }
                // A reset is a close as well.
                Err(_) => return Ok(()),
            }
        }
    }
    /// Says that nothing more will be sent.
    pub fn half_close(&mut self) -> Res<()> {
        self.stream.shutdown(Shutdown::Write).doing(|| "closing our direction".to_string())
    }
}

/// The 28 bytes of a request.
pub fn request_header(
    magic: u32,
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u32,
) -> [u8; 28] {
    let mut b = [0; 28];
    b[0..4].copy_from_slice(&magic.to_be_bytes());
    b[4..6].copy_from_slice(&flags.to_be_bytes());
    b[6..8].copy_from_slice(&kind.to_be_bytes());
    b[8..16].copy_from_slice(&cookie.to_be_bytes());
    b[16..24].copy_from_slice(&offset.to_be_bytes());
    b[24..28].copy_from_slice(&len.to_be_bytes());
    b
}
