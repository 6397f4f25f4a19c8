//! Bytes of a device's log that records without a commit hold there, of the groups that this device leads (R24).
//!
//! What is not committed cannot leave the log. One group holds its window at most; many groups that cannot commit (a server
//! is dead and the MDM, which would take it out, is away too) would fill the log together, and then groups that nothing is
//! wrong with get no number either. So a group that makes no progress gets no number while all of them together hold more
//! than a quarter of the log. One that commits is never held up: what it has in the log is gone a moment later.

/// A device's account, in bytes.
#[derive(Default)]
pub(crate) struct Pinned {
    /// By group.
    by: Vec<u64>,
    sum: u64,
}

impl Pinned {
    /// What a group that is led here has in the log without a commit.
    pub fn set(&mut self, group: usize, bytes: u64) {
        if bytes == 0 && self.by.len() <= group {
            return;
        }
        if self.by.len() <= group {
            self.by.resize(group + 1, 0);
        }
        if let Some(kept) = self.by.get_mut(group) {
            self.sum = self.sum + bytes - std::mem::replace(kept, bytes);
        }
    }

    /// Would `more` bytes be beyond what groups that do not commit may hold of a log of `log_bytes`?
    pub fn is_over(&self, more: u64, log_bytes: u64) -> bool {
        self.sum + more > log_bytes / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_groups_hold_is_counted_and_given_back() {
        let mut p = Pinned::default();
        p.set(7, 0);
        p.set(3, 60);
        p.set(1, 40);
        assert!(!p.is_over(0, 400) && p.is_over(1, 400));
        p.set(3, 10);
        assert!(!p.is_over(50, 400) && p.is_over(51, 400));
        p.set(1, 0);
        p.set(3, 0);
        assert!(!p.is_over(100, 400));
    }
}
