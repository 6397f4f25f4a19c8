//! The metrics endpoint: `GET /metrics`, `/healthz`, `/`. HTTP/1.1, one request a connection.
//!
//! Small on purpose: the storage daemons need no web framework. Bounded: [`MAX_CONNECTIONS`] at once
//! (more wait in the listen queue), [`MAX_HEAD`] bytes of request, [`DEADLINE`] for a whole exchange.

use crate::registry::Metrics;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// What `/metrics` is served as.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Connections served at once.
pub const MAX_CONNECTIONS: usize = 32;
/// Bytes of request line and headers at most.
pub const MAX_HEAD: usize = 8 << 10;
/// Longest time one connection may take, reading and writing together.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Pause after a failed accept (file descriptors used up, for instance).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `metrics` on `listener` until the future is dropped; it never ends by itself.
pub async fn serve(listener: TcpListener, metrics: Metrics) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The place comes before the accept: a flood waits in the kernel's queue, not in memory.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _peer)) => {
                let metrics = metrics.clone();
                tokio::spawn(async move {
                    let done = tokio::time::timeout(DEADLINE, exchange(stream, &metrics)).await;
                    if !matches!(done, Ok(Ok(()))) {
                        tracing::debug!("a metrics connection ended early");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a metrics connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn exchange(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let head = match read_head(&mut stream).await? {
        Some(head) => head,
        None => return Ok(()),
    };
    stream.write_all(&answer(&head, metrics)).await?;
    stream.shutdown().await
}

/// Reads to the empty line that ends the headers, [`MAX_HEAD`] at most. `None` when the peer left.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut head = Vec::with_capacity(1024);
    let mut part = [0u8; 1024];
    loop {
        let n = stream.read(&mut part).await?;
        if n == 0 {
            return Ok(None);
        }
        head.extend_from_slice(part.get(..n).unwrap_or_default());
        if head.windows(4).any(|w| w == b"\r\n\r\n") || head.windows(2).any(|w| w == b"\n\n") {
            return Ok(Some(head));
        }
        if head.len() > MAX_HEAD {
            return Ok(Some(b"TOO LARGE".to_vec()));
        }
    }
}

fn answer(head: &[u8], metrics: &Metrics) -> Vec<u8> {
    let line = head.split(|b| *b == b'\r' || *b == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    if !words.next().unwrap_or("").starts_with("HTTP/1.") {
        return response("400 Bad Request", TEXT, "not an HTTP/1 request\n", false);
    }
    let no_body = method == "HEAD";
    if method != "GET" && !no_body {
        return response("405 Method Not Allowed", TEXT, "only GET is served here\n", false);
    }
    let path = target.split('?').next().unwrap_or("");
    match path {
        "/metrics" => match metrics.encode() {
            Ok(body) => response("200 OK", CONTENT_TYPE, &body, no_body),
            Err(_) => {
                response("500 Internal Server Error", TEXT, "metrics cannot be written\n", no_body)
            }
        },
        "/healthz" => match metrics.health() {
            Ok(()) => response("200 OK", TEXT, "ok\n", no_body),
            Err(why) => response("503 Service Unavailable", TEXT, &format!("{why}\n"), no_body),
        },
        "/" => response("200 OK", "text/html; charset=utf-8", INDEX, no_body),
        _ => response("404 Not Found", TEXT, "try /metrics or /healthz\n", no_body),
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const INDEX: &str = "<!doctype html><title>Quarry</title>\
    <p><a href=\"/metrics\">/metrics</a> <a href=\"/healthz\">/healthz</a></p>\n";

fn response(status: &str, kind: &str, body: &str, no_body: bool) -> Vec<u8> {
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let mut out = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    if !no_body {
        out.extend_from_slice(body.as_bytes());
    }
    out
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
