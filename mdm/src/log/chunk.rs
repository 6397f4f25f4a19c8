//! Values of the sled store: long ones in chunks, each with version and checksum.
//!
//! ```text
//! key    index u64 BE | chunk u32 BE
//! value  version u8 = 1 | crc32c u32 LE of key and the rest | total length u32 LE | payload (at most 4,000 bytes)
//! ```
//! The checksum covers the key, so that a value in the wrong place is noticed.

use quarry_base::crc32c;

/// Format of values.
pub const VERSION: u8 = 1;
/// Most payload bytes a value: sled keeps larger ones in files that it never syncs.
pub const PAYLOAD: usize = 4000;
const HEAD: usize = 9;

/// What is wrong with a value.
#[derive(Debug, PartialEq, Eq)]
pub enum Bad {
    Newer(u8),
    Damaged(String),
}

pub fn key(index: u64, chunk: u32) -> [u8; 12] {
    let mut k = [0; 12];
    k[..8].copy_from_slice(&index.to_be_bytes());
    k[8..].copy_from_slice(&chunk.to_be_bytes());
    k
}

/// Index and chunk of a key.
pub fn split_key(k: &[u8]) -> Option<(u64, u32)> {
    let index = u64::from_be_bytes(k.first_chunk::<8>().copied()?);
    let chunk = u32::from_be_bytes(k.get(8..12)?.try_into().ok()?);
    (k.len() == 12).then_some((index, chunk))
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    let mut all = Vec::with_capacity(key.len() + rest.len());
    all.extend_from_slice(key);
    all.extend_from_slice(rest);
    crc32c(&all)
}

/// Key and value of every chunk of `bytes`; at least one.
pub fn encode(index: u64, bytes: &[u8]) -> Vec<([u8; 12], Vec<u8>)> {
    let count = bytes.len().div_ceil(PAYLOAD).max(1);
    let total = (bytes.len() as u32).to_le_bytes();
    let part = |i: usize| {
        let payload = &bytes[i * PAYLOAD..bytes.len().min((i + 1) * PAYLOAD)];
        let k = key(index, i as u32);
        let rest = [&total, payload].concat();
        let mut v = Vec::with_capacity(HEAD + payload.len());
        v.push(VERSION);
        v.extend_from_slice(&checksum(&k, &rest).to_le_bytes());
        v.extend_from_slice(&rest);
        (k, v)
    };
    (0..count).map(part).collect()
}

/// Total length and payload of one chunk, verified.
pub fn decode<'a>(key: &[u8], value: &'a [u8]) -> Result<(usize, &'a [u8]), Bad> {
    let bad = |what: &str| Bad::Damaged(format!("{what} at {:?}", split_key(key)));
    let (Some(version), Some(head)) = (value.first(), value.first_chunk::<HEAD>()) else {
        return Err(bad("a value is too short"));
    };
    if *version > VERSION {
        return Err(Bad::Newer(*version));
    }
    let crc = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    if *version != VERSION || checksum(key, &value[5..]) != crc {
        return Err(bad("a checksum does not match"));
    }
    let total = u32::from_le_bytes([head[5], head[6], head[7], head[8]]);
    Ok((total as usize, &value[HEAD..]))
}

/// Puts values back together from their chunks in key order.
#[derive(Default)]
pub struct Joiner {
    index: u64,
    next: u32,
    total: usize,
    bytes: Vec<u8>,
    open: bool,
}

impl Joiner {
    /// Takes the next chunk; gives the value it completes.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<Option<(u64, Vec<u8>)>, Bad> {
        let (total, payload) = decode(key, value)?;
        let Some((index, chunk)) = split_key(key) else {
            return Err(Bad::Damaged("a key has the wrong length".into()));
        };
        if !self.open {
            *self = Joiner { index, next: 0, total, bytes: Vec::new(), open: true };
        }
        if index != self.index || chunk != self.next || total != self.total {
            return Err(Bad::Damaged(format!("entry {} is incomplete", self.index)));
        }
        self.bytes.extend_from_slice(payload);
        self.next += 1;
        if self.bytes.len() < self.total {
            return Ok(None);
        }
        self.open = false;
        Ok(Some((index, std::mem::take(&mut self.bytes))))
    }

    /// To be called at the end: no value may be open.
    pub fn finish(&self) -> Result<(), Bad> {
        if self.open {
            return Err(Bad::Damaged(format!("entry {} is incomplete", self.index)));
        }
        Ok(())
    }
}
