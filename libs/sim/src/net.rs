//! Connections: ordered, with delays; a partition holds frames back, in one direction or both. A connection
//! that ends may still deliver what was on its way (late requests), or lose it.

use crate::rng::Rng;
use quarry_replica::LinkId;
use quarry_wire::Frame;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A process in the simulation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Addr {
    Sds(usize),
    Sdc(usize),
    Mdm,
}

/// One end of a connection.
pub struct End {
    pub owner: Addr,
    pub gen: u64,
    pub other: LinkId,
    pub far: Addr,
    /// On their way here: when they may be read.
    pub queue: VecDeque<(u64, Frame)>,
    last: u64,
    /// What is on its way here stands still until then.
    stalled_until: u64,
    /// The far end is gone; the owner learns it at this time.
    closed_at: Option<u64>,
}

/// Who has to be told that a connection ended, and when.
pub struct Ended {
    pub link: LinkId,
    pub owner: Addr,
    pub gen: u64,
    pub at: u64,
}

#[derive(Default)]
pub struct Net {
    pub ends: BTreeMap<LinkId, End>,
    next: LinkId,
    /// From whom to whom nothing comes through.
    cut: BTreeSet<(Addr, Addr)>,
}

impl Net {
    /// Nothing comes from `a` to `b`.
    pub fn is_cut(&self, a: Addr, b: Addr) -> bool {
        self.cut.contains(&(a, b))
    }

    /// No connection can be made between them.
    pub fn is_apart(&self, a: Addr, b: Addr) -> bool {
        self.is_cut(a, b) || self.is_cut(b, a)
    }

    pub fn cut(&mut self, a: Addr, b: Addr) {
        self.cut.insert((a, b));
    }

    pub fn heal(&mut self, a: Addr, b: Addr) {
        self.cut.remove(&(a, b));
        self.cut.remove(&(b, a));
    }

    pub fn heal_all(&mut self) {
        self.cut.clear();
    }

    /// A connection between two processes: the numbers of its ends.
    pub fn connect(&mut self, a: (Addr, u64), b: (Addr, u64)) -> (LinkId, LinkId) {
        let (x, y) = (self.next + 1, self.next + 2);
        self.next = y;
        let end = |owner: (Addr, u64), far: Addr, other| End {
            owner: owner.0,
            gen: owner.1,
            other,
            far,
            queue: VecDeque::new(),
            last: 0,
            stalled_until: 0,
            closed_at: None,
        };
        self.ends.insert(x, end(a, b.0, y));
        self.ends.insert(y, end(b, a.0, x));
        (x, y)
    }

    /// Puts a frame on its way. Where and when to look for it.
    pub fn send(
        &mut self,
        from: LinkId,
        frame: Frame,
        now: u64,
        rng: &mut Rng,
    ) -> Option<(LinkId, u64)> {
        let other = self.ends.get(&from)?.other;
        let end = self.ends.get_mut(&other).filter(|e| e.closed_at.is_none())?;
        let slow = if rng.chance(2) { rng.within(1, 20) * 1_000_000 } else { 0 };
        let at = (now + rng.within(5, 300) * 1000 + slow).max(end.last);
        end.last = at;
        end.queue.push_back((at, frame));
        Some((other, at))
    }

    /// Takes the next frame that has arrived; `Err(when)`: later.
    pub fn take(&mut self, link: LinkId, now: u64) -> Result<Option<Frame>, u64> {
        let cut = match self.ends.get(&link) {
            Some(e) => self.is_cut(e.far, e.owner),
            None => return Ok(None),
        };
        let Some(end) = self.ends.get_mut(&link) else { return Ok(None) };
        match end.queue.front() {
            None => Ok(None),
            Some(_) if cut => Err(now + 5_000_000),
            Some(_) if end.stalled_until > now => Err(end.stalled_until),
            Some((at, _)) if *at > now => Err(*at),
            Some(_) => Ok(end.queue.pop_front().map(|(_, f)| f)),
        }
    }

    /// One end is closed at once; the other takes what is on its way if `late`, and learns the end.
    pub fn close(&mut self, link: LinkId, late: bool, now: u64, rng: &mut Rng) -> Option<Ended> {
        let e = self.ends.remove(&link)?;
        let o = self.ends.get_mut(&e.other).filter(|o| o.closed_at.is_none())?;
        let soon = now + rng.within(10, 2000) * 1000;
        let at = if late { soon.max(o.last + 1000) } else { soon };
        o.closed_at = Some(at);
        Some(Ended { link: e.other, owner: o.owner, gen: o.gen, at })
    }

    /// What is on its way in both directions stands still for a while.
    pub fn stall(&mut self, link: LinkId, until: u64) {
        let Some(e) = self.ends.get_mut(&link) else { return };
        e.stalled_until = until;
        let other = e.other;
        if let Some(o) = self.ends.get_mut(&other) {
            o.stalled_until = until;
        }
    }

    /// The owner has learned that its connection ended. False: it knew.
    pub fn forget(&mut self, link: LinkId) -> bool {
        self.ends.remove(&link).is_some()
    }

    /// Connections of a process.
    pub fn of(&self, a: Addr) -> Vec<LinkId> {
        self.ends.iter().filter(|(_, e)| e.owner == a).map(|(l, _)| *l).collect()
    }
}
