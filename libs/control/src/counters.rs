//! Names of counters in an SDS's heartbeats that both ends know.

use quarry_base::DeviceId;

/// What is told of the passes of a device's scrub that have ended since its server started.
pub const SCRUB_ENDED: [&str; 5] =
    ["passes", "bytes", "bad_pages", "bad_table_groups", "read_errors"];

/// Bytes of blocks that a device keeps for thick volumes and that are not written yet.
pub fn promised(device: DeviceId) -> String {
    format!("device.{device}.promised_bytes")
}

/// The counter of the time for which a device has had operations under way and none of them ended, milliseconds; 0: it moves.
pub fn stalled(device: DeviceId) -> String {
    format!("device.{device}.stalled_ms")
}

/// The counters of a device's writes and syncs in the last seconds: their median time in microseconds, and how many they were.
/// Left out where there were none.
pub fn disk_times(device: DeviceId) -> [String; 2] {
    [format!("device.{device}.write_median_us"), format!("device.{device}.write_recent_ops")]
}

/// The counter of one of [`SCRUB_ENDED`].
pub fn scrub_ended(device: DeviceId, what: &str) -> String {
    format!("device.{device}.scrub_ended_{what}")
}
