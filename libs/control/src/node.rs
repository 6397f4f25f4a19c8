//! `node.toml`: one persistent identity a host; each daemon on it takes it (ARCHITECTURE section 7).

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a node may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Capability {
    Mdm,
    Sds,
    Sdc,
}

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Capability::Mdm => "MDM",
            Capability::Sds => "SDS",
            Capability::Sdc => "SDC",
        })
    }
}

/// The file, as written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFile {
    pub name: String,
    #[serde(default)]
    pub addresses: Vec<String>,
    pub capabilities: Vec<Capability>,
    /// `host:port` of the MDM members' control listeners.
    #[serde(default)]
    pub mdm: Vec<String>,
    /// File that holds the shared secret.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
}

/// What is wrong with a node file; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NodeFileError {
    #[error("cannot read {path}: {source}; give the node's identity file with --node-config")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a node file: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{path}: name '{name}' is not allowed: use letters, digits, '.', '_' and '-', 63 at most, a letter or digit first")]
    Name { path: PathBuf, name: String },
    #[error("node '{name}' does not list the capability {need} in {path}; add \"{need}\" to capabilities to run this daemon here")]
    Lacks { path: PathBuf, name: String, need: Capability },
    #[error("{path}: mdm = [\"host:port\"] is missing: name at least one MDM control address")]
    NoMdm { path: PathBuf },
    #[error("cannot read the secret file {path}: {source}")]
    Secret { path: PathBuf, source: std::io::Error },
}

/// True for names that objects and nodes may have: `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
pub fn valid_name(name: &str) -> bool {
    let mut c = name.chars();
    c.next().is_some_and(|f| f.is_ascii_alphanumeric())
        && name.len() <= 63
        && c.all(|x| x.is_ascii_alphanumeric() || "._-".contains(x))
}

impl NodeFile {
    /// Reads the file and checks that it lists `need`.
    pub fn load(path: &Path, need: Capability) -> Result<NodeFile, NodeFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| NodeFileError::Read { path: path.into(), source })?;
        let n: NodeFile = toml::from_str(&text).map_err(|e| NodeFileError::Parse {
            path: path.into(),
            message: e.message().to_string(),
        })?;
        if !valid_name(&n.name) {
            return Err(NodeFileError::Name { path: path.into(), name: n.name });
        }
        if !n.capabilities.contains(&need) {
            return Err(NodeFileError::Lacks { path: path.into(), name: n.name, need });
        }
        if need != Capability::Mdm && n.mdm.is_empty() {
            return Err(NodeFileError::NoMdm { path: path.into() });
        }
        Ok(n)
    }

    /// The shared secret, or an empty one if no file is named.
    pub fn secret(&self) -> Result<String, NodeFileError> {
        match &self.secret_file {
            None => Ok(String::new()),
            Some(p) => std::fs::read_to_string(p)
                .map(|s| s.trim().to_string())
                .map_err(|source| NodeFileError::Secret { path: p.clone(), source }),
        }
    }
}

/// (host, boot id): equal hosts share Unix sockets; a changed boot id means that the host crashed or restarted.
pub fn host_identity() -> (String, String) {
    let read =
        |p: &str| std::fs::read_to_string(p).map(|s| s.trim().to_string()).unwrap_or_default();
    let boot = read("/proc/sys/kernel/random/boot_id");
    let net = std::fs::read_link("/proc/self/ns/mnt")
        .map(|p| p.to_string_lossy().into_owned())
        .unwrap_or_default();
    (format!("{}/{boot}/{net}", read("/etc/machine-id")), boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, need: Capability) -> Result<NodeFile, NodeFileError> {
        let p = std::env::temp_dir().join(format!(
            "qnode-{}-{:?}.toml",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&p, text).unwrap();
        let r = NodeFile::load(&p, need);
        std::fs::remove_file(&p).unwrap();
        r
    }

    #[test]
    fn a_node_file_gives_its_identity() {
        let n = load("name='a1'\ncapabilities=['SDS','SDC']\nmdm=['127.0.0.1:1']", Capability::Sdc)
            .unwrap();
        assert_eq!((n.name.as_str(), n.capabilities.len()), ("a1", 2));
    }

    #[test]
    fn a_daemon_whose_capability_is_not_listed_is_refused() {
        let e = load("name='a1'\ncapabilities=['SDS']\nmdm=['x:1']", Capability::Sdc).unwrap_err();
        assert!(e.to_string().contains("does not list the capability SDC"), "{e}");
    }

    #[test]
    fn bad_names_and_unknown_keys_are_refused() {
        assert!(load("name='-x'\ncapabilities=['MDM']", Capability::Mdm).is_err());
        assert!(load("name='x'\ncapabilities=['MDM']\ncolour=1", Capability::Mdm).is_err());
        assert!(load("name='x'\ncapabilities=['GPU']", Capability::Mdm).is_err());
        assert!(load("name='x'\ncapabilities=['SDS']", Capability::Sds).is_err(), "no mdm address");
    }
}
