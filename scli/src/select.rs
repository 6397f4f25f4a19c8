//! Finding objects by name or id, and checking what people type.

use crate::args::Which;
use crate::client::Client;
use crate::error::{CliError, Exit};
use serde_json::Value;

/// Kinds of object: word for people, path of the REST interface.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub word: &'static str,
    pub command: &'static str,
    pub path: &'static str,
}

pub const VOLUME: Kind = Kind { word: "volume", command: "volume", path: "vol" };
pub const POOL: Kind = Kind { word: "pool", command: "pool", path: "pool" };
pub const PD: Kind = Kind { word: "protection domain", command: "pd", path: "pd" };
pub const SDS: Kind = Kind { word: "SDS", command: "sds", path: "sds" };
pub const FAULT_SET: Kind = Kind { word: "fault set", command: "fault-set", path: "fault_set" };
pub const NODE: Kind = Kind { word: "node", command: "node", path: "cluster/nodes" };
pub const SDC: Kind = Kind { word: "SDC", command: "sdc", path: "sdc" };

/// Longest name.
const MAX_NAME: usize = 63;
/// Sizes of volumes are multiples of this.
const SIZE_STEP: u64 = 1 << 20;

/// Checks a name: `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
pub fn check_name(name: &str) -> Result<&str, CliError> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    let starts = name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if starts && name.len() <= MAX_NAME && name.bytes().all(plain) {
        return Ok(name);
    }
    let message = format!("'{name}' is no name");
    let hint = "letters, digits, '.', '_' and '-', 1 to 63 of them, a letter or digit first";
    Err(CliError::new(Exit::Usage, "invalid_name", message).hint(hint))
}

/// Reads a volume's size.
pub fn check_size(text: &str) -> Result<u64, CliError> {
    let bad = |message: String| {
        CliError::new(Exit::Usage, "invalid_size", message)
            .hint("a multiple of 1 MiB, for example 512MiB, 10GiB or 2TiB")
    };
    let bytes = quarry_base::units::parse_size(text).map_err(bad)?;
    if bytes == 0 {
        return Err(bad("a volume cannot have size 0".to_string()));
    }
    if bytes % SIZE_STEP != 0 {
        return Err(bad(format!("size {bytes} is not a multiple of 1 MiB")));
    }
    Ok(bytes)
}

/// The object as the list shows it; exit status 3 when there is none.
pub fn find(client: &Client, kind: Kind, which: &Which) -> Result<Value, CliError> {
    if let Some(id) = which.id {
        return client.get(&format!("/{}/{id}", kind.path));
    }
    let name = check_name(which.name.as_deref().unwrap_or(""))?;
    let list = if kind.path == NODE.path { "" } else { "/list" };
    let list = client.get(&format!("/{}{list}?name={name}", kind.path))?;
    let is_it = |o: &&Value| o.get("name").and_then(Value::as_str) == Some(name);
    list.as_array().and_then(|l| l.iter().find(is_it)).cloned().ok_or_else(|| {
        let message = format!("there is no {} '{name}'", kind.word);
        CliError::new(Exit::NotFound, "not_found", message)
            .hint(format!("scli {} list shows what there is", kind.command))
    })
}

/// Text as the value of a query parameter.
pub fn in_query(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    text.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// The object's id.
pub fn id(client: &Client, kind: Kind, which: &Which) -> Result<u64, CliError> {
    match which.id {
        Some(id) => Ok(id),
        None => id_of(&find(client, kind, which)?),
    }
}

/// The id of the object with this name.
pub fn id_by_name(client: &Client, kind: Kind, name: &str) -> Result<u64, CliError> {
    id(client, kind, &Which { name: Some(name.to_string()), id: None })
}

/// The `id` field.
pub fn id_of(object: &Value) -> Result<u64, CliError> {
    object.get("id").and_then(Value::as_u64).ok_or_else(|| {
        CliError::new(Exit::Failed, "bad_answer", "the MDM's answer has no id")
            .hint("do scli and mdm have the same release? scli --version tells")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_they_are_sent() {
        for good in ["a", "vol-1", "9.x_Y", &"a".repeat(63)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", &"a".repeat(64)] {
            assert_eq!(check_name(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn sizes_are_multiples_of_a_mebibyte() {
        assert_eq!(check_size("1GiB").unwrap(), 1 << 30);
        assert_eq!(check_size("1048576").unwrap(), 1 << 20);
        for bad in ["0", "1", "1000000", "1.5MiB", "big", ""] {
            assert_eq!(check_size(bad).unwrap_err().code, "invalid_size", "{bad}");
        }
    }
}
