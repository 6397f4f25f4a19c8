//! Formatting a device without holding up the others: one step at a time, driven by completions.

use bytes::Bytes;
use quarry_base::PageBuf;
use quarry_store::FormatStep;
use std::collections::VecDeque;

/// Bytes of zeroes written at once.
const ZERO_BYTES: usize = 1 << 20;

/// What to do next to the device.
#[derive(Debug, PartialEq, Eq)]
pub enum FormatOp {
    Write { offset: u64, data: Bytes },
    Sync,
}

/// Steps not done yet.
pub struct Formatter {
    steps: VecDeque<FormatStep>,
    zeroes: Bytes,
}

impl Formatter {
    /// All steps still to do.
    pub fn new(steps: impl IntoIterator<Item = FormatStep>) -> Formatter {
        Formatter {
            steps: steps.into_iter().collect(),
            zeroes: PageBuf::zeroed(ZERO_BYTES).freeze(),
        }
    }

    /// The next operation; the one before has completed. `None`: the device is formatted.
    pub fn next_op(&mut self) -> Option<FormatOp> {
        loop {
            return Some(match self.steps.pop_front()? {
                FormatStep::Zero { len: 0, .. } => continue,
                FormatStep::Zero { offset, len } => {
                    let n = len.min(ZERO_BYTES as u64);
                    if n < len {
                        let rest = FormatStep::Zero { offset: offset + n, len: len - n };
                        self.steps.push_front(rest);
                    }
                    FormatOp::Write { offset, data: self.zeroes.slice(..n as usize) }
                }
                FormatStep::Write { offset, data } => FormatOp::Write { offset, data },
                FormatStep::Sync => FormatOp::Sync,
            });
        }
    }
}

/// Why formatting failed, for the operator.
pub fn failure(path: &std::path::Path, errno: i32) -> String {
    let e = std::io::Error::from_raw_os_error(errno);
    match e.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => format!(
            "{} cannot be formatted: no space left on the file system it lies on; free space there or make the device smaller",
            path.display()
        ),
        _ => format!("{} cannot be formatted: {e}; check the disk", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_of_zeroes_are_written_piece_by_piece_in_order() {
        let page = Bytes::from(vec![1u8; 4096]);
        let mut f = Formatter::new([
            FormatStep::Zero { offset: 4096, len: (2 << 20) + 4096 },
            FormatStep::Sync,
            FormatStep::Write { offset: 0, data: page.clone() },
            FormatStep::Sync,
        ]);
        let mut zeroed = Vec::new();
        while let Some(FormatOp::Write { offset, data }) = f.next_op() {
            zeroed.push((offset, data.len()));
        }
        assert_eq!(
            zeroed,
            [(4096, 1 << 20), (4096 + (1 << 20), 1 << 20), (4096 + (2 << 20), 4096)]
        );
        assert_eq!(f.next_op(), Some(FormatOp::Write { offset: 0, data: page }));
        assert_eq!((f.next_op(), f.next_op()), (Some(FormatOp::Sync), None));
    }

    #[test]
    fn a_full_file_system_is_named() {
        assert!(
            failure(std::path::Path::new("/x"), 28).contains("no space left on the file system")
        );
        assert!(failure(std::path::Path::new("/x"), 5).contains("check the disk"));
    }
}
