//! Counters of the engine, since it was made, for metrics.

/// Counters; all only grow.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct EngineStats {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub zeroes: u64,
    /// Writes that needed partial pages merged (R22).
    pub merges: u64,
    /// Writes and zeroes answered Ok.
    pub acks: u64,
    /// FLUSH and FUA that asked for syncs (`ack = cached`).
    pub flushes: u64,
    /// Rounds of questions before reads (`reads = confirm`).
    pub confirms: u64,
    /// Repeated requests that were recognised (R19).
    pub repeats: u64,
    pub stale_epoch: u64,
    pub try_again: u64,
    /// Requests refused for their instance, mapping or id.
    pub fenced: u64,
    pub bad_checksums: u64,
    /// Answered `Full`.
    pub full: u64,
    /// Reads that waited for a lease after their data was there.
    pub lease_waits: u64,
    /// Roles that were active within the first lease time of this process, on the word of the primary before (R18).
    pub quiet_starts: u64,
    /// Times a request waited because the window was full.
    pub window_waits: u64,
    /// Times a record waited for log space.
    pub log_waits: u64,
    /// Times a request of a group that cannot commit waited because such groups hold their part of the log.
    pub stuck_waits: u64,
    /// Times a request waited for a member's promise (R24).
    pub credit_waits: u64,
    /// Records that took more of a member in sync than it had promised: none, ever.
    pub overdrawn: u64,
    pub records_sent: u64,
    /// Records sent again from the tail on a new stream.
    pub resends: u64,
    pub records_received: u64,
    pub streams_opened: u64,
    pub streams_broken: u64,
    pub configs: u64,
    pub grants_asked: u64,
    pub grants_given: u64,
    pub sync_copies: u64,
    pub sync_bytes: u64,
    pub cut_offs: u64,
    pub corrupt_pages: u64,
    /// Blocks in which a read or the scrub found a damaged page.
    pub corrupt_blocks: u64,
    pub repairs: u64,
    pub no_good_copy: u64,
}

impl EngineStats {
    /// Every counter with its name.
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("read_ops", self.reads),
            ("read_bytes", self.read_bytes),
            ("write_ops", self.writes),
            ("write_bytes", self.write_bytes),
            ("zero_ops", self.zeroes),
            ("merges", self.merges),
            ("acks", self.acks),
            ("flushes", self.flushes),
            ("confirms", self.confirms),
            ("repeats", self.repeats),
            ("stale_epoch", self.stale_epoch),
            ("try_again", self.try_again),
            ("fenced", self.fenced),
            ("bad_checksums", self.bad_checksums),
            ("full", self.full),
            ("lease_waits", self.lease_waits),
            ("quiet_starts", self.quiet_starts),
            ("window_waits", self.window_waits),
            ("log_waits", self.log_waits),
            ("stuck_waits", self.stuck_waits),
            ("credit_waits", self.credit_waits),
            ("overdrawn", self.overdrawn),
            ("records_sent", self.records_sent),
            ("resends", self.resends),
            ("records_received", self.records_received),
            ("streams_opened", self.streams_opened),
            ("streams_broken", self.streams_broken),
            ("configs", self.configs),
            ("grants_asked", self.grants_asked),
            ("grants_given", self.grants_given),
            ("sync_copies", self.sync_copies),
            ("sync_bytes", self.sync_bytes),
            ("cut_offs", self.cut_offs),
            ("corrupt_pages", self.corrupt_pages),
            ("corrupt_blocks", self.corrupt_blocks),
            ("repairs", self.repairs),
            ("no_good_copy", self.no_good_copy),
        ]
    }
}
