//! The endpoint over a real socket.

use super::*;
use crate::version::Info;
use std::net::SocketAddr;

async fn start() -> (SocketAddr, Metrics, tokio::task::JoinHandle<()>) {
    let m = Metrics::new(Info::of("mdm"), "mdm", "mdm1");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    (at, m.clone(), tokio::spawn(serve(listener, m)))
}

async fn ask(at: SocketAddr, request: &str) -> String {
    let mut s = TcpStream::connect(at).await.unwrap();
    s.write_all(request.as_bytes()).await.unwrap();
    let mut out = String::new();
    s.read_to_string(&mut out).await.unwrap();
    out
}

#[tokio::test]
async fn metrics_are_served_as_openmetrics() {
    let (at, m, task) = start().await;
    m.counter("quarry_x_total", "x").add(3);
    let got = ask(at, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
    assert!(got.contains(&format!("Content-Type: {CONTENT_TYPE}\r\n")));
    assert!(got.contains("quarry_x_total 3\n") && got.ends_with("# EOF\n"));
    let (head, body) = got.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
    task.abort();
}

#[tokio::test]
async fn health_follows_the_check() {
    let (at, m, task) = start().await;
    assert!(ask(at, "GET /healthz HTTP/1.1\r\n\r\n").await.ends_with("\r\n\r\nok\n"));
    m.set_health(|| Err("device sdb failed".to_string()));
    let got = ask(at, "GET /healthz HTTP/1.1\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 503") && got.ends_with("device sdb failed\n"), "{got}");
    task.abort();
}

#[tokio::test]
async fn what_is_not_served_is_refused_by_the_book() {
    let (at, _m, task) = start().await;
    let cases = [
        ("GET /nothing HTTP/1.1\r\n\r\n", "HTTP/1.1 404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405"),
        ("hello\r\n\r\n", "HTTP/1.1 400"),
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 200"),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200"),
    ];
    for (request, status) in cases {
        let got = ask(at, request).await;
        assert!(got.starts_with(status), "{request:?}: {got}");
        if request.starts_with("HEAD") {
            assert!(got.ends_with("\r\n\r\n"), "no body after HEAD");
        }
    }
    task.abort();
}

#[tokio::test]
async fn an_endless_request_is_cut_off() {
    let (at, _m, task) = start().await;
    let mut s = TcpStream::connect(at).await.unwrap();
    let header = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(MAX_HEAD + 2048));
    s.write_all(header.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    // The answer, or a reset because unread bytes were left; both end it.
    if s.read_to_end(&mut out).await.is_ok() {
        assert!(out.starts_with(b"HTTP/1.1 400"));
    }
    task.abort();
}

#[tokio::test]
async fn idle_connections_up_to_the_limit_leave_room_when_they_go() {
    let (at, _m, task) = start().await;
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        idle.push(TcpStream::connect(at).await.unwrap());
    }
    drop(idle);
    let got = ask(at, "GET /healthz HTTP/1.1\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    task.abort();
}
