//! A device that is read from a file and written to in memory.

use crate::failure::While;
use crate::{Failure, Res};
use quarry_base::{PageBuf, PAGE};
use quarry_store::{DiskOp, DiskResult};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The file below, and the pages written above it.
pub struct Overlay {
    file: File,
    size: u64,
    written: HashMap<u64, Box<[u8]>>,
}

impl Overlay {
    /// Opens a file or block device, read-only.
    pub fn open(path: &Path) -> Res<Overlay> {
        let mut file = File::open(path).doing(|| format!("opening {}", path.display()))?;
        // The length of a block device is where its end is.
        let size = file.seek(SeekFrom::End(0)).doing(|| format!("size of {}", path.display()))?;
        Ok(Overlay { file, size, written: HashMap::new() })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads whole pages; fails beyond the end.
    pub fn read(&self, offset: u64, len: usize) -> Res<PageBuf> {
        let mut buf = PageBuf::zeroed(len);
        self.file
            .read_exact_at(&mut buf, offset)
            .doing(|| format!("reading {len} bytes at {offset}"))?;
        let first = offset / PAGE as u64;
        for (number, page) in (first..).zip(buf.chunks_mut(PAGE)) {
            if let Some(new) = self.written.get(&number) {
                page.copy_from_slice(new);
            }
        }
        Ok(buf)
    }

    /// Does what a store asks for.
    pub fn carry_out(&mut self, op: DiskOp) -> Res<DiskResult> {
        match op {
            DiskOp::Read { offset, len, .. } => Ok(DiskResult::Read(Ok(self.read(offset, len)?))),
            DiskOp::Write { offset, data, .. } => {
                let pages = data.iter().flat_map(|d| d.chunks(PAGE));
                for (number, page) in (offset / PAGE as u64..).zip(pages) {
                    if page.len() != PAGE {
                        return Err(Failure::new(format!(
                            "a write at {offset} is not of whole pages"
                        )));
                    }
                    self.written.insert(number, page.into());
                }
                Ok(DiskResult::Done(Ok(())))
            }
            DiskOp::Sync { .. } | DiskOp::Discard { .. } => Ok(DiskResult::Done(Ok(()))),
        }
    }

    /// Writes what is only in memory to a file.
    #[cfg(test)]
    pub fn pour_into(&self, file: &File) {
        for (number, page) in &self.written {
            file.write_all_at(page, number * PAGE as u64).unwrap();
        }
    }
}
