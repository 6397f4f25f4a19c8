//! Identifiers and counters. Integers from 1 per kind, never used again (0 is "none").

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$m:meta])* $name:ident($t:ty)) => {
        $(#[$m])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $t);

        impl $name {
            /// Zero: "none" for an id, "before the first" for a counter.
            pub const ZERO: $name = $name(0);
            /// The raw integer.
            pub const fn get(self) -> $t {
                self.0
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}:{}", stringify!($name), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl From<$t> for $name {
            fn from(v: $t) -> Self {
                $name(v)
            }
        }
    };
}

id!(
    /// A host; one row of the cluster view.
    NodeId(u32)
);
id!(
    /// A storage data server.
    SdsId(u32)
);
id!(
    /// A data client.
    SdcId(u32)
);
id!(
    /// A device (file or block device) of an SDS.
    DeviceId(u32)
);
id!(
    /// A protection domain.
    DomainId(u32)
);
id!(
    /// A storage pool.
    PoolId(u32)
);
id!(
    /// A volume as users see it.
    VolumeId(u32)
);
id!(
    /// The address space behind a volume (and later its snapshots). Never used again.
    VtreeId(u64)
);
id!(
    /// A layer of a vTree: 0 is the base; snapshots and clones come later.
    Layer(u32)
);
id!(
    /// Number of a 1 MiB extent in a vTree.
    Extent(u32)
);
id!(
    /// Version of a placement group's configuration. Never goes back (rule R2).
    Epoch(u64)
);
id!(
    /// Position of a write in its placement group's one sequence (rule R5).
    Seq(u64)
);
id!(
    /// Issued by the MDM to each start of an SDS process (rule R1). Unique cluster-wide and growing.
    StartNo(u64)
);
id!(
    /// Issued by the MDM to each start of an SDC process (rule R19). Unique cluster-wide and growing.
    Instance(u64)
);
id!(
    /// Version of a volume's mapping set (rule R21).
    Generation(u64)
);
id!(
    /// Index in the MDM's command log (rule R3).
    ConfigIndex(u64)
);
id!(
    /// A request of one SDC instance, counted per instance and placement group (rule R19).
    RequestId(u64)
);

/// A placement group, cluster-wide: pool number in the high half, index inside the pool in the low.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PgId(pub u64);

impl PgId {
    /// Placement group `index` of `pool`.
    pub const fn new(pool: PoolId, index: u32) -> PgId {
        PgId(((pool.0 as u64) << 32) | index as u64)
    }
    /// The pool this group belongs to.
    pub const fn pool(self) -> PoolId {
        PoolId((self.0 >> 32) as u32)
    }
    /// Index inside the pool, `0..pg_count`.
    pub const fn index(self) -> u32 {
        self.0 as u32
    }
}
impl fmt::Debug for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pg{}.{}", self.pool().0, self.index())
    }
}
impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.pool().0, self.index())
    }
}

/// Where a record stands in a placement group's history: the epoch in which its sequence number was
/// given, then the number. Ordered; never used for two contents (rule R8).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
pub struct Version {
    pub epoch: Epoch,
    pub seq: Seq,
}

impl Version {
    /// Before everything.
    pub const ZERO: Version = Version { epoch: Epoch(0), seq: Seq(0) };
    /// A version from its two parts.
    pub const fn new(epoch: Epoch, seq: Seq) -> Version {
        Version { epoch, seq }
    }
}
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{})", self.epoch, self.seq)
    }
}

/// Which placement group an extent of a vTree belongs to: `hash(vtree, extent) mod pg_count`.
/// A fixed mixing function (splitmix64 finaliser), part of the on-wire contract: never change it.
pub fn pg_of(pool: PoolId, pg_count: u32, vtree: VtreeId, extent: Extent) -> PgId {
    let mut x = vtree.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (extent.0 as u64);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^= x >> 31;
    let n = pg_count.max(1) as u64;
    PgId::new(pool, (x % n) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_spread_evenly_over_placement_groups() {
        let mut n = [0u32; 64];
        for e in 0..64_000 {
            let pg = pg_of(PoolId(1), 64, VtreeId(7), Extent(e));
            n[pg.index() as usize] += 1;
        }
        assert!(n.iter().all(|&c| c > 800 && c < 1200), "{n:?}");
    }

    #[test]
    fn the_placement_hash_never_changes() {
        let pg = |v, e| pg_of(PoolId(1), 128, VtreeId(v), Extent(e)).index();
        assert_eq!([pg(1, 0), pg(1, 1), pg(2, 0), pg(9, 77)], [GOLD[0], GOLD[1], GOLD[2], GOLD[3]]);
    }
    const GOLD: [u32; 4] = [47, 32, 116, 80];

    #[test]
    fn a_pg_id_keeps_its_pool_and_index() {
        let pg = PgId::new(PoolId(3), 511);
        assert_eq!((pg.pool(), pg.index()), (PoolId(3), 511));
        assert_eq!(pg.to_string(), "3.511");
    }
}
