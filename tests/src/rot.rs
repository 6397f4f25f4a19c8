//! Damage on a medium: finds the pages of a load in the data blocks of a device file and changes them below their server.

use crate::failure::While;
use crate::page;
use crate::rng::Rng;
use crate::{ensure, fail, Res};
use quarry_base::PAGE;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where the log begins (docs/DISK-FORMAT.md); the data blocks lie behind it.
const LOG_START: u64 = 128 << 10;
/// Bytes looked at at once.
const STRIDE: usize = 1 << 20;

/// A page of a load, as it lies in a device's data blocks.
#[derive(Clone, PartialEq, Eq)]
pub struct Found {
    /// Byte offset on the device.
    pub offset: u64,
    pub content: Box<[u8]>,
}

/// How pages are damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// One bit of each turns.
    Bits,
    /// Each takes the place of the next one: writes that went astray.
    Misplaced,
}

/// A device file.
pub struct Medium {
    file: File,
}

impl Medium {
    /// Opens the device file of a server, which may be running.
    pub fn open(path: &Path) -> Res<Medium> {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        Ok(Medium { file: opened.doing(|| format!("opening {}", path.display()))? })
    }

    /// Every page in the data blocks that a load has written.
    pub fn pages(&self) -> Res<Vec<Found>> {
        let mut first = vec![0; quarry_store::IDENT_BYTES];
        self.file.read_exact_at(&mut first, 0)?;
        let ident =
            quarry_store::read_ident(&first).map_err(|e| crate::Failure::new(e.to_string()))?;
        let Some(info) = ident else { fail!("no Quarry device") };
        let mut found = Vec::new();
        let mut buffer = vec![0; STRIDE];
        let mut at = LOG_START + info.log_bytes;
        while at < info.device_bytes {
            let n = self.file.read_at(&mut buffer, at)?;
            if n == 0 {
                break;
            }
            for (i, p) in buffer[..n].chunks_exact(PAGE).enumerate() {
                if page::is_stamped(p) {
                    found.push(Found { offset: at + (i * PAGE) as u64, content: p.into() });
                }
            }
            at += n as u64;
        }
        Ok(found)
    }

    /// Damages pages; how many.
    pub fn damage(&self, pages: &[Found], how: Damage) -> Res<usize> {
        ensure!(pages.len() > 1, "{} pages of the load are on the medium", pages.len());
        let mut rng = Rng::new(pages.len() as u64);
        for (i, p) in pages.iter().enumerate() {
            let mut content = match how {
                Damage::Bits => p.content.clone(),
                Damage::Misplaced => pages[(i + 1) % pages.len()].content.clone(),
            };
            if how == Damage::Bits {
                content[rng.below(PAGE as u64) as usize] ^= 1 << rng.below(8);
            }
            self.file.write_all_at(&content, p.offset)?;
        }
        Ok(pages.len())
    }

    /// Puts old content back wherever another one is now: writes that were lost. How many.
    pub fn lose_writes(&self, old: &[Found]) -> Res<usize> {
        let mut lost = 0;
        let mut now = vec![0; PAGE];
        for p in old {
            self.file.read_exact_at(&mut now, p.offset)?;
            if now[..] != p.content[..] && page::is_stamped(&now) {
                self.file.write_all_at(&p.content, p.offset)?;
                lost += 1;
            }
        }
        Ok(lost)
    }
}
