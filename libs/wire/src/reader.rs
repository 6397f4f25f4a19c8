//! Cuts a byte stream into frames.
//!
//! Small frames come many to a receive and share its buffer without a copy. The data of a large frame is
//! received straight into a page-aligned buffer of its own, ready for O_DIRECT. Large frames come in
//! trains: behind one, little more than the next header is asked for, so that its data need not be moved.
//!
//! Invariants:
//! - Work is linear in the bytes received, however they are split: an unfinished frame stays where it
//!   lies until it is whole, and only bytes of the latest receive are ever moved.
//! - Lengths are checked before memory is taken for them: a connection holds one frame of the largest size at most.
//! - After an error nothing more is read: framing is lost, every further call says the same.

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
/// Data of which at least this many bytes have not arrived yet is received into its own buffer.
const DIRECT: usize = 16 << 10;
/// Bytes asked for behind a large frame: a header, its meta, and the start of the data.
const HEAD: usize = 4 << 10;

enum State {
    /// Collecting headers and small frames. `buf[..have]` is the start of one unfinished frame, which
    /// can go on when `need` bytes are there (`have < need`).
    Small { buf: Option<PageBuf>, have: usize, need: usize },
    /// The data section of a large frame; `have` bytes are there.
    Large { header: Header, meta: Bytes, buf: PageBuf, have: usize },
    /// A receive is out; the plan has the buffer.
    Out(Pending),
    /// Framing is lost.
    Broken(WireError),
}

enum Pending {
    Small { need: usize },
    Large(Header, Bytes),
}

const START: State = State::Small { buf: None, have: 0, need: HEADER_LEN };

/// Turns received bytes into frames. After an error the connection is to be closed.
pub struct FrameReader {
    state: State,
    /// The latest frame had much data.
    after_large: bool,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameReader {
    /// A reader at the start of a stream.
    pub fn new() -> FrameReader {
        FrameReader { state: START, after_large: false }
    }

    /// The buffer for the next receive. Give it back with [`FrameReader::received`]; one at a time.
    pub fn next_recv(&mut self) -> RecvPlan {
        let out = State::Out(Pending::Small { need: HEADER_LEN });
        match std::mem::replace(&mut self.state, out) {
            State::Small { buf, have, need } => {
                self.state = State::Out(Pending::Small { need });
                let want = if self.after_large { HEAD } else { CHUNK };
                let mut buf = with_room(buf, have, need, want);
                let end = if need <= want { want } else { buf.capacity() };
                buf.set_len(end);
                RecvPlan { buf, start: have, end }
            }
            State::Large { header, meta, buf, have } => {
                let end = header.data_len as usize;
                self.state = State::Out(Pending::Large(header, meta));
                RecvPlan { buf, start: have, end }
            }
            State::Broken(e) => {
                self.state = State::Broken(e);
                let buf = PageBuf::new(1);
                RecvPlan { buf, start: 0, end: 1 }
            }
            State::Out(_) => two_receives(),
        }
    }

    /// Takes a buffer back with `n` new bytes in it and appends the complete frames to `out`.
    pub fn received(
        &mut self,
        plan: RecvPlan,
        n: usize,
        out: &mut Vec<Frame>,
    ) -> Result<(), WireError> {
        assert!(plan.start + n <= plan.end, "more bytes received than asked for");
        let have = plan.start + n;
        let before = out.len();
        let next = match std::mem::replace(&mut self.state, START) {
            State::Out(Pending::Small { need }) => small(plan.buf, have, need, out),
            State::Out(Pending::Large(header, meta)) => {
                Ok(large(header, meta, plan.buf, have, out))
            }
            State::Broken(e) => Err(e),
            State::Small { .. } | State::Large { .. } => two_receives(),
        };
        match next {
            Ok(state) => {
                if matches!(state, State::Large { .. }) {
                    self.after_large = true;
                } else if let Some(last) = out.get(before..).and_then(|new| new.last()) {
                    self.after_large = last.data.len() >= DIRECT;
                }
                self.state = state;
                Ok(())
            }
            Err(e) => {
                self.state = State::Broken(e.clone());
                Err(e)
            }
        }
    }
}

/// A buffer that holds `need` bytes, better `want`, and keeps the first `have`.
fn with_room(buf: Option<PageBuf>, have: usize, need: usize, want: usize) -> PageBuf {
    match buf {
        Some(b) if b.capacity() >= need.max(want) => b,
        old => {
            let mut big = PageBuf::new(need.max(want));
            if let Some(old) = old {
                big[..have].copy_from_slice(&old[..have]);
            }
            big
        }
    }
}

/// What stands at the start of a run of bytes.
enum Step {
    /// Nothing can be done before this many bytes are there.
    Need(usize),
    /// A whole frame.
    Whole(Header),
    /// Header and meta; much of the data is missing.
    Large(Header),
}

fn look(rest: &[u8]) -> Result<Step, WireError> {
    let Some(head) = rest.first_chunk::<HEADER_LEN>() else {
        return Ok(Step::Need(HEADER_LEN));
    };
    let header = Header::decode(head)?;
    let (body, data_len) = (HEADER_LEN + header.meta_len as usize, header.data_len as usize);
    let missing = (body + data_len).saturating_sub(rest.len());
    let step = if missing == 0 {
        Step::Whole(header)
    } else if rest.len() < body && data_len >= DIRECT {
        Step::Need(body)
    } else if rest.len() >= body && missing >= DIRECT {
        Step::Large(header)
    } else {
        Step::Need(body + data_len)
    };
    if let (Step::Whole(_) | Step::Large(_), Some(meta)) = (&step, rest.get(HEADER_LEN..body)) {
        if !meta.is_empty() && quarry_base::crc32c(meta) != header.meta_crc {
            return Err(WireError::MetaCrc);
        }
    }
    Ok(step)
}

/// Cuts `buf[..have]` into frames; the rest opens the next buffer.
fn small(
    mut buf: PageBuf,
    have: usize,
    need: usize,
    out: &mut Vec<Frame>,
) -> Result<State, WireError> {
    let keep = |buf, need| Ok(State::Small { buf: Some(buf), have, need });
    if have < need {
        return keep(buf, need);
    }
    buf.set_len(have);
    let mut step = look(&buf)?;
    if let Step::Need(need) = step {
        return keep(buf, need);
    }
    let all = buf.freeze();
    let mut at = 0;
    loop {
        match step {
            Step::Whole(header) => {
                let body = at + HEADER_LEN + header.meta_len as usize;
                let end = body + header.data_len as usize;
                let meta = all.slice(at + HEADER_LEN..body);
                let data = all.slice(body..end);
                out.push(Frame { header, meta, data });
                at = end;
                step = look(&all[at..])?;
            }
            Step::Large(header) => {
                let body = at + HEADER_LEN + header.meta_len as usize;
                let there = &all[body..];
                let mut buf = PageBuf::new(header.data_len as usize);
                buf[..there.len()].copy_from_slice(there);
                return Ok(State::Large {
                    header,
                    meta: Bytes::copy_from_slice(&all[at + HEADER_LEN..body]),
                    have: there.len(),
                    buf,
                });
            }
            Step::Need(need) => {
                let rest = &all[at..];
                let buf = (!rest.is_empty()).then(|| {
                    let mut b = PageBuf::new(need.max(CHUNK));
                    b[..rest.len()].copy_from_slice(rest);
                    b
                });
                return Ok(State::Small { buf, have: rest.len(), need });
            }
        }
    }
}

fn large(
    header: Header,
    meta: Bytes,
    mut buf: PageBuf,
    have: usize,
    out: &mut Vec<Frame>,
) -> State {
    let data_len = header.data_len as usize;
    if have < data_len {
        return State::Large { header, meta, buf, have };
    }
    buf.set_len(data_len);
    let data = buf.freeze();
    out.push(Frame { header, meta, data });
    START
}

#[allow(clippy::panic)] // two receives at once on one stream is a bug of the caller, never input
fn two_receives() -> ! {
    panic!("next_recv and received must alternate")
}
