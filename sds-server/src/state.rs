//! The little the daemon remembers in its data directory: its cluster, the identities it gave to
//! devices that are not formatted yet (so that a crash in between does not register them twice), and
//! which devices failed behind the page cache.
//!
//! Why the last: a failed write or sync is final for a device. Where it is opened with O_DIRECT a restart of the
//! server is another try, for recovery reads what the medium holds and syncs it. Where O_DIRECT is refused it reads the page
//! cache, and after a failed sync the kernel takes the pages that it could not write for clean: recovery would find batches
//! that never were on the disk, its own sync would succeed, and they would count as durable. So such a device stays failed
//! until it is formatted anew, or its host has booted: then nothing of it is in a cache.

use crate::error::SdsError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the file in the data directory.
const FILE: &str = "sds.json";

/// Content of the file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Version of this file's layout.
    pub version: u32,
    /// Cluster this server belongs to, 32 hexadecimal digits.
    pub cluster: Option<String>,
    /// Identity of each blank device, by path.
    pub blank: BTreeMap<PathBuf, String>,
    /// Devices whose write or sync failed where O_DIRECT is refused, by identity.
    #[serde(default)]
    pub failed: BTreeMap<String, FailedDevice>,
}

/// A device that is not opened again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FailedDevice {
    /// Where it was.
    pub path: PathBuf,
    /// What failed.
    pub why: String,
    /// When, seconds since 1970.
    pub at: u64,
    /// The host's boot that had it in its cache.
    #[serde(default)]
    pub boot: String,
}

impl FailedDevice {
    /// What is said of it where it lies at `path` now.
    pub fn message(&self, path: &Path) -> String {
        let ago = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH + std::time::Duration::from_secs(self.at))
            .map_or(0, |d| d.as_secs());
        format!(
            "{path} failed {ago} s before this server started ({}), and O_DIRECT is refused there: what reads back may never have been on the disk, so it is not opened again before its host is booted anew; its data is restored from other copies: replace the device, or wipe it with `sds-server format --force {path}`",
            self.why,
            path = path.display()
        )
    }
}

/// The state and where it lies.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
    pub state: State,
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> SdsError + '_ {
    move |source| SdsError::File { path: path.to_path_buf(), source }
}

impl StateFile {
    /// Reads it, or begins an empty one.
    pub fn load(dir: &Path) -> Result<StateFile, SdsError> {
        let path = dir.join(FILE);
        let state = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| {
                SdsError::Setting(format!(
                    "{} is damaged ({e}): remove it; devices keep their identity themselves",
                    path.display()
                ))
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                State { version: 1, ..State::default() }
            }
            Err(e) => return Err(failed(&path)(e)),
        };
        Ok(StateFile { path, state })
    }

    /// Replaces the file: all or nothing, durable.
    pub fn save(&self) -> Result<(), SdsError> {
        let fail = failed(&self.path);
        let text = serde_json::to_vec_pretty(&self.state).map_err(|e| fail(e.into()))?;
        quarry_control::replace_file(&self.path, &text, 0o644).map_err(fail)
    }

    /// A device that failed before, during this boot of the host, and may not be opened again.
    pub fn failed(&self, uuid: &[u8; 16]) -> Option<&FailedDevice> {
        let boot = quarry_control::host_identity().1;
        self.state.failed.get(&to_hex(uuid)).filter(|f| f.boot.is_empty() || f.boot == boot)
    }

    /// The identity of a blank device: the one given before, or a new one. That it has failed before is forgotten: all of it
    /// is written anew.
    pub fn uuid_of_blank(&mut self, path: &Path) -> Result<[u8; 16], SdsError> {
        if let Some(known) = self.state.blank.get(path).and_then(|t| from_hex(t)) {
            if self.state.failed.remove(&to_hex(&known)).is_some() {
                self.save()?;
            }
            return Ok(known);
        }
        let uuid = *uuid::Uuid::new_v4().as_bytes();
        self.state.blank.insert(path.to_path_buf(), to_hex(&uuid));
        self.save()?;
        Ok(uuid)
    }
}

/// 32 hexadecimal digits.
pub fn to_hex(id: &[u8; 16]) -> String {
    id.iter().map(|b| format!("{b:02x}")).collect()
}

/// The identity behind 32 hexadecimal digits (hyphens, as in UUIDs, are allowed).
pub fn from_hex(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    if digits.len() != 32 {
        return None;
    }
    let mut id = [0; 16];
    for (out, pair) in id.iter_mut().zip(digits.chunks(2)) {
        let pair =
            std::str::from_utf8(pair).ok().filter(|p| p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *out = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_device_keeps_the_identity_it_was_given_over_a_restart() {
        let dir = std::env::temp_dir().join(format!("quarry-sds-state-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut s = StateFile::load(&dir).unwrap();
        let id = s.uuid_of_blank(Path::new("/dev/x")).unwrap();
        assert_ne!(id, s.uuid_of_blank(Path::new("/dev/y")).unwrap());
        let mut again = StateFile::load(&dir).unwrap();
        assert_eq!(again.uuid_of_blank(Path::new("/dev/x")).unwrap(), id);
        std::fs::write(dir.join(FILE), "nonsense").unwrap();
        assert!(StateFile::load(&dir).unwrap_err().to_string().contains("is damaged"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_failed_device_is_remembered_until_it_is_blank_again() {
        let dir = std::env::temp_dir().join(format!("quarry-sds-failed-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        // Written by a release that did not know of it.
        std::fs::write(dir.join(FILE), r#"{"version":1,"cluster":null,"blank":{}}"#).unwrap();
        let mut s = StateFile::load(&dir).unwrap();
        let id = s.uuid_of_blank(Path::new("/x")).unwrap();
        assert_eq!(s.failed(&id), None);
        let f = FailedDevice {
            path: "/x".into(),
            why: "Input/output error".into(),
            at: 1,
            boot: quarry_control::host_identity().1,
        };
        s.state.failed.insert(to_hex(&id), f.clone());
        s.save().unwrap();
        let mut s = StateFile::load(&dir).unwrap();
        assert_eq!(s.failed(&id), Some(&f));
        assert_eq!(s.failed(&[9; 16]), None);
        s.state
            .failed
            .insert(to_hex(&[9; 16]), FailedDevice { boot: "before".into(), ..f.clone() });
        assert_eq!(s.failed(&[9; 16]), None, "nothing of it is in the cache any more");
        let says = f.message(Path::new("/y"));
        assert!(
            says.contains("(Input/output error)") && says.contains("format --force /y"),
            "{says}"
        );
        assert_eq!(s.uuid_of_blank(Path::new("/x")).unwrap(), id);
        assert_eq!(StateFile::load(&dir).unwrap().failed(&id), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn identities_survive_hexadecimal() {
        let id = [0, 1, 0xfe, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255];
        assert_eq!(from_hex(&to_hex(&id)), Some(id));
        assert_eq!(from_hex("0001fe03-0405-0607-0809-0a0b0c0d0eff"), Some(id));
        for bad in ["", "12", &"g".repeat(32), &"+1".repeat(16)] {
            assert_eq!(from_hex(bad), None, "{bad}");
        }
    }
}
