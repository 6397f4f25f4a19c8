//! What a daemon under a block device does so that memory reclaim cannot wait for itself.
//!
//! When memory is short the kernel writes dirty pages of `/dev/nbdN` to make room, and that write
//! goes through this process. If the process needs memory for it, and the kernel would wait for the
//! very same write to get it, the machine stands still. Hence: reclaim on behalf of this process may
//! not start I/O (`PR_SET_IO_FLUSHER`), its memory is not paged out (`mlockall`), and it is the last
//! to be killed for memory (`oom_score_adj`).
//!
//! Call [`protect`] first thing in `main`: the flusher state is a thread's and new threads inherit it.

use rustix::io::Errno;
use rustix::mm::{mlockall, MlockAllFlags};
use rustix::process::{configure_io_flusher_behavior, getrlimit, Resource};
use std::fs;

/// Among the last to be killed, yet not exempt: a leak must not take the host down.
const OOM_SCORE_ADJ: i32 = -900;
/// Bit of CAP_IPC_LOCK in the effective set.
const CAP_IPC_LOCK: u32 = 14;

/// One guard and what came of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Guard {
    pub name: &'static str,
    /// What is missing and what would help, in one line.
    pub result: Result<(), String>,
}

/// Sets every guard that can be set. None of them is needed to serve sockets.
pub fn protect() -> Vec<Guard> {
    vec![
        Guard { name: "io-flusher", result: io_flusher() },
        Guard { name: "memory-lock", result: lock_memory() },
        Guard { name: "oom-score", result: oom_score() },
    ]
}

/// Logs the guards that could not be set, one line each.
pub fn log(guards: &[Guard]) {
    for g in guards {
        if let Err(missing) = &g.result {
            tracing::warn!(guard = g.name, "{missing}");
        }
    }
}

/// Memory reclaim for this thread and those it starts does no I/O.
pub fn io_flusher() -> Result<(), String> {
    configure_io_flusher_behavior(true).map_err(|e| match e {
        Errno::PERM => "memory reclaim may wait for this daemon's own device: PR_SET_IO_FLUSHER \
                        needs CAP_SYS_RESOURCE (AmbientCapabilities= in the unit)"
            .into(),
        Errno::INVAL => "memory reclaim may wait for this daemon's own device: the kernel has no \
                         PR_SET_IO_FLUSHER (Linux 5.6 and later have)"
            .into(),
        e => {
            format!("memory reclaim may wait for this daemon's own device: PR_SET_IO_FLUSHER: {e}")
        }
    })
}

/// Keeps the process's memory resident, pages as they are first used.
pub fn lock_memory() -> Result<(), String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    if !unlimited && !has_capability(&status, CAP_IPC_LOCK) {
        // With a limit, locking what is mapped later turns into failing allocations.
        return Err("this daemon's memory can be paged out: mlockall needs CAP_IPC_LOCK, or \
                    LimitMEMLOCK=infinity in the unit"
            .into());
    }
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    mlockall(flags).map_err(|e| format!("this daemon's memory can be paged out: mlockall: {e}"))
}

/// Makes this process a late choice when the kernel kills for memory.
pub fn oom_score() -> Result<(), String> {
    let path = "/proc/self/oom_score_adj";
    let now = fs::read_to_string(path).ok().and_then(|s| s.trim().parse::<i32>().ok());
    if now.is_some_and(|n| n <= OOM_SCORE_ADJ) {
        return Ok(());
    }
    fs::write(path, OOM_SCORE_ADJ.to_string()).map_err(|e| {
        format!(
            "this daemon may be killed early when memory runs out: writing {path}: {e} (set \
             OOMScoreAdjust={OOM_SCORE_ADJ} in the unit)"
        )
    })
}

/// Whether the effective set in the text of `/proc/PID/status` has the capability.
fn has_capability(status: &str, bit: u32) -> bool {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let set = line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok());
    set.is_some_and(|s| s >> bit & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let s = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000004000\n";
        assert!(has_capability(s, 14) && !has_capability(s, 15));
        assert!(!has_capability("", 14));
        assert!(!has_capability("CapEff: rubbish", 14));
    }

    #[test]
    fn every_guard_is_set_or_says_in_one_line_what_is_missing() {
        for g in protect() {
            if let Err(e) = g.result {
                assert!(!e.contains('\n') && !e.contains("  ") && e.contains("daemon"), "{e}");
            }
        }
    }
}
