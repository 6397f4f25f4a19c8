//! A whole frame: header, meta section, data section.

use crate::header::check_len;
use crate::{Header, WireError, HEADER_LEN, MAX_DATA, MAX_META};
use bytes::{BufMut, Bytes, BytesMut};
use quarry_base::crc::{piece_count, pieces};
use quarry_base::crc32c;
use smallvec::SmallVec;

/// Checksums of the pieces of a data section, in order.
pub type Crcs = SmallVec<[u32; 2]>;

/// One message. `meta` is a control blob, or the list of data checksums when there is more than one piece.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub header: Header,
    pub meta: Bytes,
    pub data: Bytes,
}

impl Frame {
    /// A frame with neither meta nor data.
    pub fn bare(header: Header) -> Frame {
        Frame { header, meta: Bytes::new(), data: Bytes::new() }
    }

    /// A frame with a control blob.
    pub fn with_meta(header: Header, meta: impl Into<Bytes>) -> Frame {
        Frame { header, meta: meta.into(), data: Bytes::new() }
    }

    /// A frame with data whose checksums (one a piece, see `quarry_base::crc::pieces`, cut by
    /// `header.offset`) the caller has: they travel on unchanged from where they were made.
    pub fn with_data(mut header: Header, data: Bytes, crcs: &[u32]) -> Frame {
        assert_eq!(crcs.len(), piece_count(header.offset, data.len()), "one checksum a piece");
        let meta = match crcs {
            [] => Bytes::new(),
            [one] => {
                header.data_crc = *one;
                Bytes::new()
            }
            many => {
                let mut m = BytesMut::with_capacity(many.len() * 4);
                many.iter().for_each(|c| m.put_u32_le(*c));
                m.freeze()
            }
        };
        Frame { header, meta, data }
    }

    /// Whether a receiver would take it: meta and data within their limits.
    pub fn check_limits(&self) -> Result<(), WireError> {
        check_len("meta section", self.meta.len(), MAX_META)?;
        check_len("data section", self.data.len(), MAX_DATA)
    }

    /// Bytes to send: header and meta in one piece, then the data without a copy.
    /// The frame is within the limits (see [`Frame::check_limits`]); asserted.
    pub fn encode(mut self) -> (Bytes, Bytes) {
        assert!(self.check_limits().is_ok(), "a frame above the limits");
        self.header.meta_len = self.meta.len() as u32;
        self.header.data_len = self.data.len() as u32;
        self.header.meta_crc = if self.meta.is_empty() { 0 } else { crc32c(&self.meta) };
        let mut head = BytesMut::with_capacity(HEADER_LEN + self.meta.len());
        head.put_slice(&self.header.encode());
        head.put_slice(&self.meta);
        (head.freeze(), self.data)
    }

    /// Encoded length, bytes.
    pub fn wire_len(&self) -> usize {
        HEADER_LEN + self.meta.len() + self.data.len()
    }

    /// The checksums the sender gave for the data, *not* compared with it.
    pub fn claimed_crcs(&self) -> Result<Crcs, WireError> {
        let n = piece_count(self.header.offset, self.data.len());
        match n {
            0 => Ok(Crcs::new()),
            1 => Ok(Crcs::from_slice(&[self.header.data_crc])),
            _ if self.meta.len() == n * 4 => {
                Ok(self.meta.as_chunks::<4>().0.iter().map(|c| u32::from_le_bytes(*c)).collect())
            }
            _ => Err(WireError::Malformed("list of data checksums")),
        }
    }

    /// Compares the data with the sender's checksums and returns them.
    pub fn verify_data(&self) -> Result<Crcs, WireError> {
        let crcs = self.claimed_crcs()?;
        let mut rest: &[u8] = &self.data;
        for (n, want) in pieces(self.header.offset, self.data.len()).zip(&crcs) {
            let (piece, tail) = rest.split_at(n.min(rest.len()));
            if crc32c(piece) != *want {
                return Err(WireError::DataCrc);
            }
            rest = tail;
        }
        Ok(crcs)
    }
}
