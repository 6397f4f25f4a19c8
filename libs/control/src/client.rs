//! A daemon's side of the control session: dials, registers, keeps the session, dials again when it breaks.
//!
//! The daemon goes on serving I/O while the session is away (no MDM at all: I/O goes on). So it does when a process that
//! was registered is refused by what answers now: an MDM with another secret or without its metadata must not end what
//! serves. Only an MDM's word that this very node was removed does.
//!
//! The session knows the newest change that an MDM has told of, over all sessions and restarts (`told.rs`), and says so in
//! each registration: an MDM whose state is older than that was restored from a backup and must change nothing.

use crate::told::Told;
use crate::{read_message, write_message, ControlError, FromNode, Hello, ToNode};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Waits between attempts to reach an MDM.
const REDIAL: Duration = Duration::from_millis(200);
/// Wait after a refusal of a process that was registered.
const REFUSED: Duration = Duration::from_secs(1);
/// Refusals that are about this very node, and final: it was removed, or another one has its name or its devices by now. Only an MDM
/// of its own cluster gives them.
const FINAL: [&str; 6] = [
    "removed",
    "capability_removed",
    "name_in_use",
    "device_elsewhere",
    "device_twice",
    "copies_together",
];
/// Longest silence of the MDM before the session counts as broken.
const SILENCE: Duration = Duration::from_secs(5);
/// Longest wait for a TCP connection.
const CONNECT: Duration = Duration::from_secs(2);
/// Messages waiting to be sent; when full, the sender waits.
const QUEUE: usize = 1024;

/// How to reach the MDM.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// `host:port` of each member; tried in turn.
    pub mdms: Vec<String>,
    /// The daemon's data directory, where the newest change told of is kept.
    pub data_dir: Option<PathBuf>,
}

/// What the session tells the daemon.
#[derive(Debug)]
pub enum SessionEvent {
    /// A session stands; `Registered` and `Snapshot` follow as messages.
    Up {
        mdm: String,
    },
    /// The session broke; it is dialled again. `registered` messages sent meanwhile are dropped.
    /// `refused`: an MDM is there, but it does not take this process, which one took before.
    Down {
        reason: String,
        refused: bool,
    },
    Message(ToNode),
    /// The MDM will not have this node, which never was registered or was removed: say it and end.
    Refused(ControlError),
}

/// Handle of a running session. Dropping it ends the session.
pub struct Session {
    out: mpsc::Sender<FromNode>,
    pub events: mpsc::Receiver<SessionEvent>,
    task: tokio::task::JoinHandle<()>,
}

impl Session {
    /// Starts the session's task. `hello` is asked for at every (re-)registration, as positions move.
    pub fn start<F>(cfg: SessionConfig, hello: F) -> Session
    where
        F: Fn() -> Hello + Send + Sync + 'static,
    {
        let (out, rx) = mpsc::channel(QUEUE);
        let (tx, events) = mpsc::channel(QUEUE);
        let task = tokio::spawn(run(cfg, hello, rx, tx));
        Session { out, events, task }
    }

    /// A sender for messages to the MDM. While no session stands they are dropped: state is reported again.
    pub fn sender(&self) -> mpsc::Sender<FromNode> {
        self.out.clone()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run<F: Fn() -> Hello>(
    cfg: SessionConfig,
    hello: F,
    mut out: mpsc::Receiver<FromNode>,
    tx: mpsc::Sender<SessionEvent>,
) {
    let mut n = 0;
    let mut told = Told::load(cfg.data_dir.as_deref(), hello().cluster);
    let mut registered = false;
    loop {
        let Some(addr) = cfg.mdms.get(n % cfg.mdms.len().max(1)).cloned() else {
            return;
        };
        n += 1;
        let hello = Hello { seen: told.index(), ..hello() };
        let line = Line { told: &mut told, registered: &mut registered, out: &mut out, tx: &tx };
        let error = match one(&addr, hello, line).await {
            Ok(()) => return,
            Err(e) => e,
        };
        let refused = match &error {
            ControlError::Refused { code, .. } if registered && !FINAL.contains(&code.as_str()) => {
                true
            }
            ControlError::Refused { .. } => {
                // The receiver may be gone already; then nobody needs to know.
                tx.send(SessionEvent::Refused(error)).await.ok();
                return;
            }
            _ => false,
        };
        if tx.send(SessionEvent::Down { reason: error.to_string(), refused }).await.is_err() {
            return;
        }
        tokio::time::sleep(if refused { REFUSED } else { REDIAL }).await;
        while out.try_recv().is_ok() {}
    }
}

/// What every session of the process shares.
struct Line<'a> {
    told: &'a mut Told,
    /// An MDM has taken this process, in this run.
    registered: &'a mut bool,
    out: &'a mut mpsc::Receiver<FromNode>,
    tx: &'a mpsc::Sender<SessionEvent>,
}

/// One session, until it breaks. `Ok` when the daemon dropped its handle.
async fn one(addr: &str, hello: Hello, line: Line<'_>) -> Result<(), ControlError> {
    let s = tokio::time::timeout(CONNECT, TcpStream::connect(addr))
        .await
        .map_err(|_| ControlError::Protocol("connecting took too long"))??;
    s.set_nodelay(true)?;
    let (mut r, mut w) = s.into_split();
    say(&mut w, &FromNode::Hello(Box::new(hello)), tokio::time::Instant::now() + SILENCE).await?;
    if line.tx.send(SessionEvent::Up { mdm: addr.to_string() }).await.is_err() {
        return Ok(());
    }
    let (in_tx, mut incoming) = mpsc::channel(64);
    let reader = tokio::spawn(async move {
        loop {
            let m = read_message::<ToNode>(&mut r).await;
            let end = m.is_err();
            if in_tx.send(m).await.is_err() || end {
                return;
            }
        }
    });
    let result = pump(&mut incoming, &mut w, line).await;
    reader.abort();
    result
}

/// Sends, until a time: an MDM whose host has vanished takes nothing once the network's buffers are full, and that ends
/// the session as its silence does.
async fn say(
    w: &mut tokio::net::tcp::OwnedWriteHalf,
    m: &FromNode,
    until: tokio::time::Instant,
) -> Result<(), ControlError> {
    let sent = tokio::time::timeout_at(until, write_message(w, m)).await;
    sent.map_err(|_| ControlError::Protocol("the MDM is silent and takes nothing"))?
}

async fn pump(
    incoming: &mut mpsc::Receiver<Result<ToNode, ControlError>>,
    w: &mut tokio::net::tcp::OwnedWriteHalf,
    line: Line<'_>,
) -> Result<(), ControlError> {
    let Line { told, registered, out, tx } = line;
    // Counted from the last thing heard: what is sent meanwhile shows nothing of the other side.
    let mut heard = tokio::time::Instant::now();
    loop {
        tokio::select! {
            m = tokio::time::timeout_at(heard + SILENCE, incoming.recv()) => {
                heard = tokio::time::Instant::now();
                let m = m.map_err(|_| ControlError::Protocol("the MDM is silent"))?
                    .ok_or(ControlError::Protocol("reader ended"))??;
                if let ToNode::Refused { code, message, hint } = m {
                    return Err(ControlError::Refused { code, message, hint });
                }
                if let ToNode::Registered { cluster, .. } = &m {
                    told.belongs_to(cluster);
                    *registered = true;
                }
                m.index().into_iter().for_each(|i| told.note(i));
                if tx.send(SessionEvent::Message(m)).await.is_err() {
                    return Ok(());
                }
            }
            m = out.recv() => match m {
                Some(m) => say(w, &m, heard + SILENCE).await?,
                None => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attachment, Role};
    use quarry_base::{ConfigIndex, Generation, VolumeId};

    fn hello() -> Hello {
        Hello {
            role: Role::Sdc,
            name: "c".into(),
            addresses: vec![],
            capabilities: vec![],
            secret: "s".into(),
            cluster: None,
            host: "h".into(),
            boot_id: "b".into(),
            pid: 1,
            release: "0".into(),
            metrics: None,
            resume: None,
            endpoints: vec![],
            devices: vec![],
            seen: ConfigIndex::ZERO,
        }
    }

    /// An MDM that answers each registration with the next of `answers`, and then hangs up.
    async fn answering(answers: Vec<ToNode>) -> Session {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mdms = vec![listener.local_addr().unwrap().to_string()];
        tokio::spawn(async move {
            for answer in answers {
                let (mut s, _) = listener.accept().await.unwrap();
                read_message::<FromNode>(&mut s).await.unwrap();
                write_message(&mut s, &answer).await.unwrap();
            }
        });
        Session::start(SessionConfig { mdms, data_dir: None }, hello)
    }

    fn registered() -> ToNode {
        ToNode::Registered {
            cluster: "c".into(),
            node: quarry_base::NodeId(1),
            sds: None,
            sdc: Some(quarry_base::SdcId(1)),
            start: 1,
            devices: vec![],
            heartbeat_ms: 100,
        }
    }

    fn refused(code: &str) -> ToNode {
        ToNode::Refused { code: code.into(), message: "no".into(), hint: "do this".into() }
    }

    /// What the session tells until it ends, in short.
    async fn course(answers: Vec<ToNode>) -> Vec<String> {
        let mut s = answering(answers).await;
        let mut all = Vec::new();
        let wait = Duration::from_secs(30);
        while let Some(e) = tokio::time::timeout(wait, s.events.recv()).await.unwrap() {
            match e {
                SessionEvent::Up { .. } => {}
                SessionEvent::Down { reason, refused: true } => {
                    assert!(reason.contains("no (") && reason.contains("do this"), "{reason}");
                    all.push("refused, dialled again".to_string());
                }
                SessionEvent::Down { .. } => all.push("broken".to_string()),
                SessionEvent::Message(_) => all.push("registered".to_string()),
                SessionEvent::Refused(_) => all.push("final".to_string()),
            }
        }
        all
    }

    #[tokio::test]
    async fn a_process_that_was_registered_outlives_a_wrong_mdm_and_only_its_removal_ends_it() {
        let (again, broken) = ("refused, dialled again", "broken");
        let answers = vec![registered(), refused("other_cluster"), refused("wrong_secret")];
        let rest = vec![registered(), refused("removed")];
        assert_eq!(
            course([answers, rest].concat()).await,
            ["registered", broken, again, again, "registered", broken, "final"]
        );
        let answers = vec![registered(), refused("capability_removed")];
        assert_eq!(course(answers).await, ["registered", broken, "final"]);
    }

    #[tokio::test]
    async fn a_process_that_never_was_registered_ends_on_any_refusal() {
        assert_eq!(course(vec![refused("other_cluster")]).await, ["final"]);
    }

    #[tokio::test]
    async fn an_mdm_that_takes_nothing_ends_the_session_as_its_silence_does() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mdms = vec![listener.local_addr().unwrap().to_string()];
        let mut s = Session::start(SessionConfig { mdms, data_dir: None }, hello);
        let (kept, _) = listener.accept().await.unwrap();
        assert!(matches!(s.events.recv().await, Some(SessionEvent::Up { .. })));
        let one = Attachment {
            volume: VolumeId(1),
            generation: Generation(1),
            socket: Some("/".repeat(200).into()),
            device: None,
            error: None,
        };
        let sender = s.sender();
        // Far more than the network's buffers hold.
        let pushing = tokio::spawn(async move {
            while sender.send(FromNode::Attachments(vec![one.clone(); 200])).await.is_ok() {}
        });
        let event = tokio::time::timeout(SILENCE * 3, s.events.recv()).await;
        assert!(matches!(event, Ok(Some(SessionEvent::Down { .. }))), "{event:?}");
        pushing.abort();
        drop(kept);
    }
}
