//! Where received bytes go.
//!
//! One buffer takes headers and small payloads, many requests a receive. A quiet connection has a
//! small one; it grows while receives fill it. The bytes not parsed yet stay in it (a partial
//! request, or requests held back by a limit). Behind a payload that got a buffer of its own little
//! more than the next header is asked for: large writes come in trains, and their data need not be
//! moved.

use crate::limits::RECV_BUFFER_MIN;
use bytes::Bytes;
use quarry_base::PageBuf;
use std::ops::Range;

/// Where to receive next: into `buf[start..end]`, never empty. Hand it back to `Session::received`.
#[derive(Debug)]
pub struct RecvPlan {
    pub buf: PageBuf,
    pub start: usize,
    pub end: usize,
}

/// Bytes asked for behind a large payload.
const HEAD: usize = 4 << 10;
/// Receives in a row that used little of the buffer before it shrinks.
const QUIET: u32 = 64;

pub(crate) struct Input {
    buf: Option<PageBuf>,
    /// Bytes received and not parsed: `buf[start..end]`.
    start: usize,
    end: usize,
    /// Length the partial item at `start` has when complete, if known.
    need: usize,
    /// Size wanted for the next buffer, `RECV_BUFFER_MIN..=max`.
    size: usize,
    max: usize,
    quiet: u32,
}

/// The received bytes, taken out for parsing.
pub(crate) struct Batch {
    pub buf: PageBuf,
    pub at: usize,
    pub end: usize,
}

impl Batch {
    pub fn rest(&self) -> &[u8] {
        self.buf.get(self.at..self.end).unwrap_or(&[])
    }
}

impl Input {
    pub fn new(max: usize) -> Input {
        let size = RECV_BUFFER_MIN.min(max);
        Input { buf: None, start: 0, end: 0, need: 0, size, max, quiet: 0 }
    }

    /// Bytes received and not parsed.
    pub fn held(&self) -> usize {
        self.end - self.start
    }

    /// A buffer with the unparsed bytes at its start and room behind them.
    pub fn plan(&mut self) -> RecvPlan {
        let held = self.held();
        let want = self.size.max(self.need).max(held + 1);
        let buf = match self.buf.take() {
            Some(mut b) if b.capacity() >= want && b.capacity() <= want.max(self.size) * 4 => {
                if self.start > 0 && held > 0 {
                    b.copy_within(self.start..self.end, 0);
                }
                b
            }
            old => {
                let mut b = PageBuf::new(want);
                if let Some(old) = old {
                    b[..held].copy_from_slice(&old[self.start..self.end]);
                }
                b
            }
        };
        (self.start, self.end) = (0, 0);
        let mut buf = buf;
        let end = buf.capacity().min(want.next_power_of_two());
        buf.set_len(end);
        RecvPlan { buf, start: held, end }
    }

    /// A payload goes to a buffer of its own; the next one probably will too.
    pub fn large_seen(&mut self) {
        self.size = HEAD;
        self.quiet = 0;
    }

    /// Takes the buffer back with `n` more bytes in it.
    pub fn put(&mut self, plan: RecvPlan, n: usize) {
        let room = plan.end - plan.start;
        if n == room {
            self.size = (self.size * 4).min(self.max);
            self.quiet = 0;
        } else if n < self.size / 8 {
            self.quiet += 1;
            if self.quiet > QUIET {
                self.size = (self.size / 2).max(RECV_BUFFER_MIN.min(self.max).min(self.size));
                self.quiet = 0;
            }
        } else {
            self.quiet = 0;
        }
        (self.start, self.end) = (0, plan.start + n);
        self.buf = Some(plan.buf);
    }

    /// The unparsed bytes, to parse; `None` if there are none.
    pub fn take(&mut self) -> Option<Batch> {
        if self.held() == 0 {
            return None;
        }
        self.buf.take().map(|buf| Batch { buf, at: self.start, end: self.end })
    }

    /// Puts the rest back. `slices` are the payloads found in the buffer; their bytes are returned
    /// in the same order: views of the buffer if they use a good part of it, else copies, so that a
    /// small write in flight does not keep a large buffer alive.
    pub fn restore(&mut self, batch: Batch, need: usize, slices: &[Range<usize>]) -> Vec<Bytes> {
        self.need = need;
        let used: usize = slices.iter().map(|r| r.len()).sum();
        let Batch { mut buf, at, end } = batch;
        if slices.is_empty() || used < buf.capacity() / 4 {
            let copies = slices.iter().map(|r| copy(&buf[r.clone()])).collect();
            (self.start, self.end) = if at == end { (0, 0) } else { (at, end) };
            self.buf = Some(buf);
            return copies;
        }
        let rest = end - at;
        self.buf = None;
        if rest > 0 {
            let mut b = PageBuf::new(self.size.max(need).max(rest));
            b[..rest].copy_from_slice(&buf[at..end]);
            self.buf = Some(b);
        }
        (self.start, self.end) = (0, rest);
        buf.set_len(end);
        let whole = buf.freeze();
        slices.iter().map(|r| whole.slice(r.clone())).collect()
    }

    /// Drops everything: nothing more is parsed.
    pub fn clear(&mut self) {
        self.buf = None;
        (self.start, self.end, self.need) = (0, 0, 0);
    }
}

fn copy(data: &[u8]) -> Bytes {
    if data.len() < quarry_base::PAGE {
        Bytes::copy_from_slice(data)
    } else {
        PageBuf::copy_of(data).freeze()
    }
}
