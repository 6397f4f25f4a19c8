//! `ack = cached`: the power of every data server fails at once, on disks that lose, keep or tear whatever was not
//! flushed, and every host boots: what was flushed or written with FUA is there, a page that was not holds one of the
//! contents that it had since its last flush, whole, and the copies agree.

use quarry_tests::nbd::consts::{CMD_FLAG_FUA, CMD_FLUSH, CMD_WRITE, EIO};
use quarry_tests::nbd::Connection;
use quarry_tests::volatile::{Sync, VolatileDisk};
use quarry_tests::*;
use serde_json::{json, Value};
use std::path::Path;
use std::time::{Duration, Instant};

const NAME: &str = "power_loss_of_every_cached_copy_loses_nothing_flushed";
const PAGE: usize = 4096;
const PAGES: u64 = 192;
const SERVERS: u32 = 3;

/// Each data server sees a boot id of its own, in a file: a mount namespace whose `boot_id` is that file.
struct Boots {
    scratch: Scratch,
}

impl Boots {
    fn new() -> Res<Boots> {
        let boots = Boots { scratch: Scratch::new()? };
        boots.boot(0)?;
        Ok(boots)
    }

    fn file(&self, server: u32) -> String {
        self.scratch.file(&format!("boot{server}"))
    }

    /// Every host boots.
    fn boot(&self, count: u64) -> Res<()> {
        for s in 1..=SERVERS {
            std::fs::write(self.file(s), format!("00000000-0000-4000-8000-{s:04}{count:08}\n"))?;
        }
        Ok(())
    }

    fn members(&self) -> Value {
        let mut all = serde_json::Map::new();
        for s in 1..=SERVERS {
            let mount = format!(
                "mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"",
                self.file(s)
            );
            let wrap = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
            all.insert(format!("sds{s}"), json!({ "wrap": wrap }));
        }
        Value::Object(all)
    }
}

fn page(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(PAGE / 8)
}

/// The one value that fills a page.
fn value_of(data: &[u8], at: u64) -> Res<u64> {
    let first: Vec<u8> = data.iter().take(8).copied().collect();
    ensure!(data.chunks(8).all(|c| c == first), "page {at} is torn");
    Ok(u64::from_le_bytes(first.try_into().unwrap_or_default()))
}

fn write_fua(c: &mut Connection, at: u64, data: &[u8]) -> Res<()> {
    let reply = c.call(CMD_WRITE, CMD_FLAG_FUA, at * PAGE as u64, PAGE as u32, data)?;
    ensure!(reply.error == 0, "a write with FUA failed: NBD error {}", reply.error);
    Ok(())
}

/// Writes and flushes one round, then writes without a flush; checks after the power cycle what is left.
fn one_cut(
    cluster: &Cluster,
    uri: &Uri,
    cycle: &dyn Fn() -> Res<usize>,
    cut: u64,
) -> Res<(usize, usize)> {
    let (old, new) = (cut * 2, cut * 2 + 1);
    let mut c = Connection::open(uri)?;
    for p in 0..PAGES {
        c.write_at(p * PAGE as u64, &page(old))?;
    }
    c.flush()?;
    for p in (0..PAGES).filter(|p| p % 2 == 0) {
        match p % 16 {
            0 => write_fua(&mut c, p, &page(new))?,
            _ => c.write_at(p * PAGE as u64, &page(new))?,
        }
    }
    let began = Instant::now();
    let unflushed = cycle()?;
    drop(c);
    let mended = Instant::now();
    cluster.up_again().map_err(|e| e.within(format!("restart after cut {cut}")))?;
    let uri = cluster.map("p", "sdc1")?;
    let mut c = Connection::open(&uri)?;
    c.read_at(0, PAGE)?;
    let report = LoadReport { longest_gap: began.elapsed(), ..LoadReport::default() };
    cluster.wait_health("ok", Duration::from_secs(60))?;
    fault::leave_run(6, "power loss of all, ack = cached", &report, mended.elapsed())?;
    let mut fell_back = 0;
    for p in 0..PAGES {
        let got = value_of(&c.read_at(p * PAGE as u64, PAGE)?, p)?;
        let good = match (p % 2, p % 16) {
            (1, _) => got == old,
            (_, 0) => got == new,
            _ => got == old || got == new,
        };
        ensure!(good, "cut {cut}: page {p} holds {got}, flushed was {old}, {new} came after");
        fell_back += usize::from(p % 2 == 0 && got == old);
        let again = value_of(&c.read_at(p * PAGE as u64, PAGE)?, p)?;
        ensure!(again == got, "page {p} was {got} and is {again}");
    }
    Ok((unflushed, fell_back))
}

/// Power fails for the servers only: a client that lives through it is told by its next flush, once, that what was
/// answered before it may be gone.
fn a_living_client_is_told(cluster: &Cluster, uri: &Uri, cut: impl Fn() -> Res<()>) -> Res<()> {
    let mut c = Connection::open(uri)?;
    c.write_at(0, &page(1))?;
    c.flush()?;
    for p in 0..PAGES {
        c.write_at(p * PAGE as u64, &page(2))?;
    }
    cut()?;
    cluster.up_again().map_err(|e| e.within("restart of the servers"))?;
    let reply = c.call(CMD_FLUSH, 0, 0, 0, &[])?;
    ensure!(reply.error == EIO, "the first flush after the loss answered {}", reply.error);
    c.flush().map_err(|e| e.within("the second flush"))?;
    let at = cluster.member("sdc1")?.metrics;
    wait_until("the flush that failed to be counted", Duration::from_secs(10), || {
        let failed = http::metric(&at, "quarry_sdc_flushes_failed_total", "")?;
        Ok((failed > 0.0).then_some(()))
    })?;
    write_fua(&mut c, 0, &page(3))?;
    c.flush().map_err(|e| e.within("the third flush"))
}

#[test]
fn power_loss_of_every_cached_copy_loses_nothing_flushed() -> Res<()> {
    if let Some(why) = need_programs(&["nbdfuse", "fusermount3", "unshare", "mount"]) {
        skip(NAME, &why);
        return Ok(());
    }
    let boots = Boots::new()?;
    let options = ClusterOptions {
        sds: SERVERS,
        device_size: "256MiB",
        ack: "cached",
        ..ClusterOptions::default()
    };
    with_members(options, boots.members(), |cluster| {
        cluster.down()?;
        let mut disks = Vec::new();
        for m in cluster.of_role("sds")? {
            for device in &m.devices {
                disks.push(VolatileDisk::over(Path::new(device), Sync::Done)?);
            }
        }
        cluster.up_again()?;
        let mut uri = cluster.new_volume("p", "64MiB", "sdc1")?;
        let (mut unflushed, mut fell_back) = (0, 0);
        let cuts = if full() { 20 } else { 3 };
        for cut in 1..=cuts {
            let cycle = || {
                let mut lost = 0;
                for (i, d) in disks.iter().enumerate() {
                    lost += d.cut(cut * 16 + i as u64)?;
                }
                cluster.kill_everything()?;
                boots.boot(cut)?;
                disks.iter().for_each(VolatileDisk::on);
                Ok(lost)
            };
            let (lost, fell) = one_cut(cluster, &uri, &cycle, cut)?;
            eprintln!("cut {cut}: {lost} unflushed pages of the disks, {fell} pages fell back");
            (unflushed, fell_back) = (unflushed + lost, fell_back + fell);
            uri = cluster.map("p", "sdc1")?;
        }
        ensure!(unflushed > 0, "no cut ever met an unflushed page: it shows nothing");
        let events = cluster.scli_json(["events", "--what", "pg_fell_back"])?.to_string();
        ensure!(events.contains("pg_fell_back"), "no group ever lost all its caches");
        eprintln!("{fell_back} pages fell back to what was flushed");
        let servers_only = || {
            // First the processes: one that saw its disk go would tell the MDM, which lives on, that the disk failed.
            cluster.kill_role("sds")?;
            for (i, d) in disks.iter().enumerate() {
                d.cut(7 + i as u64)?;
            }
            boots.boot(cuts + 1)?;
            disks.iter().for_each(VolatileDisk::on);
            Ok(())
        };
        // The disks outlive the servers on them, whatever comes of it.
        let told = a_living_client_is_told(cluster, &uri, servers_only);
        cluster.wait_health("ok", Duration::from_secs(60))?;
        cluster.expect_identical_replicas()?;
        drop(disks);
        told
    })
}
