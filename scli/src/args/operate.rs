//! Commands and flags of what operators do to nodes, devices and pools that run.

use super::{OfPool, Which};
use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub enum Node {
    /// All hosts, what they can do, and how they are
    List,
    /// One host
    Get(Which),
    /// May this host be stopped now? Exit status 0 yes, 10 with care (a client or the MDM runs there), 20 no
    CanStop(Which),
    /// Change what a host may do, of what its node file lists
    #[command(subcommand)]
    Capability(Capability),
}

#[derive(Debug, Subcommand)]
pub enum Capability {
    /// Give a capability back that was taken away
    Add(OneCapability),
    /// Take a capability away (refused while data or mappings depend on it)
    Remove {
        #[command(flatten)]
        one: OneCapability,
        /// Move copies off the host first
        #[arg(long)]
        drain: bool,
    },
}

#[derive(Debug, Args)]
pub struct OneCapability {
    #[command(flatten)]
    pub which: Which,
    #[arg(long, value_enum, ignore_case = true)]
    pub capability: CapabilityName,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CapabilityName {
    Mdm,
    Sds,
    Sdc,
}
impl CapabilityName {
    pub fn as_str(self) -> &'static str {
        match self {
            CapabilityName::Mdm => "MDM",
            CapabilityName::Sds => "SDS",
            CapabilityName::Sdc => "SDC",
        }
    }
}

/// What `explain` knows about.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Explained {
    Volume,
    Pg,
    Node,
    Pool,
    Sds,
}
impl Explained {
    pub fn as_str(self) -> &'static str {
        match self {
            Explained::Volume => "volume",
            Explained::Pg => "pg",
            Explained::Node => "node",
            Explained::Pool => "pool",
            Explained::Sds => "sds",
        }
    }
}

/// The decision that older copies count.
#[derive(Debug, Args)]
pub struct AcceptStale {
    #[arg(long, default_value = "default")]
    pub pool: String,
    /// A placement group, for example 1.17; may be given several times
    #[arg(long, required_unless_present = "all_unavailable")]
    pub id: Vec<String>,
    /// Every group of the pool of which only older copies are left
    #[arg(long, conflicts_with = "id")]
    pub all_unavailable: bool,
    /// The server whose copies are to count [default: the newest copy of each group]
    #[arg(long)]
    pub sds: Option<String>,
    /// The servers with the newer copies are switched off; no client has to confirm that it leaves them alone
    #[arg(long)]
    pub old_server_is_off: bool,
}

/// Rare options of a new pool.
#[derive(Debug, Args)]
pub struct PoolMore {
    /// Fewest copies that take new writes
    #[arg(long)]
    pub min_copies: Option<u8>,
    /// Placement groups, a power of two
    #[arg(long)]
    pub pg_count: Option<u32>,
    /// Ids of its devices [default: every unassigned device of the domain]
    #[arg(long, value_delimiter = ',', value_name = "ID,...")]
    pub devices: Option<Vec<u32>>,
    /// All volumes together may promise this many times the usable capacity
    #[arg(long)]
    pub over_commit: Option<u32>,
    /// Percent that thick volumes never get, so that a rebuild has room
    #[arg(long)]
    pub reserve_percent: Option<u32>,
    /// Seconds a lost copy may come back before it is rebuilt elsewhere
    #[arg(long)]
    pub grace_seconds: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum FaultSet {
    /// All fault sets
    List,
    /// One fault set
    Get(Which),
    /// Make a fault set
    Create {
        #[arg(long)]
        name: String,
        #[arg(long, default_value = "default")]
        pd: String,
    },
    /// Put a server into a fault set; copies that would fail together are moved
    Assign {
        /// Name of the server
        #[arg(long)]
        sds: String,
        /// Name of the fault set; left out: none
        #[arg(long)]
        fault_set: Option<String>,
    },
    /// Remove a fault set without servers
    Delete(Which),
}

/// How fast missing copies are restored.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Pacing {
    /// As fast as it goes
    Unlimited,
    /// Never faster than --rate
    Limit,
    /// Held to --rate while applications read or write
    FavourApplication,
    /// Follows the load of applications, never below --rate
    Dynamic,
}
impl Pacing {
    pub fn as_str(self) -> &'static str {
        match self {
            Pacing::Unlimited => "unlimited",
            Pacing::Limit => "limit",
            Pacing::FavourApplication => "favour_application",
            Pacing::Dynamic => "dynamic",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Settings of all pools
    List,
    /// Settings of one pool
    Get(OfPool),
    /// Change settings, live; what is left out stays
    Set {
        #[command(flatten)]
        of: OfPool,
        /// How fast missing copies are restored and copies are moved
        #[arg(long, value_enum)]
        rebuild: Option<Pacing>,
        /// Bytes a second for the whole pool, for example 100MiB; 0: no limit
        #[arg(long, value_name = "SIZE")]
        rate: Option<String>,
        /// How long a server may be away before its copies are made elsewhere, seconds
        #[arg(long)]
        grace_seconds: Option<u64>,
        /// How many times its space thin volumes may promise together
        #[arg(long)]
        over_commit: Option<u32>,
        /// Percent of the space that is kept for rebuilds
        #[arg(long)]
        reserve_percent: Option<u32>,
        /// Percent used from which the pool counts as high
        #[arg(long)]
        alert_high_percent: Option<u32>,
        /// Percent used from which the pool counts as critical
        #[arg(long)]
        alert_critical_percent: Option<u32>,
        /// Move copies by itself when devices were added
        #[arg(long)]
        auto_rebalance: Option<bool>,
        /// Placement groups on the move at a time
        #[arg(long)]
        moves_at_once: Option<u32>,
        /// Bytes a second that the scrub of each device reads, for example 8MiB; off: none; server: as each server is set
        #[arg(long, value_name = "SIZE|off|server")]
        scrub: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Device {
    /// All devices
    List,
    /// One device
    Get(DeviceId),
    /// Give an unassigned device to a pool
    Add {
        #[command(flatten)]
        device: DeviceId,
        #[arg(long, default_value = "default")]
        pool: String,
    },
    /// Move all copies off a device
    Drain(DeviceId),
    /// Take an empty device out of its pool
    Delete(DeviceId),
}

#[derive(Debug, Args)]
pub struct DeviceId {
    /// Id of the device: scli device list
    #[arg(long)]
    pub id: u32,
}
