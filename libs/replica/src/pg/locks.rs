//! Ranges that new writes wait for: merges of partial pages (R22), copies of blocks (R14), repairs.
//!
//! A handful at a time, so a plain list. A lock keeps *later* writes out; whoever holds it waits itself
//! until the writes sequenced before are committed and no earlier lock overlaps.

use quarry_base::{Extent, Layer, VtreeId, BLOCK, PAGE};
use quarry_store::{BlockKey, Record, RecordKind};

/// Pages `from..to` of an extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageRange {
    pub vtree: VtreeId,
    pub layer: Layer,
    pub extent: Extent,
    pub from: u32,
    pub to: u32,
}

const PAGES_PER_BLOCK: u32 = BLOCK / PAGE as u32;

impl PageRange {
    /// The pages that a byte range touches; `len` at least 1.
    pub fn of_bytes(
        vtree: VtreeId,
        layer: Layer,
        extent: Extent,
        offset: u32,
        len: u32,
    ) -> PageRange {
        let from = offset / PAGE as u32;
        let to = (offset.saturating_add(len)).div_ceil(PAGE as u32).max(from + 1);
        PageRange { vtree, layer, extent, from, to }
    }

    pub fn of_block(k: BlockKey) -> PageRange {
        let from = u32::from(k.block) * PAGES_PER_BLOCK;
        PageRange {
            vtree: k.vtree,
            layer: k.layer,
            extent: k.extent,
            from,
            to: from + PAGES_PER_BLOCK,
        }
    }

    /// Byte offset and length inside the extent.
    pub fn bytes(&self) -> (u32, u32) {
        (self.from * PAGE as u32, (self.to - self.from) * PAGE as u32)
    }

    pub fn overlaps(&self, o: &PageRange) -> bool {
        self.extent == o.extent
            && self.from < o.to
            && o.from < self.to
            && self.vtree == o.vtree
            && self.layer == o.layer
    }

    fn key(&self, page: u32) -> BlockKey {
        BlockKey {
            vtree: self.vtree,
            layer: self.layer,
            extent: self.extent,
            block: (page / PAGES_PER_BLOCK) as u8,
        }
    }
    pub fn first_key(&self) -> BlockKey {
        self.key(self.from)
    }
    pub fn last_key(&self) -> BlockKey {
        self.key(self.to.max(1) - 1)
    }
    /// The blocks it touches.
    pub fn blocks(&self) -> impl Iterator<Item = BlockKey> + '_ {
        let (a, b) = (self.first_key().block, self.last_key().block);
        (a..=b).map(|block| BlockKey { block, ..self.first_key() })
    }
}

/// What a lock covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Span {
    Pages(PageRange),
    /// Blocks `from..to`.
    Keys {
        from: BlockKey,
        to: BlockKey,
    },
}

impl Span {
    pub fn hits(&self, r: &PageRange) -> bool {
        match self {
            Span::Pages(p) => p.overlaps(r),
            Span::Keys { from, to } => *from <= r.last_key() && r.first_key() < *to,
        }
    }

    fn overlaps(&self, o: &Span) -> bool {
        match (self, o) {
            (_, Span::Pages(p)) => self.hits(p),
            (Span::Pages(p), _) => o.hits(p),
            (Span::Keys { from: a, to: b }, Span::Keys { from: c, to: d }) => a < d && c < b,
        }
    }

    /// Does this record change something in the span?
    pub fn touched_by(&self, rec: &Record) -> bool {
        match &rec.kind {
            RecordKind::Write { vtree, layer, extent, offset, data, .. } => {
                self.hits(&PageRange::of_bytes(*vtree, *layer, *extent, *offset, data.len() as u32))
            }
            RecordKind::Zero { vtree, layer, extent, offset, len } => {
                self.hits(&PageRange::of_bytes(*vtree, *layer, *extent, *offset, *len))
            }
            RecordKind::EpochStart { .. } => false,
            RecordKind::DropVtree { vtree } => match self {
                Span::Pages(p) => p.vtree == *vtree,
                Span::Keys { from, to } => from.vtree <= *vtree && *vtree <= to.vtree,
            },
        }
    }
}

/// Name of a lock.
pub(crate) type LockId = u64;

/// The locks held in one group, oldest first.
#[derive(Default)]
pub(crate) struct Locks {
    held: Vec<(LockId, Span)>,
    next: LockId,
}

impl Locks {
    pub fn take(&mut self, span: Span) -> LockId {
        self.next += 1;
        self.held.push((self.next, span));
        self.next
    }

    pub fn release(&mut self, id: LockId) {
        self.held.retain(|(i, _)| *i != id);
    }

    pub fn holds_back(&self, r: &PageRange) -> bool {
        self.held.iter().any(|(_, s)| s.hits(r))
    }

    /// An older lock overlaps: its holder comes first.
    pub fn is_behind(&self, id: LockId, span: &Span) -> bool {
        self.held.iter().take_while(|(i, _)| *i != id).any(|(_, s)| s.overlaps(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(extent: u32, offset: u32, len: u32) -> PageRange {
        PageRange::of_bytes(VtreeId(1), Layer(0), Extent(extent), offset, len)
    }
    fn key(extent: u32, block: u8) -> BlockKey {
        BlockKey { vtree: VtreeId(1), layer: Layer(0), extent: Extent(extent), block }
    }

    #[test]
    fn byte_ranges_are_held_by_the_pages_they_touch() {
        assert_eq!((pages(0, 4095, 2).from, pages(0, 4095, 2).to), (0, 2));
        assert!(pages(0, 100, 10).overlaps(&pages(0, 4000, 10)));
        assert!(!pages(0, 0, 4096).overlaps(&pages(0, 4096, 4096)));
        assert!(!pages(0, 0, 4096).overlaps(&pages(1, 0, 4096)));
    }

    #[test]
    fn key_spans_cover_every_page_of_their_blocks() {
        let s = Span::Keys { from: key(0, 1), to: key(2, 0) };
        assert!(!s.hits(&pages(0, 0, 65_536)));
        assert!(s.hits(&pages(0, 65_535, 2)));
        assert!(s.hits(&pages(1, 1 << 19, 4096)));
        assert!(!s.hits(&pages(2, 0, 4096)));
        assert!(Span::Pages(PageRange::of_block(key(0, 1))).hits(&pages(0, 65_536, 1)));
    }

    #[test]
    fn an_older_lock_comes_first() {
        let mut l = Locks::default();
        let a = l.take(Span::Pages(pages(0, 0, 4096)));
        let span = Span::Pages(PageRange::of_block(key(0, 0)));
        let b = l.take(span);
        assert!(l.is_behind(b, &span));
        assert!(!l.is_behind(a, &Span::Pages(pages(0, 0, 4096))));
        l.release(a);
        assert!(!l.is_behind(b, &span));
        assert!(l.holds_back(&pages(0, 60_000, 1)));
        l.release(b);
        assert!(!l.holds_back(&pages(0, 60_000, 1)));
    }
}
