//! The client against servers that are not ours.

use super::consts::*;
use super::*;
use crate::{need_programs, Scratch};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server in the foreground, killed on drop.
pub struct Server {
    child: Child,
    pub uri: Uri,
    _scratch: Scratch,
}

impl Server {
    /// Starts `command` with `SOCKET` replaced and waits for its socket.
    pub fn start(command: &[&str]) -> Server {
        let scratch = Scratch::new().unwrap();
        let socket = scratch.file("s");
        let image = scratch.file("image");
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let fill = |a: &&str| a.replace("SOCKET", &socket).replace("IMAGE", &image);
        let args: Vec<String> = command[1..].iter().map(fill).collect();
        let child = Command::new(command[0]).args(args).stdin(Stdio::null()).spawn().unwrap();
        let uri = Uri::parse(&format!("nbd+unix:///?socket={socket}")).unwrap();
        let start = Instant::now();
        while !std::path::Path::new(&socket).exists() {
            assert!(start.elapsed() < Duration::from_secs(10), "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Server { child, uri, _scratch: scratch }
    }
    pub fn nbdkit(args: &[&str]) -> Option<Server> {
        if let Some(why) = need_programs(&["nbdkit"]) {
            crate::skip("quarry-tests against nbdkit", &why);
            return None;
        }
        Some(Server::start(&[&["nbdkit", "-f", "-U", "SOCKET"], args].concat()))
    }
    pub fn qemu() -> Option<Server> {
        if let Some(why) = need_programs(&["qemu-nbd"]) {
            crate::skip("quarry-tests against qemu-nbd", &why);
            return None;
        }
        let args = [
            "-t",
            "-e",
            "16",
            "--discard=unmap",
            "--detect-zeroes=off",
            "-x",
            "",
            "-k",
            "SOCKET",
            "-f",
            "raw",
        ];
        Some(Server::start(&[&["qemu-nbd"], &args[..], &["IMAGE"]].concat()))
    }
}
impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn exercise(uri: &Uri, structured: bool) {
    let mut c = Connection::open_with(uri, structured).unwrap();
    assert_eq!(c.export.size, 64 << 20);
    assert_eq!(c.export.structured, structured);
    let data: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    c.write_at(4096, &data).unwrap();
    c.flush().unwrap();
    assert_eq!(c.read_at(4096, data.len()).unwrap(), data);
    c.zero(8192, 65_536).unwrap();
    c.trim(1 << 20, 1 << 20).unwrap();
    let back = c.read_at(0, 400_000).unwrap();
    assert!(
        back[..4096].iter().all(|&b| b == 0) && back[8192..8192 + 65_536].iter().all(|&b| b == 0)
    );
    assert_eq!(back[8192 + 65_536..4096 + data.len()], data[4096 + 65_536..]);
    assert_eq!(c.call(CMD_READ, 0, 64 << 20, 4096, &[]).unwrap().error, EINVAL);
    c.disconnect().unwrap();
}

#[test]
fn nbdkit_and_qemu_are_understood_with_and_without_structured_replies() {
    for server in [Server::nbdkit(&["memory", "64M"]), Server::qemu()].into_iter().flatten() {
        exercise(&server.uri, false);
        exercise(&server.uri, true);
    }
}

#[test]
fn a_refused_export_says_so() {
    let Some(server) = Server::qemu() else { return };
    let other = Uri::parse(&server.uri.as_str().replace(":///", ":///other")).unwrap();
    let why = Connection::open(&other).err().unwrap();
    assert!(why.text().contains("refused"), "{why}");
}

#[test]
fn raw_options_are_answered() {
    let Some(server) = Server::nbdkit(&["memory", "1M"]) else { return };
    let mut raw =
        raw::Raw::greeted(&server.uri, u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)).unwrap();
    raw.option(0x7777, b"what").unwrap();
    assert_eq!(raw.option_reply(0x7777).unwrap().0, REP_ERR_UNSUP);
    raw.option(OPT_ABORT, &[]).unwrap();
    raw.expect_closed().unwrap();
    let (mut raw, size) = raw::Raw::transmission(&server.uri).unwrap();
    assert_eq!(size, 1 << 20);
    raw.request(0, CMD_READ, 77, 2 << 20, 512).unwrap();
    assert_eq!(raw.simple_reply().unwrap(), (EINVAL, 77));
}
