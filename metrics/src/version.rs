//! What `--version` and `quarry_build_info` say: release, commit, and the versions of the formats.

use std::fmt;

/// Version of the protocol between SDC, SDS and MDM. The crate that owns the format asserts that it
/// is the same; so for the next two.
pub const WIRE: u32 = 1;
/// Version of the format on devices.
pub const DISK: u32 = 3;
/// Version of the REST interface.
pub const API: u32 = 1;

/// The release, as in Cargo.toml.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// The git commit this was built from, 12 digits, or `unknown`.
pub const COMMIT: &str = env!("QUARRY_COMMIT");

/// One program's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Name of the program: `mdm`, `sds-server`, `sdc-nbd`, `scli`.
    pub program: &'static str,
    /// Version of the wire protocol it speaks.
    pub wire: u32,
    /// Version of the disk format it writes.
    pub disk: u32,
    /// Version of the REST interface it serves or uses.
    pub api: u32,
}

impl Info {
    /// This release of `program`, with the versions of the formats it was built with.
    pub const fn new(program: &'static str, wire: u32, disk: u32, api: u32) -> Info {
        Info { program, wire, disk, api }
    }
    /// This release of `program`, with this workspace's versions of the formats.
    pub const fn of(program: &'static str) -> Info {
        Info::new(program, WIRE, DISK, API)
    }
    /// Everything but the program's name, as clap wants it after the name.
    pub fn details(&self) -> String {
        format!(
            "{RELEASE} (commit {COMMIT}, wire {}, disk {}, api {})",
            self.wire, self.disk, self.api
        )
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program, self.details())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_names_release_commit_and_formats() {
        let text = Info::new("mdm", 3, 2, 1).to_string();
        assert_eq!(text, format!("mdm {RELEASE} (commit {COMMIT}, wire 3, disk 2, api 1)"));
        assert!(!COMMIT.is_empty());
    }
}
