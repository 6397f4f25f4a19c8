//! Puts the git commit into the binaries as `QUARRY_COMMIT`; "unknown" where there is none. Never
//! fails: a source archive without `.git`, or a host without git, builds all the same.
//!
//! The profile of the tests says "checked" instead: nearly everything depends on this crate, and a
//! commit would make each test build start again from here.

use std::path::Path;
use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok()?;
    if !out.status.success() {
        return None;
    }
    let text = String::from_utf8(out.stdout).ok()?.trim().to_string();
    (!text.is_empty()).then_some(text)
}

/// Asks cargo to run this again when `HEAD` moves: on a checkout and on a commit.
fn watch() {
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]) {
            // A path that does not exist would make cargo run this at every build.
            if Path::new(&path).exists() {
                println!("cargo:rerun-if-changed={path}");
            }
        }
    }
}

/// Whether this is a build of the `checked` profile; cargo tells only by the path of the output.
fn checked() -> bool {
    std::env::var_os("OUT_DIR")
        .is_some_and(|dir| Path::new(&dir).components().any(|c| c.as_os_str() == "checked"))
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=QUARRY_COMMIT");
    if checked() && std::env::var_os("QUARRY_COMMIT").is_none() {
        println!("cargo:rustc-env=QUARRY_COMMIT=checked");
        return;
    }
    watch();
    let commit = std::env::var("QUARRY_COMMIT")
        .ok()
        .filter(|c| !c.is_empty())
        .or_else(|| git(&["rev-parse", "--short=12", "HEAD"]))
        .unwrap_or_else(|| "unknown".to_string());
    println!("cargo:rustc-env=QUARRY_COMMIT={commit}");
}
