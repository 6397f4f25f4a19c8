//! The small files in which daemons remember something.

use std::io::Write;
use std::path::Path;

/// Replaces a file: all or nothing, durable. Written beside it (`.new` behind its name), synced, renamed, and the
/// directory synced. Blocks.
pub fn replace_file(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_os_string();
    name.push(".new");
    let new = Path::new(&name);
    let mut f = std::fs::File::create(new)?;
    f.write_all(content)?;
    f.sync_all()?;
    std::fs::rename(new, path)?;
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = std::env::temp_dir().join(format!("quarry-replace-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("a.json");
        std::fs::write(dir.join("a.json.new"), "half of an earlier one").unwrap();
        for content in ["long content", "short"] {
            replace_file(&path, content.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(replace_file(&path, b"x").is_err());
    }
}
