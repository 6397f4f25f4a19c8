//! The command line and settings file, and their checked form.

use crate::error::SdsError;
use quarry_base::units::parse_size;
use quarry_control::{Capability, NodeFile};
use quarry_metrics::cli::CommonArgs;
use quarry_store::StoreConfig;
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// Devices of one daemon at most.
pub const MAX_DEVICES: usize = 64;
/// Bytes a second that the scrub reads unless told otherwise: a full TiB in a day and a half.
const SCRUB_RATE: u64 = 8 << 20;

/// The storage data server: keeps replicated extents on the devices given.
#[derive(Debug, clap::Parser)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub common: CommonArgs,
    #[command(flatten)]
    pub settings: Settings,
}

/// What else the program does.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Wipe a device, so that a data server takes it as a blank one. Everything on it is lost
    Format {
        /// Wipe it although it holds something
        #[arg(long)]
        force: bool,
        path: PathBuf,
    },
    /// Say what a device is: cluster, identity, format, sizes
    Inspect { path: PathBuf },
    /// Check a device that no server uses: every structure, every block. Writes nothing. Status 3: something is damaged
    Check {
        /// Write damaged superblocks and table pages anew (data is mended by a running server, from other copies)
        #[arg(long)]
        repair: bool,
        path: PathBuf,
    },
    /// Show a structure of a device that no server uses
    Dump {
        #[arg(long, value_enum, default_value = "super")]
        part: crate::fsck::Part,
        path: PathBuf,
    },
}

/// Settings; a flag beats `QUARRY_*` beats the file beats the default.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The node's identity file
    #[arg(long, value_name = "FILE", env = "QUARRY_NODE_CONFIG")]
    pub node_config: Option<PathBuf>,
    /// Where the daemon keeps its own state (not the volumes' data)
    #[arg(long, value_name = "DIR", env = "QUARRY_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// A file or block device to store data on; may be repeated
    #[arg(long, value_name = "PATH")]
    pub device: Vec<PathBuf>,
    /// Create missing device files with this size, for example 10GiB
    #[arg(long, value_name = "SIZE")]
    pub device_size: Option<String>,
    /// Directory of the Unix socket for clients and servers on this host [default: /run/quarry]
    #[arg(long, value_name = "DIR", env = "QUARRY_SOCKET_DIR")]
    pub socket_dir: Option<PathBuf>,
    /// TCP address for data [default: 127.0.0.1:0, a free port]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// TCP address of the metrics page [default: 127.0.0.1:0, a free port]
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<String>,
    /// Pin the data thread to this core, counted from 0
    #[arg(long, value_name = "N")]
    pub shard_core: Option<u32>,
    /// Bytes a second that the scrub of each device reads where its pool's policy does not say; 0 switches it off [default: 8MiB]
    #[arg(long, value_name = "SIZE", env = "QUARRY_SCRUB_RATE")]
    pub scrub_rate: Option<String>,
    /// Memory for checksums of each device's pages, for example 256MiB; the rest is read from the device when
    /// it is needed. 64MiB are enough for 63 GiB of content [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "QUARRY_CHECKSUM_CACHE")]
    pub checksum_cache: Option<String>,
    /// No Unix socket: TCP only
    #[arg(long)]
    pub no_unix: bool,
}

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: NodeFile,
    pub secret: String,
    pub data_dir: PathBuf,
    pub devices: Vec<PathBuf>,
    pub device_bytes: Option<u64>,
    /// Bytes a second and device where the pool's policy does not say; 0: no scrub.
    pub scrub_rate: u64,
    /// Bytes of memory a device.
    pub checksum_cache: u64,
    /// Path of the Unix data socket.
    pub socket: Option<PathBuf>,
    pub listen: SocketAddr,
    pub metrics: SocketAddr,
    pub shard_core: Option<usize>,
}

fn address(flag: &'static str, text: &str) -> Result<SocketAddr, SdsError> {
    let found = text.to_socket_addrs().ok().and_then(|mut a| a.next());
    found.ok_or_else(|| {
        SdsError::Setting(format!(
            "{flag} '{text}' is not an address: give IP:PORT, for example 127.0.0.1:9701"
        ))
    })
}

impl Settings {
    /// Checks everything that can be checked without touching a device.
    pub fn check(self) -> Result<Config, SdsError> {
        let missing =
            |flag: &str, what: &str| SdsError::Setting(format!("{flag} is missing: {what}"));
        let file = self
            .node_config
            .ok_or_else(|| missing("--node-config", "give the node's identity file"))?;
        let data_dir = self
            .data_dir
            .ok_or_else(|| missing("--data-dir", "give a directory for the daemon's own state"))?;
        if self.device.is_empty() {
            return Err(missing(
                "--device",
                "name at least one file or block device to store data on",
            ));
        }
        if self.device.len() > MAX_DEVICES {
            return Err(SdsError::Setting(format!(
                "{} devices are named, one daemon takes {MAX_DEVICES} at most",
                self.device.len()
            )));
        }
        let device_bytes = match &self.device_size {
            None => None,
            Some(t) => {
                Some(parse_size(t).map_err(|e| SdsError::Setting(format!("--device-size: {e}")))?)
            }
        };
        let scrub_rate = match &self.scrub_rate {
            None => SCRUB_RATE,
            Some(t) => {
                parse_size(t).map_err(|e| SdsError::Setting(format!("--scrub-rate: {e}")))?
            }
        };
        let checksum_cache = match &self.checksum_cache {
            None => StoreConfig::default().check_cache_bytes,
            Some(t) => {
                parse_size(t).map_err(|e| SdsError::Setting(format!("--checksum-cache: {e}")))?
            }
        };
        let node = NodeFile::load(&file, Capability::Sds)?;
        let secret = node.secret()?;
        let dir = self.socket_dir.unwrap_or_else(|| PathBuf::from("/run/quarry"));
        let socket = (!self.no_unix).then(|| dir.join(format!("sds-{}.sock", node.name)));
        Ok(Config {
            secret,
            data_dir,
            devices: self.device,
            device_bytes,
            scrub_rate,
            checksum_cache,
            socket,
            listen: address("--listen", self.listen.as_deref().unwrap_or("127.0.0.1:0"))?,
            metrics: address("--metrics", self.metrics.as_deref().unwrap_or("127.0.0.1:0"))?,
            shard_core: self.shard_core.map(|n| n as usize),
            node,
        })
    }
}

impl Config {
    /// The address that others reach when the listener is bound to `bound`: itself, or for a wildcard
    /// the node's first address.
    pub fn reachable(&self, bound: SocketAddr) -> Result<SocketAddr, SdsError> {
        if !bound.ip().is_unspecified() {
            return Ok(bound);
        }
        let mut of_node = self.node.addresses.iter().filter_map(|a| a.parse().ok());
        let ip = of_node.next().ok_or_else(|| {
            SdsError::Setting(format!(
                "--listen {bound} does not say where others reach this node: give its address there, or addresses = [\"IP\"] in the node file"
            ))
        })?;
        Ok(SocketAddr::new(ip, bound.port()))
    }
}
