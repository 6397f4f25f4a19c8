//! A daemon's side of the control session: dials, registers, keeps the session, dials again when it breaks.
//!
//! The daemon goes on serving I/O while the session is away (no MDM at all: I/O goes on).
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
    Down {
        reason: String,
    },
    Message(ToNode),
    /// The MDM will not have this node: say it and end.
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
    loop {
        let Some(addr) = cfg.mdms.get(n % cfg.mdms.len().max(1)).cloned() else {
            return;
        };
        n += 1;
        let hello = Hello { seen: told.index(), ..hello() };
        let reason = match one(&addr, hello, &mut told, &mut out, &tx).await {
            Ok(()) => return,
            Err(e @ ControlError::Refused { .. }) => {
                // The receiver may be gone already; then nobody needs to know.
                tx.send(SessionEvent::Refused(e)).await.ok();
                return;
            }
            Err(e) => e.to_string(),
        };
        if tx.send(SessionEvent::Down { reason }).await.is_err() {
            return;
        }
        tokio::time::sleep(REDIAL).await;
        while out.try_recv().is_ok() {}
    }
}

/// One session, until it breaks. `Ok` when the daemon dropped its handle.
async fn one(
    addr: &str,
    hello: Hello,
    told: &mut Told,
    out: &mut mpsc::Receiver<FromNode>,
    tx: &mpsc::Sender<SessionEvent>,
) -> Result<(), ControlError> {
    let s = tokio::time::timeout(CONNECT, TcpStream::connect(addr))
        .await
        .map_err(|_| ControlError::Protocol("connecting took too long"))??;
    s.set_nodelay(true)?;
    let (mut r, mut w) = s.into_split();
    say(&mut w, &FromNode::Hello(Box::new(hello)), tokio::time::Instant::now() + SILENCE).await?;
    if tx.send(SessionEvent::Up { mdm: addr.to_string() }).await.is_err() {
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
    let result = pump(&mut incoming, &mut w, told, out, tx).await;
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
    told: &mut Told,
    out: &mut mpsc::Receiver<FromNode>,
    tx: &mpsc::Sender<SessionEvent>,
) -> Result<(), ControlError> {
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
