//! A whole MDM in the test's process, SDSs and SDCs played by hand, and HTTP spoken raw.

use crate::daemon::{start, Identity, Listeners, Running};
use crate::engine::Writer;
use crate::log::{MemStore, MetaStore};
use quarry_base::{ConfigIndex, DeviceId, SdcId, SdsId, Seq, Version};
use quarry_control::{
    read_message, write_message, Attachment, Capability, DeviceReport, FromNode, Hello, PgHave,
    PgReport, Proposal, Role, ToNode,
};
use quarry_control::{Change, ClusterView};
use quarry_metrics::{version::Info, Metrics};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

pub const TOKEN: &str = "secret-token";

pub struct Mdm {
    pub run: Running,
    pub writer: Writer,
}

impl Mdm {
    pub async fn start() -> Mdm {
        Mdm::on(Box::new(MemStore::default())).await
    }

    pub async fn on(store: Box<dyn MetaStore>) -> Mdm {
        let any = "127.0.0.1:0";
        let l = Listeners::bind(any, any, any).await.unwrap();
        let id = Identity {
            name: "mdm1".into(),
            addresses: vec!["127.0.0.1".into()],
            capabilities: vec![Capability::Mdm],
            secret: "s".into(),
            token: TOKEN.into(),
            history: None,
        };
        let (run, writer) =
            start(store, l, id, Metrics::new(Info::of("mdm"), "mdm", "mdm1")).await.unwrap();
        Mdm { run, writer }
    }

    /// Status and JSON of an answer.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map(|b| b.to_string()).unwrap_or_default();
        let (status, text) = raw(self.run.api_addr, method, path, &auth(""), &body).await;
        let v = serde_json::from_str(&text).unwrap_or(Value::String(text));
        static DOC: std::sync::OnceLock<Value> = std::sync::OnceLock::new();
        let doc = DOC.get_or_init(crate::api::document);
        if let Some(why) = crate::api::conform::wrong(doc, method, path, status, &v) {
            panic!("not as the OpenAPI document says: {why}");
        }
        (status, v)
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, v) = self.call("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {v}");
        v
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        let (status, v) = self.call("POST", path, Some(body)).await;
        assert!((200..300).contains(&status), "{path}: {status} {v}");
        v
    }

    /// Waits until the cluster's health is this.
    pub async fn health(&self, want: &str) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let s = self.get("/status").await;
            if s["health"] == want {
                return;
            }
            assert!(Instant::now() < end, "not {want}: {s}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub fn auth(more: &str) -> String {
    format!("Authorization: Bearer {TOKEN}\r\n{more}")
}

/// One HTTP request, byte by byte.
pub async fn raw(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, String) {
    let mut s = TcpStream::connect(addr).await.unwrap();
    let req = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    s.write_all(req.as_bytes()).await.unwrap();
    let mut out = String::new();
    s.read_to_string(&mut out).await.unwrap();
    let status = out.split(' ').nth(1).and_then(|x| x.parse().ok()).unwrap_or(0);
    let text = out.split_once("\r\n\r\n").map(|x| x.1.to_string()).unwrap_or_default();
    (status, text)
}

/// What a played node knows and shall do.
#[derive(Default)]
pub struct Known {
    pub view: ClusterView,
    pub start: u64,
    pub sds: SdsId,
    pub sdc: SdcId,
    pub devices: Vec<DeviceId>,
    pub refused: Option<String>,
    /// Proposes every syncing member of its groups as in sync.
    pub adds: bool,
    /// An SDC that does not detach, an SDS that does not confirm.
    pub detached: bool,
    /// A client on a host whose kernel has no NBD.
    pub no_kernel: bool,
    pub results: Vec<(u64, bool, String)>,
    /// Answers to `MapHere`.
    pub mapped: Vec<(String, Result<quarry_base::VolumeId, String>)>,
    /// What it answers when it is asked who uses a volume.
    pub users: Vec<String>,
    pub snapshots: usize,
    pub acks: usize,
}

impl Known {
    pub fn device_only(&self) -> DeviceId {
        self.devices[0]
    }
}

/// A node played by hand. Dropping it closes its session.
pub struct Fake {
    pub known: Arc<Mutex<Known>>,
    pub send: mpsc::Sender<FromNode>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn hello(role: Role, name: &str, pid: u32) -> Hello {
    let capability = if role == Role::Sds { Capability::Sds } else { Capability::Sdc };
    let device = DeviceReport {
        uuid: format!("{name:0>32}"),
        path: format!("/dev/{name}").into(),
        capacity_bytes: 8 << 30,
        used_bytes: 0,
        shard: 0,
        failed: None,
        pgs: Vec::new(),
    };
    Hello {
        role,
        name: name.into(),
        addresses: vec!["127.0.0.1".into()],
        capabilities: vec![capability],
        secret: "s".into(),
        cluster: None,
        host: "h".into(),
        boot_id: "b".into(),
        pid,
        release: "0.1.0".into(),
        metrics: Some("http://127.0.0.1:9/metrics".into()),
        resume: None,
        endpoints: Vec::new(),
        devices: if role == Role::Sds { vec![device] } else { Vec::new() },
        seen: ConfigIndex::ZERO,
    }
}

/// What the SDS would report as held after having played in `view`: all groups of its device at one position.
pub fn held(view: &ClusterView, device: DeviceId, last: (u64, u64), commit: u64) -> Vec<PgHave> {
    let mine = view.pgs.values().filter(|c| c.listed.contains(&device));
    mine.map(|c| PgHave {
        pg: c.pg,
        config: Some(c.clone()),
        last: Version::new(last.0.into(), last.1.into()),
        commit: Seq(commit),
        complete_through: Version::ZERO,
    })
    .collect()
}

impl Fake {
    /// Dials and registers; waits for the snapshot or a refusal.
    pub async fn join(mdm: &Mdm, hello: Hello) -> Fake {
        let known = Arc::new(Mutex::new(Known { adds: true, ..Known::default() }));
        let (send, rx) = mpsc::channel(64);
        let s = TcpStream::connect(mdm.run.control_addr).await.unwrap();
        let task = tokio::spawn(play(s, hello, known.clone(), rx));
        let f = Fake { known, send, task };
        f.until(|k| k.snapshots > 0 || k.refused.is_some()).await;
        f
    }

    pub fn with<T>(&self, f: impl FnOnce(&mut Known) -> T) -> T {
        f(&mut self.known.lock().unwrap())
    }

    pub async fn until(&self, f: impl Fn(&Known) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !self.with(|k| f(k)) {
            assert!(
                Instant::now() < end,
                "it did not come: {:?}",
                self.with(|k| k.view.pgs.values().next().cloned())
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn device(&self) -> DeviceId {
        self.with(|k| k.devices[0])
    }
}

async fn play(
    s: TcpStream,
    hello: Hello,
    known: Arc<Mutex<Known>>,
    mut rx: mpsc::Receiver<FromNode>,
) {
    s.set_nodelay(true).unwrap();
    let (mut r, mut w) = s.into_split();
    let role = hello.role;
    write_message(&mut w, &FromNode::Hello(Box::new(hello))).await.unwrap();
    let (tx, mut incoming) = mpsc::channel(64);
    let reader = tokio::spawn(async move {
        while let Ok(m) = read_message::<ToNode>(&mut r).await {
            if tx.send(m).await.is_err() {
                return;
            }
        }
    });
    let mut beat = tokio::time::interval(Duration::from_millis(50));
    loop {
        let out = tokio::select! {
            m = incoming.recv() => match m {
                Some(m) => take(&mut known.lock().unwrap(), m, role),
                None => break,
            },
            m = rx.recv() => m.into_iter().collect(),
            _ = beat.tick() => if known.lock().unwrap().start > 0 { vec![heartbeat(&known.lock().unwrap())] } else { vec![] },
        };
        for m in out {
            if write_message(&mut w, &m).await.is_err() {
                reader.abort();
                return;
            }
        }
    }
    reader.abort();
}

fn heartbeat(k: &Known) -> FromNode {
    let leads = |c: &&quarry_wire::PgConfig| {
        c.primary_member().is_some_and(|m| m.sds == k.sds && m.start.get() == k.start)
    };
    let pgs = k.view.pgs.values().filter(leads).map(|c| PgReport {
        pg: c.pg,
        epoch: c.epoch,
        device: c.primary.unwrap(),
        active: true,
        last: Version::new(c.epoch, Seq(100)),
        bytes: 1000,
        sync_left_bytes: 0,
        sync_done_bytes: 0,
    });
    FromNode::Heartbeat {
        applied: k.view.index,
        confirmed: if k.detached { ConfigIndex(0) } else { k.view.index },
        pgs: pgs.collect(),
        devices: k.devices.iter().map(|d| (*d, 8 << 30, 77, None)).collect(),
        counters: vec![("volume.1.read_bytes".into(), 5)],
    }
}

/// Applies a message as a node would; returns what it answers.
fn take(k: &mut Known, m: ToNode, role: Role) -> Vec<FromNode> {
    match m {
        ToNode::Registered { sds, sdc, start, devices, .. } => {
            k.start = start;
            k.sds = sds.unwrap_or_default();
            k.sdc = sdc.unwrap_or_default();
            k.devices = devices.iter().map(|d| d.id).collect();
        }
        ToNode::Refused { code, .. } => k.refused = Some(code),
        ToNode::Snapshot(v) => {
            k.view = v;
            k.snapshots += 1;
        }
        ToNode::Changes { index, changes } => {
            assert!(index > k.view.index, "changes come in order");
            k.view.index = ConfigIndex(index.0);
            changes.into_iter().for_each(|c: Change| k.view.apply(c));
        }
        ToNode::ProposalResult { request, accepted, reason } => {
            k.results.push((request, accepted, reason))
        }
        ToNode::HeartbeatAck { .. } => {
            k.acks += 1;
            return Vec::new();
        }
        ToNode::MappedHere { volume, result } => k.mapped.push((volume, result)),
        // One that is detached does not answer at all.
        ToNode::WhoUses { .. } if k.detached => return Vec::new(),
        ToNode::WhoUses { request, .. } => {
            return vec![FromNode::Users { request, users: k.users.clone() }]
        }
    }
    if role == Role::Sdc {
        return attach(k);
    }
    adds(k)
}

fn adds(k: &Known) -> Vec<FromNode> {
    let leads = |c: &&quarry_wire::PgConfig| {
        c.primary_member().is_some_and(|m| m.sds == k.sds && m.start.get() == k.start)
    };
    if !k.adds {
        return Vec::new();
    }
    let all = k.view.pgs.values().filter(leads).flat_map(|c| c.syncing.iter().map(move |m| (c, m)));
    all.map(|(c, m)| FromNode::Propose {
        request: 1,
        proposal: Proposal::Add { pg: c.pg, epoch: c.epoch, device: m.device },
    })
    .collect()
}

fn attach(k: &mut Known) -> Vec<FromNode> {
    if k.detached {
        return Vec::new();
    }
    let mine = k.view.volumes.values().filter(|v| v.mappings.iter().any(|m| m.sdc == k.sdc));
    let wanted = |v: &quarry_wire::VolumeInfo| v.mappings.iter().any(|m| m.device);
    let list: Vec<Attachment> = mine
        .map(|v| Attachment {
            volume: v.id,
            generation: v.generation,
            socket: Some(format!("/run/{}.sock", v.name).into()),
            device: (wanted(v) && !k.no_kernel).then(|| "/dev/nbd0".into()),
            error: (wanted(v) && k.no_kernel).then(|| "no NBD driver".into()),
        })
        .collect();
    vec![FromNode::Attachments(list)]
}
