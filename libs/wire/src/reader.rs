//! Cuts a byte stream into frames.
//!
//! Small frames come many to a receive and share its buffer without a copy. The data of a large frame is
//! received straight into a page-aligned buffer of its own, ready for O_DIRECT.

use crate::{Frame, Header, WireError, HEADER_LEN};
use bytes::Bytes;
use quarry_base::PageBuf;

/// Where the next bytes of the stream belong: `buf[start..end]`.
#[derive(Debug)]
pub struct RecvPlan {
    pub buf: PageBuf,
    pub start: usize,
    pub end: usize,
}

/// Size of the shared receive buffer, bytes.
const CHUNK: usize = 128 << 10;
/// Data of at least this many bytes that has not arrived yet is received into its own buffer.
const DIRECT: usize = 16 << 10;

enum State {
    /// Collecting headers and small frames; this many bytes of an unfinished frame open the next buffer.
    Small { left: PageBuf },
    /// The data section of a large frame; `have` bytes are there.
    Large {
        header: Header,
        meta: Bytes,
        buf: PageBuf,
        have: usize,
    },
    /// A receive is out; the plan has the buffer.
    Out(Option<(Header, Bytes)>),
}

/// Turns received bytes into frames. After an error the connection is to be closed.
pub struct FrameReader {
    state: State,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameReader {
    /// A reader at the start of a stream.
    pub fn new() -> FrameReader {
        FrameReader {
            state: State::Small {
                left: PageBuf::new(0),
            },
        }
    }

    /// The buffer for the next receive. Give it back with [`FrameReader::received`].
    pub fn next_recv(&mut self) -> RecvPlan {
        match std::mem::replace(&mut self.state, State::Out(None)) {
            State::Small { left } => {
                let have = left.len();
                let mut buf = left;
                let want = CHUNK.max(have + DIRECT + HEADER_LEN);
                if buf.capacity() < want {
                    let mut big = PageBuf::new(want);
                    big[..have].copy_from_slice(&buf);
                    buf = big;
                }
                let cap = buf.capacity();
                buf.set_len(cap);
                RecvPlan {
                    buf,
                    start: have,
                    end: cap,
                }
            }
            State::Large {
                header,
                meta,
                buf,
                have,
            } => {
                let end = header.data_len as usize;
                self.state = State::Out(Some((header, meta)));
                RecvPlan {
                    buf,
                    start: have,
                    end,
                }
            }
            State::Out(_) => unreachable_plan(),
        }
    }

    /// Takes a buffer back with `n` new bytes in it and appends the complete frames to `out`.
    pub fn received(
        &mut self,
        plan: RecvPlan,
        n: usize,
        out: &mut Vec<Frame>,
    ) -> Result<(), WireError> {
        assert!(
            plan.start + n <= plan.end,
            "more bytes received than asked for"
        );
        let RecvPlan { mut buf, start, .. } = plan;
        let have = start + n;
        match std::mem::replace(&mut self.state, State::Out(None)) {
            State::Out(Some((header, meta))) => {
                if have < header.data_len as usize {
                    self.state = State::Large {
                        header,
                        meta,
                        buf,
                        have,
                    };
                } else {
                    buf.set_len(have);
                    out.push(Frame {
                        header,
                        meta,
                        data: buf.freeze(),
                    });
                    self.state = State::Small {
                        left: PageBuf::new(0),
                    };
                }
                Ok(())
            }
            State::Out(None) => {
                buf.set_len(have);
                self.cut(buf, out)
            }
            State::Small { .. } | State::Large { .. } => {
                assert!(n == 0, "a receive that was not planned");
                Ok(())
            }
        }
    }

    /// Cuts `buf` into frames; the rest becomes the start of the next buffer.
    fn cut(&mut self, buf: PageBuf, out: &mut Vec<Frame>) -> Result<(), WireError> {
        if buf.len() < HEADER_LEN {
            self.state = State::Small { left: buf };
            return Ok(());
        }
        let all = buf.freeze();
        let mut at = 0;
        loop {
            let rest = &all[at..];
            let Some(head) = rest.first_chunk::<HEADER_LEN>() else {
                break;
            };
            let header = Header::decode(head)?;
            let (meta_len, data_len) = (header.meta_len as usize, header.data_len as usize);
            let body = HEADER_LEN + meta_len;
            if rest.len() < body {
                break;
            }
            let meta = all.slice(at + HEADER_LEN..at + body);
            if !meta.is_empty() && quarry_base::crc32c(&meta) != header.meta_crc {
                return Err(WireError::MetaCrc);
            }
            let have = rest.len() - body;
            if have >= data_len {
                let data = all.slice(at + body..at + body + data_len);
                out.push(Frame { header, meta, data });
                at += body + data_len;
            } else if data_len - have >= DIRECT {
                let mut buf = PageBuf::new(data_len);
                buf[..have].copy_from_slice(&rest[body..]);
                let meta = Bytes::copy_from_slice(&meta);
                self.state = State::Large {
                    header,
                    meta,
                    buf,
                    have,
                };
                return Ok(());
            } else {
                break;
            }
        }
        self.state = State::Small {
            left: PageBuf::copy_of(&all[at..]),
        };
        Ok(())
    }
}

#[allow(clippy::panic)] // two receives at once on one stream is a bug of the caller, never input
fn unreachable_plan() -> RecvPlan {
    panic!("next_recv called twice without received")
}
