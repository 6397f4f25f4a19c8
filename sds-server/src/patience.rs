//! What a killed copy leaves behind for a moment.
//!
//! The kernel ends the io_uring of a killed process a little after the process itself is gone; until
//! then its listening sockets answer and its devices are locked. Whoever starts a copy at once waits.

use quarry_ring::{now_boottime, RingError};
use std::path::Path;
use std::time::Duration;

/// How long a former copy may take to let go.
const LET_GO: Duration = Duration::from_secs(3);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Does `f` until it works, fails for another reason than a former copy, or that takes too long.
pub fn patiently<T>(mut f: impl FnMut() -> Result<T, RingError>) -> Result<T, RingError> {
    let until = now_boottime() + LET_GO;
    loop {
        match f() {
            Err(e) if may_pass(&e) && now_boottime() < until => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// Whether it may be the rest of a process that is gone. A lock whose holder lives is not.
fn may_pass(e: &RingError) -> bool {
    match e {
        RingError::AddressInUse { .. } => true,
        RingError::Locked { holder, .. } => !holder_lives(holder),
        _ => false,
    }
}

fn holder_lives(holder: &str) -> bool {
    let pid = holder.strip_prefix("process ").and_then(|p| p.parse::<u32>().ok());
    pid.is_some_and(|p| Path::new("/proc").join(p.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_dead_process_left_is_waited_for() {
        let locked = |holder: String| RingError::Locked { path: "/x".into(), holder };
        assert!(!may_pass(&locked(format!("process {}", std::process::id()))));
        assert!(may_pass(&locked("process 4294967295".into())));
        assert!(may_pass(&RingError::AddressInUse { address: "x".into() }));
        assert!(!may_pass(&RingError::NotADevice { path: "/x".into() }));
    }

    #[test]
    fn it_is_tried_until_it_works() {
        let mut left = 3;
        let done = patiently(|| match left {
            0 => Ok(7),
            _ => {
                left -= 1;
                Err(RingError::AddressInUse { address: "x".into() })
            }
        });
        assert!(matches!(done, Ok(7)));
    }
}
