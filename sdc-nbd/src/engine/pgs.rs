//! Placement groups as a client sees them: ids, the window, what waits to be sent.
//!
//! Invariants: ids of a group grow by one and are given when a part is first sent; an id belongs to
//! its part until that is answered, whatever server it is sent to, or, of a part that changes nothing,
//! refused; `low` is the lowest id not answered, or the next one to give.

use super::types::Target;
use quarry_base::{DeviceId, Epoch, Nanos, PgId, RequestId, VolumeId};
use std::collections::{HashMap, VecDeque};

/// One placement group.
pub(super) struct Pg {
    pub id: PgId,
    /// Newest configuration known, cached from the view.
    pub epoch: Epoch,
    pub device: Option<DeviceId>,
    pub target: Option<Target>,
    low: u64,
    /// Part keys of the ids from `low` on; `None`: answered.
    window: VecDeque<Option<usize>>,
    pub in_flight: usize,
    /// Ids to send (again) as soon as a link stands; those not waiting any more are skipped.
    pub resend: VecDeque<u64>,
    /// Ids refused for the moment, sent again when the hold ends.
    pub held: Vec<u64>,
    /// Parts refused for the moment that have given their id back, with when they are queued anew.
    pub put_off: Vec<(Nanos, VolumeId, usize)>,
    /// How often one was put off since the last request that the group did not refuse.
    pub refusing: usize,
    /// Refusals in a row.
    pub refusals: u32,
    pub hold_armed: bool,
    /// Parts never sent, a queue a volume, served in turn.
    ready: VecDeque<(VolumeId, VecDeque<usize>)>,
    pub dirty: bool,
}

impl Pg {
    fn new(id: PgId) -> Pg {
        Pg {
            id,
            epoch: Epoch::ZERO,
            device: None,
            target: None,
            low: 1,
            window: VecDeque::new(),
            in_flight: 0,
            resend: VecDeque::new(),
            held: Vec::new(),
            put_off: Vec::new(),
            refusing: 0,
            refusals: 0,
            hold_armed: false,
            ready: VecDeque::new(),
            dirty: false,
        }
    }

    /// The lowest id not answered.
    pub(super) fn lowest(&self) -> RequestId {
        RequestId(self.low)
    }

    /// How many ids the window spans.
    pub(super) fn span(&self) -> u64 {
        self.window.len() as u64
    }

    /// Gives a part its id.
    pub(super) fn give_id(&mut self, key: usize) -> u64 {
        let id = self.low + self.window.len() as u64;
        self.window.push_back(Some(key));
        self.in_flight += 1;
        id
    }

    /// The part of an id that is not answered.
    pub(super) fn part(&self, id: u64) -> Option<usize> {
        let at = usize::try_from(id.checked_sub(self.low)?).ok()?;
        self.window.get(at).copied().flatten()
    }

    /// The id is answered (or given up).
    pub(super) fn answered(&mut self, id: u64) {
        let slot = id.checked_sub(self.low).and_then(|at| self.window.get_mut(at as usize));
        let had = slot.and_then(Option::take);
        assert!(had.is_some(), "an id is answered once");
        self.in_flight -= 1;
        while let Some(None) = self.window.front() {
            self.window.pop_front();
            self.low += 1;
        }
    }

    /// Part keys and ids that are not answered, ascending.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        let low = self.low;
        self.window.iter().enumerate().filter_map(move |(i, k)| Some((low + i as u64, (*k)?)))
    }

    /// Queues a part that was never sent.
    pub(super) fn push_ready(&mut self, volume: VolumeId, key: usize) {
        match self.ready.iter_mut().find(|(v, _)| *v == volume) {
            Some((_, q)) => q.push_back(key),
            None => self.ready.push_back((volume, VecDeque::from([key]))),
        }
    }

    /// The next part never sent: volumes take turns.
    pub(super) fn pop_ready(&mut self) -> Option<usize> {
        let (volume, mut queue) = self.ready.pop_front()?;
        let key = queue.pop_front();
        if !queue.is_empty() {
            self.ready.push_back((volume, queue));
        }
        key
    }

    /// Parts that count against the limit of those in flight. Where nothing but refusals comes those put off do too: else a
    /// group that refuses everything would be asked for one part after another without end.
    pub(super) fn busy(&self) -> usize {
        self.in_flight + if self.refusing > 0 { self.put_off.len() } else { 0 }
    }

    /// Queues the parts that were put off until `now`, or all of them, as if they had never been sent.
    pub(super) fn queue_put_off(&mut self, now: Option<Nanos>) {
        let due = |at: Nanos| now.is_none_or(|now| at <= now);
        let (go, stay) = std::mem::take(&mut self.put_off).into_iter().partition(|p| due(p.0));
        self.put_off = stay;
        let go: Vec<(Nanos, VolumeId, usize)> = go;
        go.into_iter().for_each(|(_, volume, key)| self.push_ready(volume, key));
    }

    /// Forgets the parts of a volume that have no id.
    pub(super) fn drop_ready(&mut self, volume: VolumeId) {
        self.ready.retain(|(v, _)| *v != volume);
        self.put_off.retain(|(_, v, _)| *v != volume);
    }

    /// Forgets one part that has no id.
    pub(super) fn unready(&mut self, volume: VolumeId, key: usize) {
        self.put_off.retain(|(_, _, k)| *k != key);
        if let Some(i) = self.ready.iter().position(|(v, _)| *v == volume) {
            self.ready[i].1.retain(|k| *k != key);
            if self.ready[i].1.is_empty() {
                self.ready.remove(i);
            }
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether something waits for a link.
    pub(super) fn wants_link(&self) -> bool {
        !self.ready.is_empty() || !self.resend.is_empty()
    }
}

/// All groups met so far. A group keeps its number: there are as many as the pools used here have.
#[derive(Default)]
pub(super) struct Pgs {
    index: HashMap<PgId, usize>,
    pub list: Vec<Pg>,
}

impl Pgs {
    /// The number of a group, and whether it is new.
    pub(super) fn number(&mut self, id: PgId) -> (usize, bool) {
        match self.index.get(&id) {
            Some(n) => (*n, false),
            None => {
                let n = self.list.len();
                self.index.insert(id, n);
                self.list.push(Pg::new(id));
                (n, true)
            }
        }
    }

    pub(super) fn find(&self, id: PgId) -> Option<usize> {
        self.index.get(&id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_base::PoolId;

    #[test]
    fn the_lowest_unanswered_id_follows_the_answers() {
        let mut p = Pg::new(PgId::new(PoolId(1), 0));
        assert_eq!(p.lowest(), RequestId(1));
        assert_eq!([p.give_id(10), p.give_id(11), p.give_id(12)], [1, 2, 3]);
        p.answered(2);
        assert_eq!((p.lowest(), p.span(), p.in_flight), (RequestId(1), 3, 2));
        assert_eq!(
            (p.part(1), p.part(2), p.part(3), p.part(0), p.part(4)),
            (Some(10), None, Some(12), None, None)
        );
        p.answered(1);
        assert_eq!((p.lowest(), p.span()), (RequestId(3), 1));
        p.answered(3);
        assert_eq!((p.lowest(), p.give_id(13)), (RequestId(4), 4));
        assert_eq!(p.unanswered().collect::<Vec<_>>(), [(4, 13)]);
    }

    #[test]
    fn volumes_take_turns() {
        let mut p = Pg::new(PgId::new(PoolId(1), 0));
        for k in 0..4 {
            p.push_ready(VolumeId(1), k);
        }
        p.push_ready(VolumeId(2), 100);
        let order: Vec<usize> = std::iter::from_fn(|| p.pop_ready()).collect();
        assert_eq!(order, [0, 100, 1, 2, 3]);
    }
}
