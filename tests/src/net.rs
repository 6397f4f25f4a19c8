//! A network to break: each member of a cluster in a network namespace of its own, all on one bridge of this host, whose
//! address the test itself has. Needs root, `ip`, `nft`, `tc` and `nsenter`.
//!
//! ```text
//!  test (bridge, .254) ---+--- mdm1 (.1)   +--- sds1 (.2)   +--- sds2 (.3) ...
//!                         +----------------+----------------+
//! ```
//! Rules live in each namespace's own table: `deaf` drops what comes in, so a cut may be of one direction. Clocks, disks and
//! Unix sockets (the NBD clients' way in) are shared as before; servers speak TCP only.

use crate::failure::While;
use crate::{Command, Failure, Res};
use serde_json::{json, Value};
use std::net::SocketAddr;
use std::path::Path;

/// Port every SDS listens on for data.
pub const DATA_PORT: u16 = 7000;

const RULES: &str = "add table ip q; \
    add chain ip q in { type filter hook input priority 0; }; \
    add chain ip q out { type nat hook output priority -100; }";

/// The namespaces. Removed on drop: let it outlive the cluster.
pub struct Network {
    /// Prefix of all names on the host.
    id: String,
    /// First three numbers of the addresses.
    subnet: String,
    names: Vec<String>,
}

fn run(program: &str, args: &[&str]) -> Res<String> {
    Ok(Command::new(program).args(args.iter().copied()).ok()?.stdout)
}

impl Network {
    /// Why there can be none on this machine.
    pub fn unavailable() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("network namespaces need root".to_string());
        }
        crate::need_programs(&["ip", "nft", "tc", "nsenter"])
    }

    /// Makes a namespace for each name.
    pub fn new(names: &[&str]) -> Res<Network> {
        let pid = std::process::id();
        let (high, low) = (64 + (pid >> 8) % 128, pid & 255);
        let names = names.iter().map(|n| n.to_string()).collect();
        let net = Network {
            id: format!("q{:x}", pid & 0xFFFFF),
            subnet: format!("10.{high}.{low}"),
            names,
        };
        net.remove();
        net.make().map_err(|e| e.within("making network namespaces"))?;
        Ok(net)
    }

    fn bridge(&self) -> String {
        format!("{}br", self.id)
    }
    fn space(&self, name: &str) -> String {
        format!("{}-{name}", self.id)
    }
    fn port(&self, name: &str) -> String {
        format!("{}{name}", self.id)
    }

    fn make(&self) -> Res<()> {
        let bridge = self.bridge();
        run("ip", &["link", "add", &bridge, "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("{}/24", self.gateway()), "dev", &bridge])?;
        run("ip", &["link", "set", &bridge, "up"])?;
        for name in &self.names {
            let (space, port) = (self.space(name), self.port(name));
            run("ip", &["netns", "add", &space])?;
            let peer = ["peer", "name", "eth0", "netns", &space];
            run("ip", &[&["link", "add", &port, "type", "veth"], &peer[..]].concat())?;
            run("ip", &["link", "set", &port, "master", &bridge, "up"])?;
            let address = format!("{}/24", self.address(name));
            self.inside(name, &["ip", "addr", "add", &address, "dev", "eth0"])?;
            self.inside(name, &["ip", "link", "set", "eth0", "up"])?;
            self.inside(name, &["ip", "link", "set", "lo", "up"])?;
            self.inside(name, &["nft", RULES])?;
        }
        Ok(())
    }

    /// The address of a member.
    pub fn address(&self, name: &str) -> String {
        let at = self.names.iter().position(|n| n == name).map_or(253, |n| n + 1);
        format!("{}.{at}", self.subnet)
    }
    /// The test's own address.
    pub fn gateway(&self) -> String {
        format!("{}.254", self.subnet)
    }
    /// Where an SDS listens for data.
    pub fn data(&self, sds: &str) -> Res<SocketAddr> {
        format!("{}:{DATA_PORT}", self.address(sds)).parse().doing(|| format!("address of {sds}"))
    }

    /// What `scripts/cluster up --members` is told.
    pub fn members(&self) -> Value {
        let one = |name: &String| {
            let net = format!("--net=/var/run/netns/{}", self.space(name));
            let mut m = json!({ "address": self.address(name), "wrap": ["nsenter", net] });
            if name.starts_with("sds") {
                m["port"] = json!(DATA_PORT);
                m["args"] = json!(["--no-unix"]);
            }
            (name.clone(), m)
        };
        Value::Object(self.names.iter().map(one).collect())
    }

    /// Runs a command in a member's namespace.
    pub fn inside(&self, name: &str, command: &[&str]) -> Res<String> {
        let net = format!("--net=/var/run/netns/{}", self.space(name));
        run("nsenter", &[&[net.as_str()], command].concat())
    }

    /// `at` hears nothing from `from` any more; the other direction goes on.
    pub fn deaf(&self, at: &str, from: &str) -> Res<()> {
        let rule = format!("add rule ip q in ip saddr {} drop", self.address(from));
        self.inside(at, &["nft", &rule]).map(drop)
    }
    /// Neither hears the other.
    pub fn cut(&self, a: &str, b: &str) -> Res<()> {
        self.deaf(a, b)?;
        self.deaf(b, a)
    }
    /// Of a hundred packets that `at` gets, so many are lost.
    pub fn lossy(&self, at: &str, percent: u32) -> Res<()> {
        let rule = format!("add rule ip q in numgen random mod 100 < {percent} drop");
        self.inside(at, &["nft", &rule]).map(drop)
    }
    /// Limits what a member sends, for example to `2mbit`.
    pub fn slow(&self, name: &str, rate: &str) -> Res<()> {
        let tbf = ["tbf", "rate", rate, "burst", "32kbit", "latency", "400ms"];
        self.inside(name, &[&["tc", "qdisc", "add", "dev", "eth0", "root"], &tbf[..]].concat())
            .map(drop)
    }
    /// Ends all loss, cuts and limits; diversions stay.
    pub fn heal(&self) -> Res<()> {
        for name in &self.names {
            self.inside(name, &["nft", "flush chain ip q in"])?;
            let shaped = self.inside(name, &["tc", "qdisc", "show", "dev", "eth0"])?;
            if shaped.contains("tbf") {
                self.inside(name, &["tc", "qdisc", "del", "dev", "eth0", "root"])?;
            }
        }
        Ok(())
    }
    /// Takes a member's cable out or puts it in.
    pub fn link(&self, name: &str, up: bool) -> Res<()> {
        run("ip", &["link", "set", &self.port(name), if up { "up" } else { "down" }]).map(drop)
    }
    /// New connections of `at` to the data port of `sds` go to `proxy` instead.
    pub fn divert(&self, at: &str, sds: &str, proxy: SocketAddr) -> Res<()> {
        let to = self.address(sds);
        let rule = format!("add rule ip q out ip daddr {to} tcp dport {DATA_PORT} dnat to {proxy}");
        self.inside(at, &["nft", &rule]).map(drop)
    }

    fn remove(&self) {
        for name in &self.names {
            let space = self.space(name);
            if Path::new("/var/run/netns").join(&space).exists() {
                said(run("ip", &["netns", "del", &space]));
            }
        }
        if Path::new("/sys/class/net").join(self.bridge()).exists() {
            said(run("ip", &["link", "del", &self.bridge()]));
        }
    }
}

fn said(r: Res<String>) {
    if let Err(e) = r {
        eprintln!("{e}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if !crate::scratch::keep() {
            self.remove();
        }
    }
}

/// Names of the members of a cluster with so many servers and clients.
pub fn names(sds: u32, sdc: u32) -> Vec<String> {
    let of = |role: &str, n: u32| (1..=n).map(|i| format!("{role}{i}")).collect::<Vec<_>>();
    [of("mdm", 1), of("sds", sds), of("sdc", sdc)].concat()
}

/// A network for a cluster with so many servers and clients.
pub fn for_cluster(sds: u32, sdc: u32) -> Res<Network> {
    let names = names(sds, sdc);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    if names.len() > 200 {
        return Err(Failure::new("too many members for one network"));
    }
    Network::new(&names)
}
