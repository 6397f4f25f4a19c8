//! Carries the stores' disk operations out and measures them.
//!
//! Every operation submitted completes exactly once (the reactor's promise); its token is its slot here.

use crate::format::FormatOp;
use crate::metrics::DeviceMetrics;
use crate::times::{units, Awake, Recent};
use bytes::Bytes;
use quarry_base::{Nanos, PageBuf, PAGE};
use quarry_ring::{FileId, Reactor};
use quarry_store::{DiskOp, DiskResult, OpId, WriteSync};
use slab::Slab;
use std::time::Duration;

/// Whose operation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Format,
    Store(OpId),
}

#[derive(Clone, Copy)]
enum Kind {
    Read,
    Write,
    WriteSync,
    Sync,
    Discard,
}

struct Pending {
    device: usize,
    owner: Owner,
    kind: Kind,
    started: Nanos,
    /// By the clock that stands still while this thread does not run.
    awake: Duration,
    /// What was under way on the device then, in units, with this one.
    depth: u64,
    bytes: u64,
}

/// A completed operation.
pub struct Done {
    /// Index of the device.
    pub device: usize,
    pub owner: Owner,
    pub result: DiskResult,
    /// A write or a sync that failed, with this errno: what the device holds is not known any more.
    pub lost: Option<i32>,
}

/// Operations under way on all devices.
#[derive(Default)]
pub struct Disks {
    pending: Slab<Pending>,
    awake: Awake,
    /// By device: what is under way, in units, and the last operations.
    times: Vec<(u64, Recent)>,
}

/// Where an operation goes.
pub struct Target<'a> {
    /// Index of the device.
    pub device: usize,
    pub file: FileId,
    /// Buffers must be aligned.
    pub direct: bool,
    pub metrics: &'a DeviceMetrics,
}

impl Disks {
    /// Operations not completed.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// The thread runs now; to be called in every turn.
    pub fn look(&mut self, now: Nanos) {
        self.awake.look(now);
    }

    /// When the next look is due: while something is under way.
    pub fn next_look(&self) -> Option<Nanos> {
        (!self.pending.is_empty()).then(|| self.awake.next())
    }

    /// Median time of a device's last writes and syncs in microseconds, and their number.
    pub fn median(&mut self, now: Nanos, device: usize) -> Option<(u64, u64)> {
        self.times.get_mut(device)?.1.median(now)
    }

    fn token(
        &mut self,
        reactor: &Reactor,
        device: usize,
        owner: Owner,
        kind: Kind,
        bytes: usize,
    ) -> u64 {
        let (started, bytes) = (reactor.now(), bytes as u64);
        if self.times.len() <= device {
            self.times.resize_with(device + 1, Default::default);
        }
        let depth = self.times.get_mut(device).map_or(1, |t| {
            t.0 += units(bytes);
            t.0
        });
        let awake = self.awake.time();
        self.pending.insert(Pending { device, owner, kind, started, awake, depth, bytes }) as u64
    }

    /// Starts an operation of a store.
    pub fn submit(&mut self, reactor: &mut Reactor, to: &Target<'_>, op: DiskOp) {
        let owner = Owner::Store(op.id());
        match op {
            DiskOp::Read { offset, len, .. } => {
                let token = self.token(reactor, to.device, owner, Kind::Read, len);
                reactor.read_at(to.file, offset, PageBuf::new(len), len, token);
            }
            DiskOp::Write { offset, mut data, sync, .. } => {
                if to.direct && !data.iter().all(is_aligned) {
                    to.metrics.copied.inc();
                    data = vec![gather(&data)];
                }
                let bytes = data.iter().map(Bytes::len).sum();
                let kind = match sync {
                    WriteSync::None | WriteSync::Behind => Kind::Write,
                    WriteSync::Own | WriteSync::All => Kind::WriteSync,
                };
                let token = self.token(reactor, to.device, owner, kind, bytes);
                match sync {
                    WriteSync::None => reactor.write_vectored_at(to.file, offset, data, token),
                    WriteSync::Behind => reactor.write_behind_at(to.file, offset, data, token),
                    WriteSync::Own => reactor.write_durable_at(to.file, offset, data, token),
                    WriteSync::All => reactor.write_then_sync(to.file, offset, data, token),
                }
            }
            DiskOp::Sync { .. } => {
                let token = self.token(reactor, to.device, owner, Kind::Sync, 0);
                reactor.fdatasync(to.file, token);
            }
            DiskOp::Discard { offset, len, .. } => {
                let token = self.token(reactor, to.device, owner, Kind::Discard, 0);
                reactor.discard(to.file, offset, len, token);
            }
        }
    }

    /// Starts a step of formatting.
    pub fn submit_format(&mut self, reactor: &mut Reactor, to: &Target<'_>, op: FormatOp) {
        match op {
            FormatOp::Write { offset, data } => {
                let token = self.token(reactor, to.device, Owner::Format, Kind::Write, data.len());
                reactor.write_at(to.file, offset, data, token);
            }
            FormatOp::Sync => {
                let token = self.token(reactor, to.device, Owner::Format, Kind::Sync, 0);
                reactor.fdatasync(to.file, token);
            }
        }
    }

    /// Takes a completion. `metrics`: those of each device.
    pub fn complete(
        &mut self,
        now: Nanos,
        token: u64,
        result: DiskResult,
        metrics: &[DeviceMetrics],
    ) -> Option<Done> {
        let p = self.pending.try_remove(usize::try_from(token).ok()?)?;
        if let Some((under_way, recent)) = self.times.get_mut(p.device) {
            *under_way = under_way.saturating_sub(units(p.bytes));
            if matches!(p.kind, Kind::Write | Kind::WriteSync | Kind::Sync) {
                recent.note(now, self.awake.time().saturating_sub(p.awake), p.depth);
            }
        }
        if let Some(m) = metrics.get(p.device) {
            let nanos = u64::try_from(now.since(p.started).as_nanos()).unwrap_or(u64::MAX);
            let (histo, moved) = match p.kind {
                Kind::Read => (&m.read, Some(&m.read_bytes)),
                Kind::Write => (&m.write, Some(&m.write_bytes)),
                Kind::WriteSync => (&m.write_sync, Some(&m.write_bytes)),
                Kind::Sync => (&m.sync, None),
                Kind::Discard => (&m.discard, None),
            };
            histo.record(nanos);
            match (&result, moved) {
                (DiskResult::Read(Ok(_)) | DiskResult::Done(Ok(())), Some(c)) => c.add(p.bytes),
                (DiskResult::Read(Err(_)) | DiskResult::Done(Err(_)), _)
                    if !matches!(p.kind, Kind::Discard) =>
                {
                    m.errors.inc();
                }
                _ => {}
            }
        }
        let lost = match (&result, p.kind) {
            (DiskResult::Done(Err(errno)), Kind::Write | Kind::WriteSync | Kind::Sync) => {
                Some(*errno)
            }
            _ => None,
        };
        Some(Done { device: p.device, owner: p.owner, result, lost })
    }
}

fn is_aligned(piece: &Bytes) -> bool {
    (piece.as_ptr() as usize).is_multiple_of(PAGE) && piece.len().is_multiple_of(PAGE)
}

/// The pieces one after another in one aligned buffer.
pub(crate) fn gather(pieces: &[Bytes]) -> Bytes {
    let mut all = PageBuf::new(pieces.iter().map(Bytes::len).sum());
    let mut at = 0;
    for p in pieces {
        all[at..at + p.len()].copy_from_slice(p);
        at += p.len();
    }
    all.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_o_direct_would_refuse_are_gathered() {
        let page = PageBuf::copy_of(&[7; PAGE]).freeze();
        let off = PageBuf::copy_of(&[9; 2 * PAGE]).freeze().slice(16..16 + PAGE);
        assert!(is_aligned(&page) && !is_aligned(&off));
        let all = gather(&[page, off]);
        assert!(is_aligned(&all));
        assert!(all[..PAGE].iter().all(|b| *b == 7) && all[PAGE..].iter().all(|b| *b == 9));
    }
}
