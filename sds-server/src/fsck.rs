//! `sds-server check` and `sds-server dump`: looks at a device that no server has open.
//!
//! The device is opened as a server would (the same recovery), but nothing is written unless `--repair` says so;
//! then every block is read and compared with its checksum. A device in use is refused by its lock.

use crate::device::{look, open_file};
use crate::error::SdsError;
use crate::state::to_hex;
use crate::tool::{direct, no_directory, reactor};
use bytes::Bytes;
use quarry_base::units::show_size;
use quarry_base::{Nanos, PageBuf, PAGE};
use quarry_ring::{Event, FileId, OpenedFile, Reactor};
use quarry_store::inspect::{self, SuperState};
use quarry_store::{
    DiskOp, DiskResult, FormatInfo, OpId, Store, StoreConfig, StoreEvent, WriteSync, IDENT_BYTES,
};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// Findings of one kind listed at most.
const LIST: usize = 20;
/// Longest wait for one turn of the device.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes a second of a check: as fast as it goes.
const FAST: u64 = 1 << 40;

/// What a check found.
pub struct Checked {
    pub text: String,
    pub findings: usize,
}

/// A device opened for looking at it, and the store on it.
struct Session {
    reactor: Reactor,
    file: FileId,
    store: Store,
    pending: HashMap<u64, OpId>,
    next: u64,
    ops: Vec<DiskOp>,
    events: Vec<StoreEvent>,
}

impl Session {
    fn new(reactor: Reactor, file: FileId, info: &FormatInfo, read_only: bool) -> Session {
        let cfg =
            StoreConfig { device_bytes: info.device_bytes, read_only, ..StoreConfig::default() };
        Session {
            reactor,
            file,
            store: Store::open(cfg, None),
            pending: HashMap::new(),
            next: 0,
            ops: Vec::new(),
            events: Vec::new(),
        }
    }

    fn submit(&mut self, op: DiskOp) {
        self.next += 1;
        let token = self.next;
        self.pending.insert(token, op.id());
        let r = &mut self.reactor;
        match op {
            DiskOp::Read { offset, len, .. } => {
                r.read_at(self.file, offset, PageBuf::new(len), len, token)
            }
            DiskOp::Write { offset, data, sync, .. } => {
                // O_DIRECT wants aligned memory.
                let data = vec![crate::disk::gather(&data)];
                match sync {
                    WriteSync::None | WriteSync::Behind => {
                        r.write_vectored_at(self.file, offset, data, token)
                    }
                    WriteSync::Own | WriteSync::All => {
                        r.write_then_sync(self.file, offset, data, token)
                    }
                }
            }
            DiskOp::Sync { .. } => r.fdatasync(self.file, token),
            DiskOp::Discard { offset, len, .. } => r.discard(self.file, offset, len, token),
        };
    }

    /// One turn: polls the store, carries out what it wants, gives it what is done.
    fn turn(&mut self) -> Result<Vec<StoreEvent>, SdsError> {
        let now = quarry_ring::now_boottime();
        self.store.poll(now, &mut self.ops, &mut self.events);
        for op in std::mem::take(&mut self.ops) {
            self.submit(op);
        }
        if !self.pending.is_empty() {
            self.wait(now)?;
        }
        Ok(std::mem::take(&mut self.events))
    }

    fn wait(&mut self, now: Nanos) -> Result<(), SdsError> {
        let mut done = Vec::new();
        let limit = now + PATIENCE;
        while done.is_empty() {
            if quarry_ring::now_boottime() >= limit {
                let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
                return Err(SdsError::System { what: "the device does not answer", source });
            }
            self.reactor.turn(Some(limit), &mut done)?;
        }
        for e in done {
            let (token, result) = match e {
                Event::ReadDone { token, result, buf } => {
                    (token, DiskResult::Read(result.map(|_| buf)))
                }
                Event::WriteDone { token, result }
                | Event::SyncDone { token, result }
                | Event::DiscardDone { token, result } => (token, DiskResult::Done(result)),
                _ => continue,
            };
            if let Some(id) = self.pending.remove(&token) {
                self.store.complete(quarry_ring::now_boottime(), id, result);
            }
        }
        Ok(())
    }

    /// Recovery, to its end. `Err`: why it does not open.
    fn open(&mut self) -> Result<Result<(), String>, SdsError> {
        loop {
            for e in self.turn()? {
                match e {
                    StoreEvent::Opened => return Ok(Ok(())),
                    StoreEvent::OpenFailed(e) => return Ok(Err(e.to_string())),
                    _ => {}
                }
            }
        }
    }

    /// One pass of the scrub over everything; its findings.
    fn scrub(&mut self) -> Result<Vec<String>, SdsError> {
        let mut found = Vec::new();
        self.store.restart_scrub();
        let until = self.store.scrub_stats().passes + 1;
        self.store.set_scrub_rate(FAST);
        while self.store.scrub_stats().passes < until {
            for e in self.turn()? {
                match e {
                    StoreEvent::Corruption { pg, key, pages } => found.push(format!(
                        "data: {pg} vtree {} extent {} block {}: pages {pages:04x} do not match their checksums",
                        key.vtree.0, key.extent.0, key.block
                    )),
                    StoreEvent::TableDamaged { group } => {
                        found.push(format!("block table: group {group} is damaged on the device"))
                    }
                    _ => {}
                }
            }
            // With `--repair` the device is written to; one that refuses that has no next pass.
            if let Some(e) = self.store.failed() {
                found.push(format!("the check ended early: {e}"));
                break;
            }
        }
        self.store.set_scrub_rate(0);
        found.sort();
        found.dedup();
        let failed = self.store.scrub_stats().read_errors;
        if failed > 0 {
            found.push(format!("{failed} reads failed"));
        }
        Ok(found)
    }

    /// Writes everything to its place, and what was damaged of the table anew.
    fn flush(&mut self) -> Result<Result<(), String>, SdsError> {
        self.store.flush_all();
        while !self.store.is_idle() {
            self.turn()?;
            if let Some(e) = self.store.failed() {
                return Ok(Err(e.to_string()));
            }
        }
        Ok(Ok(()))
    }
}

/// Opens a device for looking at it; what it is, and its first bytes.
fn begin(
    path: &Path,
    read_only: bool,
) -> Result<(Reactor, OpenedFile, FormatInfo, Bytes), SdsError> {
    no_directory(path)?;
    let mut r = reactor(64)?;
    let f = open_file(&mut r, path, direct(read_only))?;
    let start = crate::device::first_bytes(&mut r, f.id, path)?;
    match look(&mut r, &f, path)? {
        Some(info) if info.device_bytes > f.size => {
            Err(SdsError::Shrunk { path: path.into(), formatted: info.device_bytes, bytes: f.size })
        }
        Some(info) => Ok((r, f, info, start)),
        None => Err(SdsError::Setting(format!(
            "{} is blank: there is nothing to look at; a data server that is given it formats it",
            path.display()
        ))),
    }
}

fn super_findings(start: &[u8]) -> Vec<String> {
    let places = ["at 0", "at 64 KiB"];
    let states = inspect::superblocks(start);
    let bad = states.iter().zip(places).filter_map(|(s, place)| match s {
        SuperState::Good { .. } => None,
        SuperState::Blank => Some(format!("superblock {place}: blank")),
        SuperState::Damaged => Some(format!("superblock {place}: damaged")),
        SuperState::Newer => Some(format!("superblock {place}: of a newer format")),
        SuperState::Older => Some(format!("superblock {place}: of an older format")),
    });
    bad.collect()
}

/// Checks a device. With `repair`, what it can mend by itself is written anew: a superblock, pages of the table.
/// Blocks of data are mended by a running server only, from other copies.
pub fn check(path: &Path, repair: bool) -> Result<Checked, SdsError> {
    let (r, f, info, start) = begin(path, !repair)?;
    let mut findings = super_findings(&start);
    let mut s = Session::new(r, f.id, &info, !repair);
    let mut text = format!(
        "{}: device {} of cluster {}, {}\n",
        path.display(),
        info.ident.device,
        to_hex(&info.ident.cluster),
        show_size(info.device_bytes)
    );
    match s.open()? {
        Err(why) => findings.push(format!("it does not open: {why}")),
        Ok(()) => {
            let pages = s.store.unreadable_at_open();
            if pages > 0 {
                findings.push(format!(
                    "{pages} pages of superblocks, block table or log cannot be read"
                ));
            }
            findings.extend(s.store.check_invariants().err().map(|e| format!("index: {e}")));
            findings.extend(s.scrub()?);
            let (stats, scrub) = (s.store.stats(), s.store.scrub_stats());
            writeln!(
                text,
                "  {} groups, {} of {} in use, {} of the log, {} read and compared",
                s.store.pgs().len(),
                show_size(stats.used_bytes),
                show_size(stats.capacity_bytes),
                show_size(stats.log_used_bytes),
                show_size(scrub.bytes)
            )
            .ok();
            if repair {
                if let Err(why) = s.flush()? {
                    findings.push(format!("it could not be repaired: {why}"));
                } else if !findings.is_empty() {
                    writeln!(text, "  superblocks and table pages are written anew; check again")
                        .ok();
                }
            }
        }
    }
    for f in findings.iter().take(LIST) {
        writeln!(text, "  DAMAGED {f}").ok();
    }
    if findings.len() > LIST {
        writeln!(text, "  and {} more", findings.len() - LIST).ok();
    }
    if findings.is_empty() {
        text.push_str("  clean");
    }
    Ok(Checked { text: text.trim_end().to_string(), findings: findings.len() })
}

/// Which part of a device is dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Both superblocks
    Super,
    /// The batches that recovery would take, and their records
    Log,
    /// The blocks in use after recovery: owner, version, masks
    Table,
}

/// Shows a structure of a device in words.
pub fn dump(path: &Path, part: Part) -> Result<String, SdsError> {
    let (mut r, f, info, start) = begin(path, true)?;
    Ok(match part {
        Part::Super => dump_super(&start),
        Part::Log => {
            let (at, len) = inspect::log_area(&start).unwrap_or_default();
            let (log, refused) = read_area(&mut r, f.id, path, at, len)?;
            inspect::log_lines(&start, log, &refused).join("\n")
        }
        Part::Table => {
            let mut s = Session::new(r, f.id, &info, true);
            if let Err(why) = s.open()? {
                return Err(SdsError::Setting(format!("{} does not open: {why}", path.display())));
            }
            let lines: Vec<String> = s.store.table_lines().collect();
            lines.join("\n")
        }
    })
}

fn dump_super(start: &[u8]) -> String {
    let names = ["superblock at 0", "superblock at 64 KiB"];
    let states = inspect::superblocks(&start[..start.len().min(IDENT_BYTES)]);
    let all = states.iter().zip(names).map(|(s, name)| match s {
        SuperState::Good { lines, .. } => format!("{name}\n  {}", lines.join("\n  ")),
        other => format!("{name}: {other:?}"),
    });
    all.collect::<Vec<_>>().join("\n")
}

/// Reads an area; the pages of it that the medium refuses, bytes from its start.
fn read_area(
    r: &mut Reactor,
    file: FileId,
    path: &Path,
    at: u64,
    len: u64,
) -> Result<(Bytes, Vec<u64>), SdsError> {
    const CHUNK: u64 = 4 << 20;
    let mut all = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    let (mut offset, mut refused) = (0, Vec::new());
    while offset < len {
        let n = CHUNK.min(len - offset) as usize;
        let (part, errno) = crate::device::read_around(r, file, at + offset, n, path)?;
        if errno.is_some() {
            refused.extend(unreadable_pages(&part).map(|page| offset + page));
        }
        all.extend_from_slice(&part);
        offset += n as u64;
    }
    Ok((all.into(), refused))
}

/// Where pages lie for which one that is damaged on purpose stands in, as they could not be read.
fn unreadable_pages(part: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let mut marked = [0; PAGE];
    quarry_store::mark_unreadable(&mut marked);
    let pages = part.chunks(PAGE).enumerate().filter(move |(_, p)| **p == marked);
    pages.map(|(i, _)| (i * PAGE) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content that looks so counts only where something was refused, see `read_area`.
    #[test]
    fn the_pages_that_could_not_be_read_are_found_again() {
        let mut part = vec![7; 5 * PAGE];
        for page in [1, 4] {
            quarry_store::mark_unreadable(&mut part[page * PAGE..(page + 1) * PAGE]);
        }
        let found: Vec<u64> = unreadable_pages(&part).collect();
        assert_eq!(found, [PAGE as u64, 4 * PAGE as u64]);
    }
}
