//! Names of counters in an SDS's heartbeats that both ends know.

use quarry_base::{DeviceId, SdsId};

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

/// What writes took in the last ten seconds at a server, as their primary: how many were answered; mean microseconds from the
/// arrival to the answer, to their place in the order, and from there until they were durable on the primary itself. Left out
/// where there were none.
pub const WRITE_TIMES: [&str; 4] =
    ["write_times.count", "write_times.mean_us", "write_times.admit_us", "write_times.own_us"];

/// The same of a member: mean microseconds from the place in the order until it had reported them durable, and their number.
pub fn copy_times(member: SdsId) -> [String; 2] {
    [format!("copy_times.{member}.mean_us"), format!("copy_times.{member}.count")]
}

/// The counter of one of [`SCRUB_ENDED`].
pub fn scrub_ended(device: DeviceId, what: &str) -> String {
    format!("device.{device}.scrub_ended_{what}")
}
