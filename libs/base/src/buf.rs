//! Page-aligned buffers with a per-thread pool.
//!
//! O_DIRECT wants memory aligned to the device's block; allocating and faulting in large buffers a
//! request would cost more than the request. A [`PageBuf`] is a run of 4 KiB-aligned pages that goes
//! back to the free list of the thread that drops it; frozen into [`bytes::Bytes`] it is shared
//! without copying and returns when the last slice is gone.
//!
//! A recycled buffer holds old content: whoever takes one writes before reading what they use.

use bytes::Bytes;
use std::cell::RefCell;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes in a page, the unit of checksums and of atomicity: 4 KiB.
pub const PAGE: usize = 4096;

/// Size classes kept in the pool: 1 page to 2^10 pages (4 MiB).
const CLASSES: usize = 11;
/// Bytes of free buffers a thread keeps in each class at most.
const KEEP_BYTES: usize = 32 << 20;

/// One aligned page.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; PAGE]);

thread_local! {
    static POOL: RefCell<[Vec<Box<[Page]>>; CLASSES]> = RefCell::new(std::array::from_fn(|_| Vec::new()));
}

/// An owned, page-aligned buffer of whole pages.
pub struct PageBuf {
    pages: Box<[Page]>,
    /// Bytes in use, from the start. At most the capacity.
    len: usize,
}

fn class_of(pages: usize) -> usize {
    pages.max(1).next_power_of_two().trailing_zeros() as usize
}

impl PageBuf {
    /// A buffer of `len` bytes in use, capacity rounded up to a power of two of pages.
    /// The content is whatever an earlier use left there.
    pub fn new(len: usize) -> PageBuf {
        let class = class_of(len.div_ceil(PAGE));
        let recycled = if class < CLASSES {
            POOL.try_with(|p| p.try_borrow_mut().ok().and_then(|mut p| p[class].pop()))
                .ok()
                .flatten()
        } else {
            None
        };
        let pages = recycled.unwrap_or_else(|| alloc(1 << class));
        PageBuf { pages, len }
    }

    /// A buffer of `len` bytes, all zero.
    pub fn zeroed(len: usize) -> PageBuf {
        let mut b = PageBuf::new(len);
        b.fill(0);
        b
    }

    /// A buffer holding a copy of `data`.
    pub fn copy_of(data: &[u8]) -> PageBuf {
        let mut b = PageBuf::new(data.len());
        b.copy_from_slice(data);
        b
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// Changes the number of bytes in use, at most the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "PageBuf::set_len beyond capacity");
        self.len = len;
    }

    /// Shares the bytes in use without copying.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

fn alloc(pages: usize) -> Box<[Page]> {
    match <[Page]>::new_box_zeroed_with_elems(pages) {
        Ok(b) => b,
        // Same behaviour as any Rust allocation: the process cannot go on.
        Err(_) => std::alloc::handle_alloc_error(std::alloc::Layout::new::<Page>()),
    }
}

impl std::ops::Deref for PageBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.len]
    }
}
impl std::ops::DerefMut for PageBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let n = self.len;
        &mut self.pages.as_mut_bytes()[..n]
    }
}
impl AsRef<[u8]> for PageBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}
impl std::fmt::Debug for PageBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageBuf({} of {})", self.len, self.capacity())
    }
}

impl Drop for PageBuf {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        if pages.is_empty() {
            return;
        }
        let class = class_of(pages.len());
        if class >= CLASSES {
            return;
        }
        // At thread end the pool is gone already; the buffer is then simply freed.
        let _gone = POOL.try_with(|p| {
            if let Ok(mut p) = p.try_borrow_mut() {
                let limit = (KEEP_BYTES / (PAGE << class)).max(4);
                if p[class].len() < limit {
                    p[class].push(pages);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_page_aligned_and_recycled() {
        let b = PageBuf::copy_of(&[7u8; 10_000]);
        assert_eq!(b.as_ptr() as usize % PAGE, 0);
        assert_eq!(b.capacity(), 16_384);
        let p = b.as_ptr();
        drop(b);
        let c = PageBuf::new(12_000);
        assert_eq!(c.as_ptr(), p, "same thread, same class: the buffer comes back");
        assert_eq!(c[0], 7, "recycled content is not cleared");
        assert!(PageBuf::zeroed(12_000).iter().all(|&x| x == 0));
    }

    #[test]
    fn frozen_buffers_share_without_copying_and_keep_alignment() {
        let b = PageBuf::copy_of(&[1u8; 8192]);
        let p = b.as_ptr();
        let f = b.freeze();
        let tail = f.slice(4096..);
        assert_eq!(f.as_ptr(), p);
        assert_eq!(tail.as_ptr() as usize % PAGE, 0);
    }
}
