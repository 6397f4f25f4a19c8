//! Writes of a batch that go straight to blocks.

use bytes::Bytes;
use smallvec::SmallVec;

/// Bytes of one write that is made of several. A device takes a few large writes in less time than many small ones, and each
/// costs the processor the same; one of more pieces than the device takes at once (often 127) is split by the kernel, in a
/// thread of its own.
const MAX_MERGED: usize = 256 << 10;

/// Where on the device, what; in the order in which they came.
pub(crate) type DirectWrites = SmallVec<[(u64, Bytes); 4]>;

/// The same with those that follow each other on the device as one. No two are for the same place: a slot that a record in the
/// queue names is not given again before that record has left the log.
pub(crate) fn merged(mut direct: DirectWrites) -> Vec<(u64, Vec<Bytes>)> {
    direct.sort_unstable_by_key(|d| d.0);
    let mut out: Vec<(u64, Vec<Bytes>)> = Vec::with_capacity(direct.len());
    let (mut end, mut len) = (0, 0);
    for (offset, data) in direct {
        let n = data.len();
        match out.last_mut().filter(|_| offset == end && len + n <= MAX_MERGED) {
            Some((_, parts)) => {
                parts.push(data);
                len += n;
            }
            None => {
                out.push((offset, vec![data]));
                len = n;
            }
        }
        end = offset + n as u64;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: usize = 1 << 10;
    type Writes = &'static [(u64, usize)];
    type Merged = &'static [(u64, &'static [usize])];

    /// Offsets and lengths, in KiB, of what comes of writes at these, and that each byte goes where it was to go.
    fn shape(writes: &[(u64, usize)]) -> Vec<(u64, Vec<usize>)> {
        let one = |&(at, len): &(u64, usize)| (at << 10, Bytes::from(vec![at as u8; len * K]));
        let out = merged(writes.iter().map(one).collect());
        for (offset, parts) in &out {
            let mut at = *offset;
            for p in parts {
                assert!(p.iter().all(|b| *b == (at >> 10) as u8), "what is for {at} KiB");
                at += p.len() as u64;
            }
        }
        out.iter().map(|(o, p)| (o >> 10, p.iter().map(|d| d.len() / K).collect())).collect()
    }

    #[test]
    fn what_follows_on_the_device_is_one_write_up_to_its_size_in_whatever_order_it_came() {
        let cases: &[(Writes, Merged)] = &[
            (&[], &[]),
            (&[(64, 64)], &[(64, &[64])]),
            (&[(0, 64), (64, 64)], &[(0, &[64, 64])]),
            (&[(64, 64), (0, 64)], &[(0, &[64, 64])]),
            (&[(0, 64), (128, 64)], &[(0, &[64]), (128, &[64])]),
            (&[(0, 128), (128, 128), (256, 128)], &[(0, &[128, 128]), (256, &[128])]),
            (&[(0, 512), (512, 64), (576, 64)], &[(0, &[512]), (512, &[64, 64])]),
            (&[(8, 4), (0, 4), (4, 4), (16, 4)], &[(0, &[4, 4, 4]), (16, &[4])]),
        ];
        for (writes, want) in cases {
            let want: Vec<_> = want.iter().map(|(o, l)| (*o, l.to_vec())).collect();
            assert_eq!(shape(writes), want, "{writes:?}");
        }
    }
}
