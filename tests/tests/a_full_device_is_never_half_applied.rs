//! A server's device is a thin file on a small file system that runs full: its writes end with ENOSPC. The server leaves the set,
//! clients see no error, and it returns when there is room again. Row 22 of the fault table.

use quarry_tests::*;
use serde_json::json;
use std::time::Duration;

#[test]
#[ignore = "row 22: takes its turn"]
fn a_full_device_is_never_half_applied() -> Res<()> {
    let name = "a_full_device_is_never_half_applied";
    let root = rustix::process::geteuid().is_root();
    let why = if root {
        need_programs(&["mkfs.ext4", "mount"])
    } else {
        Some("mounting needs root".to_string())
    };
    if let Some(why) = why {
        skip(name, &why);
        return Ok(());
    }
    let small = Small::new()?;
    let special = json!({ "sds1": { "devices": [small.device()?] } });
    let options = ClusterOptions { device_size: "512MiB", ..ClusterOptions::default() };
    with_members(options, special, |cluster| {
        let uri = cluster.new_volume("enospc", "256MiB", "sdc1")?;
        let mut f =
            Fault::new(cluster, 22, "ENOSPC below one server's device", Duration::from_secs(5));
        f.round(LoadSpec::new(&uri).area(Area::spread(96, 8)), |load| {
            small.fill()?;
            let mut c = nbd::Connection::open(&uri)?;
            for n in 0..96u64 {
                c.write_at((128 + n) << 20, &vec![n as u8 + 1; 1 << 20])?;
            }
            let during = cluster.wait_health("degraded", Duration::from_secs(20));
            load.run_for(Duration::from_secs(3))?;
            small.make_room()?;
            cluster.kill("sds1")?;
            cluster.start("sds1")?;
            during
        })?;
        f.finish(&[&uri])
    })
}

/// A file system of 400 MiB with a device file of 512 MiB in it.
struct Small(Scratch);

impl Small {
    fn new() -> Res<Small> {
        let small = Small(Scratch::in_memory()?);
        let image = small.0.file("image");
        std::fs::File::create(&image)?.set_len(400 << 20)?;
        Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal", &image]).ok()?;
        std::fs::create_dir(small.0.path().join("m"))?;
        Command::new("mount").args(["-o", "loop", &image, &small.0.file("m")]).ok()?;
        Ok(small)
    }
    fn device(&self) -> Res<String> {
        let path = self.0.file("m/device");
        std::fs::File::create(&path)?.set_len(512 << 20)?;
        Ok(path)
    }
    /// Takes all the room there is left.
    fn fill(&self) -> Res<()> {
        let mut file = std::fs::File::create(self.0.path().join("m/ballast"))?;
        let piece = vec![1; 1 << 20];
        while std::io::Write::write_all(&mut file, &piece).is_ok() {}
        Ok(())
    }
    fn make_room(&self) -> Res<()> {
        Ok(std::fs::remove_file(self.0.path().join("m/ballast"))?)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let out = Command::new("umount").args(["-l", &self.0.file("m")]).ok();
        if let Err(e) = out {
            eprintln!("{e}");
        }
    }
}
