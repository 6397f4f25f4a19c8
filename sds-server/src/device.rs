//! A device from the first look at it to the store that serves it.
//!
//! Phases: `Blank` -> `Formatting` -> `Opening` -> `Recovered` -> `Serving`, or `Failed`. A formatted device
//! begins with `Opening`. What has no Quarry superblock and is not all zero at both ends (see [`crate::blank`]) is never written
//! to: somebody has to wipe it first.
//!
//! Opening and the first look block: they happen before anything is served.

use crate::blank;
use crate::error::SdsError;
use crate::format::Formatter;
use crate::patience::patiently;
use crate::state::{from_hex, to_hex, StateFile};
use bytes::Bytes;
use quarry_base::{DeviceId, Nanos, PageBuf, PAGE};
use quarry_control::DeviceReport;
use quarry_ring::{Event, FileId, OpenOpts, OpenedFile, Reactor, RingError};
use quarry_store::{
    is_medium_error, mark_unreadable, read_ident, DeviceIdent, FormatInfo, Store, StoreConfig,
    StoreError, IDENT_BYTES,
};
use quarry_wire::PgHave;
use rustix::fs::Access;
use rustix::io::Errno;
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Smallest device, bytes: 128 MiB.
pub const MIN_BYTES: u64 = 128 << 20;
/// Longest wait for the first read of a device.
const FIRST_READ: Duration = Duration::from_secs(30);

/// Where a device stands.
pub enum Phase {
    /// Waits for registration, which gives cluster and device id.
    Blank,
    Formatting(Box<Formatter>),
    /// Recovery runs.
    Opening(Box<Store>),
    /// Recovered, waits for registration.
    Recovered(Box<Store>),
    /// The engine has the store.
    Serving,
    /// Not usable, and why.
    Failed(String),
}

impl Phase {
    /// The store that waits for its registration.
    pub fn recovered(&self) -> Option<&Store> {
        match self {
            Phase::Recovered(s) => Some(s),
            _ => None,
        }
    }
}

/// One device of this server.
pub struct Device {
    pub path: PathBuf,
    pub file: FileId,
    /// Size of the file or block device, bytes.
    pub bytes: u64,
    /// Past the page cache: buffers must be aligned.
    pub direct: bool,
    pub uuid: [u8; 16],
    /// Known once registered.
    pub id: Option<DeviceId>,
    pub phase: Phase,
    /// Formatting it failed.
    pub unformatted: bool,
    /// A write or sync failed that the page cache hides from the next start; it has been told.
    pub lost: bool,
    /// Bytes a second that its scrub reads where its pool says nothing of it.
    pub scrub_rate: u64,
    /// Memory for checksums of its pages.
    pub checksum_cache: u64,
    /// When its opening began, and what it took, seconds.
    pub opening_since: Nanos,
    pub open_seconds: f64,
    /// Memory of its block table, bytes, and when it is measured next.
    pub table_memory: u64,
    pub measure_at: Nanos,
    /// As the store said last, for reports.
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// What its groups held when it was recovered; the engine knows better once it serves.
    pub recovered: Vec<PgHave>,
}

impl Device {
    /// Why it takes no writes, if it does not.
    pub fn failure(&self) -> Option<&str> {
        match &self.phase {
            Phase::Failed(why) => Some(why),
            _ => None,
        }
    }

    /// Whether recovery is still under way.
    pub fn is_opening(&self) -> bool {
        matches!(self.phase, Phase::Opening(_))
    }

    /// Whether it serves, or has failed for good.
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Failed(_))
    }

    /// What the MDM is told of it. `pgs`: from the engine when it serves.
    pub fn report(&self, pgs: Option<Vec<PgHave>>, failed: Option<String>) -> DeviceReport {
        DeviceReport {
            uuid: to_hex(&self.uuid),
            path: self.path.clone(),
            capacity_bytes: self.capacity_bytes,
            used_bytes: self.used_bytes,
            shard: 0,
            failed: failed.or_else(|| self.failure().map(str::to_string)),
            pgs: pgs.unwrap_or_else(|| self.recovered.clone()),
        }
    }

    /// Settings of its store.
    pub fn store_config(&self) -> StoreConfig {
        StoreConfig {
            device_bytes: self.bytes,
            scrub_bytes_per_second: self.scrub_rate,
            check_cache_bytes: self.checksum_cache,
            ..StoreConfig::default()
        }
    }

    /// Sets what its scrub reads a second where its pool says nothing of it, bytes.
    pub fn set_scrub_rate(&mut self, rate: u64) {
        self.scrub_rate = rate;
        if let Phase::Opening(s) | Phase::Recovered(s) = &mut self.phase {
            s.set_scrub_rate(rate);
        }
    }

    /// Sets what checksums of its pages may take of the memory, bytes.
    pub fn set_checksum_cache(&mut self, bytes: u64) {
        self.checksum_cache = bytes;
        if let Phase::Opening(s) | Phase::Recovered(s) = &mut self.phase {
            s.set_check_cache(bytes);
        }
    }

    /// Begins formatting as device `id` of `cluster`.
    pub fn format(&mut self, cluster: [u8; 16], id: DeviceId) -> Result<(), String> {
        let ident = DeviceIdent { cluster, device_uuid: self.uuid, device: id };
        let steps = quarry_store::format(&self.store_config(), ident).map_err(|e| e.to_string())?;
        tracing::info!(device = %self.path.display(), id = id.0, "formatting");
        self.phase = Phase::Formatting(Box::new(Formatter::new(steps)));
        Ok(())
    }

    /// Begins recovery. It is of `cluster` if that is known.
    pub fn recover(&mut self, cluster: Option<[u8; 16]>) {
        let mut store = Store::open(self.store_config(), cluster);
        // Its pool may want no scrub: it begins when the engine knows what the pool says.
        store.set_scrub_policy(Some(0));
        self.opening_since = quarry_ring::now_boottime();
        self.phase = Phase::Opening(Box::new(store));
    }
}

/// A device that a server goes on without, and why.
pub struct LeftOut {
    pub path: PathBuf,
    pub why: SdsError,
}

/// Is a device that is not there, or cannot be read at all, a mistake in the settings or a disk that has died? A server that
/// has been in a cluster before goes on with its other disks: that one's copies are elsewhere.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Strict {
    Yes,
    No,
}

impl Strict {
    /// How it is for the server with this state.
    pub fn of(state: &crate::state::State) -> Strict {
        match state.cluster {
            Some(_) => Strict::No,
            None => Strict::Yes,
        }
    }

    /// Is this how a disk dies? Some keep their name and have no size, or let nothing be written any more.
    fn leaves_out(self, path: &Path, why: &SdsError) -> bool {
        self == Strict::No
            && match why {
                SdsError::Missing { .. }
                | SdsError::Unreadable { .. }
                | SdsError::ReadOnly { .. }
                | SdsError::TooSmall { bytes: 0, .. }
                | SdsError::Ring(RingError::File { .. }) => true,
                // Of the device, not of what the server itself keeps.
                SdsError::File { path: of, .. } => of == path,
                _ => false,
            }
    }

    /// A disk that is gone is not made anew as a file where it was.
    fn create(self, path: &Path, bytes: Option<u64>) -> Option<u64> {
        bytes.filter(|_| self == Strict::Yes || !path.starts_with("/dev"))
    }
}

/// What can be said of the devices of a daemon without touching any. Those that the server goes on without are told, unless they
/// are all.
pub fn check_all(
    paths: &[PathBuf],
    create: Option<u64>,
    strict: Strict,
) -> Result<Vec<LeftOut>, SdsError> {
    let mut out = Vec::new();
    if let Some(bytes) = create.filter(|b| *b < MIN_BYTES) {
        let path = PathBuf::from("--device-size");
        return Err(SdsError::TooSmall { path, bytes });
    }
    let mut seen = HashSet::new();
    for path in paths {
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        if !seen.insert(real) {
            return Err(SdsError::Twice { path: path.clone() });
        }
        match check_one(path, strict.create(path, create)) {
            Err(why) if strict.leaves_out(path, &why) => {
                out.push(LeftOut { path: path.clone(), why })
            }
            done => done?,
        }
    }
    some_left(paths, out)
}

/// A server without any device is of no use.
fn some_left(paths: &[PathBuf], mut out: Vec<LeftOut>) -> Result<Vec<LeftOut>, SdsError> {
    match out.pop() {
        Some(last) if out.len() + 1 == paths.len() => Err(last.why),
        last => {
            out.extend(last);
            Ok(out)
        }
    }
}

fn check_one(path: &Path, create: Option<u64>) -> Result<(), SdsError> {
    let found = match std::fs::metadata(path) {
        Ok(m) => m,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let bytes = create.ok_or_else(|| SdsError::Missing { path: path.into() })?;
            return has_room(path, bytes);
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(SdsError::Permission { path: path.into() })
        }
        Err(source) => return Err(SdsError::File { path: path.into(), source }),
    };
    if found.is_dir() {
        return Err(SdsError::Directory { path: path.into() });
    }
    match rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK) {
        Err(Errno::ACCESS) => Err(SdsError::Permission { path: path.into() }),
        Err(Errno::ROFS) => Err(SdsError::ReadOnly { path: path.into() }),
        _ if found.is_file() && found.len() < MIN_BYTES => {
            Err(SdsError::TooSmall { path: path.into(), bytes: found.len() })
        }
        _ => Ok(()),
    }
}

/// Opens all devices of a daemon and looks at each; those that it goes on without are told.
pub fn open_all(
    reactor: &mut Reactor,
    paths: &[PathBuf],
    create: Option<u64>,
    state: &mut StateFile,
) -> Result<(Vec<Device>, Vec<LeftOut>), SdsError> {
    let strict = Strict::of(&state.state);
    let mut out = check_all(paths, create, strict)?;
    let mut devices = Vec::new();
    for path in paths {
        if out.iter().any(|l| l.path == *path) {
            continue;
        }
        match open_one(reactor, path, strict.create(path, create), state) {
            Err(why) if strict.leaves_out(path, &why) => {
                out.push(LeftOut { path: path.clone(), why })
            }
            device => devices.push(device?),
        }
    }
    let out = some_left(paths, out)?;
    for l in &out {
        tracing::error!(device = %l.path.display(), error = %l.why, "this device is left out: replace the disk, or take it out of the settings; its copies are made anew elsewhere");
    }
    Ok((devices, out))
}

fn open_one(
    reactor: &mut Reactor,
    path: &Path,
    create: Option<u64>,
    state: &mut StateFile,
) -> Result<Device, SdsError> {
    let opened =
        open_file(reactor, path, OpenOpts { direct: true, read_only: false, create_size: create })?;
    let device = examine(reactor, path, &opened, state);
    if device.is_err() {
        // It may be left out: its name and its claim are for whoever looks after it.
        reactor.close_file(opened.id);
    }
    device
}

/// Looks at a device that was opened.
fn examine(
    reactor: &mut Reactor,
    path: &Path,
    opened: &OpenedFile,
    state: &mut StateFile,
) -> Result<Device, SdsError> {
    if !opened.direct {
        tracing::warn!(device = %path.display(), "O_DIRECT is refused here: data also goes through the page cache, slower");
    }
    if opened.size < MIN_BYTES {
        return Err(SdsError::TooSmall { path: path.into(), bytes: opened.size });
    }
    let info = look(reactor, opened, path)?;
    let mut device = Device {
        path: path.into(),
        file: opened.id,
        bytes: opened.size,
        direct: opened.direct,
        uuid: [0; 16],
        id: None,
        phase: Phase::Blank,
        unformatted: false,
        lost: false,
        scrub_rate: 0,
        checksum_cache: 0,
        opening_since: Nanos::ZERO,
        open_seconds: 0.0,
        table_memory: 0,
        measure_at: Nanos::ZERO,
        capacity_bytes: opened.size,
        used_bytes: 0,
        recovered: Vec::new(),
    };
    match info {
        None => {
            device.uuid = state.uuid_of_blank(path)?;
            // What it will hold, not the size of the file: its share of the data follows from it and must be the
            // same before and after it is formatted. Too small for that: formatting it says why.
            let will_hold = quarry_store::capacity_bytes(&device.store_config());
            device.capacity_bytes = will_hold.unwrap_or(opened.size);
        }
        Some(info) => {
            accept(path, &info, opened.size, state.state.cluster.as_deref())?;
            device.uuid = info.ident.device_uuid;
            device.id = Some(info.ident.device);
            device.bytes = info.device_bytes;
            match state.failed(&device.uuid).map(|f| f.message(path)) {
                None => device.recover(Some(info.ident.cluster)),
                Some(why) => {
                    tracing::error!(device = %path.display(), "{why}");
                    device.phase = Phase::Failed(why);
                }
            }
            // The first device decides for a node that does not know its cluster any more.
            if state.state.cluster.is_none() {
                state.state.cluster = Some(to_hex(&info.ident.cluster));
                state.save()?;
            }
        }
    }
    Ok(device)
}

/// A file larger than its disk would fail when it is needed most.
fn has_room(path: &Path, bytes: u64) -> Result<(), SdsError> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match rustix::fs::statvfs(parent) {
        Ok(s) if s.f_bavail.saturating_mul(s.f_frsize) < bytes => {
            Err(SdsError::NoRoom { path: path.into() })
        }
        // What is wrong with the directory is told when the file is made.
        _ => Ok(()),
    }
}

/// Opens a file; refusals say what to do.
pub fn open_file(
    reactor: &mut Reactor,
    path: &Path,
    opts: OpenOpts,
) -> Result<quarry_ring::OpenedFile, SdsError> {
    patiently(|| reactor.open_device(path, opts)).map_err(|e| match e {
        RingError::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            SdsError::Permission { path: path.into() }
        }
        RingError::File { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            SdsError::ReadOnly { path: path.into() }
        }
        RingError::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            SdsError::NoRoom { path: path.into() }
        }
        RingError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            SdsError::Missing { path: path.into() }
        }
        e => e.into(),
    })
}

/// Reads who a device is. `None`: blank.
pub fn look(
    reactor: &mut Reactor,
    file: &OpenedFile,
    path: &Path,
) -> Result<Option<FormatInfo>, SdsError> {
    let (start, refused) = read_around(reactor, file.id, 0, IDENT_BYTES, path)?;
    match (read_ident(&start), refused) {
        (Ok(Some(info)), _) => Ok(Some(info)),
        (Err(e @ (StoreError::NewerFormat { .. } | StoreError::OlderFormat { .. })), _) => {
            Err(SdsError::of_ident(path.into(), e))
        }
        // Who it is may stand where it cannot be read.
        (_, Some(errno)) => Err(unreadable(path, errno)),
        // Some file systems leave the first and the seventeenth page alone.
        (Ok(None), None) if start.iter().any(|b| *b != 0) => {
            Err(SdsError::Foreign { path: path.into() })
        }
        (Ok(None), None) => blank::check(reactor, file, path).map(|()| None),
        (Err(e), None) => Err(SdsError::of_ident(path.into(), e)),
    }
}

/// The bytes in which both superblocks lie; pages that cannot be read are damaged ones.
pub fn first_bytes(reactor: &mut Reactor, file: FileId, path: &Path) -> Result<Bytes, SdsError> {
    read_around(reactor, file, 0, IDENT_BYTES, path).map(|(start, _)| start.freeze())
}

pub(crate) fn unreadable(path: &Path, errno: i32) -> SdsError {
    SdsError::Unreadable { path: path.into(), source: io::Error::from_raw_os_error(errno) }
}

/// Reads `len` bytes from `offset`. Where the medium refuses a page, a damaged one stands in for it; the last refusal.
///
/// Errors: what is not the medium's, and a range of which nothing can be read.
pub fn read_around(
    reactor: &mut Reactor,
    file: FileId,
    offset: u64,
    len: usize,
    path: &Path,
) -> Result<(PageBuf, Option<i32>), SdsError> {
    match read_blocking(reactor, file, offset, len)? {
        Ok(buf) => return Ok((buf, None)),
        Err(e) if is_medium_error(e) => {}
        Err(e) => return Err(unreadable(path, e)),
    }
    let (mut all, mut refused, mut any) = (PageBuf::zeroed(len), None, false);
    for (i, page) in all.chunks_mut(PAGE).enumerate() {
        match read_blocking(reactor, file, offset + (i * PAGE) as u64, page.len())? {
            Ok(buf) => {
                any = true;
                page.copy_from_slice(&buf);
            }
            Err(e) if is_medium_error(e) => {
                refused = Some(e);
                mark_unreadable(page);
            }
            Err(e) => return Err(unreadable(path, e)),
        }
    }
    match refused {
        Some(e) if !any => Err(unreadable(path, e)),
        refused => Ok((all, refused)),
    }
}

/// Reads `len` bytes from `offset` and waits for them. Only before anything is served.
pub fn read_blocking(
    reactor: &mut Reactor,
    file: FileId,
    offset: u64,
    len: usize,
) -> Result<Result<PageBuf, i32>, SdsError> {
    // Its own: one that was given up may end when another is waited for, or when the device's own operations have begun.
    static NEXT: AtomicU64 = AtomicU64::new(1 << 63);
    let own = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut events = Vec::new();
    reactor.read_at(file, offset, PageBuf::new(len), len, own);
    let limit = quarry_ring::now_boottime() + FIRST_READ;
    while quarry_ring::now_boottime() < limit {
        reactor.turn(Some(limit), &mut events)?;
        for e in events.drain(..) {
            match e {
                Event::ReadDone { token, result, mut buf } if token == own => {
                    buf.set_len(len);
                    return Ok(result.map(|_| buf));
                }
                _ => {}
            }
        }
    }
    // ETIMEDOUT
    Ok(Err(110))
}

fn accept(path: &Path, info: &FormatInfo, bytes: u64, ours: Option<&str>) -> Result<(), SdsError> {
    let found = to_hex(&info.ident.cluster);
    if let Some(ours) = ours.filter(|o| from_hex(o) != Some(info.ident.cluster)) {
        return Err(SdsError::OtherCluster { path: path.into(), found, ours: ours.to_string() });
    }
    if info.device_bytes > bytes {
        return Err(SdsError::Shrunk { path: path.into(), formatted: info.device_bytes, bytes });
    }
    Ok(())
}

/// Earliest time a store that recovers wants to be called.
pub fn next_deadline(devices: &[Device]) -> Option<Nanos> {
    devices
        .iter()
        .filter_map(|d| match &d.phase {
            Phase::Opening(s) => s.next_deadline(),
            _ => None,
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_ring::RingConfig;

    /// A disk that did not answer in time is left out; its answer comes when the next one is looked at.
    #[test]
    fn a_late_answer_of_one_device_is_not_taken_for_that_of_another() {
        let dir = std::env::temp_dir().join(format!("quarry-late-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut reactor = Reactor::new(RingConfig::default()).unwrap();
        let opts = OpenOpts { direct: false, read_only: false, create_size: None };
        let mut file = |name: &str, byte: u8| {
            let path = dir.join(name);
            std::fs::write(&path, vec![byte; 4 * PAGE]).unwrap();
            (open_file(&mut reactor, &path, opts).unwrap().id, path)
        };
        let ((late, _), (other, path)) = (file("late", 1), file("other", 2));
        for token in [0, 1] {
            reactor.read_at(late, 0, PageBuf::new(PAGE), PAGE, token);
        }
        let (found, refused) = read_around(&mut reactor, other, 0, PAGE, &path).unwrap();
        assert!(refused.is_none() && found[..] == [2; PAGE]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
