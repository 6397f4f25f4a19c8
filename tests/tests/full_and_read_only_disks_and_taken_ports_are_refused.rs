//! Daemons that are started on a disk without room, on one that cannot be written to, or on a port that somebody has: each ends
//! at once with a message that names the path or port and says what to do, and the running cluster is not disturbed.

use quarry_tests::cluster::Member;
use quarry_tests::*;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

#[test]
fn full_and_read_only_disks_and_taken_ports_are_refused() -> Res<()> {
    let name = "full_and_read_only_disks_and_taken_ports_are_refused";
    let root = rustix::process::geteuid().is_root();
    let why =
        if root { need_programs(&["mount"]) } else { Some("mounting needs root".to_string()) };
    if let Some(why) = why {
        skip(name, &why);
        return Ok(());
    }
    let small = Mounted::new()?;
    with_cluster(ClusterOptions::default(), |cluster| {
        let mut cases = Cases::new();
        let sds = cluster.member("sds1")?;
        cases.case("a device file on a full disk", || {
            let (device, data) = (small.file("device"), small.spare("data1")?);
            let args =
                change(&sds, &[("--device", device.as_str()), ("--data-dir", data.as_str())])?;
            refused(
                &[args, vec!["--device-size".to_string(), "1GiB".to_string()]].concat(),
                &[&device, "space"],
            )
        });
        cases.case("a device that cannot be written to", || {
            let device = small.file("readonly");
            std::fs::write(&device, vec![0; 4096])?;
            let (device, data) = (small.read_only("readonly")?, small.spare("data2")?);
            let args =
                change(&sds, &[("--device", device.as_str()), ("--data-dir", data.as_str())])?;
            refused(&args, &[&device, "read-only"])
        });
        small.fill()?;
        cases.case("the own state of a data server on a full disk", || {
            let (device, data) = (small.spare("blank")?, small.file("data3"));
            let file = Path::new(&device).join("d");
            std::fs::File::create(&file)?.set_len(256 << 20)?;
            let args = change(
                &sds,
                &[("--device", file.to_string_lossy().as_ref()), ("--data-dir", data.as_str())],
            )?;
            refused(&args, &[&data, "space"])
        });
        cases.case("the state of the MDM on a full disk", || {
            let data = small.file("data4");
            let mut args = change(&cluster.member("mdm1")?, &[("--data-dir", data.as_str())])?;
            for flag in ["--listen", "--control", "--metrics"] {
                set(&mut args, flag, "127.0.0.1:0")?;
            }
            refused(&args, &[&data, "space"])
        });
        let taken = TcpListener::bind("127.0.0.1:0")?;
        let address = taken.local_addr()?.to_string();
        let ports = [
            ("sds1", "--listen"),
            ("sds1", "--metrics"),
            ("sdc1", "--metrics"),
            ("mdm1", "--listen"),
            ("mdm1", "--control"),
            ("mdm1", "--metrics"),
        ];
        for (member, flag) in ports {
            cases.case(&format!("the port of {member} {flag} in use"), || {
                let data = small.spare(&format!("data-{member}{flag}"))?;
                let mut args = change(&cluster.member(member)?, &[("--data-dir", data.as_str())])?;
                if member == "mdm1" {
                    set(&mut args, "--listen", "127.0.0.1:0")?;
                    set(&mut args, "--control", "127.0.0.1:0")?;
                }
                set(&mut args, flag, &address)?;
                if member == "sds1" {
                    let device = small.spare(&format!("device{flag}"))?;
                    let file = Path::new(&device).join("d");
                    std::fs::File::create(&file)?.set_len(256 << 20)?;
                    set(&mut args, "--device", file.to_string_lossy().as_ref())?;
                    // Its sockets are in use too, by the member that runs.
                    set(&mut args, "--socket-dir", &small.spare(&format!("s{flag}"))?)?;
                }
                refused(&args, &[&address, "in use", "choose another"])
            });
        }
        cases.case("the cluster goes on as before", || {
            cluster.wait_health("ok", Duration::from_secs(20))?;
            cluster.expect_all_running()
        });
        cases.finish()
    })
}

/// Runs a daemon that has to end with an error which holds these words, in any case of letters.
fn refused(args: &[String], words: &[&str]) -> Res<()> {
    let Some((program, args)) = args.split_first() else { fail!("no program") };
    let out = Command::new(program).args(args).limit(Duration::from_secs(15)).run()?;
    ensure!(out.status.is_some_and(|s| s != 0), "it ended well: {}", out.told());
    let said = out.stderr.to_lowercase();
    for word in words {
        ensure!(said.contains(&word.to_lowercase()), "'{word}' is not said: {}", out.told());
    }
    eprintln!("    {}", out.stderr.trim());
    Ok(())
}

/// A member's command line as another node, without its log file, with some flags changed.
fn change(m: &Member, flags: &[(&str, &str)]) -> Res<Vec<String>> {
    let mut args = m.command.clone();
    let Some(at) = args.iter().position(|a| a == "--log-file") else {
        fail!("no --log-file in {args:?}")
    };
    args.drain(at..at + 2);
    set(&mut args, "--metrics", "127.0.0.1:0")?;
    for (flag, value) in flags {
        set(&mut args, flag, value)?;
    }
    Ok(args)
}

fn set(args: &mut [String], flag: &str, value: &str) -> Res<()> {
    let at = args.iter().position(|a| a == flag).map(|at| at + 1);
    let Some(slot) = at.and_then(|at| args.get_mut(at)) else { fail!("no {flag} in {args:?}") };
    *slot = value.to_string();
    Ok(())
}

/// A file system of 4 MiB, and room beside it.
struct Mounted {
    scratch: Scratch,
}

impl Mounted {
    fn new() -> Res<Mounted> {
        let m = Mounted { scratch: Scratch::in_memory()? };
        std::fs::create_dir(m.scratch.path().join("m"))?;
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "none", &m.scratch.file("m")])
            .ok()?;
        Ok(m)
    }
    /// A path on the small file system.
    fn file(&self, name: &str) -> String {
        self.scratch.file(&format!("m/{name}"))
    }
    /// A new directory elsewhere.
    fn spare(&self, name: &str) -> Res<String> {
        std::fs::create_dir(self.scratch.path().join(name))?;
        Ok(self.scratch.file(name))
    }
    /// The file of this name by a way on which it cannot be written.
    fn read_only(&self, name: &str) -> Res<String> {
        let path = self.file(name);
        Command::new("mount").args(["--bind", &path, &path]).ok()?;
        Command::new("mount").args(["-o", "remount,ro,bind", &path]).ok()?;
        Ok(path)
    }
    fn fill(&self) -> Res<()> {
        let mut file = std::fs::File::create(self.file("ballast"))?;
        let piece = vec![1; 4096];
        while std::io::Write::write_all(&mut file, &piece).is_ok() {}
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for path in [self.file("readonly"), self.scratch.file("m")] {
            if let Err(e) = Command::new("umount").args(["-l", &path]).run() {
                eprintln!("{e}");
            }
        }
    }
}
