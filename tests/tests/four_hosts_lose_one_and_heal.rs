//! `scripts/multivm-demo`: a server and the MDM on one host, servers on two more, a client on a fourth, joined by a network only; a file
//! system is written, one host is switched off under it, the data heals, the host comes back. With QUARRY_TEST_FULL=1 the
//! hosts are User-Mode-Linux guests with the kernel's nbd driver, else network namespaces.

use quarry_tests::cluster::{binary, root};
use quarry_tests::*;
use std::path::Path;
use std::time::Duration;

#[test]
fn four_hosts_lose_one_and_heal() -> Res<()> {
    let name = "four_hosts_lose_one_and_heal";
    if let Some(why) = need_programs(&["ip", "mkfs.ext4", "nbdfuse", "python3"]) {
        skip(name, &why);
        return Ok(());
    }
    let guests = full() && Path::new("/usr/bin/linux.uml").exists();
    let hosts = if guests { "uml" } else { "netns" };
    let bin = binary("mdm")?;
    let bin = Path::new(&bin).parent().map(|p| p.display().to_string()).unwrap_or_default();
    let out = Command::new(root().join("scripts/multivm-demo"))
        .args(["--hosts", hosts])
        .env("QUARRY_BIN_DIR", &bin)
        .limit(Duration::from_secs(500))
        .run()?;
    println!("{}{}", out.stdout, out.stderr);
    ensure!(out.status == Some(0), "{}", out.told());
    for held in ["without an error", "every checksum is right", "one lost and healed"] {
        ensure!(out.stdout.contains(held), "it did not say '{held}': {}", out.told());
    }
    Ok(())
}
