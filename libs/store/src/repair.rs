//! Repair: content of exactly a block's version goes once more to where the block lies.
//!
//! A page is taken only if it matches the check that the block table has of it. Where that is lost with a damaged CRC
//! page the version has to do: two copies of one version hold the same.

use crate::batch::{Body, CopyKind};
use crate::error::{AppendError, RepairError};
use crate::index::Sealed;
use crate::layout::NO_SLOT;
use crate::seal::LOST;
use crate::store::Store;
use crate::types::{AppendId, BlockCopy, BlockKey};
use quarry_base::{PgId, Version, PAGE};

impl Store {
    /// Newest applied version of a block that has content, on its device or in its log. A trimmed one has none.
    pub fn block_version(&self, pg: PgId, key: BlockKey) -> Option<Version> {
        let b = self.pg(pg).and_then(|p| p.block(&self.sp.slots, key))?;
        (b.content() != 0).then(|| b.newest())
    }

    /// Replaces what is on disk of a block by the same content again. Refused unless the copy is of
    /// exactly the block's version and content, in the parts that it speaks about.
    pub fn repair(&mut self, pg: PgId, copy: BlockCopy) -> Result<AppendId, RepairError> {
        self.repairable(pg, copy.key)?;
        let b = self
            .pg(pg)
            .and_then(|p| p.block(&self.sp.slots, copy.key))
            .ok_or(RepairError::NoBlock)?;
        if b.newest() != copy.version {
            return Err(RepairError::OtherVersion);
        }
        let seal = self.sp.key.block(pg, copy.key);
        let checks = seal
            .checks(copy.valid, &copy.data, &copy.crcs)
            .filter(|_| copy.valid == b.content() & copy.part && copy.valid != 0)
            .ok_or(RepairError::OtherContent)?;
        let pages = (0..16).filter(|p| copy.valid >> p & 1 == 1);
        for (p, check) in pages.zip(&checks) {
            let want = match b.over_page(p) {
                Some(o) => Some(o.check),
                None => self.sp.slots.check(b.slot, p),
            };
            // Where the check is lost with its page of the table, the version has to do.
            if want != Some(*check) && want != Some(LOST) {
                return Err(RepairError::OtherContent);
            }
        }
        self.room(copy.data.len() as u64 + 2 * PAGE as u64, true)?;
        let idx = self.pg_or_new(pg);
        let copy = Box::new(Sealed { copy, checks, unlogged: false });
        Ok(self.push(idx, pg, Body::Copy { copy, slot: NO_SLOT, how: CopyKind::Repair }, true))
    }

    /// Are the checks here that a repair of this block is compared with? They were when its damage was found.
    fn repairable(&mut self, pg: PgId, key: BlockKey) -> Result<(), RepairError> {
        let here = self
            .pg(pg)
            .and_then(|p| p.block(&self.sp.slots, key))
            .map(|b| (b.slot, b.valid & !b.over_mask()));
        match here {
            Some((slot, pages)) if slot != NO_SLOT && !self.sp.slots.need(slot, pages) => {
                // Told when there is room: by then they are.
                self.log.refused = true;
                Err(RepairError::Append(AppendError::LogFull))
            }
            _ => Ok(()),
        }
    }
}
