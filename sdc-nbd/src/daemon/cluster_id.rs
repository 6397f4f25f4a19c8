//! The one thing a client remembers: which cluster it belongs to.

use super::error::SdcError;
use std::io::ErrorKind;
use std::path::Path;

/// File in the data directory: the cluster id and a newline.
const FILE: &str = "cluster";

fn failed(what: &str, path: &Path, source: std::io::Error) -> SdcError {
    SdcError::System { what: format!("{what} {}", path.display()), source }
}

/// The cluster this client belongs to; `None` before its first registration.
pub fn read(dir: &Path) -> Result<Option<String>, SdcError> {
    let path = dir.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_string()).filter(|t| !t.is_empty())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("cannot read", &path, e)),
    }
}

/// Keeps it, durably.
pub fn write(dir: &Path, cluster: &str) -> Result<(), SdcError> {
    let path = dir.join(FILE);
    quarry_control::replace_file(&path, format!("{cluster}\n").as_bytes(), 0o644)
        .map_err(|e| failed("cannot write", &path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_id_is_kept() {
        let dir = std::env::temp_dir().join(format!("quarry-sdc-cluster-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(read(&dir).unwrap(), None);
        write(&dir, "abc").unwrap();
        assert_eq!(read(&dir).unwrap(), Some("abc".into()));
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(write(&dir, "abc").unwrap_err().to_string().contains("cannot write"));
    }
}
