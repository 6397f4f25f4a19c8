//! REST: routes, authorization, counting. The contract is in the project's interface document.

mod change;
mod cluster;
#[cfg(test)]
pub mod conform;
mod devices;
mod error;
mod input;
mod listen;
mod measure;
mod nodes;
mod observe;
mod openapi;
mod pools;
mod render;
mod schema;
mod servers;
mod spec;
mod stale;
mod tasks;
#[cfg(test)]
mod tests;
mod ui;
mod volumes;

pub use listen::Bounded;
pub use render::{pool_promised, pool_used, rfc3339};

use crate::control::Hub;
use crate::engine::{Engine, SharedState};
use crate::health;
use crate::timeline::Timeline;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State as Ext};
use axum::middleware::{from_fn_with_state, Next};
use axum::response::{IntoResponse, Response};
use axum::Router;
use error::ApiError;
use input::Body;
use quarry_metrics::{Counter, Family, Histo, Metrics};
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Name of the only user there is: the holder of the token.
pub const ADMIN: &str = "admin";

/// What the handlers work with.
#[derive(Clone)]
pub struct Api {
    pub hub: Arc<Hub>,
    pub engine: Engine,
    pub state: SharedState,
    pub token: Arc<str>,
    /// Name of the MDM's own node.
    pub node: Arc<str>,
    /// Address of its own exporter.
    pub metrics_addr: Arc<str>,
    pub metrics: Metrics,
    pub timeline: Timeline,
    /// The OpenAPI document.
    pub document: Arc<serde_json::Value>,
    requests: Family<Counter>,
    seconds: Family<Arc<Histo>>,
}

type Answer = Result<Response, ApiError>;

impl Api {
    pub fn new(
        hub: Arc<Hub>,
        engine: Engine,
        state: SharedState,
        token: &str,
        node: &str,
        metrics_addr: &str,
        metrics: Metrics,
    ) -> Api {
        let requests = metrics.counter_family(
            "quarry_api_requests_total",
            "API requests",
            &["route", "status"],
        );
        let seconds = metrics.histogram_family(
            "quarry_api_request_seconds",
            "Time to answer API requests",
            &["route"],
        );
        Api {
            hub,
            engine,
            state,
            token: token.into(),
            node: node.into(),
            metrics_addr: metrics_addr.into(),
            metrics,
            timeline: Timeline::default(),
            document: Arc::new(document()),
            requests,
            seconds,
        }
    }

    pub fn status(&self) -> health::Status {
        let hub = self.hub.lock();
        let s = self.state.read();
        health::status(&s, &hub, self.engine.stale(), crate::control::now())
    }
}

/// The OpenAPI document of this API.
pub fn document() -> serde_json::Value {
    openapi::of(&routes())
}

/// Every route there is.
fn routes() -> Vec<spec::Route> {
    [
        cluster::routes(),
        nodes::routes(),
        pools::routes(),
        stale::routes(),
        servers::routes(),
        devices::routes(),
        volumes::routes(),
        tasks::routes(),
        observe::routes(),
        measure::routes(),
        openapi::routes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Paths that need no token: they say nothing that helps an attacker, and probes have no token.
fn open() -> &'static HashSet<&'static str> {
    static OPEN: OnceLock<HashSet<&'static str>> = OnceLock::new();
    OPEN.get_or_init(|| routes().iter().filter(|r| r.open).map(|r| r.path).collect())
}

/// The whole API.
pub fn router(api: Api) -> Router {
    spec::router(routes())
        .merge(ui::routes())
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(DefaultBodyLimit::max(input::MAX_BODY))
        .layer(from_fn_with_state(api.clone(), guard))
        .with_state(api)
}

async fn guard(Ext(api): Ext<Api>, req: Request, next: Next) -> Response {
    let begin = Instant::now();
    let route =
        req.extensions().get::<MatchedPath>().map_or("none".to_string(), |m| m.as_str().into());
    let answer = match allowed(&api, &req) {
        Ok(()) => in_words(next.run(req).await),
        Err(e) => e.into_response(),
    };
    let status = answer.status().as_str().to_string();
    api.requests.with(&[&route, &status]).inc();
    api.seconds
        .with(&[&route])
        .record(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    answer
}

/// What the framework itself refuses (a path that is not UTF-8) is told like everything else.
fn in_words(answer: Response) -> Response {
    let kind = answer.headers().get(axum::http::header::CONTENT_TYPE);
    let plain = kind.is_none_or(|k| k.as_bytes().starts_with(b"text/plain"));
    let status = answer.status();
    if !plain || !status.is_client_error() {
        return answer;
    }
    let why = "the request is not understood";
    ApiError::new(status.as_u16(), "malformed", why, "GET /openapi.json describes all requests")
        .into_response()
}

fn allowed(api: &Api, req: &Request) -> Result<(), ApiError> {
    if open().contains(req.uri().path()) || ui::is_ui(req.uri().path()) {
        return Ok(());
    }
    let given = req.headers().get("authorization").and_then(|v| v.to_str().ok());
    let Some(token) = given.and_then(|g| g.strip_prefix("Bearer ")) else {
        return Err(ApiError::new(
            401,
            "no_token",
            "a token is needed",
            "send Authorization: Bearer TOKEN (scli: --token or QUARRY_TOKEN); the token is in the MDM's token file",
        ));
    };
    if !same(token.trim().as_bytes(), api.token.as_bytes()) {
        return Err(ApiError::new(
            401,
            "wrong_token",
            "the token is not valid",
            "use the token in the MDM's token file",
        ));
    }
    Ok(())
}

/// Compares without telling by its time where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}
