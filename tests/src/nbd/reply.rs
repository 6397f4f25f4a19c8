//! Answers, simple and structured; chunks of several answers may come mixed.

use super::consts::*;
use super::raw::Take;
use super::uri::Stream;
use crate::{ensure, fail, Res};
use std::collections::HashMap;
use std::io::BufReader;

/// Bytes one chunk may carry.
const MAX_CHUNK: usize = 64 << 20;

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub cookie: u64,
    /// 0, or an NBD error number.
    pub error: u32,
    /// What a read returned; empty otherwise and on errors.
    pub data: Vec<u8>,
    /// What a block status returned: lengths and flags.
    pub extents: Vec<(u32, u32)>,
}

/// Offset and length of an outstanding read.
pub type ReadRange = (u64, usize);

#[derive(Default)]
struct Partial {
    data: Vec<u8>,
    covered: usize,
    error: u32,
    extents: Vec<(u32, u32)>,
}

/// The receiving half of a connection.
pub struct Receiver {
    input: BufReader<Stream>,
    structured: bool,
    partial: HashMap<u64, Partial>,
}

impl Receiver {
    pub(super) fn new(stream: Stream, structured: bool) -> Receiver {
        let input = BufReader::with_capacity(64 << 10, stream);
        Receiver { input, structured, partial: HashMap::new() }
    }

    /// Waits for the next whole answer. `outstanding` says of a cookie: None, not ours; `Some(None)`, no read;
    /// `Some(Some(range))`, a read. Any breach of the protocol is a failure.
    pub fn next(&mut self, outstanding: impl Fn(u64) -> Option<Option<ReadRange>>) -> Res<Reply> {
        loop {
            let magic = self.input.u32()?;
            let done = match magic {
                SIMPLE_REPLY_MAGIC => Some(self.simple(&outstanding)?),
                STRUCTURED_REPLY_MAGIC if self.structured => self.chunk(&outstanding)?,
                _ => fail!("{magic:#x} is no reply magic"),
            };
            if let Some(reply) = done {
                return Ok(reply);
            }
        }
    }

    fn simple(&mut self, outstanding: &impl Fn(u64) -> Option<Option<ReadRange>>) -> Res<Reply> {
        let (error, cookie) = (self.input.u32()?, self.input.u64()?);
        let Some(read) = outstanding(cookie) else { fail!("an answer to nobody: cookie {cookie}") };
        let data = match read {
            Some(_) if self.structured => {
                fail!("a simple reply to a read after structured replies were agreed")
            }
            Some((_, len)) if error == 0 => self.input.take_bytes(len)?,
            _ => Vec::new(),
        };
        Ok(Reply { cookie, error, data, extents: Vec::new() })
    }

    fn chunk(
        &mut self,
        outstanding: &impl Fn(u64) -> Option<Option<ReadRange>>,
    ) -> Res<Option<Reply>> {
        let (flags, kind) = (self.input.u16()?, self.input.u16()?);
        let (cookie, len) = (self.input.u64()?, self.input.u32()? as usize);
        ensure!(len <= MAX_CHUNK, "a chunk of {len} bytes");
        let Some(read) = outstanding(cookie) else { fail!("a chunk to nobody: cookie {cookie}") };
        let body = self.input.take_bytes(len)?;
        let partial = self.partial.entry(cookie).or_default();
        partial.take(kind, &body, read)?;
        if flags & CHUNK_DONE == 0 {
            ensure!(kind != CHUNK_NONE, "NBD_REPLY_TYPE_NONE without the done flag");
            return Ok(None);
        }
        let p = self.partial.remove(&cookie).unwrap_or_default();
        if let Some((_, len)) = read {
            ensure!(
                p.error != 0 || p.covered == len,
                "a read of {len} bytes was answered with {}",
                p.covered
            );
        }
        let data = if p.error == 0 { p.data } else { Vec::new() };
        Ok(Some(Reply { cookie, error: p.error, data, extents: p.extents }))
    }
}

fn be(b: &[u8], at: usize, n: usize) -> Res<u64> {
    match b.get(at..at + n) {
        Some(b) => Ok(b.iter().fold(0, |v, &x| v << 8 | u64::from(x))),
        None => fail!("a chunk of {} bytes is too short", b.len()),
    }
}

impl Partial {
    fn take(&mut self, kind: u16, body: &[u8], read: Option<ReadRange>) -> Res<()> {
        match (kind, read) {
            (CHUNK_NONE, _) => ensure!(body.is_empty(), "NBD_REPLY_TYPE_NONE with a payload"),
            (CHUNK_OFFSET_DATA, Some(range)) => {
                ensure!(body.len() > 8, "an empty data chunk");
                let at = self.place(be(body, 0, 8)?, body.len() - 8, range)?;
                self.data[at..at + body.len() - 8].copy_from_slice(&body[8..]);
            }
            (CHUNK_OFFSET_HOLE, Some(range)) => {
                ensure!(body.len() == 12, "a hole chunk of {} bytes", body.len());
                self.place(be(body, 0, 8)?, be(body, 8, 4)? as usize, range)?;
            }
            (CHUNK_BLOCK_STATUS, None) => {
                for e in body.get(4..).unwrap_or_default().chunks_exact(8) {
                    self.extents.push((be(e, 0, 4)? as u32, be(e, 4, 4)? as u32));
                }
            }
            (k, _) if k & 1 << 15 != 0 => {
                self.error = be(body, 0, 4)? as u32;
                ensure!(self.error != 0, "an error chunk with error 0");
                let text = be(body, 4, 2)? as usize;
                let whole = 6 + text + if k == CHUNK_ERROR_OFFSET { 8 } else { 0 };
                ensure!(body.len() >= whole, "an error chunk of {} bytes", body.len());
            }
            (k, _) => fail!("a chunk of type {k} does not belong to this request"),
        }
        Ok(())
    }

    fn place(&mut self, offset: u64, len: usize, (start, whole): ReadRange) -> Res<usize> {
        let at = offset.checked_sub(start).map_or(usize::MAX, |a| a as usize);
        let fits = at.checked_add(len).is_some_and(|end| end <= whole) && len > 0;
        ensure!(fits, "a chunk at {offset} of {len} bytes lies outside of the read");
        self.data.resize(whole, 0);
        self.covered += len;
        Ok(at)
    }
}
