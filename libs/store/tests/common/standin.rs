//! A device of any size that fits in memory: keeps superblocks, log and table, and forgets the data.

use bytes::Bytes;
use quarry_base::*;
use quarry_store::*;
use std::collections::HashMap;

pub struct Disk {
    /// What is kept, by place.
    pub pages: HashMap<u64, Bytes>,
    /// Where the data begins: not kept from there on.
    data: u64,
    zero: Bytes,
}

impl Disk {
    /// Formatted.
    pub fn new(cfg: &StoreConfig) -> Disk {
        let ident = DeviceIdent { cluster: [7; 16], device_uuid: [3; 16], device: DeviceId(1) };
        let data = cfg.log_bytes_or_default() + cfg.device_bytes / 240 + (1 << 20);
        let zero = PageBuf::zeroed(PAGE).freeze();
        let mut disk = Disk { pages: HashMap::new(), data, zero };
        for step in format(cfg, ident).unwrap() {
            if let FormatStep::Write { offset, data } = step {
                disk.write(offset, &data);
            }
        }
        disk
    }

    fn write(&mut self, mut offset: u64, data: &[u8]) {
        for p in data.chunks(PAGE) {
            if offset < self.data {
                self.pages.insert(offset, Bytes::copy_from_slice(p));
            }
            offset += PAGE as u64;
        }
    }

    fn done(&mut self, op: DiskOp) -> DiskResult {
        match op {
            DiskOp::Read { offset, len, .. } => {
                let mut b = PageBuf::zeroed(len);
                for (i, p) in b.chunks_mut(PAGE).enumerate() {
                    let at = offset + (i * PAGE) as u64;
                    p.copy_from_slice(self.pages.get(&at).unwrap_or(&self.zero));
                }
                DiskResult::Read(Ok(b))
            }
            DiskOp::Write { mut offset, data, .. } => {
                for d in data {
                    self.write(offset, &d);
                    offset += d.len() as u64;
                }
                DiskResult::Done(Ok(()))
            }
            _ => DiskResult::Done(Ok(())),
        }
    }

    /// Until nothing is left to do; `open`: until the store is open.
    pub fn run(&mut self, s: &mut Store, events: &mut Vec<StoreEvent>, open: bool) {
        let mut ops = Vec::new();
        loop {
            s.poll(Nanos(1), &mut ops, events);
            let is_open = || events.iter().any(|e| matches!(e, StoreEvent::Opened));
            if ops.is_empty() || open && is_open() {
                return;
            }
            for op in ops.drain(..) {
                let id = op.id();
                let r = self.done(op);
                s.complete(Nanos(1), id, r);
            }
        }
    }
}
