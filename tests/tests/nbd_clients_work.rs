//! The clients people use work on a mapped volume: nbdinfo, nbdcopy, qemu-img, qemu-io, and `scli probe` (the nbd crate through
//! `NBD_OPT_EXPORT_NAME`).

use quarry_tests::nbd::consts::*;
use quarry_tests::*;
use std::time::Duration;

const MIB: u64 = 1 << 20;

#[test]
fn nbd_clients_work() -> Res<()> {
    if let Some(why) = need_programs(&["nbdinfo", "nbdcopy", "qemu-img", "qemu-io"]) {
        skip("nbd_clients_work", &why);
        return Ok(());
    }
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("clients", "64MiB", "sdc1")?;
        let files = Scratch::in_memory()?;
        let mut cases = Cases::new();
        cases.case("what the export says of itself", || export_info(&uri));
        cases.case("nbdinfo", || nbdinfo(&uri));
        cases.case("block status tells holes from data", || holes(&uri, &files));
        cases.case("qemu-io patterns", || qemu_io(&uri));
        cases.case("qemu-img convert in, compare, convert out", || qemu_img(&uri, &files));
        cases.case("qemu-img bench", || {
            for mode in [
                &["-c", "2000", "-d", "32"][..],
                &["-w", "-c", "2000", "-d", "32", "--flush-interval=64"],
            ] {
                let args = [&["bench", "-f", "raw", "-s", "4096"], mode, &[uri.as_str()]].concat();
                Command::new("qemu-img").args(args).ok()?;
            }
            Ok(())
        });
        cases.case("nbdcopy in and out with many connections", || nbdcopy(&uri, &files));
        cases.case("the nbd crate's client through EXPORT_NAME", || crate_client(&uri));
        cases.case("scli probe", || {
            let out = cluster.scli(["--json", "probe", uri.as_str()])?;
            ensure!(out.status == Some(0), "{}", out.told());
            ensure!(out.stdout.contains(&(64 * MIB).to_string()), "no size in {}", out.stdout);
            let wrong = uri.as_str().replace("clients", "nosuch");
            let out = cluster.scli(["probe", &wrong])?;
            ensure!(
                out.status != Some(0) && !out.stderr.is_empty(),
                "probing nothing: {}",
                out.told()
            );
            Ok(())
        });
        cases.case("partial blocks keep their neighbours", || partial_blocks(&uri));
        cases.case("a flush on one connection covers the others", || {
            let (mut a, mut b) = (nbd::Connection::open(&uri)?, nbd::Connection::open(&uri)?);
            a.write_at(0, &[1; 4096])?;
            b.flush()?;
            ensure!(b.read_at(0, 4096)? == [1; 4096], "another connection reads something else");
            Ok(())
        });
        cases.case("extended while connected", || extend(cluster, &uri));
        cases.finish()
    })
}

fn nbdcopy(uri: &Uri, files: &Scratch) -> Res<()> {
    let (image, back) = (files.file("copy-in"), files.file("copy-out"));
    let mut rng = rng::Rng::new(31);
    let data: Vec<u8> = (0..64 * MIB / 8)
        .flat_map(|i| if i / 30_000 % 2 == 0 { [0; 8] } else { rng.next_u64().to_le_bytes() })
        .collect();
    std::fs::write(&image, &data)?;
    for (from, to) in [(image.as_str(), uri.as_str()), (uri.as_str(), back.as_str())] {
        Command::new("nbdcopy").args(["--connections=4", "--requests=64", from, to]).ok()?;
    }
    ensure!(std::fs::read(&back)? == data, "what nbdcopy wrote comes back differently");
    Ok(())
}

/// A client that shares no code with anything here: one request at a time, old-style negotiation.
fn crate_client(uri: &Uri) -> Res<()> {
    use nbd_crate::client::{handshake, NbdClient};
    use std::io::{Read, Seek, SeekFrom, Write};
    let open = || -> Res<(std::os::unix::net::UnixStream, nbd_crate::Export)> {
        let mut s = std::os::unix::net::UnixStream::connect(&uri.address)?;
        s.set_read_timeout(Some(Duration::from_secs(10)))?;
        let export = handshake(&mut s, uri.name.as_bytes())?;
        ensure!(export.size == 64 * MIB && !export.readonly, "size {}", export.size);
        Ok((s, export))
    };
    let places = [0, 4096, MIB - 512, 33 * MIB + 4096, 64 * MIB - 8192];
    let data: Vec<u8> = (0..8192u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let (mut s, export) = open()?;
    let mut c = NbdClient::new(&mut s, &export);
    for at in places {
        c.seek(SeekFrom::Start(at))?;
        c.write_all(&data)?;
    }
    c.flush()?;
    let (mut s, export) = open()?;
    let mut c = NbdClient::new(&mut s, &export);
    for at in places.iter().rev() {
        let mut back = vec![0; data.len()];
        c.seek(SeekFrom::Start(*at))?;
        c.read_exact(&mut back)?;
        // The second place overlaps the first.
        let same = if *at == 0 { 4096 } else { data.len() };
        ensure!(back[..same] == data[..same], "what is at {at} differs");
    }
    ensure!(nbd::Connection::open(uri)?.read_at(4096, 8192)? == data, "another client reads it");
    Ok(())
}

fn export_info(uri: &Uri) -> Res<()> {
    let export = nbd::Connection::open(uri)?.export;
    ensure!(export.size == 64 * MIB, "size {}", export.size);
    ensure!(export.structured, "no structured replies");
    let wanted = [
        (SEND_FLUSH, "FLUSH"),
        (SEND_FUA, "FUA"),
        (SEND_TRIM, "TRIM"),
        (SEND_WRITE_ZEROES, "WRITE_ZEROES"),
        (SEND_DF, "DF"),
        (CAN_MULTI_CONN, "CAN_MULTI_CONN"),
        (SEND_CACHE, "CACHE"),
        (SEND_FAST_ZERO, "FAST_ZERO"),
    ];
    for (flag, name) in wanted {
        ensure!(export.flags & flag != 0, "{name} is not among the flags {:#x}", export.flags);
    }
    ensure!(export.flags & READ_ONLY == 0, "the volume is read-only");
    let Some((min, preferred, max)) = export.blocks else { fail!("no block sizes") };
    ensure!(
        min <= 512 && preferred == 4096 && max >= 1 << 20,
        "block sizes {min}, {preferred}, {max}"
    );
    Ok(())
}

fn nbdinfo(uri: &Uri) -> Res<()> {
    let out = Command::new("nbdinfo").args(["--json", uri.as_str()]).ok()?;
    let info: serde_json::Value = serde_json::from_str(&out.stdout)?;
    let export = &info["exports"][0];
    ensure!(export["export-size"] == 64 * MIB, "{export}");
    ensure!(export["can_multi_conn"] == true && export["can_fua"] == true, "{export}");
    let contexts = export["contexts"].to_string();
    ensure!(contexts.contains("base:allocation"), "no base:allocation: {contexts}");
    Command::new("nbdinfo").args(["--map", uri.as_str()]).ok()?;
    let list = format!("nbd+unix:///?socket={}", uri.address);
    let out = Command::new("nbdinfo").args(["--list", &list]).ok()?;
    ensure!(out.stdout.contains("clients"), "the list does not name the volume: {}", out.told());
    Ok(())
}

/// A volume that is written in two places is a hole elsewhere, for nbdinfo and for qemu-img; what is trimmed is one again.
fn holes(uri: &Uri, files: &Scratch) -> Res<()> {
    let map = |uri: &Uri| -> Res<Vec<(u64, u64, u64)>> {
        let out = Command::new("nbdinfo").args(["--map", "--json", uri.as_str()]).ok()?;
        let list: Vec<serde_json::Value> = serde_json::from_str(&out.stdout)?;
        let n = |e: &serde_json::Value, k: &str| e[k].as_u64().unwrap_or(u64::MAX);
        Ok(list.iter().map(|e| (n(e, "offset"), n(e, "length"), n(e, "type"))).collect())
    };
    const HOLE: u64 = 3;
    let found = map(uri)?;
    ensure!(found == [(0, 64 * MIB, HOLE)], "a new volume: {found:?}");
    let mut c = nbd::Connection::open(uri)?;
    c.write_at(5 * MIB - 8192, &[1; 16384])?;
    c.write_at(40 * MIB + 100, &[2; 1])?;
    let want = [
        (0, 5 * MIB - 8192, HOLE),
        (5 * MIB - 8192, 16384, 0),
        (5 * MIB + 8192, 35 * MIB - 8192, HOLE),
        (40 * MIB, 4096, 0),
        (40 * MIB + 4096, 24 * MIB - 4096, HOLE),
    ];
    let found = map(uri)?;
    ensure!(found == want, "after two writes: {found:?}");
    let out =
        Command::new("qemu-img").args(["map", "-f", "raw", "--output=json", uri.as_str()]).ok()?;
    let list: Vec<serde_json::Value> = serde_json::from_str(&out.stdout)?;
    let data = list.iter().filter(|e| e["data"] == true);
    let data: u64 = data.filter_map(|e| e["length"].as_u64()).sum();
    ensure!(data == 16384 + 4096, "qemu-img map sees {data} bytes of data: {}", out.stdout);
    // Copied out, the holes are holes: neither read nor written.
    let copy = files.file("sparse");
    Command::new("nbdcopy").args([uri.as_str(), &copy]).ok()?;
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&copy)?) * 512;
    ensure!(blocks <= MIB, "the copy of 20 KiB of data takes {blocks} bytes");
    c.zero(5 * MIB - 8192, 16384)?;
    let found = map(uri)?;
    ensure!(found.len() == 3, "after one was zeroed: {found:?}");
    Ok(())
}

/// Patterns at odd places, over extent boundaries, zeroed and trimmed in between; read back each time.
fn qemu_io(uri: &Uri) -> Res<()> {
    let script = [
        "write -P 0x11 0 64k",
        "read -P 0x11 0 64k",
        "write -P 0x22 1020k 8k",
        "read -P 0x22 1020k 8k",
        "write -f -P 0x33 3584 1024",
        "read -P 0x33 3584 1024",
        "read -P 0x11 0 3584",
        "read -P 0x11 4608 60928",
        "write -z 8k 4k",
        "read -P 0 8k 4k",
        "write -z -u 16k 16k",
        "read -P 0 16k 16k",
        "write -P 0x44 2m 3m",
        "discard 3m 1m",
        "read -P 0x44 2m 1m",
        "read -P 0 3m 1m",
        "read -P 0x44 4m 1m",
        "aio_write -P 0x55 8m 1m",
        "aio_write -P 0x66 9m 1m",
        "aio_flush",
        "read -P 0x55 8m 1m",
        "read -P 0x66 9m 1m",
        "flush",
    ];
    let mut args = vec!["-f".to_string(), "raw".to_string(), "--discard=unmap".to_string()];
    for line in script {
        args.extend(["-c".to_string(), line.to_string()]);
    }
    args.push(uri.as_str().to_string());
    let out = Command::new("qemu-io").args(args).ok()?;
    let text = out.all();
    for bad in ["Pattern verification failed", "failed", "error"] {
        ensure!(!text.contains(bad), "qemu-io: {}", out.told());
    }
    Ok(())
}

fn qemu_img(uri: &Uri, files: &Scratch) -> Res<()> {
    let (image, back) = (files.file("in.raw"), files.file("back.qcow2"));
    let mut rng = rng::Rng::new(8);
    let data: Vec<u8> = (0..64 * MIB / 8)
        .flat_map(|i| if i / 40_000 % 3 == 0 { [0; 8] } else { rng.next_u64().to_le_bytes() })
        .collect();
    std::fs::write(&image, &data)?;
    let to = ["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", &image, uri.as_str()];
    Command::new("qemu-img").args(to).ok()?;
    Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw", &image, uri.as_str()])
        .ok()?;
    Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2", uri.as_str(), &back])
        .ok()?;
    Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2", &image, &back]).ok()?;
    // One changed byte must be seen, or the comparison shows nothing.
    nbd::Connection::open(uri)?.write_at(5 * MIB + 3, &[!data[5 * MIB as usize + 3]])?;
    let out = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw", &image, uri.as_str()])
        .run()?;
    ensure!(out.status == Some(1), "a changed byte was not seen: {}", out.told());
    Ok(())
}

/// Writes of any size and place change their bytes and no other, whatever the minimum block size allows.
fn partial_blocks(uri: &Uri) -> Res<()> {
    let mut c = nbd::Connection::open(uri)?;
    let unit = u64::from(c.export.blocks.map_or(1, |b| b.0).max(1));
    let base = 20 * MIB;
    let mut image = vec![0xEEu8; 2 * MIB as usize];
    c.write_at(base, &image)?;
    let mut rng = rng::Rng::new(4);
    for round in 0..300u64 {
        let len = unit * (1 + rng.below(20_000 / unit));
        let most = (image.len() as u64 - len) / unit;
        // Around the extent boundary more often than anywhere else.
        let near = MIB / unit - rng.below(MIB.min(len) / unit + 1);
        let at = unit * if round % 3 == 0 { near.min(most) } else { rng.below(most + 1) };
        let part = at as usize..(at + len) as usize;
        if round % 5 == 4 {
            image[part].fill(0);
            c.zero(base + at, len as usize)?;
        } else {
            image[part.clone()].fill((round % 250) as u8 + 1);
            c.write_at(base + at, &image[part])?;
        }
    }
    let back = c.read_at(base, image.len())?;
    let wrong = back.iter().zip(&image).position(|(a, b)| a != b);
    ensure!(wrong.is_none(), "byte {} of {} differs", wrong.unwrap_or_default(), image.len());
    Ok(())
}

fn extend(cluster: &Cluster, uri: &Uri) -> Res<()> {
    let mut old = nbd::Connection::open(uri)?;
    cluster.scli_json(["volume", "extend", "--name", "clients", "--size", "80MiB"])?;
    wait_until("the new size", Duration::from_secs(10), || {
        Ok((nbd::Connection::open(uri)?.export.size == 80 * MIB).then_some(()))
    })?;
    old.write_at(0, &[9; 4096])?;
    let mut new = nbd::Connection::open(uri)?;
    ensure!(new.read_at(72 * MIB, 4096)? == [0; 4096], "new space does not read as zeroes");
    new.write_at(80 * MIB - 4096, &[7; 4096])?;
    ensure!(new.read_at(80 * MIB - 4096, 4096)? == [7; 4096], "the last block of the new space");
    Ok(())
}
