//! Metrics by way of the API: the exporter, service discovery. Figures of one object are in [`super::measure`].

use super::error::ApiError;
use super::spec::Route;
use super::{Answer, Api};
use crate::state::Node;
use axum::extract::State as Ext;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::Json;
use serde_json::{json, Value};

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/metrics", "The MDM's own metrics", metrics)
            .text(quarry_metrics::CONTENT_TYPE)
            .open(),
        Route::get("/prometheus/targets", "Where the exporters are, for Prometheus", targets)
            .gives(200, "[Targets]")
            .open(),
    ]
}

async fn metrics(Ext(api): Ext<Api>) -> Answer {
    let text =
        api.metrics.encode().map_err(|e| ApiError::new(500, "internal", e.to_string(), ""))?;
    Ok(([(CONTENT_TYPE, quarry_metrics::CONTENT_TYPE)], text).into_response())
}

/// `host:port` of an exporter's address, which may be a URL. One that listens on every address is reached by the first
/// address of its node.
fn host_port(url: &str, addresses: &[String]) -> String {
    let rest = url.split_once("://").map_or(url, |x| x.1);
    let rest = rest.split('/').next().unwrap_or(rest);
    let any = rest.strip_prefix("0.0.0.0:").or_else(|| rest.strip_prefix("[::]:"));
    match (any, addresses.first()) {
        (Some(port), Some(host)) if host.contains(':') => format!("[{host}]:{port}"),
        (Some(port), Some(host)) => format!("{host}:{port}"),
        _ => rest.to_string(),
    }
}

/// The HTTP service-discovery document of Prometheus: every exporter of the cluster, so that one scrape job finds all.
async fn targets(Ext(api): Ext<Api>) -> Answer {
    let s = api.state.read();
    let by_name = |n: &str| s.nodes.values().find(|x| x.name == n);
    let row = |url: &str, role: &str, name: &str, node: Option<&Node>| {
        let addresses = node.map_or(&[][..], |n| &n.addresses);
        let node = node.map_or(name, |n| &n.name);
        json!({ "targets": [host_port(url, addresses)],
            "labels": { "role": role, "node": node, "cluster": s.cluster } })
    };
    let mut out: Vec<Value> = vec![row(&api.metrics_addr, "mdm", &api.node, by_name(&api.node))];
    let node = |id: Option<quarry_base::NodeId>| id.and_then(|id| s.nodes.get(&id));
    out.extend(
        s.sds.values().filter_map(|x| Some(row(x.metrics.as_ref()?, "sds", &x.name, node(x.node)))),
    );
    out.extend(
        s.sdcs
            .values()
            .filter_map(|x| Some(row(x.metrics.as_ref()?, "sdc", &x.name, node(x.node)))),
    );
    Ok(Json(Value::Array(out)).into_response())
}

#[cfg(test)]
mod tests {
    use super::host_port;

    #[test]
    fn an_exporter_on_every_address_is_found_by_its_nodes_address() {
        let at = |a: &str| vec![a.to_string()];
        assert_eq!(host_port("http://0.0.0.0:9702/metrics", &at("10.0.0.1")), "10.0.0.1:9702");
        assert_eq!(host_port("http://[::]:9702/metrics", &at("fd00::1")), "[fd00::1]:9702");
        assert_eq!(host_port("127.0.0.1:7402", &at("10.0.0.1")), "127.0.0.1:7402");
        assert_eq!(host_port("0.0.0.0:7402", &[]), "0.0.0.0:7402");
    }
}
