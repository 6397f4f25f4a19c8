//! Operations in flight: what each owns, and how its completions find it.
//!
//! The kernel's `user_data` is slot number, generation and part, so that neither a late cancel nor a
//! stray completion can hit the next operation in the same slot.

use crate::RecvBuf;
use bytes::Bytes;
use quarry_base::PageBuf;
use socket2::SockAddr;

const SLOT_BITS: u32 = 32;
const PART_SHIFT: u32 = 62;
pub(crate) const GEN_MASK: u32 = (1 << 30) - 1;

/// Which completion of an operation.
pub(crate) const PART_MAIN: u64 = 0;
/// The sync linked to a write.
pub(crate) const PART_SYNC: u64 = 1;
/// Of no operation: cancels and timeouts, whose outcome does not matter.
pub(crate) const PART_NONE: u64 = 2;

pub(crate) fn user_data(slot: u32, gen: u32, part: u64) -> u64 {
    (part << PART_SHIFT) | (u64::from(gen & GEN_MASK) << SLOT_BITS) | u64::from(slot)
}
pub(crate) fn split_user_data(ud: u64) -> (u32, u32, u64) {
    (ud as u32, (ud >> SLOT_BITS) as u32 & GEN_MASK, ud >> PART_SHIFT)
}

/// One operation; lives until its last completion.
pub(crate) struct Op {
    pub gen: u32,
    pub kind: OpKind,
}

pub(crate) enum OpKind {
    /// The standing read of the wake-up eventfd. The count read does not matter, the buffer must live.
    Wake(Box<[u8; 8]>),
    Accept {
        listener: u32,
    },
    Connect {
        conn: u32,
        addr: Box<SockAddr>,
    },
    Recv {
        conn: u32,
        buf: RecvBuf,
    },
    /// The pieces and vectors being sent stay in the connection, which lives at least as long.
    Send {
        conn: u32,
    },
    Read(ReadOp),
    Write(WriteOp),
    Sync {
        file: u32,
        token: u64,
    },
    Discard {
        file: u32,
        token: u64,
        offset: u64,
        len: u64,
        retries: u8,
    },
}

impl OpKind {
    /// The file of a file operation.
    pub(crate) fn file(&self) -> Option<u32> {
        match self {
            OpKind::Read(r) => Some(r.file),
            OpKind::Write(w) => Some(w.file),
            OpKind::Sync { file, .. } | OpKind::Discard { file, .. } => Some(*file),
            _ => None,
        }
    }
}

pub(crate) struct ReadOp {
    pub file: u32,
    pub token: u64,
    pub offset: u64,
    pub buf: PageBuf,
    pub len: usize,
    /// Bytes read so far.
    pub done: usize,
    pub retries: u8,
}

/// What is written.
pub(crate) enum Pieces {
    One(Bytes),
    Many(Vec<Bytes>),
}

impl Pieces {
    pub(crate) fn as_slice(&self) -> &[Bytes] {
        match self {
            Pieces::One(b) => std::slice::from_ref(b),
            Pieces::Many(v) => v,
        }
    }
    pub(crate) fn total(&self) -> usize {
        self.as_slice().iter().map(Bytes::len).sum()
    }
}

/// Where a write stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// A write alone is in the kernel.
    Write,
    /// A write with a linked sync is in the kernel; two completions come.
    Linked,
    /// A write that is durable when it is done is in the kernel (RWF_DSYNC).
    Durable,
    /// All is written; the sync is in the kernel.
    Sync,
}

pub(crate) struct WriteOp {
    pub file: u32,
    pub token: u64,
    pub offset: u64,
    pub data: Pieces,
    pub total: usize,
    /// Bytes written so far.
    pub done: usize,
    /// Bytes the operation in the kernel covers.
    pub asked: usize,
    /// What the kernel reads; its heap memory does not move while the operation lives.
    pub iov: Vec<libc::iovec>,
    pub sync_after: bool,
    /// Nobody waits for it: see `ended.rs`.
    pub behind: bool,
    pub stage: Stage,
    pub main_result: Option<i32>,
    pub sync_result: Option<i32>,
    pub retries: u8,
}

#[cfg(test)]
impl WriteOp {
    /// A write that nobody waits for.
    pub(crate) fn behind(token: u64) -> WriteOp {
        WriteOp {
            file: 0,
            token,
            offset: 0,
            data: Pieces::Many(Vec::new()),
            total: 0,
            done: 0,
            asked: 0,
            iov: Vec::new(),
            sync_after: false,
            behind: true,
            stage: Stage::Write,
            main_result: None,
            sync_result: None,
            retries: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_keeps_slot_generation_and_part_apart() {
        for (slot, gen, part) in [(0, 0, 0), (u32::MAX, GEN_MASK, PART_NONE), (7, 9, PART_SYNC)] {
            assert_eq!(split_user_data(user_data(slot, gen, part)), (slot, gen, part));
        }
    }
}
