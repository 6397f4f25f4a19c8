//! Finding out what this kernel's io_uring offers, and refusing clearly what will not do.

use crate::{RingConfig, RingError};
use io_uring::{opcode, IoUring};
use std::io;

/// Oldest kernel that will do.
const OLDEST: (u32, u32) = (5, 15);

/// What was found when the ring was set up. Displays in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Kernel release as `uname -r` tells it.
    pub kernel: String,
    /// Setup flags in use.
    pub flags: Vec<&'static str>,
    /// Submission queue entries.
    pub sq_entries: u32,
    /// Completion queue entries.
    pub cq_entries: u32,
}

impl std::fmt::Display for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flags = if self.flags.is_empty() { "none".to_string() } else { self.flags.join("|") };
        write!(
            f,
            "io_uring on Linux {}: flags {}, {} submission and {} completion entries",
            self.kernel, flags, self.sq_entries, self.cq_entries
        )
    }
}

/// Flag sets tried, best first.
pub(crate) const STEPS: [&[&str]; 4] = [
    &["SINGLE_ISSUER", "DEFER_TASKRUN"],
    &["SINGLE_ISSUER", "COOP_TASKRUN"],
    &["COOP_TASKRUN"],
    &[],
];

/// Threads of the kernel for what cannot be done without waiting (each sync, and whatever a full device makes wait),
/// started as they are needed. The default, four a processor for all devices of a ring, is used up by one device that
/// hangs, and no other could sync then.
const IO_WORKERS: u32 = 1024;

/// Major and minor of a kernel release such as `6.1.0-13-amd64`.
fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn check_kernel(release: &str) -> Result<(), RingError> {
    match version_of(release) {
        Some(v) if v < OLDEST => Err(RingError::KernelTooOld { found: release.to_string() }),
        // An unreadable release is not refused: the operations are probed anyway.
        _ => Ok(()),
    }
}

fn setup_error(source: io::Error) -> RingError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => RingError::Blocked { source },
        Some(libc::ENOSYS) => RingError::Missing { source },
        Some(libc::ENOMEM) => RingError::NoMemory { source },
        _ => RingError::Setup { source },
    }
}

fn build(cfg: &RingConfig, flags: &[&str]) -> io::Result<IoUring> {
    let entries = cfg.entries.clamp(8, 32_768);
    // Room for every file operation twice (a linked pair) and some for the network, so that the
    // kernel's overflow list stays the exception.
    let cq = (cfg.max_inflight.clamp(64, 32_768) as u32 * 2).max(entries * 2).next_power_of_two();
    let mut b = IoUring::builder();
    b.setup_cqsize(cq).setup_clamp().dontfork();
    for f in flags {
        match *f {
            "SINGLE_ISSUER" => b.setup_single_issuer(),
            "DEFER_TASKRUN" => b.setup_defer_taskrun(),
            _ => b.setup_coop_taskrun(),
        };
    }
    b.build(entries)
}

fn check_operations(ring: &IoUring) -> Result<(), RingError> {
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|source| RingError::Setup { source })?;
    let needed = [
        ("READ", opcode::Read::CODE),
        ("WRITE", opcode::Write::CODE),
        ("WRITEV", opcode::Writev::CODE),
        ("FSYNC", opcode::Fsync::CODE),
        ("FALLOCATE", opcode::Fallocate::CODE),
        ("ACCEPT", opcode::Accept::CODE),
        ("CONNECT", opcode::Connect::CODE),
        ("RECV", opcode::Recv::CODE),
        ("SEND", opcode::Send::CODE),
        ("SENDMSG", opcode::SendMsg::CODE),
        ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ];
    match needed.iter().find(|(_, code)| !probe.is_supported(*code)) {
        Some((op, _)) => Err(RingError::OpMissing { op }),
        None => Ok(()),
    }
}

/// Sets up a ring with the best flags this kernel takes, from step `first` of [`STEPS`] on.
pub(crate) fn open_ring(cfg: &RingConfig, first: usize) -> Result<(IoUring, Probe), RingError> {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    check_kernel(&kernel)?;
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for flags in STEPS.iter().skip(first) {
        match build(cfg, flags) {
            Ok(ring) => {
                check_operations(&ring)?;
                let p = ring.params();
                let (sq_entries, cq_entries) = (p.sq_entries(), p.cq_entries());
                let probe = Probe { kernel, flags: flags.to_vec(), sq_entries, cq_entries };
                ring.submitter()
                    .register_iowq_max_workers(&mut [IO_WORKERS, 0])
                    .map_err(setup_error)?;
                return Ok((ring, probe));
            }
            // Unknown flags are EINVAL; anything else is not cured by asking for less.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => last = e,
            Err(e) => return Err(setup_error(e)),
        }
    }
    Err(setup_error(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_below_5_15_are_refused_by_name() {
        for old in ["5.14.21-generic", "4.19.0", "5.4.0-1-amd64"] {
            let e = check_kernel(old).unwrap_err().to_string();
            assert!(e.contains(old) && e.contains("5.15"), "{e}");
        }
        for ok in ["5.15.0", "6.1.0-13-amd64", "6.18.44-x", "10.0", "odd"] {
            check_kernel(ok).unwrap();
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let text = |e| setup_error(io::Error::from_raw_os_error(e)).to_string();
        assert!(text(libc::EPERM).contains("kernel.io_uring_disabled=0"));
        assert!(text(libc::EPERM).contains("seccomp"));
        assert!(text(libc::ENOSYS).contains("CONFIG_IO_URING"));
        assert!(text(libc::ENOMEM).contains("LimitMEMLOCK"));
    }

    #[test]
    fn a_device_that_hangs_leaves_threads_for_the_others() {
        let (ring, _) = open_ring(&RingConfig::default(), 0).unwrap();
        let mut present = [0, 0];
        ring.submitter().register_iowq_max_workers(&mut present).unwrap();
        assert_eq!(present[0], IO_WORKERS);
    }

    #[test]
    fn every_fallback_step_gives_a_ring_here() {
        for first in 0..STEPS.len() {
            let (_ring, probe) = open_ring(&RingConfig::default(), first).unwrap();
            assert!(!probe.to_string().contains('\n'));
            if first == STEPS.len() - 1 {
                assert!(probe.flags.is_empty());
            }
        }
    }
}
