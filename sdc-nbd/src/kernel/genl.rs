//! Generic netlink messages of the kernel's "nbd" family: built and taken apart, nothing else.
//!
//! ```text
//! message:    u32 length | u16 type | u16 flags | u32 sequence | u32 port     (host byte order)
//!             u8 command | u8 version | u16 reserved                          (generic netlink)
//!             attributes
//! attribute:  u16 length (header included) | u16 type | value | padding to 4 bytes
//! ```
//! What comes from the kernel is checked like any other input: a length that does not fit ends the
//! parse with an error, never with a panic.

use thiserror::Error;

/// Type of a message that carries an errno; zero acknowledges.
const NLMSG_ERROR: u16 = 2;
/// The generic netlink controller, which knows the families.
pub const GENL_ID_CTRL: u16 = 0x10;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 1 << 15;
/// Bits of an attribute's type that are not flags.
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLMSG_HEADER: usize = 16;
const GENL_HEADER: usize = 4;
const NLA_HEADER: usize = 4;

const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const NBD_VERSION: u8 = 1;
const NBD_CMD_CONNECT: u8 = 1;
const NBD_CMD_DISCONNECT: u8 = 2;
const NBD_CMD_RECONFIGURE: u8 = 3;
const NBD_CMD_STATUS: u8 = 5;

const NBD_ATTR_INDEX: u16 = 1;
const NBD_ATTR_SIZE_BYTES: u16 = 2;
const NBD_ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const NBD_ATTR_TIMEOUT: u16 = 4;
const NBD_ATTR_SERVER_FLAGS: u16 = 5;
const NBD_ATTR_CLIENT_FLAGS: u16 = 6;
const NBD_ATTR_SOCKETS: u16 = 7;
const NBD_ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const NBD_ATTR_DEVICE_LIST: u16 = 9;
const NBD_ATTR_BACKEND_IDENTIFIER: u16 = 10;
const NBD_SOCK_ITEM: u16 = 1;
const NBD_SOCK_FD: u16 = 1;
const NBD_DEVICE_ITEM: u16 = 1;
const NBD_DEVICE_INDEX: u16 = 1;
const NBD_DEVICE_CONNECTED: u16 = 2;

/// Client flag: the kernel removes the device when it is disconnected.
pub const NBD_CFLAG_DESTROY_ON_DISCONNECT: u64 = 1 << 0;
/// Client flag: the kernel disconnects when the last opener closes.
pub const NBD_CFLAG_DISCONNECT_ON_CLOSE: u64 = 1 << 1;

/// A message of the kernel that makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    #[error("a netlink message of the kernel is cut short")]
    Short,
    #[error("a netlink attribute of the kernel is cut short")]
    Attribute,
    #[error("the kernel's answer lacks {0}")]
    Missing(&'static str),
}

/// What `CONNECT` and `RECONFIGURE` can set. Times in seconds, sizes in bytes; what is absent is
/// not sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config<'a> {
    pub index: Option<u32>,
    pub size: Option<u64>,
    pub block_size: Option<u64>,
    pub timeout: Option<u64>,
    pub server_flags: Option<u64>,
    pub client_flags: Option<u64>,
    pub dead_conn_timeout: Option<u64>,
    pub backend: Option<&'a str>,
    /// File descriptors of this process.
    pub sockets: &'a [i32],
}

/// A message under construction.
struct Builder(Vec<u8>);

impl Builder {
    fn new(family: u16, seq: u32, command: u8, version: u8) -> Builder {
        let mut b = Vec::with_capacity(256);
        b.extend(0u32.to_ne_bytes());
        b.extend(family.to_ne_bytes());
        b.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        b.extend(seq.to_ne_bytes());
        b.extend(0u32.to_ne_bytes());
        b.extend([command, version, 0, 0]);
        Builder(b)
    }
    fn attr(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(((NLA_HEADER + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.pad();
    }
    fn u32(&mut self, kind: u16, v: u32) {
        self.attr(kind, &v.to_ne_bytes());
    }
    fn u64(&mut self, kind: u16, v: Option<u64>) {
        if let Some(v) = v {
            self.attr(kind, &v.to_ne_bytes());
        }
    }
    fn string(&mut self, kind: u16, v: &str) {
        let mut bytes = v.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes);
    }
    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Builder)) {
        let at = self.0.len();
        self.0.extend([0, 0]);
        self.0.extend((kind | NLA_F_NESTED).to_ne_bytes());
        fill(self);
        let len = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&len.to_ne_bytes());
    }
    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
    fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// Asks the controller for a family's number.
pub fn get_family(seq: u32, name: &str) -> Vec<u8> {
    let mut b = Builder::new(GENL_ID_CTRL, seq, CTRL_CMD_GETFAMILY, 1);
    b.string(CTRL_ATTR_FAMILY_NAME, name);
    b.finish()
}

fn configure(family: u16, seq: u32, command: u8, c: &Config<'_>) -> Vec<u8> {
    let mut b = Builder::new(family, seq, command, NBD_VERSION);
    if let Some(index) = c.index {
        b.u32(NBD_ATTR_INDEX, index);
    }
    b.u64(NBD_ATTR_SIZE_BYTES, c.size);
    b.u64(NBD_ATTR_BLOCK_SIZE_BYTES, c.block_size);
    b.u64(NBD_ATTR_TIMEOUT, c.timeout);
    b.u64(NBD_ATTR_SERVER_FLAGS, c.server_flags);
    b.u64(NBD_ATTR_CLIENT_FLAGS, c.client_flags);
    if !c.sockets.is_empty() {
        b.nested(NBD_ATTR_SOCKETS, |b| {
            for &fd in c.sockets {
                b.nested(NBD_SOCK_ITEM, |b| b.u32(NBD_SOCK_FD, fd as u32));
            }
        });
    }
    b.u64(NBD_ATTR_DEAD_CONN_TIMEOUT, c.dead_conn_timeout);
    if let Some(id) = c.backend {
        b.string(NBD_ATTR_BACKEND_IDENTIFIER, id);
    }
    b.finish()
}

/// Connects a device; without an index the kernel picks a free one.
pub fn connect(family: u16, seq: u32, c: &Config<'_>) -> Vec<u8> {
    configure(family, seq, NBD_CMD_CONNECT, c)
}

/// Gives a connected device new sockets, a new size or new times.
pub fn reconfigure(family: u16, seq: u32, c: &Config<'_>) -> Vec<u8> {
    configure(family, seq, NBD_CMD_RECONFIGURE, c)
}

/// Disconnects a device.
pub fn disconnect(family: u16, seq: u32, index: u32) -> Vec<u8> {
    let mut b = Builder::new(family, seq, NBD_CMD_DISCONNECT, NBD_VERSION);
    b.u32(NBD_ATTR_INDEX, index);
    b.finish()
}

/// Asks about one device, or all.
pub fn status(family: u16, seq: u32, index: Option<u32>) -> Vec<u8> {
    let mut b = Builder::new(family, seq, NBD_CMD_STATUS, NBD_VERSION);
    if let Some(index) = index {
        b.u32(NBD_ATTR_INDEX, index);
    }
    b.finish()
}

/// A message of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// The request is done (zero) or failed (the errno, positive).
    Done { seq: u32, errno: i32 },
    /// A generic netlink message with its attributes.
    Reply { seq: u32, kind: u16, attributes: &'a [u8] },
}

/// The messages of one datagram.
pub struct Messages<'a>(&'a [u8]);

/// Takes a datagram apart.
pub fn messages(datagram: &[u8]) -> Messages<'_> {
    Messages(datagram)
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, ParseError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let r = next_message(&mut self.0);
        if r.is_err() {
            self.0 = &[];
        }
        Some(r)
    }
}

fn next_message<'a>(rest: &mut &'a [u8]) -> Result<Message<'a>, ParseError> {
    let len = u32_at(rest, 0).ok_or(ParseError::Short)? as usize;
    let body = rest.get(NLMSG_HEADER..len).ok_or(ParseError::Short)?;
    let kind = u16_at(rest, 4).ok_or(ParseError::Short)?;
    let seq = u32_at(rest, 8).ok_or(ParseError::Short)?;
    *rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    if kind == NLMSG_ERROR {
        let errno = u32_at(body, 0).ok_or(ParseError::Short)? as i32;
        return Ok(Message::Done { seq, errno: errno.saturating_neg() });
    }
    let attributes = body.get(GENL_HEADER..).ok_or(ParseError::Short)?;
    Ok(Message::Reply { seq, kind, attributes })
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*b.get(at..)?.first_chunk()?))
}
fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*b.get(at..)?.first_chunk()?))
}

/// Attributes in a row: type without flags, value.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), ParseError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let r = next_attribute(&mut self.0).ok_or(ParseError::Attribute);
        if r.is_err() {
            self.0 = &[];
        }
        Some(r)
    }
}

fn next_attribute<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let len = u16_at(rest, 0)? as usize;
    let kind = u16_at(rest, 2)? & NLA_TYPE_MASK;
    let value = rest.get(NLA_HEADER..len)?;
    *rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    Some((kind, value))
}

fn find(attributes: &[u8], kind: u16) -> Result<Option<&[u8]>, ParseError> {
    for a in Attributes(attributes) {
        let (k, value) = a?;
        if k == kind {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// The family's number in the controller's answer.
pub fn family_id(attributes: &[u8]) -> Result<u16, ParseError> {
    let missing = ParseError::Missing("the family's number");
    find(attributes, CTRL_ATTR_FAMILY_ID)?.and_then(|v| u16_at(v, 0)).ok_or(missing)
}

/// The device's index in the answer to `CONNECT`.
pub fn connected_index(attributes: &[u8]) -> Result<u32, ParseError> {
    let missing = ParseError::Missing("the device's index");
    find(attributes, NBD_ATTR_INDEX)?.and_then(|v| u32_at(v, 0)).ok_or(missing)
}

/// Index and state of each device in the answer to `STATUS`.
pub fn device_list(attributes: &[u8]) -> Result<Vec<(u32, bool)>, ParseError> {
    let mut list = Vec::new();
    let Some(items) = find(attributes, NBD_ATTR_DEVICE_LIST)? else { return Ok(list) };
    for item in Attributes(items) {
        let (kind, value) = item?;
        if kind != NBD_DEVICE_ITEM {
            continue;
        }
        let index = find(value, NBD_DEVICE_INDEX)?.and_then(|v| u32_at(v, 0));
        let index = index.ok_or(ParseError::Missing("a device's index"))?;
        let connected = find(value, NBD_DEVICE_CONNECTED)?.and_then(|v| v.first());
        list.push((index, connected.is_some_and(|&c| c != 0)));
    }
    Ok(list)
}

#[cfg(test)]
#[path = "genl_tests.rs"]
mod tests;
