//! Waking a reactor from other threads.
//!
//! `pending` says that a wake-up is not yet told; `sleeping` that the reactor may be in the kernel.
//! A waker sets `pending`, then looks at `sleeping`; the reactor sets `sleeping`, then looks at
//! `pending` (all sequentially consistent). So at least one of them sees the other and no wake-up
//! is lost, while a busy reactor costs its wakers no system call.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;

pub(crate) struct WakeShared {
    /// An eventfd; the reactor always has a read pending on it.
    pub(crate) fd: OwnedFd,
    pending: AtomicBool,
    sleeping: AtomicBool,
}

impl WakeShared {
    pub(crate) fn new() -> std::io::Result<WakeShared> {
        // Blocking on purpose: io_uring fails reads of non-blocking files instead of waiting.
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        Ok(WakeShared { fd, pending: AtomicBool::new(false), sleeping: AtomicBool::new(false) })
    }

    /// The reactor is about to block. False: do not, a wake-up is pending.
    pub(crate) fn may_sleep(&self) -> bool {
        self.sleeping.store(true, SeqCst);
        !self.pending.load(SeqCst)
    }

    /// The reactor is awake again.
    pub(crate) fn awake(&self) {
        self.sleeping.store(false, SeqCst);
    }

    /// Whether a wake-up was pending; it is not any more. What its sender wrote before is visible.
    pub(crate) fn take(&self) -> bool {
        self.pending.load(SeqCst) && self.pending.swap(false, SeqCst)
    }
}

/// Makes `Reactor::turn` return with `Event::Woken`. Calls before the reactor has told it count as one.
#[derive(Clone)]
pub struct Waker {
    pub(crate) shared: Arc<WakeShared>,
}

impl Waker {
    /// Wakes the reactor: everything written before this call is visible to it when it sees `Woken`.
    /// Cheap when a wake-up is pending already or the reactor is busy. After the reactor's end: nothing.
    pub fn wake(&self) {
        if self.shared.pending.swap(true, SeqCst) || !self.shared.sleeping.load(SeqCst) {
            return;
        }
        while let Err(e) = rustix::io::write(&self.shared.fd, &1u64.to_ne_bytes()) {
            if e != rustix::io::Errno::INTR {
                // Only possible with a full counter, and then the reactor has a wake-up to read.
                tracing::error!(error = %e, "waking a reactor failed");
                return;
            }
        }
    }
}
