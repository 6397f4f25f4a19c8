//! Meta sections of the frames between data servers: postcard, one struct a message.

use crate::history::Era;
use bytes::Bytes;
use quarry_base::{Epoch, Extent, Layer, Version, VtreeId};
use quarry_store::{BlockCopy, BlockKey};
use quarry_wire::{Frame, Header, PgConfig};
use serde::{de::DeserializeOwned, Deserialize, Serialize};

/// StreamPos: where a member stands. `header.version`: newest appended record; `header.commit`.
#[derive(Serialize, Deserialize, Debug, PartialEq)]
pub(crate) struct StreamPos {
    pub complete_through: Version,
    /// The member's own history, up to its newest record.
    pub history: Vec<Era>,
}

/// StreamStart: `header.version.seq` is the first number of the stream.
#[derive(Serialize, Deserialize, Debug, PartialEq)]
pub(crate) struct StreamStart {
    /// Everything from here on is dropped first.
    pub truncate: u64,
    /// Syncing member: everything up to here counts as complete at most.
    pub frozen: Version,
    pub history: Vec<Era>,
    pub all_through: Version,
}

/// GrantAnswer: placement groups that the grant does not cover (R17). Where one of them ever fell back, the epochs of that
/// (`fell`, in the order of the list) follow, which earlier releases do not read.
pub(crate) fn not_covered_out(list: &[PgConfig]) -> Bytes {
    let fell: Vec<Epoch> = list.iter().map(|c| c.fell).collect();
    let mut out = encode(&list).to_vec();
    if fell.iter().any(|e| *e != Epoch::ZERO) {
        out.extend_from_slice(&encode(&fell));
    }
    out.into()
}

/// Reads [`not_covered_out`], of earlier releases too.
pub(crate) fn not_covered_in(b: &[u8]) -> Option<Vec<PgConfig>> {
    let (mut list, rest): (Vec<PgConfig>, _) = postcard::take_from_bytes(b).ok()?;
    if !rest.is_empty() {
        let fell: Vec<Epoch> = decode(rest)?;
        list.iter_mut().zip(fell).for_each(|(c, fell)| c.fell = fell);
    }
    Some(list)
}

/// SyncDrop: forget the blocks of `[from, to)` that are not in `keep`.
#[derive(Serialize, Deserialize, Debug, PartialEq)]
pub(crate) struct SyncDrop {
    pub from: Key,
    pub to: Key,
    pub keep: Vec<Key>,
}

/// A block key on the wire.
pub(crate) type Key = (u64, u32, u32, u8);

pub(crate) fn key_out(k: BlockKey) -> Key {
    (k.vtree.0, k.layer.0, k.extent.0, k.block)
}

pub(crate) fn key_in(k: Key) -> BlockKey {
    BlockKey { vtree: VtreeId(k.0), layer: Layer(k.1), extent: Extent(k.2), block: k.3 }
}

pub(crate) fn encode<T: Serialize>(v: &T) -> Bytes {
    // Plain structs into a growing vector: cannot fail. An empty section would be refused by the peer.
    postcard::to_stdvec(v).map_or_else(|_| Bytes::new(), Bytes::from)
}

pub(crate) fn decode<T: DeserializeOwned>(b: &[u8]) -> Option<T> {
    postcard::from_bytes(b).ok()
}

/// A block copy as a frame (SyncCopy, BlockData): masks in `length`, valid low, dirty high; the parts that it
/// speaks about in `generation`.
pub(crate) fn copy_frame(mut h: Header, c: BlockCopy) -> Frame {
    h.version = c.version;
    (h.vtree, h.layer, h.extent, h.offset) =
        (c.key.vtree, c.key.layer, c.key.extent, c.key.offset());
    h.length = u32::from(c.valid) | u32::from(c.dirty) << 16;
    h.generation.0 = u64::from(c.part);
    Frame::with_data(h, c.data, &c.crcs)
}

/// Reads [`copy_frame`]; its data is compared with its checksums.
pub(crate) fn frame_copy(f: &Frame) -> Option<BlockCopy> {
    let h = &f.header;
    let (valid, dirty) = (h.length as u16, (h.length >> 16) as u16);
    let pages = valid.count_ones() as usize;
    let part = u16::try_from(h.generation.0).ok()?;
    if valid & !part != 0
        || h.offset >= quarry_base::EXTENT
        || f.data.len() != pages * quarry_base::PAGE
    {
        return None;
    }
    let crcs = f.verify_data().ok()?.into_iter().collect();
    let key = BlockKey::at(h.vtree, h.layer, h.extent, h.offset);
    Some(BlockCopy { key, version: h.version, part, valid, dirty, crcs, data: f.data.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_base::{ConfigIndex, DeviceId, PgId, PoolId, Seq};

    #[test]
    fn messages_between_servers_keep_their_form() {
        let v = |e, s| Version::new(Epoch(e), Seq(s));
        let pos = StreamPos {
            complete_through: v(3, 300),
            history: vec![Era { epoch: Epoch(3), base: Seq(1) }],
        };
        assert_eq!(&encode(&pos)[..], [3, 172, 2, 1, 3, 1]);
        let start =
            StreamStart { truncate: 301, frozen: v(2, 5), history: vec![], all_through: v(1, 1) };
        assert_eq!(&encode(&start)[..], [173, 2, 2, 5, 0, 1, 1]);
        let drop = SyncDrop { from: (1, 0, 2, 3), to: (9, 0, 0, 0), keep: vec![(1, 0, 2, 3)] };
        assert_eq!(&encode(&drop)[..], [1, 0, 2, 3, 9, 0, 0, 0, 1, 1, 0, 2, 3]);
        assert_eq!(decode::<SyncDrop>(&encode(&drop)), Some(drop));
        assert_eq!(decode::<StreamPos>(&[3]), None);
    }

    #[test]
    fn groups_that_are_not_covered_say_when_they_fell_back() {
        let mut c = PgConfig {
            pg: PgId::new(PoolId(1), 2),
            epoch: Epoch(7),
            index: ConfigIndex(9),
            primary: Some(DeviceId(1)),
            in_sync: vec![],
            syncing: vec![],
            listed: vec![DeviceId(1)],
            copies: 2,
            min_copies: 1,
            line: Epoch::ZERO,
            fell: Epoch::ZERO,
        };
        let before: &[u8] = &[1, 130, 128, 128, 128, 16, 7, 9, 1, 1, 0, 0, 1, 1, 2, 1, 0];
        assert_eq!(&not_covered_out(std::slice::from_ref(&c))[..], before);
        assert_eq!(not_covered_in(before), Some(vec![c.clone()]));
        c.fell = Epoch(6);
        let with = not_covered_out(std::slice::from_ref(&c));
        assert_eq!((&with[..before.len()], &with[before.len()..]), (before, &[1, 6][..]));
        assert_eq!(not_covered_in(&with), Some(vec![c]));
        assert_eq!(not_covered_in(&with[..with.len() - 1]), None);
        assert_eq!(not_covered_in(&encode(&Vec::<PgConfig>::new())), Some(vec![]));
    }
}
