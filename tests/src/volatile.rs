//! A disk with a volatile cache: what was not flushed when the power fails is lost, kept or torn.
//!
//! An NBD server inside the test, mounted as a file by `nbdfuse`. A write is in memory only until a FLUSH (or FUA)
//! puts it into the image file; [`VolatileDisk::cut`] then decides for each unflushed page, by a seed, whether it,
//! some of its sectors, or nothing of it got there, and the disk answers EIO until [`VolatileDisk::on`].
//! [`Sync::Ignored`] makes it lie: no flush does anything, for tests that must then lose data.

use crate::failure::While;
use crate::nbd::consts::*;
use crate::rng::Rng;
use crate::{fail, wait_until, Res};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

const PAGE: u64 = 4096;
const SECTOR: usize = 512;
const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// Whether the disk does what a flush asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sync {
    Done,
    Ignored,
}

struct State {
    image: File,
    size: u64,
    /// Pages written and not flushed.
    cache: BTreeMap<u64, Vec<u8>>,
    on: bool,
    sync: Sync,
    flushes: u64,
}

/// One disk, mounted; unmounted when dropped.
pub struct VolatileDisk {
    state: Arc<Mutex<State>>,
    mount: PathBuf,
    fuse: Child,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|e| e.into_inner())
}

impl VolatileDisk {
    /// Puts such a disk in the place of the file `path`, with its content.
    pub fn over(path: &Path, sync: Sync) -> Res<VolatileDisk> {
        let base = path.with_extension("durable");
        std::fs::rename(path, &base).doing(|| format!("moving {}", path.display()))?;
        File::create(path)?;
        let image = File::options().read(true).write(true).open(&base)?;
        let size = image.metadata()?.len();
        let state = State { image, size, cache: BTreeMap::new(), on: true, sync, flushes: 0 };
        let state = Arc::new(Mutex::new(state));
        let socket = path.with_extension("nbd");
        let listener = UnixListener::bind(&socket).doing(|| format!("{}", socket.display()))?;
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for s in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // The end of a connection is the end of nbdfuse.
                std::thread::spawn(move || drop(serve(s, &shared)));
            }
        });
        let mut fuse = std::process::Command::new("nbdfuse")
            .arg(path)
            .arg(format!("nbd+unix:///?socket={}", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .doing(|| "starting nbdfuse".to_string())?;
        let there = wait_until("nbdfuse to mount", Duration::from_secs(10), || {
            if fuse.try_wait()?.is_some() {
                fail!("nbdfuse has ended: is /dev/fuse there?");
            }
            Ok((std::fs::metadata(path)?.len() == size).then_some(()))
        });
        if let Err(e) = there {
            fuse.kill().ok();
            fuse.wait().ok();
            return Err(e);
        }
        Ok(VolatileDisk { state, mount: path.to_path_buf(), fuse })
    }

    /// Power fails. Returns how many unflushed pages there were.
    pub fn cut(&self, seed: u64) -> Res<usize> {
        let mut s = lock(&self.state);
        s.on = false;
        let mut rng = Rng::new(seed);
        let cache = std::mem::take(&mut s.cache);
        let count = cache.len();
        // All are lost, each may be lost, or each may be torn.
        let mode = rng.below(3);
        for (page, data) in cache {
            let unit = if mode == 2 { SECTOR } else { data.len() };
            for (i, part) in data.chunks(unit).enumerate() {
                if mode > 0 && rng.below(2) == 0 {
                    s.image.write_all_at(part, page * PAGE + (i * unit) as u64)?;
                }
            }
        }
        Ok(count)
    }

    /// Power is back.
    pub fn on(&self) {
        lock(&self.state).on = true;
    }

    /// Flushes done so far.
    pub fn flushes(&self) -> u64 {
        lock(&self.state).flushes
    }
}

impl Drop for VolatileDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("fusermount3")
            .arg("-uz")
            .arg(&self.mount)
            .stdin(Stdio::null())
            .status();
        if !unmounted.is_ok_and(|s| s.success()) {
            eprintln!("{} stays mounted", self.mount.display());
            self.fuse.kill().ok();
        }
        self.fuse.wait().ok();
    }
}

impl State {
    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, u32> {
        let mut out = vec![0; len];
        self.image.read_exact_at(&mut out, offset).map_err(|_| EIO)?;
        let (first, end) = (offset / PAGE, offset + len as u64);
        for (page, data) in self.cache.range(first..end.div_ceil(PAGE)) {
            let (from, to) = ((page * PAGE).max(offset), ((page + 1) * PAGE).min(end));
            let part = &data[(from - page * PAGE) as usize..(to - page * PAGE) as usize];
            out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
        }
        Ok(out)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        let end = offset + data.len() as u64;
        for page in offset / PAGE..end.div_ceil(PAGE) {
            let (from, to) = ((page * PAGE).max(offset), ((page + 1) * PAGE).min(end));
            let whole = match self.cache.get(&page) {
                Some(old) => old.clone(),
                None => self.read(page * PAGE, PAGE as usize)?,
            };
            let new = self.cache.entry(page).or_insert(whole);
            let at = (from - page * PAGE) as usize..(to - page * PAGE) as usize;
            new[at].copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), u32> {
        self.flushes += 1;
        if self.sync == Sync::Ignored {
            return Ok(());
        }
        for (page, data) in std::mem::take(&mut self.cache) {
            self.image.write_all_at(&data, page * PAGE).map_err(|_| EIO)?;
        }
        Ok(())
    }

    fn request(&mut self, r: &Request, data: &[u8]) -> Result<Vec<u8>, u32> {
        let inside = r.offset.checked_add(u64::from(r.len)).is_some_and(|e| e <= self.size);
        if !self.on {
            return Err(EIO);
        }
        if !inside && r.command != CMD_FLUSH {
            return Err(EINVAL);
        }
        let mut out = Vec::new();
        match r.command {
            CMD_READ => out = self.read(r.offset, r.len as usize)?,
            CMD_WRITE => self.write(r.offset, data)?,
            CMD_WRITE_ZEROES => self.write(r.offset, &vec![0; r.len as usize])?,
            CMD_FLUSH => self.flush()?,
            CMD_TRIM => {}
            _ => return Err(EINVAL),
        }
        if r.flags & CMD_FLAG_FUA != 0 {
            self.flush()?;
        }
        Ok(out)
    }
}

struct Request {
    flags: u16,
    command: u16,
    handle: [u8; 8],
    offset: u64,
    len: u32,
}

fn number<const N: usize>(s: &mut UnixStream) -> std::io::Result<[u8; N]> {
    let mut b = [0; N];
    s.read_exact(&mut b)?;
    Ok(b)
}

/// One connection, to its end.
fn serve(mut s: UnixStream, state: &Mutex<State>) -> std::io::Result<()> {
    if !handshake(&mut s, lock(state).size)? {
        return Ok(());
    }
    loop {
        let magic = u32::from_be_bytes(number(&mut s)?);
        let r = Request {
            flags: u16::from_be_bytes(number(&mut s)?),
            command: u16::from_be_bytes(number(&mut s)?),
            handle: number(&mut s)?,
            offset: u64::from_be_bytes(number(&mut s)?),
            len: u32::from_be_bytes(number(&mut s)?),
        };
        if magic != REQUEST_MAGIC || r.command == CMD_DISC {
            return Ok(());
        }
        let mut data = Vec::new();
        if r.command == CMD_WRITE {
            data.resize(r.len as usize, 0);
            s.read_exact(&mut data)?;
        }
        let (error, out) = match lock(state).request(&r, &data) {
            Ok(out) => (0, out),
            Err(e) => (e, Vec::new()),
        };
        let mut reply = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
        reply.extend(error.to_be_bytes());
        reply.extend(r.handle);
        reply.extend(out);
        s.write_all(&reply)?;
    }
}

/// The fixed newstyle handshake, as far as nbdfuse needs it. False: the client has gone.
fn handshake(s: &mut UnixStream, size: u64) -> std::io::Result<bool> {
    let flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | CAN_MULTI_CONN;
    s.write_all(&[&NBDMAGIC.to_be_bytes()[..], &IHAVEOPT.to_be_bytes()].concat())?;
    s.write_all(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes())?;
    number::<4>(s)?;
    loop {
        number::<8>(s)?;
        let option = u32::from_be_bytes(number(s)?);
        let len = u32::from_be_bytes(number(s)?);
        let mut data = vec![0; len.min(1 << 16) as usize];
        s.read_exact(&mut data)?;
        let mut reply = |kind: u32, body: &[u8]| {
            let head = [OPTION_REPLY_MAGIC.to_be_bytes().to_vec(), option.to_be_bytes().to_vec()];
            let mut all = head.concat();
            all.extend(kind.to_be_bytes());
            all.extend((body.len() as u32).to_be_bytes());
            all.extend(body);
            s.write_all(&all)
        };
        match option {
            OPT_GO | OPT_INFO => {
                let mut info = INFO_EXPORT.to_be_bytes().to_vec();
                info.extend(size.to_be_bytes());
                info.extend(flags.to_be_bytes());
                reply(REP_INFO, &info)?;
                reply(REP_ACK, &[])?;
                if option == OPT_GO {
                    return Ok(true);
                }
            }
            OPT_EXPORT_NAME => {
                s.write_all(&[&size.to_be_bytes()[..], &flags.to_be_bytes()].concat())?;
                return Ok(true);
            }
            OPT_ABORT => {
                reply(REP_ACK, &[])?;
                return Ok(false);
            }
            _ => reply(REP_ERR_UNSUP, &[])?,
        }
    }
}
