//! A cluster small enough for a test: an MDM that says what it is told to, a data server in memory,
//! and an NBD client of few words.

use quarry_base::*;
use quarry_control::{read_message, write_message, Attachment, FromNode, Hello, ToNode};
use quarry_wire::{
    Change, ClusterView, DeviceInfo, Endpoint, Frame, FrameReader, Header, MapEntry, Member, Op,
    Peer, PgConfig, PoolInfo, SdsInfo, Status, VolumeInfo,
};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const CLUSTER: &str = "00112233445566778899aabbccddeeff";
pub const SIZE: u64 = 16 << 20;
pub const PGS: u32 = 8;

/// Waits until `f` gives something; fails after 15 s.
pub fn wait<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(t) = f() {
            return t;
        }
        assert!(Instant::now() < end, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn config(pg: u32, epoch: u64, sds: u32) -> PgConfig {
    let m = |d: u32| Member { device: DeviceId(d), sds: SdsId(d), start: StartNo(d.into()) };
    PgConfig {
        pg: PgId::new(PoolId(1), pg),
        epoch: Epoch(epoch),
        index: ConfigIndex(epoch),
        primary: Some(DeviceId(sds)),
        in_sync: vec![m(1), m(2)],
        syncing: vec![],
        listed: vec![DeviceId(1), DeviceId(2)],
        copies: 2,
        min_copies: 1,
        line: Epoch::ZERO,
        fell: Epoch::ZERO,
    }
}

pub fn volume(id: u32, name: &str, size: u64, generation: u64, mapped: bool) -> VolumeInfo {
    let map = MapEntry {
        sdc: SdcId(9),
        read_only: false,
        io_timeout_ms: 0,
        device: false,
        since: quarry_base::Generation(1),
    };
    VolumeInfo {
        id: VolumeId(id),
        name: name.into(),
        vtree: VtreeId(id.into()),
        pool: PoolId(1),
        size_bytes: size,
        generation: Generation(generation),
        mappings: if mapped { vec![map] } else { vec![] },
        thick: false,
    }
}

pub fn view(sockets: &[PathBuf], primary: u32) -> ClusterView {
    let mut v = ClusterView::default();
    for (d, path) in (1u32..).zip(sockets) {
        let endpoint = Endpoint { unix: Some(path.clone()), tcp: None };
        v.apply(Change::Sds(SdsInfo {
            id: SdsId(d),
            name: format!("sds{d}"),
            start: StartNo(d.into()),
            up: true,
            host: quarry_control::host_identity().0,
            endpoints: vec![endpoint],
        }));
        v.apply(Change::Device(DeviceInfo {
            id: DeviceId(d),
            sds: SdsId(d),
            pool: PoolId(1),
            shard: 0,
        }));
    }
    v.apply(Change::Pool(PoolInfo {
        id: PoolId(1),
        name: "default".into(),
        pg_count: PGS,
        cached: false,
        confirm: false,
        rebuild_bytes_per_second: 0,
        scrub_bytes_per_second: None,
    }));
    (0..PGS).for_each(|pg| v.apply(Change::Pg(config(pg, 1, primary))));
    v.apply(Change::Volume(volume(1, "vol1", SIZE, 1, true)));
    v
}

/// An MDM: one session at a time.
pub struct Mdm {
    pub addr: String,
    pub heard: Arc<Mutex<Vec<FromNode>>>,
    push: tokio::sync::mpsc::UnboundedSender<ToNode>,
}

impl Mdm {
    pub fn start(view: ClusterView) -> Mdm {
        let heard: Arc<Mutex<Vec<FromNode>>> = Arc::default();
        let (push, mut rx) = tokio::sync::mpsc::unbounded_channel::<ToNode>();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let seen = Arc::clone(&heard);
        std::thread::spawn(move || {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            rt.block_on(async move {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (s, _) = listener.accept().await.unwrap();
                    let (mut r, mut w) = s.into_split();
                    let hello: FromNode = read_message(&mut r).await.unwrap();
                    let FromNode::Hello(hello) = hello else { panic!("no Hello first") };
                    let start = hello.resume.unwrap_or(77);
                    seen.lock().unwrap().push(FromNode::Hello(hello));
                    let registered = ToNode::Registered {
                        cluster: CLUSTER.into(),
                        node: NodeId(1),
                        sds: None,
                        sdc: Some(SdcId(9)),
                        start,
                        devices: vec![],
                        heartbeat_ms: 100,
                    };
                    write_message(&mut w, &registered).await.unwrap();
                    write_message(&mut w, &ToNode::Snapshot(view.clone())).await.unwrap();
                    let seen = Arc::clone(&seen);
                    let (beat_tx, mut beats) = tokio::sync::mpsc::unbounded_channel();
                    tokio::spawn(async move {
                        while let Ok(m) = read_message::<FromNode>(&mut r).await {
                            if matches!(m, FromNode::Heartbeat { .. }) && beat_tx.send(()).is_err()
                            {
                                return;
                            }
                            seen.lock().unwrap().push(m);
                        }
                    });
                    loop {
                        let m = tokio::select! {
                            m = rx.recv() => match m { Some(m) => m, None => return },
                            b = beats.recv() => match b {
                                Some(()) => ToNode::HeartbeatAck { index: ConfigIndex(1) },
                                None => break,
                            },
                        };
                        // ProposalResult is for no SDC: here it means "break the session".
                        if matches!(m, ToNode::ProposalResult { .. })
                            || write_message(&mut w, &m).await.is_err()
                        {
                            break;
                        }
                    }
                }
            });
        });
        Mdm { addr, heard, push }
    }

    pub fn change(&self, index: u64, changes: Vec<Change>) {
        self.push.send(ToNode::Changes { index: ConfigIndex(index), changes }).unwrap();
    }
    pub fn refuse(&self, code: &str) {
        let (message, hint) = ("it is another one".into(), "mount its metadata".into());
        self.push.send(ToNode::Refused { code: code.into(), message, hint }).unwrap();
    }
    pub fn break_session(&self) {
        let m = ToNode::ProposalResult { request: 0, accepted: false, reason: String::new() };
        self.push.send(m).unwrap();
    }
    /// The newest list of attachments.
    pub fn attachments(&self) -> Option<Vec<Attachment>> {
        self.heard.lock().unwrap().iter().rev().find_map(|m| match m {
            FromNode::Attachments(a) => Some(a.clone()),
            _ => None,
        })
    }
    pub fn socket(&self, volume: u32, generation: u64) -> PathBuf {
        wait("the volume's socket", || {
            let list = self.attachments()?;
            let a = list.iter().find(|a| a.volume.0 == volume && a.generation.0 >= generation)?;
            assert_eq!(a.error, None);
            a.socket.clone()
        })
    }
    pub fn hellos(&self) -> Vec<Hello> {
        let heard = self.heard.lock().unwrap();
        heard
            .iter()
            .filter_map(|m| if let FromNode::Hello(h) = m { Some((**h).clone()) } else { None })
            .collect()
    }
}

/// What all data servers of a test share.
#[derive(Default)]
pub struct Truth {
    pub extents: HashMap<(u64, u32), Vec<u8>>,
    pub applied: std::collections::HashSet<(PgId, u64)>,
    pub epochs: HashMap<PgId, PgConfig>,
    /// Requests are taken and never answered.
    pub mute: bool,
}

/// Passes bytes between a TCP port and a Unix socket: a data server on another host.
pub fn tcp_front(path: &Path) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let path = path.to_path_buf();
    std::thread::spawn(move || {
        while let Ok((mut a, _)) = listener.accept() {
            let mut b = UnixStream::connect(&path).unwrap();
            let (mut a2, mut b2) = (a.try_clone().unwrap(), b.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut a, &mut b));
            std::thread::spawn(move || std::io::copy(&mut b2, &mut a2));
        }
    });
    at
}

/// A data server on a Unix socket.
pub struct Sds {
    path: PathBuf,
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

impl Sds {
    pub fn start(id: u32, path: &Path, truth: &Arc<Mutex<Truth>>) -> Sds {
        let _stale = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let streams: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
        let (mine, truth) = (Arc::clone(&streams), Arc::clone(truth));
        std::thread::spawn(move || {
            while let Ok((s, _)) = listener.accept() {
                let mut open = mine.lock().unwrap();
                if open.first().is_some_and(|f| f.peer_addr().is_err()) {
                    return;
                }
                open.push(s.try_clone().unwrap());
                let truth = Arc::clone(&truth);
                std::thread::spawn(move || serve(id, s, &truth));
            }
        });
        Sds { path: path.to_path_buf(), streams }
    }

    /// kill -9: connections break, nobody listens.
    pub fn kill(&self) {
        std::fs::remove_file(&self.path).unwrap();
        for s in self.streams.lock().unwrap().drain(..) {
            let _gone = s.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn serve(id: u32, mut s: UnixStream, truth: &Mutex<Truth>) {
    let mut reader = FrameReader::new();
    let mut frames = vec![];
    loop {
        let mut plan = reader.next_recv();
        let n = match s.read(&mut plan.buf[plan.start..plan.end]) {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        reader.received(plan, n, &mut frames).unwrap();
        for f in frames.drain(..) {
            let Some(reply) = execute(id, f, truth) else { continue };
            let (head, body) = reply.encode();
            if s.write_all(&[&head[..], &body[..]].concat()).is_err() {
                return;
            }
        }
    }
}

fn execute(id: u32, f: Frame, truth: &Mutex<Truth>) -> Option<Frame> {
    let h = f.header;
    let mut r = Header::new(Op::Reply);
    (r.pg, r.request_id, r.offset, r.length) = (h.pg, h.request_id, h.offset, h.length);
    if h.op == Op::Hello {
        let mut hello = quarry_wire::Hello::from_meta(&f.meta).unwrap();
        assert!(
            matches!(hello.peer, Peer::Sdc { id: SdcId(9), instance: Instance(77) }),
            "{hello:?}"
        );
        hello.peer = Peer::Sds { id: SdsId(id), start: StartNo(id.into()) };
        return Some(Frame::with_meta(Header::new(Op::Hello), hello.to_meta()));
    }
    let mut t = truth.lock().unwrap();
    match h.op {
        Op::Ping => return (!t.mute).then(|| Frame::bare(Header::new(Op::Pong))),
        Op::Read | Op::Map | Op::Write | Op::Zero => {}
        _ => return None,
    }
    if t.mute {
        return None;
    }
    f.verify_data().unwrap();
    let newer = t.epochs.get(&h.pg).filter(|c| c.epoch > h.epoch);
    if let Some(c) = newer {
        r.status = Status::StaleEpoch;
        return Some(Frame::with_meta(r, c.to_meta()));
    }
    let first = t.applied.insert((h.pg, h.request_id.0));
    let extent =
        t.extents.entry((h.vtree.0, h.extent.0)).or_insert_with(|| vec![0; EXTENT as usize]);
    let range = h.offset as usize..(h.offset + h.length) as usize;
    match h.op {
        Op::Read => {
            r.op = Op::ReadReply;
            let data = PageBuf::copy_of(&extent[range]).freeze();
            let crcs = crc_pieces(h.offset, &data);
            return Some(Frame::with_data(r, data, &crcs));
        }
        Op::Map => {
            r.op = Op::ReadReply;
            let mut bits = vec![0u8; range.len().div_ceil(PAGE * 8)];
            for (n, _) in
                extent[range].chunks(PAGE).enumerate().filter(|(_, p)| p.iter().any(|b| *b != 0))
            {
                bits[n / 8] |= 1 << (n % 8);
            }
            let crcs = crc_pieces(h.offset, &bits);
            return Some(Frame::with_data(r, bits.into(), &crcs));
        }
        Op::Write if first => extent[range].copy_from_slice(&f.data),
        Op::Zero if first => extent[range].fill(0),
        _ => {}
    }
    Some(Frame::bare(r))
}

/// The daemon, with its directories.
pub struct Daemon {
    pub child: Child,
    pub dir: PathBuf,
}

pub fn directory(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("qsdc-{}-{name}", std::process::id()));
    let _fresh = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(dir.join("s")).unwrap();
    dir
}

impl Daemon {
    pub fn command(dir: &Path, mdm: &str) -> Command {
        let node = dir.join("node.toml");
        std::fs::write(&node, format!("name = 'c1'\ncapabilities = ['SDC']\nmdm = ['{mdm}']\n"))
            .unwrap();
        let mut c = Command::new(env!("CARGO_BIN_EXE_sdc-nbd"));
        c.arg("--node-config").arg(node);
        c.arg("--data-dir").arg(dir.join("data")).arg("--socket-dir").arg(dir.join("s"));
        c.args(["--metrics", "127.0.0.1:0"]);
        c
    }
    pub fn start(dir: &Path, mdm: &str) -> Daemon {
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let child = Daemon::command(dir, mdm).stderr(Stdio::from(log)).spawn().unwrap();
        Daemon { child, dir: dir.to_path_buf() }
    }
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }
    /// SIGTERM, and how it ended.
    pub fn stop(&mut self) -> (std::process::ExitStatus, Duration) {
        let begun = Instant::now();
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        (self.ended(), begun.elapsed())
    }
    pub fn ended(&mut self) -> std::process::ExitStatus {
        wait("the daemon's end", || self.child.try_wait().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log\n{}", self.log());
        } else {
            let _left = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// An NBD client: simple replies, one thread.
pub struct Nbd {
    s: UnixStream,
    pub size: u64,
    next: u64,
}

impl Nbd {
    pub fn open(path: &Path, name: &str) -> Nbd {
        let mut s = UnixStream::connect(path).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut greeting = [0; 18];
        s.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut m = 3u32.to_be_bytes().to_vec();
        m.extend(b"IHAVEOPT");
        m.extend(1u32.to_be_bytes());
        m.extend((name.len() as u32).to_be_bytes());
        m.extend(name.as_bytes());
        s.write_all(&m).unwrap();
        let mut answer = [0; 10];
        s.read_exact(&mut answer).unwrap();
        let size = u64::from_be_bytes(answer[..8].try_into().unwrap());
        Nbd { s, size, next: 0 }
    }
    pub fn send(&mut self, command: u16, offset: u64, len: u32, data: &[u8]) -> u64 {
        self.next += 1;
        let mut m = 0x2560_9513u32.to_be_bytes().to_vec();
        m.extend(0u16.to_be_bytes());
        m.extend(command.to_be_bytes());
        m.extend(self.next.to_be_bytes());
        m.extend(offset.to_be_bytes());
        m.extend(len.to_be_bytes());
        m.extend(data);
        self.s.write_all(&m).unwrap();
        self.next
    }
    /// Reads of `len` bytes, sent as one piece.
    pub fn burst(&mut self, n: u64, len: u32) {
        let mut m = Vec::new();
        for i in 0..n {
            self.next += 1;
            m.extend(0x2560_9513u32.to_be_bytes());
            m.extend([0; 4]);
            m.extend(self.next.to_be_bytes());
            m.extend((i % 64 * u64::from(len)).to_be_bytes());
            m.extend(len.to_be_bytes());
        }
        self.s.write_all(&m).unwrap();
    }
    /// Takes the answers of so many reads.
    pub fn burst_replies(&mut self, n: u64, len: u32) {
        let mut data = vec![0; len as usize];
        for i in 0..n {
            assert_eq!(self.reply().map(|r| r.0), Some(0), "answer {i} of {n}");
            self.s.read_exact(&mut data).unwrap();
        }
    }
    /// Error number and cookie of the next reply; `None`: the server closed.
    pub fn reply(&mut self) -> Option<(u32, u64)> {
        let mut head = [0; 16];
        self.s.read_exact(&mut head).ok()?;
        assert_eq!(&head[..4], 0x6744_6698u32.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        Some((error, u64::from_be_bytes(head[8..].try_into().unwrap())))
    }
    pub fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.send(1, offset, data.len() as u32, data);
        self.reply().unwrap().0
    }
    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.send(0, offset, len, &[]);
        assert_eq!(self.reply().unwrap().0, 0);
        let mut data = vec![0; len as usize];
        self.s.read_exact(&mut data).unwrap();
        data
    }
}

/// The body of a page.
pub fn http_get(host: &str, path: &str) -> String {
    let mut s = std::net::TcpStream::connect(host).unwrap();
    s.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut out = String::new();
    s.read_to_string(&mut out).unwrap();
    out
}
