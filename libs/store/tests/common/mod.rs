//! A seeded random source and a simulated disk with a volatile cache.
#![allow(dead_code)]

pub mod model;
pub mod parts;
pub mod rig;
pub mod verify;
pub mod world;

use bytes::Bytes;
use quarry_base::{crc32c, PageBuf};
use quarry_store::{DiskOp, DiskResult, FormatStep, OpId, WriteSync};

/// splitmix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
    /// `0..n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A way in which the disk breaks its promises, planted to see the checks catch it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// No sync does anything.
    AllSyncs,
    /// The sync linked to a write does nothing.
    LinkedSyncs,
    /// A sync of its own does nothing.
    PlainSyncs,
    /// Syncs never cover writes in this range of offsets.
    Range(u64, u64),
    /// One synced write in this many was never done.
    LostWrite(u64),
}

/// Something that happens to a disk once, and that it may or may not own up to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mishap {
    /// A write, a sync or a read fails with EIO. What a failed sync should have covered is gone.
    EioWrite,
    EioSync,
    EioRead,
    /// A write outside of the log is reported done and was not.
    LostWrite,
    /// A write outside of the log lands elsewhere outside of the log.
    Misdirected,
    /// A bit flips in what is durable. The world does this itself, see `World::rot`.
    Rot,
}

enum InFlight {
    Op(DiskOp),
    Sync(OpId, Sync, bool),
}

/// What of the completed writes a sync covers.
#[derive(Clone, Copy)]
enum Sync {
    /// Those up to this number.
    Upto(u64),
    /// Those above the first number and up to the second.
    Own(u64, u64),
}

/// Completed writes are visible to reads at once; they survive a crash for sure only once synced.
pub struct SimDisk {
    pub durable: Vec<u8>,
    pub now: Vec<u8>,
    /// Completed and not synced: number, offset, data.
    dirty: Vec<(u64, u64, Bytes)>,
    done: u64,
    flight: Vec<InFlight>,
    pub lie: Option<Lie>,
    /// What happens after so many more operations of its kind.
    pub mishap: Option<(Mishap, u64)>,
    /// It has happened.
    pub happened: bool,
    /// Never hit by a mishap: the log, whose last batch nothing but itself vouches for.
    pub spared: std::ops::Range<u64>,
    /// Now and then it refuses to read several pages together. The same again, or one of them, it reads.
    pub flaky: bool,
    refused: std::collections::HashSet<(u64, usize)>,
}

impl SimDisk {
    pub fn new(bytes: u64) -> SimDisk {
        SimDisk {
            durable: vec![0; bytes as usize],
            now: vec![0; bytes as usize],
            dirty: Vec::new(),
            done: 0,
            flight: Vec::new(),
            lie: None,
            mishap: None,
            happened: false,
            spared: 0..0,
            flaky: false,
            refused: Default::default(),
        }
    }

    /// A disk with this content.
    pub fn of(content: Vec<u8>) -> SimDisk {
        let mut d = SimDisk::new(0);
        (d.durable, d.now) = (content.clone(), content);
        d
    }

    /// Does this operation meet its fate?
    fn strikes(&mut self, kinds: &[Mishap], offset: u64) -> Option<Mishap> {
        let (m, left) = self.mishap?;
        if !kinds.contains(&m) || self.spared.contains(&offset) {
            return None;
        }
        if left > 0 {
            self.mishap = Some((m, left - 1));
            return None;
        }
        (self.mishap, self.happened) = (None, true);
        Some(m)
    }

    /// Somewhere else, not in what is spared.
    fn elsewhere(&self, rng: &mut Rng, len: u64) -> u64 {
        loop {
            let at = rng.below((self.now.len() as u64 - len) / 4096) * 4096;
            if at + len <= self.spared.start || at >= self.spared.end {
                return at;
            }
        }
    }

    pub fn run_format(&mut self, steps: Vec<FormatStep>) {
        for s in steps {
            match s {
                FormatStep::Zero { offset, len } => {
                    self.durable[offset as usize..(offset + len) as usize].fill(0)
                }
                FormatStep::Write { offset, data } => self.durable
                    [offset as usize..offset as usize + data.len()]
                    .copy_from_slice(&data),
                FormatStep::Sync => {}
            }
        }
        self.now.clone_from(&self.durable);
    }

    pub fn submit(&mut self, ops: &mut Vec<DiskOp>) {
        for op in ops.drain(..) {
            self.flight.push(match op {
                DiskOp::Sync { id } => InFlight::Sync(id, Sync::Upto(self.done), false),
                op => InFlight::Op(op),
            });
        }
    }

    pub fn in_flight(&self) -> usize {
        self.flight.len()
    }

    /// Executes one operation in flight, any of them. The completion, unless a sync follows.
    pub fn step(&mut self, rng: &mut Rng) -> Option<(OpId, DiskResult)> {
        if self.flight.is_empty() {
            return None;
        }
        let i = rng.below(self.flight.len() as u64) as usize;
        match self.flight.swap_remove(i) {
            InFlight::Sync(id, what, linked) => {
                if self.strikes(&[Mishap::EioSync], u64::MAX).is_some() {
                    // The kernel has dropped the pages: another sync would find nothing to write.
                    self.dirty.clear();
                    return Some((id, DiskResult::Done(Err(5))));
                }
                self.sync(what, linked);
                Some((id, DiskResult::Done(Ok(()))))
            }
            InFlight::Op(DiskOp::Read { id, offset, len }) => {
                let at = offset as usize;
                if self.flaky && len > 4096 && !self.refused.remove(&(offset, len)) && rng.one_in(3)
                {
                    self.refused.insert((offset, len));
                    return Some((id, DiskResult::Read(Err(5))));
                }
                if self.strikes(&[Mishap::EioRead], offset).is_some() {
                    return Some((id, DiskResult::Read(Err(5))));
                }
                Some((id, DiskResult::Read(Ok(PageBuf::copy_of(&self.now[at..at + len])))))
            }
            InFlight::Op(DiskOp::Write { id, offset, data, sync }) => {
                let mut at = offset;
                if self.strikes(&[Mishap::EioWrite], u64::MAX).is_some() {
                    return Some((id, DiskResult::Done(Err(5))));
                }
                let len = data.iter().map(|d| d.len() as u64).sum();
                match self.strikes(&[Mishap::LostWrite, Mishap::Misdirected], offset) {
                    Some(Mishap::LostWrite) => return Some((id, DiskResult::Done(Ok(())))),
                    Some(_) => at = self.elsewhere(rng, len),
                    None => {}
                }
                let before = self.done;
                for d in data {
                    assert!(
                        at % 4096 == 0
                            && d.len() % 4096 == 0
                            && (d.as_ptr() as usize).is_multiple_of(4096)
                    );
                    self.now[at as usize..at as usize + d.len()].copy_from_slice(&d);
                    self.done += 1;
                    let len = d.len() as u64;
                    self.dirty.push((self.done, at, d));
                    at += len;
                }
                let what = match sync {
                    WriteSync::None | WriteSync::Behind => {
                        return Some((id, DiskResult::Done(Ok(()))))
                    }
                    WriteSync::Own => Sync::Own(before, self.done),
                    WriteSync::All => Sync::Upto(self.done),
                };
                self.flight.push(InFlight::Sync(id, what, true));
                None
            }
            InFlight::Op(op) => Some((op.id(), DiskResult::Done(Ok(())))),
        }
    }

    fn sync(&mut self, what: Sync, linked: bool) {
        match self.lie {
            Some(Lie::AllSyncs) => return,
            Some(Lie::LinkedSyncs) if linked => return,
            Some(Lie::PlainSyncs) if !linked => return,
            _ => {}
        }
        let (durable, lie) = (&mut self.durable, self.lie);
        // Where the device has it to itself, what it lies over is of no account any more.
        let own: Vec<(u64, u64)> = match what {
            Sync::Own(from, to) => {
                let of = self.dirty.iter().filter(|(n, ..)| *n > from && *n <= to);
                of.map(|(_, at, d)| (*at, *at + d.len() as u64)).collect()
            }
            Sync::Upto(_) => Vec::new(),
        };
        let covered = |n: u64, at: u64, len: usize| match what {
            Sync::Upto(upto) => n <= upto,
            Sync::Own(_, to) => n <= to && own.iter().any(|(a, b)| at < *b && *a < at + len as u64),
        };
        self.dirty.retain(|(n, at, d)| {
            let spared = match lie {
                Some(Lie::Range(from, to)) => *at >= from && *at < to,
                Some(Lie::LostWrite(k)) => n % k == 0,
                _ => false,
            };
            let covered = covered(*n, *at, d.len());
            if covered && !spared {
                durable[*at as usize..*at as usize + d.len()].copy_from_slice(d);
            }
            !covered || spared
        });
    }

    /// Power loss: of what was not synced, any 512-byte sector may or may not be there.
    pub fn power_loss(&mut self, rng: &mut Rng) {
        let mut writes: Vec<(u64, Bytes)> =
            self.dirty.drain(..).map(|(_, at, d)| (at, d)).collect();
        if matches!(self.lie, Some(Lie::LostWrite(_) | Lie::Range(..))) {
            writes.clear();
        }
        for f in self.flight.drain(..) {
            if let InFlight::Op(DiskOp::Write { offset, data, .. }) = f {
                let mut at = offset;
                for d in data {
                    let len = d.len() as u64;
                    writes.push((at, d));
                    at += len;
                }
            }
        }
        // All, none, by writes, by pages, by sectors.
        let mode = rng.below(5);
        for (at, d) in writes {
            let unit = match mode {
                0 => continue,
                1 | 2 => d.len(),
                3 => 4096,
                _ => 512,
            };
            for (i, part) in d.chunks(unit).enumerate() {
                if mode == 1 || rng.one_in(2) {
                    let from = at as usize + i * unit;
                    self.durable[from..from + part.len()].copy_from_slice(part);
                }
            }
        }
        self.now.clone_from(&self.durable);
    }

    /// Power loss that takes everything not synced.
    pub fn lose_unsynced(&mut self) {
        self.flight.clear();
        self.dirty.clear();
        self.now.clone_from(&self.durable);
    }

    /// Flips a bit, in what is read and in what is durable.
    pub fn rot(&mut self, offset: u64) {
        self.now[offset as usize] ^= 4;
        self.durable[offset as usize] ^= 4;
    }

    /// The process dies, the machine lives: what was written stays visible but is not durable.
    pub fn process_kill(&mut self) {
        self.flight.clear();
    }
}

/// The superblock at `at` as a later format version would have it.
pub fn reversion(disk: &mut SimDisk, at: usize, version: u32) {
    let mut page = disk.durable[at..at + 4096].to_vec();
    page[8..12].copy_from_slice(&version.to_le_bytes());
    let mut mix = [0u8; 16];
    mix[..4].copy_from_slice(&crc32c(&page[..12]).to_le_bytes());
    mix[4..8].copy_from_slice(&crc32c(&page[16..]).to_le_bytes());
    mix[8..].copy_from_slice(&4096u64.to_le_bytes());
    page[12..16].copy_from_slice(&crc32c(&mix).to_le_bytes());
    disk.durable[at..at + 4096].copy_from_slice(&page);
    disk.lose_unsynced();
}
