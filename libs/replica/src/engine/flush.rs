//! Once a reactor turn: due timers, the stores, the groups that were touched.

use super::Engine;
use crate::event::{Action, Note};
use crate::pg::{Pg, Purpose};
use quarry_base::Nanos;
use quarry_store::{AppendId, BlockCopy, DiskOp, ReadData, ReadError, StoreEvent};

/// What a store read ended with.
enum Done {
    Range(Result<ReadData, ReadError>),
    Block(Result<Option<BlockCopy>, ReadError>),
}

impl Engine {
    /// Does everything that is due: polls the stores, moves the touched groups on, sends what was collected.
    pub fn flush(&mut self, now: Nanos, out: &mut Vec<Action>) {
        self.born.get_or_insert(now);
        while let Some(&(at, g)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            if let Some(pg) = self.groups.get_mut(g) {
                pg.wake = Nanos::MAX;
            }
            self.touch(g);
        }
        loop {
            let busy = self.poll_stores(now, out);
            let dirty = std::mem::take(&mut self.dirty);
            if dirty.is_empty() && !busy {
                break;
            }
            for g in dirty {
                self.turn(g, now, out);
            }
            self.close_links(now, out);
            for d in 0..self.devices.len() {
                // What streams have and do not need is called in.
                if std::mem::take(&mut self.devices[d].ledger.news) {
                    self.touch_device(d);
                }
            }
        }
        self.ask_due(now, out);
        self.links.end_silent(now);
        self.close_links(now, out);
        self.links.dial(now, self.cfg.limits.redial_every, out);
        self.turn_hand_over(out);
        self.settle_barriers();
    }

    /// Gets what the last events appended on its way to the logs, ahead of the rest of [`Engine::flush`], which
    /// has to follow all the same.
    pub fn write_logs(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let mut ops: Vec<DiskOp> = Vec::new();
        for dev in &mut self.devices {
            dev.store.poll_appends(now, &mut ops);
            let device = dev.id;
            out.extend(ops.drain(..).map(|op| Action::Disk { device, op }));
        }
    }

    /// When [`Engine::flush`] has something to do next by itself.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let stores = self.devices.iter().filter_map(|d| d.store.next_deadline()).min();
        let timer = self.timers.first().map(|(at, _)| *at);
        [stores, timer, self.links.next_due(), self.next_ask()].into_iter().flatten().min()
    }

    fn touch_device(&mut self, d: usize) {
        for g in 0..self.groups.len() {
            if self.groups[g].dev == d {
                self.touch(g);
            }
        }
    }

    fn turn(&mut self, g: usize, now: Nanos, out: &mut Vec<Action>) {
        let before = self.groups[g].wake;
        self.with(g, now, out, Pg::turn);
        let pg = &mut self.groups[g];
        // `with` marks for the next round; this was the round.
        pg.dirty = false;
        self.dirty.retain(|d| *d != g);
        if pg.wake != before {
            self.timers.remove(&(before, g));
            if pg.wake != Nanos::MAX {
                self.timers.insert((pg.wake, g));
            }
        }
    }

    /// Hands out disk operations, takes events. True if there were events.
    fn poll_stores(&mut self, now: Nanos, out: &mut Vec<Action>) -> bool {
        let mut any = false;
        let mut ops: Vec<DiskOp> = Vec::new();
        let mut events: Vec<StoreEvent> = Vec::new();
        for d in 0..self.devices.len() {
            let dev = &mut self.devices[d];
            dev.store.poll(now, &mut ops, &mut events);
            let device = dev.id;
            out.extend(ops.drain(..).map(|op| Action::Disk { device, op }));
            for e in events.drain(..) {
                any = true;
                self.on_store(d, e, now, out);
            }
        }
        any
    }

    fn on_store(&mut self, d: usize, e: StoreEvent, now: Nanos, out: &mut Vec<Action>) {
        match e {
            StoreEvent::Stable { upto } => self.durable(d, upto, now, out),
            StoreEvent::Placed { pg, intent, by } => {
                let Some(&g) = self.index.get(&pg) else { return };
                self.with(g, now, out, |pg, _| pg.copy_placed(intent, by));
                let appends = &mut self.devices[d].appends;
                let at = appends.partition_point(|(id, _)| *id < by);
                appends.insert(at, (by, g));
            }
            StoreEvent::LogSpace => self.touch_device(d),
            StoreEvent::ReadDone { token, result } => {
                self.on_read_done(token, Done::Range(result), now, out)
            }
            StoreEvent::BlockDone { token, result } => {
                self.on_read_done(token, Done::Block(result), now, out)
            }
            StoreEvent::Failed(error) | StoreEvent::OpenFailed(error) => {
                let dev = &mut self.devices[d];
                dev.failed = Some(error.clone());
                out.push(Action::Note(Note::DeviceFailed { device: dev.id, error }));
            }
            StoreEvent::Corruption { pg, key, pages } => {
                let device = self.devices[d].id;
                match self.index.get(&pg) {
                    Some(&g) => {
                        self.with(g, now, out, |pg, cx| pg.on_corruption(key, pages, cx));
                    }
                    None => out.push(Action::Note(Note::Corruption { pg, device, key })),
                }
            }
            StoreEvent::Stalled { idle } => {
                let device = self.devices[d].id;
                out.push(Action::Note(Note::DeviceStalled { device, idle }));
            }
            StoreEvent::Moves => {
                let device = self.devices[d].id;
                out.push(Action::Note(Note::DeviceMoves { device }));
            }
            StoreEvent::TableDamaged { group } => {
                let device = self.devices[d].id;
                out.push(Action::Note(Note::TableDamaged { device, group }));
            }
            StoreEvent::Synced { upto } => {
                let dev = &mut self.devices[d];
                dev.synced = dev.synced.max(upto);
                let waits = std::mem::take(&mut dev.sync_waits);
                let (done, left): (Vec<_>, Vec<_>) = waits.into_iter().partition(|w| w.0 <= upto);
                dev.sync_waits = left;
                done.into_iter().for_each(|(_, g)| self.touch(g));
            }
            StoreEvent::Opened => {}
        }
    }

    /// Everything appended to device `d` up to `upto` is durable: the groups whose it is are told.
    pub(super) fn durable(&mut self, d: usize, upto: AppendId, now: Nanos, out: &mut Vec<Action>) {
        let Some(dev) = self.devices.get_mut(d).filter(|dev| upto > dev.durable) else { return };
        dev.durable = upto;
        while let Some(&(id, g)) = self.devices[d].appends.front() {
            if id > upto {
                break;
            }
            self.devices[d].appends.pop_front();
            self.with(g, now, out, Pg::tell_durable);
        }
    }

    fn on_read_done(&mut self, token: u64, done: Done, now: Nanos, out: &mut Vec<Action>) {
        let Some(w) = self.tokens.try_remove(token as usize) else { return };
        self.with(w.group, now, out, |pg, cx| match (w.purpose, done) {
            (Purpose::Read(epoch, req), Done::Range(result)) => match pg.primary() {
                Some(p) if p.epoch == epoch => p.read_done(*req, result, cx),
                _ => pg.send_back_read(&req, cx),
            },
            (Purpose::Merge { epoch, lock, tail }, Done::Range(result)) => match pg.primary() {
                Some(p) if p.epoch == epoch => p.merge_read(lock, tail, result, cx),
                _ => {}
            },
            (Purpose::Copy { epoch, device, sync, lock, key }, Done::Block(result)) => match pg
                .primary()
            {
                Some(p) if p.epoch == epoch => p.copy_read((device, sync), lock, key, result, cx),
                _ => {}
            },
            (Purpose::Fetch(f), Done::Block(result)) => pg.fetched(&f, result, cx),
            _ => {}
        });
    }
}
