//! The listener of the control sessions: registration, then messages both ways.

use super::hub::{Attached, DeviceLive, Held, Hub, SdcLive, SdsLive};
use super::{now, HEARTBEAT};
use crate::engine::{unix_ms, Engine, SharedState};
use crate::state::{Answer, Op, RegDevice, Register, Reject};
use quarry_base::{Instance, SdcId, SdsId, StartNo};
use quarry_control::{
    read_message, write_message, Capability, ControlError, FromNode, Hello, Proposal,
    RegisteredDevice, Role, ToNode,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Control sessions at the same time.
const MAX_SESSIONS: usize = 4096;
/// A connection must say who it is within this time.
const HELLO: Duration = Duration::from_secs(5);
/// A first message above this many bytes takes one of the places for large ones: who sends it is not known yet, and
/// [`MAX_SESSIONS`] of the longest would fill the memory. Servers with many devices do send long ones.
const SMALL: u32 = 64 << 10;
/// Large first messages in memory at the same time.
const LARGE: usize = 16;
/// How long a new process waits for the session of one with its name to end.
const SAME_NAME: Duration = Duration::from_secs(1);
/// A session that cannot be written to for this long is closed.
const WRITE: Duration = Duration::from_secs(5);
/// A client from which nothing came for this long is gone.
const SDC_SILENCE: Duration = Duration::from_secs(5);

/// What sessions need.
#[derive(Clone)]
pub struct Access {
    pub hub: Arc<Hub>,
    pub engine: Engine,
    pub state: SharedState,
    /// Shared secret of the cluster.
    pub secret: Arc<str>,
}

/// Accepts sessions for ever.
pub async fn serve(listener: TcpListener, access: Access) {
    let slots = Arc::new(Semaphore::new(MAX_SESSIONS));
    let large = Arc::new(Semaphore::new(LARGE));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(s) => s,
            Err(e) => {
                tracing::warn!(error = %e, "control listener cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (access, large) = (access.clone(), large.clone());
        tokio::spawn(async move {
            if let Err(e) = session(stream, access, &large).await {
                tracing::debug!(%peer, error = %e, "control session ended");
            }
            drop(slot);
        });
    }
}

/// Who is at the other end.
#[derive(Clone, Copy)]
enum Peer {
    Sds(SdsId, StartNo),
    Sdc(SdcId, Instance),
}

/// The first message; a long one waits for its place before it is read.
async fn first(r: &mut OwnedReadHalf, large: &Semaphore) -> Result<FromNode, ControlError> {
    let late = |_| ControlError::Protocol("no hello came");
    let len = tokio::time::timeout(HELLO, r.read_u32_le()).await.map_err(late)??;
    // Who only says that much will come gets no place.
    let mut start = vec![0; len.min(SMALL) as usize];
    tokio::time::timeout(HELLO, r.read_exact(&mut start)).await.map_err(late)??;
    let place = match len > SMALL {
        true => Some(tokio::time::timeout(HELLO, large.acquire()).await.map_err(late)?),
        false => None,
    };
    let head = len.to_le_bytes();
    let mut whole = head.as_slice().chain(start.as_slice()).chain(r);
    let m = tokio::time::timeout(HELLO, read_message(&mut whole)).await.map_err(late)?;
    drop(place);
    m
}

async fn session(stream: TcpStream, a: Access, large: &Semaphore) -> Result<(), ControlError> {
    stream.set_nodelay(true)?;
    let (mut r, mut w) = stream.into_split();
    let FromNode::Hello(hello) = first(&mut r, large).await? else {
        return Err(ControlError::Protocol("the first message is not a hello"));
    };
    let name = hello.name.clone();
    let (peer, attached) = match admit(&a, *hello).await {
        Ok(Some(x)) => x,
        Ok(None) => return Err(ControlError::Protocol("not admitted now")),
        Err(e) => {
            tracing::warn!(name, code = e.code, message = e.message, "refused a node");
            let m = ToNode::Refused { code: e.code, message: e.message, hint: e.hint };
            return write_message(&mut w, &m).await;
        }
    };
    let id = attached.id;
    let end = pump(&a, peer, attached, r, w).await;
    a.hub.detach(id);
    end
}

fn check(a: &Access, h: &Hello) -> Result<(), Reject> {
    if h.secret.as_bytes() != a.secret.as_bytes() {
        return Err(Reject::new(
            401,
            "wrong_secret",
            format!("node {} gives another cluster's secret", h.name),
            "use the secret file of this cluster",
        ));
    }
    let cluster = a.state.read().cluster.clone();
    if h.cluster.as_ref().is_some_and(|c| *c != cluster) {
        return Err(Reject::conflict(
            "other_cluster",
            format!(
                "{} belongs to cluster {}, this is {cluster}",
                h.name,
                h.cluster.as_deref().unwrap_or("")
            ),
            "point it at its own MDM, or use empty devices and an empty data directory",
        ));
    }
    let need = if h.role == Role::Sds { Capability::Sds } else { Capability::Sdc };
    if !h.capabilities.contains(&need) {
        return Err(Reject::invalid(
            "capability_missing",
            format!("node {} does not list {need}", h.name),
            "add it to capabilities in the node file",
        ));
    }
    Ok(())
}

/// A node that has seen a newer configuration than this MDM: the state here is an old one.
fn newer_than_here(a: &Access, h: &Hello) -> Option<String> {
    let s = a.state.read();
    if h.seen > s.index {
        return Some(format!(
            "{} was told of change {}, newer than anything here (index {})",
            h.name, h.seen, s.index
        ));
    }
    let have = h.devices.iter().flat_map(|d| &d.pgs).filter_map(|p| p.config.as_ref());
    for c in have {
        let known = s.pgs.get(&c.pg).map(|p| p.config.epoch);
        if c.index > s.index || known.is_some_and(|e| c.epoch > e) {
            return Some(format!(
                "{} holds {} at epoch {} (index {}), newer than anything here (index {})",
                h.name, c.pg, c.epoch, c.index, s.index
            ));
        }
    }
    None
}

/// A live session of another process with this name, if any; one of the same process is ended.
fn name_in_use(a: &Access, h: &Hello) -> bool {
    let (sds, sdc) = {
        let s = a.state.read();
        (
            s.sds.values().find(|x| x.name == h.name).map(|x| x.id),
            s.sdcs.values().find(|x| x.name == h.name).map(|x| x.id),
        )
    };
    let mut hub = a.hub.lock();
    let live = match h.role {
        Role::Sds => sds.and_then(|i| hub.sds.get(&i)).map(|l| (l.session, l.host.clone(), l.pid)),
        Role::Sdc => sdc.and_then(|i| hub.sdcs.get(&i)).map(|l| (l.session, l.host.clone(), l.pid)),
    };
    match live {
        Some((Some(session), host, pid)) if host == h.host && pid == h.pid => {
            hub.close(session);
            false
        }
        Some((Some(_), ..)) => true,
        _ => false,
    }
}

async fn admit(a: &Access, h: Hello) -> Result<Option<(Peer, Attached)>, Reject> {
    check(a, &h)?;
    if let Some(why) = newer_than_here(a, &h) {
        a.engine.set_stale(why);
        return Ok(None);
    }
    let begin = now();
    while name_in_use(a, &h) {
        if now().since(begin) > SAME_NAME {
            return Err(Reject::conflict(
                "name_in_use",
                format!("another process is registered as {} and alive", h.name),
                "stop it, or give this node another name",
            ));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answered = a.hub.lock().detector.recent(now());
    let op = Op::Register(Box::new(register(&h, answered)));
    let done = match a.engine.submit(&h.name, None, op).await {
        Ok(d) => d,
        // The daemon tries again: this may pass.
        Err(e) if e.status == 503 => return Ok(None),
        Err(e) => return Err(e),
    };
    let Answer::Registered { node, sds, sdc, start, devices, .. } = done.answer else {
        return Ok(None);
    };
    let registered = ToNode::Registered {
        cluster: a.state.read().cluster.clone(),
        node,
        sds,
        sdc,
        start,
        devices: devices.into_iter().map(|(uuid, id)| RegisteredDevice { uuid, id }).collect(),
        heartbeat_ms: HEARTBEAT.as_millis() as u64,
    };
    let peer = match (sds, sdc) {
        (Some(s), _) => Peer::Sds(s, StartNo(start)),
        (_, Some(s)) => Peer::Sdc(s, Instance(start)),
        _ => return Ok(None),
    };
    let fits = |s: &crate::state::State| match peer {
        Peer::Sds(id, start) => s.sds.get(&id).is_some_and(|x| x.start == start && x.up),
        Peer::Sdc(id, instance) => s.sdcs.get(&id).is_some_and(|x| x.instance == instance),
    };
    let Some(attached) = a.hub.attach(registered, &a.state, fits) else { return Ok(None) };
    enter(a, peer, &h, attached.id);
    tracing::info!(name = h.name, start, "registered");
    Ok(Some((peer, attached)))
}

fn register(h: &Hello, answered: crate::state::Answered) -> Register {
    Register {
        role: h.role,
        name: h.name.clone(),
        addresses: h.addresses.clone(),
        capabilities: h.capabilities.clone(),
        host: h.host.clone(),
        boot_id: h.boot_id.clone(),
        release: h.release.clone(),
        metrics: h.metrics.clone(),
        resume: h.resume,
        endpoints: h.endpoints.clone(),
        devices: h
            .devices
            .iter()
            .map(|d| RegDevice {
                uuid: d.uuid.clone(),
                path: d.path.clone(),
                capacity_bytes: d.capacity_bytes,
                shard: d.shard,
                failed: d.failed.clone(),
                unread: d.failed.is_some() && d.pgs.is_empty(),
            })
            .collect(),
        answered,
    }
}

/// Notes the new session and what came with its registration; an older session of the node ends.
fn enter(a: &Access, peer: Peer, h: &Hello, session: u64) {
    let mut hub = a.hub.lock();
    let at = now();
    let old = match peer {
        Peer::Sds(id, start) => {
            let old = hub.sds.remove(&id);
            let (process, whole) = SdsLive::process_of(start, h.resume_start(), old.as_ref());
            let mut live = SdsLive {
                session: Some(session),
                start,
                process,
                whole,
                host: h.host.clone(),
                pid: h.pid,
                heard: at,
                registered_ms: unix_ms(),
                ..SdsLive::default()
            };
            let state = a.state.read();
            for d in &h.devices {
                let Some(dev) = state.devices.values().find(|k| k.uuid == d.uuid) else { continue };
                let figures = DeviceLive {
                    capacity: d.capacity_bytes,
                    used: d.used_bytes,
                    failed: d.failed.clone(),
                    open: false,
                };
                live.devices.insert(dev.id, figures);
                live.positions.extend(d.pgs.iter().map(|p| {
                    let (last, commit, through) = (p.last, p.commit, p.complete_through);
                    ((dev.id, p.pg), Held { last, commit, through })
                }));
            }
            drop(state);
            let before = old.as_ref().filter(|o| o.start == start);
            live.confirmed = before.map(|o| o.confirmed).unwrap_or_default();
            hub.sds.insert(id, live);
            hub.detector.joined(id, start, at);
            hub.dirty = true;
            old.and_then(|o| o.session)
        }
        Peer::Sdc(id, instance) => {
            let live = SdcLive {
                session: Some(session),
                instance,
                host: h.host.clone(),
                pid: h.pid,
                heard: at,
                ..SdcLive::default()
            };
            hub.sdcs.insert(id, live).and_then(|o| o.session)
        }
    };
    if let Some(old) = old {
        hub.close(old);
    }
}

async fn pump(
    a: &Access,
    peer: Peer,
    mut at: Attached,
    mut r: OwnedReadHalf,
    mut w: OwnedWriteHalf,
) -> Result<(), ControlError> {
    let id = at.id;
    let mut rx = at.rx;
    let mut writer = tokio::spawn(async move {
        while let Some(m) = rx.recv().await {
            let sent = tokio::time::timeout(WRITE, write_message(&mut w, &*m)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    });
    let read = async {
        loop {
            let m = tokio::time::timeout(SDC_SILENCE, read_message::<FromNode>(&mut r))
                .await
                .map_err(|_| ControlError::Protocol("silent"))??;
            message(a, peer, id, m).await;
        }
    };
    let end = tokio::select! {
        e = read => e,
        _ = at.closed.wait_for(|c| *c) => Err(ControlError::Protocol("closed here")),
        _ = &mut writer => Err(ControlError::Protocol("cannot be written to")),
    };
    writer.abort();
    end
}

async fn message(a: &Access, peer: Peer, session: u64, m: FromNode) {
    let at = now();
    if let Peer::Sds(sds, _) = peer {
        a.hub.lock().detector.heard(sds, at);
    }
    match (m, peer) {
        (FromNode::Heartbeat { applied, confirmed, pgs, devices, counters }, _) => {
            let failed = {
                let mut hub = a.hub.lock();
                let index = hub.index();
                hub.send(session, Arc::new(ToNode::HeartbeatAck { index }));
                match peer {
                    Peer::Sdc(id, _) => {
                        if let Some(l) = hub.sdcs.get_mut(&id) {
                            l.heard = at;
                            l.applied = l.applied.max(applied);
                            l.counters = counters.into_iter().collect();
                        }
                        return;
                    }
                    Peer::Sds(id, start) => {
                        for p in pgs {
                            hub.pg_report(start, p, at);
                        }
                        let Some(l) = hub.sds.get_mut(&id) else { return };
                        l.heard = at;
                        l.applied = l.applied.max(applied);
                        l.confirmed = l.confirmed.max(confirmed);
                        l.counters = counters.into_iter().collect();
                        let mut failed = Vec::new();
                        for (d, capacity, used, why) in devices {
                            let now =
                                DeviceLive { capacity, used, failed: why.clone(), open: true };
                            let old = l.devices.insert(d, now);
                            if let Some(why) =
                                why.filter(|_| old.is_none_or(|o| o.failed.is_none()))
                            {
                                failed.push((d, start, why));
                            }
                        }
                        failed
                    }
                }
            };
            for (device, start, reason) in failed {
                let answered = a.hub.lock().detector.recent(now());
                let op = Op::DeviceFailed { device, start, reason, answered };
                if let Err(e) = a.engine.submit("mdm", None, op).await {
                    tracing::warn!(%device, error = %e, "device failure not entered");
                }
            }
        }
        (FromNode::Attachments(list), Peer::Sdc(id, _)) => {
            if let Some(l) = a.hub.lock().sdcs.get_mut(&id) {
                l.heard = at;
                l.attachments = Some(list);
            }
        }
        (FromNode::Propose { request, proposal }, Peer::Sds(sds, start)) => {
            propose(a, sds, start, session, request, proposal);
        }
        (FromNode::Unreachable { pg, device }, Peer::Sdc(id, _)) => {
            tracing::warn!(sdc = %id, %pg, %device, "an SDC cannot reach a primary");
            let engine = a.engine.clone();
            tokio::spawn(async move {
                let op = Op::Unreachable { sdc: id, pg, device };
                if let Err(e) = engine.submit(&format!("sdc {id}"), None, op).await {
                    tracing::info!(%pg, %device, reason = e.message, "its primary stays");
                }
            });
        }
        (FromNode::MapHere { volume, device, read_only }, Peer::Sdc(sdc, _)) => {
            map_here(a, sdc, session, volume, device, read_only);
        }
        (FromNode::Users { request, users }, Peer::Sdc(sdc, _)) => {
            a.hub.lock().questions.answered(request, sdc, users);
        }
        (
            FromNode::Hello(_)
            | FromNode::Attachments(_)
            | FromNode::Propose { .. }
            | FromNode::Unreachable { .. }
            | FromNode::MapHere { .. }
            | FromNode::Users { .. },
            _,
        ) => {
            tracing::warn!(session, "a message that does not fit the session was dropped");
        }
    }
}

/// Maps a volume to the client that asks for it. What is mapped already stays as it is.
fn map_here(a: &Access, sdc: SdcId, session: u64, volume: String, device: bool, read_only: bool) {
    let a = a.clone();
    tokio::spawn(async move {
        let id = a.state.read().volumes.values().find(|v| v.name == volume).map(|v| v.id);
        let result = match id {
            None => Err(format!("there is no volume '{volume}'")),
            Some(id) => {
                let op = Op::Map {
                    volume: id,
                    sdc,
                    read_only,
                    device,
                    io_timeout_ms: None,
                    no_device: false,
                };
                let done = a.engine.submit(&format!("sdc {sdc}"), None, op).await;
                done.map(|_| id).map_err(|e| e.message)
            }
        };
        a.hub.lock().send(session, Arc::new(ToNode::MappedHere { volume, result }));
    });
}

/// Submits a proposal without holding up the session: heartbeats go on meanwhile.
fn propose(a: &Access, sds: SdsId, start: StartNo, session: u64, request: u64, proposal: Proposal) {
    let a = a.clone();
    tokio::spawn(async move {
        let answered = a.hub.lock().detector.recent(now());
        let op = Op::Propose { sds, start, proposal, answered };
        let result = a.engine.submit(&format!("sds {sds}"), None, op).await;
        let (accepted, reason) = match result {
            Ok(_) => (true, String::new()),
            Err(e) => (false, e.message),
        };
        let m = ToNode::ProposalResult { request, accepted, reason };
        a.hub.lock().send(session, Arc::new(m));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn long_first_messages_wait_for_their_turn_and_short_ones_do_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let large = Arc::new(Semaphore::new(1));
        let mut open = Vec::new();
        let mut dial = async |m: FromNode| {
            let mut c = TcpStream::connect(at).await.unwrap();
            write_message(&mut c, &m).await.unwrap();
            c.flush().await.unwrap();
            open.push(c);
            listener.accept().await.unwrap().0.into_split().0
        };
        let short = FromNode::Propose { request: 1, proposal: Proposal::HandOver };
        let error = Some("x".repeat(SMALL as usize));
        let (volume, generation) = Default::default();
        let one =
            quarry_control::Attachment { volume, generation, socket: None, device: None, error };
        let long = FromNode::Attachments(vec![one]);
        let (mut s, mut l) = (dial(short.clone()).await, dial(long.clone()).await);
        let held = large.clone().acquire_owned().await.unwrap();
        assert_eq!(first(&mut s, &large).await.unwrap(), short);
        let places = large.clone();
        let waiting = tokio::spawn(async move { first(&mut l, &places).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!waiting.is_finished());
        drop(held);
        assert_eq!(waiting.await.unwrap().unwrap(), long);
        assert_eq!(large.available_permits(), 1);
    }
}
