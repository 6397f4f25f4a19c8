//! Answers to requests. Each handle is answered exactly once, in any order.

use crate::consts::*;
use crate::inflight::{Kind, Pending};
use crate::negotiate::ALLOCATION_ID;
use crate::session::Session;
use crate::{Handle, NbdErrno};
use bytes::{BufMut, Bytes};

/// A piece of what a read found, in the order of offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadPart {
    Data(Bytes),
    /// So many bytes that read as zeroes.
    Hole(u32),
}

impl ReadPart {
    fn len(&self) -> usize {
        match self {
            ReadPart::Data(d) => d.len(),
            ReadPart::Hole(n) => *n as usize,
        }
    }
}

impl Session {
    /// Answers a read. `data` together has the length that was asked for; `offset` is the request's.
    pub fn reply_read(&mut self, handle: Handle, offset: u64, data: &[Bytes]) {
        let p = self.in_flight.get(handle);
        assert!(p.offset == offset, "the answer to a read is for its offset");
        let len = data.iter().map(Bytes::len).sum();
        let p = self.read_header(handle, len);
        if self.structured() {
            self.output.chunk(p.cookie, NBD_REPLY_TYPE_OFFSET_DATA, true, 8 + p.len);
            self.output.head().put_u64(p.offset);
        }
        for d in data {
            self.output.payload(d.clone());
        }
    }

    /// Answers a read of which parts are holes; where the client can take them, they are sent as such.
    pub fn reply_read_parts(&mut self, handle: Handle, parts: &[ReadPart]) {
        let p = self.read_header(handle, parts.iter().map(ReadPart::len).sum());
        if !self.structured() {
            return self.put_parts(parts);
        }
        if matches!(p.kind, Kind::Read { df: true }) {
            self.output.chunk(p.cookie, NBD_REPLY_TYPE_OFFSET_DATA, true, 8 + p.len);
            self.output.head().put_u64(p.offset);
            return self.put_parts(parts);
        }
        let end = p.offset + p.len as u64;
        let mut at = p.offset;
        let is_hole = |x: &ReadPart| matches!(x, ReadPart::Hole(_));
        for run in parts.chunk_by(|a, b| is_hole(a) == is_hole(b)) {
            let n: usize = run.iter().map(ReadPart::len).sum();
            if n == 0 {
                continue;
            }
            let done = at + n as u64 == end;
            if run.first().is_some_and(is_hole) {
                self.output.chunk(p.cookie, NBD_REPLY_TYPE_OFFSET_HOLE, done, 12);
                let h = self.output.head();
                h.put_u64(at);
                h.put_u32(n as u32);
            } else {
                self.output.chunk(p.cookie, NBD_REPLY_TYPE_OFFSET_DATA, done, 8 + n as u32);
                self.output.head().put_u64(at);
                self.put_parts(run);
            }
            at += n as u64;
        }
    }

    /// Answers anything but a read or a block status request with success.
    pub fn reply_ok(&mut self, handle: Handle) {
        let p = self.in_flight.remove(handle);
        let payload = matches!(p.kind, Kind::Read { .. } | Kind::BlockStatus { .. });
        assert!(!payload, "a read or status request is answered with its content");
        self.output.simple(p.cookie, 0);
    }

    /// Answers with an error. `message` is for people, at most 4096 bytes are sent, and only where
    /// structured replies are agreed.
    pub fn reply_error(&mut self, handle: Handle, errno: NbdErrno, message: &str) {
        self.error(handle, errno, message, None);
    }

    /// Answers with an error found at byte `at` of the export, which lies in the request's range.
    pub fn reply_error_at(&mut self, handle: Handle, errno: NbdErrno, message: &str, at: u64) {
        let p = self.in_flight.get(handle);
        let inside = at >= p.offset && at - p.offset < p.len as u64;
        assert!(inside, "the place of an error lies in the request");
        self.error(handle, errno, message, Some(at));
    }

    /// Answers a block status request with consecutive extents (length in bytes, `NBD_STATE_*`
    /// flags) from the request's offset on. Equal neighbours are merged, what goes beyond what the
    /// specification permits is cut; with no extent the whole range counts as allocated.
    pub fn reply_block_status(&mut self, handle: Handle, extents: &[(u32, u32)]) {
        let p = self.in_flight.remove(handle);
        assert!(matches!(p.kind, Kind::BlockStatus { .. }), "extents answer a status request");
        let req_one = p.kind == Kind::BlockStatus { req_one: true };
        let (size, max_block) =
            self.open.as_ref().map_or((0, 0), |o| (o.export.size, o.export.max_block));
        let room = size.saturating_sub(p.offset).max(p.len as u64);
        let fits = max_block.saturating_sub(4) as usize / 8;
        let most = if req_one { 1 } else { fits.clamp(1, MAX_EXTENTS) };
        let limit = if req_one { p.len as u64 } else { room };
        let list = trimmed(extents, p.len, limit, most);
        let len = 4 + 8 * list.len() as u32;
        self.output.chunk(p.cookie, NBD_REPLY_TYPE_BLOCK_STATUS, true, len);
        let h = self.output.head();
        h.reserve(len as usize);
        h.put_u32(ALLOCATION_ID);
        for (len, flags) in list {
            h.put_u32(len);
            h.put_u32(flags);
        }
    }

    fn structured(&self) -> bool {
        self.open.as_ref().is_some_and(|o| o.agreed.structured)
    }

    /// Takes a read out of flight; queues the simple reply's header if that is what is agreed.
    fn read_header(&mut self, handle: Handle, len: usize) -> Pending {
        let p = self.in_flight.remove(handle);
        assert!(matches!(p.kind, Kind::Read { .. }), "data answers a read");
        assert!(len == p.len as usize, "the answer to a read has the length asked for");
        if !self.structured() {
            self.output.simple(p.cookie, 0);
        }
        p
    }

    fn put_parts(&mut self, parts: &[ReadPart]) {
        for part in parts {
            match part {
                ReadPart::Data(d) => self.output.payload(d.clone()),
                ReadPart::Hole(n) => self.output.zeroes(*n as usize),
            }
        }
    }

    fn error(&mut self, handle: Handle, errno: NbdErrno, message: &str, at: Option<u64>) {
        let p = self.in_flight.remove(handle);
        let fast = matches!(p.kind, Kind::WriteZeroes { fast: true, .. });
        let code = errno.permitted(fast, matches!(p.kind, Kind::Write { .. })).code();
        // A place makes sense only for requests that have a range.
        let at = at.filter(|_| p.len > 0);
        self.output.error(self.structured(), p.cookie, code, message, at);
    }
}

/// The extents as they may be sent: none empty, neighbours different, at most `most`, all but the
/// last inside the requested `len`, none beyond `limit`.
fn trimmed(extents: &[(u32, u32)], len: u32, limit: u64, most: usize) -> Vec<(u32, u32)> {
    let mut list: Vec<(u32, u32)> = Vec::new();
    let mut at = 0u64;
    for &(n, flags) in extents {
        if n == 0 {
            continue;
        }
        let n = (n as u64).min(limit.saturating_sub(at)) as u32;
        if n == 0 || at >= len as u64 {
            break;
        }
        at += n as u64;
        let full = list.len() == most;
        match list.last_mut() {
            Some(last) if last.1 == flags && last.0.checked_add(n).is_some() => last.0 += n,
            _ if full => break,
            _ => list.push((n, flags)),
        }
    }
    if list.is_empty() {
        list.push((len, 0));
    }
    list
}
