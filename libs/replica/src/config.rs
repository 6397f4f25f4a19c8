//! Limits and times of the engine, each named, with its default.

use crate::planted::Bug;
use quarry_base::Nanos;
use std::time::Duration;

/// What an [`crate::Engine`] is made of.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Cluster id, 32 hexadecimal digits; peers of another cluster are refused.
    pub cluster: String,
    pub limits: Limits,
}

/// Every limit and time of the engine.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long an answered lease question lets the asker serve reads (R17).
    pub lease: Duration,
    /// How often lease questions are asked.
    pub ask_every: Duration,
    /// Uncommitted bytes of application writes in a placement group; more wait.
    pub window_bytes: usize,
    /// Uncommitted records of application writes in a placement group; more wait.
    pub window_records: usize,
    /// Requests of a placement group that wait for a sequence number; more get `TryAgain`.
    pub waiting_requests: usize,
    /// A group whose commit point has not moved for this long while records wait for it gets no more numbers when such groups
    /// hold a quarter of the log. Many groups fill a log well within a second.
    pub stuck_after: Duration,
    /// Log bytes of a device that application writes leave to replicated records of others.
    pub log_reserve_bytes: u64,
    /// A commit point that no record carries is sent at the next multiple of this time, for all groups alike.
    pub commit_beat: Duration,
    /// An in-sync member that reports nothing for this long while something waits for it is reported silent.
    pub silent_after: Duration,
    /// A member that has not synced for this long what a client's FLUSH waits for is reported silent.
    pub sync_patience: Duration,
    /// A member that neither promises room nor says that it is full for this long is reported silent.
    pub no_room_after: Duration,
    /// An in-sync member without a connection for this long is reported silent.
    pub away_after: Duration,
    /// A connection on which a member stays silent this long is closed and opened anew.
    pub reconnect_after: Duration,
    /// A new connection has to be introduced, from either side, within this time.
    pub hello_within: Duration,
    /// Between two attempts to connect to a peer.
    pub redial_every: Duration,
    /// Between two proposals of the same content.
    pub propose_every: Duration,
    /// Blocks of a sync read or unacknowledged at a time.
    pub sync_copies: usize,
    /// A copy is sent only while the member's unacknowledged stream is below this.
    pub sync_stream_bytes: usize,
    /// A syncing member whose unacknowledged stream grows above this is cut off.
    pub cut_off_bytes: usize,
    /// A sync without progress for this long is given up (`DropSyncing`).
    pub sync_stall: Duration,
    /// Frames a member holds back while its log is full; more end the stream.
    pub stalled_frames: usize,
    /// Epochs kept in the history at least, and at most.
    pub history_keep: usize,
    pub history_max: usize,
    /// Configurations in one lease answer; more: no grant (R17).
    pub grant_list: usize,
    /// How long the answer of one member to a repair question is waited for.
    pub fetch_timeout: Duration,
    /// Attempts to read a range again after repairs before the client is told to try again.
    pub repair_rounds: u8,
    /// Connections at a time; more are closed at once.
    pub links: usize,
    /// While every listed device is in sync, `all_through` follows the commit point every so many records.
    pub all_through_every: u64,
    /// The rule that is broken on purpose.
    #[cfg(feature = "planted")]
    pub bug: Option<Bug>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            lease: Duration::from_secs(1),
            ask_every: Duration::from_millis(200),
            window_bytes: 2 << 20,
            window_records: 256,
            waiting_requests: 4096,
            stuck_after: Duration::from_millis(200),
            log_reserve_bytes: 4 << 20,
            commit_beat: Duration::from_millis(10),
            silent_after: Duration::from_secs(1),
            sync_patience: Duration::from_secs(5),
            no_room_after: Duration::from_secs(5),
            away_after: Duration::from_millis(500),
            reconnect_after: Duration::from_secs(3),
            hello_within: Duration::from_secs(5),
            redial_every: Duration::from_millis(100),
            propose_every: Duration::from_secs(1),
            sync_copies: 16,
            sync_stream_bytes: 4 << 20,
            cut_off_bytes: 16 << 20,
            sync_stall: Duration::from_secs(5),
            stalled_frames: 4096,
            history_keep: 64,
            history_max: 1024,
            grant_list: 4096,
            fetch_timeout: Duration::from_secs(1),
            repair_rounds: 3,
            links: 16_384,
            all_through_every: 1024,
            #[cfg(feature = "planted")]
            bug: None,
        }
    }
}

impl Limits {
    /// Is this rule broken on purpose? Never, but in the proof that the simulator notices.
    #[cfg(feature = "planted")]
    pub(crate) fn planted(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
    /// Is this rule broken on purpose? Never, but in the proof that the simulator notices.
    #[cfg(not(feature = "planted"))]
    pub(crate) const fn planted(&self, _: Bug) -> bool {
        false
    }
    /// The beat after `at` at which commit points are told.
    pub fn beat_after(&self, at: Nanos) -> Nanos {
        let beat = u64::try_from(self.commit_beat.as_nanos()).unwrap_or(u64::MAX).max(1);
        Nanos((at.0 / beat).saturating_add(1).saturating_mul(beat))
    }
    /// The lease as its asker counts it: 1 % less, for clocks that run apart.
    pub fn lease_asked(&self) -> Duration {
        self.lease - self.lease / 100
    }
    /// The lease as its granter counts it: 1 % more.
    pub fn lease_granted(&self) -> Duration {
        self.lease + self.lease / 100
    }
}
