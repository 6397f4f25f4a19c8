//! Puts the parts together: opens the store, restores the state, starts listeners and tasks.

use crate::api::{self, Api};
use crate::control::{self, Access, Hub};
use crate::engine::{self, Engine, SharedState, Writer};
use crate::log::MetaStore;
use crate::state::Op;
use crate::timeline::Recorder;
use quarry_metrics::Metrics;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Listeners, bound already so that a port in use is noticed first.
pub struct Listeners {
    pub api: TcpListener,
    pub control: TcpListener,
    pub metrics: TcpListener,
}

impl Listeners {
    /// Binds all three; the error names the address.
    pub async fn bind(api: &str, control: &str, metrics: &str) -> anyhow::Result<Listeners> {
        Ok(Listeners {
            api: bind("--listen", api).await?,
            control: bind("--control", control).await?,
            metrics: bind("--metrics", metrics).await?,
        })
    }
}

async fn bind(flag: &str, addr: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|e| {
        let hint = match e.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another process has this port: stop it or choose another one"
            }
            std::io::ErrorKind::AddrNotAvailable => "this host has no such address",
            _ => "give host:port",
        };
        anyhow::anyhow!("cannot listen on {flag} {addr}: {e}; {hint}")
    })
}

/// Who this MDM is.
pub struct Identity {
    pub name: String,
    pub addresses: Vec<String>,
    /// All that its node file lists.
    pub capabilities: Vec<quarry_control::Capability>,
    pub secret: String,
    pub token: String,
    /// File of the recorded history; `None`: it is not kept.
    pub history: Option<std::path::PathBuf>,
}

/// A running MDM; its tasks end with the runtime.
pub struct Running {
    pub engine: Engine,
    pub hub: Arc<Hub>,
    pub state: SharedState,
    pub recorder: Arc<Recorder>,
    pub api_addr: SocketAddr,
    pub control_addr: SocketAddr,
    pub metrics_addr: SocketAddr,
}

/// Starts everything. The writer is to be joined after the runtime has ended.
pub async fn start(
    mut store: Box<dyn MetaStore>,
    listeners: Listeners,
    id: Identity,
    metrics: Metrics,
) -> anyhow::Result<(Running, Writer)> {
    let state = engine::restore(store.as_mut())?;
    let fresh = state.cluster.is_empty();
    let hub = Arc::new(Hub::new(&state));
    let state = SharedState::new(state);
    let (engine, writer) = Engine::start(store, state.clone(), hub.clone(), &metrics)?;
    if fresh {
        let cluster = uuid::Uuid::new_v4().to_string();
        tracing::warn!(
            mdm = id.name,
            cluster,
            "a new cluster is founded, for there is no metadata here: if there should be some (a mount that is missing, a \
             restore to come), stop this MDM and bring it back; nodes of another cluster are refused and serve on"
        );
        engine.submit("mdm", None, Op::Init { cluster }).await?;
    }
    let op = Op::RegisterMdm {
        name: id.name.clone(),
        addresses: id.addresses.clone(),
        release: env!("CARGO_PKG_VERSION").into(),
        host: quarry_control::host_identity().0,
        capabilities: id.capabilities.clone(),
    };
    engine.submit("mdm", None, op).await?;
    let metrics_addr = listeners.metrics.local_addr()?;
    let api = Api::new(
        hub.clone(),
        engine.clone(),
        state.clone(),
        &id.token,
        &id.name,
        &metrics_addr.to_string(),
        metrics.clone(),
    );
    let recorder = Arc::new(Recorder::new(api.timeline.clone(), &state, id.history));
    let running = Running {
        engine: engine.clone(),
        hub: hub.clone(),
        state: state.clone(),
        recorder: recorder.clone(),
        api_addr: listeners.api.local_addr()?,
        control_addr: listeners.control.local_addr()?,
        metrics_addr,
    };
    let access = Access {
        hub: hub.clone(),
        engine: engine.clone(),
        state: state.clone(),
        secret: id.secret.as_str().into(),
    };
    tokio::spawn(control::serve(listeners.control, access));
    tokio::spawn(control::drive(hub.clone(), engine.clone(), state.clone()));
    let full = crate::gauges::limits(&metrics, &api);
    tokio::spawn(crate::timeline::run(recorder, hub, state, full));
    crate::gauges::register(&metrics, &api);
    tokio::spawn(quarry_metrics::serve(listeners.metrics, metrics));
    let router = api::router(api);
    tokio::spawn(async move {
        if let Err(e) = axum::serve(api::Bounded::new(listeners.api), router).await {
            tracing::error!(error = %e, "the API listener ended");
        }
    });
    Ok((running, writer))
}
