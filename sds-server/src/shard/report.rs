//! What the shard tells: heartbeats and reports for the MDM, levels for the metrics.

use super::{Shard, PUBLISH};
use crate::device::Phase;
use crate::mail::FromShard;
use crate::metrics::{DeviceLevels, Published};
use quarry_base::{DeviceId, Nanos, PgId, Version};
use quarry_control::{
    disk_times, promised, scrub_ended, stalled, DeviceReport, FromNode, PgReport, SCRUB_ENDED,
};
use quarry_ring::RingConfig;
use std::collections::HashMap;
use std::time::Duration;

/// How often the memory of a block table is measured.
const MEASURE: Duration = Duration::from_secs(60);
/// How often a group's report is repeated although nothing but its size changed.
const REPEAT: Duration = Duration::from_secs(1);

/// A device without progress for this long is told of.
const STALLED: Duration = Duration::from_millis(500);

/// What the MDM was told of each group, so that a heartbeat carries news only.
#[derive(Default)]
pub(super) struct Reported {
    last: HashMap<PgId, PgReport>,
    repeat_at: Nanos,
}

impl Reported {
    /// Everything is told again: a new session, or a new view.
    pub(super) fn clear(&mut self) {
        self.last.clear();
    }

    /// Those of `all` that say something new, or all when it is time to repeat.
    fn news(&mut self, now: Nanos, all: Vec<PgReport>) -> Vec<PgReport> {
        let repeat = now >= self.repeat_at;
        if repeat {
            self.repeat_at = now + REPEAT;
        }
        let same = |a: &PgReport, b: &PgReport| {
            let calm = |r: &PgReport| PgReport { bytes: 0, last: Version::ZERO, ..r.clone() };
            calm(a) == calm(b)
        };
        let mut next = HashMap::with_capacity(all.len());
        let mut news = Vec::new();
        for r in all {
            if repeat || self.last.get(&r.pg).is_none_or(|old| !same(old, &r)) {
                news.push(r.clone());
            }
            next.insert(r.pg, r);
        }
        self.last = next;
        news
    }
}

impl Shard {
    /// All devices as they stand now.
    pub(super) fn device_reports(&mut self) -> Vec<DeviceReport> {
        self.refresh_devices();
        let mut out = Vec::with_capacity(self.devices.len());
        for d in &self.devices {
            let (mut pgs, mut failed) = (None, None);
            if let (Phase::Serving, Some(id)) = (&d.phase, d.id) {
                pgs = Some(self.engine.haves(id));
                failed = self.store_failure(id);
            }
            out.push(d.report(pgs, failed));
        }
        out
    }

    fn store_failure(&self, id: DeviceId) -> Option<String> {
        self.engine.store(id)?.unfit().map(|e| e.to_string())
    }

    /// Takes capacity and use over from the stores.
    fn refresh_devices(&mut self) {
        for d in &mut self.devices {
            if let (Phase::Serving, Some(id)) = (&d.phase, d.id) {
                if let Some(store) = self.engine.store(id) {
                    d.capacity_bytes = store.stats().capacity_bytes;
                    d.used_bytes = store.stats().used_bytes;
                }
            }
        }
    }

    /// Sends a heartbeat. Left out when the control thread is behind: the next one says the same.
    pub(super) fn heartbeat(&mut self) {
        if self.registered.is_none() {
            return;
        }
        self.refresh_devices();
        let (applied, confirmed, pgs) = self.engine.reports();
        let now = self.reactor.now();
        let pgs = self.reported.news(now, pgs);
        let mut devices = Vec::with_capacity(self.devices.len());
        for d in &self.devices {
            let Some(id) = d.id else { continue };
            // Nothing is said of one that is not open yet: that it is heard of means that it serves.
            if !d.is_settled() {
                continue;
            }
            let failed = self.store_failure(id).or_else(|| d.failure().map(str::to_string));
            devices.push((id, d.capacity_bytes, d.used_bytes, failed));
        }
        let mut counters: Vec<(String, u64)> =
            self.counters().into_iter().map(|(n, v)| (format!("sds.{n}"), v)).collect();
        for (index, d) in self.devices.iter().enumerate().filter_map(|(i, d)| Some((i, d.id?))) {
            let Some(store) = self.engine.store(d) else { continue };
            let idle = store.stalled_for();
            let ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
            counters.extend((idle >= STALLED).then(|| (stalled(d), ms)));
            if let Some((median_us, ops)) = self.disks.median(now, index) {
                counters.extend(disk_times(d).into_iter().zip([median_us, ops]));
            }
            let kept = store.stats().promised_bytes;
            counters.extend((kept > 0).then(|| (promised(d), kept)));
            let e = store.scrub_stats().ended;
            let all = [e.passes, e.bytes, e.bad_pages, e.bad_groups, e.read_errors];
            // A beat is ten times a second: of zeroes only that it has no pass yet is said.
            let said =
                SCRUB_ENDED.iter().zip(all).enumerate().filter(|(i, (_, n))| *i == 0 || *n > 0);
            counters.extend(said.map(|(_, (what, n))| (scrub_ended(d, what), n)));
        }
        counters.extend(self.lately.counters(self.engine.write_times()));
        let beat = FromNode::Heartbeat { applied, confirmed, pgs, devices, counters };
        if self.tx.try_send(FromShard::Send(Box::new(beat))).is_err() {
            self.metrics.limit_reached.with(&["control_queue"]).inc();
        }
    }

    /// The engine's counters by name, and how the scrubs of all devices stand together.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut all = self.engine.stats().named();
        let stores = self.devices.iter().filter_map(|d| self.engine.store(d.id?));
        let stats: Vec<_> = stores.map(|s| s.scrub_stats()).collect();
        type Part = fn(&quarry_store::ScrubStats) -> u64;
        let parts: [(&'static str, Part); 6] = [
            ("scrub_position_blocks", |s| s.position),
            ("scrub_blocks", |s| s.blocks),
            ("scrub_passes", |s| s.passes),
            ("scrub_bytes", |s| s.bytes),
            ("scrub_bad_pages", |s| s.bad_pages),
            ("scrub_bad_table_groups", |s| s.bad_groups),
        ];
        all.extend(parts.iter().map(|(name, part)| (*name, stats.iter().map(part).sum())));
        all
    }

    pub(super) fn publish_if_due(&mut self, now: Nanos) {
        if now >= self.publish_at {
            self.publish_at = now + PUBLISH;
            self.tell_failures();
            self.lately.mark(now, self.engine.write_times());
            self.publish(now);
        }
    }

    /// Measures the memory of the block tables when it is time: that goes through all of one.
    fn measure_tables(&mut self, now: Nanos) {
        for d in &mut self.devices {
            let store = d.phase.recovered().or_else(|| self.engine.store(d.id?));
            if let Some(s) = store.filter(|_| now >= d.measure_at) {
                d.measure_at = now + MEASURE;
                d.table_memory = s.table_memory();
            }
        }
    }

    /// Publishes levels for the metrics page.
    pub(super) fn publish(&mut self, now: Nanos) {
        self.refresh_devices();
        self.measure_tables(now);
        let devices = self
            .devices
            .iter()
            .map(|d| {
                // Without one counters that are kept on the device would go to 0 and come back.
                let store = d.phase.recovered().or_else(|| self.engine.store(d.id?));
                let stats = store.map(|s| s.stats()).unwrap_or_default();
                let limits = d.store_config();
                DeviceLevels {
                    label: d.path.to_string_lossy().into_owned(),
                    capacity_bytes: d.capacity_bytes,
                    used_bytes: d.used_bytes,
                    promised_bytes: stats.promised_bytes,
                    log_bytes: stats.log_bytes,
                    log_used_bytes: stats.log_used_bytes,
                    checksum_errors: stats.crc_errors,
                    repairs: stats.repairs,
                    stalled_seconds: store.map_or(0.0, |s| s.stalled_for().as_secs_f64()),
                    check_cache: [
                        stats.check_cache_bytes,
                        stats.check_cache_limit,
                        stats.check_hits,
                        stats.check_misses,
                        stats.check_evictions,
                    ],
                    store: stats,
                    headroom: store.map(|s| s.headroom()).unwrap_or_default(),
                    table_memory: d.table_memory,
                    open_seconds: d.open_seconds,
                    in_flight_limits: [
                        ("log_batches", limits.max_batches_in_flight),
                        ("reads", limits.max_reads_in_flight),
                        ("destages", limits.destage_depth),
                        ("destages_of_a_full_log", limits.destage_depth_full),
                    ],
                    scrub: store.map(|s| s.scrub_stats()).unwrap_or_default(),
                    failed: d.failure().is_some() || store.is_some_and(|s| s.unfit().is_some()),
                }
            })
            .collect::<Vec<_>>();
        let unhealthy = match self.registered {
            None => Some("not registered with an MDM yet".to_string()),
            Some(_) => {
                let failed = devices.iter().find(|d| d.failed).map(|d| &d.label);
                let first = failed.map(|d| format!("{d} has failed"));
                let away = || self.left_out.first().map(|d| format!("{d} could not be opened"));
                first.or_else(away)
            }
        };
        let p = Published {
            devices,
            engine: self.engine.stats().named(),
            write_times: self.engine.write_times().clone(),
            ring: *self.reactor.stats(),
            connections: self.links.len(),
            disk_in_flight: self.disks.in_flight(),
            disk_in_flight_limit: RingConfig::default().max_inflight,
            unhealthy,
        };
        // A scrape holds the lock for microseconds; then the next time will do.
        if let Ok(mut place) = self.metrics.published.try_lock() {
            *place = p;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_base::Epoch;

    #[test]
    fn a_group_is_reported_when_it_changed_and_once_a_second() {
        let r = |active, bytes| PgReport {
            pg: PgId(1),
            epoch: Epoch(1),
            device: DeviceId(1),
            active,
            last: Version::ZERO,
            bytes,
            sync_left_bytes: 0,
            sync_done_bytes: 0,
        };
        let at = |ms: u64| Nanos(10_000_000_000 + ms * 1_000_000);
        let mut told = Reported::default();
        assert_eq!(told.news(at(0), vec![r(false, 0)]).len(), 1);
        assert_eq!(told.news(at(100), vec![r(false, 9)]).len(), 0, "only its size");
        assert_eq!(told.news(at(200), vec![r(true, 9)]).len(), 1);
        assert_eq!(told.news(at(300), vec![]).len(), 0);
        assert_eq!(told.news(at(400), vec![r(true, 9)]).len(), 1, "led again");
        assert_eq!(told.news(at(1000), vec![r(true, 9)]).len(), 1, "repeated");
        told.clear();
        assert_eq!(told.news(at(1100), vec![r(true, 9)]).len(), 1);
    }
}
