//! Files and block devices: reads, writes, syncs, discards.
//!
//! A short transfer is continued where it stopped; no progress is `EIO`. A failed sync is final and
//! never repeated (the kernel may have dropped the pages it failed to write). At most `max_inflight`
//! operations are in the kernel; the others wait in order.

use crate::config::{MAX_DISK_BYTES, MAX_RETRIES};
use crate::op::{user_data, OpKind, Pieces, ReadOp, Stage, WriteOp, PART_MAIN, PART_SYNC};
use crate::reactor::{errno, is_transient};
use crate::{Event, FileId, OpenOpts, OpenedFile, Reactor, RingError};
use bytes::Bytes;
use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags};
use quarry_base::PageBuf;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

pub(crate) struct File {
    pub(crate) fd: OwnedFd,
    /// In memory: see `inline.rs`.
    inline: bool,
    /// RWF_DSYNC means what it says: see `file.rs`.
    dsync: bool,
    /// Operations not yet completed, the waiting ones included.
    inflight: usize,
    closing: bool,
}

/// Iovec arrays kept for use again.
const SPARE_IOV: usize = 256;

/// What is asked of a write.
enum How {
    Plain,
    /// Nobody waits for it.
    Behind,
    /// It becomes durable, in this way.
    Synced(Stage),
}

impl Reactor {
    /// Opens and locks a file or block device. Blocks; meant for start-up and operator actions.
    /// Error `Locked` names the process that has it.
    pub fn open_device(&mut self, path: &Path, opts: OpenOpts) -> Result<OpenedFile, RingError> {
        let o = crate::file::open(path, opts)?;
        let file =
            File { fd: o.fd, inline: o.in_memory, dsync: o.dsync, inflight: 0, closing: false };
        let id = FileId::from_parts(self.files.insert(file));
        Ok(OpenedFile {
            id,
            size: o.size,
            is_block_device: o.is_block_device,
            direct: o.direct,
            in_memory: o.in_memory,
        })
    }

    /// Closes a file when the operations on it, which still report, are done; releases the lock.
    pub fn close_file(&mut self, f: FileId) {
        let Some(file) = self.files.get(f.index, f.gen) else {
            self.stats.stale_calls += 1;
            return;
        };
        file.closing = true;
        let idle = file.inflight == 0;
        self.files.retire(f.index);
        if idle {
            drop(self.files.remove(f.index));
        }
    }

    /// Reads `len` bytes at `offset` into the start of `buf` (capacity at least `len`).
    pub fn read_at(&mut self, f: FileId, offset: u64, mut buf: PageBuf, len: usize, token: u64) {
        assert!(len <= buf.capacity(), "a read needs a buffer that holds it");
        if buf.len() < len {
            buf.set_len(len);
        }
        if len == 0 || !self.begin(f) {
            let result = if len == 0 { Ok(0) } else { Err(libc::EBADF) };
            self.ready.push(Event::ReadDone { token, result, buf });
            return;
        }
        let op = ReadOp { file: f.index, token, offset, buf, len, done: 0, retries: 0 };
        self.start_disk(OpKind::Read(op));
    }

    /// Writes all of `data` at `offset`.
    pub fn write_at(&mut self, f: FileId, offset: u64, data: Bytes, token: u64) {
        self.write_pieces(f, offset, Pieces::One(data), token, How::Plain);
    }

    /// Writes the pieces one after another from `offset` on.
    pub fn write_vectored_at(&mut self, f: FileId, offset: u64, data: Vec<Bytes>, token: u64) {
        self.write_pieces(f, offset, Pieces::Many(data), token, How::Plain);
    }

    /// As `write_vectored_at`, for what nobody waits for: where several operations have ended, others are told of before it
    /// (at most four for each of these, so that it does end).
    pub fn write_behind_at(&mut self, f: FileId, offset: u64, data: Vec<Bytes>, token: u64) {
        self.write_pieces(f, offset, Pieces::Many(data), token, How::Behind);
    }

    /// As `write_vectored_at`, then `fdatasync`, in one linked submission; one `WriteDone` when both
    /// are done, an error if either failed. Writes completed before it starts are synced too.
    pub fn write_then_sync(&mut self, f: FileId, offset: u64, data: Vec<Bytes>, token: u64) {
        self.write_pieces(f, offset, Pieces::Many(data), token, How::Synced(Stage::Linked));
    }

    /// As `write_vectored_at`; when it is done, this write is durable. Of others it says nothing. On block devices and
    /// file systems known to keep their word that is one operation (RWF_DSYNC, to the device a write with FUA where it
    /// has that); elsewhere it is [`write_then_sync`](Reactor::write_then_sync).
    pub fn write_durable_at(&mut self, f: FileId, offset: u64, data: Vec<Bytes>, token: u64) {
        let dsync = self.files.get(f.index, f.gen).is_some_and(|file| file.dsync);
        let stage = if dsync { Stage::Durable } else { Stage::Linked };
        self.write_pieces(f, offset, Pieces::Many(data), token, How::Synced(stage));
    }

    fn write_pieces(&mut self, f: FileId, offset: u64, data: Pieces, token: u64, how: How) {
        let (sync_after, behind, first) = match how {
            How::Plain => (false, false, Stage::Write),
            How::Behind => (false, true, Stage::Write),
            How::Synced(stage) => (true, false, stage),
        };
        let total = data.total();
        let nothing = total == 0 && !sync_after;
        if nothing || !self.begin(f) {
            let result = if nothing { Ok(()) } else { Err(libc::EBADF) };
            self.ready.push(Event::WriteDone { token, result });
            return;
        }
        let stage = if total == 0 { Stage::Sync } else { first };
        let op = WriteOp {
            file: f.index,
            token,
            offset,
            data,
            total,
            done: 0,
            asked: 0,
            iov: self.spare_iov.pop().unwrap_or_default(),
            sync_after,
            behind,
            stage,
            main_result: None,
            sync_result: None,
            retries: 0,
        };
        self.start_disk(OpKind::Write(op));
    }

    /// Makes the writes completed before this call durable.
    pub fn fdatasync(&mut self, f: FileId, token: u64) {
        if !self.begin(f) {
            self.ready.push(Event::SyncDone { token, result: Err(libc::EBADF) });
            return;
        }
        self.start_disk(OpKind::Sync { file: f.index, token });
    }

    /// Gives the space of a range back; it reads as zeroes afterwards. `EOPNOTSUPP` where the file
    /// system or device cannot.
    pub fn discard(&mut self, f: FileId, offset: u64, len: u64, token: u64) {
        if len == 0 || !self.begin(f) {
            let result = if len == 0 { Ok(()) } else { Err(libc::EBADF) };
            self.ready.push(Event::DiscardDone { token, result });
            return;
        }
        self.start_disk(OpKind::Discard { file: f.index, token, offset, len, retries: 0 });
    }

    /// Counts an operation on a file; false if the id is stale.
    fn begin(&mut self, f: FileId) -> bool {
        match self.files.get(f.index, f.gen) {
            Some(file) => {
                file.inflight += 1;
                true
            }
            None => {
                self.stats.stale_calls += 1;
                false
            }
        }
    }

    fn start_disk(&mut self, kind: OpKind) {
        let (slot, _gen) = self.store_op(kind);
        if self.disk_inflight >= self.cfg.max_inflight.max(1) {
            self.stats.disk_waits += 1;
            self.disk_waiting.push_back(slot);
            return;
        }
        self.disk_inflight += 1;
        self.submit_disk(slot);
    }

    /// Builds the entry of a stored file operation and queues it.
    fn submit_disk(&mut self, slot: u32) {
        let Some(op) = self.ops.get_mut(slot as usize) else { return };
        let ud = user_data(slot, op.gen, PART_MAIN);
        let sync_ud = user_data(slot, op.gen, PART_SYNC);
        let Some(file) = op.kind.file() else { return };
        let Some(file) = self.files.raw(file) else { return };
        let fd = file.fd.as_raw_fd();
        if file.inline {
            self.stats.count_inline(&op.kind);
            self.inline_due.push_back(slot);
            return;
        }
        let (entry, second) = match &mut op.kind {
            OpKind::Read(r) => {
                self.stats.reads += 1;
                (read_entry(fd, r), None)
            }
            OpKind::Write(w) if w.stage == Stage::Sync => {
                self.stats.fsyncs += 1;
                (sync_entry(fd), None)
            }
            OpKind::Write(w) => {
                self.stats.writes += 1;
                let entry = write_entry(fd, w);
                if w.stage == Stage::Durable {
                    self.stats.dsync_writes += 1;
                    (entry, None)
                // What does not fit in one operation is written first, then synced.
                } else if w.stage == Stage::Linked && w.asked == w.total {
                    self.stats.fsyncs += 1;
                    let sync = sync_entry(fd).user_data(sync_ud);
                    (entry.flags(Flags::IO_LINK), Some(sync))
                } else {
                    w.stage = Stage::Write;
                    (entry, None)
                }
            }
            OpKind::Sync { .. } => {
                self.stats.fsyncs += 1;
                (sync_entry(fd), None)
            }
            OpKind::Discard { offset, len, .. } => {
                self.stats.discards += 1;
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                (opcode::Fallocate::new(Fd(fd), *len).offset(*offset).mode(mode).build(), None)
            }
            _ => return,
        };
        self.push(entry.user_data(ud), second);
    }

    /// Takes a file operation's (last) completion: continues it or reports.
    pub(crate) fn on_disk(&mut self, kind: OpKind, result: i32) {
        let file = kind.file();
        let event = match kind {
            OpKind::Read(r) => match self.read_result(r, result) {
                Ok(event) => event,
                Err(again) => return self.continue_disk(OpKind::Read(again)),
            },
            OpKind::Write(w) => match self.write_result(w) {
                Ok(event) => event,
                Err(again) => return self.continue_disk(OpKind::Write(again)),
            },
            OpKind::Sync { token, .. } => Event::SyncDone { token, result: outcome(result) },
            OpKind::Discard { file, token, offset, len, retries } => {
                if is_transient(result) && retries < MAX_RETRIES {
                    let retries = retries + 1;
                    return self.continue_disk(OpKind::Discard {
                        file,
                        token,
                        offset,
                        len,
                        retries,
                    });
                }
                Event::DiscardDone { token, result: outcome(result) }
            }
            _ => return,
        };
        self.ready.push(event);
        self.end_disk(file);
    }

    fn continue_disk(&mut self, kind: OpKind) {
        let (slot, _gen) = self.store_op(kind);
        self.submit_disk(slot);
    }

    /// One operation is over: lets the next waiting one go, closes a file that waits for its last.
    fn end_disk(&mut self, file: Option<u32>) {
        match self.disk_waiting.pop_front() {
            Some(slot) => self.submit_disk(slot),
            None => self.disk_inflight -= 1,
        }
        let Some(index) = file else { return };
        let Some(f) = self.files.raw(index) else { return };
        f.inflight -= 1;
        if f.closing && f.inflight == 0 {
            drop(self.files.remove(index));
        }
    }

    fn read_result(&mut self, mut r: ReadOp, result: i32) -> Result<Event, ReadOp> {
        if is_transient(result) && r.retries < MAX_RETRIES {
            r.retries += 1;
            return Err(r);
        }
        if result > 0 {
            r.done += result as usize;
            self.stats.read_bytes += result as u64;
            assert!(r.done <= r.len, "more was read than asked for");
            if r.done < r.len {
                self.stats.short_disk += 1;
                return Err(r);
            }
        }
        let result = match result {
            0 => Err(libc::EIO),
            // The rest of a short read need not be aligned; with O_DIRECT that says EINVAL.
            e if e == -libc::EINVAL && r.done > 0 => Err(libc::EIO),
            e if e < 0 => Err(errno(e)),
            _ => Ok(r.len),
        };
        Ok(Event::ReadDone { token: r.token, result, buf: r.buf })
    }

    fn write_result(&mut self, mut w: WriteOp) -> Result<Event, WriteOp> {
        let next = w.advance();
        self.stats.write_bytes += w.asked.min(w.main_result.unwrap_or(0).max(0) as usize) as u64;
        match next {
            Next::Again(stage) => {
                if stage != Stage::Sync && w.done > 0 {
                    self.stats.short_disk += 1;
                }
                w.stage = stage;
                w.main_result = None;
                w.sync_result = None;
                Err(w)
            }
            Next::Done(result) => {
                if self.spare_iov.len() < SPARE_IOV && w.iov.capacity() > 0 {
                    w.iov.clear();
                    self.spare_iov.push(std::mem::take(&mut w.iov));
                }
                Ok(Event::WriteDone { token: w.token, result })
            }
        }
    }
}

/// What a write does after its completions.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Again(Stage),
    Done(Result<(), i32>),
}

impl WriteOp {
    /// Notes a completion; true if it was the last one expected.
    pub(crate) fn collect(&mut self, sync: bool, result: i32) -> bool {
        if sync {
            self.sync_result = Some(result);
        } else {
            self.main_result = Some(result);
        }
        self.stage != Stage::Linked || (self.main_result.is_some() && self.sync_result.is_some())
    }

    fn advance(&mut self) -> Next {
        let main = self.main_result.unwrap_or(-libc::EIO);
        if self.stage == Stage::Sync {
            return Next::Done(outcome(main));
        }
        // Each part of a durable write is durable by itself.
        let rest = if self.stage == Stage::Durable { Stage::Durable } else { Stage::Write };
        if is_transient(main) && self.retries < MAX_RETRIES {
            self.retries += 1;
            return Next::Again(rest);
        }
        if main <= 0 {
            // Nothing written is no progress: a full or broken device.
            return Next::Done(Err(if main == 0 { libc::EIO } else { errno(main) }));
        }
        self.done += main as usize;
        assert!(self.done <= self.total, "more was written than asked for");
        if self.done < self.total {
            // A link was cut by the short write; the sync follows the rest.
            return Next::Again(rest);
        }
        match (self.sync_after, self.stage, self.sync_result) {
            (false, ..) | (true, Stage::Durable, _) => Next::Done(Ok(())),
            // Not linked, or the link was cut before the sync ran.
            (true, Stage::Linked, Some(s)) if s != -libc::ECANCELED => Next::Done(outcome(s)),
            (true, ..) => Next::Again(Stage::Sync),
        }
    }
}

fn outcome(result: i32) -> Result<(), i32> {
    if result < 0 {
        Err(errno(result))
    } else {
        Ok(())
    }
}

fn read_entry(fd: RawFd, r: &mut ReadOp) -> Entry {
    let end = r.len.min(r.done + MAX_DISK_BYTES);
    let room = &mut r.buf[r.done..end];
    let (ptr, len) = (room.as_mut_ptr(), room.len() as u32);
    opcode::Read::new(Fd(fd), ptr, len).offset(r.offset + r.done as u64).build()
}

fn sync_entry(fd: RawFd) -> Entry {
    opcode::Fsync::new(Fd(fd)).flags(FsyncFlags::DATASYNC).build()
}

/// The entry that writes what is left, and how many bytes it covers (`asked`).
fn write_entry(fd: RawFd, w: &mut WriteOp) -> Entry {
    let mut iov = std::mem::take(&mut w.iov);
    iov.clear();
    iov.extend(w.rest().map(|part| libc::iovec {
        iov_base: part.as_ptr() as *mut libc::c_void,
        iov_len: part.len(),
    }));
    w.iov = iov;
    w.asked = w.iov.iter().map(|v| v.iov_len).sum();
    let offset = w.offset + w.done as u64;
    let flags = if w.stage == Stage::Durable { libc::RWF_DSYNC } else { 0 };
    match w.iov.as_slice() {
        [only] => {
            let ptr = only.iov_base as *const u8;
            let len = only.iov_len as u32;
            opcode::Write::new(Fd(fd), ptr, len).offset(offset).rw_flags(flags).build()
        }
        many => {
            let n = many.len() as u32;
            opcode::Writev::new(Fd(fd), many.as_ptr(), n).offset(offset).rw_flags(flags).build()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(total: usize, sync_after: bool) -> WriteOp {
        let stage = if sync_after { Stage::Linked } else { Stage::Write };
        let data = Pieces::Many(vec![
            Bytes::from(vec![1; total / 2]),
            Bytes::from(vec![2; total - total / 2]),
        ]);
        WriteOp { offset: 100, data, total, sync_after, stage, ..WriteOp::behind(0) }
    }

    fn complete(w: &mut WriteOp, main: i32, sync: Option<i32>) -> Next {
        w.main_result = None;
        w.sync_result = None;
        assert_eq!(w.collect(false, main), sync.is_none(), "the last completion ends it");
        if let Some(s) = sync {
            assert!(w.collect(true, s));
        }
        w.advance()
    }

    #[test]
    fn a_short_write_goes_on_in_the_middle_of_a_piece() {
        let mut w = write(100, false);
        write_entry(0, &mut w);
        assert_eq!((w.asked, w.iov.len()), (100, 2));
        assert_eq!(complete(&mut w, 30, None), Next::Again(Stage::Write));
        write_entry(0, &mut w);
        assert_eq!((w.asked, w.iov.len()), (70, 2));
        assert_eq!(w.iov[0].iov_len, 20);
        assert_eq!(w.iov[0].iov_base as usize, w.data.as_slice()[0].as_ptr() as usize + 30);
        assert_eq!(complete(&mut w, 45, None), Next::Again(Stage::Write));
        write_entry(0, &mut w);
        assert_eq!((w.asked, w.iov.len()), (25, 1));
        assert_eq!(complete(&mut w, 25, None), Next::Done(Ok(())));
    }

    #[test]
    fn a_linked_sync_cut_off_by_a_short_write_follows_the_rest() {
        let mut w = write(100, true);
        assert_eq!(complete(&mut w, 30, Some(-libc::ECANCELED)), Next::Again(Stage::Write));
        w.stage = Stage::Write;
        assert_eq!(complete(&mut w, 70, None), Next::Again(Stage::Sync));
        w.stage = Stage::Sync;
        assert_eq!(complete(&mut w, 0, None), Next::Done(Ok(())));
    }

    #[test]
    fn a_write_is_never_done_before_its_sync_and_a_failed_sync_is_final() {
        let linked = |main, sync| complete(&mut write(100, true), main, Some(sync));
        assert_eq!(linked(100, 0), Next::Done(Ok(())));
        assert_eq!(linked(100, -libc::ECANCELED), Next::Again(Stage::Sync));
        assert_eq!(linked(100, -libc::EIO), Next::Done(Err(libc::EIO)));
        assert_eq!(linked(100, -libc::EINTR), Next::Done(Err(libc::EINTR)));
        assert_eq!(linked(-libc::ENOSPC, -libc::ECANCELED), Next::Done(Err(libc::ENOSPC)));
        assert_eq!(linked(0, -libc::ECANCELED), Next::Done(Err(libc::EIO)));
    }

    #[test]
    fn the_rest_of_a_short_durable_write_is_durable_too() {
        let mut w = write(100, true);
        w.stage = Stage::Durable;
        assert_eq!(complete(&mut w, 30, None), Next::Again(Stage::Durable));
        assert_eq!(complete(&mut w, -libc::EAGAIN, None), Next::Again(Stage::Durable));
        assert_eq!(complete(&mut w, 70, None), Next::Done(Ok(())));
        let mut w = write(100, true);
        w.stage = Stage::Durable;
        assert_eq!(complete(&mut w, -libc::EIO, None), Next::Done(Err(libc::EIO)));
    }

    #[test]
    fn an_interrupted_write_is_repeated_but_not_for_ever() {
        let mut w = write(100, false);
        for _ in 0..MAX_RETRIES {
            assert_eq!(complete(&mut w, -libc::EINTR, None), Next::Again(Stage::Write));
        }
        assert_eq!(complete(&mut w, -libc::EINTR, None), Next::Done(Err(libc::EINTR)));
    }
}
