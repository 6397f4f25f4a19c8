//! The command line and settings file, and their checked form.

use super::error::SdcError;
use super::sdctab::{self, Table};
use quarry_control::{Capability, NodeFile};
use quarry_metrics::cli::CommonArgs;
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket, bytes.
pub const MAX_SOCKET_PATH: usize = 107;

/// The storage data client: offers mapped volumes as NBD exports and kernel block devices.
#[derive(Debug, clap::Parser)]
pub struct Cli {
    #[command(flatten)]
    pub common: CommonArgs,
    #[command(flatten)]
    pub settings: Settings,
}

/// Settings; a flag beats `QUARRY_*` beats the file beats the default.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The node's identity file
    #[arg(long, value_name = "FILE", env = "QUARRY_NODE_CONFIG")]
    pub node_config: Option<PathBuf>,
    /// Where the daemon keeps its own state
    #[arg(long, value_name = "DIR", env = "QUARRY_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Directory of the volumes' NBD sockets [default: /run/quarry]
    #[arg(long, value_name = "DIR", env = "QUARRY_SOCKET_DIR")]
    pub socket_dir: Option<PathBuf>,
    /// TCP address of the metrics page [default: 127.0.0.1:0, a free port]
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<String>,
    /// Pin the data thread to this core, counted from 0
    #[arg(long, value_name = "N")]
    pub shard_core: Option<u32>,
    /// The volumes to map and attach at start [default: /etc/quarry/sdctab, if it is there]
    #[arg(long, value_name = "FILE", env = "QUARRY_SDCTAB")]
    pub sdctab: Option<PathBuf>,
    /// Reach data servers by TCP only, also those on this host
    #[arg(long)]
    pub no_unix: bool,
}

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: NodeFile,
    pub secret: String,
    pub data_dir: PathBuf,
    pub socket_dir: PathBuf,
    pub metrics: SocketAddr,
    pub shard_core: Option<usize>,
    pub no_unix: bool,
    pub sdctab: Table,
}

impl Settings {
    /// Checks everything that can be checked without changing anything.
    pub fn check(self) -> Result<Config, SdcError> {
        let missing =
            |flag: &str, what: &str| SdcError::Setting(format!("{flag} is missing: {what}"));
        let file = self
            .node_config
            .ok_or_else(|| missing("--node-config", "give the node's identity file"))?;
        let data_dir = self
            .data_dir
            .ok_or_else(|| missing("--data-dir", "give a directory for the daemon's own state"))?;
        let socket_dir = self.socket_dir.unwrap_or_else(|| PathBuf::from("/run/quarry"));
        let longest = fallback_path(&socket_dir, u32::MAX).as_os_str().as_bytes().len();
        if longest > MAX_SOCKET_PATH {
            return Err(SdcError::Setting(format!(
                "--socket-dir {} is too long: a socket path in it would have {longest} bytes, at most \
                 {MAX_SOCKET_PATH} are possible; use a shorter directory",
                socket_dir.display()
            )));
        }
        let node = NodeFile::load(&file, Capability::Sdc)?;
        let secret = node.secret()?;
        let text = self.metrics.as_deref().unwrap_or("127.0.0.1:0");
        let metrics = text.to_socket_addrs().ok().and_then(|mut a| a.next()).ok_or_else(|| {
            SdcError::Setting(format!(
                "--metrics '{text}' is not an address: give IP:PORT, for example 127.0.0.1:9703"
            ))
        })?;
        let table = self.sdctab.as_deref().unwrap_or(Path::new(sdctab::DEFAULT));
        let sdctab = sdctab::read(table, self.sdctab.is_some())?;
        Ok(Config {
            node,
            sdctab,
            secret,
            data_dir,
            socket_dir,
            metrics,
            shard_core: self.shard_core.map(|n| n as usize),
            no_unix: self.no_unix,
        })
    }
}

fn fallback_path(dir: &Path, volume: u32) -> PathBuf {
    dir.join(format!("v{volume}.sock"))
}

/// Where a volume's socket lies: by name, or by number when the name makes the path too long.
pub fn socket_path(dir: &Path, name: &str, volume: u32) -> PathBuf {
    let path = dir.join(format!("{name}.sock"));
    if path.as_os_str().as_bytes().len() <= MAX_SOCKET_PATH {
        return path;
    }
    fallback_path(dir, volume)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_too_long_for_a_socket_path_gives_way_to_the_number() {
        let dir = Path::new("/run/quarry");
        assert_eq!(socket_path(dir, "vol1", 7), Path::new("/run/quarry/vol1.sock"));
        let dir = PathBuf::from(format!("/{}", "d".repeat(60)));
        assert_eq!(socket_path(&dir, &"n".repeat(50), 7), dir.join("v7.sock"));
    }

    #[test]
    fn a_socket_directory_too_long_for_any_socket_is_refused() {
        let s = Settings {
            node_config: Some("/nonexistent".into()),
            data_dir: Some("/tmp".into()),
            socket_dir: Some(format!("/{}", "d".repeat(100)).into()),
            ..Settings::default()
        };
        let e = s.check().unwrap_err().to_string();
        assert!(e.contains("too long") && e.contains("107"), "{e}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let e = Settings::default().check().unwrap_err().to_string();
        assert!(e.contains("--node-config"), "{e}");
        let s = Settings { node_config: Some("/n".into()), ..Settings::default() };
        assert!(s.check().unwrap_err().to_string().contains("--data-dir"));
    }
}
