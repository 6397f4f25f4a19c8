//! Files of memory file systems (tmpfs, ramfs): read and written by plain system calls.
//!
//! io_uring cannot try an operation on such a file without waiting for it (they lack NOWAIT), so it
//! hands every one to a worker thread: two wake-ups for what is a copy in memory. Here the reactor
//! makes the copy itself, after the turn's submission, so that what goes to peers is on its way
//! first. A sync is asked for as on any file; that it costs nothing here is the file system's word.
//!
//! Such a copy waits only where memory itself is short (reclaim, swap). Files on disks and block
//! devices never come here.

use crate::config::{MAX_DISK_BYTES, MAX_WRITE_PIECES};
use crate::op::{OpKind, ReadOp, Stage, WriteOp};
use crate::{Event, Reactor};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};

/// `statfs` types of file systems that live in memory alone.
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// Whether a *regular file* lies in memory. (A block device's node does, in devtmpfs; its data does not.)
pub(crate) fn lies_in_memory(file: impl AsFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|s| matches!(s.f_type as u64, TMPFS | RAMFS))
}

impl Reactor {
    /// Carries out now what the next turn would, and adds what came of it to `out`. Operations on other files
    /// are not touched: they begin with the next turn.
    pub fn finish_in_memory(&mut self, out: &mut Vec<Event>) {
        if !self.inline_due.is_empty() {
            self.run_inline();
            out.append(&mut self.ready);
        }
    }

    /// Carries out what waits for this turn, continuations included.
    pub(crate) fn run_inline(&mut self) {
        while let Some(slot) = self.inline_due.pop_front() {
            let Some(op) = self.ops.get_mut(slot as usize) else { continue };
            let file = op.kind.file().and_then(|f| self.files.raw(f));
            let Some(file) = file else { continue };
            let result = run(file.fd.as_fd(), &mut op.kind);
            let kind = self.ops.remove(slot as usize).kind;
            self.on_disk(kind, result);
        }
    }
}

/// One system call of an operation; its result as io_uring would give it.
fn run(fd: BorrowedFd<'_>, kind: &mut OpKind) -> i32 {
    match kind {
        OpKind::Read(r) => read(fd, r),
        OpKind::Write(w) => {
            let result = match w.stage {
                Stage::Sync => code(rustix::fs::fdatasync(fd).map(|()| 0)),
                // The sync follows as a step of its own.
                Stage::Write | Stage::Linked | Stage::Durable => {
                    w.stage = Stage::Write;
                    let (asked, result) = write(fd, w);
                    w.asked = asked;
                    result
                }
            };
            w.main_result = Some(result);
            result
        }
        OpKind::Sync { .. } => code(rustix::fs::fdatasync(fd).map(|()| 0)),
        OpKind::Discard { offset, len, .. } => {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            code(rustix::fs::fallocate(fd, mode, *offset, *len).map(|()| 0))
        }
        _ => -libc::EINVAL,
    }
}

fn code(r: Result<usize, Errno>) -> i32 {
    match r {
        Ok(n) => n as i32,
        Err(e) => -e.raw_os_error(),
    }
}

fn read(fd: BorrowedFd<'_>, r: &mut ReadOp) -> i32 {
    let end = r.len.min(r.done + MAX_DISK_BYTES);
    code(rustix::io::pread(fd, &mut r.buf[r.done..end], r.offset + r.done as u64))
}

/// Bytes asked for, and the result.
fn write(fd: BorrowedFd<'_>, w: &WriteOp) -> (usize, i32) {
    let offset = w.offset + w.done as u64;
    let mut rest = w.rest();
    match (rest.next(), rest.next()) {
        (None, _) => (0, 0),
        (Some(only), None) => (only.len(), code(rustix::io::pwrite(fd, only, offset))),
        (Some(first), Some(second)) => {
            let parts = [first, second].into_iter().chain(rest);
            let slices: Vec<IoSlice<'_>> = parts.map(IoSlice::new).collect();
            let asked = slices.iter().map(|s| s.len()).sum();
            (asked, code(rustix::io::pwritev(fd, &slices, offset)))
        }
    }
}

impl WriteOp {
    /// What is left to write, as far as one operation takes it.
    pub(crate) fn rest(&self) -> impl Iterator<Item = &[u8]> {
        let mut skip = self.done;
        let mut room = MAX_DISK_BYTES;
        let parts = self.data.as_slice().iter().filter_map(move |piece| {
            let from = skip.min(piece.len());
            skip -= from;
            let part = piece.get(from..)?;
            let part = part.get(..room).unwrap_or(part);
            room -= part.len();
            (!part.is_empty()).then_some(part)
        });
        parts.take(MAX_WRITE_PIECES)
    }
}
