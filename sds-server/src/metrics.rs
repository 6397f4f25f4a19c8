//! What the daemon exports. Per-I/O values are atomics touched by the shard; levels are published by it
//! a few times a second and read when somebody scrapes.

use quarry_base::DeviceId;
use quarry_metrics::{Counter, Family, Histo, Metrics};
use quarry_replica::{Spell, WriteTimes};
use quarry_ring::RingStats;
use quarry_store::{Headroom, ScrubStats, StoreStats};
use std::sync::{Arc, Mutex};

/// Handles for one device's operations.
pub struct DeviceMetrics {
    pub read: Arc<Histo>,
    pub write: Arc<Histo>,
    pub write_sync: Arc<Histo>,
    pub sync: Arc<Histo>,
    pub discard: Arc<Histo>,
    pub read_bytes: Counter,
    pub write_bytes: Counter,
    pub errors: Counter,
    /// Writes whose buffers had to be copied for O_DIRECT.
    pub copied: Counter,
}

/// Levels of one device.
#[derive(Clone, Debug, Default)]
pub struct DeviceLevels {
    pub label: String,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    pub promised_bytes: u64,
    pub log_bytes: u64,
    pub log_used_bytes: u64,
    pub checksum_errors: u64,
    pub repairs: u64,
    pub failed: bool,
    pub stalled_seconds: f64,
    pub scrub: ScrubStats,
    /// Of the cache of checksums: bytes, limit, hits, misses, evictions.
    pub check_cache: [u64; 5],
    /// What its store says of itself.
    pub store: StoreStats,
    pub headroom: Headroom,
    /// Memory of the block table and of what finds a block in it, bytes; up to a minute old.
    pub table_memory: u64,
    /// What its last opening took.
    pub open_seconds: f64,
    /// What may be in flight at a time, by kind.
    pub in_flight_limits: [(&'static str, usize); 4],
}

/// Something that each device says: name, help, value.
type Level = (&'static str, &'static str, fn(&DeviceLevels) -> f64);

/// What the shard published last.
#[derive(Clone, Debug, Default)]
pub struct Published {
    pub devices: Vec<DeviceLevels>,
    /// The engine's counters by name.
    pub engine: Vec<(&'static str, u64)>,
    pub write_times: WriteTimes,
    pub ring: RingStats,
    pub connections: usize,
    pub disk_in_flight: usize,
    /// What of it may be in the kernel at a time.
    pub disk_in_flight_limit: usize,
    /// Why `/healthz` is not 200.
    pub unhealthy: Option<String>,
}

/// Everything the daemon counts.
#[derive(Clone)]
pub struct SdsMetrics {
    pub registry: Metrics,
    pub published: Arc<Mutex<Published>>,
    pub wire_errors: Counter,
    pub limit_reached: Family<Counter>,
    seconds: Family<Arc<Histo>>,
    bytes: Family<Counter>,
    errors: Family<Counter>,
    copied: Family<Counter>,
}

impl SdsMetrics {
    /// Registers all names.
    pub fn new(registry: Metrics) -> SdsMetrics {
        let published = Arc::new(Mutex::new(Published::default()));
        let m = SdsMetrics {
            wire_errors: registry.counter(
                "quarry_sds_wire_errors_total",
                "Connections closed because what they sent was not understood",
            ),
            limit_reached: registry.counter_family(
                "quarry_limit_reached_total",
                "Times a limit was reached and somebody had to wait or was cut off",
                &["limit"],
            ),
            seconds: registry.histogram_family(
                "quarry_device_request_seconds",
                "Time of disk operations",
                &["device", "op"],
            ),
            bytes: registry.counter_family(
                "quarry_device_bytes_total",
                "Bytes read from and written to devices",
                &["device", "op"],
            ),
            errors: registry.counter_family(
                "quarry_device_errors_total",
                "Disk operations that failed",
                &["device"],
            ),
            copied: registry.counter_family(
                "quarry_device_unaligned_writes_total",
                "Writes whose buffers had to be copied to suit O_DIRECT",
                &["device"],
            ),
            published,
            registry,
        };
        m.levels();
        m.counts();
        m.checksum_cache();
        m.store_levels();
        m.store_counts();
        m
    }

    /// The handles for a device.
    pub fn device(&self, label: &str) -> DeviceMetrics {
        let seconds = |op| self.seconds.with(&[label, op]);
        DeviceMetrics {
            read: seconds("read"),
            write: seconds("write"),
            write_sync: seconds("write_sync"),
            sync: seconds("sync"),
            discard: seconds("discard"),
            read_bytes: self.bytes.with(&[label, "read"]),
            write_bytes: self.bytes.with(&[label, "write"]),
            errors: self.errors.with(&[label]),
            copied: self.copied.with(&[label]),
        }
    }

    fn checksum_cache(&self) {
        let gauges: [Level; 2] = [
            ("quarry_checksum_cache_bytes", "Memory of the cached checksums of a device", |d| {
                d.check_cache[0] as f64
            }),
            (
                "quarry_checksum_cache_limit_bytes",
                "What they may take, those to be written excepted",
                |d| d.check_cache[1] as f64,
            ),
        ];
        let counters: [Level; 3] = [
            (
                "quarry_checksum_cache_hits_total",
                "Blocks read whose checksums were in memory",
                |d| d.check_cache[2] as f64,
            ),
            (
                "quarry_checksum_cache_misses_total",
                "Blocks whose checksums had to be read from the device first",
                |d| d.check_cache[3] as f64,
            ),
            (
                "quarry_checksum_cache_evictions_total",
                "Groups of checksums that made room for others, of 63 blocks each",
                |d| d.check_cache[4] as f64,
            ),
        ];
        gauges.into_iter().for_each(|l| self.device_gauge(l));
        counters.into_iter().for_each(|l| self.device_counter(l));
    }

    fn device_gauge(&self, (name, help, value): Level) {
        let p = Arc::clone(&self.published);
        self.registry.gauge_fn(name, help, &["device"], move || per_device(&p, value));
    }

    fn device_counter(&self, (name, help, value): Level) {
        let p = Arc::clone(&self.published);
        self.registry.counter_fn(name, help, &["device"], move || per_device(&p, value));
    }

    /// How close a store is to its bounds (docs/DISK-FORMAT.md).
    fn store_levels(&self) {
        let gauges: [Level; 6] = [
            (
                "quarry_device_dirty_pages",
                "Pages of 4 KiB that are only in the log and in memory",
                |d| d.store.dirty_pages as f64,
            ),
            (
                "quarry_device_tombstones",
                "Deleted blocks that are remembered for copies that were away",
                |d| d.store.tombstones as f64,
            ),
            (
                "quarry_device_headroom_blocks",
                "Blocks of 64 KiB that can still be allocated, the reserve not counted",
                |d| d.headroom.blocks as f64,
            ),
            (
                "quarry_device_log_headroom_bytes",
                "Bytes of writes that the log takes before they have to wait",
                |d| d.headroom.log_bytes as f64,
            ),
            (
                "quarry_device_table_memory_bytes",
                "Memory of the block table and of its index, measured once a minute",
                |d| d.table_memory as f64,
            ),
            ("quarry_device_open_seconds", "What the last opening of the device took", |d| {
                d.open_seconds
            }),
        ];
        gauges.into_iter().for_each(|l| self.device_gauge(l));
        let p = Arc::clone(&self.published);
        self.registry.gauge_fn(
            "quarry_device_in_flight_limit",
            "What a device may have in flight at a time, by kind",
            &["device", "kind"],
            move || with(&p, |p| p.devices.iter().flat_map(in_flight_limits).collect()),
        );
    }

    /// What a store has done since it was opened.
    fn store_counts(&self) {
        let counters: [Level; 8] = [
            ("quarry_device_log_full_total", "Records that the log had no room for at once", |d| {
                d.store.log_full as f64
            }),
            ("quarry_device_log_batches_total", "Batches of records written to the log", |d| {
                d.store.batches as f64
            }),
            ("quarry_device_log_records_total", "Records written to the log", |d| {
                d.store.batch_records as f64
            }),
            (
                "quarry_device_relogged_records_total",
                "Records written to the log again because its tail came to them",
                |d| d.store.relogged as f64,
            ),
            ("quarry_device_checkpoints_total", "Checkpoints of the block table", |d| {
                d.store.checkpoints as f64
            }),
            ("quarry_device_syncs_total", "Syncs that the store asked its device for", |d| {
                d.store.syncs as f64
            }),
            (
                "quarry_device_destaged_pages_total",
                "Pages of 4 KiB written from the log to their blocks",
                |d| d.store.destaged_pages as f64,
            ),
            (
                "quarry_device_direct_writes_total",
                "Whole blocks written straight to their places",
                |d| d.store.direct_writes as f64,
            ),
        ];
        counters.into_iter().for_each(|l| self.device_counter(l));
    }

    fn levels(&self) {
        let gauges: [Level; 6] = [
            ("quarry_device_capacity_bytes", "Bytes for data on the device", |d| {
                d.capacity_bytes as f64
            }),
            ("quarry_device_used_bytes", "Bytes of data blocks in use", |d| d.used_bytes as f64),
            (
                "quarry_device_promised_bytes",
                "Bytes kept free for what thick volumes have not written yet",
                |d| d.promised_bytes as f64,
            ),
            ("quarry_device_log_bytes", "Size of the device's log", |d| d.log_bytes as f64),
            ("quarry_device_log_used_bytes", "Bytes of the device's log in use", |d| {
                d.log_used_bytes as f64
            }),
            ("quarry_device_failed", "1 when the device takes no writes any more", |d| {
                f64::from(u8::from(d.failed))
            }),
        ];
        let scrub: [Level; 4] = [
            (
                "quarry_device_stalled_seconds",
                "Time for which operations are in flight and none has ended",
                |d| d.stalled_seconds,
            ),
            ("quarry_scrub_position_blocks", "Blocks that this pass of the scrub is past", |d| {
                d.scrub.position as f64
            }),
            (
                "quarry_scrub_rate_bytes_per_second",
                "Bytes a second that the scrub reads at most; 0: it is off",
                |d| d.scrub.rate as f64,
            ),
            ("quarry_scrub_blocks", "Blocks that a pass of the scrub goes through", |d| {
                d.scrub.blocks as f64
            }),
        ];
        gauges.into_iter().chain(scrub).for_each(|l| self.device_gauge(l));
        let scrub: [Level; 5] = [
            (
                "quarry_scrub_passes_total",
                "Passes of the scrub since the device was formatted",
                |d| d.scrub.passes as f64,
            ),
            ("quarry_scrub_bytes_total", "Bytes that the scrub has read", |d| d.scrub.bytes as f64),
            (
                "quarry_scrub_bad_pages_total",
                "Pages that the scrub found not to match their checksum",
                |d| d.scrub.bad_pages as f64,
            ),
            (
                "quarry_scrub_bad_table_groups_total",
                "Damaged groups of the block table that the scrub found and had written anew",
                |d| d.scrub.bad_groups as f64,
            ),
            ("quarry_scrub_read_errors_total", "Reads of the scrub that failed", |d| {
                d.scrub.read_errors as f64
            }),
        ];
        let counters: [Level; 2] = [
            (
                "quarry_device_checksum_errors_total",
                "Pages that did not match their checksum",
                |d| d.checksum_errors as f64,
            ),
            ("quarry_device_repairs_total", "Pages replaced from a good copy", |d| {
                d.repairs as f64
            }),
        ];
        counters.into_iter().chain(scrub).for_each(|l| self.device_counter(l));
        let one = |name, help, value: fn(&Published) -> f64| {
            let p = Arc::clone(&self.published);
            self.registry.gauge_fn(name, help, &[], move || vec![(vec![], with(&p, value))]);
        };
        one("quarry_sds_connections", "Connections to clients and servers", |p| {
            p.connections as f64
        });
        one("quarry_sds_disk_in_flight", "Disk operations not completed", |p| {
            p.disk_in_flight as f64
        });
        one(
            "quarry_sds_disk_in_flight_limit",
            "Disk operations in the kernel at most; more wait",
            |p| p.disk_in_flight_limit as f64,
        );
    }

    fn counts(&self) {
        let p = Arc::clone(&self.published);
        let read = move || {
            with(&p, |p| p.engine.iter().map(|(n, v)| (vec![n.to_string()], *v as f64)).collect())
        };
        self.registry.counter_fn(
            "quarry_sds_events_total",
            "What the replication engine counted, by kind",
            &["kind"],
            read,
        );
        self.by_op(
            "quarry_sds_requests_total",
            "Requests of clients",
            &[("read", "read_ops"), ("write", "write_ops"), ("zero", "zero_ops")],
        );
        self.by_op(
            "quarry_sds_bytes_total",
            "Bytes of clients' requests",
            &[("read", "read_bytes"), ("write", "write_bytes")],
        );
        self.parts(
            "quarry_sds_write_seconds_total",
            "Time of writes at their primary, by part: answer (arrival to answer), admit (to its place in the order), own (from there to durable on the primary's device), copy (to durable on a member's)",
            |s| s.nanos as f64 / 1e9,
        );
        self.parts(
            "quarry_sds_write_parts_total",
            "Writes counted in quarry_sds_write_seconds_total, by part",
            |s| s.count as f64,
        );
        let p = Arc::clone(&self.published);
        self.registry.counter_fn(
            "quarry_rebuild_sent_bytes_total",
            "Bytes sent to bring copies up to date",
            &[],
            move || vec![(vec![], with(&p, |p| count(p, "sync_bytes")))],
        );
        let p = Arc::clone(&self.published);
        self.registry.counter_fn(
            "quarry_ring_events_total",
            "What the reactor counted, by kind",
            &["kind"],
            move || {
                with(&p, |p| {
                    ring_counts(&p.ring)
                        .iter()
                        .map(|(n, v)| (vec![n.to_string()], *v as f64))
                        .collect()
                })
            },
        );
    }

    /// What `/healthz` says: an MDM that refuses this server, then what the shard finds.
    pub fn health(&self, standing: quarry_control::Standing) {
        let p = Arc::clone(&self.published);
        let shard = move || with(&p, |p| p.unhealthy.clone()).map_or(Ok(()), Err);
        self.registry.set_health(move || standing.health().and_then(|()| shard()));
    }
}

impl SdsMetrics {
    /// A counter of the parts of writes, by the device that took the time: the primary's, or for copies a member's.
    fn parts(&self, name: &'static str, help: &'static str, value: fn(&Spell) -> f64) {
        let p = Arc::clone(&self.published);
        self.registry.counter_fn(name, help, &["part", "device_id"], move || {
            with(&p, |p| {
                let t = &p.write_times;
                let row = |part: &str, id: &DeviceId, s: &Spell| {
                    (vec![part.to_string(), id.to_string()], value(s))
                };
                let led = t.led.iter().flat_map(|(id, l)| {
                    let parts = [("answer", &l.answered), ("admit", &l.admitted), ("own", &l.own)];
                    parts.map(|(part, s)| row(part, id, s))
                });
                led.chain(t.copies.iter().map(|(id, s)| row("copy", id, s))).collect()
            })
        });
    }

    /// A counter by operation, from the engine's counters.
    fn by_op(
        &self,
        name: &'static str,
        help: &'static str,
        ops: &'static [(&'static str, &'static str)],
    ) {
        let p = Arc::clone(&self.published);
        self.registry.counter_fn(name, help, &["op"], move || {
            with(&p, |p| {
                ops.iter().map(|(op, key)| (vec![op.to_string()], count(p, key))).collect()
            })
        });
    }
}

fn count(p: &Published, key: &str) -> f64 {
    p.engine.iter().find(|(n, _)| *n == key).map_or(0, |(_, v)| *v) as f64
}

fn with<T>(p: &Mutex<Published>, f: impl FnOnce(&Published) -> T) -> T {
    f(&p.lock().unwrap_or_else(|e| e.into_inner()))
}

fn per_device(p: &Mutex<Published>, value: fn(&DeviceLevels) -> f64) -> Vec<(Vec<String>, f64)> {
    with(p, |p| p.devices.iter().map(|d| (vec![d.label.clone()], value(d))).collect())
}

fn in_flight_limits(d: &DeviceLevels) -> impl Iterator<Item = (Vec<String>, f64)> + '_ {
    let of = |(kind, n): &(&str, usize)| (vec![d.label.clone(), kind.to_string()], *n as f64);
    d.in_flight_limits.iter().map(of)
}

fn ring_counts(r: &RingStats) -> [(&'static str, u64); 18] {
    [
        ("turns", r.turns),
        ("enters", r.enters),
        ("submissions", r.sqes),
        ("completions", r.cqes),
        ("queue_full", r.sq_full),
        ("receives", r.recvs),
        ("receive_bytes", r.recv_bytes),
        ("sends", r.sends),
        ("send_bytes", r.send_bytes),
        ("short_sends", r.short_sends),
        ("reads", r.reads),
        ("writes", r.writes),
        ("fsyncs", r.fsyncs),
        ("dsync_writes", r.dsync_writes),
        ("short_disk", r.short_disk),
        ("disk_waits", r.disk_waits),
        ("accepts", r.accepts),
        ("accept_pauses", r.accept_pauses),
    ]
}
