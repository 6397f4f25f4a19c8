//! HTTP/1.1 for REST and `/metrics`: one request a connection.

use crate::failure::While;
use crate::{fail, Failure, Res};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Bytes of an answer read at most.
const MAX_ANSWER: u64 = 64 << 20;

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// Header names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    /// Value of a header, name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
    /// The body as JSON.
    pub fn json(&self) -> Res<Value> {
        serde_json::from_str(&self.body)
            .doing(|| format!("the answer is not JSON: {}", crate::command::tail(&self.body)))
    }
}

/// Sends one request to `http://HOST:PORT/PATH` and reads the whole answer. `headers` are complete lines without the
/// line end; a `body` is sent as JSON.
pub fn request(method: &str, url: &str, headers: &[String], body: Option<&str>) -> Res<Response> {
    let what = || format!("{method} {url}");
    let rest =
        url.strip_prefix("http://").ok_or_else(|| Failure::new(format!("{url} is no http URL")))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut s = TcpStream::connect(host).doing(what)?;
    s.set_read_timeout(Some(Duration::from_secs(10)))?;
    s.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut text = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for h in headers {
        text.push_str(h);
        text.push_str("\r\n");
    }
    if let Some(body) = body {
        text.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    text.push_str("\r\n");
    text.push_str(body.unwrap_or_default());
    s.write_all(text.as_bytes()).doing(what)?;
    let mut raw = Vec::new();
    s.take(MAX_ANSWER).read_to_end(&mut raw).doing(what)?;
    parse(&raw).map_err(|e| e.within(what()))
}

/// GET without headers.
pub fn get(url: &str) -> Res<Response> {
    request("GET", url, &[], None)
}

/// Sum of the samples called `name` on a metrics page whose labels contain `label`. Fails when there is none.
pub fn metric(url: &str, name: &str, label: &str) -> Res<f64> {
    let page = get(url)?;
    let found: Vec<f64> = page.body.lines().filter_map(|l| sample(l, name, label)).collect();
    if found.is_empty() {
        fail!("{url} has no sample {name} with {label}");
    }
    Ok(found.iter().sum())
}

/// The value of a line of a metrics page, if it is of this name and its labels contain `label`.
fn sample(line: &str, name: &str, label: &str) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let (labels, value) = rest.rsplit_once(' ')?;
    let own = labels.is_empty() || labels.starts_with('{');
    (own && labels.contains(label)).then(|| value.parse().ok()).flatten()
}

fn parse(raw: &[u8]) -> Res<Response> {
    let Some(end) = raw.windows(4).position(|w| w == b"\r\n\r\n") else {
        fail!("no HTTP answer in {} bytes", raw.len());
    };
    let head = String::from_utf8_lossy(&raw[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok());
    let Some(status) = status else { fail!("no HTTP status line: {head}") };
    let headers: Vec<(String, String)> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.trim().to_ascii_lowercase(), v.trim().to_string()))
        .collect();
    let chunked = headers.iter().any(|(n, v)| n == "transfer-encoding" && v.contains("chunked"));
    let body = &raw[end + 4..];
    let body = if chunked { unchunk(body)? } else { body.to_vec() };
    Ok(Response { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

fn unchunk(mut raw: &[u8]) -> Res<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let Some(end) = raw.windows(2).position(|w| w == b"\r\n") else {
            fail!("a chunk has no size line");
        };
        let line = String::from_utf8_lossy(&raw[..end]);
        let size = line.split(';').next().and_then(|s| usize::from_str_radix(s.trim(), 16).ok());
        let Some(size) = size else { fail!("'{line}' is no chunk size") };
        if size == 0 {
            return Ok(out);
        }
        let Some(data) = raw.get(end + 2..end + 2 + size) else { fail!("a chunk is cut short") };
        out.extend_from_slice(data);
        raw = raw.get(end + 4 + size..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_label() {
        let line = "quarry_x_total{device=\"a b\",op=\"write\"} 12.5";
        assert_eq!(sample(line, "quarry_x_total", "op=\"write\""), Some(12.5));
        assert_eq!(sample(line, "quarry_x_total", "op=\"read\""), None);
        assert_eq!(sample(line, "quarry_x", ""), None);
        assert_eq!(sample("quarry_y 3", "quarry_y", ""), Some(3.0));
    }

    #[test]
    fn answers_with_a_length_and_in_chunks_are_read() {
        let r = parse(b"HTTP/1.1 201 Created\r\nContent-Type: a/b\r\n\r\n{\"x\":1}").unwrap();
        assert_eq!((r.status, r.header("content-type")), (201, Some("a/b")));
        assert_eq!(r.json().unwrap()["x"], 1);
        let r = parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
        assert_eq!(r.unwrap().body, "abcde");
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc").is_err());
        assert!(parse(b"nonsense").is_err());
    }
}
