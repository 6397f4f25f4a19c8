//! Why something is degraded, slow or stuck, and what to do about it (promise 6).
//!
//! Reads the state and what primaries report, changes nothing. Every reason names the objects involved.

use crate::control::{degraded_bytes, unconfirmed, HubInner};
use crate::health::{pg_health, pg_row, pool_health, suspended, waits, Health};
use crate::slow::{self, Seen};
use crate::state::{Device, Level, Pg, Pool, State, TaskKind, TaskState, Volume};
use quarry_base::units::show_size;
use quarry_base::{DeviceId, Nanos, NodeId, PgId, PoolId, SdsId, VolumeId};
use serde_json::{json, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Groups shown at most.
const GROUPS: usize = 100;
/// Damaged blocks named; more are named when these are mended.
const MOST_DAMAGED: usize = 5;

/// What is to be explained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    Volume(VolumeId),
    Pool(PoolId),
    Pg(PgId),
    Node(NodeId),
    Sds(SdsId),
}

/// Reasons and advice, each said once, in the order in which they were found.
#[derive(Default)]
struct Words {
    why: Vec<String>,
    todo: Vec<String>,
}

impl Words {
    fn say(&mut self, why: impl Into<String>, todo: impl Into<String>) {
        let (why, todo) = (why.into(), todo.into());
        if !self.why.contains(&why) {
            self.why.push(why);
        }
        if !todo.is_empty() && !self.todo.contains(&todo) {
            self.todo.push(todo);
        }
    }
}

struct Cx<'a> {
    s: &'a State,
    hub: &'a HubInner,
    at: Nanos,
}

/// The explanation; `None`: there is no such object.
/// `seen`: what the clients of the volume saw, if it is about one.
pub fn explain(
    s: &State,
    hub: &HubInner,
    what: Subject,
    groups: bool,
    seen: Option<Seen>,
    at: Nanos,
) -> Option<Value> {
    let cx = Cx { s, hub, at };
    let (kind, id, name, pgs) = cx.subject(what)?;
    let bad: Vec<&Pg> = pgs
        .iter()
        .filter_map(|p| s.pgs.get(p))
        .filter(|p| pg_health(s, hub, p, at) != Health::Ok)
        .collect();
    let mut w = Words::default();
    cx.groups(&bad, pgs.len(), &mut w);
    cx.special(what, &mut w);
    let pools: BTreeSet<PoolId> = pgs.iter().map(|p| p.pool()).collect();
    for p in pools.iter().filter_map(|p| s.pools.get(p)) {
        cx.pool(p, !bad.is_empty(), &mut w);
    }
    let found = slow::look(s, hub, &pgs, seen, at);
    found.why.into_iter().for_each(|(why, todo)| w.say(why, todo));
    if let Some((why, todo)) = found.vague.filter(|_| w.why.is_empty()) {
        w.say(why, todo);
    }
    let mut health = bad.iter().map(|p| pg_health(s, hub, p, at)).max().unwrap_or(Health::Ok);
    let empty = matches!(what, Subject::Pool(_)) && pgs.is_empty();
    if empty {
        health = Health::Degraded;
    }
    let degraded: u64 =
        bad.iter().map(|p| degraded_bytes(hub.pgs.get(&p.config.pg), &p.config)).sum();
    let single: u64 = bad.iter().filter(|p| one_copy(p)).map(|p| cx.bytes(p)).sum();
    let eta = pools.iter().filter_map(|p| s.pools.get(p)).map(|p| pool_health(s, hub, p, at));
    let eta: Option<u64> = match health {
        Health::Ok => Some(0),
        _ => eta.map(|h| h.eta_seconds).max().flatten(),
    };
    let summary = match (health, w.why.is_empty()) {
        _ if empty => format!("{kind} {name} cannot take data yet"),
        (h, _) if cx.is_away(what) => format!("{kind} {name} is out of use: {}", without(h)),
        (Health::Ok, true) => format!("{kind} {name} is well: nothing to do"),
        (Health::Ok, false) => format!("{kind} {name} has all its copies, but see below"),
        (Health::Degraded, _) => format!("{kind} {name} works, but some data has too few copies"),
        (Health::Unavailable, _) => {
            format!("{kind} {name}: some data cannot be read or written now")
        }
    };
    let rows: Vec<Value> = match groups {
        true => bad.iter().take(GROUPS).filter_map(|p| pg_row(s, hub, p.config.pg, at)).collect(),
        false => Vec::new(),
    };
    Some(json!({
        "kind": kind, "id": id, "name": name, "health": health, "summary": summary, "why": w.why,
        "what_to_do": w.todo, "bytes_one_copy": single, "bytes_degraded": degraded, "eta_seconds": eta,
        "waits_for_devices": empty, "timing": found.timing, "groups": rows,
    }))
}

/// How it stands with the data of a server that is not there.
fn without(health: Health) -> &'static str {
    match health {
        Health::Ok => "all data has its copies on other servers",
        Health::Degraded => "other servers serve its data, which has too few copies",
        Health::Unavailable => "some of its data cannot be read or written now",
    }
}

/// One in-sync copy where there should be more.
fn one_copy(p: &Pg) -> bool {
    p.config.in_sync.len() == 1 && p.config.copies > 1
}

impl Cx<'_> {
    /// Kind, id, name, and the groups it is about.
    fn subject(&self, what: Subject) -> Option<(&'static str, String, String, BTreeSet<PgId>)> {
        let s = self.s;
        Some(match what {
            Subject::Volume(id) => {
                let v = s.volumes.get(&id)?;
                ("volume", id.to_string(), v.name.clone(), s.volume_pgs(v))
            }
            Subject::Pool(id) => {
                let p = s.pools.get(&id)?;
                let pgs = s.pool_pgs(id).map(|p| p.config.pg).collect();
                ("pool", id.to_string(), p.name.clone(), pgs)
            }
            Subject::Pg(id) => {
                s.pgs.get(&id)?;
                ("pg", id.to_string(), id.to_string(), BTreeSet::from([id]))
            }
            Subject::Node(id) => {
                let n = s.nodes.get(&id)?;
                let pgs = s.sds_of(id).into_iter().flat_map(|x| s.groups_of(x)).collect();
                ("node", id.to_string(), n.name.clone(), pgs)
            }
            Subject::Sds(id) => {
                let x = s.sds.get(&id)?;
                ("sds", id.to_string(), x.name.clone(), s.groups_of(id).into_iter().collect())
            }
        })
    }

    /// A server that is down or taken out; a node of which that holds for all servers and clients.
    fn is_away(&self, what: Subject) -> bool {
        let sds = |id: SdsId| {
            self.s.sds.get(&id).is_some_and(|x| x.fenced || (!x.up && x.start.get() > 0))
        };
        match what {
            Subject::Sds(id) => sds(id),
            Subject::Node(id) => {
                let clients = self.s.sdcs.values().filter(|x| x.node == Some(id));
                let clients = clients.map(|x| !x.up && x.instance.get() > 0);
                let all: Vec<bool> =
                    self.s.sds_of(id).into_iter().map(sds).chain(clients).collect();
                !all.is_empty() && all.iter().all(|away| *away)
            }
            _ => false,
        }
    }

    fn bytes(&self, p: &Pg) -> u64 {
        self.hub.pgs.get(&p.config.pg).and_then(|l| l.report.as_ref()).map_or(0, |r| r.bytes)
    }

    fn sds_name(&self, id: SdsId) -> &str {
        self.s.sds.get(&id).map_or("?", |x| x.name.as_str())
    }

    /// What the groups lack, server by server.
    fn groups(&self, bad: &[&Pg], all: usize, w: &mut Words) {
        if bad.is_empty() {
            return;
        }
        w.say(format!("{} of {all} placement groups are not well", bad.len()), "");
        let single: u64 = bad.iter().filter(|p| one_copy(p)).map(|p| self.bytes(p)).sum();
        if single > 0 {
            w.say(
                format!("{} have one good copy only", show_size(single)),
                "do not stop any node before `scli node can-stop --name NODE` says yes",
            );
        }
        let mut lost: BTreeMap<DeviceId, usize> = BTreeMap::new();
        for p in bad {
            for d in &p.config.listed {
                if !p.config.in_sync.iter().any(|m| m.device == *d && self.s.alive(m)) {
                    *lost.entry(*d).or_default() += 1;
                }
            }
        }
        for (d, n) in lost {
            self.missing(d, n, w);
        }
        self.unavailable(bad, w);
        self.damaged(bad, w);
        self.short(bad, w);
        let few = bad.iter().filter(|p| p.config.in_sync.len() < p.config.min_copies as usize);
        let few = few.count();
        if few > 0 {
            w.say(
                format!(
                    "{few} placement groups have fewer copies than min_copies: writes to them wait"
                ),
                "bring a server back or wait for the rebuild; reads go on",
            );
        }
        let short = bad.iter().filter(|p| p.config.listed.len() < p.config.copies as usize).count();
        if short > 0 {
            w.say(
                format!("{short} placement groups find too few servers for all copies"),
                "add an SDS node with devices to the pool",
            );
        }
    }

    /// Blocks that no copy has whole hold up the syncs of their groups.
    fn damaged(&self, bad: &[&Pg], w: &mut Words) {
        for (vtree, at) in bad.iter().filter_map(|p| p.damaged).take(MOST_DAMAGED) {
            let volume = self.s.volumes.values().find(|v| v.vtree == vtree);
            let name = volume.map_or("a deleted volume", |v| v.name.as_str());
            let end = at + u64::from(quarry_base::BLOCK);
            w.say(
                format!("of volume {name}, bytes {at} to {end}, a page is damaged in every copy: its group gets no further copy before that page is written anew"),
                "read the range through the volume to find the page (its reads end with EIO), then write it from a backup or discard it; the copy is made within a minute",
            );
        }
    }

    /// Devices that have no room for copies which are missing.
    fn short(&self, bad: &[&Pg], w: &mut Words) {
        let mut short: BTreeMap<DeviceId, usize> = BTreeMap::new();
        for p in bad {
            let lacks = |d: &DeviceId| !p.config.in_sync.iter().any(|m| m.device == *d);
            let there = |d: &DeviceId| p.config.listed.contains(d);
            if let Some(d) = p.short.filter(|d| there(d) && lacks(d)) {
                *short.entry(d).or_default() += 1;
            }
        }
        for (d, n) in short {
            w.say(
                format!("device {d} is full or nearly so, and copies of {n} placement groups found no room there"),
                "add devices or a node to the pool, or delete or trim what is not needed: the copies are tried again twice a minute",
            );
        }
    }

    /// A device whose copies of `n` groups are missing.
    fn missing(&self, d: DeviceId, n: usize, w: &mut Words) {
        let Some(dev) = self.s.devices.get(&d) else { return };
        let Some(x) = self.s.sds.get(&dev.sds) else { return };
        let name = &x.name;
        if let Some(why) = &dev.failed {
            let path = dev.path.display();
            let last = |p: &Pg| p.config.in_sync.iter().all(|m| m.device == d);
            let last = self.s.pgs.values().filter(|p| !p.config.in_sync.is_empty() && last(p));
            let todo = match last.count() {
                0 => format!("replace it: scli device drain --id {d}, then scli device delete --id {d}"),
                k => format!(
                    "it has the only good copy of {k} groups: bring it back ({path}) and restart sds-server there"
                ),
            };
            return w.say(
                format!("device {d} ({path}) of sds {name} has failed ({why}): {n} groups miss it"),
                todo,
            );
        }
        if let (Some(what), true) = (suspended(dev), x.up && !x.fenced) {
            return w.say(
                format!("{what}: {n} groups of sds {name} do without it"),
                format!("look at the disk (SMART, dmesg); if it stays so, scli device drain --id {d} and replace it; mended: scli sds recover --name {name} tries it again at once"),
            );
        }
        match (x.fenced, x.up) {
            (true, _) => w.say(
                format!("sds {name} was taken out by the operator: {n} groups miss its copies"),
                format!("scli sds recover --name {name}, when what was wrong with it is mended"),
            ),
            (_, false) => w.say(
                format!("sds {name} is down: {n} groups miss its copies"),
                match self.has_room_elsewhere(dev) {
                    true => "start sds-server on its node and read its log; else its copies are rebuilt elsewhere after the pool's grace time",
                    false => "start sds-server on its node and read its log; or add a server: no other one is left to make its copies on",
                },
            ),
            (_, true) => w.say(
                format!("sds {name} is being brought up to date: {n} groups"),
                "wait: scli rebuild status shows how far it is",
            ),
        }
    }

    /// The pool has enough servers left for all copies of a block.
    fn has_room_elsewhere(&self, dev: &Device) -> bool {
        let pool = dev.pool.and_then(|p| self.s.pools.get(&p));
        pool.is_some_and(|p| {
            let left: BTreeSet<SdsId> = self.s.candidates(p.id).iter().map(|c| c.sds).collect();
            left.len() >= usize::from(p.copies)
        })
    }

    fn unavailable(&self, bad: &[&Pg], w: &mut Words) {
        let dead =
            bad.iter().filter(|p| pg_health(self.s, self.hub, p, self.at) == Health::Unavailable);
        let mut holders: BTreeMap<Vec<SdsId>, usize> = BTreeMap::new();
        let mut pools: BTreeSet<&str> = BTreeSet::new();
        for p in dead {
            if p.config.in_sync.iter().any(|m| self.s.alive(m)) {
                w.say(
                    format!(
                        "group {} has a live copy on {}, which does not serve yet",
                        p.config.pg,
                        p.config
                            .in_sync
                            .iter()
                            .map(|m| self.sds_name(m.sds))
                            .collect::<Vec<_>>()
                            .join(", ")
                    ),
                    "look at the log of that sds-server; is its device slow or stuck?",
                );
                continue;
            }
            let name = self.s.pools.get(&p.config.pg.pool()).map(|x| x.name.as_str());
            pools.extend(name.filter(|_| self.s.only_stale(p.config.pg)));
            let mut who: Vec<SdsId> = p.config.in_sync.iter().map(|m| m.sds).collect();
            who.sort();
            *holders.entry(who).or_default() += 1;
        }
        for (who, n) in holders {
            let names: Vec<&str> = who.iter().map(|s| self.sds_name(*s)).collect();
            let names = names.join(" and ");
            let up = who.iter().any(|x| self.s.sds.get(x).is_some_and(|x| x.up && !x.fenced));
            let (what, todo) = match up {
                true => {
                    ("whose device is not there", format!("bring the device on sds {names} back"))
                }
                false => ("which is not there", format!("bring sds {names} back")),
            };
            w.say(
                format!(
                    "{n} groups serve nothing: their only good copies are on sds {names}, {what}"
                ),
                format!("{todo}: nothing else has the newest data"),
            );
        }
        for pool in pools {
            w.say(
                "what other servers have of these groups is older: it is not used by itself",
                format!(
                    "if they are lost for ever: `scli --dry-run pg accept-stale --pool {pool} --all-unavailable` says what going on with older copies would lose"
                ),
            );
        }
        let fenced: Vec<PgId> =
            bad.iter().filter(|p| p.fence.is_some()).map(|p| p.config.pg).collect();
        if !fenced.is_empty() {
            let who = crate::stale::unfenced(self.hub, self.s, &fenced).join(", ");
            w.say(
                format!("older copies are to count in {} groups; that waits: {who}", fenced.len()),
                "bring back who has not confirmed, or say --old-server-is-off if the old servers are switched off",
            );
        }
    }

    /// What is not about groups.
    fn special(&self, what: Subject, w: &mut Words) {
        match what {
            Subject::Volume(id) => {
                if let Some(v) = self.s.volumes.get(&id) {
                    self.volume(v, w);
                }
            }
            Subject::Node(id) => self.node(id, w),
            Subject::Sds(id) => self.sds(id, w),
            Subject::Pg(id) => self.pg(id, w),
            Subject::Pool(id) => {
                if let Some(p) =
                    self.s.pools.get(&id).filter(|_| self.s.pool_pgs(id).next().is_none())
                {
                    let (why, todo) = waits(self.s, p);
                    w.say(why, todo);
                }
            }
        }
    }

    fn volume(&self, v: &Volume, w: &mut Words) {
        for m in &v.mappings {
            let name = self.s.sdcs.get(&m.sdc).map_or("?", |x| x.name.as_str());
            let live = self.hub.sdcs.get(&m.sdc).filter(|l| l.session.is_some());
            let Some(live) = live else {
                w.say(
                    format!("sdc {name}, to which it is mapped, has no session with the MDM"),
                    format!("I/O goes on if it runs; else start sdc-nbd on the node of sdc {name}"),
                );
                continue;
            };
            let mine = live.attachments.iter().flatten().find(|a| a.volume == v.id);
            if let Some(e) = mine.and_then(|a| a.error.as_ref()) {
                w.say(
                    format!("sdc {name} cannot attach it: {e}"),
                    format!("mend that on the node of sdc {name} and map again"),
                );
            }
        }
        for t in self.s.tasks.values().filter(|t| t.state == TaskState::Running) {
            if let TaskKind::Unmap { volume, sdc, index } = &t.kind {
                if *volume == v.id {
                    let who = unconfirmed(self.hub, self.s, *volume, *sdc, *index).join(", ");
                    w.say(
                        format!("an unmap is not complete (task {}): {who}", t.id),
                        "bring back who has not confirmed: until then the old client may still write",
                    );
                }
            }
        }
    }

    fn node(&self, id: NodeId, w: &mut Words) {
        for x in self.s.sds_of(id) {
            self.sds(x, w);
        }
        for x in self.s.sdcs.values().filter(|x| x.node == Some(id) && !x.up) {
            w.say(
                format!("sdc {} is down", x.name),
                "start sdc-nbd there; its volumes keep their mapping",
            );
        }
    }

    fn sds(&self, id: SdsId, w: &mut Words) {
        let Some(x) = self.s.sds.get(&id) else { return };
        let name = &x.name;
        let down = format!("sds {name} is down");
        if x.fenced {
            w.say(
                format!("sds {name} was taken out by the operator"),
                format!("scli sds recover --name {name}"),
            );
        } else if !x.up && x.start.get() > 0 && !w.why.iter().any(|y| y.starts_with(&down)) {
            w.say(down, "start sds-server there and read its log");
        }
        if x.draining {
            let n = self.s.copies_on_sds(id);
            w.say(
                format!("sds {name} is being drained: {n} copies are left on it"),
                "scli task list shows how far it is",
            );
        }
        for d in self
            .s
            .devices
            .values()
            .filter(|d| d.sds == id && (d.failed.is_some() || d.suspended.is_some()))
        {
            self.missing(d.id, self.s.copies_on(d.id) as usize, w);
        }
    }

    fn pg(&self, id: PgId, w: &mut Words) {
        let Some(p) = self.s.pgs.get(&id) else { return };
        let c = &p.config;
        if !p.retiring.is_empty() {
            w.say("a copy is being moved to another device", "nothing: it loses no copy meanwhile");
        }
        let left = self.hub.pgs.get(&id).and_then(|l| l.report.as_ref());
        if let Some(r) = left.filter(|_| !c.syncing.is_empty()) {
            let to: Vec<String> = c.syncing.iter().map(|m| m.device.to_string()).collect();
            w.say(
                format!("device {} lacks {}", to.join(", "), show_size(r.sync_left_bytes)),
                "wait: scli rebuild status shows how far it is",
            );
        }
        let ms = crate::engine::unix_ms();
        for (d, until) in p.held.iter().filter(|h| h.1 > ms) {
            let back = (until - ms).div_ceil(1000);
            if p.short == Some(*d) {
                let todo =
                    "add devices or a node to the pool, or delete or trim what is not needed";
                let why =
                    format!("device {d} is full or nearly so: its copy is tried again in {back} s");
                w.say(why, todo);
                continue;
            }
            w.say(
                format!("device {d} was too slow or silent: it may come back in {back} s"),
                "if this repeats: look at the network and the device of that server",
            );
        }
    }

    fn pool(&self, p: &Pool, bad: bool, w: &mut Words) {
        let name = &p.name;
        if p.rebuild_cancelled {
            w.say(
                format!("rebuilding elsewhere is stopped in pool {name}"),
                format!("scli rebuild start --pool {name}"),
            );
        }
        let syncing = self.s.pool_pgs(p.id).any(|g| !g.config.syncing.is_empty());
        if p.rate_now > 0 && syncing && bad {
            w.say(
                format!("the rebuild is held to {} a second for each group by the policy of pool {name}", show_size(p.rate_now)),
                format!("scli policy set --pool {name} --rebuild unlimited, if it is to be faster"),
            );
        }
        let all = self.s.candidates(p.id);
        let servers: BTreeSet<SdsId> = all.iter().map(|c| c.sds).collect();
        let sets: BTreeSet<_> =
            all.iter().map(|c| (c.fault_set, c.fault_set.is_none().then_some(c.sds))).collect();
        if sets.len() < usize::from(p.copies) && servers.len() >= usize::from(p.copies) {
            w.say(
                format!(
                    "the {} servers of pool {name} are in {} fault set(s), for {} copies: copies of a block share one and fail together",
                    servers.len(), sets.len(), p.copies
                ),
                "scli fault-set assign --sds S --fault-set F for other sets, or without --fault-set to take a server out of its set",
            );
        }
        if p.level != Level::Normal {
            w.say(
                format!("pool {name} is nearly full ({})", p.level.name()),
                "add devices or delete volumes before writes fail for lack of space",
            );
        }
    }
}
