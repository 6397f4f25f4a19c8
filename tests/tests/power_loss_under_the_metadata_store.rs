//! The power fails under a file system that holds a metadata store. What the MDM's store acknowledged is there
//! afterwards; sled used naively, its `flush` believed, loses what it said was safe. (That it does shows that the disk
//! really drops what was not flushed.)

use quarry_tests::volatile::{Sync, VolatileDisk};
use quarry_tests::*;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

const NAME: &str = "power_loss_under_the_metadata_store";

fn run(line: &[&str]) -> Res<String> {
    let (program, args) = line.split_first().map_or(("", line), |(p, a)| (*p, a));
    let out = Command::new(program).args(args.iter().copied()).run()?;
    ensure!(out.status == Some(0), "{}", out.told());
    Ok(out.stdout.trim().to_string())
}

/// An ext4 file system on a loop device; taken apart on drop.
struct Mounted {
    device: String,
    at: String,
}

impl Mounted {
    fn new(image: &str, at: &str, make: bool) -> Res<Mounted> {
        std::fs::create_dir_all(at)?;
        let device = run(&["losetup", "--direct-io=on", "--find", "--show", image])?;
        let m = Mounted { device, at: at.to_string() };
        if make {
            run(&["mkfs.ext4", "-q", "-F", &m.device])?;
        }
        run(&["mount", &m.device, at])?;
        Ok(m)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for line in [["umount", "-l", &self.at], ["losetup", "-d", &self.device]] {
            if let Err(e) = run(&line) {
                eprintln!("{e}");
            }
        }
    }
}

/// Starts the writer and waits for so many acknowledgements; the last one seen.
fn write(which: &str, dir: &str, wanted: u64) -> Res<(Child, u64)> {
    let mut child = std::process::Command::new(cluster::binary("examples/meta-writer")?)
        .args([which, "write", dir])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take();
    let mut last = 0;
    for line in BufReader::new(out.ok_or_else(|| Failure::new("no output"))?).lines() {
        last = line?.parse()?;
        if last >= wanted {
            break;
        }
    }
    ensure!(last >= wanted, "the writer ended after {last}");
    Ok((child, last))
}

/// Acknowledged before the cut, and there after it.
fn cut(scratch: &Scratch, which: &str, seed: u64) -> Res<(u64, u64)> {
    let image = scratch.file(&format!("{which}{seed}.img"));
    std::fs::File::create(&image)?.set_len(192 << 20)?;
    let disk = VolatileDisk::over(Path::new(&image), Sync::Done)?;
    let fs = Mounted::new(&image, &scratch.file("mnt"), true)?;
    let store = format!("{}/store", fs.at);
    let (mut child, acknowledged) = write(which, &store, 150)?;
    disk.cut(seed)?;
    child.kill()?;
    child.wait()?;
    drop(fs);
    drop(disk);
    let durable = Path::new(&image).with_extension("durable");
    let fs = Mounted::new(&durable.to_string_lossy(), &scratch.file("mnt2"), false)?;
    let store = format!("{}/store", fs.at);
    let there = if Path::new(&store).is_dir() {
        run(&[&cluster::binary("examples/meta-writer")?, which, "read", &store])
    } else {
        Ok("0".to_string())
    };
    let there = match (which, there) {
        // What is left of it does not open: lost as well.
        ("raw", Err(_)) => 0,
        (_, there) => there?.parse()?,
    };
    Ok((acknowledged, there))
}

#[test]
fn power_loss_under_the_metadata_store() -> Res<()> {
    let missing = need_programs(&["nbdfuse", "fusermount3", "mkfs.ext4", "losetup", "mount"]);
    let root = rustix::process::geteuid().is_root();
    if let Some(why) = missing.or((!root).then(|| "mounting needs root".to_string())) {
        skip(NAME, &why);
        return Ok(());
    }
    let scratch = Scratch::in_memory()?;
    let rounds = if full() { 20 } else { 2 };
    let mut lost = 0;
    for seed in 1..=rounds {
        let (said, there) = cut(&scratch, "ours", seed)?;
        ensure!(
            there >= said,
            "round {seed}: entry {said} was acknowledged, {there} is the last one there"
        );
        let (said, there) = cut(&scratch, "raw", seed)?;
        eprintln!("round {seed}: sled alone said {said} and has {there}");
        lost += u64::from(there < said);
    }
    ensure!(lost > 0, "sled's flush alone lost nothing: the disk does not do what it is for");
    Ok(())
}
