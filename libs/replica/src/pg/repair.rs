//! A page whose content does not match its checksum is replaced by a good copy from another member.
//!
//! The block is locked, writes in flight on it are waited for, every in-sync member is asked in turn for its
//! copy; only content of exactly our version is taken (the store checks it). Whoever needed the page goes on
//! then; without a good copy reads and merges of it are answered `Corrupt`, until it is overwritten (R25).
//! A block that was trimmed or written before its lock was got has nothing to repair: who needed it looks again.
//! While a copy is away that is listed and may have the page, they are told to try again instead, for a minute: it
//! comes back, or is replaced after the grace time.

use super::locks::{LockId, PageRange, Span};
use super::primary::Primary;
use super::request::Request;
use crate::codec::frame_copy;
use crate::cx::Cx;
use crate::event::{LinkId, Note};
use quarry_base::{DeviceId, Nanos, RequestId, Version};
use quarry_store::{AppendError, AppendId, BlockKey, RepairError};
use quarry_wire::{Frame, Op, Status};
use std::time::Duration;

/// A member that is there and does not answer is asked so often.
const ASKS: usize = 4;
/// A copy that is away is waited for so long: a restart takes less, and after it copies are made elsewhere (the usual
/// grace time).
const AWAY: Duration = Duration::from_secs(60);

pub(crate) struct Repair {
    key: BlockKey,
    /// Of our block when it was found damaged. At another one everybody looks again.
    version: Option<Version>,
    lock: LockId,
    /// Pages of it that are known to be damaged.
    bad: u16,
    /// They have no good copy, or are asked now.
    tried: Vec<DeviceId>,
    /// Was there and did not answer, each time once.
    unanswered: Vec<DeviceId>,
    asked: Option<Asked>,
    pub readers: Vec<Request>,
    merges: Vec<LockId>,
    for_sync: bool,
    /// The good copy is on its way to the device.
    healing: Option<AppendId>,
    /// The device takes nothing more: somebody else will lead, and the request waits for that.
    failed: bool,
}

/// A member was asked for its copy.
#[derive(Clone, Copy)]
struct Asked {
    device: DeviceId,
    link: LinkId,
    at: Nanos,
    /// The number of the question, which the answer repeats: a late answer to an earlier one says nothing.
    question: RequestId,
}

/// How a repair ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Mended,
    /// The block has no content any more, or other content.
    Gone,
    NoGoodCopy,
}

/// What comes next for a block under repair.
enum Next {
    Waits,
    End(End),
}

impl Primary {
    fn repair_of(&mut self, key: BlockKey, bad: u16, cx: &mut Cx) -> &mut Repair {
        let at = match self.repairs.iter().position(|r| r.key == key) {
            Some(i) => i,
            None => {
                cx.note(Note::Corruption { pg: self.pg, device: self.device, key });
                let lock = self.locks.take(Span::Pages(PageRange::of_block(key)));
                self.repairs.push(Repair {
                    key,
                    version: cx.store.block_version(self.pg, key),
                    bad: 0,
                    lock,
                    tried: Vec::new(),
                    unanswered: Vec::new(),
                    asked: None,
                    readers: Vec::new(),
                    merges: Vec::new(),
                    for_sync: false,
                    healing: None,
                    failed: false,
                });
                self.repairs.len() - 1
            }
        };
        let r = &mut self.repairs[at];
        r.bad |= bad;
        r
    }

    pub fn repair_for_read(&mut self, key: BlockKey, bad: u16, r: Request, cx: &mut Cx) {
        self.repair_of(key, bad, cx).readers.push(r);
    }
    pub fn repair_for_merge(&mut self, key: BlockKey, bad: u16, merge: LockId, cx: &mut Cx) {
        self.repair_of(key, bad, cx).merges.push(merge);
    }
    pub fn repair_for_sync(&mut self, key: BlockKey, bad: u16, cx: &mut Cx) {
        self.repair_of(key, bad, cx).for_sync = true;
    }

    /// The scrub, or any read, found a damaged page.
    pub fn repair_for_scrub(&mut self, key: BlockKey, bad: u16, cx: &mut Cx) {
        self.repair_of(key, bad, cx);
    }

    pub fn turn_repairs(&mut self, cx: &mut Cx) {
        let mut i = 0;
        while i < self.repairs.len() {
            if let Some(id) = self.repairs[i].healing {
                if cx.durable >= id {
                    self.end_repair(i, End::Mended, cx);
                } else {
                    i += 1;
                }
                continue;
            }
            if let Some(Asked { device, link, at, .. }) = self.repairs[i].asked {
                let due = at + cx.limits.fetch_timeout;
                let alive = self
                    .followers
                    .iter()
                    .any(|f| f.running_link() == Some(link) && f.member.device == device);
                if alive && cx.now < due {
                    self.wake_by(due);
                    i += 1;
                    continue;
                }
                self.unanswered(i, device, alive);
            }
            match self.ask_next(i, cx) {
                Next::Waits => i += 1,
                Next::End(end) => self.end_repair(i, end, cx),
            }
        }
    }

    /// Not having answered says nothing of a member's copy: its stream broke, or its disk is slow.
    fn unanswered(&mut self, i: usize, device: DeviceId, alive: bool) {
        let r = &mut self.repairs[i];
        r.asked = None;
        if alive {
            r.unanswered.push(device);
        }
        if r.unanswered.iter().filter(|d| **d == device).count() < ASKS {
            r.tried.retain(|d| *d != device);
        }
    }

    /// A listed device may have the page that is missing here: one that is away, or is sent what changed only.
    fn is_one_to_come(&self, key: BlockKey, now: Nanos) -> bool {
        if now.since(self.since) >= AWAY {
            return false;
        }
        let c = &self.cfg;
        c.listed.iter().filter(|d| !c.in_sync.iter().any(|m| m.device == **d)).any(|d| {
            let f = self.followers.iter().find(|f| f.member.device == *d);
            let sync = f.and_then(|f| f.sync.as_ref());
            sync.is_none_or(|s| s.since.is_some() && !s.bad.contains(&key))
        })
    }

    /// Is a record that touches the block not applied?
    fn is_written(&mut self, key: BlockKey, cx: &Cx) -> bool {
        self.in_flight(&Span::Pages(PageRange::of_block(key)), cx)
    }

    /// Is the block another one than when it was found damaged?
    fn has_changed(&self, i: usize, cx: &Cx) -> bool {
        let now = cx.store.block_version(self.pg, self.repairs[i].key);
        now.is_none() || now != self.repairs[i].version
    }

    /// Asks the next member, if one is left and the block is still there.
    fn ask_next(&mut self, i: usize, cx: &mut Cx) -> Next {
        let key = self.repairs[i].key;
        // A merge that waits for this very repair holds an older lock: it does not go on before us.
        if self.is_written(key, cx) {
            return Next::Waits;
        }
        // Trimmed or written meanwhile: what was found says nothing of what is there now.
        if self.has_changed(i, cx) {
            return Next::End(End::Gone);
        }
        let next = self.followers.iter().position(|f| {
            f.in_sync && f.is_running() && !self.repairs[i].tried.contains(&f.member.device)
        });
        let Some(m) = next else {
            // One whose stream is down may come back, or be taken out.
            let tried = &self.repairs[i].tried;
            let one_is_down = self
                .followers
                .iter()
                .any(|f| f.in_sync && !f.is_running() && !tried.contains(&f.member.device));
            return if one_is_down { Next::Waits } else { Next::End(End::NoGoodCopy) };
        };
        self.tell_commit(m, cx);
        let f = &self.followers[m];
        let (device, Some(link)) = (f.member.device, f.running_link()) else {
            return Next::End(End::NoGoodCopy);
        };
        self.questions += 1;
        let question = RequestId(self.questions);
        self.repairs[i].tried.push(device);
        self.repairs[i].asked = Some(Asked { device, link, at: cx.now, question });
        let mut h = cx.header(Op::FetchBlock, self.pg);
        h.epoch = self.epoch;
        h.commit = self.commit;
        h.request_id = question;
        (h.vtree, h.layer, h.extent, h.offset) = (key.vtree, key.layer, key.extent, key.offset());
        cx.send(link, Frame::bare(h));
        self.wake_by(cx.now + cx.limits.fetch_timeout);
        Next::Waits
    }

    /// A member's copy of a block.
    pub fn on_block_data(&mut self, link: LinkId, frame: &Frame, cx: &mut Cx) {
        let question = frame.header.request_id;
        let asked = |r: &Repair| r.asked.is_some_and(|a| a.link == link && a.question == question);
        let Some(i) = self.repairs.iter().position(asked) else { return };
        let Some(asked) = self.repairs[i].asked.take() else { return };
        let key = self.repairs[i].key;
        // A merge that was let in before the repair has changed our block: this is not what is needed any more.
        if self.is_written(key, cx) || self.has_changed(i, cx) {
            return self.repairs[i].tried.retain(|d| *d != asked.device);
        }
        if frame.header.status != Status::Ok {
            return;
        }
        // It may be silent about pages that are damaged there. Who needs others of ours looks once more, and finds nobody.
        let bad = self.repairs[i].bad;
        let Some(copy) = frame_copy(frame).filter(|c| c.key == key && c.valid & bad != 0) else {
            return;
        };
        match cx.store.repair(self.pg, copy) {
            Ok(id) => {
                cx.appends.push_back((id, cx.group));
                self.repairs[i].healing = Some(id);
            }
            // Later, from the same member: the log is full now.
            Err(RepairError::Append(AppendError::LogFull)) => {
                self.repairs[i].tried.pop();
            }
            Err(RepairError::Append(AppendError::Failed)) => self.repairs[i].failed = true,
            Err(_) => {}
        }
    }

    fn end_repair(&mut self, i: usize, end: End, cx: &mut Cx) {
        let r = self.repairs.remove(i);
        self.locks.release(r.lock);
        match end {
            End::Mended => {
                cx.stats.repairs += 1;
                cx.note(Note::Repaired { pg: self.pg, device: self.device, key: r.key });
            }
            End::Gone => {}
            End::NoGoodCopy => {
                cx.stats.no_good_copy += 1;
                cx.note(Note::NoGoodCopy { pg: self.pg, key: r.key });
            }
        }
        let good = end != End::NoGoodCopy;
        // One that counts and never answers is judged by others: it leaves the set, or has its copy yet.
        let silent =
            self.followers.iter().any(|f| f.in_sync && r.unanswered.contains(&f.member.device));
        let waits = r.failed || silent || self.is_one_to_come(r.key, cx.now);
        let bad = if waits { Status::TryAgain } else { Status::Corrupt };
        for req in r.readers {
            if good {
                self.start_read(req, cx);
            } else {
                self.answer(&req, bad, cx);
            }
        }
        for lock in r.merges {
            if good {
                if let Some(m) = self.merges.iter_mut().find(|m| m.lock == lock) {
                    m.repairing = false;
                }
            } else {
                self.fail_merge(lock, bad, cx);
            }
        }
        if r.for_sync && good {
            self.sync_repaired(r.key);
        }
    }
}
