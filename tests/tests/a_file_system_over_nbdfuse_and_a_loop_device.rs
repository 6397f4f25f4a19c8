//! ext4 and xfs on a volume that is a block device without the kernel's nbd: nbdfuse shows the export as a file, a loop device with
//! direct I/O makes it a device. mkfs, mount, write, fsync, fstrim, remount, fsck.

use quarry_tests::*;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

const NAME: &str = "a_file_system_over_nbdfuse_and_a_loop_device";
const PROGRAMS: &[&str] = &[
    "nbdfuse",
    "losetup",
    "mount",
    "mkfs.ext4",
    "mkfs.xfs",
    "e2fsck",
    "xfs_repair",
    "fstrim",
    "fusermount3",
];

#[test]
fn a_file_system_over_nbdfuse_and_a_loop_device() -> Res<()> {
    let cannot = need_programs(PROGRAMS)
        .or_else(|| (!rustix::process::geteuid().is_root()).then(|| "mounting needs root".into()))
        .or_else(|| {
            let missing = ["/dev/fuse", "/dev/loop-control"].into_iter().find(|p| !openable(p));
            missing.map(|p| format!("{p} does not open"))
        });
    if let Some(why) = cannot {
        skip(NAME, &why);
        return Ok(());
    }
    with_cluster(ClusterOptions::default(), |cluster| {
        let mut cases = Cases::new();
        for fs in ["ext4", "xfs"] {
            let uri = cluster.new_volume(fs, "384MiB", "sdc1")?;
            cases.case(fs, || file_system(fs, &uri));
        }
        cluster.expect_all_running()?;
        cases.finish()
    })
}

fn openable(path: &str) -> bool {
    std::fs::OpenOptions::new().read(true).write(true).open(path).is_ok()
}

fn file_system(fs: &str, uri: &Uri) -> Res<()> {
    let device = Device::attach(uri)?;
    let block = device.block.clone();
    let node = block.as_str();
    match fs {
        "ext4" => Command::new("mkfs.ext4").args(["-q", "-F", node]).ok()?,
        _ => Command::new("mkfs.xfs").args(["-q", "-f", node]).ok()?,
    };
    let files = {
        let mount = Mount::new(node, &device.scratch)?;
        let files = write_files(&mount.at)?;
        let out = Command::new("fstrim").args(["-v", &mount.text()]).ok()?;
        ensure!(!out.stdout.contains(": 0 B"), "fstrim freed nothing: {}", out.stdout);
        mount.unmount()?;
        files
    };
    // What the page cache remembers of the device must not answer.
    Command::new("blockdev").args(["--flushbufs", node]).ok()?;
    let mount = Mount::new(node, &device.scratch)?;
    for (path, data) in &files {
        ensure!(
            &std::fs::read(mount.at.join(path))? == data,
            "{fs}: {path} differs after a remount"
        );
    }
    ensure!(!mount.at.join("gone").exists(), "{fs}: a removed file is back");
    mount.unmount()?;
    match fs {
        "ext4" => Command::new("e2fsck").args(["-f", "-n", node]).ok()?,
        _ => Command::new("xfs_repair").args(["-n", node]).ok()?,
    };
    device.detach()
}

/// Files of many sizes, each synced; and a large one that is removed, so that there is something to trim.
fn write_files(at: &Path) -> Res<Vec<(String, Vec<u8>)>> {
    let mut rng = rng::Rng::new(17);
    let mut files = Vec::new();
    for n in 0..60u64 {
        let len = rng.below(if n % 10 == 0 { 3 << 20 } else { 40_000 });
        let data: Vec<u8> = (0..len / 8 + 1).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
        let path = format!("d{}/f{n}", n % 7);
        std::fs::create_dir_all(at.join(format!("d{}", n % 7)))?;
        std::fs::write(at.join(&path), &data)?;
        std::fs::File::open(at.join(&path))?.sync_all()?;
        files.push((path, data));
    }
    std::fs::write(at.join("gone"), vec![7; 32 << 20])?;
    std::fs::File::open(at.join("gone"))?.sync_all()?;
    std::fs::remove_file(at.join("gone"))?;
    Command::new("sync").args(["-f", &at.to_string_lossy()]).ok()?;
    Ok(files)
}

/// nbdfuse and a loop device; both go when this is dropped.
struct Device {
    scratch: Scratch,
    fuse: Child,
    block: String,
}

impl Device {
    fn attach(uri: &Uri) -> Res<Device> {
        let scratch = Scratch::new()?;
        let (dir, file) = (scratch.path().join("fuse"), scratch.file("fuse/volume"));
        std::fs::create_dir(&dir)?;
        std::fs::create_dir(scratch.path().join("mnt"))?;
        let fuse = std::process::Command::new("nbdfuse")
            .args([&file, uri.as_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let mut device = Device { scratch, fuse, block: String::new() };
        wait_until("nbdfuse's file", Duration::from_secs(10), || {
            ensure!(device.fuse.try_wait()?.is_none(), "nbdfuse ended");
            Ok(Path::new(&file).exists().then_some(()))
        })?;
        let out =
            Command::new("losetup").args(["--find", "--show", "--direct-io=on", &file]).ok()?;
        device.block = out.stdout.trim().to_string();
        Ok(device)
    }

    /// In good order; a failure counts.
    fn detach(mut self) -> Res<()> {
        let block = std::mem::take(&mut self.block);
        Command::new("losetup").args(["-d", &block]).ok()?;
        let fuse = self.scratch.file("fuse");
        wait_until("the end of nbdfuse", Duration::from_secs(10), || {
            Command::new("fusermount3").args(["-u", &fuse]).run()?;
            Ok(self.fuse.try_wait()?.map(drop))
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let run = |program: &str, args: &[&str]| {
            if let Err(e) = Command::new(program).args(args).run() {
                eprintln!("{e}");
            }
        };
        if !self.block.is_empty() {
            run("losetup", &["-d", &self.block]);
        }
        if let Ok(None) = self.fuse.try_wait() {
            run("fusermount3", &["-u", "-z", &self.scratch.file("fuse")]);
            if let Err(e) = self.fuse.kill().and_then(|()| self.fuse.wait()) {
                eprintln!("nbdfuse stays behind: {e}");
            }
        }
    }
}

/// A mounted device; unmounted when this is dropped.
struct Mount {
    at: PathBuf,
    mounted: bool,
}

impl Mount {
    fn new(node: &str, scratch: &Scratch) -> Res<Mount> {
        let at = scratch.path().join("mnt");
        Command::new("mount").args([node, &at.to_string_lossy()]).ok()?;
        Ok(Mount { at, mounted: true })
    }
    fn text(&self) -> String {
        self.at.to_string_lossy().into_owned()
    }
    fn unmount(mut self) -> Res<()> {
        Command::new("umount").args([&self.text()]).ok()?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            if let Err(e) = Command::new("umount").args(["-l", &self.text()]).run() {
                eprintln!("{} stays mounted: {e}", self.at.display());
            }
        }
    }
}
