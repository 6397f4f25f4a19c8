//! Reads that the medium refuses. One bad place is mended from another copy and says nothing about the rest; a device that
//! goes on refusing loses what it holds, and is reported as unfit before it has lost a place whose other copy is away.
//!
//! Unfit is not failed: what can be read is served and writes are taken for as long as somebody counts on the device. The
//! MDM lets it go from every group that has another good copy.

use crate::error::StoreError;
use crate::store::Store;
use quarry_base::Nanos;
use std::time::Duration;

/// So many refused reads, as those that are forgotten go, make a device unfit until it is opened anew.
pub const UNFIT_READS: u32 = 32;
/// One refused read is forgotten in this time.
const FORGET: Duration = Duration::from_secs(60);

const EIO: i32 = 5;
const ENODATA: i32 = 61;
const EILSEQ: i32 = 84;

/// The medium does not give these bytes, or the disk's own protection says that they are wrong: EIO, ENODATA, EILSEQ.
pub fn is_medium_error(errno: i32) -> bool {
    matches!(errno, EIO | ENODATA | EILSEQ)
}

#[derive(Default)]
pub(crate) struct Medium {
    level: u32,
    /// Up to when refused reads have been forgotten.
    forgot: Nanos,
    unfit: bool,
    any: bool,
    /// Pages that could not be read when the device was opened.
    pub at_open: usize,
}

impl Medium {
    /// Has a read been refused since the device was opened?
    pub fn has_refused(&self) -> bool {
        self.any
    }

    /// A read was refused.
    pub fn refused(&mut self, now: Nanos) {
        self.any = true;
        let minutes = now.since(self.forgot).as_secs() / FORGET.as_secs();
        self.level = self.level.saturating_sub(u32::try_from(minutes).unwrap_or(u32::MAX));
        self.forgot = match self.level {
            0 => now,
            _ => self.forgot + FORGET * u32::try_from(minutes).unwrap_or(0),
        };
        self.level += 1;
        self.unfit |= self.level >= UNFIT_READS;
    }
}

impl Store {
    /// Pages that the medium refused when the device was opened: they counted as damaged.
    pub fn unreadable_at_open(&self) -> usize {
        self.medium.at_open
    }

    /// Why nobody should count on this device any more, if so: it has failed, or its medium goes on refusing reads. The
    /// second kind still serves what it can and takes writes.
    pub fn unfit(&self) -> Option<StoreError> {
        self.failed.clone().or(self.medium.unfit.then_some(StoreError::Unreadable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(reads: u32, every: Duration) -> bool {
        let mut m = Medium::default();
        let begin = Nanos(5_000_000_000_000);
        for i in 0..reads {
            m.refused(begin + every * i);
        }
        m.unfit
    }

    #[test]
    fn many_refused_reads_make_a_device_unfit_and_few_never() {
        assert!(!after(UNFIT_READS - 1, Duration::from_millis(1)));
        assert!(after(UNFIT_READS, Duration::from_millis(1)));
        assert!(after(2 * UNFIT_READS, Duration::from_secs(30)), "faster than they are forgotten");
        assert!(!after(2 * UNFIT_READS - 3, Duration::from_secs(30)));
        assert!(!after(10_000, Duration::from_secs(61)), "one a minute is forgotten in time");
    }
}
