//! The reactor itself: set-up, the turn, the end.
//!
//! A turn: build the sends of all connections with something queued, put what waits into the
//! submission queue, enter the kernel once (submitting, and waiting if nothing is at hand), carry out
//! what concerns files in memory, take all completions. Handlers put events in `ready`; the turn
//! hands them out at its end.
#![allow(unsafe_code)]

use crate::arena::Arena;
use crate::config::{RingStats, SHUTDOWN_PATIENCE};
use crate::disk::File;
use crate::ended::Ended;
use crate::listen::Listener;
use crate::net::Conn;
use crate::op::{split_user_data, user_data, Op, OpKind, PART_MAIN, PART_NONE, PART_SYNC};
use crate::probe::open_ring;
use crate::submit::Queued;
use crate::waker::WakeShared;
use crate::{ConnId, Event, Probe, RecvBuf, RingConfig, RingError, Waker};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{opcode, IoUring};
use quarry_base::Nanos;
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// IORING_ENTER_GETEVENTS: run what completed and post it.
const ENTER_GETEVENTS: u32 = 1;

/// One thread's ring with its connections, files and operations. Not `Send`: it is made, turned and
/// dropped on one thread (the kernel insists on it with `SINGLE_ISSUER`).
pub struct Reactor {
    pub(crate) ring: IoUring,
    pub(crate) cfg: RingConfig,
    probe: Probe,
    pub(crate) now: Nanos,
    wake: Arc<WakeShared>,
    pub(crate) ops: Slab<Op>,
    pub(crate) next_gen: u32,
    /// Entries the submission queue had no room for, in order.
    pub(crate) backlog: VecDeque<Queued>,
    pub(crate) conns: Arena<Conn>,
    pub(crate) listeners: Arena<Listener>,
    pub(crate) files: Arena<File>,
    /// Connections with something to send; may name some twice or dead ones.
    pub(crate) dirty: Vec<u32>,
    /// Connections that end when their queue is empty, with their latest time.
    pub(crate) flushing: Vec<(ConnId, Nanos)>,
    /// Listeners that do not accept at the moment.
    pub(crate) paused_listeners: usize,
    /// File operations in the kernel.
    pub(crate) disk_inflight: usize,
    /// File operations (slots) waiting because of `max_inflight`.
    pub(crate) disk_waiting: VecDeque<u32>,
    /// Operations (slots) on files in memory, carried out after the next submission.
    pub(crate) inline_due: VecDeque<u32>,
    /// The last round did not enter the kernel.
    skipped_enter: bool,
    /// Completed sends of open connections, so far.
    pub(crate) quiet: u64,
    /// Iovec arrays to use again.
    pub(crate) spare_iov: Vec<Vec<libc::iovec>>,
    /// Events for the end of this turn or of the next.
    pub(crate) ready: Vec<Event>,
    /// File operations that have ended and are to be told of.
    pub(crate) ended: Ended,
    pub(crate) stopping: bool,
    pub(crate) stats: RingStats,
    not_send: PhantomData<*mut ()>,
}

/// `CLOCK_BOOTTIME` now, for threads without a reactor.
pub fn now_boottime() -> Nanos {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Nanos((t.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(t.tv_nsec as u64))
}

impl Reactor {
    /// Sets up a ring for the calling thread with the best flags the kernel offers.
    pub fn new(cfg: RingConfig) -> Result<Reactor, RingError> {
        Reactor::with_step(cfg, 0)
    }

    /// As `new`, but leaves out the first `step` flag sets, as an older kernel would (see
    /// [`Probe::flags`]; 3 is no flags at all).
    #[doc(hidden)]
    pub fn with_step(cfg: RingConfig, step: usize) -> Result<Reactor, RingError> {
        let (ring, probe) = open_ring(&cfg, step.min(crate::probe::STEPS.len() - 1))?;
        let wake = WakeShared::new().map_err(|source| RingError::Setup { source })?;
        let mut r = Reactor {
            ring,
            ops: Slab::with_capacity(cfg.entries as usize),
            cfg,
            probe,
            now: now_boottime(),
            wake: Arc::new(wake),
            next_gen: 0,
            backlog: VecDeque::new(),
            conns: Arena::new(),
            listeners: Arena::new(),
            files: Arena::new(),
            dirty: Vec::new(),
            flushing: Vec::new(),
            paused_listeners: 0,
            disk_inflight: 0,
            disk_waiting: VecDeque::new(),
            inline_due: VecDeque::new(),
            skipped_enter: false,
            quiet: 0,
            spare_iov: Vec::new(),
            ready: Vec::new(),
            ended: Ended::default(),
            stopping: false,
            stats: RingStats::default(),
            not_send: PhantomData,
        };
        r.arm_wake();
        Ok(r)
    }

    /// What was found at set-up.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// `CLOCK_BOOTTIME`, read once a turn.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// A handle for other threads.
    pub fn waker(&self) -> Waker {
        Waker { shared: Arc::clone(&self.wake) }
    }

    /// A fresh receive buffer of the configured size.
    pub fn recv_buf(&self) -> RecvBuf {
        RecvBuf::new(self.cfg.recv_buf_bytes.max(1))
    }

    /// What happened so far.
    pub fn stats(&self) -> &RingStats {
        &self.stats
    }

    /// Submits everything queued, waits for at least one completion or until `wait_until` (`None`:
    /// no limit; a time in the past: not at all), then adds everything that happened to `out`.
    ///
    /// May return early without an event. Does not wait while events are at hand. An error is
    /// final: the ring is unusable.
    pub fn turn(
        &mut self,
        wait_until: Option<Nanos>,
        out: &mut Vec<Event>,
    ) -> Result<(), RingError> {
        self.stats.turns += 1;
        while self.round(wait_until)? {}
        self.stats.conns = self.conns.len() as u64;
        self.stats.inflight = (self.ops.len() + self.ended.len()) as u64;
        out.append(&mut self.ready);
        Ok(())
    }

    /// Submits, waits, takes completions. True: there is another round, as all that happened was that
    /// the kernel took what was sent, which is nobody's business but ours.
    fn round(&mut self, wait_until: Option<Nanos>) -> Result<bool, RingError> {
        // What the kernel finished while it took something over is at hand without asking it: mostly sends that went
        // ahead of the turn. With those out of the way this enter can wait at once.
        if !self.ring.completion().is_empty() {
            self.take_completions();
        }
        self.service_listeners();
        self.service_flushing();
        // Nothing for peers is held up by files in memory alone: what comes of them goes along with the
        // next submission. Never twice in a row, or the kernel's completions would wait.
        let alone = !self.inline_due.is_empty() && self.dirty.is_empty() && !self.skipped_enter;
        self.skipped_enter = alone;
        if !alone {
            self.flush_sends();
            self.flush_backlog();
            self.enter(wait_until)?;
        }
        self.run_inline();
        self.now = now_boottime();
        let before = (self.stats.cqes, self.quiet);
        self.take_completions();
        self.tell_ended();
        if self.wake.take() {
            self.ready.push(Event::Woken);
        }
        let taken = self.stats.cqes - before.0;
        Ok(taken > 0 && self.quiet - before.1 == taken && self.ready.is_empty())
    }

    /// The earlier of the caller's deadline and our own.
    fn deadline(&self, wait_until: Option<Nanos>) -> Option<Nanos> {
        let flush = self.flushing.iter().map(|(_, at)| *at).min();
        let accept = if self.paused_listeners > 0 { self.accept_retry_at() } else { None };
        [wait_until, flush, accept].into_iter().flatten().min()
    }

    fn enter(&mut self, wait_until: Option<Nanos>) -> Result<(), RingError> {
        let mut block = self.ready.is_empty()
            && self.inline_due.is_empty()
            && self.backlog.is_empty()
            && self.ended.is_empty()
            && self.ring.completion().is_empty();
        let mut wait = None;
        if block {
            if let Some(at) = self.deadline(wait_until) {
                let left = at.since(now_boottime());
                block = !left.is_zero();
                wait = Some(Timespec::new().sec(left.as_secs()).nsec(left.subsec_nanos()));
            }
        }
        block = block && self.wake.may_sleep();
        self.stats.enters += 1;
        let to_submit = self.ring.submission().len() as u32;
        let submitter = self.ring.submitter();
        let result = match (&wait, block) {
            (Some(ts), true) => submitter.submit_with_args(1, &SubmitArgs::new().timespec(ts)),
            // SAFETY: no argument is passed; the entries submitted obey the rule in `submit.rs`.
            // GETEVENTS always: deferred completions are posted only by an enter that asks.
            _ => unsafe {
                submitter.enter::<libc::sigset_t>(
                    to_submit,
                    u32::from(block),
                    ENTER_GETEVENTS,
                    None,
                )
            },
        };
        self.wake.awake();
        match result.map_err(|e| (e.raw_os_error(), e)) {
            Ok(_) => Ok(()),
            // Time over, a signal, or the kernel wants completions taken or memory: next turn.
            Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => Ok(()),
            Err((_, source)) => Err(RingError::Enter { source }),
        }
    }

    /// Takes what is complete; file operations wait in `ended`.
    fn take_completions(&mut self) {
        loop {
            let next = self.ring.completion().next();
            let Some((ud, result)) = next.map(|c| (c.user_data(), c.result())) else { return };
            self.stats.cqes += 1;
            self.complete(ud, result);
        }
    }

    /// Of file operations no more than `disk_batch` a turn, the rest comes with the next ones.
    fn tell_ended(&mut self) {
        for _ in 0..self.cfg.disk_batch.max(1) {
            let Some((kind, result)) = self.ended.next() else { return };
            self.on_disk(kind, result);
        }
    }

    fn complete(&mut self, ud: u64, result: i32) {
        let (slot, gen, part) = split_user_data(ud);
        if part == PART_NONE {
            return;
        }
        match self.ops.get_mut(slot as usize) {
            Some(op) if op.gen == gen => {
                if let OpKind::Write(w) = &mut op.kind {
                    if !w.collect(part == PART_SYNC, result) {
                        return;
                    }
                }
            }
            _ => {
                self.stats.stray_cqes += 1;
                return;
            }
        }
        let kind = self.ops.remove(slot as usize).kind;
        match kind {
            OpKind::Wake(buf) => self.on_wake(buf),
            OpKind::Accept { listener } => self.on_accept(listener, result),
            OpKind::Connect { conn, addr } => {
                drop(addr);
                self.on_connect(conn, result);
            }
            OpKind::Recv { conn, buf } => self.on_recv(conn, buf, result),
            OpKind::Send { conn } => self.on_send(conn, result),
            disk => self.ended.put(disk, result),
        }
    }

    fn arm_wake(&mut self) {
        self.arm_wake_with(Box::new([0; 8]));
    }

    fn arm_wake_with(&mut self, mut buf: Box<[u8; 8]>) {
        let (ptr, fd) = (buf.as_mut_ptr(), self.wake.fd.as_raw_fd());
        let (slot, gen) = self.store_op(OpKind::Wake(buf));
        let entry = opcode::Read::new(Fd(fd), ptr, 8).build();
        self.push(entry.user_data(user_data(slot, gen, PART_MAIN)), None);
    }

    fn on_wake(&mut self, buf: Box<[u8; 8]>) {
        // Whether a wake-up is to be told is in the shared flag, not in this count.
        if !self.stopping {
            self.arm_wake_with(buf);
        }
    }

    /// Cancels everything, waits until the kernel has given all buffers back, and ends.
    pub fn shutdown(self) {
        drop(self);
    }

    fn quiesce(&mut self) -> Result<(), RingError> {
        self.stopping = true;
        for index in self.listeners.indices() {
            self.close_listener_index(index);
        }
        for index in self.conns.indices() {
            self.teardown(index);
        }
        // Their times are no deadlines any more.
        self.flushing.clear();
        while let Some(slot) = self.disk_waiting.pop_front() {
            // Never reached the kernel: nothing to wait for.
            self.ops.try_remove(slot as usize);
        }
        self.run_inline();
        // File operations are left to end by themselves: a write given up half-way helps nobody.
        let rest: Vec<u64> = self
            .ops
            .iter()
            .filter(|(_, op)| matches!(op.kind, OpKind::Wake(_)))
            .map(|(slot, op)| user_data(slot as u32, op.gen, PART_MAIN))
            .collect();
        for target in rest {
            self.cancel(target);
        }
        let limit = now_boottime() + SHUTDOWN_PATIENCE;
        while !(self.ops.is_empty() && self.ended.is_empty()) && now_boottime() < limit {
            self.flush_backlog();
            self.ready.clear();
            // An untold wake-up would keep us from sleeping.
            self.wake.take();
            self.enter(Some(limit))?;
            self.take_completions();
            self.tell_ended();
        }
        Ok(())
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        let ended = self.quiesce();
        if self.ops.is_empty() {
            return;
        }
        tracing::error!(
            operations = self.ops.len(),
            error = ended.err().map(|e| e.to_string()),
            "operations outlived the reactor; their buffers are leaked, the kernel may still use them"
        );
        std::mem::forget(std::mem::take(&mut self.ops));
        std::mem::forget(std::mem::replace(&mut self.conns, Arena::new()));
    }
}

/// An errno from a negative result.
pub(crate) fn errno(result: i32) -> i32 {
    -result
}

/// Errors after which the same operation is worth another try.
pub(crate) fn is_transient(result: i32) -> bool {
    matches!(errno(result), libc::EINTR | libc::EAGAIN)
}

/// The same as `io::Error` for logs.
pub(crate) fn error_of(result: i32) -> io::Error {
    io::Error::from_raw_os_error(errno(result))
}
