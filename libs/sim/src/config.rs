//! The shape of a run, made from its seed.

use crate::disk::Lie;
use crate::faults::{everything, Fault, Mix};
use crate::load::Load;
use crate::mdm::{Shape, Wrong};
use crate::node::store_config;
use crate::rng::Rng;
use quarry_replica::Limits;
use quarry_store::StoreConfig;

/// Operations of all clients of a run together, at least.
pub const OPERATIONS: u64 = 2_000;
/// Faults of a run at least, where there are any.
pub const FAULTS: u64 = 3;

/// A device with some thirty blocks beside its log: less than the load writes.
pub(crate) const SMALL_DEVICE: u64 = 6 << 20;

/// Faults that move no copies to other devices, which would have no room for them.
fn nothing_moves() -> Mix {
    let moves =
        |f: &Fault| matches!(f, Fault::Fence | Fault::Rebuild | Fault::Volume | Fault::Wipe);
    everything().into_iter().filter(|(f, _)| !moves(f)).collect()
}

/// A limit of the clients' engines that the load reaches.
fn tight(r: &mut Rng) -> quarry_sdc::engine::Limits {
    let mut l = quarry_sdc::engine::Limits::default();
    match r.below(3) {
        0 => l.pg_in_flight = r.within(1, 3) as usize,
        1 => l.pg_id_window = r.within(2, 4),
        _ => {
            (l.volume_parts, l.volume_queue) = (r.within(1, 3) as usize, r.within(2, 4) as usize);
            l.volume_bytes = r.within(1, 128) << 10;
        }
    }
    l
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Config {
    pub shape: Shape,
    pub clients: u32,
    pub load: Load,
    /// Faults happen until then, milliseconds.
    pub faults_ms: u64,
    /// Mean time between faults, milliseconds; 0: none.
    pub fault_every_ms: u64,
    pub mix: Mix,
    /// In so many of a hundred cases a primary is killed right after a member was added at its request, and a
    /// member right after its sync began.
    pub strike: u64,
    /// In so many of a hundred cases a server is asked to stop moments after it became a primary.
    pub press: u64,
    /// So many of a hundred reads of a disk take long.
    pub slow_reads: u64,
    pub limits: Limits,
    /// Of the clients.
    pub sdc: quarry_sdc::engine::Limits,
    pub lie: Lie,
    pub wrong: Wrong,
    /// Prints what happens.
    pub trace: bool,
}

impl Config {
    /// The shape of the run with this seed.
    pub fn of_seed(seed: u64) -> Config {
        let mut r = Rng::new(seed ^ 0x5EED);
        let copies = if r.chance(60) { 2 } else { 3 };
        let most = if r.chance(10) { 12 } else { 5 };
        let servers = r.within(u64::from(copies).max(3), most) as u32;
        let fault_sets =
            if r.chance(20) { r.within(u64::from(copies), u64::from(servers)) } else { 0 };
        let clients = r.within(1, 3) as u32;
        let faults_ms = 14_000;
        let operations = OPERATIONS.div_ceil(u64::from(clients));
        let min_copies = if copies == 3 && r.chance(50) { 2 } else { 1 };
        let (cached, confirm) = (r.chance(25), r.chance(15));
        let mut mix = everything();
        if confirm {
            mix.push((Fault::Freeze, 12));
        }
        if cached {
            mix.push((Fault::CrashMany, 10));
        }
        let mut c = Config {
            shape: Shape {
                servers,
                fault_sets: fault_sets as u32,
                pgs: 1 << r.within(0, 3),
                copies,
                min_copies,
                grace_seconds: if r.chance(30) { r.within(0, 4) } else { 60 },
                device_bytes: store_config().device_bytes,
                thick: 0,
                cached,
                confirm,
            },
            clients,
            load: Load {
                extents: r.within(1, 4) as u32,
                blocks: r.within(1, 3) as u32,
                pages: [2, 4, 16, 16][r.below(4) as usize],
                depth: r.within(2, 8) as usize,
                overlaps: false,
                crossing: 0,
                trims: if r.chance(10) { 20 } else { 1 },
                flushes: 5,
                think_ms: faults_ms / operations,
                operations,
                reads_only: false,
            },
            faults_ms,
            fault_every_ms: r.within(200, 2500),
            mix,
            strike: r.within(0, 20),
            press: 0,
            slow_reads: 1,
            limits: Limits::default(),
            sdc: Default::default(),
            lie: Lie::None,
            wrong: Wrong::None,
            trace: false,
        };
        let mut r = Rng::new(seed ^ 0x5DC);
        c.load.overlaps = r.chance(50);
        c.load.crossing = if r.chance(60) { r.within(2, 10) } else { 0 };
        if r.chance(30) {
            c.sdc = tight(&mut r);
        }
        let mut r = Rng::new(seed ^ 0x9E5C);
        if r.chance(15) {
            c.press = r.within(2, 25);
        }
        // Devices that run full: nothing that was acknowledged goes, nothing that was refused comes.
        if Rng::new(seed ^ 0xF011).chance(12) {
            c.run_full();
            c.mix = nothing_moves();
        }
        c
    }

    /// Devices with room for everything, no thick volume.
    pub fn with_room(&mut self) {
        (self.shape.device_bytes, self.shape.thick) = (store_config().device_bytes, 0);
    }

    /// Makes the devices smaller than what is written.
    pub(crate) fn run_full(&mut self) {
        (self.shape.device_bytes, self.shape.thick) = (SMALL_DEVICE, 1);
        self.shape.grace_seconds = 60;
        // Every device has everything: what fits on two of them fits on the third.
        (self.shape.servers, self.shape.copies, self.shape.fault_sets) = (3, 3, 0);
        // With fewer copies than asked for, writes would wait for room that nobody makes here.
        self.shape.min_copies = 1;
        (self.load.extents, self.load.blocks) = (12, 3);
    }

    /// A rule is broken on purpose.
    pub fn broken(&self) -> bool {
        self.lie != Lie::None || self.wrong != Wrong::None
    }
}

/// The stores of a run.
pub fn store_of(cfg: &Config) -> StoreConfig {
    StoreConfig { device_bytes: cfg.shape.device_bytes, ..store_config() }
}
