//! The small files in which daemons remember something.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces a file, or makes it: all or nothing, durable. Written beside it (`.new` behind its name), synced, renamed, and the
/// directory synced. Blocks. `mode`: who may read it, less the umask; 0o600 for a secret.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_os_string();
    name.push(".new");
    let new = Path::new(&name);
    // What a crash has left is not written into: it might be readable by others.
    match std::fs::remove_file(new) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut f = OpenOptions::new().write(true).create_new(true).mode(mode).open(new)?;
    f.write_all(content)?;
    f.sync_all()?;
    std::fs::rename(new, path)?;
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = std::env::temp_dir().join(format!("quarry-replace-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("a.json");
        std::fs::write(dir.join("a.json.new"), "half of an earlier one").unwrap();
        for content in ["long content", "short"] {
            replace_file(&path, content.as_bytes(), 0o600).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(replace_file(&path, b"x", 0o600).is_err());
    }
}
