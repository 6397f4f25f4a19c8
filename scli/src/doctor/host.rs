//! Checks of compiler, kernel and limits.

use super::Finding;
use rustix::process::{getrlimit, Resource};
use std::path::Path;
use std::process::Command;

/// Oldest kernel whose io_uring has what is needed.
const KERNEL: (u32, u32) = (5, 15);
/// Locked memory below which the buffers cannot be registered.
const MEMLOCK: u64 = 64 << 20;
/// Open files below which connections run out early, and below which it will not run.
const FILES_WANTED: u64 = 4096;
const FILES_NEEDED: u64 = 512;
/// Free memory that a small cluster wants.
const MEMORY: u64 = 1 << 30;

/// The leading two numbers of a version.
pub(super) fn two_numbers(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().split(|c: char| !c.is_ascii_digit());
    let first = parts.next()?.parse().ok()?;
    Some((first, parts.next()?.parse().ok()?))
}

pub fn rust() -> Finding {
    let name = "rust";
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    let found = Command::new("rustc").arg("--version").output();
    let text = match &found {
        Ok(o) if o.status.success() => String::from_utf8_lossy(&o.stdout).trim().to_string(),
        _ => {
            let cure = "only needed to build: https://rustup.rs";
            return Finding::warn(name, "no rustc found", cure);
        }
    };
    judge_rust(name, &text, wanted)
}

fn judge_rust(name: &'static str, text: &str, wanted: &str) -> Finding {
    let version = text.split_whitespace().nth(1).unwrap_or("");
    match (two_numbers(version), two_numbers(wanted)) {
        (Some(have), Some(want)) if have >= want => {
            Finding::ok(name, format!("{version}, {wanted} or newer is needed"))
        }
        (Some(_), _) => {
            Finding::fail(name, format!("{version} is older than {wanted}"), "rustup update stable")
        }
        _ => Finding::warn(name, format!("cannot read '{text}'"), "rustc --version should tell"),
    }
}

pub fn kernel() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    match two_numbers(&release) {
        Some(v) if v >= KERNEL => Finding::ok("kernel", format!("Linux {release}")),
        _ => {
            let cure = "install a kernel that is newer than 5.15";
            Finding::fail("kernel", format!("Linux {release} is too old for Quarry"), cure)
        }
    }
}

pub fn io_uring() -> Finding {
    let name = "io_uring";
    let entries = 64;
    match io_uring::IoUring::new(entries) {
        Ok(ring) => {
            let mut probe = io_uring::Probe::new();
            let needed = [
                ("write", io_uring::opcode::Write::CODE),
                ("fsync", io_uring::opcode::Fsync::CODE),
                ("accept", io_uring::opcode::Accept::CODE),
                ("send", io_uring::opcode::Send::CODE),
                ("recv", io_uring::opcode::Recv::CODE),
            ];
            if let Err(e) = ring.submitter().register_probe(&mut probe) {
                let cure = "use a newer kernel";
                return Finding::fail(name, format!("cannot be asked what it can do: {e}"), cure);
            }
            match needed.iter().find(|(_, code)| !probe.is_supported(*code)) {
                None => Finding::ok(name, "works"),
                Some((op, _)) => Finding::fail(name, format!("lacks {op}"), "use a newer kernel"),
            }
        }
        Err(e) => {
            let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            let cure = match setting.as_deref().map(str::trim) {
                Ok("1" | "2") => "it is switched off: sysctl kernel.io_uring_disabled=0",
                _ if e.raw_os_error() == Some(12) => "raise the locked-memory limit: ulimit -l",
                _ => "a container's seccomp profile may forbid it: allow io_uring_setup there",
            };
            Finding::fail(name, format!("blocked: {e}"), cure)
        }
    }
}

fn limit(value: Option<u64>) -> u64 {
    value.unwrap_or(u64::MAX)
}

pub fn memlock() -> Finding {
    let name = "memlock";
    let soft = limit(getrlimit(Resource::Memlock).current);
    if soft == u64::MAX {
        return Finding::ok(name, "unlimited");
    }
    let shown = quarry_base::units::show_size(soft);
    if soft >= MEMLOCK {
        return Finding::ok(name, shown);
    }
    let cure = "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit";
    Finding::warn(name, format!("{shown}: buffers cannot be kept in RAM"), cure)
}

pub fn files() -> Finding {
    let name = "nofile";
    let limits = getrlimit(Resource::Nofile);
    let (soft, hard) = (limit(limits.current), limit(limits.maximum));
    let cure = "ulimit -n 65536, or LimitNOFILE=65536 in the unit";
    if soft < FILES_NEEDED {
        return Finding::fail(name, format!("{soft} open files are too few"), cure);
    }
    if soft < FILES_WANTED && hard < FILES_WANTED {
        return Finding::warn(name, format!("{soft} open files, hard limit {hard}"), cure);
    }
    Finding::ok(name, format!("{soft} open files"))
}

/// A number of KiB from `/proc/meminfo`, in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

pub fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match meminfo(&text, "MemAvailable") {
        Some(free) if free >= MEMORY => {
            Finding::ok("memory", format!("{} available", quarry_base::units::show_size(free)))
        }
        Some(free) => {
            let shown = quarry_base::units::show_size(free);
            Finding::warn("memory", format!("{shown} available"), "end what uses it")
        }
        None => Finding::warn("memory", "cannot be read", "mount /proc"),
    }
}

fn openable(path: &str) -> std::io::Result<()> {
    std::fs::OpenOptions::new().read(true).write(true).open(path).map(drop)
}

pub fn fuse() -> Finding {
    match openable("/dev/fuse") {
        Ok(()) => Finding::ok("fuse", "/dev/fuse opens"),
        Err(e) => {
            let cure = "modprobe fuse, or run as root; only nbdfuse needs it";
            Finding::warn("fuse", format!("/dev/fuse: {e}"), cure)
        }
    }
}

pub fn loop_device() -> Finding {
    match openable("/dev/loop-control") {
        Ok(()) => Finding::ok("loop", "/dev/loop-control opens"),
        Err(e) => {
            let cure = "modprobe loop, or run as root; only nbdfuse needs it";
            Finding::warn("loop", format!("/dev/loop-control: {e}"), cure)
        }
    }
}

pub fn nbd() -> Finding {
    let there = Path::new("/sys/module/nbd").exists() || Path::new("/sys/block/nbd0").exists();
    if there {
        return Finding::ok("nbd", "the kernel has its driver loaded");
    }
    let cure = "modprobe nbd; without it volumes are reached by their sockets (nbdfuse, QEMU)";
    Finding::warn("nbd", "the kernel's driver is not loaded", cure)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn an_old_compiler_fails_with_the_cure() {
        let f = judge_rust("rust", "rustc 1.70.0 (90c541806 2023-05-31)", "1.88");
        assert_eq!(f.verdict, Verdict::Fail);
        assert!(f.cure.contains("rustup"));
        assert_eq!(judge_rust("rust", "rustc 1.95.0 (x)", "1.88").verdict, Verdict::Ok);
        assert_eq!(judge_rust("rust", "rustc 2.0.0 (x)", "1.88").verdict, Verdict::Ok);
        assert_eq!(judge_rust("rust", "gibberish", "1.88").verdict, Verdict::Warn);
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(two_numbers("6.18.44-fc"), Some((6, 18)));
        assert_eq!(two_numbers("5.4"), Some((5, 4)));
        assert_eq!(two_numbers("x"), None);
    }

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:  100 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(2 << 20));
        assert_eq!(meminfo(text, "SwapFree"), None);
    }
}
