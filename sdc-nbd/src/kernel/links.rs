//! Stable names: `/dev/disk/by-id/quarry-VOLUME` is a link to the device, as udev would make it.

use super::{KernelError, Roots};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Bytes of a link's name at most (a file name's limit).
const MAX_NAME: usize = 255;

/// A volume's name as a file name, with udev's escape (`\x2f`) for what it does not permit.
pub fn file_name(volume: &str) -> String {
    let mut name = String::from("quarry-");
    for b in volume.bytes() {
        if b.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&b) {
            name.push(b as char);
        } else {
            name += &format!("\\x{b:02x}");
        }
    }
    name.truncate(MAX_NAME);
    name
}

fn path(roots: &Roots, volume: &str) -> PathBuf {
    roots.dev.join("disk/by-id").join(file_name(volume))
}

fn target(index: u32) -> PathBuf {
    PathBuf::from(format!("../../nbd{index}"))
}

/// Makes the volume's link point to the device, in one step. Returns the link.
pub fn set(roots: &Roots, volume: &str, index: u32) -> Result<PathBuf, KernelError> {
    let link = path(roots, volume);
    if fs::read_link(&link).is_ok_and(|t| t == target(index)) {
        return Ok(link);
    }
    let dir = link.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(|e| KernelError::io("making", dir, e))?;
    let new = dir.join(format!(".quarry-nbd{index}.new"));
    match fs::remove_file(&new) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            return Err(KernelError::io("removing", new, e))
        }
        _ => {}
    }
    symlink(target(index), &new).map_err(|e| KernelError::io("making the link", &new, e))?;
    fs::rename(&new, &link).map_err(|e| KernelError::io("making the link", &link, e))?;
    Ok(link)
}

/// Removes the volume's link if it points to the device; another's is left alone.
pub fn remove(roots: &Roots, volume: &str, index: u32) -> Result<(), KernelError> {
    let link = path(roots, volume);
    if fs::read_link(&link).is_ok_and(|t| t == target(index)) {
        fs::remove_file(&link).map_err(|e| KernelError::io("removing the link", &link, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::device::tests::scratch;

    #[test]
    fn names_are_escaped_as_udev_does() {
        assert_eq!(file_name("db-1"), "quarry-db-1");
        assert_eq!(file_name("a/../b c"), "quarry-a\\x2f..\\x2fb\\x20c");
        assert_eq!(file_name("ö"), "quarry-\\xc3\\xb6");
        assert_eq!(file_name(&"x".repeat(400)).len(), 255);
    }

    #[test]
    fn a_link_is_replaced_in_one_step_and_removed_by_its_owner_alone() {
        let dir = scratch("links");
        let roots = Roots::under(&dir);
        let link = set(&roots, "vol", 3).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../../nbd3"));
        assert_eq!(set(&roots, "vol", 4).unwrap(), link);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../../nbd4"));
        remove(&roots, "vol", 3).unwrap();
        assert!(fs::read_link(&link).is_ok(), "it belongs to nbd4 now");
        remove(&roots, "vol", 4).unwrap();
        assert!(fs::read_link(&link).is_err());
        remove(&roots, "vol", 4).unwrap();
        assert_eq!(fs::read_dir(dir.join("dev/disk/by-id")).unwrap().count(), 0);
        fs::remove_dir_all(dir).unwrap();
    }
}
