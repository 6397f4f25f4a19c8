//! A directory, a server process and an MDM played by hand.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use quarry_base::*;
use quarry_control::{FromNode, Hello, RegisteredDevice, ToNode};
use quarry_wire::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub const CLUSTER: &str = "00112233445566778899aabbccddeeff";
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new(name: &str) -> Dir {
        let p = std::env::temp_dir().join(format!("qsds-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&p).ok();
        std::fs::create_dir_all(&p).unwrap();
        Dir(p)
    }

    /// Waits until the device of server `name` carries a superblock.
    pub fn until_formatted(&self, name: &str) {
        let path = self.0.join(format!("{name}.img"));
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            let mut magic = [0; 8];
            let read = std::fs::File::open(&path).and_then(|mut f| f.read_exact(&mut magic));
            if read.is_ok() && &magic == b"QRYSTORE" {
                return;
            }
            assert!(Instant::now() < limit, "{} is not formatted", path.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }
}

/// A server process; killed when dropped.
pub struct Server {
    pub child: Child,
    pub log: PathBuf,
}

impl Server {
    /// Starts server `name` with one device; it registers with `mdm`.
    pub fn start(dir: &Dir, name: &str, mdm: &Mdm) -> Server {
        Server::start_in(&[], dir, name, mdm)
    }

    /// The same behind a program that runs it.
    pub fn start_in(before: &[&str], dir: &Dir, name: &str, mdm: &Mdm) -> Server {
        let at = |s: &str| dir.0.join(format!("{name}{s}"));
        let node = format!("name='{name}'\ncapabilities=['SDS']\nmdm=['{}']\n", mdm.address);
        std::fs::write(at(".toml"), node).unwrap();
        let log = at(".log");
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut words = before.iter().copied().chain([env!("CARGO_BIN_EXE_sds-server")]);
        let child = Command::new(words.next().unwrap())
            .args(words)
            .arg("--node-config")
            .arg(at(".toml"))
            .arg("--data-dir")
            .arg(at("-data"))
            .arg("--device")
            .arg(at(".img"))
            .args(["--device-size", "160MiB", "--log", "debug"])
            .arg("--socket-dir")
            .arg(&dir.0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Server { child, log }
    }

    pub fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(s) = self.child.try_wait().unwrap() {
                return s;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end: {}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Has server "a" format its device; it has ended then.
pub fn format_device(dir: &Dir, mdm: &Mdm) {
    let mut server = Server::start(dir, "a", mdm);
    let s = mdm.accept();
    s.register(1, 1);
    s.until_open();
    dir.until_formatted("a");
    server.kill();
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.text());
        }
    }
}

/// The MDM, played by the test.
pub struct Mdm {
    listener: TcpListener,
    pub address: String,
}

/// A server's control session.
pub struct Session {
    stream: TcpStream,
    pub hello: Hello,
}

impl Mdm {
    pub fn new() -> Mdm {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Mdm { listener, address }
    }

    /// The next server that says Hello.
    pub fn accept(&self) -> Session {
        self.listener.set_nonblocking(true).unwrap();
        let start = Instant::now();
        let stream = loop {
            match self.listener.accept() {
                Ok((s, _)) => break s,
                Err(_) => assert!(start.elapsed() < PATIENCE, "nobody registers"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let hello = match read(&stream) {
            FromNode::Hello(h) => *h,
            other => panic!("not a Hello: {other:?}"),
        };
        Session { stream, hello }
    }
}

fn read(mut s: &TcpStream) -> FromNode {
    let mut len = [0; 4];
    s.read_exact(&mut len).unwrap();
    let mut body = vec![0; u32::from_le_bytes(len) as usize];
    s.read_exact(&mut body).unwrap();
    serde_json::from_slice(&body).unwrap()
}

impl Session {
    pub fn send(&self, m: &ToNode) {
        let body = serde_json::to_vec(m).unwrap();
        let mut all = (body.len() as u32).to_le_bytes().to_vec();
        all.extend_from_slice(&body);
        (&self.stream).write_all(&all).unwrap();
    }

    pub fn recv(&self) -> FromNode {
        read(&self.stream)
    }

    /// Skips messages until `want` finds what it looks for.
    pub fn until<T>(&self, mut want: impl FnMut(FromNode) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "it never came");
            if let Some(t) = want(self.recv()) {
                return t;
            }
        }
    }

    /// Registers it as server `sds`, its device with the same number.
    pub fn register(&self, sds: u32, start: u64) {
        self.register_in(CLUSTER, sds, start);
    }

    pub fn register_in(&self, cluster: &str, sds: u32, start: u64) {
        let devices = self
            .hello
            .devices
            .iter()
            .map(|d| RegisteredDevice { uuid: d.uuid.clone(), id: DeviceId(sds) });
        self.send(&ToNode::Registered {
            cluster: cluster.to_string(),
            node: NodeId(sds),
            sds: Some(SdsId(sds)),
            sdc: None,
            start,
            devices: devices.collect(),
            heartbeat_ms: 50,
        });
    }

    /// Waits until the server says what the device holds or, if it is blank, will hold.
    pub fn until_open(&self) -> u64 {
        self.until(|m| match m {
            FromNode::Heartbeat { devices, .. } => {
                devices.first().map(|d| d.1).filter(|c| *c > 0 && *c < 160 << 20)
            }
            _ => None,
        })
    }

    pub fn info(&self, sds: u32, start: u64) -> SdsInfo {
        SdsInfo {
            id: SdsId(sds),
            name: self.hello.name.clone(),
            start: StartNo(start),
            up: true,
            host: self.hello.host.clone(),
            endpoints: self.hello.endpoints.clone(),
        }
    }
}

/// A client on the data socket.
pub struct Client {
    stream: UnixStream,
    reader: FrameReader,
    ready: std::collections::VecDeque<Frame>,
}

impl Client {
    /// Connects and says nothing.
    pub fn connect(s: &Session) -> Client {
        let stream = UnixStream::connect(s.hello.endpoints[0].unix.as_ref().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, reader: FrameReader::new(), ready: Default::default() }
    }

    /// Connects and says Hello as SDC 1.
    pub fn greet(s: &Session, instance: u64) -> Client {
        Client::greet_as(s, 1, instance)
    }

    /// The same as another one.
    pub fn greet_as(s: &Session, sdc: u32, instance: u64) -> Client {
        Client::greet_by(s, Peer::Sdc { id: SdcId(sdc), instance: Instance(instance) })
    }

    pub fn greet_by(s: &Session, peer: Peer) -> Client {
        let mut c = Client::connect(s);
        let hello = quarry_wire::Hello {
            versions: (WIRE_VERSION, WIRE_VERSION),
            cluster: CLUSTER.to_string(),
            peer,
            device: DeviceId(0),
            auth: None,
        };
        c.send(Frame::with_meta(Header::new(Op::Hello), hello.to_meta()));
        let answer = c.recv().expect("an answer to Hello");
        assert_eq!(answer.header.op, Op::Hello);
        c
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send(&mut self, f: Frame) {
        self.try_send(f).unwrap();
    }

    /// The same to a server that may have closed the connection.
    pub fn try_send(&mut self, f: Frame) -> std::io::Result<()> {
        let (head, data) = f.encode();
        self.stream.write_all(&head)?;
        self.stream.write_all(&data)
    }

    /// The next frame; `None`: the server closed the connection.
    pub fn recv(&mut self) -> Option<Frame> {
        loop {
            if let Some(f) = self.ready.pop_front() {
                return Some(f);
            }
            let mut plan = self.reader.next_recv();
            let n = match self.stream.read(&mut plan.buf[plan.start..plan.end]) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => 0,
                Err(e) => panic!("{e}"),
            };
            if n == 0 {
                return None;
            }
            let mut out = Vec::new();
            self.reader.received(plan, n, &mut out).unwrap();
            self.ready.extend(out);
        }
    }
}

/// The metrics page of a server.
pub fn metrics(s: &Session) -> String {
    page(s, "/metrics")
}

/// What its small web server says at a path, with the head.
pub fn page(s: &Session, path: &str) -> String {
    let url = s.hello.metrics.clone().unwrap();
    let address = url.trim_start_matches("http://").trim_end_matches("/metrics").to_string();
    let mut c = TcpStream::connect(address).unwrap();
    c.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    c.read_to_string(&mut text).unwrap();
    text
}
