//! A run of pages of one block that a read wants from the disk.

use crate::medium::is_medium_error;
use crate::read::EIO;
use crate::types::BlockKey;
use quarry_base::{PageBuf, PAGE};
use smallvec::SmallVec;

/// A run of pages on disk.
pub(crate) struct Part {
    pub slot: u32,
    /// First page in the slot, and how many.
    pub page: u32,
    pub pages: u32,
    pub key: BlockKey,
    /// Segment of the answer, and the first of its CRCs and checks.
    pub seg: usize,
    pub crc_at: usize,
    pub retried: bool,
    /// The medium refused it: it is read page by page.
    singly: Option<Box<Singly>>,
    /// Pages that the medium refuses, as a mask of the block.
    pub unreadable: u16,
}

/// A part that is read page by page, so that one bad place does not take its neighbours with it.
pub(crate) struct Singly {
    buf: PageBuf,
    /// How many pages are done.
    done: u32,
}

/// How the pages of a part compare with what they must be.
pub(crate) struct Verdict {
    /// Pages that do not match, and those that cannot be read.
    pub bad: u16,
    pub unreadable: u16,
    /// One of them was replaced meanwhile.
    pub stale: bool,
    pub crcs: SmallVec<[u32; 16]>,
}

impl Part {
    /// Of a block's slot the pages from `page` on; where its answer goes.
    pub fn new(
        key: BlockKey,
        slot: u32,
        (page, pages): (u32, u32),
        seg: usize,
        crc_at: usize,
    ) -> Part {
        let (retried, singly, unreadable) = (false, None, 0);
        Part { slot, page, pages, key, seg, crc_at, retried, singly, unreadable }
    }

    pub fn is_page_by_page(&self) -> bool {
        self.singly.is_some()
    }

    pub fn crcs(&self) -> std::ops::Range<usize> {
        self.crc_at..self.crc_at + self.pages as usize
    }

    /// What is to be read of it next: the first page, and how many.
    pub fn next_read(&self) -> (u32, u32) {
        self.singly.as_ref().map_or((self.page, self.pages), |s| (self.page + s.done, 1))
    }

    /// Takes what a read brought. `Some`: the whole part, or why there is none; `None`: more is to be read.
    pub fn take(&mut self, r: Result<PageBuf, i32>) -> Option<Result<PageBuf, i32>> {
        let Some(s) = self.singly.as_mut() else {
            match r {
                Err(e) if is_medium_error(e) => {
                    let buf = PageBuf::zeroed(self.pages as usize * PAGE);
                    self.singly = Some(Box::new(Singly { buf, done: 0 }));
                    return None;
                }
                r => return Some(r),
            }
        };
        let at = s.done as usize * PAGE;
        match r {
            Ok(page) if page.len() == PAGE => s.buf[at..at + PAGE].copy_from_slice(&page),
            Ok(_) => return Some(Err(EIO)),
            Err(e) if is_medium_error(e) => self.unreadable |= 1 << (self.page + s.done),
            Err(e) => return Some(Err(e)),
        }
        s.done += 1;
        if s.done < self.pages {
            return None;
        }
        self.singly.take().map(|s| Ok(s.buf))
    }

    /// It is read once more.
    pub fn retry(&mut self) {
        (self.retried, self.unreadable) = (true, 0);
    }
}
