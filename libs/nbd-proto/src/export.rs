//! What can be opened.

use crate::consts::*;

/// An export as the handshake describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// Canonical name, at most 4096 bytes of UTF-8 without NUL.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// Bytes.
    pub size: u64,
    /// Writes are answered with `EPERM`.
    pub read_only: bool,
    /// Smallest length and alignment accepted: a power of two, 1 to 65,536.
    pub min_block: u32,
    /// Size below which I/O is less efficient: a power of two, at least 512 and `min_block`.
    pub preferred_block: u32,
    /// Largest read or write accepted, bytes; at least `preferred_block`.
    pub max_block: u32,
    /// A flush on one connection covers all connections.
    pub multi_conn: bool,
}

impl Export {
    /// The transmission flags of this export; `structured` says whether structured replies are
    /// agreed (only then may "don't fragment" be offered).
    pub fn transmission_flags(&self, structured: bool) -> u16 {
        let mut f =
            NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;
        if self.read_only {
            f |= NBD_FLAG_READ_ONLY;
        } else {
            f |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
        }
        if structured {
            f |= NBD_FLAG_SEND_DF;
        }
        if self.multi_conn {
            f |= NBD_FLAG_CAN_MULTI_CONN;
        }
        f
    }

    /// Whether the block sizes differ from what a client assumes that asked for none.
    pub(crate) fn has_own_block_sizes(&self) -> bool {
        self.min_block > 1 || self.preferred_block != 4096 || self.max_block != DEFAULT_MAX_PAYLOAD
    }

    /// Brings the block sizes into what the specification permits to advertise.
    pub(crate) fn sanitised(mut self) -> Export {
        self.min_block = self.min_block.clamp(1, 1 << 16).next_power_of_two();
        let least = self.min_block.max(512);
        self.preferred_block = self.preferred_block.clamp(least, 1 << 30).next_power_of_two();
        self.max_block = self.max_block.max(self.preferred_block);
        self
    }
}

/// The exports of a server, asked during the handshake.
pub trait Exports {
    /// The export of that name; the empty name means the default export, if there is one.
    fn lookup(&self, name: &str) -> Option<Export>;
    /// Name and description of every export this client may see.
    fn list(&self) -> Vec<(String, String)>;
}
