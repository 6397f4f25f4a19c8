//! Is the store what the model says: live, after a crash, and at the end?

use super::model::*;
use super::world::*;
use super::{Mishap, SimDisk};
use quarry_base::*;
use quarry_store::*;
use std::collections::HashMap;

impl World {
    /// Takes up after a failed device; true if it was one.
    pub fn unless_failed(&mut self, done: Check) -> Result<bool, String> {
        match done {
            Err(_) if self.failed => self.after_failure().map(|()| true),
            done => done.map(|()| false),
        }
    }

    /// The device failed: reads of what it has go on; then it is switched off and on.
    fn after_failure(&mut self) -> Check {
        for _ in 0..200 {
            if self.disk.in_flight() == 0 {
                break;
            }
            self.turn()?;
        }
        self.store.check_invariants()?;
        self.crash()
    }

    /// A bit flips. In the log only where later batches vouch for what is there: the newest batch is
    /// vouched for by nothing but itself.
    pub fn rot(&mut self) -> Check {
        self.quiet()?;
        let (pg, log) = (self.pick_pg(), self.disk.spared.clone());
        let written =
            |d: &SimDisk, p: u64| d.now[p as usize..p as usize + 4096].iter().any(|b| *b != 0);
        let pages = DEVICE / 4096;
        let first = self.rng.below(pages);
        let page = (0..pages).map(|i| (first + i) % pages * 4096).find(|p| written(&self.disk, *p));
        let Some(at) = page else { return Ok(()) };
        let at = at + self.rng.below(4096);
        let in_log = log.contains(&at);
        (self.disk.mishap, self.disk.happened) = (None, true);
        if in_log {
            for n in 0..3u8 {
                let blob = bytes::Bytes::from(vec![n; 10]);
                if let Ok(id) = self.store.put_meta(pg, blob.clone()) {
                    self.events.push(Event { id, pg, ev: Ev::Meta(blob) });
                }
                self.store.sync();
                self.quiet()?;
            }
        }
        self.disk.rot(at);
        if in_log {
            self.crash()?;
        }
        Ok(())
    }

    /// Lets everything appended be written.
    pub fn quiet(&mut self) -> Check {
        let target = self.events.last().map_or(0, |e| e.id);
        for _ in 0..20_000 {
            if self.stable >= target && self.pending.is_empty() {
                return Ok(());
            }
            self.crank(1)?;
        }
        Err(format!("nothing becomes stable: {} of {target}", self.stable))
    }

    pub fn verify_live(&mut self) -> Check {
        self.quiet()?;
        self.store.check_invariants()?;
        for (pg, m) in self.live() {
            compare(&self.store, pg, &m, self.at(pg))?;
            self.verify_content(pg, &m)?;
        }
        Ok(())
    }

    pub fn at(&self, pg: PgId) -> Version {
        self.all_through.get(&pg).copied().unwrap_or_default()
    }

    fn verify_content(&mut self, pg: PgId, m: &PgModel) -> Check {
        for vtree in 1..=3u64 {
            for extent in 0..2u32 {
                let (v, l, e) = (VtreeId(vtree), Layer(0), Extent(extent));
                let torn = self.torn.keys().any(|(g, k)| (*g, k.vtree, k.extent) == (pg, v, e));
                if torn {
                    // They are sent again first.
                    continue;
                }
                let t = self.begin_raw(pg, BlockKey::at(v, l, e, 0), 0, EXTENT);
                let d = match self.raw(t)? {
                    Err(ReadError::Io(5) | ReadError::Corrupt { .. }) if self.disk.happened => {
                        continue;
                    }
                    d => d.map_err(|e| format!("{pg}: {e}"))?,
                };
                let got = d.segments.concat();
                for (i, page) in got.chunks(PAGE).enumerate() {
                    let key = BlockKey::at(v, l, e, i as u32 * 4096);
                    let tag = m.blocks.get(&key).map_or(0, |b| b.pages[i % 16]);
                    if page != page_of(tag) {
                        return Err(format!(
                            "{pg} {key:?} page {}: not the content of {tag}",
                            i % 16
                        ));
                    }
                    if d.crcs[i] != crc32c(page) {
                        return Err(format!("{pg} {key:?}: wrong checksum given"));
                    }
                }
            }
        }
        Ok(())
    }

    pub fn begin_raw(&mut self, pg: PgId, key: BlockKey, offset: u32, len: u32) -> u64 {
        self.token += 1;
        self.store.read(self.token, pg, key.vtree, key.layer, key.extent, offset, len);
        self.token
    }

    /// The answer to a read, whatever it is.
    pub fn raw(&mut self, token: u64) -> Result<Result<ReadData, ReadError>, String> {
        for _ in 0..10_000 {
            if let Some(r) = self.reads.remove(&token) {
                return Ok(r);
            }
            self.crank(1)?;
        }
        Err("a read has no answer".into())
    }

    pub fn crash(&mut self) -> Check {
        self.crashes += 1;
        if self.disk.happened
            && matches!(self.mishap, Some(Mishap::LostWrite | Mishap::Misdirected))
        {
            // A block that was written straight to its place and is not there cuts the log's end, like a batch that is not.
            self.stable = self.stable.min(self.store.vouched_upto());
        }
        self.power_off();
        self.open()?;
        // Also in the middle of a recovery.
        while self.rng.one_in(3) {
            self.restart();
            let n = self.rng.below(40);
            self.crank(n)?;
            self.power_off();
            self.open()?;
        }
        self.verify_recovered()
    }

    fn power_off(&mut self) {
        if self.rng.one_in(4) {
            self.disk.process_kill();
        } else {
            self.disk.power_loss(&mut self.rng);
            if self.cfg.ack == AckMode::Cached {
                // What was only written may be gone.
                self.stable = self.synced.min(self.stable);
            }
        }
        self.restart();
    }

    fn restart(&mut self) {
        self.ops.clear();
        self.pending.clear();
        self.disk.process_kill();
        self.failed = false;
        self.store = Store::open(self.cfg.clone(), Some([7; 16]));
    }

    pub fn open(&mut self) -> Check {
        for _ in 0..5000 {
            let mut out = Vec::new();
            self.store.poll(self.now, &mut self.ops, &mut out);
            self.disk.submit(&mut self.ops);
            for e in out {
                if matches!(e, StoreEvent::Opened) {
                    return Ok(());
                }
                self.event(e)?;
            }
            if let Some((id, r)) = self.disk.step(&mut self.rng) {
                self.store.complete(self.now, id, r);
            }
        }
        Err("it never opens".into())
    }

    /// The recovered state is that of one prefix of the log, at least all that was stable.
    fn verify_recovered(&mut self) -> Check {
        self.store.check_invariants()?;
        self.look_for_parts()?;
        let first = self.events.partition_point(|e| e.id <= self.stable);
        let mut why = String::new();
        for n in first..=self.events.len() {
            let cut = &self.events[..n];
            let heeds = cut.iter().enumerate().filter(|(_, e)| matches!(e.ev, Ev::Truncate(_)));
            let heeds: Vec<usize> = std::iter::once(0).chain(heeds.map(|(i, _)| i + 1)).collect();
            let mut model = std::collections::BTreeMap::new();
            let mut fit = |pg: PgId, heed: usize| {
                let mut all = fold(cut, heed, &|p| self.store.pg_state(p).commit);
                let m = all.remove(&pg).unwrap_or_default();
                compare(&self.store, pg, &m, self.at(pg)).map(|()| model.insert(pg, m))
            };
            let fits = (0..3).map(|i| PgId::new(PoolId(1), i)).try_for_each(|pg| {
                let bad = heeds.iter().map(|h| fit(pg, *h)).take_while(|f| f.is_err());
                let bad: Vec<String> = bad.filter_map(|f| f.err()).collect();
                if bad.len() == heeds.len() {
                    Err(bad.join("; "))
                } else {
                    Ok(())
                }
            });
            if let Err(e) = fits {
                why.push_str(&format!("\n  as of {n}: {e}"));
                continue;
            }
            // Copies of one version are told apart by content alone.
            let content = model.iter().try_for_each(|(pg, m)| self.verify_content(*pg, m));
            if let Err(e) = content {
                if e == NOTICED {
                    return Err(e);
                }
                why.push_str(&format!("\n  as of {n}: {e}"));
                continue;
            }
            // Ids start again; what is there now is the whole past, all of it stable.
            self.events.truncate(n);
            let lines: HashMap<PgId, Vec<Version>> =
                model.iter().map(|(p, m)| (*p, m.line.clone())).collect();
            self.events.retain(|e| match &e.ev {
                Ev::Rec(r, _) => lines[&e.pg].contains(&r.version),
                Ev::Truncate(_) => false,
                _ => true,
            });
            for e in &mut self.events {
                e.id = 0;
                if let Ev::Part(p) = &mut e.ev {
                    // What was on its way has been looked at, the rest was told to be there.
                    p.intent = false;
                }
            }
            (self.stable, self.synced) = (0, 0);
            for pg in model.keys() {
                *self.epochs.entry(*pg).or_insert(1) += 1;
            }
            return self.send_torn_again();
        }
        Err(format!("no prefix of the log of {}..={} fits:{why}", first, self.events.len()))
    }

    /// At the end everything is committed and destaged, and every block is accounted for.
    pub fn settle(&mut self) -> Check {
        self.quiet()?;
        for pg in self.store.pgs() {
            let last = self.store.pg_state(pg).last.seq;
            self.store.set_commit(pg, last);
        }
        for _ in 0..3 {
            self.store.flush_all();
            let mut n = 0;
            while !self.store.is_idle() || self.disk.in_flight() > 0 {
                n += 1;
                if n > 50_000 {
                    return Err("it never becomes idle".into());
                }
                self.crank(1)?;
            }
        }
        self.verify_live()?;
        let st = self.store.stats();
        let sum: u64 = self.store.pgs().iter().map(|p| self.store.pg_state(*p).bytes_used).sum();
        if st.used_bytes != sum || st.dirty_pages != 0 {
            return Err(format!(
                "{} used, {sum} by blocks, {} dirty",
                st.used_bytes, st.dirty_pages
            ));
        }
        self.crash()
    }
}
