//! `sds-server format` and `sds-server inspect`.

use crate::device::{look, open_file};
use crate::error::SdsError;
use crate::state::to_hex;
use quarry_base::units::show_size;
use quarry_base::PageBuf;
use quarry_ring::{Event, FileId, OpenOpts, Reactor, RingConfig};
use std::path::Path;
use std::time::Duration;

/// Longest wait for the device.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn reactor(max_inflight: usize) -> Result<Reactor, SdsError> {
    Ok(Reactor::new(RingConfig { entries: 8, max_inflight, ..RingConfig::default() })?)
}

pub(crate) fn direct(read_only: bool) -> OpenOpts {
    OpenOpts { direct: true, read_only, create_size: None }
}

pub(crate) fn no_directory(path: &Path) -> Result<(), SdsError> {
    if path.is_dir() {
        return Err(SdsError::Directory { path: path.into() });
    }
    Ok(())
}

/// Wipes a device so that a server takes it as blank. Without `force` only a blank one.
pub fn format(path: &Path, force: bool) -> Result<String, SdsError> {
    no_directory(path)?;
    let mut r = reactor(1)?;
    let f = open_file(&mut r, path, direct(false))?;
    if !force {
        return match look(&mut r, &f, path)? {
            None => Ok(format!("{} is blank already", path.display())),
            Some(info) => Err(SdsError::Setting(format!(
                "{} is device {} of cluster {}: `sds-server format --force {}` gives up everything on it",
                path.display(),
                info.ident.device,
                to_hex(&info.ident.cluster),
                path.display()
            ))),
        };
    }
    let (starts, n) = crate::blank::ends(f.size);
    for offset in starts {
        zero(&mut r, f.id, path, offset, n)?;
    }
    Ok(format!("{} is wiped: a data server that is given it formats it anew", path.display()))
}

fn zero(
    r: &mut Reactor,
    file: FileId,
    path: &Path,
    offset: u64,
    len: usize,
) -> Result<(), SdsError> {
    if len == 0 {
        return Ok(());
    }
    r.write_then_sync(file, offset, vec![PageBuf::zeroed(len).freeze()], 0);
    let mut events = Vec::new();
    let limit = quarry_ring::now_boottime() + PATIENCE;
    while quarry_ring::now_boottime() < limit {
        r.turn(Some(limit), &mut events)?;
        for e in events.drain(..) {
            if let Event::WriteDone { result, .. } = e {
                return result.map_err(|errno| SdsError::File {
                    path: path.into(),
                    source: std::io::Error::from_raw_os_error(errno),
                });
            }
        }
    }
    let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
    Err(SdsError::File { path: path.into(), source })
}

/// Says what a device is.
pub fn inspect(path: &Path) -> Result<String, SdsError> {
    no_directory(path)?;
    let mut r = reactor(1)?;
    let f = open_file(&mut r, path, direct(true))?;
    let size = show_size(f.size);
    Ok(match look(&mut r, &f, path)? {
        None => format!("{}: blank, {size}", path.display()),
        Some(i) => format!(
            "{}: Quarry device {}\n  cluster  {}\n  identity {}\n  format   {}\n  size     {} (now {size})\n  log      {}\n  data     {} in {} blocks",
            path.display(),
            i.ident.device,
            to_hex(&i.ident.cluster),
            to_hex(&i.ident.device_uuid),
            i.format_version,
            show_size(i.device_bytes),
            show_size(i.log_bytes),
            show_size(i.blocks * u64::from(quarry_base::BLOCK)),
            i.blocks
        ),
    })
}
