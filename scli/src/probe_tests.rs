//! A probe against the `nbd` crate's own server.

use super::*;
use std::io::Cursor;
use std::os::unix::net::UnixListener;

fn socket(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("scli-probe-{name}-{}.sock", std::process::id()))
}

fn serve_one(path: &std::path::Path, size: usize) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (mut s, _) = listener.accept().unwrap();
        let data = Cursor::new(vec![7u8; size]);
        let find = |name: &str| {
            if name != "vol1" {
                return Err(io::Error::new(io::ErrorKind::NotFound, "no such export"));
            }
            Ok(nbd::Export { size: size as u64, send_flush: true, data: (), ..Default::default() })
        };
        if nbd::server::handshake(&mut s, find).is_ok() {
            nbd::server::transmission(&mut s, data).ok();
        }
    })
}

#[test]
fn size_and_flags_of_an_export_are_shown() {
    let path = socket("ok");
    let server = serve_one(&path, 1 << 20);
    let uri = format!("nbd+unix:///vol1?socket={}", path.display());
    let got = run(&uri, Duration::from_secs(5)).unwrap();
    server.join().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(got["size_bytes"], 1 << 20);
    assert_eq!(got["flush"], true);
    assert_eq!(got["read_only"], false);
}

#[test]
fn an_unknown_export_and_a_missing_socket_are_clear_errors() {
    let path = socket("unknown");
    let server = serve_one(&path, 4096);
    let uri = format!("nbd+unix:///other?socket={}", path.display());
    let e = run(&uri, Duration::from_secs(5)).unwrap_err();
    server.join().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(e.message.contains("no export 'other'"), "{}", e.message);
    let e = run(&uri, Duration::from_secs(5)).unwrap_err();
    assert!(e.message.contains("cannot connect") && !e.hint.is_empty(), "{}", e.message);
}
