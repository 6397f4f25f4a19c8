//! A TCP relay that misbehaves on request: delays, holds back, flips bits, cuts in the middle of a message.
//!
//! Each direction of a connection has a thread that reads and one that writes, with a queue between them, so that a delay
//! keeps its order and costs no throughput. What was read before a cut is still delivered when the other side lives: a
//! request held back can reach the server after the client has given the connection up (see [`Proxy::strand`]).

use crate::failure::While;
use crate::rng::Rng;
use crate::Res;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// How often a held direction looks whether it may go on.
const LOOK: Duration = Duration::from_millis(2);

/// A direction: from the side that dialled to the server, or back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Up,
    Down,
}

/// What is done to all connections.
#[derive(Default)]
struct Rules {
    delay_us: AtomicU64,
    jitter_us: AtomicU64,
    /// One bit is flipped about every so many bytes; 0: none.
    flip_every: AtomicU64,
    /// A connection is cut after about so many bytes more; 0: not.
    cut_every: AtomicU64,
    flipped: AtomicU64,
    cuts: AtomicU64,
}

/// One relayed connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    hold_up: AtomicBool,
    hold_down: AtomicBool,
    /// The dialling side was cut while something was held.
    stranded: AtomicBool,
}

impl Pair {
    fn hold(&self, way: Way) -> &AtomicBool {
        match way {
            Way::Up => &self.hold_up,
            Way::Down => &self.hold_down,
        }
    }
    fn release(&self) {
        self.hold_up.store(false, Relaxed);
        self.hold_down.store(false, Relaxed);
    }
    /// Ends both sides with a reset.
    fn reset(&self) {
        for s in [&self.client, &self.server] {
            // Fails on a socket that is gone already, which is what is wanted.
            let lingers = rustix::net::sockopt::set_socket_linger(s, Some(Duration::ZERO));
            drop(lingers.map(|()| s.shutdown(Shutdown::Both)));
        }
    }
}

struct Shared {
    to: SocketAddr,
    rules: Rules,
    pairs: Mutex<Vec<Arc<Pair>>>,
    /// What new connections bring is held too. Changed and read with the pairs locked.
    hold_new: AtomicBool,
    closed: AtomicBool,
}

impl Shared {
    fn pairs(&self) -> MutexGuard<'_, Vec<Arc<Pair>>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running relay to one server. Connections end with it.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Proxy {
    /// Listens on a free port of `ip` and relays to `to`.
    pub fn start(ip: &str, to: SocketAddr) -> Res<Proxy> {
        let listener = TcpListener::bind((ip, 0)).doing(|| format!("listening on {ip}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            to,
            rules: Rules::default(),
            pairs: Mutex::default(),
            hold_new: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        let s = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &s));
        Ok(Proxy { shared, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
    /// Delays everything by `delay` and a random part of `jitter`, both ways.
    pub fn delay(&self, delay: Duration, jitter: Duration) {
        self.shared.rules.delay_us.store(delay.as_micros() as u64, Relaxed);
        self.shared.rules.jitter_us.store(jitter.as_micros() as u64, Relaxed);
    }
    /// Flips a bit about every `bytes` bytes; 0 ends it.
    pub fn flip_every(&self, bytes: u64) {
        self.shared.rules.flip_every.store(bytes, Relaxed);
    }
    /// Resets a connection after about every `bytes` bytes on it, in the middle of whatever it is; 0 ends it.
    pub fn cut_every(&self, bytes: u64) {
        self.shared.rules.cut_every.store(bytes, Relaxed);
    }
    /// Bits flipped so far.
    pub fn flipped(&self) -> u64 {
        self.shared.rules.flipped.load(Relaxed)
    }
    /// Connections cut so far.
    pub fn cuts(&self) -> u64 {
        self.shared.rules.cuts.load(Relaxed)
    }
    /// Connections that stand now.
    pub fn connections(&self) -> usize {
        self.shared.pairs().len()
    }
    /// Holds back one direction of all connections that stand now; later ones are free.
    pub fn hold(&self, way: Way) {
        self.shared.pairs().iter().for_each(|p| p.hold(way).store(true, Relaxed));
    }
    /// Holds back what connections made from now on bring to the server, until [`Proxy::release`].
    pub fn hold_new(&self) {
        let _pairs = self.shared.pairs();
        self.shared.hold_new.store(true, Relaxed);
    }
    /// Cuts the dialling side of the connections held back. What was held of them is still on its way to the server.
    pub fn strand(&self) -> usize {
        let held = |p: &&Arc<Pair>| p.hold_up.load(Relaxed) || p.hold_down.load(Relaxed);
        let pairs = self.shared.pairs();
        let mut cut = 0;
        for p in pairs.iter().filter(held) {
            if p.client.shutdown(Shutdown::Both).is_ok() {
                p.stranded.store(true, Relaxed);
                cut += 1;
            }
        }
        cut
    }
    /// Lets what is held of stranded connections go on, before that of newer ones.
    pub fn release_stranded(&self) {
        for p in self.shared.pairs().iter().filter(|p| p.stranded.load(Relaxed)) {
            p.release();
        }
    }
    /// Lets everything held go on, also on stranded connections.
    pub fn release(&self) {
        let pairs = self.shared.pairs();
        self.shared.hold_new.store(false, Relaxed);
        pairs.iter().for_each(|p| p.release());
    }
    /// Resets all connections.
    pub fn reset(&self) {
        self.shared.pairs().iter().for_each(|p| p.reset());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Relaxed);
        self.reset();
        // Wakes the listener, which then sees that it is over.
        if TcpStream::connect(self.address).is_err() {
            eprintln!("the proxy on {} does not listen any more", self.address);
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.closed.load(Relaxed) {
            return;
        }
        let Ok(client) = client else { continue };
        // The server does not answer: neither do we.
        let Ok(server) = TcpStream::connect_timeout(&shared.to, Duration::from_secs(2)) else {
            continue;
        };
        if let Err(e) = relay(shared, client, server) {
            eprintln!("proxy: {e}");
        }
    }
}

fn relay(shared: &Arc<Shared>, client: TcpStream, server: TcpStream) -> Res<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let free = || AtomicBool::new(false);
    let pair = {
        let mut pairs = shared.pairs();
        let hold_up = AtomicBool::new(shared.hold_new.load(Relaxed));
        let pair = Pair { client, server, hold_up, hold_down: free(), stranded: free() };
        let pair = Arc::new(pair);
        pairs.push(Arc::clone(&pair));
        pair
    };
    let open = Arc::new(AtomicU64::new(2));
    for way in [Way::Up, Way::Down] {
        let (from, to) = match way {
            Way::Up => (pair.client.try_clone()?, pair.server.try_clone()?),
            Way::Down => (pair.server.try_clone()?, pair.client.try_clone()?),
        };
        let (send, receive) = channel();
        let (s, p) = (Arc::clone(shared), Arc::clone(&pair));
        std::thread::spawn(move || reader(from, &send, &s.rules, &p));
        let (s, p, open) = (Arc::clone(shared), Arc::clone(&pair), Arc::clone(&open));
        std::thread::spawn(move || {
            writer(to, &receive, &p, way);
            if open.fetch_sub(1, Relaxed) == 1 {
                s.pairs().retain(|x| !Arc::ptr_eq(x, &p));
            }
        });
    }
    Ok(())
}

/// Reads, damages, and says when each piece may go on.
fn reader(mut from: TcpStream, queue: &Sender<(Instant, Vec<u8>)>, rules: &Rules, pair: &Pair) {
    let mut rng = Rng::new(Instant::now().elapsed().as_nanos() as u64 ^ from.as_raw());
    let mut buffer = vec![0; CHUNK];
    let (mut to_flip, mut to_cut) = (0u64, 0u64);
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        let mut piece = buffer[..n].to_vec();
        let cut = due(&mut to_cut, rules.cut_every.load(Relaxed), n, &mut rng);
        if let Some(at) = due(&mut to_flip, rules.flip_every.load(Relaxed), n, &mut rng) {
            piece[at] ^= 1 << rng.below(8);
            rules.flipped.fetch_add(1, Relaxed);
        }
        let jitter = rules.jitter_us.load(Relaxed);
        let late = rules.delay_us.load(Relaxed) + if jitter > 0 { rng.below(jitter) } else { 0 };
        let end = cut.is_some();
        piece.truncate(cut.unwrap_or(n));
        if queue.send((Instant::now() + Duration::from_micros(late), piece)).is_err() {
            return;
        }
        if end {
            rules.cuts.fetch_add(1, Relaxed);
            // The first part of the message arrives, the rest never does.
            std::thread::sleep(Duration::from_millis(2));
            pair.reset();
            return;
        }
    }
}

/// Whether something that comes about every `every` bytes falls into the next `n`, and where.
fn due(left: &mut u64, every: u64, n: usize, rng: &mut Rng) -> Option<usize> {
    if every == 0 {
        *left = 0;
        return None;
    }
    if *left == 0 {
        *left = 1 + rng.below(2 * every);
    }
    if *left > n as u64 {
        *left -= n as u64;
        return None;
    }
    let at = *left as usize - 1;
    *left = 0;
    Some(at)
}

/// Writes in order, each piece not before its time and not while the direction is held.
fn writer(mut to: TcpStream, queue: &Receiver<(Instant, Vec<u8>)>, pair: &Pair, way: Way) {
    let mut broken = false;
    for (when, piece) in queue.iter() {
        while pair.hold(way).load(Relaxed) {
            std::thread::sleep(LOOK);
        }
        if let Some(early) = when.checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
        // The other side is gone: the rest is taken in and dropped.
        broken = broken || to.write_all(&piece).is_err();
    }
    while pair.hold(way).load(Relaxed) {
        std::thread::sleep(LOOK);
    }
    // The other direction goes on: a server that answers what came late must not be met by a reset, which could throw away
    // what it has not read yet. Fails when the other side ended first.
    drop(to.shutdown(Shutdown::Write));
}

/// Something different for each socket, to seed with.
trait Raw {
    fn as_raw(&self) -> u64;
}
impl Raw for TcpStream {
    fn as_raw(&self) -> u64 {
        self.peer_addr().map_or(1, |a| u64::from(a.port()) << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that repeats what it hears.
    fn echo() -> SocketAddr {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = l.local_addr().unwrap();
        std::thread::spawn(move || {
            for s in l.incoming().flatten() {
                std::thread::spawn(move || {
                    let (mut r, mut w) = (s.try_clone().unwrap(), s);
                    std::io::copy(&mut r, &mut w).ok()
                });
            }
        });
        address
    }

    fn talk(s: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
        s.write_all(text)?;
        let mut back = vec![0; text.len()];
        s.read_exact(&mut back)?;
        Ok(back)
    }

    #[test]
    fn it_relays_delays_flips_and_cuts() {
        let p = Proxy::start("127.0.0.1", echo()).unwrap();
        let mut s = TcpStream::connect(p.address()).unwrap();
        let text = vec![7; 10_000];
        assert!(talk(&mut s, &text).unwrap() == text);
        p.delay(Duration::from_millis(30), Duration::ZERO);
        let t = Instant::now();
        assert!(talk(&mut s, &text).unwrap() == text);
        assert!(t.elapsed() >= Duration::from_millis(60));
        p.delay(Duration::ZERO, Duration::ZERO);
        p.flip_every(1000);
        assert!(talk(&mut s, &text).unwrap() != text);
        assert!(p.flipped() > 0);
        p.flip_every(0);
        p.cut_every(2000);
        assert!((0..5).any(|_| talk(&mut s, &text).is_err()));
        assert!(p.cuts() > 0);
    }

    #[test]
    fn what_was_held_arrives_after_its_sender_was_cut_off() {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let p = Proxy::start("127.0.0.1", l.local_addr().unwrap()).unwrap();
        let mut s = TcpStream::connect(p.address()).unwrap();
        let (mut server, _) = l.accept().unwrap();
        while p.connections() == 0 {
            std::thread::sleep(LOOK);
        }
        p.hold(Way::Up);
        s.write_all(b"late").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(p.strand(), 1);
        assert!(matches!(s.read(&mut [0; 1]), Ok(0) | Err(_)));
        p.release();
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"late");
    }

    #[test]
    fn what_was_stranded_can_go_before_what_is_newer() {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let p = Proxy::start("127.0.0.1", l.local_addr().unwrap()).unwrap();
        let mut old = TcpStream::connect(p.address()).unwrap();
        let (mut from_old, _) = l.accept().unwrap();
        while p.connections() == 0 {
            std::thread::sleep(LOOK);
        }
        p.hold(Way::Up);
        p.hold_new();
        old.write_all(b"old").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(p.strand(), 1);
        let mut new = TcpStream::connect(p.address()).unwrap();
        new.write_all(b"new").unwrap();
        let (mut from_new, _) = l.accept().unwrap();
        from_new.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        p.release_stranded();
        let mut got = Vec::new();
        from_old.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"old");
        assert!(from_new.read(&mut [0; 3]).is_err(), "the newer one is held still");
        p.release();
        let mut got = [0; 3];
        from_new.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"new");
    }
}
