//! Requests of the transmission phase: decoding, and every reason to refuse one.

use crate::consts::*;
use crate::inflight::{Kind, Pending};
use crate::{Export, NbdErrno};

/// A request's header as it is on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

impl Header {
    /// Decodes a header; `None` if the magic is wrong.
    pub fn decode(b: &[u8; REQUEST_HEADER]) -> Option<Header> {
        let n = |from: usize, to: usize| b[from..to].iter().fold(0u64, |a, &x| (a << 8) | x as u64);
        if n(0, 4) != NBD_REQUEST_MAGIC as u64 {
            return None;
        }
        Some(Header {
            flags: n(4, 6) as u16,
            command: n(6, 8) as u16,
            cookie: n(8, 16),
            offset: n(16, 24),
            len: n(24, 28) as u32,
        })
    }

    /// Bytes that follow the header.
    pub fn payload(&self) -> u32 {
        if self.command == NBD_CMD_WRITE {
            self.len
        } else {
            0
        }
    }
}

/// An error to answer, with words for people.
pub(crate) type Refusal = (NbdErrno, &'static str);

/// What has been agreed, as far as it decides about requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agreed {
    pub structured: bool,
    pub allocation: bool,
    pub shutdown: bool,
}

/// Decides whether a request (not `DISC`) may be carried out.
pub(crate) fn check(h: &Header, e: &Export, a: Agreed) -> Result<Pending, Refusal> {
    let kind = kind(h, a)?;
    let pending = Pending { cookie: h.cookie, kind, offset: h.offset, len: h.len };
    if a.shutdown {
        return Err((NbdErrno::Eshutdown, "the server is shutting down"));
    }
    if kind == Kind::Flush {
        if h.offset != 0 || h.len != 0 {
            return Err((NbdErrno::Einval, "a flush has no offset and no length"));
        }
        return Ok(pending);
    }
    let modifies =
        matches!(kind, Kind::Write { .. } | Kind::Trim { .. } | Kind::WriteZeroes { .. });
    if modifies && e.read_only {
        return Err((NbdErrno::Eperm, "the export is read-only"));
    }
    check_range(h, e, kind)?;
    check_size(h, e, kind, a)?;
    Ok(pending)
}

/// The command and its flags.
fn kind(h: &Header, a: Agreed) -> Result<Kind, Refusal> {
    let has = |flag| h.flags & flag != 0;
    let fua = has(NBD_CMD_FLAG_FUA);
    let (kind, own) = match h.command {
        NBD_CMD_READ => {
            let df = if a.structured { NBD_CMD_FLAG_DF } else { 0 };
            (Kind::Read { df: has(NBD_CMD_FLAG_DF) }, df)
        }
        NBD_CMD_WRITE => (Kind::Write { fua }, 0),
        NBD_CMD_FLUSH => (Kind::Flush, 0),
        NBD_CMD_TRIM => (Kind::Trim { fua }, 0),
        NBD_CMD_CACHE => (Kind::Cache, 0),
        NBD_CMD_WRITE_ZEROES => {
            let (no_hole, fast) = (has(NBD_CMD_FLAG_NO_HOLE), has(NBD_CMD_FLAG_FAST_ZERO));
            let own = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
            (Kind::WriteZeroes { fua, no_hole, fast }, own)
        }
        NBD_CMD_BLOCK_STATUS => {
            (Kind::BlockStatus { req_one: has(NBD_CMD_FLAG_REQ_ONE) }, NBD_CMD_FLAG_REQ_ONE)
        }
        _ => return Err((NbdErrno::Einval, "unknown command")),
    };
    // FUA is valid on every command once the server offers it; it means nothing on most.
    if h.flags & !(own | NBD_CMD_FLAG_FUA) != 0 {
        return Err((NbdErrno::Einval, "a flag that this command does not have"));
    }
    if h.command == NBD_CMD_BLOCK_STATUS && !a.allocation {
        return Err((NbdErrno::Einval, "no metadata context was selected"));
    }
    Ok(kind)
}

fn check_range(h: &Header, e: &Export, kind: Kind) -> Result<(), Refusal> {
    let end = h.offset.checked_add(h.len as u64);
    let Some(end) = end.filter(|&end| end <= e.size) else {
        let errno = match kind {
            Kind::Write { .. } | Kind::WriteZeroes { .. } => NbdErrno::Enospc,
            _ => NbdErrno::Einval,
        };
        return Err((errno, "the range goes beyond the end of the export"));
    };
    // The last block of an export may be short.
    let mask = e.min_block.max(1) as u64 - 1;
    if h.offset & mask != 0 || (end & mask != 0 && end != e.size) {
        return Err((NbdErrno::Einval, "the range is not aligned to the minimum block size"));
    }
    Ok(())
}

fn check_size(h: &Header, e: &Export, kind: Kind, a: Agreed) -> Result<(), Refusal> {
    let too_long = "the request is longer than the maximum payload size";
    match kind {
        Kind::Read { .. } if h.len > e.max_block && a.structured => {
            Err((NbdErrno::Eoverflow, too_long))
        }
        Kind::Read { .. } | Kind::Write { .. } if h.len > e.max_block => {
            Err((NbdErrno::Einval, too_long))
        }
        // The specification leaves zero lengths open; there is no status without an extent.
        Kind::BlockStatus { .. } if h.len == 0 => {
            Err((NbdErrno::Einval, "a block status request needs a length"))
        }
        _ => Ok(()),
    }
}
