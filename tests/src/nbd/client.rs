//! A session: requests out, answers in.

use super::consts::*;
use super::handshake::{self, Export};
use super::raw::request_header;
use super::reply::{Receiver, Reply};
use super::uri::{Stream, Uri};
use crate::failure::While;
use crate::{ensure, Res};
use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub kind: u16,
    pub flags: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
    /// Data of a write; empty otherwise.
    pub data: &'a [u8],
}

/// The sending half.
pub struct Sender {
    stream: Stream,
    buffer: Vec<u8>,
}

impl Sender {
    /// Sends a request whole.
    pub fn send(&mut self, r: &Request) -> Res<()> {
        self.buffer.clear();
        let header = request_header(REQUEST_MAGIC, r.flags, r.kind, r.cookie, r.offset, r.len);
        self.buffer.extend_from_slice(&header);
        self.buffer.extend_from_slice(r.data);
        self.stream.write_all(&self.buffer).doing(|| "sending".to_string())
    }
    /// Says goodbye (`NBD_CMD_DISC`).
    pub fn disconnect(&mut self) -> Res<()> {
        self.send(&Request { kind: CMD_DISC, flags: 0, cookie: 0, offset: 0, len: 0, data: &[] })
    }
    /// Ends the connection without goodbye; a receiver waiting on it fails.
    pub fn cut(&self) {
        // Already cut by the other side: the same.
        if self.stream.shutdown(Shutdown::Both).is_err() {
            std::thread::yield_now();
        }
    }
}

/// A session, used for one request at a time until it is split.
pub struct Connection {
    pub export: Export,
    sender: Sender,
    receiver: Receiver,
    cookie: u64,
}

impl Connection {
    /// Connects with structured replies where the server has them.
    pub fn open(uri: &Uri) -> Res<Connection> {
        Connection::open_with(uri, true)
    }
    /// Connects; `structured` says whether to ask for structured replies.
    pub fn open_with(uri: &Uri, structured: bool) -> Res<Connection> {
        let (raw, export) = handshake::go(uri, structured).map_err(|e| e.within(uri))?;
        raw.stream.set_timeout(Duration::from_secs(120))?;
        let sender = Sender { stream: raw.stream.try_clone()?, buffer: Vec::new() };
        let receiver = Receiver::new(raw.stream, export.structured);
        Ok(Connection { export, sender, receiver, cookie: 0 })
    }
    /// The two halves, for two threads.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
    /// Sets the longest that one read or write on the socket may take (120 s at first).
    pub fn set_timeout(&self, limit: Duration) -> Res<()> {
        self.sender.stream.set_timeout(limit)
    }

    /// Sends one request and waits for its answer, whatever it is.
    pub fn call(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Res<Reply> {
        self.cookie += 1;
        let cookie = self.cookie;
        self.sender.send(&Request { kind, flags, cookie, offset, len, data })?;
        let read = (kind == CMD_READ).then_some((offset, len as usize));
        self.receiver.next(|c| (c == cookie).then_some(read))
    }
    fn good(&mut self, kind: u16, flags: u16, offset: u64, len: usize, data: &[u8]) -> Res<Reply> {
        let reply = self.call(kind, flags, offset, u32::try_from(len)?, data)?;
        let error = reply.error;
        ensure!(error == 0, "command {kind} at {offset}, {len} bytes: NBD error {error}");
        Ok(reply)
    }
    /// Reads; an NBD error is a failure.
    pub fn read_at(&mut self, offset: u64, len: usize) -> Res<Vec<u8>> {
        Ok(self.good(CMD_READ, 0, offset, len, &[])?.data)
    }
    /// Writes.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Res<()> {
        self.good(CMD_WRITE, 0, offset, data.len(), data).map(drop)
    }
    /// Trims.
    pub fn trim(&mut self, offset: u64, len: usize) -> Res<()> {
        self.good(CMD_TRIM, 0, offset, len, &[]).map(drop)
    }
    /// Writes zeroes.
    pub fn zero(&mut self, offset: u64, len: usize) -> Res<()> {
        self.good(CMD_WRITE_ZEROES, 0, offset, len, &[]).map(drop)
    }
    /// Flushes.
    pub fn flush(&mut self) -> Res<()> {
        self.good(CMD_FLUSH, 0, 0, 0, &[]).map(drop)
    }
    /// Says goodbye and closes.
    pub fn disconnect(mut self) -> Res<()> {
        self.sender.disconnect()
    }
}
