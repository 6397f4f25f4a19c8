//! What a data server says to the MDM about placement groups. Shared by the engine and the control session.

use crate::PgConfig;
use quarry_base::{DeviceId, Epoch, PgId, Seq, Version, VtreeId};
use serde::{Deserialize, Serialize};

/// What a device of an SDS holds of a placement group when the SDS registers (R11, R13).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PgHave {
    pub pg: PgId,
    /// The configuration it stored last, with its lineage of epochs.
    pub config: Option<PgConfig>,
    /// Newest durable record.
    pub last: Version,
    /// Commit point it knows.
    pub commit: Seq,
    /// Everything up to here is on the device (R12).
    pub complete_through: Version,
}

/// State of a placement group as its primary reports it, when it changed and with every heartbeat while not clean.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PgReport {
    pub pg: PgId,
    pub epoch: Epoch,
    pub device: DeviceId,
    /// It serves reads and writes at this epoch.
    pub active: bool,
    /// Newest record it has given a number to.
    #[serde(default)]
    pub last: Version,
    /// Bytes of user data in the group (one copy's worth).
    pub bytes: u64,
    /// Bytes a syncing member still lacks, and bytes sent to it so far.
    pub sync_left_bytes: u64,
    pub sync_done_bytes: u64,
}

/// A request for a configuration change; it names the epoch it builds on (R1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proposal {
    /// The syncing `device` has everything: make it in-sync (R15).
    Add { pg: PgId, epoch: Epoch, device: DeviceId },
    /// Drop the candidate or syncing `device` again (R15): it is no longer waited for.
    DropSyncing {
        pg: PgId,
        epoch: Epoch,
        device: DeviceId,
        reason: String,
        /// A 64 KiB block that holds it up, by its vTree and byte offset there: a page of it is damaged in every copy.
        #[serde(default)]
        damaged: Option<(VtreeId, u64)>,
        /// The device takes nothing more: it says that it is full or nearly so.
        #[serde(default)]
        no_room: bool,
    },
    /// A member does not answer the primary (R10, R27).
    MemberSilent { pg: PgId, epoch: Epoch, device: DeviceId, reason: String },
    /// This SDS is about to stop: hand its roles over (R18).
    HandOver,
}
