//! Disks that fail on request: a file in memory behind nbdkit with its filters, shown as a file by nbdfuse, which an SDS takes
//! as its device.
//!
//! - [`Disk::failing`]: reads or writes end with EIO while [`Disk::fail`] is on, or syncs ([`Disk::failing_syncs`]);
//!   [`Disk::pause`] makes any of them hang.
//! - [`Disk::volatile`]: a write cache that loses what was not flushed when the power goes ([`Disk::cut_power`]). Whoever syncs
//!   the same file from outside makes it flush in between, also in the middle of what its server writes.

use crate::failure::While;
use crate::scratch::keep;
use crate::{ensure, need_programs, wait_until, Command, Res, Scratch};
use rustix::process::{kill_process, Pid, Signal};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// Which operations of a failing disk fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fails {
    Reads,
    Writes,
    Syncs,
}

enum Kind {
    Failing,
    FailingSyncs,
    Volatile,
}

/// One disk and the two processes that make it.
pub struct Disk {
    dir: Scratch,
    image: PathBuf,
    kind: Kind,
    nbdkit: Option<Child>,
    nbdfuse: Option<Child>,
}

impl Disk {
    /// Why there can be none on this machine.
    pub fn unavailable() -> Option<String> {
        if !Path::new("/dev/fuse").exists() {
            return Some("there is no /dev/fuse".to_string());
        }
        need_programs(&["nbdkit", "nbdfuse", "fusermount3"])
    }

    /// A disk of `bytes` whose reads or writes can fail.
    pub fn failing(bytes: u64) -> Res<Disk> {
        Disk::make(bytes, Kind::Failing)
    }
    /// A disk of `bytes` whose syncs can fail, while writes look as if they had been done.
    pub fn failing_syncs(bytes: u64) -> Res<Disk> {
        Disk::make(bytes, Kind::FailingSyncs)
    }
    /// A disk of `bytes` with a volatile cache.
    pub fn volatile(bytes: u64) -> Res<Disk> {
        Disk::make(bytes, Kind::Volatile)
    }

    fn make(bytes: u64, kind: Kind) -> Res<Disk> {
        let dir = Scratch::in_memory()?;
        let image = dir.path().join("image");
        std::fs::File::create(&image)?.set_len(bytes)?;
        std::fs::create_dir(dir.path().join("m"))?;
        let mut disk = Disk { dir, image, kind, nbdkit: None, nbdfuse: None };
        disk.power_on()?;
        Ok(disk)
    }

    /// The device.
    pub fn path(&self) -> String {
        self.dir.file("m/disk")
    }

    fn switch(&self, what: Fails) -> PathBuf {
        self.dir.path().join(match what {
            Fails::Reads => "fail-reads",
            Fails::Writes => "fail-writes",
            Fails::Syncs => "fail-syncs",
        })
    }

    /// Lets operations of this kind fail, or no more.
    pub fn fail(&self, what: Fails, on: bool) -> Res<()> {
        let file = self.switch(what);
        if on {
            std::fs::write(&file, "").doing(|| format!("making {}", file.display()))
        } else {
            std::fs::remove_file(&file).doing(|| format!("removing {}", file.display()))
        }
    }

    /// The disk answers nothing while paused.
    pub fn pause(&self, on: bool) -> Res<()> {
        let id =
            self.nbdkit.as_ref().and_then(|c| i32::try_from(c.id()).ok()).and_then(Pid::from_raw);
        let Some(pid) = id else { return Ok(()) };
        kill_process(pid, if on { Signal::STOP } else { Signal::CONT })
            .doing(|| "signal to nbdkit".to_string())
    }

    /// Starts it with what its medium holds.
    pub fn power_on(&mut self) -> Res<()> {
        let socket = self.dir.file("s");
        let mut args: Vec<String> = ["-f", "-U", &socket].map(String::from).into();
        let cache: &[&str] = match self.kind {
            Kind::Failing => &["--filter=error"],
            Kind::FailingSyncs => &["--filter=cache", "--filter=error"],
            Kind::Volatile => &["--filter=cache"],
        };
        args.extend(cache.iter().map(|f| f.to_string()));
        args.extend(["file".to_string(), self.image.to_string_lossy().into_owned()]);
        let error = |op: &str, what| {
            let file = self.switch(what).display().to_string();
            [format!("error-{op}-rate=100%"), format!("error-{op}-file={file}")]
        };
        match self.kind {
            Kind::Failing => {
                args.extend(error("pread", Fails::Reads));
                args.extend(error("pwrite", Fails::Writes));
            }
            // Writes stay in the cache; the sync that writes them out meets the error.
            Kind::FailingSyncs => {
                args.push("cache=writeback".to_string());
                args.extend(error("pwrite", Fails::Syncs));
            }
            Kind::Volatile => args.push("cache=writeback".to_string()),
        }
        let nbdkit = std::process::Command::new("nbdkit")
            .args(&args)
            // Where the cache lies.
            .env("TMPDIR", self.dir.path())
            .stdin(Stdio::null())
            .spawn()
            .doing(|| "starting nbdkit".to_string())?;
        self.nbdkit = Some(nbdkit);
        let there = || Ok(Path::new(&socket).exists().then_some(()));
        wait_until("nbdkit's socket", Duration::from_secs(10), there)?;
        let nbdfuse = std::process::Command::new("nbdfuse")
            .args([self.path(), format!("nbd+unix:///?socket={socket}")])
            .stdin(Stdio::null())
            .spawn()
            .doing(|| "starting nbdfuse".to_string())?;
        self.nbdfuse = Some(nbdfuse);
        let path = self.path();
        let there = || Ok(Path::new(&path).exists().then_some(()));
        wait_until("nbdfuse's file", Duration::from_secs(10), there)
    }

    /// What the cache held and was not told to keep is lost. Kill the SDS first; [`Disk::power_on`] starts it again.
    pub fn cut_power(&mut self) -> Res<()> {
        for child in [self.nbdkit.take(), self.nbdfuse.take()].into_iter().flatten() {
            end(child)?;
        }
        self.unmount();
        match std::fs::remove_file(self.dir.file("s")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    fn unmount(&self) {
        let out = Command::new("umount").args(["-l", &self.dir.file("m")]).run();
        if let Err(e) = out {
            eprintln!("{e}");
        }
    }
}

fn end(mut child: Child) -> Res<()> {
    child.kill()?;
    let status = child.wait()?;
    ensure!(!status.success(), "a disk's process had ended by itself");
    Ok(())
}

impl Drop for Disk {
    fn drop(&mut self) {
        if keep() {
            return;
        }
        if let Err(e) = self.pause(false).and_then(|()| self.cut_power()) {
            eprintln!("a disk did not go in good order: {e}");
        }
    }
}
