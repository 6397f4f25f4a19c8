//! Connections: ordered, with delays; a partition holds frames back or cuts the connection.

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
}

#[derive(Default)]
pub struct Net {
    pub ends: BTreeMap<LinkId, End>,
    next: LinkId,
    pub cut: BTreeSet<(Addr, Addr)>,
}

impl Net {
    pub fn is_cut(&self, a: Addr, b: Addr) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
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
        let end = self.ends.get_mut(&other)?;
        let slow = if rng.chance(2) { rng.within(1, 20) * 1_000_000 } else { 0 };
        let at = (now + rng.within(5, 300) * 1000 + slow).max(end.last);
        end.last = at;
        end.queue.push_back((at, frame));
        Some((other, at))
    }

    /// Takes the next frame that has arrived; `Err(when)`: later.
    pub fn take(&mut self, link: LinkId, now: u64) -> Result<Option<Frame>, u64> {
        let cut = match self.ends.get(&link) {
            Some(e) => self.is_cut(e.owner, e.far),
            None => return Ok(None),
        };
        let Some(end) = self.ends.get_mut(&link) else { return Ok(None) };
        match end.queue.front() {
            None => Ok(None),
            Some(_) if cut => Err(now + 5_000_000),
            Some((at, _)) if *at > now => Err(*at),
            Some(_) => Ok(end.queue.pop_front().map(|(_, f)| f)),
        }
    }

    /// Ends a connection: the other end, if it was there.
    pub fn close(&mut self, link: LinkId) -> Option<(LinkId, Addr, u64)> {
        let e = self.ends.remove(&link)?;
        let o = self.ends.remove(&e.other)?;
        Some((e.other, o.owner, o.gen))
    }

    /// Connections of a process.
    pub fn of(&self, a: Addr) -> Vec<LinkId> {
        self.ends.iter().filter(|(_, e)| e.owner == a).map(|(l, _)| *l).collect()
    }
}
