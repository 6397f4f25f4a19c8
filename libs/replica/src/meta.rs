//! What a device keeps durably for each placement group besides its records: `put_meta` of the store.
//!
//! Layout: one version byte, then the postcard encoding of [`PgMeta`], whose configuration is without `fell`. Where that
//! is not zero it follows, one varint; releases of before read on without it. Version 1 had no `line` in its configuration
//! and is read as if that were zero. Newer versions are refused.

use crate::history::Era;
use bytes::Bytes;
use quarry_base::{ConfigIndex, DeviceId, Epoch, PgId, Version};
use quarry_wire::{Member, PgConfig};
use serde::{Deserialize, Serialize};

/// Version of the encoding.
pub const META_VERSION: u8 = 2;

/// Durable state of a placement group on a device.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PgMeta {
    /// Newest configuration known (R1).
    pub config: Option<PgConfig>,
    /// Not in sync: everything up to here is on the device (R12).
    pub frozen: Option<Version>,
    /// Epochs and where they began (R8).
    pub history: Vec<Era>,
    /// Where the group last had all listed replicas (R12).
    pub all_through: Version,
}

/// Why a stored blob is not understood.
#[derive(Debug, PartialEq, Eq, Clone, Copy, thiserror::Error)]
pub enum MetaError {
    #[error("placement group meta data has version {0}, this program knows {META_VERSION}")]
    Version(u8),
    #[error("malformed placement group meta data")]
    Malformed,
}

impl PgMeta {
    /// The blob for `put_meta`.
    pub fn encode(&self) -> Bytes {
        let fell = self.config.as_ref().map_or(Epoch::ZERO, |c| c.fell);
        let start = vec![META_VERSION];
        let all = postcard::to_extend(self, start).and_then(|v| match fell {
            Epoch::ZERO => Ok(v),
            fell => postcard::to_extend(&fell, v),
        });
        // Plain integers into a growing vector: cannot fail.
        all.map_or_else(|_| Bytes::new(), Bytes::from)
    }

    /// Reads a blob.
    pub fn decode(blob: &[u8]) -> Result<PgMeta, MetaError> {
        match blob.split_first() {
            Some((&META_VERSION, rest)) => {
                let (mut meta, rest): (PgMeta, _) =
                    postcard::take_from_bytes(rest).map_err(|_| MetaError::Malformed)?;
                if !rest.is_empty() {
                    let fell = postcard::from_bytes(rest).map_err(|_| MetaError::Malformed)?;
                    meta.config.iter_mut().for_each(|c| c.fell = fell);
                }
                Ok(meta)
            }
            Some((1, rest)) => {
                let old: first::Meta =
                    postcard::from_bytes(rest).map_err(|_| MetaError::Malformed)?;
                Ok(old.into())
            }
            Some((&v, _)) => Err(MetaError::Version(v)),
            None => Err(MetaError::Malformed),
        }
    }

    /// Everything up to here is on `device`, whose newest durable record is `stable` (R12).
    pub fn complete_through(&self, device: DeviceId, stable: Version) -> Version {
        match &self.config {
            Some(c) if c.is_in_sync(device) => stable,
            _ => self.frozen.unwrap_or(Version::ZERO),
        }
    }
}

/// Version 1.
mod first {
    use super::*;

    #[derive(Deserialize)]
    struct Config {
        pg: PgId,
        epoch: Epoch,
        index: ConfigIndex,
        primary: Option<DeviceId>,
        in_sync: Vec<Member>,
        syncing: Vec<Member>,
        listed: Vec<DeviceId>,
        copies: u8,
        min_copies: u8,
    }

    #[derive(Deserialize)]
    pub(super) struct Meta {
        config: Option<Config>,
        frozen: Option<Version>,
        history: Vec<Era>,
        all_through: Version,
    }

    impl From<Meta> for PgMeta {
        fn from(m: Meta) -> PgMeta {
            let config = |c: Config| PgConfig {
                pg: c.pg,
                epoch: c.epoch,
                index: c.index,
                primary: c.primary,
                in_sync: c.in_sync,
                syncing: c.syncing,
                listed: c.listed,
                copies: c.copies,
                min_copies: c.min_copies,
                line: Epoch::ZERO,
                fell: Epoch::ZERO,
            };
            PgMeta {
                config: m.config.map(config),
                frozen: m.frozen,
                history: m.history,
                all_through: m.all_through,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_base::{PoolId, SdsId, Seq, StartNo};

    fn sample() -> PgMeta {
        let m =
            |d| Member { device: DeviceId(d), sds: SdsId(d + 1), start: StartNo(300 + d as u64) };
        PgMeta {
            config: Some(PgConfig {
                pg: PgId::new(PoolId(1), 2),
                epoch: Epoch(7),
                index: ConfigIndex(1000),
                primary: Some(DeviceId(1)),
                in_sync: vec![m(1)],
                syncing: vec![m(2)],
                listed: vec![DeviceId(1), DeviceId(2)],
                copies: 2,
                min_copies: 1,
                line: Epoch(6),
                fell: Epoch::ZERO,
            }),
            frozen: Some(Version::new(Epoch(6), Seq(500))),
            history: vec![Era { epoch: Epoch(6), base: Seq(400) }],
            all_through: Version::new(Epoch(5), Seq(399)),
        }
    }

    #[test]
    fn the_stored_form_never_changes() {
        let golden: &[u8] = &[
            2, 1, 130, 128, 128, 128, 16, 7, 232, 7, 1, 1, 1, 1, 2, 173, 2, 1, 2, 3, 174, 2, 2, 1,
            2, 2, 1, 6, 1, 6, 244, 3, 1, 6, 144, 3, 5, 143, 3,
        ];
        assert_eq!(&sample().encode()[..], golden);
        assert_eq!(PgMeta::decode(golden), Ok(sample()));
    }

    #[test]
    fn a_group_that_fell_back_is_stored_as_one_that_did() {
        let mut fell = sample();
        fell.config.iter_mut().for_each(|c| c.fell = Epoch(300));
        let mut golden = sample().encode().to_vec();
        golden.extend([172, 2]);
        assert_eq!(&fell.encode()[..], golden);
        assert_eq!(PgMeta::decode(&golden), Ok(fell));
        assert_eq!(PgMeta::decode(&golden[..golden.len() - 1]), Err(MetaError::Malformed));
        // As a release of before reads it.
        assert_eq!(postcard::from_bytes(&golden[1..]), Ok(sample()));
    }

    #[test]
    fn the_first_version_is_still_read() {
        let first: &[u8] = &[
            1, 1, 130, 128, 128, 128, 16, 7, 232, 7, 1, 1, 1, 1, 2, 173, 2, 1, 2, 3, 174, 2, 2, 1,
            2, 2, 1, 1, 6, 244, 3, 1, 6, 144, 3, 5, 143, 3,
        ];
        let mut want = sample();
        want.config.iter_mut().for_each(|c| c.line = Epoch::ZERO);
        assert_eq!(PgMeta::decode(first), Ok(want));
    }

    #[test]
    fn unknown_versions_and_damage_are_refused() {
        assert_eq!(PgMeta::decode(&[9, 0]), Err(MetaError::Version(9)));
        assert_eq!(PgMeta::decode(&[]), Err(MetaError::Malformed));
        let b = sample().encode();
        assert_eq!(PgMeta::decode(&b[..b.len() - 3]), Err(MetaError::Malformed));
    }

    #[test]
    fn naming_in_sync_is_the_truth_about_completeness() {
        let (m, stable) = (sample(), Version::new(Epoch(7), Seq(600)));
        assert_eq!(m.complete_through(DeviceId(1), stable), stable);
        assert_eq!(m.complete_through(DeviceId(2), stable), Version::new(Epoch(6), Seq(500)));
    }
}
