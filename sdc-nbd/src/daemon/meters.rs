//! What is counted. The data thread holds handles and never takes a lock for one I/O.

use crate::engine::EngineStats;
use quarry_base::VolumeId;
use quarry_metrics::{Counter, Family, Gauge, Histo, Metrics};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// Kinds of request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpKind {
    Read = 0,
    Write = 1,
    Flush = 2,
    Trim = 3,
    Zero = 4,
    BlockStatus = 5,
}

const OPS: [&str; 6] = ["read", "write", "flush", "trim", "zero", "block_status"];

/// Handles for one operation of one volume.
#[derive(Clone, Debug, Default)]
pub struct OpMeter {
    pub requests: Counter,
    pub bytes: Counter,
    pub errors: Counter,
    pub seconds: Arc<Histo>,
}

/// Handles of one volume.
#[derive(Debug, Default)]
pub struct VolumeMeter {
    pub ops: [OpMeter; 6],
    pub in_flight: Gauge,
    /// Connections of NBD clients; the kernel's own is none.
    clients: AtomicU32,
}

impl VolumeMeter {
    /// A client connected.
    pub fn joined(&self) {
        self.clients.fetch_add(1, Relaxed);
    }
    /// A client's connection has ended.
    pub fn left(&self) {
        self.clients.fetch_sub(1, Relaxed);
    }
    /// The handles of an operation.
    pub fn op(&self, kind: OpKind) -> &OpMeter {
        &self.ops[kind as usize]
    }
}

/// What NBD clients do with a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Traffic {
    /// Connections; the kernel's own is none.
    pub clients: u32,
    /// Requests so far that changed something.
    pub changes: u64,
    /// Some request waits for its answer.
    pub in_flight: bool,
}

/// Name and handles of each volume.
type Volumes = BTreeMap<VolumeId, (String, Arc<VolumeMeter>)>;

/// All metrics of the daemon. Clones share them.
#[derive(Clone)]
pub struct Meters {
    requests: Family<Counter>,
    bytes: Family<Counter>,
    errors: Family<Counter>,
    seconds: Family<Arc<Histo>>,
    in_flight: Family<Gauge>,
    answers: Family<Counter>,
    limits: Family<Counter>,
    retries: Counter,
    pub connections: Gauge,
    pub links: Gauge,
    links_lost: Counter,
    overlap_waits: Counter,
    bad_data: Counter,
    fell_back: Counter,
    pub protocol_errors: Counter,
    volumes: Arc<Mutex<Volumes>>,
}

impl Meters {
    /// Registers everything; once a process.
    pub fn new(m: &Metrics) -> Meters {
        let by_op = &["volume", "op"];
        Meters {
            requests: m.counter_family("quarry_sdc_requests_total", "Requests answered", by_op),
            bytes: m.counter_family("quarry_sdc_bytes_total", "Bytes read or written", by_op),
            errors: m.counter_family(
                "quarry_sdc_request_errors_total",
                "Requests that failed",
                by_op,
            ),
            seconds: m.histogram_family("quarry_sdc_request_seconds", "Time to an answer", by_op),
            in_flight: m.gauge_family(
                "quarry_sdc_in_flight",
                "Requests not answered yet",
                &["volume"],
            ),
            answers: m.counter_family(
                "quarry_sdc_server_refusals_total",
                "Answers of data servers that made a part wait, by what they said",
                &["answer"],
            ),
            limits: m.counter_family(
                "quarry_limit_reached_total",
                "Times a limit held something back",
                &["limit"],
            ),
            retries: m.counter("quarry_sdc_retries_total", "Parts sent again"),
            connections: m.gauge("quarry_sdc_connections", "NBD connections"),
            links: m.gauge("quarry_sdc_links", "Connections to data servers that are ready"),
            links_lost: m
                .counter("quarry_sdc_links_lost_total", "Connections to data servers that broke"),
            overlap_waits: m.counter(
                "quarry_sdc_overlap_waits_total",
                "Writes that waited for an earlier one to the same page",
            ),
            bad_data: m.counter(
                "quarry_sdc_checksum_errors_total",
                "Data of a server that did not match its checksum on arrival",
            ),
            fell_back: m.counter(
                "quarry_sdc_flushes_failed_total",
                "Flushes of placement groups that failed because the hosts of all copies had booted (ack = cached)",
            ),
            protocol_errors: m
                .counter("quarry_sdc_protocol_errors_total", "NBD clients that broke the protocol"),
            volumes: Arc::default(),
        }
    }

    /// The handles of a volume; made when new.
    pub fn volume(&self, id: VolumeId, name: &str) -> Arc<VolumeMeter> {
        let mut all = self.volumes.lock().unwrap_or_else(|e| e.into_inner());
        let made = || {
            let op = |o: &str| OpMeter {
                requests: self.requests.with(&[name, o]),
                bytes: self.bytes.with(&[name, o]),
                errors: self.errors.with(&[name, o]),
                seconds: self.seconds.with(&[name, o]),
            };
            let in_flight = self.in_flight.with(&[name]);
            let clients = AtomicU32::new(0);
            (name.to_string(), Arc::new(VolumeMeter { ops: OPS.map(op), in_flight, clients }))
        };
        Arc::clone(&all.entry(id).or_insert_with(made).1)
    }

    /// Stops exporting a volume that is not mapped any more.
    pub fn forget(&self, id: VolumeId) {
        let mut all = self.volumes.lock().unwrap_or_else(|e| e.into_inner());
        let gone = all.remove(&id);
        // A new volume of its name has them now.
        let heir = |name: &String| all.values().any(|(n, _)| n == name);
        if let Some((name, _)) = gone.filter(|(name, _)| !heir(name)) {
            for op in OPS {
                self.requests.remove(&[&name, op]);
                self.bytes.remove(&[&name, op]);
                self.errors.remove(&[&name, op]);
                self.seconds.remove(&[&name, op]);
            }
            self.in_flight.remove(&[&name]);
        }
    }

    /// What NBD clients do with each volume.
    pub fn traffic(&self) -> Vec<(VolumeId, Traffic)> {
        let all = self.volumes.lock().unwrap_or_else(|e| e.into_inner());
        let changes = [OpKind::Write, OpKind::Trim, OpKind::Zero];
        let traffic = |v: &VolumeMeter| Traffic {
            clients: v.clients.load(Relaxed),
            changes: changes.iter().map(|k| v.op(*k).requests.get()).sum(),
            in_flight: v.in_flight.get() > 0.0,
        };
        all.iter().map(|(id, (_, v))| (*id, traffic(v))).collect()
    }

    /// Counters for the heartbeat: `volume.<id>.<op>_ops`, `volume.<id>.<op>_bytes`.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let all = self.volumes.lock().unwrap_or_else(|e| e.into_inner());
        let mut out = Vec::with_capacity(all.len() * (OPS.len() * 2 + 2));
        for (id, (_, v)) in all.iter() {
            for (name, m) in OPS.iter().zip(&v.ops) {
                out.push((format!("volume.{id}.{name}_ops"), m.requests.get()));
                out.push((format!("volume.{id}.{name}_bytes"), m.bytes.get()));
                out.push((format!("volume.{id}.{name}_errors"), m.errors.get()));
                out.push((format!("volume.{id}.{name}_nanos"), m.seconds.snapshot().sum_nanos()));
            }
        }
        out
    }

    /// Brings what the engine counted since `before` into the metrics.
    pub fn engine(&self, handles: &EngineMeters, now: &EngineStats, before: &EngineStats) {
        self.retries.add(now.resent - before.resent);
        self.links_lost.add(now.links_lost - before.links_lost);
        self.overlap_waits.add(now.overlap_waits - before.overlap_waits);
        self.bad_data.add(now.bad_data - before.bad_data);
        self.fell_back.add(now.fell_back - before.fell_back);
        handles.stale_epoch.add(now.stale_epoch - before.stale_epoch);
        handles.try_again.add(now.try_again - before.try_again);
        handles.stale_mapping.add(now.stale_mapping - before.stale_mapping);
        handles.bad_checksum.add(now.bad_checksum - before.bad_checksum);
        handles.pg.add(now.limit_pg_in_flight - before.limit_pg_in_flight);
        handles.ids.add(now.limit_id_window - before.limit_id_window);
        handles.volume.add(now.limit_volume - before.limit_volume);
    }

    /// Handles for [`Meters::engine`] and the sessions.
    pub fn engine_handles(&self) -> EngineMeters {
        EngineMeters {
            stale_epoch: self.answers.with(&["stale_epoch"]),
            try_again: self.answers.with(&["try_again"]),
            stale_mapping: self.answers.with(&["stale_mapping"]),
            bad_checksum: self.answers.with(&["bad_checksum"]),
            pg: self.limits.with(&["sdc_pg_in_flight"]),
            ids: self.limits.with(&["sdc_id_window"]),
            volume: self.limits.with(&["sdc_volume_bytes"]),
            queue: self.limits.with(&["sdc_volume_queue"]),
            connections: self.limits.with(&["sdc_connections"]),
        }
    }
}

/// Counters of what the engine meets.
pub struct EngineMeters {
    stale_epoch: Counter,
    try_again: Counter,
    stale_mapping: Counter,
    bad_checksum: Counter,
    pg: Counter,
    ids: Counter,
    volume: Counter,
    /// A session is not read from because its volume has enough to do.
    pub queue: Counter,
    /// A connection was refused because the volume has enough of them.
    pub connections: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_volume_keeps_the_series_that_it_has_of_an_old_one_of_its_name() {
        let registry =
            Metrics::new(quarry_metrics::version::Info::new("sdc-nbd", 1, 1, 1), "sdc", "c1");
        let m = Meters::new(&registry);
        m.volume(VolumeId(1), "db").ops[0].requests.inc();
        m.volume(VolumeId(2), "db");
        m.forget(VolumeId(1));
        assert!(registry.encode().unwrap().contains("quarry_sdc_requests_total{volume=\"db\""));
        m.forget(VolumeId(2));
        assert!(!registry.encode().unwrap().contains("volume=\"db\""));
    }
}
