//! Who holds a block device: mounts, swap, devices on top, processes, requests in flight.
//!
//! A process still inside `open` has no descriptor yet; the requests it waits for give it away, but
//! not while all connections of the device are dead: the kernel does not count them then.

use super::device::{numbers, Roots};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Holders named at most; more are counted.
const MAX_NAMED: usize = 8;

/// What holds the device, each as a few words ("mounted at /mnt"). Empty if nothing is seen.
/// Without privileges other users' processes are not seen.
pub fn holders(roots: &Roots, index: u32) -> Vec<String> {
    let numbers = numbers(roots, index);
    let mut found = Vec::new();
    if let Some((major, minor)) = numbers {
        found.extend(mounts(&roots.proc, &format!("{major}:{minor}"), index));
    }
    found.extend(swaps(&roots.proc, index));
    found.extend(stacked(&roots.sys, index));
    if let Some((major, minor)) = numbers {
        found.extend(processes(&roots.proc, rustix::fs::makedev(major, minor)));
    }
    found.extend(requests(&roots.sys, index));
    found
}

/// What holds any of these devices.
pub fn held(roots: &Roots, devices: &[u32]) -> Vec<String> {
    let named = |index: &u32| {
        let index = *index;
        holders(roots, index).into_iter().map(move |h| format!("/dev/nbd{index} {h}"))
    };
    let mut found: Vec<String> = devices.iter().flat_map(named).collect();
    if found.len() > MAX_NAMED {
        let more = found.len() - MAX_NAMED;
        found.truncate(MAX_NAMED);
        found.push(format!("and {more} more"));
    }
    found
}

/// The holders in one line.
pub fn describe(holders: &[String]) -> String {
    if holders.is_empty() {
        return "nothing that can be seen holds it (look again as root)".into();
    }
    let mut text = holders.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    if holders.len() > MAX_NAMED {
        text += &format!(" and {} more", holders.len() - MAX_NAMED);
    }
    text
}

/// The mount table of every mount namespace that some process is in, the own one first.
fn mount_tables(proc: &Path) -> Vec<String> {
    let namespace = |dir: &Path| fs::read_link(dir.join("ns/mnt")).ok();
    let own = proc.join("self");
    let mut seen: BTreeSet<_> = namespace(&own).into_iter().collect();
    let mut dirs = vec![own];
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        let number = process.file_name().to_str().is_some_and(|n| n.parse::<u32>().is_ok());
        let dir = process.path();
        if number && namespace(&dir).is_some_and(|n| seen.insert(n)) {
            dirs.push(dir);
        }
    }
    dirs.iter().filter_map(|d| fs::read_to_string(d.join("mountinfo")).ok()).collect()
}

/// Mounts of the device or a partition of it (`ID PARENT MAJOR:MINOR ROOT MOUNTPOINT ... - TYPE SOURCE`).
fn mounts(proc: &Path, device: &str, index: u32) -> BTreeSet<String> {
    let partition = format!("/dev/nbd{index}p");
    let hit = |line: &&str| {
        let source = line.split(" - ").nth(1).and_then(|s| s.split(' ').nth(1)).unwrap_or("");
        line.split(' ').nth(2) == Some(device) || source.starts_with(&partition)
    };
    let at = |line: &str| line.split(' ').nth(4).map(|p| format!("mounted at {p}"));
    let of = |table: &String| -> Vec<String> { table.lines().filter(hit).filter_map(at).collect() };
    mount_tables(proc).iter().flat_map(of).collect()
}

fn swaps(proc: &Path, index: u32) -> Option<String> {
    let text = fs::read_to_string(proc.join("swaps")).unwrap_or_default();
    let name = format!("/dev/nbd{index}");
    let used = |l: &str| {
        let file = l.split_whitespace().next().unwrap_or("");
        file == name || file.starts_with(&format!("{name}p"))
    };
    text.lines().any(used).then(|| "used as swap".to_string())
}

/// Devices stacked on it or on a partition: device mapper, md, bcache.
fn stacked(sys: &Path, index: u32) -> Vec<String> {
    let dir = sys.join(format!("block/nbd{index}"));
    let mut dirs = vec![dir.join("holders")];
    let partition = format!("nbd{index}p");
    for e in fs::read_dir(&dir).into_iter().flatten().flatten() {
        if e.file_name().to_string_lossy().starts_with(&partition) {
            dirs.push(e.path().join("holders"));
        }
    }
    let names = |d| fs::read_dir(d).into_iter().flatten().flatten();
    dirs.into_iter()
        .flat_map(names)
        .map(|e| format!("used by {}", e.file_name().to_string_lossy()))
        .collect()
}

/// Requests the kernel waits for (`READS WRITES`).
fn requests(sys: &Path, index: u32) -> Option<String> {
    let text = fs::read_to_string(sys.join(format!("block/nbd{index}/inflight"))).ok()?;
    let n: Vec<u64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    match n[..] {
        [reads, writes] if reads.saturating_add(writes) > 0 => {
            Some(format!("{reads} reads and {writes} writes are in flight"))
        }
        _ => None,
    }
}

/// Processes with the device open.
fn processes(proc: &Path, device: u64) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let mut fds = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let open = |e: fs::DirEntry| {
            // Only device nodes are looked at: a stat on a dead network mount could hang.
            let target = fs::read_link(e.path()).unwrap_or_default();
            target.starts_with("/dev")
                && fs::metadata(e.path())
                    .is_ok_and(|m| m.rdev() == device && m.mode() & 0o170000 == 0o060000)
        };
        if fds.any(open) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("open in {} (pid {pid})", name.trim()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::device::tests::{scratch, show};

    #[test]
    fn mounts_swap_and_stacked_devices_are_named() {
        let dir = scratch("holders");
        let roots = Roots::under(&dir);
        show(&roots, 1, "dev", "43:32\n");
        fs::create_dir_all(dir.join("sys/block/nbd1/holders/dm-3")).unwrap();
        fs::create_dir_all(dir.join("sys/block/nbd1/nbd1p2/holders/md0")).unwrap();
        fs::create_dir_all(dir.join("proc/self")).unwrap();
        let mounts = "22 1 0:21 / /proc rw - proc proc rw\n\
                      30 1 43:32 / /mnt/a rw,noatime shared:1 - ext4 /dev/nbd1 rw\n\
                      31 1 43:34 / /mnt/b rw - ext4 /dev/nbd1p2 rw\n\
                      32 1 43:64 / /mnt/c rw - ext4 /dev/nbd2 rw\n";
        fs::write(dir.join("proc/self/mountinfo"), mounts).unwrap();
        fs::write(dir.join("proc/swaps"), "Filename Type\n/dev/nbd1p3 partition 1 0 -2\n").unwrap();
        let mut got = holders(&roots, 1);
        got.sort();
        let want = [
            "mounted at /mnt/a",
            "mounted at /mnt/b",
            "used as swap",
            "used by dm-3",
            "used by md0",
        ];
        assert_eq!(got, want);
        assert_eq!(describe(&got[..2]), "mounted at /mnt/a, mounted at /mnt/b");
        fs::write(dir.join("proc/swaps"), "/dev/nbd11 partition 1 0 -2\n").unwrap();
        assert_eq!(holders(&roots, 1).len(), 4, "nbd11 is not nbd1");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn requests_in_flight_give_away_who_is_still_opening() {
        let dir = scratch("inflight");
        let roots = Roots::under(&dir);
        for (text, count) in [("       0        0\n", 0), ("       1        0\n", 1), ("x", 0)] {
            show(&roots, 1, "inflight", text);
            assert_eq!(holders(&roots, 1).len(), count, "{text}");
        }
        show(&roots, 1, "inflight", "1 2\n");
        assert_eq!(holders(&roots, 1), ["1 reads and 2 writes are in flight"]);
        assert_eq!(held(&roots, &[0, 1]), ["/dev/nbd1 1 reads and 2 writes are in flight"]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn many_holders_are_counted() {
        let many: Vec<String> = (0..20).map(|i| format!("h{i}")).collect();
        assert!(describe(&many).ends_with("h7 and 12 more"));
        assert!(describe(&[]).contains("as root"));
    }
}
