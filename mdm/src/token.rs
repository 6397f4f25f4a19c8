//! The API's token: from its file, or a new random one that only the owner can read.

use anyhow::{bail, Context};
use std::io::ErrorKind;
use std::path::Path;

/// The token in the file, which is made when missing.
pub fn get(path: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(t) if !t.trim().is_empty() => return Ok(t.trim().to_string()),
        Ok(_) => bail!("the token file {} is empty: remove it to get a new token", path.display()),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => bail!("cannot read the token file {}: {e}", path.display()),
    }
    let token =
        uuid::Uuid::new_v4().simple().to_string() + &uuid::Uuid::new_v4().simple().to_string();
    // All or nothing: with an empty file the MDM would not start again.
    quarry_control::replace_file(path, format!("{token}\n").as_bytes(), 0o600)
        .with_context(|| format!("cannot make the token file {}", path.display()))?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_made_whole_for_its_owner_only_also_after_a_crash_in_between() {
        let dir = std::env::temp_dir().join(format!("quarry-token-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("token");
        std::fs::write(dir.join("token.new"), "").unwrap();
        let made = get(&path).unwrap();
        assert_eq!(made.len(), 64);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{made}\n"));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!((mode & 0o777, std::fs::read_dir(&dir).unwrap().count()), (0o600, 1));
        assert_eq!(get(&path).unwrap(), made);
        std::fs::write(&path, "\n").unwrap();
        assert!(get(&path).unwrap_err().to_string().contains("remove it"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
