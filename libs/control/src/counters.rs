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

/// What writes took in the last ten seconds that a server led on one of its devices: how many were answered; mean microseconds
/// from the arrival to the answer, and to their place in the order; of how many the last figure is: from there until they were
/// durable on the device. Left out where there were none.
pub const LED_TIMES: [&str; 5] = ["count", "mean_us", "admit_us", "own_count", "own_us"];

/// Begin of the names of [`led_times`].
pub const LED_PREFIX: &str = "led_times.";

/// The counter of one of [`LED_TIMES`].
pub fn led_times(device: DeviceId, what: &str) -> String {
    format!("{LED_PREFIX}{device}.{what}")
}

/// Begin of the names of [`copy_times`].
pub const COPY_TIMES: &str = "copy_times.";

/// The same of a member's device: mean microseconds from the place in the order until it had reported them durable, and their
/// number.
pub fn copy_times(member: DeviceId) -> [String; 2] {
    [format!("{COPY_TIMES}{member}.mean_us"), format!("{COPY_TIMES}{member}.count")]
}

/// The counter of members' devices that are not told of, as they are quicker than those that are.
pub const COPIES_LEFT_OUT: &str = "copies_left_out";

/// The counter of one of [`SCRUB_ENDED`].
pub fn scrub_ended(device: DeviceId, what: &str) -> String {
    format!("device.{device}.scrub_ended_{what}")
}
