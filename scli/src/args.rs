//! Commands and flags.

mod operate;

pub use operate::*;

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Quarry block storage: make, map and watch volumes.
#[derive(Debug, Parser)]
#[command(name = "scli", disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
pub struct Global {
    // Not by clap's `env`: it would show both as required in every usage line once they are set.
    /// Where the MDM's REST interface is; several, separated by commas, are tried in order
    /// [env: QUARRY_API] [default: http://127.0.0.1:7400]
    #[arg(long, global = true, value_name = "URL")]
    pub api: Option<String>,
    /// Token for the REST interface [env: QUARRY_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Answer in JSON, errors too
    #[arg(long, global = true)]
    pub json: bool,
    /// Wait until long work is done [300 seconds when no number is given]
    #[arg(long, global = true, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
          default_missing_value = "300")]
    pub wait: Option<u64>,
    /// Do not ask before something is destroyed (asked at a terminal only: a script that calls a command means it)
    #[arg(long, global = true)]
    pub yes: bool,
    /// Say what would happen and do nothing (commands that move or destroy something)
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Seconds one request may take
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,
}

impl Global {
    /// `--api`, else `QUARRY_API`, else an MDM on this host.
    pub fn apis(&self) -> String {
        self.api.clone().or_else(|| set("QUARRY_API")).unwrap_or_else(|| DEFAULT_API.to_string())
    }
    /// `--token`, else `QUARRY_TOKEN`.
    pub fn token(&self) -> Option<String> {
        self.token.clone().or_else(|| set("QUARRY_TOKEN"))
    }
}

/// A variable that is set and not empty.
fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Where an MDM on this host listens by default.
const DEFAULT_API: &str = "http://127.0.0.1:7400";

/// `--wait` may be followed by a number or by something else: joins the number to the flag, so that
/// in `scli --wait volume list` the word `volume` is not taken for it.
pub fn with_wait_joined(argv: Vec<OsString>) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::with_capacity(argv.len());
    let mut literal = false;
    for arg in argv {
        literal |= arg == "--";
        let digits = arg.to_str().is_some_and(|s| s.parse::<u64>().is_ok());
        match out.last_mut() {
            Some(last) if !literal && digits && last == "--wait" => {
                last.push("=");
                last.push(arg);
            }
            _ => out.push(arg),
        }
    }
    out
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Health of the cluster, how much has too few copies, and why; with --wait, once all data has all its copies
    Status(StatusArgs),
    /// Volumes
    #[command(subcommand, visible_alias = "vol")]
    Volume(Volume),
    /// Storage pools
    #[command(subcommand)]
    Pool(Pool),
    /// Protection domains
    #[command(subcommand)]
    Pd(Pd),
    /// Storage data servers
    #[command(subcommand)]
    Sds(Sds),
    /// Data clients
    #[command(subcommand)]
    Sdc(Sdc),
    /// Hosts and what they can do
    #[command(subcommand)]
    Node(Node),
    /// Devices of the storage data servers
    #[command(subcommand)]
    Device(Device),
    /// Placement groups
    #[command(subcommand)]
    Pg(Pg),
    /// Servers that are expected to fail together
    #[command(subcommand)]
    FaultSet(FaultSet),
    /// Settings of pools that may change while they live
    #[command(subcommand)]
    Policy(Policy),
    /// Restoring missing copies
    #[command(subcommand)]
    Rebuild(Rebuild),
    /// Why something is degraded, slow or stuck, and what to do
    Explain {
        #[arg(value_enum)]
        kind: Explained,
        /// Name or id
        object: String,
        /// List its placement groups that are not well
        #[arg(long)]
        groups: bool,
    },
    /// What happened
    Events(EventsArgs),
    /// Long work
    #[command(subcommand)]
    Task(Task),
    /// Connect to an NBD export: its size and flags, and one read
    Probe {
        /// nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH
        uri: String,
    },
    /// Check whether this host can run Quarry, and say how to cure what it lacks
    Doctor(DoctorArgs),
    /// Print completions for a shell
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// One object, by name or id.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// Name of the object
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Id of the object
    #[arg(long, value_name = "ID")]
    pub id: Option<u64>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Exit with 0 when ok, 10 when degraded, 20 when unavailable
    #[arg(long)]
    pub exit_code: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Provisioning {
    /// Space is taken when it is written
    Thin,
    /// Space is reserved at once
    Thick,
}
impl Provisioning {
    pub fn as_str(self) -> &'static str {
        match self {
            Provisioning::Thin => "thin",
            Provisioning::Thick => "thick",
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Ack {
    /// A write is answered when it is on stable storage in every copy
    Durable,
    /// Like a disk with a cache: durable after flush
    Cached,
}
impl Ack {
    pub fn as_str(self) -> &'static str {
        match self {
            Ack::Durable => "durable",
            Ack::Cached => "cached",
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Reads {
    /// Grants that run by the clocks of the hosts
    Lease,
    /// An answer of every copy for each batch of reads: for machines whose clock may stand still
    Confirm,
}
impl Reads {
    pub fn as_str(self) -> &'static str {
        match self {
            Reads::Lease => "lease",
            Reads::Confirm => "confirm",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Volume {
    /// All volumes
    List,
    /// One volume
    Get(Which),
    /// Make a volume
    Create {
        #[arg(long)]
        name: String,
        /// For example 10GiB; a multiple of 1 MiB
        #[arg(long)]
        size: String,
        #[arg(long, default_value = "default")]
        pool: String,
        #[arg(long, value_enum, default_value = "thin")]
        provisioning: Provisioning,
    },
    /// Give a volume to a data client; prints where to connect
    Map {
        #[command(flatten)]
        which: Which,
        /// Name of the data client
        #[arg(long)]
        sdc: String,
        /// Also attach it to the kernel as /dev/nbdN
        #[arg(long)]
        device: bool,
        /// Refuse writes of this client
        #[arg(long)]
        read_only: bool,
        /// Fail a request that has waited for so many seconds; 0: let it wait until it can be served
        #[arg(long)]
        io_timeout: Option<u64>,
    },
    /// Take a volume away from a data client
    Unmap {
        #[command(flatten)]
        which: Which,
        /// Name of the data client
        #[arg(long)]
        sdc: String,
        /// Even while it is mounted, open or written to there: its users get I/O errors
        #[arg(long)]
        force: bool,
    },
    /// Make a volume larger, online
    Extend {
        #[command(flatten)]
        which: Which,
        /// The new size, for example 20GiB
        #[arg(long)]
        size: String,
    },
    /// Destroy a volume and its data (refused while it is mapped)
    Delete(Which),
}

#[derive(Debug, Subcommand)]
pub enum Pool {
    /// All pools
    List,
    /// One pool
    Get(Which),
    /// State of a pool's placement groups
    Health(Which),
    /// Make a pool
    Create {
        #[arg(long)]
        name: String,
        /// Protection domain it belongs to
        #[arg(long, default_value = "default")]
        pd: String,
        /// Copies of every block, 1 to 3
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=3))]
        copies: u8,
        #[arg(long, value_enum, default_value = "durable")]
        ack: Ack,
        /// What is trusted before a read is served
        #[arg(long, value_enum, default_value = "lease")]
        reads: Reads,
        #[command(flatten)]
        more: PoolMore,
    },
    /// Spread the copies evenly over the devices
    Rebalance(Which),
    /// Destroy a pool (refused while it has volumes)
    Delete(Which),
}

#[derive(Debug, Subcommand)]
pub enum Pd {
    /// All protection domains
    List,
    /// One protection domain
    Get(Which),
    /// Make a protection domain
    Create {
        #[arg(long)]
        name: String,
    },
    /// Remove a protection domain (refused while it has pools or servers)
    Delete(Which),
}

#[derive(Debug, Subcommand)]
pub enum Sds {
    /// All storage data servers
    List,
    /// One storage data server
    Get(Which),
    /// Put a registered node's storage into a protection domain
    Add {
        /// Name of the node
        #[arg(long)]
        name: String,
        #[arg(long, default_value = "default")]
        pd: String,
        /// Name or id of the fault set it belongs to
        #[arg(long, value_name = "FAULT-SET")]
        fault_set: Option<String>,
    },
    /// Fence a server at once: its copies no longer count, its data is kept
    Fail {
        #[command(flatten)]
        which: Which,
        /// Even if it holds the last good copy of something
        #[arg(long)]
        force: bool,
    },
    /// Take a fenced or returned server back; with --wait, until all data has all its copies
    Recover(Which),
    /// Move all copies off a server, so that it can be removed
    Drain(Which),
    /// Remove a server (refused while it holds copies)
    Delete(Which),
}

#[derive(Debug, Subcommand)]
pub enum Sdc {
    /// All data clients
    List,
    /// One data client
    Get(Which),
    /// Let a registered node map volumes
    Add {
        /// Name of the node
        #[arg(long)]
        name: String,
    },
    /// Remove a data client (refused while volumes are mapped to it)
    Delete(Which),
}

#[derive(Debug, Subcommand)]
pub enum Pg {
    /// The placement groups of a pool
    List {
        #[arg(long, default_value = "default")]
        pool: String,
    },
    /// One placement group
    Get {
        /// As the list shows it, for example 1.17
        #[arg(long)]
        id: String,
    },
    /// Go on with older copies where the good ones are lost for ever: what was written since is lost too
    AcceptStale(AcceptStale),
}

#[derive(Debug, Subcommand)]
pub enum Rebuild {
    /// Begin to restore missing copies now
    Start(OfPool),
    /// How far it is
    Status(OfPool),
    /// Stop for now; data stays as it is
    Cancel(OfPool),
}

#[derive(Debug, Args)]
pub struct OfPool {
    /// Name of the pool
    #[arg(long, default_value = "default")]
    pub pool: String,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// How many, the newest last
    #[arg(long, default_value_t = 50)]
    pub limit: u32,
    /// Go on and show what happens
    #[arg(long)]
    pub follow: bool,
    /// Only events with a higher id
    #[arg(long)]
    pub since: Option<u64>,
    /// Only of this kind, for example sds_down
    #[arg(long)]
    pub what: Option<String>,
    /// Only what this user or part of the system did
    #[arg(long)]
    pub who: Option<String>,
    /// Only of this object, for example "sds sds1"
    #[arg(long)]
    pub object: Option<String>,
    /// Only with this outcome: ok, failed, cancelled, degraded, ...
    #[arg(long)]
    pub outcome: Option<String>,
    /// Change how many events the cluster keeps
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    pub keep: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum Task {
    /// What runs and what ended lately
    List,
    /// Stop a piece of long work: a drain, a rebalance, a rebuild
    Cancel {
        #[arg(long)]
        id: String,
    },
    /// One piece of long work, by the id a command answered with
    Get {
        #[arg(long)]
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Where devices and metadata would lie
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Where sockets would lie
    #[arg(long, value_name = "DIR", default_value = "/run/quarry")]
    pub socket_dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn join(words: &[&str]) -> Vec<String> {
        let argv = words.iter().map(OsString::from).collect();
        with_wait_joined(argv).into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wait_takes_a_number_but_no_other_word() {
        assert_eq!(join(&["scli", "--wait", "5", "status"]), ["scli", "--wait=5", "status"]);
        assert_eq!(join(&["scli", "--wait", "status"]), ["scli", "--wait", "status"]);
        let cli = Cli::try_parse_from(join(&["scli", "--wait", "node", "list"])).unwrap();
        assert_eq!(cli.global.wait, Some(300));
        let cli = Cli::try_parse_from(join(&["scli", "node", "list", "--wait", "7"])).unwrap();
        assert_eq!(cli.global.wait, Some(7));
    }

    #[test]
    fn name_and_id_exclude_each_other_and_one_is_needed() {
        for bad in [
            &["scli", "volume", "get"][..],
            &["scli", "volume", "get", "--name", "a", "--id", "1"],
            &["scli", "volume", "get", "--id", "x"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
        assert!(Cli::try_parse_from(["scli", "volume", "get", "--id", "1", "--json"]).is_ok());
    }
}
