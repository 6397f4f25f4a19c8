//! What a pool can hold, and what has been promised of it.

use super::{Pool, Provisioning, Reject, State};
use quarry_base::units::show_size;
use quarry_base::PoolId;

/// Capacity of a pool, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capacity {
    /// Of all devices that have not failed.
    pub raw: u64,
    /// One copy's worth: raw over copies.
    pub usable: u64,
    /// Kept from thick volumes so that a rebuild has room.
    pub reserve: u64,
    /// Promised in full.
    pub thick: u64,
    /// Promised altogether.
    pub provisioned: u64,
    /// Most that may be promised altogether.
    pub limit: u64,
}

impl Capacity {
    /// What another thick volume may take, with `used` bytes (one copy's worth) written. Which of them belong to
    /// thin volumes is not known: as many as these may hold count, so that no more is promised than can be kept.
    pub fn free_thick(&self, used: u64) -> u64 {
        let thin = used.min(self.provisioned.saturating_sub(self.thick));
        self.usable.saturating_sub(self.reserve).saturating_sub(self.thick).saturating_sub(thin)
    }
}

impl State {
    pub fn capacity(&self, pool: &Pool) -> Capacity {
        let raw =
            self.pool_devices(pool.id).filter(|d| d.failed.is_none()).map(|d| d.capacity_bytes);
        let raw: u64 = raw.sum();
        let usable = raw / pool.copies.max(1) as u64;
        let volumes = || self.volumes.values().filter(|v| v.pool == pool.id);
        let thick = volumes().filter(|v| v.provisioning == Provisioning::Thick);
        Capacity {
            raw,
            usable,
            reserve: usable / 100 * pool.reserve_percent as u64,
            thick: thick.map(|v| v.size_bytes).sum(),
            provisioned: volumes().map(|v| v.size_bytes).sum(),
            limit: usable.saturating_mul(pool.over_commit as u64),
        }
    }

    /// Refuses a promise of `more` bytes that the pool cannot keep.
    pub(crate) fn check_room(
        &self,
        pool: PoolId,
        more: u64,
        how: Provisioning,
        used_bytes: u64,
    ) -> Result<(), Reject> {
        let p = self.pools.get(&pool).ok_or_else(|| Reject::not_found("pool", pool))?;
        let c = self.capacity(p);
        let free = c.free_thick(used_bytes / u64::from(p.copies.max(1)));
        let facts = format!(
            "free {}, provisioned {}, limit {}",
            show_size(free),
            show_size(c.provisioned),
            show_size(c.limit)
        );
        if how == Provisioning::Thick && more > free {
            return Err(Reject::invalid(
                "no_space",
                format!("pool {} cannot promise {} in full: {facts}", p.name, show_size(more)),
                "use thin provisioning, a smaller size, or add devices to the pool",
            ));
        }
        if c.provisioned.saturating_add(more) > c.limit {
            return Err(Reject::invalid(
                "over_commit",
                format!(
                    "{} more is above the over-commit limit of pool {}: {facts}",
                    show_size(more),
                    p.name
                ),
                "use a smaller size, delete volumes, or add devices to the pool",
            ));
        }
        Ok(())
    }
}
