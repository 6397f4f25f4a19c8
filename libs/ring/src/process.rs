//! What a daemon asks of its process and threads at the start.

use rustix::mm::{mlockall, MlockAllFlags};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use rustix::thread::CapabilitySet;

/// Pins the calling thread to one core (0-based). Error: a sentence for the operator.
pub fn pin_current_thread(core: usize) -> Result<(), String> {
    if core >= rustix::thread::CpuSet::MAX_CPU {
        return Err(format!("core {core} does not exist"));
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|e| format!("cannot pin a thread to core {core}: {e} (is the core present and allowed by the cpuset?)"))
}

/// Locks all memory of the process, present and future, so that serving a block device never waits
/// for a page to come back from disk. Memory is locked once touched: what is only reserved
/// (thread stacks, the allocator's arenas) costs nothing. Error: a sentence that says what to permit.
pub fn lock_memory() -> Result<(), String> {
    let privileged = rustix::thread::capabilities(None)
        .is_ok_and(|c| c.effective.contains(CapabilitySet::IPC_LOCK));
    let limit = getrlimit(Resource::Memlock).current;
    if let (false, Some(bytes)) = (privileged, limit) {
        // It might succeed now; then allocations would fail once the limit is reached.
        return Err(refusal(&format!("the limit is {bytes} bytes")));
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
        .map_err(|e| refusal(&e.to_string()))
}

fn refusal(why: &str) -> String {
    format!(
        "cannot lock memory ({why}): give the process CAP_IPC_LOCK or LimitMEMLOCK=infinity; \
         without it a host short of memory may stall its own volumes"
    )
}

/// Raises the limit of open files to the hard limit and returns it (`u64::MAX`: none).
pub fn raise_nofile() -> Result<u64, String> {
    let now = getrlimit(Resource::Nofile);
    if now.current != now.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum })
            .map_err(|e| {
                format!("cannot raise the limit of open files to {:?}: {e}", now.maximum)
            })?;
    }
    Ok(now.maximum.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned_to_the_core_asked_for_and_a_missing_core_is_named() {
        std::thread::spawn(|| {
            let allowed = rustix::thread::sched_getaffinity(None).unwrap();
            let core = (0..1024).find(|&c| allowed.is_set(c)).unwrap();
            pin_current_thread(core).unwrap();
            let set = rustix::thread::sched_getaffinity(None).unwrap();
            assert!(set.is_set(core) && set.count() == 1);
            assert!(pin_current_thread(1 << 20).unwrap_err().contains("1048576"));
            assert!(pin_current_thread(1023).unwrap_err().contains("1023"));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_file_limit_is_raised_to_the_hard_limit() {
        let hard = raise_nofile().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), hard);
    }
}
