//! Candidates in three levels: fault domain, data server, device.

use crate::score::{mix, score};
use crate::Candidate;
use quarry_base::{DeviceId, SdsId};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) struct Server {
    pub id: SdsId,
    pub weight: f64,
    pub devices: Vec<(DeviceId, f64)>,
}

pub(crate) struct Domain {
    key: u64,
    pub weight: f64,
    pub servers: Vec<Server>,
}

/// Index of a domain and of a server in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct At {
    pub domain: usize,
    pub server: usize,
}

pub(crate) struct Tree {
    pub domains: Vec<Domain>,
}

const LEVEL_DOMAIN: u64 = 1;
const LEVEL_SERVER: u64 = 2;
const LEVEL_DEVICE: u64 = 3;

impl Tree {
    /// Fault sets are the domains if there are at least `copies` of them, else servers are.
    pub fn build(devices: &[Candidate], copies: usize) -> Tree {
        let sets: BTreeSet<u32> =
            devices.iter().filter(|c| c.weight > 0).filter_map(|c| c.fault_set).collect();
        if !sets.is_empty() && sets.len() >= copies {
            // A server outside every fault set is a domain of its own.
            Self::group(devices, |c| match c.fault_set {
                Some(f) => (1 << 32) | f as u64,
                None => c.sds.get() as u64,
            })
        } else {
            Self::by_sds(devices)
        }
    }

    /// Every server is its own domain.
    pub fn by_sds(devices: &[Candidate]) -> Tree {
        Self::group(devices, |c| c.sds.get() as u64)
    }

    fn group(devices: &[Candidate], key: impl Fn(&Candidate) -> u64) -> Tree {
        let mut map: BTreeMap<u64, BTreeMap<SdsId, Vec<(DeviceId, f64)>>> = BTreeMap::new();
        for c in devices.iter().filter(|c| c.weight > 0) {
            let list = map.entry(key(c)).or_default().entry(c.sds).or_default();
            list.push((c.device, c.weight as f64));
        }
        let domains = map.into_iter().map(|(key, sds)| {
            let servers: Vec<Server> = sds
                .into_iter()
                .map(|(id, devices)| Server {
                    id,
                    weight: devices.iter().map(|d| d.1).sum(),
                    devices,
                })
                .collect();
            Domain { key, weight: servers.iter().map(|s| s.weight).sum(), servers }
        });
        Tree { domains: domains.collect() }
    }

    /// Index of the domain a server is in.
    pub fn domain_of(&self, sds: SdsId) -> Option<usize> {
        self.domains.iter().position(|d| d.servers.iter().any(|s| s.id == sds))
    }

    pub fn sds_id(&self, at: At) -> SdsId {
        self.domains[at.domain].servers[at.server].id
    }

    /// The best `n` servers for a group, each in another domain, among those allowed; best first.
    pub fn best(
        &self,
        pg: u32,
        n: usize,
        domain_ok: impl Fn(usize) -> bool,
        server_ok: impl Fn(SdsId) -> bool,
    ) -> Vec<At> {
        let mut top: Vec<(f64, At)> = Vec::with_capacity(n + 1);
        if n == 0 {
            return Vec::new();
        }
        for (i, d) in self.domains.iter().enumerate() {
            let s = score(mix(d.key, pg as u64, LEVEL_DOMAIN), d.weight);
            let full = top.len() == n;
            if (full && s >= top[n - 1].0) || !domain_ok(i) {
                continue;
            }
            let Some(server) = self.best_server(pg, d, &server_ok) else { continue };
            if full {
                top.pop();
            }
            let at = top.partition_point(|t| t.0 <= s);
            top.insert(at, (s, At { domain: i, server }));
        }
        top.into_iter().map(|t| t.1).collect()
    }

    fn best_server(&self, pg: u32, d: &Domain, ok: impl Fn(SdsId) -> bool) -> Option<usize> {
        let ranked =
            d.servers.iter().enumerate().filter(|(_, s)| ok(s.id)).map(|(i, s)| {
                (score(mix(s.id.get() as u64, pg as u64, LEVEL_SERVER), s.weight), i)
            });
        ranked.min_by(|a, b| a.0.total_cmp(&b.0)).map(|x| x.1)
    }

    /// The best allowed device of a server for a group.
    pub fn device_of(&self, pg: u32, at: At, ok: impl Fn(DeviceId) -> bool) -> Option<DeviceId> {
        let s = &self.domains[at.domain].servers[at.server];
        let ranked = s
            .devices
            .iter()
            .filter(|d| ok(d.0))
            .map(|(id, w)| (score(mix(id.get() as u64, pg as u64, LEVEL_DEVICE), *w), *id));
        ranked.min_by(|a, b| a.0.total_cmp(&b.0)).map(|x| x.1)
    }
}
