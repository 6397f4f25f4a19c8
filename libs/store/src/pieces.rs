//! Reads of recovery that the medium refuses: done again in smaller pieces, down to single pages.
//!
//! A page that cannot be read then counts as one with a wrong checksum, not as a blank one: what lies in one place of two
//! (a superblock, a side of the table that does not count) or in no record costs nothing, and everything else is
//! judged by the rules for damage. It never counts as torn: where the log would end at such a page, what was acknowledged may lie
//! there, and the device does not open. Many such pages are no longer a bad place but a bad device.

use crate::error::StoreError;
use crate::superblock::mark_unreadable;
use quarry_base::{PageBuf, PAGE};
use std::collections::{BTreeSet, HashMap, VecDeque};

/// A refused read is done again in so many pieces.
const PARTS: usize = 16;
/// Pages that cannot be read beyond which the device does not open, 1 MiB. Each may take a disk seconds.
const MAX_UNREADABLE: usize = 256;

/// A read, or a piece of one.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Fetch {
    /// Which read of its phase.
    pub tag: u64,
    /// Where the read begins on the device, and its length.
    offset: u64,
    whole: usize,
    /// The piece: where in the read, and its length.
    at: usize,
    pub len: usize,
}

impl Fetch {
    pub fn new(tag: u64, offset: u64, len: usize) -> Fetch {
        Fetch { tag, offset, whole: len, at: 0, len }
    }
    /// Where on the device.
    pub fn place(&self) -> u64 {
        self.offset + self.at as u64
    }
    pub fn is_whole(&self) -> bool {
        self.len == self.whole
    }
}

struct Read {
    buf: PageBuf,
    /// Bytes that are not here yet.
    missing: usize,
}

#[derive(Default)]
pub(crate) struct Pieces {
    reads: HashMap<u64, Read>,
    /// Where on the device pages cannot be read.
    unreadable: BTreeSet<u64>,
    errno: i32,
}

impl Pieces {
    /// A read or a piece has come: the whole, once it is together.
    pub fn came(&mut self, f: Fetch, buf: PageBuf) -> Option<PageBuf> {
        if f.is_whole() {
            self.reads.remove(&f.tag);
            return Some(buf);
        }
        self.put(f, &buf)
    }

    fn put(&mut self, f: Fetch, bytes: &[u8]) -> Option<PageBuf> {
        let r = self.reads.get_mut(&f.tag)?;
        let n = f.len.min(bytes.len());
        r.buf[f.at..f.at + n].copy_from_slice(&bytes[..n]);
        r.missing -= f.len;
        if r.missing > 0 {
            return None;
        }
        self.reads.remove(&f.tag).map(|r| r.buf)
    }

    /// The medium refuses a read or a piece. A longer one goes into `todo` in pieces; the whole, if this was the last page
    /// of it.
    ///
    /// Errors: too many pages cannot be read.
    pub fn refused(
        &mut self,
        f: Fetch,
        errno: i32,
        todo: &mut VecDeque<Fetch>,
    ) -> Result<Option<PageBuf>, StoreError> {
        if f.is_whole() && !self.reads.contains_key(&f.tag) {
            let (buf, missing) = (PageBuf::zeroed(f.len), f.len);
            self.reads.insert(f.tag, Read { buf, missing });
            if f.len == PAGE {
                // Too much hangs on it to be lost by one refusal.
                todo.push_back(f);
                return Ok(None);
            }
        }
        if f.len > PAGE {
            let step = (f.len / PARTS).next_multiple_of(PAGE);
            let starts = (f.at..f.at + f.len).step_by(step);
            let end = f.at + f.len;
            todo.extend(starts.map(|at| Fetch { at, len: step.min(end - at), ..f }));
            return Ok(None);
        }
        self.errno = errno;
        self.unreadable.insert(f.place());
        if self.unreadable.len() > MAX_UNREADABLE {
            return Err(StoreError::Io { what: "too many reads at open", errno });
        }
        let mut page = [0; PAGE];
        mark_unreadable(&mut page);
        Ok(self.put(f, &page))
    }

    /// Pages that cannot be read.
    pub fn unreadable(&self) -> usize {
        self.unreadable.len()
    }

    /// Those in `from..to` of the device.
    pub fn within(&self, from: u64, to: u64) -> impl Iterator<Item = u64> + '_ {
        self.unreadable.range(from..to).copied()
    }

    /// What to say of a device of which something that cannot be read is missing.
    pub fn cause(&self) -> Option<StoreError> {
        let errno = self.errno;
        (!self.unreadable.is_empty()).then_some(StoreError::Io { what: "a read at open", errno })
    }
}
