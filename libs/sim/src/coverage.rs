//! What a set of runs exercised, and what it has to: every message between processes, every transition of a
//! group, every kind of fault. A set over which one of them never happens proves less than it seems to.

use crate::client::Client;
use quarry_replica::EngineStats;
use quarry_wire::Op;
use std::collections::BTreeMap;

/// Counters by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    names: BTreeMap<String, u64>,
    frames: [u64; 64],
}

impl Default for Seen {
    fn default() -> Seen {
        Seen { names: BTreeMap::new(), frames: [0; 64] }
    }
}

impl Seen {
    pub fn count(&mut self, what: &str) {
        match self.names.get_mut(what) {
            Some(n) => *n += 1,
            None => {
                self.names.insert(what.to_string(), 1);
            }
        }
    }

    /// A frame was delivered.
    pub fn frame(&mut self, op: Op) {
        if let Some(n) = self.frames.get_mut(op as usize) {
            *n += 1;
        }
    }

    /// An engine ended: what it counted.
    pub fn engine(&mut self, stats: &EngineStats) {
        for (name, n) in stats.named().into_iter().filter(|(_, n)| *n > 0) {
            *self.names.entry(format!("engine {name}")).or_default() += n;
        }
    }

    /// A client's engine ended: what it counted.
    pub fn client(&mut self, c: &Client) {
        let s = c.engine.stats();
        let counted = [
            ("resent", s.resent),
            ("stale_epoch", s.stale_epoch),
            ("try_again", s.try_again),
            ("stale_mapping", s.stale_mapping),
            ("bad_checksum", s.bad_checksum),
            ("late_answers", s.late_answers),
            ("no_room", c.no_room),
            ("limit_pg_in_flight", s.limit_pg_in_flight),
            ("limit_id_window", s.limit_id_window),
            ("limit_volume", s.limit_volume),
            ("overlap_waits", s.overlap_waits),
            ("dials_failed", s.dials_failed),
        ];
        for (name, n) in counted.into_iter().filter(|(_, n)| *n > 0) {
            *self.names.entry(format!("sdc {name}")).or_default() += n;
        }
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Seen) {
        for (k, n) in &other.names {
            *self.names.entry(k.clone()).or_default() += n;
        }
        for (a, b) in self.frames.iter_mut().zip(&other.frames) {
            *a += b;
        }
    }

    /// How often, 0 if never.
    pub fn get(&self, name: &str) -> u64 {
        self.names.get(name).copied().unwrap_or(0)
    }

    /// Everything with its name.
    pub fn all(&self) -> BTreeMap<String, u64> {
        let mut all = self.names.clone();
        for op in MESSAGES.iter().chain(SOMETIMES) {
            all.insert(format!("message {op:?}"), self.frames[*op as usize]);
        }
        all
    }

    /// What has to happen and never did.
    pub fn missing(&self) -> Vec<String> {
        let all = self.all();
        required().into_iter().filter(|n| all.get(n).is_none_or(|n| *n == 0)).collect()
    }
}

/// The names of everything that has to happen in a set of runs.
pub fn required() -> Vec<String> {
    let messages = MESSAGES.iter().map(|op| format!("message {op:?}"));
    messages.chain(REQUIRED.iter().map(|n| n.to_string())).collect()
}

/// What may happen in a set of runs, and need not: on ordered streams that begin with the configuration hardly anybody
/// ever has to ask for it.
const SOMETIMES: &[Op] = &[Op::ConfigAsk];

/// Every other message between the processes of the data path.
const MESSAGES: &[Op] = &[
    Op::Hello,
    Op::GrantAsk,
    Op::GrantAnswer,
    Op::Ping,
    Op::Pong,
    Op::FetchBlock,
    Op::BlockData,
    Op::Read,
    Op::Map,
    Op::Write,
    Op::Zero,
    Op::Flush,
    Op::Reply,
    Op::ReadReply,
    Op::StreamOpen,
    Op::StreamPos,
    Op::StreamStart,
    Op::Replicate,
    Op::ReplAck,
    Op::Commit,
    Op::SyncCopy,
    Op::SyncDrop,
    Op::SyncIds,
    Op::SyncAsk,
    Op::SyncDone,
    Op::Confirm,
    Op::Confirmed,
    Op::ConfigPush,
    Op::GrantGiveUp,
];

/// Transitions, outcomes and faults.
const REQUIRED: &[&str] = &[
    "PrimaryStarted",
    "PrimaryActive",
    "MemberSilent",
    "StreamBroken",
    "SyncStarted",
    "SyncComplete",
    "Fenced",
    "PgDropped",
    "DeviceFailed",
    "handed over",
    "session resumed",
    "unmap confirmed",
    "late requests",
    "Add accepted",
    "MemberSilent accepted",
    "HandOver accepted",
    "mdm elect",
    "mdm sds_failed",
    "mdm device_failed",
    "mdm sweep",
    "mdm rebuild",
    "engine merges",
    "engine repeats",
    "engine stale_epoch",
    "engine try_again",
    "engine fenced",
    "engine flushes",
    "engine confirms",
    "engine lease_waits",
    "engine quiet_starts",
    "asked to stop as it began to lead",
    "engine resends",
    "engine sync_copies",
    "engine full",
    "engine credit_waits",
    "sdc LinkLost",
    "sdc Fenced",
    "sdc FellBack",
    "sdc resent",
    "sdc stale_epoch",
    "sdc try_again",
    "sdc stale_mapping",
    "sdc late_answers",
    "sdc overlap_waits",
    "sdc limit_pg_in_flight",
    "sdc limit_id_window",
    "sdc limit_volume",
    "sdc no_room",
    "client session",
    "unreachable reported",
    "Unreachable accepted",
    "Unreachable refused",
    "fault Kill",
    "fault PowerLoss",
    "fault CrashMany",
    "fault Pause",
    "fault Freeze",
    "fell back",
    "flush failed",
    "fault Partition",
    "fault OneWay",
    "fault LinkCut",
    "fault LinkStall",
    "fault SessionCut",
    "fault MdmRestart",
    "fault MdmStall",
    "fault MdmClock",
    "fault ClientCrash",
    "fault ClientTwice",
    "fault HandOver",
    "fault Wipe",
    "fault SlowDisk",
    "fault HungDisk",
    "fault FailingWrites",
    "fault FailingReads",
    "fault Fence",
    "fault Rebuild",
    "fault Remap",
    "fault Volume",
    "fault Depose",
    "fault Forsake",
    "mdm accept_stale",
    "mdm complete_stale",
    "went back",
    "volume created",
    "volume deleted",
];

/// The name of a note: the first word of its text.
pub fn note_name(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
    &text[..end]
}
