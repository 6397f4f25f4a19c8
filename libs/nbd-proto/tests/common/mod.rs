//! A tiny client and a driver for a session, both written from the specification with the numbers
//! spelled out, so that a wrong constant in the crate is noticed.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use quarry_nbd_proto::{Export, Exports, Limits, Session, SessionEvent};

pub const SIZE: u64 = 1 << 30;
pub const IHAVEOPT: &[u8] = b"IHAVEOPT";
pub const REP: [u8; 8] = [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9];

pub fn export(name: &str) -> Export {
    Export {
        name: name.into(),
        description: String::new(),
        size: SIZE,
        read_only: false,
        min_block: 1,
        preferred_block: 4096,
        max_block: 32 << 20,
        multi_conn: true,
    }
}

/// "vol" (also the default), "ro" with a description, "strict" with blocks of 4096.
pub struct Three;

impl Exports for Three {
    fn lookup(&self, name: &str) -> Option<Export> {
        match name {
            "" | "vol" => Some(export("vol")),
            "ro" => Some(Export { read_only: true, description: "a disk".into(), ..export("ro") }),
            "strict" => Some(Export {
                min_block: 4096,
                preferred_block: 65536,
                max_block: 1 << 20,
                size: SIZE + 512,
                ..export("strict")
            }),
            _ => None,
        }
    }
    fn list(&self) -> Vec<(String, String)> {
        vec![("vol".into(), String::new()), ("ro".into(), "a disk".into())]
    }
}

pub struct Driver {
    pub s: Session,
    pub events: Vec<SessionEvent>,
}

impl Driver {
    pub fn new() -> Driver {
        Driver::with(Limits::default())
    }
    pub fn with(limits: Limits) -> Driver {
        Driver { s: Session::new(limits), events: Vec::new() }
    }
    /// In the transmission phase of an export, nothing left to read.
    pub fn open(name: &str, structured: bool) -> Driver {
        Driver::open_with(name, structured, Limits::default())
    }
    pub fn open_with(name: &str, structured: bool, limits: Limits) -> Driver {
        let mut d = Driver::with(limits);
        d.feed(&[0, 0, 0, 3]);
        if structured {
            d.feed(&option(8, b""));
            d.feed(&option(10, &meta(name, &["base:allocation"])));
        }
        d.feed(&option(7, &info(name, &[])));
        assert!(d.s.export().is_some());
        d.take();
        d.events.clear();
        d
    }
    /// Feeds as much as the session is willing to take; returns the number of bytes taken.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        self.feed_by(bytes, usize::MAX)
    }
    pub fn feed_by(&mut self, bytes: &[u8], most: usize) -> usize {
        let mut at = 0;
        while at < bytes.len() && self.s.may_receive() {
            let mut plan = self.s.next_recv();
            assert!(plan.start < plan.end && plan.end <= plan.buf.len());
            let n = (plan.end - plan.start).min(bytes.len() - at).min(most);
            let from = plan.start;
            plan.buf[from..from + n].copy_from_slice(&bytes[at..at + n]);
            at += n;
            self.s.received(plan, n, &Three, &mut self.events);
        }
        at
    }
    pub fn eof(&mut self) {
        let plan = self.s.next_recv();
        self.s.received(plan, 0, &Three, &mut self.events);
    }
    pub fn resume(&mut self) {
        self.s.resume(&Three, &mut self.events);
    }
    pub fn take(&mut self) -> Vec<u8> {
        let mut out: Vec<Bytes> = Vec::new();
        self.s.take_output(&mut out);
        out.concat()
    }
    /// Feeds, and returns what the session says to it.
    pub fn ask(&mut self, bytes: &[u8]) -> Vec<u8> {
        assert_eq!(self.feed(bytes), bytes.len(), "all of it is read");
        self.take()
    }
    pub fn event(&mut self) -> SessionEvent {
        assert_eq!(self.events.len(), 1, "{:?}", self.events);
        self.events.remove(0)
    }
    pub fn ended_badly(&self) -> bool {
        let last = self.events.last();
        self.s.closing() && matches!(last, Some(SessionEvent::ProtocolError { .. }))
    }
}

pub fn cat(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    cat(&[IHAVEOPT, &option.to_be_bytes(), &len.to_be_bytes(), data])
}

pub fn rep(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    cat(&[&REP, &option.to_be_bytes(), &kind.to_be_bytes(), &len.to_be_bytes(), data])
}

pub fn string(s: &str) -> Vec<u8> {
    cat(&[&(s.len() as u32).to_be_bytes(), s.as_bytes()])
}

pub fn info(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut v = string(name);
    v.extend((requests.len() as u16).to_be_bytes());
    requests.iter().for_each(|r| v.extend(r.to_be_bytes()));
    v
}

pub fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut v = string(name);
    v.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|q| v.extend(string(q)));
    v
}

pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    cat(&[
        &[0x25, 0x60, 0x95, 0x13],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ])
}

pub fn simple(error: u32, cookie: u64) -> Vec<u8> {
    cat(&[&[0x67, 0x44, 0x66, 0x98], &error.to_be_bytes(), &cookie.to_be_bytes()])
}

pub fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    cat(&[
        &[0x66, 0x8e, 0x33, 0xef],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &(payload.len() as u32).to_be_bytes(),
        payload,
    ])
}

/// The kinds of option replies in `bytes`, in order, each for `option`.
pub fn kinds(mut bytes: &[u8], option: u32) -> Vec<u32> {
    let mut v = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes[..8], REP);
        assert_eq!(word(8), option);
        v.push(word(12));
        bytes = &bytes[20 + word(16) as usize..];
    }
    v
}

/// Number and cookie of an error answer, simple or structured.
pub fn errno(bytes: &[u8]) -> (u32, u64) {
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let cookie = u64::from_be_bytes(bytes[8..16].try_into().unwrap());
    match word(0) {
        0x6744_6698 => {
            assert_eq!(bytes.len(), 16);
            (word(4), cookie)
        }
        0x668e_33ef => {
            assert_eq!(word(4), 0x0001_8001, "done, error");
            assert_eq!(bytes.len(), 20 + word(16) as usize);
            let text = u16::from_be_bytes(bytes[24..26].try_into().unwrap());
            assert_eq!(word(16), 6 + text as u32);
            (word(20), cookie)
        }
        m => panic!("no reply: {m:#x}"),
    }
}
