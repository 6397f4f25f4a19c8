//! The store alone on a file or block device, through the real ring: no network, no replication.
//!
//! `scripts/bench-store` runs it beside fio on the same file. Prints one JSON object: operations and bytes a second,
//! latencies, bytes written to the device for each byte of the application, and the store's own counters.
//! `--every SECONDS` adds a row for each stretch of that length. The device named is formatted: all on it is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use clap::Parser;
use quarry_base::*;
use quarry_metrics::{Histo, HistoSnapshot, Metrics};
use quarry_ring::{now_boottime, Event, OpenOpts, Reactor, RingConfig};
use quarry_store::*;
use sds_server::disk::{Disks, Owner, Target};
use sds_server::format::{FormatOp, Formatter};
use sds_server::metrics::{DeviceMetrics, SdsMetrics};
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

/// As the daemon has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Job {
    Randwrite,
    Seqwrite,
    Randread,
    /// Opens the device as it is and says how long that took
    Open,
}

#[derive(Parser)]
struct Args {
    /// File or block device; formatted
    #[arg(long)]
    path: PathBuf,
    /// Size of a file that does not exist, bytes
    #[arg(long, default_value_t = 4 << 30)]
    size: u64,
    #[arg(long, value_enum)]
    job: Job,
    /// Bytes of a request
    #[arg(long, default_value_t = 4096)]
    bs: u32,
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Bytes that are written or read; prefilled for reads
    #[arg(long, default_value_t = 1 << 30)]
    range: u64,
    /// Acknowledge when written, not when synced
    #[arg(long)]
    cached: bool,
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Ends after so many requests
    #[arg(long, default_value_t = u64::MAX)]
    requests: u64,
    /// A row for every so many seconds
    #[arg(long)]
    every: Option<f64>,
    /// Log size, bytes; 0: the default
    #[arg(long, default_value_t = 0)]
    log: u64,
    /// Leaves the log as it is at the end, as a kill would
    #[arg(long)]
    no_flush: bool,
}

const GROUPS: u64 = 8;

struct Bench {
    args: Args,
    reactor: Reactor,
    target: (quarry_ring::FileId, bool),
    disks: Disks,
    metrics: DeviceMetrics,
    store: Store,
    ops: Vec<DiskOp>,
    events: Vec<StoreEvent>,
    done: Vec<Event>,
    stable: AppendId,
    waiting: VecDeque<(AppendId, PgId, Seq, Nanos)>,
    reads: HashMap<u64, Nanos>,
    pages: Vec<(Bytes, SmallVec<[u32; 1]>)>,
    rng: u64,
    next: u64,
    token: u64,
    histo: Histo,
    count: u64,
    max: u64,
    /// Longest time between two looks at the reactor, nanoseconds.
    away: u64,
    looked: Nanos,
    opened: bool,
}

fn pg(n: u64) -> PgId {
    PgId::new(PoolId(1), n as u32)
}

impl Bench {
    fn new(args: Args) -> Bench {
        let mut reactor = Reactor::new(RingConfig::default()).unwrap();
        let opts = OpenOpts { direct: true, read_only: false, create_size: Some(args.size) };
        let f = reactor.open_device(&args.path, opts).unwrap();
        let metrics = SdsMetrics::new(Metrics::new(sds_server::VERSION, "bench", "bench"));
        let ack = if args.cached { AckMode::Cached } else { AckMode::Durable };
        let cfg = StoreConfig {
            device_bytes: f.size,
            log_bytes: args.log,
            ack,
            ..StoreConfig::default()
        };
        let mut b = Bench {
            reactor,
            target: (f.id, f.direct),
            disks: Disks::default(),
            metrics: metrics.device("bench"),
            store: Store::open(cfg.clone(), None),
            ops: Vec::new(),
            events: Vec::new(),
            done: Vec::new(),
            stable: 0,
            waiting: VecDeque::new(),
            reads: HashMap::new(),
            pages: contents(args.bs),
            rng: 1,
            next: 0,
            token: 0,
            histo: Histo::new(),
            count: 0,
            max: 0,
            away: 0,
            looked: Nanos::ZERO,
            opened: false,
            args,
        };
        if b.args.job != Job::Open {
            let ident = DeviceIdent { cluster: [7; 16], device_uuid: [3; 16], device: DeviceId(1) };
            b.format(Formatter::new(format(&cfg, ident).unwrap()));
        }
        while !b.opened {
            b.turn(true);
        }
        // A full device takes no new blocks, and nobody here asks before as the daemon does: it would wait for ever.
        let room = b.store.headroom().blocks * u64::from(BLOCK);
        let (job, range) = (b.args.job, b.args.range);
        assert!(
            job == Job::Open || range <= room,
            "the range ({range} bytes) does not fit the device ({room} bytes for data): a larger file"
        );
        b
    }

    fn target(&self) -> Target<'_> {
        let (file, direct) = self.target;
        Target { device: 0, file, direct, metrics: &self.metrics }
    }

    fn format(&mut self, mut steps: Formatter) {
        while let Some(op) = steps.next_op() {
            let (file, direct) = self.target;
            let t = Target { device: 0, file, direct, metrics: &self.metrics };
            self.disks.submit_format(&mut self.reactor, &t, op);
            while self.disks.in_flight() > 0 {
                self.reactor
                    .turn(Some(now_boottime() + Duration::from_secs(30)), &mut self.done)
                    .unwrap();
                self.completions();
            }
        }
        let _: Option<FormatOp> = None;
    }

    fn completions(&mut self) {
        let now = now_boottime();
        for e in std::mem::take(&mut self.done) {
            let (token, r) = match e {
                Event::ReadDone { token, result, buf } => {
                    (token, DiskResult::Read(result.map(|_| buf)))
                }
                Event::WriteDone { token, result }
                | Event::SyncDone { token, result }
                | Event::DiscardDone { token, result } => (token, DiskResult::Done(result)),
                _ => continue,
            };
            let done = self.disks.complete(now, token, r, std::slice::from_ref(&self.metrics));
            match done.map(|d| (d.owner, d.result)) {
                Some((Owner::Store(id), r)) => self.store.complete(now, id, r),
                Some((Owner::Format, DiskResult::Done(Err(e)))) => panic!("formatting: errno {e}"),
                _ => {}
            }
        }
    }

    /// One turn of the loop, as the daemon has it.
    fn turn(&mut self, wait: bool) {
        self.work(now_boottime());
        self.look(wait);
    }

    /// Lets the store work and takes what comes of it.
    fn work(&mut self, now: Nanos) {
        self.store.poll(now, &mut self.ops, &mut self.events);
        for op in std::mem::take(&mut self.ops) {
            let (file, direct) = self.target;
            let t = Target { device: 0, file, direct, metrics: &self.metrics };
            self.disks.submit(&mut self.reactor, &t, op);
        }
        for e in std::mem::take(&mut self.events) {
            self.event(e);
        }
    }

    /// Hands operations to the kernel and takes what is done.
    fn look(&mut self, wait: bool) {
        let until = if wait && self.disks.in_flight() > 0 {
            Some(now_boottime() + Duration::from_millis(100))
        } else {
            Some(Nanos::ZERO)
        };
        if self.looked > Nanos::ZERO {
            self.away = self.away.max(now_boottime().since(self.looked).as_nanos() as u64);
        }
        self.reactor.turn(until, &mut self.done).unwrap();
        self.looked = now_boottime();
        self.completions();
    }

    /// The device's operations: reads, writes, durable writes, syncs.
    fn disk(&self) -> [HistoSnapshot; 4] {
        let m = &self.metrics;
        [&m.read, &m.write, &m.write_sync, &m.sync].map(|h| h.snapshot())
    }

    fn event(&mut self, e: StoreEvent) {
        match e {
            StoreEvent::Opened => self.opened = true,
            StoreEvent::Stable { upto } => self.stable = self.stable.max(upto),
            StoreEvent::ReadDone { token, result } => {
                result.expect("a read");
                let start = self.reads.remove(&token).unwrap();
                self.ended(start);
            }
            StoreEvent::OpenFailed(e) | StoreEvent::Failed(e) => panic!("{e}"),
            StoreEvent::Corruption { .. } => panic!("corruption"),
            _ => {}
        }
        let now = now_boottime();
        while self.waiting.front().is_some_and(|w| w.0 <= self.stable) {
            let (_, pg, seq, start) = self.waiting.pop_front().unwrap();
            self.store.set_commit(pg, seq);
            let n = u64::try_from(now.since(start).as_nanos()).unwrap();
            self.histo.record(n);
            self.max = self.max.max(n);
            self.count += 1;
        }
    }

    fn ended(&mut self, start: Nanos) {
        let n = u64::try_from(now_boottime().since(start).as_nanos()).unwrap();
        self.histo.record(n);
        self.max = self.max.max(n);
        self.count += 1;
    }

    fn random(&mut self) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        self.rng
    }

    /// Where request number `n` of the job goes.
    fn place(&mut self, sequential: bool) -> (PgId, Extent, u32) {
        let slots = self.args.range / u64::from(self.args.bs);
        let n = if sequential { self.next % slots } else { self.random() % slots };
        self.next += 1;
        let at = n * u64::from(self.args.bs);
        let extent = at / EXTENT as u64;
        (pg(extent % GROUPS), Extent(extent as u32), (at % EXTENT as u64) as u32)
    }

    /// False: the log is full.
    fn write(&mut self, sequential: bool) -> bool {
        let (rng, next) = (self.rng, self.next);
        let (pg, extent, offset) = self.place(sequential);
        let (data, crcs) = self.pages[(self.next % 16) as usize].clone();
        let seq = Seq(self.store.pg_state(pg).last.seq.0 + 1);
        let kind =
            RecordKind::Write { vtree: VtreeId(1), layer: Layer(0), extent, offset, crcs, data };
        let version = Version::new(Epoch(1), seq);
        let rec = Record { version, origin: Origin::default(), kind };
        // As the daemon has it: what arrives is compared with its checksums by the engine, before the store.
        match self.store.append_verified(pg, rec) {
            Ok(id) => self.waiting.push_back((id, pg, seq, now_boottime())),
            Err(AppendError::LogFull) => {
                (self.rng, self.next) = (rng, next);
                return false;
            }
            Err(e) => panic!("{e}"),
        }
        true
    }

    fn read(&mut self) {
        let (pg, extent, offset) = self.place(false);
        self.token += 1;
        self.reads.insert(self.token, now_boottime());
        let bs = self.args.bs;
        self.store.read(self.token, pg, VtreeId(1), Layer(0), extent, offset, bs);
    }

    fn settle(&mut self) {
        while !self.waiting.is_empty() || !self.reads.is_empty() {
            self.turn(true);
        }
        if !self.args.no_flush {
            self.store.flush_all();
            while !self.store.is_idle() {
                self.turn(true);
            }
        }
    }

    /// Fills the range, so that reads find blocks.
    fn prefill(&mut self) {
        let bs = std::mem::replace(&mut self.args.bs, 1 << 20);
        let small = std::mem::replace(&mut self.pages, contents(1 << 20));
        let all = self.args.range >> 20;
        while self.next < all {
            while self.waiting.len() < 4 && self.next < all && self.write(true) {}
            self.turn(true);
        }
        self.settle();
        (self.args.bs, self.pages, self.next) = (bs, small, 0);
        (self.histo, self.count, self.max) = (Histo::new(), 0, 0);
    }

    fn run(&mut self) -> serde_json::Value {
        if self.args.job == Job::Randread {
            self.prefill();
        }
        let (before, syncs) = (self.metrics.write_bytes.get(), self.store.stats());
        let start = now_boottime();
        let end = start + Duration::from_secs_f64(self.args.seconds);
        let mut rows = Vec::new();
        let mut row_at = self.args.every.map(|s| start + Duration::from_secs_f64(s));
        let mut last: (u64, HistoSnapshot) = (0, self.histo.snapshot());
        let (mut begun, mut row_max) = (0u64, 0u64);
        let mut disk = self.disk();
        self.away = 0;
        let mut now = start;
        while now < end && begun < self.args.requests {
            // As a client does: what was acknowledged is followed by the next request at once.
            self.work(now);
            let had = begun;
            let mut open = true;
            while open
                && self.waiting.len() + self.reads.len() < self.args.depth
                && begun < self.args.requests
            {
                match self.args.job {
                    Job::Randread => self.read(),
                    job => open = self.write(job == Job::Seqwrite),
                }
                begun += u64::from(open);
            }
            if begun > had {
                self.work(now);
            }
            self.look(true);
            now = now_boottime();
            if let Some(at) = row_at.filter(|at| now >= *at) {
                let h = self.histo.snapshot().since(&last.1);
                row_max = row_max.max(self.max);
                let d = self.disk();
                let longest = |i: usize| d[i].since(&disk[i]).quantile_nanos(1.0) / 1000;
                let disk_us: Vec<u64> = (0..4).map(longest).collect();
                disk = d;
                rows.push(serde_json::json!({
                    "ops": self.count - last.0, "p99_us": h.quantile_nanos(0.99) / 1000,
                    "max_us": std::mem::take(&mut self.max) / 1000,
                    "log_used": self.store.stats().log_used_bytes,
                    // Upper bounds of a histogram: reads, writes, durable writes, syncs.
                    "disk_max_us": disk_us,
                    "away_max_us": std::mem::take(&mut self.away) / 1000,
                }));
                last = (self.count, self.histo.snapshot());
                row_at = Some(at + Duration::from_secs_f64(self.args.every.unwrap_or(1.0)));
            }
        }
        let took = now.since(start).as_secs_f64();
        let count = self.count;
        let (h, s) = (self.histo.snapshot(), self.store.stats());
        let app = count * u64::from(self.args.bs);
        let max = self.max.max(row_max);
        self.settle();
        serde_json::json!({
            "iops": count as f64 / took, "mb_s": app as f64 / took / 1e6, "ops": count, "seconds": took,
            "p50_us": h.quantile_nanos(0.5) / 1000, "p99_us": h.quantile_nanos(0.99) / 1000, "max_us": max / 1000,
            "written_per_byte": (self.metrics.write_bytes.get() - before) as f64 / app.max(1) as f64,
            "syncs": s.syncs - syncs.syncs, "batches": s.batches - syncs.batches,
            "direct_blocks": s.direct_writes - syncs.direct_writes, "log_full": s.log_full - syncs.log_full,
            "log_bytes": s.log_bytes, "copied": self.metrics.copied.get(), "rows": rows,
        })
    }
}

/// Sixteen different contents of a request, with their checksums.
fn contents(bs: u32) -> Vec<(Bytes, SmallVec<[u32; 1]>)> {
    let one = |n: u8| {
        let mut b = PageBuf::zeroed(bs as usize);
        b.chunks_mut(8).enumerate().for_each(|(i, c)| c.fill(n.wrapping_add(i as u8)));
        let crcs = b.chunks(PAGE).map(crc32c).collect();
        (b.freeze(), crcs)
    };
    (1..=16).map(one).collect()
}

fn main() {
    let args = Args::parse();
    let start = now_boottime();
    let job = args.job;
    let mut b = Bench::new(args);
    let opened = now_boottime().since(start).as_secs_f64();
    let out = match job {
        Job::Open => {
            let s = b.store.stats();
            serde_json::json!({"open_seconds": opened, "log_bytes": s.log_bytes, "log_used": s.log_used_bytes, "used_bytes": s.used_bytes, "capacity_bytes": s.capacity_bytes, "direct": b.target().direct})
        }
        _ => b.run(),
    };
    println!("{out}");
}
