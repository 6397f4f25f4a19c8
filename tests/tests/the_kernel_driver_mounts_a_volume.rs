//! A volume on the kernel's own NBD driver, attached by our netlink code, in a User-Mode-Linux guest: mkfs, mount,
//! write, fstrim, remount, fsck, for ext4 and xfs; the SDC killed with -9 and ended in good order under the mounted
//! ext4 and fio (with QUARRY_TEST_FULL=1 under xfs too); growing in use; detaching what is mounted or stuck.

#![allow(clippy::expect_used)]

use quarry_tests::skip;
use std::path::Path;
use std::process::Command;

#[test]
fn the_kernel_driver_mounts_a_volume() {
    if !Path::new("/usr/bin/linux.uml").exists() {
        return skip("the_kernel_driver_mounts_a_volume", "linux.uml is not installed");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let full = std::env::var_os("QUARRY_TEST_FULL").is_some();
    let out = Command::new(root.join("scripts/uml"))
        .args(["--mem", "3G", "--seconds", if full { "600" } else { "300" }])
        .arg(root.join("tests/kernel/guest"))
        .env("GUEST_FULL", if full { "1" } else { "0" })
        .output()
        .expect("scripts/uml runs");
    let text = String::from_utf8_lossy(&out.stdout);
    println!("{text}{}", String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && text.contains("all steps held"), "the guest failed");
}
