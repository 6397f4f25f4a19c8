//! One connection of a load: a thread that sends, one that receives, the requests between them.

use super::{Mix, Shared};
use crate::history::{Kind, Op, Outcome};
use crate::nbd::{consts::*, Connection, Receiver, Reply, Request, Sender};
use crate::page;
use crate::rng::Rng;
use crate::Res;
use quarry_base::PAGE;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a worker leaves.
#[derive(Default)]
pub struct WorkerEnd {
    pub ops: Vec<Op>,
    pub lost: u64,
    pub breaches: Vec<String>,
}

impl WorkerEnd {
    pub fn failed(why: &str) -> WorkerEnd {
        WorkerEnd { breaches: vec![why.to_string()], ..WorkerEnd::default() }
    }
}

/// A connection and what it will send.
pub struct Worker {
    shared: Arc<Shared>,
    number: u32,
    connection: Option<Connection>,
    rng: Rng,
    buffer: Vec<u8>,
    end: WorkerEnd,
    /// Outstanding requests were abandoned at the end; the connection was not lost, but cut.
    gave_up: bool,
}

/// Requests sent and not answered, and those that are done; shared by the two threads of a connection.
#[derive(Default)]
struct Flight {
    open: HashMap<u64, Op>,
    done: Vec<Op>,
    /// The receiver has ended: why.
    over: Option<String>,
}

struct Session {
    flight: Mutex<Flight>,
    changed: Condvar,
}

impl Session {
    fn lock(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Waits until `ready` or `limit`; returns the flight as it is then.
    fn wait(&self, limit: Duration, ready: impl Fn(&Flight) -> bool) -> MutexGuard<'_, Flight> {
        let wait = self.changed.wait_timeout_while(self.lock(), limit, |f| !ready(f));
        wait.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Worker {
    pub fn connect(shared: Arc<Shared>, number: u32) -> Res<Worker> {
        let mut w = Worker {
            rng: Rng::new(shared.spec.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number))),
            shared,
            number,
            connection: None,
            buffer: Vec::new(),
            end: WorkerEnd::default(),
            gave_up: false,
        };
        w.connection = Some(w.open()?);
        Ok(w)
    }

    fn open(&self) -> Res<Connection> {
        let uris = &self.shared.spec.uris;
        // Every second round of connections has simple replies.
        let round = self.number as usize / uris.len().max(1);
        Connection::open_with(&uris[self.number as usize % uris.len()], round.is_multiple_of(2))
    }

    pub fn run(mut self) -> WorkerEnd {
        while !self.shared.stop.load(Relaxed) {
            let connection = match self.connection.take().map_or_else(|| self.open(), Ok) {
                Ok(c) => c,
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
            };
            let lost = self.session(connection);
            if let Some(why) = lost {
                self.end.lost += 1;
                self.shared.lost.fetch_add(1, Relaxed);
                if why.contains("reading") || why.contains("sending") {
                    eprintln!("load: connection {} was lost: {why}", self.number);
                } else {
                    self.end.breaches.push(why);
                }
                if !self.shared.spec.reconnect {
                    break;
                }
            }
        }
        self.end
    }

    /// Works until the end or the loss of the connection, which it explains.
    fn session(&mut self, connection: Connection) -> Option<String> {
        let client = self.shared.next_client.fetch_add(1, Relaxed) as u32;
        let flags = connection.export.flags;
        let (mut sender, receiver) = connection.split();
        let session = Session { flight: Mutex::default(), changed: Condvar::new() };
        std::thread::scope(|scope| {
            let shared = Arc::clone(&self.shared);
            let s = &session;
            let take = {
                let shared = Arc::clone(&shared);
                move || receive(&shared, s, receiver)
            };
            let receiving = std::thread::Builder::new().spawn_scoped(scope, take);
            if receiving.is_ok() {
                self.send_all(&shared, &session, &mut sender, client, flags);
            }
            // The receiver ends with the connection, whatever it was waiting for.
            sender.cut();
        });
        let mut flight = session.lock();
        self.end.ops.append(&mut flight.done);
        let unanswered = !flight.open.is_empty();
        self.end.ops.extend(flight.open.drain().map(|(_, op)| op));
        let over = flight.over.take();
        let stopped = self.shared.stop.load(Relaxed) && (self.gave_up || !unanswered);
        if stopped {
            over.filter(|why| !why.contains("reading"))
        } else {
            over
        }
    }

    fn send_all(
        &mut self,
        shared: &Shared,
        session: &Session,
        sender: &mut Sender,
        client: u32,
        flags: u16,
    ) {
        let depth = shared.spec.depth.max(1);
        let started = Instant::now();
        let second = Duration::from_secs(1);
        let share =
            (shared.spec.most_per_second / u64::from(shared.spec.connections.max(1))).max(1);
        let mut sent = 0u64;
        while !shared.stop.load(Relaxed) {
            let room = |f: &Flight| f.over.is_some() || f.open.len() < depth;
            let flight = session.wait(second / 10, room);
            if flight.over.is_some() {
                return;
            }
            if flight.open.len() >= depth {
                continue;
            }
            drop(flight);
            let due = Duration::from_nanos(1_000_000_000 / share * sent);
            if let Some(early) = due.checked_sub(started.elapsed()).filter(|e| e.as_micros() > 100)
            {
                std::thread::sleep(early.min(second / 10));
                continue;
            }
            sent += 1;
            if !self.send_one(shared, session, sender, client, flags) {
                return;
            }
        }
        // Enough: let what is under way end, then say goodbye.
        let idle = |f: &Flight| f.over.is_some() || f.open.is_empty();
        let flight = session.wait(shared.spec.patience, idle);
        let answered = flight.over.is_none() && flight.open.is_empty();
        if flight.over.is_none() && !answered {
            let ops: Vec<String> = flight.open.values().take(4).map(shown).collect();
            let (n, s) = (flight.open.len(), shared.spec.patience.as_secs());
            let text = format!("{n} requests were not answered within {s} s: {}", ops.join(", "));
            self.end.breaches.push(text);
            self.gave_up = true;
        }
        drop(flight);
        if answered && sender.disconnect().is_err() {
            eprintln!("load: connection {} was closed before goodbye", self.number);
        }
    }

    /// Sends one random request; false when the connection is lost.
    fn send_one(
        &mut self,
        shared: &Shared,
        session: &Session,
        sender: &mut Sender,
        client: u32,
        flags: u16,
    ) -> bool {
        let spec = &shared.spec;
        let kind = pick(&spec.mix, flags, &mut self.rng);
        let (page, pages) = match kind {
            Kind::Flush => (0, 0),
            _ => spec.area.pick(&mut self.rng, spec.most_pages),
        };
        let id = shared.history.next_id();
        let len = pages as usize * PAGE;
        self.buffer.clear();
        if kind == Kind::Write {
            self.buffer.resize(len, 0);
            for (i, p) in (0u64..).zip(self.buffer.chunks_mut(PAGE)) {
                page::stamp(p, page + i, page::value_of(id, i), shared.history.run());
            }
        }
        let command = match kind {
            Kind::Read => CMD_READ,
            Kind::Write => CMD_WRITE,
            Kind::Trim => CMD_TRIM,
            Kind::Zero => CMD_WRITE_ZEROES,
            Kind::Flush => CMD_FLUSH,
        };
        let changes = matches!(kind, Kind::Write | Kind::Trim | Kind::Zero);
        let fua = changes && flags & SEND_FUA != 0 && self.rng.below(10) == 0;
        let no_hole = kind == Kind::Zero && self.rng.below(2) == 0;
        let request = Request {
            kind: command,
            flags: if fua { CMD_FLAG_FUA } else { 0 } | if no_hole { CMD_FLAG_NO_HOLE } else { 0 },
            cookie: id,
            offset: page * PAGE as u64,
            len: len as u32,
            data: &self.buffer,
        };
        let op = Op {
            id,
            client,
            kind,
            page,
            pages,
            invoked: shared.history.now(),
            completed: u64::MAX,
            outcome: Outcome::Unknown,
            seen: Box::new([]),
        };
        session.lock().open.insert(id, op);
        shared.sent.fetch_add(1, Relaxed);
        sender.send(&request).is_ok()
    }
}

fn pick(mix: &Mix, flags: u16, rng: &mut Rng) -> Kind {
    let allowed = |flag: u16, share: u64| if flags & flag != 0 { share } else { 0 };
    let shares = [
        (Kind::Write, if flags & READ_ONLY == 0 { mix.write } else { 0 }),
        (Kind::Trim, allowed(SEND_TRIM, mix.trim)),
        (Kind::Zero, allowed(SEND_WRITE_ZEROES, mix.zero)),
        (Kind::Flush, allowed(SEND_FLUSH, mix.flush)),
        (Kind::Read, mix.read),
    ];
    let mut at = rng.below(shares.iter().map(|s| s.1).sum());
    for (kind, share) in shares {
        if at < share {
            return kind;
        }
        at -= share;
    }
    Kind::Read
}

fn shown(op: &Op) -> String {
    let at = op.invoked as f64 / 1e9;
    format!("{:?} of {} pages at page {} sent at {at:.3} s", op.kind, op.pages, op.page)
}

/// Takes answers until the connection ends.
fn receive(shared: &Shared, session: &Session, mut receiver: Receiver) {
    loop {
        let outstanding = |cookie: u64| {
            let flight = session.lock();
            let op = flight.open.get(&cookie)?;
            let range = (op.page * PAGE as u64, op.pages as usize * PAGE);
            Some((op.kind == Kind::Read).then_some(range))
        };
        match receiver.next(outstanding) {
            Ok(reply) => {
                let now = shared.history.now();
                let op = session.lock().open.remove(&reply.cookie);
                if let Some(op) = op {
                    let op = finish(op, &reply, now, shared);
                    session.lock().done.push(op);
                }
            }
            Err(why) => {
                session.lock().over = Some(why.text().to_string());
                session.changed.notify_all();
                return;
            }
        }
        session.changed.notify_all();
    }
}

fn finish(op: Op, reply: &Reply, now: u64, shared: &Shared) -> Op {
    shared.completed.fetch_add(1, Relaxed);
    if reply.error != 0 {
        shared.errors.fetch_add(1, Relaxed);
        return Op { completed: now, outcome: Outcome::Error(reply.error), ..op };
    }
    let run = shared.history.run();
    let pages = (op.page..).zip(reply.data.chunks(PAGE));
    let seen = pages.map(|(number, p)| page::read(p, number, run)).collect();
    Op { completed: now, outcome: Outcome::Ok, seen, ..op }
}
