//! A disk in memory that knows what a sync covers: a power loss keeps what was synced and a random part of
//! the rest, page by page, sometimes a page by halves.

use crate::rng::Rng;
use bytes::Bytes;
use quarry_base::{PageBuf, PAGE};
use quarry_store::{
    format, DeviceIdent, DiskOp, DiskResult, FormatStep, OpId, StoreConfig, WriteSync,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

type Content = Box<[u8; PAGE]>;

/// How a disk lies, to prove that the checkers notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Lie {
    #[default]
    None,
    /// Says "synced" and is not.
    Sync,
}

/// One device.
#[derive(Default)]
pub struct Disk {
    durable: HashMap<u64, Content>,
    /// Newest content of pages written since, by page.
    cached: HashMap<u64, Content>,
    /// Completed, not synced, in order: number, page, content.
    loose: Vec<(u64, u64, Content)>,
    completed: u64,
    /// The last one lies over pages that are not synced.
    overlaps: bool,
    /// Handed out, not completed.
    open: BTreeMap<OpId, (DiskOp, u64)>,
    pub lie: Lie,
    /// What fails with an error.
    pub failing: Failing,
    /// Pages that the medium refuses to read until they are written anew.
    pub unreadable: BTreeSet<u64>,
}

/// Which operations of a disk end with an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Failing {
    #[default]
    Nothing,
    Reads,
    /// Writes and syncs; a failed write may be on the medium by halves.
    Writes,
}

impl Disk {
    /// A formatted device.
    pub fn formatted(cfg: &StoreConfig, ident: DeviceIdent) -> Result<Disk, String> {
        let mut d = Disk::default();
        for step in format(cfg, ident).map_err(|e| e.to_string())? {
            if let FormatStep::Write { offset, data } = step {
                for (i, p) in data.chunks(PAGE).enumerate() {
                    d.durable.insert(offset / PAGE as u64 + i as u64, page_of(p));
                }
            }
        }
        Ok(d)
    }

    /// Takes an operation; [`Disk::finish`] ends it.
    pub fn begin(&mut self, op: DiskOp) -> OpId {
        let id = op.id();
        self.open.insert(id, (op, self.completed));
        id
    }

    /// Ends an operation begun earlier. `None`: it was lost in a crash.
    pub fn finish(&mut self, id: OpId) -> Option<DiskResult> {
        let (op, covers) = self.open.remove(&id)?;
        if let Some(failed) = self.failed(&op) {
            return Some(failed);
        }
        Some(match op {
            DiskOp::Read { offset, len, .. } => DiskResult::Read(Ok(self.read(offset, len))),
            DiskOp::Write { offset, data, sync, .. } => {
                self.write(offset, &data);
                match sync {
                    WriteSync::None | WriteSync::Behind => {}
                    WriteSync::Own => self.sync_last(),
                    WriteSync::All => self.sync(self.completed),
                }
                DiskResult::Done(Ok(()))
            }
            DiskOp::Sync { .. } => {
                self.sync(covers);
                DiskResult::Done(Ok(()))
            }
            DiskOp::Discard { .. } => DiskResult::Done(Ok(())),
        })
    }

    fn failed(&mut self, op: &DiskOp) -> Option<DiskResult> {
        const EIO: i32 = 5;
        match (op, self.failing) {
            (DiskOp::Read { .. }, Failing::Reads) => Some(DiskResult::Read(Err(EIO))),
            (DiskOp::Write { offset, data, .. }, Failing::Writes) => {
                // The first pages of it may have come through.
                let kept: Vec<Bytes> = data.iter().take(data.len() / 2).cloned().collect();
                self.write(*offset, &kept);
                Some(DiskResult::Done(Err(EIO)))
            }
            (DiskOp::Sync { .. }, Failing::Writes) => Some(DiskResult::Done(Err(EIO))),
            (DiskOp::Read { offset, len, .. }, _) => {
                let from = offset / PAGE as u64;
                let mut hit = self.unreadable.range(from..from + (len / PAGE) as u64);
                hit.next().map(|_| DiskResult::Read(Err(EIO)))
            }
            _ => None,
        }
    }

    /// Operations begun and not ended.
    pub fn open_ops(&self) -> Vec<OpId> {
        self.open.keys().copied().collect()
    }

    /// Newest content.
    pub fn read(&self, offset: u64, len: usize) -> PageBuf {
        let mut b = PageBuf::zeroed(len);
        for (i, out) in b.chunks_mut(PAGE).enumerate() {
            let n = offset / PAGE as u64 + i as u64;
            if let Some(p) = self.cached.get(&n).or_else(|| self.durable.get(&n)) {
                out.copy_from_slice(&p[..out.len()]);
            }
        }
        b
    }

    fn write(&mut self, offset: u64, data: &[Bytes]) {
        self.completed += 1;
        let pages = data.iter().flat_map(|d| d.chunks(PAGE));
        self.overlaps = false;
        for (at, p) in (offset / PAGE as u64..).zip(pages) {
            self.loose.push((self.completed, at, page_of(p)));
            self.unreadable.remove(&at);
            self.overlaps |= self.cached.insert(at, page_of(p)).is_some();
        }
    }

    /// Makes the write completed last durable, and what it lies over.
    fn sync_last(&mut self) {
        if self.lie == Lie::Sync {
            return;
        }
        let n = self.loose.partition_point(|(c, _, _)| *c < self.completed);
        for (_, page, content) in self.loose.split_off(n) {
            if self.overlaps {
                self.loose.retain(|(_, p, _)| *p != page);
            }
            self.cached.remove(&page);
            self.durable.insert(page, content);
        }
    }

    fn sync(&mut self, upto: u64) {
        if self.lie == Lie::Sync {
            return;
        }
        let n = self.loose.partition_point(|(c, _, _)| *c <= upto);
        for (_, page, content) in self.loose.drain(..n) {
            self.durable.insert(page, content);
        }
        if self.loose.is_empty() {
            self.cached.clear();
        }
    }

    /// The process died: what it had begun is done, or not; nothing more is told.
    pub fn kill(&mut self, rng: &mut Rng) {
        for (op, _) in std::mem::take(&mut self.open).into_values() {
            if let DiskOp::Write { offset, data, .. } = op {
                if rng.chance(60) {
                    self.write(offset, &data);
                }
            }
        }
    }

    /// The power failed: of what was not synced a random part is there, some pages by halves.
    pub fn power_loss(&mut self, rng: &mut Rng) {
        self.kill(rng);
        let keep = rng.within(0, 100);
        for (_, page, content) in std::mem::take(&mut self.loose) {
            if !rng.chance(keep) {
                continue;
            }
            if rng.chance(3) {
                let old = self.durable.entry(page).or_insert_with(|| page_of(&[]));
                let half = 512 * rng.within(1, 7) as usize;
                old[..half].copy_from_slice(&content[..half]);
            } else {
                self.durable.insert(page, content);
            }
        }
        self.cached.clear();
    }

    /// Pages that are on the medium and nowhere else; `from..to` are bytes.
    fn at_rest(&self, from: u64, to: u64) -> Vec<u64> {
        let pages = from / PAGE as u64..to / PAGE as u64;
        let mut there: Vec<u64> =
            self.durable.keys().copied().filter(|p| pages.contains(p)).collect();
        there.retain(|p| !self.cached.contains_key(p));
        there.sort_unstable();
        there
    }

    /// A page of the data area at `from..to` that is at rest, and a page of its block that `which` names, cannot be read from
    /// now on. False: there is none.
    pub fn refuse(
        &mut self,
        from: u64,
        to: u64,
        which: impl Fn(u64) -> bool,
        rng: &mut Rng,
    ) -> bool {
        let mut there = self.at_rest(from, to);
        there.retain(|p| which((p - from / PAGE as u64) % 16));
        let page = rng.pick(&there).copied();
        self.unreadable.extend(page);
        page.is_some()
    }

    /// One bit of a page that is on the medium turns; `from..to` are bytes. False: nothing is there.
    pub fn rot(&mut self, from: u64, to: u64, rng: &mut Rng) -> bool {
        let there = self.at_rest(from, to);
        let Some(content) = rng.pick(&there).and_then(|p| self.durable.get_mut(p)) else {
            return false;
        };
        content[rng.below(PAGE as u64) as usize] ^= 1 << rng.below(8);
        true
    }

    /// Everything is on the medium.
    pub fn settle(&mut self) {
        self.open.clear();
        self.unreadable.clear();
        let lie = std::mem::take(&mut self.lie);
        self.sync(u64::MAX);
        self.lie = lie;
    }
}

fn page_of(p: &[u8]) -> Content {
    let mut c = Box::new([0; PAGE]);
    c[..p.len()].copy_from_slice(p);
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(d: &mut Disk, n: u64, page: u64, fill: u8, sync: WriteSync) {
        let data = vec![PageBuf::copy_of(&[fill; PAGE]).freeze()];
        let id = d.begin(DiskOp::Write { id: OpId(n), offset: page * PAGE as u64, data, sync });
        assert!(d.finish(id).is_some());
    }

    #[test]
    fn a_sync_covers_only_what_was_completed_before_it_began() {
        let mut d = Disk::default();
        write(&mut d, 1, 0, 1, WriteSync::None);
        let s = d.begin(DiskOp::Sync { id: OpId(2) });
        write(&mut d, 3, 1, 2, WriteSync::None);
        assert!(d.finish(s).is_some());
        assert_eq!(d.durable.len(), 1);
        assert_eq!(d.read(PAGE as u64, PAGE)[0], 2);
        write(&mut d, 4, 2, 3, WriteSync::All);
        assert_eq!(d.durable.len(), 3);
    }

    #[test]
    fn a_write_with_a_sync_of_its_own_makes_nothing_else_durable() {
        let mut d = Disk::default();
        write(&mut d, 1, 0, 1, WriteSync::None);
        write(&mut d, 2, 1, 2, WriteSync::None);
        write(&mut d, 3, 1, 3, WriteSync::Own);
        assert_eq!(d.durable.keys().copied().collect::<Vec<_>>(), [1]);
        assert_eq!((d.read(0, PAGE)[0], d.read(PAGE as u64, PAGE)[0]), (1, 3));
        for seed in 0..20 {
            d.power_loss(&mut Rng::new(seed));
            assert_eq!(d.read(PAGE as u64, PAGE)[0], 3, "what it lay over does not come back");
        }
    }

    #[test]
    fn a_power_loss_never_loses_what_was_synced() {
        for seed in 0..50 {
            let mut d = Disk::default();
            write(&mut d, 1, 0, 1, WriteSync::All);
            write(&mut d, 2, 1, 2, WriteSync::None);
            d.power_loss(&mut Rng::new(seed));
            assert_eq!(d.read(0, PAGE)[0], 1);
            assert_eq!(d.read(0, PAGE)[PAGE - 1], 1);
        }
    }
}
