//! What came of the clients' requests, for the history: what was seen, what was promised, what may not happen any more.

use crate::client::{Kind, Request, Unknown};
use crate::history::NEVER;
use crate::load::{num, sector, whole_only, SECTOR};
use crate::world::World;
use bytes::Bytes;
use quarry_base::*;
use quarry_sdc::engine::{IoError, ReadData};
use quarry_wire::flags;

impl World {
    /// A request of a client ended.
    pub(crate) fn answered(&mut self, c: usize, r: Request, result: Result<ReadData, IoError>) {
        match (result, r.kind) {
            (Ok(data), Kind::Read) => self.data_seen(c, &r, &data),
            (Ok(bits), Kind::Map) => self.holes_seen(c, &r, &bits),
            (Ok(_), Kind::Flush) => self.flushed(c, &r),
            (Ok(_), Kind::Write | Kind::Zero { .. }) => self.written(c, &r),
            (Err(e), _) => self.failed(c, &r, e),
        }
    }

    fn data_seen(&mut self, c: usize, r: &Request, data: &[Bytes]) {
        let lengths: Vec<u64> = data.iter().map(|d| d.len() as u64).collect();
        let expected: Vec<u64> = r.pieces().map(|(_, from, to)| to - from).collect();
        if lengths != expected {
            return self.complain(c, "read data is too short or too long");
        }
        let page = PAGE as u64;
        for ((_, from, _), piece) in r.pieces().zip(data) {
            for (at, s) in (from..).step_by(SECTOR as usize).zip(piece.chunks(SECTOR as usize)) {
                let place = sector(r.known.vtree, at);
                let (value, named) = (num(s, 0), num(s, 8));
                if value != 0 && named != place {
                    self.complain(c, &format!("sector {place} has the content of {named}"));
                }
                self.history.read(place, value, r.begin, self.now);
            }
            if from % page != 0 {
                continue;
            }
            for (at, p) in (from..).step_by(PAGE).zip(piece.chunks_exact(PAGE)) {
                let first = num(p, 0);
                let torn = p.chunks(SECTOR as usize).any(|s| num(s, 0) != first);
                let number = at / page;
                if whole_only((number % (u64::from(EXTENT) / page)) as u32) && torn {
                    self.complain(c, &format!("page {number} of volume {} is torn", r.volume));
                }
            }
        }
    }

    /// A page without content reads as zeroes.
    fn holes_seen(&mut self, c: usize, r: &Request, bits: &[Bytes]) {
        let page = PAGE as u64;
        if bits.len() != r.pieces().count() {
            return self.complain(c, "a map has too few or too many extents");
        }
        for ((_, from, to), bits) in r.pieces().zip(bits) {
            for (i, p) in (from / page..to.div_ceil(page)).enumerate() {
                let Some(byte) = bits.get(i / 8) else {
                    return self.complain(c, "a map is too short");
                };
                if byte >> (i % 8) & 1 != 0 {
                    continue;
                }
                for at in (p * page..(p + 1) * page).step_by(SECTOR as usize) {
                    self.history.read(sector(r.known.vtree, at), 0, r.begin, self.now);
                }
            }
        }
    }

    /// The groups that were asked have what they were told before. The volume has what was written to it before, by others
    /// too, if the client knew of everyone who has it mapped.
    fn flushed(&mut self, c: usize, r: &Request) {
        for pg in &r.flushing {
            self.history.falls.flush(*pg, r.begin, self.now);
        }
        let is = self.mdm.state.volumes.get(&r.volume);
        let current = |v: &mdm::state::Volume| {
            v.generation == r.known.generation && v.size_bytes == r.known.size
        };
        if is.is_some_and(current) {
            self.history.falls.flush_volume(r.known.vtree, r.begin, self.now);
        }
        // Of its own writes none may be gone, whatever fell back before the flush.
        let covered = self.clients[c].take_covered(r.volume, r.begin);
        self.covered_from(c, r.volume, &covered);
        for (end, w) in covered {
            for (_, from, to) in w.pieces() {
                for at in (from..to).step_by(SECTOR as usize) {
                    self.history.settle(sector(w.known.vtree, at), w.value, (w.begin, end));
                }
            }
        }
    }

    /// Notes what a flush covers; returns when the oldest of it and of what the one before covered began.
    fn covered_from(&mut self, c: usize, v: VolumeId, covered: &[(u64, Request)]) -> u64 {
        let now = covered.iter().map(|(_, w)| w.begin).min().unwrap_or(NEVER);
        let noted = self.clients[c].covered_from.entry(v).or_insert(NEVER);
        let before = *noted;
        if before > 0 {
            *noted = now;
        }
        before.min(now)
    }

    /// A flush says, once, that what it should have covered may be gone.
    fn fell_back(&mut self, c: usize, r: &Request) {
        // What was answered in the moment in which it was asked may be among it.
        let covered = self.clients[c].take_covered(r.volume, r.begin + 1);
        let from = self.covered_from(c, r.volume, &covered);
        let fell = r.flushing.iter().any(|pg| self.history.falls.fell(*pg, from, self.now));
        // What a mapping that is over covered is not known any more.
        if !fell && self.unmap_of(c, r).is_none() {
            self.complain(c, &format!("a flush failed although nothing fell back since {from}"));
        }
        self.count("flush failed");
    }

    fn written(&mut self, c: usize, r: &Request) {
        let mut end = self.now;
        if let Some(at) = self.unmap_of(c, r).and_then(|u| self.unmaps[u].confirmed) {
            if at < r.begin {
                let why = format!("wrote to volume {} after its unmap was confirmed", r.volume);
                return self.complain(c, &why);
            }
            // It may be answered later; it has taken effect before, or never may (R21).
            end = end.min(at);
        }
        for (pg, _, _) in r.pieces() {
            if self.shut_out_at(c, pg).is_some_and(|at| at < r.begin) {
                let why = format!("wrote to {pg} after a newer instance of it had");
                return self.complain(c, &why);
            }
        }
        let unknown = self.record(c, r, end);
        self.over(unknown);
        // Of a mapping that is over nobody is told.
        if self.cfg.shape.cached && !r.fua && self.unmap_of(c, r).is_none() {
            self.clients[c].unflushed.push((end, r.clone()));
        }
        if r.kind != Kind::Write {
            return;
        }
        // R19, R20: everything older in a group's sequence comes before.
        let groups: Vec<PgId> = r.pieces().map(|p| p.0).collect();
        let orphans = std::mem::take(&mut self.clients[c].orphans);
        let (gone, kept): (Vec<Unknown>, _) =
            orphans.into_iter().partition(|o| groups.contains(&o.0));
        self.clients[c].orphans = kept;
        for (_, at, value) in gone {
            self.history.shut_out(at, value, self.now);
        }
        for pg in groups {
            self.clients[c].wrote.entry(pg).or_insert(self.now);
        }
    }

    fn failed(&mut self, c: usize, r: &Request, e: IoError) {
        let writes = r.kind.changes_data();
        if writes {
            self.clients[c].covered_from.insert(r.volume, 0);
        }
        match e {
            // Refused for good: none of it may ever be seen, if it went to one group. A thick volume has its space always.
            IoError::NoSpace if writes && !r.known.thick => {
                if r.pieces().count() > 1 {
                    let unknown = self.record(c, r, NEVER);
                    self.over(unknown);
                }
            }
            IoError::Corrupt if self.clients[c].disks_fail => {
                let unknown = self.record(c, r, NEVER);
                self.over(unknown);
            }
            IoError::FellBack if r.kind == Kind::Flush => self.fell_back(c, r),
            IoError::Shutdown => {
                let Some(u) = self.unmap_of(c, r) else {
                    if self.clients[c].engine.is_fenced() {
                        return self.orphan(c, r);
                    }
                    return self.complain(c, &format!("{:?} failed: {e}", r.kind));
                };
                let unknown = self.record(c, r, NEVER);
                match self.unmaps[u].confirmed {
                    Some(by) => {
                        unknown.iter().for_each(|(_, at, v)| self.history.shut_out(*at, *v, by))
                    }
                    None => self.unmaps[u].unknown.extend(unknown),
                }
            }
            e => self.complain(c, &format!("{:?} {}+{} failed: {e}", r.kind, r.at, r.len)),
        }
    }

    /// Nothing of it is under way any more: what has not happened until now does not.
    fn over(&mut self, unknown: Vec<Unknown>) {
        for (_, at, value) in unknown {
            self.history.shut_out(at, value, self.now);
        }
    }

    /// Its process is gone or may do nothing any more: what it asked for may have happened, or may yet, but not after a
    /// write of the next one to the same group (R19).
    pub(crate) fn orphan(&mut self, c: usize, r: &Request) {
        let unknown = self.record(c, r, NEVER);
        let next = self.newest(c);
        for u in unknown {
            match self.shut_out_at(c, u.0) {
                Some(by) => self.history.shut_out(u.1, u.2, by),
                None => self.clients[next].orphans.push(u),
            }
        }
    }

    /// When a newer process under this client's name had a write answered in a group.
    fn shut_out_at(&self, c: usize, pg: PgId) -> Option<u64> {
        let id = self.clients[c].id;
        let newer = self.clients.iter().skip(c + 1).filter(|x| x.id == id);
        newer.filter_map(|x| x.wrote.get(&pg).copied()).min()
    }

    /// The first unmap after the mapping under which it was asked for.
    fn unmap_of(&self, c: usize, r: &Request) -> Option<usize> {
        let later = self.unmaps.iter().enumerate().filter(|(_, u)| {
            u.sdc == self.clients[c].id && u.volume == r.volume && u.generation > r.known.generation
        });
        later.min_by_key(|(_, u)| u.generation).map(|(i, _)| i)
    }

    /// Enters a write into the history; returns its sectors if its outcome is not known.
    fn record(&mut self, c: usize, r: &Request, end: u64) -> Vec<Unknown> {
        let mut unknown = Vec::new();
        if !r.kind.changes_data() {
            return unknown;
        }
        let page = PAGE as u64;
        for (pg, from, to) in r.pieces() {
            let end = match self.shut_out_at(c, pg) {
                Some(at) if end != NEVER => end.min(at),
                _ => end,
            };
            let h = &mut self.history;
            h.falls.place(sector(r.known.vtree, from), pg);
            // A part may have been done, and gone with its group's caches, before the others let the whole be answered: the
            // next flush tells.
            let fell = r.pieces().count() > 1 && !r.fua && h.falls.fell(pg, r.begin, end);
            let end = if fell { NEVER } else { end };
            let (from, to) = match r.kind {
                // A trim may leave partial pages alone: only whole pages count.
                Kind::Zero { flags } if flags & flags::TRIM != 0 => {
                    (from.next_multiple_of(page), to / page * page)
                }
                _ => (from, to),
            };
            for at in (from..to.max(from)).step_by(SECTOR as usize) {
                let at = sector(r.known.vtree, at);
                h.write(at, r.value, r.begin, end);
                if r.fua && end != NEVER {
                    h.make_solid(at, r.value);
                }
                if end == NEVER && r.value != 0 {
                    unknown.push((pg, at, r.value));
                }
            }
        }
        unknown
    }

    pub(crate) fn complain(&mut self, c: usize, what: &str) {
        self.fail(format!("client {}: {what}", c + 1));
    }
}
