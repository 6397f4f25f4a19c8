//! Names of counters in an SDS's heartbeats that both ends know.

use quarry_base::DeviceId;

/// What is told of the passes of a device's scrub that have ended since its server started.
pub const SCRUB_ENDED: [&str; 5] =
    ["passes", "bytes", "bad_pages", "bad_table_groups", "read_errors"];

/// Bytes of blocks that a device keeps for thick volumes and that are not written yet.
pub fn promised(device: DeviceId) -> String {
    format!("device.{device}.promised_bytes")
}

/// The counter of one of [`SCRUB_ENDED`].
pub fn scrub_ended(device: DeviceId, what: &str) -> String {
    format!("device.{device}.scrub_ended_{what}")
}
