//! What is to be sent: a list of byte strings in order.
//!
//! Headers that follow one another share one allocation; payloads are queued as they are.

use crate::consts::*;
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::VecDeque;

/// Room taken for headers at a time, bytes.
const HEADER_ROOM: usize = 4096;

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Default)]
pub(crate) struct Output {
    head: BytesMut,
    queue: VecDeque<Bytes>,
    queued: usize,
}

impl Output {
    /// Bytes waiting to be taken.
    pub fn pending(&self) -> usize {
        self.queued + self.head.len()
    }

    /// Where header bytes are appended.
    pub fn head(&mut self) -> &mut BytesMut {
        if self.head.capacity() - self.head.len() < 64 {
            self.head.reserve(HEADER_ROOM);
        }
        &mut self.head
    }

    /// Appends a payload without copying it.
    pub fn payload(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.close_head();
        self.queued += data.len();
        self.queue.push_back(data);
    }

    /// Appends `n` zero bytes.
    pub fn zeroes(&mut self, mut n: usize) {
        while n > 0 {
            let k = n.min(ZEROES.len());
            self.payload(Bytes::from_static(&ZEROES[..k]));
            n -= k;
        }
    }

    fn close_head(&mut self) {
        if !self.head.is_empty() {
            let h = self.head.split().freeze();
            self.queued += h.len();
            self.queue.push_back(h);
        }
    }

    /// Moves everything to `out`, in order.
    pub fn take(&mut self, out: &mut Vec<Bytes>) {
        self.close_head();
        out.extend(self.queue.drain(..));
        self.queued = 0;
    }

    /// Moves whole pieces to `out`, in order, until `most` bytes are reached; one at least.
    pub fn take_some(&mut self, most: usize, out: &mut Vec<Bytes>) {
        self.close_head();
        let mut taken = 0;
        while taken < most.max(1) {
            let Some(piece) = self.queue.pop_front() else { return };
            taken += piece.len();
            self.queued -= piece.len();
            out.push(piece);
        }
    }

    /// A reply to an option.
    pub fn option_reply(&mut self, option: u32, kind: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let h = self.head();
        h.put_u64(NBD_REP_MAGIC);
        h.put_u32(option);
        h.put_u32(kind);
        h.put_u32(len as u32);
        for p in parts {
            h.put_slice(p);
        }
    }

    /// A simple reply's header. `error` zero means success.
    pub fn simple(&mut self, cookie: u64, error: u32) {
        let h = self.head();
        h.put_u32(NBD_SIMPLE_REPLY_MAGIC);
        h.put_u32(error);
        h.put_u64(cookie);
    }

    /// A structured reply chunk's header; `len` bytes of payload must follow.
    pub fn chunk(&mut self, cookie: u64, kind: u16, done: bool, len: u32) {
        let h = self.head();
        h.put_u32(NBD_STRUCTURED_REPLY_MAGIC);
        h.put_u16(if done { NBD_REPLY_FLAG_DONE } else { 0 });
        h.put_u16(kind);
        h.put_u64(cookie);
        h.put_u32(len);
    }

    /// An error: a chunk with a message (and the offset, if known) where structured replies are
    /// agreed, otherwise the number alone.
    pub fn error(
        &mut self,
        structured: bool,
        cookie: u64,
        code: u32,
        message: &str,
        at: Option<u64>,
    ) {
        if !structured {
            self.simple(cookie, code);
            return;
        }
        let m = clipped(message);
        let (kind, fixed) = match at {
            None => (NBD_REPLY_TYPE_ERROR, 6),
            Some(_) => (NBD_REPLY_TYPE_ERROR_OFFSET, 14),
        };
        self.chunk(cookie, kind, true, fixed + m.len() as u32);
        let h = self.head();
        h.put_u32(code);
        h.put_u16(m.len() as u16);
        h.put_slice(m.as_bytes());
        if let Some(at) = at {
            h.put_u64(at);
        }
    }
}

/// The start of a text that the specification permits as a string.
pub(crate) fn clipped(text: &str) -> &str {
    let mut n = text.len().min(MAX_STRING);
    while !text.is_char_boundary(n) {
        n -= 1;
    }
    &text[..n]
}
