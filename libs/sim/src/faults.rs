//! What goes wrong, chosen by the seed from the run's mix.

use crate::disk::Failing;
use crate::net::Addr;
use crate::world::{Ev, World, MS};
use mdm::state::Op;
use quarry_base::{PoolId, VolumeId};

/// Kinds of faults and of changes by the operator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    Kill,
    PowerLoss,
    CrashMany,
    Pause,
    /// As a pause, and the host's clock stands still with it: breaks leases, not confirmed reads (R18).
    Freeze,
    Partition,
    OneWay,
    LinkCut,
    LinkStall,
    SessionCut,
    MdmRestart,
    MdmStall,
    MdmClock,
    ClientCrash,
    /// A client is started once more while its process lives on.
    ClientTwice,
    HandOver,
    Wipe,
    SlowDisk,
    HungDisk,
    FailingWrites,
    FailingReads,
    Fence,
    Rebuild,
    Remap,
    Volume,
    /// A primary is cut off from everybody but its clients until it is deposed; then the new one dies.
    Depose,
    /// The good copies of some groups go, and the operator lets older ones count.
    Forsake,
    /// A bit turns on the first server's disk; mixed with nothing that takes a good copy away.
    Rot,
}

/// How often each comes, relative to the others.
pub type Mix = Vec<(Fault, u32)>;

/// Everything that every promise has to survive.
pub fn everything() -> Mix {
    use Fault::*;
    vec![
        (Kill, 12),
        (PowerLoss, 18),
        (CrashMany, 6),
        (Pause, 10),
        (Partition, 16),
        (OneWay, 8),
        (LinkCut, 8),
        (LinkStall, 6),
        (SessionCut, 6),
        (MdmRestart, 3),
        (MdmStall, 2),
        (MdmClock, 1),
        (ClientCrash, 6),
        (ClientTwice, 3),
        (HandOver, 6),
        (Wipe, 5),
        (SlowDisk, 4),
        (HungDisk, 3),
        (FailingWrites, 3),
        (FailingReads, 2),
        (Fence, 2),
        (Rebuild, 2),
        (Remap, 4),
        (Volume, 9),
        (Depose, 5),
        (Forsake, 6),
    ]
}

impl World {
    /// One fault, and the time of the next.
    pub fn fault(&mut self) {
        let end = 10_000 * MS + self.cfg.faults_ms * MS;
        if self.now >= end {
            return;
        }
        let next = self.now + self.rng.within(1, 2 * self.cfg.fault_every_ms) * MS;
        self.at(next, Ev::Fault);
        self.fault_now();
    }

    /// One fault of the mix; some do not apply at this moment.
    pub(crate) fn fault_now(&mut self) {
        let total: u32 = self.cfg.mix.iter().map(|m| m.1).sum();
        let mut at = self.rng.below(u64::from(total)) as u32;
        let chosen = self.cfg.mix.iter().find(|(_, w)| match at.checked_sub(*w) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        });
        let Some((fault, _)) = chosen.copied() else { return };
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        if self.strike(fault, node) {
            self.faults += 1;
            self.count(&format!("fault {fault:?}"));
        }
    }

    /// False: it does not apply now.
    fn strike(&mut self, fault: Fault, node: usize) -> bool {
        let running = self.nodes[node].engine.is_some();
        match fault {
            Fault::Kill => self.crash_one(node, false),
            Fault::PowerLoss => self.crash_one(node, true),
            Fault::CrashMany => self.crash_many(),
            Fault::Pause => running && self.pause(node),
            Fault::Freeze => running && self.freeze(node),
            Fault::Partition => self.partition(node, true),
            Fault::OneWay => self.partition(node, false),
            Fault::LinkCut => self.cut_link(node),
            Fault::LinkStall => self.stall_link(node),
            Fault::SessionCut if self.rng.chance(40) => self.cut_client_session(),
            Fault::SessionCut => self.cut_session(node),
            Fault::MdmRestart => self.stop_mdm(true),
            Fault::MdmStall => self.stop_mdm(false),
            Fault::MdmClock => {
                self.trace(|| "--- the mdm's wall clock jumps".into());
                let hour = 3_600_000;
                self.mdm.clock_ms = if self.rng.chance(50) {
                    self.mdm.clock_ms + hour
                } else {
                    self.mdm.clock_ms - hour
                };
                true
            }
            Fault::ClientCrash => self.crash_client(),
            Fault::ClientTwice => self.start_twice(),
            Fault::HandOver => running && self.hand_over(node),
            Fault::Wipe => self.wipe(node),
            Fault::SlowDisk => running && self.slow_disk(node),
            Fault::HungDisk => running && self.hang_disk(node),
            Fault::FailingWrites => running && self.fail_disk(node, Failing::Writes),
            Fault::FailingReads => running && self.fail_disk(node, Failing::Reads),
            Fault::Fence => self.fence(node),
            Fault::Rebuild => self.rebuild(),
            Fault::Remap => self.remap(),
            Fault::Volume => self.change_volumes(),
            Fault::Depose => self.depose(),
            Fault::Rot => self.rot(),
            Fault::Forsake => self.forsake(),
        }
    }

    fn slow_disk(&mut self, node: usize) -> bool {
        let until = self.now + self.rng.within(200, 3000) * MS;
        self.nodes[node].slow = (until, self.rng.within(20, 200) * MS);
        self.trace(|| format!("--- the disk of sds{} is slow", node + 1));
        true
    }

    fn hang_disk(&mut self, node: usize) -> bool {
        self.nodes[node].hung_until = self.now + self.rng.within(300, 4000) * MS;
        self.trace(|| format!("--- the disk of sds{} hangs", node + 1));
        true
    }

    /// A bit turns in the data area of the first server's disk.
    pub fn rot(&mut self) -> bool {
        let (from, to) = crate::node::data_area(&self.nodes[0].disk);
        self.nodes[0].disk.rot(from, to, &mut self.rng)
    }

    /// A page of each disk cannot be read any more: never the same page of a block on two servers.
    pub fn refuse_pages(&mut self) -> usize {
        let of = self.nodes.len() as u64;
        let mut n = 0;
        for (i, node) in (0..).zip(&mut self.nodes) {
            let (from, to) = crate::node::data_area(&node.disk);
            n += usize::from(node.disk.refuse(from, to, |page| page % of == i, &mut self.rng));
        }
        n
    }

    fn crash_one(&mut self, node: usize, power: bool) -> bool {
        if self.nodes[node].engine.is_none() {
            return false;
        }
        self.trace(|| {
            format!("--- sds{} {}", node + 1, if power { "loses power" } else { "is killed" })
        });
        self.crash(node, power);
        let back = self.now + self.rng.within(1, 3000) * MS;
        self.at(back, Ev::Restart { node });
        true
    }

    fn crash_many(&mut self) -> bool {
        let power = self.rng.chance(60);
        let mut crashed = 0;
        for node in 0..self.nodes.len() {
            if self.rng.chance(80) {
                crashed += usize::from(self.crash_one(node, power));
            }
        }
        crashed > 1
    }

    fn pause(&mut self, node: usize) -> bool {
        let ms = self.rng.within(10, 3000);
        self.trace(|| format!("--- sds{} stops for {ms} ms", node + 1));
        self.nodes[node].paused_until = self.now + ms * MS;
        true
    }

    fn freeze(&mut self, node: usize) -> bool {
        if self.nodes[node].paused_until > self.now {
            return false;
        }
        let now = self.now;
        let done = self.pause(node);
        let until = self.nodes[node].paused_until;
        self.nodes[node].freeze(now, until);
        // When it goes on, nobody has told it or some of its clients yet what happened meanwhile.
        self.hear_late(Addr::Sds(node), until - now, 300);
        for c in 0..self.clients.len() {
            if self.rng.chance(50) {
                self.hear_late(Addr::Sdc(c), until - now, 300);
            }
        }
        done
    }

    /// The MDM's news come so much later, nanoseconds, and up to so many milliseconds more.
    fn hear_late(&mut self, to: Addr, by: u64, more_ms: u64) {
        self.net.cut(Addr::Mdm, to);
        let heal = self.now + by + self.rng.within(0, more_ms) * MS;
        self.at(heal, Ev::Heal { a: Addr::Mdm, b: to });
    }

    fn partition(&mut self, node: usize, both: bool) -> bool {
        let client = Addr::Sdc(self.rng.below(self.clients.len() as u64) as usize);
        let a = if self.rng.chance(15) { client } else { Addr::Sds(node) };
        let b = match self.rng.below(3) {
            _ if a == client => Addr::Mdm,
            0 => Addr::Mdm,
            1 => Addr::Sdc(self.rng.below(self.clients.len() as u64) as usize),
            _ => Addr::Sds(self.rng.below(self.nodes.len() as u64) as usize),
        };
        if a == b || self.net.is_apart(a, b) {
            return false;
        }
        let ms = self.rng.within(10, 3000);
        let (from, to) = if self.rng.chance(50) { (a, b) } else { (b, a) };
        self.trace(|| {
            let how = if both { "and" } else { "does not reach" };
            format!("--- {from:?} {how} {to:?}: apart for {ms} ms")
        });
        self.net.cut(from, to);
        if both {
            self.net.cut(to, from);
        }
        if self.rng.chance(50) {
            for l in self.net.of(a) {
                if self.net.ends.get(&l).is_some_and(|e| e.far == b) {
                    self.sever(l);
                }
            }
        }
        self.at(self.now + ms * MS, Ev::Heal { a, b });
        true
    }

    pub fn heal(&mut self, a: Addr, b: Addr) {
        self.net.heal(a, b);
    }

    fn cut_link(&mut self, node: usize) -> bool {
        let links = self.net.of(Addr::Sds(node));
        match self.rng.pick(&links).copied() {
            Some(l) => {
                self.sever(l);
                true
            }
            None => false,
        }
    }

    fn stall_link(&mut self, node: usize) -> bool {
        let links = self.net.of(Addr::Sds(node));
        let Some(l) = self.rng.pick(&links).copied() else { return false };
        let until = self.now + self.rng.within(20, 1500) * MS;
        self.net.stall(l, until);
        true
    }

    /// A connection breaks: both ends are told.
    fn sever(&mut self, l: quarry_replica::LinkId) {
        if let Some((owner, gen)) = self.net.ends.get(&l).map(|e| (e.owner, e.gen)) {
            self.close(l);
            self.at(self.now + MS, Ev::Broken { link: l, owner, gen });
        }
    }

    fn cut_session(&mut self, node: usize) -> bool {
        if !self.nodes[node].subscribed || self.now < self.mdm.down_until {
            return false;
        }
        let (id, start) = (self.nodes[node].sds, self.nodes[node].start);
        self.mdm.closed(id, start, self.now);
        self.end_session(node);
        true
    }

    /// The MDM's process ends and comes back, or only stands still.
    fn stop_mdm(&mut self, restart: bool) -> bool {
        if self.now < self.mdm.down_until {
            return false;
        }
        let ms = self.rng.within(50, 4000);
        self.trace(|| {
            format!("--- the mdm {} for {ms} ms", if restart { "dies" } else { "stops" })
        });
        self.mdm.down_until = self.now + ms * MS;
        if restart {
            for n in 0..self.nodes.len() {
                self.end_session(n);
            }
            self.at(self.mdm.down_until, Ev::MdmBack);
        }
        true
    }

    /// A server is asked to stop, ends, and comes back.
    pub fn hand_over(&mut self, node: usize) -> bool {
        if self.nodes[node].leaving {
            return false;
        }
        self.trace(|| format!("--- sds{} is asked to stop", node + 1));
        self.nodes[node].leaving = true;
        self.step(node, quarry_replica::Event::HandOver);
        // The daemon ends at most 5 s later.
        let gen = self.nodes[node].gen;
        self.at(self.now + 5000 * MS, Ev::Stop { node, gen });
        true
    }

    /// Whoever has just become a primary is asked to stop.
    pub(crate) fn press(&mut self, node: usize) {
        if self.nodes[node].engine.is_some() && self.hand_over(node) {
            self.count("asked to stop as it began to lead");
        }
    }

    /// A device that nobody needs comes back empty.
    fn wipe(&mut self, node: usize) -> bool {
        if self.mdm.needed().contains(&self.nodes[node].device) {
            return false;
        }
        self.trace(|| format!("--- sds{} comes back empty", node + 1));
        self.crash(node, true);
        let device = self.nodes[node].device;
        self.left_at.retain(|(_, d), _| *d != device);
        if let Err(e) = self.format(node) {
            self.fail(e);
        }
        let back = self.now + self.rng.within(1, 500) * MS;
        self.at(back, Ev::Restart { node });
        true
    }

    /// A primary is cut off from the MDM and the other servers for longer than a lease, so that another takes
    /// over; then it reaches them again, the MDM last, while its successor dies and comes back at once.
    fn depose(&mut self) -> bool {
        let all: Vec<_> = self.configs.values().filter(|c| c.in_sync.len() > 1).cloned().collect();
        let Some(c) = self.rng.pick(&all).cloned() else { return false };
        let Some(p) = c.primary_member().map(|m| m.sds.0 as usize - 1) else { return false };
        if self.nodes[p].engine.is_none() {
            return false;
        }
        let old = Addr::Sds(p);
        let apart = self.rng.within(1000, 3500);
        self.trace(|| format!("--- sds{} is cut off for {apart} ms", p + 1));
        for n in (0..self.nodes.len()).filter(|n| *n != p) {
            let other = Addr::Sds(n);
            self.net.cut(old, other);
            self.net.cut(other, old);
            let heal = apart + self.rng.within(0, 800);
            self.at(self.now + heal * MS, Ev::Heal { a: old, b: other });
        }
        // Some clients do not hear of it either.
        for c in 0..self.clients.len() {
            if self.rng.chance(50) {
                self.hear_late(Addr::Sdc(c), apart * MS, 800);
            }
        }
        self.net.cut(old, Addr::Mdm);
        self.net.cut(Addr::Mdm, old);
        let later = apart + self.rng.within(200, 1500);
        self.at(self.now + later * MS, Ev::Heal { a: old, b: Addr::Mdm });
        for m in c.in_sync.iter().filter(|m| m.sds.0 as usize - 1 != p) {
            let node = m.sds.0 as usize - 1;
            if self.rng.chance(70) {
                let at = self.now + (apart + self.rng.within(0, 600)).saturating_sub(100) * MS;
                self.at(at, Ev::Strike { node });
            }
        }
        true
    }

    /// A kill with a quick return.
    pub(crate) fn kill_shortly(&mut self, node: usize) {
        if self.nodes[node].engine.is_some() {
            self.trace(|| format!("--- sds{} is killed for a moment", node + 1));
            self.crash(node, false);
            let back = self.now + self.rng.within(1, 60) * MS;
            self.at(back, Ev::Restart { node });
        }
    }

    /// Its disk fails; some time later the process is started again and the disk works.
    fn fail_disk(&mut self, node: usize, how: Failing) -> bool {
        self.trace(|| format!("--- the disk of sds{} fails: {how:?}", node + 1));
        self.nodes[node].disk.failing = how;
        let gen = self.nodes[node].gen;
        let ms = self.rng.within(200, 4000);
        self.at(self.now + ms * MS, Ev::Stop { node, gen });
        true
    }

    /// The operator takes a server out and back in a little later.
    fn fence(&mut self, node: usize) -> bool {
        let id = self.nodes[node].sds;
        let fenced = self.mdm.state.sds.get(&id).is_some_and(|s| s.fenced);
        let now = self.now;
        let answered = self.mdm.recent(now);
        let op = Op::FenceSds { id, force: false, answered };
        let done = !fenced && now >= self.mdm.down_until && self.mdm.submit(op, now).is_ok();
        if done {
            self.trace(|| format!("--- sds{} is fenced", node + 1));
            self.spread_news();
            let back = now + self.rng.within(100, 4000) * MS;
            self.at(back, Ev::Recover { node });
        }
        done
    }

    pub(crate) fn recover_sds(&mut self, node: usize) {
        let op = Op::RecoverSds { id: self.nodes[node].sds };
        // Refused only if it is unknown, which it is not.
        self.mdm.submit(op, self.now).ok();
        self.spread_news();
    }

    fn rebuild(&mut self) -> bool {
        let pool = PoolId(1);
        let op =
            if self.rng.chance(60) { Op::RebuildNow { pool } } else { Op::RebuildCancel { pool } };
        let done = self.now >= self.mdm.down_until && self.mdm.submit(op, self.now).is_ok();
        self.spread_news();
        done
    }

    /// A volume is taken from a client, or given to it.
    fn remap(&mut self) -> bool {
        if self.now < self.mdm.down_until {
            return false;
        }
        let c = self.rng.below(self.clients.len() as u64) as usize;
        let volumes: Vec<VolumeId> = self.mdm.state.volumes.keys().copied().collect();
        let Some(&v) = self.rng.pick(&volumes) else { return false };
        let mapped =
            self.mdm.state.volumes[&v].mappings.iter().any(|m| m.sdc == self.clients[c].id);
        self.trace(|| {
            format!("--- client {} {} volume {v}", c + 1, if mapped { "loses" } else { "gets" })
        });
        if mapped && self.rng.chance(50) {
            // Given back while the client has not heard of it yet, or has requests on their way.
            let at = self.now + self.rng.within(1, 800) * MS;
            self.at(at, Ev::GiveBack { client: c, volume: v });
        }
        self.map(c, v, !mapped)
    }

    /// A volume more, a volume less, or a volume that grows.
    fn change_volumes(&mut self) -> bool {
        let now = self.now;
        if now < self.mdm.down_until {
            return false;
        }
        let volumes: Vec<VolumeId> = self.mdm.state.volumes.keys().copied().collect();
        let v = self.rng.pick(&volumes).copied();
        // Few runs have more than one: there one goes more often than not.
        let several = volumes.len() > 1;
        let kind = if several && self.rng.chance(50) { 1 } else { self.rng.below(3) };
        match (kind, v) {
            (0, _) if volumes.len() < 4 => {
                match self.mdm.create_volume(1, mdm::state::Provisioning::Thin, now) {
                    Ok(v) => {
                        self.count("volume created");
                        for c in 0..self.clients.len() {
                            self.map(c, v, true);
                        }
                        true
                    }
                    Err(_) => false,
                }
            }
            (1, Some(v)) if several => {
                for c in 0..self.clients.len() {
                    self.map(c, v, false);
                }
                let done = self.mdm.submit(Op::DeleteVolume { id: v }, now).is_ok();
                if done {
                    self.count("volume deleted");
                }
                self.spread_news();
                done
            }
            (2, Some(id)) => {
                let size = self.mdm.state.volumes[&id].size_bytes + u64::from(quarry_base::EXTENT);
                let op = Op::ExtendVolume { id, size_bytes: size, used_bytes: 0 };
                let done = size < 8 << 20 && self.mdm.submit(op, now).is_ok();
                self.spread_news();
                done
            }
            _ => false,
        }
    }
}
